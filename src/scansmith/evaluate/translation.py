"""Translated images beside the true ones of patients that nothing has seen, and beside what is simpler: identity, line, histogram."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import familiarity
from ..dataset import Dataset
from ..metrics import synthrad
from ..model import Model
from ..pairings import Pairing, Several, cases_of, pairing
from ..pairings.familiar import case_features
from ..runtime import Progress, choose_device, derive_seed, write_json
from . import erasure, floor, subsets, variation
from .apart import as_learned
from .constant import Beside, inside
from .held_out import Scan, translated_scan
from .numbers import (
    DRAWS,
    FEWEST_PATIENTS,
    TISSUES,
    Each,
    as_shown,
    judged,
    noted,
    shares_outside,
    summaries,
    summary,
    width,
)
from .panels import Worst

__all__ = ["TISSUES", "Scan", "evaluate_translation", "judged", "shares_outside", "summary", "translated_scan"]

QUANTILES = np.linspace(0.0, 1.0, 257)
LEARNED_ROWS, LEARNED_VOXELS = 64, 4096  # that the histograms are learned from
LEVEL = 0.01  # share of familiar patients that may be refused
JUDGED_AS = {"unpaired": "paired"}  # task of a model -> whose sources and targets it is judged on
UNLESIONED = ("paint",)  # tasks whose sources are label maps
METHODS = ("translation", "line", "histogram", "identity")


@dataclass(frozen=True)
class Tally:
    """What is counted scan by scan.

    Attributes:
        metrics: method -> name -> patient -> values.
        outside: tissue -> patient -> shares outside the bounds; widths, ratios: name -> patient -> values.
        lesions: what became of those of some scans.
        refused: of each scan that was asked about, why it would be refused.
    """

    metrics: dict[str, dict[str, Each]] = field(default_factory=dict)
    outside: dict[str, Each] = field(default_factory=dict)
    widths: dict[str, Each] = field(default_factory=dict)
    ratios: dict[str, Each] = field(default_factory=dict)
    lesions: list[list[erasure.Tried]] = field(default_factory=list)
    refused: list[tuple[str, ...]] = field(default_factory=list)


def evaluate_translation(
    data: Dataset, model: Model, out: Path, device_name: str = "auto", seed: int = 0
) -> dict[str, Any]:
    """Translate the held-out pairs; write OUT/metrics.json and OUT/translation/ with pictures, worst first.

    Args:
        data: with pairs; its holdout is judged, or its validation patients where nothing is held out.
        model: one that translates.
        out: folder.
        device_name: see `choose_device`.
        seed: of the draws of patients and of the lesions that are inserted.

    Returns:
        {"task", "split", "patients", "metrics": method -> name -> {"value", "interval", "each"}, where the method "floor" is a second
        real scan with noise of its own, "coverage", "width", "constant",
        "variation", "lesions", "familiar", "pictures", "units", "words"}; what a model or dataset does not have is None.

    Raises:
        ValueError: no pairs, nothing held out, or a model that makes scans.
    """
    settings = model.config.get("translation")
    if settings is None:
        raise ValueError(
            f"expected a model that translates to judge with the dataset {data.root}, found one that makes scans: synthesize some, and evaluate those"
        )
    if settings["task"] in JUDGED_AS:
        data = as_learned(data, model)
    pairs = pairing(JUDGED_AS.get(settings["task"], settings["task"]), data)
    subsets.check(settings, pairs)
    split = next((name for name in ("holdout", "validation") if len(pairs.rows(name))), None)
    if split is None:
        raise ValueError(f"expected held-out patients in {data.root}, found none: prepare it again with more scans")
    device = choose_device(device_name)
    model.generator.to(device)
    tally, worst, beside = Tally(), Worst(), Beside.of(pairs, model, device)
    count(pairs, split, model, device, seed, tally, worst, beside)
    units, calibration = model.intensity.units, settings["calibration"]
    patients = len(tally.metrics["translation"]["mae"])
    result = {
        "task": "translation", "translation": settings["task"], "split": split, "patients": patients, "units": units, "model": model.hash,
        "source": {name: settings["source"][name] for name in ("modality", "units")},
        "target": {name: settings["target"][name] for name in ("modality", "units")},
        "seed": seed, "split_level": data.info.get("split_level"),
        "metrics": {method: summaries(names, seed) for method, names in tally.metrics.items()},
        "coverage": calibration and summaries(inside(tally.outside), seed),
        "width": calibration and summary(tally.widths["width"], seed), "calibration": calibration,
        "constant": beside and beside.result(seed),
        "variation": summaries(tally.ratios, seed),
        "lesions": lesions(tally, pairs, model),
        "familiar": familiar(tally.refused, model),
        "pictures": worst.draw(out, settings, units),
    }  # fmt: skip
    if isinstance(pairs, Several):
        result["sources"] = by_sources(pairs, split, model, device, seed)
    if data.info.get("blocked"):
        result["blocked"] = data.info["blocked"]
    result["words"] = words(result)
    write_json(out / "metrics.json", result)
    return result


# ------------------------------------------------------------------------------------------------ scans


def count(
    pairs: Pairing, split: str, model: Model, device: torch.device, seed: int, tally: Tally, worst: Worst, beside: Beside | None
) -> None:  # fmt: skip
    """Every held-out scan, translated once; lesions go into some of them."""
    settings, units = model.config["translation"], model.intensity.units
    levels = histogram(pairs, seed)
    cases = cases_of(pairs.data, pairs.rows(split))
    lesioned = set() if settings["task"] in UNLESIONED else erasure.chosen(len(cases))
    with Progress("evaluating", len(cases), "scans") as progress:
        for number, rows in enumerate(cases):
            scan = translated_scan(pairs, rows, model, device)
            again = floor.repeated(scan, derive_seed(seed, "floor", number))
            floors = {} if again is None else {"floor": again}
            for method, made in (methods(scan, levels) | floors).items():
                found = judged(scan, made, units)
                if settings["task"] == "denoise" and units == "HU":
                    found |= as_shown(scan, made)
                noted(tally.metrics.setdefault(method, {}), scan.patient, found)
            noted(tally.outside, scan.patient, shares_outside(scan, units))
            noted(tally.widths, scan.patient, {"width": width(scan)})
            noted(tally.ratios, scan.patient, variation.variation(scan))
            worst.add(scan, len(cases))
            tally.refused.extend(reasons(pairs, rows, model))
            if beside is not None:
                beside.note(scan)
            if number in lesioned:
                found_lesions = erasure.tried(pairs, rows, scan, model, device, len(tally.lesions), seed)
                tally.lesions.append(found_lesions)
            progress.update(number + 1)


def by_sources(pairs: Several, split: str, model: Model, device: torch.device, seed: int) -> dict[str, Any]:
    """{"table", "words"} of what each set of several sources gives, see `subsets.table`."""

    def error(some: Several, rows: np.ndarray) -> float:
        scan = translated_scan(some, rows, model, device)
        body = scan.inside if scan.inside.any() else np.ones_like(scan.inside)
        return float(synthrad.mae(scan.units(scan.target), scan.units(scan.middle), body))

    found = subsets.table(pairs, split, error, lambda each: summary(each, seed))
    return {"table": found, "words": list(subsets.words(found, pairs, model.intensity.units))}


def histogram(pairs: Pairing, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """(levels of sources, levels of targets), rising: which encoded value of the training targets is as frequent as which of the sources."""
    random = np.random.default_rng(derive_seed(seed, "histogram"))
    sources, targets = [], []
    for row in random.permutation(pairs.rows("train"))[:LEARNED_ROWS]:
        source, target = pairs.source(int(row)), pairs.target(int(row))
        body = pairs.body(source, target)
        sources.append(random.permutation(pairs.view(source)[body])[:LEARNED_VOXELS])
        targets.append(random.permutation(target[0][body])[:LEARNED_VOXELS])
    return np.quantile(np.concatenate(sources), QUANTILES), np.quantile(np.concatenate(targets), QUANTILES)


def methods(scan: Scan, levels: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """What each method makes of the source, encoded: the model, a straight line, matched histograms, nothing at all."""
    return {
        "translation": scan.middle,
        **({} if scan.line is None else {"line": scan.line}),
        "histogram": np.interp(scan.source, *levels),
        **({"identity": scan.source} if scan.alike else {}),
    }


def reasons(pairs: Pairing, rows: np.ndarray, model: Model) -> list[tuple[str, ...]]:
    """[why the scan, or one of its sources, would be refused]: () where it would not; [] where nothing is asked."""
    settings = model.config["translation"]
    several = isinstance(pairs, Several)
    learned = [one["familiarity"] for one in settings["sources"]] if several else [model.config["familiarity"]]
    here = pairs.present(int(rows[0])) if isinstance(pairs, Several) else [True]
    judgements = [
        familiarity.judge(case_features(pairs.data, rows, number if several else None), one)
        for number, one in enumerate(learned)
        if one is not None and here[number]
    ]
    return [tuple(reason for one in judgements for reason in one.reasons)] if judgements else []


# ------------------------------------------------------------------------------------------------ results


def lesions(tally: Tally, pairs: Pairing, model: Model) -> dict[str, Any] | None:
    """What became of the lesions; None where none was asked for or none had room."""
    found = [one for each in tally.lesions for one in each]
    own = model.config["translation"]["source"]
    known = bool(np.isfinite(pairs.data.columns["spacing"][:, -2:]).all())
    span = (own["high"] - own["low"]) / 2.0
    return erasure.summarised(found, sum(bool(each) for each in tally.lesions), own["units"], span, known)


def familiar(refused: list[tuple[str, ...]], model: Model) -> dict[str, Any] | None:
    """How many held-out scans the model would refuse, and why; None where it refuses none ever."""
    if not refused:
        return None
    why = dict.fromkeys(reason for each in refused for reason in each)
    learned = model.config["familiarity"] or model.config["translation"]["sources"][0]["familiarity"]
    count, needed = len(learned["scores"]), familiarity.patients_needed(LEVEL)
    return {
        "scans": len(refused), "refused": sum(bool(each) for each in refused), "reasons": list(why)[:8],
        "calibration_patients": count, "needed": needed, "level": LEVEL,
    }  # fmt: skip


def words(result: Mapping[str, Any]) -> list[str]:
    """What was found, for people."""
    return list(sentences(result))


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    """The error first, then what it cannot say."""
    yield verdict(result)
    yield from (result.get("sources") or {}).get("words", ())
    yield from patients_words(result)
    if result["translation"] not in UNLESIONED:
        yield from result["lesions"]["words"] if result["lesions"] else [erasure.NONE]
    yield variation.sentence(result["variation"])
    if result["familiar"]:
        yield "{refused} of {scans} held-out scans would be refused as unlike those that were learned from.".format(
            **result["familiar"]
        )
    if result["constant"]:
        yield result["constant"]["words"]
    if result["calibration"]:
        yield f"{result['coverage']['body']['value']:.0%} of the body's voxels lie within the bounds; {result['calibration']['words']}."
    else:
        yield "The model gives no bounds: it was learned without pairs."


def verdict(result: Mapping[str, Any]) -> str:
    """The error beside the best simple method's."""
    own, units = result["metrics"]["translation"]["mae"], result["units"]
    spread = f" ({own['interval'][0]:.3g} to {own['interval'][1]:.3g})" if own["interval"] else ""
    who = f"{result['patients']} {result['split']} patient{'s' * (result['patients'] != 1)}"
    others = {name: result["metrics"][name]["mae"]["value"] for name in METHODS[1:] if name in result["metrics"]}
    best = min(others, key=others.__getitem__)
    found = f"Mean absolute error in the body of {who}: {own['value']:.3g}{spread} {units}, "
    if own["value"] < others[best]:
        share = (
            f"{found}{own['value'] / others[best]:.0%} of the best simple method's ({best}, {others[best]:.3g} {units})"
        )
        if "floor" not in result["metrics"]:
            return f"{share}."
        alone = result["metrics"]["floor"]["mae"]["value"]
        return f"{share}; two real scans that differ in noise alone would be about {alone:.2g} {units} apart."
    return f"{found}no better than {best} ({others[best]:.3g} {units}): do not use this model."


def patients_words(result: Mapping[str, Any]) -> Iterator[str]:
    """How far the numbers hold for other patients."""
    count = result["patients"]
    if result.get("blocked"):
        yield f"{result['blocked'][0].upper()}{result['blocked'][1:]}."
        yield "Nothing is held out over patients: the numbers say nothing of another patient."
    elif count == 1:
        yield "A single patient was judged: there is one figure and no interval over patients, and other patients may differ by any amount."
    elif count < FEWEST_PATIENTS:
        yield f"With fewer than {FEWEST_PATIENTS} patients no interval over patients is given, but one figure per patient."
    else:
        yield f"Intervals are over {count} patients, each counted once (5th to 95th percentile of {DRAWS:,} bootstrap draws)."
    if result["split"] == "validation":
        yield "Nothing is held out: validation patients stand in, on whom the training was watched, which flatters the model."
    if result["split_level"] in ("image", "study"):
        yield "Patients are not all known: slices or studies of one patient may have been both learned from and judged."
