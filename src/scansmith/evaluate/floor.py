"""The real/real floor of a translation: what two scans of one patient differ by that are alike but for their noise."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from .held_out import Scan

# Blind to planes, with a sum of squares of 36 (Immerkær 1996, "Fast noise variance estimation", eq. 1).
KERNEL = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]])
MEDIAN = 0.67449  # of the magnitude of a standard normal number


def noise(image: np.ndarray, inside: np.ndarray) -> float:
    """Standard deviation of the noise of an image (D, H, W) in its body (D, H, W) bool, in its own units; 0 where there is none.

    Of white noise; less where neighbours are alike in their noise. The median, not the mean of the source, so that edges do not count.
    """
    deep = ndimage.binary_erosion(inside, np.ones((1, 3, 3)))
    found = ndimage.convolve(image.astype(np.float64), KERNEL[None], mode="nearest")[deep]
    return float(np.median(np.abs(found)) / MEDIAN / 6.0) if found.size else 0.0


def repeated(scan: Scan, seed: int) -> np.ndarray:
    """The reference, encoded, as far from itself as a second scan with noise of its own would be: sqrt(2) times its noise is added."""
    drawn = np.random.default_rng(seed).normal(size=scan.target.shape)
    return np.asarray(scan.target + np.sqrt(2.0) * noise(scan.target, scan.inside) * drawn)
