"""Good scans made worse: the worse one is the source, the good one the target."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from .. import degradations
from ..dataset import Dataset
from ..runtime import derive_seed
from .base import BODY, WHOLE, Pairing, Part
from .scans import Scans

# Fractions of the full dose, and standard deviations in [-1, 1] where there is no dose; what ticks and evaluations look at.
DOSES, USUAL_DOSE = (0.1, 0.5), 0.25
LEVELS, USUAL_LEVEL = (0.02, 0.15), 0.08
VARIANTS = 4  # patterns of noise of a slice, each with either sign and at any dose
KEPT_BYTES = 2**30
# Old voxels a new one is as thick as.
FACTORS, USUAL_FACTOR = (1.5, 4.0), 3.0


@dataclass(frozen=True)
class Denoising(Pairing):
    """Task `denoise` on scans alone: noise is put into them; of CT that of a smaller dose.

    Attributes:
        kept: patterns of noise that were made before.
    """

    residual: ClassVar[bool] = True
    kept: MutableMapping[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def of(cls, data: Dataset) -> Pairing:
        """The scans themselves where they are paired, which then are noisy ones and better ones."""
        return Improving.of(data) if data.info.get("target") else cls(data)

    def source(self, row: int, part: Part = WHOLE, random: np.random.Generator | None = None) -> np.ndarray:
        rows = self.data.neighbours(row) if self.slices > 1 else [row]
        return np.concatenate([self.noisy(int(one), row, random)[(slice(None), *part)] for one in rows])

    def noisy(self, row: int, window: int, random: np.random.Generator | None) -> np.ndarray:
        """The image of a row with noise, by the window of another row of the scan."""
        image, info = self.encoded(row, window), self.data.info
        if info["modality"] == "CT" and info["units"] == "HU":
            between = self.data.intensity(window)
            return image + self.of_dose(row, random) * np.float32(2.0 / (between.high - between.low))
        random = random or self.fixed(row)
        level = USUAL_LEVEL if random is None else float(np.exp(random.uniform(*np.log(LEVELS))))
        return degradations.noise(image, info["modality"], level, random)

    def fixed(self, row: int) -> np.random.Generator:
        """The draws that are always the same for a row."""
        return np.random.default_rng(derive_seed(0, "noise", row))

    def of_dose(self, row: int, random: np.random.Generator | None) -> np.ndarray:
        """Noise in HU, (C, *spatial), of one dose or of any."""
        variant, sign, dose = 0, 1.0, USUAL_DOSE
        if random is not None:
            variant, sign = int(random.integers(VARIANTS)), float(random.choice([-1.0, 1.0]))
            dose = float(np.exp(random.uniform(*np.log(DOSES))))
        scale = np.sqrt((1.0 / dose - 1.0) / (1.0 / USUAL_DOSE - 1.0))
        return self.pattern(row, variant).astype(np.float32) * np.float32(sign * scale)

    def pattern(self, row: int, variant: int) -> np.ndarray:
        """Noise at `USUAL_DOSE`, float16 (C, *spatial); each slice of a volume has its own."""
        found = self.kept.get((row, variant))
        if found is None:
            image = self.data.image(row)
            planes = image.reshape(-1, *image.shape[-2:])
            spacing = self.data.columns["spacing"][row][1:]
            spacing = np.where(np.isfinite(spacing), spacing, 1.0).tolist()
            drawn = np.random.default_rng(derive_seed(0, "pattern", row, variant))
            made = [
                degradations.ct_noise(np.asarray(plane, np.float32), spacing, USUAL_DOSE, drawn) for plane in planes
            ]
            found = np.stack(made).reshape(image.shape).astype(np.float16)
            if found.nbytes * (len(self.kept) + 1) <= KEPT_BYTES:
                self.kept[row, variant] = found
        return found


def between(found: np.ndarray) -> np.ndarray:
    """(n,) bool: from the first to the last that is true."""
    return np.asarray(np.maximum.accumulate(found) & np.maximum.accumulate(found[::-1])[::-1])


@dataclass(frozen=True)
class SuperResolution(Pairing):
    """Task `superresolve` on scans alone: volumes get thick slices, images large pixels, and are brought back to their grid."""

    residual: ClassVar[bool] = True

    @classmethod
    def of(cls, data: Dataset) -> Pairing:
        """The scans themselves where they are paired, which then are coarse ones and finer ones."""
        return Improving.of(data) if data.info.get("target") else cls(data)

    def source(self, row: int, part: Part = WHOLE, random: np.random.Generator | None = None) -> np.ndarray:
        factor = USUAL_FACTOR if random is None else float(random.uniform(*FACTORS))
        if self.data.info.get("depth"):
            along, across = (part[0], part[1:]) if part else (slice(None), WHOLE)
            volume = super().source(row, (slice(None), *across) if part else WHOLE)
            thick = degradations.thickened(volume, factor)
            return degradations.refined(thick, volume.shape[1], factor)[:, along]
        return degradations.blurred(super().source(row), factor)[(slice(None), *part)]

    def body(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Within the extent of the scan: what thick slices smear into the padding of the grid around it is no error."""
        inside = super().body(source, target)
        scan = np.any(target > BODY, axis=0)
        for axis in range(inside.ndim):
            other = tuple(one for one in range(inside.ndim) if one != axis)
            shape = [1] * inside.ndim
            shape[axis] = -1
            inside = inside & between(np.any(scan, axis=other)).reshape(shape)
        return inside

    def faithful(self, row: int, planes: np.ndarray) -> np.ndarray:
        """Of volumes those whose thick slices are the measured ones."""
        if not self.data.info.get("depth"):
            return planes
        measured = degradations.thickened(super().source(row)[:1], USUAL_FACTOR)
        return planes + degradations.consistent(planes[:1], measured, USUAL_FACTOR) - planes[:1]


class Improving(Scans):
    """Paired scans of which the source is the target, worse."""

    residual: ClassVar[bool] = True

    def about(self) -> dict[str, Any]:
        about = super().about()
        info = self.data.info
        if (info["modality"], info["channels"]) != (info["target"]["modality"], info["target"]["channels"]):
            raise ValueError(
                f"expected pairs of one kind of scan to improve in {self.data.root}, found {info['modality']} and {info['target']['modality']}: use --task paired"
            )
        return about
