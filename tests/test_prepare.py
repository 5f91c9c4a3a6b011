"""prepare: who learns and who judges, what is stored and where it lies in the patient, and what never leaves the source."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from collections import Counter
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image as Picture
from pydicom.dataset import FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, MRImageStorage

from scansmith.dataset import SPLITS, Dataset
from scansmith.formats import Source
from scansmith.image import Image
from scansmith.prepare import fingerprint, labels, manifest, plan, prepare, split, stream
from scansmith.prepare import scans as used
from scansmith.prepare.ledger import Ledger
from scansmith.prepare.store import Record, Stored
from scansmith.prepare.summary import scrub
from scansmith.preprocess.slices import Placement, cut, is_mask, why_empty
from scansmith.runtime import derive_seed

FILES = {"dataset.json", "manifest-0001.npz", "images-0001-00000.npy", "report.html"}


def noise(*key, shape=(12, 10), low=0, high=200, dtype=np.uint8):
    return np.random.default_rng(derive_seed("test", *key)).integers(low, high, shape).astype(dtype)


def png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Picture.fromarray(pixels).save(path)
    return path


def pngs(folder, count=12, **options):
    for i in range(count):
        png(folder / f"{i:03d}.png", noise(i, folder.name, **options))
    return folder


def nifti(path, array, affine=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4) if affine is None else affine), path)
    return path


def dicom(path, hu, patient="P1", modality="CT", series="1", position=0.0, **tags):
    """A single-frame CT or MR slice of 0.5 x 0.5 mm pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else MRImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{derive_seed(str(path))}"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = pydicom.Dataset()
    file.file_meta = meta
    file.SOPClassUID, file.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    file.Modality, file.PatientID, file.PatientName = modality, patient, f"{patient}^Name"
    file.StudyInstanceUID = f"1.2.4.{derive_seed(patient)}"
    file.SeriesInstanceUID = f"1.2.5.{derive_seed(patient, series)}"
    file.FrameOfReferenceUID = f"1.2.6.{derive_seed(patient)}"
    file.ImagePositionPatient, file.ImageOrientationPatient = [0, 0, position], [1, 0, 0, 0, 1, 0]
    file.PixelSpacing, file.SliceThickness = [0.5, 0.5], 2
    file.Rows, file.Columns = hu.shape
    file.SamplesPerPixel, file.PhotometricInterpretation = 1, "MONOCHROME2"
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 16, 12, 11, 0
    file.RescaleSlope, file.RescaleIntercept = 1, -1024 if modality == "CT" else 0
    file.PixelData = (hu - int(file.RescaleIntercept)).astype(np.uint16).tobytes()
    for name, value in tags.items():
        setattr(file, name, value)
    file.save_as(path, enforce_file_format=True)
    return path


def ct_patients(folder, patients=10, slices=3):
    for p in range(patients):
        for k in range(slices):
            dicom(
                folder / f"p{p}" / f"{k}.dcm",
                noise(p, k, low=-1024, high=900, dtype=np.int32),
                f"P{p}",
                position=2.0 * k,
            )
    return folder


@pytest.fixture(scope="module")
def ct_scans(tmp_path_factory):
    """Ten CT patients of three slices; tests read it and never change it."""
    return ct_patients(tmp_path_factory.mktemp("ct") / "scans")


def record(**facts):
    """What is known of one scan's rows."""
    base = {"slices": [0], "affines": np.full((1, 4, 4), np.nan), "spacing": (np.nan,) * 3, "crop": np.zeros((1, 6)),
            "windows": (None, None), "values": np.zeros(1, np.float32), "target_values": np.zeros(0, np.float32), "hashes": ["0"], "prints": [0], "masked": [False], "empty": {}}  # fmt: skip
    return Record(**(base | facts))


def scan_of(patient, label=None):
    return used.Scan("name", Source((Path("a"),), "png", "OT", 1, 2, (4, 4, 1)), None, (), patient, label)


# ------------------------------------------------------------------------------------------------ split


@given(st.integers(0, 500))
def test_every_patient_goes_somewhere_and_the_holdout_comes_first(total):
    counts = split.counts(total)
    assert sum(counts.values()) == total
    assert all(count >= 0 for count in counts.values())
    assert counts["train"] == max(counts.values())
    assert counts["holdout"] >= (total >= 2)
    assert counts["validation"] >= (total >= 3)
    assert counts["calibration"] >= (total >= 20)
    if total >= 20:
        assert all(abs(counts[name] - split.FRACTIONS[name] * total) < 1 for name in SPLITS)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8))
def test_classes_are_spread_in_proportion_and_the_totals_are_kept(sizes):
    names = {f"{label}-{i}": str(label) for label, size in enumerate(sizes) for i in range(size)}
    chosen = split.assign({name: [name] for name in names}, names, seed=0)
    assert Counter(chosen.values()) == Counter(
        {name: count for name, count in split.counts(sum(sizes)).items() if count}
    )
    totals = split.counts(sum(sizes))
    for label, size in enumerate(sizes):
        own = Counter(chosen[name] for name in names if names[name] == str(label))
        assert all(abs(own[part] - size * totals[part] / sum(sizes)) < 1 for part in SPLITS)


@given(
    st.lists(
        st.tuples(st.integers(0, 15), st.integers(0, 30), st.sampled_from(["a", "b", None])), min_size=1, max_size=80
    ),
    st.integers(0, 5),
)
def test_no_patient_and_no_copy_of_an_image_crosses_a_split(scans, seed):
    ledger = Ledger()
    for scan, (_, image, _) in enumerate(scans):
        ledger.note(scan, Stored({"images": np.zeros((1, 1, 1, 1))}, record(hashes=[str(image)])))
    found = fingerprint.Survey(None, [scan_of(str(patient), label) for patient, _, label in scans], [], {})
    splits, left_out, _ = manifest.split_scans(found, ledger, [], {}, {}, used.Request(seed=seed))
    for key in (0, 1):  # patient, image
        seen: dict[int, set[str]] = {}
        for scan, facts in enumerate(scans):
            seen.setdefault(facts[key], set()).add(splits[scan])
        assert all(len(where) == 1 for where in seen.values())
    stored = [digest for one in ledger.records.values() for digest in one.hashes]
    assert len(set(stored)) == len(stored) == len(ledger.scans)
    assert not left_out


@given(st.permutations(range(30)), st.integers(0, 9))
def test_the_split_depends_on_images_and_seed_not_on_names_or_order(order, seed):
    reference = split.assign({f"p{i}": [f"image{i}"] for i in range(30)}, {f"p{i}": None for i in range(30)}, seed)
    other = split.assign({f"q{i}": [f"image{i}"] for i in order}, {f"q{i}": None for i in order}, seed)
    assert {name[1:]: part for name, part in reference.items()} == {name[1:]: part for name, part in other.items()}


def test_another_seed_gives_another_split():
    hashes = {f"p{i}": [f"image{i}"] for i in range(30)}
    none = dict.fromkeys(hashes)
    assert split.assign(hashes, none, 0) != split.assign(hashes, none, 1)


def test_dicom_patients_stay_whole_and_a_copy_ties_two_patients(tmp_path):
    scans = ct_patients(tmp_path / "scans")
    shared = noise("shared", low=-1024, high=900, dtype=np.int32)
    dicom(scans / "p0" / "9.dcm", shared, "P0", series="2")
    dicom(scans / "p9" / "9.dcm", shared, "P9", series="2")
    result = prepare(scans, tmp_path / "d")
    opened = Dataset.open(tmp_path / "d")
    assert result["split_level"] == "patient"
    assert len(opened) == 31
    assert [Path(entry["file"]).parent.name for entry in result["duplicates"]] == ["p9"]
    where = {}
    for patient, part in zip(opened.columns["patient"], opened.columns["split"]):
        where.setdefault(patient, set()).add(part)
    assert len(where) == 10
    assert all(len(parts) == 1 for parts in where.values())
    private = json.loads((tmp_path / "d.private.json").read_text())
    parts = dict(zip(opened.columns["case"], opened.columns["split"]))
    owner = {entry["patient"]: parts[case] for case, entry in private["cases"].items() if case in parts}
    assert owner["patient:P0"] == owner["patient:P9"]


def test_the_slices_of_a_volume_stay_together_when_no_patient_is_known(tmp_path):
    for i in range(5):
        nifti(tmp_path / "scans" / f"{i}.nii.gz", noise(i, shape=(10, 12, 6), high=1000, dtype=np.int16))
    result = prepare(tmp_path / "scans", tmp_path / "d")
    columns = Dataset.open(tmp_path / "d").columns
    assert result["split_level"] == "image"
    assert any("no patient known" in line for line in result["plan"])
    assert len(set(zip(columns["case"], columns["split"]))) == 5
    assert {name: size["patients"] for name, size in result["splits"].items()} == {
        "train": 3,
        "validation": 1,
        "calibration": 0,
        "holdout": 1,
    }


def test_placeholders_in_patient_id_do_not_make_one_patient_of_all():
    scans = [Source((Path(f"{i}.dcm"),), "dicom", "CT", 1, 3, (4, 4, 1), "ANONYMOUS", f"1.2.{i}") for i in range(3)]
    keys, level, words = used.patient_keys(scans, ["a", "b", "c"])
    assert len(set(keys)) == 3
    assert level == "study"
    assert "study-level split" in words and "3 of 3 scans" in words


def test_one_nameless_study_makes_the_split_one_by_study_and_the_plan_says_so(tmp_path):
    scans = ct_patients(tmp_path / "scans", patients=9)
    for k in range(3):
        dicom(scans / "p9" / f"{k}.dcm", noise(9, k, low=-1024, high=900, dtype=np.int32), "", position=2.0 * k)
        nameless = pydicom.dcmread(scans / "p9" / f"{k}.dcm")
        nameless.PatientName = ""
        nameless.save_as(scans / "p9" / f"{k}.dcm")
    result = prepare(scans, tmp_path / "d")
    assert result["split_level"] == Dataset.open(tmp_path / "d").info["split_level"] == "study"
    assert any("Patient ID (0010,0020) is empty or a placeholder in 1 of 10 scans" in line for line in result["plan"])
    assert any("patients or studies" in line for line in result["plan"])


# ------------------------------------------------------------------------------------------------ geometry


def volume(codes, spacing, shape, tilt=0.0):
    """A volume whose values are its place in the patient, 3 x + 5 y + 7 z (mm), stored along any axes."""
    axes = {"R": (0, 1), "L": (0, -1), "A": (1, 1), "P": (1, -1), "S": (2, 1), "I": (2, -1)}
    affine = np.eye(4)
    affine[:3, :3] = 0
    for column, code in enumerate(codes):
        axis, sign = axes[code]
        affine[axis, column] = sign * spacing[column]
    turn = np.array([[np.cos(tilt), -np.sin(tilt), 0], [np.sin(tilt), np.cos(tilt), 0], [0, 0, 1]])
    affine[:3, :3] = turn @ affine[:3, :3]
    affine[:3, 3] = (-31, 17, 5)
    place = np.einsum("ab,bijk->aijk", affine[:3, :3], np.indices(shape)) + affine[:3, 3, None, None, None]
    return Image(np.einsum("a,aijk->ijk", (3.0, 5.0, 7.0), place)[None].astype(np.float32), affine)


def value_at(affine, height, width):
    row, column = np.mgrid[:height, :width]
    place = np.einsum("ab,bhw->ahw", affine[:3, :2], np.stack([column, row])) + affine[:3, 3, None, None]
    return np.einsum("a,ahw->hw", (3.0, 5.0, 7.0), place)


CODES = ["RAS", "LPS", "LAS", "RPI", "SRA", "AIL", "PSR", "IAR"]


@pytest.mark.parametrize("tilt", [0.0, 0.3])
@pytest.mark.parametrize("codes", CODES)
def test_every_pixel_of_a_slice_lies_where_its_affine_says(codes, tilt):
    slices = cut(volume(codes, (1.0, 1.0, 1.0), (6, 7, 8), tilt), "nifti")
    assert slices.plane == "axial"
    for k, piece in enumerate(slices.array):
        affine = slices.affine.copy()
        affine[:3, 3] += k * affine[:3, 2]
        np.testing.assert_allclose(piece[0], value_at(affine, *piece.shape[1:]), atol=1e-3)


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize(
    "thick, plane, across, down",
    [("S", "axial", (0, -1), (1, -1)), ("A", "coronal", (0, -1), (2, -1)), ("R", "sagittal", (1, -1), (2, -1))],
)
def test_a_volume_is_cut_across_its_thick_slices_and_shown_upright(codes, thick, plane, across, down):
    opposite = {"R": "L", "A": "P", "S": "I"}
    spacing = tuple(4.0 if code in (thick, opposite[thick]) else 0.9 for code in codes)
    slices = cut(volume(codes, spacing, (6, 7, 8)), "nifti")
    assert slices.plane == plane
    assert len(slices.array) == (6, 7, 8)[spacing.index(4.0)]
    assert slices.spacing == pytest.approx((0.9, 0.9))
    assert np.sign(slices.affine[across[0], 0]) == across[1]
    assert np.sign(slices.affine[down[0], 1]) == down[1]


def test_dicom_and_pictures_keep_their_stored_orientation():
    image = volume("RAS", (1, 1, 1), (6, 7, 3))
    np.testing.assert_array_equal(cut(image, "dicom").array[2, 0], image.array[0, :, :, 2].T)
    np.testing.assert_array_equal(cut(image, "dicom").affine, image.affine)


@pytest.mark.parametrize(
    "size, spacing", [((40, 50), (1.0, 1.0)), ((80, 100), (0.5, 0.5)), ((60, 20), (1.0, 2.0)), ((25, 35), (1.0, 1.0))]
)
def test_a_resampled_cropped_and_padded_pixel_lies_where_its_affine_says(size, spacing):
    slices = cut(volume("LPS", (spacing[1], spacing[0], 5.0), (size[1], size[0], 1)), "dicom")
    place = Placement.choose(size, slices.spacing, (32, 44), (1.0, 1.0))
    stored = place.apply(slices.array, np.float32(-9999))[0, 0]
    expected = value_at(place.affine(slices, 0), 32, 44)
    inside = stored != -9999
    inside[:2], inside[-2:], inside[:, :2], inside[:, -2:] = False, False, False, False
    edge = np.pad(inside, 2)
    inside &= np.all([np.roll(edge, shift, (0, 1))[2:-2, 2:-2] for shift in ((2, 0), (-2, 0), (0, 2), (0, -2))], axis=0)
    assert inside.sum() > 200
    np.testing.assert_allclose(stored[inside], expected[inside], atol=1e-2)
    np.testing.assert_allclose(place.spacing(slices.spacing), (1.0, 1.0), rtol=0.02)
    top, left, height, width = place.box
    source = value_at(
        slices.affine @ np.array([[1, 0, 0, left - 0.5], [0, 1, 0, top - 0.5], [0, 0, 1, 0], [0, 0, 0, 1]]), 1, 1
    )
    corner = value_at(
        place.affine(slices, 0) @ np.array([[1, 0, 0, -0.5], [0, 1, 0, -0.5], [0, 0, 1, 0], [0, 0, 0, 1]]), 1, 1
    )
    np.testing.assert_allclose(source, corner)
    assert (height * spacing[0], width * spacing[1]) == pytest.approx((32, 44), rel=0.02)


def test_a_picture_without_pixel_size_is_scaled_to_fit_with_its_proportions():
    place = Placement.choose((100, 50), None, (40, 40), None)
    stored = place.apply(np.full((1, 100, 50), 9, np.uint8), 0)
    assert stored.shape == (1, 40, 40)
    assert (stored == 9).sum() == 40 * 20
    assert (stored[:, :, 10:30] == 9).all()


def test_volumes_of_several_sizes_get_one_grid_and_keep_their_place(tmp_path):
    for i, size in enumerate([(30, 40), (30, 40), (34, 44), (28, 40), (30, 40)]):
        image = volume("RAS", (1.0, 1.0, 3.0), (*size, 4))
        nifti(tmp_path / "scans" / f"{i}.nii", image.array[0] + i, image.affine)
    prepare(tmp_path / "scans", tmp_path / "d", modality="MR")
    opened = Dataset.open(tmp_path / "d")
    assert opened.shape == (1, 40, 30)
    number = {
        case: int(Path(entry["files"][0]).stem)
        for case, entry in json.loads((tmp_path / "d.private.json").read_text())["cases"].items()
    }
    for row in range(len(opened)):
        expected = value_at(np.array(opened.columns["affine"][row]), 40, 30) + number[opened.columns["case"][row]]
        inside = opened.image(row)[0] != np.float32(min(opened.columns["low"][row], 0))
        np.testing.assert_allclose(opened.image(row)[0][inside], expected[inside], atol=1e-2)
        assert inside.mean() > 0.9


def test_non_square_images_stay_non_square_and_are_capped_without_distortion(tmp_path):
    pngs(tmp_path / "scans", shape=(96, 60))
    assert prepare(tmp_path / "scans", tmp_path / "a")["images"] == 12
    assert Dataset.open(tmp_path / "a").shape == (1, 96, 60)
    prepare(tmp_path / "scans", tmp_path / "b", max_side=48)
    assert Dataset.open(tmp_path / "b").shape == (1, 48, 30)


# ------------------------------------------------------------------------------------------------ values


def test_hounsfield_units_go_through_exactly(ct_scans, tmp_path):
    scans = ct_scans
    prepare(scans, tmp_path / "d")
    opened = Dataset.open(tmp_path / "d")
    files = {
        case: entry["files"] for case, entry in json.loads((tmp_path / "d.private.json").read_text())["cases"].items()
    }
    assert opened.info["units"] == "HU"
    assert set(zip(opened.columns["low"], opened.columns["high"])) == {(-1024.0, 1000.0)}
    for row in range(len(opened)):
        source = pydicom.dcmread(files[opened.columns["case"][row]][opened.columns["slice"][row]])
        hu = source.pixel_array.astype(int) - 1024
        assert opened.image(row).dtype == np.int16
        np.testing.assert_array_equal(opened.image(row)[0], hu)
        np.testing.assert_array_equal(
            opened.intensity(row).decode(opened.intensity(row).encode(opened.image(row)))[0], hu
        )
        assert opened.columns["spacing"][row].tolist() == [2.0, 0.5, 0.5]


def test_the_ct_window_never_sees_the_holdout():
    plan = type("NoWish", (), {"window": None, "kept_windows": (None, None), "sources": ()})
    ledger = Ledger(records={0: record(values=np.full(100, 40.0)), 1: record(values=np.full(100, 3000.0))})
    windows, _ = manifest.windows_of(plan, ledger, {0: "train", 1: "holdout"})
    assert windows[0] == windows[1]
    assert windows[0][0].high == 500


def test_a_volume_has_one_window_for_all_its_slices_and_8_bit_pictures_keep_theirs(tmp_path):
    for i in range(4):
        nifti(tmp_path / "v" / f"{i}.nii.gz", noise(i, shape=(10, 12, 6), high=1000, dtype=np.int16) * (i + 1))
    prepare(tmp_path / "v", tmp_path / "dv", modality="MR")
    columns = Dataset.open(tmp_path / "dv").columns
    assert len(set(columns["high"])) == len(set(zip(columns["case"], columns["low"], columns["high"]))) == 4
    prepare(pngs(tmp_path / "p"), tmp_path / "dp")
    columns = Dataset.open(tmp_path / "dp").columns
    assert Dataset.open(tmp_path / "dp").image(0).dtype == np.uint8
    assert set(zip(columns["low"], columns["high"], columns["units"])) == {(0.0, 255.0, "a.u.")}


def test_a_scan_that_the_chosen_dtype_cannot_hold_widens_the_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "MOST_VOLUMES", 2)
    for i in range(4):
        values = noise(i, shape=(10, 12, 6), high=1000, dtype=np.int16)
        nifti(tmp_path / "scans" / f"{i}.nii", values if i != 2 else values.astype(np.float32) + 0.5)
    result = prepare(tmp_path / "scans", tmp_path / "d")
    opened = Dataset.open(tmp_path / "d")
    assert opened.image(0).dtype == np.float32
    assert any("float32" in line for line in result["plan"])
    assert {float(opened.image(row).flat[0] % 1) for row in range(len(opened))} == {0.0, 0.5}


def test_empty_slices_are_dropped_counted_and_said(tmp_path):
    for i in range(3):
        array = noise(i, shape=(20, 20, 8), low=50, high=1000, dtype=np.int16)
        array[:, :, 0] = 0
        array[1:, 1:, 7] = 0
        array[:, :, 7] = np.where(np.arange(400).reshape(20, 20) < 4, 500, 0)
        nifti(tmp_path / "scans" / f"{i}.nii", array, np.diag([1, 1, 3, 1.0]))
    result = prepare(tmp_path / "scans", tmp_path / "d")
    assert result["images"] == 18
    assert sorted(result["empty_slices"].values()) == [3, 3]
    assert sorted(set(Dataset.open(tmp_path / "d").columns["slice"])) == [1, 2, 3, 4, 5, 6]
    assert any("nearly empty" in line for line in result["plan"])


def test_air_slices_of_a_ct_are_empty_whatever_their_noise():
    array = np.random.default_rng(0).normal(-1000, 20, (1, 16, 16, 3))
    array[..., 1] += 1000
    slices = cut(Image(array, np.eye(4), "CT"), "dicom")
    assert [reason is None for reason in why_empty(slices, "CT", 3)] == [False, True, False]


def test_masks_beside_scans_are_left_out(tmp_path):
    for i in range(3):
        nifti(tmp_path / "scans" / f"{i}_scan.nii", noise(i, shape=(16, 16, 6), high=1000, dtype=np.int16))
        mask = np.zeros((16, 16, 6), np.uint8)
        mask[4:12, 4:12, :] = i + 1
        mask[4:12, 9:12, :] = 7
        nifti(tmp_path / "scans" / f"{i}_mask.nii", mask)
    result = prepare(tmp_path / "scans", tmp_path / "d")
    assert result["images"] == 18
    opened = Dataset.open(tmp_path / "d")
    assert opened.image(0).dtype == np.int16
    assert opened.columns["masked"].all()
    # Masks have the orientation of their scans.
    np.testing.assert_array_equal(np.unique(opened.mask(0)), [0, 1, 7])
    prepare(tmp_path / "scans", tmp_path / "none", masks="none")
    opened = Dataset.open(tmp_path / "none")
    assert len(opened) == 18 and opened.mask(0) is None
    assert is_mask(mask.T)
    assert not is_mask(noise("x", shape=(64, 64), high=8))


# ------------------------------------------------------------------------------------------------ what is used


def test_of_a_mixed_folder_the_largest_kind_is_used_and_the_rest_is_said(tmp_path):
    ct_patients(tmp_path / "scans", patients=5)
    for k in range(9):
        dicom(
            tmp_path / "scans" / "mr" / f"{k}.dcm",
            noise("mr", k, high=900, dtype=np.int32),
            "M",
            "MR",
            position=2.0 * k,
        )
    result = prepare(tmp_path / "scans", tmp_path / "d")
    assert (result["modality"], result["images"]) == ("CT", 15)
    assert result["left_aside"] == [{"modality": "MR", "channels": 1, "dimensions": 3, "scans": 1, "images": 9}]
    assert any(line.startswith("left aside: 1 MR 3-D scan ") for line in result["plan"])
    assert prepare(tmp_path / "scans", tmp_path / "d2", modality="mr")["images"] == 9
    with pytest.raises(ValueError, match="expected DX scans, found 5 CT 3-D scans, 1 MR 3-D scan"):
        prepare(tmp_path / "scans", tmp_path / "d3", modality="DX")


def test_the_user_declares_what_files_do_not_say(tmp_path):
    for i in range(4):
        nifti(tmp_path / "scans" / f"{i}.nii", noise(i, shape=(10, 12, 6), low=-1024, high=1000, dtype=np.int16))
    assert prepare(tmp_path / "scans", tmp_path / "a")["modality"] == "OT"
    prepare(tmp_path / "scans", tmp_path / "b", modality="CT")
    info = Dataset.open(tmp_path / "b").info
    assert (info["modality"], info["units"], info["source_format"]) == ("CT", "HU", "nifti")
    with pytest.raises(ValueError, match="expected a modality of CT, MR, CR, DX, MG, US, XA, RF, OT, got 'PET'"):
        prepare(tmp_path / "scans", tmp_path / "c", modality="PET")


def test_the_plan_says_what_prepare_does_and_writes_nothing(ct_scans, tmp_path):
    scans = ct_scans
    chosen = plan(scans)
    assert not list(tmp_path.iterdir())
    result = prepare(scans, tmp_path / "d")
    opened = Dataset.open(tmp_path / "d")
    assert (chosen.modality, chosen.images, chosen.patients) == (
        result["modality"],
        result["images"],
        result["patients"],
    )
    assert (chosen.channels, chosen.height, chosen.width) == opened.shape
    assert list(chosen.spacing) == opened.info["spacing"] == [0.5, 0.5]
    assert [line for line in chosen.reasons if not line.startswith("intensity")] == [
        line for line in result["plan"] if not line.startswith(("intensity", "split: ", "burned-in"))
    ]


@pytest.mark.parametrize(
    "content, words",
    [
        (lambda folder: None, "found none: check the path"),
        (lambda folder: png(folder / "one.png", noise(1)), "expected at least 8 images .* found 1"),
        (lambda folder: (folder / "text.dcm").write_text("not a scan"), "none of them usable"),
        (
            lambda folder: [png(folder / f"{i}.png", noise("same")) for i in range(9)],
            "expected at least 8 images .* found 1: .* 8 images are copies",
        ),
        (lambda folder: [png(folder / f"{i}.png", np.full((12, 10), i, np.uint8)) for i in range(9)], "no contrast"),
    ],
)
def test_a_folder_with_too_little_is_refused_in_one_sentence_and_leaves_no_dataset(tmp_path, content, words):
    (tmp_path / "scans").mkdir()
    content(tmp_path / "scans")
    with pytest.raises(ValueError, match=words) as refused:
        prepare(tmp_path / "scans", tmp_path / "d")
    assert "\n" not in str(refused.value)
    assert not list((tmp_path / "d").glob("*"))


def test_two_volumes_are_enough_with_pairs_which_are_learned_in_patches_but_not_alone(tmp_path):
    for patient in "ab":
        for kind in ("T1", "T2"):
            values = noise(patient, kind, shape=(20, 22, 18), dtype=np.int16)
            nifti(tmp_path / "scans" / patient / f"{kind}.nii", values)
    with pytest.raises(ValueError, match="expected at least 8 volumes to learn from, found 4"):
        prepare(tmp_path / "scans", tmp_path / "alone", plan={"dimensions": 3})
    prepare(tmp_path / "scans", tmp_path / "pairs", pairs="*T1*:*T2*", plan={"dimensions": 3})
    assert len(Dataset.open(tmp_path / "pairs")) == 2
    (tmp_path / "scans" / "b" / "T2.nii").unlink()
    with pytest.raises(ValueError, match="expected at least 2 volumes to learn from, found 1"):
        prepare(tmp_path / "scans", tmp_path / "one", pairs="*T1*:*T2*", plan={"dimensions": 3})


def test_a_missing_folder_and_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="found nothing at"):
        prepare(tmp_path / "nowhere", tmp_path / "d")
    pngs(tmp_path / "scans")
    with pytest.raises(ValueError, match="expected the dataset outside the folder of scans"):
        prepare(tmp_path / "scans", tmp_path / "scans" / "dataset")
    with pytest.raises(ValueError, match="max_side of at least 16"):
        prepare(tmp_path / "scans", tmp_path / "d", max_side=2)
    with pytest.raises(ValueError, match="'auto', 'none', a CSV or TSV file"):
        prepare(tmp_path / "scans", tmp_path / "d", labels="missing.csv")


def test_bad_files_are_listed_with_the_reason_and_the_rest_goes_on(tmp_path):
    scans = tmp_path / "scans"
    for i in range(3):
        nifti(scans / f"{i}.nii", noise(i, shape=(10, 12, 6), high=1000, dtype=np.int16))
    broken = noise("nan", shape=(10, 12, 6), high=1000).astype(np.float32)
    broken[3, 3, 3] = np.nan
    nifti(scans / "nan.nii", broken)
    whole = nifti(scans / "cut.nii", noise("cut", shape=(10, 12, 6), high=1000, dtype=np.int16)).read_bytes()
    (scans / "cut.nii").write_bytes(whole[:900])
    (scans / "text.dcm").write_text("Dear colleague")
    (scans / "empty.png").write_bytes(b"")
    result = prepare(scans, tmp_path / "d")
    assert result["images"] == 18
    reasons = {Path(entry["file"]).name: entry["reason"] for entry in result["skipped"]}
    assert set(reasons) == {"nan.nii", "cut.nii", "text.dcm", "empty.png"}
    assert "NaN" in reasons["nan.nii"]
    assert "truncated" in reasons["cut.nii"]
    assert "signatures" in reasons["text.dcm"]
    assert "empty file" in reasons["empty.png"]
    assert len(Dataset.open(tmp_path / "d").info["skipped"]) == 4


def test_one_broken_slice_is_skipped_by_its_name_and_the_rest_of_the_series_goes_on(tmp_path):
    scans = ct_patients(tmp_path / "scans", patients=4)
    broken = scans / "p1" / "1.dcm"
    prepare(scans, tmp_path / "whole")
    dicom(broken, noise(0, dtype=np.int32), "P1", position=2.0, RescaleSlope=0)
    result = prepare(scans, tmp_path / "d")
    (entry,) = result["skipped"]
    assert entry["file"] == str(broken) and "Rescale Slope" in entry["reason"]
    assert result["images"] == 11 and result["scans"] == 4
    whole, opened = Dataset.open(tmp_path / "whole"), Dataset.open(tmp_path / "d")
    place = dict(zip(whole.columns["sha256"], zip(whole.columns["slice"], whole.columns["affine"])))
    for digest, k, affine in zip(opened.columns["sha256"], opened.columns["slice"], opened.columns["affine"]):
        assert k == place[digest][0]
        np.testing.assert_allclose(np.array(affine)[:, [0, 1, 3]], np.array(place[digest][1])[:, [0, 1, 3]])
    assert len(set(opened.columns["case"])) == 4
    assert len(opened.info["skipped"]) == 1 and "1.dcm" not in json.dumps(opened.info)


def test_a_scan_whose_sampled_voxels_are_all_equal_is_skipped_and_the_rest_goes_on(tmp_path):
    scans = pngs(tmp_path / "scans", high=60000, dtype=np.uint16)
    dot = np.zeros((1500, 1500), np.uint16)
    dot[0, 1] = 9
    png(scans / "dot.png", dot)
    result = prepare(scans, tmp_path / "d")
    assert result["images"] == 12
    (entry,) = result["skipped"]
    assert Path(entry["file"]).name == "dot.png" and "one constant value" in entry["reason"]


# ------------------------------------------------------------------------------------------------ masks and pairs


def square(shape, where, value=1):
    mask = np.zeros(shape, np.uint8)
    mask[3:8, 3:9, where] = value
    return mask


def test_masks_have_the_place_of_their_images_on_every_grid(tmp_path):
    for i in range(9):
        image = noise(i, shape=(20, 16, 6), high=500, dtype=np.int16)
        mask = (image > 400).astype(np.uint8) * (1 + i % 2)
        affine = np.diag([-1.0, 1.0, 3.0, 1.0]) if i % 2 else np.diag([1.0, -1.0, -3.0, 1.0])
        nifti(tmp_path / "s" / "images" / f"{i}.nii", image, affine)
        nifti(tmp_path / "s" / "labels" / f"{i}.nii", mask, affine)
    for plan_text in ("{}", '{"dimensions": 3}', '{"height": 30, "width": 12}'):
        prepare(tmp_path / "s", tmp_path / "d", modality="MR", plan=plan_text)
        opened = Dataset.open(tmp_path / "d")
        for row in range(len(opened)):
            image, mask = opened.image(row)[0], opened.mask(row)
            inside = image > 400
            np.testing.assert_array_equal(mask > 0, inside)
            assert set(np.unique(mask)) <= ({0, 1} if 1 in mask else {0, 2})


@pytest.mark.parametrize(
    ("slices", "plan", "advised"), [(16, None, True), (15, None, False), (16, '{"dimensions": 2}', False)]
)
def test_few_volumes_with_masks_are_stored_as_slices_with_the_way_to_whole_ones(tmp_path, slices, plan, advised):
    for i in range(3):
        nifti(tmp_path / "s" / "images" / f"{i}.nii", noise(i, shape=(16, 16, slices), high=500, dtype=np.int16))
        nifti(tmp_path / "s" / "labels" / f"{i}.nii", square((16, 16, slices), slice(4)))
    result = prepare(tmp_path / "s", tmp_path / "d", modality="MR", plan=plan)
    words = " ".join(result["plan"])
    assert Dataset.open(tmp_path / "d").info["depth"] is None
    assert ("a few whole volumes teach more" in words) == advised


def test_a_mask_that_marks_nothing_is_a_mask(tmp_path):
    for i in range(5):
        nifti(tmp_path / "s" / "images" / f"{i}.nii", noise(i, shape=(12, 12, 4), high=500, dtype=np.int16))
        nifti(tmp_path / "s" / "labels" / f"{i}.nii", square((12, 12, 4), slice(0 if i else 4, 4)))
    prepare(tmp_path / "s", tmp_path / "d", masks="images/*.nii:labels/*.nii")
    opened = Dataset.open(tmp_path / "d")
    assert opened.columns["masked"].all()
    assert sum(not opened.mask(row).any() for row in range(len(opened))) == 4


def test_an_image_with_a_mask_is_no_copy_of_the_same_image_without(tmp_path):
    for i in range(5):
        nifti(tmp_path / "s" / "images" / f"{i}.nii", noise(i, shape=(12, 12, 4), high=500, dtype=np.int16))
        nifti(tmp_path / "s" / "labels" / f"{i}.nii", square((12, 12, 4), slice(4)))
    shutil.copy(tmp_path / "s" / "images" / "3.nii", tmp_path / "s" / "images" / "0_raw.nii")
    prepare(tmp_path / "s", tmp_path / "d", masks="images/*.nii:labels/*.nii")
    assert Dataset.open(tmp_path / "d").columns["masked"].sum() == 20


@pytest.mark.parametrize("lesion", [slice(1, 3), slice(6, 9)])
def test_a_mask_survives_a_broken_slice_and_a_volume_does_not(tmp_path, lesion):
    for p in range(4):
        for k in range(10):
            pixels = noise(p, k, shape=(12, 12), low=-1024, high=900, dtype=np.int32)
            dicom(tmp_path / "s" / "images" / f"p{p}" / f"{k}.dcm", pixels, f"P{p}", position=2.0 * k)
        nifti(tmp_path / "s" / "masks" / f"p{p}.nii", square((12, 12, 10), lesion), np.diag([-0.5, -0.5, 2.0, 1.0]))
    dicom(
        tmp_path / "s" / "images" / "p0" / "4.dcm",
        noise(0, shape=(12, 12), dtype=np.int32),
        "P0",
        position=8.0,
        RescaleSlope=0,
    )
    result = prepare(tmp_path / "s", tmp_path / "d", masks="images/*:masks/*.nii")
    opened = Dataset.open(tmp_path / "d")
    assert len(result["skipped"]) == 1 and len(opened) == 39
    assert opened.columns["masked"].all()
    assert sum(bool(opened.mask(row).any()) for row in range(39)) == 4 * (lesion.stop - lesion.start)


def test_a_series_with_a_broken_slice_is_no_volume(tmp_path):
    scans = ct_patients(tmp_path / "s", patients=9, slices=10)
    dicom(scans / "p0" / "3.dcm", noise(0, dtype=np.int32), "P0", position=6.0, RescaleSlope=0)
    result = prepare(scans, tmp_path / "d", plan='{"dimensions": 3}')
    assert result["images"] == 8 and Dataset.open(tmp_path / "d").shape == (1, 10, 12, 10)
    assert any("expected a whole series for a volume" in entry["reason"] for entry in result["skipped"])


def paired_scans(folder, count=9, top=300):
    """MR and CT of each patient on one grid, in DICOM; CT of patient p reaches top + 300 p HU."""
    for p in range(count):
        for k in range(4):
            mr = noise("mr", p, k, shape=(16, 16), high=800, dtype=np.int32)
            ct = noise("ct", p, k, shape=(16, 16), low=-1000, high=top + 300 * p, dtype=np.int32)
            dicom(folder / f"p{p}" / "mr" / f"{k}.dcm", mr, f"P{p}", "MR", "mr", 2.0 * k)
            dicom(folder / f"p{p}" / "ct" / f"{k}.dcm", ct, f"P{p}", "CT", "ct", 2.0 * k)
    return folder


def test_pairs_lie_on_one_grid_and_a_ct_target_has_one_window_from_training_patients(tmp_path):
    scans = paired_scans(tmp_path / "s")
    result = prepare(scans, tmp_path / "d", pairs="MR:CT")
    opened = Dataset.open(tmp_path / "d")
    assert (result["modality"], opened.info["target"]["modality"], opened.info["target"]["units"]) == ("MR", "CT", "HU")
    windows = set(zip(opened.columns["target_low"].tolist(), opened.columns["target_high"].tolist()))
    assert len(windows) == 1
    files = json.loads((tmp_path / "d.private.json").read_text())["cases"]
    for row in range(len(opened)):
        source = Path(files[opened.columns["case"][row]]["files"][opened.columns["slice"][row]])
        target = source.parent.parent / "ct" / source.name
        hu = pydicom.dcmread(target).pixel_array.astype(int) - 1024
        np.testing.assert_array_equal(opened.target(row)[0], hu)
        np.testing.assert_array_equal(opened.image(row)[0], pydicom.dcmread(source).pixel_array)
    assert any(line.startswith("intensity of the pairs: CT") for line in result["plan"])


def test_neighbours_of_a_slice_stay_in_its_scan(tmp_path):
    prepare(ct_patients(tmp_path / "s", patients=4, slices=6), tmp_path / "d", plan='{"neighbours": 1}')
    opened = Dataset.open(tmp_path / "d")
    assert opened.info["neighbours"] == 1
    cases, slices = opened.columns["case"], opened.columns["slice"]
    for row in range(len(opened)):
        around = opened.neighbours(row)
        assert len(around) == 3 and around[1] == row
        assert set(cases[around]) == {cases[row]}
        np.testing.assert_array_equal(slices[around], np.clip(slices[row] + [-1, 0, 1], 0, 5))


# ------------------------------------------------------------------------------------------------ choices of the user


@pytest.mark.parametrize(
    "wished, words",
    [
        ('{"hight": 3}', "expected choices of dimensions.* got 'hight'"),
        ("[1]", "expected a JSON file or JSON text"),
        ("{1}", "expected JSON in the plan"),
        ("nowhere.json", "found no file nowhere.json"),
        ('{"height": 2}', "a whole number from 8 to 8192 as height"),
        ('{"spacing": [NaN, 1]}', "numbers as spacing"),
        ('{"fractions": [1, 2]}', "shares of train"),
        ('{"fractions": {"train": 0.4, "holdout": 0.4}}', "add up to 1"),
        ('{"window": [5, 1]}', "low < high"),
        ('{"percentiles": [5, 50]}', "no percentiles in the plan for CT"),
        ('{"dtype": "uint8"}', "holds the scans' int16 exactly, got 'uint8'"),
        ('{"depth": 32}', "expected dimensions 3 in the plan for a depth"),
        ('{"bias_field": true}', "expected MR scans"),
        ('{"splits": "none.csv"}', "a CSV file as splits"),
    ],
)
def test_choices_that_do_not_fit_are_refused_in_one_sentence(ct_scans, tmp_path, wished, words):
    with pytest.raises(ValueError, match=words) as refused:
        prepare(ct_scans, tmp_path / "d", plan=wished)
    assert "\n" not in str(refused.value)


def test_choices_are_carried_out_said_and_kept_in_the_dataset(ct_scans, tmp_path):
    wished = {"height": 16, "width": 20, "spacing": [0.25, 0.25], "window": [-160, 240], "crop": "none",
              "fractions": {"train": 0.5, "holdout": 0.5}, "dtype": "float32"}  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(wished))
    result = prepare(ct_scans, tmp_path / "d", plan=tmp_path / "plan.json")
    opened = Dataset.open(tmp_path / "d")
    assert opened.shape == (1, 16, 20) and opened.image(0).dtype == np.float32
    assert opened.info["spacing"] == [0.25, 0.25]
    assert set(zip(opened.columns["low"].tolist(), opened.columns["high"].tolist())) == {(-160.0, 240.0)}
    assert {name: size["patients"] for name, size in result["splits"].items()} == {
        "train": 5,
        "validation": 0,
        "calibration": 0,
        "holdout": 5,
    }
    assert set(opened.info["overrides"]) == set(wished)
    assert sum("as asked" in line or "as wished" in line for line in result["plan"]) >= 4


def test_a_changed_plan_is_a_plan(ct_scans, tmp_path):
    chosen = replace(plan(ct_scans), height=20, crop="none")
    prepare(ct_scans, tmp_path / "d", plan=chosen)
    assert Dataset.open(tmp_path / "d").shape == (1, 20, 10)


def test_splits_of_the_users_table_are_kept_and_the_rest_is_spread_and_said(ct_scans, tmp_path):
    (tmp_path / "t.csv").write_text(
        "patient,split\n" + "".join(f"P{p},{'test' if p < 3 else 'train'}\n" for p in range(6))
    )
    result = prepare(ct_scans, tmp_path / "d", plan=json.dumps({"splits": str(tmp_path / "t.csv")}))
    private = json.loads((tmp_path / "d.private.json").read_text())["splits"]
    assert [private[f"patient:P{p}"] for p in range(6)] == ["holdout"] * 3 + ["train"] * 3
    assert any("as the table says for 6 patients; 4 that it does not name" in line for line in result["plan"])
    assert str(tmp_path) not in json.dumps(Dataset.open(tmp_path / "d").info)


def test_histograms_are_matched_to_training_patients_alone(tmp_path):
    for i in range(12):
        body = np.zeros((20, 20, 6))
        body[4:16, 4:16] = 300 + 400 * (np.indices((12, 12, 6)).sum(0) % 2)
        body += np.random.default_rng(i).normal(0, 10, body.shape)
        nifti(tmp_path / "s" / f"{i}.nii", (body * (1 + i)).astype(np.float32))
    prepare(tmp_path / "s", tmp_path / "d", modality="MR", plan='{"match_histogram": true}')
    opened = Dataset.open(tmp_path / "d")
    bright = [np.percentile(opened.image(row), 95) for row in range(len(opened))]
    assert np.ptp(bright) < 0.1 * np.mean(bright)
    private = json.loads((tmp_path / "d.private.json").read_text())["splits"]
    learned = sorted(private)[:: max(3, -(-len(private) // 24))]
    assert {private[patient] for patient in learned} == {"train"}


# ------------------------------------------------------------------------------------------------ labels


def test_folders_that_are_named_after_people_are_no_classes(tmp_path):
    for name in ("Meier_Hans", "Mueller_Anna", "OBrien_Pat"):
        pngs(tmp_path / "s" / name, 18)
    result = prepare(tmp_path / "s", tmp_path / "d")
    assert result["labels"] == []
    assert any("look like names of people" in line for line in result["plan"])


def test_sub_folders_become_classes(tmp_path):
    for name in ("normal", "pneumonia"):
        pngs(tmp_path / "scans" / name, 20)
    result = prepare(tmp_path / "scans", tmp_path / "d")
    opened = Dataset.open(tmp_path / "d")
    assert opened.labels == ["normal", "pneumonia"]
    assert np.bincount(opened.classes()).tolist() == [20, 20]
    assert opened.info["label_counts"]["train"] == {"normal": 14, "pneumonia": 14}
    assert opened.info["label_counts"]["holdout"] == {"normal": 3, "pneumonia": 3}
    assert any(line.startswith("labels: 2 classes from the sub-folders") for line in result["plan"])


@pytest.mark.parametrize(
    "sizes, patients, words",
    [
        ({"a": 40}, 40, "one sub-folder only"),
        ({f"s{i}x": 3 for i in range(30)}, 3, "look like patients or series"),
        ({"a": 40, "b": 2}, 2, "too small for a class"),
        ({"a": 40, "b": 40}, 1, "looks like a patient"),
        ({"train": 40, "test": 40}, 40, "what the files are for"),
        ({"patient01": 40, "patient02": 40}, 40, "numbered sub-folders"),
        ({"a": 40, "b": 40}, 40, None),
    ],
)
def test_only_sub_folders_that_look_like_classes_are_classes(sizes, patients, words):
    doubt = labels.why_not_classes(sizes, {name: {f"{name}{i}" for i in range(patients)} for name in sizes})
    assert (doubt is None) == (words is None)
    assert words is None or words in doubt


def test_the_folders_of_dicom_patients_are_no_classes(tmp_path):
    result = prepare(ct_patients(tmp_path / "scans", patients=4), tmp_path / "d")
    assert result["labels"] == []
    assert any(line.startswith("labels: none (4 sub-folders") for line in result["plan"])


@pytest.mark.parametrize(
    "table",
    [
        "file,label\n" + "".join(f"p{p}/{k}.dcm,{'ab'[p % 2]}\n" for p in range(9) for k in range(3)),
        "Label,Patient\n" + "".join(f"{'ab'[p % 2]},P{p}\n" for p in range(9)),
        "uid,label\n" + "".join(f"1.2.4.{derive_seed(f'P{p}')},{'ab'[p % 2]}\n" for p in range(9)),
        "file,label\n" + "".join(f"p{p},{'ab'[p % 2]}\n" for p in range(9)),
    ],
)
def test_a_table_gives_labels_by_file_series_folder_patient_or_study(ct_scans, tmp_path, table):
    scans = ct_scans
    (tmp_path / "t.csv").write_text(table)
    result = prepare(scans, tmp_path / "d", labels=str(tmp_path / "t.csv"))
    opened = Dataset.open(tmp_path / "d")
    assert opened.labels == ["a", "b"]
    assert np.bincount(opened.classes() + 1).tolist() == [3, 15, 12]
    assert any("1 scans are not in it" in line for line in result["plan"])


@pytest.mark.parametrize(
    "table, words",
    [
        (
            "file,age\n000.png,3\n",
            "expected the columns label and one of file, patient, uid, participant_id in .* found file, age",
        ),
        ("file,label\nother.png,a\n", "found no match among 1 rows"),
        (
            "file,label\n" + "".join(f"{i:03d}.png,Jane Doe {i}\n" for i in range(12)),
            "12 different values for 12 scans",
        ),
        ("file,label\n" + "".join(f"{i:03d}.png,{'ab'[i % 2] * 70}\n" for i in range(12)), "free text is no class"),
        ("file,label\n" + "".join(f"{i:03d}.png,a\n" for i in range(12)), "found 'a' alone"),
        ("file,label\n000.png,a\n000.png,b\n", "expected one label for each file"),
    ],
)
def test_a_table_that_gives_no_classes_is_refused(tmp_path, table, words):
    pngs(tmp_path / "scans")
    (tmp_path / "t.csv").write_text(table)
    with pytest.raises(ValueError, match=words):
        prepare(tmp_path / "scans", tmp_path / "d", labels=str(tmp_path / "t.csv"))


def test_a_dicom_attribute_gives_labels(tmp_path):
    for p in range(10):
        pixels = noise(p, low=-1024, high=900, dtype=np.int32)
        dicom(tmp_path / "s" / f"{p}.dcm", pixels, f"P{p}", BodyPartExamined="CHEST" if p % 2 else "ABDOMEN")
    prepare(tmp_path / "s", tmp_path / "d", labels="tag:BodyPartExamined")
    opened = Dataset.open(tmp_path / "d")
    assert opened.labels == ["ABDOMEN", "CHEST"]
    assert np.bincount(opened.classes()).tolist() == [5, 5]
    with pytest.raises(ValueError, match="PatientName"):
        prepare(tmp_path / "s", tmp_path / "d", labels="tag:PatientName")


# ------------------------------------------------------------------------------------------------ privacy


def test_a_planted_identifier_is_found_nowhere_in_the_dataset(tmp_path):
    planted = [
        "Mustermann",
        "PID4711",
        "19560229",
        "Dr Nosey",
        "1.2.840.99999.4711",
        "Sankt Elsewhere",
        "readable remark",
    ]
    scans = tmp_path / "Mustermann_PID4711"
    for p in range(9):
        dicom(
            scans / f"Mustermann{p}" / "PID4711.dcm",
            noise(p, low=-1024, high=900, dtype=np.int32),
            f"PID4711-{p}",
            StudyInstanceUID=f"1.2.840.99999.4711.{p}",
            PatientBirthDate="19560229",
            StudyDate="19560229",
            ReferringPhysicianName="Dr Nosey",
            InstitutionName="Sankt Elsewhere",
            SeriesDescription="readable remark",
            ImageComments="readable remark",
        )
    (scans / "Mustermann.dcm").write_text("readable remark")
    truncated = (scans / "Mustermann0" / "PID4711.dcm").read_bytes()[:-20]
    (scans / "Mustermann0" / "PID4711_cut.dcm").write_bytes(truncated)
    (tmp_path / "Mustermann.csv").write_text(
        "patient,label\n" + "".join(f"PID4711-{p},{'ab'[p % 2]}\n" for p in range(9))
    )
    result = prepare(scans, tmp_path / "d", labels=str(tmp_path / "Mustermann.csv"))
    assert len(result["skipped"]) == 2
    for file in (tmp_path / "d").rglob("*"):
        content = file.read_bytes() if file.is_file() else b""
        for word in [*planted, *(f"1.2.5.{derive_seed(f'PID4711-{p}', '1')}" for p in range(9))]:
            assert word.encode() not in content, (file.name, word)
            assert word not in str(file.relative_to(tmp_path))
    assert "PID4711-3" in (tmp_path / "d.private.json").read_text()


def test_the_private_file_is_readable_for_its_owner_alone_and_keeps_the_key(tmp_path):
    scans = pngs(tmp_path / "scans")
    prepare(scans, tmp_path / "d")
    private = tmp_path / "d.private.json"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    key, cases = json.loads(private.read_text())["key"], Dataset.open(tmp_path / "d").columns["case"].tolist()
    prepare(scans, tmp_path / "d", seed=1)
    assert json.loads(private.read_text())["key"] == key
    assert Dataset.open(tmp_path / "d").columns["case"].tolist() == cases
    assert stat.S_IMODE((tmp_path / "d.private.cache").stat().st_mode) == 0o700
    prepare(scans, tmp_path / "other")
    assert not set(Dataset.open(tmp_path / "other").columns["case"]) & set(cases)
    assert Dataset.open(tmp_path / "other").info["hash"] == Dataset.open(tmp_path / "d").info["hash"]


def test_a_reason_loses_the_files_own_words_and_keeps_the_tag():
    reason = "expected Modality (0008,0060) CT, found 'Jane Doe' in scan7.dcm (ValueError: Jane)"
    assert scrub(reason, ["scan7.dcm", "scan7"]) == "expected Modality (0008,0060) CT, found ... in ..."
    for reason in (
        "expected whole numbers in the header's sizes, found 'SECRET 1 1'",
        "found " + repr("O'SECRET\"X") + " in the header's field",
        "ValueError (bad (x) SECRET): y",
        'found "SECRET\'s" (0008,0060) here',
    ):
        assert "SECRET" not in scrub(reason, []), reason
    assert scrub("the file is broken", ["brok"]) == "the file is broken"


# ------------------------------------------------------------------------------------------------ running


def test_the_same_command_over_unchanged_files_returns_what_it_said(tmp_path):
    scans = pngs(tmp_path / "scans")
    first = prepare(scans, tmp_path / "d")
    made = (tmp_path / "d" / "dataset.json").stat().st_mtime_ns
    again = prepare(scans, tmp_path / "d")
    assert again == {**first, "unchanged": True}
    assert (tmp_path / "d" / "dataset.json").stat().st_mtime_ns == made
    png(scans / "more.png", noise("more"))
    assert prepare(scans, tmp_path / "d")["images"] == 13


def test_a_killed_prepare_leaves_no_dataset_and_the_same_command_finishes_it(tmp_path, monkeypatch):
    scans = pngs(tmp_path / "scans")
    real = stream.store_all

    def killed(*arguments):
        yield from list(real(*arguments))[:5]
        raise KeyboardInterrupt

    monkeypatch.setattr(stream, "store_all", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare(scans, tmp_path / "d")
    with pytest.raises(ValueError, match="expected a prepared dataset"):
        Dataset.open(tmp_path / "d")
    monkeypatch.undo()
    assert prepare(scans, tmp_path / "d")["images"] == 12
    assert {path.name for path in (tmp_path / "d").iterdir()} == FILES


def test_several_processes_give_the_same_dataset_as_one(tmp_path):
    scans = pngs(tmp_path / "scans", 40)
    one = prepare(scans, tmp_path / "d", workers=1)
    written = [hashlib.sha256((tmp_path / "d" / name).read_bytes()).hexdigest() for name in sorted(FILES)]
    (tmp_path / "d" / "dataset.json").unlink()
    shutil.rmtree(tmp_path / "d.private.cache")
    assert prepare(scans, tmp_path / "d", workers=2) == one
    assert [hashlib.sha256((tmp_path / "d" / name).read_bytes()).hexdigest() for name in sorted(FILES)] == written


def test_a_target_below_a_file_is_refused_before_the_work(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setattr(stream, "store_all", None)  # never reached
    with pytest.raises(OSError, match="a part of this path is a file"):
        prepare(pngs(tmp_path / "scans"), tmp_path / "file" / "d")


def test_a_read_only_target_is_refused(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    if os.access(closed, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(OSError, match="read-only for this user"):
        prepare(pngs(tmp_path / "scans"), closed / "d")


# ------------------------------------------------------------------------------------------------ real scans


def test_real_chest_ct_slices_are_split_by_patient_in_hounsfield_units(shared_data, tmp_path):
    result = prepare(shared_data / "chest_ct_slices_contrast_labels", tmp_path / "d", max_side=64)
    opened = Dataset.open(tmp_path / "d")
    assert (result["modality"], result["images"], result["patients"]) == ("CT", 27, 14)
    assert len(set(zip(opened.columns["patient"], opened.columns["split"]))) == 14
    assert min(opened.image(row).min() for row in range(27)) >= -1100  # no padding of -2000 or -2048 is left
    assert b"TCGA" not in b"".join(path.read_bytes() for path in (tmp_path / "d").iterdir())


def test_real_hippocampus_volumes_become_upright_slices_on_one_grid(shared_data, tmp_path):
    result = prepare(shared_data / "image_to_mask_3d_hippocampus" / "images", tmp_path / "d", modality="MR")
    opened = Dataset.open(tmp_path / "d")
    assert result["patients"] == 70
    assert opened.shape[1] > opened.shape[2]  # longer from front to back
    directions = np.sign(np.array(opened.columns["affine"])[:, [0, 1], [0, 1]])
    assert (directions == -1).all()  # columns to the left, rows backwards
