"""Crop, grid, resampling and MR intensities: closed forms, anti-aliasing, no anatomy cut, scans that agree afterwards."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import binary_opening, label

from scansmith import anatomy, formats
from scansmith.preprocess import (
    Grid,
    band,
    bias_corrected,
    choose_crop,
    choose_dimensions,
    crop_extent,
    foreground_box,
    histogram_knots,
    landmarks,
    match_histogram,
    piecewise,
    resampling_matrix,
    resize,
    resize_volume,
)

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


def test_the_wanted_part_of_a_resized_image_is_that_part_of_the_whole():
    image = np.random.default_rng(0).integers(0, 4000, (2, 1, 50, 61)).astype(np.uint16)
    part = (slice(3, 20), slice(5, 6))
    np.testing.assert_array_equal(resize(image, 33, 90, part), resize(image, 33, 90)[..., part[0], part[1]])


@given(st.integers(2, 80), st.floats(0.3, 4.0), st.floats(-3, 90))
def test_a_band_reads_with_weights_that_sum_to_one_and_never_outside(size, factor, start):
    taps, weight = band(size, start + factor * np.arange(9), factor)
    assert taps.min() >= 0
    assert taps.max() < size
    assert weight.min() >= 0
    np.testing.assert_allclose(weight.sum(axis=1), 1, atol=1e-6)


def test_a_band_at_whole_positions_copies():
    taps, weight = band(9, np.arange(2, 7), 1.0)
    values = np.random.default_rng(0).random(9).astype(np.float32)
    np.testing.assert_array_equal((values[taps] * weight).sum(axis=1), values[2:7])


@given(st.integers(8, 1024), st.integers(8, 1024), st.sampled_from([32, 64, 128, 256, 512]))
def test_the_grid_is_near_the_target_holds_the_box_and_keeps_the_aspect_ratio(height, width, target):
    if not 1 / 8 < height / width < 8:
        return
    grid = Grid.choose((height, width), target)
    assert 0.5 <= max(grid.height, grid.width) / target <= 2.0
    assert grid.box_height <= grid.height
    assert grid.box_width <= grid.width
    rounding = (1 / grid.box_height + 1 / grid.box_width) * 1.01
    assert abs(np.log((grid.box_height / grid.box_width) / (height / width))) <= rounding


@given(st.integers(16, 90), st.integers(16, 90))
def test_what_the_grid_applies_it_crops_again(height, width):
    image = np.random.default_rng(0).integers(0, 100, (1, height, width)).astype(np.int16)
    grid = Grid.choose((height, width), 64)
    placed = grid.apply(image, fill=-7)
    assert placed.shape == (1, grid.height, grid.width)
    np.testing.assert_array_equal(grid.crop(placed), resize(image, grid.box_height, grid.box_width))
    assert (placed == -7).sum() == grid.height * grid.width - grid.box_height * grid.box_width


@pytest.mark.parametrize("before", [(9, 20, 13), (24, 5, 16), (2, 7, 7)])
@pytest.mark.parametrize("after", [(9, 20, 13), (9, 11, 13), (5, 30, 8), (30, 3, 1)])
def test_a_volume_is_resized_by_the_same_filter_along_each_axis(before, after):
    volume = np.random.default_rng(0).normal(size=(2, *before)).astype(np.float32)
    filters = (resampling_matrix(*pair) for pair in zip(before, after))
    expected = np.einsum("cdhw,xd,yh,zw->cxyz", volume.astype(np.float64), *filters, optimize=True)
    np.testing.assert_allclose(resize_volume(volume, after), expected, atol=1e-4)


def test_a_volume_of_whole_numbers_is_rounded_once():
    """Rounded after rows and columns and once more after slices, one voxel in ten would be off by one."""
    volume = np.random.default_rng(0).integers(-1000, 1000, (1, 9, 10, 11)).astype(np.int16)
    exact = resize_volume(volume.astype(np.float32), (13, 7, 8))
    np.testing.assert_array_equal(resize_volume(volume, (13, 7, 8)), np.rint(exact).astype(np.int16), strict=True)


def test_structures_finer_than_the_slices_of_a_smaller_volume_do_not_alias():
    stripes = np.where(np.arange(48) % 2, 1.0, -1.0).astype(np.float32)[None, :, None, None] * np.ones(
        (1, 1, 8, 8), np.float32
    )
    assert np.abs(resize_volume(stripes, (20, 8, 8))[:, 2:-2]).max() < 0.25  # a plain linear filter leaves up to 1


@pytest.mark.parametrize("target", [32, 64, 128])
def test_the_grid_of_volumes_never_squashes_and_pads_little(target):
    random = np.random.default_rng(target)
    padding = []
    for _ in range(60):
        size = [int(side) for side in 40 * 2 ** random.uniform(0, 1.2, 3) * 2 ** random.uniform(0, 1)]
        grid = Grid.choose(size, target)
        assert len(grid.base) == 3 and min(grid.base) >= 3 and max(grid.base) <= 7
        assert 0.5 <= grid.side / target <= 2.0 and all(part <= whole for part, whole in zip(grid.box, grid.shape))
        scales = [math.log(part / side) for part, side in zip(grid.box, size)]
        assert max(scales) - min(scales) <= 1.01 / min(grid.box) + 1.01 / sorted(grid.box)[1]  # the rounding alone
        padding.append(1 - math.prod(grid.box) / grid.pixels)
    assert np.mean(padding) < 0.16 and max(padding) < 0.36


@pytest.mark.parametrize("size", [(35, 50, 35), (37, 50, 36), (182, 218, 182), (155, 240, 240), (160, 192, 160)])
@pytest.mark.parametrize("target", [32, 64])
def test_hippocampi_and_heads_waste_little_of_their_grid(size, target):
    grid = Grid.choose(size, target)
    assert 1 - math.prod(grid.box) / grid.pixels < 0.19


def test_a_grid_of_volumes_places_crops_and_survives_json():
    volume = np.random.default_rng(0).integers(0, 100, (2, 20, 33, 41)).astype(np.int16)
    grid = Grid.choose(volume.shape[1:], 48)
    assert Grid.from_json(json.loads(json.dumps(grid.to_json()))) == grid
    assert (grid.dimensions, grid.height, grid.width) == (3, *grid.shape[1:])
    assert (grid.box_height, grid.box_width) == grid.box[1:]
    placed = grid.apply(volume, fill=-7)
    assert placed.shape == (2, *grid.shape) and placed.dtype == np.int16
    np.testing.assert_array_equal(grid.crop(placed), resize_volume(volume, grid.box))
    assert (placed == -7).sum() == 2 * (grid.pixels - math.prod(grid.box))


# ------------------------------------------------------------------------------------------------ crop


def cut_off(mask, box):
    """How many voxels of a mask lie outside a box."""
    inside = np.zeros_like(mask)
    inside[tuple(slice(first, first + count) for first, count in zip(box[:3], box[3:]))] = True
    return int((mask & ~inside).sum())


@pytest.fixture(scope="module")
def patients():
    """(body mask, CT, MR) as (K, H, W) of three procedural patients on their couch."""
    made = []
    for seed in (1, 4, 7):
        tissues = anatomy.render(anatomy.draw_patient(seed), anatomy.axial_raster(96, 12))
        body = ~np.isin(tissues.labels(), [anatomy.INDEX["air"], anatomy.INDEX["couch"]])
        scans = [image.array[0].T for image in (anatomy.ct(tissues, seed), anatomy.mr(tissues, "T1", seed))]
        made.append((body, *scans))
    return made


def test_the_box_holds_the_whole_body_and_little_else(patients):
    for body, ct, mr in patients:
        tight = np.ptp(np.argwhere(body), axis=0) + 1
        for array, modality in ((ct, "CT"), (mr, "MR"), (ct[:, None], "CT")):
            box = foreground_box(array, modality, "body")
            assert cut_off(body, box) == 0
            assert (np.array(box[3:]) <= tight + 8).all()


def test_a_table_as_dense_as_tissue_is_left_out_and_an_arm_is_not(patients):
    body, ct, _ = patients[1]
    with_table, with_arm = ct.copy(), ct.copy()
    last = np.argwhere(body).max(axis=0)[1]
    with_table[:, last + 5 : last + 7, 5:-5] = 150  # 8 mm thick, 20 mm below the back
    assert foreground_box(with_table, "CT", "body") == foreground_box(ct, "CT", "body")
    with_arm[:, 40:60, :5] = 50
    assert foreground_box(with_arm, "CT", "body")[2] == 0


def test_padding_far_below_air_and_specks_of_metal_do_not_move_the_box(patients):
    _, ct, _ = patients[1]
    reference = foreground_box(ct, "CT", "body")
    padded = ct.copy()
    padded[:, :4], padded[:, :, -3:] = -2000, -2000
    padded[3, 2, 50] = 3000
    assert foreground_box(padded, "CT", "body") == reference


def test_a_scan_without_background_is_its_own_box():
    rng = np.random.default_rng(0)
    assert foreground_box(rng.gamma(4, 100, (20, 30, 40)).astype(np.float32), "MR") == (0, 0, 0, 20, 30, 40)
    assert foreground_box(np.full((4, 30, 40), -1000, np.int16), "CT", "body") == (0, 0, 0, 4, 30, 40)
    assert foreground_box(np.zeros((4, 30, 40), np.int16), "MR") == (0, 0, 0, 4, 30, 40)


def head(modality):
    """A head on a neck and shoulders, 2 mm, slices from the feet to the head, and the mask of its brain."""
    z, y, x = np.meshgrid(np.arange(150) * 2.0, *[np.arange(128) * 2.0 - 128] * 2, indexing="ij")
    skull = ((z - 200) / 85) ** 2 + (y / 95) ** 2 + (x / 75) ** 2 < 1
    brain = ((z - 205) / 70) ** 2 + (y / 82) ** 2 + (x / 62) ** 2 < 1
    neck = (np.hypot(y - 10, x) < 55) & (z < 200)
    shoulders = (z < 60) & (np.abs(x) < 120) & (np.abs(y) < 70)
    tissue = skull | neck | shoulders
    if modality == "CT":
        values = np.where(brain, 35, np.where(skull, 900, np.where(tissue, 50, -1000)))
        values[0:90, 60:70, 60:70] = 800  # the spine
    else:
        values = np.where(brain, 500, np.where(skull, 150, np.where(tissue, 300, 0)))
    return values.astype(np.int16), brain


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_a_brain_box_holds_the_brain_and_leaves_the_shoulders(modality):
    values, brain = head(modality)
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    box = foreground_box(values, modality, "brain", affine)
    assert cut_off(brain, box) == 0
    assert box[4] * box[5] < 0.72 * 128 * 128
    assert box[0] * 2.0 > 90
    # The same head in sagittal slices: the patient's long axis runs along the rows, downwards.
    turned = values.transpose(2, 0, 1)[:, ::-1]
    sagittal = np.array([[0, 0, 2.0, 0], [-2.0, 0, 0, 0], [0, -2.0, 0, 0], [0, 0, 0, 1]])
    box = foreground_box(turned, modality, "brain", sagittal)
    assert cut_off(brain.transpose(2, 0, 1)[:, ::-1], box) == 0
    assert box[1] + box[4] < 150 - 45


def test_a_crop_is_made_where_it_saves_much_and_pictures_are_left_alone():
    sizes = [(20, 100, 100)] * 5
    small, large = [(0, 20, 20, 20, 60, 70)] * 5, [(0, 5, 5, 20, 90, 80)] * 5
    assert choose_crop(small, sizes, "CT")[0] == "body"
    assert choose_crop(small, sizes, "MR")[0] == "foreground"
    kind, words = choose_crop(large, sizes, "MR")
    assert kind == "none"
    assert "72%" in words
    flat = [(1, 100, 100)] * 5
    assert choose_crop(small, flat, "OT")[0] == choose_crop(small, flat, "DX")[0] == "none"
    assert choose_crop(small, flat, "CT")[0] == "body"


def test_the_crop_holds_19_of_20_boxes():
    extents = [(100.0 + i, 80.0) for i in range(20)]
    assert crop_extent(extents) == (119.0, 80.0)
    assert crop_extent([(100.0, 80.0)] * 99 + [(400.0, 300.0)]) == (100.0, 80.0)


def test_real_chest_and_head_ct_keep_all_tissue(shared_data):
    for folder in ("chest_ct_slices_contrast_labels", "dicom_ct_head_ge_tilt"):
        sources = [source for source in formats.discover(shared_data / folder)[0] if source.modality == "CT"]
        for source in sources[:12]:
            array = formats.read(source).array[0].T
            box = foreground_box(array, "CT", "body")
            # At full resolution: what is thicker than a table's shell, the largest part of it and its like.
            parts, _ = label(binary_opening(array[array.shape[0] // 2] > -300, iterations=7))
            sizes = np.bincount(parts.ravel(), minlength=2)[1:]
            body = np.zeros(array.shape, bool)
            body[array.shape[0] // 2] = np.isin(parts, 1 + np.flatnonzero(sizes >= 0.05 * sizes.max()))
            assert cut_off(body, box) == 0
            assert box[4] * box[5] < 0.95 * body[0].size


def test_real_hippocampus_crops_are_not_cut(shared_data):
    for source in formats.discover(shared_data / "image_to_mask_3d_hippocampus" / "images")[0][::4]:
        array = formats.read(source).array[0].T
        assert foreground_box(array, "MR") == (0, 0, 0, *array.shape)


def test_real_brains_keep_every_voxel_of_the_given_mask(shared_data):
    for folder in sorted((shared_data / "paired_flair_t1c_3d_brats2013").glob("brats*"))[:2]:
        by_name = {source.files[0].name.split("_")[0].split(".")[0]: source for source in formats.discover(folder)[0]}
        mask = formats.read(by_name["brainmask"]).array[0].T > 0
        for name in ("Flair", "T1c"):
            box = foreground_box(formats.read(by_name[name]).array[0].T, "MR", "foreground")
            assert cut_off(mask, box) == 0
            assert np.prod(box[3:]) < 0.5 * mask.size


# ------------------------------------------------------------------------------------------------ dimensions


@pytest.mark.parametrize(
    "source, size, spacing, count, paired, expected, word",
    [
        (2, (1, 64, 64), None, 50, False, (2, 0), "pictures"),
        (3, (12, 64, 64), (1.0, 1.0, 1.0), 500, False, (2, 0), "12 slices"),
        (3, (30, 64, 64), (5.0, 0.8, 0.8), 500, True, (2, 2), "6.2 times"),
        (3, (30, 64, 64), (5.0, 0.8, 0.8), 500, False, (2, 0), "6.2 times"),
        (3, (64, 64, 64), (1.0, 1.0, 1.0), 299, False, (2, 0), "299 volumes give 19136 slices"),
        (3, (64, 64, 64), (1.0, 1.0, 1.0), 300, False, (3, 0), "300 volumes"),
        (3, (64, 64, 64), None, 300, True, (2, 2), "not known"),
        (3, (1, 64, 64), None, 300, True, (2, 0), "1 slices"),
    ],
)
def test_dimensions_follow_from_shape_spacing_and_number(source, size, spacing, count, paired, expected, word):
    *chosen, words = choose_dimensions(source, [size] * count, [spacing] * count, paired)
    assert tuple(chosen) == expected
    assert word in words


@pytest.mark.parametrize(
    "source, size, spacing, count, stored",
    [
        (3, (64, 64, 64), (1.0, 1.0, 1.0), 4, 3), (3, (64, 64, 64), (1.0, 1.0, 1.0), 3, 2), (2, (1, 64, 64), None, 50, 2),
        (3, (12, 64, 64), (1.0, 1.0, 1.0), 4, 2), (3, (30, 64, 64), (5.0, 0.8, 0.8), 4, 2),
    ],
)  # fmt: skip
def test_few_volumes_are_enough_where_what_is_learned_lies_within_them(source, size, spacing, count, stored):
    assert choose_dimensions(source, [size] * count, [spacing] * count, fewest=4)[0] == stored


# ------------------------------------------------------------------------------------------------ MR intensity


def brain(gain=1.0, offset=0.0, seed=0, bias=False, size=(24, 40, 40)):
    """((K, H, W) MR of nested shells in noise, white matter, grey matter)."""
    z, y, x = np.meshgrid(*[np.linspace(-1, 1, n) for n in size], indexing="ij")
    rng = np.random.default_rng(seed)
    radius = np.sqrt(x * x + y * y + z * z) * rng.uniform(0.95, 1.05)
    white, grey = radius < 0.5, (radius >= 0.5) & (radius < 0.7)
    values = 800.0 * white + 550 * grey + 200 * ((radius >= 0.7) & (radius < 0.85))
    field = np.exp(0.4 * y + 0.3 * x * z - 0.3 * z * z) if bias else 1.0
    noise = rng.normal(0, 8, values.shape) + 1j * rng.normal(0, 8, values.shape)
    return (np.abs(values * field + noise) * gain + offset).astype(np.float32), white, grey


def test_a_planted_bias_is_taken_out_of_white_and_grey_matter_the_same_way_twice():
    volume, white, grey = brain(bias=True, size=(16, 26, 26))
    corrected = bias_corrected(volume, (4.5, 3.0, 3.0))
    for tissue in (white, grey):
        before, after = (part[tissue].std() / part[tissue].mean() for part in (volume, corrected))
        assert after < 0.4 * before
    assert corrected[white].mean() == pytest.approx(volume[white].mean(), rel=0.1)
    np.testing.assert_array_equal(corrected, bias_corrected(volume, (4.5, 3.0, 3.0)))


def test_where_there_is_no_tissue_to_see_a_bias_in_nothing_changes():
    for volume in (np.zeros((20, 20, 20), np.float32), np.ones((1, 50, 50), np.float32)):
        np.testing.assert_array_equal(bias_corrected(volume, None), volume)


def test_scans_of_other_gain_and_offset_agree_after_matching():
    learned = json.loads(json.dumps(landmarks(brain(1.0, seed=seed)[0] for seed in range(3))))
    white_means, grey_means, air = [], [], []
    for gain, offset, seed in ((1.0, 0.0, 5), (3.7, 0.0, 6), (0.4, 120.0, 7), (900.0, -5.0, 8)):
        volume, white, grey = brain(gain, offset, seed)
        matched = match_histogram(volume, learned)
        assert matched.dtype == np.float32
        white_means.append(matched[white].mean())
        grey_means.append(matched[grey].mean())
        air.append(matched[:2, :2].mean())
    assert np.ptp(white_means) < 2  # on a scale of 100
    assert np.ptp(grey_means) < 3
    assert np.abs(air).max() < 1
    assert min(white_means) - max(grey_means) > 20


def test_matching_is_monotone_and_comes_back():
    volume, _, _ = brain(3.0, 50.0)
    learned = landmarks([brain(seed=1)[0]])
    own, standard = histogram_knots(volume, learned)
    assert (np.diff(own) > 0).all()
    assert (np.diff(standard) > 0).all()
    ramp = np.linspace(volume.min() - 100, volume.max() + 100, 5000)
    assert (np.diff(piecewise(ramp, own, standard)) >= 0).all()
    np.testing.assert_allclose(piecewise(match_histogram(volume, learned), standard, own), volume, atol=0.05)


def test_a_constant_scan_has_no_histogram_to_match():
    with pytest.raises(ValueError, match="one constant value"):
        match_histogram(np.full((4, 8, 8), 3.0, np.float32), landmarks([brain()[0]]))
