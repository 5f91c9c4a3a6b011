"""The rows of the manifest: who is in which split, which window each scan has, and which rows are left out."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import intensity
from ..dataset import Dataset, Rows
from ..intensity import IntensityMap
from . import copies
from . import split as splitting
from .fingerprint import Plan, Survey
from .ledger import Ledger, Pseudonyms
from .scans import Request
from .store import AIR, TISSUE

Near = list[tuple[int, int, float]]
# Scan -> its intensity map, its pair's, and with several sources each one's.
Windows = dict[int, tuple[IntensityMap | None, ...]]


def split_scans(
    found: Survey,
    ledger: Ledger,
    near: Near,
    known: Mapping[str, str],
    earlier: Mapping[str, str],
    request: Request,
) -> tuple[dict[int, str], set[int], list[str]]:
    """Scan -> split, the rows that are left out, and words about who was given a split.

    Patients who share a copy, exact or near, stay together; classes are spread evenly; nobody who had a split moves.

    Args:
        found: the survey.
        ledger: what was stored.
        near: near copies, as pairs of rows.
        known: hash of each row that the dataset had before -> its split.
        earlier: patient -> split of before.
        request: what the user asked for.
    """
    patient_of = [scan.patient for scan in found.scans]
    owner = [patient_of[scan] for scan in ledger.scans]
    hashes = [row for record in ledger.records.values() for row in record.hashes]
    held = _remembered(owner, hashes, known) | {
        patient: split for patient, split in earlier.items() if patient in set(patient_of)
    }
    given, words = _given(found, request)
    held |= dict.fromkeys(found.pinned, "train") | given
    # An exact copy is no row of its own: it ties its patient to the row that is kept, as a row behind all others would.
    links = [] if copies.too_alike(near, owner) else [(first, second) for first, second, _ in near]
    for scan, _, row in ledger.copies:
        links.append((row, len(owner)))
        owner.append(patient_of[scan])
    old = {row for row, one in enumerate(hashes) if one in known}
    cluster, left_out = splitting.resolve(links, owner, held, old)
    members: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row, scan in enumerate(ledger.scans):
        name = cluster[patient_of[scan]]
        members[name].append(hashes[row])
        label = found.scans[scan].label
        if label is not None:
            labels[name][label] += 1
    main = {name: max(sorted(labels[name]), key=lambda label: labels[name][label], default=None) for name in members}
    fractions = dict(request.choices.fractions or splitting.FRACTIONS.items())
    chosen = splitting.assign(members, main, request.seed, splitting.splits_of_clusters(cluster, held), fractions)
    splits = {scan: chosen[cluster[patient_of[scan]]] for scan in ledger.records if cluster[patient_of[scan]] in chosen}
    return splits, {row for row in left_out if row < len(ledger.scans)}, words


def _remembered(owner: list[str], hashes: list[str], known: Mapping[str, str]) -> dict[str, str]:
    """Patient -> the split that most of its images had before, whatever the patient or the files are called now."""
    votes: dict[str, Counter[str]] = defaultdict(Counter)
    for patient, one in zip(owner, hashes):
        if one in known:
            votes[patient][known[one]] += 1
    return {patient: max(sorted(count), key=lambda split: count[split]) for patient, count in votes.items()}


def _given(found: Survey, request: Request) -> tuple[dict[str, str], list[str]]:
    """Patient -> split by the user's table, and words about it."""
    if not request.choices.splits:
        return {}, []
    table = splitting.read_splits(Path(request.choices.splits))
    plain = [scan.patient.split(":", 1)[1] for scan in found.scans]
    named = splitting.patients_of(table, [scan.file for scan in found.scans], plain)
    given = {scan.patient: named[one] for scan, one in zip(found.scans, plain) if one in named}
    rest = len({scan.patient for scan in found.scans}) - len(given)
    spread = f"; {rest} that it does not name are spread by shares" if rest else ""
    return given, [f"splits: as the table says for {len(given)} patients{spread}"]


def known_rows(root: Path) -> dict[str, str]:
    """Hash of each row that the dataset had before -> its split; one that was left out may come back."""
    columns = Dataset.open(root).columns
    used = columns["split"] != ""
    return dict(zip(columns["sha256"][used].tolist(), columns["split"][used].tolist()))


def near_copies(root: Path, found: Survey, ledger: Ledger, generation: int) -> Near:
    """Pairs of rows of different patients that show the same image, altered; and their correlation."""
    number: dict[str, int] = {}
    owners = np.array([number.setdefault(found.scans[scan].patient, len(number)) for scan in ledger.scans], np.int64)
    prints = np.array([one for record in ledger.records.values() for one in record.prints], np.uint64)
    rows = Rows(root, "images", generation)
    shown = {scan: record.windows[0] or (AIR, TISSUE, "HU") for scan, record in ledger.records.items()}

    def image(row: int) -> np.ndarray:
        low, high, _ = shown[ledger.scans[row]]
        return np.clip(rows[row], low, high)

    return copies.near_copies(prints, owners, image)


def windows_of(plan: Plan, ledger: Ledger, splits: dict[int, str]) -> tuple[Windows, list[str]]:
    """Scan -> its intensity map and its pair's, and words for CT, whose one window comes from voxels of training scans.

    With several sources also each one's, of which the scan's own is that of the first that is there.
    """
    shared = [_shared(plan, ledger, splits, side) for side in range(2 + len(plan.sources))]
    result: Windows = {}
    for scan, record in ledger.records.items():
        maps = [
            shared[side][0] if window is None else IntensityMap(*window)
            for side, window in enumerate((*record.windows, *record.source_windows))
        ]
        if record.present:
            maps[2:] = [one if there else None for one, there in zip(maps[2:], record.present)]
            maps[0] = next(one for one in maps[2:] if one is not None)
        assert maps[0] is not None
        result[scan] = tuple(maps)
    return result, [line for side, (_, words) in enumerate(shared) if side != 0 or not plan.sources for line in words]


def _shared(plan: Plan, ledger: Ledger, splits: dict[int, str], side: int) -> tuple[IntensityMap | None, list[str]]:
    """The CT window of the scans (side 0), of their pairs (1) or of one of several sources (from 2 on); None where each scan has its own."""
    values = {
        scan: (record.values, record.target_values, *record.source_values)[side]
        for scan, record in ledger.records.items()
        if (*record.windows, *record.source_windows)[side] is None and (side < 2 or record.present[side - 2])
    }
    if not any(len(drawn) for drawn in values.values()):
        return None, []
    kept = plan.kept_windows[side]
    of_source = side >= 2 and plan.sources[side - 2]["modality"] == plan.modality
    wished = plan.window if side == 0 or of_source else None
    train = [drawn for scan, drawn in values.items() if splits.get(scan) == "train"]
    every = np.concatenate(train or list(values.values()))
    window, words = intensity.choose("CT", every, np.dtype(np.int16), window=wished or kept)
    of = ("", " of the pairs", *(f" of {one['name']}" for one in plan.sources))[side]
    return window, [] if kept else [f"intensity{of}: {words}"]


def columns_of(
    found: Survey,
    ledger: Ledger,
    names: Pseudonyms,
    splits: dict[int, str],
    windows: Windows,
    left_out: set[int],
) -> dict[str, np.ndarray]:
    """The manifest."""
    sources = range(2, 2 + len(found.plan.sources))
    scans = np.array(ledger.scans)
    records = [record for record in ledger.records.values() if record.hashes]
    counts = [len(record.hashes) for record in records]
    kept = [scan for scan, record in ledger.records.items() if record.hashes]
    assert list(np.repeat(kept, counts)) == ledger.scans

    def of_scans(values: list[Any]) -> np.ndarray:
        return np.repeat(np.array(values), counts, axis=0)

    columns = {
        "case": of_scans([names.case(found.scans[scan].name) for scan in kept]),
        "slice": np.concatenate([record.slices for record in records]),
        "patient": of_scans([names.patient(found.scans[scan].patient) for scan in kept]),
        "split": of_scans([splits[scan] for scan in kept]).astype("U11"),
        "label": of_scans([found.scans[scan].label or "" for scan in kept]),
        "spacing": of_scans([record.spacing for record in records]),
        "low": of_scans([_or_nan(windows[scan][0], "low") for scan in kept]),
        "high": of_scans([_or_nan(windows[scan][0], "high") for scan in kept]),
        "units": of_scans([one.units if (one := windows[scan][0]) else "" for scan in kept]),
        "target_low": of_scans([_or_nan(windows[scan][1], "low") for scan in kept]),
        "target_high": of_scans([_or_nan(windows[scan][1], "high") for scan in kept]),
        "sha256": np.array([digest for record in records for digest in record.hashes]),
        "affine": np.concatenate([record.affines for record in records]),
        "crop": np.concatenate([record.crop for record in records]),
        "masked": np.concatenate([np.array(record.masked, bool) for record in records]),
    }
    if sources:
        columns |= {
            "present": of_scans([ledger.records[scan].present for scan in kept]),
            "source_low": of_scans([[_or_nan(windows[scan][side], "low") for side in sources] for scan in kept]),
            "source_high": of_scans([[_or_nan(windows[scan][side], "high") for side in sources] for scan in kept]),
        }
    columns["split"][sorted(left_out)] = ""
    assert len(scans) == len(columns["case"])
    return columns


def _or_nan(window: IntensityMap | None, end: str) -> float:
    return np.nan if window is None else float(getattr(window, end))
