"""What of the scans of a dataset is familiar to a model that learned from it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from .. import familiarity
from ..dataset import Dataset
from ..preprocess.window import unclipped

MOST_CASES = 200  # training scans that say what is familiar


def cases_of(data: Dataset, rows: np.ndarray) -> list[np.ndarray]:
    """Rows by scan, each in order of slices."""
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
    cases = cases_of(data, data.rows("train"))
    chosen = cases[:: max(1, -(-len(cases) // MOST_CASES))]
    patients: dict[str, list[familiarity.Features]] = {}
    for rows in cases_of(data, data.rows("calibration")):
        patients.setdefault(str(data.columns["patient"][rows[0]]), []).append(case_features(data, rows))
    return familiarity.learn([case_features(data, rows) for rows in chosen], list(patients.values()))
