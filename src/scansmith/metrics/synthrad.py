"""How far a translated CT lies from the real one: the image metrics of SynthRAD2023 and SynthRAD2025, under those names.

Both are computed inside a mask, in HU, over whole volumes. The definitions are those of the challenges' evaluations (Huijben 2024,
Medical Image Analysis; github.com/SynthRAD2023 and SynthRAD2025), quirks included, so that numbers can stand beside theirs.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.ndimage import uniform_filter
from skimage.metrics import structural_similarity

AIR = -1024.0  # HU, what lies outside the mask
TOP_2023, TOP_2025 = 3000.0, 3071.0
WINDOW = 7  # voxels a side; the weights inside are equal
MARGIN = WINDOW // 2  # along each border, where the window leaves the volume, nothing is counted
K1, K2 = 0.01, 0.03  # Wang 2004
# Exponents of the five scales, each half as fine as the one before (Wang 2003, section 3.2).
SCALES = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
SMALLEST = 97  # voxels a side; shorter ones are padded with their border, so that the fifth scale holds one window


def synthrad2023(reference: np.ndarray, output: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """{"mae" in HU, "psnr" in dB, "ssim"} as SynthRAD2023 counts them.

    MAE is not clipped; PSNR and SSIM clip to [-1024, 3000] HU. SSIM sets what lies outside the mask to -1024 HU on both sides
    and averages its map over the mask.

    Args:
        reference, output: of one shape, (H, W) or (D, H, W), HU.
        mask: true where it counts.

    Returns:
        "ssim" is nan where the mask lies in the outer 3 voxels alone, of which no window is whole.

    Raises:
        ValueError: shapes differ, the mask is empty, or a side is shorter than the window of 7 voxels.
    """
    inside = checked(reference, output, mask)
    if min(reference.shape) < WINDOW:
        raise ValueError(
            f"expected sides of {WINDOW} voxels at least, found {reference.shape}: compare the slices instead"
        )
    real, made = clipped(reference, output, inside, TOP_2023)
    _, similar = structural_similarity(real, made, win_size=WINDOW, data_range=TOP_2023 - AIR, full=True)
    return {
        "mae": mae(reference, output, inside),
        "psnr": psnr(real[inside], made[inside], TOP_2023 - AIR),
        "ssim": inside_mean(similar, inside),
    }


def synthrad2025(reference: np.ndarray, output: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """{"mae" in HU, "psnr" in dB, "ms_ssim"} as SynthRAD2025 counts them; clipped to [-1024, 3071] HU.

    Its MS-SSIM counts luminance at every scale, where Wang 2003 counts it at the coarsest alone: see `ms_ssim` for that.

    Args: as for `synthrad2023`. "ms_ssim" is nan where the mask has no voxel left at the coarsest scale.

    Raises:
        ValueError: shapes differ, or the mask is empty.
    """
    inside = checked(reference, output, mask)
    real, made = clipped(reference, output, inside, TOP_2025)
    return {
        "mae": mae(np.where(inside, reference, AIR), np.where(inside, output, AIR), inside),
        "psnr": psnr(real[inside], made[inside], TOP_2025 - AIR),
        "ms_ssim": multiscale(real, made, inside, TOP_2025 - AIR, SCALES),
    }


def ms_ssim(reference: np.ndarray, output: np.ndarray, mask: np.ndarray) -> float:
    """Multi-scale SSIM inside a mask after Wang 2003, eq. 7: luminance at the coarsest scale alone; else as `synthrad2025`."""
    inside = checked(reference, output, mask)
    real, made = clipped(reference, output, inside, TOP_2025)
    return multiscale(real, made, inside, TOP_2025 - AIR, (0.0, 0.0, 0.0, 0.0, SCALES[-1]))


# ------------------------------------------------------------------------------------------------ parts


def checked(reference: np.ndarray, output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """The mask as booleans."""
    if not reference.shape == output.shape == mask.shape:
        raise ValueError(
            f"expected reference, output and mask of one shape, found {reference.shape}, {output.shape} and {mask.shape}: bring them onto one grid"
        )
    inside: np.ndarray = np.asarray(mask) > 0
    if not inside.any():
        raise ValueError("expected a mask that marks voxels to compare, found an empty one: give the body's mask")
    return inside


def clipped(reference: np.ndarray, output: np.ndarray, inside: np.ndarray, top: float) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 above -1024 HU, clipped, 0 outside the mask."""
    real, made = (
        np.where(inside, np.clip(np.asarray(image, np.float64), AIR, top) - AIR, 0.0) for image in (reference, output)
    )
    return real, made


def mae(reference: np.ndarray, output: np.ndarray, inside: np.ndarray) -> float:
    """Mean absolute difference inside the mask, in the images' unit."""
    return float(np.abs(reference[inside].astype(np.float64) - output[inside]).mean())


def psnr(real: np.ndarray, made: np.ndarray, extent: float) -> float:
    """10 log10(extent^2 / mean squared difference), dB; infinite for equal images."""
    error = float(np.square(real - made).mean())
    return 10.0 * math.log10(extent**2 / error) if error else math.inf


def inside_mean(similar: np.ndarray, inside: np.ndarray) -> float:
    """Mean of a similarity map over the mask, a border of `MARGIN` voxels left out; nan when nothing of the mask is left."""
    middle = (slice(MARGIN, -MARGIN),) * similar.ndim
    counted = similar[middle][inside[middle]]
    return float(counted.mean()) if counted.size else math.nan


def multiscale(
    real: np.ndarray, made: np.ndarray, inside: np.ndarray, extent: float, luminance: tuple[float, ...]
) -> float:
    """Product over the five scales of the masked mean of l^a c^b s^b, with `luminance` as the exponents a and `SCALES` as b."""
    padding = [
        ((SMALLEST - side) // 2, (SMALLEST - side + 1) // 2) if side < SMALLEST else (0, 0) for side in real.shape
    ]
    real, made, inside = (np.pad(image, padding, mode="edge") for image in (real, made, inside))
    result = 1.0
    for scale, weight in enumerate(SCALES):
        if scale:
            real, made, inside = halved(real), halved(made), inside[(slice(None, None, 2),) * inside.ndim]
        light, contrast, structure = components(real, made, extent)
        similar = light ** luminance[scale] * (contrast * structure) ** weight
        result *= float(np.clip(inside_mean(similar, inside), 0.0, 1.0))
    return result


def components(real: np.ndarray, made: np.ndarray, extent: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Maps of luminance, contrast and structure in [0, 1] (Wang 2004, eq. 6, 9 and 10), with sample (co)variances."""

    def mean(x: np.ndarray) -> np.ndarray:
        filtered: np.ndarray = uniform_filter(x, WINDOW)
        return filtered

    count = WINDOW**real.ndim
    mean_a, mean_b = mean(real), mean(made)
    variance_a, variance_b, covariance = (
        (mean(product) - square) * count / (count - 1)
        for product, square in ((real * real, mean_a**2), (made * made, mean_b**2), (real * made, mean_a * mean_b))
    )
    deviations = np.sqrt(np.clip(variance_a, 0.0, None)) * np.sqrt(np.clip(variance_b, 0.0, None))
    c1, c2 = (K1 * extent) ** 2, (K2 * extent) ** 2
    light = (2.0 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    contrast = (2.0 * deviations + c2) / (variance_a + variance_b + c2)
    structure = (covariance + c2 / 2.0) / (deviations + c2 / 2.0)
    return np.clip(light, 0.0, None), np.clip(contrast, 0.0, None), np.clip(structure, 0.0, None)


def halved(image: np.ndarray) -> np.ndarray:
    """Every second voxel of the mean with the neighbour before it, along each axis; before the first lies 0."""
    for axis in range(image.ndim):
        before = np.roll(image, 1, axis)
        before[(slice(None),) * axis + (0,)] = 0.0
        image = (0.5 * (image + before))[(slice(None),) * axis + (slice(None, None, 2),)]
    return image
