"""Slices and volumes on the dataset's grid: every pixel lies where its affine says, and untouched values stay what they are."""

from __future__ import annotations

import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import given
from hypothesis import strategies as st

from scansmith import formats
from scansmith.image import Image
from scansmith.preprocess import resize
from scansmith.preprocess.slices import Placement, Slices, corner, cut
from scansmith.preprocess.volumes import place_volume, spacing_of, stand

CODES = ["RAS", "LPS", "LAS", "RPI", "SRA", "AIL", "PSR", "IAR"]
OUTSIDE = np.float32(-9999)


def ramp(codes, spacing, shape, turn=0.0, order="C"):
    """A volume whose values are its place in the patient, 3 x + 5 y + 7 z (mm), stored along any axes."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, code in enumerate(codes):
        axis, sign = axes[code]
        affine[axis, column] = sign * spacing[column]
    c, s = np.cos(turn), np.sin(turn)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    affine[:3, 3] = (-31, 17, 5)
    return Image(np.asarray(values_at(affine, shape), np.float32, order=order)[None], affine)


def values_at(affine, shape):
    """The ramp's values at the voxels of a grid, whose first index is the affine's first."""
    place = np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    return np.einsum("a,aijk->ijk", (3.0, 5.0, 7.0), place)


# ------------------------------------------------------------------------------------------------ cut


@pytest.mark.parametrize("turn", [0.0, 0.3])
@pytest.mark.parametrize("codes", CODES)
def test_every_voxel_of_an_upright_volume_lies_where_its_affine_says_and_the_frame_is_right_handed(codes, turn):
    slices = cut(ramp(codes, (1.0, 1.0, 1.0), (6, 7, 8), turn), "nifti")
    depth, _, height, width = slices.array.shape
    expected = values_at(slices.affine, (width, height, depth)).T
    np.testing.assert_allclose(slices.array[:, 0], expected, atol=1e-3)
    assert np.linalg.det(slices.affine[:3, :3]) > 0
    assert slices.affine[2, 2] > 0  # from the feet to the head


def test_every_storage_order_of_one_volume_gives_the_same_slices():
    shape = dict(zip("RAS", (6, 7, 8)))
    opposite = {"L": "R", "P": "A", "I": "S"}
    seen = []
    for codes in CODES:
        image = ramp(codes, (1.0, 1.0, 1.0), tuple(shape[opposite.get(code, code)] for code in codes))
        array = cut(image, "nifti").array
        seen.append(array - array.min())
    for other in seen[1:]:
        np.testing.assert_allclose(other, seen[0], atol=1e-4)


# ------------------------------------------------------------------------------------------------ Placement


@given(st.integers(1, 90), st.integers(1, 90), st.floats(-20, 110))
def test_a_grid_leaves_the_axis_no_more_than_its_size_demands(size, grid, middle):
    first = corner(middle, grid, size)
    assert min(size - grid, 0) <= first <= max(size - grid, 0)
    if max(size - grid, 0) == 0 or 0 <= middle - grid / 2 <= size - grid:
        assert first == 0 or abs(first + grid / 2 - middle) < 1 or grid > size


@given(st.integers(0, 30), st.integers(0, 40), st.integers(1, 24), st.integers(1, 30))
def test_a_crop_about_a_box_of_the_grids_size_is_that_box_bit_for_bit(first_row, first_column, height, width):
    array = np.random.default_rng(0).integers(-1024, 3072, (2, 1, 54, 70)).astype(np.int16)
    centre = (first_row + height / 2, first_column + width / 2)
    place = Placement.choose((54, 70), (0.7, 0.7), (height, width), (0.7, 0.7), centre)
    expected = array[:, :, first_row : first_row + height, first_column : first_column + width]
    np.testing.assert_array_equal(place.apply(array, -1024), expected)
    assert place.box == [first_row, first_column, height, width]


def test_a_grid_larger_than_the_box_takes_what_lies_around_before_it_pads():
    array = np.arange(40 * 50, dtype=np.int16).reshape(1, 40, 50)
    place = Placement.choose((40, 50), (1, 1), (36, 60), (1, 1), centre=(5.0, 5.0))
    stored = place.apply(array, -7)
    np.testing.assert_array_equal(stored[0, :, -place.left : 50 - place.left], array[0, :36])
    assert (stored == -7).sum() == 36 * 10


@pytest.mark.parametrize("centre", [None, (10.0, 14.0), (33.0, 41.0)])
@pytest.mark.parametrize("size, spacing", [((80, 100), (0.5, 0.5)), ((60, 40), (1.0, 2.0)), ((45, 55), (1.0, 1.0))])
def test_a_pixel_of_a_resampled_crop_lies_where_its_affine_says(size, spacing, centre):
    slices = cut(ramp("LPS", (spacing[1], spacing[0], 5.0), (size[1], size[0], 1)), "dicom")
    place = Placement.choose(size, slices.spacing, (24, 28), (1.0, 1.0), centre)
    stored = place.apply(slices.array, OUTSIDE)[0, 0]
    expected = values_at(place.affine(slices, 0), (28, 24, 1))[:, :, 0].T
    assert (stored != OUTSIDE).all()
    reach = 2  # the filter leans inwards at the slice's own edge
    np.testing.assert_allclose(stored[reach:-reach, reach:-reach], expected[reach:-reach, reach:-reach], atol=1e-2)
    top, _, height, width = place.box
    assert 0 <= top <= top + height <= size[0] + 1e-9
    assert (height * spacing[0], width * spacing[1]) == pytest.approx((24, 28), rel=0.02)


def test_cropping_before_resampling_gives_what_cropping_after_gives():
    array = np.random.default_rng(0).integers(-1024, 3072, (3, 1, 81, 64)).astype(np.int16)
    place = Placement.choose((81, 64), (0.7, 0.7), (30, 20), (1.1, 1.1), centre=(30, 40))
    whole = resize(array, place.height, place.width)
    np.testing.assert_array_equal(
        place.apply(array, 0), whole[..., place.top : place.top + 30, place.left : place.left + 20]
    )


def test_without_pixel_size_the_extent_is_scaled_to_fit():
    place = Placement.choose((100, 100), None, (40, 40), None, centre=(30, 60), extent=(20, 40))
    assert (place.height, place.width) == (100, 100)
    assert place.box == [10, 40, 40, 40]


# ------------------------------------------------------------------------------------------------ place_volume


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("wished", [(1.0, 1.0, 1.0), (0.6, 0.7, 0.8), (1.9, 1.7, 2.3)])
def test_every_voxel_of_a_placed_volume_lies_where_its_affine_says(codes, order, wished):
    image = ramp(codes, (1.0, 1.0, 1.0), (40, 42, 44), turn=0.2, order=order)
    shape = (15, 14, 13)
    array, affine, box = place_volume(image, shape, wished, fill=OUTSIDE)
    assert array.shape == (1, *shape)
    assert array.dtype == np.float32
    expected = values_at(affine, shape[::-1]).T
    # The widened triangle is sampled at whole voxels, so a ramp is off by a fraction of a voxel's step.
    np.testing.assert_allclose(array[0], expected, atol=1e-2 if max(wished) <= 1 else 2.5)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), wished[::-1])
    assert box[3:] == pytest.approx([count * step for count, step in zip(shape, wished)])


@given(st.integers(0, 20), st.integers(0, 15), st.integers(0, 10), st.sampled_from(["LPS", "RAS", "SRA"]))
def test_a_box_on_the_scans_own_grid_is_cut_out_bit_for_bit(first_k, first_row, first_column, codes):
    shape = {"LPS": (30, 35, 40), "RAS": (30, 35, 40), "SRA": (40, 30, 35)}[codes]
    voxels = np.random.default_rng(0).integers(-1024, 3072, shape).astype(np.int16)
    image = Image(voxels[None], ramp(codes, (0.8, 0.8, 0.8), (1, 1, 1)).affine)
    upright = stand(image)
    array, _, box = place_volume(
        image, (20, 20, 20), (0.8, 0.8, 0.8), (first_k + 10.0, first_row + 10.0, first_column + 10.0)
    )
    assert box == [first_k, first_row, first_column, 20, 20, 20]
    inside = tuple(slice(first, first + 20) for first in box[:3])
    np.testing.assert_array_equal(
        array[0], upright.array[:, 0][tuple(slice(int(s.start), int(s.stop)) for s in inside)]
    )


def test_where_the_scan_does_not_reach_the_volume_holds_the_fill():
    image = Image(np.full((1, 10, 11, 12), 5, np.int16), np.diag([2.0, 2.0, 2.0, 1.0]))
    array, _, box = place_volume(image, (16, 30, 8), (2.0, 2.0, 2.0), fill=-1024)
    assert (array == 5).sum() == 12 * 11 * 8
    assert set(np.unique(array)) == {-1024, 5}
    assert box == [-2, -10, 1, 16, 30, 8]


def test_a_label_map_keeps_its_labels_and_lies_on_its_image():
    labels = np.zeros((1, 40, 40, 20), np.uint8)
    labels[0, 10:30, 12:28, 5:15] = 7
    image = Image(labels, np.diag([1.0, 1.0, 2.0, 1.0]))
    small, affine, _ = place_volume(image, (20, 24, 24), (2.0, 1.7, 1.7), order="nearest")
    assert set(np.unique(small)) == {0, 7}
    grey, same, _ = place_volume(Image(labels * 10.0, image.affine), (20, 24, 24), (2.0, 1.7, 1.7))
    np.testing.assert_array_equal(affine, same)
    assert ((grey > 35) == (small == 7)).mean() > 0.98


def test_structures_finer_than_the_new_voxels_do_not_alias():
    stripes = np.tile([0.0, 100.0], 32).astype(np.float32)[None, None, None, :].repeat(64, 1).repeat(64, 2)
    array, _, _ = place_volume(Image(stripes, np.eye(4)), (18, 18, 18), (3.4, 3.4, 3.4))
    assert np.ptp(array) < 25.0  # bare interpolation gives 100
    np.testing.assert_allclose(array.mean(), 50.0, atol=1.0)


def test_volumes_and_slices_are_resampled_by_the_same_filter():
    voxels = np.random.default_rng(0).random((1, 60, 60, 5)).astype(np.float32)
    image = Image(voxels, np.diag([-1.0, -1.0, 3.0, 1.0]))
    array, _, _ = place_volume(image, (5, 40, 40), (3.0, 1.5, 1.5))
    place = Placement.choose((60, 60), (1.0, 1.0), (40, 40), (1.5, 1.5))
    np.testing.assert_allclose(array[0], place.apply(cut(image, "nifti").array, 0)[:, 0], atol=1e-5)


def test_without_voxel_size_a_volume_is_scaled_to_fit_with_its_proportions():
    image = Image(np.full((1, 40, 20, 10), 3, np.uint8), np.diag([-1.0, -1.0, 1.0, 1.0]), spacing_known=False)
    array, _, box = place_volume(image, (10, 20, 20), None)
    assert (array == 3).sum() == 5 * 10 * 20
    assert box == [-5, -10, 0, 20, 40, 40]


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
def test_resampling_keeps_dtype_range_and_channels(dtype):
    voxels = np.random.default_rng(0).integers(0, 255, (3, 20, 22, 24)).astype(dtype)
    array, _, _ = place_volume(Image(voxels, np.eye(4)), (30, 30, 30), (0.7, 0.7, 0.7))
    assert array.dtype == dtype
    assert array.shape == (3, 30, 30, 30)
    assert array.min() >= voxels.min()
    assert array.max() <= voxels.max()


def test_a_tilted_stack_is_straightened_before_it_is_placed():
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[1, 2] = 2.0 * np.tan(np.radians(15.0))
    values = values_at(affine, (40, 50, 12)).astype(np.float32)
    image = Image(values[None], affine)
    upright = stand(image)
    axes = upright.affine[:3, :3] / np.linalg.norm(upright.affine[:3, :3], axis=0)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-6)
    array, placed, _ = place_volume(image, (10, 30, 30), (2.0, 1.0, 1.0))
    expected = values_at(placed, (30, 30, 10)).T
    inside = slice(8, -8)
    np.testing.assert_allclose(array[0, 3:-3, inside, inside], expected[3:-3, inside, inside], atol=1.5)


def test_a_tilted_label_map_keeps_its_labels_and_stays_on_its_image():
    affine = np.diag([-1.0, -1.0, 2.0, 1.0])
    affine[1, 2] = 2.0 * np.tan(np.radians(15.0))
    labels = np.zeros((1, 40, 50, 12), np.uint8)
    labels[0, 10:25, 10:30, 2:10], labels[0, 25:35, 10:30, 2:10] = 3, 200
    placed, where, _ = place_volume(Image(labels, affine), (12, 50, 40), (2.0, 1.0, 1.0), order="nearest")
    grey, same, _ = place_volume(Image((labels == 200) * 100.0, affine), (12, 50, 40), (2.0, 1.0, 1.0))
    assert set(np.unique(placed)) == {0, 3, 200}
    np.testing.assert_allclose(where, same)
    assert ((grey > 50) == (placed == 200)).mean() > 0.99
    assert (placed == 200).sum() == pytest.approx((labels == 200).sum(), rel=0.05)


@pytest.mark.parametrize("wished", [(0.8, 0.6, 0.7), (1.0, 0.9, 0.5)])
def test_finer_voxels_agree_with_simpleitks_linear_interpolation(wished):
    rng = np.random.default_rng(0)
    image = ramp("LPS", (1.0, 1.0, 1.0), (20, 22, 24))
    image = Image(rng.random(image.array.shape).astype(np.float32), image.affine)
    array, affine, _ = place_volume(image, (18, 17, 16), wished)
    reference = sitk.GetImageFromArray(image.array[0].T)
    start = np.linalg.inv(image.affine) @ affine @ [0, 0, 0, 1]
    grid = sitk.ResampleImageFilter()
    grid.SetSize((16, 17, 18))
    grid.SetOutputSpacing(wished[::-1])
    grid.SetOutputOrigin(start[:3])
    grid.SetInterpolator(sitk.sitkLinear)
    np.testing.assert_allclose(array[0], sitk.GetArrayFromImage(grid.Execute(reference)), atol=1e-5)


def test_a_label_map_on_a_slice_grid_keeps_its_labels_and_lies_on_its_image():
    labels = np.zeros((1, 60, 70), np.uint8)
    labels[0, 12:40, 20:50] = 9
    place = Placement.choose((60, 70), (0.7, 0.7), (30, 30), (1.3, 1.3), centre=(26, 35))
    small = place.apply(labels, 0, "nearest")
    assert set(np.unique(small)) == {0, 9}
    assert ((place.apply(labels * 10.0, 0) > 45) == (small == 9)).mean() > 0.98


def test_slices_may_be_placed_as_they_lie():
    image = ramp("SRA", (1.0, 1.0, 1.0), (12, 13, 14))
    slices = stand(image)
    assert isinstance(slices, Slices)
    assert spacing_of(slices) == pytest.approx((1.0, 1.0, 1.0))
    for one, other in zip(place_volume(image, (8, 8, 8), (1.5,) * 3), place_volume(slices, (8, 8, 8), (1.5,) * 3)):
        np.testing.assert_array_equal(one, other)


def test_a_real_brain_placed_at_2_mm_keeps_its_mean_and_its_place(shared_data):
    folder = shared_data / "paired_t1_t2_flair_3d_openms" / "patient07"
    source = next(s for s in formats.discover(folder)[0] if s.files[0].name.startswith("T1"))
    image = formats.read(source)
    array, affine, _ = place_volume(image, (91, 109, 91), (2.0, 2.0, 2.0))
    brain = image.array[0].astype(np.float64)
    np.testing.assert_allclose(array.sum() * 8.0, brain.sum(), rtol=0.01)
    centre = [
        np.average(np.indices(part.shape).reshape(3, -1), axis=1, weights=np.abs(part).ravel())
        for part in (brain, array[0].T)
    ]
    mm = [frame[:3, :3] @ place + frame[:3, 3] for frame, place in zip((image.affine, affine), centre)]
    np.testing.assert_allclose(*mm, atol=0.1)
