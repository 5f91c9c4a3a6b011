"""Align: one scan's voxels on another scan's grid, exactly where grids agree, resampled where they do not."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np

from ..image import PICTURES, Image
from .grid import resize

# Corners of two grids that lie nearer than this, or than this share of the grid's extent, are the same points.
SAME_MM = 1e-3
SAME_SHARE = 1e-4
LEAST_OVERLAP = 0.2
# A moving grid finer by more than this is smoothed before it is resampled, so that nothing finer than the new grid aliases.
FINER = 1.5


def onto(moving: Image, fixed: Image, fill: float) -> tuple[np.ndarray, str | None]:
    """Bring `moving` onto the grid of `fixed`: (C, I, J, K) in moving's dtype, and in words what was done.

    Where the grids agree within 1e-3 mm (or 1e-4 of their extent), also up to permuted or flipped axes or whole voxels,
    the values are copied bit for bit and the words are None. Otherwise they are resampled linearly, after a Gaussian
    along the axes where moving is finer by more than 1.5; voxels that moving does not reach get `fill`.

    Raises:
        ValueError: only one of the two says where it lies, they overlap by less than 20 % of fixed, or neither says
            where it lies and their proportions differ.
    """
    if _placed(moving) != _placed(fixed):
        known, unknown = ("target", "source") if _placed(fixed) else ("source", "target")
        raise ValueError(
            f"expected two scans that both say where they lie in the patient, found a {known} that does and a {unknown} that does not: convert both from their DICOM series, or give both as pictures"
        )
    if not _placed(fixed):
        return _picture(moving, fixed)
    step = index_map(moving, fixed)
    exact = exact_map(step, moving, fixed)
    shared = overlap(step, moving, fixed)
    if shared < LEAST_OVERLAP:
        raise ValueError(
            f"expected two scans of one region, found that the source covers {shared:.0%} of the target (at least {LEAST_OVERLAP:.0%} is needed): the pair is wrong, or the two are not in one frame of reference; register them first"
        )
    if exact is not None:
        return place_exact(moving.array, exact, fixed.array.shape[1:], fill), None
    words = f"resampled from {_grid(moving)} to the target's {_grid(fixed)}, linear"
    sigma = _blur(step)
    if sigma.any():
        words += ", smoothed first because the target's voxels are larger"
    return resample(moving.array, step, fixed.array.shape[1:], fill, sigma), words


def _placed(image: Image) -> bool:
    """Whether the affine says where the scan lies in the patient; a projection's does not."""
    return image.spacing_known and image.modality not in PICTURES


def _grid(image: Image) -> str:
    size = " x ".join(str(count) for count in image.array.shape[1:])
    return f"{size} voxels of {' x '.join(f'{value:.3g}' for value in image.spacing)} mm"


def _picture(moving: Image, fixed: Image) -> tuple[np.ndarray, str | None]:
    """Two scans without a place: equal sizes are taken as one grid, equal proportions are scaled."""
    own, wished = moving.array.shape[1:], fixed.array.shape[1:]
    if own == wished:
        return moving.array.copy(), None
    if not same_proportions(own, wished):
        raise ValueError(
            f"expected a pair of one size or one proportion, found {own[0]} x {own[1]} and {wished[0]} x {wished[1]} pixels"
            + (f" in {own[2]} and {wished[2]} slices" if own[2] != 1 or wished[2] != 1 else "")
            + ", and nothing that says where they lie: crop them alike first"
        )
    scaled = resize(np.moveaxis(moving.array, 3, 1), wished[0], wished[1])
    words = f"scaled from {own[0]} x {own[1]} to the target's {wished[0]} x {wished[1]} pixels"
    return np.ascontiguousarray(np.moveaxis(scaled, 1, 3)), words


def same_proportions(own: tuple[int, ...], wished: tuple[int, ...]) -> bool:
    """Whether one picture is the other scaled: within one pixel of the smaller one's sides, slices alike."""
    smaller, larger = sorted(((own[0], own[1]), (wished[0], wished[1])))
    return own[2] == wished[2] and abs(smaller[0] * larger[1] / larger[0] - smaller[1]) <= 1.0


# ------------------------------------------------------------------------------------------------ grids


def index_map(moving: Image, fixed: Image) -> np.ndarray:
    """(4, 4): voxel index of fixed -> voxel index of moving."""
    return np.linalg.inv(moving.affine) @ fixed.affine


def corners(shape: tuple[int, ...], margin: float = 0.0) -> np.ndarray:
    """(4, 8) voxel indices of the corner voxels' centres, or of the box's corners with a margin of half a voxel."""
    points = product(*((-margin, size - 1 + margin) for size in shape[:3]))
    return np.array([[*point, 1.0] for point in points]).T


def exact_map(step: np.ndarray, moving: Image, fixed: Image) -> tuple[tuple[int, ...], np.ndarray, np.ndarray] | None:
    """How fixed's voxels are moving's voxels: (moving's axis for each axis of fixed, sign of each, offset); None if they are not.

    Grids agree when every corner of fixed lies within 1e-3 mm, or 1e-4 of the extent, of a voxel of moving's grid.
    """
    axes: tuple[int, ...] = max(permutations(range(3)), key=lambda order: sum(abs(step[order[a], a]) for a in range(3)))
    signs = np.array([1 if step[axes[a], a] > 0 else -1 for a in range(3)])
    rounded = np.zeros((4, 4))
    for a in range(3):
        rounded[axes[a], a] = signs[a]
    rounded[:3, 3], rounded[3, 3] = np.rint(step[:3, 3]), 1.0
    points = corners(fixed.array.shape[1:])
    away = moving.affine[:3, :3] @ ((rounded - step) @ points)[:3]
    extent = np.linalg.norm(np.array(fixed.spacing) * fixed.array.shape[1:])
    if np.linalg.norm(away, axis=0).max() > max(SAME_MM, SAME_SHARE * extent):
        return None
    return axes, signs, rounded[:3, 3].astype(int)


def overlap(step: np.ndarray, moving: Image, fixed: Image) -> float:
    """Share of fixed's box that lies inside moving's."""
    inside = np.ones((24, 24, 24), bool)
    grid = np.stack(
        np.meshgrid(*((np.arange(24) + 0.5) / 24 * size - 0.5 for size in fixed.array.shape[1:]), indexing="ij")
    )
    points = np.tensordot(step[:3, :3], grid, 1) + step[:3, 3, None, None, None]
    for axis, size in enumerate(moving.array.shape[1:]):
        inside &= (points[axis] >= -0.5 - 1e-6) & (points[axis] <= size - 0.5 + 1e-6)
    return float(inside.mean())


def place_exact(
    array: np.ndarray, exact: tuple[tuple[int, ...], np.ndarray, np.ndarray], shape: tuple[int, ...], fill: float
) -> np.ndarray:
    """(C, ...) -> (C, *shape): voxels copied by an `exact_map`, `fill` where there are none."""
    axes, signs, offset = exact
    result = np.full((len(array), *shape), fill, array.dtype)
    wanted: list[slice] = [slice(None)]
    taken: list[slice] = [slice(None)] * 4
    for a in range(3):
        size, start, sign = array.shape[axes[a] + 1], int(offset[axes[a]]), int(signs[a])
        # Fixed's index n is moving's start + sign * n, which must lie within 0 ... size - 1.
        first = max(0, -start if sign > 0 else start - size + 1)
        last = min(shape[a] - 1, size - 1 - start if sign > 0 else start)
        if last < first:
            return result
        wanted.append(slice(first, last + 1))
        low, high = sorted((start + sign * first, start + sign * last))
        taken[axes[a] + 1] = slice(low, high + 1)
    part = array[tuple(taken)].transpose(0, *(axis + 1 for axis in axes))
    result[tuple(wanted)] = part[:, :: signs[0], :: signs[1], :: signs[2]]
    return result


# ------------------------------------------------------------------------------------------------ resampling


def _blur(step: np.ndarray) -> np.ndarray:
    """(3,) standard deviation of the Gaussian along moving's axes, in its voxels; 0 where moving is not finer.

    Chosen so that a voxel's full width at half maximum becomes that of the target's (Cardoso et al. 2015, MICCAI,
    scale factor point spread function: sigma^2 = (f^2 - 1) / (8 ln 2)).
    """
    factor = np.abs(step[:3, :3]).max(axis=1)
    return np.where(factor > FINER, np.sqrt(np.maximum(factor**2 - 1.0, 0.0) / (8.0 * np.log(2.0))), 0.0)


def resample(
    array: np.ndarray,
    step: np.ndarray,
    shape: tuple[int, ...],
    fill: float,
    sigma: np.ndarray | None,
    nearest: bool = False,
) -> np.ndarray:
    """(C, ...) -> (C, *shape) by `step` (index of the result -> index of the array), same dtype; integers are rounded.

    Args:
        sigma: of the Gaussian before, along the array's axes in voxels; None or zeros for none.
        nearest: nearest neighbour instead of linear.
    """
    import SimpleITK as sitk
    from scipy.ndimage import gaussian_filter

    transform = sitk.AffineTransform(3)
    transform.SetMatrix(step[:3, :3].ravel().tolist())
    transform.SetTranslation(step[:3, 3].tolist())
    result = np.empty((len(array), *shape), array.dtype)
    for channel, values in enumerate(array):
        smooth = values.astype(np.float32 if np.can_cast(array.dtype, np.float32) else np.float64)
        if sigma is not None and sigma.any():
            smooth = gaussian_filter(smooth, sigma, mode="nearest")
        # On index grids (spacing 1, origin 0) the transform alone says where a voxel lies: sheared grids work too.
        moved = sitk.Resample(
            sitk.GetImageFromArray(np.ascontiguousarray(smooth.T)),
            [int(size) for size in shape],
            transform,
            sitk.sitkNearestNeighbor if nearest else sitk.sitkLinear,
            [0.0, 0.0, 0.0],
            [1.0, 1.0, 1.0],
            np.eye(3).ravel().tolist(),
            float(fill),
        )
        values = sitk.GetArrayFromImage(moved).T
        result[channel] = _rounded(values, array.dtype)
    return result


def _rounded(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if not np.issubdtype(dtype, np.integer):
        return values.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
