"""One scan to its stored rows, with its masks and its pair; the work that several processes share."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .. import formats, preprocess
from ..dataset import source_layer
from ..formats import Skipped, Source
from ..formats.source import quiet
from ..image import PICTURES, Image
from ..intensity import IntensityMap
from ..preprocess import align
from ..preprocess.slices import Placement, Slices, cut, is_mask, why_empty
from ..preprocess.volumes import place_volume, stand
from ..runtime import derive_seed, ordered_map
from . import copies, masks, registration, text
from .fingerprint import Plan, common_dtype
from .scans import Scan

PICTURES_PER_TASK = 16
# Around a CT slice that is smaller than the grid, HU.
AIR = -1024
STORED = (np.uint8, np.int8, np.int16, np.uint16, np.float32)
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
        windows: of the scan and of its pair: (low, high, units); None for CT, which has one for the data set, and
            without a pair.
        values: voxels drawn from the rows, float32; target_values: of the pair's rows, empty without one.
        hashes: SHA-256 of each row, its mask and its pair.
        prints: perceptual hash of each row.
        masked: whether each row has a mask.
        empty: reason -> how many slices were dropped for it.
        notes: what the reader altered, and what was done to bring mask and pair onto the grid.
        text: why burned-in text is suspected, or None.
        shift: estimated residual shift of the pair in mm along slices, rows, columns, and its confidence; or None; of several
            sources that of the one that lies farthest away.
        present: whether each of several sources is there; empty where there is one.
        source_windows: of each, as `windows`; None for CT and where it is missing.
        source_values: of each, as `values`, (S, draws).
        broken: files of the series that cannot be read; their slices are missing.
    """

    slices: list[int]
    affines: np.ndarray
    spacing: tuple[float, float, float]
    crop: np.ndarray
    windows: tuple[tuple[float, float, str] | None, tuple[float, float, str] | None]
    values: np.ndarray
    target_values: np.ndarray
    hashes: list[str]
    prints: list[int]
    masked: list[bool]
    empty: dict[str, int]
    notes: tuple[str, ...] = ()
    text: str | None = None
    shift: tuple[float, ...] | None = None
    broken: list[Skipped] = field(default_factory=list)
    present: tuple[bool, ...] = ()
    source_windows: tuple[tuple[float, float, str] | None, ...] = ()
    source_values: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))


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
        loaded, refused = _load([image for _, image in runs], scan, plan)
        stored = _store([first for first, _ in runs], loaded, scan, plan, draws, seed)
    except ValueError as error:
        return [Skipped(scan.source.files[0], str(error)), *broken]
    except OSError as error:  # gone or closed since it was listed
        words = f"cannot be opened ({error.strerror or type(error).__name__}): a mask or the paired scan"
        return [Skipped(scan.source.files[0], words), *broken]
    return replace(stored, record=replace(stored.record, broken=broken + refused))


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
        sources: of several sources each, on the pair's grid, None where it is missing.
    """

    image: Image
    target: Image | None
    mask: Image | None
    notes: tuple[str, ...]
    shift: tuple[float, ...] | None
    sources: tuple[Image | None, ...] = ()


def _load(runs: list[Image], scan: Scan, plan: Plan) -> tuple[list[Loaded], list[Skipped]]:
    """Bring scan, pair and masks of every run onto one grid; and the masks that cannot be used.

    Raises:
        ValueError: the pair cannot be brought together, or slices are missing where all are needed.
    """
    whole = "a pair" if scan.target is not None else "a volume" if plan.stored_dimensions == 3 else ""
    if whole and len(runs) > 1:
        raise ValueError(f"expected a whole series for {whole}, found slices that cannot be read: copy them again")
    kind = plan.modality_of(scan.first)
    images = [preprocess.corrected(image, plan.bias_field and kind == "MR", plan.landmarks) for image in runs]
    target, words, shift = None, None, None
    sources: tuple[Image | None, ...] = ()
    lost: list[Skipped] = []
    if scan.target is not None:
        target = formats.read(scan.target)
        images[0], words, shift = _onto(images[0], target, kind, scan.measured)
        sources, shift, lost = _together(scan, plan, images[0], target, shift)
    label_maps, broken = _masks_of(scan, plan, [target] if target is not None else images)
    loaded = [
        Loaded(
            image,
            target,
            None if labels is None else replace(target or image, array=labels[None], notes=()),
            (*image.notes, *(target.notes if target else ()), *([words] if words else [])),
            shift,
            sources,
        )
        for image, labels in zip(images, label_maps)
    ]
    return loaded, broken + lost


def _onto(image: Image, target: Image, kind: str, measured: bool) -> tuple[Image, str | None, tuple[float, ...] | None]:
    """A source on the grid of its target, in words what was done, and how far they lie apart where that is measured.

    Raises:
        ValueError: see `align.onto`.
    """
    array, words = align.onto(image, target, _background_of(image, kind))
    placed = replace(image, array=array, affine=target.affine, spacing_known=target.spacing_known)
    if not measured:
        return placed, words, None
    found = registration.misregistration(array, target.array, target.spacing)
    return placed, words, (*found.mm, found.confidence)


def _together(
    scan: Scan, plan: Plan, image: Image, target: Image, shift: tuple[float, ...] | None
) -> tuple[tuple[Image | None, ...], tuple[float, ...] | None, list[Skipped]]:
    """All of several sources on the grid of the target, the farthest one's shift, and those that cannot be used, which are missing."""
    found: list[Image | None] = []
    shifts, lost = [shift], []
    for number, source in enumerate(scan.sources):
        if source is None or number == scan.first:
            found.append(None if source is None else image)
            continue
        kind = plan.modality_of(number)
        try:
            read = preprocess.corrected(formats.read(source), plan.bias_field and kind == "MR", None)
            placed, _, own = _onto(read, target, kind, scan.measured)
            found.append(placed)
            shifts.append(own)
        except (ValueError, OSError) as error:
            found.append(None)
            lost.append(Skipped(source.files[0], f"this source is taken as missing: {error}"))
    sure = [one for one in shifts if one is not None and one[3] >= registration.LEAST_CONFIDENCE]
    farthest = max(sure, key=lambda one: float(np.linalg.norm(one[:3])), default=shift)
    return tuple(found), farthest, lost


def _background_of(image: Image, modality: str) -> float:
    return AIR if modality == "CT" and image.array.dtype != np.uint8 else float(image.array.min())


def _masks_of(scan: Scan, plan: Plan, images: list[Image]) -> tuple[list[np.ndarray] | list[None], list[Skipped]]:
    """The masks of a scan as one label map on each run's grid; a voxel of several masks keeps the first.

    A mask that reaches some of the runs marks nothing on the others.
    """
    result: list[np.ndarray] | None = None
    broken: list[Skipped] = []
    for source, names in zip(scan.masks, scan.structures):
        own: list[np.ndarray | None] = []
        reason = ""
        for image in images:
            try:
                own.append(_label_map(source, names, image, plan))
            except (ValueError, OSError) as error:
                own.append(None)
                reason = str(error)
        if all(labels is None for labels in own):
            broken.append(Skipped(source.files[0], f"this mask is not used: {reason}"))
            continue
        if result is None:
            result = [np.zeros(image.array.shape[1:], np.uint8) for image in images]
        result = [old if new is None else np.where(old == 0, new, old) for old, new in zip(result, own)]
    return result if result is not None else [None] * len(images), broken


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
    layers = {name: _joined([part[name] for part in parts]) for name in parts[0]}
    slices = layers["images"]
    kind = plan.modality_of(scan.first)
    if plan.skip_masks and is_mask(slices.array):
        raise ValueError("expected a scan, found a mask (whole numbers, constant over areas): masks are left out")
    reasons = why_empty(slices, kind, plan.dimensions)
    kept = [k for k, reason in enumerate(reasons) if reason is None]
    if not kept:
        raise ValueError(f"expected a scan with contrast, found none worth learning from ({reasons[0]})")
    window = _window_of(slices, plan, loaded[0].image, kind)
    target_window = None
    if "targets" in layers:
        assert plan.target_modality is not None and loaded[0].target is not None
        target_window = _window_of(layers["targets"], plan, loaded[0].target, plan.target_modality, target=True)
    own_windows = {
        number: window
        if number == scan.first
        else _window_of(layers[source_layer(number)], plan, one, plan.modality_of(number))
        for number, one in enumerate(loaded[0].sources)
        if one is not None
    }
    fill = background(AIR if window is None else window.low, slices.array.dtype)
    fills = {"images": fill, "masks": 0.0, "targets": AIR if target_window is None else target_window.low}
    fills |= {source_layer(one): AIR if own is None else own.low for one, own in own_windows.items() if one}
    if plan.stored_dimensions == 3:
        rows, geometry_of = _volume(loaded[0], plan, fills)
        kept, places = [0], [(slices, 0, 0)]
    else:
        rows, geometry_of = _slices(layers, kept, places, plan, fills)
    for layer in plan.layers:
        if layer not in rows:
            rows[layer] = np.zeros((len(rows["images"]), 1, *plan.grid), plan.stored_as[layer][0])
    record = Record(
        slices=[places[k][2] for k in kept],
        windows=(_tuple(window), _tuple(target_window)),
        values=_draw(rows["images"], draws, seed),
        target_values=_draw(rows["targets"], draws, seed) if "targets" in rows else np.zeros(0, np.float32),
        hashes=[_digest(rows, number, plan) for number in range(len(rows["images"]))],
        prints=[_print(one, window) for one in rows["images"]],
        masked=["masks" in layers] * len(kept),
        empty={reason: reasons.count(reason) for reason in reasons if reason is not None}
        if plan.stored_dimensions == 2
        else {},
        notes=tuple(dict.fromkeys(note for run in loaded for note in (*run.notes, *_rounded(run.image)))),
        text=_text(slices, scan.source, plan),
        shift=loaded[0].shift,
        **_of_sources(loaded[0].sources, scan.first, own_windows, rows, draws, seed),
        **geometry_of,
    )
    return Stored(rows, record)


def _of_sources(
    sources: tuple[Image | None, ...],
    first: int,
    windows: dict[int, IntensityMap | None],
    rows: dict[str, np.ndarray],
    draws: int,
    seed: int,
) -> dict[str, Any]:
    """What the record says of several sources."""
    if not sources:
        return {}
    empty = np.zeros(draws, np.float32)
    values = [
        empty if one is None else _draw(rows["images" if number == first else source_layer(number)], draws, seed)
        for number, one in enumerate(sources)
    ]
    return {
        "present": tuple(one is not None for one in sources),
        "source_windows": tuple(_tuple(windows.get(number)) for number in range(len(sources))),
        "source_values": np.stack(values),
    }


def _layers(run: Loaded) -> dict[str, Image]:
    further = {source_layer(number): one for number, one in enumerate(run.sources) if number}
    named = {"images": run.image, "masks": run.mask, "targets": run.target, **further}
    return {name: image for name, image in named.items() if image is not None}


def _joined(parts: list[Slices]) -> Slices:
    """The slices of all runs behind each other, in a dtype that this version stores."""
    slices = parts[0] if len(parts) == 1 else parts[0].with_array(np.concatenate([part.array for part in parts]))
    if slices.array.dtype not in STORED or not slices.array.dtype.isnative:
        return slices.with_array(slices.array.astype(common_dtype([slices.array.dtype])))
    return slices


def _window_of(scan: Slices, plan: Plan, image: Image, modality: str, target: bool = False) -> IntensityMap | None:
    """The scan's intensity map; the user's window and percentiles are those of the scans, not of the `target` they are paired with, nor of sources of other modalities."""
    others = target or modality != plan.modality
    window, percentiles = (None, None) if others else (plan.window, plan.percentiles)
    return preprocess.window_of(
        scan.array, modality, plan.dimensions, image.window, window, percentiles, plan.by_median
    )


def _digest(rows: dict[str, np.ndarray], number: int, plan: Plan) -> str:
    """SHA-256 of one row in all its layers: an image with a mask is no copy of the same image without."""
    digest = hashlib.sha256(np.ascontiguousarray(rows["images"][number], plan.dtype).data)
    for layer in ("masks", "targets", *(source_layer(one) for one in range(1, len(plan.sources)))):
        if layer in rows:
            digest.update(np.ascontiguousarray(rows[layer][number]).data)
    return digest.hexdigest()


def _draw(rows: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count,) float32 voxels drawn at random."""
    return np.random.default_rng(seed).choice(rows.ravel(), count).astype(np.float32)


def _rounded(image: Image) -> tuple[str, ...]:
    """A note where float32, as which 32-bit whole numbers are stored, is not exact."""
    if image.array.dtype.kind not in "iu" or image.array.dtype.itemsize < 4:
        return ()
    largest = max(abs(int(image.array.min())), abs(int(image.array.max())))
    return ("whole numbers above 2^24 are rounded to what float32 holds",) if largest > 2**24 else ()


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
            layer.array if len(kept) == len(layer.array) else layer.array[kept],
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
