"""What of a scan is worth keeping: the box around body, head or foreground, and whether cropping to it pays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np

from ..intensity import background_level

# A CT voxel above it is tissue; air and most of the lung lie below. Above the other only bone, metal and contrast agent.
BODY_HU = -500.0
BONE_HU = 300.0
# Boxes are found on a grid of at most so many voxels a side and in all: tissue is far larger than that.
COARSE_SIDE = 128
COARSE_VOXELS = 2**18
# Parts of the body (arms, hands) are at least so large a share of the largest part; cables and specks are smaller.
SMALLEST_PART = 0.01
# Vertex to foramen magnum, mm, of large heads, with some of the neck.
HEAD_HEIGHT = 170.0
# Whose images show much air around the patient; other films and pictures are collimated or cropped already.
FRAMED_BY_AIR = ("CT", "MR", "MG")
# A crop is made when the boxes of half the scans are smaller than that part of the image.
WORTH_CROPPING = 0.7


# (first slice, first row, first column, slices, rows, columns) of a part of a scan, in its displayed voxels.
Box = tuple[int, int, int, int, int, int]


def foreground_box(
    array: np.ndarray,
    modality: str,
    kind: Literal["body", "brain", "foreground"] = "foreground",
    affine: np.ndarray | None = None,
) -> Box:
    """The smallest box around the body, the head or whatever is not background, with a small margin.

    Found on a coarse grid. "body" in CT: what is denser than -500 HU, without the table; "foreground", and "body"
    elsewhere: what lies above Otsu's threshold, or all of a scan without background; "brain": the skull in CT, the
    foreground elsewhere, both down to 170 mm below the vertex when `affine` tells where that is.

    Args:
        array: (K, H, W) or (K, C, H, W), displayed slices in physical units.
        modality: DICOM modality term.
        kind: what to look for.
        affine: (4, 4) of `slices.Slices`, (column, row, slice, 1) -> mm in RAS+; None when not known.

    Returns:
        (first slice, row, column, slices, rows, columns); the whole scan where nothing stands out.
    """
    size = (array.shape[0], *array.shape[-2:])
    steps = _coarse_steps(size)
    coarse = array[:: steps[0], ..., :: steps[1], :: steps[2]]
    if coarse.ndim == 4:
        coarse = coarse[:, 0] if coarse.shape[1] == 1 else coarse.mean(axis=1, dtype=np.float32)
    hounsfield = modality == "CT" and coarse.min() < 0  # a CT exported as a picture holds grey levels
    mask = _hounsfield_mask(coarse, kind) if hounsfield else _bright_mask(coarse)
    if mask is None or not mask.any():
        return (0, 0, 0, *size)
    if kind == "brain" and affine is not None:
        mask = _upper_part(mask, affine, steps)
    return _bounds(mask, steps, size)


def _coarse_steps(size: tuple[int, int, int]) -> list[int]:
    """Every how many voxels one is looked at, along each axis."""
    steps = [-(-count // COARSE_SIDE) for count in size]
    while math.prod(counts := [-(-count // step) for count, step in zip(size, steps)]) > COARSE_VOXELS:
        steps[counts.index(max(counts))] += 1
    return steps


def _hounsfield_mask(coarse: np.ndarray, kind: str) -> np.ndarray | None:
    """The body without the table, or the skull."""
    if kind == "brain":
        skull = _large_parts(coarse > BONE_HU)
        if skull.mean() > 0.002:
            return skull
    tissue = coarse > BODY_HU
    opened = _grown(_grown(tissue, -1), 1)  # thin things go: the table's shell, cables, the edge of a blanket
    if not opened.any():
        return tissue
    near = _large_parts(opened)
    for _ in range(2):  # and what is thin but sticks out of the body comes back: a nose, an ear, fingers
        near = _grown(near, 1) & tissue
    return near


def _bright_mask(coarse: np.ndarray) -> np.ndarray | None:
    """What lies above background, speckle left out; None for a scan without background."""
    from scipy.ndimage import uniform_filter

    level = background_level(coarse.ravel()[:: (coarse.size // 2**15) | 1])
    if level is None:
        return None
    across = 3 if min(coarse.shape[1:]) >= 32 else 1
    return _large_parts(uniform_filter(coarse.astype(np.float32), (1, across, across)) > level[1])


def _grown(mask: np.ndarray, by: int) -> np.ndarray:
    """A (K, H, W) mask grown (1) or shrunk (-1) by one pixel within its slices; beyond the image it goes on."""
    result = mask.copy()
    for axis in (1, 2):
        ahead = (slice(None),) * axis + (slice(1, None),)
        behind = (slice(None),) * axis + (slice(None, -1),)
        if by > 0:
            result[ahead] |= mask[behind]
            result[behind] |= mask[ahead]
        else:
            result[ahead] &= mask[behind]
            result[behind] &= mask[ahead]
    return result


def _large_parts(mask: np.ndarray) -> np.ndarray:
    """The connected parts that are not much smaller than the largest."""
    from scipy.ndimage import label

    parts, count = label(mask)
    if count < 2:
        return mask
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (sizes >= SMALLEST_PART * sizes.max())[parts]


def _upper_part(mask: np.ndarray, affine: np.ndarray, steps: Sequence[int]) -> np.ndarray:
    """The mask down to `HEAD_HEIGHT` below its top, along the axis that runs nearest to the patient's."""
    upwards = affine[2, [2, 1, 0]] * steps  # mm to the head per coarse voxel along slices, rows, columns
    axis = int(np.abs(upwards).argmax())
    height = np.arange(mask.shape[axis]) * upwards[axis]
    filled = mask.any(axis=tuple(other for other in range(3) if other != axis))
    below = height < height[filled].max() - HEAD_HEIGHT
    result = mask.copy()
    np.moveaxis(result, axis, 0)[below] = False
    return result


def _bounds(mask: np.ndarray, steps: Sequence[int], size: Sequence[int]) -> Box:
    """The box of a coarse mask in voxels, one coarse voxel larger on each side: something may end between two."""
    first, count = [], []
    for axis in range(3):
        filled = np.flatnonzero(mask.any(axis=tuple(other for other in range(3) if other != axis)))
        begin = max((int(filled[0]) - 1) * steps[axis], 0)
        end = min((int(filled[-1]) + 1) * steps[axis] + 1, size[axis])
        first.append(begin)
        count.append(end - begin)
    return (*first, *count)  # type: ignore[return-value]


def choose_crop(
    boxes: Sequence[Box], sizes: Sequence[tuple[int, int, int]], modality: str
) -> tuple[Literal["none", "body", "foreground"], str]:
    """Whether cropping saves enough, and the reason in words.

    Args:
        boxes: of `foreground_box`, one a scan.
        sizes: (K, H, W) of the same scans.
        modality: DICOM modality term.
    """
    kind: Literal["body", "foreground"] = "body" if modality == "CT" else "foreground"
    if modality not in FRAMED_BY_AIR and all(depth == 1 for depth, _, _ in sizes):
        return "none", "crop: none, films and pictures stay as their maker framed them"
    shares = [rows * columns / (height * width) for (*_, rows, columns), (_, height, width) in zip(boxes, sizes)]
    share = float(np.median(shares)) if shares else 1.0
    if share < WORTH_CROPPING:
        return kind, f"crop: to the {kind}, whose box fills {share:.0%} of an image (median)"
    return (
        "none",
        f"crop: none, the {kind}'s box fills {share:.0%} of an image (median), a crop below {WORTH_CROPPING:.0%}",
    )


def crop_extent(extents: Iterable[tuple[float, ...]]) -> tuple[float, ...]:
    """The size that holds 19 of 20 boxes along each axis, in their unit (mm, or pixels where no size is known)."""
    return tuple(
        float(value) for value in np.percentile(np.array(list(extents), np.float64), 95.0, axis=0, method="higher")
    )
