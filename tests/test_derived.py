"""A scan made from a scan lies where its source lies, belongs to its patient, names it, and holds the values."""

from __future__ import annotations

import gzip
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
from pydicom.dataset import Dataset
from pydicom.uid import CTImageStorage, EnhancedMRImageStorage, MRImageStorage, ParametricMapStorage

from scansmith import formats
from scansmith.degradations import regridded_affine
from scansmith.formats import Derivation, Marking, discover, read, write_derived, write_parametric_map
from scansmith.image import Image

DERIVATION = Derivation(
    "scansmith 0.1.0", "3fa2b1c0deadbeef", "lower bound", "CT from MR: 90 % of voxels lie above.", 1002
)
SHAPE = (1, 7, 5, 4)


def turned(angle: float = 0.3, tilt: float = -0.2) -> np.ndarray:
    """A rotation about S, then about R."""
    c, s, d, t = np.cos(angle), np.sin(angle), np.cos(tilt), np.sin(tilt)
    return np.array([[1, 0, 0], [0, d, -t], [0, t, d]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def affine(axes: np.ndarray) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = axes * (0.7, 0.8, 2.5)
    result[:3, 3] = -123.456789012, 50.25, 1000.0 / 3
    return result


AFFINES = {
    "LPS": affine(np.diag([-1.0, -1, 1])),
    "flipped": affine(np.diag([-1.0, -1, -1])),
    "coronal": affine(np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])),
    "oblique": affine(turned()),
    "tilted": affine(turned() @ np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1.0]])),
}


def values(low: float, high: float, dtype: type = np.float32, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.random.default_rng(0).uniform(low, high, shape).astype(dtype)


def one(path: Path) -> formats.Source:
    (source,), skipped = discover(path)
    assert not skipped
    return source


def dicom_source(folder: Path, where: str = "oblique", modality: str = "MR") -> formats.Source:
    """A series as a scanner writes it, with a person, private attributes and settings."""
    image = Image(values(0, 900, np.int16), AFFINES[where], modality, "HU" if modality == "CT" else "a.u.")
    for k, path in enumerate(formats.write(image, folder, "dicom", Marking("scanner", "ab", 0, 0))):
        dataset = pydicom.dcmread(path)
        dataset.SpecificCharacterSet = ["", "ISO 2022 IR 87"]
        dataset.PatientName = "Yamada^Tarou=山田^太郎=やまだ^たろう"
        dataset.PatientID, dataset.PatientBirthDate, dataset.PatientAge = "4711", "19700101", "050Y"
        other = Dataset()
        other.PatientID, other.TypeOfPatientID = "0815", "TEXT"
        other.private_block(0x0011, "SCANNER", create=True).add_new(1, "LO", "secret")
        dataset.OtherPatientIDsSequence = [other]
        dataset.StudyDate, dataset.StudyID, dataset.AccessionNumber = "20240102", "7", "A1"
        dataset.SeriesNumber, dataset.SeriesDescription, dataset.InstanceNumber = 3, "t1 tra", 40 - k
        dataset.BodyPartExamined, dataset.PatientPosition = "HEAD", "HFS"
        dataset.KVP, dataset.EchoTime, dataset.ProtocolName = "120", "4.6", "secret"
        dataset.private_block(0x0029, "SCANNER", create=True).add_new(1, "LO", "secret")
        dataset.SliceThickness, dataset.SliceLocation = "2.25", f"{k}.5"
        dataset.ImagePositionPatient = [f"{float(x):.6f}" for x in dataset.ImagePositionPatient]
        del dataset.SyntheticData, dataset.DerivationDescription, dataset.ContributingEquipmentSequence
        dataset.save_as(path)
    return one(folder)


def multi_frame_source(path: Path) -> formats.Source:
    """An Enhanced MR whose frames are not in order."""
    pixels = values(0, 900, np.uint16, (4, 5, 7))
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedMRImageStorage, "1.2.3.9"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.4"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Doe^Jane", "4711", "MR"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = 5, 7, 4
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    shared, measures, orientation = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [2.0, 0.5], 3
    orientation.ImageOrientationPatient = [0.6, 0.8, 0, 0, 0, -1]
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    dataset.SharedFunctionalGroupsSequence = [shared]
    frames = []
    for height in (2, 0, 3, 1):
        frame, position = Dataset(), Dataset()
        position.ImagePositionPatient = [-0.8 * 2.5 * height, 0.6 * 2.5 * height, 11]
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = pixels.tobytes()
    dataset.save_as(path, enforce_file_format=True)
    return one(path)


def ct_like(source: formats.Source) -> Image:
    image = read(source)
    return replace(image, array=values(-1024, 3071, shape=image.array.shape), modality="CT", units="HU")


# ------------------------------------------------------------------------------------------------ DICOM


@pytest.mark.parametrize("where", AFFINES)
def test_a_derived_series_lies_where_its_source_lies(tmp_path, where):
    source = dicom_source(tmp_path / "mr", where)
    image = ct_like(source)
    files = write_derived(source, image, tmp_path / "ct", DERIVATION)
    back = read(one(tmp_path / "ct"))
    assert np.array_equal(back.affine, read(source).affine)
    assert (back.modality, back.units, back.array.dtype) == ("CT", "HU", np.int16)
    assert np.array_equal(back.array, np.rint(image.array))
    for mine, its in zip(map(pydicom.dcmread, files), map(pydicom.dcmread, source.files)):
        for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
            assert [str(x) for x in mine[keyword].value] == [str(x) for x in its[keyword].value]
        assert mine.SliceThickness == 2.25 and mine.SliceLocation == its.SliceLocation
        assert mine.ImageType == ["DERIVED", "SECONDARY", "OTHER" if where == "coronal" else "AXIAL"]


SHARED_WORDS = """
    PatientName PatientID PatientBirthDate PatientAge StudyInstanceUID StudyDate StudyID AccessionNumber
    FrameOfReferenceUID BodyPartExamined PatientPosition InstanceNumber
"""


def test_a_derived_series_belongs_to_the_patient_and_study_and_names_every_instance(tmp_path):
    source = dicom_source(tmp_path / "mr")
    files = write_derived(source, ct_like(source), tmp_path / "ct", DERIVATION)
    mine, its = [[pydicom.dcmread(path) for path in paths] for paths in (files, source.files)]
    for new, old in zip(mine, its):
        for keyword in SHARED_WORDS.split():
            assert new[keyword].value == old[keyword].value, keyword
        assert new.PatientName.ideographic == "山田^太郎" and new.OtherPatientIDsSequence[0].PatientID == "0815"
        assert new.SOPClassUID == CTImageStorage and new.Modality == "CT" and new.SeriesNumber == 3 + 1002
        (item,) = new.SourceImageSequence
        assert (item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID) == (MRImageStorage, old.SOPInstanceUID)
        assert item.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
        assert new.SyntheticData == "YES" and new.BurnedInAnnotation == "NO"
        assert "lower bound" in new.DerivationDescription and "90 %" in new.DerivationDescription
        assert new.ContributingEquipmentSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "109100"
    old_uids = {entry.SOPInstanceUID for entry in its} | {its[0].SeriesInstanceUID}
    assert len({entry.SeriesInstanceUID for entry in mine}) == 1 and mine[0].SeriesInstanceUID not in old_uids
    assert len({entry.SOPInstanceUID for entry in mine} - old_uids) == len(mine) == 4


def test_nothing_that_the_scanner_did_and_nothing_private_is_copied(tmp_path):
    source = dicom_source(tmp_path / "mr")
    for path in write_derived(source, ct_like(source), tmp_path / "ct", DERIVATION):
        dataset = pydicom.dcmread(path)
        assert dataset.KVP is None and "EchoTime" not in dataset and "ProtocolName" not in dataset
        assert not any(element.tag.is_private for element in dataset.iterall())
        assert b"secret" not in path.read_bytes()


def test_a_broken_attribute_of_the_source_is_left_out(tmp_path):
    source = dicom_source(tmp_path / "mr")
    for path in source.files:
        dataset = pydicom.dcmread(path)
        dataset.PatientSize = "1.75"
        dataset.save_as(path)
        path.write_bytes(path.read_bytes().replace(b"DS\x04\x001.75", b"DS\x04\x00tall"))
    files = write_derived(source, ct_like(source), tmp_path / "ct", DERIVATION)
    assert "PatientSize" not in pydicom.dcmread(files[0])


@pytest.mark.parametrize("low, high", [(0, 1), (-3.5, 700.25), (0, 3e5)])
def test_mr_signal_comes_back_within_half_a_step_of_a_documented_scale(tmp_path, low, high):
    source = dicom_source(tmp_path / "mr")
    image = replace(read(source), array=values(low, high))
    files = write_derived(source, image, tmp_path / "new", DERIVATION)
    dataset = pydicom.dcmread(files[0])
    slope = float(dataset.RealWorldValueMappingSequence[0].RealWorldValueSlope)
    assert slope <= max((high - low) / 65000, 1.0) and "RescaleSlope" not in dataset
    assert dataset.SOPClassUID == MRImageStorage and "stored value x" in dataset.DerivationDescription
    assert np.abs(read(one(tmp_path / "new")).array - image.array).max() <= slope * 0.51


def test_frames_become_slices_that_lie_where_they_lay_and_name_them(tmp_path):
    source = multi_frame_source(tmp_path / "enhanced.dcm")
    assert source.frames != tuple(sorted(source.frames))
    image = read(source)
    files = write_derived(source, image, tmp_path / "new", DERIVATION)
    back = read(one(tmp_path / "new"))
    assert np.allclose(back.affine, image.affine, atol=1e-9) and np.array_equal(back.array, image.array)
    items = [pydicom.dcmread(path).SourceImageSequence[0] for path in files]
    assert [item.ReferencedFrameNumber - 1 for item in items] == list(source.frames)
    assert {item.ReferencedSOPInstanceUID for item in items} == {"1.2.3.9"}


def test_a_single_slice_and_a_film_are_one_file(tmp_path):
    film = Image(values(0, 900, np.int16, (1, 7, 5, 1)), AFFINES["LPS"], "DX")
    for modality in ("DX", "MR"):
        (path,) = formats.write(replace(film, modality=modality), tmp_path / modality, "dicom", Marking("a", "b", 0, 0))
        source = one(path)
        (file,) = write_derived(source, read(source), tmp_path / f"new {modality}", DERIVATION)
        assert file.name == f"new {modality}.dcm" and np.array_equal(read(one(file)).array, film.array)


def complaints(files: list[Path]) -> set[str]:
    """What dciodvfy and dcentvfy say besides the class they found and (0008,001C), which is younger than they are."""
    said = set()
    for path in files:
        result = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, check=False)
        said |= {line for line in (result.stdout + result.stderr).splitlines() if "(0008,001c)" not in line}
    result = subprocess.run(["dcentvfy", *files], capture_output=True, text=True, check=False)
    return said | set((result.stdout + result.stderr).splitlines())


NEED_DCIODVFY = pytest.mark.skipif(
    shutil.which("dciodvfy") is None, reason="the program dciodvfy (dicom3tools) is not installed"
)


@NEED_DCIODVFY
@pytest.mark.parametrize("where", ["oblique", "coronal", "tilted"])
def test_derived_series_validate_alone_and_together(tmp_path, where):
    source = dicom_source(tmp_path / "mr", where)
    image = ct_like(source)
    files = write_derived(source, image, tmp_path / "ct", DERIVATION)
    files += write_derived(source, replace(image, modality="MR", units="a.u."), tmp_path / "new", DERIVATION)
    # Image Type of a CT that is not axial has no term of its own (PS3.3 C.8.2.1.1.1).
    assert {line for line in complaints(files) if "<OTHER>" not in line} == {"CTImage", "MRImage"}


# ------------------------------------------------------------------------------------------------ Parametric Map


def map_values(path: Path, source: formats.Source) -> np.ndarray:
    """(1, I, J, K) in the order of the source, through pydicom alone: a frame is found by the position it gives."""
    dataset = pydicom.dcmread(path)
    frames = dict(zip(map(frame_position, dataset.PerFrameFunctionalGroupsSequence), dataset.pixel_array))
    lps = np.diag([-1.0, -1, 1, 1]) @ read(source).affine
    order = [tuple(np.round(lps[:3] @ [0, 0, k, 1], 6)) for k in range(source.shape[2])]
    return np.stack([frames[place].T for place in order], axis=-1)[None]


def frame_position(frame: Dataset) -> tuple[float, ...]:
    return tuple(np.round(np.array(frame.PlanePositionSequence[0].ImagePositionPatient, float), 6))


@pytest.mark.parametrize("kind", ["single frames", "multi-frame", "tilted"])
def test_a_parametric_map_holds_the_exact_values_and_names_its_sources(tmp_path, kind):
    source = (
        multi_frame_source(tmp_path / "enhanced.dcm")
        if kind == "multi-frame"
        else dicom_source(tmp_path / "mr", "tilted" if kind == "tilted" else "oblique")
    )
    image = replace(read(source), array=values(0, 1, shape=(1, *source.shape)), units="ratio")
    (path,) = write_parametric_map(source, image, tmp_path / "trust", DERIVATION, "0 to 1, high is trusted")
    dataset, its = pydicom.dcmread(path), pydicom.dcmread(source.files[0])
    assert np.array_equal(map_values(path, source), image.array) and dataset.pixel_array.dtype == np.float32
    assert dataset.SOPClassUID == ParametricMapStorage and dataset.SyntheticData == "YES"
    for keyword in ("PatientName", "PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert dataset[keyword].value == its[keyword].value
    (mapping,) = dataset.SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "{ratio}" and mapping.RealWorldValueSlope == 1
    (series,) = dataset.ReferencedSeriesSequence
    named = [item.ReferencedSOPInstanceUID for item in series.ReferencedInstanceSequence]
    assert series.SeriesInstanceUID == source.series and named == list(source.instances)
    frames = {frame_position(frame): frame for frame in dataset.PerFrameFunctionalGroupsSequence}
    items = {place: frame.DerivationImageSequence[0].SourceImageSequence[0] for place, frame in frames.items()}
    if kind == "multi-frame":
        for place, item in items.items():
            its_frame = its.PerFrameFunctionalGroupsSequence[item.ReferencedFrameNumber - 1]
            assert frame_position(its_frame) == place and item.ReferencedSOPClassUID == EnhancedMRImageStorage
    else:
        for path in source.files:
            entry = pydicom.dcmread(path)
            # The affine evens out what the files round to six decimals.
            place = min(items, key=lambda at: np.linalg.norm(np.subtract(at, entry.ImagePositionPatient)))
            assert items[place].ReferencedSOPInstanceUID == entry.SOPInstanceUID


def test_bounds_in_hounsfield_units_keep_their_fractions_in_a_parametric_map(tmp_path):
    source = dicom_source(tmp_path / "mr")
    image = ct_like(source)
    (path,) = write_parametric_map(source, image, tmp_path / "low", DERIVATION, "5 % of voxels lie below")
    (mapping,) = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].RealWorldValueMappingSequence
    assert mapping.MeasurementUnitsCodeSequence[0].CodeValue == "[hnsf'U]"
    assert mapping.DoubleFloatRealWorldValueFirstValueMapped == image.array.min()
    assert np.array_equal(map_values(path, source), image.array)


@NEED_DCIODVFY
@pytest.mark.parametrize("units", ["HU", "ratio", "a.u."])
def test_a_parametric_map_validates(tmp_path, units):
    source = dicom_source(tmp_path / "mr")
    derivation, image = replace(DERIVATION, what="lower bound (5 %)"), ct_like(source)
    extent = np.float32(np.ptp(image.array) if units == "ratio" else 1.0)  # a window narrower than 1, too
    image = replace(image, array=image.array / extent, units=units)
    files = write_parametric_map(source, image, tmp_path / "map", derivation, "what")
    # QUANTITY is a term of PS3.3 C.8.16.2.1.4.1 that dciodvfy does not list for this class.
    assert {line for line in complaints(files) if "<QUANTITY>" not in line} == {"ParametricMap"}


# ------------------------------------------------------------------------------------------------ NIfTI


def nifti_source(path: Path, kind: type = nibabel.Nifti1Image, order: str = "<", shape=SHAPE[1:]) -> formats.Source:
    """sform and qform differ, both as scanners' converters leave them; scaled int16 with an extension."""
    header = kind.header_class(endianness=order)
    nifti = kind(values(0, 900, np.int16, shape), None, header)
    nifti.set_sform(AFFINES["tilted"], code=2)
    nifti.set_qform(AFFINES["oblique"], code=1)
    nifti.header.set_slope_inter(0.5, -3)
    nifti.header.set_xyzt_units("mm", "sec")
    nifti.header["descrip"], nifti.header["aux_file"], nifti.header["cal_max"] = b"Doe^Jane", b"jane.txt", 900
    nifti.header.extensions.append(nibabel.nifti1.Nifti1Extension(6, b"Doe^Jane"))
    path.write_bytes(gzip.compress(nifti.to_bytes()) if path.name.endswith(".gz") else nifti.to_bytes())
    return one(path)


PLACE_WORDS = """
    dim pixdim xyzt_units sform_code qform_code srow_x srow_y srow_z quatern_b quatern_c quatern_d
    qoffset_x qoffset_y qoffset_z dim_info
"""
PLACE = PLACE_WORDS.split()


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("order", ["<", ">"])
def test_nifti_keeps_the_place_to_the_bit(tmp_path, name, kind, order):
    source = nifti_source(tmp_path / name, kind, order)
    image = ct_like(source)
    (path,) = write_derived(source, image, tmp_path / "b", DERIVATION)
    mine, its = nibabel.load(path), nibabel.load(source.files[0])
    assert path.name == name.replace("a", "b", 1) and type(mine) is type(its)
    for field in PLACE:
        assert mine.header[field].tobytes() == its.header[field].tobytes(), field
    for form in ("get_sform", "get_qform"):
        assert np.array_equal(getattr(mine.header, form)(), getattr(its.header, form)())
    assert mine.get_data_dtype() == np.dtype(order + "i2") and np.array_equal(mine.get_fdata(), np.rint(image.array[0]))
    assert b"lower bound" in mine.header["descrip"].item() and mine.header["cal_max"] == 0
    content = path.read_bytes()
    assert b"Jane" not in (gzip.decompress(content) if name.endswith("gz") else content).replace(b"jane", b"Jane")
    back = read(one(path))
    assert (back.modality, back.units) == ("CT", "HU") and np.array_equal(back.affine, read(source).affine)


def test_nifti_keeps_float_values_and_a_header_of_two_or_four_axes(tmp_path):
    for name, shape in (("flat", (7, 5)), ("long", (7, 5, 4, 1))):
        source = nifti_source(tmp_path / f"{name}.nii", shape=shape)
        image = replace(read(source), array=values(0, 1, shape=(1, *source.shape)))
        (path,) = write_derived(source, image, tmp_path / f"new {name}", DERIVATION)
        assert nibabel.load(path).shape == shape
        assert np.array_equal(read(one(path)).array, image.array)


def test_a_pair_of_header_and_voxels_becomes_one_file(tmp_path):
    pair = nibabel.Nifti1Pair(values(0, 900, np.int16, SHAPE[1:]), AFFINES["oblique"])
    nibabel.save(pair, tmp_path / "a.hdr")
    source = one(tmp_path / "a.hdr") if not (tmp_path / "a.img").exists() else discover(tmp_path)[0][0]
    (path,) = write_derived(source, ct_like(source), tmp_path / "b", DERIVATION)
    mine, its = nibabel.load(path), nibabel.load(tmp_path / "a.hdr")
    assert path.name == "b.nii" and all(mine.header[field].tobytes() == its.header[field].tobytes() for field in PLACE)
    assert np.array_equal(read(one(path)).affine, read(source).affine)


# ------------------------------------------------------------------------------------------------ NRRD and MetaImage


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("where", ["oblique", "flipped"])
def test_nrrd_and_metaimage_keep_the_place_to_the_bit(tmp_path, name, packed, where):
    lps = np.diag([-1.0, -1, 1]) @ AFFINES[where][:3, :3]
    its = SimpleITK.GetImageFromArray(values(0, 900, np.int16, SHAPE[:0:-1]))
    its.SetSpacing(np.linalg.norm(lps, axis=0).tolist())
    its.SetDirection((lps / np.linalg.norm(lps, axis=0)).ravel().tolist())
    its.SetOrigin((1 / 3, -123.456789, 1e-7))
    SimpleITK.WriteImage(its, tmp_path / name, useCompression=packed)
    (source,), _ = discover(tmp_path)
    its = SimpleITK.ReadImage(tmp_path / name)
    for image in (ct_like(source), replace(read(source), array=values(0, 1), modality="MR")):
        (path,) = write_derived(source, image, tmp_path / f"new {image.modality}", DERIVATION)
        mine = SimpleITK.ReadImage(path)
        assert path.suffix == (".nrrd" if "n" in name.removeprefix("a") else ".mha")
        for what in ("GetOrigin", "GetSpacing", "GetDirection", "GetSize"):
            assert getattr(mine, what)() == getattr(its, what)(), what
        expected = np.rint(image.array) if image.units == "HU" else image.array
        assert np.array_equal(SimpleITK.GetArrayFromImage(mine).T, expected[0])
        back = read(one(path))
        assert np.array_equal(back.affine, read(source).affine) and np.array_equal(back.array, expected)
        assert (back.modality, back.units) == (image.modality, image.units)
        assert b"SyntheticData" in path.read_bytes()


def test_nrrd_lines_about_place_are_copied_and_names_are_not(tmp_path):
    lines = [
        "NRRD0004",
        "# Doe^Jane",
        "content: Doe^Jane",
        "type: uint8",
        "dimension: 3",
        "space: right-anterior-superior",
        "sizes: 2 1 1",
        "space directions: (0.1000000000000000055,0,0) (0,2e0,0.3) (0,0,3)",
        "encoding: text",
        "space origin: (1,2,3)",
        "name:=Doe^Jane",
    ]
    (tmp_path / "a.nrrd").write_text("\r\n".join(lines) + "\r\n\r\n1 2\n")
    source = one(tmp_path / "a.nrrd")
    (path,) = write_derived(source, read(source), tmp_path / "b", DERIVATION)
    content = path.read_bytes()
    for line in (lines[5], lines[7], lines[9]):
        assert line.encode() + b"\n" in content
    assert b"Jane" not in content and np.array_equal(read(one(path)).array.ravel(), [1, 2])


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff"])
def test_a_picture_becomes_a_png_of_16_bits(tmp_path, name):
    from PIL import Image as Picture

    Picture.fromarray(values(0, 255, np.uint8, (5, 7))).save(tmp_path / name)
    source = one(tmp_path / name)
    image = replace(read(source), array=values(-2.5, 7, shape=(1, 7, 5, 1)))
    (path,) = write_derived(source, image, tmp_path / "b", DERIVATION)
    with Picture.open(path) as picture:
        assert picture.mode == "I;16" and picture.text["Synthetic Data"] == "YES"
    assert np.abs(read(one(path)).array - image.array).max() <= 9.5 / 65535


# ------------------------------------------------------------------------------------------------ all formats


def any_source(folder: Path, format: str) -> formats.Source:
    if format == "dicom":
        return dicom_source(folder / "mr")
    if format == "nifti":
        return nifti_source(folder / "a.nii.gz")
    SimpleITK.WriteImage(SimpleITK.GetImageFromArray(values(0, 900, np.int16, (4, 5, 7))), folder / f"a.{format}")
    return one(folder / f"a.{format}")


@pytest.mark.parametrize("format", ["dicom", "nifti", "nrrd", "mha"])
def test_equal_inputs_give_equal_bytes_and_others_another_series(tmp_path, format):
    source = any_source(tmp_path, format)
    image = ct_like(source)
    first, second = (write_derived(source, image, tmp_path / name, DERIVATION) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    if format == "dicom":
        maps = [write_parametric_map(source, image, tmp_path / name, DERIVATION, "what")[0] for name in ("3", "4")]
        assert maps[0].read_bytes() == maps[1].read_bytes()
        uids = {
            pydicom.dcmread(write_derived(source, changed, tmp_path / name, derivation)[0]).SeriesInstanceUID
            for name, changed, derivation in (
                ("5", image, replace(DERIVATION, what="upper bound")),
                ("6", image, replace(DERIVATION, model="other")),
                ("7", replace(image, array=image.array + 1), DERIVATION),
            )
        }
        uids |= {pydicom.dcmread(path).SeriesInstanceUID for path in (first[0], maps[0])}
        assert len(uids) == 5


# ------------------------------------------------------------------------------------------------ finer grids

# Old voxels in a new one along I, J and K, and the new shape, of sources of shape 7 x 5 x 4.
GRIDS = {
    "thinner slices": ((1, 1, 1 / 3), (7, 5, 12)),
    "an uneven number": ((1, 1, 1 / 2.6), (7, 5, 10)),
    "finer along all": ((0.5, 0.5, 0.4), (14, 10, 10)),
    "thicker slices": ((1, 1, 2), (7, 5, 2)),
}


def on_grid(image: Image, grid: str) -> Image:
    steps, shape = GRIDS[grid]
    moved = image.affine
    for axis, (step, new) in enumerate(zip(steps, shape)):
        moved = regridded_affine(moved, image.array.shape[axis + 1], new, step, axis)
    return replace(image, array=values(0, 900, np.int16, (1, *shape)), affine=moved)


def itk_source(folder: Path, suffix: str, where: str) -> formats.Source:
    lps = np.diag([-1.0, -1, 1]) @ AFFINES[where][:3, :3]
    its = SimpleITK.GetImageFromArray(values(0, 900, np.int16, SHAPE[:0:-1]))
    its.SetSpacing(np.linalg.norm(lps, axis=0).tolist())
    its.SetDirection((lps / np.linalg.norm(lps, axis=0)).ravel().tolist())
    its.SetOrigin((1 / 3, -123.456789, 1e-7))
    SimpleITK.WriteImage(its, folder / f"a.{suffix}")
    return one(folder / f"a.{suffix}")


def flat_corners(image: Image) -> np.ndarray:
    """Where the outer corners of the first and the last voxel lie."""
    last = np.array(image.array.shape[1:]) - 0.5
    return (image.affine @ np.array([[-0.5, -0.5, -0.5, 1], [*last, 1]]).T)[:3]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("where", ["oblique", "flipped"])
@pytest.mark.parametrize("format", ["dicom", "nrrd", "mha"])
def test_a_finer_scan_lies_over_its_source(tmp_path, format, where, grid):
    source = dicom_source(tmp_path / "mr", where) if format == "dicom" else itk_source(tmp_path, format, where)
    image = on_grid(read(source), grid)
    write_derived(source, image, tmp_path / "new", DERIVATION)
    back = read(one(tmp_path / ("new" if format == "dicom" else f"new.{format}")))
    assert np.array_equal(back.array, image.array)
    assert np.allclose(back.affine, image.affine, rtol=0, atol=1e-6 if format == "dicom" else 1e-12)
    if grid != "an uneven number":
        assert np.allclose(flat_corners(back), flat_corners(read(source)), atol=1e-5)


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize("codes", [(2, 1), (0, 1), (2, 0), (0, 0)])
def test_nifti_moves_both_forms_and_the_voxel_size_in_the_units_that_it_has(tmp_path, grid, codes):
    source = nifti_source(tmp_path / "a.nii")
    its = nibabel.load(tmp_path / "a.nii")
    for form, code in zip(("sform_code", "qform_code"), codes):
        its.header[form] = code
    its.header.set_xyzt_units("micron", "sec")
    its.header["slice_code"], its.header["slice_end"] = 1, 3
    kept = its.header.copy()
    nibabel.save(nibabel.Nifti1Image(np.asarray(its.dataobj.get_unscaled()), None, its.header), tmp_path / "b.nii")
    source = one(tmp_path / "b.nii")
    image = on_grid(read(source), grid)
    (path,) = write_derived(source, image, tmp_path / "new", DERIVATION)
    back, mine = read(one(path)), nibabel.load(path).header
    assert np.allclose(back.affine, image.affine, rtol=1e-6, atol=1e-7) and np.array_equal(back.array, image.array)
    steps, shape = GRIDS[grid]
    index = np.diag([*steps, 1.0])
    index[:3, 3] = [(old - 1) / 2 - step * (new - 1) / 2 for old, new, step in zip(SHAPE[1:], shape, steps)]
    for form in ("get_sform", "get_qform"):
        assert np.allclose(getattr(mine, form)(), getattr(kept, form)() @ index, rtol=1e-5, atol=1e-4)
    assert np.allclose(mine["pixdim"][:4], kept["pixdim"][:4] * [1, *steps], rtol=1e-6)
    for field in ("quatern_b", "quatern_c", "quatern_d", "sform_code", "qform_code", "xyzt_units"):
        assert mine[field] == kept[field], field
    assert mine["slice_code"] == mine["slice_end"] == 0


def test_a_quaternion_that_is_none_does_not_stop_a_finer_nifti_whose_sform_counts(tmp_path):
    source = nifti_source(tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[256:260] = np.float32(3.0).tobytes()  # quatern_b
    (tmp_path / "a.nii").write_bytes(content)
    source = one(tmp_path / "a.nii")
    image = on_grid(read(source), "thinner slices")
    (path,) = write_derived(source, image, tmp_path / "new", DERIVATION)
    assert np.allclose(read(one(path)).affine, image.affine, atol=1e-4)


def names_of(items: list[Dataset]) -> list[str]:
    return [item.ReferencedSOPInstanceUID for item in items]


def test_thinner_dicom_slices_have_their_thickness_numbers_and_the_slices_that_they_lie_in(tmp_path):
    source = dicom_source(tmp_path / "mr")
    image = on_grid(read(source), "thinner slices")
    mine = [pydicom.dcmread(path) for path in write_derived(source, image, tmp_path / "new", DERIVATION)]
    its = [pydicom.dcmread(path) for path in source.files]
    for k, new in enumerate(mine):
        assert float(new.SliceThickness) == pytest.approx(2.5 / 3) and "SliceLocation" not in new
        assert names_of(new.SourceImageSequence) == [its[k // 3].SOPInstanceUID]
        assert new.SourceImageSequence[0].SpatialLocationsPreserved == "NO"
        assert new.PatientID == "4711" and new.FrameOfReferenceUID == its[0].FrameOfReferenceUID
    # As the source's, they count down along K.
    assert [int(new.InstanceNumber) for new in mine] == list(range(12, 0, -1))
    assert len({new.SOPInstanceUID for new in mine}) == 12
    even = replace(image, array=image.array[..., :8], affine=regridded_affine(read(source).affine, 4, 8, 0.5))
    same = write_derived(source, even, tmp_path / "even", DERIVATION)
    assert pydicom.dcmread(same[0]).SeriesInstanceUID != mine[0].SeriesInstanceUID


def test_a_thicker_dicom_slice_names_all_that_it_covers_and_one_between_two_names_both(tmp_path):
    source = dicom_source(tmp_path / "mr")
    its = [pydicom.dcmread(path).SOPInstanceUID for path in source.files]
    thick = write_derived(source, on_grid(read(source), "thicker slices"), tmp_path / "thick", DERIVATION)
    assert [names_of(pydicom.dcmread(path).SourceImageSequence) for path in thick] == [its[:2], its[2:]]
    middle = replace(read(source), array=values(0, 9, np.int16, (1, 7, 5, 7)))
    middle = replace(middle, affine=regridded_affine(middle.affine, 4, 7, 0.5))
    between = write_derived(source, middle, tmp_path / "between", DERIVATION)
    named = [names_of(pydicom.dcmread(path).SourceImageSequence) for path in between]
    assert named == [its[:1], its[:2], its[1:2], its[1:3], its[2:3], its[2:], its[3:]]


def test_frames_and_a_parametric_map_take_a_finer_grid_too(tmp_path):
    source = multi_frame_source(tmp_path / "enhanced.dcm")
    image = on_grid(read(source), "thinner slices")
    back = read(one(write_derived(source, image, tmp_path / "new", DERIVATION)[0].parent))
    assert np.allclose(back.affine, image.affine, atol=1e-9) and np.array_equal(back.array, image.array)
    trust = replace(image, array=values(0, 1, shape=image.array.shape), units="ratio")
    (path,) = write_parametric_map(source, trust, tmp_path / "trust", DERIVATION, "what")
    dataset = pydicom.dcmread(path)
    (measures,) = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence
    assert float(measures.SliceThickness) == pytest.approx(2.5 / 3)
    frames = dict(zip(map(frame_position, dataset.PerFrameFunctionalGroupsSequence), dataset.pixel_array))
    lps = np.diag([-1.0, -1, 1, 1]) @ trust.affine
    for k in range(12):
        assert np.array_equal(frames[tuple(np.round(lps[:3] @ [0, 0, k, 1], 6))].T, trust.array[0, :, :, k])
    numbers = {
        frame_position(frame): frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber - 1
        for frame in dataset.PerFrameFunctionalGroupsSequence
    }
    assert [numbers[tuple(np.round(lps[:3] @ [0, 0, k, 1], 6))] for k in range(12)] == np.repeat(
        source.frames, 3
    ).tolist()


@NEED_DCIODVFY
@pytest.mark.parametrize("where", ["oblique", "flipped", "tilted"])
def test_finer_series_and_maps_validate(tmp_path, where):
    source = dicom_source(tmp_path / "mr", where)
    image = on_grid(read(source), "finer along all")
    files = write_derived(source, image, tmp_path / "new", DERIVATION)
    files += write_derived(source, replace(image, modality="CT", units="HU"), tmp_path / "ct", DERIVATION)
    files += write_parametric_map(source, replace(image, units="ratio"), tmp_path / "trust", DERIVATION, "what")
    said = {line for line in complaints(files) if "<QUANTITY>" not in line}
    assert said == {"CTImage", "MRImage", "ParametricMap"}


@pytest.mark.parametrize("shape, fits", [((14, 10), True), ((11, 8), True), ((7, 9), False), ((14, 8), False)])
def test_a_picture_may_have_finer_pixels_of_its_proportions(tmp_path, shape, fits):
    from PIL import Image as Picture

    Picture.fromarray(values(0, 255, np.uint8, (5, 7))).save(tmp_path / "a.png")
    source = one(tmp_path / "a.png")
    image = replace(read(source), array=values(0, 900, np.int16, (1, *shape, 1)))
    if fits:
        (path,) = write_derived(source, image, tmp_path / "b", DERIVATION)
        assert np.array_equal(read(one(path)).array, image.array)
    else:
        with pytest.raises(ValueError, match="expected the source's shape"):
            write_derived(source, image, tmp_path / "b", DERIVATION)


MISPLACED = {
    "turned": lambda image: replace(image, affine=image.affine @ np.diag([-1.0, -1, 1, 1])),
    "moved": lambda image: replace(image, affine=image.affine + np.outer([1, 1, 1, 0], [0, 0, 0, 3.0])),
    "of another extent": lambda image: replace(image, affine=image.affine @ np.diag([1, 1, 1.2, 1])),
    "sheared": lambda image: replace(image, affine=image.affine + 0.3 * np.outer(image.affine[:, 1], [0, 0, 1, 0])),
}


@pytest.mark.parametrize("format", ["dicom", "nifti", "nrrd", "mha"])
@pytest.mark.parametrize("how", MISPLACED)
def test_a_finer_grid_elsewhere_is_refused(tmp_path, format, how):
    source = any_source(tmp_path, format)
    image = MISPLACED[how](on_grid(read(source), "thinner slices"))
    with pytest.raises(ValueError, match="expected the source's shape"):
        write_derived(source, image, tmp_path / "out", DERIVATION)
    assert not list(tmp_path.glob("*out*"))


REFUSED = {
    "expected the source's shape": lambda image: replace(image, array=image.array[:, :-1]),
    "expected the source's affine": lambda image: replace(image, affine=image.affine + np.eye(4)[:, [3, 0, 1, 2]]),
    "one channel": lambda image: replace(image, array=np.concatenate([image.array] * 3)),
    "finite": lambda image: replace(image, array=np.where(image.array > 0, np.nan, image.array)),
    "fit int16": lambda image: replace(image, array=image.array * 100),
}


@pytest.mark.parametrize("format", ["dicom", "nifti", "nrrd", "mha"])
@pytest.mark.parametrize("words", REFUSED)
def test_what_does_not_fit_the_source_is_refused_in_words_and_nothing_is_written(tmp_path, format, words):
    source = any_source(tmp_path, format)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=words):
        write_derived(source, REFUSED[words](ct_like(source)), tmp_path / "out", DERIVATION)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_ct_without_hounsfield_units_and_a_map_without_a_place_or_units_are_refused(tmp_path):
    source, nifti = dicom_source(tmp_path / "mr"), nifti_source(tmp_path / "a.nii")
    image = ct_like(source)
    with pytest.raises(ValueError, match="write_parametric_map"):
        write_derived(source, replace(image, units="ratio"), tmp_path / "out", DERIVATION)
    with pytest.raises(ValueError, match="expected units"):
        write_parametric_map(source, replace(image, units="apples"), tmp_path / "out", DERIVATION, "what")
    with pytest.raises(ValueError, match="expected a DICOM series"):
        write_parametric_map(nifti, ct_like(nifti), tmp_path / "out", DERIVATION, "what")
    with pytest.raises(ValueError, match="expected the source's shape"):
        write_parametric_map(source, replace(image, array=image.array[:, 1:]), tmp_path / "out", DERIVATION, "what")
    assert not list(tmp_path.glob("*out*"))


def test_colours_are_refused(tmp_path):
    from PIL import Image as Picture

    Picture.fromarray(values(0, 255, np.uint8, (5, 7, 3))).save(tmp_path / "a.png")
    source = one(tmp_path / "a.png")
    with pytest.raises(ValueError, match="colours"):
        write_derived(source, read(source), tmp_path / "out", DERIVATION)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tif"])
def test_a_label_map_of_a_photograph_in_colours_is_a_grey_picture_of_the_same_values(tmp_path, name):
    from PIL import Image as Picture

    Picture.fromarray(values(0, 255, np.uint8, (5, 7, 3))).save(tmp_path / name)
    source = one(tmp_path / name)
    made = np.random.default_rng(0).choice([0, 3, 255], (1, 7, 5, 1)).astype(np.uint8)
    image = replace(read(source), array=made, units="label")
    (path,) = formats.write_segmentation(source, image, tmp_path / "out", DERIVATION, [3, 255])
    assert path.name == "out.png" and np.array_equal(np.asarray(Picture.open(path)), made[0, ..., 0].T)


def test_a_grey_scan_is_not_put_behind_the_header_of_a_coloured_volume(tmp_path):
    colours = nibabel.Nifti1Image(values(0, 255, np.uint8, (7, 5, 4, 1, 3)), np.eye(4))
    nibabel.save(colours, tmp_path / "a.nii")
    source = one(tmp_path / "a.nii")
    assert source.channels == 3
    with pytest.raises(ValueError, match="colours"):
        write_derived(source, replace(read(source), array=values(0, 9, np.uint8)), tmp_path / "out", DERIVATION)


def test_a_series_is_written_as_a_whole_or_not_at_all(tmp_path):
    source = dicom_source(tmp_path / "mr")
    image = ct_like(source)
    last = source.files[-1]
    kept = last.read_bytes()
    dataset = pydicom.dcmread(last)
    del dataset.SOPInstanceUID
    dataset.save_as(last)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match="SOP Instance UID"):
        write_derived(source, image, tmp_path / "out", DERIVATION)
    assert sorted(tmp_path.rglob("*")) == before
    last.write_bytes(kept)
    write_derived(source, image, tmp_path / "out", DERIVATION)
    with pytest.raises(ValueError, match="expected a new folder"):
        write_derived(source, image, tmp_path / "out", DERIVATION)


def test_a_folder_that_fails_half_way_is_removed(tmp_path):
    from scansmith.formats.derived import write_folder

    def files():
        yield "1", b"whole"
        raise OSError(28, "No space left on device", "2")

    with pytest.raises(OSError):
        write_folder(tmp_path / "out", files())
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ real scans


@pytest.mark.parametrize("name", ["dicom_paired_series_pgbm", "dicom_ct_head_ge_tilt"])
def test_a_real_series_becomes_ct_and_mr_series_in_its_place(tmp_path, shared_data, name):
    folder = shared_data / name
    if not folder.is_dir():
        pytest.skip(f"no series at {folder}")
    sources, _ = discover(folder)
    for number, source in enumerate(sources[:2]):
        mr = replace(read(source), modality="MR", units="a.u.")
        ct = replace(mr, array=mr.array.astype(np.float32) / 3 - 1000, modality="CT", units="HU")
        for image in (mr, ct):
            out = tmp_path / f"{number} {image.modality}"
            files = write_derived(source, image, out, DERIVATION)
            made = one(out)
            assert (made.patient, made.study, made.frame_of_reference) == (
                source.patient,
                source.study,
                source.frame_of_reference,
            )
            assert made.series != source.series and len(files) == len(source.files)
            back = read(made)
            assert np.array_equal(back.affine, mr.affine)
            assert np.abs(back.array - image.array).max() <= (0 if image is mr else 0.5)
        (path,) = write_parametric_map(source, ct, tmp_path / f"{number}", DERIVATION, "what")
        assert np.array_equal(map_values(path, source), ct.array)
