"""Plan: what `prepare` will do with a folder of scans, chosen from the scans alone, each choice with its reason in words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from .. import formats, intensity
from ..formats import Skipped, Source
from ..image import MODALITIES
from ..runtime import Progress, derive_seed
from . import labels as label_sources
from .slices import SAME_SPACING, cut, is_mask, why_empty

LEAST_IMAGES = 8
# So many scans, evenly spread over the folder, are read to choose grid and dtype; medians do not need more.
MOST_LOOKS = 256
# Words that de-identification leaves in Patient ID: all patients would become one.
PLACEHOLDERS = {
    "",
    "anon",
    "anonymous",
    "anonymised",
    "anonymized",
    "deidentified",
    "de-identified",
    "unknown",
    "none",
    "na",
    "n/a",
    "patient",
    "0",
}


@dataclass(frozen=True)
class Plan:
    """What will be done with a folder of scans.

    Attributes:
        modality: of the scans that are used; `declared` when the user said so and the files did not.
        channels, dimensions: of the sources; 3 dimensions give several 2-D images each.
        height, width: grid of the stored images.
        spacing: their (row, column) pixel size in mm, or None when most files do not say.
        dtype: in which every value is stored exactly.
        scans, patients: how many are used; a scan without a known patient counts as one.
        images: expected number of 2-D images, before empty slices and duplicates go.
        split_level: "patient"; "study" when some patients are known by their study alone; "image" when some are unknown.
        labels: class names, sorted; empty without labels.
        skip_masks: label maps lie among the scans and are left out.
        reasons: every choice in words.
        left_aside: what else the folder holds: modality, channels, dimensions, scans, images.
    """

    modality: str
    declared: bool
    channels: int
    dimensions: int
    height: int
    width: int
    spacing: tuple[float, float] | None
    dtype: str
    scans: int
    patients: int
    images: int
    split_level: str
    labels: tuple[str, ...]
    skip_masks: bool
    reasons: tuple[str, ...]
    left_aside: tuple[dict[str, str | int], ...]


@dataclass(frozen=True)
class Survey:
    """What a folder holds.

    Attributes:
        root: the folder, absolute or as given; every file lies below it.
        plan: what to do with it.
        sources, patients, labels: one entry for every scan that is used: the scan, what names its patient (private), its class.
        skipped: files that are no usable scans.
        facts: sizes and pixel sizes of the inspected scans.
    """

    root: Path
    plan: Plan
    sources: list[Source]
    patients: list[str]
    labels: list[str | None]
    skipped: list[Skipped]
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Look:
    """What one scan that was read tells the plan."""

    height: int
    width: int
    spacing: tuple[float, float] | None
    plane: str
    dtype: np.dtype
    slices: int
    kept: int
    mask: bool
    values: np.ndarray
    notes: tuple[str, ...]


def survey(scans: Path, labels: str, modality: str | None, max_side: int, seed: int, quiet: bool = False) -> Survey:
    """Inspect a folder and make the plan; nothing is written.

    Raises:
        ValueError: the folder holds too few usable scans, or what the user asked for is not there.
    """
    if max_side < 16:
        raise ValueError(f"expected max_side of at least 16 pixels, got {max_side}")
    found, skipped = formats.discover(scans)
    if not found:
        raise ValueError(_nothing(scans, skipped))
    sources, declared, aside, reasons = choose_group(found, modality)
    kind = modality.upper() if declared and modality else sources[0].modality
    few = sum(map(images_in, sources))
    if few < LEAST_IMAGES:
        raise ValueError(
            f"expected at least {LEAST_IMAGES} images to learn from in {scans}, found {few}: add more scans of this kind"
        )
    root = scans if scans.is_dir() else scans.parent
    patients, level, words = patient_keys(sources, root)
    names, label_words = label_sources.find(labels, root, sources, patients)
    looks = _look_at_some(sources, kind, seed, quiet)
    looks, skip_masks, mask_words = _without_masks(looks)
    height, width, spacing, grid_words = choose_grid(looks, max_side)
    dtype = common_dtype([look.dtype for look in looks])
    reasons += [
        words,
        label_words,
        *mask_words,
        *grid_words,
        *_intensity_words(kind, declared, sources[0].dimensions, looks),
        *_slice_words(looks, sources),
    ]
    plan = Plan(
        modality=kind,
        declared=declared,
        channels=sources[0].channels,
        dimensions=sources[0].dimensions,
        height=height,
        width=width,
        spacing=spacing,
        dtype=str(dtype),
        scans=len(sources),
        patients=len(set(patients)),
        images=few,
        split_level=level,
        labels=tuple(sorted({name for name in names if name is not None})),
        skip_masks=skip_masks,
        reasons=tuple(reasons),
        left_aside=tuple(aside),
    )
    return Survey(root, plan, sources, patients, names, skipped, _facts(looks))


def _nothing(scans: Path, skipped: list[Skipped]) -> str:
    if not skipped:
        return f"expected scans (DICOM, NIfTI, NRRD, MetaImage, PNG or JPEG) in {scans}, found none: check the path"
    reason, count = Counter(entry.reason for entry in skipped).most_common(1)[0]
    return f"expected scans in {scans}, found {len(skipped)} files and none of them usable; the commonest reason ({count} times): {reason}"


def images_in(source: Source) -> int:
    """How many 2-D images a scan gives, from its header: a volume is cut along the axis with the fewest voxels, nearly always."""
    return source.shape[2] if source.format == "dicom" or source.dimensions == 2 else min(source.shape)


def choose_group(
    found: list[Source], modality: str | None
) -> tuple[list[Source], bool, list[dict[str, str | int]], list[str]]:
    """The scans to use: of one modality, number of channels and dimensions, the kind with most images.

    Returns:
        the scans, whether the modality is the user's word, what is left aside, and the reasons.
    """
    wished = modality.upper() if modality else None
    if wished is not None and wished not in MODALITIES:
        raise ValueError(f"expected a modality of {', '.join(MODALITIES)}, got {modality!r}")
    images: Counter[tuple[str, int, int]] = Counter()
    scans: Counter[tuple[str, int, int]] = Counter()
    for source in found:
        kind = (source.modality, source.channels, source.dimensions)
        images[kind] += images_in(source)
        scans[kind] += 1
    matching = [kind for kind in images if wished in (None, kind[0])]
    declared = not matching and any(kind[0] == "OT" for kind in images)
    if declared:  # files such as NIfTI or PNG do not say what they are: the user's word stands
        matching = [kind for kind in images if kind[0] == "OT"]
    if not matching:
        raise ValueError(f"expected {wished} scans, found {_listing(images, scans)}")
    best = max(sorted(matching), key=lambda kind: images[kind])
    aside: list[dict[str, str | int]] = [
        {"modality": kind[0], "channels": kind[1], "dimensions": kind[2], "scans": scans[kind], "images": images[kind]}
        for kind in sorted(images)
        if kind != best
    ]
    used = [source for source in found if (source.modality, source.channels, source.dimensions) == best]
    words = f"{_plural(scans[best], f'{_name(best)} scan')} with {images[best]} images" + (
        f", taken as {wished} as declared" if declared else ""
    )
    reasons = [f"used: {words}"]
    if best[0] == "OT" and best[2] == 3 and not declared:
        reasons.append(
            "the files do not say the modality: --modality CT (or MR, CR, DX) does, and CT then keeps Hounsfield units"
        )
    if aside:
        others = {kind: count for kind, count in scans.items() if kind != best}
        reasons.append(
            f"left aside: {_listing(images, others)} (one kind a dataset: the one with most images, or --modality)"
        )
    return used, declared, aside, reasons


def _name(kind: tuple[str, int, int]) -> str:
    modality, channels, dimensions = kind
    return f"{'RGB ' if channels == 3 else ''}{'' if modality == 'OT' else modality + ' '}{dimensions}-D"


def _listing(images: dict[tuple[str, int, int], int], scans: dict[tuple[str, int, int], int]) -> str:
    order = sorted(scans, key=lambda kind: (-images[kind], kind))
    return ", ".join(_plural(scans[kind], f"{_name(kind)} scan") for kind in order)


def _plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def patient_keys(sources: Sequence[Source], root: Path) -> tuple[list[str], str, str]:
    """For every scan what names its patient (private), the split level, and both in words.

    Patient ID, else the study, else the scan itself, whose slices at least stay together.
    """
    keys: list[str] = []
    for source in sources:
        named = source.patient is not None and source.patient.strip().lower() not in PLACEHOLDERS
        if named:
            keys.append(f"patient:{str(source.patient).strip()}")
        elif source.study:
            keys.append(f"study:{source.study}")
        else:
            keys.append(f"scan:{source.files[0].relative_to(root).as_posix()}")
    kinds = Counter(key.split(":")[0] for key in keys)
    if not kinds["scan"] and not kinds["study"]:
        return keys, "patient", f"split by patient: {_plural(len(set(keys)), 'patient')}"
    if not kinds["scan"]:
        nameless = f"Patient ID (0010,0020) is empty or a placeholder in {kinds['study']} of {len(keys)} scans"
        words = "only the scans of one study stay together; one patient's studies may lie on both sides"
        return keys, "study", f"study-level split: {nameless}, of which {words}"
    known = len(keys) - kinds["scan"]
    who = "no patient known" if not known else f"patient unknown for {kinds['scan']} of {len(keys)} scans"
    together = ", slices of one scan stay together" if any(images_in(source) > 1 for source in sources) else ""
    return keys, "image", f"image-level split: {who}{together}; one patient's scans may lie on both sides"


def _look_at_some(sources: list[Source], kind: str, seed: int, quiet: bool) -> list[Look]:
    chosen = [sources[round(index)] for index in np.linspace(0, len(sources) - 1, min(len(sources), MOST_LOOKS))]
    looks: list[Look] = []
    first_reason = ""
    with Progress("inspect", len(chosen), "scans", quiet=quiet) as progress:
        for number, source in enumerate(chosen):
            seen, broken = look(source, kind, derive_seed(seed, "look", number))
            looks += [seen] if seen else []
            first_reason = first_reason or next((f"{entry.file.name}: {entry.reason}" for entry in broken), "")
            progress.update(number + 1)
    if not looks:
        raise ValueError(
            f"expected readable scans, found {len(sources)} that look like scans and cannot be read; the first: {first_reason}"
        )
    return looks


def look(source: Source, kind: str, seed: int) -> tuple[Look | None, list[Skipped]]:
    """Read one scan for the plan, of a broken series the longest run of slices; and the files that cannot be read."""
    runs, broken = formats.read_runs(source)
    if not runs:
        return None, broken
    image = max((image for _, image in runs), key=lambda image: image.array.shape[3])
    slices = cut(image, source.format)
    empty = why_empty(slices, kind, source.dimensions)
    values = np.random.default_rng(seed).choice(image.array.ravel(), 2048).astype(np.float32)
    height, width = slices.array.shape[-2:]
    seen = Look(
        height,
        width,
        slices.spacing,
        slices.plane,
        image.array.dtype,
        len(empty),
        empty.count(None),
        is_mask(slices.array),
        values,
        image.notes,
    )
    return seen, broken


def _without_masks(looks: list[Look]) -> tuple[list[Look], bool, list[str]]:
    """The scans among what was inspected, whether masks are left out, and the reason in words."""
    masks = sum(look.mask for look in looks)
    if not masks:
        return looks, False, []
    if masks == len(looks):
        return (
            looks,
            False,
            [
                f"all {masks} scans inspected look like masks (whole numbers, constant over areas): is this the folder of the scans?"
            ],
        )
    return (
        [look for look in looks if not look.mask],
        True,
        [f"masks among the scans are left out ({masks} of {len(looks)} inspected)"],
    )


def choose_grid(looks: Sequence[Look], max_side: int) -> tuple[int, int, tuple[float, float] | None, list[str]]:
    """(height, width, (row, column) mm or None, reasons): the median size at the median pixel size, capped."""
    known = [look for look in looks if look.spacing is not None]
    spacing: np.ndarray | None = None
    differ = False
    if 2 * len(known) > len(looks):
        looks = known
        own = np.array([look.spacing for look in looks])
        spacing = _median(own, looks)
        differ = bool((abs(own / spacing - 1.0) > SAME_SPACING).any())
    sizes = np.array([[look.height, look.width] for look in looks], np.float64)
    one_size = bool((sizes == sizes[0]).all())
    if differ and spacing is not None:
        sizes *= own / spacing
    height, width = (max(1, round(float(size))) for size in _median(sizes, looks))
    where = f"{height} x {width} pixels"
    if spacing is None:
        how = (
            "every image has this size"
            if one_size
            else "the median size; no pixel size is known, so each image is scaled to fit, proportions kept"
        )
    else:
        where += f" of {spacing[0]:.3g} x {spacing[1]:.3g} mm"
        how = (
            "the median pixel size, to which the others are resampled, and the median size, to which they are cropped or padded"
            if differ
            else (
                "every image has this size"
                if one_size
                else "the median size, to which the others are cropped or padded about their centre"
            )
        )
    reasons = [f"grid: {where} ({how})"]
    shrink = max_side / max(height, width)
    if shrink < 1.0:
        small = max(1, round(height * shrink)), max(1, round(width * shrink))
        if spacing is not None:
            spacing = spacing * (height / small[0], width / small[1])
        height, width = small
        reasons.append(f"downsampled to {height} x {width} pixels with an anti-alias filter (--max-side {max_side})")
    return height, width, None if spacing is None else (float(spacing[0]), float(spacing[1])), reasons


def _median(values: np.ndarray, looks: Sequence[Look]) -> np.ndarray:
    """Column-wise median of one row a scan, each counted as often as it gives images."""
    return np.median(np.repeat(values, [max(look.kept, 1) for look in looks], axis=0), axis=0)


def _facts(looks: Sequence[Look]) -> dict[str, Any]:
    """Sizes (height x width -> scans) and percentiles of the pixel sizes (mm) of the inspected scans."""
    sizes = Counter(f"{look.height}x{look.width}" for look in looks)
    known = np.array([look.spacing for look in looks if look.spacing is not None])
    points = (0, 5, 50, 95, 100)
    spacing = (
        {
            name: dict(zip(map(str, points), np.percentile(known[:, axis], points).tolist()))
            for axis, name in enumerate(("row", "column"))
        }
        if len(known)
        else None
    )
    return {"inspected": len(looks), "sizes": dict(sizes.most_common(20)), "spacing": spacing}


def common_dtype(dtypes: Sequence[np.dtype]) -> np.dtype:
    """The dtype in which all scans are stored: their own when they agree on a small one, else float32."""
    kinds = {np.dtype(dtype).newbyteorder("=") for dtype in dtypes}
    if len(kinds) == 1 and (own := kinds.pop()) in (np.uint8, np.int8, np.int16, np.uint16, np.float32):
        return own
    return np.dtype(np.float32)


def stores_grey_levels(dtype: np.dtype, kind: str, dimensions: int) -> bool:
    """Whether 8-bit values are a picture's grey levels, of which the whole range counts.

    A volume that happens to fit in 8 bits has the scanner's arbitrary units; its window is chosen as for any other.
    """
    return dtype == np.uint8 and (dimensions == 2 or kind == "CT")


def _intensity_words(kind: str, declared: bool, dimensions: int, looks: Sequence[Look]) -> list[str]:
    grey = [stores_grey_levels(look.dtype, kind, dimensions) for look in looks]
    physical = [look.values for look, levels in zip(looks, grey) if not levels]
    words = []
    if any(grey):
        words.append("intensity: " + intensity.choose(kind, np.arange(256), np.dtype(np.uint8))[1])
    if physical and np.ptp(np.concatenate(physical)) > 0:
        words.append("intensity: " + intensity.choose(kind, np.concatenate(physical), np.dtype(np.float32))[1])
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


def _slice_words(looks: Sequence[Look], sources: Sequence[Source]) -> list[str]:
    if sources[0].dimensions != 3 or all(images_in(source) == 1 for source in sources):
        return []
    planes = Counter(look.plane for look in looks)
    plane = planes.most_common(1)[0][0]
    total, kept = sum(look.slices for look in looks), sum(look.kept for look in looks)
    words = "along the stacked axis" if plane == "as stored" else f"{plane}, across the coarsest axis, turned upright"
    empty = f"about {1 - kept / total:.0%} are empty and dropped" if kept < total else "none is empty"
    return [f"slices: {words}; {empty}"]


def with_dtype(plan: Plan, dtype: np.dtype) -> Plan:
    """The same plan with shards of another dtype."""
    return replace(plan, dtype=str(np.dtype(dtype)))
