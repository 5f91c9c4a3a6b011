"""Pairs, for a model that was learned without any: its two datasets brought scans to other windows than a dataset of pairs does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from ..dataset import Dataset
from ..intensity import IntensityMap
from ..model import Model
from ..pairings import cases_of
from ..preprocess.window import window_of


def as_learned(data: Dataset, model: Model) -> Dataset:
    """The pairs with the windows that scans had where the model learned, and have in `translate`; the voxels are the same.

    CT sources get the model's window in HU, MR its own again, by percentiles where the model's were; others keep theirs.
    """
    settings, columns = model.config["translation"], dict(data.columns)
    choices, learned = settings["choices"], settings["source"]
    by_median = bool(choices.get("by_median", False))
    again = by_median != bool(data.info.get("choices", {}).get("by_median", False))

    def source(values: np.ndarray) -> IntensityMap | None:
        if learned["units"] == "HU":
            return IntensityMap(learned["low"], learned["high"], "HU")
        window, percentiles = choices.get("window"), choices.get("percentiles")
        return window_of(values, "MR", choices["dimensions"], None, window, percentiles, by_median)

    def target(values: np.ndarray) -> IntensityMap | None:
        return window_of(values, "MR", choices["dimensions"], by_median=by_median)

    changed: list[tuple[str, Callable[[int], np.ndarray | None], Callable[[np.ndarray], IntensityMap | None]]] = []
    if learned["units"] == "HU" or (again and learned["modality"] == "MR"):
        changed.append(("", data.image, source))
    if again and settings["target"]["modality"] == "MR":
        changed.append(("target_", data.target, target))
    for side, read, window_for in changed:
        low, high = (columns[f"{side}{end}"].copy() for end in ("low", "high"))
        for rows in cases_of(data, np.arange(len(data))):
            values = [one for one in map(read, rows.tolist()) if one is not None]
            if values and (window := window_for(np.stack(values))) is not None:
                low[rows], high[rows] = window.low, window.high
        columns |= {f"{side}low": low, f"{side}high": high}
    return replace(data, columns=columns)
