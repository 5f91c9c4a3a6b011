"""The whole of `prepare`: survey, store, split, write; what is private goes beside the dataset, never into it."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import dataset as prepared
from .. import formats, intensity
from ..dataset import Rows, Writer
from ..formats import Index, Skipped
from ..intensity import IntensityMap
from ..runtime import Progress, write_atomic
from . import copies
from . import labels as label_sources
from . import split as splitting
from .fingerprint import LEAST_IMAGES, Plan, Survey, as_float, survey
from .ledger import Journal, Ledger, Pseudonyms, result_of
from .page import write_page
from .scans import Request, Scan, images_in
from .store import AIR, TISSUE, Stored, store_all, worker_count
from .summary import describe, report

# Voxels that all scans' records keep together, for windows and histograms.
MOST_DRAWS = 2_000_000


class _NeedsFloat(Exception):
    """A scan came whose values the chosen dtype cannot hold exactly."""


@dataclass(frozen=True)
class Places:
    """Where `prepare` reads and writes.

    Attributes:
        scans: folder of scans (or one file).
        root: the dataset.
        private: file of real paths, the pseudonyms' key and the splits, beside the dataset.
        cache: folder beside the dataset: what headers said and what was read for each shard; private, safe to delete.
        unpacked: folder in it for what zip archives hold.
    """

    scans: Path
    root: Path
    private: Path
    cache: Path
    unpacked: Path

    @classmethod
    def of(cls, scans: Path, root: Path) -> Places:
        beside = root.resolve()
        return cls(
            scans,
            root,
            beside.with_name(f"{beside.name}.private.json"),
            beside.with_name(f"{beside.name}.private.cache"),
            beside.with_name(f"{beside.name}.private.cache") / "unpacked",
        )

    def name_of(self, file: Path) -> str:
        """Posix path below the folder of scans, also of what lies in an archive."""
        return formats.name_of(file, self.scans, self.unpacked)


def prepare(
    scans: Path,
    root: Path,
    request: Request,
    workers: int | None = None,
) -> dict[str, Any]:
    """See `scansmith.prepare.prepare`."""
    refuse_inside(scans, root)
    places = Places.of(scans, root)
    asked = request_of(scans, request)
    earlier = _read_private(places.private)
    if earlier.get("request") == asked and _generation(root) == earlier.get("generation"):
        opened = prepared.Dataset.open(root)
        prepared.clear(root, keep=earlier["generation"])
        if not (root / "report.html").is_file():
            write_page(root, opened)
        return {**earlier["result"], "unchanged": True}
    key = bytes.fromhex(earlier.get("key") or secrets.token_hex(32))
    # Before the long work: is this a place to write? And the pseudonyms' key outlives an interruption.
    _write_private(places.private, {**earlier, "key": key.hex(), "request": None})
    found = look_around(places, request, workers, earlier)
    return _carry_out(places, found, request, workers, {**earlier, "key": key.hex()}, asked)


def look_around(
    places: Places,
    request: Request,
    workers: int | None = None,
    earlier: Mapping[str, Any] | None = None,
    quiet: bool = False,
) -> Survey:
    """List the scans, opening only files that are new since the last time, and make the plan.

    Args:
        places: where to look; with a cache folder that can be written.
        request: what the user asked for.
        workers: processes.
        earlier: the private file of an earlier run; None looks without leaving a trace.
        quiet: no progress bar.
    """
    tags = label_sources.tags_needed(request.labels)
    index = Index.load(places.cache / "index.jsonl") if earlier is not None else Index(tags)
    found = formats.discover(
        places.scans,
        index=index,
        workers=workers or worker_count(None, 10_000),
        unpack_into=places.unpacked,
        tags=tags,
    )
    if earlier is not None:
        _private_folder(places.cache)
        index.save(places.cache / "index.jsonl")
    names = {source.files[0]: places.name_of(source.files[0]) for source in found[0]}
    kept = _kept_choices(places.root, request, earlier)
    return survey(found, places.scans, names, request, kept, quiet)


def _kept_choices(root: Path, request: Request, earlier: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The choices of the dataset that the folder holds, when it was made by the same arguments and now grows."""
    if not earlier or earlier.get("arguments") != arguments_of(request) or _generation(root) is None:
        return None
    info = prepared.Dataset.open(root).info
    return {name: info[name] for name in ("choices", "facts", "said", "ct_window")}


def refuse_inside(scans: Path, root: Path) -> None:
    if scans.is_dir() and root.resolve().is_relative_to(scans.resolve()):
        raise ValueError(
            f"expected the dataset outside the folder of scans, got {root} inside {scans}: what is written there would be read as scans next time"
        )


def _carry_out(
    places: Places, found: Survey, request: Request, workers: int | None, earlier: dict[str, Any], asked: str
) -> dict[str, Any]:
    """Read, split and write what the survey found."""
    names = Pseudonyms(bytes.fromhex(earlier["key"]))
    generation = (_generation(places.root) or 0) + 1
    plan, ledger, writer = _store(places, found, workers, generation, request)
    found = replace(found, plan=plan)
    _require_enough(ledger, places, writer)
    known = _known_rows(places.root)
    near = _near_copies(places.root, found, ledger, generation)
    splits, left_out = split_scans(found, ledger, near, known, earlier, request)
    windows, words = _windows(plan, ledger, splits)
    columns = _columns(found, ledger, names, splits, windows, left_out)
    called = places.name_of
    info = describe(found, ledger, names, called, columns, splits, windows, words, near, left_out, request.choices)
    result = report(found, ledger, places.root, info, near)
    private = {
        "key": earlier["key"],
        "request": asked,
        "arguments": arguments_of(request),
        "generation": generation,
        "result": result,
        "segments": list(plan.segments),
        "splits": {**earlier.get("splits", {}), **{found.scans[scan].patient: split for scan, split in splits.items()}},
        "cases": {
            names.case(scan.name): {"files": [str(file.absolute()) for file in scan.files], "patient": scan.patient}
            for scan in found.scans
        }
        | {
            names.case(called(entry.file)): {"files": [str(entry.file.absolute())], "skipped": entry.reason}
            for entry in (*found.skipped, *(entry for _, entry in ledger.skipped))
        },
    }
    _write_private(places.private, private)
    (places.root / "report.html").unlink(missing_ok=True)  # of an earlier generation; made again if this run dies here
    opened = writer.finish(info, columns)
    write_page(places.root, opened)
    Journal.forget(places.cache, keep=generation)
    return result


def _require_enough(ledger: Ledger, places: Places, writer: Writer) -> None:
    """A folder whose scans are mostly empty, broken or copies leaves no dataset."""
    found = len(ledger.scans)
    if found >= LEAST_IMAGES:
        return
    prepared.clear(places.root, keep=_generation(places.root))
    empty = ledger.empty
    reasons = empty + Counter(entry.reason for _, entry in ledger.skipped)
    why = f"; the commonest reason: {reasons.most_common(1)[0][0]}" if reasons else ""
    raise ValueError(
        f"expected at least {LEAST_IMAGES} images to learn from in {places.scans}, found {found}: {len(ledger.skipped)} scans or slices were skipped, "
        f"{sum(empty.values())} slices are empty and {len(ledger.copies)} images are copies{why}"
    )


# ------------------------------------------------------------------------------------------------ images


def _store(
    places: Places, found: Survey, workers: int | None, generation: int, request: Request
) -> tuple[Plan, Ledger, Writer]:
    """Every image to its shard; the plan widens to float32 when a scan outside the inspected ones needs it."""
    plan = found.plan
    while True:
        try:
            return plan, *_stream(places, replace(found, plan=plan), workers, generation, request)
        except _NeedsFloat:
            assert {plan.dtype, plan.target_dtype} - {"float32", None}
            plan = as_float(plan)


def _stream(
    places: Places, found: Survey, workers: int | None, generation: int, request: Request
) -> tuple[Ledger, Writer]:
    """The images to their shards, scan after scan, behind what an interrupted run left whole."""
    plan, scans = found.plan, found.scans
    states = [file_states(scan) for scan in scans]
    rows = rows_state(plan, request.seed)
    listed = _digest([[scan.name, state] for scan, state in zip(scans, states)])
    before = Before(places, generation - 1, rows)
    journal, ledger = Journal(places.cache, generation, rows, listed), Ledger()
    entries, shards = journal.read(whole=True)
    for number, entry in enumerate(entries):
        ledger.take(number, result_of(entry))
    journal.clear((generation - 1, generation))
    prepared.clear(places.root, generation - 1 or None, (generation, shards))
    writer = Writer(places.root, layers_of(plan), generation, shards)
    left = range(len(entries), len(scans))
    fresh = [number for number in left if not before.has(scans[number], states[number])]
    draws = int(np.clip(MOST_DRAWS // len(scans), 64, 4096))
    count = worker_count(workers, sum(len(scans[number].files) for number in fresh))
    results = store_all([scans[number] for number in fresh], plan, draws, count, request.seed)
    total = sum(images_in(scan.source) for scan in scans)
    seen = sum(images_in(scan.source) for scan in scans[: len(entries)])
    new = set(fresh)
    try:
        with Progress("prepare", total) as progress:
            for number in left:
                scan = scans[number]
                stored = next(results) if number in new else before.get(scan)
                if isinstance(stored, Stored) and not _holds(writer, stored):
                    raise _NeedsFloat
                kept = ledger.note(number, stored)
                journal.note(scan.name, states[number], stored)
                if kept is not None:
                    writer.add(kept)
                if writer.full:
                    writer.close()
                    journal.commit(writer.shards)
                seen += images_in(scan.source)
                progress.update(seen)
    except BaseException:
        writer.discard()
        raise
    writer.close()
    if journal.pending:
        journal.commit(writer.shards)
    return ledger, writer


def _holds(writer: Writer, stored: Stored) -> bool:
    """Whether every layer's dtype holds the scan's values exactly: it is their own, or float32."""
    return all(dtype in (stored.rows[layer].dtype, np.float32) for layer, (dtype, _) in writer.layers.items())


class Before:
    """What the dataset that grows holds: scans whose files have not changed come from its shards.

    Args:
        places: where it lies.
        generation: its own; 0 when there is none.
        rows: hash of what stored rows depend on; nothing is taken from rows that were made otherwise.
    """

    def __init__(self, places: Places, generation: int, rows: str) -> None:
        entries, _ = Journal(places.cache, generation, rows).read(whole=False) if generation else ([], 0)
        self.entries: dict[str, tuple[dict[str, Any], int]] = {}
        ledger = Ledger()
        for number, entry in enumerate(entries):
            first, result = len(ledger.scans), result_of(entry)
            # A scan some of whose slices were copies of another's has not all its rows here.
            if len(ledger.take(number, result)) == (0 if isinstance(result, list) else len(result.hashes)):
                self.entries[entry["scan"]] = entry, first
        layers = prepared.Dataset.open(places.root).info["layers"] if entries else {}
        self.rows = {layer: Rows(places.root, layer, generation) for layer in layers}

    def has(self, scan: Scan, state: list[list[Any]]) -> bool:
        return scan.name in self.entries and self.entries[scan.name][0]["files"] == state

    def get(self, scan: Scan) -> Stored | list[Skipped]:
        entry, first = self.entries[scan.name]
        result = result_of(entry)
        if isinstance(result, list):
            return result
        count = range(first, first + len(result.hashes))
        return Stored({layer: np.stack([rows[row] for row in count]) for layer, rows in self.rows.items()}, result)


def layers_of(plan: Plan) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Layer -> (dtype, shape of a row)."""
    dtypes = {"images": plan.dtype, "masks": "uint8", "targets": plan.target_dtype}
    channels = {"images": plan.channels, "masks": 1, "targets": plan.target_channels}
    return {layer: (np.dtype(dtypes[layer]), (channels[layer], *plan.grid)) for layer in plan.layers}


# ------------------------------------------------------------------------------------------------ rows


def split_scans(
    found: Survey,
    ledger: Ledger,
    near: list[tuple[int, int, float]],
    known: set[str],
    earlier: dict[str, Any],
    request: Request,
) -> tuple[dict[int, str], set[int]]:
    """Scan -> split, and the rows that are left out.

    Patients who share a copy, exact or near, stay together; classes are spread evenly; nobody who had a split moves.

    Args:
        found: the survey.
        ledger: what was stored.
        near: near copies, as pairs of rows.
        known: hashes of the rows that the dataset had before.
        earlier: private file of an earlier run.
        request: what the user asked for.
    """
    patient_of = [scan.patient for scan in found.scans]
    owner = [patient_of[scan] for scan in ledger.scans]
    held = _held(found, owner, ledger, earlier, request)
    # An exact copy is no row of its own: it ties its patient to the row that is kept, as a row behind all others would.
    links = [] if copies.too_alike(near, owner) else [(first, second) for first, second, _ in near]
    for scan, _, row in ledger.copies:
        links.append((row, len(owner)))
        owner.append(patient_of[scan])
    hashes = [digest for record in ledger.records.values() for digest in record.hashes]
    old = {row for row, digest in enumerate(hashes) if digest in known}
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
    return splits, {row for row in left_out if row < len(ledger.scans)}


def _held(found: Survey, owner: list[str], ledger: Ledger, earlier: dict[str, Any], request: Request) -> dict[str, str]:
    """Patient -> split that is given: by the user's table, by an earlier run, or because the standard histogram was learned there."""
    patients = {scan.patient for scan in found.scans}
    held = {patient: split for patient, split in earlier.get("splits", {}).items() if patient in patients}
    if earlier.get("arguments") is not None and earlier["arguments"] != arguments_of(request):
        held = {}
    held |= dict.fromkeys(found.pinned, "train")
    if request.choices.splits:
        given = splitting.read_splits(Path(request.choices.splits))
        plain = [scan.patient.split(":", 1)[1] for scan in found.scans]
        named = splitting.patients_of(given, [scan.name for scan in found.scans], plain)
        held |= {scan.patient: named[one] for scan, one in zip(found.scans, plain) if one in named}
    return held


def _known_rows(root: Path) -> set[str]:
    """Hashes of the rows that the dataset had before; one that was left out may come back."""
    if _generation(root) is None:
        return set()
    columns = prepared.Dataset.open(root).columns
    return set(columns["sha256"][columns["split"] != ""].tolist())


def _near_copies(root: Path, found: Survey, ledger: Ledger, generation: int) -> list[tuple[int, int, float]]:
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


def _windows(
    plan: Plan, ledger: Ledger, splits: dict[int, str]
) -> tuple[dict[int, tuple[IntensityMap, IntensityMap | None]], str]:
    """Scan -> its intensity map and its pair's; and the words for CT, whose one window comes from voxels of training scans."""
    shared, words = None, ""
    if any(record.windows[0] is None for record in ledger.records.values()):
        train = [record.values for scan, record in ledger.records.items() if splits.get(scan) == "train"]
        values = np.concatenate(train or [record.values for record in ledger.records.values()])
        shared, words = intensity.choose("CT", values, np.dtype(np.int16), window=plan.window or plan.kept_window)
        words = "" if plan.kept_window else words
    result = {}
    for scan, record in ledger.records.items():
        own = shared if record.windows[0] is None else IntensityMap(*record.windows[0])
        assert own is not None
        result[scan] = own, None if record.windows[1] is None else IntensityMap(*record.windows[1])
    return result, words


def _columns(
    found: Survey,
    ledger: Ledger,
    names: Pseudonyms,
    splits: dict[int, str],
    windows: dict[int, tuple[IntensityMap, IntensityMap | None]],
    left_out: set[int],
) -> dict[str, np.ndarray]:
    """The manifest."""
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
        "low": of_scans([windows[scan][0].low for scan in kept]),
        "high": of_scans([windows[scan][0].high for scan in kept]),
        "units": of_scans([windows[scan][0].units for scan in kept]),
        "target_low": of_scans([_or_nan(windows[scan][1], "low") for scan in kept]),
        "target_high": of_scans([_or_nan(windows[scan][1], "high") for scan in kept]),
        "sha256": np.array([digest for record in records for digest in record.hashes]),
        "affine": np.concatenate([record.affines for record in records]),
        "crop": np.concatenate([record.crop for record in records]),
        "masked": np.concatenate([np.array(record.masked, bool) for record in records]),
    }
    columns["split"][sorted(left_out)] = ""
    assert len(scans) == len(columns["case"])
    return columns


def _or_nan(window: IntensityMap | None, end: str) -> float:
    return np.nan if window is None else float(getattr(window, end))


# ------------------------------------------------------------------------------------------------ state and private file


def arguments_of(request: Request) -> str:
    """Hash of what the user asked for: a dataset grows only under the same arguments."""
    choices = request.choices.made()
    table = request.choices.splits
    return _digest(
        [
            prepared.VERSION,
            request.labels,
            request.pairs,
            request.masks,
            request.modality,
            request.max_side,
            request.seed,
        ]
        + [choices, hashlib.sha256(Path(table).read_bytes()).hexdigest() if table else None]
    )


def rows_state(plan: Plan, seed: int) -> str:
    """Hash of what stored rows and their records depend on besides the files."""
    return _digest([prepared.VERSION, plan.choices(), plan.segments, seed])


def file_states(scan: Scan) -> list[list[Any]]:
    """[name, size, time of change] of every file of a scan, its masks and its pair."""
    states = []
    for file in scan.files:
        status = file.stat()
        states.append([file.name, status.st_size, status.st_mtime_ns])
    return states


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def request_of(scans: Path, request: Request) -> str:
    """Hash of the arguments and of every file's path, size and time of change: equal when there is nothing new to do."""
    state = hashlib.sha256(f"{scans.resolve()}\0{arguments_of(request)}".encode("utf-8", "surrogateescape"))
    files = (
        [Path(folder) / name for folder, _, names in os.walk(scans) for name in names] if scans.is_dir() else [scans]
    )
    tables = [
        Path(text.rsplit(":", 1)[0]) for text in (request.labels, request.pairs or "", request.masks) if "." in text
    ]
    tables += [Path(text) for text in (request.labels, request.pairs or "") if text]
    for file in [*sorted(files), *tables]:
        try:
            status = file.stat()
            state.update(f"{file}\0{status.st_size}\0{status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        except OSError:
            state.update(f"{file}\0gone\n".encode("utf-8", "surrogateescape"))
    return state.hexdigest()


def _generation(root: Path) -> int | None:
    """The generation of the whole dataset in the folder; None when there is none of this version."""
    try:
        info = json.loads((root / "dataset.json").read_text())
        return int(info["generation"]) if info["version"] == prepared.VERSION else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _private_folder(path: Path) -> None:
    """Made if needed; for its owner alone."""
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)


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
            file.write(json.dumps(content, allow_nan=False))

    write_atomic(path, fill)
