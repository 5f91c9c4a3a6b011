"""How well noise was taken out of CT: PSNR, SSIM and VIF of images as they are looked at, in the windows of chest, abdomen and head.

The windows are those of the LDCT benchmark (Eulig et al. 2024); over all HU a difference of 10 HU in the liver would not show.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

WINDOWS = {"chest": (-600.0, 1500.0), "abdomen": (50.0, 400.0), "neuro": (40.0, 80.0)}  # level, width in HU
GREYS = 255.0  # VIF's noise of 2 is of images in so many greys
NOISE = 2.0  # variance of what the eye adds (Sheikh 2006, section IV)
SCALES = 4
SMALLEST = 41  # pixels a side, below which the coarsest scale has no window inside the image


def windowed(image: np.ndarray, window: str) -> np.ndarray:
    """HU -> float64 in [0, 1] as a window shows them."""
    level, width = WINDOWS[window]
    return np.clip((np.asarray(image, np.float64) - level) / width + 0.5, 0.0, 1.0)


def low_dose(reference: np.ndarray, output: np.ndarray, window: str) -> dict[str, float]:
    """{"psnr" in dB, "ssim", "vif"} of one slice as a window shows it.

    SSIM is that of Wang 2004 in windows of 7 pixels; VIF is left out of slices with a side below `SMALLEST`, and where the
    reference is of one grey.

    Args:
        reference, output: (H, W) in HU.
        window: key of `WINDOWS`.
    """
    from skimage.metrics import structural_similarity

    real, made = windowed(reference, window), windowed(output, window)
    error = float(np.square(real - made).mean())
    found = {
        "psnr": -10.0 * float(np.log10(error)) if error > 0.0 else np.inf,
        "ssim": float(structural_similarity(real, made, data_range=1.0)),
    }
    if min(real.shape) >= SMALLEST and real.std() > 0.0:
        found["vif"] = vif(GREYS * real, GREYS * made)
    return found


def vif(reference: np.ndarray, output: np.ndarray) -> float:
    """Visual information fidelity in the pixel domain: 1 for equal images, less where information is lost, more where contrast is enhanced.

    Source: Sheikh and Bovik 2006, eq. 8 and 13, over four scales of Gaussian windows.

    Args:
        reference, output: (H, W), at least `SMALLEST` pixels a side, 0 to 255.
    """
    kept, there = 0.0, 0.0
    for variance_real, variance_made, covariance in moments(reference, output):
        gain = covariance / (variance_real + 1e-10)
        left = variance_made - gain * covariance
        flat = variance_real < 1e-10
        gain[flat], left[flat], variance_real[flat] = 0.0, variance_made[flat], 0.0
        flat = variance_made < 1e-10
        gain[flat], left[flat] = 0.0, 0.0
        negative = gain < 0.0
        left[negative], gain[negative] = variance_made[negative], 0.0
        left = np.maximum(left, 1e-10)
        kept += float(np.log10(1.0 + gain**2 * variance_real / (left + NOISE)).sum())
        there += float(np.log10(1.0 + variance_real / NOISE).sum())
    return kept / there if there > 0.0 else 1.0


def moments(real: np.ndarray, made: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Local variances of both images and their covariance at each scale; the next one is smoothed and halved."""
    for scale in range(SCALES):
        side = 2 ** (SCALES - scale) + 1
        if scale:
            real, made = (smoothed(image, side)[::2, ::2] for image in (real, made))
        mean_real, mean_made = smoothed(real, side), smoothed(made, side)
        yield (
            np.maximum(smoothed(real**2, side) - mean_real**2, 0.0),
            np.maximum(smoothed(made**2, side) - mean_made**2, 0.0),
            smoothed(real * made, side) - mean_real * mean_made,
        )


def smoothed(image: np.ndarray, side: int) -> np.ndarray:
    """Weighted means in windows of `side` pixels that lie inside the image; a Gaussian of deviation side / 5."""
    from scipy.ndimage import correlate1d

    place = np.arange(side) - side // 2
    weight = np.exp(-0.5 * (place / (side / 5.0)) ** 2)
    weight /= weight.sum()
    inner = slice(side // 2, -(side // 2))
    return np.asarray(correlate1d(correlate1d(image, weight, 0), weight, 1)[inner, inner])
