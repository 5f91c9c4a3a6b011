"""Prepared dataset: the folder that `prepare` fills and every learning stage reads; this module alone reads and writes it.

dataset.json             version, modality, channels, grid, labels, fingerprint, split counts, what was skipped, shards
manifest-0001.npz        columns, one entry per row (case, patient, split, label, spacing, window, hash ...)
images-0001-00000.npy    native-dtype shards, shape (n, C, H, W) or (n, C, D, H, W), physical units, in manifest order
masks-0001-00000.npy     label maps of the same rows, uint8, one channel, where the scans have masks
targets-0001-00000.npy   the paired scans of the same rows, where scans are paired
source2-0001-00000.npy   where several scans are the source of one target: the second of each row, source3 the third ...
report.html              what `prepare` found, for people; made by it from all the others
levels/                  downsampled copies for training, made on demand, safe to delete

The first number is the generation: a dataset that grows is written beside the old one and replaces it at the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np

from .intensity import IntensityMap
from .preprocess import Grid
from .runtime import write_atomic, write_json

VERSION = 2
SPLITS = ("train", "validation", "calibration", "holdout")
SHARD_BYTES = 256 * 2**20
# Column -> (dtype of one value, its shape); strings have the length they need. NaN, "" and -1 stand for "not known".
COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {
    "case": ("U", ()),  # pseudonym of the scan
    "slice": ("i4", ()),  # number of the slice along the scan's cut axis
    "patient": ("U", ()),  # pseudonym
    "split": ("U", ()),
    "label": ("U", ()),
    "spacing": ("f8", (3,)),  # mm between slices, rows, columns
    "low": ("f8", ()),  # the row's window: physical value that becomes -1 ...
    "high": ("f8", ()),  # ... and +1
    "units": ("U", ()),
    "target_low": ("f8", ()),  # the same for the paired scan
    "target_high": ("f8", ()),
    "sha256": ("U", ()),  # of the stored values
    "affine": ("f8", (4, 4)),  # (column, row, slice, 1) of the stored image -> mm in RAS+
    "crop": ("f8", (6,)),  # first slice, row, column and their number, in the displayed source's voxels
    "masked": ("?", ()),  # whether the row has a mask
}
# The same where several scans are the source of one target, one value for each of them; "images" holds the first that is there.
SOURCE_COLUMNS: dict[str, str] = {
    "present": "?",  # whether the row has the source
    "source_low": "f8",  # the source's window, NaN where it is missing
    "source_high": "f8",
}


@dataclass(frozen=True)
class Dataset:
    """An opened prepared dataset.

    Rows are 2-D images (C, H, W), H rows downwards, W columns to the right, or 3-D volumes (C, D, H, W).

    Attributes:
        root: its folder.
        info: `dataset.json`, for example info["modality"], info["channels"], info["height"], info["labels"].
        columns: the manifest, a name of `COLUMNS`, with several sources also of `SOURCE_COLUMNS` -> array over rows.
    """

    root: Path
    info: dict[str, Any]
    columns: dict[str, np.ndarray]

    @classmethod
    def open(cls, root: Path | str) -> Dataset:
        """Open the folder.

        Raises:
            ValueError: it is not a prepared dataset, one of another version, or incomplete.
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
        way_out = "the folder is incomplete, copy it again or prepare it again"
        manifest = root / manifest_name(info["generation"])
        if not manifest.is_file():
            raise ValueError(f"expected {manifest.name} in {root}, found none: {way_out}")
        dataset = cls(root, info, _read_columns(manifest))
        for layer in info["layers"]:
            stored = len(dataset._layers[layer])
            if stored != len(dataset):
                raise ValueError(f"expected {len(dataset)} {layer} in {root}, found {stored}: {way_out}")
        return dataset

    def __len__(self) -> int:
        return len(self.columns["case"])

    @property
    def shape(self) -> tuple[int, ...]:
        """Stored image shape (C, H, W) or (C, D, H, W)."""
        depth = (self.info["depth"],) if self.info.get("depth") else ()
        return (self.info["channels"], *depth, self.info["height"], self.info["width"])

    @property
    def labels(self) -> list[str]:
        """Class names, sorted; empty when the data have none."""
        return list(self.info["labels"])

    def rows(self, split: str) -> np.ndarray:
        """Row numbers of one split, int64, in manifest order."""
        if split not in SPLITS:
            raise ValueError(f"expected a split of {SPLITS}, got {split!r}")
        return np.flatnonzero(self.columns["split"] == split)

    def classes(self) -> np.ndarray:
        """Class number of every row, int64 (N,), -1 where it has no label."""
        result = np.full(len(self), -1, np.int64)
        for number, name in enumerate(self.labels):
            result[self.columns["label"] == name] = number
        return result

    def neighbours(self, row: int) -> np.ndarray:
        """The rows of the slices around a row of a 2.5-D dataset, itself in the middle, int64 (2 n + 1,).

        n is info["neighbours"]; where a slice is missing or empty, or the scan ends, the nearest one stands in.
        """
        count = int(self.info.get("neighbours", 0))
        first = last = row
        case, slices = self.columns["case"], self.columns["slice"]
        while first > 0 and case[first - 1] == case[row] and slices[first - 1] >= slices[row] - count:
            first -= 1
        while last + 1 < len(self) and case[last + 1] == case[row] and slices[last + 1] <= slices[row] + count:
            last += 1
        wished = slices[row] + np.arange(-count, count + 1)
        return first + np.abs(slices[first : last + 1, None] - wished).argmin(axis=0)

    def intensity(self, row: int) -> IntensityMap:
        """The invertible map of one row."""
        return IntensityMap(
            float(self.columns["low"][row]), float(self.columns["high"][row]), str(self.columns["units"][row])
        )

    def target_intensity(self, row: int) -> IntensityMap:
        """The invertible map of the row's paired scan."""
        return IntensityMap(
            float(self.columns["target_low"][row]),
            float(self.columns["target_high"][row]),
            self.info["target"]["units"],
        )

    def source_intensity(self, row: int, number: int) -> IntensityMap:
        """The invertible map of one of the sources of a row, of which there are several."""
        low, high = (float(self.columns[name][row][number]) for name in ("source_low", "source_high"))
        return IntensityMap(low, high, self.info["sources"][number]["units"])

    @cached_property
    def _layers(self) -> dict[str, Rows]:
        return {layer: Rows(self.root, layer, self.info["generation"]) for layer in self.info["layers"]}

    def image(self, row: int) -> np.ndarray:
        """One stored image, (C, H, W) or (C, D, H, W), native dtype, physical units."""
        return self._layers["images"][row]

    def mask(self, row: int) -> np.ndarray | None:
        """The row's label map, uint8 (H, W) or (D, H, W), 0 where nothing is marked; None where it has no mask."""
        return self._layers["masks"][row][0] if self.columns["masked"][row] else None

    def target(self, row: int) -> np.ndarray | None:
        """The row's paired image on the same grid, physical units; None when the dataset has no pairs."""
        return self._layers["targets"][row] if "targets" in self._layers else None

    def sources(self, row: int, part: tuple[slice, ...] = ()) -> np.ndarray:
        """All sources of a row of several, or a part of them, float32 (S, *spatial), physical units; NaN where one is missing."""
        present = self.columns["present"][row]
        layers = [source_layer(number) for number in range(len(present))]
        found = [self._layers[layer][row][0][part] for layer in layers]
        return np.stack([np.where(there, one, np.nan).astype(np.float32) for there, one in zip(present, found)])

    def level(self, grid: Grid) -> Level:
        """All images on one training grid, memory-mapped; made at first use, then reused."""
        path = self.root / "levels" / f"{'x'.join(map(str, grid.shape))}.npy"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            dtype = np.dtype(self.info["layers"]["images"]["dtype"])

            def fill(partial: Path) -> None:
                shape = (len(self), self.shape[0], *grid.shape)
                with open(partial, "wb") as file:
                    _header(file, shape, dtype)
                    for row, image in enumerate(self._layers["images"]):
                        file.write(grid.apply(image, fill=self.columns["low"][row]).tobytes())

            # Under a name of its own first: two trainings may make the same level at the same time.
            own = path.with_name(f"{path.stem}-{os.getpid()}.npy")
            write_atomic(own, fill)
            own.replace(path)
        window = np.array([self.columns["low"], self.columns["high"]], np.float32)
        return Level(np.load(path, mmap_mode="r"), window[0], window[1])


class Rows:
    """The rows of one layer of one generation, memory-mapped: a sequence of arrays (C, ...)."""

    def __init__(self, root: Path, layer: str, generation: int) -> None:
        self.shards = [np.load(path, mmap_mode="r") for path in shard_files(root, layer, generation)]
        self._starts = np.cumsum([0, *(len(shard) for shard in self.shards)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, row: int) -> np.ndarray:
        if not 0 <= row < len(self):
            raise IndexError(f"row {row} outside the {len(self)} stored ones")
        shard = int(np.searchsorted(self._starts, row, "right")) - 1
        return np.asarray(self.shards[shard][row - self._starts[shard]])

    def __iter__(self) -> Iterator[np.ndarray]:
        for shard in self.shards:
            yield from shard


@dataclass(frozen=True)
class Level:
    """Every image of a dataset on one grid, memory-mapped in its native dtype, encoded batch by batch.

    Attributes:
        array: (N, C, H, W) or (N, C, D, H, W), physical units.
        low, high: (N,) float32, each row's window.
    """

    array: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def batch(self, rows: np.ndarray) -> np.ndarray:
        """Rows -> float32 (B, C, H, W) or (B, C, D, H, W) in [-1, 1]."""
        each = (-1, *(1,) * (self.array.ndim - 1))
        low = self.low[rows].reshape(each)
        scale = 2.0 / (self.high[rows].reshape(each) - low)
        return np.clip((self.array[rows].astype(np.float32) - low) * scale - 1.0, -1.0, 1.0)


# ------------------------------------------------------------------------------------------------ writing


class Writer:
    """Streams rows to the shards of one generation; what is on disk is a dataset only after `finish`.

    Args:
        root: folder, made if needed.
        layers: layer -> (dtype, shape of one row); "images" among them.
        generation: number of this writing of the folder; an earlier one stays whole until `finish`.
        shards: shards that an interrupted writing of the same generation left and that are kept.
    """

    def __init__(
        self,
        root: Path,
        layers: Mapping[str, tuple[np.dtype, Sequence[int]]],
        generation: int = 1,
        shards: int = 0,
    ) -> None:
        self.root, self.generation, self.shards = Path(root), generation, shards
        self.layers = {layer: (np.dtype(dtype), tuple(shape)) for layer, (dtype, shape) in layers.items()}
        largest = max(int(np.prod(shape)) * dtype.itemsize for dtype, shape in self.layers.values())
        self._most = max(1, SHARD_BYTES // largest)
        self._files: dict[str, IO[bytes]] = {}
        self._rows = 0

    @property
    def full(self) -> bool:
        """Whether the open shard has the size that a shard should have."""
        return self._rows >= self._most

    def add(self, rows: Mapping[str, np.ndarray]) -> None:
        """Write rows: layer -> array (n, *shape), exact in the layer's dtype."""
        try:
            if not self._files:
                self._begin()
            for layer, (dtype, shape) in self.layers.items():
                assert rows[layer].shape[1:] == shape, f"{layer}: {rows[layer].shape[1:]} for {shape}"
                self._files[layer].write(np.ascontiguousarray(rows[layer], dtype).data.cast("B"))
        except OSError as error:
            from .runtime import explain_os_error

            raise explain_os_error(error, self._path("images")) from error
        self._rows += len(rows["images"])

    def close(self) -> None:
        """End the open shard and put it in its place."""
        for layer, (dtype, shape) in self.layers.items():
            file = self._files.pop(layer, None)
            if file is None:
                continue

            def fill(partial: Path, file: IO[bytes] = file, header: tuple = ((self._rows, *shape), dtype)) -> None:
                file.seek(0)
                _header(file, *header)
                file.close()

            write_atomic(self._path(layer), fill)
        if self._rows:
            self.shards, self._rows = self.shards + 1, 0

    def discard(self) -> None:
        """Give up the open shard."""
        for file in self._files.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)
        self._files, self._rows = {}, 0

    def finish(self, info: Mapping[str, Any], columns: Mapping[str, Sequence[Any] | np.ndarray]) -> Dataset:
        """Manifest, then `dataset.json`, which makes the folder a dataset; then an earlier generation goes.

        Args:
            info: content of `dataset.json` besides version, grid and layers.
            columns: every name of `COLUMNS`, with several sources also of `SOURCE_COLUMNS` -> values over rows.
        """
        self.close()
        missing = set(COLUMNS) - set(columns)
        assert not missing, f"columns missing: {missing}"
        assert len({len(values) for values in columns.values()}) == 1, "columns of unequal length"
        write_atomic(self.root / manifest_name(self.generation), lambda partial: _write_columns(partial, columns))
        _, shape = self.layers["images"]
        about = {
            "version": VERSION,
            "channels": shape[0],
            "depth": shape[1] if len(shape) == 4 else None,
            "height": shape[-2],
            "width": shape[-1],
            **info,
            "generation": self.generation,
            "layers": {
                layer: {"dtype": str(dtype), "channels": shape[0]} for layer, (dtype, shape) in self.layers.items()
            },
        }
        write_json(self.root / "dataset.json", about)
        for level in (self.root / "levels").glob("*.npy"):
            level.unlink()
        clear(self.root, keep=self.generation)
        return Dataset.open(self.root)

    def _path(self, layer: str) -> Path:
        return self.root / f"{layer}-{self.generation:04d}-{self.shards:05d}.npy"

    def _begin(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        for layer, (dtype, shape) in self.layers.items():
            path = self._path(layer)
            self._files[layer] = open(path.with_name(f".{path.name}.partial"), "w+b")  # noqa: SIM115
            _header(self._files[layer], (2**40, *shape), dtype)


def write(
    root: Path,
    info: Mapping[str, Any],
    columns: Mapping[str, Sequence[Any] | np.ndarray],
    images: Iterable[np.ndarray],
    dtype: np.dtype,
    shape: Sequence[int],
) -> Dataset:
    """Write a whole dataset of one layer, for a caller that has its rows at hand; columns left out are "not known".

    Args:
        root: folder, made if needed.
        info: content of `dataset.json` besides version and shape.
        columns: names of `COLUMNS` -> values over rows; case and split at least.
        images: one array (C, H, W) per row, in row order.
        dtype: dtype of all shards.
        shape: (C, H, W).
    """
    clear(Path(root))
    writer = Writer(root, {"images": (np.dtype(dtype), shape)})
    count = 0
    try:
        for image in images:
            writer.add({"images": np.asarray(image)[None]})
            count += 1
            if writer.full:
                writer.close()
    except BaseException:
        writer.discard()
        raise
    assert count == len(columns["case"]), f"{count} images for {len(columns['case'])} rows"
    return writer.finish(info, {**{name: unknown(name, count) for name in COLUMNS}, **columns})


def unknown(column: str, count: int) -> np.ndarray:
    """`count` values of a column that say "not known"."""
    dtype, shape = COLUMNS[column]
    value = {"U": "", "i4": -1, "f8": np.nan, "?": False}[dtype]
    return np.full((count, *shape), value, "U1" if dtype == "U" else dtype)


def source_layer(number: int) -> str:
    """The layer of one of several sources, counted from 0."""
    return f"source{number + 1}" if number else "images"


def manifest_name(generation: int) -> str:
    return f"manifest-{generation:04d}.npz"


def shard_files(root: Path, layer: str, generation: int) -> list[Path]:
    """The shards of a layer in row order."""
    return sorted(Path(root).glob(f"{layer}-{generation:04d}-*.npy"))


def clear(root: Path, keep: int | None = None, resume: tuple[int, int] | None = None) -> None:
    """Take away what an earlier, perhaps unfinished, writing left in the folder; other files stay.

    Args:
        root: the folder.
        keep: generation that stays whole, with its `dataset.json`; None takes all away.
        resume: (generation, shards): of an unfinished generation the first so many shards stay.
    """
    names = [".dataset.json.partial", "levels/.*.npy.partial"]
    if keep is None:
        names += ["dataset.json", "report.html", "levels/*.npy"]
    for stale in [path for pattern in names for path in Path(root).glob(pattern)]:
        stale.unlink()
    for path in _numbered(Path(root)):
        _, generation, *shard = path.stem.lstrip(".").removesuffix(".npy").removesuffix(".npz").split("-")
        partial = path.name.startswith(".")
        goes_on = resume is not None and int(generation) == resume[0] and bool(shard) and int(shard[0]) < resume[1]
        if partial or not (int(generation) == keep or goes_on):
            path.unlink()


def _numbered(root: Path) -> Iterator[Path]:
    kinds = ("images", "masks", "targets", "source[2-9]", "source[1-9][0-9]")
    for kind, suffix in (("manifest", "npz"), *((kind, "npy") for kind in kinds)):
        yield from list(root.glob(f"{kind}-[0-9]*.{suffix}"))
        yield from list(root.glob(f".{kind}-[0-9]*.{suffix}.partial"))


def _write_columns(path: Path, columns: Mapping[str, Sequence[Any] | np.ndarray]) -> None:
    """A .npz of plain arrays; a column that says the same for every row is stored once."""
    arrays: dict[str, Any] = {}
    for name, (dtype, shape) in COLUMNS.items():
        values = columns[name]
        array = np.asarray(values, None if dtype == "U" else dtype)
        if array.size == 0:
            array = np.empty((0, *shape), "U1" if dtype == "U" else dtype)
        assert array.dtype.kind == np.dtype(dtype).kind and array.shape[1:] == shape, (
            f"column {name}: {array.dtype} {array.shape}"
        )
        arrays[name] = _once(_narrow(array) if dtype == "U" else array)
    arrays |= {
        name: _once(np.asarray(columns[name], dtype)) for name, dtype in SOURCE_COLUMNS.items() if name in columns
    }
    arrays["rows"] = np.array(len(columns["case"]))
    with open(path, "wb") as file:
        np.savez(file, **arrays)


def _once(array: np.ndarray) -> np.ndarray:
    """One value where all rows have the same."""
    same = len(array) > 1 and np.array_equal(
        array, np.broadcast_to(array[:1], array.shape), equal_nan=array.dtype.kind == "f"
    )
    return array[:1] if same else array


def _narrow(array: np.ndarray) -> np.ndarray:
    """ASCII text as bytes, a quarter of the size; other text as it is."""
    try:
        return array.astype("S")
    except UnicodeEncodeError:
        return array


def _read_columns(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as stored:
        count = int(stored["rows"])
        columns = {}
        for name in (*COLUMNS, *(name for name in SOURCE_COLUMNS if name in stored)):
            array = stored[name]
            array = array.astype("U") if array.dtype.kind == "S" else array
            columns[name] = array if len(array) == count else np.broadcast_to(array, (count, *array.shape[1:]))
    return columns


def _header(file: IO[bytes], shape: Sequence[int], dtype: np.dtype) -> None:
    """A .npy header; NumPy pads it for the first axis to grow, so that it can be overwritten with another count."""
    np.lib.format.write_array_header_1_0(
        file, {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": tuple(shape)}
    )
