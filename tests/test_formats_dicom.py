"""Reading DICOM: values, padding, compression, series, geometry, refusals; checked against pydicom and SimpleITK."""

from __future__ import annotations

import os
import warnings

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.pixels import apply_rescale, pixel_array
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from scansmith import formats
from scansmith.formats import FormatError

STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
}
AXIAL = [1, 0, 0, 0, 1, 0]


def make(path, pixels, modality="CT", syntax=ExplicitVRLittleEndian, **tags):
    """Write one small single-frame file; a tag set to None is left out."""
    pixels = np.asarray(pixels)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_compressed else syntax
    meta.MediaStorageSOPClassUID = STORAGE[modality]
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{abs(hash(str(path))) % 10**9}"
    dataset = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    defaults = {
        "SOPClassUID": STORAGE[modality],
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": modality,
        "PatientID": "P1",
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "FrameOfReferenceUID": "1.2.3.5",
        "ImagePositionPatient": [0, 0, 0],
        "ImageOrientationPatient": AXIAL,
        "PixelSpacing": [2.0, 0.5],
        "SliceThickness": 3,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": pixels.shape[0],
        "Columns": pixels.shape[1],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if modality == "CT":
        defaults |= {"RescaleSlope": 1, "RescaleIntercept": -1024}
    for name, value in (defaults | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    dataset["PixelData"].VR = "OW" if pixels.dtype.itemsize > 1 else "OB"
    if syntax.is_compressed and syntax != DeflatedExplicitVRLittleEndian:
        dataset.compress(syntax, generate_instance_uid=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def read_one(path):
    (source,), skipped = formats.discover(path)
    assert not skipped
    return formats.read(source)


def reason(path):
    sources, (entry,) = formats.discover(path)
    assert not sources and entry.file == path and str(path) not in entry.reason
    return entry.reason


@pytest.fixture
def ct_pixels():
    return np.random.default_rng(0).integers(0, 4096, (64, 72)).astype(np.int16)


# ------------------------------------------------------------------------------------------------ values


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.uint32])
@pytest.mark.parametrize(("slope", "intercept"), [(1, 0), (1, -1024), (2, 5), (0.25, -3.5), (1.0002441, -1024)])
def test_values_are_those_of_pydicoms_own_rescale(tmp_path, dtype, slope, intercept):
    limits = np.iinfo(dtype)
    pixels = np.random.default_rng(1).integers(max(limits.min, -30000), min(limits.max, 30000), (6, 8)).astype(dtype)
    path = make(tmp_path / "a", pixels, "MR", RescaleSlope=slope, RescaleIntercept=intercept)
    image = read_one(path)
    dataset = pydicom.dcmread(path)
    expected = apply_rescale(pixel_array(dataset), dataset)
    whole = float(slope).is_integer() and float(intercept).is_integer()
    assert image.array.dtype.kind == ("f" if not whole else image.array.dtype.kind) and image.array.shape == (
        1,
        8,
        6,
        1,
    )
    assert np.array_equal(image.array[0, :, :, 0].T, expected if whole else expected.astype(np.float32))
    assert image.array.dtype == dtype if (slope, intercept) == (1, 0) else image.array.dtype != np.float64


def test_ct_is_int16_hounsfield_units_when_the_rescale_is_whole(tmp_path):
    image = read_one(make(tmp_path / "a", np.array([[0, 1024], [2048, 4095]], np.uint16)))
    assert (image.modality, image.units, image.array.dtype) == ("CT", "HU", np.int16)
    assert image.array[0, :, :, 0].T.tolist() == [[-1024, 0], [1024, 3071]]


def test_a_modality_lut_sequence_is_applied(tmp_path):
    lut = Dataset()
    lut.add_new("LUTDescriptor", "US", [4, 0, 16])
    lut.add_new("LUTData", "US", [10, 20, 40, 80])
    lut.ModalityLUTType = "US"
    path = make(tmp_path / "a", np.array([[0, 1], [2, 3]], np.uint8), "CR", ModalityLUTSequence=[lut])
    assert read_one(path).array[0, :, :, 0].T.tolist() == [[10, 20], [40, 80]]


@pytest.mark.parametrize(
    ("dtype", "bits", "value", "mirrored"),
    [(np.uint8, 8, 3, 252), (np.uint16, 12, 100, 3995), (np.int16, 16, 5, -6), (np.uint16, 16, 1, 65534)],
)
def test_monochrome1_is_inverted_within_the_stored_bits(tmp_path, dtype, bits, value, mirrored):
    image = read_one(
        make(
            tmp_path / "a",
            np.full((2, 2), value, dtype),
            "DX",
            PhotometricInterpretation="MONOCHROME1",
            BitsStored=bits,
        )
    )
    assert np.all(image.array == mirrored) and image.array.dtype == dtype
    assert image.notes == ("MONOCHROME1 inverted",)


def test_monochrome1_is_inverted_after_the_rescale(tmp_path):
    pixels = np.array([[0, 1023]], np.uint16)
    tags = {"BitsStored": 10, "RescaleSlope": 0.5, "RescaleIntercept": 200}
    image = read_one(make(tmp_path / "a", pixels, "CR", PhotometricInterpretation="MONOCHROME1", **tags))
    assert image.array[0, :, 0, 0].tolist() == [711.5, 200.0]


def test_hounsfield_units_are_never_inverted(tmp_path):
    image = read_one(make(tmp_path / "a", np.array([[24, 1024]], np.uint16), PhotometricInterpretation="MONOCHROME1"))
    assert image.array[0, :, 0, 0].tolist() == [-1000, 0]


@pytest.mark.parametrize(
    "tags",
    [
        {"PixelPaddingValue": -2000},
        {"PixelPaddingValue": -2000, "PixelPaddingRangeLimit": -1900},
        {"PixelPaddingValue": -1900, "PixelPaddingRangeLimit": -2000},
        {},  # scanners forget the tag
    ],
)
def test_ct_padding_becomes_air(tmp_path, ct_pixels, tags):
    ct_pixels[:3] = -2000
    path = make(tmp_path / "a", ct_pixels, **tags)
    hounsfield = read_one(path).array[0, :, :, 0].T
    assert np.all(hounsfield[:3] == -1024) and np.array_equal(hounsfield[3:], ct_pixels[3:] - 1024)


def test_the_illegal_padding_value_63536_in_signed_data_is_read_as_minus_2000(tmp_path, ct_pixels):
    ct_pixels[:3] = -2000
    path = make(tmp_path / "a", ct_pixels)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(path)
    image = read_one(path)
    assert np.all(image.array[0, :, :3, 0] == -1024) and image.array.min() == -1024
    assert any("63536 is illegal in int16 pixels: read as -2000" in note for note in image.notes)


def test_padding_of_12_bit_unsigned_ct_at_the_top_becomes_air(tmp_path, ct_pixels):
    pixels = ct_pixels.astype(np.uint16)
    pixels[0] = 65535
    hounsfield = read_one(make(tmp_path / "a", pixels, PixelPaddingValue=65535, RescaleIntercept=0)).array
    assert np.all(hounsfield[0, :, 0] == -1024) and hounsfield.dtype == np.int16


def test_noise_below_air_is_not_taken_for_padding(tmp_path):
    pixels = np.arange(-100, 900, dtype=np.int16).reshape(25, 40)
    assert np.array_equal(read_one(make(tmp_path / "a", pixels)).array[0, :, :, 0].T, pixels - 1024)


@pytest.mark.parametrize("modality", ["MR", "CR"])
def test_padding_outside_ct_becomes_the_lowest_value_of_the_image(tmp_path, modality):
    pixels = np.array([[-32768, 40], [50, 60]], np.int16)
    assert read_one(make(tmp_path / "a", pixels, modality, PixelPaddingValue=-32768)).array[0, :, :, 0].T.tolist() == [
        [40, 40],
        [50, 60],
    ]


def test_zero_padding_below_all_else_stays_zero(tmp_path):
    pixels = np.array([[0, 40], [50, 60]], np.uint16)
    assert read_one(make(tmp_path / "a", pixels, "MR", PixelPaddingValue=0)).array[0, :, :, 0].T.tolist() == [
        [0, 40],
        [50, 60],
    ]


def test_padding_that_monochrome1_would_make_bright_becomes_dark(tmp_path):
    pixels = np.array([[0, 4000], [3000, 2000]], np.uint16)
    image = read_one(
        make(tmp_path / "a", pixels, "DX", PhotometricInterpretation="MONOCHROME1", BitsStored=12, PixelPaddingValue=0)
    )
    assert image.array[0, :, :, 0].T.tolist() == [[95, 95], [1095, 2095]]


# ------------------------------------------------------------------------------------------------ encodings


@pytest.mark.parametrize(
    "syntax",
    [
        ImplicitVRLittleEndian,
        ExplicitVRLittleEndian,
        DeflatedExplicitVRLittleEndian,
        RLELossless,
        JPEG2000Lossless,
        JPEGLSLossless,
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int16])
def test_every_lossless_syntax_gives_the_same_voxels(tmp_path, syntax, dtype):
    pixels = np.random.default_rng(2).integers(0 if dtype != np.int16 else -2000, 250, (64, 72)).astype(dtype)
    image = read_one(make(tmp_path / "a", pixels, "MR", syntax))
    assert np.array_equal(image.array[0, :, :, 0].T, pixels) and image.array.dtype == dtype


@pytest.mark.parametrize(
    "options", [{"syntax": JPEG2000, "j2k_cr": [4]}, {"syntax": JPEGLSNearLossless, "jls_error": 2}]
)
def test_lossy_padding_leaves_nothing_below_air(tmp_path, options):
    rows, columns = np.mgrid[:64, :64]
    pixels = np.where((rows - 32) ** 2 + (columns - 32) ** 2 < 900, 1000 + rows, -2000).astype(np.int16)
    path = make(tmp_path / "a", pixels, PixelPaddingValue=-2000)
    dataset = pydicom.dcmread(path)
    dataset.compress(options.pop("syntax"), generate_instance_uid=False, **options)
    dataset.save_as(path)
    hounsfield = read_one(path).array
    assert hounsfield.min() == -1024 and abs(float(hounsfield[0, 32, 32, 0]) - 8) < 30


def test_a_file_without_preamble_and_file_meta_is_read(tmp_path, ct_pixels):
    dataset = pydicom.dcmread(make(tmp_path / "a.dcm", ct_pixels))
    for number, (implicit, little) in enumerate([(True, True), (False, True), (False, False)]):
        bare = tmp_path / f"bare{number}"
        copy = Dataset(dataset)
        if not little:
            copy.PixelData = ct_pixels.astype(">i2").tobytes()
        pydicom.dcmwrite(bare, copy, implicit_vr=implicit, little_endian=little)
        assert bare.read_bytes()[128:132] != b"DICM"
        assert np.array_equal(read_one(bare).array[0, :, :, 0].T, ct_pixels - 1024)


@pytest.mark.parametrize("name", ["JPLL/CT2_JPLL", "JPLL/MR4_JPLL", "JPLY/MR4_JPLY"])
def test_simpleitk_decodes_what_pydicom_does_not(shared_data, name, capfd):
    lossless = name.startswith("JPLL")
    image = read_one(shared_data / "dicom_varied" / "wg04" / name)
    reference = read_one(shared_data / "dicom_varied" / "wg04" / "RLE" / name.split("/")[1].replace(name[:4], "RLE"))
    difference = np.abs(image.array.astype(float) - reference.array).max()
    assert difference == 0 if lossless else difference < 400  # 12-bit lossy: slope 9.57
    assert capfd.readouterr().err == ""


def test_what_simpleitk_decodes_is_neither_inverted_nor_rescaled_twice(shared_data, tmp_path):
    original = pydicom.dcmread(shared_data / "dicom_varied" / "wg04" / "JPLL" / "MR4_JPLL")
    plain = read_one(shared_data / "dicom_varied" / "wg04" / "RLE" / "MR4_RLE").array
    original.PhotometricInterpretation = "MONOCHROME1"
    original.save_as(tmp_path / "a")
    inverted = read_one(tmp_path / "a").array
    assert np.allclose(inverted, 4095 * 9.570207 - 2 * 19595 - plain, rtol=0, atol=0.01)


# ------------------------------------------------------------------------------------------------ geometry


def write_series(folder, positions, order=None, **tags):
    """One file a position (z in mm, or x, y, z); voxels say which slice they are; file names in shuffled order."""
    order = order or list(range(len(positions)))
    for k, position in enumerate(positions):
        position = [0, 0, position] if np.isscalar(position) else list(position)
        make(
            folder / f"{order[k]:03d}",
            np.full((4, 6), 1024 + k, np.int16),
            ImagePositionPatient=position,
            SOPInstanceUID=f"1.2.3.9.{k}",
            **tags,
        )


def test_a_shuffled_series_is_sorted_by_position(tmp_path):
    write_series(tmp_path, [10, 12.5, 15, 17.5], order=[2, 0, 3, 1], SliceThickness=9)
    image = read_one(tmp_path)
    assert image.array.shape == (1, 6, 4, 4) and image.array[0, 0, 0].tolist() == [0, 1, 2, 3]
    # columns 0.5 mm towards L, rows 2 mm towards P, slices 2.5 mm towards S whatever SliceThickness says
    assert np.array_equal(image.affine, [[-0.5, 0, 0, 0], [0, -2, 0, 0], [0, 0, 2.5, 10], [0, 0, 0, 1]])
    assert image.spacing == (0.5, 2.0, 2.5) and image.spacing_known


def test_a_broken_slice_is_named_and_the_runs_around_it_are_read_where_they_lie(tmp_path):
    write_series(tmp_path, [10, 12.5, 15, 17.5, 20])
    make(tmp_path / "002", np.ones((4, 6), np.int16), ImagePositionPatient=[0, 0, 15], RescaleSlope=0)
    (source,), skipped = formats.discover(tmp_path)
    assert len(source.files) == 5 and not skipped
    with pytest.raises(FormatError, match="Rescale Slope") as refused:
        formats.read(source)
    assert refused.value.file == tmp_path / "002"
    runs, (entry,) = formats.read_runs(source)
    assert entry.file == tmp_path / "002" and "Rescale Slope" in entry.reason
    assert [(first, image.array.shape[3], image.affine[2, 3]) for first, image in runs] == [(0, 2, 10), (3, 2, 17.5)]
    assert runs[1][1].array[0, 0, 0].tolist() == [3, 4] and runs[1][1].spacing == (0.5, 2.0, 2.5)


def test_a_series_of_which_nothing_can_be_read_names_every_file(tmp_path):
    write_series(tmp_path, [10, 12.5, 15], RescaleSlope=0)
    runs, broken = formats.read_runs(formats.discover(tmp_path)[0][0])
    assert not runs and [entry.file.name for entry in broken] == ["000", "001", "002"]
    (tmp_path / "001").unlink()
    source = formats.discover(tmp_path)[0][0]
    (tmp_path / "000").unlink()
    assert "cannot be opened" in formats.read_runs(source)[1][0].reason


def test_an_oblique_series_lies_where_simpleitk_says(tmp_path):
    import SimpleITK as sitk

    angle, tip = np.radians(25), np.radians(10)
    row = np.array([np.cos(angle), np.sin(angle), 0])
    column = np.array([-np.sin(angle) * np.cos(tip), np.cos(angle) * np.cos(tip), np.sin(tip)])
    normal = np.cross(row, column)
    positions = [np.round(np.array([-10, 20, 5]) + k * 1.5 * normal, 6) for k in range(5)]
    write_series(
        tmp_path,
        positions,
        order=[4, 1, 0, 3, 2],
        ImageOrientationPatient=[round(float(x), 8) for x in (*row, *column)],
    )
    image = read_one(tmp_path)
    reference = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(tmp_path)))
    for index in [(0, 0, 0), (5, 0, 0), (0, 3, 0), (5, 3, 4)]:
        lps = reference.TransformIndexToPhysicalPoint(index)
        assert np.allclose(image.affine @ [*index, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-3)


@pytest.mark.parametrize(
    ("positions", "words"),
    [
        ([0, 5, 15], "gaps of 5, 10 mm"),
        ([0, 1, 2, 3, 4, 5, 7, 8], "gaps of 1, 2 mm"),
        ([0, 0.05, 0.15], "gaps of 0.05, 0.1 mm"),
        ([(0, 0, 0), (0, 1.67, 5), (0, 3.34, 10)], "18.5 degrees off their normal (gantry tilt)"),
    ],
)
def test_an_uneven_or_tilted_series_is_used_slice_by_slice(tmp_path, positions, words):
    write_series(tmp_path, positions)
    sources, skipped = formats.discover(tmp_path)
    assert not skipped and len(sources) == len(positions)
    for k, source in enumerate(sources):
        assert source.shape == (6, 4, 1) and source.dimensions == 3
        image = formats.read(source)
        assert any(words in note for note in image.notes)
        assert np.all(image.array == k) and image.spacing[2] == 3.0


def test_positions_rounded_to_a_tenth_of_a_millimetre_are_even(tmp_path):
    write_series(tmp_path, [0, 0.6, 1.3, 1.9, 2.5, 3.1])
    assert read_one(tmp_path).spacing[2] == pytest.approx(0.62)


def test_a_copy_of_a_slice_is_left_out_and_reported(tmp_path):
    write_series(tmp_path, [0, 5, 10])
    copy = pydicom.dcmread(tmp_path / "001")
    copy.SOPInstanceUID = "1.2.3.99"
    copy.compress(RLELossless, generate_instance_uid=False)
    copy.save_as(tmp_path / "003")
    (source,), (skipped,) = formats.discover(tmp_path)
    assert source.shape == (6, 4, 3) and skipped.file == tmp_path / "003" and "same pixels" in skipped.reason


def test_different_images_at_one_position_that_no_tag_tells_apart_are_used_one_by_one(tmp_path):
    write_series(tmp_path, [0, 5, 10])
    make(tmp_path / "003", np.full((4, 6), 77, np.int16), ImagePositionPatient=[0, 0, 5])
    sources, skipped = formats.discover(tmp_path)
    assert [source.shape for source in sources] == [(6, 4, 1)] * 4 and not skipped
    assert all("no tag tells apart" in source.notes[0] for source in sources)


@pytest.mark.parametrize(
    "tag",
    [
        ("EchoTime", 2, 4),
        ("ImageType", ["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]),
        ("AcquisitionNumber", 1, 2),
    ],
)
def test_echoes_of_one_series_become_volumes_of_their_own(tmp_path, tag):
    name, first, second = tag
    write_series(tmp_path / "a", [0, 5, 10], **{name: first})
    for k in range(3):
        make(
            tmp_path / "b" / str(k),
            np.full((4, 6), 50 + k, np.int16),
            ImagePositionPatient=[0, 0, 5 * k],
            **{name: second},
        )
    sources, _ = formats.discover(tmp_path)
    assert [source.shape for source in sources] == [(6, 4, 3)] * 2
    assert formats.read(sources[1]).array[0, 0, 0].tolist() == [50 - 1024, 51 - 1024, 52 - 1024]


@pytest.mark.parametrize(
    "other",
    [{"ImageOrientationPatient": [0, 1, 0, 0, 0, -1]}, {"PixelSpacing": [1, 1]}, {"SeriesInstanceUID": "1.2.8"}],
)
def test_a_series_that_holds_two_grids_is_split(tmp_path, other):
    write_series(tmp_path / "a", [0, 5, 10])
    for k in range(2):
        make(
            tmp_path / "b" / str(k),
            np.full((4, 6), 9, np.int16),
            ImagePositionPatient=[5 * k, 0, 0] if "ImageOrientationPatient" in other else [0, 0, 5 * k],
            **other,
        )
    sources, _ = formats.discover(tmp_path)
    assert [source.shape[2] for source in sources] == [3, 2]


def test_a_slice_without_position_stands_alone_with_its_spacing(tmp_path, ct_pixels):
    image = read_one(make(tmp_path / "a", ct_pixels, ImagePositionPatient=None, ImageOrientationPatient=None))
    assert image.spacing == (0.5, 2.0, 3.0) and image.spacing_known


@pytest.mark.parametrize(
    ("tags", "spacing", "known"),
    [
        ({}, (0.5, 2.0), True),
        ({"PixelSpacing": None}, (1.0, 1.0), False),
        ({"PixelSpacing": [0, 0]}, (1.0, 1.0), False),
        ({"PixelSpacing": None, "ImagerPixelSpacing": [0.2, 0.1]}, (0.1, 0.2), True),
    ],
)
def test_a_projection_has_its_pixel_spacing_and_two_dimensions(tmp_path, tags, spacing, known):
    path = make(tmp_path / "a", np.zeros((3, 4), np.uint16), "DX", **tags)
    (source,), _ = formats.discover(path)
    image = formats.read(source)
    assert source.dimensions == 2 and image.spacing[:2] == spacing and image.spacing_known == known


def test_the_source_names_patient_and_study(tmp_path, ct_pixels):
    (source,), _ = formats.discover(make(tmp_path / "a", ct_pixels))
    assert (source.patient, source.study, source.format, source.channels) == ("P1", "1.2.3", "dicom", 1)
    (source,), _ = formats.discover(make(tmp_path / "a", ct_pixels, PatientID="", PatientName="A^B"))
    assert source.patient == "A^B"


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.66.4"},
            "SOP class 1.2.840.10008.5.1.4.1.1.66.4 (Segmentation Storage) (0008,0016) is not a single-frame CT, MR, CR or DX image",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.4.1"}, "(Enhanced MR Image Storage)"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "with Modality (0008,0060) 'CT'"),
        ({"NumberOfFrames": 7}, "Number of Frames (0028,0008) is 7"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "Image Type (0008,0008) LOCALIZER"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "Photometric Interpretation (0028,0004) 'PALETTE COLOR'"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "'RGB' with 3 samples"),
        ({"Rows": None}, "Rows (0028,0010) None"),
        ({"Rows": 0}, "Rows (0028,0010) 0"),
        ({"BitsAllocated": 64}, "Bits Allocated (0028,0100) is 64"),
        ({"RescaleType": "Z_EFF"}, "Rescale Type (0028,1054) is 'Z_EFF'"),
        ({"PixelSpacing": [1.0]}, "expected 2 finite numbers in PixelSpacing"),
        ({"ImagePositionPatient": [0, 0]}, "expected 3 finite numbers in ImagePositionPatient"),
        ({"Rows": 6500}, "it is truncated or its header is wrong"),
        ({"Rows": 65535, "Columns": 65535}, "expected at most 2^31 voxels"),
    ],
)
def test_what_is_no_plain_slice_is_skipped_with_the_tag(tmp_path, ct_pixels, tags, words):
    assert words in reason(make(tmp_path / "a", ct_pixels, **tags))


def test_a_syntax_without_decoder_is_named(tmp_path, ct_pixels):
    path = make(tmp_path / "a", ct_pixels)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.100"
    dataset.PixelData = pydicom.encaps.encapsulate([b"\0\0\1\xb3" * 20])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    assert (
        "transfer syntax 1.2.840.10008.1.2.4.100 (MPEG2 Main Profile / Main Level) (0002,0010) cannot be decoded"
        in reason(path)
    )


def test_an_absurd_compressed_size_takes_no_memory(tmp_path, ct_pixels):
    path = make(tmp_path / "a", ct_pixels, syntax=JPEG2000Lossless)
    dataset = pydicom.dcmread(path)
    dataset.Rows = dataset.Columns = 65535
    dataset.save_as(path)
    assert "expected at most 2^28 pixels" in reason(path)
    dataset.Rows, dataset.Columns = 64, 16000
    dataset.save_as(path)
    (source,), _ = formats.discover(path)
    with pytest.raises(FormatError, match="found 64 and 72 in the compressed stream"):
        formats.read(source)


def test_a_truncated_file_is_skipped_and_a_truncated_stream_refused(tmp_path, ct_pixels):
    whole = make(tmp_path / "a", ct_pixels).read_bytes()
    (tmp_path / "a").write_bytes(whole[:-20])
    assert "truncated" in reason(tmp_path / "a")
    whole = make(tmp_path / "b", ct_pixels, syntax=RLELossless).read_bytes()
    (tmp_path / "b").write_bytes(whole[:-60])
    (source,), _ = formats.discover(tmp_path / "b")
    with pytest.raises(FormatError):
        formats.read(source)


def test_a_slope_of_zero_is_refused(tmp_path, ct_pixels):
    (source,), _ = formats.discover(make(tmp_path / "a", ct_pixels, RescaleSlope=0))
    with pytest.raises(FormatError, match="Rescale Slope"):
        formats.read(source)


def test_a_grey_secondary_capture_counts_as_the_radiograph_it_says_it_is(tmp_path):
    image = read_one(make(tmp_path / "a", np.arange(12, dtype=np.uint8).reshape(3, 4), "SC", Modality="CR"))
    assert image.modality == "CR" and image.array.dtype == np.uint8


def test_a_dicomdir_is_passed_over_in_silence(tmp_path):
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.1.3.10", "1.2.3"
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    index = FileDataset(str(tmp_path / "INDEX"), {}, file_meta=meta, preamble=b"\0" * 128)
    index.FileSetID = "X"
    index.save_as(tmp_path / "INDEX", enforce_file_format=True)
    assert formats.discover(tmp_path) == ([], [])


def test_broken_bytes_raise_nothing_but_format_errors(tmp_path, ct_pixels):
    rng = np.random.default_rng(3)
    for syntax in (ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, JPEGLSLossless):
        whole = make(tmp_path / "whole", ct_pixels, syntax=syntax).read_bytes()
        for trial in range(25):
            broken = bytearray(whole[: rng.integers(1, len(whole))] if trial % 2 else whole)
            for _ in range(4):
                broken[rng.integers(0, len(broken))] = rng.integers(0, 256)
            path = tmp_path / f"broken{trial}"
            path.write_bytes(broken)
            for source in formats.discover(path)[0]:
                try:
                    formats.read(source)
                except (FormatError, OSError) as error:
                    assert str(error)


# ------------------------------------------------------------------------------------------------ real scans


def test_every_varied_file_comes_out_right_or_is_skipped_with_a_reason(shared_data, capfd):
    root = shared_data / "dicom_varied"
    sources, skipped = formats.discover(root)
    assert all(entry.reason and str(entry.file) not in entry.reason for entry in skipped)
    assert len(sources) > 50
    for source in sources:
        if source.format != "dicom":
            continue
        image = formats.read(source)
        for k, file in enumerate(source.files):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dataset = pydicom.dcmread(file, force=True)
                try:
                    expected = apply_rescale(pixel_array(dataset), dataset)
                except (RuntimeError, NotImplementedError):
                    continue  # decoded by SimpleITK; its own test above
            found = image.array[0, :, :, k].T
            if dataset.PhotometricInterpretation == "MONOCHROME1":
                total = found.astype(float) + expected
                assert np.allclose(total, total[0, 0], rtol=0, atol=1e-3)
            elif image.modality == "CT":
                kept = expected >= -1024
                assert np.allclose(found[kept], expected[kept], rtol=0, atol=1e-3) and np.all(
                    found[~kept] <= np.maximum(expected[~kept], -1024)
                )
            else:
                assert np.array_equal(found, expected.astype(np.float32) if found.dtype.kind == "f" else expected)
    assert capfd.readouterr().err == ""


def test_real_series_agree_with_simpleitk(shared_data):
    import SimpleITK as sitk

    sources, skipped = formats.discover(shared_data / "dicom_paired_series_pgbm")
    phantom, _ = formats.discover(shared_data / "dicom_ct_kernel_pair_phantom")
    assert len(sources) == 3 and len(phantom) == 2 and not skipped
    for source in sources + phantom:
        image = formats.read(source)
        reference = sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(source.files[0].parent)))
        assert np.array_equal(image.array[0].T, sitk.GetArrayFromImage(reference))
        for index in np.ndindex(2, 2, 2):
            corner = [int(step * (size - 1)) for step, size in zip(index, source.shape)]
            x, y, z = reference.TransformIndexToPhysicalPoint(corner)
            assert np.allclose(image.affine @ [*corner, 1], [-x, -y, z, 1], atol=1e-3)


def test_the_chest_slices_have_no_padding_left_and_no_copies(shared_data):
    sources, skipped = formats.discover(shared_data / "chest_ct_slices_contrast_labels")
    assert len(sources) == 27 and len(skipped) == 3 and all("a copy" in entry.reason for entry in skipped)
    for source in sources:
        image = formats.read(source)
        stored = pydicom.dcmread(source.files[0])
        expected = np.maximum(apply_rescale(pixel_array(stored), stored), -1024)
        assert np.allclose(image.array[0, :, :, 0].T, expected, rtol=0, atol=1e-3) and image.units == "HU"


def test_the_tilted_head_is_used_slice_by_slice(shared_data):
    sources, _ = formats.discover(shared_data / "dicom_ct_head_ge_tilt")
    assert len(sources) == 28
    assert all("18.5 degrees" in source.notes[0] and "gaps of 1.08, 4, 7 mm" in source.notes[0] for source in sources)
    assert os.path.commonpath([source.files[0] for source in sources]) != ""
