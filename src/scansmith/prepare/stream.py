"""Every scan to the shards: behind what an interrupted run left whole, from the dataset that grows where nothing changed, else read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import dataset as prepared
from ..dataset import Rows, Writer
from ..formats import Skipped
from ..runtime import Progress, worker_count
from .fingerprint import Plan, Survey, as_float
from .ledger import Journal, Ledger, result_of
from .scans import Scan, images_in
from .store import Stored, store_all

# Voxels that all scans' records keep together, for windows and histograms.
MOST_DRAWS = 2_000_000
State = list[list[Any]]


class _NeedsFloat(Exception):
    """A scan came whose values the chosen dtype cannot hold exactly."""


def store_scans(
    root: Path,
    cache: Path,
    found: Survey,
    called: Callable[[Path], str],
    workers: int | None,
    generation: int,
    seed: int,
) -> tuple[Plan, Ledger, Writer]:
    """Every image to its shard; the plan widens to float32 when a scan outside the inspected ones needs it.

    Args:
        root: the dataset; its generation before this one, if any, stays whole.
        cache: private folder of the journals.
        found: the survey.
        called: file -> its name below the folder of scans.
        workers: processes.
        generation: number of this writing.
        seed: of the drawn voxels.
    """
    plan = found.plan
    states = [file_states(scan, called) for scan in found.scans]
    while True:
        try:
            return plan, *_stream(root, cache, replace(found, plan=plan), states, workers, generation, seed)
        except _NeedsFloat:
            own = {dtype for layer, (dtype, _) in plan.stored_as.items() if layer != "masks"}
            assert own - {np.dtype(np.float32)}
            plan = as_float(plan)


def _stream(
    root: Path, cache: Path, found: Survey, states: list[State], workers: int | None, generation: int, seed: int
) -> tuple[Ledger, Writer]:
    """The images to their shards, scan after scan."""
    plan, scans = found.plan, found.scans
    before = Before(root, cache, generation - 1, plan, seed)
    listed = digest([[scan.name, state] for scan, state in zip(scans, states)])
    journal = Journal(cache, generation, rows_state(plan, seed), plan.segments, listed)
    ledger = Ledger(owners=before.owners(scans, states))
    done, shards = _replay(journal, ledger, root, plan)
    journal.clear((generation - 1, generation))
    prepared.clear(root, generation - 1 or None, (generation, shards))
    writer = Writer(root, layers_of(plan), generation, shards)
    left = range(done, len(scans))
    fresh = [number for number in left if not before.has(scans[number], states[number])]
    draws = int(np.clip(MOST_DRAWS // len(scans), 64, 4096))
    count = worker_count(workers, sum(len(scans[number].files) for number in fresh))
    results = store_all([scans[number] for number in fresh], plan, draws, count, seed)
    total, seen = (sum(images_in(scan.source) for scan in some) for some in (scans, scans[:done]))
    new = set(fresh)
    try:
        with Progress("prepare", total) as progress:
            for number in left:
                stored = next(results) if number in new else before.get(scans[number])
                if isinstance(stored, Stored) and not _holds(writer, stored):
                    raise _NeedsFloat
                rows = ledger.note(number, stored)
                journal.note(scans[number].name, states[number], stored)
                if rows is not None:
                    writer.add(rows)
                if writer.full:
                    writer.close()
                    journal.commit(writer.shards)
                seen += images_in(scans[number].source)
                progress.update(seen)
        writer.close()
        if journal.pending:
            journal.commit(writer.shards)
    except BaseException:
        writer.discard()
        raise
    return ledger, writer


def _replay(journal: Journal, ledger: Ledger, root: Path, plan: Plan) -> tuple[int, int]:
    """Take in what an interrupted run of the same work left; gives how many scans and shards that is."""
    entries, shards = journal.read(whole=True)
    kept = Ledger(owners=ledger.owners)
    for number, entry in enumerate(entries):
        kept.take(number, result_of(entry))
    # The shards are in another folder than the journal: somebody may have taken them away.
    stored = [
        sum(len(shard) for shard in Rows(root, layer, journal.generation).shards[:shards]) for layer in plan.layers
    ]
    if set(stored) != {len(kept.scans)}:
        journal.parts = 0
        return 0, 0
    for name in ("records", "skipped", "scans", "first", "copied"):
        setattr(ledger, name, getattr(kept, name))
    return len(entries), shards


def _holds(writer: Writer, stored: Stored) -> bool:
    """Whether every layer's dtype holds the scan's values exactly; float32 is the last resort of all."""
    return all(
        dtype == np.float32 or np.can_cast(stored.rows[layer].dtype, dtype, "safe")
        for layer, (dtype, _) in writer.layers.items()
    )


class Before:
    """What the dataset that grows holds: scans whose files have not changed come from its shards.

    Args:
        root: the dataset.
        cache: private folder of the journals.
        generation: of the dataset; 0 when there is none.
        plan: nothing is taken from rows that were made by other choices.
        seed: of the drawn voxels.
    """

    def __init__(self, root: Path, cache: Path, generation: int, plan: Plan, seed: int) -> None:
        journal = Journal(cache, generation, rows_state(plan, seed), plan.segments)
        entries = journal.read(whole=False)[0] if generation else []
        self.entries: dict[str, tuple[dict[str, Any], int]] = {}
        self.files: dict[str, State] = {entry["scan"]: entry["files"] for entry in entries}
        self.owner: dict[str, str] = {}  # hash -> scan
        ledger = Ledger()
        for number, entry in enumerate(entries):
            first, result = len(ledger.scans), result_of(entry)
            kept = ledger.take(number, result)
            # A scan some of whose slices were copies of another's has not all its rows here.
            if len(kept) == (0 if isinstance(result, list) else len(result.hashes)):
                self.entries[entry["scan"]] = entry, first
            if not isinstance(result, list):
                self.owner.update({result.hashes[row]: entry["scan"] for row in kept})
        layers = prepared.Dataset.open(root).info["layers"] if entries else {}
        self.rows = {layer: Rows(root, layer, generation) for layer in layers}
        if any(len(rows) != len(ledger.scans) for rows in self.rows.values()):
            self.entries, self.owner = {}, {}

    def owners(self, scans: Sequence[Scan], states: Sequence[State]) -> dict[str, int]:
        """Hash of a row -> number of the scan that it belonged to, of scans that have not changed."""
        number = {
            scan.name: place
            for place, (scan, state) in enumerate(zip(scans, states))
            if self.files.get(scan.name) == state
        }
        return {row: number[name] for row, name in self.owner.items() if name in number}

    def has(self, scan: Scan, state: State) -> bool:
        return scan.name in self.entries and self.files[scan.name] == state

    def get(self, scan: Scan) -> Stored | list[Skipped]:
        entry, first = self.entries[scan.name]
        result = result_of(entry)
        if isinstance(result, list):
            return result
        count = range(first, first + len(result.hashes))
        return Stored({layer: np.stack([rows[row] for row in count]) for layer, rows in self.rows.items()}, result)


def layers_of(plan: Plan) -> dict[str, tuple[np.dtype, tuple[int, ...]]]:
    """Layer -> (dtype, shape of a row)."""
    return {layer: (dtype, (channels, *plan.grid)) for layer, (dtype, channels) in plan.stored_as.items()}


def rows_state(plan: Plan, seed: int) -> str:
    """Hash of what stored rows and their records depend on besides the files."""
    return digest([prepared.VERSION, plan.choices(), seed])


def file_states(scan: Scan, called: Callable[[Path], str]) -> State:
    """[name below the folder of scans, size, time of change] of every file of a scan, its masks and its pair."""
    states: State = []
    for file in scan.files:
        try:
            status = file.stat()
            states.append([called(file), status.st_size, status.st_mtime_ns])
        except OSError:  # gone since it was listed; reading it says so
            states.append([called(file), -1, -1])
    return states


def digest(content: Any) -> str:
    """SHA-256 of plain values."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
