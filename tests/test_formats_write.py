"""Scans that are written hold the values, the place in the patient and the mark, as other programs read them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from PIL import Image as Picture

from scansmith.formats.write import WRITERS, Marking, read_manifest, write, write_manifest
from scansmith.image import Image

MARKING = Marking("scansmith 0.1.0", "3fa2b1c0deadbeef", 7, 17, "toy köpfe \\ 日本")


def turned(angle: float = 0.3, tilt: float = -0.2) -> np.ndarray:
    """A rotation about S, then about R."""
    c, s, d, t = np.cos(angle), np.sin(angle), np.cos(tilt), np.sin(tilt)
    return np.array([[1, 0, 0], [0, d, -t], [0, t, d]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def affine(axes: np.ndarray, spacing: tuple[float, float, float] = (0.7, 0.8, 2.5)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = axes * spacing
    result[:3, 3] = -123.456789012, 50.25, 1000.0 / 3
    return result


SHEAR = np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1.0]])
AFFINES = {
    "RAS": affine(np.eye(3)),
    "LPS": affine(np.diag([-1.0, -1, 1])),
    "left-handed": affine(np.diag([-1.0, -1, -1])),
    "sagittal": affine(np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]])),
    "oblique": affine(turned()),
    "oblique flipped": affine(turned() @ np.diag([1.0, -1, 1])),
    "tilted gantry": affine(turned() @ SHEAR),
}


def scan(values: np.ndarray, modality: str = "OT", where: str = "LPS", known: bool = True) -> Image:
    return Image(values, AFFINES[where], modality, "HU" if modality == "CT" else "a.u.", known)


def values(low: float, high: float, dtype: type, shape: tuple[int, ...] = (1, 7, 5, 1), seed: int = 0) -> np.ndarray:
    """Random values that touch both ends."""
    array = np.random.default_rng(seed).uniform(low, high, shape)
    array.flat[0], array.flat[1] = low, high
    return (np.rint(array) if np.dtype(dtype).kind in "iu" else array).astype(dtype)


# ------------------------------------------------------------------------------------------------ reading back


def png_physical(path: Path) -> tuple[np.ndarray, dict[str, str]]:
    """(I, J) physical values as any program that knows the text chunks computes them."""
    with Picture.open(path) as picture:
        text = dict(picture.text)
        pixels = np.asarray(picture)
    return (pixels * float(text["scansmith:slope"]) + float(text["scansmith:offset"])).T, text


def dicom_physical(dataset: pydicom.Dataset) -> tuple[np.ndarray, float]:
    """(I, J) physical values and the quantum, through the Modality LUT or the Real World Value Mapping."""
    if "RealWorldValueMappingSequence" in dataset:
        item = dataset.RealWorldValueMappingSequence[0]
        slope, intercept = item.RealWorldValueSlope, item.RealWorldValueIntercept
        assert item.RealWorldValueFirstValueMapped <= dataset.pixel_array.min()
        assert item.RealWorldValueLastValueMapped >= dataset.pixel_array.max()
    else:
        slope, intercept = dataset.get("RescaleSlope", 1), dataset.get("RescaleIntercept", 0)
    return (dataset.pixel_array * float(slope) + float(intercept)).T, float(slope)


def dicom_affine(datasets: list[pydicom.Dataset]) -> np.ndarray:
    """RAS+ affine of a series by the standard's equation C.7.6.2.1-1."""
    first, last = datasets[0], datasets[-1]
    rows, columns = (float(x) for x in first.PixelSpacing)
    orientation = np.array(first.ImageOrientationPatient, float)
    position = np.array(first.ImagePositionPatient, float)
    lps = np.eye(4)
    lps[:3, 0], lps[:3, 1] = orientation[:3] * columns, orientation[3:] * rows
    lps[:3, 2] = (np.array(last.ImagePositionPatient, float) - position) / max(len(datasets) - 1, 1)
    lps[:3, 3] = position
    return np.diag([-1.0, -1, 1, 1]) @ lps


# ------------------------------------------------------------------------------------------------ PNG


@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-1024, 3071, np.int16),
        (-1024, 2000, np.float32),
        (-32768, 32767, np.int16),
        (0, 65535, np.uint16),
        (40000, 65535, np.int32),
        (-9, 65526, np.int32),
        (0, 3, np.int8),
        (-5, -5, np.int16),
        (0, 255, np.uint8),
        (100000, 165535, np.int64),
        (0, 255, np.float32),
    ],
)
@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_integers_survive_png_exactly(tmp_path, low, high, dtype, modality):
    array = np.rint(values(low, high, dtype))
    (path,) = write(scan(array, modality), tmp_path / "a", "png", MARKING)
    assert np.array_equal(png_physical(path)[0], array[0, :, :, 0])


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.7, 9000.123), (1e-30, 2e-30), (1e6, 1e6 + 1), (-1e20, 1e20), (0.1, 0.1)]
)
def test_floats_survive_png_within_half_a_quantum(tmp_path, low, high):
    array = values(low, high, np.float64)
    (path,) = write(scan(array, "MR"), tmp_path / "a", "png", MARKING)
    back, text = png_physical(path)
    slope = float(text["scansmith:slope"])
    assert slope <= max((high - low) / 65534, 1e-300) or low == high
    assert np.abs(back - array[0, :, :, 0]).max() <= slope / 2 + 1e-9 * max(abs(low), abs(high))


@pytest.mark.parametrize(
    "array",
    [
        values(-1024, 3071, np.int16),
        values(0, 4095, np.uint16),
        values(0, 1, np.float32),
        values(0, 1, np.uint8).astype(bool),
    ],
)
def test_an_ordinary_viewer_shows_a_png_that_is_not_black(tmp_path, array):
    (path,) = write(scan(array), tmp_path / "a", "png", MARKING)
    with Picture.open(path) as picture:
        assert picture.mode == "I;16"
        assert np.asarray(picture).max() >= 2**15
        assert np.asarray(picture).min() == 0


def test_every_ct_png_inside_12_bits_has_the_same_scale(tmp_path):
    paths = [
        write(scan(values(*window, np.float32), "CT"), tmp_path / str(window[0]), "png", MARKING)[0]
        for window in [(-1024, 3071), (-100.5, 200), (0, 1)]
    ]
    assert {(png_physical(p)[1]["scansmith:slope"], png_physical(p)[1]["scansmith:offset"]) for p in paths} == {
        ("0.0625", "-1024.0")
    }


def test_a_png_stands_upright(tmp_path):
    array = np.zeros((1, 4, 3, 1), np.uint8)
    array[0, 3, 0, 0] = 200  # I = 3, J = 0: the top right corner
    (path,) = write(scan(array), tmp_path / "a.b", "png", MARKING)
    assert path.name == "a.b.png"
    with Picture.open(path) as picture:
        assert picture.size == (4, 3)
        assert picture.getpixel((3, 0)) == 200


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_colour_stays_8_bit_in_png_and_dicom(tmp_path, dtype):
    array = values(0, 255, np.uint8, (3, 7, 5, 1)).astype(dtype)
    (png,) = write(scan(array), tmp_path / "a", "png", MARKING)
    (dicom,) = write(scan(array), tmp_path / "a", "dicom", MARKING)
    with Picture.open(png) as picture:
        assert np.array_equal(np.asarray(picture).transpose(2, 1, 0), array[..., 0])
    assert np.array_equal(pydicom.dcmread(dicom).pixel_array.transpose(2, 1, 0), array[..., 0])


# ------------------------------------------------------------------------------------------------ NIfTI


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "i4", "u4", "i8", "f4", "f8", "f2", "?"])
@pytest.mark.parametrize("shape", [(1, 4, 3, 2), (1, 4, 3, 1), (3, 4, 3, 2)])
def test_nifti_keeps_every_value_and_integers_as_integers(tmp_path, dtype, shape):
    array = values(0, 100, np.float32, shape).astype(dtype)
    (path,) = write(scan(array), tmp_path / "a", "nifti", MARKING)
    nifti = nibabel.load(path)
    back = np.asanyarray(nifti.dataobj)
    expected = array[0] if shape[0] == 1 else np.moveaxis(array, 0, -1)[:, :, :, None]
    assert np.array_equal(back, expected)
    assert (back.dtype.kind in "iu") == (array.dtype.kind in "iub")
    assert nifti.header["scl_slope"] in (1.0, 0.0) or np.isnan(nifti.header["scl_slope"])


@pytest.mark.parametrize("where", AFFINES)
def test_the_nifti_sform_is_the_affine_in_float32_to_the_bit(tmp_path, where):
    (path,) = write(scan(values(0, 9, np.int16), where=where), tmp_path / "a", "nifti", MARKING)
    nifti = nibabel.load(path)
    assert np.array_equal(nifti.get_sform().astype(np.float32), AFFINES[where].astype(np.float32))
    assert int(nifti.header["sform_code"]) == 1
    assert int(nifti.header["qform_code"]) == (0 if where == "tilted gantry" else 1)
    if where != "tilted gantry":
        assert np.abs(nifti.get_qform() - AFFINES[where]).max() < 1e-4
    assert np.allclose(nifti.header.get_zooms(), scan(values(0, 9, np.int16), where=where).spacing, rtol=1e-6)


def test_a_float32_affine_survives_nifti_exactly(tmp_path):
    exact = AFFINES["oblique"].astype(np.float32).astype(np.float64)
    (path,) = write(Image(values(0, 9, np.int16), exact), tmp_path / "a", "nifti", MARKING)
    assert np.array_equal(nibabel.load(path).affine, exact)


# ------------------------------------------------------------------------------------------------ DICOM


@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "DX", "OT"])
@pytest.mark.parametrize(
    ("low", "high", "dtype"),
    [
        (-1024, 3071, np.int16),
        (-1024, 3071, np.float32),
        (0, 65535, np.uint16),
        (-32768, 32767, np.int32),
        (40000, 99999, np.int32),
        (0, 255, np.uint8),
        (7, 7, np.int16),
        (0, 1, np.int64),
    ],
)
def test_integers_survive_dicom_exactly(tmp_path, modality, low, high, dtype):
    array = np.rint(values(low, high, dtype))
    (path,) = write(scan(array, modality), tmp_path / "a", "dicom", MARKING)
    back, quantum = dicom_physical(pydicom.dcmread(path))
    assert quantum == 1
    assert np.array_equal(back, array[0, :, :, 0])


@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "DX", "OT"])
@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 1.0), (-0.123456789, 3.3e-4), (-900.5, 4000.25), (-1e7, 1e8), (1e6, 1e6 + 1), (0.1, 0.1), (2e-20, 3e-20)],
)
def test_floats_survive_dicom_within_half_a_quantum(tmp_path, modality, low, high):
    array = values(low, high, np.float64)
    (path,) = write(scan(array, modality), tmp_path / "a", "dicom", MARKING)
    back, quantum = dicom_physical(pydicom.dcmread(path))
    span, rounding = high - low, 2e-8 * max(abs(low), abs(high))
    assert np.abs(back - array[0, :, :, 0]).max() <= quantum / 2 * (1 + 1e-9) + 1e-12 * max(abs(low), abs(high))
    # CT is rounded to 1 HU; anything else keeps a thousand levels, or the nine digits that a decimal string leaves.
    assert modality == "CT" or quantum <= max(span / 1000, (span + rounding) / 60000)


@pytest.mark.parametrize("where", AFFINES)
@pytest.mark.parametrize("modality", ["CT", "MR", "OT"])
def test_a_volume_keeps_its_affine_and_slice_order_in_dicom(tmp_path, where, modality):
    array = values(0, 900, np.int16, (1, 7, 5, 4))
    paths = write(scan(array, modality, where), tmp_path / "v", "dicom", MARKING)
    assert [p.name for p in paths] == ["0001.dcm", "0002.dcm", "0003.dcm", "0004.dcm"]
    series = [pydicom.dcmread(p) for p in paths]
    assert np.abs(dicom_affine(series) - AFFINES[where]).max() < 1e-9
    assert np.array_equal(np.stack([d.pixel_array.T for d in series], -1), array[0])
    assert [int(d.InstanceNumber) for d in series] == [1, 2, 3, 4]
    assert len({d.SeriesInstanceUID for d in series}) == 1
    assert len({d.SOPInstanceUID for d in series}) == 4
    normal = np.cross(*np.array(series[0].ImageOrientationPatient, float).reshape(2, 3))
    step = np.subtract(series[1].ImagePositionPatient, series[0].ImagePositionPatient)
    assert float(series[0].SpacingBetweenSlices) == pytest.approx(abs(normal @ step))


@pytest.mark.skipif(shutil.which("dcm2niix") is None, reason="the program dcm2niix is not installed")
@pytest.mark.parametrize("where", ["LPS", "oblique", "sagittal", "left-handed"])
def test_dcm2niix_finds_every_voxel_where_the_affine_puts_it(tmp_path, where):
    array = values(0, 900, np.int16, (1, 7, 5, 4))
    write(scan(array, "MR", where), tmp_path / "v", "dicom", MARKING)
    subprocess.run(
        ["dcm2niix", "-b", "n", "-f", "out", "-o", str(tmp_path), str(tmp_path / "v")], check=True, capture_output=True
    )
    nifti = nibabel.load(tmp_path / "out.nii")
    ours = np.stack(np.meshgrid(*map(range, array.shape[1:]), indexing="ij"), -1).reshape(-1, 3)
    world = ours @ AFFINES[where][:3, :3].T + AFFINES[where][:3, 3]
    theirs = (world - nifti.affine[:3, 3]) @ np.linalg.inv(nifti.affine[:3, :3]).T
    assert np.abs(theirs - np.rint(theirs)).max() < 1e-3
    assert np.array_equal(nifti.get_fdata()[tuple(np.rint(theirs).astype(int).T)], array[0].ravel())


@pytest.mark.parametrize(
    ("modality", "tag"),
    [("DX", "ImagerPixelSpacing"), ("DX", "PixelSpacing"), ("CR", "PixelSpacing"), ("OT", "PixelSpacing")],
)
def test_a_picture_keeps_its_spacing_in_dicom_rows_first(tmp_path, modality, tag):
    (path,) = write(scan(values(0, 9, np.int16), modality), tmp_path / "a", "dicom", MARKING)
    assert [float(x) for x in pydicom.dcmread(path)[tag].value] == pytest.approx([0.8, 0.7])


def test_the_orientation_of_a_radiograph_follows_its_affine_or_custom(tmp_path):
    hung = affine(np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]]))
    side = affine(np.array([[0, 0, 1.0], [-1, 0, 0], [0, -1, 0]]))
    letters = [
        list(
            pydicom.dcmread(
                write(Image(values(0, 9, np.int16), place, "DX"), tmp_path / str(n), "dicom", MARKING)[0]
            ).PatientOrientation
        )
        for n, place in enumerate([hung, side, np.eye(4)])
    ]
    assert letters == [["L", "F"], ["P", "F"], ["L", "F"]]


@pytest.mark.parametrize("modality", ["CT", "MR", "DX"])
def test_a_scan_without_spacing_claims_none(tmp_path, modality):
    (path,) = write(scan(values(0, 900, np.int16), modality, known=False), tmp_path / "a", "dicom", MARKING)
    dataset = pydicom.dcmread(path)
    assert dataset.Modality == modality
    assert "PixelSpacing" not in dataset and "ImagerPixelSpacing" not in dataset
    (path,) = write(scan(values(0, 900, np.int16), modality, known=False), tmp_path / "a", "png", MARKING)
    assert "scansmith:spacing" not in png_physical(path)[1]


def complaints(files: list[Path]) -> set[str]:
    """What dciodvfy and dcentvfy say besides the class they found and (0008,001C), which is younger than they are."""
    said = set()
    for path in files:
        result = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        said |= {line for line in (result.stdout + result.stderr).splitlines() if "(0008,001c)" not in line}
    result = subprocess.run(["dcentvfy", *files], capture_output=True, text=True, check=False)
    return said | set((result.stdout + result.stderr).splitlines())


VALUES = {
    "integers": values(0, 2000, np.int16),
    "negative": values(-500, 2000, np.float32),
    "fractions": values(-1, 1, np.float32),
    "bytes": values(0, 255, np.uint8),
    "wide": values(0, 3e5, np.float32),
}
NEED_DCIODVFY = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="the program dciodvfy (dicom3tools) is not installed"
)


@NEED_DCIODVFY
@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize(
    ("modality", "name"),
    [("CT", "CTImage"), ("MR", "MRImage"), ("CR", "CRImage"), ("DX", "DXImageForPresentation"), ("OT", "SCImage")],
)
def test_a_2d_file_validates(tmp_path, modality, name, kind):
    assert complaints(write(scan(VALUES[kind], modality, "oblique"), tmp_path / "a", "dicom", MARKING)) == {name}


@NEED_DCIODVFY
@pytest.mark.parametrize("modality", ["CT", "MR", "DX"])
def test_a_file_without_spacing_and_one_in_colour_validate(tmp_path, modality):
    files = write(scan(VALUES["integers"], modality, known=False), tmp_path / "a", "dicom", MARKING)
    files += write(scan(values(0, 255, np.uint8, (3, 7, 5, 1)), "OT"), tmp_path / "b", "dicom", MARKING)
    assert complaints(files) == {"SCImage"}


@NEED_DCIODVFY
@pytest.mark.parametrize("kind", ["integers", "fractions"])
def test_the_series_of_one_patient_validate_together(tmp_path, kind):
    volume = np.concatenate([VALUES[kind]] * 3, axis=3)
    marking = Marking("scansmith 0.1.0", "phantom", 0, 3, subject="p3")
    files = [
        path
        for modality in ("CT", "MR")
        for path in write(scan(volume, modality, "oblique"), tmp_path / modality, "dicom", marking)
    ]
    files += write(scan(VALUES[kind], "DX"), tmp_path / "dx", "dicom", marking)
    assert complaints(files) == {"CTImage", "MRImage", "DXImageForPresentation"}


@NEED_DCIODVFY
def test_a_volume_of_unknown_modality_adds_only_its_geometry_to_secondary_capture(tmp_path):
    volume = np.concatenate([VALUES["integers"]] * 3, axis=3)
    said = complaints(write(scan(volume, "OT", "oblique"), tmp_path / "v", "dicom", MARKING))
    assert all("SCImage" in line or "Attribute is not present in standard DICOM IOD" in line for line in said), said
    assert len(said) == 7


# ------------------------------------------------------------------------------------------------ marks


def test_a_png_says_that_it_is_synthetic(tmp_path):
    (path,) = write(scan(values(0, 9, np.int16), "CT"), tmp_path / "a", "png", MARKING)
    text = png_physical(path)[1]
    assert text["Synthetic Data"] == "YES"
    assert (text["Software"], text["scansmith:model"]) == ("scansmith 0.1.0", "3fa2b1c0deadbeef")
    assert (text["scansmith:seed"], text["scansmith:index"]) == ("7", "17")
    assert (text["scansmith:modality"], text["scansmith:units"]) == ("CT", "HU")
    assert text["Description"] == MARKING.description
    assert [float(x) for x in text["scansmith:spacing"].split()] == list(scan(values(0, 9, np.int16)).spacing)


def test_a_nifti_says_that_it_is_synthetic(tmp_path):
    (path,) = write(scan(values(0, 9, np.int16), "CT"), tmp_path / "a", "nifti", MARKING)
    header = nibabel.load(path).header
    assert header["descrip"].item() == b"SYNTHETIC scansmith 0.1.0 3fa2b1c0 seed 7 sample 17"
    (extension,) = header.extensions
    assert extension.get_code() == 6
    assert json.loads(extension.text if hasattr(extension, "text") else extension.get_content()) == {
        "SyntheticData": "YES",
        "software": "scansmith 0.1.0",
        "model": "3fa2b1c0deadbeef",
        "seed": 7,
        "index": 17,
        "description": MARKING.description,
        "subject": None,
        "modality": "CT",
        "units": "HU",
        "spacing_known": True,
    }


@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "DX", "OT"])
def test_a_dicom_file_says_that_it_is_synthetic(tmp_path, modality):
    (path,) = write(scan(values(0, 9, np.int16), modality), tmp_path / "a", "dicom", MARKING)
    dataset = pydicom.dcmread(path)
    assert dataset.SyntheticData == "YES"
    assert list(dataset.ImageType[:2]) == ["DERIVED", "SECONDARY"]
    assert dataset.PatientID == "SYN-3fa2b1c0-7-000017"
    assert str(dataset.PatientName).startswith("SYNTHETIC^")
    assert dataset.BurnedInAnnotation == "NO"
    (equipment,) = dataset.ContributingEquipmentSequence
    (purpose,) = equipment.PurposeOfReferenceCodeSequence
    assert (purpose.CodeValue, purpose.CodingSchemeDesignator) == ("109100", "DCM")
    assert json.loads(equipment.ContributionDescription) == {"model": "3fa2b1c0deadbeef", "seed": 7, "index": 17}
    for words in ("scansmith 0.1.0", "3fa2b1c0deadbeef", "seed 7", "sample 17", "toy köpfe", "日本"):
        assert words in dataset.DerivationDescription
    assert all(
        element.value.startswith("2.25.") and len(element.value) <= 44
        for element in dataset
        if element.VR == "UI" and element.keyword != "SOPClassUID"
    )


def test_one_subject_is_one_patient_in_every_modality_and_two_are_two(tmp_path):
    def ids(subject: str | None, index: int, modality: str) -> tuple[str, str, str, str]:
        marking = Marking("scansmith 0.1.0", "phantom", 0, index, subject=subject)
        (path,) = write(scan(values(0, 9, np.int16), modality), tmp_path / "a", "dicom", marking)
        dataset = pydicom.dcmread(path)
        return dataset.PatientID, dataset.StudyInstanceUID, dataset.FrameOfReferenceUID, dataset.SeriesInstanceUID

    ct, mr = ids("patient one/left", 0, "CT"), ids("patient one/left", 1, "MR")
    assert ct[:3] == mr[:3]
    assert ct[3] != mr[3]
    others = [ids("patient two", 0, "CT"), ids(None, 0, "CT"), ids(None, 1, "CT")]
    assert all(len({ct[part], *(other[part] for other in others)}) == 4 for part in range(4))


def test_two_different_scans_of_one_sample_are_different_series(tmp_path):
    series = {
        pydicom.dcmread(
            write(scan(values(0, 9, np.int16, seed=seed), "MR"), tmp_path / "a", "dicom", MARKING)[0]
        ).SeriesInstanceUID
        for seed in (0, 1)
    }
    assert len(series) == 2


@pytest.mark.parametrize("format", WRITERS)
def test_equal_inputs_give_equal_bytes_on_any_day(tmp_path, monkeypatch, format):
    image = scan(values(0, 900, np.int16), "MR")
    first = write(image, tmp_path / "a", format, MARKING)[0].read_bytes()
    monkeypatch.setattr("time.time", lambda: 4e9)
    assert write(image, tmp_path / "b", format, MARKING)[0].read_bytes() == first
    other = Marking(MARKING.software, MARKING.model, MARKING.seed, 18)
    assert write(image, tmp_path / "c", format, other)[0].read_bytes() != first


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_voxels_that_are_not_finite_are_refused(tmp_path, format, bad):
    array = values(0, 1, np.float32)
    array[0, 2, 2, 0] = bad
    with pytest.raises(ValueError, match="expected finite voxels"):
        write(scan(array, "MR"), tmp_path / "a", format, MARKING)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("format", "image", "words"),
    [
        ("tiff", scan(values(0, 9, np.int16)), "expected a format of"),
        ("png", scan(values(0, 9, np.int16, (1, 4, 3, 2))), "got a volume of 2 slices"),
        ("png", scan(values(0, 9, np.int16, (2, 4, 3, 1))), "expected 1 or 3 channels"),
        ("png", scan(values(0, 900, np.int16, (3, 4, 3, 1))), "from 0 to 255"),
        ("nifti", scan(np.zeros((1, 0, 3, 1))), "got 0 of dtype"),
        ("nifti", scan(np.zeros((1, 4, 3, 1), complex)), "real numbers"),
        ("nifti", Image(values(0, 9, np.int16), np.full((4, 4), np.nan)), "finite affine"),
        ("dicom", scan(values(0, 9, np.int16, (2, 4, 3, 1))), "expected 1 or 3 channels"),
        ("dicom", scan(values(0, 9, np.int16, (1, 4, 3, 2)), "DX"), "a projection has one"),
        ("dicom", scan(values(0, 9, np.int16, (1, 4, 3, 2)), "MR", known=False), "known voxel spacing"),
        ("dicom", Image(values(0, 9, np.int16), affine(SHEAR.T @ turned() @ SHEAR), "MR"), "right angles"),
        ("dicom", Image(values(0, 9, np.int16), np.diag([1.0, 0, 1, 1]), "MR"), "three axes"),
    ],
)
def test_what_a_format_cannot_hold_is_refused_with_the_way_out(tmp_path, format, image, words):
    with pytest.raises(ValueError, match=words):
        write(image, tmp_path / "a", format, MARKING)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", WRITERS)
def test_a_full_disk_is_told_clearly_and_leaves_nothing(tmp_path, monkeypatch, format):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="no space left on the disk while writing") as caught:
        write(scan(values(0, 9, np.int16), "CT"), tmp_path / "a", format, MARKING)
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("format", WRITERS)
def test_a_file_in_place_of_the_folder_is_told_clearly(tmp_path, format):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OSError, match="a part of this path is a file"):
        write(scan(values(0, 9, np.int16), "CT"), tmp_path / "out" / "a", format, MARKING)
    with pytest.raises(OSError, match="a part of this path is a file"):
        write_manifest(tmp_path / "out", {})
    assert (tmp_path / "out").read_text() == "mine"


# ------------------------------------------------------------------------------------------------ manifest


def test_a_manifest_comes_back(tmp_path):
    manifest = {
        "version": 1,
        "model": "ab",
        "seed": 0,
        "count": 1,
        "files": [{"file": "00000.png", "index": 0, "seed": 0, "label": None}],
    }
    write_manifest(tmp_path / "new", manifest)
    assert read_manifest(tmp_path / "new") == {"kind": "scansmith images", **manifest}
    with pytest.raises(ValueError, match="JSON compliant"):
        write_manifest(tmp_path / "new", {"low": float("nan")})
    assert read_manifest(tmp_path / "new")["version"] == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "found no manifest.json"),
        (b"{", "expected JSON"),
        (b"\xff\xfe", "expected JSON"),
        (b"[]", "found 'list'"),
        (b'{"kind": "webpack"}', "found 'webpack'"),
        (b"{}", "found None"),
    ],
)
def test_another_manifest_is_refused(tmp_path, content, words):
    if content is not None:
        (tmp_path / "manifest.json").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        read_manifest(tmp_path)
