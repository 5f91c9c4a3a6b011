"""Every metric of `METRICS` beside its real/real floor, over random draws of equal size."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..metrics import METRICS, Metric, radiomics
from ..runtime import derive_seed

# Encoder -> side ("real", "fake", "others") -> features (N, d).
Features = dict[Callable[..., np.ndarray], dict[str, np.ndarray]]


def encode(
    reference: np.ndarray, others: np.ndarray, fake: np.ndarray, device: torch.device, planes: int = 1
) -> Features:
    """Features of all images (N, planes * C, H, W), once for each encoder of `METRICS`; a side without images is left out."""
    sets = {"real": reference, "fake": fake, "others": others}
    return {
        encoder: {side: of_planes(encoder, images, planes, device) for side, images in sets.items() if len(images)}
        for encoder in dict.fromkeys(metric.encode for metric in METRICS.values())
    }


def of_planes(encoder: Callable[..., np.ndarray], images: np.ndarray, planes: int, device: torch.device) -> np.ndarray:
    """Features (N, d); radiomics, which average channels first, are those of each plane, averaged afterwards."""
    if planes == 1 or encoder is not radiomics.features:
        return encoder(images, device=device)
    count, channels, height, width = images.shape
    apart = images.reshape(count * planes, channels // planes, height, width)
    return encoder(apart, device=device).reshape(count, planes, -1).mean(axis=1)


def compare(
    features: Features, draws: int, limit: int, seed: int
) -> tuple[dict[str, dict[str, Any]], dict[str, str], int]:
    """Values of fakes against the reference and, as the floor, of other real images against the reference.

    Each draw takes equally many of each at random: the size of the smallest set, but at most 80 % of the fakes and of
    the other real images, so that draws differ. A small reference is taken whole: 80 % of it would cost a fifth of the
    few held-out images and show half of their sampling error only (of a share f drawn without replacement the spread is
    sqrt((1 - f) / f) of it). Value and floor share the reference of each draw, so they compare; `words.not_checked`
    says that the intervals leave its choice out.

    Args:
        features: of `encode`; without "others" there is no floor.
        draws: number of draws; intervals are the 5th and 95th percentile over them.
        limit: most images a side in one draw.
        seed: of the draws.

    Returns:
        Entries of metrics.json without words, reasons for what was not computed, and images per draw.
    """
    sizes = {side: len(rows) for side, rows in next(iter(features.values())).items()}
    count = min(sizes["real"], limit, *(math.ceil(0.8 * sizes[side]) for side in sizes if side != "real"))
    entries: dict[str, dict[str, Any]] = {}
    reasons: dict[str, str] = {}
    for name, metric in METRICS.items():
        encoded = features[metric.encode]
        reason = why_not(metric, count, encoded["real"])
        if reason is None:
            values, floors = over_draws(metric, encoded, count, draws, seed)
            if np.isfinite(values + floors).all():
                entries[name] = entry(metric, values, floors, count)
                continue
            reason = "the number is not finite for these images"
        reasons[name] = reason
    return entries, reasons, count


def why_not(metric: Metric, count: int, reference: np.ndarray) -> str | None:
    """The reason not to compute a metric, or None."""
    if count < metric.least:
        return f"needs {metric.least} images on each side of a draw, here are {count}: more held-out or synthetic images would do"
    if metric.better == "higher" and np.ptp(reference, axis=0).max() < 1e-9:
        return "the held-out scans are all the same picture, so there is no variety to measure"
    return None


def over_draws(
    metric: Metric, encoded: dict[str, np.ndarray], count: int, draws: int, seed: int
) -> tuple[list[float], list[float]]:
    """The metric for each draw: (fakes against the reference, other real images against the reference)."""
    values, floors = [], []
    for draw in range(draws):
        rng = np.random.default_rng(derive_seed(seed, "draw", draw))
        drawn = {side: rows[rng.choice(len(rows), count, replace=False)] for side, rows in encoded.items()}
        values.append(metric.compare(drawn["real"], drawn["fake"]))
        if "others" in drawn:
            floors.append(metric.compare(drawn["real"], drawn["others"]))
    return values, floors


def entry(metric: Metric, values: list[float], floors: list[float], count: int) -> dict[str, Any]:
    """One entry of metrics.json; the caller adds the words."""
    value, floor = float(np.mean(values)), float(np.mean(floors)) if floors else None
    return {
        "title": metric.title,
        "value": value,
        "interval": interval(values),
        "floor": floor,
        "floor_interval": interval(floors) if floors else None,
        "ratio": ratio(value, floor),
        "better": metric.better,
        "counts": {"real": count, "fake": count},
        "extractor": metric.extractor,
    }


def interval(values: list[float]) -> list[float]:
    low, high = np.percentile(values, (5, 95))
    return [float(low), float(high)]


def ratio(value: float, floor: float | None) -> float | None:
    """value / floor, None when the floor is (rounding apart) nothing."""
    return value / floor if floor is not None and floor > 1e-9 else None
