"""anatomy: procedural patients against closed forms, textbook values and their own truth."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from scansmith import anatomy
from scansmith.anatomy import INDEX, NAMES, TISSUES, Raster, Tubes


@pytest.fixture(scope="module")
def raster():
    return anatomy.axial_raster(96, 8, spacing=20.0)


@pytest.fixture(scope="module")
def patient():
    return anatomy.draw_patient(3, lesion=True)


@pytest.fixture(scope="module")
def tissues(patient, raster):
    return anatomy.render(patient, raster)


def block_raster(size=20):
    axis = (np.arange(size) * 2.0 - size + 1).astype(np.float32)
    return Raster(axis, axis, axis)


# ------------------------------------------------------------------------------------------------ the patient


def test_the_same_seed_gives_the_same_bits_and_another_seed_another_patient(raster):
    def digest(seed):
        tissues = anatomy.render(anatomy.draw_patient(seed), raster)
        images = [anatomy.ct(tissues, seed), anatomy.mr(tissues, "T1", seed), anatomy.mr(tissues, "T2", seed)]
        return hashlib.sha256(b"".join(image.array.tobytes() for image in images)).hexdigest()

    assert digest(5) == digest(5)
    assert digest(5) != digest(6)


def test_patients_differ_in_shape_and_not_in_noise_alone(raster):
    labels = [anatomy.render(anatomy.draw_patient(seed), raster).labels() for seed in (11, 12)]
    bodies = [label != INDEX["air"] for label in labels]
    overlap = (bodies[0] & bodies[1]).sum() / (bodies[0] | bodies[1]).sum()
    assert 0.5 < overlap < 0.97
    assert np.mean(labels[0] != labels[1]) > 0.05


def test_every_slice_between_arch_and_liver_holds_what_an_axial_chest_holds(tissues):
    volume = {name: np.array([tissues.share(name)[k].sum() for k in range(8)]) for name in NAMES}
    chest = slice(2, 7)  # z = -72 to 28 mm with 20 mm spacing around -42
    for name in ("skin", "fat", "muscle", "lung", "vessel", "cortical bone", "marrow", "arterial blood", "oesophagus"):
        assert (volume[name][chest] > 0).all(), name
    assert volume["liver"][0] > 0
    assert volume["liver"][-1] == 0
    assert volume["myocardium"].sum() > 0
    assert volume["airway"][-1] > 0


def test_the_heart_is_left_and_the_liver_right_in_the_image(tissues, patient):
    # I increases to the patient's left: the affine turns index into RAS+, where left is negative x.
    place = anatomy.affine(tissues.raster)
    for name, sign in (("liver", 1), ("myocardium", -1)):
        k, j, i = np.nonzero(tissues.share(name) > 0.5)
        x = (place @ np.stack([i, j, k, np.ones_like(i)]))[0].mean()
        assert x * sign > 5, name


def test_the_volume_fractions_of_all_tissues_sum_to_one(tissues):
    total = sum(tissues.share(name) for name in NAMES)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert 0.02 < np.mean(tissues.fraction < 1.0) < 0.6


def test_boundaries_are_smooth_because_voxels_across_a_surface_mix_two_tissues(tissues):
    ring = tissues.share("lung")
    part = np.mean((ring > 0.02) & (ring < 0.98)) / np.mean(ring > 0.02)
    assert part > 0.05


# ------------------------------------------------------------------------------------------------ noise fields


def test_smooth_noise_has_unit_variance_and_zero_mean():
    raster = Raster(*(np.linspace(-180, 180, 90, dtype=np.float32) for _ in range(3)))
    field = anatomy.smooth_noise(1, raster, 8.0)
    assert abs(field.mean()) < 0.02
    assert abs(field.std() - 1.0) < 0.03


def test_smooth_noise_belongs_to_millimetres_and_not_to_the_raster():
    fine = Raster(*(np.arange(-30, 30, 1.5, dtype=np.float32) for _ in range(3)))
    coarse = Raster(*(axis[::4] for axis in (fine.x, fine.y, fine.z)))
    np.testing.assert_allclose(
        anatomy.smooth_noise(7, fine, 14.0)[::4, ::4, ::4], anatomy.smooth_noise(7, coarse, 14.0), atol=1e-4
    )


def test_a_warped_point_comes_back_to_the_average_adult(patient):
    rng = np.random.default_rng(0)
    points = rng.uniform(-100, 100, (50, 3))
    real = anatomy._to_patient(points, patient.scale, patient.warp)
    back = (real + anatomy._noise_at(patient.warp, real, anatomy.WARP_STEP)) / patient.scale
    np.testing.assert_allclose(back, points, atol=0.15)


# ------------------------------------------------------------------------------------------------ shapes and painting


def test_distance_to_a_tube_is_the_closed_form_of_a_capsule():
    raster = block_raster()
    tube = Tubes(np.array([[-8.0, 1.0, 0.0]]), np.array([[8.0, 1.0, 0.0]]), np.array([3.0]), np.array([3.0]))
    found = anatomy.tube_distance(tube, raster, reach=5.0)
    x, y, z = raster.x, raster.y[:, None], raster.z[:, None, None]
    wanted = np.sqrt((x - np.clip(x, -8, 8)) ** 2 + (y - 1) ** 2 + z**2) - 3.0
    np.testing.assert_allclose(found, np.minimum(wanted, 5.0), atol=1e-4)


def test_distance_to_an_ellipsoid_of_equal_axes_is_that_of_a_sphere():
    x, y, z = np.random.default_rng(0).uniform(-20, 20, (3, 100)).astype(np.float32)
    found = anatomy._ellipsoid(x, y, z, (1.0, 2.0, 3.0), (9.0, 9.0, 9.0))
    np.testing.assert_allclose(found, np.sqrt((x - 1) ** 2 + (y - 2) ** 2 + (z - 3) ** 2) - 9, atol=1e-4)


def test_painting_mixes_by_volume_and_keeps_the_two_largest_of_three():
    raster = Raster(*(np.arange(2, dtype=np.float32) for _ in range(3)))
    shape = raster.shape
    canvas = anatomy.TissueMap(
        raster,
        np.zeros(shape, np.uint8),
        np.zeros(shape, np.uint8),
        np.ones(shape, np.float32),
        np.zeros(shape, np.float32),
        (0.0, 0.0),
        0.0,
    )
    anatomy.paint(canvas, "fat", np.full(shape, 0.4))
    np.testing.assert_allclose(canvas.share("fat"), 0.4, atol=1e-6)
    np.testing.assert_allclose(canvas.share("air"), 0.6, atol=1e-6)
    anatomy.paint(canvas, "fat", np.full(shape, 0.5))
    np.testing.assert_allclose(canvas.share("fat"), 0.7, atol=1e-6)
    anatomy.paint(canvas, "muscle", np.full(shape, 0.1))  # air 0.27, fat 0.63, muscle 0.10: muscle goes
    np.testing.assert_allclose(canvas.share("fat"), 0.7, atol=1e-6)
    anatomy.paint(canvas, "muscle", np.full(shape, 1.0))
    assert (canvas.share("muscle") == 1.0).all()


# ------------------------------------------------------------------------------------------------ CT


def test_hounsfield_units_lie_in_textbook_ranges(tissues):
    hu = anatomy.hounsfield(tissues)
    ranges = {
        "air": (-1000, -990),
        "lung": (-930, -760),
        "fat": (-115, -90),
        "muscle": (40, 70),
        "cortical bone": (300, 1800),
        "marrow": (80, 300),
        "airway": (-1000, -950),
    }
    for name, (low, high) in ranges.items():
        pure = hu[
            tissues.share(name) > (0.8 if name == "cortical bone" else 0.98)
        ]  # cortex is thinner than these voxels
        assert low < pure.mean() < high, (name, pure.mean())


def test_contrast_medium_raises_blood_by_its_hounsfield_units(tissues):
    plain = anatomy.hounsfield(anatomy.replace(tissues, contrast=(0.0, 0.0)))
    given = anatomy.hounsfield(anatomy.replace(tissues, contrast=(100.0, 200.0)))
    np.testing.assert_allclose((given - plain)[tissues.share("arterial blood") == 1], 200.0, atol=1e-2)
    np.testing.assert_allclose((given - plain)[tissues.share("venous blood") == 1], 100.0, atol=1e-2)
    assert np.abs((given - plain)[tissues.share("fat") == 1]).max() == 0


def test_attenuation_of_water_and_air_is_what_defines_the_hounsfield_scale():
    np.testing.assert_allclose(
        anatomy.attenuation(np.array([0.0, -1000.0, 1000.0])), [anatomy.WATER, 0.0, 2 * anatomy.WATER], rtol=1e-6
    )


def test_a_projection_is_the_line_integral_of_a_uniform_block():
    mu = np.zeros((4, 10, 6), np.float32)
    mu[:, 2:7, :] = 0.02
    np.testing.assert_allclose(anatomy.project(mu, 3.0, 1), 0.02 * 5 * 3.0, rtol=1e-6)


def test_quantum_noise_variance_scales_as_one_over_dose_and_follows_the_counts():
    hu = np.zeros((1, 40, 60), np.float32)  # a slab of water, 60 pixels across and 40 through
    levels = [anatomy.noise_level(hu, 3.0, dose) for dose in (1.0, 4.0)]
    np.testing.assert_allclose(levels[0] ** 2 / levels[1] ** 2, 4.0, rtol=1e-5)
    wanted = 1.3 * 0.5 * (np.exp(anatomy.WATER * 180) + np.exp(anatomy.WATER * 120))
    np.testing.assert_allclose(levels[0] ** 2, wanted, rtol=1e-4)


def test_ct_noise_has_the_wished_variance_in_the_image(tissues):
    clean, half, full = (anatomy.ct(tissues, 1, dose).array.astype(float) for dose in (None, 0.5, 1.0))
    inside = clean > -500  # away from the clip at -1024
    ratio = np.var((half - clean)[inside]) / np.var((full - clean)[inside])
    assert abs(ratio - 2.0) < 0.05


def test_kernel_noise_has_unit_variance_and_the_spectrum_of_a_ramp_filter():
    noise = anatomy.kernel_noise(0, (8, 128, 128))
    assert abs(noise.std() - 1.0) < 0.02
    power = (np.abs(np.fft.fft2(noise)) ** 2).mean(axis=0)
    radius = np.hypot(np.fft.fftfreq(128)[:, None], np.fft.fftfreq(128))
    low, middle, corner = (
        power[(radius >= a) & (radius < b)].mean() for a, b in ((0.01, 0.03), (0.12, 0.2), (0.51, 0.8))
    )
    assert low < 0.4 * middle
    assert corner < 1e-3 * middle


def test_ct_is_whole_hounsfield_units_within_twelve_bits(tissues):
    image = anatomy.ct(tissues, 0)
    assert image.array.dtype == np.int16
    assert image.array.shape == (1, 96, 96, 8)
    assert (image.modality, image.units) == ("CT", "HU")
    assert image.array.min() >= -1024
    assert image.array.max() <= 3071


# ------------------------------------------------------------------------------------------------ MR


def test_the_spin_echo_equation_by_hand():
    # PD 0.8, TR = T1 and TE = T2: 0.8 (1 - 1/e) / e
    assert anatomy.spin_echo(0.8, 500.0, 40.0, 500.0, 40.0) == pytest.approx(
        0.8 * (1 - np.exp(-1)) * np.exp(-1), rel=1e-12
    )


def test_mr_contrast_orders_tissues_as_spin_echo_does(tissues):
    t1, t2 = (anatomy.mr(tissues, weighting, 0, snr=None).array[0].T.astype(float) for weighting in ("T1", "T2"))
    mean = {
        name: (t1[tissues.share(name) > 0.98].mean(), t2[tissues.share(name) > 0.98].mean())
        for name in ("fat", "muscle", "lung", "marrow")
    }
    assert mean["fat"][0] > mean["marrow"][0] > mean["muscle"][0] > mean["lung"][0]
    fluid = tissues.share("cerebrospinal fluid")
    assert t2[fluid > 0.9].mean() > 2 * mean["muscle"][1]
    assert t1[fluid > 0.9].mean() < mean["muscle"][0]


def test_noise_free_mr_is_the_signal_equation_of_each_pure_tissue(tissues):
    image = anatomy.mr(anatomy.replace(tissues, grain=np.zeros_like(tissues.grain)), "T1", 0, snr=None).array[0].T
    fat, muscle = (TISSUES[name] for name in ("fat", "muscle"))
    echo = [t.pd * (1 - np.exp(-600 / t.t1)) * np.exp(-12 / t.t2) for t in (fat, muscle)]
    assert (image[tissues.share("fat") == 1] == 1000).all()
    assert (image[tissues.share("muscle") == 1] == round(1000 * echo[1] / echo[0])).all()


def test_the_bias_field_is_smooth_and_positive(raster):
    field = anatomy.bias_field(3, anatomy.axial_raster(96, 8))
    assert field.min() > 0
    assert 0.05 < np.log(field).std() < 0.6
    steps = np.abs(np.diff(np.log(field), axis=2))
    assert steps.max() < 0.05  # at most 5 % from one 4 mm pixel to the next


def test_rician_noise_has_the_moments_of_the_rice_distribution():
    sigma = 7.0
    air = anatomy.rician(np.zeros(200_000, np.float32), sigma, 0)
    assert air.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)  # Rayleigh
    signal = anatomy.rician(np.full(200_000, 50.0, np.float32), sigma, 1)
    assert (signal**2).mean() == pytest.approx(50.0**2 + 2 * sigma**2, rel=0.005)


# ------------------------------------------------------------------------------------------------ lesion and pairs


def test_the_lesion_is_the_only_difference_to_the_same_patient_without_it(raster):
    with_lesion, without = (anatomy.draw_patient(21, lesion=lesion) for lesion in (True, False))
    middle = float(with_lesion.lesion.centre[2])
    raster = anatomy.axial_raster(96, 5, spacing=4.0, middle=middle)
    ill, well = (anatomy.render(patient, raster) for patient in (with_lesion, without))
    share, mask = ill.share("lesion"), anatomy.lesion_mask(ill)
    for make in (lambda t: anatomy.ct(t, 0, dose=None), lambda t: anatomy.mr(t, "T2", 0, snr=None)):
        changed = (make(ill).array != make(well).array)[0].T
        assert not changed[share == 0].any()
        assert changed[mask.T == 1].mean() > 0.95
    assert mask.sum() > 20
    assert not anatomy.lesion_mask(well).any()


def test_the_lesion_has_its_recorded_centre_and_diameter_and_lies_in_the_lung():
    patient = anatomy.draw_patient(8, lesion=True, diameter=(24.0, 24.0))
    assert patient.lesion.diameter == 24.0
    raster = anatomy.axial_raster(128, 21, spacing=2.0, middle=float(patient.lesion.centre[2]))
    tissues = anatomy.render(patient, raster)
    mask = anatomy.lesion_mask(tissues)
    ijk = np.argwhere(mask)
    centre = (anatomy.affine(raster) @ np.r_[ijk.mean(axis=0), 1.0])[:3] * (-1, -1, 1)  # RAS+ -> the module's frame
    assert np.linalg.norm(centre - patient.lesion.centre) < 3.0
    volume = mask.sum() * 3.0 * 3.0 * 2.0
    assert volume == pytest.approx(np.pi / 6 * 24.0**3, rel=0.25)
    well = anatomy.render(anatomy.draw_patient(8), raster)
    replaced = np.bincount(well.labels()[mask.T == 1], minlength=len(NAMES)) / mask.sum()
    assert replaced[[INDEX[name] for name in ("lung", "vessel", "vessel wall", "airway", "airway wall")]].sum() > 0.9


def test_modalities_of_one_patient_are_aligned(tissues):
    images = [anatomy.ct(tissues, 0), anatomy.mr(tissues, "T1", 0), anatomy.mr(tissues, "T2", 0)]
    for image in images[1:]:
        np.testing.assert_array_equal(image.affine, images[0].affine)
        assert image.array.shape == images[0].array.shape
    # Lungs are dark in all of them, at the same voxels.
    lung = (tissues.share("lung") == 1).T
    body = (tissues.share("muscle") == 1).T
    for image in images:
        assert image.array[0][lung].mean() < 0.5 * image.array[0][body].mean()


def test_the_affine_says_where_each_voxel_centre_is(raster):
    place = anatomy.affine(raster)
    corner = place @ [95, 0, 7, 1]
    np.testing.assert_allclose(corner[:3], [-raster.x[95], -raster.y[0], raster.z[7]], atol=1e-4)
    np.testing.assert_allclose(np.diag(place)[:3], [-4.0, -4.0, 20.0])


# ------------------------------------------------------------------------------------------------ radiograph


@pytest.fixture(scope="module")
def chest_film(patient):
    return anatomy.radiograph(patient, 64, seed=0)


def test_a_radiograph_shows_dark_lungs_beside_a_bright_spine_and_black_air(chest_film):
    film = chest_film[0].array[0, :, :, 0].T.astype(float)  # rows downwards, columns to the patient's left
    middle = slice(22, 34)
    spine, right, left = film[middle, 30:34].mean(), film[middle, 14:24].mean(), film[middle, 40:50].mean()
    assert spine > right + 600
    assert spine > left + 600
    assert film[:4, :4].mean() < min(right, left) - 300
    # Liver under the right dome, on the image's left.
    assert film[52:60, 16:28].mean() > right + 600


def test_the_radiograph_stands_upright_with_the_patients_right_on_the_left(chest_film):
    image, mask = chest_film
    assert (image.modality, image.array.shape, image.array.dtype) == ("DX", (1, 64, 64, 1), np.uint16)
    np.testing.assert_allclose(image.affine[:3, 0], [-6, 0, 0])
    np.testing.assert_allclose(image.affine[:3, 1], [0, 0, -6])
    assert (
        np.linalg.det(image.affine) * np.linalg.det(anatomy.affine(anatomy.axial_raster(32, 4))) > 0
    )  # both right-handed or both not
    assert mask.shape == (64, 64, 1)


def test_the_shadow_of_the_lesion_lies_where_the_lesion_is(chest_film, patient):
    image, mask = chest_film
    index = np.argwhere(mask[:, :, 0]).mean(axis=0)
    place = image.affine @ [*index, 0, 1]
    assert abs(-place[0] - patient.lesion.centre[0]) < 6
    assert abs(place[2] - patient.lesion.centre[2]) < 6


def test_film_noise_is_poisson_so_its_variance_scales_as_one_over_dose():
    block = np.full((200, 200), 2.0, np.float32)
    counts = [20_000.0 * dose * 4.0 * (np.exp(-2.0) * 1.04) for dose in (1.0, 0.25)]
    edge = np.indices(block.shape).sum(axis=0) % 2 * 0.5  # two grey levels fix the display window
    clean = anatomy.film(block + edge, 2.0, 0, dose=None)
    noise = [np.var((anatomy.film(block + edge, 2.0, 0, dose) - clean)[20:-20, 20:-20]) for dose in (1.0, 0.25)]
    assert noise[1] / noise[0] == pytest.approx(counts[0] / counts[1], rel=0.15)
