"""Registration: how far two scans of one patient with different contrast, on one grid, are apart; measured, never corrected."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np

# An axis with fewer voxels tells nothing about a shift along it.
LEAST_SIZE = 8
# Voxels kept along an axis about the centre: memory and time stay bounded however large the scan. An axis of twice as
# many or more is averaged in blocks first, so that at least about half of it is seen.
MOST_SIZE = {2: 1024, 3: 128}
MOST_SAMPLES = 120_000
LEVELS = 24
PEAKS = 6
# Standard deviation of the low pass, in cycles a voxel: finer frequencies hold noise, not anatomy.
LOW_PASS = 0.15
# Peaks nearer than this (voxels) are one peak.
ONE_PEAK = 4
# The search for mutual information goes by whole voxels; methods that differ by more do not agree.
ROUNDING, MOST_DISAGREEMENT = 0.5, 2.0
LEAST_CONFIDENCE = 0.45


@dataclass(frozen=True, slots=True)
class Shift:
    """How far a source lies from its target.

    Attributes:
        mm: along I, J and K; moving the source by so much brings it onto the target. 0 along an axis too short to tell.
        confidence: 0 to 1; below `LEAST_CONFIDENCE` the shift could not be measured and `mm` means nothing.
    """

    mm: tuple[float, float, float]
    confidence: float

    @property
    def words(self) -> str:
        """For people: "misregistration 0.4 mm", or that it could not be measured."""
        if self.confidence < LEAST_CONFIDENCE:
            return "misregistration could not be measured"
        return f"misregistration {float(np.linalg.norm(self.mm)):.1f} mm"


def misregistration(source: np.ndarray, target: np.ndarray, spacing: tuple[float, float, float]) -> Shift:
    """Estimate the translation that is left between two images of one patient with different contrast.

    Phase correlation of the gradient magnitudes (edges lie at the same places, whatever their contrast), each under a
    Hann window and low-passed, proposes shifts to a part of a voxel; normalised mutual information (Studholme et al.
    1999, equation 9) chooses among them. Where the two methods disagree, or another shift fits nearly as well, the
    confidence is low.

    Args:
        source, target: (C, I, J, K) or (I, J, K) on one grid.
        spacing: voxel size in mm along I, J and K.
    """
    one, other = _grey(source), _grey(target)
    if one.shape != other.shape:
        raise ValueError(f"expected two images on one grid, got shapes {one.shape} and {other.shape}")
    axes = tuple(axis for axis in range(3) if one.shape[axis] >= LEAST_SIZE)
    if len(axes) < 2:
        return Shift((0.0, 0.0, 0.0), 0.0)
    blocks = tuple(max(1, size // (2 * MOST_SIZE[len(axes)])) for size in one.shape)
    one, other = (_middle(array, blocks, MOST_SIZE[len(axes)]) for array in (one, other))
    step = (spacing[0] * blocks[0], spacing[1] * blocks[1], spacing[2] * blocks[2])
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return Shift((0.0, 0.0, 0.0), 0.0)
    peaks = _peaks(phase_correlation(_edges(one, step, axes), _edges(other, step, axes), axes), axes)
    likeness = _likeness(one, other)
    best = _climb([(0, 0, 0), *(_nearest(shift) for shift, _ in peaks)], likeness, axes)
    apart = [float(np.abs(shift - best).max()) for shift, _ in peaks]
    near = int(np.argmin(apart))
    shift, height = peaks[near]
    rival = max((other_height for at, (_, other_height) in enumerate(peaks) if at != near), default=0.0)
    agreement = 1.0 - (max(apart[near], ROUNDING) - ROUNDING) / (MOST_DISAGREEMENT - ROUNDING)
    dominance = max(0.0, 1.0 - max(rival, 0.0) / max(height, 1e-12))
    i, j, k = (float(value * size) for value, size in zip(shift, step))
    return Shift((i, j, k), max(0.0, agreement) * dominance)


def _grey(array: np.ndarray) -> np.ndarray:
    """(I, J, K): the mean of the channels."""
    if array.ndim == 3:
        return array
    return array[0] if len(array) == 1 else array.mean(axis=0, dtype=np.float32)


def _middle(array: np.ndarray, blocks: tuple[int, ...], most: int) -> np.ndarray:
    """At most `most` voxels along each axis about the centre, float32, each the mean of a block of the array's voxels."""
    part = []
    for size, block in zip(array.shape, blocks):
        count = min(most, size // block)
        first = (size - count * block) // 2
        part.append(slice(first, first + count * block))
    result = array[tuple(part)].astype(np.float32)
    for axis, block in enumerate(blocks):
        if block > 1:
            shape = (*result.shape[:axis], result.shape[axis] // block, block, *result.shape[axis + 1 :])
            result = result.reshape(shape).mean(axis=axis + 1)
    return result


# ------------------------------------------------------------------------------------------------ phase correlation


def _edges(array: np.ndarray, spacing: tuple[float, float, float], axes: tuple[int, ...]) -> np.ndarray:
    """Gradient magnitude under a Hann window, its mean taken away so that the window itself does not correlate."""
    from scipy.ndimage import gaussian_filter

    low, high = _range(array)
    smooth = gaussian_filter(np.clip(array, low, high), [1.0 if axis in axes else 0.0 for axis in range(3)])
    squares = np.zeros_like(smooth)
    for axis in axes:
        squares += (np.gradient(smooth, axis=axis) / spacing[axis]) ** 2
    window = np.ones(1, np.float32)
    for axis in axes:
        size = array.shape[axis]
        window = window * np.hanning(size + 2)[1:-1].astype(np.float32).reshape(
            [-1 if a == axis else 1 for a in range(3)]
        )
    edges = np.sqrt(squares)
    window = np.broadcast_to(window, edges.shape)
    return (edges - (edges * window).sum() / window.sum()) * window


def phase_correlation(one: np.ndarray, other: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Correlation of two arrays' phases along some axes, low-passed: highest at the shift that brings one onto the other.

    Kuglin and Hines 1975; over the axes that are left out the spectra are added up.
    """
    from scipy import fft

    cross = np.conj(fft.rfftn(one, axes=axes)) * fft.rfftn(other, axes=axes)
    for axis in set(range(3)) - set(axes):
        cross = cross.sum(axis=axis, keepdims=True)
    magnitude = np.abs(cross)
    cross /= magnitude + 1e-3 * magnitude.mean() + 1e-30
    for axis in axes:
        size = one.shape[axis]
        frequency = fft.rfftfreq(size) if axis == axes[-1] else fft.fftfreq(size)
        low_pass = np.exp(-(frequency**2) / (2.0 * LOW_PASS**2)).astype(np.float32)
        cross *= low_pass.reshape([-1 if a == axis else 1 for a in range(3)])
    return fft.irfftn(cross, [one.shape[axis] for axis in axes], axes=axes)


def _peaks(surface: np.ndarray, axes: tuple[int, ...]) -> list[tuple[np.ndarray, float]]:
    """(shift in voxels along all three axes, height) of the highest separate peaks, highest first."""
    left = surface.copy()
    peaks: list[tuple[np.ndarray, float]] = []
    for _ in range(PEAKS):
        at = tuple(int(index) for index in np.unravel_index(left.argmax(), left.shape))
        shift = np.zeros(3)
        for axis in axes:
            size = surface.shape[axis]
            place = at[axis] + _vertex(surface, at, axis)
            shift[axis] = place - size if place > size / 2 else place
        peaks.append((shift, float(surface[at])))
        around = [
            (np.arange(-ONE_PEAK, ONE_PEAK + 1) + at[axis]) % left.shape[axis]
            if axis in axes
            else np.arange(left.shape[axis])
            for axis in range(3)
        ]
        left[np.ix_(*around)] = -np.inf
        if not np.isfinite(left.max()):
            break
    return peaks


def _vertex(surface: np.ndarray, at: tuple[int, ...], axis: int) -> float:
    """Where between its neighbours along an axis the peak lies, by a Gaussian through three values; -0.5 to 0.5."""
    size = surface.shape[axis]
    before, peak, behind = (
        float(surface[(*at[:axis], (at[axis] + step) % size, *at[axis + 1 :])]) for step in (-1, 0, 1)
    )
    if min(before, behind) <= 0:
        return 0.0
    before, peak, behind = np.log(before), np.log(peak), np.log(behind)
    bend = before - 2.0 * peak + behind
    return float(np.clip(0.5 * (before - behind) / bend, -0.5, 0.5)) if bend < 0 else 0.0


# ------------------------------------------------------------------------------------------------ mutual information


def _likeness(one: np.ndarray, other: np.ndarray) -> Callable[[tuple[int, int, int]], float]:
    """Normalised mutual information as a function of the shift of `one` in whole voxels, from about `MOST_SAMPLES` voxels."""
    first, second = _levels(one), _levels(other)
    long = sum(size >= LEAST_SIZE for size in one.shape)
    step = max(1, round((one.size / MOST_SAMPLES) ** (1.0 / long)))
    steps = tuple(slice(None, None, step if size >= LEAST_SIZE else 1) for size in one.shape)
    known: dict[tuple[int, int, int], float] = {}

    def of(shift: tuple[int, int, int]) -> float:
        if shift not in known:
            if any(abs(d) >= size for d, size in zip(shift, one.shape)):
                return 0.0
            here = tuple(slice(max(0, d), size + min(0, d)) for d, size in zip(shift, one.shape))
            there = tuple(slice(max(0, -d), size - max(0, d)) for d, size in zip(shift, one.shape))
            known[shift] = normalised_mutual_information(first[there][steps], second[here][steps], LEVELS)
        return known[shift]

    return of


def _levels(array: np.ndarray) -> np.ndarray:
    """Grey values as whole numbers below `LEVELS`."""
    from scipy.ndimage import gaussian_filter

    smooth = gaussian_filter(array, [1.0 if size >= LEAST_SIZE else 0.0 for size in array.shape])
    low, high = _range(smooth)
    return np.clip((smooth - low) / max(high - low, 1e-9) * LEVELS, 0, LEVELS - 1).astype(np.int16)


def _range(array: np.ndarray) -> tuple[float, float]:
    """The 1st and 99th percentile, from about `MOST_SAMPLES` values."""
    # An odd step divides no usual row length, so that the samples do not lie in columns.
    low, high = np.percentile(array.ravel()[:: array.size // MOST_SAMPLES | 1], (1, 99))
    return float(low), float(high)


def normalised_mutual_information(one: np.ndarray, other: np.ndarray, levels: int) -> float:
    """(H(A) + H(B)) / H(A, B) of two arrays of whole numbers below `levels`; 1 (nothing in common) to 2."""
    pairs = one.ravel().astype(np.int64) * levels + other.ravel()
    share = np.bincount(pairs, minlength=levels * levels).reshape(levels, levels) / max(1, pairs.size)
    together = _entropy(share)
    return (_entropy(share.sum(axis=0)) + _entropy(share.sum(axis=1))) / together if together > 0 else 1.0


def _entropy(share: np.ndarray) -> float:
    positive = share[share > 0]
    return float(-(positive * np.log(positive)).sum())


def _nearest(shift: np.ndarray) -> tuple[int, int, int]:
    i, j, k = (int(value) for value in np.rint(shift))
    return i, j, k


def _climb(
    starts: list[tuple[int, int, int]], likeness: Callable[[tuple[int, int, int]], float], axes: tuple[int, ...]
) -> np.ndarray:
    """The shift in whole voxels with the highest likeness, uphill from the two best starts."""
    steps = list(product(*((-1, 0, 1) if axis in axes else (0,) for axis in range(3))))
    tops: list[tuple[int, int, int]] = []
    for here in sorted(dict.fromkeys(starts), key=likeness, reverse=True)[:2]:
        for _ in range(40):
            around = [(here[0] + i, here[1] + j, here[2] + k) for i, j, k in steps]
            best = max(around, key=likeness)
            if likeness(best) <= likeness(here):
                break
            here = best
        tops.append(here)
    return np.array(max(tops, key=likeness), float)
