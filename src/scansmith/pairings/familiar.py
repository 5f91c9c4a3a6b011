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


def encoded(data: Dataset, row: int, number: int | None) -> np.ndarray:
    """The image of a row, or one of its several sources, encoded: (C, *spatial)."""
    columns = data.columns
    if number is None:
        return unclipped(data.image(row), columns["low"][row], columns["high"][row])
    own = data.sources(row)[number : number + 1]
    return unclipped(own, columns["source_low"][row][number], columns["source_high"][row][number])


def case_features(data: Dataset, rows: np.ndarray, number: int | None = None) -> familiarity.Features:
    """What of a stored scan, or of one of its several sources, is compared with others: its values on the dataset's grid, the voxel size of its file."""
    columns = data.columns
    stored = [encoded(data, int(row), number) for row in rows]
    array = np.stack(stored, 1) if stored[0].ndim == 3 else stored[0]
    modality = data.info["modality"] if number is None else data.info["sources"][number]["modality"]
    found = familiarity.describe(array, None, modality)
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


def familiar(data: Dataset, number: int | None = None) -> dict[str, Any]:
    """What training scans are like, and how far from them the calibration patients' lie; see `familiarity.learn`.

    Args:
        data: the dataset.
        number: one of several sources, of the cases that have it; None for the scans.
    """

    def rows_of(split: str) -> np.ndarray:
        rows = data.rows(split)
        return rows if number is None else rows[data.columns["present"][rows][:, number]]

    cases = cases_of(data, rows_of("train"))
    chosen = cases[:: max(1, -(-len(cases) // MOST_CASES))]
    patients: dict[str, list[familiarity.Features]] = {}
    for rows in cases_of(data, rows_of("calibration")):
        patients.setdefault(str(data.columns["patient"][rows[0]]), []).append(case_features(data, rows, number))
    return familiarity.learn([case_features(data, rows, number) for rows in chosen], list(patients.values()))
