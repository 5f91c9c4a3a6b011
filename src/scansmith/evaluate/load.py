"""Scans of any origin as one array: what a folder holds, and chosen images of it at one size in [-1, 1].

Of volumes, the images are three central slices as channels (`planes`); a folder's volumes are their slices where the
other side holds pictures.
"""

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
from .planes import PLANES, central, upright

# An 8- or 16-bit window this wide has whole grey levels (CT, X-ray, most MR); narrower ones are scaled arbitrarily.
WHOLE_LEVELS = 100.0
# So many volumes of a folder are tried until one can be read that shows their size.
TRIED = 16


@dataclass(frozen=True)
class Scans:
    """A set of 2-D images, or of volumes, on disk, read only when asked for.

    Attributes:
        origin: "prepared dataset", "synthetic scans" or "folder of scans".
        rows: (N,) int64, the number of each image in its dataset or folder.
        groups: (N,) int64, the same number for images of one patient (or of one volume where patients are not known).
        size: (H, W) of most images, of volumes (D, H, W) of the first one, upright; channels: of all.
        modality: DICOM term of most images.
        split_level: "patient", "study", "image" or "unknown": what was kept apart between training and holdout.
        window: the map of all images; None: each has its own.
        dataset: the dataset that holds them, or None.
        slices: without a dataset, (source, k) of every image in the folder; k is -1 for a whole volume.
        model: hash of the model that made them, or None.
        whole: physical values are whole numbers.
        volumes: each is a volume.
        root: the folder; names of files below it may be shown only for synthetic scans.
    """

    origin: str
    rows: np.ndarray
    groups: np.ndarray
    size: tuple[int, ...]
    channels: int
    modality: str
    split_level: str
    window: IntensityMap | None
    root: Path
    dataset: Dataset | None = None
    slices: tuple[tuple[formats.Source, int], ...] = field(default=())
    model: str | None = None
    whole: bool = False
    volumes: bool = False

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def apart(self) -> np.ndarray:
        """(N,) int64, the same number for images of one patient; where all name the same one, for images of one scan."""
        if self.dataset is not None or len(np.unique(self.groups)) > 1:
            return self.groups
        scans: dict[object, int] = {}
        return np.array([scans.setdefault(self.slices[row][0].files[0], len(scans)) for row in self.rows], np.int64)

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


def holds_volumes(real: Path, fake: Path, train: Path | None) -> bool:
    """Whether whole volumes are compared: what a prepared dataset among the folders holds, else what the manifest says."""
    for root in (real, train, fake):
        if root is not None and (root / "dataset.json").is_file():
            return bool(Dataset.open(root).info.get("depth"))
    return len(own_manifest(fake).get("size") or ()) == 3


def open_scans(root: Path, split: str | None = None, volumes: bool = False) -> Scans:
    """List the images of a prepared dataset (one split of it, or all), of synthetic scans or of any folder of scans.

    Of synthetic scans those that their manifest lists, not what else lies in the folder.

    Args:
        root: the dataset or folder.
        split: of a dataset; None takes all.
        volumes: list whole volumes; else the slices of a folder's volumes.

    Raises:
        ValueError: nothing there, no scan that can be read, pictures for volumes, or a scan of the manifest is missing.
    """
    if (root / "dataset.json").is_file():
        dataset = Dataset.open(root)
        rows = dataset.rows(split) if split else np.arange(len(dataset))
        return of_dataset(dataset, rows, volumes)
    manifest = own_manifest(root)
    found, skipped = formats.discover(root, listed(root, manifest))
    sources = [source for source in found if source.role == "image"]
    if not sources:
        reason = f"; the first file was skipped: {skipped[0].reason}" if skipped else ""
        raise ValueError(f"expected scans or a prepared dataset in {root}, found none{reason}")
    if volumes and all(source.shape[2] == 1 for source in sources):
        raise ValueError(
            f"expected volumes in {root}, as on the other side, found 2-D images: compare them with a dataset prepared with dimensions 2"
        )
    sources = [source for source in sources if not volumes or source.shape[2] > 1]
    channels = Counter(source.channels for source in sources).most_common(1)[0][0]
    sources = [source for source in sources if source.channels == channels]
    modality = Counter(source.modality for source in sources).most_common(1)[0][0]
    i, j = Counter(source.shape[:2] for source in sources).most_common(1)[0][0]
    slices = tuple((source, k) for source in sources for k in ((-1,) if volumes else range(source.shape[2])))
    patients: dict[object, int] = {}
    groups = [patients.setdefault(source.patient or source.files[0], len(patients)) for source, _ in slices]
    named = IntensityMap(**manifest["intensity"]) if "intensity" in manifest else None
    window = named or (ct_window(sources) if modality == "CT" else None)
    model = manifest.get("model")
    scans = Scans(
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
        volumes=volumes,
    )
    return with_own_size(scans) if volumes else scans


def with_own_size(scans: Scans) -> Scans:
    """The same volumes with the size of the first one that can be read, upright."""
    first = next(physical(scans.part(np.arange(min(len(scans), TRIED)))), None)
    return scans if first is None else replace(scans, size=first[1].shape[1:])


def own_manifest(root: Path) -> dict[str, Any]:
    """The manifest of a folder of synthetic scans; empty for a folder without one and for another program's."""
    if not (root / "manifest.json").is_file():
        return {}
    try:
        return formats.read_manifest(root)
    except ValueError:
        return {}


def listed(root: Path, manifest: dict[str, Any]) -> list[Path] | None:
    """The files that a manifest lists, for a folder of DICOM slices these; None where it lists none.

    Raises:
        ValueError: one of them is missing.
    """
    if "files" not in manifest:
        return None
    files = [root / entry["file"] for entry in manifest["files"]]
    missing = [file for file in files if not file.is_file() and not any(file.glob("*.dcm"))]
    if missing:
        raise ValueError(
            f"expected the {len(files)} scans that {root / 'manifest.json'} lists, found that {len(missing)} are missing, the first {missing[0].name}: make the folder again"
        )
    return [part for file in files for part in ([file] if file.is_file() else sorted(file.glob("*.dcm")))]


def of_dataset(dataset: Dataset, rows: np.ndarray, volumes: bool) -> Scans:
    """Rows of a prepared dataset.

    Raises:
        ValueError: it holds pictures where volumes are compared, or the other way round.
    """
    patients: dict[object, int] = {}
    keys = [patient or ("row", row) for row, patient in enumerate(dataset.columns["patient"])]
    groups = np.array([patients.setdefault(key, len(patients)) for key in keys], np.int64)
    if bool(dataset.info.get("depth")) != volumes:
        found, wished, way_out = (
            ("volumes", "2-D images", 2) if dataset.info.get("depth") else ("2-D images", "volumes", 3)
        )
        raise ValueError(
            f"expected {wished} in {dataset.root}, as on the other side, found {found}: prepare with --plan '{{\"dimensions\": {way_out}}}'"
        )
    whole = len(dataset) > 0 and np.issubdtype(dataset.image(0).dtype, np.integer)
    windows = {(dataset.columns["low"][row], dataset.columns["high"][row]) for row in rows}
    scans = Scans(
        "prepared dataset",
        rows,
        groups[rows],
        dataset.shape[1:],
        dataset.shape[0],
        dataset.info.get("modality", "OT"),
        dataset.info.get("split_level", "unknown"),
        dataset.intensity(int(rows[0])) if len(windows) == 1 else None,
        dataset.root,
        dataset=dataset,
        whole=whole,
        volumes=volumes,
    )
    return with_own_size(scans) if volumes else scans


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


def load(scans: Scans, size: tuple[int, ...], rounded: bool = False) -> tuple[np.ndarray, Scans]:
    """All images as float32 (N, C, H, W) in [-1, 1], and the scans that they are: files that cannot be read are left out.

    Resized in physical units and then encoded, as the training grid is, so that what was learned is what is measured.

    Args:
        scans: what to load.
        size: (H, W); of volumes (D, H, W), which give (N, 3 C, S, S) of `planes.central`.
        rounded: bring physical values to whole numbers, for synthetic scans beside real ones that have only those: a
            classifier must not win by the bit depth.
    """
    images, kept = [], []
    for position, image, window in physical(scans):
        images.append(encode(image, window, size, rounded))
        kept.append(position)
    empty = (0, PLANES * scans.channels, max(size), max(size)) if scans.volumes else (0, scans.channels, *size)
    array = np.stack(images) if images else np.empty(empty, np.float32)
    return array, scans.part(np.array(kept, np.int64))


def physical(scans: Scans) -> Iterator[tuple[int, np.ndarray, IntensityMap]]:
    """(position, (C, H, W) or upright (C, D, H, W) in physical units, window) of all that can be read."""
    if scans.dataset is None:
        yield from physical_of_folder(scans)
        return
    for position, row in enumerate(scans.rows):
        image = scans.dataset.image(int(row))
        image = upright(image, scans.dataset.columns["affine"][row]) if scans.volumes else image
        yield position, image, scans.dataset.intensity(int(row))


def physical_of_folder(scans: Scans) -> Iterator[tuple[int, np.ndarray, IntensityMap]]:
    """The same for the chosen slices or volumes of a folder, each file read once."""
    wanted: dict[formats.Source, list[int]] = {}
    for position, row in enumerate(scans.rows):
        wanted.setdefault(scans.slices[row][0], []).append(position)
    sources = list(wanted)
    for number, first, image in readable(sources):
        window = scans.window or own_window(image, scans.modality)
        # A displayed slice is array[0, :, :, k].T: rows downwards, columns to the right.
        displayed = image.array.transpose(0, 3, 2, 1)
        for position in wanted[sources[number]]:
            k = scans.slices[scans.rows[position]][1] - first
            if scans.volumes and displayed.shape[1] == sources[number].shape[2]:  # not a part of a broken series
                yield position, upright(displayed, image.affine), window
            elif not scans.volumes and 0 <= k < displayed.shape[1]:
                yield position, displayed[:, k], window


def own_window(image: Image, modality: str) -> IntensityMap:
    """The window of one scan; a constant scan becomes mid-grey."""
    try:
        return choose(modality, image.array, image.array.dtype)[0]
    except ValueError:
        value = float(image.array.flat[0])
        return IntensityMap(value - 1.0, value + 1.0)


def encode(image: np.ndarray, window: IntensityMap, size: tuple[int, ...], rounded: bool) -> np.ndarray:
    """(C, h, w) or (C, d, h, w) in physical units -> (C, H, W) or (3 C, S, S) float32 in [-1, 1]."""
    values = resize(image, size[0], size[1]) if len(size) == 2 else central(image, size)
    if rounded and window.high - window.low >= WHOLE_LEVELS:
        values = np.rint(values)
    return window.encode(values)
