"""Good scans -> worse ones: noise of a lower dose, thick slices, blur; and what a thick scan says of a fine one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np

# ------------------------------------------------------------------------------------------------ noise of CT

WATER = 0.02  # attenuation of water at about 70 keV, 1/mm
VIEWS = 1000  # of half a turn
# Unattenuated photons that a ray 1 mm wide counts in one view. Water of 350 mm x 260 mm on pixels of 0.7 mm then has a
# standard deviation of 12 HU in its middle and of 9 HU on average at the full dose, as thin slices of an abdomen have.
PHOTONS = 2.0e6
CUTOFF = 0.75  # 1/mm, where the window of a soft kernel ends; half its contrast is left at half of that
COARSE = 64  # pixels a side of the grid on which variance is propagated
ANGLES, WEDGES = 64, 8  # of half a turn


def ct_noise(
    image_hu: np.ndarray,
    spacing_mm: Sequence[float],
    dose: float,
    random: np.random.Generator,
    photons: float = PHOTONS,
    electronic: float = 0.0,
    cutoff: float = CUTOFF,
) -> np.ndarray:
    """Noise to add to a CT slice so that it looks as if taken at a fraction of its dose: (H, W) float32 in HU, mean zero.

    A ray with line integral l counts Poisson(photons * exp(-l)), so that a lower dose adds exp(l) / photons * (1/dose - 1) to
    the variance of l (Zeng et al., A simple low-dose x-ray CT simulation from high-dose scan, IEEE TNS 62, 2015, eq. 4, also
    with electronic noise). Filtered backprojection of it has locally, along the direction of each view, the power spectrum
    pi |f| W(f)^2 times that variance (Riederer, Pelc, Chesler, Phys. Med. Biol. 23, 1978; Barrett and Swindell, Radiological
    Imaging, 1981). So white noise is filtered within wedges of directions, and each wedge has the mean variance of its views
    at every place: streaks run along thick axes. Without electronic noise the pattern depends on the dose by a factor alone.

    Left out: fan and helix, bowtie and tube-current modulation, beam hardening, scatter, the bias of the logarithm where hardly
    a photon arrives, iterative reconstruction, correlation between slices, and anatomy beyond the image's borders.

    Args:
        image_hu: (H, W) in HU; beyond its borders is air.
        spacing_mm: pixel size along H and W.
        dose: fraction of the image's own dose, above 0 and at most 1.
        random: draws the noise.
        photons: of the image's own dose, on a ray 1 mm wide in one of `VIEWS` views of half a turn.
        electronic: standard deviation of such a ray's reading without light, in photons.
        cutoff: where the Hann window of the kernel ends, 1/mm; infinite for the ramp alone. Pixels that are too large for it
            end the spectrum earlier.

    Raises:
        ValueError: a dose outside (0, 1], or another shape.
    """
    if image_hu.ndim != 2 or not 0.0 < dose <= 1.0:
        raise ValueError(
            f"expected a slice (H, W) and a dose above 0 and at most 1, got shape {image_hu.shape} and dose {dose!r}: give the fraction of the full dose"
        )
    from scipy import fft

    height, width = image_hu.shape
    rows, columns = float(spacing_mm[0]), float(spacing_mm[1])
    variances = _added_variance(image_hu, rows, columns, dose, photons, electronic)
    size = fft.next_fast_len(height, real=True), fft.next_fast_len(width, real=True)
    spectrum = fft.rfft2(random.standard_normal(size, dtype=np.float32))
    factor = max(1.0, max(height, width) / COARSE)
    up, across = _to_fine(variances.shape[1], height, factor), _to_fine(variances.shape[2], width, factor)
    result = np.zeros((height, width), np.float32)
    for variance, (band, weights) in zip(variances, _wedge_filters(*size, rows, columns, cutoff)):
        part = np.zeros_like(spectrum)
        part.ravel()[band] = spectrum.ravel()[band] * weights
        result += fft.irfft2(part, s=size)[:height, :width] * (up @ np.sqrt(variance) @ across.T)
    return result


def _added_variance(
    image_hu: np.ndarray, rows: float, columns: float, dose: float, photons: float, electronic: float
) -> np.ndarray:
    """(WEDGES, h, w) on the coarse grid: variance that line integrals of each wedge's views gain, times 1 mm, in HU^2 mm^2."""
    factor = max(1.0, max(image_hu.shape) / COARSE)
    down, beside = (_to_coarse(size, factor) for size in image_hu.shape)
    coarse = down @ np.maximum(image_hu.astype(np.float32, copy=False) * (WATER / 1000.0) + WATER, 0.0) @ beside.T
    result = np.empty((WEDGES, *coarse.shape), np.float32)
    ratio = round(rows / columns, 3)
    for wedge, views in enumerate(_views(*coarse.shape, ratio)):
        lines = views @ coarse.ravel() * np.float32(factor * columns)
        # A ray that not even one photon of the full dose passes counts as if one did.
        per_photon = np.exp(np.minimum(lines, math.log(photons))) / photons
        gained = per_photon * (1.0 / dose - 1.0) + (electronic * per_photon) ** 2 * (1.0 / dose**2 - 1.0)
        mean = views.T @ gained.astype(np.float32) / (ANGLES // WEDGES * ratio)
        result[wedge] = mean.reshape(coarse.shape) * ((1000.0 / WATER) ** 2 / VIEWS)
    return result


@lru_cache(maxsize=8)
def _views(height: int, width: int, ratio: float) -> tuple[Any, ...]:
    """Of each wedge a sparse matrix (views * bins, height * width): line integrals of pixels 1 wide and `ratio` high.

    A pixel's shadow is the convolution of the shadows of its two sides; the share of it in a bin 1 wide is exact.
    """
    from scipy import sparse

    across = np.arange(width) - (width - 1) / 2.0
    down = (np.arange(height) - (height - 1) / 2.0) * ratio
    bins = math.ceil(math.hypot(width, height * ratio)) + 4
    pixels = np.arange(height * width)
    per = ANGLES // WEDGES
    result = []
    for wedge in range(WEDGES):
        entries = []
        for view in range(per):
            angle = (wedge + (view + 0.5) / per - 0.5) * np.pi / WEDGES
            c, s = np.cos(angle), np.sin(angle)
            centre = (across[None, :] * c + down[:, None] * s).ravel() + bins / 2.0
            sides = max(abs(c), 1e-3), max(abs(s) * ratio, 1e-3)
            first = np.floor(centre - sum(sides) / 2.0).astype(int)
            for step in range(math.ceil(sum(sides)) + 1):
                left = first + step
                share = _shadow(left + 1 - centre, *sides) - _shadow(left - centre, *sides)
                entries.append((share * ratio, view * bins + left, pixels))
        values, at, of = (np.concatenate(column) for column in zip(*entries))
        matrix = sparse.csr_matrix((values.astype(np.float32), (at, of)), (per * bins, height * width))
        matrix.eliminate_zeros()
        result.append(matrix)
    return tuple(result)


def _shadow(end: np.ndarray, one: float, other: float) -> np.ndarray:
    """How much of the convolution of two centred boxes of area 1 lies before `end`."""
    far, near = (one + other) / 2.0, abs(one - other) / 2.0

    def ramp(shift: float) -> np.ndarray:
        return np.maximum(np.minimum(end, far) + shift, 0.0) ** 2

    return (ramp(far) - ramp(near) - ramp(-near) + ramp(-far)) / (2.0 * one * other)


@lru_cache(maxsize=8)
def _wedge_filters(
    height: int, width: int, rows: float, columns: float, cutoff: float
) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Of each wedge the flat places in a half spectrum (height, width // 2 + 1), and the amplitudes there.

    White noise of variance 1 gets the power spectrum pi |f| W(f)^2, f in 1/mm.
    """
    down = np.fft.fftfreq(height, rows)[:, None]
    across = np.fft.rfftfreq(width, columns)[None, :]
    radius = np.hypot(down, across)
    window = 0.5 * (1.0 + np.cos(np.pi * np.minimum(radius / cutoff, 1.0)))
    amplitude = np.sqrt(np.pi * radius / (rows * columns)) * window
    wedge = np.floor(np.arctan2(down, across) * (WEDGES / np.pi) + 0.5).astype(int) % WEDGES
    bands = (np.flatnonzero((wedge == one) & (amplitude > 0.0)) for one in range(WEDGES))
    return tuple((band, amplitude.ravel()[band].astype(np.float32)) for band in bands)


@lru_cache(maxsize=32)
def _to_coarse(size: int, factor: float) -> np.ndarray:
    """(coarse, size): means over `factor` pixels each; what lies beyond the last pixel counts as zero."""
    starts = np.arange(math.ceil(size / factor - 1e-6))[:, None] * factor
    pixel = np.arange(size)[None, :]
    overlap = np.minimum(starts + factor, pixel + 1) - np.maximum(starts, pixel)
    return (np.clip(overlap, 0.0, 1.0) / factor).astype(np.float32)


@lru_cache(maxsize=32)
def _to_fine(coarse: int, size: int, factor: float) -> np.ndarray:
    """(size, coarse): linear interpolation of the grid of `_to_coarse`."""
    return linear_weights((np.arange(size) + 0.5) / factor - 0.5, coarse)


# ------------------------------------------------------------------------------------------------ noise of others

LATITUDE = (
    3.0  # natural logarithm of the exposure between the darkest and the brightest value of a radiograph: a factor of 20
)
READOUT = 0.1  # variance of the electronics, as a share of that of the photons at mid-grey


def noise(image: np.ndarray, modality: str, level: float, random: np.random.Generator) -> np.ndarray:
    """The image with the kind of noise of its modality, float32, same shape; any shape, encoded, -1 is air.

    Args:
        image: encoded.
        modality: DICOM term. MR gets Rician, radiographs Poisson-Gaussian, all others Gaussian noise.
        level: standard deviation, encoded: of one channel in MR, at mid-grey (0) in radiographs.
        random: draws the noise.

    Raises:
        ValueError: a negative level.
    """
    if level < 0.0:
        raise ValueError(f"expected a level of noise of at least 0, got {level!r}")
    image = np.asarray(image, np.float32)
    return NOISES.get(modality, gaussian)(image, level, random) if level > 0.0 else image.copy()


def gaussian(image: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    """Additive white noise."""
    return image + np.float32(level) * random.standard_normal(image.shape, dtype=np.float32)


def rician(image: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    """Magnitude of a complex signal with white noise in both channels (Gudbjartsson and Patz, Magn. Reson. Med. 34, 1995)."""
    real = gaussian(np.maximum(image + 1.0, 0.0), level, random)
    return np.hypot(real, gaussian(np.zeros_like(image), level, random)) - np.float32(1.0)


def poisson_gaussian(image: np.ndarray, level: float, random: np.random.Generator) -> np.ndarray:
    """Logarithm of photons counted behind the patient by a detector with read-out noise: bright, dense parts are noisier.

    Signal-dependent noise as in Foi et al., IEEE TIP 17, 2008, on intensities.
    """
    relative = level * LATITUDE / 2.0  # standard deviation of the logarithm at mid-grey
    usual = (1.0 + READOUT) / relative**2  # photons there
    expected = usual * np.exp(-image.astype(np.float64) * (LATITUDE / 2.0))
    counted = random.poisson(expected) + math.sqrt(READOUT * usual) * random.standard_normal(image.shape)
    return (-np.log(np.maximum(counted, 0.5) / usual) * (2.0 / LATITUDE)).astype(np.float32)


NOISES: dict[str, Callable[[np.ndarray, float, np.random.Generator], np.ndarray]] = {
    "MR": rician,
    **dict.fromkeys(("CR", "DX", "MG", "XA", "RF"), poisson_gaussian),
}


# ------------------------------------------------------------------------------------------------ thick slices


def thick_depth(depth: int, factor: float) -> int:
    """How many slices `factor` times as far apart cover `depth` slices."""
    return max(1, round(depth / factor))


def grid_positions(old: int, new: int, step: float) -> np.ndarray:
    """(new,) float64: where `new` slices, `step` old slices apart, lie among `old` ones with the same middle."""
    return (old - 1) / 2.0 + (np.arange(new) - (new - 1) / 2.0) * step


def slice_positions(depth: int, factor: float) -> np.ndarray:
    """(D',) float64: where the slices of `thickened` lie, in slices of the thin scan."""
    return grid_positions(depth, thick_depth(depth, factor), factor)


def regridded_affine(affine: np.ndarray, old: int, new: int, step: float, axis: int = 2) -> np.ndarray:
    """(4, 4): of the scan with `grid_positions(old, new, step)` along a voxel axis.

    The thick scan has (D, D', factor), and the thin one from it (D', D, 1 / factor).
    """
    result = np.array(affine, np.float64)
    result[:3, 3] += result[:3, axis] * grid_positions(old, new, step)[0]
    result[:3, axis] *= step
    return result


def slice_width(thickness: float | None, spacing: float) -> float:
    """Full width at half maximum of a scan's slices in slices: Slice Thickness (0018,0050) over their distance, both in mm.

    1 where the header says nothing usable. It is not measured: along the slice axis anatomy differs from that within the
    slices, and where slices do not overlap blur cannot be told from aliasing.
    """
    usable = thickness is not None and math.isfinite(thickness) and 0.1 * spacing <= thickness <= 10.0 * spacing
    return float(thickness) / spacing if usable and thickness is not None else 1.0


def thickened(
    volume: np.ndarray, factor: float, profile: str = "gaussian", width: float | None = None, axis: int = 1
) -> np.ndarray:
    """The scan with slices `factor` times as far apart: (C, D, H, W) -> (C, D', H, W) float32, at `slice_positions`.

    Each is a mean over thin slices with weights that make its profile as wide as wished, if theirs has the same form and the
    width of 1 slice (Zhao et al., SMORE, IEEE TMI 40, 2021); at the ends, over those that are there. Factor 1 changes nothing.

    Args:
        volume: thin slices, any values.
        factor: distance of thick slices in thin ones, at least 1.
        profile: a key of `PROFILES`.
        width: full width at half maximum of a thick slice in thin ones; None: the factor, slices that touch.
        axis: along which.

    Raises:
        ValueError: a factor below 1, or an unknown profile.
    """
    return _along(_thickening(volume.shape[axis], factor, profile, width), volume, axis)


def refined(
    thick: np.ndarray, depth: int, factor: float | None = None, method: str = "cubic", axis: int = 1
) -> np.ndarray:
    """The scan interpolated on thinner slices with the same middle: (C, D', H, W) -> (C, depth, H, W) float32.

    Args:
        thick: thick slices.
        depth: how many thin ones.
        factor: thin slices in a thick one; None: depth / D'. Beyond the outermost thick slices' middles their values stay.
        method: a key of `INTERPOLATIONS`.
        axis: along which.

    Raises:
        ValueError: an unknown method, or a factor that is not positive.
    """
    count = thick.shape[axis]
    return _along(_refining(count, depth, depth / count if factor is None else factor, method), thick, axis)


def blurred(image: np.ndarray, factor: float, profile: str = "gaussian", method: str = "cubic") -> np.ndarray:
    """The image as pixels `factor` times as large show it, on the grid that it had: (..., H, W) -> (..., H, W) float32."""
    for axis in (image.ndim - 2, image.ndim - 1):
        coarse = thickened(image, factor, profile, axis=axis)
        image = refined(coarse, image.shape[axis], factor, method, axis)
    return image


def consistent(
    fine: np.ndarray,
    thick: np.ndarray,
    factor: float,
    profile: str = "gaussian",
    width: float | None = None,
    rounds: int = 50,
    axis: int = 1,
) -> np.ndarray:
    """The fine scan changed smoothly until its thick slices are the measured ones, (C, D, H, W) float32.

    Iterative back-projection (Irani and Peleg, CVGIP 53, 1991): fine += refined(thick - thickened(fine)), `rounds` times. All
    rounds are one linear map of the first residual, so that they cost as much as one. The residual shrinks to a thousandth
    in 50 rounds where slices touch; where they overlap, what they hardly show is left as it was.

    Args:
        fine: what was made of the thick scan, depth D.
        thick: measured, depth D' = `thick_depth(D, factor)`.
        factor, profile, width, axis: as in `thickened`.
        rounds: 0 changes nothing.

    Raises:
        ValueError: as `thickened`; also another number of thick slices than the factor gives.
    """
    depth = fine.shape[axis]
    if thick.shape[axis] != thick_depth(depth, factor):
        raise ValueError(
            f"expected {thick_depth(depth, factor)} thick slices for {depth} fine ones and a factor of {factor:g}, got {thick.shape[axis]}: give the scan that the fine one was made from"
        )
    down = _thickening(depth, factor, profile, width).astype(np.float64)
    up = _refining(len(down), depth, factor, "linear").astype(np.float64)
    left = np.eye(len(down)) - down @ up  # of a residual, after a round
    total = np.zeros_like(left)
    for _ in range(rounds):
        total = np.eye(len(down)) + left @ total
    residual = np.asarray(thick, np.float32) - _along(down.astype(np.float32), fine, axis)
    return np.asarray(fine, np.float32) + _along((up @ total).astype(np.float32), residual, axis)


# ------------------------------------------------------------------------------------------------ weights


# A profile gives (D', D) weights of thin slices at these distances from each thick one; where none is missing, the mean of the
# distances by them is zero, so that a thick slice lies exactly where it should.


def box_weights(distance: np.ndarray, width: float) -> np.ndarray:
    """How much of a slice of width 1 at a distance lies in a box of that width, tilted so that their middle is its middle."""
    half = width / 2.0

    def overlap(away: np.ndarray) -> np.ndarray:
        return np.maximum(np.minimum(away + 0.5, half) - np.maximum(away - 0.5, -half), 0.0)

    # Slices that the box cuts count with their own middle, not with that of their part in the box.
    offset = distance[:, :1] - np.rint(distance[:, :1])
    near = np.arange(-math.ceil(half) - 1, math.ceil(half) + 2) + offset
    share = overlap(near) / width
    middle = (share * near).sum(axis=1, keepdims=True)
    variance = (share * (near - middle) ** 2).sum(axis=1, keepdims=True)
    return overlap(distance) * (1.0 - middle / np.maximum(variance, 1e-9) * (distance - middle))


def gaussian_weights(distance: np.ndarray, width: float) -> np.ndarray:
    """The Gaussian that makes a profile of width 1 one of `width`, times values linear between slices at these distances."""
    from scipy.special import ndtr

    # Full width at half maximum = sqrt(8 ln 2) standard deviations; linear interpolation adds 1/6 of its own.
    deviation = math.sqrt(max((width**2 - 1.0) / (8.0 * math.log(2.0)) - 1.0 / 6.0, 1e-30))

    def ramp(end: np.ndarray) -> np.ndarray:
        """The Gaussian integrated twice up to `end`."""
        unit = end / deviation
        return end * ndtr(unit) + deviation / math.sqrt(2.0 * math.pi) * np.exp(-(unit**2) / 2.0)

    return np.asarray(ramp(distance + 1.0) - 2.0 * ramp(distance) + ramp(distance - 1.0))


PROFILES: dict[str, Callable[[np.ndarray, float], np.ndarray]] = {"gaussian": gaussian_weights, "box": box_weights}


def linear_weights(positions: np.ndarray, count: int) -> np.ndarray:
    """(positions, count) float32: linear interpolation between `count` samples; beyond them the outermost stay."""
    distance = np.abs(np.clip(positions, 0.0, count - 1.0)[:, None] - np.arange(count)[None, :])
    return np.maximum(1.0 - distance, 0.0).astype(np.float32)


def cubic_weights(positions: np.ndarray, count: int) -> np.ndarray:
    """(positions, count) float32: the cubic spline through `count` samples; beyond them the outermost stay."""
    if count < 4:
        return linear_weights(positions, count)
    from scipy.interpolate import CubicSpline

    spline = CubicSpline(np.arange(count), np.eye(count))
    return np.asarray(spline(np.clip(positions, 0.0, count - 1.0)), np.float32)


INTERPOLATIONS: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {"linear": linear_weights, "cubic": cubic_weights}


@lru_cache(maxsize=64)
def _thickening(depth: int, factor: float, profile: str, width: float | None) -> np.ndarray:
    """(D', depth) float32, rows that sum to 1."""
    if profile not in PROFILES or not factor >= 1.0:
        raise ValueError(
            f"expected a factor of at least 1 and a profile of {tuple(PROFILES)}, got {factor!r} and {profile!r}"
        )
    distance = np.arange(depth)[None, :] - slice_positions(depth, factor)[:, None]
    weights = PROFILES[profile](distance, max(1.0, factor if width is None else width))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


@lru_cache(maxsize=64)
def _refining(count: int, depth: int, factor: float, method: str) -> np.ndarray:
    """(depth, count) float32."""
    if method not in INTERPOLATIONS or not factor > 0.0:
        raise ValueError(
            f"expected a positive factor and a method of {tuple(INTERPOLATIONS)}, got {factor!r} and {method!r}"
        )
    return INTERPOLATIONS[method](grid_positions(count, depth, 1.0 / factor), count)


def _along(matrix: np.ndarray, array: np.ndarray, axis: int) -> np.ndarray:
    """The product of (new, old) with an axis of length old, float32 and contiguous."""
    array = np.asarray(array, np.float32)
    axis %= array.ndim
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    if math.prod(after) == 1:
        return np.ascontiguousarray(array.reshape(-1, array.shape[axis]) @ matrix.T).reshape(*before, -1, *after)
    product = matrix @ array.reshape(*before, array.shape[axis], math.prod(after))
    return np.asarray(product).reshape(*before, len(matrix), *after)
