"""Stored pairs as a translator sees them: source, target, where errors count, and what of their scans is familiar."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from . import familiarity
from .dataset import Dataset
from .preprocess.window import unclipped

BODY = -0.9  # a voxel is of the body where source or target lies above, encoded
MOST_CASES = 200  # training scans that say what is familiar
Part = tuple[slice, ...]
WHOLE: Part = ()


def source_of(data: Dataset, row: int, part: Part = WHOLE) -> np.ndarray:
    """(C, *spatial) float32, encoded: a row of a dataset, or a part of it; of a 2.5-D one the slices around it are further channels."""
    rows = data.neighbours(row) if data.info.get("neighbours") else [row]
    low, high = data.columns["low"][row], data.columns["high"][row]
    return np.concatenate([unclipped(data.image(int(one))[(slice(None), *part)], low, high) for one in rows])


def target_of(data: Dataset, row: int, part: Part = WHOLE) -> np.ndarray:
    """(C', *spatial) float32, encoded: the paired image of a row, or a part of it."""
    values = data.target(row)
    assert values is not None, "a dataset of pairs"
    columns = data.columns
    return unclipped(values[(slice(None), *part)], columns["target_low"][row], columns["target_high"][row])


def body(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(*spatial) bool: where errors count; source and target (C, *spatial) encoded."""
    return np.asarray((source > BODY).any(axis=0) | (target > BODY).any(axis=0))


def straight(line: tuple[float, float], source: np.ndarray) -> np.ndarray:
    """(1, *spatial): the target that a line (intercept, slope) makes of the middle channel."""
    middle = len(source) // 2
    return line[0] + line[1] * source[middle : middle + 1]


# ------------------------------------------------------------------------------------------------ what is familiar


def cases_of(data: Dataset, split: str) -> list[np.ndarray]:
    """The rows of each scan of a split, in order of slices."""
    rows = data.rows(split)
    cases = data.columns["case"][rows]
    each = (rows[cases == case] for case in dict.fromkeys(cases.tolist()))
    return [own[np.argsort(data.columns["slice"][own], kind="stable")] for own in each]


def case_features(data: Dataset, rows: np.ndarray) -> familiarity.Features:
    """What of a stored scan is compared with others: its values on the dataset's grid, the voxel size of its file."""
    columns = data.columns
    stored = [unclipped(data.image(int(row)), columns["low"][row], columns["high"][row]) for row in rows]
    array = np.stack(stored, 1) if stored[0].ndim == 3 else stored[0]
    found = familiarity.describe(array, None, data.info["modality"])
    spacing, crop = columns["spacing"][rows[0]], columns["crop"][rows[0]][3:]
    if not (np.isfinite(spacing).all() and (crop > 0).all()):
        return found
    # The grid spans `crop` voxels of the file; slices are never resampled in 2-D.
    own = (
        spacing * np.array(array.shape[1:]) / crop
        if data.info.get("depth")
        else np.array([spacing[0], *(spacing[1:] * array.shape[2:] / crop[1:])])
    )
    size = [round(float(extent)) for extent in np.array(array.shape[1:]) * spacing / own]
    return replace(found, size=size, spacing=[float(step) for step in own])


def familiar(data: Dataset) -> dict[str, Any]:
    """What training scans are like, and how far from them the calibration patients' lie; see `familiarity.learn`."""
    cases = cases_of(data, "train")
    chosen = cases[:: max(1, -(-len(cases) // MOST_CASES))]
    patients: dict[str, list[familiarity.Features]] = {}
    for rows in cases_of(data, "calibration"):
        patients.setdefault(str(data.columns["patient"][rows[0]]), []).append(case_features(data, rows))
    return familiarity.learn([case_features(data, rows) for rows in chosen], list(patients.values()))
