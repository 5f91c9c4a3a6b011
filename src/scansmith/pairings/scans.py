"""One scan is the source, its paired scan the target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dataset import Dataset
from ..intensity import IntensityMap
from ..preprocess.window import unclipped
from .base import WHOLE, Pairing, Part


@dataclass(frozen=True)
class Scans(Pairing):
    """Task `paired`."""

    @classmethod
    def of(cls, data: Dataset) -> Scans:
        """
        Raises:
            ValueError: there are no pairs.
        """
        if not data.info.get("target"):
            raise ValueError(
                f"expected paired scans to learn a translation from in {data.root}, found none: prepare them again with --pairs"
            )
        return cls(data)

    @property
    def out_channels(self) -> int:
        return int(self.data.info["target"]["channels"])

    def target(self, row: int, part: Part = WHOLE) -> np.ndarray:
        values = self.data.target(row)
        assert values is not None, "a dataset of pairs"
        columns = self.data.columns
        return unclipped(values[(slice(None), *part)], columns["target_low"][row], columns["target_high"][row])

    def window(self, row: int) -> IntensityMap:
        return self.data.target_intensity(row)

    def about(self) -> dict[str, Any]:
        return super().about() | {"target": self.data.info["target"]}
