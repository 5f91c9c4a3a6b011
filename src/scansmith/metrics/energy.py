"""Energy distance between two sets of features: fair to small sets, where a Fréchet distance is not."""

from __future__ import annotations

import math

import numpy as np

from .prdc import distances


def energy_distance(features_a: np.ndarray, features_b: np.ndarray) -> tuple[float, float]:
    """(2 E|a - b| - E|a - a'| - E|b - b'|, its standard error), Székely and Rizzo 2013, eq. 1.

    The means are over pairs of different images, so that two sets of one distribution give 0 on average, however small they
    are; a single value may be below 0. A Fréchet distance of 16 or 200 images in 512 dimensions is mostly their two spreads
    instead, and falls when one set grows narrow.

    Args:
        features_a, features_b: (N, d) and (M, d), N and M at least 2.

    Returns:
        The distance in units of the features, and its standard error over draws of both sets (by influence functions); nan
        when a feature is not finite.
    """
    count_a, count_b = len(features_a), len(features_b)
    assert min(count_a, count_b) >= 2
    if not (np.isfinite(features_a).all() and np.isfinite(features_b).all()):
        return math.nan, math.nan
    between = distances(features_a, features_b)
    within_a = distances(features_a, features_a).sum(axis=1) / (count_a - 1)
    within_b = distances(features_b, features_b).sum(axis=1) / (count_b - 1)
    value = float(2.0 * between.mean() - within_a.mean() - within_b.mean())
    influence_a, influence_b = 2.0 * (between.mean(axis=1) - within_a), 2.0 * (between.mean(axis=0) - within_b)
    return value, math.sqrt(influence_a.var(ddof=1) / count_a + influence_b.var(ddof=1) / count_b)
