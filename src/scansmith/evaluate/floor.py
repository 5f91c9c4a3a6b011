"""The real/real floor of a translation: what two scans of one patient differ by at least, that are alike but for their noise."""

from __future__ import annotations

import numpy as np

from ..pairings.base import BODY
from .held_out import Scan

# Blind to planes, with a sum of squares of 36 (Immerkær 1996, "Fast noise variance estimation", eq. 1).
KERNEL = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], np.float32)
MEDIAN = 0.67449  # of the magnitude of a standard normal number
FEWEST = 500  # voxels that a noise is estimated from


def noise(image: np.ndarray, inside: np.ndarray) -> float:
    """Standard deviation of the noise of an image (D, H, W) in its body (D, H, W) bool, in its own units; nan where it cannot be found.

    Of white noise; less where neighbours are alike in their noise. The median of magnitudes, not their mean as in the source, so that
    edges do not count. Where an image was set to one value, as around a brain that was cut out, there is nothing to see of its noise.
    """
    from scipy import ndimage

    found = [np.zeros(0, np.float32)]
    for plane, body in zip(image, inside):
        plane = plane.astype(np.float32)
        flat = ndimage.maximum_filter(plane, 3) == ndimage.minimum_filter(plane, 3)
        deep = ndimage.binary_erosion(body, np.ones((3, 3))) & ~flat
        found.append(np.abs(ndimage.convolve(plane, KERNEL, mode="nearest")[deep]))
    every = np.concatenate(found)
    return float(np.median(every) / MEDIAN / 6.0) if len(every) >= FEWEST else np.nan


def repeated(scan: Scan, seed: int) -> np.ndarray | None:
    """The reference, encoded, as far from itself as a second scan with noise of its own would be: sqrt(2) times its noise is added.

    None where it shows no noise.
    """
    found = noise(scan.target, scan.inside & (scan.target > BODY))
    if not found > 0.0:
        return None
    drawn = np.random.default_rng(seed).standard_normal(scan.target.shape, np.float32)
    return np.asarray(scan.target + np.float32(np.sqrt(2.0) * found) * drawn)
