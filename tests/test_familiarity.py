"""Familiarity: reference implementation, exact p-values counted over draws, and shifts that must be noticed."""

from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from scipy.stats import kstest, wasserstein_distance
from sklearn.covariance import ledoit_wolf

from scansmith import anatomy, familiarity, intensity
from scansmith.familiarity import BINS, Features, describe, judge, learn, p_value, patients_needed
from scansmith.intensity import IntensityMap

SPACING = (3.0, 1.5, 1.5)
CT = IntensityMap(-1024.0, 1500.0, "HU")


def scan(random, shift=0.0):
    """A ball of two tissues in air, encoded; each patient of another size and brightness."""
    axes = np.meshgrid(*(np.linspace(-1, 1, n) for n in (6, 20, 20)), indexing="ij")
    distance = np.sqrt(sum(axis**2 for axis in axes)) / random.uniform(0.7, 1.0)
    bright = random.normal(0.2, 0.1) + shift
    values = np.where(distance < 0.5, bright + 0.4, bright) + random.normal(0, 0.05, distance.shape)
    return np.where(distance < 1.0, values, -1.0)[None].astype(np.float32)


def features(random, shift=0.0, **changes):
    spacing = [float(step * factor) for step, factor in zip(SPACING, random.uniform(0.9, 1.1, 3))]
    return replace(describe(scan(random, shift), spacing, "MR"), **changes)


@pytest.fixture(scope="module")
def learned():
    random = np.random.default_rng(0)
    return learn([features(random) for _ in range(80)], [[features(random)] for _ in range(150)])


@pytest.fixture(scope="module")
def phantoms():
    """{"CT", "T1"}: (K, J, I) physical volumes of 36 patients."""
    raster = anatomy.axial_raster(32, 6, spacing=24.0)
    found = {"CT": [], "T1": []}
    for seed in range(36):
        tissues = anatomy.render(anatomy.draw_patient(seed), raster)
        found["CT"].append(anatomy.ct(tissues, seed).array[0].T.astype(np.float32))
        found["T1"].append(anatomy.mr(tissues, "T1", seed).array[0].T.astype(np.float32))
    return found


def encoded(volume, modality):
    own = CT if modality == "CT" else intensity.choose("MR", volume, np.dtype(np.int16))[0]
    return own.encode(volume)[None]


def described(volume, modality, spacing=(24.0, 12.0, 12.0), named=None):
    return describe(encoded(volume, modality), spacing, named or modality)


@pytest.fixture(scope="module")
def learned_phantoms(phantoms):
    def of(kind, modality):
        found = [described(volume, modality) for volume in phantoms[kind]]
        return learn(found[:16], [[one] for one in found[16:35]])

    return {"CT": of("CT", "CT"), "T1": of("T1", "MR")}


# ------------------------------------------------------------------------------------------------ features and statistics


def test_the_shrunk_covariance_is_that_of_the_reference():
    random = np.random.default_rng(1)
    for count in (2, 7, 40, 400):
        samples = random.normal(size=(count, 12)) @ random.normal(size=(12, 12))
        samples -= samples.mean(axis=0)
        expected, _ = ledoit_wolf(samples, assume_centered=True)
        assert familiarity.shrunk_covariance(samples) == pytest.approx(expected)


def test_the_difference_of_two_histograms_is_the_wasserstein_distance_to_a_bin():
    random = np.random.default_rng(2)
    rows = []
    for middle in (0.3, 0.55):
        values = random.normal(middle, 0.1, 5000).clip(-1, 1)
        rows.append((values, np.array(describe(values.reshape(1, 50, 100), None, "OT").histograms[0])))
    (a, first), (b, second) = rows
    assert np.abs(first - second).sum() * 2 / BINS == pytest.approx(wasserstein_distance(a, b), abs=0.01)


def test_features_are_plain_json_and_come_back():
    found = features(np.random.default_rng(3))
    assert Features(**json.loads(json.dumps(asdict(found), allow_nan=False))) == found
    assert found.size == [6, 20, 20] and found.extent == pytest.approx(
        np.array(found.spacing) * found.size
    )  # edge to edge


def test_what_is_learned_is_plain_json_and_judges_alike(learned):
    back = json.loads(json.dumps(learned, allow_nan=False))
    assert back == learned
    for shift in (0.0, 0.5):
        one = features(np.random.default_rng(4), shift)
        assert judge(one, back) == judge(one, learned)


def test_a_scan_of_the_training_kind_lies_within_about_one(learned):
    random = np.random.default_rng(5)
    found = [familiarity.score(features(random), learned) for _ in range(50)]
    assert 0.2 < np.median(found) < 1.0


def test_the_distance_grows_with_the_shift(learned):
    found = [familiarity.score(features(np.random.default_rng(6), shift), learned) for shift in (0.1, 0.2, 0.4, 0.8)]
    assert found == sorted(found) and found[-1] > 2 * found[0]


# ------------------------------------------------------------------------------------------------ p-values


def test_the_p_value_is_its_equation_and_ties_count_against_the_calibration_patients():
    assert p_value(5.0, [1.0, 2.0, 5.0, 6.0]) == 3 / 5
    assert p_value(7.0, [1.0] * 99) == 0.01
    assert p_value(0.0, [1.0, 2.0]) == 1.0
    found = [p_value(score, [1.0, 2.0, 3.0]) for score in np.linspace(0, 4, 41)]
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize(("level", "patients"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.001, 999)])
def test_so_many_patients_can_reach_the_level_and_one_less_cannot(level, patients):
    assert patients_needed(level) == patients
    assert p_value(2.0, [1.0] * patients) <= level < p_value(2.0, [1.0] * (patients - 1))


def test_p_values_of_familiar_patients_are_uniform_and_refuse_no_more_than_the_level():
    random = np.random.default_rng(7)
    training = [features(random) for _ in range(60)]
    base = learn(training, [])
    pool = np.array([familiarity.score(features(random), base) for _ in range(1200)])
    found = []
    for _ in range(3000):
        drawn = random.choice(pool, 100, replace=False)
        found.append(p_value(drawn[0], drawn[1:]) - random.uniform() / 100)  # spread over its step of 1 / 100
    assert kstest(found, "uniform").pvalue > 0.01
    refused = np.mean(np.array(found) <= 0.05)
    assert abs(refused - 0.05) < 3 * np.sqrt(0.05 * 0.95 / 3000)


def test_familiar_scans_are_refused_no_more_often_than_the_level_says():
    random = np.random.default_rng(8)
    training = [features(random) for _ in range(60)]
    refused = []
    for _ in range(12):
        learned = learn(training, [[features(random)] for _ in range(19)])
        refused += [judge(features(random), learned, 0.05).refused for _ in range(20)]
    assert np.mean(refused) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / len(refused))


def test_a_patient_counts_once_by_the_worst_of_their_scans():
    random = np.random.default_rng(9)
    scans = [features(random) for _ in range(60)]
    learned = learn(scans[:40], [scans[40:50], scans[50:59], [scans[59]], []])
    each = [familiarity.score(one, learned) for one in scans[40:]]
    assert learned["scores"] == sorted([max(each[:10]), max(each[10:19]), each[19]])


# ------------------------------------------------------------------------------------------------ refusals


def test_a_familiar_scan_passes_and_the_words_say_on_what_grounds(learned):
    found = judge(features(np.random.default_rng(10)), learned)
    assert not found.refused and found.reasons == () and found.p > 0.01
    assert found.words.startswith("not refused") and "150 calibration patients" in found.words


def test_a_moderate_shift_is_refused_by_the_p_value_alone(learned):
    # Within the margins of every hard check: voxels 1.6 times as large, and another number of them.
    random = np.random.default_rng(11)
    one = replace(features(random), spacing=[4.8, 2.4, 2.4])
    found = judge(one, learned)
    assert found.refused and found.p == pytest.approx(1 / 151) and len(found.reasons) == 1
    assert "p = 0.0066" in found.words and "extent along rows" in found.words


@pytest.mark.parametrize("kind", ["CT", "T1"])
def test_planted_shifts_of_phantoms_are_refused_and_the_untouched_scan_is_not(kind, phantoms, learned_phantoms):
    modality = "CT" if kind == "CT" else "MR"
    learned, volume = learned_phantoms[kind], phantoms[kind][35]
    level = 0.05

    def refusal(volume, **options):
        return judge(described(volume, modality, **options), learned, level)

    assert not refusal(volume).refused
    inverted = judge(describe(-encoded(volume, modality), (24.0, 12.0, 12.0), modality), learned, level)
    assert inverted.refused
    doubled = refusal(volume, spacing=(48.0, 24.0, 24.0))
    assert doubled.refused and doubled.p == 0.05
    other = phantoms["T1" if kind == "CT" else "CT"][35]
    named = judge(described(other, "MR" if kind == "CT" else "CT"), learned, level)
    assert any("expected the modality" in reason for reason in named.reasons)
    unnamed = judge(described(other, "MR" if kind == "CT" else "CT", named="OT"), learned, level)
    assert unnamed.refused and "does not say its modality" in unnamed.words


def test_a_ct_with_the_wrong_units_is_refused_even_uncalibrated(phantoms, learned_phantoms):
    uncalibrated = {**learned_phantoms["CT"], "scores": []}
    for volume in (phantoms["CT"][35] + 1024, phantoms["CT"][35] / 10):
        found = judge(described(volume, "CT"), uncalibrated)
        assert found.refused and found.p is None and "units" in found.words


def test_with_few_patients_uncalibrated_is_said_and_the_distance_only_warned_of(phantoms, learned_phantoms):
    learned = learned_phantoms["CT"]
    far = described(phantoms["CT"][35], "CT", spacing=(40.0, 20.0, 20.0))
    found = judge(far, learned, 0.01)
    assert not found.refused and found.p == 0.05
    assert "uncalibrated: of 99 calibration patients" in found.words and "there are 19" in found.words
    assert "warning: it lies" in found.words and "from 2 times on" in found.words
    assert "warning" not in judge(described(phantoms["CT"][35], "CT"), learned, 0.01).words


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"modality": "CT"}, "expected the modality MR, found CT"),
        ({"spacing": [9.0, 1.5, 1.5]}, "voxel size along slices"),
        ({"size": [60, 20, 20]}, "expected an extent along slices"),
        ({"size": [20, 20]}, "expected 3 spatial axes, found 2"),
        ({"means": [0.3, 0.3]}, "expected 1 channel(s), found 2"),
        ({"means": [0.99]}, "expected a mean of the foreground"),
        ({"missing": 0.2}, "expected numbers in 95% of the voxels at least, found 80.0%"),
        ({"quantiles": [list(np.linspace(-30, 30, len(familiarity.SHARES)))]}, "of the voxels beyond"),
        ({"quantiles": [[0.5] * len(familiarity.SHARES)]}, "found one constant value 0.5"),
    ],
)
def test_each_hard_check_refuses_in_a_sentence(changes, reason, learned):
    one = replace(features(np.random.default_rng(12)), **changes)
    if "size" in changes and len(changes["size"]) == 2:
        one = replace(one, spacing=one.spacing[1:])
    found = judge(one, learned)
    assert found.refused and any(reason in sentence for sentence in found.reasons), found.reasons
    assert found.words.startswith("refused: expected")


def test_the_share_beyond_a_range_is_read_off_the_quantiles():
    values = list(np.quantile(np.random.default_rng(13).uniform(-1, 3, 20000), familiarity.SHARES))
    assert familiarity._share_outside(values, -1.1, 3.1) == 0.0
    assert familiarity._share_outside(values, 0.0, 2.0) == pytest.approx(0.5, abs=0.02)
    assert familiarity._share_outside(values, 4.0, 5.0) == 1.0


def test_what_a_file_does_not_say_is_let_through_in_words(learned):
    one = replace(features(np.random.default_rng(14)), modality="OT", spacing=None)
    found = judge(one, learned)
    assert not found.refused
    assert "does not say its modality" in found.words and "does not say its voxel size" in found.words


def test_training_files_that_say_little_judge_the_values_all_the_same():
    random = np.random.default_rng(15)
    silent = {"modality": "OT", "spacing": None}
    learned = learn([features(random, **silent) for _ in range(30)], [[features(random, **silent)] for _ in range(19)])
    found = judge(features(random), learned, 0.05)
    assert not found.refused and "training files did not say their voxel size" in found.words
    assert judge(features(random, 0.35), learned, 0.05).refused


# ------------------------------------------------------------------------------------------------ odd scans


def test_no_scan_gives_nan(learned):
    random = np.random.default_rng(16)
    holes = scan(random)
    holes[0, 2, :3] = np.nan
    scans = [np.full((1, 6, 20, 20), value, np.float32) for value in (-1.0, 0.0, np.nan, np.inf)]
    for array in (*scans, holes, scan(random) * 1e6):
        one = describe(array, SPACING, "MR")
        json.dumps(asdict(one), allow_nan=False)
        found = judge(one, learned)
        assert np.isfinite(found.p) and found.refused == (array is not holes), found.words
    assert "of its voxels are no number" in judge(describe(holes, SPACING, "MR"), learned).words


def test_pictures_and_several_channels_are_judged_likewise():
    random = np.random.default_rng(17)

    def picture(shift=0.0):
        return describe(np.concatenate([scan(random)[:, 3], scan(random, shift)[:, 3]]), None, "OT")

    learned = learn([picture() for _ in range(60)], [[picture()] for _ in range(39)])
    assert not judge(picture(), learned, 0.05).refused
    found = judge(picture(0.7), learned, 0.05)
    assert found.refused and "in channel 2" in found.words and "in channel 1" not in found.words


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_handful_of_training_scans_is_enough_for_the_hard_checks(count):
    random = np.random.default_rng(18)
    learned = learn([features(random) for _ in range(count)], [])
    found = judge(features(random), learned)
    assert not found.refused and found.p is None and "there are 0" in found.words


def test_mistakes_are_named():
    random = np.random.default_rng(19)
    with pytest.raises(ValueError, match="found shape"):
        describe(np.zeros((4, 4)), None, "MR")
    with pytest.raises(ValueError, match="found 'PT'"):
        describe(scan(random), SPACING, "PT")
    for spacing in ((1.0, 1.0), (0.0, 1.0, 1.0), (float("nan"), 1.0, 1.0)):
        with pytest.raises(ValueError, match="expected 3 voxel sizes above 0 mm"):
            describe(scan(random), spacing, "MR")
    with pytest.raises(ValueError, match="found none"):
        learn([], [])
    with pytest.raises(ValueError, match="same channels and axes"):
        learn([features(random)], [[describe(scan(random)[:, 0], None, "MR")]])
    with pytest.raises(ValueError, match="expected a level above 0"):
        judge(features(random), learn([features(random)], []), 0.0)
