"""Plan: what `prepare` will do with a folder of scans, chosen from the scans alone, each choice with its reason in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from .. import formats, intensity, preprocess
from ..dataset import source_layer
from ..formats import Skipped, Source
from ..preprocess.slices import SAME_SPACING, cut, is_mask, why_empty
from ..runtime import Progress, derive_seed, ordered_map, worker_count
from . import labels as label_sources
from . import masks as mask_sources
from . import several
from .overrides import Choices, Crop
from .scans import (
    Request,
    Scan,
    choose_group,
    images_in,
    layers_in,
    nothing,
    paired,
    partners,
    patient_keys,
    scan_name,
    segments_of,
    split_level,
    target_kind,
    with_structures,
    without_partner,
)

LEAST_IMAGES = 8
LEAST_TRANSLATED = 2  # of scans with pairs or masks, which are learned patch by patch
# Of so many pairs, evenly spread, the misregistration is estimated.
MOST_MEASURED = 200
# So many scans, evenly spread over the folder, are read to choose grid and dtype; medians do not need more.
MOST_LOOKS = 256
MOST_VOLUMES = 96
# Of a long series every so many slices one is read, so that about so many are.
MOST_SLICES = 24


@dataclass(frozen=True)
class Plan:
    """What will be done with a folder of scans.

    Attributes:
        modality: of the scans that are used; `declared` when the user said so and the files did not.
        target_modality: of the scans they are paired with; None without pairs.
        target_channels: of the scans they are paired with.
        channels, dimensions: of the sources; 3 dimensions give several 2-D images each, unless volumes are stored.
        stored_dimensions: 2 or 3, of the stored rows.
        neighbours: 2.5-D: slices on each side that learning stacks onto one; 0 otherwise.
        depth, height, width: grid of the stored rows; depth is None for 2-D.
        spacing: their (row, column) or (slice, row, column) size in mm, or None when most files do not say.
        crop: "none", or what of a scan the grid is centred on: "body", "brain" or "foreground".
        window: (low, high) in physical units for every scan; None where `intensity` chooses it.
        kept_windows: the CT windows of the dataset that grows, of scans and pairs, then of each of several sources; None where
            they are chosen anew.
        percentiles: (low, high) of each scan's window for MR and X-ray; None takes the modality's own.
        by_median: MR without percentiles is scaled by the median of each scan's foreground, as where scans are paired.
        bias_field: the smooth shading of MR is taken out (N4).
        landmarks: standard scale to which MR histograms are brought; None leaves them.
        dtype: in which every value is stored exactly.
        layers: "images", and "masks" and "targets" where the scans have them.
        scans, patients: how many are used; a scan without a known patient counts as one.
        images: expected number of rows, before empty slices and duplicates go.
        split_level: "patient"; "study" when some patients are known by their study alone; "image" when some are unknown.
        labels: class names, sorted; empty without labels.
        segments: names of DICOM segments in the order of their numbers from 1; private, users write them.
        skip_masks: label maps lie among the scans and are left out.
        fractions: split -> share of the patients, where the user decided; splits: the user's table of splits.
        reasons: every choice in words.
        left_aside: what else the folder holds: modality, channels, dimensions, scans, images.
        sources: of several sources each: {"name", "modality", "pattern", "dtype"}; empty where there is one.
    """

    modality: str
    declared: bool
    target_modality: str | None
    target_channels: int
    channels: int
    dimensions: int
    stored_dimensions: int
    neighbours: int
    depth: int | None
    height: int
    width: int
    spacing: tuple[float, ...] | None
    crop: Crop
    window: tuple[float, float] | None
    kept_windows: tuple[tuple[float, float] | None, ...]
    percentiles: tuple[float, float] | None
    by_median: bool
    bias_field: bool
    landmarks: dict[str, list[float]] | None
    dtype: str
    target_dtype: str | None
    layers: tuple[str, ...]
    scans: int
    patients: int
    images: int
    split_level: str
    labels: tuple[str, ...]
    segments: tuple[str, ...]
    skip_masks: bool
    fractions: tuple[tuple[str, float], ...] | None
    splits: str | None
    reasons: tuple[str, ...]
    left_aside: tuple[dict[str, str | int], ...]
    sources: tuple[dict[str, Any], ...] = ()

    @property
    def stored_as(self) -> dict[str, tuple[np.dtype, int]]:
        """Layer -> (dtype, channels) of the stored rows."""
        kinds: dict[str, tuple[Any, int]] = {
            "images": (self.dtype, self.channels), "masks": ("uint8", 1), "targets": (self.target_dtype, self.target_channels),
            **{source_layer(number): (self.sources[number]["dtype"], 1) for number in range(1, len(self.sources))},
        }  # fmt: skip
        return {layer: (np.dtype(kinds[layer][0]), kinds[layer][1]) for layer in self.layers}

    def modality_of(self, first: int) -> str:
        """The modality of a scan, with several sources of one of them."""
        return str(self.sources[first]["modality"]) if self.sources else self.modality

    @property
    def grid(self) -> tuple[int, ...]:
        """Shape of a stored row without its channels."""
        return (self.height, self.width) if self.depth is None else (self.depth, self.height, self.width)

    def segment_number(self, name: str) -> int:
        """The value that a DICOM segment of this name has in the stored masks; equal names have equal values."""
        return self.segments.index(name) + 1

    def choices(self) -> dict[str, Any]:
        """What decides the stored rows, as plain values; a grown dataset keeps them."""
        return {name: getattr(self, name) for name in STORED} | (
            {"sources": list(self.sources)} if self.sources else {}
        )


# What a stored row depends on; the rest of a plan is words and counts.
STORED = (
    "modality", "target_modality", "target_channels", "channels", "dimensions", "stored_dimensions", "neighbours", "depth", "height", "width",
    "spacing", "crop", "window", "percentiles", "by_median", "bias_field", "landmarks", "dtype", "target_dtype", "layers", "skip_masks",
)  # fmt: skip


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Attributes:
        plan: what to do with it.
        scans: those that are used.
        skipped: files that are no usable scans.
        facts: sizes and pixel sizes of the inspected scans.
        pinned: patients from whom the standard histogram was learned: they must be in the training split.
    """

    plan: Plan
    scans: list[Scan]
    skipped: list[Skipped]
    facts: dict[str, Any]
    pinned: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Look:
    """What one scan that was read tells the plan."""

    depth: int
    height: int
    width: int
    spacing: tuple[float, float, float] | None
    plane: str
    dtype: np.dtype
    slices: int
    kept: int
    mask: bool
    values: np.ndarray
    notes: tuple[str, ...]
    box: tuple[int, int, int, int, int, int]
    voi: tuple[float, float] | None
    patient: str


def survey(
    found: tuple[list[Source], list[Skipped]],
    scans: Path,
    names: Mapping[Path, str],
    request: Request,
    kept: Mapping[str, Any] | None = None,
    workers: int | None = None,
) -> Survey:
    """Make the plan for what `formats.discover` found; nothing is written.

    Args:
        found: scans and skipped files.
        scans: the folder, for words.
        names: first file of a scan -> its posix path below the folder.
        request: what the user asked for.
        kept: choices of an earlier dataset that grows, which stay; None chooses anew.
        workers: processes; None takes all cores when there are many files.

    Raises:
        ValueError: the folder holds too few usable scans, or what the user asked for is not there.
    """
    if request.max_side < 16:
        raise ValueError(f"expected max_side of at least 16 pixels, got {request.max_side}")
    every, skipped = found
    if not every:
        raise ValueError(nothing(scans, skipped))
    called = [names[source.files[0]] for source in every]
    masks_of, are_masks, mask_words = mask_sources.match(request.masks, every, called)
    images = [number for number in range(len(every)) if number not in are_masks and every[number].role == "image"]
    if not images:
        raise ValueError(f"expected scans in {scans}, found {len(are_masks)} masks alone: give the folder of the scans")
    patients, _, _ = patient_keys(every, called)
    sources, target_of, modality, pair_words, cases = paired(request, every, images, patients, called)
    skipped = [*skipped, *without_partner(request, every, images, target_of)]
    about = several.kinds(cases, every, modality) if cases else ()
    aside: list[dict[str, str | int]] = []
    reasons: list[str] = []
    declared = bool(modality) and every[sources[0]].modality == "OT"
    if not cases:
        chosen, declared, aside, reasons = choose_group([every[number] for number in sources], modality)
        wanted = {id(source) for source in chosen}
        sources = [number for number in sources if id(every[number]) in wanted]
    kind = modality.upper() if declared and modality else every[sources[0]].modality
    kind = str(about[0]["modality"]) if about else kind
    said_of_target = target_kind(request, every, sources, target_of)
    few = sum(images_in(every[number]) for number in sources)
    least = least_images(bool(target_of or masks_of) or request.volumes)
    if few < least:
        raise ValueError(
            f"expected at least {least} images to learn from in {scans}, found {few}: add more scans of this kind"
        )
    used = [every[number] for number in sources]
    own_names = [called[number] for number in sources]
    own_patients, level, words = patient_keys(used, own_names)
    named = label_sources.patients_of(request.labels, used, own_patients, own_names)
    for others in partners(sources, target_of, cases):
        # A table may name the patient by any scan of a pair.
        theirs = [every[other] for other in others]
        by_table = label_sources.patients_of(request.labels, theirs, own_patients, [called[other] for other in others])
        named = [one if one.startswith("patient:") else other for one, other in zip(named, by_table)]
    if named != own_patients:
        own_patients = named
        level, words = split_level(named, any(images_in(source) > 1 for source in used))
    members = cases.of_first() if cases else {}
    classes, label_words = label_sources.find(request.labels, scans, used, own_patients, own_names)
    listed = [
        Scan(
            scan_name(called[number], every[number]),
            every[number],
            every[target_of[number]] if number in target_of else None,
            tuple(every[mask] for mask in masks_in(masks_of, number, members)),
            patient,
            label,
            place % max(1, len(sources) // MOST_MEASURED) == 0,
            sources=tuple(None if one is None else every[one] for one in members[number][0]) if cases else (),
        )
        for place, (number, patient, label) in enumerate(zip(sources, own_patients, classes))
    ]
    before = None if kept is None else tuple(kept["segments"])
    listed = with_structures(listed, before)
    reasons += [several.used_words(listed, about)] if about else []
    reasons += [words, label_words, *pair_words, *mask_words]
    base = {
        "modality": kind,
        "declared": declared,
        "target_modality": said_of_target,
        "target_channels": 0 if said_of_target is None else every[target_of[sources[0]]].channels,
        "channels": used[0].channels,
        "dimensions": used[0].dimensions,
        "layers": layers_in(listed),
        "scans": len(used),
        "patients": len(set(own_patients)),
        "split_level": level,
        "labels": tuple(sorted({name for name in classes if name is not None})),
        "segments": segments_of(listed, before or ()),
        "fractions": request.choices.fractions,
        "splits": request.choices.splits,
        "left_aside": tuple(aside),
        "sources": about,
    }
    if kept is not None:
        return _as_before(base, kept, listed, skipped, reasons, few)
    return _chosen(base, listed, skipped, reasons, few, request, workers)


def masks_in(
    masks_of: Mapping[int, list[int]], number: int, members: Mapping[int, tuple[several.Members, int]]
) -> list[int]:
    """The masks of a scan; with several sources those of the first that has any."""
    some = [one for one in members[number][0] if one is not None] if members else [number]
    return next((masks_of[one] for one in some if one in masks_of), [])


def least_images(translated: bool) -> int:
    """The fewest images, or volumes, that a dataset has: of scans alone, or with pairs or masks."""
    return LEAST_TRANSLATED if translated else LEAST_IMAGES


# ------------------------------------------------------------------------------------------------ choices


def _chosen(
    base: dict[str, Any],
    scans: list[Scan],
    skipped: list[Skipped],
    reasons: list[str],
    few: int,
    request: Request,
    workers: int | None,
) -> Survey:
    """The plan of a new dataset, from some scans that are read."""
    wished = request.choices
    kind, dimensions = base["modality"], base["dimensions"]
    looks = _look_at_some(scans, kind, request, workers)
    looks, skip_masks, mask_words = _without_masks(looks)
    if wished.skip_masks is not None:
        skip_masks = wished.skip_masks
    if wished.percentiles is not None and kind == "CT":
        raise ValueError(
            "expected no percentiles in the plan for CT, whose HU mean the same in every scan: give a window such as [-160, 240]"
        )
    least = least_images(len(base["layers"]) > 1 or request.volumes)
    stored, neighbours, dimension_words = _dimensions(looks, scans, wished, least if request.volumes else None)
    if stored == 3 and len(scans) < least:
        raise ValueError(
            f"expected at least {least} volumes to learn from, found {len(scans)}: add more scans, or let their slices be learned (dimensions 2)"
        )
    if wished.depth is not None and stored != 3:
        raise ValueError("expected dimensions 3 in the plan for a depth, found that slices are stored: give both")
    crop, crop_words = _crop(looks, kind, dimensions, wished)
    grid, spacing, grid_words = choose_grid(looks, request.max_side, stored, crop, wished)
    # A pair is looked at by its target.
    own = (
        _dtype_of([scan.source for scan in scans]) if scans[0].target else common_dtype([look.dtype for look in looks])
    )
    if wished.dtype is not None and not np.can_cast(str(own), wished.dtype, "safe"):
        raise ValueError(
            f"expected a dtype in the plan that holds the scans' {own} exactly, got {wished.dtype!r}: float32 does"
        )
    dtype = np.dtype(wished.dtype or own)
    landmarks, pinned, match_words = _standard_scale(looks, scans, kind, wished)
    if wished.match_histogram and base["sources"]:
        raise ValueError("expected one source for match_histogram in the plan, found several: leave it out")
    bias_field, by_median = bool(wished.bias_field), "targets" in base["layers"]
    if (bias_field or landmarks) and kind != "MR":
        raise ValueError(f"expected MR scans for bias_field or match_histogram in the plan, found {kind}")
    if bias_field or landmarks is not None:
        dtype = np.dtype(np.float32)
    base["sources"] = tuple(
        one | {"dtype": "float32" if bias_field else _dtype_of([scan.sources[number] for scan in scans])}
        for number, one in enumerate(base["sources"])
    )
    reasons = [
        *reasons,
        *mask_words,
        dimension_words,
        *_volume_words(looks, scans, wished, base["layers"], stored, least),
        crop_words,
        *grid_words,
        *_intensity_words(kind, base["declared"], dimensions, looks, wished, by_median),
        *(["bias field: taken out of every scan (N4), as asked"] if bias_field else []),
        *match_words,
        *_slice_words(looks, scans, stored),
    ]
    plan = Plan(
        **base,
        stored_dimensions=stored,
        neighbours=neighbours,
        depth=grid[0] if stored == 3 else None,
        height=grid[1],
        width=grid[2],
        spacing=spacing,
        crop=crop,
        window=wished.window,
        kept_windows=(None,) * (2 + len(base["sources"])),
        percentiles=wished.percentiles,
        by_median=by_median,
        bias_field=bias_field,
        landmarks=landmarks,
        dtype=str(dtype),
        target_dtype=_dtype_of([scan.target for scan in scans]),
        skip_masks=skip_masks,
        images=few if stored == 2 else len(scans),
        reasons=tuple(reasons),
    )
    return Survey(plan, scans, skipped, _facts(looks, scans), pinned)


def _as_before(
    base: dict[str, Any],
    kept: Mapping[str, Any],
    scans: list[Scan],
    skipped: list[Skipped],
    reasons: list[str],
    few: int,
) -> Survey:
    """The plan of a dataset that grows: its grid, window and the rest stay, so that what was learned stays valid."""
    earlier = {"by_median": False} | kept["choices"]  # of datasets from before there was this choice
    choices = {name: earlier[name] for name in STORED if name not in base}
    for name in ("spacing", "window", "percentiles"):
        choices[name] = None if choices[name] is None else tuple(choices[name])
    changed = [name for name in ("modality", "channels", "dimensions") if kept["choices"][name] != base[name]]
    if changed:
        told = ", ".join(f"{name} {kept['choices'][name]} -> {base[name]}" for name in changed)
        raise ValueError(
            f"expected more scans of the kind that the dataset holds, found {told}: choose another dataset folder, or name the --modality"
        )
    before = kept["choices"].get("sources", [])
    if [one | {"dtype": None} for one in before] != [one | {"dtype": None} for one in base["sources"]]:
        raise ValueError(
            "expected the sources that the dataset holds, found others: choose another dataset folder, or name them with the same patterns"
        )
    base["sources"] = tuple(before)
    images = few if choices["stored_dimensions"] == 2 else len(scans)
    reasons = [*reasons, "grid, crop and intensity: kept from the dataset that grows", *kept["said"]]
    windows = tuple((one[0], one[1]) if one else None for one in kept["ct_windows"])
    plan = Plan(**base, **choices, kept_windows=windows, images=images, reasons=tuple(reasons))
    return Survey(plan, scans, skipped, kept["facts"])


def _look_at_some(scans: list[Scan], kind: str, request: Request, workers: int | None) -> list[Look]:
    most = MOST_LOOKS if scans[0].source.dimensions == 2 else MOST_VOLUMES
    chosen = [scans[round(index)] for index in np.linspace(0, len(scans) - 1, min(len(scans), most))]
    crop: Literal["brain"] | None = "brain" if request.choices.crop == "brain" else None
    tasks = [(scan, kind, derive_seed(request.seed, "look", number), crop) for number, scan in enumerate(chosen)]
    looks: list[Look] = []
    first_reason = ""
    files = sum(min(len(scan.source.files), MOST_SLICES) for scan in chosen)
    with Progress("inspect", len(chosen), "scans") as progress:
        for number, (seen, broken) in enumerate(ordered_map(_look, tasks, worker_count(workers, files))):
            looks += [seen] if seen else []
            first_reason = first_reason or next((f"{entry.file.name}: {entry.reason}" for entry in broken), "")
            progress.update(number + 1)
    if not looks:
        raise ValueError(
            f"expected readable scans, found {len(scans)} that look like scans and cannot be read; the first: {first_reason}"
        )
    return looks


def _look(task: tuple[Scan, str, int, Literal["brain"] | None]) -> tuple[Look | None, list[Skipped]]:
    return look(*task)


def look(scan: Scan, kind: str, seed: int, crop: Literal["brain"] | None = None) -> tuple[Look | None, list[Skipped]]:
    """Read one scan for the plan, of a long series some slices, of a broken one the longest run; and what cannot be read.

    A pair is looked at by its target, whose grid both get.
    """
    source = scan.target or scan.source
    count = source.shape[2]
    step = 1
    if source.format == "dicom" and count > MOST_SLICES and max(len(source.files), len(source.frames)) == count:
        step = -(-count // MOST_SLICES)
    runs, broken = formats.read_runs(formats.part_of(source, range(0, count, step)) if step > 1 else source)
    if not runs:
        return None, broken
    image = max((image for _, image in runs), key=lambda image: image.array.shape[3])
    slices = cut(image, source.format)
    empty = why_empty(slices, kind, source.dimensions)
    depth, (height, width) = len(slices.array) * step, slices.array.shape[-2:]
    first, top, left, planes, rows, columns = 0, 0, 0, len(slices.array), height, width
    if slices.spacing is not None:
        wanted = crop or ("body" if kind == "CT" else "foreground")
        first, top, left, planes, rows, columns = preprocess.foreground_box(slices.array, kind, wanted, slices.affine)
    between = float(np.linalg.norm(slices.affine[:3, 2])) / step
    seen = Look(
        min(depth, count) if step > 1 else depth,
        height,
        width,
        None if slices.spacing is None else (between, *slices.spacing),
        slices.plane,
        image.array.dtype,
        len(empty) * step,
        empty.count(None) * step,
        is_mask(slices.array),
        _draw(slices.array, 2048, seed),
        image.notes,
        (first * step, top, left, planes * step, rows, columns),
        image.window,
        scan.patient,
    )
    return seen, broken


def _draw(array: np.ndarray, count: int, seed: int) -> np.ndarray:
    """(count,) float32 voxels drawn at random, whatever their order in memory."""
    random = np.random.default_rng(seed)
    return array[tuple(random.integers(0, size, count) for size in array.shape)].astype(np.float32)


def _without_masks(looks: list[Look]) -> tuple[list[Look], bool, list[str]]:
    """The scans among what was inspected, whether masks are left out, and the reason in words."""
    masks = sum(look.mask for look in looks)
    if not masks:
        return looks, False, []
    if masks == len(looks):
        words = f"all {masks} scans inspected look like masks (whole numbers, constant over areas): is this the folder of the scans?"
        return looks, False, [words]
    words = f"masks among the scans are left out ({masks} of {len(looks)} inspected)"
    return [look for look in looks if not look.mask], True, [words]


def _dimensions(
    looks: Sequence[Look], scans: Sequence[Scan], wished: Choices, fewest: int | None
) -> tuple[int, int, str]:
    """(2 or 3, neighbours, words) of the stored rows; `fewest` volumes are taken as such, None for the usual number."""
    if wished.dimensions is not None:
        if wished.dimensions != 2 and scans[0].source.dimensions == 2:
            raise ValueError(f"expected volumes for dimensions {wished.dimensions} in the plan, found 2-D scans")
        neighbours = (wished.neighbours or 2) if wished.dimensions == 2.5 else 0
        return 3 if wished.dimensions == 3 else 2, neighbours, f"dimensions: {wished.dimensions}, as asked"
    # Each scan counts, so what was sampled is repeated.
    sampled = [looks[round(at)] for at in np.linspace(0, len(looks) - 1, len(scans))]
    stored, neighbours, words = preprocess.choose_dimensions(
        scans[0].source.dimensions,
        [(look.depth, look.height, look.width) for look in sampled],
        [look.spacing for look in sampled],
        paired=scans[0].target is not None,
        **({} if fewest is None else {"fewest": fewest}),
    )
    return stored, neighbours, f"dimensions: {words}"


def _volume_words(
    looks: Sequence[Look], scans: Sequence[Scan], wished: Choices, layers: Sequence[str], stored: int, fewest: int
) -> list[str]:
    """Why masks of volumes that are stored as slices are better stored otherwise, where they could be."""
    if stored == 3 or "masks" not in layers or wished.dimensions is not None:
        return []
    return [
        "masks: to segment, or to paint from them, a few whole volumes teach more than their slices: --plan '{\"dimensions\": 3}'"
    ] * (_dimensions(looks, scans, wished, fewest)[0] == 3)


def _crop(looks: Sequence[Look], kind: str, dimensions: int, wished: Choices) -> tuple[Crop, str]:
    if wished.crop is not None:
        return wished.crop, f"crop: {wished.crop}, as asked"
    if dimensions == 2 or any(look.spacing is None for look in looks):
        return (
            "none",
            "crop: none (pictures are taken whole)" if dimensions == 2 else "crop: none (no voxel size known)",
        )
    sizes = [(look.depth, look.height, look.width) for look in looks]
    crop, words = preprocess.choose_crop([look.box for look in looks], sizes, kind)
    return crop, words


def choose_grid(
    looks: Sequence[Look], max_side: int, stored: int, crop: str, wished: Choices
) -> tuple[tuple[int, int, int], tuple[float, ...] | None, list[str]]:
    """((depth, height, width), voxel size in mm or None, reasons).

    The median size at the median voxel size, or what holds 19 of 20 boxes where scans are cropped; capped.
    """
    axes = slice(0 if stored == 3 else 1, 3)
    known = [look for look in looks if look.spacing is not None]
    spacing: np.ndarray | None = None
    differ = False
    if 2 * len(known) > len(looks):
        looks = known
        own = np.array([look.spacing for look in looks])
        spacing = _median(own, looks) if wished.spacing is None else _wished_spacing(wished.spacing, own, stored)
        differ = bool((abs(own / spacing - 1.0) > SAME_SPACING)[:, axes].any())
    elif wished.spacing is not None:
        raise ValueError("expected scans that say their voxel size for spacing in the plan, found most that do not")
    sizes = np.array([[look.depth, look.height, look.width] for look in looks], np.float64)
    if crop != "none":
        sizes = np.array([look.box[3:] for look in looks], np.float64)
    one_size = bool((sizes == sizes[0])[:, axes].all())
    if differ and spacing is not None:
        sizes *= own / spacing
    wanted = preprocess.crop_extent(sizes.tolist()) if crop != "none" else _median(sizes, looks)
    grid = [max(1, round(float(size))) for size in wanted]
    words = _grid_words(grid[axes], None if spacing is None else spacing[axes], one_size, differ, crop)
    reasons = [f"grid: {words}" + (" as asked" if wished.spacing is not None else "")]
    largest = max(grid[axes])
    if largest > max_side and wished.spacing is None and wished.height is None and wished.width is None:
        small = [max(1, round(size * max_side / largest)) for size in grid]
        small[0] = small[0] if stored == 3 else grid[0]
        if spacing is not None:
            spacing = spacing * (np.array(grid) / small)
        grid = small
        shown = " x ".join(map(str, grid[axes]))
        reasons.append(f"downsampled to {shown} with an anti-alias filter (--max-side {max_side})")
    for axis, name in enumerate(("depth", "height", "width")):
        size = getattr(wished, name)
        if size is not None:
            grid[axis] = size
            reasons.append(f"grid: {name} {size}, as asked")
    size = None if spacing is None else tuple(float(value) for value in spacing[axes])
    return (grid[0], grid[1], grid[2]), size, reasons


def _wished_spacing(wished: tuple[float, ...], own: np.ndarray, stored: int) -> np.ndarray:
    if stored == 3 and len(wished) != 3:
        raise ValueError(
            f"expected 3 voxel sizes (slice, row, column) as spacing in the plan for volumes, got {len(wished)}"
        )
    return np.array([np.median(own[:, 0]), *wished] if len(wished) == 2 else wished)


def _grid_words(grid: Sequence[int], spacing: np.ndarray | None, one_size: bool, differ: bool, crop: str) -> str:
    unit = "voxels" if len(grid) == 3 else "pixels"
    where = f"{' x '.join(map(str, grid))} {unit}"
    middle = f"its {crop}'s middle" if crop != "none" else "their centre"
    if spacing is None:
        how = "the median size; no pixel size is known, so each image is scaled to fit, proportions kept"
        return f"{where} ({'every image has this size' if one_size else how})"
    where += f" of {' x '.join(f'{value:.3g}' for value in spacing)} mm"
    size = "the size that holds 19 of 20" if crop != "none" else "the median size"
    if differ:
        how = (
            f"the median pixel size, to which the others are resampled, and {size}, to which they are cropped or padded"
        )
    elif one_size and crop == "none":
        how = "every image has this size"
    else:
        how = f"{size}, to which the others are cropped or padded about {middle}"
    return f"{where} ({how})"


def _median(values: np.ndarray, looks: Sequence[Look]) -> np.ndarray:
    """Column-wise median of one row a scan, each counted as often as it gives images."""
    return np.median(np.repeat(values, [max(look.kept, 1) for look in looks], axis=0), axis=0)


def _standard_scale(
    looks: Sequence[Look], scans: Sequence[Scan], kind: str, wished: Choices
) -> tuple[dict[str, list[float]] | None, frozenset[str], list[str]]:
    """The standard histogram, the patients it is learned from, who must train, and words."""
    if not wished.match_histogram:
        return None, frozenset(), []
    patients = sorted({scan.patient for scan in scans})
    # At most a third of the patients, so that the splits stay what they are.
    chosen = set(patients[:: max(3, -(-len(patients) // 24))]) if len(patients) > 2 else {patients[0]}
    learned: list[np.ndarray] = []
    for scan in scans:
        if scan.patient in chosen and len(learned) < 24:
            runs, _ = formats.read_runs(scan.source)
            learned += [image.array[0].transpose(2, 1, 0).astype(np.float32) for _, image in runs[:1]]
    if not learned:
        raise ValueError("expected readable scans to learn the standard histogram from, found none")
    words = f"histograms: brought to one standard scale, learned from {len(learned)} scans of {len(chosen)} training patients, as asked"
    return preprocess.landmarks(learned), frozenset(chosen), [words]


def _dtype_of(sources: Sequence[Source | None]) -> str | None:
    """The dtype that holds some of these scans, evenly spread; None where there are none."""
    known = [source for source in sources if source is not None]
    chosen = known[:: max(1, len(known) // 16)][:16]
    return str(common_dtype([formats.read(source).array.dtype for source in chosen])) if known else None


def _facts(looks: Sequence[Look], scans: Sequence[Scan]) -> dict[str, Any]:
    """Sizes (height x width -> scans) and percentiles of the voxel sizes (mm) of the inspected scans, and the formats."""
    sizes = Counter(f"{look.height}x{look.width}" for look in looks)
    known = np.array([look.spacing for look in looks if look.spacing is not None])
    points = (0, 5, 50, 95, 100)
    spacing = (
        {
            name: dict(zip(map(str, points), np.percentile(known[:, axis], points).tolist()))
            for axis, name in enumerate(("slice", "row", "column"))
        }
        if len(known)
        else None
    )
    share = [np.prod(look.box[3:]) / (look.depth * look.height * look.width) for look in looks]
    return {
        "inspected": len(looks),
        "sizes": dict(sizes.most_common(20)),
        "spacing": spacing,
        "slices": dict(zip(map(str, points), np.percentile([look.slices for look in looks], points).tolist())),
        "foreground_box": float(np.median(share)),
        "formats": dict(Counter(scan.source.format for scan in scans).most_common()),
    }


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """The dtype in which all scans are stored: their own when they agree on a small one, else float32."""
    kinds = {np.dtype(dtype).newbyteorder("=") for dtype in dtypes}
    if len(kinds) == 1 and (own := kinds.pop()) in (np.uint8, np.int8, np.int16, np.uint16, np.float32):
        return own
    return np.dtype(np.float32)


def _intensity_words(
    kind: str, declared: bool, dimensions: int, looks: Sequence[Look], wished: Choices, by_median: bool
) -> list[str]:
    grey = [preprocess.stores_grey_levels(look.dtype, kind, dimensions) for look in looks]
    physical = [look.values for look, levels in zip(looks, grey) if not levels]
    words = []
    if any(grey):
        pictures = np.arange(256), np.dtype(np.uint8)
        _, chosen = intensity.choose(kind, *pictures, window=wished.window, percentiles=wished.percentiles)
        words.append(f"intensity: {chosen}")
    if physical and np.ptp(np.concatenate(physical)) > 0:
        voi = next((look.voi for look in looks if look.voi is not None), None)
        drawn = np.concatenate(physical)
        _, chosen = intensity.choose(
            kind, drawn, np.dtype(np.float32), voi, wished.window, wished.percentiles, by_median
        )
        words.append(f"intensity: {chosen}")
    if declared and kind == "CT":
        if any(grey):
            words.append("declared CT, but files hold 8-bit grey levels: no Hounsfield units")
        if physical and np.concatenate(physical).min() >= 0:
            words.append("declared CT, but no value lies below 0: these may not be Hounsfield units")
    notes = Counter(note for look in looks for note in look.notes)
    return words + [
        f"altered while reading: {note} ({count} of {len(looks)} scans inspected)"
        for note, count in notes.most_common(8)
    ]


def _slice_words(looks: Sequence[Look], scans: Sequence[Scan], stored: int) -> list[str]:
    if scans[0].source.dimensions != 3 or stored == 3 or all(images_in(scan.source) == 1 for scan in scans):
        return []
    planes = Counter(look.plane for look in looks)
    plane = planes.most_common(1)[0][0]
    total, kept = sum(look.slices for look in looks), sum(look.kept for look in looks)
    words = "along the stacked axis" if plane == "as stored" else f"{plane}, across the coarsest axis, turned upright"
    empty = f"about {1 - kept / total:.0%} are empty and dropped" if kept < total else "none is empty"
    return [f"slices: {words}; {empty}"]


def as_float(plan: Plan) -> Plan:
    """The same plan with shards that hold every scan's values."""
    words = "stored as float32, because the scans' own number types differ"
    target = None if plan.target_dtype is None else "float32"
    sources = tuple(one | {"dtype": "float32"} for one in plan.sources)
    return replace(plan, dtype="float32", target_dtype=target, sources=sources, reasons=(*plan.reasons, words))
