"""How well a mask lies on another: Dice's coefficient and the 95th percentile of surface distances."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """2 |A and B| / (|A| + |B|) of two bool masks of one shape (Dice 1945): 1 for equal ones; nan where both are empty."""
    total = int(one.sum()) + int(other.sum())
    return 2.0 * int((one & other).sum()) / total if total else math.nan


def hausdorff95(one: np.ndarray, other: np.ndarray, spacing: Sequence[float]) -> float:
    """95th percentile of the distances from a surface to the other, the larger of both ways (Huttenlocher 1993, with a quantile).

    A surface are the voxels of a mask that touch others along an axis; an image's border is one.

    Args:
        one, other: bool masks of one shape, 2 or 3 axes.
        spacing: voxel size along each axis; the unit of the result.

    Returns:
        inf where one mask alone is empty, nan where both are.
    """
    from scipy.ndimage import distance_transform_edt

    surfaces = [surface(mask) for mask in (one, other)]
    if not all(mask.any() for mask in surfaces):
        return math.inf if any(mask.any() for mask in surfaces) else math.nan
    ways = [
        np.percentile(distance_transform_edt(~there, sampling=tuple(spacing))[here], 95.0)
        for here, there in (surfaces, surfaces[::-1])
    ]
    return float(max(ways))


def surface(mask: np.ndarray) -> np.ndarray:
    """bool: the voxels of a mask with a neighbour along an axis that is outside it, or outside the image."""
    from scipy.ndimage import binary_erosion

    return np.asarray(mask & ~binary_erosion(mask))
