"""What a translator learns from stored rows: which part is the source, which the target; one class per task."""

from __future__ import annotations

from collections.abc import Callable

from ..dataset import Dataset
from .base import WHOLE, Pairing, Part, straight
from .degraded import Denoising, SuperResolution
from .familiar import cases_of, familiar
from .masks import Painting, Segmentation, label_map, one_hot
from .scans import Scans, Several, with_presence

__all__ = [
    "PAIRINGS",
    "WHOLE",
    "Pairing",
    "Part",
    "Several",
    "cases_of",
    "familiar",
    "label_map",
    "one_hot",
    "pairing",
    "straight",
    "with_presence",
]

# Task of a recipe -> what it learns.
PAIRINGS: dict[str, Callable[[Dataset], Pairing]] = {
    "paired": Scans.of,
    "denoise": Denoising.of,
    "superresolve": SuperResolution.of,
    "segment": Segmentation.of,
    "paint": Painting.of,
}


def pairing(task: str, data: Dataset) -> Pairing:
    """The source and target of each row of a dataset.

    Raises:
        ValueError: the dataset does not hold what the task needs.
    """
    return PAIRINGS[task](data)
