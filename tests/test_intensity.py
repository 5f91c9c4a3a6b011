"""IntensityMap: exact inside the window, clamped outside, and a window that fits the modality."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scansmith.intensity import IntensityMap, background_level, choose, otsu_threshold

INT16, UINT8, UINT16, FLOAT = map(np.dtype, (np.int16, np.uint8, np.uint16, np.float32))


# ------------------------------------------------------------------------------------------------ encode, decode


@given(st.integers(-2000, 0), st.integers(1, 4000))
def test_every_hounsfield_unit_inside_the_window_comes_back_exactly(low, width):
    window = IntensityMap(low, low + width, "HU")
    values = np.arange(low, low + width + 1)
    np.testing.assert_array_equal(window.decode(window.encode(values)), values)


@given(
    st.sampled_from([np.uint8, np.int8, np.int16, np.uint16, np.int32]),
    st.floats(-40000, 40000),
    st.floats(1, 70000),
)
def test_every_whole_number_inside_any_window_comes_back_exactly_in_any_dtype(dtype, low, width):
    window = IntensityMap(low, low + width)
    limits = np.iinfo(dtype)
    first, last = max(np.ceil(low), limits.min), min(np.floor(low + width), limits.max)
    values = np.arange(first, last + 1).astype(dtype)
    np.testing.assert_array_equal(window.decode(window.encode(values)), values)


def test_the_whole_range_of_uint16_comes_back_exactly():
    values = np.arange(65536, dtype=np.uint16)
    window = IntensityMap(0, 65535)
    np.testing.assert_array_equal(window.decode(window.encode(values)), values)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.integers(0, 2**31))
def test_any_value_inside_the_window_comes_back_within_the_stated_bound(low, width, seed):
    window = IntensityMap(low, low + width)
    values = (low + width * np.random.default_rng(seed).random(200)).astype(np.float32)
    values = values[(values >= window.low) & (values <= window.high)].astype(np.float64)
    error = np.abs(window.decode(window.encode(values)) - values)
    assert (error <= (window.high - window.low) * 2**-21.9 + 2**-24 * np.abs(values).max(initial=0.0)).all()


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e5), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_encoding_what_was_decoded_changes_nothing(low, width, parts):
    window = IntensityMap(low, low + width)
    once = window.decode(window.encode(low + width * np.array(parts)))
    np.testing.assert_array_equal(window.decode(window.encode(once)), once)


def test_values_outside_the_window_are_clamped_both_ways_and_nan_is_the_lower_end():
    window = IntensityMap(-1024, 1000, "HU")
    assert window.encode(np.array([-3000, -1024, 1000, 5000])).tolist() == [-1, -1, 1, 1]
    assert window.decode(np.array([-1.5, 1.5])).tolist() == [-1024, 1000]
    assert window.encode(np.array([np.nan, np.inf, -np.inf, 1000.0], np.float32)).tolist() == [-1, 1, -1, 1]


@pytest.mark.parametrize("shape", [(), (7,), (3, 40_000), (2, 33, 50, 20)])
def test_any_shape_and_memory_order_is_encoded_alike(shape):
    values = np.random.default_rng(0).integers(-1024, 3000, shape).astype(np.int16)
    window = IntensityMap(-1000, 2000)
    expected = np.clip((values.astype(float) + 1000) / 1500 - 1, -1, 1)
    for array in (values, np.asfortranarray(values), values.T):
        encoded = window.encode(array)
        assert encoded.dtype == np.float32
        assert encoded.shape == array.shape
        np.testing.assert_allclose(encoded, expected.T if array.shape != shape else expected, atol=1e-7)


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_window_without_width_is_refused(low, high):
    with pytest.raises(ValueError, match="expected a finite window"):
        IntensityMap(low, high)


# ------------------------------------------------------------------------------------------------ choose


@pytest.mark.parametrize("top, expected", [(80, 500), (900, 1000), (1700, 2000), (3071, 3071), (20000, 3071)])
def test_ct_reaches_from_air_to_the_next_500_hu_above_its_bone(top, expected):
    window, words = choose("CT", np.concatenate([np.full(1000, -1000.0), np.full(1000, top)]), INT16)
    assert (window.low, window.high, window.units) == (-1024, expected, "HU")
    assert str(expected) in words


def test_8_bit_pictures_keep_their_whole_range_whatever_they_show():
    for modality in ("OT", "MR", "CT"):
        assert choose(modality, np.array([7, 9]), UINT8)[0] == IntensityMap(0, 255, "a.u.")


@pytest.mark.parametrize("modality", ["CT", "MR", "DX", "OT"])
@pytest.mark.parametrize("dtype", [INT16, UINT8])
def test_the_users_window_comes_before_anything_else(modality, dtype):
    window, words = choose(modality, np.arange(100), dtype, voi=(0, 1), window=(-160, 240), percentiles=(1, 99))
    assert (window.low, window.high) == (-160, 240)
    assert "as wished" in words
    assert (window.units == "HU") == (modality == "CT" and dtype != UINT8)


def test_the_users_percentiles_are_taken_of_the_foreground_in_mr_and_of_all_elsewhere():
    tissue = np.linspace(200, 400, 10_001)
    values = np.concatenate([np.zeros(30_000), tissue])
    window, _ = choose("MR", values, FLOAT, percentiles=(10, 90))
    assert (window.low, window.high) == pytest.approx((220, 380), abs=1)
    window, _ = choose("DX", tissue, FLOAT, percentiles=(10, 90))
    assert (window.low, window.high) == pytest.approx((220, 380), abs=1)


def test_mr_starts_at_zero_and_a_few_bright_voxels_do_not_darken_it():
    tissue = np.random.default_rng(0).normal(300, 30, 10_000)
    window, _ = choose("MR", np.concatenate([np.zeros(30_000), tissue, np.full(20, 1e6)]), FLOAT)
    assert window.low == 0
    assert 350 < window.high < 450


def test_mr_with_a_constant_negative_background_maps_it_to_minus_one():
    values = np.concatenate([np.full(1000, -2.5), np.random.default_rng(0).normal(1, 1, 1000)])
    window, _ = choose("MR", values, FLOAT)
    assert window.encode(np.array([-2.5]))[0] == -1


def test_mr_that_interpolation_made_slightly_negative_keeps_zero_as_minus_one():
    rng = np.random.default_rng(0)
    values = np.concatenate([np.zeros(5000), rng.normal(300, 40, 5000), rng.uniform(-40, 0, 30)])
    assert choose("MR", values, FLOAT)[0].low == 0


def test_mr_standardised_about_a_background_of_zero_keeps_its_dark_tissue():
    tissue = np.random.default_rng(0).normal(0, 1, 5000)
    window, _ = choose("MR", np.concatenate([np.zeros(5000), tissue]), FLOAT)
    assert window.low < -2
    assert window.high > 2


def test_by_median_tissue_is_encoded_alike_whatever_is_brightest_and_in_whatever_units():
    random = np.random.default_rng(0)
    tissue, air = random.normal(400.0, 40.0, 6000).clip(200.0), np.zeros(4000)
    vessels = [random.normal(bright, 50.0, 120) for bright in (700.0, 1600.0)]
    patients = [np.concatenate([air, tissue, one]) for one in vessels]
    by_median = [choose("MR", one, FLOAT, by_median=True)[0] for one in patients]
    encoded = [(np.median(tissue) - one.low) / (one.high - one.low) for one in by_median]
    assert encoded == pytest.approx([1 / 3, 1 / 3], rel=0.02)  # 3 medians are the window
    by_percentile = [choose("MR", one, FLOAT)[0].high for one in patients]
    assert by_percentile[1] > 1.5 * by_percentile[0]
    scaled = choose("MR", 0.01 * patients[1] - 4.0, FLOAT, by_median=True)[
        0
    ]  # standardised: the background is negative
    assert scaled.low == pytest.approx(0.01 * by_median[1].low - 4.0, abs=1e-6)
    assert scaled.high == pytest.approx(0.01 * by_median[1].high - 4.0, rel=1e-6)


def test_by_median_changes_neither_the_users_choice_nor_other_modalities():
    values = np.random.default_rng(0).gamma(2.0, 200.0, 5000)
    for chosen in ({"percentiles": (1.0, 99.0)}, {"window": (0.0, 900.0)}):
        assert choose("MR", values, FLOAT, by_median=True, **chosen) == choose("MR", values, FLOAT, **chosen)
    for modality in ("CT", "DX"):
        assert choose(modality, values, FLOAT, by_median=True) == choose(modality, values, FLOAT)
    assert choose("MR", values[:256], UINT8, by_median=True)[0] == IntensityMap(0.0, 255.0)


def test_a_film_uses_its_voi_window_unless_that_shows_nothing_of_it():
    values = np.random.default_rng(0).uniform(0, 4095, 10_000)
    for modality in ("DX", "CR", "MG", "US", "XA", "RF"):
        window, words = choose(modality, values, UINT16, voi=(500.0, 3500.0))
        assert (window.low, window.high) == (500, 3500)
        assert "VOI" in words
    window, _ = choose("DX", values, UINT16, voi=(9000.0, 9500.0))
    assert (window.low, window.high) == pytest.approx((20, 4075), abs=20)
    assert choose("MR", values, UINT16, voi=(500.0, 3500.0))[0].high > 4000  # what a viewer liked says nothing of MR


def test_a_film_without_voi_window_goes_by_percentiles_and_ignores_broken_pixels():
    values = np.concatenate([np.linspace(100, 3000, 10_000), [np.nan, np.inf, -np.inf]])
    window, _ = choose("CR", values, UINT16)
    assert (window.low, window.high) == pytest.approx((100 + 0.005 * 2900, 100 + 0.995 * 2900), abs=1)


def test_a_nearly_binary_scan_still_has_a_window():
    window, _ = choose("OT", np.concatenate([np.zeros(100_000), np.ones(3)]), FLOAT)
    assert (window.low, window.high) == (0, 1)


@pytest.mark.parametrize("values", [np.full(10, 5.0), np.array([5.0, np.nan])])
def test_a_constant_scan_is_refused(values):
    with pytest.raises(ValueError, match="one constant value 5"):
        choose("MR", values, FLOAT)


def test_a_scan_without_finite_values_is_refused():
    with pytest.raises(ValueError, match="no finite value"):
        choose("MR", np.full(10, np.nan), FLOAT)


# ------------------------------------------------------------------------------------------------ background


def test_otsu_parts_two_classes_half_way_between_their_means():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(0, 1, 5000), rng.normal(10, 1, 5000)])
    assert otsu_threshold(values) == pytest.approx(5, abs=0.2)
    assert otsu_threshold(np.array([0.0, 0.0, 0.0, 8.0])) == pytest.approx(4, abs=0.1)


def test_noise_is_background_dark_tissue_is_not():
    rng = np.random.default_rng(0)
    noise = np.abs(rng.normal(0, 10, 30_000) + 1j * rng.normal(0, 10, 30_000))
    values = np.concatenate([noise, rng.normal(120, 10, 3000), rng.normal(600, 50, 12_000)])
    level = background_level(values)
    assert level is not None
    assert (noise > level[1]).mean() < 1e-3
    assert level[1] < 80


def test_a_crop_inside_tissue_has_no_background():
    assert background_level(np.random.default_rng(0).gamma(4, 100, 20_000)) is None


def test_real_mr_maps_background_to_minus_one_and_uses_the_range(shared_data):
    files = [
        *sorted((shared_data / "paired_flair_t1c_3d_brats2013").glob("*/*subtrMeanDivStd.nii.gz"))[:2],
        *sorted((shared_data / "paired_t1_t2_flair_3d_openms").glob("*/T?_*.nii.gz"))[:2],
        *sorted((shared_data / "raw_mr_3d_openms").rglob("*.nii.gz"))[:2],
    ]
    assert len(files) == 6
    for file in files:
        array = np.asarray(nibabel.load(file).dataobj)[::2, ::2, ::2]
        window, _ = choose("MR", array, array.dtype)
        encoded = window.encode(array)
        background = np.median(array[:3])
        assert window.encode(np.array([background]))[0] == -1
        tissue = encoded[array > background + 0.05 * (window.high - window.low)]
        assert -0.8 < np.median(tissue) < 0.8
        assert (tissue >= 1).mean() < 0.02
