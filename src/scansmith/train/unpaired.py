"""Feed of images of two kinds that do not belong together."""

from __future__ import annotations

from ..dataset import Dataset
from .feed import Feed
from .recipes import Recipe


def channels(data: Dataset) -> int:
    """Channels of a source."""
    return int(data.shape[0])


def gather(data: Dataset, other: Dataset, recipe: Recipe, patch: tuple[int, ...]) -> Feed:
    """
    Raises:
        ValueError: always, as long as nothing learns from unpaired scans.
    """
    raise ValueError(
        f"expected paired scans, found {data.root} and {other.root}: learning from unpaired ones is not there yet"
    )
