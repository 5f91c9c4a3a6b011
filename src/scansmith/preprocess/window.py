"""Which values of a scan become -1 and 1, and what is corrected before: the same for learning as for use."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .. import intensity
from ..image import Image
from ..intensity import IntensityMap
from .mr import bias_corrected, match_histogram

# So many voxels fix percentiles well.
MOST_VOXELS = 2**20
LOWEST, HIGHEST = -1.25, 3.0  # encoded values beyond are cut: spikes of a few voxels


def stores_grey_levels(dtype: np.dtype, kind: str, dimensions: int) -> bool:
    """Whether 8-bit values are a picture's grey levels, of which the whole range counts.

    A volume that happens to fit in 8 bits has the scanner's arbitrary units; its window is chosen as for any other.
    """
    return dtype == np.uint8 and (dimensions == 2 or kind == "CT")


def window_of(
    array: np.ndarray,
    modality: str,
    dimensions: int,
    voi: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    percentiles: tuple[float, float] | None = None,
    by_median: bool = False,
) -> IntensityMap | None:
    """The intensity map of one scan; None for CT, whose one window is chosen for the data set.

    Args:
        array: the scan's voxels, any shape.
        modality: DICOM modality term.
        dimensions: 2 for pictures and films, 3 for volumes.
        voi: the file's own window; window, percentiles: the user's choice; by_median: as in `intensity.choose`.
    """
    grey_levels = stores_grey_levels(array.dtype, modality, dimensions)
    if modality == "CT" and not grey_levels:
        return None
    # An odd stride, so that the drawn voxels do not stand in one column.
    values = array.ravel()[:: (array.size // MOST_VOXELS) | 1]
    dtype = np.dtype(np.uint8 if grey_levels else np.float32)
    return intensity.choose(modality, values, dtype, voi, window, percentiles, by_median)[0]


def corrected(image: Image, bias_field: bool, landmarks: dict[str, list[float]] | None) -> Image:
    """The image without the coils' gain, on the standard scale of `landmarks`, where these are wished; MR volumes alone."""
    if bias_field:
        volume = bias_corrected(image.array[0].transpose(2, 1, 0).astype(np.float32), image.spacing[::-1])
        image = replace(image, array=volume.transpose(2, 1, 0)[None])
    if landmarks is not None:
        matched = match_histogram(image.array[0].transpose(2, 1, 0).astype(np.float32), landmarks)
        image = replace(image, array=matched.transpose(2, 1, 0)[None])
    return image


def unclipped(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Physical units -> float32, `low` to -1 and `high` to 1; spikes are cut, but not at 1: a translation keeps what is bright."""
    result = np.subtract(values, np.float32(low), dtype=np.float32)
    result *= np.float32(2.0 / (high - low))
    result -= np.float32(1.0)
    return np.clip(result, LOWEST, HIGHEST, out=result)
