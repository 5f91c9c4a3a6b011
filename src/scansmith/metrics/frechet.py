"""Fréchet distance between the Gaussians fitted to two sets of features. Needs numpy alone."""

from __future__ import annotations

import math

import numpy as np


def frechet(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """|mu_a - mu_b|^2 + tr(A + B - 2 (A B)^(1/2)), 0 for equal sets (Dowson and Landau 1982; Heusel et al. 2017, eq. 6).

    With A = X^T X and B = Y^T Y, tr (A B)^(1/2) is the sum of the singular values of X Y^T. X and Y are the centred
    features when there are fewer images than features and their triangular factors otherwise, so no covariance
    is formed and no square root amplifies rounding.

    Args:
        features_a, features_b: (N, d) and (M, d); one image counts as a set without spread.

    Returns:
        The squared distance; nan when a feature is not finite.
    """
    assert features_a.ndim == features_b.ndim == 2 and features_a.shape[1] == features_b.shape[1]
    if not (np.isfinite(features_a).all() and np.isfinite(features_b).all()):
        return math.nan
    a, b = np.asarray(features_a, np.float64), np.asarray(features_b, np.float64)
    shift = a.mean(axis=0) - b.mean(axis=0)
    x, y = covariance_factor(a), covariance_factor(b)
    overlap = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + np.square(x).sum() + np.square(y).sum() - 2.0 * overlap))


def covariance_factor(features: np.ndarray) -> np.ndarray:
    """(min(N, d), d) matrix X with X^T X = the unbiased covariance of (N, d) features."""
    count, dimensions = features.shape
    centred = (features - features.mean(axis=0)) / math.sqrt(max(count - 1, 1))
    return np.asarray(np.linalg.qr(centred, mode="r")) if count > dimensions else centred
