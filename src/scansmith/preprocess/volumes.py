"""From one scan to the 3-D volume that the dataset stores: upright, on the dataset's grid, geometry kept."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from ..formats.series import steps, unshear
from ..image import Image
from .grid import band, to_dtype
from .slices import SAME_SPACING, Slices, corner, upright

Order = Literal["linear", "nearest"]
# Axes further from a right angle than this (0.6 degrees) are sheared: a gantry was tilted.
LEAST_SHEAR = 0.01


def stand(image: Image, order: Order = "linear") -> Slices:
    """A volume upright (see `slices.upright`), its axes at right angles: a tilted stack is straightened first.

    `order` is "nearest" for label maps.
    """
    return upright(straight(image, order))


def straight(image: Image, order: Order = "linear") -> Image:
    """The same volume on orthogonal axes; the image itself where they are within 0.6 degrees."""
    if not _sheared(image):
        return image
    if order == "linear":
        return unshear(image)
    # Of a label map each label's share is straightened, and the largest share wins.
    labels = np.unique(np.append(image.array, 0))
    shares = [
        unshear(replace(image, array=np.where(image.array == label, 200, 0).astype(np.uint8)), 0.0 if label else 200.0)
        for label in labels
    ]
    winner = np.argmax([share.array for share in shares], axis=0)
    return replace(shares[0], array=labels[winner].astype(image.array.dtype))


def _sheared(image: Image) -> bool:
    """Whether the axes are further than .6 degrees from right angles."""
    direction = image.affine[:3, :3] / np.linalg.norm(image.affine[:3, :3], axis=0)
    return float(np.abs(direction.T @ direction - np.eye(3)).max()) > LEAST_SHEAR


def slid(image: Image, background: float) -> tuple[Image, np.ndarray | None]:
    """The same volume on nearly orthogonal axes, its slices moved by whole voxels: nothing is interpolated.

    Args:
        image: any volume.
        background: value beside the slices.

    Returns:
        A volume at most half a voxel beside the straight one, and where in it each slice begins along I and J, (K, 2); where the
        axes are within .6 degrees of right angles the image itself and None.
    """
    if not _sheared(image):
        return image, None
    upright, per_slice = steps(image.affine)
    channels, *size, slices = image.array.shape
    moved = np.rint(np.arange(slices)[:, None] * per_slice).astype(int)
    origin = moved.min(axis=0)
    array = np.full((channels, *(size + np.ptp(moved, axis=0)), slices), background, image.array.dtype)
    for k, (i, j) in enumerate(moved - origin):
        array[:, i : i + size[0], j : j + size[1], k] = image.array[..., k]
    affine = image.affine.copy()
    affine[:3, 2] = upright
    affine[:3, 3] += image.affine[:3, :2] @ origin
    return replace(image, array=array, affine=affine), moved - origin


def slid_back(array: np.ndarray, begins: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(C, I', J', K) on the voxels that `slid` gave -> (C, *size) on those that it was given."""
    i, j, _ = size
    planes = [array[:, a : a + i, b : b + j, k] for k, (a, b) in enumerate(begins)]
    return np.stack(planes, axis=-1)


def spacing_of(slices: Slices) -> tuple[float, float, float] | None:
    """(slice, row, column) voxel size in mm, or None where the file does not say."""
    if slices.spacing is None:
        return None
    return (float(np.linalg.norm(slices.affine[:3, 2])), *slices.spacing)


def place_volume(
    scan: Image | Slices,
    shape: tuple[int, int, int],
    spacing: tuple[float, float, float] | None,
    centre: tuple[float, float, float] | None = None,
    fill: float = 0.0,
    order: Order = "linear",
    extent: tuple[float, float, float] | None = None,
) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Bring a scan to a grid of D slices of H x W voxels.

    With both voxel sizes known the scan is resampled to the grid's and then cropped or padded; along an axis whose
    voxel size is within 2 % of the grid's it is shifted by whole voxels, so that no value is touched. Otherwise `extent`
    is scaled to fit into the grid, proportions kept.

    Args:
        scan: a volume; an `Image` is first made to `stand`, `Slices` stay as they lie.
        shape: (D, H, W) of the grid.
        spacing: its (slice, row, column) voxel size in mm, or None.
        centre: (slice, row, column) that comes to lie in the grid's middle, voxel edges at whole numbers, so
            first + size / 2 of a box; None takes the scan's own middle. As in `Placement.choose`, the grid is shifted
            from there as little as keeps it on the scan, or the scan on the grid.
        fill: value where the scan does not reach.
        order: "linear" with an anti-alias filter; "nearest" for label maps, whose labels stay what they are.
        extent: size in voxels that must fit where no voxel size is known; None takes all.

    Returns:
        (C, D, H, W) in the scan's dtype; (4, 4) (column, row, slice, 1) -> mm in RAS+; and
        [first slice, row, column, slices, rows, columns] of the grid in the upright scan's voxels.
    """
    slices = stand(scan, order) if isinstance(scan, Image) else scan
    size = (slices.array.shape[0], *slices.array.shape[2:])
    factors = _factors(size, spacing_of(slices), shape, spacing, extent)
    firsts = [_first(size[axis], shape[axis], factors[axis], centre and centre[axis]) for axis in range(3)]
    positions = [
        first + (np.arange(count) + 0.5) * factor - 0.5 for first, count, factor in zip(firsts, shape, factors)
    ]
    inside = [np.flatnonzero((p >= -0.5) & (p < n - 0.5)) for p, n in zip(positions, size)]
    channels = np.moveaxis(slices.array, 1, 0)
    result = np.empty((len(channels), *shape), slices.array.dtype)
    whole = all(len(own) == count for own, count in zip(inside, shape))
    if not whole:
        result[...] = fill
    where = tuple(slice(own[0], own[-1] + 1) for own in inside)
    used = [p[own] for p, own in zip(positions, inside)]
    for channel, out in zip(channels, result):
        resample(channel, used, factors, order, out[where])
    step = np.diag([*factors[::-1], 1.0])
    step[:3, 3] = [first + 0.5 * factor - 0.5 for first, factor in zip(firsts[::-1], factors[::-1])]
    box = [*firsts, *(count * factor for count, factor in zip(shape, factors))]
    return result, slices.affine @ step, [float(value) for value in box]


def _factors(
    size: Sequence[int],
    own: tuple[float, float, float] | None,
    shape: Sequence[int],
    wished: tuple[float, float, float] | None,
    extent: Sequence[float] | None,
) -> list[float]:
    """How many of the scan's voxels one of the grid's spans, along each axis."""
    if own is None or wished is None:
        return [max(have / want for have, want in zip(extent or size, shape))] * 3
    factors = [new / old for new, old in zip(wished, own)]
    return [1.0 if abs(factor - 1.0) <= SAME_SPACING else factor for factor in factors]


def _first(size: int, count: int, factor: float, centre: float | None) -> float:
    """Where the grid's first voxel begins along an axis, in the scan's voxels; a whole number when nothing is resampled."""
    middle = size / 2 if centre is None else centre
    if factor == 1.0:
        return float(corner(middle, count, size))
    free = size - count * factor
    return min(max(middle - count * factor / 2, min(free, 0.0)), max(free, 0.0))


def resample(
    volume: np.ndarray, positions: Sequence[np.ndarray], factors: Sequence[float], order: Order, out: np.ndarray
) -> None:
    """Read a volume (K, H, W) at fractional positions along its axes, each with the filter `grid.band`, into `out`.

    The work goes in the order in which the voxels lie in memory, one plane at a time, which then stays in the cache:
    256^3 int16 to 170^3 in .06 s on one core, where SimpleITK needs .13 s without an anti-alias filter.
    """
    memory = sorted(range(3), key=lambda axis: -abs(volume.strides[axis]))
    where = [positions[axis] for axis in memory]
    factors = [factors[axis] for axis in memory]
    volume, out = volume.transpose(memory), out.transpose(memory)
    for axis in range(3):
        if volume.strides[axis] < 0:
            volume, out = np.flip(volume, axis), np.flip(out, axis)
            where[axis] = volume.shape[axis] - 1 - where[axis][::-1]
    if order == "nearest":
        taps = [np.clip(np.rint(p).astype(np.int64), 0, n - 1) for p, n in zip(where, volume.shape)]
        out[...] = volume[np.ix_(*taps)]
    elif all(map(_copies, where, factors)):
        out[...] = volume[tuple(_span(p) for p in where)]
    else:
        _resample_planes(volume, where, factors, out)


def _copies(positions: np.ndarray, factor: float) -> bool:
    """Whether an axis is read voxel by voxel."""
    return factor == 1.0 and bool((positions == np.rint(positions)).all())


def _span(positions: np.ndarray) -> slice:
    return slice(int(positions[0]), int(positions[-1]) + 1)


def _resample_planes(volume: np.ndarray, where: list[np.ndarray], factors: list[float], out: np.ndarray) -> None:
    """The same for a volume that lies in memory axis by axis, the first the slowest."""
    taps, weight = band(volume.shape[0], where[0], factors[0])
    (rows, row_span), (columns, column_span) = (
        _sparse(n, p, f) for n, p, f in zip(volume.shape[1:], where[1:], factors[1:])
    )
    volume = volume[:, row_span, column_span]
    for number, (own, shares) in enumerate(zip(taps, weight)):
        used = np.flatnonzero(shares)
        plane = volume[own[used[0]]].astype(np.float32)
        if len(used) > 1:
            plane *= shares[used[0]]
            for tap in used[1:]:
                plane += volume[own[tap]] * shares[tap]
        if rows is not None:
            plane = rows @ plane
        if columns is not None:
            plane = (columns @ np.ascontiguousarray(plane.T)).T
        out[number] = to_dtype(plane, out.dtype)


def _sparse(size: int, positions: np.ndarray, factor: float) -> tuple[Any, slice]:
    """The filter of one axis as a sparse matrix over the span of voxels that it reads; None where it only copies them."""
    if _copies(positions, factor):
        return None, _span(positions)
    from scipy.sparse import csr_array

    taps, weight = band(size, positions, factor)
    start, stop = int(taps.min()), int(taps.max()) + 1
    rows = np.broadcast_to(np.arange(len(taps))[:, None], taps.shape)
    matrix = csr_array((weight.ravel(), (rows.ravel(), taps.ravel() - start)), shape=(len(taps), stop - start))
    return matrix, slice(start, stop)
