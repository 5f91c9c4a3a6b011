"""Intervals that hold: by which factor predicted bounds must be widened to cover new patients' voxels as promised.

A model predicts for each voxel a middle m and bounds l <= m <= u. Widened by a factor f they are [m - f (m - l), m + f (u - m)]. A
patient's loss at f is the share of their voxels whose true value lies outside; it falls with f. Patients, not voxels, are
exchangeable, so each counts once, whatever their size. What is promised is the loss of a new patient of the same kind, the
average over their voxels: a single organ or lesion may fare worse.

Calibration patients must not have been used before, neither to learn nor to stop the learning.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

Method = Literal["uncalibrated", "conformal risk control", "risk-controlling prediction sets"]

FEWEST = 10  # patients; conformal risk control at alpha = .1 has a finite answer from 9 on
FEWEST_RCPS = 50  # below, its bound costs much width
# The factors that are tried, fixed before any data are seen, as the proofs ask.
FACTORS = np.geomspace(0.01, 100.0, 1001)
NARROWEST = 1e-3  # a bound lies at least so far from the middle before it is widened, in units of [-1, 1]


@dataclass(frozen=True)
class Calibration:
    """What the calibration patients gave.

    Attributes:
        method: its name, for every output.
        factor: by which bounds are widened (below 1 narrowed); 1 where nothing is promised, inf where no factor is enough.
        patients: how many there were.
        alpha: share of a new patient's voxels that may lie outside, in expectation.
        delta: share of the draws of calibration patients in which that may fail; None where the promise is on average over draws.
    """

    method: Method
    factor: float
    patients: int
    alpha: float
    delta: float | None = None

    def words(self) -> str:
        """What is promised, for people."""
        if self.method == "uncalibrated":
            return f"uncalibrated: of {FEWEST} calibration patients that are needed there are {self.patients}, so the bounds promise nothing"
        if math.isinf(self.factor):
            return f"{self.method} on {self.patients} patients: no factor up to {FACTORS[-1]:g} covers {1.0 - self.alpha:.0%} of a new patient's voxels, so the bounds promise nothing"
        certainty = "" if self.delta is None else f", with {1.0 - self.delta:.0%} certainty"
        return (
            f"{self.method} on {self.patients} patients: {1.0 - self.alpha:.0%} of the voxels of a new patient of the same kind lie "
            f"inside on average{certainty}; a single organ or lesion may fare worse"
        )


def distances(lower: np.ndarray, middle: np.ndarray, upper: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How far the bounds lie from the middle, each at least `NARROWEST`, same shape as the images."""
    return np.maximum(middle - lower, NARROWEST), np.maximum(upper - middle, NARROWEST)


def widened(lower: np.ndarray, middle: np.ndarray, upper: np.ndarray, factor: float) -> tuple[np.ndarray, np.ndarray]:
    """The bounds moved away from the middle by the factor."""
    below, above = distances(lower, middle, upper)
    return middle - factor * below, middle + factor * above


def losses(true: np.ndarray, lower: np.ndarray, middle: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """One patient: the share of voxels outside for each of `FACTORS`, falling, (1001,).

    Args:
        true, lower, middle, upper: of the voxels that count, any one shape, in [-1, 1].

    Raises:
        ValueError: there are no voxels.
    """
    if not true.size:
        raise ValueError(
            "expected voxels inside the body of a calibration patient, found none: leave the patient out of the calibration"
        )
    below, above = distances(lower, middle, upper)
    needed = np.sort(np.maximum((middle - true) / below, (true - middle) / above), axis=None)
    outside: np.ndarray = 1.0 - np.searchsorted(needed, FACTORS, side="right") / needed.size
    return outside


def calibrate(patients: Sequence[np.ndarray], alpha: float = 0.1, delta: float = 0.1) -> Calibration:
    """The method that the number of patients allows, and its factor: none below 10, from 50 on risk-controlling prediction
    sets, unless alpha is so small that with so many patients they have no finite answer; else conformal risk control.

    Args:
        patients: `losses` of each, in an order that does not depend on them.
        alpha, delta: see `Calibration`.
    """
    count = len(patients)
    if count < FEWEST:
        return Calibration("uncalibrated", 1.0, count, alpha)
    if count < FEWEST_RCPS or upper_bounds(np.zeros((count, 1)), delta)[0] >= alpha:
        return Calibration("conformal risk control", risk_control(np.stack(patients), alpha), count, alpha)
    return Calibration(
        "risk-controlling prediction sets", risk_controlling_sets(np.stack(patients), alpha, delta), count, alpha, delta
    )


def risk_control(patients: np.ndarray, alpha: float) -> float:
    """The least factor at which (n R + 1) / (n + 1) <= alpha, R the mean loss of n patients (Angelopoulos 2024, eq. 4).

    Then a new patient's loss is at most alpha on average over draws of calibration patients and of the new one.
    """
    count = len(patients)
    return least((patients.sum(axis=0) + 1.0) / (count + 1) <= alpha)


def risk_controlling_sets(patients: np.ndarray, alpha: float, delta: float) -> float:
    """The least factor from which on an upper bound of the expected loss stays below alpha (Bates 2021, eq. 4).

    Then the expected loss of a new patient is at most alpha in all but a share delta of the draws of calibration patients.
    """
    return least(upper_bounds(patients, delta) < alpha)


def least(enough: np.ndarray) -> float:
    """The least of `FACTORS` from which on all are enough; inf when the largest is not."""
    failing = np.flatnonzero(~enough)
    first = int(failing[-1]) + 1 if failing.size else 0
    return float(FACTORS[first]) if first < len(FACTORS) else math.inf


def upper_bounds(found: np.ndarray, delta: float) -> np.ndarray:
    """Upper bounds of mean losses in [0, 1], each wrong in a share delta of draws at most.

    The hedged-capital bound of Waudby-Smith and Ramdas as Bates 2021 gives it (proposition 5): the least R whose capital
    K_i(R) = prod_j<=i (1 - nu_j (L_j - R)) ever exceeds 1 / delta; to 1e-6.

    Args:
        found: (n, m) losses of n patients, in an order that does not depend on them.

    Returns:
        (m,) bounds.
    """
    count = len(found)
    numbers = np.arange(1, count + 1)[:, None]
    means = (0.5 + np.cumsum(found, axis=0)) / (1 + numbers)
    variances = (0.25 + np.cumsum((found - means) ** 2, axis=0)) / (1 + numbers)
    before = np.concatenate([np.full_like(variances[:1], 0.25), variances[:-1]])
    bets = np.minimum(1.0, np.sqrt(2.0 * math.log(1.0 / delta) / (count * before)))

    def rejected(mean: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore"):
            capital: np.ndarray = np.cumsum(np.log(1.0 - bets * (found - mean)), axis=0).max(axis=0)
        return capital > -math.log(delta)

    low, high = np.zeros(found.shape[1]), np.ones(found.shape[1])
    for _ in range(20):
        middle = 0.5 * (low + high)
        high = np.where(rejected(middle), middle, high)
        low = np.where(high == middle, low, middle)
    return high
