"""MR intensity: the gain of the receive coils, and one scale for all scans."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np

from ..intensity import background_level
from .grid import resize_volume

# The bias field is fitted on so many voxels, in so many steps for each halving of its knots' distance.
BIAS_VOXELS = 2**15
FEWEST_BIAS_VOXELS = 200
BIAS_STEPS = (15, 15, 20, 15)
# Percentiles of the foreground whose values are matched.
LANDMARKS = (1.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 99.0)


def bias_corrected(volume: np.ndarray, spacing: Sequence[float] | None, mask: np.ndarray | None = None) -> np.ndarray:
    """(K, H, W) float32 without the smooth gain of the receive coils: N4, Tustison et al., IEEE TMI 29, 2010.

    The field is fitted on about 2^15 voxels (6 to 8 mm in a head) in a bounded number of steps, which takes some seconds
    whatever the scan's size, and read back linearly: it varies over centimetres. Its geometric mean within the mask is
    1, so that the scan keeps its units. One thread: the same bits every time.

    Args:
        volume: MR; voxels at or below 0 are not fitted.
        spacing: (slice, row, column) voxel size in mm; None takes 1 mm.
        mask: (K, H, W), true where tissue is; None: the foreground.
    """
    import SimpleITK as sitk

    own = np.array(spacing if spacing is not None else (1.0, 1.0, 1.0), np.float64)
    side = (math.prod(own * volume.shape) / BIAS_VOXELS) ** (1 / 3)
    size = np.ceil(np.array(volume.shape) / np.maximum(side / own, 1.0)).astype(int)
    volume = np.asarray(volume, np.float32)
    small = resize_volume(volume, size)
    if mask is None:
        level = background_level(small)
        inside = small > (level[1] if level is not None else small.min())
    else:
        inside = resize_volume(np.asarray(mask, np.float32), size) >= 0.5
    inside &= small > 0
    if inside.sum() < FEWEST_BIAS_VOXELS or min(size) < 4:  # too little to see a field in
        return volume
    n4 = sitk.N4BiasFieldCorrectionImageFilter()
    n4.SetNumberOfThreads(1)
    n4.SetMaximumNumberOfIterations(BIAS_STEPS)
    images = [sitk.GetImageFromArray(part) for part in (small, inside.astype(np.uint8))]
    for image in images:
        image.SetSpacing([float(value) for value in (own * volume.shape / size)[::-1]])
    n4.Execute(*images)
    field = sitk.GetArrayFromImage(n4.GetLogBiasFieldAsImage(images[0])).astype(np.float32)
    field -= field[inside].mean()
    return volume * np.exp(-resize_volume(field, volume.shape))


def landmarks(volumes: Iterable[np.ndarray]) -> dict[str, list[float]]:
    """A standard scale learned from training scans: Nyul and Udupa, Magn. Reson. Med. 42, 1999.

    Each scan's landmarks (its background, and percentiles of its foreground) are brought to a range of 0 to 100 between
    background and 99th percentile, and averaged.

    Returns:
        {"percentiles": ..., "values": ...}, plain numbers for `match_histogram`.
    """
    scales = []
    for volume in volumes:
        own = _own_landmarks(volume)
        scales.append((own - own[0]) / max(own[-1] - own[0], 1e-12) * 100.0)
    return {"percentiles": list(LANDMARKS), "values": np.mean(scales, axis=0).tolist()}


def _own_landmarks(volume: np.ndarray) -> np.ndarray:
    """The background, or the lowest value without one, and `LANDMARKS` per cent of the foreground; never falling."""
    values = np.asarray(volume, np.float32).ravel()
    level = background_level(values)
    dark, foreground = (level[0], values[values > level[1]]) if level is not None else (float(values.min()), values)
    return np.maximum.accumulate(np.array([dark, *np.percentile(foreground, LANDMARKS)]))


def histogram_knots(volume: np.ndarray, learned: dict[str, list[float]]) -> tuple[np.ndarray, np.ndarray]:
    """(own values, standard values) between which `match_histogram` interpolates; both rise, so it can be inverted."""
    own, standard = _own_landmarks(volume), np.array(learned["values"])
    apart = np.concatenate([[True], (np.diff(own) > 0) & (np.diff(standard) > 0)])
    if apart.sum() < 2:
        raise ValueError("expected a scan with contrast, found one constant value: its histogram cannot be matched")
    return own[apart], standard[apart]


def match_histogram(volume: np.ndarray, learned: dict[str, list[float]]) -> np.ndarray:
    """A scan on the standard scale of `landmarks`, float32: one tissue has about one value in all scans.

    Piecewise linear between the landmarks and beyond them, and rising: `piecewise(matched, standard, own)` with
    `own, standard = histogram_knots(volume, learned)` brings the scan's values back.
    """
    return piecewise(volume, *histogram_knots(volume, learned))


def piecewise(values: np.ndarray, knots: np.ndarray, becomes: np.ndarray) -> np.ndarray:
    """Linear between the knots and on beyond the first and the last; float32."""
    values = np.asarray(values, np.float64)
    slope = np.diff(becomes) / np.diff(knots)
    result = np.interp(values, knots, becomes)
    result += np.minimum(values - knots[0], 0.0) * slope[0] + np.maximum(values - knots[-1], 0.0) * slope[-1]
    return result.astype(np.float32)
