"""DICOM series: which slices form one volume, in what order, and where it lies in the patient."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..image import PROJECTION
from .source import LPS_TO_RAS, MAX_VOXELS, Skipped

SAME_POSITION_MM = 0.01
Stack = tuple[list["Slice"], tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class Slice:
    """One single-frame image's header as plain values.

    Attributes:
        position: Image Position (Patient) (0020,0032), mm in LPS+, centre of the first pixel; None when absent.
        orientation: Image Orientation (Patient) (0020,0037): row direction, column direction; None when absent.
        spacing: Pixel Spacing (0028,0030): mm between rows, mm between columns; None when absent.
        thickness: Slice Thickness (0018,0050) in mm; used only where positions do not tell.
        instance: Instance Number (0020,0013).
        acquisition: what tells images at one position apart (echo, b-value ...), the most telling first.
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


def arrange(slices: list[Slice], digest: Callable[[Path], str]) -> tuple[list[Stack], list[Skipped]]:
    """Group slices into volumes: one series, one grid, one position each, evenly spaced along the slice normal.

    What does not form such a volume (uneven gaps, gantry tilt, no position) is kept slice by slice with a note, so
    that no spacing is ever averaged over a missing slice.

    Args:
        slices: headers in any order.
        digest: file -> hash of its pixels, called only for files at one position.

    Returns:
        (slices sorted by position, notes) per volume, and the identical copies left out.
    """
    stacks: list[Stack] = []
    skipped: list[Skipped] = []
    for group in _grids(slices):
        if group[0].modality in PROJECTION or group[0].position is None or group[0].orientation is None:
            absent = (
                ()
                if group[0].modality in PROJECTION
                else ("Image Position (0020,0032) or Orientation (0020,0037) is absent: slices are used one by one",)
            )
            stacks += [([entry], absent if len(group) > 1 else ()) for entry in group]
            continue
        group, copies = drop_identical(group, "position (0020,0032)", _position_key, digest)
        skipped += copies
        for stack, notes in _acquisitions(group):
            ordered = sorted(stack, key=height)
            problem = _problem(ordered)
            stacks += [([entry], (*notes, problem)) for entry in ordered] if problem else [(ordered, notes)]
    return stacks, skipped


def drop_identical(
    slices: list[Slice], words: str, key: Callable[[Slice], Hashable], digest: Callable[[Path], str]
) -> tuple[list[Slice], list[Skipped]]:
    """Keep one of several files that share a key and all pixels; the first by path stays."""
    groups: dict[Hashable, list[Slice]] = defaultdict(list)
    for entry in slices:
        groups[key(entry) or entry.file].append(entry)
    kept: list[Slice] = []
    skipped: list[Skipped] = []
    for members in groups.values():
        seen: set[str] = set()
        for entry in sorted(members, key=lambda member: member.file):
            try:
                mark = digest(entry.file) if len(members) > 1 else ""
            except Exception:  # unreadable pixels are reported by read()
                mark = str(entry.file)
            if mark in seen:
                skipped.append(
                    Skipped(
                        entry.file,
                        f"a copy: another file has the same {words} and the same pixels; one of them is used",
                    )
                )
            else:
                kept.append(entry)
            seen.add(mark)
    return kept, skipped


def height(entry: Slice) -> float:
    """Position along the slice normal, in mm: the sorting key of a series."""
    assert entry.position is not None
    return float(np.dot(entry.position, normal(entry)))


def normal(entry: Slice) -> np.ndarray:
    """Unit vector across the slice, LPS+: row direction x column direction."""
    orientation = np.array(entry.orientation or (1.0, 0.0, 0.0, 0.0, 1.0, 0.0))
    across = np.cross(orientation[:3], orientation[3:])
    return across / np.linalg.norm(across)


def affine(slices: list[Slice]) -> np.ndarray:
    """Voxel index (i, j, k) -> mm in RAS+; DICOM PS3.3 C.7.6.2.1.1, equation C.7.6.2.1-1.

    The slice axis comes from the first and last position; a single slice has Slice Thickness or 1 mm along its normal.
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
    return LPS_TO_RAS @ result


def _grids(slices: list[Slice]) -> list[list[Slice]]:
    """Slices of one series on one grid: equal size, spacing and orientation (within rounding)."""
    series: dict[Hashable, list[list[Slice]]] = defaultdict(list)
    for entry in slices:
        # Without a Series Instance UID nothing says that two files belong together.
        name = entry.series or str(entry.file)
        key = (
            name,
            entry.study,
            entry.frame_of_reference,
            entry.modality,
            entry.channels,
            entry.rows,
            entry.columns,
            entry.position is None,
            entry.orientation is None,
            entry.spacing is None,
        )
        for group in series[key]:
            if np.allclose(group[0].orientation or (), entry.orientation or (), rtol=0, atol=1e-3) and np.allclose(
                group[0].spacing or (), entry.spacing or (), rtol=1e-3
            ):
                group.append(entry)
                break
        else:
            series[key].append([entry])
    return [group for groups in series.values() for group in groups]


def _position_key(entry: Slice) -> Hashable:
    return tuple(round(value / SAME_POSITION_MM) for value in entry.position or ())


def _repeats(group: list[Slice]) -> int:
    """How many slices lie where another one lies."""
    heights = np.sort([height(entry) for entry in group])
    return int(np.count_nonzero(np.diff(heights) < SAME_POSITION_MM))


def _acquisitions(group: list[Slice]) -> list[Stack]:
    """Split a series with several images at one position by the first tags that tell them apart (echo, b-value ...)."""
    if _repeats(group) == 0:
        return [(group, ())]
    for index in range(len(group[0].acquisition)):
        parts: dict[str, list[Slice]] = defaultdict(list)
        for entry in group:
            parts[entry.acquisition[index]].append(entry)
        if len(parts) > 1 and sum(map(_repeats, parts.values())) < _repeats(group):
            return [stack for _, part in sorted(parts.items()) for stack in _acquisitions(part)]
    note = "several different images at one position, which no tag tells apart: slices are used one by one"
    return [([entry], (note,)) for entry in group]


def _problem(ordered: list[Slice]) -> str | None:
    """Why sorted slices are not a volume, or None: uneven gaps, a gantry tilted by more than 0.6 degrees, or too many voxels.

    A gap may exceed the smallest by 2 % or 0.1 mm, as positions rounded to one decimal do, and never by 40 %: at
    100 % a slice is missing.
    """
    if len(ordered) < 2:
        return None
    positions = np.array([entry.position for entry in ordered])
    steps = np.diff(positions, axis=0)
    along = steps @ normal(ordered[0])
    gap = float(along.min())
    tolerance = min(max(0.02 * gap, 0.1), 0.4 * gap) + 1e-6
    sideways = float(np.linalg.norm(steps.sum(axis=0) - along.sum() * normal(ordered[0]))) / max(
        float(along.sum()), 1e-6
    )
    if along.max() - gap > tolerance:
        tilt = f", stacked {np.degrees(np.arctan(sideways)):.1f} degrees off their normal" if sideways > 0.01 else ""
        distinct = sorted({round(float(value), 2) for value in along})
        shown = ", ".join(f"{value:g}" for value in distinct[:6]) + (" ..." if len(distinct) > 6 else "")
        return f"uneven slice positions (0020,0032): gaps of {shown} mm{tilt}; slices are used one by one"
    if sideways > 0.01:
        return f"slices are stacked {np.degrees(np.arctan(sideways)):.1f} degrees off their normal (gantry tilt): slices are used one by one"
    if ordered[0].rows * ordered[0].columns * len(ordered) > MAX_VOXELS:
        return "more than 2^31 voxels in one series: slices are used one by one"
    return None
