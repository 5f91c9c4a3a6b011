"""Ledger: what is known of the images while they stream to the shards, and the names they get in the dataset."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..formats import Skipped
from ..intensity import IntensityMap
from .store import Stored


@dataclass
class Ledger:
    """What is known of the images while they stream to the shards; one entry a stored image unless said otherwise."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    scans: list[int] = field(default_factory=list)
    windows: dict[int, IntensityMap | None] = field(default_factory=dict)  # scan -> its map
    values: dict[int, np.ndarray] = field(default_factory=dict)  # scan -> drawn voxels
    first: dict[str, int] = field(default_factory=dict)  # hash -> row that is kept
    copies: list[tuple[int, int, int]] = field(default_factory=list)  # (scan, slice, row it copies)
    skipped: list[tuple[int, Skipped]] = field(default_factory=list)  # (scan, the file of it and why)
    empty: Counter[str] = field(default_factory=Counter)  # reason -> slices

    def note(self, scan: int, stored: Stored) -> Iterator[np.ndarray]:
        """Take in one scan; yields the images to store, copies of earlier ones left out."""
        self.empty.update(stored.empty)
        self.skipped += [(scan, entry) for entry in stored.broken]
        self.windows[scan] = stored.window
        self.values[scan] = stored.values
        for image, k, affine, digest in zip(stored.images, stored.slices, stored.affines, stored.hashes):
            if digest in self.first:
                self.copies.append((scan, k, self.first[digest]))
                continue
            self.first[digest] = len(self.rows)
            self.scans.append(scan)
            self.rows.append(
                {"slice": k, "spacing": stored.spacing, "sha256": digest, "affine": affine, "crop": stored.crop}
            )
            yield image


class Pseudonyms:
    """Names that only the holder of the private key can lead back.

    Args:
        key: of this dataset, 32 random bytes.
        root: the folder of scans; names depend on paths below it.
    """

    def __init__(self, key: bytes, root: Path) -> None:
        self.key, self.root = key, root

    def case(self, file: Path) -> str:
        """For a scan by its first file, or for a skipped file."""
        return self._name("case", file.relative_to(self.root).as_posix())

    def patient(self, patient: str) -> str:
        return self._name("patient", patient)

    def _name(self, kind: str, identity: str) -> str:
        return hmac.new(self.key, f"{kind}:{identity}".encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()[
            :16
        ]
