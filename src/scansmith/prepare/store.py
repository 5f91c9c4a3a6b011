"""One scan to its stored rows, with its masks and its pair; the work that several processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import formats, intensity, preprocess
from ..formats import FormatError, Skipped, Source
from ..formats.source import quiet
from ..image import PICTURES, Image
from ..intensity import IntensityMap
from ..runtime import cpu_count, derive_seed, ordered_map
from . import align, copies, masks, registration, text
from .fingerprint import Plan, common_dtype, stores_grey_levels
from .scans import Scan
from .slices import Placement, Slices, cut, is_mask, why_empty
from .volumes import place_volume, stand

# Below so many files one process is done before others have started.
FEWEST_FILES_FOR_WORKERS = 500
PICTURES_PER_TASK = 16
# For a scan's own window: so many voxels fix its percentiles well.
MOST_VOXELS = 2**20
# Around a CT slice that is smaller than the grid, HU.
AIR = -1024
# CT rows are compared with each other up to this value, HU.
TISSUE = 1000


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one scan's stored rows besides their voxels.

    Attributes:
        slices: number of each row along the scan's cut axis.
        affines: (n, 4, 4) of the rows, NaN when the file gives no geometry.
        spacing: (between slices, rows, columns) in mm of the stored rows, NaN where unknown.
        crop: (n, 6) first slice, row, column of the grid and their number, in the displayed scan's voxels.
        windows: of the scan and of its pair: (low, high, units); None for CT, which has one for the data set.
        values: voxels drawn from the rows, float32.
        hashes: SHA-256 of each row.
        prints: perceptual hash of each row.
        masked: whether each row has a mask.
        empty: reason -> how many slices were dropped for it.
        notes: what the reader altered, and what was done to bring mask and pair onto the grid.
        text: why burned-in text is suspected, or None.
        shift: estimated residual shift of the pair in mm along slices, rows, columns, and its confidence; or None.
        broken: files of the series that cannot be read; their slices are missing.
    """

    slices: list[int]
    affines: np.ndarray
    spacing: tuple[float, float, float]
    crop: np.ndarray
    windows: tuple[tuple[float, float, str] | None, tuple[float, float, str] | None]
    values: np.ndarray
    hashes: list[str]
    prints: list[int]
    masked: list[bool]
    empty: dict[str, int]
    notes: tuple[str, ...] = ()
    text: str | None = None
    shift: tuple[float, ...] | None = None
    broken: list[Skipped] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Stored:
    """What becomes of one scan: layer -> rows on the dataset's grid in physical units, and the record of them."""

    rows: dict[str, np.ndarray]
    record: Record


def store(scan: Scan, plan: Plan, draws: int, seed: int) -> Stored | list[Skipped]:
    """Read one scan and bring it to the dataset's grid, or say which of its files are skipped and why."""
    runs, broken = formats.read_runs(scan.source)
    if not runs:
        return broken
    try:
        loaded = [_load(image, scan, plan, len(runs) > 1) for _, image in runs]
        stored = _store([first for first, _ in runs], loaded, scan, plan, draws, seed)
    except (ValueError, FormatError) as error:
        return [Skipped(scan.source.files[0], str(error)), *broken]
    return replace(stored, record=replace(stored.record, broken=broken + stored.record.broken))


# ------------------------------------------------------------------------------------------------ one scan, loaded


@dataclass(frozen=True, slots=True)
class Loaded:
    """One run of slices on one grid: the scan, and what lies on it.

    Attributes:
        image: the scan, on the pair's grid where it has one.
        target: the paired scan, or None.
        mask: (1, I, J, K) uint8 label map, or None.
        notes: what was done.
        shift: as in `Record`.
        broken: masks that cannot be used.
    """

    image: Image
    target: Image | None
    mask: Image | None
    notes: tuple[str, ...]
    shift: tuple[float, ...] | None
    broken: list[Skipped]


def _load(image: Image, scan: Scan, plan: Plan, in_parts: bool) -> Loaded:
    """Bring scan, pair and masks of one run onto one grid.

    Raises:
        ValueError: the pair cannot be brought together.
    """
    target, words, shift = None, None, None
    image = _corrected(image, plan)
    if scan.target is not None:
        if in_parts:
            raise ValueError("expected a whole series for a pair, found slices that cannot be read: copy them again")
        target = formats.read(scan.target)
        array, words = align.onto(image, target, _background_of(image, plan.modality))
        image = replace(image, array=array, affine=target.affine, spacing_known=target.spacing_known)
        if scan.measured:
            found = registration.misregistration(array, target.array, target.spacing)
            shift = (*found.mm, found.confidence)
    mask, broken = _mask_of(scan, plan, target or image)
    notes = (*image.notes, *(target.notes if target else ()), *([words] if words else []))
    return Loaded(image, target, mask, notes, shift, broken)


def _corrected(image: Image, plan: Plan) -> Image:
    """The image after what the plan asks for: bias field and histogram, MR volumes alone."""
    if plan.bias_field:
        volume = preprocess.bias_corrected(image.array[0].transpose(2, 1, 0).astype(np.float32), image.spacing[::-1])
        image = replace(image, array=volume.transpose(2, 1, 0)[None])
    if plan.landmarks is not None:
        matched = preprocess.match_histogram(image.array[0].transpose(2, 1, 0).astype(np.float32), plan.landmarks)
        image = replace(image, array=matched.transpose(2, 1, 0)[None])
    return image


def _background_of(image: Image, modality: str) -> float:
    return AIR if modality == "CT" and image.array.dtype != np.uint8 else float(image.array.min())


def _mask_of(scan: Scan, plan: Plan, image: Image) -> tuple[Image | None, list[Skipped]]:
    """The masks of a scan as one label map on its grid; a voxel of several masks keeps the first."""
    result: np.ndarray | None = None
    broken: list[Skipped] = []
    for source, names in zip(scan.masks, scan.structures):
        try:
            own = _label_map(source, names, image, plan)
        except (ValueError, OSError) as error:
            broken.append(Skipped(source.files[0], f"this mask is not used: {error}"))
            continue
        result = own if result is None else np.where(result == 0, own, result)
    return (None if result is None else replace(image, array=result[None], notes=())), broken


def _label_map(source: Source, names: tuple[str, ...], image: Image, plan: Plan) -> np.ndarray:
    """(I, J, K) uint8 of one mask; named structures by the dataset's numbers of their names."""
    if source.format == "dicom" and source.role == "mask":
        read = formats.read_mask(source, image)
        table = np.zeros(256, np.uint8)
        for value, name in read.names.items():
            table[value] = plan.segment_number(name)
        return table[read.array]
    own = masks.label_map(formats.read(source), image)
    if not names:
        return own
    if own.max() > 1:
        raise ValueError(
            f"expected one structure in each file where scans have several mask files, found values up to {own.max()}: name the files with --masks IMAGES:MASKS"
        )
    return np.where(own > 0, plan.segment_number(names[0]), 0).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ rows


def _store(firsts: list[int], loaded: list[Loaded], scan: Scan, plan: Plan, draws: int, seed: int) -> Stored:
    """The stored rows.

    Raises:
        ValueError: with the reason why the scan is skipped.
    """
    geometry = (scan.target or scan.source).format
    channels = loaded[0].image.array.shape[0]
    if channels != plan.channels:
        raise ValueError(f"expected {plan.channels} channels, found {channels}")
    parts = [{name: cut(image, geometry) for name, image in _layers(run).items()} for run in loaded]
    # Of each slice: the run that holds it, its place there, and its number in the series.
    places = [
        (part["images"], k, first + k) for first, part in zip(firsts, parts) for k in range(len(part["images"].array))
    ]
    layers = {name: _joined([part[name] for part in parts if name in part], len(parts)) for name in parts[0]}
    slices = layers["images"]
    if plan.skip_masks and is_mask(slices.array):
        raise ValueError("expected a scan, found a mask (whole numbers, constant over areas): masks are left out")
    reasons = why_empty(slices, plan.modality, plan.dimensions)
    kept = [k for k, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise ValueError(f"expected a scan with contrast, found none worth learning from ({reasons[0]})")
    window = window_of(slices, plan, plan.modality, loaded[0].image.window)
    target_window = None
    if "targets" in layers:
        assert plan.target_modality is not None and loaded[0].target is not None
        target_window = window_of(layers["targets"], plan, plan.target_modality, loaded[0].target.window, own=True)
    fill = background(AIR if window is None else window.low, slices.array.dtype)
    fills = {"images": fill, "masks": 0.0, "targets": target_window.low if target_window else AIR}
    if plan.stored_dimensions == 3:
        rows, geometry_of = _volume(loaded[0], plan, fills)
        kept, places = [0], [(slices, 0, 0)]
    else:
        rows, geometry_of = _slices(layers, kept, places, plan, fills)
    if "masks" in plan.layers and "masks" not in rows:
        rows["masks"] = np.zeros((len(rows["images"]), 1, *plan.grid), np.uint8)
    record = Record(
        slices=[places[k][2] for k in kept],
        windows=(_tuple(window), _tuple(target_window)),
        values=np.random.default_rng(seed).choice(rows["images"].ravel(), draws).astype(np.float32),
        hashes=[hashlib.sha256(_exact(one, plan.dtype).tobytes()).hexdigest() for one in rows["images"]],
        prints=[_print(one, window) for one in rows["images"]],
        masked=["masks" in layers and bool(layers["masks"].array.any())] * len(kept),
        empty={reason: reasons.count(reason) for reason in reasons if reason is not None}
        if plan.stored_dimensions == 2
        else {},
        notes=tuple(dict.fromkeys(note for run in loaded for note in run.notes)),
        text=_text(slices, scan.source, plan),
        shift=loaded[0].shift,
        broken=[entry for run in loaded for entry in run.broken],
        **geometry_of,
    )
    return Stored(rows, record)


def _layers(run: Loaded) -> dict[str, Image]:
    named = {"images": run.image, "masks": run.mask, "targets": run.target}
    return {name: image for name, image in named.items() if image is not None}


def _joined(parts: list[Slices], count: int) -> Slices:
    """The slices of all runs behind each other, in a dtype that this version stores."""
    if len(parts) != count:
        raise ValueError("expected a mask on every part of the series, found it on some: slices are missing")
    slices = parts[0] if len(parts) == 1 else parts[0].with_array(np.concatenate([part.array for part in parts]))
    if slices.array.dtype.itemsize > 4 or not slices.array.dtype.isnative:
        return slices.with_array(slices.array.astype(common_dtype([slices.array.dtype])))
    return slices


def window_of(
    slices: Slices, plan: Plan, modality: str, voi: tuple[float, float] | None, own: bool = False
) -> IntensityMap | None:
    """The scan's intensity map; None for CT, whose one window is chosen for the data set, unless it is the scan's `own`."""
    grey_levels = stores_grey_levels(slices.array.dtype, modality, plan.dimensions)
    if modality == "CT" and not grey_levels and not own:
        return None
    # An odd stride, so that the drawn voxels do not stand in one column.
    values = slices.array.ravel()[:: (slices.array.size // MOST_VOXELS) | 1]
    dtype = np.dtype(np.uint8 if grey_levels else np.float32)
    wished = plan.window if not own else None
    return intensity.choose(modality, values, dtype, voi=voi, window=wished, percentiles=plan.percentiles)[0]


def _slices(
    layers: dict[str, Slices], kept: list[int], places: list[Any], plan: Plan, fills: dict[str, float]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """2-D rows of every layer, and where they lie."""
    slices = layers["images"]
    centre = extent = None
    if plan.crop != "none":
        box = preprocess.foreground_box(slices.array, plan.modality, plan.crop, slices.affine)
        _, top, left, _, height, width = box
        centre, extent = (top + height / 2, left + width / 2), (float(height), float(width))
    place = Placement.choose(
        slices.array.shape[-2:],
        slices.spacing,
        (plan.height, plan.width),
        None if plan.spacing is None else (plan.spacing[-2], plan.spacing[-1]),
        centre,
        extent,
    )
    rows = {
        name: place.apply(
            layer.array[kept],
            background(fills[name], layer.array.dtype),
            "nearest" if name == "masks" else "linear",
        )
        for name, layer in layers.items()
    }
    known = slices.spacing is not None
    between = float(np.linalg.norm(slices.affine[:3, 2])) if known else np.nan
    affines = np.full((len(kept), 4, 4), np.nan)
    if known:
        affines[:] = [np.round(place.affine(*places[k][:2]), 9) for k in kept]
    crop = [[places[k][2], place.box[0], place.box[1], 1, place.box[2], place.box[3]] for k in kept]
    spacing = (between, *(place.spacing(slices.spacing) if slices.spacing is not None else (np.nan, np.nan)))
    return rows, {"affines": affines, "crop": np.round(crop, 6), "spacing": spacing}


def _volume(run: Loaded, plan: Plan, fills: dict[str, float]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """One 3-D row of every layer, and where it lies."""
    assert plan.depth is not None
    upright = {name: stand(image, "nearest" if name == "masks" else "linear") for name, image in _layers(run).items()}
    shown = upright["images"]
    depth, *_, height, width = shown.array.shape
    box = (0, 0, 0, depth, height, width)
    if plan.crop != "none":
        box = preprocess.foreground_box(shown.array, plan.modality, plan.crop, shown.affine)
    centre = (box[0] + box[3] / 2, box[1] + box[4] / 2, box[2] + box[5] / 2)
    spacing_3d = None if plan.spacing is None else (plan.spacing[0], plan.spacing[1], plan.spacing[2])
    placed = {
        name: place_volume(
            slices,
            (plan.depth, plan.height, plan.width),
            spacing_3d,
            centre,
            fills[name],
            "nearest" if name == "masks" else "linear",
            extent=(float(box[3]), float(box[4]), float(box[5])),
        )
        for name, slices in upright.items()
    }
    _, affine, crop = placed["images"]
    known = run.image.spacing_known
    spacing = tuple(np.linalg.norm(affine[:3, :3], axis=0)[::-1].tolist()) if known else (np.nan,) * 3
    rows = {name: one[0][None] for name, one in placed.items()}
    affines = affine[None] if known else np.full((1, 4, 4), np.nan)
    return rows, {"affines": affines, "crop": np.round([crop], 6), "spacing": spacing}


def _text(slices: Slices, source: Source, plan: Plan) -> str | None:
    """Why burned-in text is suspected: the header says so, or a picture (of a volume the middle slice) shows it."""
    if source.burned_in:
        return "Burned In Annotation (0028,0301) is YES"
    flat = plan.dimensions == 2 or plan.modality in PICTURES
    picture = slices.array[len(slices.array) // 2]
    grey = picture[0] if len(picture) == 1 else picture.mean(axis=0)
    found = text.burned_in(grey)
    return f"looks like text in the {'picture' if flat else 'middle slice'}" if found.found else None


def _print(image: np.ndarray, window: IntensityMap | None) -> int:
    """Perceptual hash of one row; a volume by its middle slice."""
    flat = image[:, image.shape[1] // 2] if image.ndim == 4 else image
    return int(copies.fingerprint(flat, *((AIR, TISSUE) if window is None else (window.low, window.high))))


def _exact(array: np.ndarray, dtype: str) -> np.ndarray:
    return np.ascontiguousarray(array.astype(dtype))


def _tuple(window: IntensityMap | None) -> tuple[float, float, str] | None:
    return None if window is None else (window.low, window.high, window.units)


def background(value: float, dtype: np.dtype) -> float:
    """What lies around a slice that is smaller than the grid: the window's lower end, as near as the dtype comes."""
    if np.issubdtype(dtype, np.integer):
        return float(np.clip(round(value), np.iinfo(dtype).min, np.iinfo(dtype).max))
    return value


# ------------------------------------------------------------------------------------------------ all scans

Task = tuple[list[Scan], Plan, int, list[int]]


def _work(task: Task) -> list[Stored | list[Skipped]]:
    scans, plan, draws, seeds = task
    with quiet():
        return [store(scan, plan, draws, seed) for scan, seed in zip(scans, seeds)]


def store_all(
    scans: Sequence[Scan], plan: Plan, draws: int, workers: int, seed: int
) -> Iterator[Stored | list[Skipped]]:
    """`store` of every scan, in order, one scan (or one task a worker) in memory at a time.

    Args:
        scans: what to read.
        plan: the grid and the rest.
        draws: voxels that each scan's record keeps.
        workers: processes.
        seed: for the drawn voxels, with the scan's name.
    """
    size = PICTURES_PER_TASK if plan.dimensions == 2 else 1
    tasks: list[Task] = []
    for start in range(0, len(scans), size):
        members = list(scans[start : start + size])
        tasks.append((members, plan, draws, [derive_seed(seed, "values", scan.name) for scan in members]))
    for results in ordered_map(_work, tasks, workers):
        yield from results


def worker_count(asked: int | None, files: int) -> int:
    """How many processes share the work: as asked, else all cores when there are many files, else this one alone."""
    return asked or (cpu_count() if files >= FEWEST_FILES_FOR_WORKERS else 1)
