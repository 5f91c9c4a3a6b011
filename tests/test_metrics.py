"""Metrics: against closed forms, reference implementations and planted changes; one contract over METRICS."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter

from scansmith.metrics import METRICS, classifier, prdc, radiomics, random_conv
from scansmith.metrics.energy import energy_distance
from scansmith.metrics.frechet import frechet
from scansmith.metrics.intervals import wilson
from scansmith.metrics.nearest import join, nearest


def blobs(count: int, seed: int, size: int = 32, channels: int = 1) -> np.ndarray:
    """Smooth random pictures (N, C, size, size) in [-1, 1]: no two alike, all of one kind."""
    noise = np.random.default_rng(seed).normal(size=(count, channels, size, size))
    smooth = gaussian_filter(noise, (0, 0, size / 12, size / 12), mode="wrap")
    return np.tanh(1.2 * smooth / smooth.std()).astype(np.float32)


def with_moments(count: int, mean: np.ndarray, covariance: np.ndarray, seed: int) -> np.ndarray:
    """(count, d) features whose sample mean and covariance are exactly these."""
    x = np.random.default_rng(seed).normal(size=(count, len(mean)))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T))).T
    return mean + white @ np.linalg.cholesky(covariance).T


# ------------------------------------------------------------------------------------------------ the contract


@pytest.mark.parametrize("name", METRICS)
def test_equal_sets_get_the_best_value(name):
    metric = METRICS[name]
    features = metric.encode(blobs(40, 0))
    assert metric.compare(features, features) == pytest.approx(0.0 if metric.better == "lower" else 1.0, abs=1e-8)


@pytest.mark.parametrize("name", METRICS)
def test_growing_noise_makes_every_metric_worse(name):
    metric, rng = METRICS[name], np.random.default_rng(1)
    real, fresh = metric.encode(blobs(60, 0)), blobs(60, 1)
    noise = rng.normal(size=fresh.shape).astype(np.float32)
    values = [metric.compare(real, metric.encode(np.clip(fresh + sd * noise, -1, 1))) for sd in (0.0, 0.6, 2.0)]
    worse = values if metric.better == "lower" else values[::-1]
    assert worse[0] <= worse[1] <= worse[2]
    assert worse[2] > 1.2 * worse[0]


@pytest.mark.parametrize("name", METRICS)
def test_the_order_of_images_and_one_image_at_a_time_change_nothing(name):
    metric = METRICS[name]
    images, others = blobs(12, 0), blobs(12, 1)
    whole = metric.encode(images)
    singly = np.concatenate([metric.encode(images[i : i + 1]) for i in range(12)])
    np.testing.assert_allclose(whole, singly, rtol=1e-5, atol=1e-5)
    real = metric.encode(others)
    assert metric.compare(real, whole) == pytest.approx(metric.compare(real[::-1], whole[::-1]), rel=1e-6)


@pytest.mark.parametrize("name", METRICS)
def test_two_images_or_constant_ones_give_a_finite_number(name):
    metric = METRICS[name]
    flat = metric.encode(np.zeros((3, 1, 32, 32), np.float32))
    few = metric.encode(blobs(2, 0))
    assert np.isfinite(
        [
            metric.compare(flat, few),
            metric.compare(few, flat),
            metric.compare(flat, flat),
            metric.compare(few[:1], few[:1]),
        ]
    ).all()


# ------------------------------------------------------------------------------------------------ random convolutions


def test_features_do_not_depend_on_batch_threads_or_the_global_generator():
    images = blobs(9, 0, size=40, channels=3)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    whole = random_conv.features(images, batch=9)
    assert torch.equal(before, torch.random.get_rng_state())
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            parts = random_conv.features(torch.from_numpy(images), batch=2)
    finally:
        torch.set_num_threads(threads)
    assert whole.shape == (9, 512) and whole.dtype == np.float64
    np.testing.assert_allclose(whole, parts, rtol=1e-5, atol=1e-6)


def test_features_keep_their_values_between_versions():
    ramp = np.linspace(-1, 1, 16 * 16, dtype=np.float32).reshape(1, 1, 16, 16)
    found = random_conv.features(ramp)[0]
    np.testing.assert_allclose(found[[0, 1, 100, 300, 511]], STORED, rtol=1e-4)


STORED = (0.037157, 0.067671, 0.059632, 0.055715, 0.0)


def test_features_of_images_that_are_too_small_are_refused():
    with pytest.raises(ValueError, match="16 pixels"):
        random_conv.features(np.zeros((2, 1, 8, 40), np.float32))


def test_features_of_volumes_do_not_depend_on_batch_and_see_every_axis(monkeypatch):
    volumes = gaussian_filter(np.random.default_rng(0).normal(size=(5, 1, 16, 24, 12)), (0, 0, 1, 1, 1)).astype(
        np.float32
    )
    whole = random_conv.features(volumes)
    assert whole.shape == (5, 512) and whole.dtype == np.float64
    monkeypatch.setattr(random_conv, "AT_ONCE", 1)  # one volume at a time
    np.testing.assert_allclose(random_conv.features(torch.from_numpy(volumes)), whole, rtol=1e-5, atol=1e-6)
    shuffled = volumes[:, :, np.random.default_rng(1).permutation(16)]  # every slice is as it was, their order is not
    moved = np.linalg.norm(random_conv.features(shuffled) - whole, axis=1)
    assert moved.min() > 0.3 * np.linalg.norm(whole - whole.mean(axis=0), axis=1).mean()


def test_features_of_volumes_keep_their_values_between_versions():
    ramp = np.linspace(-1, 1, 8**3, dtype=np.float32).reshape(1, 1, 8, 8, 8)
    np.testing.assert_allclose(random_conv.features(ramp)[0, [0, 1, 100, 300, 505]], STORED_3D, rtol=1e-4)
    with pytest.raises(ValueError, match="8 voxels"):
        random_conv.features(ramp[:, :, :7])


STORED_3D = (0.19941613, 0.15178899, 0.0, 0.01393581, 0.00231714)


def test_encoder_and_frechet_need_torch_and_numpy_alone():
    code = (
        "import sys; import scansmith.metrics.frechet, scansmith.metrics.random_conv; "
        "bad = {'scipy', 'skimage', 'matplotlib', 'PIL', 'sklearn'} & set(sys.modules); assert not bad, bad"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# ------------------------------------------------------------------------------------------------ Fréchet


@pytest.mark.parametrize(("count", "dimensions"), [(50, 6), (400, 6)])
def test_frechet_equals_the_closed_form_of_gaussians(count, dimensions):
    rng = np.random.default_rng(0)
    mean_a, mean_b = rng.normal(size=(2, dimensions))
    a, b = (x @ x.T + np.eye(dimensions) for x in rng.normal(size=(2, dimensions, dimensions)))
    expected = ((mean_a - mean_b) ** 2).sum() + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))
    found = frechet(with_moments(count, mean_a, a, 1), with_moments(count + 7, mean_b, b, 2))
    assert found == pytest.approx(expected, rel=1e-9)


def test_frechet_of_commuting_covariances_is_the_distance_of_their_roots():
    scale_a, scale_b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 1.0, 9.0])
    a, b = (with_moments(30, np.zeros(3), np.diag(scale), seed) for seed, scale in enumerate((scale_a, scale_b)))
    assert frechet(a, b) == pytest.approx(2.0, rel=1e-9)  # (1 - 2)^2 + (2 - 1)^2 + 0


@pytest.mark.parametrize("counts", [(12, 9), (12, 90), (90, 12), (90, 80)])
def test_frechet_is_symmetric_and_equal_in_both_forms(counts):
    rng = np.random.default_rng(3)
    a, b = (rng.normal(size=(count, 20)) @ rng.normal(size=(20, 20)) for count in counts)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    values, vectors = np.linalg.eigh(cov_a)
    root = (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
    overlap = np.sqrt(np.clip(np.linalg.eigvalsh(root @ cov_b @ root), 0, None)).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(cov_a) + np.trace(cov_b) - 2 * overlap
    assert frechet(a, b) == pytest.approx(expected, rel=1e-5)
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-10)


def test_frechet_equals_torchmetrics_on_equal_features():
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Half(torch.nn.Module):
        num_features = 24

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)[:, :24].double() / 255.0

    rng = np.random.default_rng(5)
    real, fake = (torch.from_numpy(rng.integers(0, high, (60, 3, 4, 4), dtype=np.uint8)) for high in (255, 200))
    reference = FrechetInceptionDistance(feature=Half(), input_img_size=(3, 4, 4))
    reference.set_dtype(torch.float64)
    reference.update(real, real=True)
    reference.update(fake, real=False)
    found = frechet(Half()(real).numpy(), Half()(fake).numpy())
    assert found == pytest.approx(float(reference.compute()), rel=1e-4)


def test_frechet_of_features_that_are_not_finite_is_nan():
    good = np.ones((4, 3))
    assert np.isnan(frechet(good, good * np.nan))


# ------------------------------------------------------------------------------------------------ precision, recall, density, coverage


# ------------------------------------------------------------------------------------------------ energy distance


def test_energy_distance_equals_scipy_in_one_dimension():
    """SciPy takes each image with itself into its means, and a root."""
    random = np.random.default_rng(0)
    a, b = random.normal(size=(30, 1)), random.normal(0.5, 2.0, size=(20, 1))
    within = [np.abs(x - x.T).mean() for x in (a, b)]
    biased = stats.energy_distance(a[:, 0], b[:, 0]) ** 2
    wanted = biased + within[0] * (1 - 30 / 29) + within[1] * (1 - 20 / 19)
    assert energy_distance(a, b)[0] == pytest.approx(wanted, rel=1e-9)


def test_energy_distance_of_two_points_is_that_of_the_hand():
    a, b = np.array([[0.0, 0.0], [3.0, 4.0]]), np.array([[0.0, 0.0], [0.0, 2.0]])
    between = (0.0 + 2.0 + 5.0 + np.sqrt(9.0 + 4.0)) / 4.0
    assert energy_distance(a, b)[0] == pytest.approx(2.0 * between - 5.0 - 2.0)


def test_energy_distance_of_small_sets_is_0_on_average_and_its_standard_error_is_what_it_says():
    random = np.random.default_rng(0)
    drawn = [energy_distance(random.normal(size=(64, 50)), random.normal(0.3, 1.0, (16, 50))) for _ in range(300)]
    values, errors = np.array(drawn).T
    assert errors.mean() == pytest.approx(values.std(), rel=0.2)
    equal = [energy_distance(random.normal(size=(64, 50)), random.normal(size=(16, 50)))[0] for _ in range(300)]
    assert abs(np.mean(equal)) < 3.0 * np.std(equal) / 300**0.5


def test_energy_distance_does_not_prefer_a_narrow_set_where_a_frechet_distance_of_few_images_does():
    random = np.random.default_rng(0)
    real = random.normal(size=(16, 512))
    wide, narrow = random.normal(size=(16, 512)), 0.6 * random.normal(size=(16, 512))
    assert frechet(narrow, real) < frechet(wide, real)
    assert energy_distance(narrow, real)[0] > energy_distance(wide, real)[0]


def test_energy_distance_of_features_that_are_not_finite_is_nan():
    assert np.isnan(energy_distance(np.array([[0.0], [np.nan]]), np.array([[0.0], [1.0]]))).all()


@pytest.mark.parametrize("seed", range(3))
def test_prdc_equals_the_reference_package(seed):
    from prdc import compute_prdc

    rng = np.random.default_rng(seed)
    real, fake = rng.normal(size=(80, 6)), rng.normal(size=(70, 6)) * 0.8 + 0.3
    expected = compute_prdc(real, fake, nearest_k=5)
    found = {name: getattr(prdc, name)(real, fake) for name in ("precision", "recall", "density", "coverage")}
    assert found == pytest.approx(expected, abs=1e-12)


def test_precision_is_recall_the_other_way_round():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(40, 4)), rng.normal(size=(50, 4)) + 0.5
    assert prdc.precision(real, fake) == prdc.recall(fake, real)


def test_radii_are_the_same_in_chunks_and_by_hand():
    line = np.arange(8.0)[:, None] ** 2  # 0 1 4 9 16 25 36 49
    np.testing.assert_allclose(prdc.radii(line), [25, 24, 21, 16, 16, 24, 32, 45])
    np.testing.assert_array_equal(prdc.radii(line, chunk=3), prdc.radii(line))


def test_copies_far_from_the_origin_are_no_distance_apart():
    far = np.random.default_rng(0).normal(size=(6, 5)) + 1e4
    assert (np.diag(prdc.distances(far, far.copy())) == 0).all()


# ------------------------------------------------------------------------------------------------ radiomics


def test_cooccurrence_equals_scikit_image():
    from skimage.feature import graycomatrix

    levels = radiomics.quantise(blobs(1, 0)[0, 0])
    for dy, dx, angle in ((0, 1, 0.0), (1, 1, np.pi / 4), (1, 0, np.pi / 2), (1, -1, 3 * np.pi / 4)):
        expected = graycomatrix(levels, [1], [angle], 32, symmetric=True, normed=True)[:, :, 0, 0]
        np.testing.assert_allclose(radiomics.pair_shares(levels, dy, dx), expected)
    expected = graycomatrix(levels, [4], [0.0], 32, symmetric=True, normed=True)[:, :, 0, 0]
    np.testing.assert_allclose(radiomics.pair_shares(levels, 0, 4), expected)


def test_texture_of_stripes_has_the_values_of_the_hand():
    stripes = radiomics.pair_shares(np.tile(np.array([0, 2], np.uint8), (6, 3)), 0, 1)
    contrast, dissimilarity, homogeneity, uniformity, entropy, correlation, shade, prominence = (
        radiomics.matrix_statistics(stripes)
    )
    assert (contrast, dissimilarity, homogeneity, uniformity, entropy) == pytest.approx((4.0, 2.0, 0.2, 0.5, 1.0))
    assert correlation == pytest.approx(-1.0)
    assert (shade, prominence) == pytest.approx((0.0, 0.0))


def test_first_order_statistics_of_a_ramp():
    names = dict(zip(radiomics.NAMES, radiomics.first_order(np.linspace(-1, 1, 1024).reshape(32, 32))))
    assert len(radiomics.NAMES) == radiomics.features(blobs(1, 0)).shape[1] == 41
    assert names["mean grey value"] == pytest.approx(0, abs=1e-9) and names["interquartile range"] == pytest.approx(1.0)
    assert names["kurtosis"] == pytest.approx(1.8, rel=1e-3) and names["grey value entropy"] == pytest.approx(5.0)


def test_features_that_are_all_but_constant_do_not_drown_the_others():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(50, 4)), rng.normal(size=(50, 4))
    real[:, 0] = 3.0 + 1e-12 * rng.normal(size=50)
    fake[:, 0] = 4.0
    assert radiomics.radiomics_frechet(real, fake) == pytest.approx(
        radiomics.radiomics_frechet(real[:, 1:], fake[:, 1:])
    )
    fake[:, 1] = 1e6
    assert radiomics.radiomics_frechet(real, fake) < 4 * (2 * radiomics.CLIP) ** 2


# ------------------------------------------------------------------------------------------------ intervals and classifier


def test_wilson_interval_has_published_values():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson(10, 10)[1] == pytest.approx(1.0) and wilson(0, 0) == (0.0, 1.0)


def test_a_fresh_classifier_cannot_tell_two_halves_of_one_set_apart(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 50)
    found = classifier.accuracy(blobs(60, 0, 16), blobs(120, 1, 16), blobs(80, 2, 16), seed=0)
    assert found.interval[0] <= 0.5 <= found.interval[1]
    assert found.images == 120


def test_a_fresh_classifier_sees_noise_with_a_training_set_and_with_folds(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 70)
    noisy = np.clip(blobs(60, 1, 16) + 0.2 * np.random.default_rng(0).normal(size=(60, 1, 16, 16)), -1, 1).astype(
        np.float32
    )
    assert classifier.accuracy(blobs(30, 0, 16), noisy, blobs(40, 2, 16)).accuracy > 0.95
    folded = classifier.accuracy(blobs(30, 0, 16), noisy, folds=2)
    assert folded.accuracy > 0.95 and folded.images == 60


def test_the_classifier_depends_on_its_seed_alone(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 15)
    real, fake = blobs(20, 0), 0.9 * blobs(40, 1)
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = classifier.accuracy(real, fake, blobs(20, 2), seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(9)
    assert classifier.accuracy(real, fake, blobs(20, 2), seed=4) == first


def test_the_classifier_is_never_tested_on_fakes_or_real_images_it_learned_from(monkeypatch):
    sets = []
    monkeypatch.setattr(classifier, "train_and_test", lambda *images, **_: sets.append(images) or 0)
    real, fake, train = (np.arange(start, start + 30, dtype=np.float32)[:, None, None, None] for start in (0, 100, 200))
    classifier.accuracy(real, fake, train)
    classifier.accuracy(real, fake, folds=3)
    for real_learned, fake_learned, real_tested, fake_tested in sets:
        assert len(real_learned) == len(fake_learned) and len(real_tested) == len(fake_tested)
        assert not set(real_learned.flat) & set(real_tested.flat) and not set(fake_learned.flat) & set(fake_tested.flat)
    assert len(sets) == 4 and not set(sets[0][0].flat) & set(real.flat)


def test_the_classifier_needs_four_images():
    with pytest.raises(ValueError, match="4 images or more"):
        classifier.accuracy(blobs(3, 0), blobs(10, 1))


# ------------------------------------------------------------------------------------------------ nearest


def brute_force(image: np.ndarray, other: np.ndarray) -> float:
    """Largest Pearson correlation over mirroring and shifts of up to 2 pixels, window by window."""
    best, size = -1.0, image.shape[-1]
    for candidate in (other, other[..., ::-1]):
        for dy in range(5):
            for dx in range(5):
                window = candidate[:, dy : size - 4 + dy, dx : size - 4 + dx]
                best = max(best, float(np.corrcoef(image[:, 2:-2, 2:-2].ravel(), window.ravel())[0, 1]))
    return best


def test_nearest_finds_shifted_mirrored_and_rescaled_copies_and_says_how():
    train = blobs(30, 0, size=64)
    moved = np.roll(train[:5], (2, -1), (2, 3)) * 0.5 + 0.2
    mirrored = train[5:10, :, :, ::-1]
    found = nearest(np.concatenate([moved, mirrored]), train)
    np.testing.assert_array_equal(found.rows, np.arange(10))
    np.testing.assert_allclose(found.similarity, 1.0, atol=1e-5)
    np.testing.assert_array_equal(found.mirrored, [False] * 5 + [True] * 5)
    np.testing.assert_array_equal(found.shift, [[2, -1]] * 5 + [[0, 0]] * 5)


def test_similarity_is_pearsons_correlation_over_all_moves():
    images, train = blobs(4, 0, size=48, channels=2), blobs(12, 1, size=48, channels=2)
    found = nearest(images, train)
    for image, row, similarity in zip(images, found.rows, found.similarity):
        assert similarity == pytest.approx(brute_force(image, train[row]), abs=1e-5)
        assert similarity >= max(brute_force(image, other) for other in train) - 0.05


def test_nearest_does_not_depend_on_chunks_or_parts():
    images, train = blobs(7, 0), blobs(20, 1)
    whole = nearest(images, train)
    in_parts = join(nearest(images, train[:8]), nearest(images, train[8:]), 8)
    for other in (nearest(images, train, chunk=3), in_parts):
        np.testing.assert_array_equal(whole.rows, other.rows)
        np.testing.assert_allclose(whole.similarity, other.similarity, atol=1e-6)
        np.testing.assert_array_equal(whole.shift, other.shift)


def test_images_of_one_group_are_not_compared_with_each_other():
    images = np.repeat(blobs(4, 0), 2, axis=0)
    pairs = nearest(images, images, groups=np.arange(8) // 2)
    assert (pairs.rows // 2 != np.arange(8) // 2).all() and (pairs.similarity < 0.99).all()
    assert (nearest(images, images, groups=np.arange(8)).similarity > 0.9999).all()
    assert (nearest(images, images, groups=np.zeros(8, np.int64)).similarity == -1.0).all()


def test_constant_images_resemble_nothing():
    flat = np.full((2, 1, 32, 32), 0.3, np.float32)
    assert (nearest(flat, blobs(3, 0)).similarity == 0).all() and (nearest(blobs(3, 0), flat).similarity == 0).all()


def test_large_images_are_compared_by_area():
    train = blobs(6, 0, size=160)
    found = nearest(train[[4, 1]], train)
    assert found.rows.tolist() == [4, 1] and (found.similarity > 0.99999).all()


def test_channels_that_a_mirror_image_leaves_alone_are_not_mirrored():
    train = blobs(12, 0, size=40, channels=3)
    mirrored = train[[7, 2]].copy()
    mirrored[:, :2] = mirrored[:, :2, :, ::-1]
    found = nearest(mirrored, train, unmirrored=1)
    assert found.rows.tolist() == [7, 2] and found.mirrored.all() and (found.similarity > 0.99999).all()
    assert (nearest(mirrored, train).similarity < 0.95).all()
