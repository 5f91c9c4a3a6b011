"""Ledger: what is known of the images while they stream to the shards, and the names they get in the dataset."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import Skipped
from ..runtime import write_atomic
from .store import Record, Stored


@dataclass
class Ledger:
    """What is known of the scans that were read, in their order.

    Attributes:
        records: scan -> its record, of the rows that are stored.
        skipped: (scan, the file of it and why).
        scans: the scan of every stored row.
        first: hash -> row that is kept.
        owners: hash -> scan whose row it was in the dataset that grows: it stays that scan's, whatever comes before it.
    """

    records: dict[int, Record] = field(default_factory=dict)
    skipped: list[tuple[int, Skipped]] = field(default_factory=list)
    scans: list[int] = field(default_factory=list)
    first: dict[str, int] = field(default_factory=dict)
    owners: dict[str, int] = field(default_factory=dict)
    copied: list[tuple[int, int, str]] = field(default_factory=list)

    @property
    def copies(self) -> list[tuple[int, int, int]]:
        """(scan, slice, row it copies): exact copies, which are not stored."""
        return [(scan, k, self.first[digest]) for scan, k, digest in self.copied]

    def note(self, scan: int, stored: Stored | list[Skipped]) -> dict[str, np.ndarray] | None:
        """Take in one scan; gives the rows to store, without copies of earlier ones, or None when there is none."""
        kept = self.take(scan, stored if isinstance(stored, list) else stored.record)
        if isinstance(stored, list) or not kept:
            return None
        whole = len(kept) == len(stored.record.hashes)
        return stored.rows if whole else {layer: rows[kept] for layer, rows in stored.rows.items()}

    def take(self, scan: int, result: Record | list[Skipped]) -> list[int]:
        """Take in a scan's record, or why it is skipped; gives which of its rows are no copies of earlier ones."""
        if isinstance(result, list):
            self.skipped += [(scan, entry) for entry in result]
            return []
        record = result
        self.skipped += [(scan, entry) for entry in record.broken]
        kept = []
        for number, digest in enumerate(record.hashes):
            if digest in self.first or self.owners.get(digest, scan) != scan:
                self.copied.append((scan, record.slices[number], digest))
                continue
            self.first[digest] = len(self.scans)
            self.scans.append(scan)
            kept.append(number)
        self.records[scan] = only(record, kept)
        return kept

    @property
    def empty(self) -> Counter[str]:
        """Reason -> slices that were dropped for it."""
        return sum((Counter(record.empty) for record in self.records.values()), Counter())


def only(record: Record, kept: Sequence[int]) -> Record:
    """The record of some of its rows."""
    if len(kept) == len(record.hashes):
        return record
    lists: dict[str, Any] = {
        name: [getattr(record, name)[k] for k in kept] for name in ("slices", "hashes", "prints", "masked")
    }
    return replace(record, affines=record.affines[list(kept)], crop=record.crop[list(kept)], **lists)


# ------------------------------------------------------------------------------------------------ journal


class Journal:
    """What was read for each shard, so that a killed `prepare` goes on behind its last whole shard and a grown folder is not read anew.

    Private files, one whenever a shard is whole: the scans since the one before, in order, each with the state of its
    files and its whole record.

    Args:
        folder: private folder.
        generation: of the dataset.
        rows: hash of what the stored rows depend on besides their own files.
        segments: names of the structures in the order of their numbers in the masks.
        scans: hash of all the scans in their order; with `rows` it says whether an interrupted run can go on.
    """

    def __init__(self, folder: Path, generation: int, rows: str, segments: Sequence[str] = (), scans: str = "") -> None:
        self.folder, self.generation, self.rows, self.scans = folder, generation, rows, scans
        self.segments = list(segments)
        self.pending: list[dict[str, Any]] = []
        self.parts = 0

    def note(self, name: str, files: list[list[Any]], result: Stored | list[Skipped]) -> None:
        """One scan whose rows go to the open shard; `files` is the state of its files."""
        entry: dict[str, Any] = {"scan": name, "files": files}
        if isinstance(result, list):
            entry["skipped"] = [[str(one.file), one.reason] for one in result]
        else:
            entry["record"] = to_json(result.record)
        self.pending.append(entry)

    def commit(self, shards: int) -> None:
        """So many shards are in their place: so are the scans noted until now."""
        content = {
            "rows": self.rows,
            "segments": self.segments,
            "scans": self.scans,
            "shards": shards,
            "entries": self.pending,
        }
        write_atomic(self._path(self.parts), json.dumps(content, separators=(",", ":")))
        self.pending, self.parts = [], self.parts + 1

    def read(self, whole: bool) -> tuple[list[dict[str, Any]], int]:
        """The entries that were committed, in order, and how many shards hold them.

        Args:
            whole: the scans must be the same, too, for an interrupted run to go on; else equal rows are enough.
        """
        entries: list[dict[str, Any]] = []
        shards = 0
        while True:
            try:
                content = json.loads(self._path(self.parts).read_text())
                old = content["segments"]
                # New structures are numbered behind the old ones, so that rows of before stay true.
                same = content["rows"] == self.rows and old == self.segments[: len(old)]
                if not same or (whole and (content["scans"] != self.scans or old != self.segments)):
                    return entries, shards
                entries += content["entries"]
                shards = int(content["shards"])
            except (OSError, ValueError, KeyError, TypeError):
                return entries, shards
            self.parts += 1

    def clear(self, keep: Sequence[int]) -> None:
        """Take away the journals of all generations but these, and the parts of its own that were not read."""
        for path in self.folder.glob("journal-*.json"):
            generation, part = (int(number) for number in path.stem.split("-")[1:])
            if generation not in keep or (generation == self.generation and part >= self.parts):
                path.unlink()

    @staticmethod
    def forget(folder: Path, keep: int) -> None:
        """Take away what is known of all generations but one."""
        for path in folder.glob("journal-*.json"):
            if not path.name.startswith(f"journal-{keep:04d}-"):
                path.unlink()

    def _path(self, part: int) -> Path:
        return self.folder / f"journal-{self.generation:04d}-{part:05d}.json"


def result_of(entry: dict[str, Any]) -> Record | list[Skipped]:
    """What a journal's entry says of its scan."""
    if "skipped" in entry:
        return [Skipped(Path(file), reason) for file, reason in entry["skipped"]]
    return from_json(entry["record"])


def to_json(record: Record) -> dict[str, Any]:
    """The record as plain values; arrays as base64 of their little-endian bytes."""
    result = {name: getattr(record, name) for name in Record.__slots__}
    for name in ("affines", "crop", "values", "target_values", "source_values"):
        array = np.ascontiguousarray(result[name])
        result[name] = [
            list(array.shape),
            base64.b64encode(array.astype(array.dtype.newbyteorder("<")).tobytes()).decode(),
        ]
    result["broken"] = [[str(entry.file), entry.reason] for entry in record.broken]
    return result


def from_json(entry: dict[str, Any]) -> Record:
    """What `to_json` made."""
    values = dict(entry)
    dtypes = {"affines": "<f8", "crop": "<f8", "values": "<f4", "target_values": "<f4", "source_values": "<f4"}
    for name in values.keys() & dtypes:
        shape, content = values[name]
        dtype = dtypes[name]
        values[name] = np.frombuffer(base64.b64decode(content), dtype).reshape(shape).astype(dtype[1:])
    for name in values.keys() & {"windows", "source_windows"}:
        values[name] = tuple(None if window is None else tuple(window) for window in values[name])
    values["present"] = tuple(values.get("present", ()))
    values["broken"] = [Skipped(Path(file), reason) for file, reason in values["broken"]]
    for name in ("spacing", "notes", "shift"):
        values[name] = None if values[name] is None else tuple(values[name])
    return Record(**values)


# ------------------------------------------------------------------------------------------------ names


class Pseudonyms:
    """Names that only the holder of the private key can lead back: HMAC-SHA-256, 64 bits of it.

    Args:
        key: of this dataset, 32 random bytes.
    """

    def __init__(self, key: bytes) -> None:
        self.key = key

    def case(self, name: str) -> str:
        """For a scan or a file by its name below the folder of scans."""
        return self._name("case", name)

    def patient(self, patient: str) -> str:
        return self._name("patient", patient)

    def _name(self, kind: str, identity: str) -> str:
        return hmac.new(self.key, f"{kind}:{identity}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[
            :16
        ]
