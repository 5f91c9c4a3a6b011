"""Numbers of one translated scan beside its reference, and what they are over patients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..metrics import low_dose, synthrad
from ..runtime import derive_seed
from .held_out import Scan

FEWEST_PATIENTS = 8  # for an interval over patients
DRAWS = 2000
# HU at which tissues part.
TISSUES = {"air and lung": (-np.inf, -200.0), "soft tissue": (-200.0, 200.0), "bone": (200.0, np.inf)}
Each = dict[str, list[float]]  # patient -> a number of each scan


def judged(scan: Scan, made: np.ndarray, units: str) -> dict[str, float]:
    """{"mae" in units, "psnr", "ssim" and, of HU, "ms_ssim"} in the body: of HU those of SynthRAD, else with the window as the extent.

    Where masks are given also "mae 3": in the structure with that label.
    """
    inside = scan.inside if scan.inside.any() else np.ones_like(scan.inside)
    if units == "HU":
        real, output = scan.units(scan.target), scan.units(made)
    else:  # the same formulas, the window in place of their range of HU
        span = synthrad.TOP_2023 - synthrad.AIR
        real, output = ((one + 1.0) / 2.0 * span + synthrad.AIR for one in (scan.target, made))
    whole = min(real.shape) >= synthrad.WINDOW
    parts: list[Any] = [slice(None)] if whole else [k for k in range(len(real)) if inside[k].any()]
    each = []
    for part in parts:
        three = real[part], output[part], inside[part]
        entry = synthrad.synthrad2023(*three)
        if units == "HU":
            entry["ms_ssim"] = synthrad.synthrad2025(*three)["ms_ssim"]
        each.append(entry)
    result = {name: mean([entry[name] for entry in each]) for name in each[0]}
    true, made_units = scan.units(scan.target), scan.units(made)
    result["mae"] = synthrad.mae(true, made_units, inside)
    return result | {f"mae {label}": synthrad.mae(true, made_units, where) for label, where in scan.structures.items()}


def mean(values: list[float]) -> float:
    """Of those that are numbers; nan where none is."""
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan


def as_shown(scan: Scan, made: np.ndarray) -> dict[str, float]:
    """ "psnr chest", "ssim neuro", "vif abdomen" ...: what is left of noise in the windows in which CT is looked at, means over slices."""
    real, output = scan.units(scan.target), scan.units(made)
    found: dict[str, list[float]] = {}
    for one, other in zip(real, output):
        for window in low_dose.WINDOWS:
            for name, value in low_dose.low_dose(one, other, window).items():
                found.setdefault(f"{name} {window}", []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def shares_outside(scan: Scan, units: str) -> dict[str, float]:
    """Share of the body's voxels whose true value lies outside the bounds: of all, of HU for each tissue, and for each label of a mask."""
    out = (scan.target < scan.lower) | (scan.target > scan.upper)
    parts = {"body": scan.inside}
    if units == "HU":
        true = scan.units(scan.target)
        parts |= {name: scan.inside & (true >= low) & (true < high) for name, (low, high) in TISSUES.items()}
    parts |= {f"label {label}": where for label, where in scan.structures.items()}
    return {name: float(out[where].mean()) for name, where in parts.items() if where.any()}


def width(scan: Scan) -> float:
    """Mean distance between the bounds in the body, in units; of the whole image where there is no body."""
    inside = scan.inside if scan.inside.any() else np.ones_like(scan.inside)
    return float(scan.spans(scan.upper - scan.lower)[inside].mean())


# ------------------------------------------------------------------------------------------------ over patients


def noted(into: dict[str, Each], patient: str, numbers: Mapping[str, float]) -> None:
    """Add the numbers of one scan: name -> patient -> numbers."""
    for name, value in numbers.items():
        into.setdefault(name, {}).setdefault(patient, []).append(value)


def summary(each: Mapping[str, list[float]], seed: int) -> dict[str, Any]:
    """Mean over patients, each counted once; from 8 patients on with a bootstrap interval (5th to 95th percentile) over patients.

    A patient without a finite number has None in "each" and is not counted.
    """
    values = np.array([np.mean(one) for one in each.values()])
    known, interval = values[np.isfinite(values)], None
    if len(known) >= FEWEST_PATIENTS:
        random = np.random.default_rng(derive_seed(seed, "patients"))
        means = known[random.integers(0, len(known), (DRAWS, len(known)))].mean(axis=1)
        interval = [float(bound) for bound in np.percentile(means, (5.0, 95.0))]
    return {
        "value": float(known.mean()) if len(known) else None,
        "interval": interval,
        "each": [round(float(value), 5) if np.isfinite(value) else None for value in values],
    }


def summaries(found: Mapping[str, Each], seed: int) -> dict[str, dict[str, Any]]:
    """`summary` of each number."""
    return {name: summary(each, seed) for name, each in found.items()}
