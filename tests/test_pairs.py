"""Pairs: found by modality, patterns or table; brought onto one grid; how far they lie apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import shift as shifted

from scansmith import anatomy
from scansmith.formats import Source
from scansmith.image import Image
from scansmith.prepare import pairs
from scansmith.prepare.registration import normalised_mutual_information, phase_correlation

ROOT = Path("/data/scans")


def scan(name, modality="OT", *, files=1, patient=None, affine=None, shape=(64, 64, 20), **rest):
    """A source as `formats.discover` gives it."""
    paths = (ROOT / name, *((ROOT / name).with_name(f"{k:03d}.dcm") for k in range(1, files)))
    flat = None if affine is None else tuple(np.asarray(affine, float).ravel().tolist())
    return Source(paths, "dicom", modality, 1, 3, shape, patient, affine=flat, **rest)


def placed(x=0.0, spacing=1.0):
    result = np.diag([spacing, spacing, spacing, 1.0])
    result[0, 3] = x
    return result


def find(text, sources, patients=None):
    names = [source.files[0].relative_to(ROOT).as_posix() for source in sources]
    return pairs.find(text, sources, patients or [f"scan:{name}" for name in names], names)


# ------------------------------------------------------------------------------------------------ name patterns


@pytest.mark.parametrize(
    "patterns, names, expected",
    [
        ("MRI/*.png:CT/*.png", ["CT/2.png", "MRI/1.png", "MRI/2.png", "CT/1.png"], [(1, 3), (2, 0)]),
        ("*_flair*:*_t1c*", ["a/x_FLAIR.nii", "a/x_t1c.nii", "b/x_flair.nii", "b/x_T1C.nii"], [(0, 1), (2, 3)]),
        ("*T1*:*T2*", ["p1/T1_N4.nii.gz", "p1/T2_N4.nii.gz", "p2/T2_N4.nii.gz"], [(0, 1)]),
        ("*/T1.nii.gz:*/T2.nii.gz", ["s/a/T1.nii.gz", "s/a/T2.nii.gz", "t/a/T1.nii.gz"], [(0, 1)]),
        ("mr/**/*.nii:ct/**/*.nii", ["mr/a/b/1.nii", "ct/a/b/1.nii", "ct/a/1.nii"], [(0, 1)]),
        ("x?_mr.nii:x?_ct.nii", ["x1_mr.nii", "x2_ct.nii", "x1_ct.nii"], [(0, 2)]),
        ("*.png:*_ct.png", ["1.png", "1_ct.png", "2.png", "2_ct.png"], [(0, 1), (2, 3)]),
        ("mr[1]/*.png:ct[1]/*.png", ["mr[1]/a.png", "ct[1]/a.png", "mr1/a.png"], [(0, 1)]),
    ],
)
def test_scans_whose_wildcards_and_folder_are_the_same_are_pairs(patterns, names, expected):
    found, words = find(patterns, [scan(name) for name in names])
    assert found == expected
    assert words[0] == f"pairs: {len(expected)} by name patterns"


def test_series_are_paired_by_their_folders_whatever_their_files_are_called():
    sources = [scan("p1/CT/000.dcm", files=3), scan("p1/MR/i1.dcm", files=5), scan("p2/MR/x.dcm", files=2)]
    for patterns in ("*/MR:*/CT", "*/MR/*:*/CT/*", "*/MR/*.dcm:*/CT/*.dcm"):
        found, words = find(patterns, sources)
        assert found == [(1, 0)]
        assert words[1] == "without a partner: 1 source and 0 targets, left out"


def test_where_no_two_names_agree_the_only_two_of_a_folder_are_pairs_and_it_is_said():
    """As in folders that a PACS wrote, whose names hold series numbers."""
    files = ["1/36-FLAIR-58/0.dcm", "1/37-T2-78/0.dcm", "2/12-FLAIR-3/0.dcm", "2/13-T2-4/0.dcm", "2/14-T2-4/0.dcm"]
    sources = [scan(name, files=2) for name in files]
    for patterns in ("*FLAIR*:*T2*", "*/*FLAIR*:*/*T2*"):
        found, words = find(patterns, sources)
        assert found == [(0, 1)]
        assert words[1].startswith("the names' wildcards are never the same")
        assert words[2] == "without a partner: 1 source and 2 targets, left out"


def test_a_series_is_paired_with_a_file_of_its_folder_name():
    found, _ = find("dicom/*:nifti/*.nii.gz", [scan("dicom/p1/0.dcm", files=2), scan("nifti/p1.nii.gz")])
    assert found == [(0, 1)]


@pytest.mark.parametrize(
    "patterns, names, words",
    [
        ("MRI/*:CT/*", ["MRI/1.png", "PET/1.png"], "found none for 'CT/\\*'; names look like 'MRI/1.png', 'PET/1.png'"),
        ("a/*:b/*", ["a/1.png", "b/2.png"], "match '1.png' on the left and '2.png' on the right, never the same"),
        ("a/*:b/*/*", ["a/1.png", "b/1/1.png"], "found 1 and 2: every \\*"),
        ("*1*:*1*", ["a1.png", "b.png"], "found 'a1.png' on both sides"),
        ("*_a:*_b", ["X_a", "x_A", "x_b"], "found 'X_a' and 'x_A' with the same wildcards"),
        ("*:", ["a"], "every \\* of the left"),
    ],
)
def test_patterns_that_pair_nothing_or_too_much_are_refused_with_the_way_out(patterns, names, words):
    with pytest.raises(ValueError, match=words):
        find(patterns, [scan(name) for name in names])


def test_masks_are_never_paired():
    sources = [scan("p/T1.nii"), scan("p/T2.nii"), scan("q/T1.nii"), scan("q/T2.nii", role="mask")]
    assert find("*T1*:*T2*", sources)[0] == [(0, 1)]


# ------------------------------------------------------------------------------------------------ table


def table(folder, text):
    path = folder / "pairs.csv"
    path.write_bytes(text.encode())
    return str(path)


def test_a_table_pairs_files_and_series_in_any_spelling(tmp_path):
    sources = [scan("p1/mr/0.dcm", files=3), scan("p1/ct.nii"), scan("p2/mr.nii"), scan("p2/ct.nii"), scan("p3/a.nii")]
    text = (
        "\ufeffTarget;Source\r\np1\\ct.nii;p1/mr\r\n/home/me/scans/p2/ct.nii;./p2/mr.nii\r\nnone.nii;p3/a.nii\r\n;\r\n"
    )
    found, words = find(table(tmp_path, text), sources)
    assert found == [(0, 1), (2, 3)]
    assert words == (
        "pairs: 2 from the table",
        "1 of the table's 3 rows name a file that is no usable scan, left out",
    )


@pytest.mark.parametrize(
    "text, words",
    [
        ("from,to\na,b\n", "expected the columns source and target in .* found from, to"),
        ("source,target\nx.nii,y.nii\n", "found no pair among 1 rows .the first is 'x.nii'."),
        ("source,target\nct.nii,p1/mr.nii\n", "found no pair"),  # ct.nii lies in two folders
        ("source,target\np1/mr.nii,p1/ct.nii\np1/mr.nii,p2/ct.nii\n", "found 'p1/mr.nii' in 2 pairs"),
        ("source,target\np1/mr.nii,p1/ct.nii\np1/ct.nii,p2/ct.nii\n", "found 'p1/ct.nii' on both sides"),
    ],
)
def test_a_table_that_pairs_nothing_or_too_much_is_refused(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        find(table(tmp_path, text), [scan("p1/mr.nii"), scan("p1/ct.nii"), scan("p2/ct.nii")])


def test_rows_that_fit_several_scans_are_counted_apart(tmp_path):
    sources = [scan(f"g/{p}/{name}.nii") for p in ("p1", "p2") for name in ("mr", "ct")]
    found, words = find(table(tmp_path, "source,target\np1/mr.nii,p1/ct.nii\nmr.nii,ct.nii\nx,ct.nii\n"), sources)
    assert found == [(0, 1)]
    assert words[1:] == (
        "1 of the table's 3 rows name a file that is no usable scan, left out",
        "1 of the table's 3 rows fit several scans, left out: give the path of one scan in full",
    )


# ------------------------------------------------------------------------------------------------ two patients


@pytest.mark.parametrize("by", ["patterns", "table"])
def test_pairs_of_two_known_patients_are_left_out_and_counted(tmp_path, by):
    sources = [scan(f"{k}_{kind}.dcm") for k in range(3) for kind in ("T1", "T2")]
    rows = "".join(f"{k}_T1.dcm,{k}_T2.dcm\n" for k in range(3))
    text = "*_T1.dcm:*_T2.dcm" if by == "patterns" else table(tmp_path, "source,target\n" + rows)
    patients = ["patient:A", "patient:B", "patient:C", "patient:c ", "patient:D", "scan:2_T2.dcm"]
    found, words = find(text, sources, patients)
    assert found == [(2, 3), (4, 5)]
    assert (
        "left out: 1 pair of them, whose two scans are of different patients by Patient ID (0010,0020); 2 stay" in words
    )
    with pytest.raises(ValueError, match=r"different Patient IDs .* in every one of 3 pairs .* correct the names"):
        find(text, sources, [f"patient:{k}" for k in range(6)])


def test_the_only_two_scans_of_a_folder_are_no_pair_when_they_are_of_two_patients():
    with pytest.raises(ValueError, match="in every one of 1 pair of"):
        find("*T1.dcm:*T2.dcm", [scan("b/AnnaT1.dcm"), scan("b/BertT2.dcm")], ["patient:A", "patient:B"])


def test_a_table_that_is_not_there_is_said():
    with pytest.raises(ValueError, match=r"found no file nowhere\.csv"):
        find("nowhere.csv", [scan("a")])


# ------------------------------------------------------------------------------------------------ modalities


def test_modalities_are_paired_within_a_patient_by_frame_and_position():
    sources = [
        scan("a/ct", "CT", affine=placed(), frame_of_reference="1.1"),
        scan("a/mr-far", "MR", affine=placed(500.0), frame_of_reference="1.1"),
        scan("a/mr-other-frame", "MR", affine=placed(), frame_of_reference="1.2"),
        scan("a/mr", "MR", affine=placed(10.0), frame_of_reference="1.1"),
        scan("b/mr", "MR", affine=placed()),
        scan("c/ct", "CT", affine=placed()),
    ]
    found, words = find("mr:ct", sources, ["a", "a", "a", "a", "b", "c"])
    assert found == [(3, 0)]
    assert words == (
        "pairs: 1 of MR and CT, by patient and position",
        "without a partner: 3 MR scans and 1 CT scan, left out",
    )


def test_each_target_gets_the_source_that_overlaps_best_and_on_the_nearest_grid():
    head, chest = placed(0.0), placed(60.0)
    sources = [
        scan("ct-head", "CT", affine=head),
        scan("ct-chest", "CT", affine=chest),
        scan("mr-chest", "MR", affine=placed(58.0)),
        scan("mr-head", "MR", affine=placed(3.0)),
        scan("mr-head-coarse", "MR", affine=placed(3.0, 4.0), shape=(16, 16, 5)),
    ]
    found, words = find("MR:CT", sources, ["a"] * 5)
    assert found == [(2, 1), (3, 0)]
    assert "2 pairs without a common Frame of Reference UID (0020,0052)" in words[1]


def test_an_ambiguous_choice_is_said_and_taken_by_name():
    frame = {"affine": placed(), "frame_of_reference": "1.1"}
    sources = [scan("ct", "CT", **frame), scan("mr-t1", "MR", **frame), scan("mr-t2", "MR", **frame)]
    found, words = find("MR:CT", sources, ["a"] * 3)
    assert found == [(1, 0)]
    assert "1 target with several sources that fit equally well: the first by name was taken" in words[1]


@pytest.mark.parametrize(
    "text, sources, words",
    [
        ("MR:CT", [scan("a", "MR"), scan("b", "OT")], "found 1 and 0: files such as NIfTI and PNG do not say"),
        ("MR:MR", [scan("a", "MR")], "expected pairs as two different modalities"),
        ("MR", [scan("a", "MR")], "got 'MR'"),
        ("MR:CT", [scan("a", "MR"), scan("b", "CT")], "2 patients and none that overlap: check that Patient ID"),
    ],
)
def test_modalities_that_cannot_be_paired_are_refused_with_the_way_out(text, sources, words):
    with pytest.raises(ValueError, match=words):
        find(text, sources)


def test_the_words_hold_nothing_private():
    frame = {"affine": placed(), "frame_of_reference": "1.2.840.4711"}
    sources = [scan("Mustermann/ct", "CT", patient="PID4711", **frame), scan("Mustermann/mr", "MR", **frame)]
    for text in ("MR:CT", "*/mr:*/ct"):
        _, words = find(text, sources, ["patient:PID4711"] * 2)
        assert not any(word in " ".join(words) for word in ("Mustermann", "4711"))


# ------------------------------------------------------------------------------------------------ onto


def image(array, affine=None, known=True, modality="MR"):
    return Image(array, np.eye(4) if affine is None else affine, modality, spacing_known=known)


@pytest.fixture(scope="module")
def volume():
    return np.random.default_rng(0).integers(-1000, 1000, (1, 12, 10, 8)).astype(np.int16)


def test_voxels_on_the_same_grid_are_copied(volume):
    near = placed(1e-4)
    moved, words = pairs.onto(image(volume, near), image(volume * 0), 0.0)
    assert words is None and np.array_equal(moved, volume) and moved.dtype == volume.dtype
    assert not np.shares_memory(moved, volume)


def test_permuted_flipped_and_cropped_grids_are_reindexed_exactly(volume):
    """Every voxel of the result has the value that lies at its place in the patient."""
    affine = np.array([[0, 0, -2, 5], [1.5, 0, 0, -3], [0, -1, 0, 7], [0, 0, 0, 1.0]])
    moving = image(volume, affine)
    step = np.array([[0, -1, 0, 8], [0, 0, 1, 2], [1, 0, 0, -1], [0, 0, 0, 1.0]])  # index of fixed -> index of moving
    fixed = image(np.zeros((1, 9, 7, 6), np.int16), affine @ step)
    moved, words = pairs.onto(moving, fixed, -5.0)
    assert words is None
    for index in np.ndindex(9, 7, 6):
        i, j, k, _ = (step @ [*index, 1]).astype(int)
        inside = 0 <= i < 12 and 0 <= j < 10 and 0 <= k < 8
        assert moved[(0, *index)] == (volume[0, i, j, k] if inside else -5)


def test_a_ramp_is_resampled_to_its_values_at_the_new_places():
    """Linear interpolation of a linear function is exact, on a rotated and shifted grid too."""
    i, j, k = np.meshgrid(*(np.arange(n) for n in (30, 28, 26)), indexing="ij")
    moving = image((2.0 * i - 3.0 * j + 0.5 * k)[None].astype(np.float32), np.diag([1.0, 1.2, 1.4, 1.0]))
    angle = 0.1
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = turn * 1.1, (8.0, 5.3, 6.1)
    fixed = image(np.zeros((1, 12, 13, 14)), affine)
    moved, words = pairs.onto(moving, fixed, -99.0)
    index = np.linalg.inv(moving.affine) @ affine
    x, y, z = np.meshgrid(*(np.arange(n) for n in (12, 13, 14)), indexing="ij")
    u, v, w = (index[a, 0] * x + index[a, 1] * y + index[a, 2] * z + index[a, 3] for a in range(3))
    inside = (u >= 0) & (u <= 29) & (v >= 0) & (v <= 27) & (w >= 0) & (w <= 25)
    assert inside.mean() > 0.9
    assert np.allclose(moved[0][inside], (2 * u - 3 * v + 0.5 * w)[inside], atol=1e-3)
    assert "resampled from 30 x 28 x 26 voxels of 1 x 1.2 x 1.4 mm" in words and "smoothed" not in words


def test_what_the_source_does_not_reach_is_filled_and_integers_stay_integers(volume):
    fixed = image(np.zeros((1, 12, 10, 8)), placed(6.4))
    moved, _ = pairs.onto(image(volume), fixed, -777.0)
    assert moved.dtype == np.int16
    assert (moved[0, 6:] == -777).all() and not (moved[0, :5] == -777).any()


def test_a_finer_source_is_smoothed_so_that_nothing_aliases():
    """A checkerboard of single voxels becomes grey on a grid three times as coarse; without the Gaussian it would not."""
    fine = (np.indices((60, 60, 60)).sum(axis=0) % 2).astype(np.float32)[None]
    fixed = image(np.zeros((1, 18, 18, 18)), np.diag([3.0, 3.0, 3.0, 1.0]) + np.outer([1, 1, 1, 0], [0, 0, 0, 3.0]))
    moved, words = pairs.onto(image(fine), fixed, 0.0)
    assert "smoothed first" in words
    assert np.abs(moved - 0.5).max() < 0.02


def test_pictures_of_equal_proportions_are_scaled_and_others_refused():
    picture = np.broadcast_to(np.arange(60, dtype=np.uint8)[None, :, None, None], (1, 60, 40, 1))
    small = image(np.zeros((1, 30, 20, 1), np.uint8), known=False)
    moved, words = pairs.onto(image(picture, known=False), small, 0.0)
    assert moved.shape == (1, 30, 20, 1) and words == "scaled from 60 x 40 to the target's 30 x 20 pixels"
    assert np.abs(moved[0, :, 10, 0] - (np.arange(30) * 2 + 0.5)).max() <= 1
    same, words = pairs.onto(image(picture, known=False), image(picture, known=False), 0.0)
    assert words is None and np.array_equal(same, picture)
    with pytest.raises(ValueError, match="one proportion, found 60 x 40 and 40 x 40 pixels"):
        pairs.onto(image(picture, known=False), image(picture[:, :40], known=False), 0.0)


def test_scans_that_do_not_overlap_or_do_not_say_where_they_lie_are_refused(volume):
    with pytest.raises(ValueError, match="covers 17% of the target"):
        pairs.onto(image(volume), image(volume, placed(10.0)), 0.0)
    with pytest.raises(ValueError, match="a target that does and a source that does not"):
        pairs.onto(image(volume, known=False), image(volume), 0.0)
    with pytest.raises(ValueError, match="a source that does and a target that does not"):
        pairs.onto(image(volume), image(volume, known=False), 0.0)


def test_resampling_onto_raw_scans_of_other_grids_agrees_with_simpleitk(shared_data):
    import nibabel
    import SimpleITK as sitk

    folder = shared_data / "raw_mr_3d_openms" / "raw" / "patient01"
    t1, flair = (nibabel.load(folder / f"study1_{kind}.nii.gz") for kind in ("T1W", "FLAIR"))
    moving, fixed = (image(scan.get_fdata(dtype=np.float32)[None], scan.affine) for scan in (t1, flair))
    moved, _ = pairs.onto(moving, fixed, 0.0)
    own = [sitk.ReadImage(str(folder / f"study1_{kind}.nii.gz"), sitk.sitkFloat32) for kind in ("T1W", "FLAIR")]
    wished = sitk.GetArrayFromImage(sitk.Resample(own[0], own[1], sitk.Transform(), sitk.sitkLinear, 0.0)).T
    # At the very border the two decide differently whether a point lies inside.
    away = np.abs(moved[0] - wished)[2:-2, 2:-2, 2:-2]
    assert np.quantile(away, 0.999) < 1e-3 * wished.max()


# ------------------------------------------------------------------------------------------------ misregistration


def test_phase_correlation_finds_a_cyclic_shift_exactly():
    one = np.random.default_rng(0).normal(size=(32, 24, 16)).astype(np.float32)
    surface = phase_correlation(one, np.roll(one, (5, -3, 2), (0, 1, 2)), (0, 1, 2))
    assert np.unravel_index(surface.argmax(), surface.shape) == (5, 21, 2)


def test_normalised_mutual_information_is_two_for_a_function_and_one_for_independence():
    one = np.tile(np.arange(8), 64)
    assert normalised_mutual_information(one, 7 - one, 8) == pytest.approx(2.0)
    assert normalised_mutual_information(one, np.repeat(np.arange(8), 64), 8) == pytest.approx(1.0)


@pytest.fixture(scope="module")
def patient():
    """CT, T1 and T2 of one procedural patient."""
    tissues = anatomy.render(anatomy.draw_patient(7), anatomy.axial_raster(96, 24))
    return {"CT": anatomy.ct(tissues, 1), "T1": anatomy.mr(tissues, "T1", 2), "T2": anatomy.mr(tissues, "T2", 3)}


@pytest.mark.parametrize("kinds", [("CT", "T1"), ("T1", "T2"), ("T2", "CT")])
@pytest.mark.parametrize("planted", [(0.0, 0.0, 0.0), (1.3, -2.6, 0.7), (-5.4, 3.5, -1.2)])
def test_a_planted_shift_between_contrasts_is_found_to_a_third_of_a_voxel(patient, kinds, planted):
    source, target = (patient[kind] for kind in kinds)
    moved = shifted(source.array[0].astype(np.float32), [-value for value in planted], order=3, mode="nearest")
    found = pairs.misregistration(moved[None], target.array, target.spacing)
    assert np.abs(np.array(found.mm) / target.spacing - planted).max() < 0.35
    assert found.confidence > 0.6


def test_scans_that_have_nothing_in_common_get_no_number(patient):
    rng = np.random.default_rng(0)
    source, target = patient["CT"], patient["T1"].array
    noise = pairs.misregistration(*rng.normal(size=(2, 48, 48, 24)), (1.0, 1.0, 1.0))
    flat = pairs.misregistration(source.array, np.zeros_like(target), source.spacing)
    upside_down = pairs.misregistration(source.array, target[..., ::-1], source.spacing)
    for found in (noise, flat, upside_down):
        assert found.confidence < pairs.LEAST_CONFIDENCE
        assert found.words == "misregistration could not be measured"


def test_a_short_axis_is_not_judged(patient):
    middle = slice(11, 13)
    found = pairs.misregistration(patient["T1"].array[..., middle], patient["T2"].array[..., middle], (4.0, 4.0, 8.0))
    assert found.mm[2] == 0.0 and np.abs(found.mm).max() < 2.0
    assert found.words == f"misregistration {np.linalg.norm(found.mm):.1f} mm"


def test_registered_scans_of_patients_lie_within_a_voxel_and_planted_shifts_are_recovered(shared_data):
    import nibabel

    folder = shared_data / "paired_t1_t2_flair_3d_openms" / "patient07"
    t1, t2 = (
        nibabel.load(next(folder.glob(f"{kind}_*"))).dataobj[30:150, 40:180, 50:130].astype(np.float32)
        for kind in ("T1", "T2")
    )
    before = pairs.misregistration(t1, t2, (1.0, 1.0, 1.0))
    assert before.confidence > 0.6 and np.abs(before.mm).max() < 0.6
    planted = np.array([2.4, -1.3, 3.6])
    after = pairs.misregistration(shifted(t1, -planted, order=1, mode="nearest"), t2, (1.0, 1.0, 1.0))
    assert after.confidence > 0.6 and np.abs(after.mm - planted - before.mm).max() < 0.3


def test_two_pictures_that_two_methods_judge_differently_get_no_number(shared_data):
    """Of 2-D slices of CT and MR, whose edges differ, only those are measured where both methods agree."""
    from PIL import Image as Picture

    folder = shared_data / "paired_mr_ct_2d_harvard"
    found = {}
    for number in (16011, 20015, 34008, 34020, 2016, 21009, 28017, 32021):
        mr, ct = (np.asarray(Picture.open(folder / kind / f"{number}.png").convert("L")).T for kind in ("MRI", "CT"))
        found[number] = pairs.misregistration(mr[..., None], ct[..., None], (1.0, 1.0, 1.0))
    measured = {number for number, shift in found.items() if shift.confidence >= pairs.LEAST_CONFIDENCE}
    assert measured == {16011, 20015, 34008, 34020}
    assert all(np.abs(found[number].mm).max() < 2.1 for number in measured)
