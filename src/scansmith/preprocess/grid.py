"""Training grid and resampling, as every stage applies them: what was learned is what is measured."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np

# Smallest side of a grid's base, by the number of axes.
SMALLEST_BASE = {2: 4, 3: 3}
# Doublings of a patch's base, by the number of axes.
PATCH_DOUBLINGS = {2: 4, 3: 3}
# Rows of a resampling matrix that are multiplied at once.
BLOCK = 32


def band(size: int, positions: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The anti-aliased linear filter that reads an axis of `size` voxels at (n,) fractional positions.

    The triangle is as wide as the downsampling factor (old voxels a new one), so that no structure finer than the new
    grid aliases; upsampling (factor below 1) is plain linear interpolation; at whole positions with factor 1 it copies.

    Returns:
        (n, taps) voxel numbers and their float32 weights, each row summing to 1; beyond the ends the last voxel counts.
    """
    width = max(factor, 1.0)
    inside = np.clip(np.asarray(positions, np.float64), 0.0, size - 1.0)
    first = np.floor(inside - width).astype(np.int64) + 1
    taps = first[:, None] + np.arange(math.ceil(2.0 * width))
    weight = np.clip(1.0 - np.abs(taps - inside[:, None]) / width, 0.0, None)
    weight[(taps < 0) | (taps >= size)] = 0.0
    return np.clip(taps, 0, size - 1), (weight / weight.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=256)
def resampling_matrix(size_in: int, size_out: int) -> np.ndarray:
    """(size_out, size_in) float32: the rows of `band` that bring an axis to another number of voxels."""
    factor = size_in / size_out
    taps, weight = band(size_in, (np.arange(size_out) + 0.5) * factor - 0.5, factor)
    result = np.zeros((size_out, size_in), np.float32)
    np.add.at(result, (np.arange(size_out)[:, None], taps), weight)
    return result


@lru_cache(maxsize=256)
def _blocks(size_in: int, size_out: int, start: int, stop: int) -> tuple[tuple[slice, slice, np.ndarray], ...]:
    """Rows start to stop of `resampling_matrix` as small blocks: (rows from start, columns, their part of the matrix)."""
    matrix = resampling_matrix(size_in, size_out)[start:stop]
    blocks = []
    for first in range(0, len(matrix), BLOCK):
        rows = matrix[first : first + BLOCK]
        used = np.flatnonzero(rows.any(axis=0))
        columns = slice(int(used[0]), int(used[-1]) + 1)
        blocks.append((slice(first, first + len(rows)), columns, np.ascontiguousarray(rows[:, columns])))
    return tuple(blocks)


def resize(image: np.ndarray, height: int, width: int, part: tuple[slice, slice] | None = None) -> np.ndarray:
    """(..., H, W) -> (..., height, width), anti-aliased, in the input's dtype (integers are rounded).

    `part` is the part of the result that is wanted, rows and columns; None is all of it. The filter's matrix is nearly
    empty: in blocks along its diagonal the product takes a quarter of the time at 512 pixels.
    """
    (top, below), (left, beside) = (
        own.indices(size)[:2] for own, size in zip(part or (slice(None), slice(None)), (height, width))
    )
    if image.shape[-2:] == (height, width):
        return image[..., top:below, left:beside]
    lead, before = image.shape[:-2], image.shape[-1]
    result = np.empty((*lead, below - top, beside - left), image.dtype)
    down = np.empty((below - top, before), np.float32)
    across = np.empty((below - top, beside - left), np.float32)
    for index in np.ndindex(*lead):
        # Contiguous, or the product of a transposed view takes twenty times as long.
        plane = np.ascontiguousarray(image[index], np.float32)
        for out, used, weight in _blocks(image.shape[-2], height, top, below):
            np.matmul(weight, plane[used], out=down[out])
        for out, used, weight in _blocks(before, width, left, beside):
            np.matmul(down[:, used], weight.T, out=across[:, out])
        result[index] = to_dtype(across, image.dtype)
    return result


def to_dtype(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """float32 -> dtype; integers are rounded and kept in range, in place."""
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        np.rint(values, out=values)
        np.clip(values, limits.min, limits.max, out=values)
    return values.astype(dtype, copy=False)


def resize_volume(image: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(..., D, H, W) -> (..., *size), the filter of `resize` along all three axes, in the input's dtype (rounded once)."""
    depth, height, width = size
    if image.shape[-3:] == tuple(size):
        return image
    across = resize(np.asarray(image, np.float32), height, width)
    if across.shape[-3] != depth:
        lead = across.shape[:-3]
        planes = np.ascontiguousarray(across).reshape(*lead, across.shape[-3], height * width)
        across = np.empty((*lead, depth, height * width), np.float32)
        for index in np.ndindex(*lead):
            for out, used, weight in _blocks(planes.shape[-2], depth, 0, depth):
                np.matmul(weight, planes[index][used], out=across[index][out])
        across = across.reshape(*lead, *size)
    return to_dtype(across, image.dtype)


@dataclass(frozen=True, slots=True)
class Grid:
    """A training grid: a small base doubled `doublings` times along every axis, and the image's box centred in it.

    The base of a picture is 4 to 7 pixels a side, of a volume 3 to 7 voxels, so that nearly every aspect ratio is met
    without squashing and with little padding.

    Attributes:
        base: the networks' smallest grid, (rows, columns) or (slices, rows, columns).
        doublings: how often it is doubled.
        box: size of the image proper, at most the grid; the rest is padding.
    """

    base: tuple[int, ...]
    doublings: int
    box: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """(height, width) or (depth, height, width)."""
        return tuple(side << self.doublings for side in self.base)

    @property
    def dimensions(self) -> int:
        return len(self.base)

    @property
    def side(self) -> int:
        """The longest side."""
        return max(self.shape)

    @property
    def pixels(self) -> int:
        return math.prod(self.shape)

    @property
    def height(self) -> int:
        return self.shape[-2]

    @property
    def width(self) -> int:
        return self.shape[-1]

    @property
    def box_height(self) -> int:
        return self.box[-2]

    @property
    def box_width(self) -> int:
        return self.box[-1]

    @classmethod
    def choose(cls, size: Sequence[int], target: int) -> Grid:
        """The grid for images of `size` (2 or 3 axes) whose longest side is near `target`, with little padding."""
        best: tuple[float, Grid] | None = None
        for base in product(range(SMALLEST_BASE[len(size)], 8), repeat=len(size)):
            for doublings in range(1, 12):
                grid = cls.holding(size, base, doublings)
                padding = 1.0 - math.prod(grid.box) / grid.pixels
                # An octave off the wished size weighs as much as half the grid being padding.
                cost = padding + 0.5 * abs(math.log2(grid.side / target))
                if best is None or cost < best[0] - 1e-9:
                    best = cost, grid
        assert best is not None
        return best[1]

    @classmethod
    def holding(cls, size: Sequence[int], base: Sequence[int], doublings: int) -> Grid:
        """The grid of that base, with images of `size` as large as they go."""
        whole = [side << doublings for side in base]
        scale = min(have / want for have, want in zip(whole, size, strict=True))
        box = tuple(min(most, max(1, round(side * scale))) for most, side in zip(whole, size))
        return cls(tuple(base), doublings, box)

    @classmethod
    def patch(cls, size: Sequence[int], most: int) -> Grid:
        """The patch of at most `most` voxels a side that a network of images of `size` learns from at full resolution.

        A side is a multiple of 2**doublings, and where the image is shorter the least one that holds it.
        """
        doublings = PATCH_DOUBLINGS[len(size)]
        step = 2**doublings
        base = tuple(max(1, min(most // step, -(-side // step))) for side in size)
        return cls(base, doublings, tuple(part * step for part in base))

    def apply(self, image: np.ndarray, fill: float) -> np.ndarray:
        """(C, *size) -> (C, *shape): resized into the box, `fill` around it, same dtype."""
        resized = (
            resize(image, self.box_height, self.box_width) if self.dimensions == 2 else resize_volume(image, self.box)
        )
        if self.box == self.shape:
            return np.ascontiguousarray(resized)
        result = np.full((*image.shape[: -self.dimensions], *self.shape), fill, image.dtype)
        self.crop(result)[...] = resized
        return result

    def crop(self, image: np.ndarray) -> np.ndarray:
        """(..., *shape) -> (..., *box), a view: the image without its padding."""
        corners = [(whole - part) // 2 for whole, part in zip(self.shape, self.box)]
        inside = tuple(slice(corner, corner + part) for corner, part in zip(corners, self.box))
        return image[(slice(None),) * (image.ndim - len(inside)) + inside]

    def to_json(self) -> dict[str, Any]:
        return {"base": list(self.base), "doublings": self.doublings, "box": list(self.box)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> Grid:
        """The inverse of `to_json`."""
        return cls(tuple(stored["base"]), stored["doublings"], tuple(stored["box"]))
