"""A volume as its three central orthogonal slices, so that everything that compares pictures compares volumes too."""

from __future__ import annotations

from itertools import permutations

import numpy as np

from ..preprocess import resize, resize_volume

PLANES = 3
COMPARED = "three central slices of each volume"


def upright(volume: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """(C, D, H, W) with its slices from the feet to the head, rows to the back and columns to the patient's left; a view.

    Args:
        volume: of any orientation.
        affine: (4, 4), (column, row, slice, 1) -> mm in RAS+; NaN, not known, leaves the volume as it lies.
    """
    direction = affine[:3, :3]
    lengths = np.linalg.norm(direction, axis=0)
    if not np.isfinite(affine).all() or lengths.min() <= 0:
        return volume
    direction = direction / lengths
    # For right, anterior and superior the voxel axis (0 column, 1 row, 2 slice) that is nearest to it, each taken once.
    right, front, head = max(
        permutations(range(3)), key=lambda axes: sum(abs(direction[i, a]) for i, a in enumerate(axes))
    )
    turned = volume.transpose(0, 3 - head, 3 - front, 3 - right)
    signs = direction[2, head], -direction[1, front], -direction[0, right]
    return turned[(slice(None), *(slice(None, None, 1 if sign > 0 else -1) for sign in signs))]


def central(volume: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """(C, d, h, w), upright, -> (3 C, S, S): axial, coronal and sagittal slice of the volume resized to `size`, anti-aliased.

    S is the longest side of `size` (D, H, W), to which every slice is stretched. The head is at the top.
    """
    resized, side = resize_volume(volume, size), max(size)
    depth, height, width = (length // 2 for length in size)
    slices = resized[:, depth], resized[:, ::-1, height], resized[:, ::-1, :, width]
    return np.concatenate([resize(plane, side, side) for plane in slices])


def side_by_side(image: np.ndarray) -> np.ndarray:
    """(3 C, S, S) of `central` -> (C, S, 3 S), to be looked at."""
    return np.concatenate(np.split(image, PLANES), axis=-1)
