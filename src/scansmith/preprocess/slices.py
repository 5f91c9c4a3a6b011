"""From one scan to the 2-D images that the dataset stores: upright, not empty, on the dataset's grid, geometry kept."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Literal

import numpy as np

from ..image import Image
from .grid import resize

# Formats whose slices are displayed as they are stored: DICOM by the standard, pictures by convention.
AS_STORED = ("dicom", "png", "jpeg")
# Where a displayed slice looks, in RAS+ axes: (columns run along, towards), (rows run along, towards), by the normal's axis.
# Radiological convention: the patient's right at the image's left; anterior up when axial, superior up otherwise.
DISPLAY = {2: ((0, -1), (1, -1)), 1: ((0, -1), (2, -1)), 0: ((1, -1), (2, -1))}
SAME_SPACING = 0.02
LEAST_FOREGROUND = 0.02
# A CT pixel above it is tissue; air and most of the lung lie below.
FOREGROUND_HU = -500.0
# Measured: at most 0.73 in scans (8-bit CT with saturated bone), at least 0.89 in label maps of up to 100 labels.
MASK_AGREEMENT = 0.85
Axes = tuple[tuple[int, int], ...]


@dataclass(frozen=True, slots=True)
class Slices:
    """A scan cut into displayed slices.

    Attributes:
        array: (K, C, H, W), a view of the scan where possible.
        affine: (4, 4), index (column, row, slice, 1) -> mm in RAS+.
        spacing: (row, column) pixel size in mm, or None when the file does not say.
        plane: "axial", "coronal", "sagittal", or "as stored".
    """

    array: np.ndarray
    affine: np.ndarray
    spacing: tuple[float, float] | None
    plane: str

    def with_array(self, array: np.ndarray) -> Slices:
        """The same slices with other values of the same shape."""
        return replace(self, array=array)


def cut(image: Image, format: str) -> Slices:
    """The displayed slices of a scan.

    DICOM and pictures keep their stored orientation. A volume is cut across its coarsest axis, the one along which it
    was acquired slice by slice; an isotropic one axially; and its slices are turned upright by the affine, stacked so
    that columns, rows and slices form a right-handed frame: axial slices from the feet to the head.
    """
    return turned(image, *lying(image, format))


def upright(image: Image) -> Slices:
    """The slices of a volume as radiologists look at them, whatever its file is (see `cut`)."""
    return turned(image, *_upright(image))


def lying(image: Image, format: str) -> tuple[Axes, str]:
    """(voxel axis, sign) of the columns, the rows and the slices that `cut` gives, and the name of the plane."""
    return (((0, 1), (1, 1), (2, 1)), "as stored") if format in AS_STORED else _upright(image)


def directions(affine: np.ndarray) -> Axes:
    """(patient axis of RAS+, sign) that each voxel axis runs along most nearly."""
    direction = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    world = _nearest(direction)
    return tuple((world[a], 1 if direction[world[a], a] > 0 else -1) for a in range(3))


def lying_as(image: Image, wished: Axes) -> Axes:
    """(voxel axis, sign) of columns, rows and slices that run along the given (patient axis, sign)."""
    own = directions(image.affine)
    world = [axis for axis, _ in own]
    return tuple((world.index(axis), sign * own[world.index(axis)][1]) for axis, sign in wished)


def turned(image: Image, axes: Axes, plane: str) -> Slices:
    """The view whose columns, rows and slices run along the given (voxel axis, sign)."""
    array = image.array.transpose(0, *(axis + 1 for axis, _ in reversed(axes)))
    step = np.zeros((4, 4))
    step[3, 3] = 1
    for number, (axis, sign) in enumerate(axes):
        step[axis, number] = sign
        if sign < 0:
            array = np.flip(array, 3 - number)
            step[axis, 3] = image.array.shape[axis + 1] - 1
    spacing = (image.spacing[axes[1][0]], image.spacing[axes[0][0]]) if image.spacing_known else None
    return Slices(array.swapaxes(0, 1), image.affine @ step, spacing, plane)


def _upright(image: Image) -> tuple[Axes, str]:
    """((voxel axis, sign) of the columns, of the rows, of the normal), and the name of the plane."""
    direction = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    world = _nearest(direction)
    normal = _slice_axis(image, world)
    (across, across_sign), (down, down_sign) = DISPLAY[world[normal]]
    column, row = world.index(across), world.index(down)
    column_sign = 1 if direction[across, column] * across_sign > 0 else -1
    row_sign = 1 if direction[down, row] * down_sign > 0 else -1
    frame = np.stack([direction[:, column] * column_sign, direction[:, row] * row_sign, direction[:, normal]])
    normal_sign = 1 if np.linalg.det(frame) > 0 else -1
    axes = (column, column_sign), (row, row_sign), (normal, normal_sign)
    return axes, ("sagittal", "coronal", "axial")[world[normal]]


def _nearest(direction: np.ndarray) -> tuple[int, ...]:
    """The patient axis (0 right, 1 anterior, 2 superior) that each voxel axis is nearest to, each taken once."""
    return max(permutations(range(3)), key=lambda order: sum(abs(direction[order[a], a]) for a in range(3)))


def _slice_axis(image: Image, world: tuple[int, ...]) -> int:
    """The voxel axis across which a volume is cut."""
    shape = image.array.shape[1:]
    if min(shape) == 1:
        return shape.index(1) if shape[2] > 1 else 2
    coarsest = max(image.spacing)
    near = [axis for axis in range(3) if image.spacing[axis] > 0.95 * coarsest]
    return max(near, key=lambda axis: world[axis])


def foreground(slices: Slices, modality: str) -> np.ndarray:
    """(K,) share of each slice's pixels that are above background: air in CT, the volume's mean otherwise."""
    array = slices.array
    level = FOREGROUND_HU if modality == "CT" else float(array.mean(dtype=np.float64))
    return np.array([float((piece > level).mean()) for piece in array])


def why_empty(slices: Slices, modality: str, dimensions: int) -> list[str | None]:
    """For each slice None when it is worth learning from, else the reason in words."""
    constant = [bool((piece == piece.flat[0]).all()) for piece in slices.array]
    share = foreground(slices, modality) if dimensions == 3 and len(slices.array) > 1 else np.ones(len(constant))
    reasons: list[str | None] = []
    for flat, part in zip(constant, share):
        if flat:
            reasons.append("no contrast: every pixel has the same value")
        elif part < LEAST_FOREGROUND:
            reasons.append(f"nearly empty: less than {LEAST_FOREGROUND:.0%} of the pixels lie above background")
        else:
            reasons.append(None)
    return reasons


def is_mask(array: np.ndarray) -> bool:
    """Whether an array (..., H, W) is a label map: whole numbers, and neighbours above background that nearly always agree."""
    background = array.min()
    inside = (array[..., 1:] > background) & (array[..., :-1] > background)
    whole = np.issubdtype(array.dtype, np.integer) or np.array_equal(array, np.rint(array))
    if not whole or not inside.any():
        return False
    return float((array[..., 1:] == array[..., :-1])[inside].mean()) > MASK_AGREEMENT


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a slice of one scan comes to lie on the dataset's grid.

    Attributes:
        height, width: the slice's size after resampling.
        top, left: the grid's corner in the resampled slice; negative where the grid is larger (padding).
        grid: (height, width) of the dataset.
        source: (height, width) of the slice before.
    """

    height: int
    width: int
    top: int
    left: int
    grid: tuple[int, int]
    source: tuple[int, int]

    @classmethod
    def choose(
        cls,
        source: tuple[int, int],
        spacing: tuple[float, float] | None,
        grid: tuple[int, int],
        grid_spacing: tuple[float, float] | None,
        centre: tuple[float, float] | None = None,
        extent: tuple[float, float] | None = None,
    ) -> Placement:
        """The placement of a slice of size `source` (height, width).

        With both pixel sizes known (mm, row and column) the slice is brought to the grid's pixel size and then cropped
        or padded; a pixel size within 2 % of the grid's stays, so that no value is touched. Otherwise `extent` is
        scaled to fit into the grid, aspect ratio kept.

        Args:
            source: (height, width) of the slice.
            spacing: its (row, column) pixel size in mm, or None.
            grid: (height, width) of the dataset.
            grid_spacing: its pixel size in mm, or None.
            centre: (row, column) in the slice that comes to lie in the grid's middle, pixel edges at whole numbers, so
                first + size / 2 of a box; None takes the slice's own middle. The grid is shifted from there as little
                as keeps it on the slice, or the slice on the grid.
            extent: (height, width) in the slice's pixels that must fit where no pixel size is known; None takes all.
        """
        if spacing is not None and grid_spacing is not None:
            factor = [own / wished for own, wished in zip(spacing, grid_spacing)]
            factor = [1.0 if abs(value - 1.0) <= SAME_SPACING else value for value in factor]
        else:
            fit = extent or source
            factor = [min(grid[0] / fit[0], grid[1] / fit[1])] * 2
        height, width = (max(1, round(size * value)) for size, value in zip(source, factor))
        middle = centre or (source[0] / 2, source[1] / 2)
        top = corner(middle[0] * height / source[0], grid[0], height)
        left = corner(middle[1] * width / source[1], grid[1], width)
        return cls(height, width, top, left, grid, source)

    def apply(self, array: np.ndarray, fill: float, order: Literal["linear", "nearest"] = "linear") -> np.ndarray:
        """(..., *source) -> (..., *grid), `fill` where the slice does not reach, same dtype; "nearest" for label maps."""
        top, left = max(self.top, 0), max(self.left, 0)
        below, beside = min(self.top + self.grid[0], self.height), min(self.left + self.grid[1], self.width)
        if order == "nearest":
            rows = ((np.arange(top, below) + 0.5) * self.source[0] / self.height).astype(int)
            columns = ((np.arange(left, beside) + 0.5) * self.source[1] / self.width).astype(int)
            resized = array[..., rows[:, None], columns]
        else:
            resized = resize(array, self.height, self.width, (slice(top, below), slice(left, beside)))
        if resized.shape[-2:] == self.grid:
            return np.ascontiguousarray(resized)
        result = np.full((*array.shape[:-2], *self.grid), fill, array.dtype)
        inside = (slice(top - self.top, below - self.top), slice(left - self.left, beside - self.left))
        result[(..., *inside)] = resized
        return result

    @property
    def box(self) -> list[float]:
        """[top, left, height, width] of the grid in the source slice's pixels; outside the slice where it is padded."""
        down, across = self.source[0] / self.height, self.source[1] / self.width
        return [self.top * down, self.left * across, self.grid[0] * down, self.grid[1] * across]

    def spacing(self, spacing: tuple[float, float]) -> list[float]:
        """[row, column] pixel size in mm on the grid, from that of the source slice."""
        return [spacing[0] * self.source[0] / self.height, spacing[1] * self.source[1] / self.width]

    def affine(self, slices: Slices, k: int) -> np.ndarray:
        """(4, 4): (column, row, 0, 1) of the stored image of slice k -> mm in RAS+."""
        down, across = self.source[0] / self.height, self.source[1] / self.width
        step = np.eye(4)
        step[0, 0], step[0, 3] = across, (self.left + 0.5) * across - 0.5  # pixel centres lie at whole numbers
        step[1, 1], step[1, 3] = down, (self.top + 0.5) * down - 0.5
        step[2, 3] = k
        return slices.affine @ step


def corner(middle: float, grid: int, size: int) -> int:
    """Where a grid about `middle` begins along an axis of `size` pixels: no further off the axis than it must."""
    free = size - grid
    return min(max(math.floor(middle - grid / 2), min(free, 0)), max(free, 0))
