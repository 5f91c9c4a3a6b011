"""Bounds that differ from voxel to voxel beside bounds of one width, both calibrated on the same patients in the same way."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .. import conformal
from ..model import Model
from ..pairings import Pairing
from .held_out import Scan, through
from .numbers import Each, noted, shares_outside, summaries, width

ALPHA = 0.1  # share of voxels that may lie outside
ROWS = 32  # of a calibration patient, evenly spaced
VOXELS = 2**20  # of a calibration patient
LEAST_WIDTH = 0.01  # encoded, of constant bounds before calibration
KINDS = ("varying", "constant")


@dataclass(frozen=True)
class Calibrated:
    """What both kinds of bounds are multiplied by.

    Attributes:
        factors: "varying": of the network's bounds; "constant": half the width of constant ones, encoded.
        patients: whom they were calibrated on.
        method: by which; of too few patients both are set so that these patients are covered on average, which promises nothing.
    """

    factors: dict[str, float]
    patients: int
    method: str


def calibrated(pairs: Pairing, model: Model, device: torch.device) -> Calibrated | None:
    """Both kinds on the calibration patients; None without bounds or patients, or where no factor is enough."""
    settings = model.config["translation"]
    if settings["calibration"] is None:
        return None
    alpha = settings["calibration"].get("alpha", ALPHA)
    half = max(settings["usual_width"] / 2.0, LEAST_WIDTH)
    each: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for true, lower, middle, upper in voxels(pairs, model, device):
        each["varying"].append(conformal.losses(true, lower, middle, upper))
        each["constant"].append(conformal.losses(true, middle - half, middle, middle + half))
    count = len(each["varying"])
    if not count:
        return None
    found = {kind: conformal.calibrate(losses, alpha) for kind, losses in each.items()}
    method = found["varying"].method
    factors = {kind: one.factor for kind, one in found.items()}
    if method == "uncalibrated":
        factors = {kind: conformal.least(np.mean(losses, axis=0) <= alpha) for kind, losses in each.items()}
    if any(math.isinf(factor) for factor in factors.values()):
        return None
    return Calibrated(factors | {"constant": factors["constant"] * half}, count, method)


def voxels(
    pairs: Pairing, model: Model, device: torch.device
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Of each calibration patient true values, lower bounds, middles and upper bounds in the body, encoded, before calibration."""
    every = pairs.rows("calibration")
    patients = pairs.data.columns["patient"][every]
    for patient in sorted(set(patients.tolist())):
        own = every[patients == patient]
        rows = own[np.unique(np.linspace(0, len(own) - 1, min(ROWS, len(own))).astype(int))]
        parts = []
        for row in rows:
            source, target = pairs.source(int(row)), pairs.target(int(row))
            middle, lower, upper = through(model, source, pairs.window(int(row)), device)
            inside = pairs.body(source, target)
            four = np.stack([one[inside] for one in (target[0], lower, middle, upper)])
            parts.append(four[:, :: (four.shape[1] * len(rows) // VOXELS) | 1])
        joined = np.concatenate(parts, axis=1)
        if joined.size:
            yield joined[0], joined[1], joined[2], joined[3]


def both(scan: Scan, found: Calibrated, shipped: float) -> dict[str, Scan]:
    """The scan with either kind of bounds; `shipped` is the factor that its own bounds were widened by."""
    times, half = found.factors["varying"] / shipped, found.factors["constant"]
    lower, upper = scan.middle - times * (scan.middle - scan.lower), scan.middle + times * (scan.upper - scan.middle)
    return {
        "varying": replace(scan, lower=lower, upper=upper),
        "constant": replace(scan, lower=scan.middle - half, upper=scan.middle + half),
    }


@dataclass(frozen=True)
class Beside:
    """The numbers of both kinds of bounds on held-out scans.

    Attributes:
        calibrated: of the calibration patients.
        shipped: factor of the model's own bounds.
        units: of the target.
        outside: kind -> tissue -> patient -> shares outside; widths: kind -> patient -> mean widths.
    """

    calibrated: Calibrated
    shipped: float
    units: str
    outside: dict[str, dict[str, Each]]
    widths: dict[str, Each]

    @classmethod
    def of(cls, pairs: Pairing, model: Model, device: torch.device) -> Beside | None:
        """Before any scan; None where there is nothing to compare."""
        found = calibrated(pairs, model, device)
        if found is None:
            return None
        factor = model.config["translation"]["calibration"]["factor"]
        shipped = 1.0 if factor is None else float(factor)
        return cls(found, shipped, model.intensity.units, {kind: {} for kind in KINDS}, {})

    def note(self, scan: Scan) -> None:
        """Count one held-out scan."""
        for kind, bounded in both(scan, self.calibrated, self.shipped).items():
            noted(self.outside[kind], scan.patient, shares_outside(bounded, self.units))
            noted(self.widths, scan.patient, {kind: width(bounded)})

    def result(self, seed: int) -> dict[str, Any]:
        """{"method", "patients", "coverage": kind -> tissue -> summary, "width": kind -> summary, "ratio", "words"}."""
        coverage = {kind: summaries(inside(tissues), seed) for kind, tissues in self.outside.items()}
        widths = summaries(self.widths, seed)
        found = {
            "method": self.calibrated.method, "patients": self.calibrated.patients, "coverage": coverage, "width": widths,
            "ratio": widths["varying"]["value"] / widths["constant"]["value"],
        }  # fmt: skip
        return found | {"words": sentence(found, self.units)}


def inside(outside: Mapping[str, Each]) -> dict[str, Each]:
    """Shares inside from shares outside."""
    return {
        tissue: {patient: [1.0 - value for value in values] for patient, values in each.items()}
        for tissue, each in outside.items()
    }


def sentence(found: Mapping[str, Any], units: str) -> str:
    """Both kinds side by side."""
    parts = [
        f"{found['coverage'][kind]['body']['value']:.0%} at a mean width of {found['width'][kind]['value']:.3g} {units}"
        for kind in KINDS
    ]
    nominal = (
        f"; both are set on {found['patients']} calibration patients, too few to promise anything"
        if found["method"] == "uncalibrated"
        else f"; both by {found['method']} on the same {found['patients']} calibration patients"
    )
    return f"Bounds that differ from voxel to voxel cover {parts[0]}, bounds of one width {parts[1]}: {found['ratio']:.2f} times as wide{nominal}."
