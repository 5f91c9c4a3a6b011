"""Series: grouping, order, gaps, copies, tilt; closed forms, phantoms in mm, SimpleITK as reference."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scansmith.formats import series
from scansmith.formats.series import Slice, arrange, shear, source_files, unshear
from scansmith.formats.source import FormatError
from scansmith.image import Image

AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
PLAIN = Slice(
    file=Path("0"),
    modality="CT",
    patient="P",
    study="1.2",
    series="1.2.3",
    instance_uid="1.2.3.4",
    frame_of_reference="1.2.5",
    channels=1,
    rows=8,
    columns=6,
    position=(0.0, 0.0, 0.0),
    orientation=AXIAL,
    spacing=(2.0, 0.5),
    thickness=3.0,
    instance=0.0,
    acquisition=("", ""),
    notes=(),
)


def one(name, position, **changes):
    """A slice at z mm, or at (x, y, z)."""
    where = (0.0, 0.0, float(position)) if np.isscalar(position) else tuple(map(float, position))
    return replace(PLAIN, file=Path(str(name)), instance_uid=f"1.2.3.{name}", position=where, **changes)


def many(positions, **changes):
    return [one(f"{number:05d}", position, **changes) for number, position in enumerate(positions)]


def no_pixels(entry):
    raise AssertionError("pixels are read only of suspected copies")


def heights(stack):
    return [entry.position[2] for entry in stack]


def found(positions, **changes):
    """Heights of the slices of each volume, and the notes of the first."""
    stacks, skipped = arrange(many(positions, **changes), no_pixels)
    assert not skipped
    return [heights(stack) for stack, _ in stacks], stacks[0][1]


# ------------------------------------------------------------------------------------------------ gaps


@pytest.mark.parametrize(
    ("positions", "parts", "note"),
    [
        ([0, 5, 10, 15], [4], None),
        ([0, 0.6, 1.3, 1.9, 2.5, 3.1], [6], None),
        ([0, 5, 15], [2, 1], "a slice is missing: a gap of 10 mm where the others are 5 mm: used as one stack and one single slice"),
        ([0, 0.05, 0.15], [2, 1], "a slice is missing: a gap of 0.1 mm where the others are 0.05 mm: used as one stack and one single slice"),
        ([0, 5, 10, 20, 25, 30], [3, 3], "a slice is missing: a gap of 10 mm where the others are 5 mm: used as two stacks"),
        ([0, 1, 2, 3, 4, 5, 7, 8], [6, 2], "a slice is missing: a gap of 2 mm where the others are 1 mm: used as two stacks"),
        ([0, 5, 10, 30, 35, 40], [3, 3], "3 slices are missing: a gap of 20 mm where the others are 5 mm: used as two stacks"),
        ([0, 1, 2, 4, 5, 6, 9, 10, 11], [3, 3, 3], "3 slices are missing: gaps of 2, 3 mm where the others are 1 mm: used as three stacks"),
        ([0, 5, 10, 15, 18, 21, 24, 27], [3, 5], "two slice distances (5 x 2, 5, 3 x 4 mm): used as two stacks"),
        ([0, 1, 2, 3, 3.5, 4.5, 5.5], [4, 3], "uneven slice positions (1 x 3, 0.5, 1 x 2 mm): used as two stacks"),
        ([0, 3, 7, 15], [1, 1, 1, 1], "irregular slice positions (0020,0032): gaps of 3, 4, 8 mm; slices are used one by one"),
        ([0, 5, 12, 17, 24, 29], [1] * 6, "irregular slice positions (0020,0032): gaps of 5, 7 mm; slices are used one by one"),
        ([7], [1], None),
        ([0, 50], [2], None),
    ],
)  # fmt: skip
def test_a_series_is_cut_where_its_gap_changes_and_the_note_says_so(positions, parts, note):
    stacks, notes = found(positions)
    assert [len(stack) for stack in stacks] == parts
    assert [height for stack in stacks for height in stack] == positions and notes == (() if note is None else (note,))


def test_two_slice_distances_with_a_tilt_become_two_exact_stacks():
    z = np.concatenate([5.8 + 4.22 * np.arange(14), 61.7 + 7.38 * np.arange(14)])
    tilted = (1, 0, 0, 0, 0.9483237, -0.3173047)
    stacks, _ = arrange(many([(0, 0, height) for height in z], orientation=tilted, tilt=18.5), no_pixels)
    assert [len(stack) for stack, _ in stacks] == [14, 14]
    assert stacks[0][1] == (
        "two slice distances (4.22 x 13, 1.04, 7.38 x 13 mm): used as two stacks",
        "gantry tilt 18.5 degrees: slices kept exact, the affine holds the shear",
    )
    assert np.allclose([series.affine(stack)[:3, 2] for stack, _ in stacks], [[0, 0, 4.22], [0, 0, 7.38]])


@given(
    gap=st.sampled_from([0.5, 0.625, 1.0, 1.25, 3.0, 5.0, 7.3]),
    counts=st.lists(st.integers(3, 9), min_size=1, max_size=4),
    missing=st.lists(st.integers(1, 3), min_size=3, max_size=3),
    decimals=st.sampled_from([1, 2, 6]),
    order=st.randoms(use_true_random=False),
)
def test_stacks_around_missing_slices_are_found_whatever_the_order_and_rounding(gap, counts, missing, decimals, order):
    if decimals == 1 and gap < 1:
        return  # rounding to a tenth makes such gaps uneven themselves
    starts = [sum(counts[:part]) + sum(missing[:part]) for part in range(len(counts))]
    numbers = [number for start, count in zip(starts, counts) for number in range(start, start + count)]
    positions = [round(number * gap - 20.3, decimals) for number in numbers]
    shuffled = many(positions)
    order.shuffle(shuffled)
    stacks, _ = arrange(shuffled, no_pixels)
    assert sorted(heights(stack) for stack, _ in stacks) == sorted(
        positions[sum(counts[:part]) : sum(counts[: part + 1])] for part in range(len(counts))
    )


@given(st.lists(st.floats(0.05, 40), min_size=1, max_size=25))
def test_whatever_the_gaps_no_slice_is_lost_and_none_lies_away_from_its_affine(gaps):
    positions = np.round(np.cumsum([0.0, *gaps]), 3)
    stacks, _ = arrange(many(positions), no_pixels)
    assert sorted(height for stack, _ in stacks for height in heights(stack)) == sorted(positions)
    for stack, _ in stacks:
        affine = series.affine(stack)
        placed = affine[2, 3] + affine[2, 2] * np.arange(len(stack))
        assert np.abs(placed - heights(stack)).max() <= max(0.1, 0.01 * affine[2, 2]) + 1e-5
        assert np.abs(placed - heights(stack)).max() < 0.25 * affine[2, 2] + 1e-5


def test_a_slow_drift_of_the_gap_is_not_averaged():
    positions = np.cumsum([0.0] + [1.0] * 100 + [1.1] * 100)
    stacks, _ = found(positions)
    assert [len(stack) for stack in stacks] == [101, 100]
    assert np.allclose(np.diff(stacks[0]), 1.0) and np.allclose(np.diff(stacks[1]), 1.1)


# ------------------------------------------------------------------------------------------------ order and groups


def test_k_points_to_row_cross_column_and_every_affine_is_right_handed():
    rng = np.random.default_rng(0)
    for _ in range(30):
        axes = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        row, column = axes[:, 0], axes[:, 1]
        step = 2.5 * np.cross(row, column) + rng.choice([0.0, 0.4]) * column
        places = [np.round([10, -20, 30] + step * k, 5) for k in rng.permutation(6)]
        ((stack, _),), _ = arrange(many(places, orientation=tuple(np.round([*row, *column], 8))), no_pixels)
        affine = series.affine(stack)
        assert np.linalg.det(affine) > 0
        # RAS+: x and y change their sign
        assert np.allclose(affine[:3, 2] * [-1, -1, 1], step, atol=1e-4)
        assert np.allclose(affine[:3, 0] * [-1, -1, 1], 0.5 * row) and np.allclose(
            affine[:3, 1] * [-1, -1, 1], 2 * column
        )


def test_instance_numbers_and_names_that_run_downwards_change_nothing():
    upwards = many([0, 5, 10, 15])
    downwards = [replace(entry, file=Path(f"{9 - k}"), instance=float(9 - k)) for k, entry in enumerate(upwards)]
    stacks = [arrange(group, no_pixels)[0][0][0] for group in (upwards, downwards, upwards[::-1])]
    assert [heights(stack) for stack in stacks] == [[0, 5, 10, 15]] * 3


def test_a_localizer_of_three_planes_becomes_three_stacks():
    planes = {AXIAL: (0, 0, 1), (1.0, 0.0, 0.0, 0.0, 0.0, -1.0): (0, 1, 0), (0.0, 1.0, 0.0, 0.0, 0.0, -1.0): (-1, 0, 0)}
    slices = [
        one(f"{n}{k}", 10 * k * np.array(across), orientation=plane)
        for n, (plane, across) in enumerate(planes.items())
        for k in range(3)
    ]
    stacks, _ = arrange(slices, no_pixels)
    assert [len(stack) for stack, _ in stacks] == [3, 3, 3]
    assert all(len({entry.orientation for entry in stack}) == 1 and not notes for stack, notes in stacks)


def test_orientations_and_spacings_that_differ_by_rounding_are_one_grid():
    rng = np.random.default_rng(1)
    slices = [
        replace(
            entry,
            orientation=tuple(np.array(AXIAL) + rng.uniform(-2e-4, 2e-4, 6)),
            spacing=(2.0, 0.5 + rng.uniform(-1e-4, 1e-4)),
        )
        for entry in many(range(40))
    ]
    assert len(arrange(slices, no_pixels)[0]) == 1
    slices[7] = replace(slices[7], spacing=(2.0, 0.51))
    assert sorted(len(stack) for stack, _ in arrange(slices, no_pixels)[0]) == [1, 7, 32]


@pytest.mark.parametrize("change", [{"series": "1.9"}, {"rows": 9}, {"frame_of_reference": "1.9"}, {"patient": "Q"}])
def test_other_series_sizes_frames_and_patients_stay_apart(change):
    stacks, _ = arrange(
        [*many([0, 5, 10]), *[replace(e, file=Path("x") / e.file, **change) for e in many([0, 5, 10])]], no_pixels
    )
    assert [len(stack) for stack, _ in stacks] == [3, 3]


def test_a_patient_spelled_in_two_ways_is_one_in_one_series():
    slices = [replace(entry, patient=name) for entry, name in zip(many([0, 5, 10]), ("P1", "p1", "P1 "))]
    ((stack, notes),), _ = arrange(slices, no_pixels)
    assert len(stack) == 3 and "Patient ID (0010,0020) is spelled in several ways" in notes[0]
    assert not any("p1" in note.lower() for note in notes)


def test_a_writer_that_gives_every_slice_a_study_of_its_own_does_not_tear_the_series():
    slices = [replace(entry, study=f"1.2.{k}") for k, entry in enumerate(many([0, 5, 10]))]
    assert [len(stack) for stack, _ in arrange(slices, no_pixels)[0]] == [3]
    # Two whole studies under one Series UID are told apart, though.
    twice = [replace(e, file=Path(s) / e.file, study=s) for s in ("1.2.7", "1.2.8") for e in many([0, 5, 10])]
    stacks, _ = arrange(twice, no_pixels)
    assert [[entry.study for entry in stack] for stack, _ in stacks] == [["1.2.7"] * 3, ["1.2.8"] * 3]


def test_images_without_a_series_or_a_position_are_used_one_by_one():
    assert len(arrange(many([0, 5, 10], series=""), no_pixels)[0]) == 3
    stacks, _ = arrange([replace(entry, position=None) for entry in many([0, 5])], no_pixels)
    assert len(stacks) == 2 and "is absent" in stacks[0][1][0]
    assert [len(stack) for stack, _ in arrange(many([0, 5], modality="US"), no_pixels)[0]] == [1, 1]


def test_a_series_too_large_for_one_volume_is_used_slice_by_slice():
    stacks, _ = arrange(many(range(40), rows=2**13, columns=2**13), no_pixels)
    assert len(stacks) == 40 and "2^31 voxels" in stacks[0][1][0]


# ------------------------------------------------------------------------------------------------ copies, acquisitions


def test_copies_are_dropped_by_position_and_pixels_and_listed():
    slices = [*many([0, 5, 10]), one("copy", 5), one("other", 5, acquisition=("", "2"))]
    asked = []

    def digest(entry):
        asked.append(entry.file.name)
        return "same"

    stacks, (skipped,) = arrange(slices, digest)
    assert skipped.file == Path("copy") and "same pixels" in skipped.reason
    # an equal image of another acquisition is no copy, and the pixels of unsuspected slices stay unread
    assert sorted(asked) == ["00001", "copy"]
    assert sorted(len(stack) for stack, _ in stacks) == [1, 3]


@pytest.mark.parametrize("apart", [1e-8, -1e-8, 0.004, -0.004])
def test_a_copy_a_hair_away_is_a_copy_wherever_positions_round_to(apart):
    slices = [*many(np.arange(9) * 0.625), one("copy", 0.625 + apart)]
    stacks, (skipped,) = arrange(slices, lambda entry: "same")
    assert skipped.file == Path("copy") and [len(stack) for stack, _ in stacks] == [9]


def test_pixels_that_cannot_be_read_are_no_copies():
    def broken(entry):
        raise OSError("cannot be decoded")

    stacks, skipped = arrange([*many([0, 5, 10]), one("copy", 5)], broken)
    assert not skipped and len(stacks) == 4 and "no tag tells apart" in stacks[0][1][0]


def test_time_points_are_told_apart_by_the_first_tag_that_does():
    slices = [one(f"{t}-{k}", 3 * k, acquisition=("M", str(t))) for t in range(4) for k in range(5)]
    stacks, _ = arrange(slices[::-1], no_pixels)
    assert [[entry.acquisition[1] for entry in stack] for stack, _ in stacks] == [[str(t)] * 5 for t in range(4)]


def told(**values):
    """An `acquisition` with these values."""
    return tuple(str(values.get(name, "")) for name in series.ACQUISITION)


ALTERNATING = [
    ("ConvolutionKernel", ["B30f", "B70f"], "Convolution Kernel (0018,1210)"),
    ("EchoTime", ["20", "90"], "Echo Time (0018,0081)"),
    ("EchoNumbers", ["1", "2"], "Echo Number (0018,0086)"),
    ("DiffusionBValue", ["", "1000"], None),
    ("DiffusionBValue", ["0.0", "1000.0"], "Diffusion b-value (0018,9087)"),
    ("InversionTime", ["300", "2500"], "Inversion Time (0018,0082)"),
    ("KVP", ["120", "80"], "KVP (0018,0060)"),
    ("StackID", ["1", "2"], "Stack ID (0020,9056)"),
    ("ImageType", ["ORIGINAL\\PRIMARY\\M_FFE\\M", "ORIGINAL\\PRIMARY\\PHASE MAP\\P"], "Image Type (0008,0008)"),
    ("ImageType", ["DERIVED\\PRIMARY\\DIXON\\WATER", "DERIVED\\PRIMARY\\DIXON\\FAT"], "Image Type (0008,0008)"),
    ("ImageType", ["ORIGINAL\\PRIMARY\\AXIAL", "DERIVED\\SECONDARY\\HELICAL"], None),
    ("EchoTime", ["4.184", "4.176"], None),
    ("KVP", ["120", "120.0"], None),
    ("AcquisitionNumber", ["1", "2"], None),
    ("TriggerTime", ["0", "512.5"], None),
    ("TemporalPositionIdentifier", ["1", "2"], None),
    ("FlipAngle", ["10", "12"], None),
]


@pytest.mark.parametrize(("name", "values", "words"), ALTERNATING)
@pytest.mark.parametrize("end_to_end", [False, True])
def test_two_contrasts_never_form_one_volume_though_no_position_repeats(name, values, words, end_to_end):
    which = [0] * 5 + [1] * 5 if end_to_end else [0, 1] * 5
    slices = [replace(e, acquisition=told(**{name: values[k]})) for e, k in zip(many(np.arange(10) * 2.5), which)]
    stacks, _ = arrange(slices, no_pixels)
    if words is None:
        assert [len(stack) for stack, _ in stacks] == [10] and stacks[0][1] == ()
        return
    assert [len(stack) for stack, _ in stacks] == [5, 5]
    assert all(len({entry.acquisition for entry in stack}) == 1 for stack, _ in stacks)
    assert all(notes == (f"{words} differs within the series: used as two volumes",) for _, notes in stacks)


def test_echo_number_and_time_that_differ_together_make_two_volumes_and_one_note():
    slices = [
        replace(e, acquisition=told(EchoNumbers=k % 2, EchoTime=20 + k % 2 * 70 + k / 1000))
        for k, e in enumerate(many(np.arange(8) * 3))
    ]
    stacks, _ = arrange(slices, no_pixels)
    assert [len(stack) for stack, _ in stacks] == [4, 4]
    assert stacks[0][1] == (
        "Echo Number (0018,0086) and Echo Time (0018,0081) differ within the series: used as two volumes",
    )


def test_a_number_of_its_own_for_every_slice_is_no_contrast():
    slices = [replace(e, acquisition=told(InversionTime=1500 + 40 * k)) for k, e in enumerate(many(np.arange(8) * 3))]
    ((stack, notes),), _ = arrange(slices, no_pixels)
    assert len(stack) == 8 and notes == ("Inversion Time (0018,0082) differs from slice to slice: kept as one volume",)


def test_interleaved_echoes_of_two_time_points_are_four_volumes():
    slices = [
        one(f"{t}-{k}", 2 * k, acquisition=told(TemporalPositionIdentifier=t, EchoTime=(20, 90)[k % 2]))
        for t in (1, 2)
        for k in range(8)
    ]
    stacks, _ = arrange(slices, no_pixels)
    assert [len(stack) for stack, _ in stacks] == [4] * 4
    assert all(len({entry.acquisition for entry in stack}) == 1 for stack, _ in stacks)


def test_phases_whose_trigger_times_shift_from_slice_to_slice_are_told_apart_by_their_order():
    slices = [
        one(f"{z}-{t}", 8 * z, acquisition=told(TriggerTime=round(40 * t + 0.7 * z, 2)))
        for z in range(4)
        for t in (3, 1, 0, 4, 2)
    ]
    stacks, _ = arrange(slices, no_pixels)
    assert [[entry.file.name for entry in stack] for stack, _ in stacks] == [
        [f"{z}-{t}" for z in range(4)] for t in range(5)
    ]
    assert all("TriggerTime shifts from slice to slice" in notes[0] for _, notes in stacks)
    # A position that lacks an image has no ranks.
    assert len(arrange(slices[1:], no_pixels)[0]) > 5
    exact = [replace(e, acquisition=told(TriggerTime=e.file.name.split("-")[1])) for e in slices]
    assert [(len(stack), notes) for stack, notes in arrange(exact, no_pixels)[0]] == [(4, ())] * 5


def test_frames_of_one_file_are_arranged_like_files():
    frames = [
        replace(PLAIN, frame=k, position=(0.0, 0.0, float(z)), acquisition=("", str(t)))
        for k, (t, z) in enumerate((t, z) for z in (10, 0, 5) for t in (0, 1))
    ]
    stacks, skipped = arrange(frames, no_pixels)
    assert not skipped
    assert [source_files(stack) for stack, _ in stacks] == [((Path("0"),), (2, 4, 0)), ((Path("0"),), (3, 5, 1))]


def test_identical_frames_of_one_acquisition_are_listed_by_their_number():
    frames = [replace(PLAIN, frame=k, position=(0.0, 0.0, z)) for k, z in enumerate([0.0, 5.0, 5.0])]
    ((stack, _),), (skipped,) = arrange(frames, lambda entry: "same")
    assert source_files(stack) == ((Path("0"),), (0, 1)) and "frame 2" in skipped.reason


def test_source_files_names_one_file_a_slice_unless_one_file_holds_all():
    single = many([0, 5])
    assert source_files(single) == ((Path("00000"), Path("00001")), ())
    assert source_files([replace(entry, frame=0) for entry in single]) == ((Path("00000"), Path("00001")), (0, 0))


def test_ten_thousand_slices_of_one_series_in_two_kernels_make_two_volumes():
    slices = [
        replace(entry, acquisition=told(ConvolutionKernel=f"B{k % 2}", EchoTime=20 + k / 1e6))
        for k, entry in enumerate(many(np.arange(10000) * 0.5))
    ]
    assert [len(stack) for stack, _ in arrange(slices, no_pixels)[0]] == [5000, 5000]


def test_ten_thousand_slices_of_many_orientations_read_no_pixels_and_form_their_stacks():
    angles = np.linspace(0, 3, 100)
    turned = [(float(c), float(s), 0.0, -float(s), float(c), 0.0) for c, s in zip(np.cos(angles), np.sin(angles))]
    slices = [
        one(f"{n}/{k}", k, series=f"1.{n % 7}", orientation=axes) for n, axes in enumerate(turned) for k in range(100)
    ]
    stacks, _ = arrange(slices, no_pixels)
    assert len(stacks) == 100 and all(len(stack) == 100 for stack, _ in stacks)


# ------------------------------------------------------------------------------------------------ tilt

TILT = np.radians(20.0)
# A gantry leaning by 20 degrees: rows stay, columns lean, the table moves along z.
LEANING = (1.0, 0.0, 0.0, 0.0, float(np.cos(TILT)), -float(np.sin(TILT)))


def leaning(count=40, step=2.0, **changes):
    ((stack, notes),), _ = arrange(
        many([(-30, -40, step * k) for k in range(count)], orientation=LEANING, spacing=(1.0, 1.5), **changes),
        no_pixels,
    )
    return stack, notes


def in_mm(affine, shape):
    """(I, J, K, 3): where each voxel lies."""
    return np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) @ affine[:3, :3].T + affine[:3, 3]


def ball(affine, shape, centre, radius):
    """Two balls, one smaller and off the axis, smooth at the edge, so that no mirror image is equal."""
    where = in_mm(affine, shape)
    large = np.linalg.norm(where - centre, axis=-1) - radius
    small = np.linalg.norm(where - centre - [9, -6, 14], axis=-1) - radius / 2
    return 1000 / (1 + np.exp(np.minimum(large, small)))


def test_a_gantry_tilt_stays_in_the_affine_and_is_named():
    stack, notes = leaning(tilt=-20.0)
    affine = series.affine(stack)
    assert shear(affine) == pytest.approx(20.0) and np.allclose(affine[:3, 2], [0, 0, 2])
    assert notes == ("gantry tilt 20.0 degrees: slices kept exact, the affine holds the shear",)
    assert any("says 0 degrees, the positions 20.0" in note for note in leaning(tilt=0.0)[1])
    assert "slices stacked off their normal by 20.0 degrees" in leaning(modality="MR")[1][0]
    assert found([0, 5, 10], tilt=12.0)[1] == (
        "Gantry/Detector Tilt (0018,1120) says 12 degrees, the positions 0.0: positions are believed",
    )


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_untilted_phantom_lies_where_it_lay_in_mm(sign, axis):
    """A shift in the wrong direction, along the wrong axis or by pixels instead of mm misplaces the balls."""
    stack, _ = leaning()
    affine = series.affine(stack)
    affine[:3, 2] = np.cross(affine[:3, 0] / 1.5, affine[:3, 1]) * 2.0 + sign * 0.8 * affine[:3, axis]
    centre = affine[:3, :3] @ [20, 30, 20] + affine[:3, 3]
    shape = (44, 64, 40)
    image = Image(ball(affine, shape, centre, 12.0)[None].astype(np.float32), affine, "CT", "HU")
    upright = unshear(image, background=0.0)
    assert shear(upright.affine) < 1e-6 and np.linalg.det(upright.affine) > 0
    expected = ball(upright.affine, upright.array.shape[1:], centre, 12.0)
    # linear interpolation of an edge 1 mm wide; a wrong direction leaves differences of 1000
    assert np.abs(upright.array[0] - expected).mean() < 2 and np.abs(upright.array[0] - expected).max() < 160
    mirrored = affine.copy()
    mirrored[:3, 2] -= 2 * sign * 0.8 * affine[:3, axis]
    wrong = unshear(Image(image.array, mirrored, "CT", "HU"), background=0.0)
    assert np.abs(wrong.array[0] - ball(wrong.affine, wrong.array.shape[1:], centre, 12.0)).max() > 900


def test_unshear_agrees_with_simpleitk_and_cuts_nothing():
    import SimpleITK as sitk

    affine = series.affine(leaning(count=12)[0])
    rng = np.random.default_rng(2)
    image = Image(rng.integers(-1000, 1000, (1, 9, 10, 12)).astype(np.float32), affine, "CT", "HU")
    upright = unshear(image)
    # the in-plane part of 11 steps of 2 mm: 11 * 2 * sin(20 deg) = 7.5 mm, in rows of 1 mm
    assert upright.array.shape == (1, 9, 18, 12)

    # SimpleITK holds no shear: the volume is given in voxels, the transform brings voxels of one to those of the other.
    into = np.linalg.inv(affine) @ upright.affine
    transform = sitk.AffineTransform(into[:3, :3].ravel().tolist(), into[:3, 3].tolist())
    grid = sitk.Image([9, 18, 12], sitk.sitkFloat64)
    padded = np.pad(image.array[0], ((1, 1), (1, 1), (0, 0)), constant_values=-1024)
    moving = sitk.GetImageFromArray(padded.transpose(2, 1, 0).astype(np.float64))
    moving.SetOrigin([-1, -1, 0])
    reference = sitk.Resample(moving, grid, transform, sitk.sitkLinear, -1024.0)
    assert np.abs(sitk.GetArrayFromImage(reference).transpose(2, 1, 0) - upright.array[0]).max() < 0.01
    # every slice keeps the sum of what lies above the background
    assert np.allclose((upright.array + 1024).sum((0, 1, 2)), (image.array + 1024).sum((0, 1, 2)), rtol=1e-5)


def test_a_shift_by_whole_pixels_is_exact_and_keeps_the_dtype():
    affine = np.diag([1.0, 1.0, 3.0, 1.0])
    affine[0, 2], affine[1, 2] = -2.0, 1.0
    array = np.random.default_rng(3).integers(-1024, 3000, (1, 5, 6, 4)).astype(np.int16)
    upright = unshear(Image(array, affine, "CT", "HU"))
    assert upright.array.dtype == np.int16 and upright.array.shape == (1, 11, 9, 4)
    assert np.allclose(upright.affine, [[1, 0, 0, -6], [0, 1, 0, 0], [0, 0, 3, 0], [0, 0, 0, 1]])
    for k in range(4):
        assert np.array_equal(upright.array[0, 6 - 2 * k : 11 - 2 * k, k : k + 6, k], array[0, :, :, k])
    assert (upright.array == -1024).sum() >= upright.array.size - array.size
    assert "degrees undone" in upright.notes[-1]


def test_an_upright_volume_is_not_touched_and_an_absurd_tilt_is_refused():
    image = Image(np.zeros((1, 3, 3, 3), np.uint8), np.diag([-1.0, -1.0, 2.0, 1.0]), "MR")
    assert unshear(image) is image
    flat = np.eye(4)
    flat[:3, 2] = [1e9, 0, 1]
    with pytest.raises(FormatError, match="2\\^31 voxels"):
        unshear(Image(np.zeros((1, 3, 3, 3), np.uint8), flat, "MR"))
