"""Conformal intervals: closed forms, an independent bound, and the promises counted over many draws of patients."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scansmith import conformal
from scansmith.conformal import FACTORS, Calibration, calibrate, losses, risk_control, upper_bounds, widened


def patients(count, random, voxels=400):
    """Losses of patients who differ: each has an error level of its own; the model predicts bounds at +-1 of its usual error."""
    curves = []
    for spread in np.exp(random.normal(0.0, 0.5, count)):
        middle, usual = random.uniform(-0.5, 0.5, voxels), random.uniform(0.02, 0.1, voxels)
        true = middle + usual * spread * random.normal(size=voxels)
        curves.append(losses(true, middle - usual, middle, middle + usual))
    return curves


def loss_at(curves, factor):
    return np.array(curves)[:, np.searchsorted(FACTORS, factor)] if math.isfinite(factor) else np.zeros(len(curves))


def upper_bound(found, delta):
    return float(upper_bounds(np.asarray(found)[:, None], delta)[0])


def test_losses_are_the_shares_outside_the_widened_bounds():
    random = np.random.default_rng(0)
    middle = random.uniform(-1, 1, (5, 8, 9))
    lower, upper = middle - random.uniform(0, 0.2, middle.shape), middle + random.uniform(0, 0.2, middle.shape)
    true = middle + random.normal(0, 0.15, middle.shape)
    curve = losses(true, lower, middle, upper)
    assert curve.shape == FACTORS.shape and (np.diff(curve) <= 0).all()
    for number in (0, 300, 500, 560, 700, 1000):
        low, high = widened(lower, middle, upper, float(FACTORS[number]))
        assert curve[number] == pytest.approx(((true < low) | (true > high)).mean(), abs=1e-12)


def test_crossed_and_empty_bounds_are_widened_from_the_narrowest():
    middle = np.zeros(3)
    low, high = widened(np.array([0.0, 0.5, -1.0]), middle, np.array([0.0, -0.5, 1.0]), 2.0)
    assert low == pytest.approx([-0.002, -0.002, -2.0]) and high == pytest.approx([0.002, 0.002, 2.0])


def test_risk_control_is_its_equation():
    curves = np.array(patients(19, np.random.default_rng(1)))
    factor = risk_control(curves, 0.1)
    place = int(np.searchsorted(FACTORS, factor))
    corrected = (19 * curves.mean(axis=0) + 1) / 20
    assert corrected[place] <= 0.1 < corrected[place - 1]
    nothing_outside = np.zeros((8, len(FACTORS)))
    assert risk_control(nothing_outside, 0.1) == math.inf  # 1 / 9 > .1 whatever the data say
    assert risk_control(np.zeros((9, len(FACTORS))), 0.1) == FACTORS[0]


def test_on_average_new_patients_are_covered_as_promised_and_not_much_more():
    random, found = np.random.default_rng(2), []
    for _ in range(200):
        curves = patients(25, random, 100)
        factor = calibrate(curves[:20]).factor
        found.append(1.0 - loss_at(curves[20:], factor).mean())
    assert 0.9 - 2 * np.std(found) / math.sqrt(200) <= np.mean(found) < 0.96


def test_the_bound_of_fifty_patients_fails_in_no_more_draws_than_promised():
    random = np.random.default_rng(3)
    truth = np.mean(patients(4000, random, 100), axis=0)  # the expected loss at each factor
    fails = []
    for _ in range(300):
        found = calibrate(patients(50, random, 100), 0.1, 0.1)
        assert found.method == "risk-controlling prediction sets"
        fails.append(truth[np.searchsorted(FACTORS, found.factor)] > 0.1)
    assert np.mean(fails) <= 0.1


def test_the_upper_bound_is_its_definition_and_holds():
    random = np.random.default_rng(4)
    found = random.beta(1, 9, 60)
    # The definition, step by step: the least R on a fine grid whose capital ever exceeds 1 / delta.
    best = 1.0
    for mean in np.arange(0.0, 1.0, 1e-4):
        capital, total, squares, variance = 1.0, 0.5, 0.25, 0.25
        for number, loss in enumerate(found, 1):
            bet = min(1.0, math.sqrt(2 * math.log(10) / (60 * variance)))
            capital *= 1 - bet * (loss - mean)
            total += loss
            squares += (loss - total / (1 + number)) ** 2
            variance = squares / (1 + number)
            if capital > 10:
                break
        else:
            continue
        best = mean
        break
    assert upper_bound(found, 0.1) == pytest.approx(best, abs=2e-4)
    assert found.mean() < upper_bound(found, 0.1) < upper_bound(found, 0.01) < upper_bound(found[:20], 0.01) <= 1.0
    wrong = [upper_bound(random.beta(1, 9, 50), 0.1) < 0.1 for _ in range(300)]
    assert np.mean(wrong) <= 0.1
    assert upper_bound(np.ones(50), 0.1) == 1.0


def test_what_is_enough_must_stay_enough():
    enough = np.zeros(len(FACTORS), bool)
    enough[400:500], enough[700:] = True, True
    assert conformal.least(enough) == FACTORS[700]
    assert conformal.least(np.arange(len(FACTORS)) < 1000) == math.inf
    assert conformal.least(np.ones(len(FACTORS), bool)) == FACTORS[0]


@pytest.mark.parametrize(("count", "method"), [(9, "uncalibrated"), (10, "conformal risk control"), (49, "conformal risk control"), (50, "risk-controlling prediction sets")])  # fmt: skip
def test_the_method_follows_from_the_number_of_patients_and_is_named(count, method):
    found = calibrate(patients(count, np.random.default_rng(5), 50))
    assert found.method == method and method in found.words() and found.patients == count
    assert (found.factor == 1.0) == (method == "uncalibrated")
    assert ("90% certainty" in found.words()) == (count == 50)


def test_what_so_few_patients_cannot_promise_is_not_promised():
    perfect = [np.zeros(len(FACTORS))] * 12
    found = calibrate(perfect, alpha=0.05)  # 1 / 13 > .05
    assert math.isinf(found.factor) and "no factor" in found.words() and "lie inside" not in found.words()
    assert calibrate([np.zeros(len(FACTORS))] * 60, alpha=0.03).method == "conformal risk control"


def test_a_patient_without_voxels_is_refused():
    nothing = np.zeros(0)
    with pytest.raises(ValueError, match="leave the patient out"):
        losses(nothing, nothing, nothing, nothing)
    assert "promise nothing" in Calibration("uncalibrated", 1.0, 3, 0.1).words()
