"""Metrics: feature encoders and distances, one function per number.

To add one, write `fn(real, fake) -> float` on feature arrays (N, d) and (M, d) and list it in `METRICS`; evaluate gives it
the real/real floor, its interval and its place in metrics.json, and the contract tests run over it. The numbers that need
training or single images (`classifier.accuracy`, `nearest.nearest`) are called by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np

from . import prdc, radiomics, random_conv
from .frechet import frechet


class Metric(NamedTuple):
    """One number that compares two sets of images.

    Attributes:
        title: its name in tables.
        compare: features of the real (N, d) and of the synthetic images (M, d) -> the number.
        encode: images (N, C, H, W) float32 in [-1, 1], device=... -> features (N, d); shared by metrics, computed once.
        extractor: what the features are, in words.
        better: "lower" is a distance (0 for equal sets), "higher" a share (about 1 for equal sets).
        least: images needed on each side; with fewer the number says nothing.
        words: for a doctor. A distance: in what the scans differ ("texture"), or nothing. A share: a sentence without full
            stop that holds the number as {share} (in percent) or {value}.
    """

    title: str
    compare: Callable[[np.ndarray, np.ndarray], float]
    encode: Callable[..., np.ndarray]
    extractor: str
    better: Literal["lower", "higher"]
    least: int
    words: str


def _random_conv(
    title: str,
    compare: Callable[[np.ndarray, np.ndarray], float],
    better: Literal["lower", "higher"],
    least: int,
    words: str,
) -> Metric:
    return Metric(title, compare, random_conv.features, random_conv.EXTRACTOR, better, least, words)


METRICS: dict[str, Metric] = {
    "random_conv_frechet": _random_conv("Random-conv Fréchet distance", frechet, "lower", 2, ""),
    "radiomics_frechet": Metric(
        "Radiomics Fréchet distance",
        radiomics.radiomics_frechet,
        radiomics.features,
        radiomics.EXTRACTOR,
        "lower",
        2,
        "grey values, noise and texture",
    ),
    "precision": _random_conv(
        "Precision", prdc.precision, "higher", 10, "{share} of them lie within what real scans look like"
    ),
    "recall": _random_conv("Recall", prdc.recall, "higher", 10, "They cover {share} of the variety of the real scans"),
    "density": _random_conv(
        "Density",
        prdc.density,
        "higher",
        10,
        "They lie {value} times as densely among the real scans as these do themselves",
    ),
    "coverage": _random_conv(
        "Coverage", prdc.coverage, "higher", 10, "{share} of the real scans have a synthetic scan of their kind"
    ),
}
