"""DICOM series: which slices form one volume, in what order, and where it lies in the patient.

The axes of a volume: I runs along a row, J down a column, and K along row x column (LPS+), the side that a slice's
normal points to, whatever the order of file names and Instance Numbers. So every affine is right-handed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..image import PICTURES, Image
from .dicom_frames import DIMENSIONS
from .source import LPS_TO_RAS, MAX_VOXELS, FormatError, Skipped

SAME_POSITION_MM = 0.01
# Positions are often written with one decimal: a slice may lie this far from its place, on each axis.
ROUNDED_MM = 0.1
# Below this a stack counts as upright: the angle that rounded positions can fake.
UPRIGHT_DEGREES = 0.6
ONE_PATIENT = "Patient ID (0010,0020) is spelled in several ways in one series: taken as one patient"
COUNTED = {1: "one", 2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight", 9: "nine"}
Stack = tuple[list["Slice"], tuple[str, ...]]
# What tells images at one position apart, the most telling first; the blanks are filled for frames alone.
ACQUISITION = (
    "ImageType",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "DiffusionGradientOrientation",
    "TemporalPositionIdentifier",
    "InversionTime",
    "FlipAngle",
    "ConvolutionKernel",
    "KVP",
    *(f"dimension {number}" for number in range(DIMENSIONS)),
    "StackID",
    "AcquisitionNumber",
    "TriggerTime",
    "file",
)
# Of these, what makes another picture of the same anatomy: such slices never form one volume, wherever they lie. Slices
# of one volume may well differ in the others (packages of MR slices are acquired one after the other).
CONTRAST = {
    "ImageType": "Image Type (0008,0008)",
    "EchoNumbers": "Echo Number (0018,0086)",
    "EchoTime": "Echo Time (0018,0081)",
    "DiffusionBValue": "Diffusion b-value (0018,9087)",
    "InversionTime": "Inversion Time (0018,0082)",
    "ConvolutionKernel": "Convolution Kernel (0018,1210)",
    "KVP": "KVP (0018,0060)",
    "StackID": "Stack ID (0020,9056)",
}
CONTRAST_NUMBERS = ("EchoNumbers", "EchoTime", "DiffusionBValue", "InversionTime", "KVP")
# Numbers of one contrast differ by less: this part of them, or this much.
SAME_NUMBER, SAME_NUMBER_AT_LEAST = 0.01, 0.01
# Values of Image Type, from the third on, that say what a pixel means; ORIGINAL and DERIVED, AXIAL and HELICAL, filters
# and corrections do not. Those that end with MAP, and Philips' M_FFE, P_SE and the like, count too.
KIND_WORDS = (
    "M P R I MAGNITUDE PHASE REAL IMAGINARY VELOCITY W F WATER FAT IP OP IN_PHASE OUT_PHASE OPP_PHASE IN_OPP "
    "ADC EADC TRACE TRACEW FA TENSOR B0 T1 T2 T2_STAR PERFUSION CBF CBV MTT TTP TMAX RCBV RCBF "
    "MIP MINIP MIN_IP MPR CPR MEAN AVERAGE STDDEV SUB SUBTRACTION DET_A DET_B DET_AB"
)
KINDS = frozenset(KIND_WORDS.split())


@dataclass(frozen=True, slots=True)
class Slice:
    """The header of one image, a single-frame file or a frame, as plain values.

    Attributes:
        position: Image Position (Patient) (0020,0032), mm in LPS+, centre of the first pixel; None when absent.
        orientation: Image Orientation (Patient) (0020,0037): row direction, column direction; None when absent.
        spacing: Pixel Spacing (0028,0030): mm between rows, mm between columns; None when absent.
        thickness: Slice Thickness (0018,0050) in mm; used only where positions do not tell.
        instance: Instance Number (0020,0013).
        acquisition: the values of `ACQUISITION`, "" where absent; several of one element with backslashes between.
        frame: of a multi-frame file which frame this is, counted from 0; None for a single-frame file.
        tags, burned_in: as in `Source`.
        tilt: Gantry/Detector Tilt (0018,1120) in degrees, only to be compared with the positions; None when absent.
    """

    file: Path
    modality: str
    patient: str | None
    study: str | None
    series: str
    instance_uid: str
    frame_of_reference: str
    channels: int
    rows: int
    columns: int
    position: tuple[float, ...] | None
    orientation: tuple[float, ...] | None
    spacing: tuple[float, float] | None
    thickness: float | None
    instance: float
    acquisition: tuple[str, ...]
    notes: tuple[str, ...]
    frame: int | None = None
    tags: tuple[tuple[str, str], ...] = ()
    burned_in: bool | None = None
    tilt: float | None = None


# ------------------------------------------------------------------------------------------------ slices -> volumes


def arrange(slices: list[Slice], digest: Callable[[Slice], str]) -> tuple[list[Stack], list[Skipped]]:
    """Group slices into volumes: one series, one grid, one image a position, evenly spaced.

    A series with a missing slice or with two slice distances is cut into evenly spaced parts, so that no spacing is
    ever averaged over a gap; what belongs to no such part stands alone. The notes say what was found.

    Args:
        slices: headers in any order.
        digest: slice -> hash of its pixels, called only for slices that share position and acquisition.

    Returns:
        (slices in the order of K, notes) per volume, and the identical copies left out.
    """
    stacks: list[Stack] = []
    skipped: list[Skipped] = []
    for group in _grids(slices):
        if group[0].modality in PICTURES or group[0].position is None or group[0].orientation is None:
            absent = (
                "Image Position (0020,0032) or Orientation (0020,0037) is absent: slices are used one by one"
                if len(group) > 1 and group[0].modality not in PICTURES
                else None
            )
            stacks += _one_by_one(group, (absent,) if absent else ())
            continue
        spelled = (ONE_PATIENT,) if len({entry.patient for entry in group}) > 1 else ()
        group, copies = drop_identical(group, "position (0020,0032)", _places(group), digest)
        skipped += copies
        for members, notes in _acquisitions(group):
            stacks += _volumes(members, (*spelled, *notes))
    return stacks, skipped


def drop_identical(
    slices: list[Slice], words: str, keys: Sequence[Hashable], digest: Callable[[Slice], str]
) -> tuple[list[Slice], list[Skipped]]:
    """Keep one of several slices that share a key and all pixels; the first by path stays. An empty key is shared by none."""
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for entry, key in zip(slices, keys):
        groups[key or (entry.file, entry.frame)].append(entry)
    kept: list[Slice] = []
    skipped: list[Skipped] = []
    for members in groups.values():
        if len(members) == 1:
            kept += members
            continue
        seen: set[str] = set()
        for entry in sorted(members, key=lambda member: (member.file, member.frame or 0)):
            try:
                mark = digest(entry)
            except Exception:  # unreadable pixels are reported by read()
                mark = f"{entry.file} {entry.frame}"
            if mark in seen:
                skipped.append(
                    Skipped(
                        entry.file,
                        f"a copy: another file has the same {words} and the same pixels; one of them is used"
                        if entry.frame is None
                        else f"frame {entry.frame} is a copy: another frame has the same {words} and the same pixels; one of them is used",
                    )
                )
            else:
                kept.append(entry)
            seen.add(mark)
    return kept, skipped


def source_files(slices: Sequence[Slice]) -> tuple[tuple[Path, ...], tuple[int, ...]]:
    """What `Source.files` and `Source.frames` hold for a stack.

    Returns:
        ((file,), frames) where all slices lie in one multi-frame file. Otherwise one file a slice, in the order of K
        (a file of several frames is repeated), with their frames, or () where every file is a single image.
    """
    files = tuple(entry.file for entry in slices)
    if all(entry.frame is None for entry in slices):
        return files, ()
    frames = tuple(entry.frame or 0 for entry in slices)
    return (files[:1] if len(set(files)) == 1 else files), frames


def _one_by_one(slices: list[Slice], notes: tuple[str, ...]) -> list[Stack]:
    return [([entry], notes) for entry in slices]


def _grids(slices: list[Slice]) -> list[list[Slice]]:
    """Slices of one series on one grid: equal size, spacing and orientation (within rounding)."""
    series: dict[Hashable, dict[tuple[float, ...], list[Slice]]] = defaultdict(lambda: defaultdict(list))
    for entry in slices:
        # Without a Series Instance UID nothing says that two files belong together. The study is not asked: some
        # writers give every slice its own.
        key = (
            entry.series or str(entry.file),
            (entry.patient or "").strip().casefold(),
            entry.frame_of_reference,
            entry.modality,
            entry.channels,
            entry.rows,
            entry.columns,
            entry.position is None,
            entry.orientation is None,
            entry.spacing is None,
        )
        series[key][(*(entry.orientation or ()), *(entry.spacing or ()))].append(entry)
    grids: list[list[Slice]] = []
    for exact in series.values():
        for alike in _alike(list(exact)):
            grids.append([entry for numbers in alike for entry in exact[numbers]])
    return grids


def _alike(grids: list[tuple[float, ...]]) -> list[list[tuple[float, ...]]]:
    """Grids (orientation, then spacing) that equal the first of their group: cosines to 1e-3, spacings to 0.1 %."""
    if len(grids) == 1:
        return [grids]
    values = np.array(grids)
    tolerance = np.full(values.shape[1], 1e-3)
    cosines = values.shape[1] - values.shape[1] % 3  # six cosines or none, then two spacings or none
    groups: list[list[tuple[float, ...]]] = []
    left = np.arange(len(grids))
    while left.size:
        first = values[left[0]]
        allowed = tolerance * np.where(np.arange(first.size) < cosines, 1.0, np.abs(first))
        same = (np.abs(values[left] - first) <= allowed).all(axis=1)
        groups.append([grids[index] for index in left[same]])
        left = left[~same]
    return groups


def _places(group: list[Slice]) -> list[Hashable]:
    """Position and acquisition of each slice: empty slices of two echoes are equal and no copies.

    Coordinates nearer than `SAME_POSITION_MM` to their neighbour have one number, so none is rounded away from it.
    """
    numbers = [_clusters(axis, SAME_POSITION_MM).tolist() for axis in np.array([entry.position for entry in group]).T]
    return [(place, *_acquired(entry)) for entry, place in zip(group, zip(*numbers))]


def _clusters(values: np.ndarray, apart: np.ndarray | float) -> np.ndarray:
    """The number, from 0 in rising order, of the cluster that each value belongs to; clusters lie `apart` or more."""
    order = np.argsort(values, kind="stable")
    numbers = np.empty(len(values), int)
    numbers[order] = np.concatenate([[0], np.cumsum(np.diff(values[order]) >= apart)])
    return numbers


def _acquired(entry: Slice) -> tuple[str, ...]:
    return entry.study or "", *entry.acquisition


def _repeats(group: list[Slice]) -> int:
    """How many slices lie where another one lies."""
    if len(group) == 1:
        return 0
    return int(np.count_nonzero(np.diff(np.sort(_heights(group))) < SAME_POSITION_MM))


def _acquisitions(group: list[Slice]) -> list[Stack]:
    """Split a series with several images at one position by the first tags that tell them apart (echo, b-value ...).

    Where no position repeats, or does no longer, contrasts are told apart (`_contrasts`).
    """
    repeats = _repeats(group)
    if repeats == 0:
        return _contrasts(group)
    for index, values in enumerate(zip(*map(_acquired, group))):
        name = ACQUISITION[index - 1] if 0 < index <= len(ACQUISITION) else ""
        if len(set(values)) == 1:
            continue
        ranks = _ranks(group, values) if name else None
        if ranks is not None:
            note = f"{name} shifts from slice to slice: the images of each position are told apart by its order"
            return [(stack, (note, *notes)) for part in _parts(group, ranks) for stack, notes in _acquisitions(part)]
        for marks in (_alike_numbers(values) if name in CONTRAST_NUMBERS else values, values):
            parts = _parts(group, marks)
            if len(parts) > 1 and sum(map(_repeats, parts)) < repeats:
                return [stack for part in parts for stack in _acquisitions(part)]
    note = "several different images at one position, which no tag tells apart: slices are used one by one"
    return _one_by_one(group, (note,))


def _parts(group: list[Slice], marks: Sequence[Any]) -> list[list[Slice]]:
    """Slices of equal marks together, in the order of the marks."""
    parts: dict[Any, list[Slice]] = defaultdict(list)
    for entry, mark in zip(group, marks):
        parts[mark].append(entry)
    return [part for _, part in sorted(parts.items())]


def _ranks(group: list[Slice], values: Sequence[str]) -> list[int] | None:
    """The rank of each slice's number among those at its position, where that tells the images apart and equality does not.

    Trigger Times of a heart's phases differ by milliseconds from slice to slice. None unless every position has as
    many images, all with different numbers, of which more than that many occur.
    """
    numbers = _floats(values)
    if numbers is None:
        return None
    places = _clusters(_heights(group), SAME_POSITION_MM)
    counts = np.bincount(places)
    if len(set(counts.tolist())) > 1 or len(set(values)) <= counts[0] or counts[0] == 1:
        return None
    order = np.lexsort((numbers, places))
    rows = numbers[order].reshape(-1, counts[0])
    if not (np.diff(rows, axis=1) > 0).all():
        return None
    ranks = np.empty(len(group), int)
    ranks[order] = np.tile(np.arange(counts[0]), len(rows))
    return [int(rank) for rank in ranks]


def _contrasts(group: list[Slice]) -> list[Stack]:
    """Slices of one contrast together, though no position repeats: two echoes or kernels interleaved, or end to end."""
    varying: list[str] = []
    classes: list[Sequence[Hashable]] = []
    notes: tuple[str, ...] = ()
    for name, values in zip(ACQUISITION, zip(*(entry.acquisition for entry in group))):
        if name not in CONTRAST or len(set(values)) == 1:
            continue
        found: Sequence[Hashable] = (
            [",".join(sorted(_kinds(value))) for value in values]
            if name == "ImageType"
            else _present(_alike_numbers(values) if name in CONTRAST_NUMBERS else values, values)
        )
        count = len(set(found))
        if name in CONTRAST_NUMBERS and count > max(2, len(group) / 2):
            notes = (*notes, f"{CONTRAST[name]} differs from slice to slice: kept as one volume")
        elif count > 1:
            varying.append(CONTRAST[name])
            classes.append(found)
    if not varying:
        return [(group, notes)]
    parts = _parts(group, list(zip(*classes)))
    differ = f"{' and '.join(varying)} {'differ' if len(varying) > 1 else 'differs'} within the series"
    notes = (*notes, f"{differ}: used as {COUNTED.get(len(parts), len(parts))} volumes")
    return [(part, notes) for part in parts]


def _kinds(image_type: str) -> set[str]:
    """The values of Image Type (0008,0008) that say what a pixel means."""
    words = [word.strip().replace(" ", "_") for word in image_type.upper().split("\\")[2:]]
    return {word for word in words if word in KINDS or word.endswith("_MAP") or word[:2] in ("M_", "P_", "R_", "I_")}


def _alike_numbers(values: Sequence[str]) -> Sequence[Any]:
    """Numbers that differ by rounding have one mark; absent ones -1. Text stays as it is."""
    numbers = _floats([value or "-inf" for value in values])
    if numbers is None:
        return values
    known = np.isfinite(numbers)
    marks = np.full(len(numbers), -1)
    ordered = np.sort(numbers[known])
    marks[known] = _clusters(numbers[known], np.maximum(SAME_NUMBER * np.abs(ordered[1:]), SAME_NUMBER_AT_LEAST) + 1e-9)
    return [int(mark) for mark in marks]


def _present(marks: Sequence[Any], values: Sequence[str]) -> Sequence[Any]:
    """Marks in which slices that do not say a value have the others' where there is but one."""
    said = {mark for mark, value in zip(marks, values) if value}
    return [next(iter(said))] * len(marks) if len(said) == 1 else marks


def _floats(values: Sequence[str]) -> np.ndarray | None:
    try:
        numbers = np.array([float(value) for value in values])
    except ValueError:
        return None
    return None if np.isnan(numbers).any() else numbers


# ------------------------------------------------------------------------------------------------ even spacing


def _volumes(members: list[Slice], notes: tuple[str, ...]) -> list[Stack]:
    """Slices of one acquisition, one a position, in the order of K and cut into evenly spaced parts."""
    if len(members) == 1:
        return [(members, notes)]
    ordered = [members[index] for index in np.argsort(_heights(members), kind="stable")]
    if ordered[0].rows * ordered[0].columns * len(ordered) > MAX_VOXELS:
        return _one_by_one(ordered, (*notes, "more than 2^31 voxels in one series: slices are used one by one"))
    positions = np.array([entry.position for entry in ordered])
    parts = _even_parts(positions)
    if len(parts) > 1:
        notes = (*notes, _uneven(positions, parts))
    return [_with_tilt(ordered[first : last + 1], notes) for first, last in parts]


def _even_parts(positions: np.ndarray) -> list[tuple[int, int]]:
    """Cut sorted positions (n, 3) into parts (first, last) that are evenly spaced; together they hold every slice once.

    Position over slice number is a polyline. It is cut at its corners (Douglas and Peucker, 1973), and a slice at a
    corner goes to the part with more slices. A pair forms a part only where its gap is the usual one: two slices are
    always evenly spaced, which says nothing.
    """
    runs = _straight_runs(positions)
    lengths = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    usual = _usual_gap(lengths, runs)
    parts: list[tuple[int, int]] = []
    free = np.ones(len(positions), bool)
    for first, last in sorted(runs, key=lambda run: (run[0] - run[1], lengths[run[0]])):
        first, last = first + int(not free[first]), last - int(not free[last])
        pair_says_nothing = last - first == 1 and len(runs) > 1 and not _same_gap(lengths[first], usual)
        if last > first and not pair_says_nothing:
            parts.append((first, last))
            free[first : last + 1] = False
    parts += [(int(index), int(index)) for index in np.flatnonzero(free)]
    return sorted(parts)


def _straight_runs(positions: np.ndarray) -> list[tuple[int, int]]:
    """Runs (first, last) in which the affine puts every slice where it lies; neighbours share a slice."""
    runs: list[tuple[int, int]] = []
    left = [(0, len(positions) - 1)]
    while left:
        first, last = left.pop()
        part = positions[first : last + 1]
        step = (part[-1] - part[0]) / (last - first)
        away = np.abs(part - part[0] - np.arange(len(part))[:, None] * step).max(axis=1)
        if away.max() <= _tolerance(float(np.linalg.norm(step))):
            runs.append((first, last))
            continue
        corner = first + int(away.argmax())
        left += [(corner, last), (first, corner)]
    return runs


def _tolerance(gap: float) -> float:
    """How far from its place a slice may lie, in mm: what rounding to one decimal or 1 % does, never a quarter gap.

    A missing slice moves its neighbour by a third of the mean gap or more.
    """
    return min(max(0.01 * gap, ROUNDED_MM), 0.25 * gap) + 1e-6


def _same_gap(gap: float, other: float) -> bool:
    return abs(gap - other) <= 2 * _tolerance(min(gap, other))


def _usual_gap(lengths: np.ndarray, runs: list[tuple[int, int]]) -> float:
    """The gap of the longest run; where all are pairs, the smallest gap if the others are its multiples, else NaN."""
    first, last = max(runs, key=lambda run: run[1] - run[0])
    smallest = float(lengths.min())
    if last - first > 1:
        return float(np.mean(lengths[first:last]))
    return smallest if all(_times(gap, smallest) for gap in lengths) else float("nan")


def _times(gap: float, unit: float) -> int:
    """How many units a gap is long, 0 when it is no whole number of them."""
    count = round(gap / unit)
    return count if abs(gap - count * unit) <= 2 * _tolerance(unit) else 0


def _uneven(positions: np.ndarray, parts: list[tuple[int, int]]) -> str:
    """What is odd about slices that were cut into parts, in words."""
    lengths = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    stacks = [part for part in parts if part[1] > part[0]]
    singles = len(parts) - len(stacks)
    used = [f"{COUNTED.get(len(stacks), len(stacks))} stack{'s' if len(stacks) > 1 else ''}"] if stacks else []
    used += [f"{COUNTED.get(singles, singles)} single slice{'s' if singles > 1 else ''}"] if singles else []
    if not stacks:
        return f"irregular slice positions (0020,0032): gaps of {_listed(sorted({round(float(x), 2) for x in lengths}))} mm; slices are used one by one"
    first, last = max(stacks, key=lambda part: part[1] - part[0])
    usual = float(np.mean(lengths[first:last]))
    times = [_times(float(gap), usual) for gap in lengths]
    if all(times) and sum(times) > len(times):
        absent = sum(times) - len(times)
        wide = sorted({round(float(gap), 2) for gap, count in zip(lengths, times) if count > 1})
        what = "a slice is missing" if absent == 1 else f"{absent} slices are missing"
        return f"{what}: {'a gap' if sum(count > 1 for count in times) == 1 else 'gaps'} of {_listed(wide)} mm where the others are {_size(usual)} mm: used as {' and '.join(used)}"
    distances = len({_size(float(np.mean(lengths[first:last]))) for first, last in stacks})
    found = f"{COUNTED.get(distances, distances)} slice distances" if distances > 1 else "uneven slice positions"
    return f"{found} ({_in_order(lengths, stacks)} mm): used as {' and '.join(used)}"


def _size(value: float) -> str:
    return f"{round(value, 2):g}"


def _listed(values: list[float]) -> str:
    return ", ".join(_size(value) for value in values[:6]) + (" ..." if len(values) > 6 else "")


def _in_order(lengths: np.ndarray, stacks: list[tuple[int, int]]) -> str:
    """Gaps as they follow each other, those within a stack together: "4.22 x 13, 1.14, 7.38 x 13"."""
    shown: list[str] = []
    done = 0
    for first, last in stacks:
        shown += [_size(float(gap)) for gap in lengths[done:first]]
        shown.append(_size(float(np.mean(lengths[first:last]))) + (f" x {last - first}" if last - first > 1 else ""))
        done = last
    shown += [_size(float(gap)) for gap in lengths[done:]]
    return ", ".join(shown[:6]) + (" ..." if len(shown) > 6 else "")


def _with_tilt(stack: list[Slice], notes: tuple[str, ...]) -> Stack:
    """The stack with a note where it is sheared, and where Gantry/Detector Tilt (0018,1120) says otherwise."""
    if len(stack) < 2:
        return stack, notes
    found = shear(affine(stack))
    said = stack[0].tilt
    if found > UPRIGHT_DEGREES:
        cause = "gantry tilt" if stack[0].modality == "CT" else "slices stacked off their normal by"
        notes = (*notes, f"{cause} {found:.1f} degrees: slices kept exact, the affine holds the shear")
    if said is not None and stack[0].modality == "CT" and abs(abs(said) - found) > UPRIGHT_DEGREES:
        # A head tilted by its holder or a resampled stack keeps the tag and needs no correction.
        notes = (
            *notes,
            f"Gantry/Detector Tilt (0018,1120) says {said:g} degrees, the positions {found:.1f}: positions are believed",
        )
    return stack, notes


# ------------------------------------------------------------------------------------------------ geometry


def _heights(slices: list[Slice]) -> np.ndarray:
    """Positions along the common normal, in mm."""
    return np.array([entry.position for entry in slices]) @ normal(slices[0])


def normal(entry: Slice) -> np.ndarray:
    """Unit vector across the slice, LPS+: row direction x column direction."""
    orientation = np.array(entry.orientation or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    across = np.cross(orientation[:3], orientation[3:])
    return np.asarray(across / np.linalg.norm(across))


def affine(slices: Sequence[Slice]) -> np.ndarray:
    """Voxel index (i, j, k) -> mm in RAS+; DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.

    The slice axis comes from the first and last position, sheared where they are; a single slice has Slice Thickness
    or 1 mm along its normal.
    """
    first, last = slices[0], slices[-1]
    between_rows, between_columns = first.spacing or (1.0, 1.0)
    orientation = np.array(first.orientation or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    result = np.eye(4)
    result[:3, 0] = orientation[:3] * between_columns
    result[:3, 1] = orientation[3:] * between_rows
    if len(slices) > 1:
        assert first.position is not None and last.position is not None
        result[:3, 2] = (np.array(last.position) - np.array(first.position)) / (len(slices) - 1)
    else:
        result[:3, 2] = normal(first) * (first.thickness if first.thickness and first.thickness > 0 else 1.0)
    result[:3, 3] = first.position or (0.0, 0.0, 0.0)
    return np.asarray(LPS_TO_RAS @ result)


def shear(affine: np.ndarray) -> float:
    """Degrees between the slice axis and the normal of the slices: 0 for an upright stack."""
    across = np.cross(affine[:3, 0], affine[:3, 1])
    along = abs(float(across @ affine[:3, 2]))
    return float(np.degrees(np.arctan2(np.linalg.norm(np.cross(across, affine[:3, 2])), along)))


def unshear(image: Image, background: float | None = None) -> Image:
    """Resample a tilted volume onto an orthogonal grid, for use in 3-D: each slice is shifted within its plane.

    Values are linear between pixels; integers are rounded. The grid grows along I and J so that nothing is cut, and
    slice k of the result lies in the plane of slice k.

    Args:
        image: any volume; an upright one is returned as it is.
        background: value outside; None takes -1024 for HU and the lowest value for anything else.

    Raises:
        FormatError: the grid would have more than 2^31 voxels.
    """
    if shear(image.affine) < 1e-6:
        return image
    matrix = image.affine[:3, :3]
    upright, per_slice = steps(image.affine)
    channels, *size, slices = image.array.shape
    shifts = np.arange(slices)[:, None] * per_slice
    origin = np.floor(shifts.min(axis=0) + 1e-9).astype(int)
    grown = size + np.ceil(shifts.max(axis=0) - 1e-9).astype(int) - origin
    if int(np.prod(grown)) * slices > MAX_VOXELS:
        raise FormatError(f"expected at most 2^31 voxels after the tilt is undone, found {(*grown, slices)}")
    if background is None:
        background = -1024.0 if image.units == "HU" else float(image.array.min())
    array = np.empty((channels, *grown, slices), image.array.dtype)
    for k in range(slices):
        array[..., k] = _shifted(image.array[..., k], shifts[k] - origin, grown, background)
    affine = image.affine.copy()
    affine[:3, 2] = upright
    affine[:3, 3] += matrix[:, :2] @ origin
    note = f"tilt of {shear(image.affine):.1f} degrees undone: slices shifted, linear between pixels"
    return replace(image, array=array, affine=affine, notes=(*image.notes, note))


def steps(affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One step along K: its part across the slices in mm (3,), and its part within them in pixels along I and J (2,)."""
    matrix = affine[:3, :3]
    across = np.cross(matrix[:, 0], matrix[:, 1])
    across /= np.linalg.norm(across)
    upright = (across @ matrix[:, 2]) * across
    return upright, np.linalg.lstsq(matrix[:, :2], matrix[:, 2] - upright, rcond=None)[0]


def _shifted(plane: np.ndarray, shift: np.ndarray, size: np.ndarray, background: float) -> np.ndarray:
    """A plane (C, I, J) moved by shift >= 0 pixels on a larger canvas of background, linear between pixels."""
    whole = np.floor(shift + 1e-9).astype(int)
    fraction = np.maximum(shift - whole, 0.0)
    canvas = np.full((plane.shape[0], *(size + 1)), background, np.float64)
    canvas[:, whole[0] + 1 : whole[0] + 1 + plane.shape[1], whole[1] + 1 : whole[1] + 1 + plane.shape[2]] = plane
    canvas = (1 - fraction[0]) * canvas[:, 1:] + fraction[0] * canvas[:, :-1]
    canvas = (1 - fraction[1]) * canvas[:, :, 1:] + fraction[1] * canvas[:, :, :-1]
    if plane.dtype.kind in "iu":
        canvas = np.rint(canvas)
        limits = np.iinfo(plane.dtype)
        canvas = canvas.clip(limits.min, limits.max)
    return canvas.astype(plane.dtype)
