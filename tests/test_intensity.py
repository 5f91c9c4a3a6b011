"""IntensityMap: exact inside the window, clamped outside, and a window that fits the modality."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scansmith.intensity import IntensityMap, choose


@given(st.integers(-2000, 0), st.integers(1, 4000))
def test_every_hounsfield_unit_inside_the_window_comes_back_exactly(low, width):
    window = IntensityMap(low, low + width, "HU")
    values = np.arange(low, low + width + 1)
    np.testing.assert_array_equal(window.decode(window.encode(values)), values)


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e5), st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_any_value_inside_the_window_comes_back_within_float32(low, width, parts):
    window = IntensityMap(low, low + width)
    values = low + width * np.array(parts)
    tolerance = 1e-6 * max(abs(low), abs(low + width), width)
    np.testing.assert_allclose(window.decode(window.encode(values)), values, atol=tolerance)


def test_values_outside_the_window_are_clamped_both_ways():
    window = IntensityMap(-1024, 1000, "HU")
    assert window.encode(np.array([-3000, -1024, 1000, 5000])).tolist() == [-1, -1, 1, 1]
    assert window.decode(np.array([-1.5, 1.5])).tolist() == [-1024, 1000]


@pytest.mark.parametrize("low, high", [(1.0, 1.0), (2.0, 1.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_window_without_width_is_refused(low, high):
    with pytest.raises(ValueError, match="expected a finite window"):
        IntensityMap(low, high)


@pytest.mark.parametrize("top, expected", [(80, 500), (900, 1000), (1700, 2000), (3071, 3071), (20000, 3071)])
def test_ct_reaches_from_air_to_the_next_500_hu_above_its_bone(top, expected):
    window, words = choose("CT", np.concatenate([np.full(1000, -1000.0), np.full(1000, top)]), np.dtype(np.int16))
    assert (window.low, window.high, window.units) == (-1024, expected, "HU")
    assert str(expected) in words


def test_8_bit_pictures_keep_their_whole_range_whatever_they_show():
    for modality in ("OT", "MR", "CT"):
        assert choose(modality, np.array([7, 9]), np.dtype(np.uint8))[0] == IntensityMap(0, 255, "a.u.")


def test_mr_starts_at_zero_and_a_few_bright_voxels_do_not_darken_it():
    tissue = np.random.default_rng(0).normal(300, 30, 10_000)
    window, _ = choose("MR", np.concatenate([np.zeros(30_000), tissue, np.full(20, 1e6)]), np.dtype(np.float32))
    assert window.low == 0
    assert 350 < window.high < 450


def test_mr_with_negative_background_keeps_all_of_it():
    values = np.concatenate([np.full(1000, -2.5), np.random.default_rng(0).normal(1, 1, 1000)])
    assert choose("MR", values, np.dtype(np.float32))[0].low == values.min()


def test_a_nearly_binary_scan_still_has_a_window():
    window, _ = choose("OT", np.concatenate([np.zeros(100_000), np.ones(3)]), np.dtype(np.float32))
    assert (window.low, window.high) == (0, 1)


def test_a_constant_scan_is_refused():
    with pytest.raises(ValueError, match="one constant value 5"):
        choose("MR", np.full(10, 5.0), np.dtype(np.float32))
