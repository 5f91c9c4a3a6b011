"""Translated images beside the true ones of patients that nothing has seen, and beside what is simpler: identity, line, histogram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import conformal, inference
from ..dataset import Dataset
from ..intensity import IntensityMap
from ..metrics import low_dose, synthrad
from ..model import Model
from ..pairings import Pairing, Several, cases_of, pairing, straight
from ..runtime import Progress, choose_device, derive_seed, write_json
from . import subsets

FEWEST_PATIENTS = 8  # for an interval over patients
DRAWS = 2000
QUANTILES = np.linspace(0.0, 1.0, 257)
LEARNED_ROWS, LEARNED_VOXELS = 64, 4096  # that the histograms are learned from
# HU at which tissues part.
TISSUES = {"air and lung": (-np.inf, -200.0), "soft tissue": (-200.0, 200.0), "bone": (200.0, np.inf)}
JUDGED_AS = {"unpaired": "paired"}  # task of a model -> whose sources and targets it is judged on
METHODS = ("translation", "line", "histogram", "identity")


@dataclass(frozen=True)
class Scan:
    """One held-out scan at stored resolution, encoded.

    Attributes:
        patient: pseudonym.
        source: (D, H, W) what was translated; target: what is true.
        middle, lower, upper: (D, H, W) of the model, bounds calibrated; all the middle where it has none.
        inside: (D, H, W) bool, the body.
        window: (low, high) of the target in its units.
        line: what a straight line makes of several sources; None of one.
        alike: whether the source can stand for the target as it is.
    """

    patient: str
    source: np.ndarray
    target: np.ndarray
    middle: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    inside: np.ndarray
    window: tuple[float, float]
    line: np.ndarray | None = None
    alike: bool = True

    def units(self, encoded: np.ndarray) -> np.ndarray:
        """Encoded -> units of the target."""
        low, high = self.window
        return np.asarray((encoded + 1.0) / 2.0 * (high - low) + low)


def evaluate_translation(
    data: Dataset, model: Model, out: Path, device_name: str = "auto", seed: int = 0
) -> dict[str, Any]:
    """Translate the held-out pairs and write OUT/metrics.json.

    Args:
        data: with pairs; its holdout is judged, or its validation patients where nothing is held out.
        model: one that translates.
        out: folder.
        device_name: see `choose_device`.
        seed: of the draws of patients.

    Returns:
        {"task", "split", "patients", "metrics": method -> name -> {"value", "interval", "each"}, "coverage", "width", "units", "words"}.

    Raises:
        ValueError: no pairs, nothing held out, or a model that makes scans.
    """
    settings = model.config.get("translation")
    if settings is None:
        raise ValueError(
            f"expected a model that translates to judge with the dataset {data.root}, found one that makes scans: synthesize some, and evaluate those"
        )
    pairs = pairing(JUDGED_AS.get(settings["task"], settings["task"]), data)
    subsets.check(settings, pairs)
    split = next((name for name in ("holdout", "validation") if len(pairs.rows(name))), None)
    if split is None:
        raise ValueError(f"expected held-out patients in {data.root}, found none: prepare it again with more scans")
    device = choose_device(device_name)
    model.generator.to(device)
    levels = histogram(pairs, seed)
    found: dict[str, dict[str, dict[str, list[float]]]] = {method: {} for method in METHODS}
    outside: dict[str, dict[str, list[float]]] = {}
    widths: dict[str, list[float]] = {}
    cases = cases_of(data, pairs.rows(split))
    with Progress("evaluating", len(cases), "scans") as progress:
        for number, rows in enumerate(cases, 1):
            scan = translated_scan(pairs, rows, model, device)
            for method, made in methods(scan, settings["line"], levels).items():
                numbers = judged(scan, made, model.intensity.units)
                if settings["task"] == "denoise" and model.intensity.units == "HU":
                    numbers |= as_shown(scan, made)
                for name, value in numbers.items():
                    found[method].setdefault(name, {}).setdefault(scan.patient, []).append(value)
            for tissue, share in shares_outside(scan, model.intensity.units).items():
                outside.setdefault(tissue, {}).setdefault(scan.patient, []).append(share)
            widths.setdefault(scan.patient, []).append(
                float((scan.units(scan.upper) - scan.units(scan.lower))[scan.inside].mean())
            )
            progress.update(number)
    result = {
        "task": "translation", "split": split, "patients": len(widths), "units": model.intensity.units, "model": model.hash,
        "metrics": {method: {name: summary(each, seed) for name, each in names.items()} for method, names in found.items() if names},
        "coverage": settings["calibration"] and {tissue: summary({patient: [1.0 - value for value in values] for patient, values in each.items()}, seed) for tissue, each in outside.items()},
        "width": settings["calibration"] and summary(widths, seed), "calibration": settings["calibration"],
    }  # fmt: skip
    if isinstance(pairs, Several):
        result["sources"] = by_sources(pairs, split, model, device, seed)
    if data.info.get("blocked"):
        result["blocked"] = data.info["blocked"]
    result["words"] = words(result)
    write_json(out / "metrics.json", result)
    return result


# ------------------------------------------------------------------------------------------------ scans


def by_sources(pairs: Several, split: str, model: Model, device: torch.device, seed: int) -> dict[str, Any]:
    """{"table", "words"} of what each set of several sources gives, see `subsets.table`."""

    def error(some: Several, rows: np.ndarray) -> float:
        scan = translated_scan(some, rows, model, device)
        inside = scan.inside if scan.inside.any() else np.ones_like(scan.inside)
        return float(synthrad.mae(scan.units(scan.target), scan.units(scan.middle), inside))

    found = subsets.table(pairs, split, error, lambda each: summary(each, seed))
    return {"table": found, "words": list(subsets.words(found, pairs, model.intensity.units))}


def translated_scan(pairs: Pairing, rows: np.ndarray, model: Model, device: torch.device) -> Scan:
    """One scan through the model, its slices stacked."""
    settings = model.config["translation"]
    factor = (settings["calibration"] or {}).get("factor")
    window = pairs.window(int(rows[0]))
    parts: list[list[np.ndarray]] = [[], [], [], [], [], []]
    for row in rows:
        source, target = pairs.source(int(row)), pairs.target(int(row))
        planes = inference.translate(model.generator, source, settings["patch"], device)
        if settings["task"] == "unpaired":  # it learned the window of other targets
            planes = encoded_by(model.intensity, window, planes)
        middle, lower, upper = planes if len(planes) == 3 else (planes[0],) * 3
        lower, upper = conformal.widened(lower, middle, upper, 1.0 if factor is None else factor)
        layers = (pairs.view(source), target[0], middle[0], lower[0], upper[0], pairs.body(source, target))
        for part, layer in zip(parts, layers):
            part.append(layer)
    source, target, middle, lower, upper, inside = (
        np.stack(part) if part[0].ndim == 2 else np.concatenate(part) for part in parts
    )
    patient = str(pairs.data.columns["patient"][rows[0]])
    found = Scan(patient, source, target, middle, lower, upper, inside.astype(bool), (window.low, window.high))
    if not isinstance(pairs, Several):
        return found
    lines = [pairs.simple(settings["line"], pairs.source(int(row)))[0] for row in rows]
    here = pairs.alike is not None and bool(pairs.present(int(rows[0]))[pairs.alike])
    return replace(found, line=np.stack(lines) if lines[0].ndim == 2 else np.concatenate(lines), alike=here)


def encoded_by(own: IntensityMap, wished: IntensityMap, values: np.ndarray) -> np.ndarray:
    """Values encoded by one window as another one encodes them; where units are arbitrary they stay as they are."""
    if own.units != "HU":
        return values
    units = (values + 1.0) / 2.0 * (own.high - own.low) + own.low
    return np.asarray(2.0 * (units - wished.low) / (wished.high - wished.low) - 1.0)


def histogram(pairs: Pairing, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(levels of sources, levels of targets), rising: which encoded value of the training targets is as frequent as which of the sources."""
    random = np.random.default_rng(derive_seed(seed, "histogram"))
    sources, targets = [], []
    for row in random.permutation(pairs.rows("train"))[:LEARNED_ROWS]:
        source, target = pairs.source(int(row)), pairs.target(int(row))
        inside = pairs.body(source, target)
        sources.append(random.permutation(pairs.view(source)[inside])[:LEARNED_VOXELS])
        targets.append(random.permutation(target[0][inside])[:LEARNED_VOXELS])
    return np.quantile(np.concatenate(sources), QUANTILES), np.quantile(np.concatenate(targets), QUANTILES)


def methods(scan: Scan, line: tuple[float, float], levels: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """What each method makes of the source, encoded: the model, a straight line, matched histograms, nothing at all."""
    return {
        "translation": scan.middle,
        "line": straight(line, scan.source[None]) if scan.line is None else scan.line,
        "histogram": np.interp(scan.source, *levels),
        **({"identity": scan.source} if scan.alike else {}),
    }


# ------------------------------------------------------------------------------------------------ numbers


def judged(scan: Scan, made: np.ndarray, units: str) -> dict[str, float]:
    """{"mae" in units, "psnr", "ssim" and, of HU, "ms_ssim"} in the body: of HU those of SynthRAD, else with the window as the extent."""
    inside = scan.inside if scan.inside.any() else np.ones_like(scan.inside)
    if units == "HU":
        real, output = scan.units(scan.target), scan.units(made)
    else:  # the same formulas, the window in place of their range of HU
        span = synthrad.TOP_2023 - synthrad.AIR
        real, output = ((one + 1.0) / 2.0 * span + synthrad.AIR for one in (scan.target, made))
    planes = (
        [slice(None)]
        if min(real.shape) >= synthrad.WINDOW
        else [slice(k, k + 1) for k in range(len(real)) if inside[k].any()]
    )
    each = []
    for plane in planes:
        three = [
            one[plane] if len(planes) == 1 and min(real.shape) >= synthrad.WINDOW else one[plane][0]
            for one in (real, output, inside)
        ]
        entry = synthrad.synthrad2023(*three)
        if units == "HU":
            entry["ms_ssim"] = synthrad.synthrad2025(*three)["ms_ssim"]
        each.append(entry)
    result = {name: float(np.nanmean([entry[name] for entry in each])) for name in each[0]}
    result["mae"] = synthrad.mae(scan.units(scan.target), scan.units(made), inside)
    return result


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
    """Share of the body's voxels whose true value lies outside the bounds: of all, and of HU for each tissue."""
    out = (scan.target < scan.lower) | (scan.target > scan.upper)
    parts = {"body": scan.inside}
    if units == "HU":
        true = scan.units(scan.target)
        parts |= {name: scan.inside & (true >= low) & (true < high) for name, (low, high) in TISSUES.items()}
    return {name: float(out[where].mean()) for name, where in parts.items() if where.any()}


def summary(each: Mapping[str, list[float]], seed: int) -> dict[str, Any]:
    """Mean over patients, each counted once; from 8 patients on with a bootstrap interval (5th to 95th percentile) over patients."""
    values = np.array([np.mean(one) for one in each.values()])
    interval = None
    if len(values) >= FEWEST_PATIENTS:
        random = np.random.default_rng(derive_seed(seed, "patients"))
        means = values[random.integers(0, len(values), (DRAWS, len(values)))].mean(axis=1)
        interval = [float(bound) for bound in np.percentile(means, (5.0, 95.0))]
    return {"value": float(values.mean()), "interval": interval, "each": [round(float(value), 5) for value in values]}


def words(result: Mapping[str, Any]) -> list[str]:
    """What was found, for people."""
    return list(sentences(result))


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    own, units = result["metrics"]["translation"]["mae"], result["units"]
    spread = f" ({own['interval'][0]:.3g} to {own['interval'][1]:.3g})" if own["interval"] else ""
    yield f"Mean absolute error in the body of {result['patients']} {result['split']} patients: {own['value']:.3g}{spread} {units}."
    others = {name: result["metrics"][name]["mae"]["value"] for name in METHODS[1:] if name in result["metrics"]}
    best = min(others, key=others.__getitem__)
    if own["value"] < others[best]:
        yield f"That is {own['value'] / others[best]:.0%} of the best simple method's ({best}, {others[best]:.3g} {units})."
    else:
        yield f"That is no better than {best} ({others[best]:.3g} {units}): do not use this model."
    if result["patients"] < FEWEST_PATIENTS:
        yield f"With fewer than {FEWEST_PATIENTS} patients no interval over patients is given; `each` has one figure per patient."
    if result["calibration"]:
        yield f"{result['coverage']['body']['value']:.0%} of the body's voxels lie within the bounds; {result['calibration']['words']}."
    else:
        yield "The model gives no bounds: it was learned without pairs."
    yield from (result.get("sources") or {}).get("words", ())
    if result.get("blocked"):
        yield f"{result['blocked'][0].upper()}{result['blocked'][1:]}."
