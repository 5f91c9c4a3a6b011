"""IntensityMap: the invertible map between physical units and the networks' [-1, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

# Values that are encoded at once: they stay in the processor's cache.
PIECE = 2**14
# So many voxels fix percentiles and thresholds well.
MOST_SAMPLES = 2**18
# Where an MR window ends that begins at the background, in medians of the foreground: tissue fills most of it in T1, T2 and FLAIR.
MEDIANS = 3.0
# A value that so large a share of the voxels has is the background's, not tissue's.
CONSTANT_SHARE = 0.1
# Foreground begins so many spreads of the background's lower half above it (noise does not reach so far), but at least and at
# most that part of the way to Otsu's threshold: dark tissue lies between.
NOISE_SPREADS = 5.0
NEAREST_SHARE, FARTHEST_SHARE = 0.1, 0.4
# The lower half of a background is narrower than this part of the way to Otsu's threshold.
LARGEST_SPREAD = 0.5


@dataclass(frozen=True, slots=True)
class IntensityMap:
    """Affine map that takes `low` to -1 and `high` to +1; values outside the window are clipped by `encode`.

    Attributes:
        low: physical value that becomes -1.
        high: physical value that becomes +1; greater than `low`.
        units: "HU" or "a.u.".
    """

    low: float
    high: float
    units: str = "a.u."

    def __post_init__(self) -> None:
        if not (np.isfinite(self.low) and np.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"expected a finite window with low < high, got low={self.low!r}, high={self.high!r}")

    def encode(self, physical: np.ndarray) -> np.ndarray:
        """Physical units -> float32 in [-1, 1], any shape; `decode` brings whole numbers back exactly. NaN becomes -1."""
        physical = np.asarray(physical, order="C")
        if physical.dtype == np.uint8 and physical.size > 256:
            return self.encode(np.arange(256, dtype=np.uint8))[physical]
        result = np.empty(physical.shape, np.float32)
        flat, out = physical.reshape(-1), result.reshape(-1)
        # In float64, a piece at a time that stays in the cache: four times as fast as the whole at once.
        for start in range(0, len(flat), PIECE):
            piece = flat[start : start + PIECE].astype(np.float64)
            piece -= self.low
            piece *= 2.0 / (self.high - self.low)
            piece -= 1.0
            np.clip(piece, -1.0, 1.0, out=piece)
            if np.issubdtype(physical.dtype, np.floating):
                piece[np.isnan(piece)] = -1.0
            out[start : start + PIECE] = piece
        return result

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """[-1, 1] -> float32 physical units, any shape; clamps to the window, as an export must.

        float32 in [-1, 1] resolves 2^-26 of the window, so the result is rounded to a power of two between 2^-22 and
        2^-21 of it: whole numbers (HU, grey levels) inside a window of at most 2^22 come back exactly, and any other
        value within 2^-21.9 of the window's width plus 2^-24 of the value itself, which is float32's own error.
        """
        unit = (np.clip(np.asarray(encoded, np.float64), -1.0, 1.0) + 1.0) / 2.0
        physical = unit * (self.high - self.low) + self.low
        quantum = 2.0 ** (math.ceil(math.log2(self.high - self.low)) - 22)
        return np.clip(np.rint(physical / quantum) * quantum, self.low, self.high).astype(np.float32)

    def to_json(self) -> dict[str, float | str]:
        return {"low": self.low, "high": self.high, "units": self.units}


def choose(
    modality: str,
    samples: np.ndarray,
    dtype: np.dtype,
    voi: tuple[float, float] | None = None,
    window: tuple[float, float] | None = None,
    percentiles: tuple[float, float] | None = None,
    by_median: bool = False,
) -> tuple[IntensityMap, str]:
    """The map for one scan (MR, X-ray) or one data set (CT), and the reason in words.

    Args:
        modality: DICOM modality term.
        samples: physical values drawn from the scan or the data set, any shape; NaN and infinite ones do not count.
        dtype: the dtype the values had in the file; 8-bit pictures keep their whole range.
        voi: (low, high) of the file's own VOI window, taken for anything but CT and MR; None where it has none.
        window: (low, high) of the user's choice, taken before anything else.
        percentiles: (low, high) per cent of the user's choice, 0 to 100, of the foreground in MR.
        by_median: of MR without percentiles, the window ends at `MEDIANS` times the median of the foreground: what is brightest
            differs from patient to patient (vessels, lesions, fluid), what is usual does not. For translations, which keep what is
            beyond the window.

    Raises:
        ValueError: a constant scan has no contrast to learn from.
    """
    units = "HU" if modality == "CT" and dtype != np.uint8 else "a.u."
    if window is not None:
        return IntensityMap(
            float(window[0]), float(window[1]), units
        ), f"{modality}: window {window[0]:g} to {window[1]:g} as wished"
    if dtype == np.uint8:  # also a CT exported as a picture, which holds grey levels and no HU
        return IntensityMap(0.0, 255.0), "8-bit: whole range 0 to 255"
    values = _thinned(samples)
    if modality == "CT" and percentiles is None:
        # One window for all scans, never per-scan percentiles: HU mean the same in every patient.
        top = float(np.clip(np.ceil(np.percentile(values, 99.9) / 500.0) * 500.0, 500.0, 3071.0))
        words = f"CT: fixed window -1024 to {top:g} HU for every scan (99.9th percentile, rounded up)"
        return IntensityMap(-1024.0, top, "HU"), words
    if not len(values) or values.min() == values.max():
        found = f"one constant value {values[0]:g}" if len(values) else "no finite value"
        raise ValueError(f"expected a scan with contrast, found {found}")
    if voi is not None and modality not in ("CT", "MR") and percentiles is None and _fits(voi, values):
        words = f"{modality}: each scan by its own VOI window (0028,1050), or from the 0.5th to the 99.5th percentile without one"
        return IntensityMap(float(voi[0]), float(voi[1])), words
    return _by_percentiles(modality, values, units, percentiles, by_median)


def _fits(voi: tuple[float, float], values: np.ndarray) -> bool:
    """Whether a window shows the scan: half its values at least lie inside, and they fill a tenth of it at least."""
    inside = values[(values >= voi[0]) & (values <= voi[1])]
    return len(inside) >= 0.5 * len(values) and float(np.ptp(inside)) >= 0.1 * (voi[1] - voi[0])


def _thinned(samples: np.ndarray) -> np.ndarray:
    """Finite values as float64, evenly drawn where there are more than percentiles need."""
    values = np.asarray(samples).ravel()
    # An odd stride, so that the drawn voxels do not stand in one column.
    values = values[:: (len(values) // MOST_SAMPLES) | 1].astype(np.float64)
    return values[np.isfinite(values)]


def _by_percentiles(
    modality: str, values: np.ndarray, units: str, percentiles: tuple[float, float] | None, by_median: bool
) -> tuple[IntensityMap, str]:
    """The map between two percentiles; in MR from the background to one of the foreground, or to its median times `MEDIANS`."""
    low_share, high_share = percentiles or (0.5, 99.5)
    foreground = values
    start = f"the {low_share:g}th percentile"
    low = float(np.percentile(values, low_share))
    if modality == "MR":
        dark = dark_level(values)
        foreground = _foreground(values)
        if percentiles is not None:
            low = float(np.percentile(foreground, low_share))
        elif dark is not None:
            low, start = dark, "its background"
    if by_median and modality == "MR" and percentiles is None and (median := float(np.median(foreground))) > low:
        words = f"MR: each scan from {start} to {MEDIANS:g} times the median of its foreground above that"
        return IntensityMap(low, low + MEDIANS * (median - low), units), words
    high = float(np.percentile(foreground, high_share))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    where = " of its foreground" if modality == "MR" else ""
    return IntensityMap(
        low, high, units
    ), f"{modality}: each scan from {start} to the {high_share:g}th percentile{where}"


def _foreground(values: np.ndarray) -> np.ndarray:
    """The values above background; all of them where there is none."""
    level = background_level(values)
    above = values[values > level[1]] if level is not None else values
    return above if len(above) else values


def dark_level(values: np.ndarray) -> float | None:
    """What a voxel without signal holds in MR, or None where no such value is below the tissue's.

    Zero in a magnitude image, though interpolation makes a few voxels negative; the constant around the head in a
    standardised one, if it lies below the tissue: where it is zero amid negative and positive tissue there is none.
    """
    if values.min() >= 0.0:
        return 0.0
    levels, counts = np.unique(values[:: (len(values) // 2**16) | 1], return_counts=True)
    commonest = float(levels[counts.argmax()])
    if counts.max() >= CONSTANT_SHARE * counts.sum():
        other = values[values != commonest]
        return commonest if len(other) and float((other < commonest).mean()) < 0.02 else None
    level = background_level(values)
    return None if level is None else level[0]


def background_level(samples: np.ndarray) -> tuple[float, float] | None:
    """(value of the background, threshold above which a voxel is foreground), or None for a scan without background.

    Otsu's threshold (IEEE Trans. SMC 9, 1979) parts dark from bright; the dark part is a background when it is narrow. The
    foreground then begins well below Otsu's threshold, so that dark tissue belongs to it.
    """
    values = _thinned(samples)
    lowest, highest = np.percentile(values, (0.0, 99.5)) if len(values) else (0.0, 0.0)
    if lowest >= highest:
        return None
    otsu = otsu_threshold(np.clip(values, lowest, highest))
    bottom, middle = np.percentile(values[values <= otsu], (2.0, 50.0))
    spread, way = middle - bottom, otsu - middle
    if spread > LARGEST_SPREAD * way:
        return None
    above = np.clip(NOISE_SPREADS * spread, NEAREST_SHARE * way, FARTHEST_SHARE * way)
    return float(middle), float(middle + above)


def otsu_threshold(values: np.ndarray) -> float:
    """The value that parts a histogram of 256 bins into two classes with the greatest variance between them.

    It lies midway between the classes' means, as it must at the optimum; where no value lies between the classes, every
    threshold between them is an optimum and this one is the safest.
    """
    counts, edges = np.histogram(values, 256)
    centres = (edges[1:] + edges[:-1]) / 2.0
    below = np.cumsum(counts)[:-1]
    total = np.cumsum(counts * centres)
    dark = total[:-1] / np.maximum(below, 1)
    bright = (total[-1] - total[:-1]) / np.maximum(len(values) - below, 1)
    best = int((below * (len(values) - below) * (bright - dark) ** 2).argmax())
    return float((dark[best] + bright[best]) / 2.0)
