"""Precision, recall, density and coverage: how much of one set lies inside the other, by nearest neighbours."""

from __future__ import annotations

import numpy as np

NEIGHBOURS = 5


def precision(real: np.ndarray, fake: np.ndarray) -> float:
    """Share of fakes inside the real manifold, 0 to 1 (Kynkäänniemi et al. 2019, eq. 2)."""
    inside = distances(real, fake) < radii(real)[:, None]
    return float(inside.any(axis=0).mean())


def recall(real: np.ndarray, fake: np.ndarray) -> float:
    """Share of real images inside the manifold of the fakes, 0 to 1 (Kynkäänniemi et al. 2019, eq. 2)."""
    inside = distances(real, fake) < radii(fake)[None, :]
    return float(inside.any(axis=1).mean())


def density(real: np.ndarray, fake: np.ndarray) -> float:
    """How many real neighbourhoods hold a fake, over k; about 1 for equal sets, may exceed 1 (Naeem et al. 2020, eq. 3)."""
    inside = distances(real, fake) < radii(real)[:, None]
    return float(inside.sum(axis=0).mean() / neighbours(real))


def coverage(real: np.ndarray, fake: np.ndarray) -> float:
    """Share of real images with a fake in their neighbourhood, 0 to 1 (Naeem et al. 2020, eq. 4)."""
    return float((distances(real, fake).min(axis=1) < radii(real)).mean())


def neighbours(features: np.ndarray) -> int:
    """k = 5, fewer when the set (N, d) has no five others."""
    return max(1, min(NEIGHBOURS, len(features) - 1))


def radii(features: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """(N,) distance of each row of (N, d) features to its k-th nearest other row; 0 for a single row."""
    k = min(neighbours(features), len(features) - 1)
    # Position k of the sorted row: position 0 is the row itself.
    return np.concatenate(
        [
            np.partition(distances(features[start : start + chunk], features), k, axis=1)[:, k]
            for start in range(0, len(features), chunk)
        ]
    )


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Euclidean distances (N, M) between the rows of (N, d) and (M, d); equal rows are exactly 0 apart."""
    squared = np.square(a).sum(axis=1)[:, None] + np.square(b).sum(axis=1)[None, :] - 2.0 * (a @ b.T)
    # |a|^2 + |b|^2 - 2 ab cancels: what remains below rounding is 0, or copies would have random neighbourhoods.
    rounding = 1e-13 * max(np.square(a).sum(axis=1).max(initial=0.0), np.square(b).sum(axis=1).max(initial=0.0))
    return np.sqrt(np.where(squared > rounding, squared, 0.0))
