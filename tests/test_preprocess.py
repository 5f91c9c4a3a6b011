"""Grid and resampling: closed forms, anti-aliasing, and shapes that stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scansmith.preprocess import Grid, resampling_matrix, resize

SIZES = st.integers(1, 200)


@given(SIZES, SIZES)
def test_a_constant_stays_constant_at_any_size(size_in, size_out):
    np.testing.assert_allclose(resampling_matrix(size_in, size_out).sum(axis=1), 1.0, atol=1e-5)


@given(st.integers(2, 60))
def test_halving_averages_with_a_triangle_of_known_weights(half):
    matrix = resampling_matrix(2 * half, half)
    if half > 2:
        np.testing.assert_allclose(matrix[1, :6], [0, 0.125, 0.375, 0.375, 0.125, 0], atol=1e-6)


def test_equal_sizes_are_the_identity():
    np.testing.assert_array_equal(resampling_matrix(13, 13), np.eye(13))


@given(st.integers(8, 64), st.integers(8, 64))
def test_a_ramp_stays_the_same_ramp_in_place_away_from_the_edges(size_in, size_out):
    positions = (np.arange(size_out) + 0.5) * size_in / size_out - 0.5
    result = resampling_matrix(size_in, size_out) @ np.arange(size_in)
    reach = max(size_in / size_out, 1.0)
    inside = (positions >= reach) & (positions <= size_in - 1 - reach)
    tolerance = (
        1e-4 if size_in <= size_out or size_in % size_out == 0 else 0.51
    )  # the triangle is sampled at whole pixels
    np.testing.assert_allclose(result[inside], positions[inside], atol=tolerance)


def test_stripes_finer_than_the_new_grid_become_grey_and_do_not_alias():
    stripes = np.tile([0.0, 100.0], 32)[None, :].repeat(64, axis=0)
    assert np.ptp(resize(stripes, 16, 16)[:, 1:-1]) < 1e-3  # whole factors cancel exactly
    small = resize(stripes, 20, 20)
    assert np.ptp(small[:, 1:-1]) < 15.0  # bare subsampling gives 100
    np.testing.assert_allclose(small.mean(), 50.0, atol=1.0)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_resize_keeps_the_dtype_and_the_range(dtype):
    image = np.random.default_rng(0).integers(0, 256, (3, 2, 9, 12)).astype(dtype)
    result = resize(image, 31, 5)
    assert result.dtype == dtype
    assert result.shape == (3, 2, 31, 5)
    assert result.min() >= image.min()
    assert result.max() <= image.max()


def test_resize_gives_the_same_for_a_transposed_view():
    image = np.random.default_rng(0).random((16, 3, 12)).astype(np.float32)
    np.testing.assert_array_equal(
        resize(image.transpose(1, 0, 2), 7, 5), resize(np.ascontiguousarray(image.transpose(1, 0, 2)), 7, 5)
    )


@given(st.integers(8, 1024), st.integers(8, 1024), st.sampled_from([32, 64, 128, 256, 512]))
def test_the_grid_is_near_the_target_holds_the_box_and_keeps_the_aspect_ratio(height, width, target):
    if not 1 / 8 < height / width < 8:
        return
    grid = Grid.choose(height, width, target)
    assert 0.5 <= max(grid.height, grid.width) / target <= 2.0
    assert grid.box_height <= grid.height
    assert grid.box_width <= grid.width
    rounding = (1 / grid.box_height + 1 / grid.box_width) * 1.01
    assert abs(np.log((grid.box_height / grid.box_width) / (height / width))) <= rounding


@given(st.integers(16, 90), st.integers(16, 90))
def test_what_the_grid_applies_it_crops_again(height, width):
    image = np.random.default_rng(0).integers(0, 100, (1, height, width)).astype(np.int16)
    grid = Grid.choose(height, width, 64)
    placed = grid.apply(image, fill=-7)
    assert placed.shape == (1, grid.height, grid.width)
    np.testing.assert_array_equal(grid.crop(placed), resize(image, grid.box_height, grid.box_width))
    assert (placed == -7).sum() == grid.height * grid.width - grid.box_height * grid.box_width
