"""IntensityMap: the invertible map between physical units and the networks' [-1, 1]."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


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
        """Physical units -> float32 in [-1, 1], any shape; `decode` brings whole numbers back exactly."""
        unit = (np.asarray(physical, np.float64) - self.low) / (self.high - self.low)
        return (np.clip(unit, 0.0, 1.0) * 2.0 - 1.0).astype(np.float32)

    def decode(self, encoded: np.ndarray) -> np.ndarray:
        """[-1, 1] -> float32 physical units, any shape; clamps to the window, as an export must.

        float32 in [-1, 1] resolves 2^-24 of the window, so the result is rounded to the power of two next above 2^-23 of
        it: whole numbers (HU, grey levels) inside a window of at most 2^22 come back exactly.
        """
        unit = (np.clip(np.asarray(encoded, np.float64), -1.0, 1.0) + 1.0) / 2.0
        physical = unit * (self.high - self.low) + self.low
        quantum = 2.0 ** (math.ceil(math.log2(self.high - self.low)) - 22)
        return np.clip(np.rint(physical / quantum) * quantum, self.low, self.high).astype(np.float32)

    def to_json(self) -> dict[str, float | str]:
        return {"low": self.low, "high": self.high, "units": self.units}


def choose(modality: str, samples: np.ndarray, dtype: np.dtype) -> tuple[IntensityMap, str]:
    """The map for one scan (MR, X-ray) or one data set (CT), and the reason in words.

    Args:
        modality: DICOM modality term.
        samples: physical values drawn from the scan or the data set, any shape, finite.
        dtype: the dtype the values had in the file; 8-bit pictures keep their whole range.

    Raises:
        ValueError: a constant scan has no contrast to learn from.
    """
    if dtype == np.uint8:  # also a CT exported as a picture, which holds grey levels and no HU
        return IntensityMap(0.0, 255.0), "8-bit: whole range 0 to 255"
    values = np.asarray(samples, np.float64).ravel()
    if modality == "CT":
        # One window for all scans, never per-scan percentiles: HU mean the same in every patient.
        top = float(np.clip(np.ceil(np.percentile(values, 99.9) / 500.0) * 500.0, 500.0, 3071.0))
        return IntensityMap(
            -1024.0, top, "HU"
        ), f"CT: fixed window -1024 to {top:g} HU for every scan (99.9th percentile, rounded up)"
    if values.min() == values.max():
        raise ValueError(f"expected a scan with contrast, found one constant value {values[0]:g}")
    # Foreground: above the mean, which background (air) pulls down; the field's usual rule for MR. The brightest
    # voxels of all, a vessel or an artefact, do not count for the mean.
    mean = np.minimum(values, np.percentile(values, 99.9)).mean()
    foreground = values[values > mean] if modality == "MR" else values
    low = float(min(values.min(), 0.0)) if modality == "MR" else float(np.percentile(values, 0.5))
    high = float(np.percentile(foreground, 99.5))
    if high <= low:
        low, high = float(values.min()), float(values.max())
    span = "0" if modality == "MR" else "the 0.5th percentile"
    return IntensityMap(low, high), f"{modality}: each scan from {span} to the 99.5th percentile" + (
        " of its foreground" if modality == "MR" else ""
    )
