"""Worse scans as physics makes them: noise against exact simulations, profiles and positions against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from skimage.transform import iradon, radon

from scansmith import degradations
from scansmith.degradations import (
    WATER,
    blurred,
    consistent,
    ct_noise,
    noise,
    refined,
    regridded_affine,
    slice_positions,
    slice_width,
    thick_depth,
    thickened,
)


def ellipse(side: int, spacing: float, across: float, down: float) -> tuple[np.ndarray, np.ndarray]:
    """A slice of soft tissue in air, semi-axes in mm, and where it is."""
    y, x = (np.indices((side, side)) - (side - 1) / 2) * spacing
    inside = (x / across) ** 2 + (y / down) ** 2 < 1
    return np.where(inside, 40.0, -1000.0).astype(np.float32), inside


def drawn(image: np.ndarray, spacing: float, dose: float, times: int, **settings: float) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.stack([ct_noise(image, (spacing, spacing), dose, random, **settings) for _ in range(times)])


def spectrum(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean power of 24 x 24 pixels in the middle, and frequencies down and across, in 1/pixel."""
    side, middle = 24, images.shape[1] // 2
    inner = slice(middle - side // 2, middle + side // 2)
    window = np.hanning(side)
    power = np.abs(np.fft.fft2(images[:, inner, inner] * window[:, None] * window)) ** 2
    return power.mean(axis=0), np.fft.fftfreq(side)[:, None], np.fft.fftfreq(side)[None, :]


def leaked_to_zero() -> float:
    """What the window of `spectrum` shows at frequency zero of power |f|, beside what it shows of power 1."""
    window = np.zeros((240, 240))
    window[:24, :24] = np.outer(np.hanning(24), np.hanning(24))
    seen = np.abs(np.fft.fft2(window)) ** 2
    frequency = np.fft.fftfreq(240)
    return float((seen * np.hypot(frequency[:, None], frequency)).sum() / seen.sum())


# ------------------------------------------------------------------------------------------------ noise of CT

SIDE, SPACING, DOSE, MANY = 64, 5.0, 0.25, 1.0e6


@pytest.fixture(scope="module")
def body() -> tuple[np.ndarray, np.ndarray]:
    """A thorax: a wide body with a lung and a bone."""
    image, inside = ellipse(SIDE, SPACING, 145, 85)
    y, x = (np.indices((SIDE, SIDE)) - (SIDE - 1) / 2) * SPACING
    image[((x + 60) / 45) ** 2 + (y / 55) ** 2 < 1] = -800
    image[(x - 40) ** 2 + (y - 20) ** 2 < 15**2] = 900
    return image, inside


@pytest.fixture(scope="module")
def simulated(body) -> np.ndarray:
    """Photons counted on every ray and filtered backprojection: the noise that the smaller dose adds, (N, H, W) in HU."""
    image, _ = body
    random = np.random.default_rng(1)
    angles = np.arange(90) * 2.0
    lines = radon((image + 1000) / 1000 * WATER * SPACING, angles, circle=False)
    photons = MANY * SPACING * degradations.VIEWS / len(angles) * DOSE
    results = []
    for _ in range(120):
        counted = random.poisson(photons * np.exp(-lines))
        error = -np.log(counted / photons) - lines
        results.append(iradon(error, angles, SIDE, "hann", "cubic", circle=False) / SPACING / WATER * 1000)
    # Of variance 1 / dose, 1 is what the full dose has.
    return np.stack(results) * math.sqrt(1 - DOSE)


@pytest.fixture(scope="module")
def modelled(body) -> np.ndarray:
    return drawn(body[0], SPACING, DOSE, 500, photons=MANY, cutoff=0.5 / SPACING)


def test_ct_noise_has_the_variance_of_an_exact_simulation_everywhere_in_the_body(body, simulated, modelled):
    inside = gaussian_filter(body[1].astype(float), 1.5) > 0.95
    exact, ours = (gaussian_filter(one.var(axis=0), 1.5) for one in (simulated, modelled))
    ratio = ours[inside] / exact[inside]
    assert abs(ratio.mean() - 1) < 0.08
    assert np.percentile(np.abs(ratio - 1), 95) < 0.2
    assert np.percentile(exact[inside], 95) > 2 * np.percentile(exact[inside], 5)  # and it is far from constant


def test_ct_noise_has_mean_zero_everywhere_and_hardly_shifts_a_slice(simulated, modelled):
    error = modelled.std(axis=0) / math.sqrt(len(modelled))
    assert np.abs(modelled.mean(axis=0) / error).max() < 5
    exact, ours = (images.mean(axis=(1, 2)).std() / images.std() for images in (simulated, modelled))
    assert ours < 0.02 and ours < 3 * exact


def test_ct_noise_has_the_power_spectrum_of_an_exact_simulation_that_rises_like_the_ramp_from_zero(simulated, modelled):
    exact, down, across = spectrum(simulated)
    ours, _, _ = spectrum(modelled)
    radius = np.hypot(down, across)
    rings = [(radius > low) & (radius <= low + 0.05) for low in (0.05, 0.1, 0.15, 0.2, 0.25)]
    for ring in rings:
        assert ours[ring].mean() == pytest.approx(exact[ring].mean(), rel=0.2)
    flat = drawn(ellipse(SIDE, SPACING, 90, 90)[0], SPACING, DOSE, 300, cutoff=math.inf)
    ramp, _, _ = spectrum(flat)
    levels = [ramp[ring].mean() / radius[ring].mean() for ring in rings]
    assert max(levels) < 1.2 * min(levels)
    assert ramp[0, 0] < 1.2 * leaked_to_zero() * levels[0]


def test_streaks_run_along_the_thick_axis_as_in_an_exact_simulation(simulated, modelled):
    ratios = []
    for images in (simulated, modelled):
        power, down, across = spectrum(images)
        ratios.append(power[np.abs(down) > 2 * np.abs(across)].sum() / power[np.abs(across) > 2 * np.abs(down)].sum())
    assert ratios[0] > 1.5  # the body is wide: power lies at frequencies down
    assert ratios[1] == pytest.approx(ratios[0], rel=0.2)


def test_a_turned_body_turns_the_noise():
    wide, _ = ellipse(SIDE, SPACING, 150, 80)
    upright = drawn(wide.T, SPACING, DOSE, 200).std(axis=0)
    assert gaussian_filter(upright.T, 2) == pytest.approx(
        gaussian_filter(drawn(wide, SPACING, DOSE, 200).std(axis=0), 2), rel=0.15
    )


def test_variance_is_proportional_to_one_over_dose_less_one():
    image, _ = ellipse(SIDE, SPACING, 120, 80)
    base = drawn(image, SPACING, 0.5, 1)
    for dose in (0.9, 0.25, 0.1):
        assert drawn(image, SPACING, dose, 1) == pytest.approx(base * math.sqrt(1 / dose - 1), rel=1e-4, abs=1e-4)
    assert not drawn(image, SPACING, 1.0, 1).any()


def test_electronic_noise_grows_faster_than_photon_noise_when_the_dose_falls():
    image, inside = ellipse(SIDE, SPACING, 150, 110)
    growth = [
        drawn(image, SPACING, 0.1, 20, electronic=sd)[:, inside].var()
        / drawn(image, SPACING, 0.5, 20, electronic=sd)[:, inside].var()
        for sd in (0.0, 20.0, 1e4)
    ]
    assert growth[0] == pytest.approx(9, rel=1e-3) and growth[1] > 9.05
    assert growth[2] == pytest.approx(33, rel=1e-2)  # (1 / .01 - 1) / (1 / .25 - 1)


def test_a_full_dose_abdomen_of_thin_slices_has_the_noise_that_scanners_give():
    image, inside = ellipse(512, 0.7, 175, 130)
    image[inside] = 0.0
    (added,) = drawn(image, 0.7, 0.5, 1)  # at half the dose as much is added as there was
    assert 10 < added[226:286, 226:286].std() < 15


def test_resampled_slices_have_the_noise_that_their_pixels_can_hold():
    fine, coarse = ellipse(256, 1.4, 150, 110), ellipse(128, 2.8, 150, 110)
    (noisy,) = drawn(fine[0], 1.4, DOSE, 1)
    lowest = np.fft.fftshift(np.fft.fft2(noisy))[64:192, 64:192]
    expected = np.fft.ifft2(np.fft.ifftshift(lowest)).real / 4
    assert drawn(coarse[0], 2.8, DOSE, 1)[0][coarse[1]].std() == pytest.approx(expected[coarse[1]].std(), rel=0.1)


@pytest.mark.parametrize("shape", [(37, 61), (130, 70), (1, 9)])
def test_slices_of_any_shape_and_pixel_give_the_noise_of_their_place(shape):
    image = np.zeros(shape, np.int16)
    first = ct_noise(image, (1.3, 0.9), 0.3, np.random.default_rng(4))
    again = ct_noise(image, (1.3, 0.9), 0.3, np.random.default_rng(4))
    other = ct_noise(image, (1.3, 0.9), 0.3, np.random.default_rng(5))
    assert first.shape == shape and first.dtype == np.float32 and np.isfinite(first).all() and first.any()
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_oblong_pixels_see_the_same_body():
    image, inside = ellipse(96, 3.0, 110, 70)
    halved = image.reshape(48, 2, 96).mean(axis=1)
    square = drawn(image, 3.0, DOSE, 60, cutoff=0.08)
    random = np.random.default_rng(3)
    oblong = np.stack([ct_noise(halved, (6.0, 3.0), DOSE, random, cutoff=0.08) for _ in range(60)])
    place = inside[::2]
    assert oblong[:, place].std() == pytest.approx(square[:, inside].std(), rel=0.05)


def test_metal_that_no_photon_passes_gives_finite_noise():
    image = np.full((64, 64), 30000.0, np.float32)
    assert np.isfinite(drawn(image, 5.0, 0.1, 1)).all()


@pytest.mark.parametrize("dose", [0.0, -1.0, 1.5, math.nan])
def test_a_dose_that_is_no_fraction_is_refused(dose):
    with pytest.raises(ValueError, match="expected a slice"):
        ct_noise(np.zeros((8, 8)), (1, 1), dose, np.random.default_rng(0))


# ------------------------------------------------------------------------------------------------ noise of others


def noisy(value: float, modality: str, level: float, count: int = 200_000) -> np.ndarray:
    return noise(np.full((1, count), value, np.float32), modality, level, np.random.default_rng(0))


def test_mr_noise_is_rayleigh_in_air_and_without_bias_at_high_signal():
    air, tissue = noisy(-1.0, "MR", 0.05) + 1, noisy(0.5, "MR", 0.05)
    assert air.mean() == pytest.approx(0.05 * math.sqrt(math.pi / 2), rel=0.01)
    assert air.std() == pytest.approx(0.05 * math.sqrt(2 - math.pi / 2), rel=0.01)
    assert tissue.mean() == pytest.approx(0.5 + 0.05**2 / (2 * 1.5), abs=3e-4)  # Gudbjartsson and Patz, eq. 6
    assert tissue.std() == pytest.approx(0.05, rel=0.01)


def test_radiographs_are_noisier_where_fewer_photons_arrive():
    spread = {value: noisy(value, "DX", 0.03).std() for value in (-1.0, 0.0, 1.0)}
    assert spread[0.0] == pytest.approx(0.03, rel=0.02)
    photons = {value: math.exp(-degradations.LATITUDE / 2 * value) for value in spread}
    for value, seen in spread.items():  # variance of the logarithm: (n + r^2) / n^2 with r^2 a tenth of n at mid-grey
        share = (photons[value] + 0.1) / photons[value] ** 2 / 1.1
        assert seen == pytest.approx(0.03 * math.sqrt(share), rel=0.03)
    assert noisy(0.5, "CR", 0.03).mean() == pytest.approx(0.5, abs=3e-3)
    assert np.isfinite(noisy(1.0, "DX", 3.0)).all()


@pytest.mark.parametrize("modality", ["MR", "DX", "US", "OT", "CT"])
def test_noise_keeps_shape_and_type_and_follows_its_seed(modality):
    image = np.linspace(-1, 1, 24, dtype=np.float32).reshape(2, 3, 4)
    first, again = (noise(image, modality, 0.1, np.random.default_rng(7)) for _ in range(2))
    assert first.shape == image.shape and first.dtype == np.float32 and np.array_equal(first, again)
    assert np.array_equal(noise(image, modality, 0.0, np.random.default_rng(7)), image)
    with pytest.raises(ValueError, match="level"):
        noise(image, modality, -0.1, np.random.default_rng(7))


def test_other_noise_is_gaussian():
    seen = noisy(0.2, "US", 0.1)
    assert (seen.mean(), seen.std()) == pytest.approx((0.2, 0.1), rel=0.01)
    assert ((seen - seen.mean()) ** 4).mean() / seen.var() ** 2 == pytest.approx(3, rel=0.03)


# ------------------------------------------------------------------------------------------------ thick slices

FACTORS = (1.0, 1.5, 2.0, 2.7, 4.0, 5.0)


def ramp(depth: int) -> np.ndarray:
    return np.broadcast_to(np.arange(depth, dtype=np.float32)[None, :, None, None], (1, depth, 2, 3)).copy()


@pytest.mark.parametrize("profile", degradations.PROFILES)
@pytest.mark.parametrize("factor", FACTORS)
def test_a_constant_stays_and_a_ramp_stays_inside(profile, factor):
    volume = np.full((2, 30, 2, 3), 7.0, np.float32)
    thick = thickened(volume, factor, profile)
    assert thick.dtype == np.float32 and thick.shape == (2, thick_depth(30, factor), 2, 3)
    assert np.allclose(thick, 7) and np.allclose(refined(thick, 30, factor), 7, atol=1e-5)
    positions = slice_positions(30, factor)
    inner = (positions > 1.5 * factor) & (positions < 29 - 1.5 * factor)
    assert inner.sum() >= 2
    assert thickened(ramp(30), factor, profile)[0, inner, 0, 0] == pytest.approx(positions[inner], abs=2e-3)
    first, last = positions[inner][[0, -1]]
    between = np.arange(math.ceil(first), math.floor(last) + 1)
    fine = refined(thickened(ramp(30), factor, profile), 30, factor, "linear")[0, :, 0, 0]
    assert len(between) >= 5 and fine[between] == pytest.approx(between, abs=2e-3)


@pytest.mark.parametrize("method", degradations.INTERPOLATIONS)
def test_interpolation_is_exact_on_what_it_models_and_keeps_the_ends(method):
    power = {"linear": 1, "cubic": 3}[method]
    thick = (np.arange(8.0) ** power)[None, :, None, None].astype(np.float32)
    positions = degradations.grid_positions(8, 24, 1 / 3)
    seen = refined(thick, 24, method=method)[0, :, 0, 0]
    assert seen == pytest.approx(np.clip(positions, 0, 7) ** power, rel=1e-5, abs=1e-4)
    assert np.array_equal(seen[[0, -1]], thick[0, [0, -1], 0, 0])


def test_factor_one_changes_nothing():
    volume = np.random.default_rng(0).normal(size=(1, 9, 4, 5)).astype(np.float32)
    for profile in degradations.PROFILES:
        assert np.array_equal(thickened(volume, 1.0, profile), volume)
        assert np.allclose(blurred(volume, 1.0, profile), volume, atol=1e-5)
    assert np.allclose(refined(volume, 9), volume, atol=1e-5)


@pytest.mark.parametrize("factor", [2.0, 3.0, 4.5])
def test_an_impulse_has_the_profile(factor):
    """The response to a thin slice at every place, as a thick slice is moved over it."""
    depth = 61
    seen = {
        profile: np.array(
            [thickened(np.eye(depth)[None, z, :, None, None], factor, profile)[0, :, 0, 0] for z in range(depth)]
        )
        for profile in degradations.PROFILES
    }
    middle = thick_depth(depth, factor) // 2
    away = np.arange(depth) - slice_positions(depth, factor)[middle]
    overlap = np.clip(factor / 2 + 0.5 - np.abs(away), 0, 1) / factor
    tilt = 0.0 if float(factor).is_integer() else 0.04  # that keeps the middle where a box cuts slices
    assert seen["box"][:, middle] == pytest.approx(overlap, abs=1e-6, rel=tilt)
    for profile in seen:
        assert (seen[profile][:, middle] * away).sum() == pytest.approx(0, abs=1e-5)
    weights = seen["gaussian"][:, middle]
    variance = (weights * away**2).sum()
    # With thin slices whose own width is 1, a full width at half maximum of `factor`.
    assert math.sqrt(8 * math.log(2) * variance + 1) == pytest.approx(factor, rel=1e-3)
    model = np.exp(-(away**2) / (2 * variance))
    assert weights == pytest.approx(model / model.sum(), abs=0.02 / factor)


@pytest.mark.parametrize("profile, tolerance", [("box", 1e-6), ("gaussian", 0.06)])
@pytest.mark.parametrize("factor", [2.0, 3.0, 5.0])
def test_the_mean_is_preserved(profile, tolerance, factor):
    volume = np.random.default_rng(0).uniform(0, 1, (1, 30, 4, 5)).astype(np.float32)
    thick = thickened(volume, factor, profile)
    assert thick.mean() == pytest.approx(
        volume.mean(), rel=min(tolerance, 0.02) if profile == "gaussian" else tolerance
    )
    inner = volume[:, 10:20].copy()
    only = np.zeros_like(volume)
    only[:, 10:20] = inner
    assert thickened(only, factor, profile).sum() * factor == pytest.approx(only.sum(), rel=max(tolerance, 1e-5))


def test_overlapping_slices_are_wider_than_their_distance():
    step = (np.arange(40) >= 20).astype(np.float32)[None, :, None, None]
    edges = [np.abs(np.diff(thickened(step, 2.0, "gaussian", width)[0, :, 0, 0])).max() for width in (None, 4.0, 8.0)]
    assert edges[0] > 1.5 * edges[1] > 2 * edges[2]


@pytest.mark.parametrize("depth, factor", [(30, 3.0), (31, 3.0), (10, 4.0), (7, 2.5), (3, 8.0)])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_positions_and_affines_are_exact_and_undo_each_other(depth, factor, axis):
    random = np.random.default_rng(0)
    affine = np.eye(4)
    affine[:3] = random.normal(size=(3, 4)) * (1, 1, 1, 100)
    thick = thick_depth(depth, factor)
    coarse = regridded_affine(affine, depth, thick, factor, axis)
    for index, position in enumerate(slice_positions(depth, factor)):
        place, old = np.full(4, 2.0), np.full(4, 2.0)
        place[[axis, 3]], old[[axis, 3]] = (index, 1), (position, 1)
        assert coarse @ place == pytest.approx(affine @ old, abs=1e-9)
    assert regridded_affine(coarse, thick, depth, 1 / factor, axis) == pytest.approx(affine, abs=1e-9)
    positions = slice_positions(depth, factor)
    assert positions.mean() == pytest.approx((depth - 1) / 2) and len(positions) == thick
    assert (positions >= 0).all() and (positions <= depth - 1).all()


def test_a_blob_stays_in_its_place_through_thick_and_thin():
    z = np.arange(41)
    blob = np.exp(-((z - 17.3) ** 2) / (2 * 5**2)).astype(np.float32)[None, :, None, None]
    for factor in (2.0, 3.0, 3.7):
        back = refined(thickened(blob, factor), 41, factor)[0, :, 0, 0]
        assert (back * z).sum() / back.sum() == pytest.approx((blob[0, :, 0, 0] * z).sum() / blob.sum(), abs=0.05)
        assert np.abs(back - blob[0, :, 0, 0]).max() < 0.1


def test_a_blurred_picture_keeps_grid_place_and_loses_fine_detail():
    y, x = np.indices((40, 36))
    coarse, fine = np.sin(2 * np.pi * x / 36), np.cos(np.pi * y)
    seen = blurred(np.stack([coarse, fine])[None].astype(np.float32), 3.0)
    assert seen.shape == (1, 2, 40, 36)
    assert np.abs(seen[0, 0] - coarse)[:, 4:-4].max() < 0.06 and np.abs(seen[0, 1])[4:-4].max() < 0.1
    assert np.allclose(blurred(coarse.T.astype(np.float32), 3.0), blurred(coarse.astype(np.float32), 3.0).T, atol=1e-5)


@pytest.mark.parametrize("profile", degradations.PROFILES)
@pytest.mark.parametrize("depth, factor", [(32, 2.0), (30, 3.0), (31, 2.6), (40, 5.0), (4, 4.0)])
def test_a_consistent_scan_shows_the_measured_slices(profile, depth, factor):
    random = np.random.default_rng(0)
    truth = random.normal(size=(1, depth, 3, 4)).astype(np.float32)
    thick = thickened(truth, factor, profile)
    made = random.normal(size=truth.shape).astype(np.float32)
    better = consistent(made, thick, factor, profile)
    before, after = (np.abs(thickened(one, factor, profile) - thick).max() for one in (made, better))
    assert after < 2e-3 * before
    assert ((better - truth) ** 2).mean() < ((made - truth) ** 2).mean()


def test_consistency_is_iterative_back_projection_and_leaves_a_consistent_scan_alone():
    random = np.random.default_rng(0)
    truth, made = random.normal(size=(2, 1, 24, 2, 2)).astype(np.float32)
    thick = thickened(truth, 3.0)
    assert np.allclose(consistent(truth, thick, 3.0), truth, atol=1e-5)
    assert np.array_equal(consistent(made, thick, 3.0, rounds=0), made)
    stepwise = made
    for _ in range(4):
        stepwise = stepwise + refined(thick - thickened(stepwise, 3.0), 24, 3.0, "linear")
    assert np.allclose(consistent(made, thick, 3.0, rounds=4), stepwise, atol=1e-5)


def test_other_axes_are_thickened_alike():
    volume = np.random.default_rng(0).normal(size=(2, 7, 9, 12)).astype(np.float32)
    for axis in (2, 3, -1):
        turned = np.moveaxis(volume, axis, 1)
        assert np.allclose(thickened(volume, 3.0, axis=axis), np.moveaxis(thickened(turned, 3.0), 1, axis), atol=1e-6)
        fine, thick = volume + 1, thickened(volume, 3.0, axis=axis)
        better = consistent(fine, thick, 3.0, axis=axis)
        assert np.allclose(thickened(better, 3.0, axis=axis), thick, atol=2e-3)


def test_the_width_of_slices_is_what_the_header_says_where_it_can_be():
    assert slice_width(5.0, 2.5) == 2.0 and slice_width(2.5, 5.0) == 0.5
    assert [slice_width(nothing, 2.5) for nothing in (None, 0.0, -3.0, math.nan, 900.0)] == [1.0] * 5


def test_what_makes_no_sense_is_refused():
    volume = np.zeros((1, 8, 2, 2), np.float32)
    for wrong in (0.5, 0.0, math.nan):
        with pytest.raises(ValueError, match="factor of at least 1"):
            thickened(volume, wrong)
    with pytest.raises(ValueError, match="profile"):
        thickened(volume, 2.0, "sinc")
    with pytest.raises(ValueError, match="method"):
        refined(volume, 16, method="nearest")
    with pytest.raises(ValueError, match="expected 4 thick slices"):
        consistent(volume, volume[:, :3], 2.0)
