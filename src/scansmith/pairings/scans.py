"""One scan is the source, its paired scan the target; or several scans are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..dataset import Dataset
from ..intensity import IntensityMap
from ..preprocess.window import unclipped
from .base import AIR, BEND, BODY, GAIN, WHOLE, Pairing, Part, brightened
from .familiar import familiar

WHOLE_SET = 0.5  # share of draws in which no source is dropped
THERE, MISSING = -1.0, 1.0  # what the channel says that goes with each of several sources


@dataclass(frozen=True)
class Scans(Pairing):
    """Task `paired`."""

    @classmethod
    def of(cls, data: Dataset) -> Scans:
        """
        Raises:
            ValueError: there are no pairs, or several sources where one is wished.
        """
        if not data.info.get("target"):
            raise ValueError(
                f"expected paired scans to learn a translation from in {data.root}, found none: prepare them again with --pairs"
            )
        if not data.info.get("sources"):
            return cls(data)
        if cls is not Scans:
            raise ValueError(
                f"expected one source for each target in {data.root}, found {len(data.info['sources'])}: use --task paired"
            )
        return Several(data)

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


@dataclass(frozen=True)
class Several(Scans):
    """Task `paired` where several scans are the source of one target, any of which may be missing.

    A source is S images and S channels that say which of them are there: `THERE`, or `MISSING` beside an image of air. While
    learning, sources that are there are dropped at random, so that any of them alone, and all together, can be translated from
    (Havaei et al. 2016, HeMIS, section 2.3; Sharma and Hamarneh 2019, MM-GAN).

    Attributes:
        only: sources to use, by number, where not all that are there; others are taken as missing.
    """

    only: tuple[int, ...] | None = None

    @property
    def names(self) -> list[str]:
        """What each source is called."""
        return [str(one["name"]) for one in self.data.info["sources"]]

    @property
    def in_channels(self) -> int:
        return 2 * len(self.names) * self.slices

    @property
    def bendable(self) -> bool:
        """Each source is bent by itself."""
        return False

    @property
    def alike(self) -> int | None:
        """The first source of the target's modality, which the target is compared with as it is; None where there is none."""
        modality = self.data.info["target"]["modality"]
        found = (k for k, one in enumerate(self.data.info["sources"]) if one["modality"] == modality)
        return next(found, None)

    def source(self, row: int, part: Part = WHOLE, random: np.random.Generator | None = None) -> np.ndarray:
        here = self.present(row) if random is None else drawn(self.present(row), random)
        rows = self.data.neighbours(row) if self.slices > 1 else [row]
        bends = [self._bend(number, random) for number in range(len(here))]
        return np.concatenate([self._together(int(one), row, part, here, bends) for one in rows])

    def present(self, row: int) -> np.ndarray:
        """(S,) bool: which sources a row has, of those to use.

        Raises:
            ValueError: none of those to use.
        """
        here = np.array(self.data.columns["present"][row])
        if self.only is not None:
            here &= np.isin(np.arange(len(here)), self.only)
        if not here.any():
            raise ValueError(f"expected a row with one of the sources {self.only}, found none in row {row}")
        return here

    def rows(self, split: str) -> np.ndarray:
        """With `only` the rows that have all of these."""
        rows = super().rows(split)
        if self.only is None:
            return rows
        return rows[self.data.columns["present"][rows][:, list(self.only)].all(axis=1)]

    def _together(
        self, row: int, window: int, part: Part, here: np.ndarray, bends: list[tuple[float, float]]
    ) -> np.ndarray:
        """(2 S, *spatial) of one slice or volume, by the windows of another row of the scan."""
        columns = self.data.columns
        images = []
        for number, values in enumerate(self.data.sources(row, part)):
            low, high = (columns[name][window][number] for name in ("source_low", "source_high"))
            image = unclipped(values, low, high) if here[number] else np.full_like(values, AIR)
            images.append(brightened(image, *bends[number]) if here[number] and any(bends[number]) else image)
        return with_presence(np.stack(images), here)

    def _bend(self, number: int, random: np.random.Generator | None) -> tuple[float, float]:
        """By how much a source is made brighter, and bent: CT, whose numbers mean the same everywhere, not at all."""
        if random is None or self.data.info["sources"][number]["modality"] == "CT":
            return 0.0, 0.0
        return float(random.uniform(-GAIN, GAIN)), float(random.uniform(-BEND, BEND))

    # -------------------------------------------------------------------------------------------- what counts

    def images(self, source: np.ndarray) -> np.ndarray:
        """(S, *spatial): the images of the row itself."""
        return self.middle(source)[: len(self.names)]

    def body(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        return np.asarray((self.images(source) > BODY).any(axis=0) | (target > BODY).any(axis=0))

    def regressors(self, source: np.ndarray) -> np.ndarray:
        """All images, and which are there."""
        return self.middle(source)

    def view(self, source: np.ndarray) -> np.ndarray:
        """The source of the target's modality if it is there, else the first that is."""
        images, said = np.split(self.middle(source), 2)
        here = [k for k in range(len(images)) if said[k].flat[0] < 0.0]
        return images[self.alike if self.alike in here else here[0]]

    # -------------------------------------------------------------------------------------------- for the model

    def familiar(self) -> dict[str, Any] | None:
        """Each source has its own, see `about`."""
        return None

    def about(self) -> dict[str, Any]:
        """Besides, of each source in "sources": {"name", "modality", "pattern", "low", "high", "units", "familiarity"}."""
        columns, rows = self.data.columns, Scans.rows(self, "train")
        found = []
        for number, one in enumerate(self.data.info["sources"]):
            own = rows[columns["present"][rows][:, number]]
            ends = {
                end: float(np.median(columns[f"source_{end}"][own, number])) if len(own) else None
                for end in ("low", "high")
            }
            said = {name: one[name] for name in ("name", "modality", "pattern", "units")}
            found.append(said | ends | {"familiarity": familiar(self.data, number) if len(own) else None})
        return super().about() | {"sources": found}


def drawn(present: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """(S,) bool: half of the time all sources that are there, else any of their sets but the empty one, each as often."""
    there = np.flatnonzero(present)
    if len(there) < 2 or random.random() < WHOLE_SET:
        return present
    number = int(random.integers(1, 2 ** len(there)))
    kept = np.zeros_like(present)
    kept[there[[bool(number >> k & 1) for k in range(len(there))]]] = True
    return kept


def with_presence(images: np.ndarray, here: np.ndarray) -> np.ndarray:
    """(S, *spatial) images, of which `here` (S,) are there -> (2 S, *spatial): they, and a channel of each that says so."""
    said = np.where(here, np.float32(THERE), np.float32(MISSING)).reshape(-1, *(1,) * (images.ndim - 1))
    return np.concatenate([images, np.broadcast_to(said, images.shape)]).astype(np.float32, copy=False)
