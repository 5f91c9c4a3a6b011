"""phantom: the files it writes, read back with other software, agree with the recorded truth."""

from __future__ import annotations

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from scansmith import anatomy
from scansmith.phantom import phantom
from scansmith.runtime import derive_seed


def truth_of(out: Path) -> list[dict[str, str]]:
    with open(out / "truth" / "truth.csv", newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
    out = tmp_path_factory.mktemp("phantom")
    report = phantom(out, patients=2, modality="all", slices=3, size=48, lesions=0.5, seed=4)
    return out, report


def dicom_affine(files):
    """Affine in RAS+ of a sorted series, from the standard's own words (PS3.3, C.7.6.2.1.1), by pydicom alone."""
    import pydicom

    series = [pydicom.dcmread(file) for file in files]
    first, last = (np.array(s.ImagePositionPatient, float) for s in (series[0], series[-1]))
    row, column = np.array(series[0].ImageOrientationPatient, float).reshape(2, 3)
    down, across = map(float, series[0].PixelSpacing)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = row * across, column * down
    affine[:3, 2] = (last - first) / (len(series) - 1)
    affine[:3, 3] = first
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine, series


def test_the_report_counts_what_lies_on_disk(everything):
    out, report = everything
    assert report["patients"] == 2
    assert report["with_lesion"] == 1
    assert report["modalities"] == ["CT", "T1", "T2", "XR"]
    assert report["files"] == len([p for p in (out / "scans").rglob("*") if p.is_file()]) == 2 * (3 * 3 + 1)
    json.dumps(report)


def test_dicom_holds_the_same_hounsfield_units_and_geometry_as_the_rendering(everything):
    out, _ = everything
    affine, series = dicom_affine(sorted((out / "scans" / "patient-0002" / "CT").glob("*.dcm")))
    raster = anatomy.axial_raster(48, 3)
    np.testing.assert_allclose(affine, anatomy.affine(raster), atol=1e-3)
    patient = anatomy.draw_patient(derive_seed(4, "phantom", 1), lesion=True)
    wanted = anatomy.ct(anatomy.render(patient, raster), derive_seed(patient.seed, "noise"), 1.0)
    for k, s in enumerate(series):
        hu = s.pixel_array * float(s.RescaleSlope) + float(s.RescaleIntercept)
        np.testing.assert_array_equal(hu, wanted.array[0, :, :, k].T)


def test_scans_of_one_patient_share_a_patient_id_and_patients_do_not(everything):
    import pydicom

    out, _ = everything
    ids = {}
    for folder in sorted((out / "scans").iterdir()):
        found = {pydicom.dcmread(file, stop_before_pixels=True).PatientID for file in folder.rglob("*.dcm")}
        assert len(found) == 1, folder
        ids[folder.name] = found.pop()
    assert len(set(ids.values())) == 2


def test_the_radiograph_is_a_monochrome2_image_of_the_chest(everything):
    import pydicom

    out, _ = everything
    film = pydicom.dcmread(out / "scans" / "patient-0001" / "XR.dcm")
    assert film.Modality == "DX"
    assert film.PhotometricInterpretation == "MONOCHROME2"
    assert film.pixel_array.shape == (48, 48)


def test_masks_lie_apart_from_scans_in_the_scans_geometry(everything):
    import nibabel

    out, _ = everything
    assert not list((out / "scans").rglob("*.nii*"))
    lesion = nibabel.load(out / "truth" / "patient-0002" / "lesion.nii.gz")
    labels = nibabel.load(out / "truth" / "patient-0002" / "labels.nii.gz")
    np.testing.assert_allclose(lesion.affine, anatomy.affine(anatomy.axial_raster(48, 3)), atol=1e-3)
    assert set(np.unique(lesion.get_fdata())) <= {0.0, 1.0}
    names = json.loads((out / "truth" / "labels.json").read_text())
    found = {names[str(int(value))] for value in np.unique(labels.get_fdata())}
    assert {"air", "fat", "muscle", "lung"} <= found
    assert not (out / "truth" / "patient-0001" / "lesion.nii.gz").exists()


def test_the_truth_table_gives_the_lesions_place_in_the_masks_frame(tmp_path):
    import nibabel

    phantom(tmp_path, patients=1, modality="CT", format="nifti", slices=60, size=64, lesions=1.0, seed=2)
    (row,) = truth_of(tmp_path)
    mask = nibabel.load(tmp_path / "truth" / "patient-0001" / "lesion.nii.gz")
    centre = nibabel.affines.apply_affine(mask.affine, np.argwhere(mask.get_fdata() > 0)).mean(axis=0)
    wanted = [float(row[name]) for name in ("x_mm", "y_mm", "z_mm")]
    assert np.linalg.norm(centre - wanted) < 4.0
    assert row["lesion"] == "yes"
    assert 12.0 <= float(row["diameter_mm"]) <= 32.0
    scan = nibabel.load(tmp_path / "scans" / "patient-0001" / "CT.nii.gz")
    np.testing.assert_allclose(scan.affine, mask.affine, atol=1e-3)
    assert scan.shape == mask.shape == (64, 64, 60)


@pytest.mark.parametrize(("share", "wanted"), [(0.0, 0), (0.25, 2), (0.5, 4), (1.0, 8)])
def test_the_wished_share_of_patients_has_a_lesion(tmp_path, share, wanted):
    report = phantom(tmp_path, patients=8, format="png", slices=1, size=32, lesions=share)
    assert report["with_lesion"] == wanted
    assert [row["lesion"] for row in truth_of(tmp_path)].count("yes") == wanted


def test_class_folders_sort_patients_by_lesion(tmp_path):
    phantom(tmp_path, patients=4, format="png", slices=2, size=32, by_class=True)
    lesion = {path.name for path in (tmp_path / "scans" / "lesion").iterdir()}
    normal = {path.name for path in (tmp_path / "scans" / "normal").iterdir()}
    rows = truth_of(tmp_path)
    assert lesion == {row["patient"] for row in rows if row["lesion"] == "yes"}
    assert normal == {row["patient"] for row in rows if row["lesion"] == "no"}
    assert len(list((tmp_path / "scans").rglob("*.png"))) == 8


def test_patient_i_depends_on_seed_and_i_alone_byte_for_byte(tmp_path):
    def digests(folder):
        return {
            path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob("*.*"))
            if path.is_file()
        }

    for name, count in (("one", 1), ("three", 3), ("again", 3)):
        phantom(tmp_path / name, patients=count, slices=2, size=32, seed=9)
    assert digests(tmp_path / "three") == digests(tmp_path / "again")
    one, three = digests(tmp_path / "one" / "scans"), digests(tmp_path / "three" / "scans")
    assert one.items() <= three.items()
    assert len(set(three.values())) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"patients": 0}, "patients"),
        ({"size": 8}, "size"),
        ({"lesions": 1.5}, "lesions"),
        ({"modality": "PET"}, "modality"),
        ({"format": "bmp"}, "format"),
        ({"slices": 0}, "slices"),
        ({"dose": 0.0}, "dose"),
    ],
)
def test_an_option_outside_its_range_is_refused_by_name(tmp_path, options, words):
    with pytest.raises(ValueError, match=f"expected {words}"):
        phantom(tmp_path, **options)
    assert not any(tmp_path.iterdir())
