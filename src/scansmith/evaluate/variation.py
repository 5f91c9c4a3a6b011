"""Blur and flicker: how much an image varies from slice to slice, and within slices, beside the reference."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .held_out import Scan

WANTED = (0.9, 1.1)  # of the reference's variation from slice to slice
LEAST = 1e-9


def variation(scan: Scan) -> dict[str, float]:
    """{"slices", "in_plane"}: mean |difference| between neighbours in the body, of the output over that of the reference.

    "slices" where slices are neighbours of one scan.
    """
    sums = {"slices": np.zeros(2), "in_plane": np.zeros(2)}
    for run in scan.runs or (slice(0, len(scan.source)),):
        inside = scan.inside[run]
        for axis, name in enumerate(("slices", "in_plane", "in_plane")):
            if not scan.runs and name == "slices":
                continue
            both = paired(inside, axis)
            sums[name] += [
                float(np.abs(np.diff(one[run], axis=axis))[both].sum(dtype=np.float64))
                for one in (scan.middle, scan.target)
            ]
    return {name: float(made / true) for name, (made, true) in sums.items() if true > LEAST}


def paired(inside: np.ndarray, axis: int) -> np.ndarray:
    """True where a voxel and the next one along an axis are both inside."""
    before, after = (inside[(*(slice(None),) * axis, part)] for part in (slice(None, -1), slice(1, None)))
    return np.asarray(before & after)


def sentence(found: Mapping[str, Any]) -> str:
    """What the ratios say."""
    if "slices" not in found:
        return "Variation from slice to slice was not measured: the slices are not neighbours of one scan."
    value, plane = found["slices"]["value"], found.get("in_plane", {}).get("value")
    low, high = WANTED
    within = "" if plane is None else f", within slices {plane:.2f}"
    meaning = (
        f"less than {low:g}: the translation is smoother than the reference, by blur or by less noise"
        if value < low
        else f"more than {high:g}: the translation flickers from slice to slice, or is noisier"
        if value > high
        else f"between the wanted {low:g} and {high:g}"
    )
    return f"From slice to slice the translation varies {value:.2f} times as much as the reference{within}; {meaning}."
