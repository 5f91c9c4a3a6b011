"""Prepared dataset: the folder that `prepare` fills and every learning stage reads; this module alone reads and writes it.

dataset.json       version, modality, channels, grid, labels, fingerprint, split counts, what was skipped
manifest.json      columns, one entry per 2-D image (case, patient, split, label, spacing, window, hash ...)
images-00000.npy   native-dtype shards, shape (n, C, H, W), physical units, rows in manifest order
levels/            downsampled copies for training, made on demand, safe to delete
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

import numpy as np

from .intensity import IntensityMap
from .preprocess import Grid
from .runtime import write_atomic, write_json

VERSION = 1
SPLITS = ("train", "validation", "calibration", "holdout")
SHARD_BYTES = 256 * 2**20
COLUMNS = ("case", "slice", "patient", "split", "label", "spacing", "low", "high", "units", "sha256", "affine", "crop")


@dataclass(frozen=True)
class Dataset:
    """An opened prepared dataset. Rows are 2-D images in (C, H, W): H rows downwards, W columns to the right.

    Attributes:
        root: its folder.
        info: `dataset.json`, for example info["modality"], info["channels"], info["height"], info["labels"].
        columns: the manifest, column name -> list over rows.
    """

    root: Path
    info: dict[str, Any]
    columns: dict[str, list[Any]]

    @classmethod
    def open(cls, root: Path | str) -> Dataset:
        """Open the folder.

        Raises:
            ValueError: it is not a prepared dataset, or one of another version.
        """
        root = Path(root)
        if not (root / "dataset.json").is_file():
            raise ValueError(
                f"expected a prepared dataset in {root}, found no dataset.json: make one with 'scansmith prepare SCANS {root}'"
            )
        info = json.loads((root / "dataset.json").read_text())
        if info.get("version") != VERSION:
            raise ValueError(
                f"expected dataset version {VERSION} in {root}, found {info.get('version')!r}: prepare it again"
            )
        dataset = cls(root, info, json.loads((root / "manifest.json").read_text()))
        stored = sum(len(shard) for shard in dataset._shards)
        if stored != len(dataset):
            raise ValueError(
                f"expected {len(dataset)} images in {root}, found {stored}: the folder is incomplete, copy it again or prepare it again"
            )
        return dataset

    def __len__(self) -> int:
        return len(self.columns["case"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Stored image shape (C, H, W)."""
        return self.info["channels"], self.info["height"], self.info["width"]

    @property
    def labels(self) -> list[str]:
        """Class names, sorted; empty when the data have none."""
        return list(self.info["labels"])

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of one split, int64, in manifest order."""
        if split not in SPLITS:
            raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
        return np.flatnonzero(np.asarray(self.columns["split"]) == split)

    def classes(self) -> np.ndarray:
        """Class number of every row, int64 (N,), -1 where it has no label."""
        number = {name: index for index, name in enumerate(self.labels)}
        return np.array([number.get(label, -1) for label in self.columns["label"]], np.int64)

    def intensity(self, row: int) -> IntensityMap:
        """The invertible map of one row."""
        return IntensityMap(self.columns["low"][row], self.columns["high"][row], self.columns["units"][row])

    def grid(self, target: int) -> Grid:
        """The training grid whose longer side comes nearest to `target` pixels."""
        return Grid.choose(self.info["height"], self.info["width"], target)

    @cached_property
    def _shards(self) -> list[np.ndarray]:
        return [np.load(path, mmap_mode="r") for path in sorted(self.root.glob("images-*.npy"))]

    def image(self, row: int) -> np.ndarray:
        """One stored image, (C, H, W), native dtype, physical units."""
        for shard in self._shards:
            if row < len(shard):
                return np.asarray(shard[row])
            row -= len(shard)
        raise IndexError(f"row outside the {len(self)} images of {self.root}")

    def level(self, grid: Grid) -> Level:
        """All images on one training grid, memory-mapped; made at first use, then reused."""
        path = self.root / "levels" / f"{grid.height}x{grid.width}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            dtype = self._shards[0].dtype if self._shards else np.dtype(np.uint8)

            def fill(partial: Path) -> None:
                shape = (len(self), self.shape[0], grid.height, grid.width)
                with open(partial, "wb") as file:
                    _header(file, shape, dtype)
                    row = 0
                    for shard in self._shards:
                        for image in shard:
                            file.write(grid.apply(image, fill=self.columns["low"][row]).tobytes())
                            row += 1

            write_atomic(path, fill)
        window = np.array([self.columns["low"], self.columns["high"]], np.float32)
        return Level(np.load(path, mmap_mode="r"), window[0], window[1])


@dataclass(frozen=True)
class Level:
    """Every image of a dataset on one grid, memory-mapped in its native dtype, encoded batch by batch.

    Attributes:
        array: (N, C, H, W), physical units.
        low, high: (N,) float32, each row's window.
    """

    array: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """Rows -> float32 (B, C, H, W) in [-1, 1]."""
        low = self.low[rows, None, None, None]
        scale = 2.0 / (self.high[rows, None, None, None] - low)
        return np.clip((self.array[rows].astype(np.float32) - low) * scale - 1.0, -1.0, 1.0)


def write(
    root: Path,
    info: dict[str, Any],
    columns: dict[str, list[Any]],
    images: Iterable[np.ndarray],
    dtype: np.dtype,
    shape: Sequence[int],
) -> Dataset:
    """Write a whole dataset; `dataset.json` comes last, so a killed `prepare` leaves no half dataset behind.

    Args:
        root: folder, made if needed.
        info: content of `dataset.json` besides version and shape.
        columns: every name of `COLUMNS` -> list over rows.
        images: one array (C, H, W) per row, in row order.
        dtype: dtype of all shards.
        shape: (C, H, W).
    """
    count = write_shards(root, images, dtype, shape)
    assert count == len(columns["case"]), f"{count} images for {len(columns['case'])} rows"
    return write_manifest(root, info, columns, shape)


def write_shards(root: Path, images: Iterable[np.ndarray], dtype: np.dtype, shape: Sequence[int]) -> int:
    """The first half of `write`, for a caller that learns its rows while the images stream by.

    What an earlier dataset left in the folder goes first; until `write_manifest` the folder is no dataset.

    Args:
        root: folder, made if needed.
        images: arrays (C, H, W) in row order, each exact in `dtype`.
        dtype: dtype of all shards.
        shape: (C, H, W).

    Returns:
        How many images were written.
    """
    root = Path(root)
    clear(root)
    per_shard = max(1, SHARD_BYTES // max(1, int(np.prod(shape)) * np.dtype(dtype).itemsize))
    stream = iter(images)
    total = 0
    for first in stream:

        def fill(partial: Path, first: np.ndarray = first) -> None:
            nonlocal total
            count = 0
            with open(partial, "wb") as file:
                _header(file, (per_shard, *shape), dtype)
                for image in chain([first], islice(stream, per_shard - 1)):
                    file.write(np.ascontiguousarray(image, dtype).tobytes())
                    count += 1
                file.seek(0)
                _header(file, (count, *shape), dtype)
            total += count

        write_atomic(root / f"images-{total // per_shard:05d}.npy", fill)
    return total


def write_manifest(root: Path, info: dict[str, Any], columns: dict[str, list[Any]], shape: Sequence[int]) -> Dataset:
    """The second half of `write`: manifest, then `dataset.json`, which makes the folder a dataset."""
    root = Path(root)
    missing = set(COLUMNS) - set(columns)
    assert not missing, f"columns missing: {missing}"
    assert len({len(values) for values in columns.values()}) == 1, "columns of unequal length"
    write_atomic(root / "manifest.json", json.dumps(columns, allow_nan=False))
    channels, height, width = shape
    write_json(
        root / "dataset.json", {"version": VERSION, "channels": channels, "height": height, "width": width, **info}
    )
    return Dataset.open(root)


def clear(root: Path) -> None:
    """Take away what an earlier, perhaps unfinished, `prepare` left in the folder; other files stay."""
    names = ("dataset.json", "manifest.json", "images-*.npy", "levels/*.npy")
    partials = (".dataset.json.partial", ".manifest.json.partial", ".images-*.npy.partial", "levels/.*.npy.partial")
    for stale in [path for pattern in names + partials for path in Path(root).glob(pattern)]:
        stale.unlink()


def _header(file: IO[bytes], shape: Sequence[int], dtype: np.dtype) -> None:
    """A .npy header; NumPy pads it for the first axis to grow, so that it can be overwritten with another count."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    )
