"""Label maps: of an image (segmentation), or as what an image is made from (painting)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..dataset import Dataset
from ..intensity import IntensityMap
from .base import BODY, WHOLE, Pairing, Part

MOST_LOOKED_AT = 2000  # masks whose values are the labels
MOST_LABELS = 64
SHOWS_LABELS = 1 / 3  # of patches must show a label, if one of some tries does


@dataclass(frozen=True)
class Masks(Pairing):
    """What both have in common.

    Attributes:
        labels: the values of the label maps, rising, without 0, which is background.
    """

    labels: tuple[int, ...] = ()

    @classmethod
    def of(cls, data: Dataset) -> Pairing:
        """
        Raises:
            ValueError: there are no masks, or nothing is marked in them.
        """
        rows = data.rows("train")
        rows = rows[data.columns["masked"][rows]] if "masks" in data.info["layers"] else rows[:0]
        if not len(rows):
            raise ValueError(
                f"expected scans with masks in the training split of {data.root}, found none: prepare them again with --masks"
            )
        looked_at = rows[np.unique(np.linspace(0, len(rows) - 1, min(MOST_LOOKED_AT, len(rows))).astype(int))]
        found = np.zeros(256, bool)
        for row in looked_at:
            found[np.unique(marked(data, int(row)))] = True
        labels = np.flatnonzero(found[1:]) + 1
        if not 0 < len(labels) <= MOST_LABELS:
            raise ValueError(
                f"expected 1 to {MOST_LABELS} labels in the masks of {data.root}, found {len(labels) or 'nothing marked'}: prepare it again with other masks"
            )
        return cls(data, tuple(int(label) for label in labels))

    def rows(self, split: str) -> np.ndarray:
        rows = self.data.rows(split)
        return rows[self.data.columns["masked"][rows]]

    @cached_property
    def numbers(self) -> np.ndarray:
        """(256,) value of a label map -> class; values that no training mask has are background."""
        table = np.zeros(256, np.int64)
        table[list(self.labels)] = np.arange(1, len(self.labels) + 1)
        return table

    def one_hot(self, row: int, part: Part) -> np.ndarray:
        """(1 + labels, *spatial) float32 in {0, 1}, background first."""
        return one_hot(self.numbers[marked(self.data, row)[part]], 1 + len(self.labels))


class Segmentation(Masks):
    """Task `segment`: an image is the source, its label map the target."""

    output: ClassVar[str] = "mask"
    outside: ClassVar[float] = 0.0

    @property
    def out_channels(self) -> int:
        return 1 + len(self.labels)

    def target(self, row: int, part: Part = WHOLE) -> np.ndarray:
        return self.one_hot(row, part)

    def window(self, row: int) -> IntensityMap:
        return IntensityMap(0.0, 1.0, "label")

    def body(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Everywhere."""
        return np.ones(target.shape[1:], bool)

    def worth(self, inside: np.ndarray, target: np.ndarray, random: np.random.Generator) -> bool:
        return bool(random.random() > SHOWS_LABELS or (target[1:] > 0.5).any())

    def error(self, made: np.ndarray, target: np.ndarray, inside: np.ndarray) -> float:
        """1 - the mean Dice coefficient of the labels that either marks."""
        chosen, true = made.argmax(axis=0), target.argmax(axis=0)
        dice = []
        for label in range(1, len(target)):
            one, other = chosen == label, true == label
            if one.any() or other.any():
                dice.append(2.0 * float((one & other).sum()) / float(one.sum() + other.sum()))
        return 1.0 - float(np.mean(dice)) if dice else 0.0

    def simple(self, line: tuple[float, ...], source: np.ndarray) -> np.ndarray:
        """Nothing is marked."""
        return one_hot(np.zeros(source.shape[1:], np.int64), self.out_channels)

    def in_units(self, error: float, row: int) -> float:
        return error

    def picture(self, target: np.ndarray) -> np.ndarray:
        """Background black, labels up to white."""
        return 2.0 * target.argmax(axis=0).astype(np.float32) / len(self.labels) - 1.0

    def words(self, error: float, ratio: float) -> str:
        return f"Dice {1.0 - error:.3f}"

    def about(self) -> dict[str, Any]:
        target = {"modality": "OT", "channels": self.out_channels, "units": "label", "labels": list(self.labels)}
        return super().about() | {"target": target}


class Painting(Masks):
    """Task `paint`: a label map is the source, the image it belongs to the target."""

    input: ClassVar[str] = "mask"

    @property
    def bendable(self) -> bool:
        return False

    @property
    def in_channels(self) -> int:
        return (1 + len(self.labels)) * self.slices

    def source(self, row: int, part: Part = WHOLE, random: np.random.Generator | None = None) -> np.ndarray:
        """One-hot, in {-1, 1}."""
        rows = self.data.neighbours(row) if self.slices > 1 else [row]
        marked = [int(one) if self.data.columns["masked"][one] else row for one in rows]
        return 2.0 * np.concatenate([self.one_hot(one, part) for one in marked]) - 1.0

    def body(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Where the image is above background or something is marked."""
        labelled = self.middle(source)[1:] > 0.0
        return np.asarray((target > BODY).any(axis=0) | labelled.any(axis=0))

    def view(self, source: np.ndarray) -> np.ndarray:
        """Background black, labels up to white."""
        return 2.0 * self.middle(source).argmax(axis=0).astype(np.float32) / len(self.labels) - 1.0

    def familiar(self) -> dict[str, Any] | None:
        """Label maps are not compared: anatomy may be drawn as is liked."""
        return None

    def about(self) -> dict[str, Any]:
        source = {"modality": "OT", "low": 0.0, "high": 1.0, "units": "label", "labels": list(self.labels)}
        return super().about() | {"source": source}


def marked(data: Dataset, row: int) -> np.ndarray:
    """(*spatial) uint8: the label map of a row that has one."""
    mask = data.mask(row)
    assert mask is not None, "a row with a mask"
    return mask


def one_hot(numbers: np.ndarray, classes: int) -> np.ndarray:
    """(*spatial) classes -> (classes, *spatial) float32 in {0, 1}."""
    return np.asarray(numbers[None] == np.arange(classes).reshape(-1, *(1,) * numbers.ndim), np.float32)


def label_map(scores: np.ndarray, labels: Sequence[int]) -> np.ndarray:
    """(classes, *spatial) scores -> (*spatial) uint8: the value of the label with the highest score, 0 for background."""
    return np.array([0, *labels], np.uint8)[scores.argmax(axis=0)]
