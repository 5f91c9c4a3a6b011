"""The whole of `prepare`: survey, store, split, write; what is private goes beside the dataset, never into it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .. import dataset as prepared
from .. import intensity
from ..intensity import IntensityMap
from ..runtime import Progress, write_atomic
from .fingerprint import LEAST_IMAGES, Plan, Survey, images_in, survey, with_dtype
from .ledger import Ledger, Pseudonyms
from .split import assign, join
from .store import store_all
from .summary import describe, report


class _NeedsFloat(Exception):
    """A scan came whose values the chosen dtype cannot hold exactly."""


def prepare(
    scans: Path, root: Path, labels: str, modality: str | None, max_side: int, workers: int | None, seed: int
) -> dict[str, Any]:
    """See `scansmith.prepare.prepare`."""
    refuse_inside(scans, root)
    private = root.resolve().with_name(f"{root.resolve().name}.private.json")
    request = request_of(scans, labels, modality, max_side, seed)
    earlier = _read_private(private)
    if earlier.get("request") == request and (root / "dataset.json").is_file():
        prepared.Dataset.open(root)
        return {**earlier["result"], "unchanged": True}
    found = survey(scans, labels, modality, max_side, seed)
    key = bytes.fromhex(earlier.get("key") or secrets.token_hex(32))
    # Before the long work: is this a place to write? And the pseudonyms' key outlives an interruption.
    _write_private(private, {"key": key.hex()})
    plan, ledger = _store(found, root, workers, seed)
    _require_enough(ledger, scans, root)
    names = Pseudonyms(key, found.root)
    splits = split_scans(found, ledger, seed)
    windows, words = _windows(plan, ledger, splits)
    columns = _columns(found, ledger, names, splits, windows)
    info = describe(found, plan, ledger, names, columns, splits, words)
    result = report(found, ledger, root, info)
    cases = {
        names.case(source.files[0]): {"files": [str(file.absolute()) for file in source.files], "patient": patient}
        for source, patient in zip(found.sources, found.patients)
    }
    _write_private(private, {"key": key.hex(), "request": request, "result": result, "cases": cases})
    prepared.write_manifest(root, info, columns, (plan.channels, plan.height, plan.width))
    return result


def refuse_inside(scans: Path, root: Path) -> None:
    if scans.is_dir() and root.resolve().is_relative_to(scans.resolve()):
        raise ValueError(
            f"expected the dataset outside the folder of scans, got {root} inside {scans}: what is written there would be read as scans next time"
        )


def _require_enough(ledger: Ledger, scans: Path, root: Path) -> None:
    """A folder whose scans are mostly empty, broken or copies leaves no dataset."""
    found = len(ledger.rows)
    if found >= LEAST_IMAGES:
        return
    prepared.clear(root)
    reasons = Counter(ledger.empty) + Counter(entry.reason for _, entry in ledger.skipped)
    why = f"; the commonest reason: {reasons.most_common(1)[0][0]}" if reasons else ""
    raise ValueError(
        f"expected at least {LEAST_IMAGES} images to learn from in {scans}, found {found}: {len(ledger.skipped)} scans or slices were skipped, "
        f"{sum(ledger.empty.values())} slices are empty and {len(ledger.copies)} images are copies{why}"
    )


# ------------------------------------------------------------------------------------------------ images


def _store(found: Survey, root: Path, workers: int | None, seed: int) -> tuple[Plan, Ledger]:
    """Every image to its shard; the plan widens to float32 when a scan outside the inspected ones needs it."""
    plan = found.plan
    while True:
        ledger = Ledger()
        try:
            shape = (plan.channels, plan.height, plan.width)
            prepared.write_shards(root, _stream(found, plan, ledger, workers, seed), np.dtype(plan.dtype), shape)
            return plan, ledger
        except _NeedsFloat:
            assert plan.dtype != "float32"
            plan = with_dtype(plan, np.dtype(np.float32))


def _stream(found: Survey, plan: Plan, ledger: Ledger, workers: int | None, seed: int) -> Iterator[np.ndarray]:
    """The images to store, scan after scan; what they are is noted in the ledger."""
    total, done = sum(map(images_in, found.sources)), 0
    with Progress("prepare", total) as progress:
        for scan, stored in enumerate(store_all(found.sources, plan, workers, seed)):
            done += images_in(found.sources[scan])
            progress.update(done)
            if isinstance(stored, list):
                ledger.skipped += [(scan, entry) for entry in stored]
                continue
            if plan.dtype not in (stored.images.dtype.name, "float32"):
                raise _NeedsFloat
            yield from ledger.note(scan, stored)


# ------------------------------------------------------------------------------------------------ rows


def split_scans(found: Survey, ledger: Ledger, seed: int) -> dict[int, str]:
    """Scan -> split: patients who share a copy stay together, classes are spread evenly."""
    owner = found.patients
    copies = [(owner[scan], owner[ledger.scans[row]]) for scan, _, row in ledger.copies]
    cluster = join({owner[scan] for scan in ledger.values}, copies)
    hashes: dict[str, list[str]] = defaultdict(list)
    labels: dict[str, Counter[str]] = defaultdict(Counter)
    for row, scan in zip(ledger.rows, ledger.scans):
        hashes[cluster[owner[scan]]].append(row["sha256"])
        label = found.labels[scan]
        if label is not None:
            labels[cluster[owner[scan]]][label] += 1
    main = {name: max(sorted(labels[name]), key=lambda label: labels[name][label], default=None) for name in hashes}
    chosen = assign(hashes, main, seed)
    return {scan: chosen[cluster[owner[scan]]] for scan in ledger.values}


def _windows(plan: Plan, ledger: Ledger, splits: dict[int, str]) -> tuple[dict[int, IntensityMap], str]:
    """Scan -> intensity map, and the words for CT, whose one window comes from voxels of the training scans."""
    if None not in ledger.windows.values():
        return {scan: window for scan, window in ledger.windows.items() if window is not None}, ""
    values = np.concatenate([drawn for scan, drawn in ledger.values.items() if splits[scan] == "train"])
    shared, words = intensity.choose("CT", values, np.dtype(np.int16))
    return {scan: window or shared for scan, window in ledger.windows.items()}, words


def _columns(
    found: Survey, ledger: Ledger, names: Pseudonyms, splits: dict[int, str], windows: dict[int, IntensityMap]
) -> dict[str, list[Any]]:
    """The manifest."""
    by_scan = {
        scan: {
            "case": names.case(found.sources[scan].files[0]),
            "patient": names.patient(found.patients[scan]),
            "split": splits[scan],
            "label": found.labels[scan],
            **windows[scan].to_json(),
        }
        for scan in windows
    }
    rows = [{**row, **by_scan[scan]} for row, scan in zip(ledger.rows, ledger.scans)]
    return {name: [row[name] for row in rows] for name in prepared.COLUMNS}


# ------------------------------------------------------------------------------------------------ private file


def request_of(scans: Path, labels: str, modality: str | None, max_side: int, seed: int) -> str:
    """Hash of the arguments and of every file's path, size and time of change: equal when there is nothing new to do."""
    state = hashlib.sha256(
        json.dumps([prepared.VERSION, str(scans.resolve()), labels, modality, max_side, seed]).encode()
    )
    files = (
        [Path(folder) / name for folder, _, names in os.walk(scans) for name in names] if scans.is_dir() else [scans]
    )
    table = Path(labels)
    for file in [*sorted(files), *([table] if labels not in ("auto", "none") else [])]:
        try:
            status = file.stat()
            state.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            state.update(f"{file}\0gone\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def _read_private(path: Path) -> dict[str, Any]:
    """What an earlier run left, or nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _write_private(path: Path, content: dict[str, Any]) -> None:
    """Readable for the owner alone."""

    def fill(partial: Path) -> None:
        partial.unlink(missing_ok=True)
        with open(os.open(partial, os.O_WRONLY | os.O_CREAT, 0o600), "w") as file:
            json.dump(content, file, indent=1, allow_nan=False)

    write_atomic(path, fill)
