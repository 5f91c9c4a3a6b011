"""Blocks: where too few patients can be left out, the slices of one of them in contiguous blocks with gaps between."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .names import plural

# Between two blocks lie so many slices, and so many mm, that no split learns from or is judged on.
LEAST_GAP, LEAST_GAP_MM = 3, 5.0
SHARES = {"train": 0.70, "validation": 0.10, "holdout": 0.20}
PARALLEL = 0.9  # cosine between the directions of slices that can be put in one order
NO_STATEMENT = "blocked slices of one patient: no statement about other patients"


@dataclass(frozen=True)
class Blocks:
    """Another split of the rows of one patient.

    Attributes:
        split: (N,) of every row; "" in the gaps, and where it was before.
        whole: whether the holdout, too, is a block of the only patient.
        words: what was done.
    """

    split: np.ndarray
    whole: bool
    words: tuple[str, ...]


def blocked(columns: Mapping[str, np.ndarray], names: Sequence[str], neighbours: int) -> Blocks | None:
    """Blocks for one patient, or for the training patient of two; None where there are more, or too few slices.

    One patient's slices become 70 % training, 10 % validation and 20 % holdout, in this order along the slice axis; of two
    patients one is held out, and the last slices of the other validate.

    Args:
        columns: the manifest of 2-D rows.
        names: of each row's scan, which says the order of single pictures.
        neighbours: of 2.5-D: no slice is seen by two blocks.
    """
    split = columns["split"]
    used = split != ""
    patients = sorted(set(columns["patient"][used].tolist()))
    sides = Counter(split[used & (columns["patient"] == patient)][0] for patient in patients)
    layouts = {
        (("train", 1),): ("train", "validation", "holdout"),
        (("holdout", 1), ("train", 1)): ("train", "validation"),
    }
    wanted = layouts.get(tuple(sorted(sides.items())))
    if wanted is None:
        return None
    rows = np.flatnonzero(split == "train")
    places, step, in_mm = positions(columns, rows, names)
    gap = step * max(LEAST_GAP, 2 * neighbours)
    gap = max(gap, LEAST_GAP_MM) if in_mm else gap
    chosen = cut(places, step, gap, wanted)
    if not all((chosen == name).any() for name in wanted):
        return None
    result = split.astype("U11").copy()
    result[rows] = chosen
    lost = int((chosen == "").sum())
    size = f"{gap:.3g} mm" if in_mm else plural(round(gap), "slice")
    done = f"{', '.join(wanted)} along the slice axis, with gaps of {size} ({plural(lost, 'image')} in no split)"
    whole = "holdout" in wanted
    what = (
        NO_STATEMENT if whole else "validation by blocked slices of the training patient; the other patient is held out"
    )
    return Blocks(result, whole, (f"split: {what}", f"blocks: {done}"))


def cut(places: np.ndarray, step: float, gap: float, wanted: Sequence[str]) -> np.ndarray:
    """(n,) the split of each place, "" in the gaps; blocks by `SHARES` of what the gaps leave."""
    first, last = float(places.min()), float(places.max()) + step
    shares = np.array([SHARES[name] for name in wanted])
    length = (last - first - gap * (len(wanted) - 1)) * shares / shares.sum()
    result = np.full(len(places), "", "U11")
    begin = first
    for name, own in zip(wanted, length):
        result[(places >= begin - 1e-6 * step) & (places < begin + own - 1e-6 * step)] = name
        begin += own + gap
    return result


def positions(
    columns: Mapping[str, np.ndarray], rows: np.ndarray, names: Sequence[str]
) -> tuple[np.ndarray, float, bool]:
    """(n,) where each slice lies along the slice axis, the usual distance of neighbours, and whether in mm.

    In mm where all files say it and their slices are parallel; else in slices, of scans of different length scaled to the
    longest; single pictures in the order of their names, numbers in them counted as numbers.
    """
    cases, slices = columns["case"][rows], columns["slice"][rows]
    each = [np.flatnonzero(cases == case) for case in dict.fromkeys(cases.tolist())]
    affines = columns["affine"][rows]
    if max(len(own) for own in each) == 1:
        order = sorted(range(len(rows)), key=lambda number: natural(names[int(rows[number])]))
        places = np.empty(len(rows))
        places[order] = np.arange(len(rows))
        return places, 1.0, False
    if np.isfinite(affines).all():
        steps = affines[:, :3, 2] / np.linalg.norm(affines[:, :3, 2], axis=1, keepdims=True)
        if (np.abs(steps @ steps[0]) >= PARALLEL).all():
            places = affines[:, :3, 3] @ steps[0]
            usual = np.median(np.concatenate([np.diff(np.sort(places[own])) for own in each if len(own) > 1]))
            return places, max(float(usual), 1e-3), True
    longest = float(max(slices[own].max() for own in each))
    places = np.empty(len(rows))
    for own in each:
        places[own] = slices[own] * longest / max(1.0, float(slices[own].max()))
    return places, 1.0, False


def natural(name: str) -> list[tuple[int, int, str]]:
    """A key by which "s2" comes before "s10"."""
    parts = re.split(r"(\d+)", name.lower())
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]
