"""Crop, grid and resampling as every stage applies them: one place, so that what was learned is what is measured."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@lru_cache(maxsize=256)
def resampling_matrix(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) float32 rows of an anti-aliased linear filter, each summing to 1.

    The triangle filter is widened by the downsampling factor, so that no structure finer than the new grid aliases;
    upsampling is plain linear interpolation; equal sizes give the identity.
    """
    factor = size_in / size_out
    centre = (np.arange(size_out) + 0.5) * factor - 0.5
    distance = np.abs(np.arange(size_in)[None, :] - centre[:, None]) / max(factor, 1.0)
    weight = np.clip(1.0 - distance, 0.0, None)
    return (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """(..., H, W) -> (..., height, width), anti-aliased, in the input's dtype (integers are rounded)."""
    if image.shape[-2:] == (height, width):
        return image
    rows = resampling_matrix(image.shape[-2], height)
    columns = resampling_matrix(image.shape[-1], width)
    # Contiguous, or the product of a transposed view takes twenty times as long.
    result = rows @ np.ascontiguousarray(image, np.float32) @ columns.T
    if np.issubdtype(image.dtype, np.integer):
        limits = np.iinfo(image.dtype)
        result = np.clip(np.rint(result), limits.min, limits.max)
    return result.astype(image.dtype)


@dataclass(frozen=True, slots=True)
class Grid:
    """A training grid (base_height x base_width) doubled `doublings` times, and the image's box centred in it.

    The base is 4 to 7 pixels a side, so that nearly every aspect ratio is met without squashing and with little padding.

    Attributes:
        base_height, base_width: the networks' smallest grid.
        doublings: how often it is doubled.
        box_height, box_width: size of the image proper, at most the grid; the rest is padding.
    """

    base_height: int
    base_width: int
    doublings: int
    box_height: int
    box_width: int

    @property
    def height(self) -> int:
        return self.base_height << self.doublings

    @property
    def width(self) -> int:
        return self.base_width << self.doublings

    @property
    def pixels(self) -> int:
        return self.height * self.width

    @property
    def top(self) -> int:
        return (self.height - self.box_height) // 2

    @property
    def left(self) -> int:
        return (self.width - self.box_width) // 2

    @classmethod
    def choose(cls, height: int, width: int, target: int) -> Grid:
        """The grid for images of height x width whose longer side is near `target`, with little padding."""
        best: tuple[float, Grid] | None = None
        for base_height in range(4, 8):
            for base_width in range(4, 8):
                for doublings in range(1, 12):
                    grid_height, grid_width = base_height << doublings, base_width << doublings
                    scale = min(grid_height / height, grid_width / width)
                    box_height = min(grid_height, max(1, round(height * scale)))
                    box_width = min(grid_width, max(1, round(width * scale)))
                    padding = 1.0 - box_height * box_width / (grid_height * grid_width)
                    # An octave off the wished size weighs as much as half the grid being padding.
                    cost = padding + 0.5 * abs(math.log2(max(grid_height, grid_width) / target))
                    if best is None or cost < best[0] - 1e-9:
                        best = cost, cls(base_height, base_width, doublings, box_height, box_width)
        assert best is not None
        return best[1]

    def apply(self, image: np.ndarray, fill: float) -> np.ndarray:
        """(C, H, W) -> (C, height, width): resized into the box, `fill` around it, same dtype."""
        resized = resize(image, self.box_height, self.box_width)
        if (self.box_height, self.box_width) == (self.height, self.width):
            return np.ascontiguousarray(resized)
        result = np.full((*image.shape[:-2], self.height, self.width), fill, image.dtype)
        result[..., self.top : self.top + self.box_height, self.left : self.left + self.box_width] = resized
        return result

    def crop(self, image: np.ndarray) -> np.ndarray:
        """(..., height, width) -> (..., box_height, box_width): the image without its padding."""
        return image[..., self.top : self.top + self.box_height, self.left : self.left + self.box_width]

    def to_json(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}
