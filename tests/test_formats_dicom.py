"""Reading DICOM: values, padding, compression, series, geometry, refusals; checked against pydicom and SimpleITK."""

from __future__ import annotations

import json
import runpy
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.pixels import apply_color_lut, apply_rescale, apply_voi, convert_color_space, pixel_array
from pydicom.uid import (
    JPEG2000,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from scansmith import formats
from scansmith.formats import FormatError, dicom, dicom_file, dicom_pixels

STORAGE = {
    "CT": "1.2.840.10008.5.1.4.1.1.2",
    "MR": "1.2.840.10008.5.1.4.1.1.4",
    "CR": "1.2.840.10008.5.1.4.1.1.1",
    "DX": "1.2.840.10008.5.1.4.1.1.1.1",
    "MG": "1.2.840.10008.5.1.4.1.1.1.2",
    "US": "1.2.840.10008.5.1.4.1.1.6.1",
    "XA": "1.2.840.10008.5.1.4.1.1.12.1",
    "RF": "1.2.840.10008.5.1.4.1.1.12.2",
    "SC": "1.2.840.10008.5.1.4.1.1.7",
    "US frames": "1.2.840.10008.5.1.4.1.1.3.1",
    "SC words": "1.2.840.10008.5.1.4.1.1.7.3",
    "Enhanced CT": "1.2.840.10008.5.1.4.1.1.2.1",
    "Enhanced MR": "1.2.840.10008.5.1.4.1.1.4.1",
    "Converted MR": "1.2.840.10008.5.1.4.1.1.4.4",
}
AXIAL = [1, 0, 0, 0, 1, 0]


def make(path, pixels, modality="CT", syntax=ExplicitVRLittleEndian, **tags):
    """Write one small file of (rows, columns), or with tags that say so of frames and samples; a tag set to None is left out."""
    pixels = np.asarray(pixels)
    size = pixels.shape[1:] if "NumberOfFrames" in tags and pixels.ndim > 2 else pixels.shape
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian if syntax.is_compressed else syntax
    meta.MediaStorageSOPClassUID = STORAGE[modality]
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{abs(hash(str(path))) % 10**9}"
    dataset = FileDataset(
        str(path), {}, b"\0" * 128, meta, is_implicit_VR=False, is_little_endian=syntax != ExplicitVRBigEndian
    )
    defaults = {
        "SOPClassUID": STORAGE[modality],
        "SOPInstanceUID": meta.MediaStorageSOPInstanceUID,
        "Modality": modality.split()[-1] if " " in modality and "frames" not in modality else modality.split()[0],
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
        "Rows": size[0],
        "Columns": size[1],
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if modality == "CT":
        defaults |= {"RescaleSlope": 1, "RescaleIntercept": -1024}
    for name, value in (defaults | tags).items():
        if value is not None:
            setattr(dataset, name, value)
    dataset.HighBit = tags.get("HighBit", dataset.BitsStored - 1)
    if syntax == ExplicitVRBigEndian:
        pixels = pixels.astype(pixels.dtype.newbyteorder(">"))
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
    assert image.array[0, :, 0, 0].tolist() == [-1000, 0] and image.notes == ("MONOCHROME1: HU stay as they are",)


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


def test_padding_at_the_end_of_the_dtype_becomes_air(tmp_path, ct_pixels):
    ct_pixels[:3] = -31744  # -32768 HU
    hounsfield = read_one(make(tmp_path / "a", ct_pixels)).array[0, :, :, 0].T
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


def test_a_few_voxels_far_below_air_are_no_padding_and_hide_none(tmp_path, ct_pixels):
    ct_pixels[5, 7], ct_pixels[9, 2] = -900, -400
    ct_pixels[:3] = -2000
    image = read_one(make(tmp_path / "a", ct_pixels))
    values = image.array[0, :, :, 0].T
    assert np.all(values[:3] == -1024) and np.array_equal(values[3:], ct_pixels[3:] - 1024)
    assert image.notes == ("padding that the header does not mark (-3024 HU) set to air (-1024 HU)",)
    ct_pixels[:3], ct_pixels[0, 0] = -700, -2000
    assert np.array_equal(np.unique(read_one(make(tmp_path / "a", ct_pixels)).array)[:3], [-3024, -1924, -1424])


UNSCALED = {"RescaleSlope": None, "RescaleIntercept": None}


def test_a_ct_without_rescale_is_refused_unless_its_values_or_type_speak_for_hounsfield_units(tmp_path, ct_pixels):
    words = reason(make(tmp_path / "a", ct_pixels.astype(np.uint16), **UNSCALED))
    assert "Rescale Slope (0028,1053) and Rescale Intercept (0028,1052)" in words and "unsigned" in words
    # Offset by 1024, with padding below 0: nothing lies between air and water.
    ct_pixels[:3] = -2000
    (source,), _ = formats.discover(make(tmp_path / "b", ct_pixels, **UNSCALED))
    with pytest.raises(FormatError, match=r"no stored value between -1024 and -200"):
        formats.read(source)
    ct_pixels[3:] -= 1024
    image = read_one(make(tmp_path / "c", ct_pixels, **UNSCALED))
    assert np.array_equal(image.array[0, :, 3:, 0].T, ct_pixels[3:]) and "are absent" in image.notes[0]
    said = read_one(make(tmp_path / "d", np.abs(ct_pixels).astype(np.uint16), RescaleType="HU", **UNSCALED))
    assert "as Rescale Type (0028,1054) says" in said.notes[0]
    assert not read_one(make(tmp_path / "e", ct_pixels[3:], RescaleSlope=None, RescaleIntercept=0)).notes


def test_one_slice_of_water_does_not_spoil_a_series_in_hounsfield_units(tmp_path):
    body = np.linspace(-900, 900, 64 * 72).reshape(64, 72).astype(np.int16)
    for k, pixels in enumerate([body, np.zeros_like(body), body]):
        make(tmp_path / str(k), pixels, ImagePositionPatient=[0, 0, 5 * k], **UNSCALED)
    (source,), _ = formats.discover(tmp_path)
    assert np.array_equal(formats.read(source).array[0, :, :, 2].T, body)


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


@pytest.mark.parametrize(
    ("modality", "tag", "values"),
    [("CT", "ConvolutionKernel", ["B30f", "B70f"]), ("CT", "KVP", [120, 80]), ("MR", "EchoTime", [20, 90])],
)
def test_contrasts_interleaved_in_one_series_are_read_apart(tmp_path, modality, tag, values):
    for k in range(8):
        pixels = np.full((6, 8), 100 + k % 2, np.int16)
        make(tmp_path / f"{k}", pixels, modality, ImagePositionPatient=[0, 0, 2.5 * k], **{tag: values[k % 2]})
    sources, _ = formats.discover(tmp_path)
    assert [source.shape for source in sources] == [(8, 6, 4)] * 2
    assert all(len(np.unique(formats.read(source).array)) == 1 for source in sources)


def test_a_projection_of_several_slices_is_named(tmp_path, ct_pixels):
    path = make(tmp_path / "a", ct_pixels, ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"])
    assert "Image Type (0008,0008) MIP: a projection of several slices" in read_one(path).notes


def test_the_source_names_patient_and_study(tmp_path, ct_pixels):
    (source,), _ = formats.discover(make(tmp_path / "a", ct_pixels))
    assert (source.patient, source.study, source.format, source.channels) == ("P1", "1.2.3", "dicom", 1)
    (source,), _ = formats.discover(make(tmp_path / "a", ct_pixels, PatientID="", PatientName="A^B"))
    assert source.patient == "A^B"


# ------------------------------------------------------------------------------------------------ colours


COLOURS = np.random.default_rng(5).integers(0, 256, (6, 8, 3)).astype(np.uint8)


def make_colour(path, pixels, photometric="RGB", **tags):
    """One colour file; pixels (rows, columns, 3) as they are stored."""
    frames = {"NumberOfFrames": 1} if "NumberOfFrames" not in tags else {}
    settings = {"SamplesPerPixel": 3, "PhotometricInterpretation": photometric, "PlanarConfiguration": 0}
    defaults = {"Rows": pixels.shape[-3], "Columns": pixels.shape[-2]}
    return make(path, pixels, tags.pop("modality", "SC"), **(settings | defaults | frames | tags))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless, JPEG2000Lossless])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_rgb_is_exact_in_either_planar_configuration(tmp_path, syntax, dtype):
    pixels = np.random.default_rng(6).integers(0, np.iinfo(dtype).max, (40, 48, 3)).astype(dtype)
    photometric = "YBR_RCT" if syntax == JPEG2000Lossless else "RGB"
    image = read_one(make_colour(tmp_path / "a", pixels, photometric, syntax=syntax))
    assert (image.modality, image.units, image.array.dtype) == ("OT", "a.u.", dtype)
    assert np.array_equal(image.array[..., 0].T, pixels)
    if syntax == ExplicitVRLittleEndian:
        planes = np.moveaxis(pixels, 2, 0).reshape(40, 48, 3)
        image = read_one(make_colour(tmp_path / "b", planes, PlanarConfiguration=1))
        assert np.array_equal(image.array[..., 0].T, pixels)


def test_ybr_becomes_rgb_as_pydicom_converts_it(tmp_path):
    image = read_one(make_colour(tmp_path / "a", COLOURS, "YBR_FULL"))
    assert np.array_equal(image.array[..., 0].T, convert_color_space(COLOURS, "YBR_FULL", "RGB"))
    # Y1 Y2 B R for two pixels
    packed = np.stack([COLOURS[:, ::2, 0], COLOURS[:, 1::2, 0], COLOURS[:, ::2, 1], COLOURS[:, ::2, 2]], axis=2)
    path = make_colour(tmp_path / "b", packed.reshape(6, 8, 2), "YBR_FULL_422")
    full = COLOURS.copy()
    full[:, 1::2, 1:] = full[:, ::2, 1:]
    assert np.array_equal(read_one(path).array[..., 0].T, convert_color_space(full, "YBR_FULL", "RGB"))


def test_colours_stay_three_channels_where_all_are_equal(tmp_path):
    path = make_colour(tmp_path / "a", np.repeat(COLOURS[..., :1], 3, axis=2), modality="US")
    (source,), _ = formats.discover(path)
    assert source.channels == 3 and source.modality == "US" and formats.read(source).array.shape == (3, 8, 6, 1)


def test_colours_of_ct_are_no_hounsfield_units(tmp_path):
    path = make_colour(tmp_path / "a", COLOURS, modality="CT", RescaleIntercept=None, RescaleSlope=None)
    image = read_one(path)
    assert (image.modality, image.units) == ("OT", "a.u.") and np.array_equal(image.array[..., 0].T, COLOURS)


def make_palette(path, pixels, table, first=0, bits=16, syntax=ExplicitVRLittleEndian, **tags):
    """A PALETTE COLOR file; table (entries, 3)."""
    order = ">" if syntax == ExplicitVRBigEndian else "<"
    for at, colour in enumerate(("Red", "Green", "Blue")):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [len(table) % 65536, first, bits]
        words = table[:, at].astype(f"{order}u{bits // 8}").tobytes()
        tags[f"{colour}PaletteColorLookupTableData"] = words + b"\0" * (len(words) % 2)
    tags = {"PhotometricInterpretation": "PALETTE COLOR"} | tags
    return make(path, pixels, tags.pop("modality", "US"), syntax, **tags)


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ExplicitVRBigEndian])
def test_a_palette_gives_its_colours(tmp_path, bits, syntax):
    table = np.random.default_rng(7).integers(0, 2**bits, (200, 3))
    pixels = np.random.default_rng(8).integers(0, 256, (6, 8)).astype(np.uint8)
    (source,), _ = formats.discover(make_palette(tmp_path / "a", pixels, table, first=20, bits=bits, syntax=syntax))
    image = formats.read(source)
    expected = table[np.clip(pixels.astype(int) - 20, 0, 199)]  # below the first and behind the last entry
    assert source.channels == 3 and image.array.dtype == (np.uint8 if bits == 8 else np.uint16)
    assert np.array_equal(image.array[..., 0].T, expected)


def test_a_grey_palette_gives_one_channel_of_eight_bits_where_that_is_exact(tmp_path):
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    for number, factor in enumerate((256, 257)):
        table = np.repeat(np.arange(256)[::-1, None] * factor, 3, axis=1)
        (source,), _ = formats.discover(make_palette(tmp_path / str(number), pixels, table))
        image = formats.read(source)
        assert source.channels == 1 and image.array.dtype == np.uint8
        assert np.array_equal(image.array[0, :, :, 0].T, 255 - pixels)


def test_a_segmented_palette_is_pydicoms(tmp_path):
    # discrete: 3 entries; linear: 250 more up to 1000; PS3.3 C.7.9.2
    segments = np.array([0, 3, 10, 20, 30, 1, 250, 1000], "<u2").tobytes()
    tags = {}
    for colour in ("Red", "Green", "Blue"):
        tags[f"{colour}PaletteColorLookupTableDescriptor"] = [253, 0, 16]
        tags[f"Segmented{colour}PaletteColorLookupTableData"] = segments
    pixels = np.arange(48, dtype=np.uint8).reshape(6, 8)
    path = make(tmp_path / "a", pixels, "US", PhotometricInterpretation="PALETTE COLOR", **tags)
    expected = apply_color_lut(pixels, pydicom.dcmread(path))[..., 0]
    assert np.array_equal(read_one(path).array[0, :, :, 0].T, expected) and expected[0, 1] == 20


@pytest.mark.parametrize("frames", [3, 4])
def test_bytes_in_big_endian_words_are_put_in_order(tmp_path, frames):
    pixels = np.random.default_rng(9).integers(0, 256, (frames, 5, 3)).astype(np.uint8)
    path = make(tmp_path / "a", pixels, "US frames", ExplicitVRBigEndian, NumberOfFrames=frames)
    dataset = pydicom.dcmread(path)
    swapped = np.frombuffer(pixels.tobytes() + b"\0" * (pixels.size % 2), np.uint8).reshape(-1, 2)[:, ::-1]
    dataset.PixelData = swapped.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path)
    assert np.array_equal(read_one(path).array[0].T, pixels)
    assert np.array_equal(pixel_array(pydicom.dcmread(path)), pixels)


# ------------------------------------------------------------------------------------------------ windows of X-rays


def test_an_x_rays_window_is_told_and_its_values_stay(tmp_path):
    pixels = np.arange(4000, dtype=np.uint16).reshape(40, 100)
    tags = {"BitsStored": 12, "WindowCenter": [2048, 40], "WindowWidth": [4096, 400]}
    image = read_one(make(tmp_path / "a", pixels, "DX", **tags))
    assert image.window == (0.0, 4095.0)  # PS3.3 C.11.2.1.2.1: a width of 4096 around 2048 shows 12 bits
    assert np.array_equal(image.array[0, :, :, 0].T, pixels) and image.notes == ()
    exact = read_one(make(tmp_path / "b", pixels, "MG", VOILUTFunction="LINEAR_EXACT", **tags))
    assert exact.window == (0.0, 4096.0)
    sigmoid = read_one(make(tmp_path / "c", pixels, "CR", VOILUTFunction="SIGMOID", **tags))
    assert sigmoid.window == (0.0, 4096.0) and "SIGMOID" in sigmoid.notes[0]


def test_a_window_is_mirrored_with_monochrome1(tmp_path):
    pixels = np.arange(4000, dtype=np.uint16).reshape(40, 100)
    tags = {"BitsStored": 12, "WindowCenter": 1000.5, "WindowWidth": 1001, "RescaleSlope": 2, "RescaleIntercept": 10}
    plain = read_one(make(tmp_path / "a", pixels, "DX", **tags))
    mirrored = read_one(make(tmp_path / "b", pixels, "DX", PhotometricInterpretation="MONOCHROME1", **tags))
    assert plain.window == (500.0, 1500.0) and mirrored.window == (2 * 4095 + 20 - 1500.0, 2 * 4095 + 20 - 500.0)
    shown = [np.clip(image.array, *image.window) - image.window[0] for image in (plain, mirrored)]
    assert np.array_equal(shown[0], 1000 - shown[1])


@pytest.mark.parametrize(("centre", "width"), [(-500, 10), (2048, 1), (9000, 10), ("1e9", 5)])
def test_a_window_that_shows_nothing_is_ignored(tmp_path, centre, width):
    pixels = np.arange(4000, dtype=np.uint16).reshape(40, 100)
    image = read_one(make(tmp_path / "a", pixels, "CR", WindowCenter=centre, WindowWidth=width))
    assert image.window is None and "show nothing: ignored" in image.notes[0]


@pytest.mark.parametrize("modality", ["CT", "MR", "US", "SC"])
def test_windows_of_other_modalities_are_left_alone(tmp_path, ct_pixels, modality):
    image = read_one(make(tmp_path / "a", ct_pixels, modality, WindowCenter=40, WindowWidth=400))
    assert image.window is None


@pytest.mark.parametrize("photometric", ["MONOCHROME2", "MONOCHROME1"])
def test_a_voi_table_is_applied_the_first_of_several(tmp_path, photometric):
    items = []
    for power in (2, 3):
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [200, 30, 12])
        item.add_new("LUTData", "US", (np.linspace(0, 1, 200) ** power * 4095).astype(int).tolist())
        items.append(item)
    pixels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    path = make(tmp_path / "a", pixels, "DX", VOILUTSequence=items, PhotometricInterpretation=photometric)
    image = read_one(path)
    expected = apply_voi(pixels, pydicom.dcmread(path), index=0)
    expected = 4095 - expected if photometric == "MONOCHROME1" else expected
    assert np.array_equal(image.array[0, :, :, 0].T, expected) and image.window == (0.0, 4095.0)
    assert "VOI LUT Sequence (0028,3010), the first of 2, applied" in image.notes


# ------------------------------------------------------------------------------------------------ frames


def item(**elements):
    """One item of a sequence."""
    dataset = Dataset()
    for name, value in elements.items():
        setattr(dataset, name, value)
    return dataset


def group(position=None, slope=None, **elements):
    """The functional groups of one frame: where it lies and what tells it apart."""
    groups = Dataset()
    if position is not None:
        groups.PlanePositionSequence = [item(ImagePositionPatient=[0, 0, position])]
    if slope is not None:
        groups.PixelValueTransformationSequence = [item(RescaleSlope=slope, RescaleIntercept=0, RescaleType="US")]
    for name, value in elements.items():
        setattr(groups, name, [value])
    return groups


def make_frames(path, pixels, groups, modality="Enhanced MR", **tags):
    """A multi-frame file with functional groups; its grid is shared."""
    shared = Dataset()
    shared.PlaneOrientationSequence = [item(ImageOrientationPatient=AXIAL)]
    shared.PixelMeasuresSequence = [item(PixelSpacing=[2.0, 0.5], SliceThickness=3)]
    absent = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"))
    sequences = {"SharedFunctionalGroupsSequence": [shared], "PerFrameFunctionalGroupsSequence": groups}
    return make(path, pixels, modality, **(absent | sequences | {"NumberOfFrames": len(pixels)} | tags))


@pytest.fixture
def six():
    return np.random.default_rng(10).integers(0, 4000, (6, 32, 40)).astype(np.uint16)


SIX_SYNTAXES = [
    ExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    RLELossless,
    JPEG2000Lossless,
    DeflatedExplicitVRLittleEndian,
]


@pytest.mark.parametrize("syntax", SIX_SYNTAXES)
def test_frames_are_stacked_by_position(tmp_path, six, syntax):
    heights = [15, 10, 12.5, 20, 17.5, 22.5]
    path = make_frames(tmp_path / "a", six, [group(height) for height in heights], syntax=syntax)
    (source,), skipped = formats.discover(path)
    assert not skipped and source.files == (path,) and source.frames == (1, 2, 0, 4, 3, 5)
    image = formats.read(source)
    assert np.array_equal(image.array[0].T, six[[1, 2, 0, 4, 3, 5]]) and image.modality == "MR"
    assert np.array_equal(image.affine, [[-0.5, 0, 0, 0], [0, -2, 0, 0], [0, 0, 2.5, 10], [0, 0, 0, 1]])
    assert source.affine == tuple(image.affine.ravel()) and len(source.instances) == 1


@pytest.mark.parametrize(
    "apart",
    [
        lambda k: {"MREchoSequence": item(EffectiveEchoTime=[4.5, 9.0][k])},
        lambda k: {"MRDiffusionSequence": item(DiffusionBValue=[0.0, 1000.0][k])},
        lambda k: {"FrameContentSequence": item(TemporalPositionIndex=k + 1)},
        lambda k: {"FrameContentSequence": item(StackID="AB"[k])},
        lambda k: {"MRImageFrameTypeSequence": item(FrameType=["ORIGINAL", "PRIMARY", "T1", "MP"[k]])},
        lambda k: {"MRImageFrameTypeSequence": item(ComplexImageComponent=["MAGNITUDE", "PHASE"][k])},
        lambda k: {"UnassignedPerFrameConvertedAttributesSequence": item(EchoTime=[4.5, 9.0][k])},
        lambda k: {
            "MRDiffusionSequence": item(
                DiffusionGradientDirectionSequence=[item(DiffusionGradientOrientation=np.eye(3)[k].tolist())]
            )
        },
    ],
)
def test_frames_at_one_position_are_told_apart_as_files_are(tmp_path, six, apart):
    groups = [group(5 * (at // 2), **apart(at % 2)) for at in range(6)]
    sources, _ = formats.discover(make_frames(tmp_path / "a", six, groups))
    assert {source.frames for source in sources} == {(0, 2, 4), (1, 3, 5)}
    assert all(np.array_equal(formats.read(source).array[0].T, six[list(source.frames)]) for source in sources)


@pytest.mark.parametrize(
    "apart",
    [
        lambda k: {"MREchoSequence": item(EffectiveEchoTime=[20.0, 90.0][k])},
        lambda k: {"FrameContentSequence": item(StackID="12"[k])},
    ],
)
def test_frames_of_two_contrasts_are_told_apart_though_no_position_repeats(tmp_path, six, apart):
    groups = [group(5 * at, **apart(at % 2)) for at in range(6)]
    sources, _ = formats.discover(make_frames(tmp_path / "a", six, groups))
    assert {source.frames for source in sources} == {(0, 2, 4), (1, 3, 5)}
    assert all("differs within the series" in source.notes[0] for source in sources)


def test_an_enhanced_ct_without_rescale_is_refused(tmp_path, six):
    frames = [group(5 * at) for at in range(6)]
    words = reason(make_frames(tmp_path / "a", six, frames, "Enhanced CT"))
    assert "Rescale Slope (0028,1053)" in words and "unsigned" in words


def test_a_dimension_of_the_file_tells_frames_apart_where_no_known_tag_does(tmp_path, six):
    pointers = [item(DimensionIndexPointer=0x00209057), item(DimensionIndexPointer=0x00181060)]
    groups = [
        group(5 * (at // 2), FrameContentSequence=item(DimensionIndexValues=[at // 2 + 1, at % 2 + 1]))
        for at in range(6)
    ]
    sources, _ = formats.discover(make_frames(tmp_path / "a", six, groups, DimensionIndexSequence=pointers))
    assert [source.frames for source in sources] == [(0, 2, 4), (1, 3, 5)]


def test_two_files_of_one_series_stay_two_volumes_where_they_overlap(tmp_path, six):
    for name, pixels in (("a", six), ("b", six[::-1])):
        make_frames(tmp_path / name, pixels, [group(5 * at) for at in range(6)])
    sources, _ = formats.discover(tmp_path)
    assert [source.shape for source in sources] == [(40, 32, 6)] * 2
    assert np.array_equal(formats.read(sources[1]).array[0].T, six[::-1])


def test_two_files_of_one_series_make_one_volume_where_they_follow_each_other(tmp_path, six):
    for name, part in (("a", slice(0, 2)), ("b", slice(2, 6))):
        make_frames(tmp_path / name, six[part], [group(5 * at) for at in range(6)[part]])
    (source,), _ = formats.discover(tmp_path)
    assert [file.name for file in source.files] == ["a", "a", "b", "b", "b", "b"]
    assert source.frames == (0, 1, 0, 1, 2, 3) and len(source.instances) == 6
    assert np.array_equal(formats.read(source).array[0].T, six)


def test_every_frame_has_its_own_rescale(tmp_path, six):
    slopes = [1, 2, 0.5, 1.25, 3, 1]
    path = make_frames(tmp_path / "a", six, [group(5 * at, slope) for at, slope in enumerate(slopes)])
    image = read_one(path)
    assert image.array.dtype == np.float32
    assert np.array_equal(image.array[0].T, (six * np.array(slopes)[:, None, None]).astype(np.float32))


def test_a_copy_of_a_multi_frame_file_is_left_out_as_a_whole(tmp_path, six):
    for name, syntax in (("a", ExplicitVRLittleEndian), ("b", RLELossless)):
        groups = [group(5 * at) for at in range(6)]
        make_frames(tmp_path / name, six, groups, syntax=syntax, SOPInstanceUID="1.2.3.77")
    (source,), (skipped,) = formats.discover(tmp_path)
    assert source.shape == (40, 32, 6) and skipped.file == tmp_path / "b" and "SOP Instance UID" in skipped.reason


def test_an_enhanced_ct_is_in_hounsfield_units_and_a_perfusion_map_is_none(tmp_path, six):
    groups = [group(5 * at, RescaleIntercept=None) for at in range(6)]
    for frame in groups:
        frame.PixelValueTransformationSequence = [item(RescaleSlope=1, RescaleIntercept=-1024, RescaleType="HU")]
        del frame.RescaleIntercept
    path = make_frames(tmp_path / "a", six, groups, "Enhanced CT")
    image = read_one(path)
    assert (image.modality, image.units, image.array.dtype) == ("CT", "HU", np.int16)
    assert np.array_equal(image.array[0].T, six.astype(int) - 1024)
    unit = item(CodeValue="ml/100ml/s")
    groups[0].RealWorldValueMappingSequence = [item(MeasurementUnitsCodeSequence=[unit])]
    words = reason(make_frames(tmp_path / "b", six, groups, "Enhanced CT"))
    assert "Measurement Units Code Sequence (0040,08EA) says 'ml/100ml/s'" in words


def test_frames_that_no_functional_group_places_are_used_one_by_one(tmp_path, six):
    path = make(tmp_path / "a", six, "Enhanced MR", NumberOfFrames=6, ImagePositionPatient=None)
    sources, skipped = formats.discover(path)
    assert [source.frames for source in sources] == [(at,) for at in range(6)] and not skipped
    assert np.array_equal(formats.read(sources[4]).array[0, :, :, 0].T, six[4])


def test_functional_groups_of_another_number_of_frames_are_refused(tmp_path, six):
    words = reason(make_frames(tmp_path / "a", six, [group(5 * at) for at in range(5)]))
    assert "expected 6 items in Per-frame Functional Groups Sequence (5200,9230)" in words


def test_a_run_of_pictures_is_one_scan_of_two_dimensions(tmp_path, six):
    (source,), _ = formats.discover(make(tmp_path / "a", six, "US frames", NumberOfFrames=6))
    assert (source.modality, source.dimensions, source.shape) == ("US", 2, (40, 32, 6))
    assert source.frames == (0, 1, 2, 3, 4, 5) and "6 frames (0028,0008) of one run" in source.notes[0]
    assert np.array_equal(formats.read(source).array[0].T, six)
    few = formats.read(replace(source, frames=(4, 1)))
    assert np.array_equal(few.array[0].T, six[[4, 1]])


def test_a_run_of_x_rays_keeps_one_window_and_is_inverted(tmp_path, six):
    tags = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "PhotometricInterpretation": "MONOCHROME1"}
    image = read_one(make(tmp_path / "a", six, "XA", NumberOfFrames=6, **tags))
    assert np.array_equal(image.array[0].T, 4095 - six) and image.window == (0.0, 4095.0)


def test_a_secondary_capture_of_words_is_a_volume_where_it_says_so_else_a_run(tmp_path, six):
    placed = make_frames(tmp_path / "a", six, [group(5 * at) for at in range(6)], "SC words", Modality="CT")
    (source,), _ = formats.discover(placed)
    assert (source.modality, source.dimensions, source.shape) == ("OT", 3, (40, 32, 6))
    tags = {"NumberOfFrames": 6, "Modality": "CT", "ImagePositionPatient": None}
    (source,), _ = formats.discover(make(tmp_path / "b", six, "SC words", **tags))
    assert (source.modality, source.dimensions, len(source.frames)) == ("OT", 2, 6)


def compressed(path, pixels, parts, offsets):
    """A file of J2K frames, each cut into `parts` fragments; with a basic or extended offset table, or neither."""
    make(path, pixels, "US frames", JPEG2000Lossless, NumberOfFrames=len(pixels))
    dataset = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=len(pixels)))
    if offsets == "extended":
        data, table, lengths = encapsulate_extended(frames)
        dataset.PixelData, dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths = data, table, lengths
    else:
        dataset.PixelData = encapsulate(frames, fragments_per_frame=parts, has_bot=offsets == "basic")
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(path)
    return path


@pytest.mark.parametrize(
    ("parts", "offsets"), [(1, "basic"), (1, "none"), (1, "extended"), (3, "basic"), (3, "none"), (2, "none")]
)
def test_fragments_find_their_frames(tmp_path, six, parts, offsets):
    assert np.array_equal(read_one(compressed(tmp_path / "a", six, parts, offsets)).array[0].T, six)


def test_only_the_frames_of_a_stack_are_decoded(tmp_path, six):
    groups = [group(5 * (at // 2), FrameContentSequence=item(StackID="AB"[at % 2])) for at in range(6)]
    path = make_frames(tmp_path / "a", six, groups, syntax=JPEG2000Lossless)
    dataset = pydicom.dcmread(path)
    frames = list(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=6))
    frames[1::2] = [b"broken"] * 3
    dataset.PixelData = encapsulate(frames)
    dataset.save_as(path)
    first, second = formats.discover(path)[0]
    assert np.array_equal(formats.read(first).array[0].T, six[::2])
    with pytest.raises(FormatError, match="found none with a frame header") as refused:
        formats.read(second)
    assert refused.value.file == path


def test_a_missing_frame_is_refused(tmp_path, six):
    path = compressed(tmp_path / "a", six, 1, "none")
    dataset = pydicom.dcmread(path)
    dataset.NumberOfFrames = 8
    dataset.save_as(path)
    (source,), _ = formats.discover(path)
    with pytest.raises(FormatError, match="expected 8 compressed frames in Pixel Data"):
        formats.read(source)


# ------------------------------------------------------------------------------------------------ headers


def test_a_header_goes_through_json_unchanged(tmp_path, six, ct_pixels):
    make_frames(tmp_path / "a", six, [group(5 * at, slope=at + 1) for at in range(6)], GantryDetectorTilt=0)
    write_series(tmp_path / "b", [0, 5, 10], BurnedInAnnotation="NO")
    make(tmp_path / "c", six, "US frames", NumberOfFrames=6)
    make_palette(tmp_path / "d", six[0].astype(np.uint8), np.arange(768).reshape(256, 3))
    files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    headers = [(path, dicom.header(path, ("PatientID",))) for path in files]
    again = [(path, json.loads(json.dumps(header))) for path, header in headers]
    assert dicom.arrange(again) == dicom.arrange(headers) and len(dicom.arrange(headers)[0]) == 4


def test_a_source_tells_what_the_header_says(tmp_path):
    tags = {"BodyPartExamined": "HEAD", "BurnedInAnnotation": "YES", "ImageType": ["DERIVED", "PRIMARY"]}
    write_series(tmp_path, [0, 5, 10], order=[2, 0, 1], **tags)
    (source,), _ = formats.discover(tmp_path, tags=("BodyPartExamined", "ImageType", "StationName", "PixelSpacing"))
    assert source.tags == (
        ("BodyPartExamined", "HEAD"),
        ("ImageType", "DERIVED\\PRIMARY"),
        ("PixelSpacing", "2.0\\0.5"),
    )
    assert (source.series, source.frame_of_reference, source.burned_in) == ("1.2.3.4", "1.2.3.5", True)
    assert source.instances == ("1.2.3.9.0", "1.2.3.9.1", "1.2.3.9.2")
    assert source.affine == tuple(formats.read(source).affine.ravel())
    with pytest.raises(ValueError, match="expected the keyword of a DICOM attribute"):
        dicom.header(source.files[0], ("NoSuchTag",))


def test_a_segmentation_is_listed_as_a_mask_and_no_image(shared_data):
    (source,), _ = formats.discover(shared_data / "dicom_varied" / "highdicom" / "seg_image_ct_binary.dcm")
    assert source.role == "mask" and source.refers_to
    with pytest.raises(FormatError, match="a mask, not an image"):
        formats.read(source)


@pytest.mark.parametrize("said", ["CT", "MR", "NM", "OT", None])
def test_a_secondary_capture_of_anything_but_a_picture_is_of_another_kind(tmp_path, said):
    image = read_one(make(tmp_path / "a", np.arange(12, dtype=np.uint8).reshape(3, 4), "SC", Modality=said))
    assert (image.modality, image.units) == ("OT", "a.u.")


def test_a_run_too_long_for_memory_is_refused_and_as_many_voxels_in_volumes_are_not(tmp_path, six, monkeypatch):
    monkeypatch.setattr(dicom, "MAX_VOXELS", six.size - 1)
    assert "expected at most 2^31 voxels in one run" in reason(make(tmp_path / "a", six, "US frames", NumberOfFrames=6))
    groups = [group(5 * (at // 2), FrameContentSequence=item(StackID="AB"[at % 2])) for at in range(6)]
    assert len(formats.discover(make_frames(tmp_path / "b", six, groups))[0]) == 2


@pytest.mark.parametrize("modality", ["MG", "US", "XA", "RF"])
def test_pictures_of_one_series_are_scans_of_their_own(tmp_path, ct_pixels, modality):
    for name in "ab":
        make(tmp_path / name, ct_pixels + ord(name), modality)
    sources, skipped = formats.discover(tmp_path)
    assert [(source.modality, source.dimensions, source.notes) for source in sources] == [(modality, 2, ())] * 2
    assert not skipped


# ------------------------------------------------------------------------------------------------ headers without pydicom


def both_headers(path, tags=()):
    """`dicom.header` as it is and by pydicom alone: each a dict, or the words of the refusal."""
    found = []
    for way in (dicom_file.read_elements, dicom_file.read_header):
        with pytest.MonkeyPatch.context() as patch, formats.quiet():
            patch.setattr(dicom, "read_elements", way)
            try:
                found.append(dicom.header(path, tags))
            except FormatError as error:
                found.append(str(error))
    return found


def is_light(path):
    with formats.quiet():
        return isinstance(dicom_file.read_elements(path, dicom.ALL_KEYWORDS).dataset, dicom_file.Elements)


def test_every_header_of_real_files_is_the_one_by_pydicom(shared_data):
    tags = (
        "BodyPartExamined",
        "PixelSpacing",
        "WindowCenter",
        "PatientName",
        "PixelPaddingValue",
        "KVP",
        "ContentTime",
    )
    files = [file for name in ("dicom_varied", "dicom_ct_head_ge_tilt") for file in (shared_data / name).rglob("*")]
    files = [file for file in files if file.is_file() and dicom.sniff(file.read_bytes()[:1024])]
    light = 0
    for file in files:
        own, by_pydicom = both_headers(file, tags)
        if isinstance(own, dict) and "frames" in own:
            # Which header was decoded first shows in this text, which frames replace.
            own["common"]["acquisition"] = by_pydicom["common"]["acquisition"]
        assert own == by_pydicom, file
        light += is_light(file)
    assert len(files) > 100 and light > 0.5 * len(files)


def nested(depth):
    """A data set of sequences, with a private element and one of bytes that look like a delimiter."""
    item = Dataset()
    item.CodeValue, item.CodeMeaning = "1", "a meaning"
    item.add_new(0x00091010, "OB", b"\xfe\xff\xdd\xe0\0\0\0\0")
    for _ in range(depth):
        around = Dataset()
        around.ReferencedImageSequence = [item, Dataset(), item]
        item = around
    return item


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize("undefined", ["none", "sequences", "items", "both"])
def test_sequences_are_passed_over_however_they_end(tmp_path, ct_pixels, syntax, undefined):
    path = make(tmp_path / "a", ct_pixels, syntax=syntax)
    dataset = pydicom.dcmread(path)
    dataset.ReferencedStudySequence = [nested(3)]
    dataset.AnatomicRegionSequence = []

    def end(item):
        item.is_undefined_length_sequence_item = undefined in ("items", "both")
        for element in item:
            if element.VR == "SQ":
                element.is_undefined_length = undefined in ("sequences", "both")
                for inner in element.value:
                    end(inner)

    end(dataset)
    dataset.save_as(path)
    assert is_light(path)
    light, whole = dicom_file.read_elements(path, dicom.ALL_KEYWORDS), dicom_file.read_header(path)
    assert (light.position, light.available) == (whole.position, whole.available)
    for keyword in dicom.ALL_KEYWORDS:
        assert (keyword in light.dataset) == (keyword in whole.dataset)
        assert light.dataset.get(keyword) == whole.dataset.get(keyword)
    assert np.array_equal(read_one(path).array[0, :, :, 0].T, ct_pixels.astype(np.int32) - 1024)


def test_what_is_unusual_is_left_to_pydicom_and_reads_the_same(tmp_path, ct_pixels):
    plain = make(tmp_path / "plain", ct_pixels)
    assert is_light(plain)
    expected = read_one(plain).array
    whole = plain.read_bytes()
    start, second = whole.index(b"\x08\x00\x16\x00UI"), whole.index(b"\x08\x00\x18\x00UI")  # of the data set
    unknown = b"\x08\x00\x10\x11UN\0\0\xff\xff\xff\xff\xfe\xff\xdd\xe0\0\0\0\0"
    variants = {
        "no meta": whole[start:],
        "no preamble": whole[128:],
        "implicit behind explicit": whole[:second] + b"\x08\x00\x08\x00\x02\0\0\0A " + whole[second:],
        "unknown of undefined length": whole[:second] + unknown + whole[second:],
        "no known VR": whole[:second] + b"\x08\x00\x50\x00XX\x02\0A " + whole[second:],
        "a stray delimiter": whole[:second] + b"\xfe\xff\xdd\xe0\0\0\0\0" + whole[second:],
    }
    for name, data in variants.items():
        path = tmp_path / name
        path.write_bytes(data)
        own, by_pydicom = both_headers(path)
        assert not is_light(path) and own == by_pydicom, name
        if isinstance(own, dict) and name != "no preamble":
            assert np.array_equal(read_one(path).array, expected), name
    for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        path = make(tmp_path / syntax, ct_pixels, syntax=syntax)
        assert not is_light(path) and np.array_equal(read_one(path).array, expected)


def test_a_long_header_is_read_further(tmp_path, ct_pixels):
    path = make(tmp_path / "a", ct_pixels)
    dataset = pydicom.dcmread(path)
    dataset.add_new(0x00091010, "OB", bytes(300_000))
    dataset.save_as(path)
    assert is_light(path) and path.stat().st_size > 300_000
    own, by_pydicom = both_headers(path)
    assert own == by_pydicom and read_one(path).array.shape == (1, 72, 64, 1)


@pytest.mark.parametrize("charset", [None, "ISO_IR 100", "ISO_IR 192", "ISO_IR 13", ["", "ISO 2022 IR 87"]])
def test_text_is_decoded_as_pydicom_does(tmp_path, ct_pixels, charset):
    text = "Yamada" if charset is None else "B\xfcrger" if charset in ("ISO_IR 100", "ISO_IR 192") else "\uff94\uff8f"
    if isinstance(charset, list):
        text = "\u5c71\u7530"
    path = make(tmp_path / "a", ct_pixels, SpecificCharacterSet=charset, PatientID=text, StudyDescription=text)
    own, by_pydicom = both_headers(path, ("StudyDescription", "PatientName"))
    assert own == by_pydicom and own["common"]["patient"] == text
    assert own["common"]["tags"] == (("StudyDescription", text),)


def test_a_patients_name_asked_for_is_kept_whole(tmp_path, ct_pixels):
    path = make(tmp_path / "a", ct_pixels, PatientName="Doe^Jane")
    assert dicom.header(path, ("PatientName",))["common"]["tags"] == (("PatientName", "Doe^Jane"),)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, ImplicitVRLittleEndian])
@pytest.mark.parametrize(
    ("dtype", "used"),
    [
        *((dtype, used) for dtype in (np.uint8, np.int8) for used in (1, 5, 8)),
        *((dtype, used) for dtype in (np.uint16, np.int16) for used in (1, 8, 12, 15, 16)),
        *((dtype, used) for dtype in (np.uint32, np.int32) for used in (12, 31, 32)),
    ],
)
def test_stored_values_are_pydicoms_whatever_the_unused_bits_hold(tmp_path, syntax, dtype, used):
    limits = np.iinfo(dtype)
    pixels = np.random.default_rng(used).integers(limits.min, limits.max, (5, 7), dtype, endpoint=True)
    path = make(tmp_path / "a", pixels, "MR", syntax, BitsStored=used)
    opened = dicom_file.read_elements(path, dicom.ALL_KEYWORDS)
    (stored,) = dicom_pixels.stored_frames(path, opened, [0], [])
    expected = pixel_array(pydicom.dcmread(path))
    assert is_light(path) and stored.dtype == expected.dtype and np.array_equal(stored, expected)


def test_whole_rescales_are_exact_where_steps_on_the_way_do_not_fit(tmp_path):
    pixels = np.array([[65535, 40000], [33000, 32768]], np.uint16)
    for slope, intercept in ((1, -32768), (1, -65535), (-1, 32768), (-1, 0), (3, -98304), (65536, 0), (1, 2**31 - 1)):
        image = read_one(
            make(tmp_path / f"{slope} {intercept}", pixels, "MR", RescaleSlope=slope, RescaleIntercept=intercept)
        )
        expected = pixels.astype(object) * slope + intercept
        assert np.array_equal(image.array[0, :, :, 0].T.astype(object), expected)
        low, high = min(expected.ravel()), max(expected.ravel())
        narrow = next(
            kind for kind in (np.int16, np.int32, np.int64) if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max
        )
        assert image.array.dtype == narrow


# ------------------------------------------------------------------------------------------------ hostile files


def peak(path):
    """Bytes that Python took at most while the file was listed and read, and why it was refused."""
    tracemalloc.start()
    try:
        sources, skipped = formats.discover(path)
        words = skipped[0].reason if skipped else ""
        for source in sources:
            try:
                formats.read(source)
            except FormatError as error:
                words = str(error)
        return tracemalloc.get_traced_memory()[1], words
    finally:
        tracemalloc.stop()


def header_bytes(path):
    """The file up to Pixel Data, and from there on."""
    whole = path.read_bytes()
    at = whole.index(b"\xe0\x7f\x10\x00")
    return whole[:at], whole[at:]


@pytest.mark.parametrize(
    "claim",
    [
        {"Rows": 60000, "Columns": 60000, "NumberOfFrames": 1000},
        {"Rows": 60000, "Columns": 60000},
        {"NumberOfFrames": 2**31 - 1},
        {"NumberOfFrames": 10**6},
        {"Rows": 16000, "Columns": 16000},
    ],
)
@pytest.mark.parametrize(
    "syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless, DeflatedExplicitVRLittleEndian]
)
def test_claims_that_the_file_cannot_hold_take_no_memory(tmp_path, ct_pixels, claim, syntax):
    path = make(tmp_path / "a", ct_pixels, syntax=syntax)
    dataset = pydicom.dcmread(path)
    for name, value in claim.items():
        setattr(dataset, name, value)
    dataset.save_as(path)
    taken, words = peak(path)
    assert taken < 10e6 and "(0028,00" in words


def test_a_deflate_bomb_is_not_inflated(tmp_path, ct_pixels):
    path = make(tmp_path / "a", ct_pixels, syntax=DeflatedExplicitVRLittleEndian)
    whole = path.read_bytes()
    meta = 144 + int.from_bytes(whole[140:144], "little")
    inside = zlib.decompress(whole[meta:], -zlib.MAX_WBITS)
    at = inside.index(b"\xe0\x7f\x10\x00")

    def deflate(data):
        packer = zlib.compressobj(9, wbits=-zlib.MAX_WBITS)
        return packer.compress(data) + packer.compress(bytes(100 * 2**20)) + packer.flush()

    path.write_bytes(whole[:meta] + deflate(inside))  # behind the pixels: read, for they are whole
    taken, words = peak(path)
    assert taken < 60e6 and words == ""
    private = b"\x09\x00\x10\x10OB\0\0" + (2**32 - 16).to_bytes(4, "little")
    path.write_bytes(whole[:meta] + deflate(private))  # before them
    taken, words = peak(path)
    assert taken < 60e6 and words
    path.write_bytes(whole[:meta] + deflate(inside[: at + 12]))  # instead of them: zeros for pixels are an image
    assert peak(path)[0] < 60e6
    path.write_bytes(whole[:meta] + b"\xff\xff no deflate")
    assert "(0002,0010): expected a deflate stream" in reason(path)


def test_sequences_nested_a_thousand_deep_are_refused(tmp_path, ct_pixels):
    head, pixels = header_bytes(make(tmp_path / "a", ct_pixels))
    level = b"\x40\x00\x75\x02SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"
    at = head.index(b"\x28\x00\x02\x00US")
    (tmp_path / "a").write_bytes(head[:at] + level * 1000 + head[at:] + pixels)
    assert "nested hundreds of levels deep" in reason(tmp_path / "a")


FLOODED = [b"\x40\x00\x75\x02", b"\x00\x52\x30\x92", b"\x40\x00\x96\x90", b"\x28\x00\x10\x30"]


@pytest.mark.parametrize("keyword", FLOODED)
@pytest.mark.parametrize("defined", [True, False])
def test_a_flood_of_empty_items_takes_no_memory(tmp_path, six, keyword, defined):
    modality = "XA" if keyword[0] == 0x28 else "Enhanced MR"
    head, pixels = header_bytes(make(tmp_path / "a", six, modality, NumberOfFrames=6))
    flood = b"\xfe\xff\x00\xe0\0\0\0\0" * 20_000
    length = len(flood).to_bytes(4, "little") if defined else b"\xff\xff\xff\xff"
    end = b"" if defined else b"\xfe\xff\xdd\xe0\0\0\0\0"
    (tmp_path / "a").write_bytes(head + keyword + b"SQ\0\0" + length + flood + end + pixels)
    taken, words = peak(tmp_path / "a")
    assert taken < 20e6 and ("room for" in words or (defined and keyword[0] == 0x40))


def test_an_element_that_claims_four_gigabytes_takes_no_memory(tmp_path, ct_pixels):
    head, pixels = header_bytes(make(tmp_path / "a", ct_pixels))
    at = head.index(b"\x08\x00\x60\x00CS")
    claim = b"\x08\x00\x08\x00UT\0\0\xf0\xff\xff\xff"  # Image Type, which is read
    (tmp_path / "a").write_bytes(head[:at] + claim + head[at:] + pixels)
    taken, words = peak(tmp_path / "a")
    assert taken < 10e6 and words


def test_a_stream_of_more_samples_than_the_header_says_is_refused(tmp_path):
    pixels = np.zeros((64, 64, 3), np.uint8)
    path = make_colour(tmp_path / "a", pixels, "YBR_RCT", syntax=JPEG2000Lossless)
    dataset = pydicom.dcmread(path)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.save_as(path)
    (source,), _ = formats.discover(path)
    with pytest.raises(FormatError, match="found 64 and 64 in the compressed stream, of 3"):
        formats.read(source)


def test_reading_takes_little_more_memory_than_the_image(tmp_path):
    pixels = np.zeros((64, 256, 256), np.uint16)
    pixels[:, 10, 10] = np.arange(64)
    path = make_frames(tmp_path / "a", pixels, [group(at) for at in range(64)])
    (source,), _ = formats.discover(path)
    tracemalloc.start()
    image = formats.read(source)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert taken < 1.3 * image.array.nbytes and np.array_equal(image.array[0].T, pixels)


# ------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("tags", "words"),
    [
        (
            {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.481.2"},
            "SOP class 1.2.840.10008.5.1.4.1.1.481.2 (RT Dose Storage) (0008,0016) is none that this version reads: CT, MR, X-ray",
        ),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.128"}, "(Positron Emission Tomography Image Storage)"),
        ({"NumberOfFrames": 7}, "Number of Frames (0028,0008): expected 64512 bytes of voxels for shape (72, 64, 7)"),
        ({"NumberOfFrames": 0}, "expected Number of Frames (0028,0008) of 1 or more, found 0"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "M", "MOSAIC"]}, "Image Type (0008,0008) MOSAIC"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, "Image Type (0008,0008) LOCALIZER"),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "SCOUT"]}, "Image Type (0008,0008) SCOUT"),
        ({"ImageType": ["DERIVED", "SECONDARY", "SCREEN SAVE"]}, "Image Type (0008,0008) SCREEN SAVE"),
        ({"BitsStored": 12, "HighBit": 15}, "High Bit (0028,0102) is 15 with Bits Stored (0028,0101) 12: expected 11"),
        ({"HighBit": 11}, "High Bit (0028,0102) is 11 with Bits Stored (0028,0101) 16: expected 15"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "Red Palette Color Lookup Table Descriptor (0028,1101)"),
        ({"PhotometricInterpretation": "HSV"}, "Photometric Interpretation (0028,0004) 'HSV' with 1 samples"),
        ({"SamplesPerPixel": 3}, "'MONOCHROME2' with 3 samples"),
        (
            {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL"},
            "Bits Allocated (0028,0100) is 16: expected 8 with Photometric Interpretation (0028,0004) YBR_FULL",
        ),
        ({"Rows": None}, "Rows (0028,0010) None"),
        ({"Rows": 0}, "Rows (0028,0010) 0"),
        ({"BitsAllocated": 64}, "Bits Allocated (0028,0100) is 64"),
        ({"RescaleType": "Z_EFF"}, "Rescale Type (0028,1054) is 'Z_EFF'"),
        ({"PixelSpacing": [1.0]}, "expected 2 finite numbers in PixelSpacing"),
        ({"ImagePositionPatient": [0, 0]}, "expected 3 finite numbers in ImagePositionPatient"),
        ({"Rows": 6500}, "it is truncated or its header is wrong"),
        ({"Rows": 65535, "Columns": 65535}, "expected at most 2^28 pixels"),
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


def test_a_precision_that_jpeg_does_not_have_is_refused_before_its_decoder_crashes(shared_data, tmp_path):
    whole = bytearray((shared_data / "dicom_varied" / "pydicom_data" / "JPEG-LL.dcm").read_bytes())
    at = whole.index(b"\xff\xd8\xff\xc3")
    assert whole[at + 6] == 16
    whole[at + 6] = 96
    (tmp_path / "a").write_bytes(whole)
    (source,), _ = formats.discover(tmp_path / "a")
    with pytest.raises(FormatError, match="found 96 bits in the compressed stream"):
        formats.read(source)


def test_a_jpeg_ls_stream_without_its_end_is_refused_before_its_decoder_hangs(tmp_path, ct_pixels):
    path = make(tmp_path / "a", ct_pixels, syntax=JPEGLSLossless)
    dataset = pydicom.dcmread(path)
    (frame,) = pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1)
    dataset.PixelData = encapsulate([frame[: len(frame) // 2]])
    dataset.save_as(path)
    (source,), _ = formats.discover(path)
    with pytest.raises(FormatError, match="up to its end marker, found none: the file is truncated"):
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
    script = runpy.run_path(str(Path(__file__).parents[1] / "benchmarks" / "format_table.py"))
    outcomes = [outcome for _, _, outcome in script["rows"](shared_data / "dicom_varied")]
    read = [outcome for outcome in outcomes if outcome.startswith("read")]
    assert len(read) > 100 and sum("palette" in outcome for outcome in read) == 4
    assert all("equals" in outcome for outcome in read), [outcome for outcome in read if "equals" not in outcome]
    refused = [outcome for outcome in outcomes if outcome.startswith("refused")]
    assert len(refused) == 1 and "found 1024 and 3722445056 in the compressed stream" in refused[0]
    named = ("(00", "transfer syntax", "a copy:", "Sequence (", "found none of their signatures", "0020,9311", "a gzip")
    for outcome in outcomes:
        assert not outcome.startswith("skipped") or any(words in outcome for words in named), outcome
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
