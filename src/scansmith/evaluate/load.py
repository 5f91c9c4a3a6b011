"""Scans of any origin as one array: what a folder holds, and chosen images of it at one size in [-1, 1]."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats
from ..dataset import Dataset
from ..image import Image
from ..intensity import IntensityMap, choose
from ..preprocess import resize
from ..runtime import derive_seed

# An 8- or 16-bit window this wide has whole grey levels (CT, X-ray, most MR); narrower ones are scaled arbitrarily.
WHOLE_LEVELS = 100.0


@dataclass(frozen=True)
class Scans:
    """A set of 2-D images on disk, read only when asked for.

    Attributes:
        origin: "prepared dataset", "synthetic scans" or "folder of scans".
        rows: (N,) int64, the number of each image in its dataset or folder.
        groups: (N,) int64, the same number for images of one patient (or of one volume where patients are not known).
        size: (H, W) of most images; channels: of all.
        modality: DICOM term of most images.
        split_level: "patient", "study", "image" or "unknown": what was kept apart between training and holdout.
        window: the map of all images; None: each has its own.
        dataset: the dataset that holds them, or None.
        slices: without a dataset, (source, k) of every image in the folder.
        model: hash of the model that made them, or None.
        whole: physical values are whole numbers.
        root: the folder; names of files below it may be shown only for synthetic scans.
    """

    origin: str
    rows: np.ndarray
    groups: np.ndarray
    size: tuple[int, int]
    channels: int
    modality: str
    split_level: str
    window: IntensityMap | None
    root: Path
    dataset: Dataset | None = None
    slices: tuple[tuple[formats.Source, int], ...] = field(default=())
    model: str | None = None
    whole: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    def part(self, chosen: np.ndarray) -> Scans:
        """Only the images at these positions."""
        return replace(self, rows=self.rows[chosen], groups=self.groups[chosen])

    def sample(self, count: int, seed: int, purpose: str) -> Scans:
        """At most `count` of them, drawn at random, in their order."""
        if len(self) <= count:
            return self
        rng = np.random.default_rng(derive_seed(seed, "sample", purpose))
        return self.part(np.sort(rng.choice(len(self), count, replace=False)))

    def file(self, position: int) -> str | None:
        """Path of a synthetic scan below the folder that holds its images folder; None for others, whose names may name patients."""
        if self.origin != "synthetic scans":
            return None
        return (Path(self.root.name) / self.slices[self.rows[position]][0].files[0].relative_to(self.root)).as_posix()


def open_scans(root: Path, split: str | None = None) -> Scans:
    """List the images of a prepared dataset (one split of it, or all), of synthetic scans or of any folder of scans.

    Of synthetic scans those that their manifest lists, not what else lies in the folder.

    Raises:
        ValueError: nothing there, no scan that can be read, or a scan of the manifest is missing.
    """
    if (root / "dataset.json").is_file():
        dataset = Dataset.open(root)
        rows = dataset.rows(split) if split else np.arange(len(dataset))
        return of_dataset(dataset, rows)
    manifest = own_manifest(root)
    found, skipped = formats.discover(root, listed(root, manifest))
    sources = [source for source in found if source.role == "image"]
    if not sources:
        reason = f"; the first file was skipped: {skipped[0].reason}" if skipped else ""
        raise ValueError(f"expected scans or a prepared dataset in {root}, found none{reason}")
    channels = Counter(source.channels for source in sources).most_common(1)[0][0]
    sources = [source for source in sources if source.channels == channels]
    modality = Counter(source.modality for source in sources).most_common(1)[0][0]
    i, j = Counter(source.shape[:2] for source in sources).most_common(1)[0][0]
    slices = tuple((source, k) for source in sources for k in range(source.shape[2]))
    patients: dict[object, int] = {}
    groups = [patients.setdefault(source.patient or source.files[0], len(patients)) for source, _ in slices]
    named = IntensityMap(**manifest["intensity"]) if "intensity" in manifest else None
    window = named or (ct_window(sources) if modality == "CT" else None)
    model = manifest.get("model")
    return Scans(
        "synthetic scans" if manifest else "folder of scans",
        np.arange(len(slices)),
        np.array(groups, np.int64),
        (j, i),
        channels,
        modality,
        "unknown",
        window,
        root,
        slices=slices,
        model=model if isinstance(model, str) else None,
    )


def own_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a folder of synthetic scans; empty for a folder without one and for another program's."""
    if not (root / "manifest.json").is_file():
        return {}
    try:
        return formats.read_manifest(root)
    except ValueError:
        return {}


def listed(root: Path, manifest: dict[str, Any]) -> list[Path] | None:
    """The files that a manifest lists, None where it lists none.

    Raises:
        ValueError: one of them is missing.
    """
    if "files" not in manifest:
        return None
    files = [root / entry["file"] for entry in manifest["files"]]
    missing = [file for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"expected the {len(files)} scans that {root / 'manifest.json'} lists, found that {len(missing)} are missing, the first {missing[0].name}: make the folder again"
        )
    return files


def of_dataset(dataset: Dataset, rows: np.ndarray) -> Scans:
    """Rows of a prepared dataset."""
    patients: dict[object, int] = {}
    keys = [patient or ("row", row) for row, patient in enumerate(dataset.columns["patient"])]
    groups = np.array([patients.setdefault(key, len(patients)) for key in keys], np.int64)
    if dataset.info.get("depth"):
        raise ValueError(
            f"expected a dataset of 2-D images in {dataset.root}, found volumes: prepare with dimensions 2"
        )
    channels, height, width = dataset.shape
    whole = len(dataset) > 0 and np.issubdtype(dataset.image(0).dtype, np.integer)
    windows = {(dataset.columns["low"][row], dataset.columns["high"][row]) for row in rows}
    return Scans(
        "prepared dataset",
        rows,
        groups[rows],
        (height, width),
        channels,
        dataset.info.get("modality", "OT"),
        dataset.info.get("split_level", "unknown"),
        dataset.intensity(int(rows[0])) if len(windows) == 1 else None,
        dataset.root,
        dataset=dataset,
        whole=whole,
    )


def ct_window(sources: list[formats.Source], most: int = 16) -> IntensityMap | None:
    """One window for a folder of CT, from voxels of up to `most` scans spread over it; None when none can be read."""
    step = max(1, len(sources) // most)
    samples = [image.array[..., ::4, ::4, :].ravel() for _, _, image in readable(sources[::step][:most])]
    return choose("CT", np.concatenate(samples), samples[0].dtype)[0] if samples else None


def readable(sources: list[formats.Source]) -> Iterator[tuple[int, int, Image]]:
    """(position, number of the first slice, Image) of all that can be read; a series with a broken slice comes in runs."""
    for position, source in enumerate(sources):
        for first, image in formats.read_runs(source)[0]:
            yield position, first, image


def load(scans: Scans, size: tuple[int, int], rounded: bool = False) -> tuple[np.ndarray, Scans]:
    """All images as float32 (N, C, H, W) in [-1, 1], and the scans that they are: files that cannot be read are left out.

    Resized in physical units and then encoded, as the training grid is, so that what was learned is what is measured.

    Args:
        scans: what to load.
        size: (H, W).
        rounded: bring physical values to whole numbers, for synthetic scans beside real ones that have only those: a
            classifier must not win by the bit depth.
    """
    if scans.dataset is not None:
        pairs = ((scans.dataset.image(int(row)), scans.dataset.intensity(int(row))) for row in scans.rows)
        images, kept = [encode(image, window, size, rounded) for image, window in pairs], np.arange(len(scans))
    else:
        images, kept = load_slices(scans, size, rounded)
    array = np.stack(images) if images else np.empty((0, scans.channels, *size), np.float32)
    return array, scans.part(kept)


def load_slices(scans: Scans, size: tuple[int, int], rounded: bool) -> tuple[list[np.ndarray], np.ndarray]:
    """The chosen slices of a folder, each file read once, and their positions."""
    wanted: dict[formats.Source, list[int]] = {}
    for position, row in enumerate(scans.rows):
        wanted.setdefault(scans.slices[row][0], []).append(position)
    images, kept = [], []
    sources = list(wanted)
    for number, first, image in readable(sources):
        window = scans.window or own_window(image, scans.modality)
        for position in wanted[sources[number]]:
            k = scans.slices[scans.rows[position]][1] - first
            if 0 <= k < image.array.shape[3]:
                # A displayed slice is array[0, :, :, k].T: rows downwards, columns to the right.
                picture = image.array[..., k].transpose(0, 2, 1)
                images.append(encode(picture, window, size, rounded))
                kept.append(position)
    return images, np.array(kept, np.int64)


def own_window(image: Image, modality: str) -> IntensityMap:
    """The window of one scan; a constant scan becomes mid-grey."""
    try:
        return choose(modality, image.array, image.array.dtype)[0]
    except ValueError:
        value = float(image.array.flat[0])
        return IntensityMap(value - 1.0, value + 1.0)


def encode(image: np.ndarray, window: IntensityMap, size: tuple[int, int], rounded: bool) -> np.ndarray:
    """(C, h, w) in physical units -> (C, H, W) float32 in [-1, 1]."""
    physical = resize(image, *size)
    if rounded and window.high - window.low >= WHOLE_LEVELS:
        physical = np.rint(physical)
    return window.encode(physical)
