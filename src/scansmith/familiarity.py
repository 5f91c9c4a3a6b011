"""Familiarity: is a scan like those that a model learned from? What is not is refused, unless forced, with the reasons.

First come hard checks, which need no statistics: modality, channels, axes, voxel size, extent and range of values. Then a distance
from the training scans, measured on the foreground's histogram and the geometry, is compared with the distances of calibration
patients whom the model never saw: a conformal p-value. It promises that of familiar patients no more than the level is refused by
it, whatever the distances' distribution, but needs 99 calibration patients for a level of .01; with fewer, nobody is refused by
it and "uncalibrated" is said. Patients, not scans, are exchangeable, so each counts once, by the worst of their scans.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .image import MODALITIES
from .intensity import background_level

MOST_VOXELS = 2**18  # of a channel; so many fix a histogram well
BINS = 32  # of the histogram, over [-1, 1]
# Shares at which the values of a whole channel are kept, to find later how many lie beyond a range.
SHARES = (0.0, 0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999, 1.0)
LOWEST, HIGHEST = SHARES.index(0.001), SHARES.index(0.999)  # between them lies a scan's range

# What the hard checks let pass: sizes up to so many times beyond the training scans',
WIDER = 2.0
# values and the foreground's mean so far beyond theirs, in units of the map's [-1, 1],
MARGIN = 0.3
# and that share of voxels beyond the range, or without a number.
MOST_OUTSIDE = 0.05

# Deviations below these are not believed: 1 % of the foreground in a histogram, 2 % of a length.
LEAST_SHARE, LEAST_LENGTH = 0.01, 0.02
RIDGE = 0.01  # variance added in every direction, so that what a handful of scans agree in does not count without bound
FAR = 2.0  # a distance so many times beyond all calibration patients' is warned of

AXES = {2: ("rows", "columns"), 3: ("slices", "rows", "columns")}


@dataclass(frozen=True)
class Features:
    """What of a scan is compared; plain JSON, so that `Features(**json)` brings it back.

    Attributes:
        modality: DICOM modality term.
        size: voxels along each spatial axis, [D, H, W] or [H, W].
        spacing: voxel size in mm along the same axes; None when the file does not say.
        histograms: for each channel the share of the foreground below the upper edge of each of the 32 bins but the last.
        quantiles: for each channel the values at `SHARES` of all its voxels, encoded.
        means: for each channel the mean of the foreground, encoded.
        missing: share of voxels that are no finite number, 0 to 1.
    """

    modality: str
    size: list[int]
    spacing: list[float] | None
    histograms: list[list[float]]
    quantiles: list[list[float]]
    means: list[float]
    missing: float

    @property
    def extent(self) -> list[float] | None:
        """Edge to edge in mm along each axis."""
        return None if self.spacing is None else [count * step for count, step in zip(self.size, self.spacing)]


@dataclass(frozen=True)
class Judgement:
    """Whether a scan is refused.

    Attributes:
        refused: true when any reason stands against it.
        reasons: sentences, what was expected and what was found; empty when it is not refused.
        p: share of familiar patients that lie as far from the training scans; None without calibration patients, or where the
            scan cannot be compared.
        words: the whole judgement for people, with what could not be judged and what is warned of.
    """

    refused: bool
    reasons: tuple[str, ...]
    p: float | None
    words: str


# ------------------------------------------------------------------------------------------------ features


def describe(array: np.ndarray, spacing: Sequence[float] | None, modality: str) -> Features:
    """What of a scan is compared. A scan that is worked on slice by slice is described whole, in training and later.

    Args:
        array: (C, D, H, W) or (C, H, W), encoded to about [-1, 1] by the scan's own window. Values may lie beyond.
        spacing: voxel size in mm along the spatial axes; None when the file does not say.
        modality: DICOM modality term.

    Raises:
        ValueError: an array of another shape, an unknown modality, or a spacing that does not fit.
    """
    if array.ndim not in (3, 4) or not array.size:
        raise ValueError(
            f"expected voxels of shape (C, D, H, W) or (C, H, W), found shape {array.shape}: give one scan, channels first"
        )
    if modality not in MODALITIES:
        raise ValueError(f"expected a modality of {MODALITIES}, found {modality!r}: name one of these, or OT for none")
    size = array.shape[1:]
    if spacing is not None and (
        len(spacing) != len(size) or not all(math.isfinite(step) and step > 0 for step in spacing)
    ):
        raise ValueError(
            f"expected {len(size)} voxel sizes above 0 mm, found {tuple(spacing)}: give them, or None when they are not known"
        )
    channels = [_thinned(channel) for channel in array]
    tissue = [_foreground(values) for values in channels]
    return Features(
        modality,
        [int(count) for count in size],
        None if spacing is None else [float(step) for step in spacing],
        [_cumulative(values) for values in tissue],
        [np.quantile(values, SHARES).tolist() for values in channels],
        [float(values.mean()) for values in tissue],
        float(1.0 - np.isfinite(array).mean()),
    )


def _thinned(channel: np.ndarray) -> np.ndarray:
    """Finite values as float64, evenly drawn, the least and the greatest among them; a single -1 where there are none."""
    values = channel[np.isfinite(channel)]
    if not len(values):
        return np.full(1, -1.0)
    # An odd stride, so that the drawn voxels do not stand in one column.
    drawn = values[:: (len(values) // MOST_VOXELS) | 1]
    return np.concatenate([drawn, [values.min(), values.max()]]).astype(np.float64)


def _foreground(values: np.ndarray) -> np.ndarray:
    """The values above background; all of them where there is none."""
    level = background_level(values)
    return values if level is None else values[values > level[1]]


def _cumulative(values: np.ndarray) -> list[float]:
    """Shares below the upper edges of all bins but the last; what lies beyond [-1, 1] counts to the outermost bins.

    The sum of the absolute differences of two of them, times a bin's width, is their Wasserstein-1 distance. Each bin first gives a
    quarter of its share to either neighbour, so that a value near an edge does not jump.
    """
    shares = np.histogram(np.clip(values, -1.0, 1.0), BINS, (-1.0, 1.0))[0] / len(values)
    smooth = np.convolve(np.pad(shares, 1, mode="edge"), (0.25, 0.5, 0.25), mode="valid")
    return np.cumsum(smooth)[:-1].tolist()


def _vector(features: Features) -> np.ndarray:
    """(n,) histograms of all channels, then log voxel size, log extent and log anisotropy; nan where no size is known."""
    lengths = np.full(2 * len(features.size) + 1, np.nan)
    if features.spacing is not None and features.extent is not None:
        spacing = np.log(features.spacing)
        lengths = np.concatenate([spacing, np.log(features.extent), [np.ptp(spacing)]])
    return np.concatenate([*features.histograms, lengths])


def _named(features: Features) -> list[str]:
    """What each number of `_vector` is, for people."""
    edges = np.linspace(-1.0, 1.0, BINS + 1)[1:-1]
    axes = AXES[len(features.size)]
    return [
        *(
            f"share of the foreground below {edge:g} in channel {channel + 1}"
            for channel in range(len(features.histograms))
            for edge in edges
        ),
        *(f"voxel size along {axis}" for axis in axes),
        *(f"extent along {axis}" for axis in axes),
        "ratio of the largest to the smallest voxel size",
    ]


# ------------------------------------------------------------------------------------------------ what is learned


def learn(training: Sequence[Features], calibration: Sequence[Sequence[Features]]) -> dict[str, Any]:
    """What `judge` needs, plain JSON for a model's `config.json`.

    Args:
        training: of the scans that were learned from, all with the same channels and axes.
        calibration: for each patient the features of their scans; patients that nothing was learned from, nor stopped by.

    Returns:
        "modalities", "channels", "dimensions"; [lowest, highest] of the training scans' "spacing" and "extent" in mm for each axis
        (None when no scan says), and for each channel of the "lowest" and "highest" values and the "means" of their foreground; "mean" and
        "deviation" of the features and "whitening", which makes them uncorrelated; the sorted "scores" of the calibration patients.

    Raises:
        ValueError: no training scans, or channels or axes that differ.
    """
    if not training:
        raise ValueError(
            "expected features of training scans, found none: describe the scans that the model learned from"
        )
    kinds = {(len(one.means), len(one.size)) for one in [*training, *(scan for own in calibration for scan in own)]}
    if len(kinds) > 1:
        raise ValueError(
            f"expected scans with the same channels and axes, found (channels, axes) {sorted(kinds)}: learn each kind alone"
        )
    ((channels, dimensions),) = kinds
    mean, deviation, whitening = _distribution(np.stack([_vector(one) for one in training]), channels)
    learned: dict[str, Any] = {
        "modalities": sorted({one.modality for one in training}),
        "channels": channels,
        "dimensions": dimensions,
        "spacing": _ranges([one.spacing for one in training if one.spacing is not None]),
        "extent": _ranges([one.extent for one in training if one.extent is not None]),
        "lowest": _ranges([[own[LOWEST] for own in one.quantiles] for one in training]),
        "highest": _ranges([[own[HIGHEST] for own in one.quantiles] for one in training]),
        "means": _ranges([one.means for one in training]),
        "mean": mean.tolist(),
        "deviation": deviation.tolist(),
        "whitening": whitening.tolist(),
    }
    learned["scores"] = sorted(max(score(scan, learned) for scan in patient) for patient in calibration if patient)
    return learned


def _ranges(rows: Sequence[Sequence[float]]) -> list[list[float]] | None:
    """[lowest, highest] of each column; None without rows."""
    return [[min(column), max(column)] for column in zip(*rows)] if rows else None


def _distribution(vectors: np.ndarray, channels: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n, d) features, nan where unknown -> mean (d,), deviation (d,) and the (d, d) matrix that whitens standardised ones."""
    known = np.isfinite(vectors)
    counts = np.maximum(known.sum(axis=0), 1)
    mean = np.where(known, vectors, 0.0).sum(axis=0) / counts
    centred = np.where(known, vectors - mean, 0.0)
    least = np.full(vectors.shape[1], LEAST_LENGTH)
    least[: channels * (BINS - 1)] = LEAST_SHARE
    deviation = np.maximum(np.sqrt((centred**2).sum(axis=0) / counts), least)
    covariance = shrunk_covariance(centred / deviation) + RIDGE * np.eye(len(mean))
    return mean, deviation, np.linalg.inv(np.linalg.cholesky(covariance))


def shrunk_covariance(centred: np.ndarray) -> np.ndarray:
    """Covariance of (n, d) centred samples, drawn towards a multiple of the identity: Ledoit and Wolf 2004, eq. 14.

    With S the sample covariance, m = tr(S) / d, D = ||S - m I||^2 and B = min(D, sum_k ||x_k x_k' - S||^2 / n^2) it is
    (B / D) m I + (1 - B / D) S; the sum is sum_k |x_k|^4 - n ||S||^2.
    """
    count, dimensions = centred.shape
    sample = centred.T @ centred / count
    level = np.trace(sample) / dimensions
    spread = float(np.square(sample - level * np.eye(dimensions)).sum())
    error = float(((centred**2).sum(axis=1) ** 2).sum() - count * np.square(sample).sum()) / count**2
    share = min(max(error, 0.0) / spread, 1.0) if spread > 0 else 1.0
    return share * level * np.eye(dimensions) + (1.0 - share) * sample


# ------------------------------------------------------------------------------------------------ the judgement


def score(features: Features, learned: dict[str, Any]) -> float:
    """Mahalanobis distance from the training scans, divided by the root of the number of features: below 1 for most of them.

    What a file does not say (voxel size) counts as the training scans' mean.
    """
    white = np.array(learned["whitening"]) @ _standardised(features, learned)
    return float(np.sqrt(np.square(white).mean()))


def _standardised(features: Features, learned: dict[str, Any]) -> np.ndarray:
    """(d,) deviations from the training scans' mean; 0 where unknown."""
    vector = _vector(features)
    if learned["spacing"] is None:
        vector[learned["channels"] * (BINS - 1) :] = np.nan
    return np.nan_to_num((vector - learned["mean"]) / learned["deviation"], nan=0.0)


def p_value(found: float, scores: Sequence[float]) -> float:
    """(1 + number of calibration scores at least as large) / (n + 1): the conformal p-value of Vovk 2005 and Bates 2023.

    For an exchangeable patient it is at most u with probability at most u. A single scan of a patient lies no further than the
    patient's worst, so its p-value is too large rather than too small.
    """
    return (1 + sum(one >= found for one in scores)) / (len(scores) + 1)


def patients_needed(level: float) -> int:
    """The fewest calibration patients with which a p-value can be as small as the level: n + 1 >= 1 / level."""
    return math.ceil(1.0 / level - 1e-9) - 1


def judge(features: Features, learned: dict[str, Any], level: float = 0.01) -> Judgement:
    """Whether a scan is refused: by any of the hard checks, or by a p-value at or below the level where it is calibrated.

    Args:
        features: of the scan.
        learned: by `learn`.
        level: share of familiar patients that may be refused by the p-value, on average over draws of calibration patients.

    Raises:
        ValueError: a level that is not between 0 and 1.
    """
    if not 0.0 < level < 1.0:
        raise ValueError(
            f"expected a level above 0 and below 1, found {level}: .01 refuses one familiar patient in 100"
        )
    other = _other_shape(features, learned)
    if other:
        return Judgement(True, tuple(other), None, _in_words(other, ["it cannot be compared with the training scans"]))
    reasons = _other_modality(features, learned) + _other_lengths(features, learned) + _other_values(features, learned)
    found, scores = score(features, learned), learned["scores"]
    p = p_value(found, scores) if scores else None
    calibrated = len(scores) >= patients_needed(level)
    if p is not None and calibrated and p <= level:
        reasons.append(
            f"expected a scan like the training scans, found one that lies as far from them as few familiar patients do (p = {p:.2g}, "
            f"refused at {level:g} or below); what differs most is the {_strangest(features, learned)}"
        )
    notes = [_measured(p, len(scores), level), *_unsaid(features, learned)]
    if scores and found > FAR * scores[-1]:
        notes.append(
            f"warning: it lies {found / scores[-1]:.1f} times as far from the training scans as the farthest calibration patient "
            f"(a warning from {FAR:g} times on); what differs most is the {_strangest(features, learned)}"
        )
    return Judgement(bool(reasons), tuple(reasons), p, _in_words(reasons, notes))


def _in_words(reasons: Sequence[str], notes: Sequence[str]) -> str:
    verdict = "refused: " + "; ".join(reasons) if reasons else "not refused"
    return "; ".join([verdict, *notes])


def _measured(p: float | None, patients: int, level: float) -> str:
    """What the p-value says, or why it says nothing."""
    needed = patients_needed(level)
    if patients < needed:
        return f"uncalibrated: of {needed} calibration patients that a level of {level:g} needs there are {patients}, so the distance from the training scans refuses nothing"
    return f"p = {p:.2g} on {patients} calibration patients (the level {level:g} refuses {level:.1%} of familiar patients at most, on average)"


def _strangest(features: Features, learned: dict[str, Any]) -> str:
    """The feature that lies most deviations from the training scans' mean, in words."""
    deviations = _standardised(features, learned)
    place = int(np.abs(deviations).argmax())
    side = "above" if deviations[place] > 0 else "below"
    return (
        f"{_named(features)[place]}, {abs(deviations[place]):.1f} standard deviations {side} the training scans' mean"
    )


def _unsaid(features: Features, learned: dict[str, Any]) -> list[str]:
    """What could not be judged, in words."""
    notes = []
    if features.modality == "OT":
        notes.append("the file does not say its modality, which was not judged")
    elif "OT" in learned["modalities"]:
        notes.append("the training files did not say their modality, which was not judged")
    if features.spacing is None and learned["spacing"] is not None:
        notes.append("the file does not say its voxel size, so the geometry was not judged")
    if learned["spacing"] is None:
        notes.append("the training files did not say their voxel size, so the geometry was not judged")
    if 0.0 < features.missing <= MOST_OUTSIDE:
        notes.append(f"warning: {features.missing:.2%} of its voxels are no number")
    return notes


# ------------------------------------------------------------------------------------------------ hard checks


def _other_shape(features: Features, learned: dict[str, Any]) -> list[str]:
    """Sentences when channels or axes are not the training scans'."""
    found = {"channels": len(features.means), "dimensions": len(features.size)}
    names = {"channels": "channel(s)", "dimensions": "spatial axes"}
    return [
        f"expected {learned[key]} {names[key]}, found {count}" for key, count in found.items() if count != learned[key]
    ]


def _other_modality(features: Features, learned: dict[str, Any]) -> list[str]:
    """A sentence when a file names a modality that no training file names; "OT" names none."""
    known = learned["modalities"]
    if features.modality in ("OT", *known) or "OT" in known:
        return []
    return [f"expected the modality {' or '.join(known)}, found {features.modality}"]


def _other_lengths(features: Features, learned: dict[str, Any]) -> list[str]:
    """Sentences for each axis whose voxel size or extent lies beyond twice the training scans' range."""
    sentences = []
    for name, own, ranges in (
        ("a voxel size", features.spacing, learned["spacing"]),
        ("an extent", features.extent, learned["extent"]),
    ):
        for axis, found, (low, high) in zip(AXES[len(features.size)], own or (), ranges or ()):
            if not low / WIDER <= found <= high * WIDER:
                sentences.append(
                    f"expected {name} along {axis} from {low / WIDER:.3g} to {high * WIDER:.3g} mm, found {found:.3g} mm"
                )
    return sentences


def _other_values(features: Features, learned: dict[str, Any]) -> list[str]:
    """Sentences for voxels without a number, and for each channel those of `_other_channel`."""
    sentences = []
    if features.missing > MOST_OUTSIDE:
        sentences.append(
            f"expected numbers in {1.0 - MOST_OUTSIDE:.0%} of the voxels at least, found {1.0 - features.missing:.1%}"
        )
    rows = zip(features.quantiles, features.means, learned["lowest"], learned["highest"], learned["means"])
    for number, row in enumerate(rows, 1):
        where = f" in channel {number}" if learned["channels"] > 1 else ""
        sentences += [sentence + where for sentence in _other_channel(*row)]
    return sentences


def _other_channel(
    quantiles: Sequence[float],
    mean: float,
    lowest: tuple[float, float],
    highest: tuple[float, float],
    means: tuple[float, float],
) -> list[str]:
    """Sentences for a constant channel, or one with values, lowest values or a mean beyond the training scans' ranges."""
    if quantiles[0] == quantiles[-1]:
        return [f"expected contrast, found one constant value {quantiles[0]:g} (encoded)"]
    sentences = []
    low, high = lowest[0] - MARGIN, highest[1] + MARGIN
    outside = _share_outside(quantiles, low, high)
    if outside > MOST_OUTSIDE:
        sentences.append(
            f"expected values from {low:.2f} to {high:.2f} (encoded), found {outside:.1%} of the voxels beyond"
        )
    if quantiles[LOWEST] > lowest[1] + MARGIN:
        sentences.append(
            f"expected values down to {lowest[1] + MARGIN:.2f} (encoded), found none below {quantiles[LOWEST]:.2f} (other units, or no air in the image?)"
        )
    if not means[0] - MARGIN <= mean <= means[1] + MARGIN:
        sentences.append(
            f"expected a mean of the foreground from {means[0] - MARGIN:.2f} to {means[1] + MARGIN:.2f} (encoded), found {mean:.2f} (other units?)"
        )
    return sentences


def _share_outside(quantiles: Sequence[float], low: float, high: float) -> float:
    """Share of the voxels below `low` or above `high`, read off the quantiles linearly."""
    below, above = (np.interp(edge, quantiles, SHARES, left=0.0, right=1.0) for edge in (low, high))
    return float(below + 1.0 - above)
