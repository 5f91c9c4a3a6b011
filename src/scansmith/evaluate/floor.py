"""The real/real floor of a translation: about what two scans of one patient differ by, that are alike but for their noise."""

from __future__ import annotations

import numpy as np

from ..pairings.base import BODY
from .held_out import Scan

# Blind to planes, with a sum of squares of 36 (Immerkær 1996, "Fast noise variance estimation", eq. 1).
KERNEL = np.array([[1.0, -2.0, 1.0], [-2.0, 4.0, -2.0], [1.0, -2.0, 1.0]], np.float32)
SIDE = 5  # voxels of a window that noise is looked for in
# Share of windows that are the flattest, and what their noise is taken for less than it is: measured on white noise, standard normal.
FLATTEST, LESS = 0.01, 0.518
FEWEST = 2000  # windows
NONE = 1e-6  # encoded, below which rounding is all that is seen


def noise(image: np.ndarray, inside: np.ndarray) -> float:
    """Standard deviation of the noise of an image (D, H, W) in its body (D, H, W) bool, in its own units; nan where it cannot be found.

    Of the flattest windows, where the source takes all of an image: edges and folds are no noise. Of white noise it is true; it is less
    where neighbours are alike in their noise or some places have less of it, and more where voxels are so coarse that nothing is flat.
    Where an image was set to one value, as around a brain that was cut out, there is nothing to see of its noise.
    """
    from scipy import ndimage

    found = [np.zeros(0, np.float32)]
    for plane, body in zip(image, inside):
        plane = plane.astype(np.float32)
        flat = ndimage.maximum_filter(plane, 3) == ndimage.minimum_filter(plane, 3)
        seen = ndimage.binary_erosion(body, np.ones((3, 3))) & ~flat
        whole = ndimage.minimum_filter(seen, SIDE, mode="constant")
        found.append(ndimage.uniform_filter(np.abs(ndimage.convolve(plane, KERNEL, mode="nearest")), SIDE)[whole])
    means = np.concatenate(found)
    if len(means) < FEWEST:
        return np.nan
    return float(np.quantile(means, FLATTEST) / LESS / np.sqrt(2.0 / np.pi) / 6.0)


def repeated(scan: Scan, seed: int) -> np.ndarray | None:
    """The reference, encoded, as far from itself as a second scan with noise of its own would be: sqrt(2) times its noise is added.

    None where it shows no noise.
    """
    found = noise(scan.target, scan.inside & (scan.target > BODY))
    if not found > NONE:
        return None
    drawn = np.random.default_rng(seed).standard_normal(scan.target.shape, np.float32)
    return np.asarray(scan.target + np.float32(np.sqrt(2.0) * found) * drawn)
