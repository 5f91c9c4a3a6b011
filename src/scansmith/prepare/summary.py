"""What `prepare` says: `dataset.json` without anything that leads back to a patient, and the report for the terminal."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import SPLITS
from . import copies, text
from .blocks import NO_STATEMENT, Blocks
from .fingerprint import Plan, Survey
from .ledger import Ledger, Pseudonyms
from .manifest import Near, Windows
from .names import plural
from .overrides import Choices
from .registration import LEAST_CONFIDENCE
from .scans import Scan

MOST_LISTED = 1000
# A shift between the two scans of a pair beyond it is worth a warning, in voxels of the coarser axis.
MOST_SHIFT = 1.0
# Sentences of a plan that stay true while a dataset grows.
LASTING = (
    "grid: ",
    "downsampled",
    "crop: ",
    "dimensions: ",
    "intensity: ",
    "slices: ",
    "bias field",
    "histograms: ",
    "declared ",
)


@dataclass(frozen=True)
class Outcome:
    """What became of a folder of scans.

    Attributes:
        found: the survey, with the plan as it was carried out.
        ledger: what was stored.
        columns: the manifest.
        splits: scan -> split.
        windows: scan -> intensity maps.
        words: how the CT windows were chosen, and who was given a split.
        near: near copies.
        left_out: rows that no split uses.
        blocks: the split of slices, where patients are too few to be left out.
    """

    found: Survey
    ledger: Ledger
    columns: dict[str, np.ndarray]
    splits: dict[int, str]
    windows: Windows
    words: list[str]
    near: Near
    left_out: set[int]
    blocks: Blocks | None = None

    @property
    def split_level(self) -> str:
        """What is kept apart: "slices", or that of the plan."""
        return "slices" if self.blocks and self.blocks.whole else self.found.plan.split_level


def describe(outcome: Outcome, names: Pseudonyms, called: Callable[[Path], str], choices: Choices) -> dict[str, Any]:
    """Content of `dataset.json` besides version, grid and layers.

    Args:
        outcome: what was done.
        names: pseudonyms.
        called: file -> its name below the folder of scans.
        choices: what the user decided.
    """
    found, ledger, columns = outcome.found, outcome.ledger, outcome.columns
    plan = found.plan
    labels = sorted(set(columns["label"].tolist()) - {""})
    made = {name: value for name, value in choices.made().items() if name != "splits"}
    masked = {"rows": int(columns["masked"].sum()), "values": _mask_values(plan)}
    counts = {"scans": len(ledger.records), "images": len(ledger.scans), "dtype": plan.dtype}
    return {
        "modality": plan.modality,
        "units": str(columns["units"][0]),
        "dimensions": plan.dimensions,
        "neighbours": plan.neighbours,
        "source_format": next(iter(found.facts["formats"])),
        "spacing": None if plan.spacing is None else list(plan.spacing),
        "labels": labels,
        "label_counts": {split: _count(columns, split, labels) for split in SPLITS},
        "split_level": outcome.split_level,
        **({"blocked": NO_STATEMENT} if outcome.split_level == "slices" else {}),
        "splits": _split_sizes(columns),
        "plan": _sentences(outcome),
        "said": [sentence for sentence in plan.reasons if sentence.startswith(LASTING)],
        "choices": plan.choices(),
        "ct_windows": [_shared(ledger, outcome.windows, side) for side in range(2 + len(plan.sources))],
        "overrides": made | ({"splits": "a table"} if choices.splits else {}),
        "facts": found.facts,
        "fingerprint": {**counts, **found.facts, **_intensities(found, ledger, outcome.splits)},
        "target": _target(plan, outcome.windows),
        "pairs": _pairs(ledger),
        **({"sources": _sources(plan, ledger, outcome.windows)} if plan.sources else {}),
        "masks": masked if "masks" in plan.layers else None,
        **_odd(outcome, names, called),
        "hash": hashlib.sha256("".join(sorted(columns["sha256"].tolist())).encode()).hexdigest(),
    }


def _odd(outcome: Outcome, names: Pseudonyms, called: Callable[[Path], str]) -> dict[str, Any]:
    """What was skipped, altered, left aside, found twice or flagged; of long lists the first, with the totals."""
    found, ledger, columns = outcome.found, outcome.ledger, outcome.columns
    skipped = _skipped(found, ledger, names, called)
    copied = [
        {"case": names.case(found.scans[scan].name), "slice": k, "copy_of_row": row} for scan, k, row in ledger.copies
    ]
    near = [
        {
            "case": str(columns["case"][second]),
            "slice": int(columns["slice"][second]),
            "row": second,
            "copy_of_row": first,
            "correlation": round(float(alike), 4),
            "left_out": bool({first, second} & outcome.left_out),
        }
        for first, second, alike in outcome.near
    ]
    burned_in = [
        {"case": names.case(found.scans[scan].name), "reason": record.text}
        for scan, record in ledger.records.items()
        if record.text
    ]
    lists: dict[str, list[Any]] = {
        "skipped": skipped,
        "duplicates": copied,
        "near_duplicates": near,
        "burned_in": burned_in,
    }
    return {
        **{name: entries[:MOST_LISTED] for name, entries in lists.items()},
        "totals": {name: len(entries) for name, entries in lists.items()},
        "skipped_by_reason": dict(Counter(entry["reason"] for entry in skipped).most_common()),
        "altered": dict(_altered(ledger).most_common()),
        "empty_slices": dict(ledger.empty.most_common()),
        "left_aside": list(found.plan.left_aside),
        "left_out": len(outcome.left_out),
    }


def report(outcome: Outcome, root: Path, info: dict[str, Any]) -> dict[str, Any]:
    """What was done, for the terminal: real file names and all."""
    found, ledger, near = outcome.found, outcome.ledger, outcome.near
    scans = found.scans
    kept = (
        "modality", "units", "spacing", "labels", "split_level", "splits", "plan", "left_aside", "empty_slices", "altered", "pairs", "hash",
    )  # fmt: skip

    def file(scan: int) -> str:
        return str(scans[scan].source.files[0])

    skipped = [{"file": str(entry.file), "reason": entry.reason} for entry in found.skipped]
    skipped += [{"file": str(entry.file), "reason": entry.reason} for _, entry in ledger.skipped]
    return {
        "dataset": str(root),
        "report": str(root / "report.html"),
        "scans": len(ledger.records),
        "images": len(ledger.scans),
        "patients": len(set(outcome.columns["patient"][outcome.columns["split"] != ""].tolist())),
        **{name: info[name] for name in kept},
        "skipped": skipped,
        "duplicates": [
            {"file": file(scan), "slice": k, "copy_of": file(ledger.scans[row])} for scan, k, row in ledger.copies
        ],
        "near_duplicates": [
            {
                "file": file(ledger.scans[second]),
                "like": file(ledger.scans[first]),
                "correlation": round(float(alike), 4),
            }
            for first, second, alike in near
        ],
        "burned_in": [
            {"file": file(scan), "reason": record.text} for scan, record in ledger.records.items() if record.text
        ],
    }


def _sentences(outcome: Outcome) -> list[str]:
    """The plan as it was carried out."""
    found, ledger, columns, words = outcome.found, outcome.ledger, outcome.columns, outcome.words
    plan = found.plan
    # What was expected of the intensity gives way to what was chosen from the training scans.
    said = (
        "intensity: ",
        *(f"intensity of {one['name']}: " for one in plan.sources if one["modality"] == plan.modality),
    )
    chosen = any(word.startswith(said) for word in words)
    sentences = [
        _altered_words(line) for line in plan.reasons if not (chosen and line.startswith("intensity: CT"))
    ] + words
    sizes = _split_sizes(columns)
    whole = {"patient": "patient", "study": "patient or study"}.get(plan.split_level, "scan")
    wholes = {"patient": "patients", "study": "patients or studies"}.get(plan.split_level, "scans")
    parts = [
        f"{split} {plural(size['images'], 'image')} ({size['patients']} {whole if size['patients'] == 1 else wholes})"
        for split, size in sizes.items()
    ]
    sentences.append(f"split: {', '.join(parts)}")
    if sizes["holdout"]["images"] == 0:
        sentences.append(
            f"nothing is held out, because there is one {whole} only: what is learned cannot be judged on unseen patients"
        )
    empty = ledger.empty
    if empty:
        sentences.append("dropped: " + ", ".join(f"{count} slices ({reason})" for reason, count in empty.most_common()))
    sentences += _copy_words(found, ledger, outcome.near, outcome.left_out)
    sentences.append(text.words(sum(record.text is not None for record in ledger.records.values())))
    sentences += _pair_words(ledger)
    lost = len(found.skipped) + len(ledger.skipped)
    if lost:
        sentences.append(f"skipped: {lost} files or scans, each listed with the reason")
    return sentences


def _altered_words(sentence: str) -> str:
    """A sentence that quotes a reader's note keeps nothing of the header's text."""
    return scrub(sentence, [], brackets=False) if sentence.startswith("altered while reading") else sentence


def _shared(ledger: Ledger, windows: Windows, side: int) -> list[float] | None:
    """The CT window of all scans (side 0) or of their pairs (1), or None."""
    for scan, record in ledger.records.items():
        window = windows[scan][side]
        if (*record.windows, *record.source_windows)[side] is None and window is not None:
            return [window.low, window.high]
    return None


def _copy_words(found: Survey, ledger: Ledger, near: Near, left_out: set[int]) -> list[str]:
    sentences = []
    if ledger.copies:
        sentences.append(
            f"{len(ledger.copies)} exact copies of other images are stored once; the patients who share one share a split"
        )
        label = [scan.label for scan in found.scans]
        differ = sum(label[scan] != label[ledger.scans[row]] for scan, _, row in ledger.copies)
        if differ:
            sentences.append(f"{differ} of the copies have another label than the image that is kept: check the labels")
    if near:
        sentences.append(copies.words(near, [found.scans[scan].patient for scan in ledger.scans]))
    if left_out:
        sentences.append(
            f"{len(left_out)} images are left out: they copy an image of another split, and no patient moves"
        )
    return sentences


def _pair_words(ledger: Ledger) -> list[str]:
    shift = _pairs(ledger)
    if shift is None:
        return []
    if not shift["estimated"]:
        return ["pairs: whether they lie on each other could not be estimated"]
    name, unit = ("shift_mm", "mm") if "shift_mm" in shift else ("shift_pixels", "pixels")
    words = f"pairs: estimated shift between the scans of a pair {shift[name]['median']:.1f} {unit} in the median, {shift[name]['worst']:.1f} {unit} at worst ({shift['estimated']} of {shift['measured']} pairs could be estimated)"
    return [words + (": check the registration" if shift["far"] else "")]


def _pairs(ledger: Ledger) -> dict[str, Any] | None:
    """Estimated misregistration over the pairs that were measured, in mm where the voxel size is known; None without pairs."""
    shifts = [record.shift for record in ledger.records.values() if record.shift is not None]
    if not shifts:
        return None
    sure = [float(np.linalg.norm(shift[:3])) for shift in shifts if shift[3] >= LEAST_CONFIDENCE]
    spacings = [np.nanmax(record.spacing) for record in ledger.records.values() if np.isfinite(record.spacing).any()]
    limit = MOST_SHIFT * (float(np.median(spacings)) if spacings else 1.0)
    return {
        "count": sum(len(record.hashes) > 0 for record in ledger.records.values()),
        "measured": len(shifts),
        "estimated": len(sure),
        "shift_mm" if spacings else "shift_pixels": {"median": float(np.median(sure)), "worst": max(sure)}
        if sure
        else None,
        "far": sum(shift > limit for shift in sure),
    }


def _target(plan: Plan, windows: Windows) -> dict[str, Any] | None:
    if plan.target_modality is None:
        return None
    units = next(maps[1].units for maps in windows.values() if maps[1] is not None)
    return {"modality": plan.target_modality, "channels": plan.target_channels, "units": units}


def _sources(plan: Plan, ledger: Ledger, windows: Windows) -> list[dict[str, Any]]:
    """Of several sources each: {"name", "modality", "units", "pattern", "scans"}, the last how many cases have it."""
    result = []
    for number, one in enumerate(plan.sources):
        units = next(own.units for maps in windows.values() if (own := maps[2 + number]) is not None)
        count = sum(record.present[number] for record in ledger.records.values())
        result.append({name: one[name] for name in ("name", "modality", "pattern")} | {"units": units, "scans": count})
    return result


def _mask_values(plan: Plan) -> str:
    if plan.segments:
        return f"1 to {len(plan.segments)}: structures in the order of their names, which the private file holds"
    return "as in the mask files"


def _split_sizes(columns: dict[str, np.ndarray]) -> dict[str, dict[str, int]]:
    images = Counter(columns["split"].tolist())
    patients = Counter(split for split, _ in set(zip(columns["split"].tolist(), columns["patient"].tolist())))
    return {split: {"images": images[split], "patients": patients[split]} for split in SPLITS}


def _count(columns: dict[str, np.ndarray], split: str, labels: list[str]) -> dict[str, int]:
    counts = Counter(columns["label"][columns["split"] == split].tolist())
    return {label: counts[label] for label in labels}


def _intensities(found: Survey, ledger: Ledger, splits: dict[int, str]) -> dict[str, Any]:
    """Percentiles and histograms of the training scans' physical values, all and by label, with the same edges."""
    by_label: dict[str | None, list[np.ndarray]] = {}
    for scan, record in ledger.records.items():
        if splits.get(scan) == "train" and record.hashes:
            by_label.setdefault(found.scans[scan].label, []).append(record.values)
    values = {label: np.concatenate(parts) for label, parts in by_label.items()}
    every = np.concatenate(list(values.values()))
    low, high = (float(value) for value in np.percentile(every, (0.1, 99.9)))
    edges = (low, high if high > low else low + 1.0)
    points = (0.5, 5, 25, 50, 75, 95, 99.5)
    percentiles = dict(zip(map(str, points), np.percentile(every, points).tolist()))
    labelled = {label: _histogram(own, edges) for label, own in sorted(values.items(), key=str) if label is not None}
    return {
        "intensity": {"percentiles": percentiles, "histogram": _histogram(every, edges)},
        "intensity_by_label": labelled,
    }


def _histogram(values: np.ndarray, edges: tuple[float, float]) -> dict[str, Any]:
    return {"low": edges[0], "high": edges[1], "counts": np.histogram(values, 64, edges)[0].tolist()}


def _altered(ledger: Ledger) -> Counter[str]:
    """What readers and resampling altered -> scans."""
    return Counter(scrub(note, []) for record in ledger.records.values() for note in record.notes)


def _skipped(found: Survey, ledger: Ledger, names: Pseudonyms, called: Callable[[Path], str]) -> list[dict[str, str]]:
    known = [
        {"case": names.case(called(entry.file)), "reason": scrub(entry.reason, _file_words(entry.file))}
        for entry in found.skipped
    ]
    for scan, entry in ledger.skipped:
        words = _scan_words(found.scans[scan])
        known.append({"case": names.case(called(entry.file)), "reason": scrub(entry.reason, words)})
    return known


# What stands in quotes, as Python's repr writes it; an apostrophe within a word opens none.
QUOTED = re.compile(r"""(?<!\w)(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")(?!\w)""")
BRACKETS = re.compile(r"\s*\([^()]*\)")
TAG = re.compile(r"\(([0-9A-Fa-f]{4},\s?[0-9A-Fa-f]{4})\)")


def scrub(reason: str, private: list[str], brackets: bool = True) -> str:
    """A reason without words of the file: quoted text, remarks in brackets other than DICOM tags, and `private` go."""
    for word in sorted(private, key=len, reverse=True):
        reason = re.sub(rf"(?<!\w){re.escape(word)}(?!\w)", "...", reason)
    reason = QUOTED.sub("...", reason)
    # What is left of a quote that the file's own quotation marks broke up goes to its end.
    reason = re.sub(r"""(?<!\w)['"].*['"](?!\w)""", "...", reason)
    # A tag's brackets are hidden while the others go, the innermost first.
    hidden = TAG.sub(lambda tag: f"\x00{tag[1]}\x01", reason)
    while brackets and (shorter := BRACKETS.sub("", hidden)) != hidden:
        hidden = shorter
    return hidden.replace("\x00", "(").replace("\x01", ")")


def _file_words(file: Path) -> list[str]:
    return [part for part in (file.name, file.stem, file.parent.name) if len(part) > 2]


def _scan_words(scan: Scan) -> list[str]:
    return [
        *(word for file in scan.files for word in _file_words(file)),
        *(word for word in (scan.source.patient, scan.source.study) if word),
    ]
