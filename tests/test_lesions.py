"""Lesions: put in, taken out, and what translations that keep, lose, blur or invent them are said to do."""

from __future__ import annotations

import json
import math
from dataclasses import asdict

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import beta

from scansmith import anatomy, lesions
from scansmith.lesions import false_creation, insert, remove, survival

SPACING = (3.0, 2.0, 2.0)
NOISE = 10.0


@pytest.fixture(scope="module")
def scan():
    """(D, H, W) a cylinder of even tissue with noise and a bone, in air, and its body mask; 120 x 160 x 160 mm."""
    shape = (40, 80, 80)
    _, y, x = np.meshgrid(*(np.arange(n) - (n - 1) / 2 for n in shape), indexing="ij")
    body = y**2 + x**2 < 36**2
    noise = np.random.default_rng(0).normal(0.0, NOISE, shape)
    image = np.where(body, 50.0, -1000.0)
    image[(y + 30) ** 2 + x**2 < 9] = 800.0
    return image + noise, body


@pytest.fixture(scope="module")
def lesioned(scan):
    return insert(*(scan[0], SPACING, scan[1]), 1, count=6, radius=(6.0, 10.0), contrast=6.0)


def judged(scan, lesioned, translate, seed=0):
    image, body = scan
    new, labels = lesioned
    return survival(translate(image), translate(new), labels, SPACING, body, seed, sources=(image, new))


# ------------------------------------------------------------------------------------------------ inserted


def test_the_same_seed_gives_the_same_lesions_and_another_seed_others(scan):
    options = dict(count=3, radius=(6.0, 8.0))
    first, again, other = (insert(scan[0], SPACING, scan[1], seed, **options) for seed in (5, 5, 6))
    assert first[0].tobytes() == again[0].tobytes() and first[1].tobytes() == again[1].tobytes()
    assert (first[1] != other[1]).any()


def test_lesions_lie_whole_inside_the_body_and_apart(scan, lesioned):
    image, body = scan
    new, labels = lesioned
    changed = np.abs(new - image) > 1e-3
    assert set(np.unique(labels)) == set(range(7)) and labels.dtype == np.uint8 and new.dtype == np.float32
    assert body[labels > 0].all() and body[changed].all()
    parts, count = ndimage.label(changed)
    assert count >= 6
    assert all(len(np.unique(parts[labels == label])) == 1 for label in range(1, 7))
    assert len({int(parts[labels == label][0]) for label in range(1, 7)}) == 6


@pytest.mark.parametrize("spacing", [(1.0, 1.0, 1.0), (4.0, 1.0, 1.0), (1.0, 2.5, 1.5), (5.0, 0.7, 0.7)])
def test_sizes_in_mm_are_right_whatever_the_voxels(spacing):
    shape = [math.ceil(70.0 / step) for step in spacing]
    image = np.random.default_rng(2).normal(0.0, 1.0, shape)
    image[0, 0, 0] = 10.0
    volumes = []
    for seed in range(5):
        _, labels = insert(image, spacing, np.ones(shape, bool), seed, count=2, radius=(8.0, 8.0), contrast=3.0)
        for label in (1, 2):
            voxels = np.argwhere(labels == label) * spacing
            volumes.append(len(voxels) * math.prod(spacing) / (4 / 3 * math.pi * 8**3))
            extent = np.ptp(voxels, axis=0) + spacing
            assert (extent > 9.0).all() and (extent < 2 * lesions.REACH * 8 + np.array(spacing)).all()
    assert np.mean(volumes) == pytest.approx(1.0, abs=0.06)
    assert min(volumes) > 0.8 and max(volumes) < 1.2  # lobes


def test_the_contrast_is_what_was_asked_in_values_or_in_deviations(scan):
    image, body = scan
    for contrast, unit, expected in ((80.0, "values", 80.0), (-60.0, "values", -60.0), (5.0, "deviations", 5 * NOISE)):
        new, labels = insert(image, SPACING, body, 4, count=5, radius=(8.0, 10.0), contrast=contrast, unit=unit)
        inner = ndimage.binary_erosion(labels > 0, iterations=1)
        assert (new[inner] - 50.0).mean() == pytest.approx(expected, rel=0.12)


def test_the_inside_has_the_grain_of_the_surroundings(scan):
    image, body = scan
    new, labels = insert(image, SPACING, body, 4, count=4, radius=(9.0, 10.0), contrast=80.0, unit="values")
    inner = ndimage.binary_erosion(labels > 0)
    fine, real = ((one - lesions._smoothed(one, inner, SPACING, 1.0))[inner] for one in (new, image))
    assert lesions.robust_deviation(fine) == pytest.approx(lesions.robust_deviation(real), rel=0.2)


def test_no_value_leaves_the_scans_own_range(scan):
    image, body = scan
    new, _ = insert(image, SPACING, body, 5, count=4, contrast=-900.0, unit="values", radius=(6.0, 8.0))
    assert new.min() >= np.float32(image.min()) and new.max() <= np.float32(image.max())


def test_lesions_stand_in_one_tissue_of_a_phantom():
    tissues = anatomy.render(anatomy.draw_patient(3), anatomy.axial_raster(96, 24, spacing=6.0))
    image, names = anatomy.ct(tissues, 1).array[0].T.astype(np.float32), anatomy.label_map(tissues).T
    body = ~np.isin(names, [anatomy.INDEX["air"], anatomy.INDEX["couch"]])
    _, labels = insert(image, (6.0, 4.0, 4.0), body, 2, count=6, radius=(7.0, 9.0))
    for label in range(1, 7):
        inside = image[labels == label]
        assert ((inside > -500).mean() < 0.1) or ((inside > -500).mean() > 0.9)


def test_a_picture_takes_sections_of_lesions():
    image = np.random.default_rng(6).normal(100.0, 5.0, (1, 90, 90))
    image[0, 0, 0] = 200.0
    new, labels = insert(image, (5.0, 1.0, 1.0), np.ones(image.shape, bool), 1, count=3, radius=(6.0, 8.0))
    found = survival(image, new, labels, (5.0, 1.0, 1.0), np.ones(image.shape, bool), 0, sources=(image, new))
    assert found.rate.value == 1.0 and found.ratio == pytest.approx(1.0)
    assert all(11.0 < trace.diameter < 18.0 for trace in found.traces)
    back = remove(new, (5.0, 1.0, 1.0), labels, 0)
    assert np.abs((back - image)[labels > 0]).mean() < 12.0


@pytest.mark.parametrize("seed", range(12))
def test_the_smallest_lesions_that_are_allowed_are_marked(seed):
    spacing = (6.0, 1.5, 1.5)
    image = np.random.default_rng(seed).normal(0.0, 1.0, (12, 50, 50))
    image[0, 0, 0] = 10.0
    _, labels = insert(image, spacing, np.ones(image.shape, bool), seed, count=3, radius=(4.0, 4.0))
    assert set(np.unique(labels)) == {0, 1, 2, 3}


# ------------------------------------------------------------------------------------------------ removed


def test_what_was_inserted_and_removed_comes_back_within_the_noise(scan, lesioned):
    image, _ = scan
    new, labels = lesioned
    back = remove(new, SPACING, labels, 7)
    inside = labels > 0
    error, inserted = (np.sqrt(np.square(one - image)[inside].mean()) for one in (back, new))
    assert error < 1.2 * math.sqrt(2.0) * NOISE < 0.4 * inserted  # two independent draws of the noise
    assert back[inside].mean() == pytest.approx(50.0, abs=2.0)
    assert back[inside].std() == pytest.approx(NOISE, rel=0.3)
    far = ndimage.distance_transform_edt(labels == 0, sampling=SPACING) > 2.0
    assert (back[far] == np.float32(new)[far]).all()


def test_a_hole_in_a_slope_is_filled_by_the_slope():
    z, y, x = np.meshgrid(*(np.arange(24.0) for _ in range(3)), indexing="ij")
    slope = 3.0 * z - 2.0 * y + x
    mask = (z - 12) ** 2 + (y - 11) ** 2 + (x - 12) ** 2 < 25
    filled = remove(np.where(mask, 500.0, slope), (1.0, 1.0, 1.0), mask, 0, margin=0.0)
    error = np.abs(filled - slope)[mask]
    assert error.mean() < 1.0 and error.max() < 4.0  # one voxel's step; the hole is up to 5 voxels deep


def test_removing_nothing_changes_nothing(scan):
    assert (remove(scan[0], SPACING, np.zeros(scan[0].shape), 0) == np.float32(scan[0])).all()


# ------------------------------------------------------------------------------------------------ judged


def test_a_translation_that_changes_nothing_keeps_all_lesions_and_creates_none(scan, lesioned):
    found = judged(scan, lesioned, lambda image: image)
    assert found.rate.value == 1.0 and found.rate.hits == found.rate.count == 6
    assert all(trace.ratio == pytest.approx(1.0) and trace.detected for trace in found.traces)
    assert all(12.0 < trace.diameter < 21.0 for trace in found.traces)
    assert "6 of 6 inserted lesions" in found.words()
    created = false_creation(scan[0], scan[0], lesioned[1], SPACING, scan[1], found, 0)
    assert created.value == 0.0 and created.hits == 0 and created.count > 20


def test_the_ratio_does_not_depend_on_the_units(scan, lesioned):
    found = judged(scan, lesioned, lambda image: 0.01 * image + 7.0)
    assert found.ratio == pytest.approx(1.0) and found.rate.value == 1.0
    dark = judged(scan, lesioned, lambda image: -3.0 * image)
    assert dark.ratio == pytest.approx(-1.0) and dark.rate.value == 1.0


def test_a_translation_that_ignores_lesions_keeps_none(scan, lesioned):
    found = judged(scan, lesioned, lambda image: scan[0])
    assert found.rate.value == 0.0 and found.ratio == 0.0
    assert found.rate.interval == pytest.approx((0.0, beta.ppf(0.975, 1, 6)))


def test_a_blur_keeps_the_less_the_wider_it_is(scan, lesioned):
    ratios = [
        judged(scan, lesioned, lambda image, s=sigma: ndimage.gaussian_filter(image, s)).ratio
        for sigma in (0.0, 0.5, 1.0, 2.0, 3.0)
    ]
    assert ratios == sorted(ratios, reverse=True) and ratios[0] == pytest.approx(1.0) and 0.0 < ratios[-1] < 0.7


def test_scans_are_taken_together_by_their_lesions(scan, lesioned):
    kept, lost = (judged(scan, lesioned, way) for way in (lambda image: image, lambda image: scan[0]))
    both = lesions.together([*kept.traces, *lost.traces])
    assert both.rate == lesions.share(6, 12) and both.rate.interval[0] < 0.5 < both.rate.interval[1]
    assert both.ratio == pytest.approx(0.5)


def test_an_output_without_any_contrast_keeps_nothing_and_has_no_ratio(scan, lesioned):
    found = judged(scan, lesioned, np.zeros_like)
    assert found.rate.value == 0.0 and found.ratio is None and "keeps" not in found.words()
    json.dumps(asdict(found), allow_nan=False)


def test_half_of_the_lesions_lost_is_half_of_the_lesions_lost(scan, lesioned):
    image, body = scan
    new, labels = lesioned
    erased = np.where(labels % 2 == 1, image, new)
    found = survival(image, erased, labels, SPACING, body, 0, sources=(image, new))
    assert [trace.detected for trace in found.traces] == [False, True] * 3 and found.rate.value == 0.5


def test_a_translation_that_only_adds_noise_detects_no_more_than_promised(scan, lesioned):
    image, body = scan
    new, labels = lesioned
    hits = []
    for seed in range(8):
        # Smooth and strong beside the output's own noise, so that the lesion-free places alone hold the false alarms down.
        noise = 300.0 * ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=image.shape), 2.0)
        found = survival(image, image + 10 * noise, labels, SPACING, body, seed, sources=(image, new))
        hits += [trace.detected for trace in found.traces]
    assert sum(hits) <= 6  # 2.4 of 48 expected; more than 6 in one of 80 draws


def test_the_threshold_is_the_rank_that_holds_the_level():
    assert lesions._null_threshold(list(range(19)), 1) == 18
    assert lesions._null_threshold(list(range(199)), 1) == 189
    random, beyond = np.random.default_rng(8), []
    for _ in range(2000):
        drawn = random.normal(size=40)
        beyond.append(drawn[0] > lesions._null_threshold(drawn[1:].tolist(), 1))
    assert np.mean(beyond) <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 2000)


def test_planted_blobs_are_counted_as_created(scan, lesioned):
    image, body = scan
    found = judged(scan, lesioned, lambda image: image)
    other, _ = insert(image, SPACING, body, 99, count=20, radius=(6.0, 10.0), contrast=12.0)
    shares = [
        false_creation(output, image, lesioned[1], SPACING, body, found, 0)
        for output in (image + np.random.default_rng(9).normal(0, NOISE, image.shape), other)
    ]
    assert shares[0].value == 0.0 < shares[1].value and shares[1].hits >= 2
    low, high = shares[1].interval
    assert 0.0 <= low < shares[1].value < high <= 1.0


def test_the_verdict_is_the_same_every_time(scan, lesioned):
    blurred = [judged(scan, lesioned, lambda image: ndimage.gaussian_filter(image, 1.0)) for _ in range(2)]
    assert blurred[0] == blurred[1]


# ------------------------------------------------------------------------------------------------ mistakes


def test_too_small_a_body_is_said_in_words(scan):
    image, body = scan
    small = np.zeros_like(body)
    small[18:22, 38:42, 38:42] = True
    with pytest.raises(ValueError, match="expected room in the body for lesion 1 of"):
        insert(image, SPACING, small, 0)
    with pytest.raises(ValueError, match="expected a body with values, found an empty one"):
        insert(image, SPACING, np.zeros_like(body), 0)
    with pytest.raises(ValueError, match="fewer, smaller or fainter"):
        insert(image, SPACING, body, 0, count=250, radius=(10.0, 12.0))
    new, labels = insert(image, SPACING, body, 0, count=1, radius=(8.0, 8.0))
    with pytest.raises(ValueError, match="lesion-free places of the size of lesion 1"):
        survival(image, new, labels, SPACING, labels > 0, 0, sources=(image, new))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(count=0), "expected 1 to 255 lesions"),
        (dict(radius=(1.0, 5.0)), "expected radii from at least 2 mm"),
        (dict(radius=(8.0, 5.0)), "expected radii"),
        (dict(contrast=0.0), "expected a contrast above or below 0"),
    ],
)
def test_options_out_of_range_are_named(options, message, scan):
    with pytest.raises(ValueError, match=message):
        insert(scan[0], SPACING, scan[1], 0, **options)


def test_other_mistakes_are_named(scan, lesioned):
    image, body = scan
    new, labels = lesioned
    with pytest.raises(ValueError, match="one shape"):
        insert(image, SPACING, body[:-1], 0)
    with pytest.raises(ValueError, match="three voxel sizes"):
        insert(image, (1.0, 1.0), body, 0)
    with pytest.raises(ValueError, match="insert some first"):
        survival(image, new, np.zeros_like(labels), SPACING, body, 0, sources=(image, new))
    with pytest.raises(ValueError, match="mark the lesions alone"):
        remove(image, SPACING, np.ones_like(labels), 0)
