"""What `prepare` says: `dataset.json` without anything that leads back to a patient, and the report for the terminal."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import SPLITS
from ..formats import Source
from .fingerprint import Plan, Survey
from .ledger import Ledger, Pseudonyms

MOST_LISTED = 1000


def describe(
    found: Survey,
    plan: Plan,
    ledger: Ledger,
    names: Pseudonyms,
    columns: dict[str, list[Any]],
    splits: dict[int, str],
    window_words: str,
) -> dict[str, Any]:
    """Content of `dataset.json` besides version and shape.

    Args:
        found: the survey.
        plan: as it was carried out.
        ledger: what was stored.
        names: pseudonyms.
        columns: the manifest.
        splits: scan -> split.
        window_words: how the CT window was chosen; empty otherwise.
    """
    labels = sorted({label for label in columns["label"] if label is not None})
    skipped = _skipped(found, ledger, names)
    formats = Counter(source.format for source in found.sources)
    train = np.concatenate([values for scan, values in ledger.values.items() if splits[scan] == "train"])
    return {
        "modality": plan.modality,
        "units": columns["units"][0],
        "dimensions": plan.dimensions,
        "source_format": formats.most_common(1)[0][0],
        "spacing": None if plan.spacing is None else list(plan.spacing),
        "labels": labels,
        "label_counts": {split: _count(columns, split, labels) for split in SPLITS},
        "split_level": plan.split_level,
        "splits": _split_sizes(columns),
        "plan": _sentences(found, plan, ledger, columns, window_words),
        "fingerprint": {
            "scans": len(ledger.values),
            "images": len(ledger.rows),
            "dtype": plan.dtype,
            **found.facts,
            "intensity": _intensity(train),
        },
        "skipped": skipped[:MOST_LISTED],
        "skipped_by_reason": dict(Counter(entry["reason"] for entry in skipped).most_common()),
        "empty_slices": dict(ledger.empty.most_common()),
        "left_aside": list(plan.left_aside),
        "duplicates": [
            {"case": names.case(found.sources[scan].files[0]), "slice": k, "copy_of_row": row}
            for scan, k, row in ledger.copies[:MOST_LISTED]
        ],
        "hash": hashlib.sha256("".join(sorted(columns["sha256"])).encode()).hexdigest(),
    }


def report(found: Survey, ledger: Ledger, root: Path, info: dict[str, Any]) -> dict[str, Any]:
    """What was done, for the terminal: real file names and all."""
    sources = found.sources
    kept = (
        "modality",
        "units",
        "spacing",
        "labels",
        "split_level",
        "splits",
        "plan",
        "left_aside",
        "empty_slices",
        "hash",
    )
    copies = [
        {"file": str(sources[scan].files[0]), "slice": k, "copy_of": str(sources[ledger.scans[row]].files[0])}
        for scan, k, row in ledger.copies
    ]
    skipped = [{"file": str(entry.file), "reason": entry.reason} for entry in found.skipped]
    skipped += [{"file": str(entry.file), "reason": entry.reason} for _, entry in ledger.skipped]
    return {
        "dataset": str(root),
        "scans": len(ledger.values),
        "images": len(ledger.rows),
        "patients": sum(entry["patients"] for entry in info["splits"].values()),
        **{name: info[name] for name in kept},
        "skipped": skipped,
        "duplicates": copies,
    }


def _sentences(
    found: Survey, plan: Plan, ledger: Ledger, columns: dict[str, list[Any]], window_words: str
) -> list[str]:
    """The plan as it was carried out."""
    sentences = [
        f"intensity: {window_words}" if window_words and line.startswith("intensity: ") else line
        for line in plan.reasons
    ]
    sizes = _split_sizes(columns)
    whole = {"patient": "patient", "study": "patient or study"}.get(plan.split_level, "scan")
    wholes = {"patient": "patients", "study": "patients or studies"}.get(plan.split_level, "scans")
    sentences.append(
        "split: "
        + ", ".join(f"{split} {size['images']} images ({size['patients']} {wholes})" for split, size in sizes.items())
    )
    if sizes["holdout"]["images"] == 0:
        sentences.append(
            f"nothing is held out, because there is one {whole} only: what is learned cannot be judged on unseen patients"
        )
    if plan.dtype != found.plan.dtype:
        sentences.append("stored as float32, because the scans' own number types differ")
    if ledger.empty:
        sentences.append(
            "dropped: " + ", ".join(f"{count} slices ({reason})" for reason, count in ledger.empty.most_common())
        )
    if ledger.copies:
        sentences.append(
            f"{len(ledger.copies)} exact copies of other images are stored once; the patients who share one share a split"
        )
        differ = sum(found.labels[scan] != found.labels[ledger.scans[row]] for scan, _, row in ledger.copies)
        if differ:
            sentences.append(f"{differ} of the copies have another label than the image that is kept: check the labels")
    lost = len(found.skipped) + len(ledger.skipped)
    if lost:
        sentences.append(f"skipped: {lost} files or scans, each listed with the reason")
    return sentences


def _split_sizes(columns: dict[str, list[Any]]) -> dict[str, dict[str, int]]:
    images = Counter(columns["split"])
    patients = Counter(split for split, _ in set(zip(columns["split"], columns["patient"])))
    return {split: {"images": images[split], "patients": patients[split]} for split in SPLITS}


def _count(columns: dict[str, list[Any]], split: str, labels: list[str]) -> dict[str, int]:
    counts = Counter(label for label, own in zip(columns["label"], columns["split"]) if own == split)
    return {label: counts[label] for label in labels}


def _intensity(values: np.ndarray) -> dict[str, Any]:
    """Percentiles and a 64-bin histogram of the training scans' physical values."""
    low, high = (float(value) for value in np.percentile(values, (0.1, 99.9)))
    counts, edges = np.histogram(values, 64, (low, high if high > low else low + 1.0))
    points = (0.5, 5, 25, 50, 75, 95, 99.5)
    return {
        "percentiles": {str(point): float(np.percentile(values, point)) for point in points},
        "histogram": {"low": float(edges[0]), "high": float(edges[-1]), "counts": counts.tolist()},
    }


def _skipped(found: Survey, ledger: Ledger, names: Pseudonyms) -> list[dict[str, str]]:
    known = [
        {"case": names.case(entry.file), "reason": scrub(entry.reason, _file_words(entry.file))}
        for entry in found.skipped
    ]
    for scan, entry in ledger.skipped:
        words = _source_words(found.sources[scan])
        known.append({"case": names.case(entry.file), "reason": scrub(entry.reason, words)})
    return known


def scrub(reason: str, private: list[str]) -> str:
    """A reason without words of the file: quoted text, remarks in brackets other than DICOM tags, and `private` go."""
    for word in sorted(private, key=len, reverse=True):
        reason = reason.replace(word, "...")
    reason = re.sub(r"'[^']*'|\"[^\"]*\"", "...", reason)
    return re.sub(r"\s*\((?![0-9A-Fa-f]{4},\s?[0-9A-Fa-f]{4}\))[^()]*\)", "", reason)


def _file_words(file: Path) -> list[str]:
    return [part for part in (file.name, file.stem, file.parent.name) if len(part) > 2]


def _source_words(source: Source) -> list[str]:
    return [
        *(word for file in source.files for word in _file_words(file)),
        *(word for word in (source.patient, source.study) if word),
    ]
