"""One held-out scan of a dataset through a model that translates, its slices stacked."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from .. import conformal, inference
from ..intensity import IntensityMap
from ..model import Model
from ..pairings import Pairing, Several


@dataclass(frozen=True)
class Scan:
    """One held-out scan at stored resolution, encoded.

    Attributes:
        patient: pseudonym.
        source: (D, H, W) what was translated, as a grey picture; target: what is true.
        middle, lower, upper: (D, H, W) of the model, bounds calibrated; all the middle where it has none.
        inside: (D, H, W) bool, the body.
        window: (low, high) of the target in its units.
        line: (D, H, W) what the straight line makes of the source; None where it is not asked for.
        alike: whether the source can stand for the target as it is.
        spacing: mm between slices, rows and columns, nan where not known.
        runs: stretches of D in which each slice lies beside the next one.
        labels: (D, H, W) uint8 label map of structures, 0 where nothing is marked; None where the scan has no mask.
    """

    patient: str
    source: np.ndarray
    target: np.ndarray
    middle: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    inside: np.ndarray
    window: tuple[float, float]
    line: np.ndarray | None = None
    alike: bool = True
    spacing: tuple[float, float, float] = (np.nan, np.nan, np.nan)
    runs: tuple[slice, ...] = ()
    labels: np.ndarray | None = None

    @property
    def structures(self) -> dict[int, np.ndarray]:
        """Label -> (D, H, W) bool, where it is marked."""
        labels = self.labels
        return {} if labels is None else {int(one): labels == one for one in np.unique(labels) if one}

    def units(self, encoded: np.ndarray) -> np.ndarray:
        """Encoded -> units of the target."""
        low, high = self.window
        return np.asarray((encoded + 1.0) / 2.0 * (high - low) + low)

    def spans(self, encoded: np.ndarray) -> np.ndarray:
        """Differences of encoded values -> units of the target."""
        low, high = self.window
        return np.asarray(encoded * ((high - low) / 2.0))


def translated_scan(pairs: Pairing, rows: np.ndarray, model: Model, device: torch.device) -> Scan:
    """One scan through the model; `rows` in the order of its slices."""
    settings = model.config["translation"]
    factor = (settings["calibration"] or {}).get("factor")
    window = pairs.window(int(rows[0]))
    parts: list[list[np.ndarray]] = [[] for _ in range(7)]
    for row in rows:
        source, target = pairs.source(int(row)), pairs.target(int(row))
        planes = pairs.faithful(int(row), through(model, source, window, device))
        middle, lower, upper = planes if len(planes) == 3 else (planes[0],) * 3
        if len(planes) == 3:
            lower, upper = conformal.widened(lower, middle, upper, 1.0 if factor is None else factor)
        line = pairs.simple(tuple(settings["line"]), source)[0]
        layers = (pairs.view(source), target[0], middle, lower, upper, pairs.body(source, target), line)
        for part, layer in zip(parts, layers):
            part.append(layer)
    source, target, middle, lower, upper, inside, line = (stacked(part) for part in parts)
    columns = pairs.data.columns
    spacing = columns["spacing"][rows[0]]
    alike = not isinstance(pairs, Several) or (
        pairs.alike is not None and bool(pairs.present(int(rows[0]))[pairs.alike])
    )
    return Scan(
        str(columns["patient"][rows[0]]), source, target, middle, lower, upper, inside.astype(bool), (window.low, window.high),
        line, alike, (float(spacing[0]), float(spacing[1]), float(spacing[2])), neighbouring(pairs, rows),
        marked(pairs, rows),
    )  # fmt: skip


def marked(pairs: Pairing, rows: np.ndarray) -> np.ndarray | None:
    """(D, H, W) uint8: the masks of a scan; None where a slice has none, or masks are what is translated."""
    data = pairs.data
    if "masks" not in data.info["layers"] or pairs.input == "mask" or not data.columns["masked"][rows].all():
        return None
    found = [data.mask(int(row)) for row in rows]
    return stacked([one for one in found if one is not None])


def through(model: Model, source: np.ndarray, window: IntensityMap, device: torch.device) -> np.ndarray:
    """(planes, *spatial) of the first channel, encoded by the window of the target: middle and bounds, or the middle alone."""
    settings = model.config["translation"]
    made = inference.translate(model.generator, source, settings["patch"], device)[:, 0]
    # Without pairs the window of other targets was learned.
    return encoded_by(model.intensity, window, made) if settings["task"] == "unpaired" else made


def encoded_by(own: IntensityMap, wished: IntensityMap, values: np.ndarray) -> np.ndarray:
    """Values encoded by one window as another one encodes them; where units are arbitrary they stay as they are."""
    if own.units != "HU":
        return values
    units = (values + 1.0) / 2.0 * (own.high - own.low) + own.low
    return np.asarray(2.0 * (units - wished.low) / (wished.high - wished.low) - 1.0)


def stacked(parts: list[np.ndarray]) -> np.ndarray:
    """Slices (H, W) or volumes (D, H, W) -> (D, H, W)."""
    return np.stack(parts) if parts[0].ndim == 2 else np.concatenate(parts)


def neighbouring(pairs: Pairing, rows: np.ndarray) -> tuple[slice, ...]:
    """Where in the stack of a scan slices lie beside each other: within a volume, and where their numbers follow."""
    if len(pairs.data.shape) == 4:
        depth = pairs.data.shape[1]
        return tuple(slice(number * depth, (number + 1) * depth) for number in range(len(rows)))
    apart = np.flatnonzero(np.diff(pairs.data.columns["slice"][rows]) != 1) + 1
    edges = [0, *apart.tolist(), len(rows)]
    return tuple(slice(first, last) for first, last in pairwise(edges))


def changed(pairs: Pairing, rows: np.ndarray, number: int, change: np.ndarray) -> np.ndarray:
    """The source of one row of a scan after the whole scan (D, H, W) was changed, every image of it alike."""
    source = np.array(pairs.source(int(rows[number])))
    flat = len(pairs.data.shape) == 3
    near = pairs.data.neighbours(int(rows[number])) if pairs.slices > 1 else rows[number : number + 1]
    place = {int(row): k for k, row in enumerate(rows)}
    for block, row in zip(np.split(source, pairs.slices), near):
        depth = pairs.data.shape[1]
        if (k := place.get(int(row))) is None:  # a slice of no split stays as it is
            continue
        block[showing(pairs, block)] += change[k] if flat else change[k * depth : (k + 1) * depth]
    return source


def showing(pairs: Pairing, block: np.ndarray) -> list[int]:
    """Which channels of a slice of a source hold an image: all, or of several sources those that are there."""
    if not isinstance(pairs, Several):
        return list(range(len(block)))
    images, said = np.split(block, 2)
    return [k for k in range(len(images)) if said[k].flat[0] < 0.0]
