"""Several sources of one translation: brought onto one grid and encoded, with what says which of them are there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from . import familiarity
from .familiarity import Judgement
from .image import Image
from .intensity import IntensityMap
from .model import Model
from .preprocess import align, corrected, window_of
from .preprocess.window import unclipped

AIR = -1.0


@dataclass(frozen=True)
class Together:
    """The sources of one case.

    Attributes:
        scan: the first that is there; the translation lies as it does.
        image: (S, I, J, K) float32, all of them encoded, on its grid; air where one is missing.
        here: (S,) bool, which are there.
    """

    scan: Image
    image: Image
    here: np.ndarray


def joined(model: Model, scans: Sequence[Image | None]) -> Together:
    """The sources of a case on the grid of the first that is there.

    Args:
        model: one that was learned from several sources.
        scans: each source in the model's order, as `formats.read` gives it; None where it is missing.

    Raises:
        ValueError: they do not show one region, or one has colours.
    """
    scan = next(one for one in scans if one is not None)
    layers = []
    for number, one in enumerate(scans):
        if one is None:
            layers.append(np.full((1, *scan.array.shape[1:]), AIR, np.float32))
            continue
        if len(one.array) != 1:
            raise ValueError(f"expected grey scans, found one with {len(one.array)} channels: convert it")
        own = encoded(model, number, one)
        layers.append(own.array if one is scan else align.onto(own, scan, AIR)[0])
    image = replace(scan, array=np.concatenate(layers), units="", window=None)
    return Together(scan, image, np.array([one is not None for one in scans]))


def encoded(model: Model, number: int, scan: Image) -> Image:
    """One source, corrected as in training, its values encoded by its own window, of CT that of the training scans."""
    settings = model.config["translation"]
    choices, about = settings["choices"], settings["sources"][number]
    kind = about["modality"]
    scan = corrected(replace(scan, array=scan.array.astype(np.float32)), choices["bias_field"] and kind == "MR", None)
    window, percentiles = (choices[one] if kind == choices["modality"] else None for one in ("window", "percentiles"))
    own = window_of(
        scan.array, kind, choices["dimensions"], scan.window, window, percentiles, choices.get("by_median", False)
    )
    found = own or IntensityMap(about["low"], about["high"], about["units"])
    return replace(scan, array=unclipped(scan.array, found.low, found.high))


def judged(model: Model, array: np.ndarray, spacing: Sequence[float] | None, here: np.ndarray) -> Judgement | None:
    """Whether each source that is there is like those that the model learned from; one that is not refuses the case.

    Args:
        array: (S, *spatial), encoded.
        spacing: voxel size in mm along the spatial axes, or None.
        here: (S,) bool, which are there.
    """
    about = model.config["translation"]["sources"]
    found = []
    for number in np.flatnonzero(here):
        if about[number]["familiarity"] is not None:
            features = familiarity.describe(array[number : number + 1], spacing, about[number]["modality"])
            found.append((about[number]["name"], familiarity.judge(features, about[number]["familiarity"])))
    if not found:
        return None
    reasons = tuple(f"{name}: {reason}" for name, one in found for reason in one.reasons)
    known = [one.p for _, one in found if one.p is not None]
    words = "; ".join(f"{name}: {one.words}" for name, one in found)
    return Judgement(any(one.refused for _, one in found), reasons, min(known) if known else None, words)


def made_from(model: Model, here: np.ndarray) -> str:
    """What a translation was made from and what was missing, in words: "T1 (MR), T2 (MR), without FLAIR (MR), which was missing"."""
    about = model.config["translation"]["sources"]
    listed = [f"{one['name']} ({one['modality']})" for one in about]
    there, gone = ([name for name, is_here in zip(listed, here) if is_here == wanted] for wanted in (True, False))
    return ", ".join(there) + (f", without {', '.join(gone)}, which was missing" if gone else "")
