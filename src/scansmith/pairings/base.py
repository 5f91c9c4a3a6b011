"""Source and target of a stored row, encoded, as all tasks of translation share them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from ..dataset import Dataset
from ..image import PICTURES
from ..intensity import IntensityMap
from ..preprocess.slices import directions
from ..preprocess.window import unclipped
from .familiar import familiar

BODY = -0.9  # a voxel is of the body where source or target lies above, encoded
AIR = -1.0  # around an image, encoded
MOSTLY = 0.9  # share of training slices that must lie alike for scans to be turned so
LEAST_BODY = 0.1  # of a patch that is worth learning from
# A source whose scale is arbitrary, as all but CT, is made brighter or darker, and bent, by so much at most.
GAIN, BEND = 0.1, 0.3
Part = tuple[slice, ...]
WHOLE: Part = ()


@dataclass(frozen=True)
class Pairing:
    """A dataset as a translator sees it.

    Attributes:
        data: the prepared dataset.
        input, output: "image" or "mask": what source and target are.
        residual: whether the target is the source's middle channels, a little changed.
        bendable: whether a source may be made brighter while learning: its scale is arbitrary, and not the target's.
        outside: target beyond the borders of an image.
    """

    data: Dataset
    input: ClassVar[str] = "image"
    output: ClassVar[str] = "image"
    residual: ClassVar[bool] = False
    outside: ClassVar[float] = AIR

    # -------------------------------------------------------------------------------------------- what there is

    @property
    def slices(self) -> int:
        """Slices that a source consists of: 1, or those of 2.5-D."""
        return 2 * int(self.data.info.get("neighbours") or 0) + 1

    @property
    def in_channels(self) -> int:
        """Channels of a source."""
        return int(self.data.shape[0]) * self.slices

    @property
    def out_channels(self) -> int:
        """Channels of a target."""
        return int(self.data.shape[0])

    @property
    def bendable(self) -> bool:
        return bool(self.data.info["modality"] != "CT" and not self.residual)

    def rows(self, split: str) -> np.ndarray:
        """The rows of a split that can be learned from or judged, in manifest order."""
        return self.data.rows(split)

    # -------------------------------------------------------------------------------------------- a row

    def source(self, row: int, part: Part = WHOLE, random: np.random.Generator | None = None) -> np.ndarray:
        """(C, *spatial) float32, encoded: the source of a row, or a part of it; in 2.5-D the slices around it one after the other.

        Args:
            row: number of a row.
            part: slices of the spatial axes.
            random: of what differs from draw to draw; None gives what is always the same.
        """
        rows = self.data.neighbours(row) if self.slices > 1 else [row]
        return np.concatenate([self.encoded(int(one), row, part) for one in rows])

    def target(self, row: int, part: Part = WHOLE) -> np.ndarray:
        """(C', *spatial) float32, encoded."""
        return self.encoded(row, row, part)

    def encoded(self, row: int, window: int, part: Part = WHOLE) -> np.ndarray:
        """The image of a row, or a part of it, by the window of another row of the scan."""
        columns = self.data.columns
        return unclipped(self.data.image(row)[(slice(None), *part)], columns["low"][window], columns["high"][window])

    def middle(self, source: np.ndarray) -> np.ndarray:
        """The channels of a source that show the row itself."""
        channels = len(source) // self.slices
        first = self.slices // 2 * channels
        return source[first : first + channels]

    def faithful(self, row: int, planes: np.ndarray) -> np.ndarray:
        """What a network made of a row (planes, *spatial), changed as `translate` changes it to agree with what was measured."""
        return planes

    def window(self, row: int) -> IntensityMap:
        """The map of a row's target."""
        return self.data.intensity(row)

    # -------------------------------------------------------------------------------------------- what counts

    def body(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """(*spatial) bool: where errors count in full."""
        return np.asarray((source > BODY).any(axis=0) | (target > BODY).any(axis=0))

    def worth(self, inside: np.ndarray, target: np.ndarray, random: np.random.Generator) -> bool:
        """Whether a patch with this body and target is learned from, or another one drawn."""
        return bool(inside.mean() >= LEAST_BODY)

    def error(self, made: np.ndarray, target: np.ndarray, inside: np.ndarray) -> float:
        """Mean absolute error in the body, encoded; made and target (C', *spatial)."""
        inside = inside if inside.any() else np.ones_like(inside)
        return float(np.abs(made - target)[:, inside].mean())

    def simple(self, line: tuple[float, ...], source: np.ndarray) -> np.ndarray:
        """(C', *spatial): what is compared with at a tick, the target that a straight line gives, `straight`."""
        return straight(line, self.regressors(source))[None]

    def regressors(self, source: np.ndarray) -> np.ndarray:
        """(R, *spatial): what of a source the straight line is fitted to."""
        return self.view(source)[None]

    def in_units(self, error: float, row: int) -> float:
        """An error of a row in the units of its target."""
        window = self.window(row)
        return error * (window.high - window.low) / 2.0

    # -------------------------------------------------------------------------------------------- for people

    def view(self, source: np.ndarray) -> np.ndarray:
        """(*spatial): a source as a grey picture."""
        return self.middle(source)[0]

    def picture(self, target: np.ndarray) -> np.ndarray:
        """(*spatial): a target, or what a network made, as a grey picture."""
        return target[0]

    def words(self, error: float, ratio: float) -> str:
        """A tick's error in units, and as a share of the simple method's."""
        return f"error {error:.3g} {self.windows[1].units}, {ratio:.0%} of a straight line's"

    # -------------------------------------------------------------------------------------------- for the model

    def familiar(self) -> dict[str, Any] | None:
        """What the scans are like that can be translated, see `familiarity.learn`; None where any may be."""
        return familiar(self.data)

    @cached_property
    def windows(self) -> tuple[IntensityMap, IntensityMap]:
        """The usual map of training sources and targets: medians."""
        columns, rows = self.data.columns, self.rows("train")
        low, high = (float(np.median(columns[name][rows])) for name in ("low", "high"))
        maps = [self.window(int(row)) for row in rows]
        wished = [float(np.median([getattr(one, name) for one in maps])) for name in ("low", "high")]
        return IntensityMap(low, high, self.data.info["units"]), IntensityMap(wished[0], wished[1], maps[0].units)

    def about(self) -> dict[str, Any]:
        """What a model's configuration says of source and target: {"input", "output", "lying", "source", "target"}.

        "input" and "output" are "image" or "mask", "lying" is `lying`.
        """
        own, wished = self.windows
        info = self.data.info
        return {
            "input": self.input,
            "output": self.output,
            "lying": lying(self.data),
            "source": {"modality": info["modality"], "low": own.low, "high": own.high, "units": own.units},
            "target": {"modality": info["modality"], "channels": self.out_channels, "units": wished.units},
        }


def lying(data: Dataset) -> list[list[int]] | None:
    """(patient axis, sign) along which columns, rows and slices of nearly all training slices of volumes run.

    None where they differ, or where nothing says it; of volumes too, which always stand upright.
    """
    rows = data.rows("train")
    info = data.info
    if len(data.shape) == 4 or info["modality"] in PICTURES or info["source_format"] in ("png", "jpeg", "tiff"):
        return None
    affines = data.columns["affine"][rows]
    found = Counter(directions(affine) for affine in affines if np.isfinite(affine).all())
    usual, count = found.most_common(1)[0] if found else ((), 0)
    return [list(one) for one in usual] if count >= MOSTLY * len(rows) and count else None


def straight(line: Sequence[float], regressors: np.ndarray) -> np.ndarray:
    """(*spatial): the target that a line (intercept, slopes) makes of (R, *spatial)."""
    found = line[0] + line[1] * regressors[0]
    for slope, one in zip(line[2:], regressors[1:]):
        found = found + slope * one
    return np.asarray(found)


def brightened(source: np.ndarray, gain: float, bend: float) -> np.ndarray:
    """Encoded values v, as u = (v + 1) / 2 above background, become (1 + gain) u ** exp(bend); below it they stay."""
    above = np.maximum((source + 1.0) / 2.0, 0.0)
    changed = np.float32(1.0 + gain) * above ** np.float32(math.exp(bend))
    return np.where(source > -1.0, 2.0 * changed - 1.0, source).astype(np.float32)
