"""Discovering and reading scans: pictures, NIfTI, NRRD, MetaImage, round trips with the writer, broken files."""

from __future__ import annotations

import gzip
import os
import struct
import tracemalloc
import zlib

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from PIL import Image as Pillow

from scansmith import formats
from scansmith.formats import FormatError, Marking
from scansmith.image import Image

MARKING = Marking("scansmith 0", "0123abcd", 0, 1)


def read_one(path):
    (source,), skipped = formats.discover(path)
    assert not skipped
    image = formats.read(source)
    assert image.array.shape == (source.channels, *source.shape) and image.modality == source.modality
    return image


def reason(path):
    sources, (entry,) = formats.discover(path)
    assert not sources and entry.file == path and str(path) not in entry.reason
    return entry.reason


def refusal(path):
    """The sentence with which a file is skipped at discovery or refused at reading."""
    sources, skipped = formats.discover(path)
    if skipped:
        return skipped[0].reason
    with pytest.raises(FormatError) as caught:
        formats.read(sources[0])
    return str(caught.value)


def with_intent(array, intent):
    image = nibabel.Nifti1Image(array, np.eye(4))
    image.header.set_intent(intent)
    return image


# ------------------------------------------------------------------------------------------------ the folder


def test_scans_are_recognised_by_content_and_listed_by_path(tmp_path):
    Pillow.new("L", (4, 3)).save(tmp_path / "b", "PNG")
    (tmp_path / "sub").mkdir()
    Pillow.new("L", (4, 3)).save(tmp_path / "sub" / "a.dcm", "JPEG")
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "x.nii.gz")
    (tmp_path / "x.nii.gz").rename(tmp_path / "a.txt")
    sources, skipped = formats.discover(tmp_path)
    assert [(source.files[0].name, source.format) for source in sources] == [
        ("a.txt", "nifti"),
        ("b", "png"),
        ("a.dcm", "jpeg"),
    ]
    assert not skipped


def test_companions_and_hidden_files_are_no_errors_and_all_else_is_told(tmp_path):
    for name in (
        "README.md",
        "labels.csv",
        "index.json",
        "notes.TXT",
        "DICOMDIR",
        "Thumbs.db",
        "LICENSE",
        ".hidden",
        ".cache/x",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("words")
    (tmp_path / "scan.dcm").write_text("this is text")
    (tmp_path / "empty.png").touch()
    (tmp_path / "scans.zip").write_bytes(b"PK\x03\x04xxxx")
    (tmp_path / "film.tif").write_bytes(b"II*\0xxxx")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "pipe")
    sources, skipped = formats.discover(tmp_path)
    assert not sources
    assert {entry.file.name: entry.reason for entry in skipped} == {
        "empty.png": "expected a scan, found an empty file (0 bytes): copy it again from its source",
        "film.tif": "expected a TIFF picture of grey or RGB pixels, found a broken or unusual one: copy it again or convert it to PNG",
        "link": "expected a regular file, found a broken link or a device",
        "pipe": "expected a regular file, found a broken link or a device",
        "scan.dcm": "expected DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG or TIFF, found none of their signatures",
        "scans.zip": "expected a scan, found a zip archive: unpack it first",
    }


def test_a_folder_that_is_not_there_is_the_users_mistake(tmp_path):
    with pytest.raises(ValueError, match="found nothing at"):
        formats.discover(tmp_path / "nowhere")


def test_a_file_that_vanishes_after_discovery_is_an_os_error(tmp_path):
    for name in ("a.png", "b.nii"):
        path = tmp_path / name
        Pillow.new("L", (4, 3)).save(path) if name == "a.png" else nibabel.save(
            nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), np.eye(4)), path
        )
        (source,), _ = formats.discover(path)
        path.unlink()
        with pytest.raises(OSError, match="No such file"):
            formats.read(source)


# ------------------------------------------------------------------------------------------------ pictures


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_grey_png_is_read_exactly_with_columns_first(tmp_path, dtype):
    pixels = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (5, 7)).astype(dtype)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    image = read_one(tmp_path / "a.png")
    assert image.array.shape == (1, 7, 5, 1) and image.array.dtype == dtype
    assert np.array_equal(image.array[0, :, :, 0].T, pixels)
    assert not image.spacing_known and image.spacing == (1.0, 1.0, 1.0) and image.units == "a.u."


def test_a_colour_picture_has_three_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    Pillow.fromarray(pixels).save(tmp_path / "a.png")
    assert np.array_equal(read_one(tmp_path / "a.png").array[..., 0].transpose(2, 1, 0), pixels)
    Pillow.fromarray(pixels).save(tmp_path / "a.jpg", quality=95)
    decoded = np.asarray(Pillow.open(tmp_path / "a.jpg"))
    assert np.array_equal(read_one(tmp_path / "a.jpg").array[..., 0].transpose(2, 1, 0), decoded)


@pytest.mark.parametrize(
    ("mode", "channels", "note"),
    [
        ("1", 1, None),
        ("LA", 1, "transparency ignored"),
        ("RGBA", 3, "transparency ignored"),
        ("P", 3, "palette converted"),
    ],
)
def test_other_png_modes_become_plain_grey_or_rgb(tmp_path, mode, channels, note):
    picture = Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)).convert(mode)
    picture.save(tmp_path / "a.png")
    image = read_one(tmp_path / "a.png")
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(6, 6, channels)
    assert np.array_equal(image.array[..., 0].transpose(2, 1, 0), expected) and image.array.dtype == np.uint8
    assert image.notes == (() if note is None else (note,))


def test_a_palette_of_greys_is_a_grey_picture(tmp_path):
    picture = Pillow.new("P", (4, 4))
    picture.putpalette([value for value in range(256) for _ in range(3)])
    picture.putdata(list(range(16)))
    picture.save(tmp_path / "a.png")
    assert read_one(tmp_path / "a.png").array[0, :, :, 0].T.ravel().tolist() == list(range(16))


def test_a_photograph_of_a_film_is_turned_upright(tmp_path):
    picture = Pillow.fromarray(np.repeat(np.arange(8, dtype=np.uint8) * 30, 16).reshape(8, 16))
    exif = Pillow.Exif()
    exif[0x0112] = 6  # the camera was turned: rows are columns
    picture.save(tmp_path / "a.jpg", exif=exif, quality=100)
    image = read_one(tmp_path / "a.jpg")
    assert image.array.shape == (1, 8, 16, 1) and image.array[0, 0, 0, 0] > image.array[0, 7, 0, 0]
    assert image.notes == ("turned upright as its EXIF orientation says",)


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth=8, colour=0, data=b"\0\0"):
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(data))
        + png_chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (png(50000, 50000), "expected a picture of at most"),
        (png(10000, 10000), "it is truncated or its header is wrong"),
        (png(0, 5), "expected"),
        (png(4, 4, depth=16, colour=2), "16 bits a channel and colour or alpha"),
        (png(40, 40)[:60], "expected"),
        (b"\xff\xd8\xff\xe0" + b"\0" * 40, "expected a PNG or JPEG picture"),
        (b"\x89PNG\r\n\x1a\n", "expected a PNG or JPEG picture"),
    ],
)
def test_a_broken_or_absurd_picture_is_refused(tmp_path, content, words):
    (tmp_path / "a").write_bytes(content)
    assert words in refusal(tmp_path / "a")


def test_a_png_chunk_that_claims_gigabytes_takes_no_memory(tmp_path):
    Pillow.new("L", (4, 3)).save(tmp_path / "a.png")
    data = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(data[:-12] + b"\xff\xff\xff\xfftEXt" + data[-12:])
    tracemalloc.start()
    assert "cut or of another checksum" in refusal(tmp_path / "a.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**22


def test_a_cut_jpeg_is_refused(tmp_path):
    Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)).save(tmp_path / "a.jpg")
    whole = (tmp_path / "a.jpg").read_bytes()
    (tmp_path / "a.jpg").write_bytes(whole[: len(whole) // 2])
    assert "expected a readable jpeg file" in refusal(tmp_path / "a.jpg")


# ------------------------------------------------------------------------------------------------ TIFF

DEPTHS = [np.uint8, np.uint16, np.int16, np.int32, np.uint32, np.float32]


def random_pixels(dtype, shape=(5, 7)):
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(np.iinfo(dtype).min, np.iinfo(dtype).max, shape, dtype, endpoint=True)


@pytest.mark.parametrize("dtype", DEPTHS)
@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("how", [{}, {"tile": (16, 16)}, {"bigtiff": True}, {"compression": "zlib"}])
def test_a_grey_tiff_is_read_exactly_at_every_depth(tmp_path, dtype, byteorder, how):
    pixels = random_pixels(dtype)
    tifffile.imwrite(tmp_path / "a", pixels, photometric="minisblack", byteorder=byteorder, **how)
    odd = "bigtiff" in how or dtype == np.uint32 or ("compression" in how and dtype not in (np.uint8, np.uint16))
    if byteorder == ">" and odd:
        assert reason(tmp_path / "a")  # Pillow reads them wrongly or not at all
        return
    image = read_one(tmp_path / "a")
    assert np.array_equal(image.array[0, :, :, 0].T, pixels) and image.notes == () and not image.spacing_known
    assert image.array.dtype == (np.int64 if dtype == np.uint32 else dtype)


@pytest.mark.parametrize("compression", [None, "tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_compressed_tiff_is_the_plain_one(tmp_path, compression, channels):
    pixels = random_pixels(np.uint8, (50, 70) if channels == 1 else (50, 70, 3))
    Pillow.fromarray(pixels).save(tmp_path / "a.tif", compression=compression)
    image = read_one(tmp_path / "a.tif")
    assert np.array_equal(image.array[..., 0].transpose(2, 1, 0), pixels.reshape(50, 70, channels))


def test_a_planar_tiff_has_its_channels_in_order(tmp_path):
    pixels = random_pixels(np.uint8, (3, 5, 7))
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig="separate")
    assert np.array_equal(read_one(tmp_path / "a.tif").array[..., 0], pixels.transpose(0, 2, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_a_tiff_whose_smallest_value_is_white_is_inverted(tmp_path, dtype):
    pixels = random_pixels(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite")
    image = read_one(tmp_path / "a.tif")
    assert np.array_equal(image.array[0, :, :, 0].T, np.iinfo(dtype).max - pixels)
    assert image.notes == ("MinIsWhite inverted",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
def test_a_tiff_lies_as_its_orientation_says_or_is_refused(tmp_path, orientation, compression):
    pixels = np.arange(12, dtype=np.uint8).reshape(3, 4)
    Pillow.fromarray(pixels).save(tmp_path / "a.tif", tiffinfo={274: orientation}, compression=compression)
    flips = {1: lambda x: x, 2: np.fliplr, 3: lambda x: x[::-1, ::-1], 4: np.flipud}
    if orientation in flips:
        image = read_one(tmp_path / "a.tif")
        assert np.array_equal(image.array[0, :, :, 0].T, flips[orientation](pixels))
        assert bool(image.notes) == (orientation > 1)
    else:
        assert f"TIFF orientation {orientation}" in reason(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("mode", "channels", "note"),
    [
        ("1", 1, None),
        ("P", 3, "palette converted"),
        ("RGBA", 3, "transparency ignored"),
        ("LA", 1, "transparency ignored"),
        ("CMYK", 3, "CMYK converted to RGB"),
    ],
)
def test_other_tiff_modes_become_plain_grey_or_rgb(tmp_path, mode, channels, note):
    picture = Pillow.fromarray(random_pixels(np.uint8, (6, 6, 3))).convert(mode)
    picture.save(tmp_path / "a.tif")
    image = read_one(tmp_path / "a.tif")
    expected = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(6, 6, channels)
    assert np.array_equal(image.array[..., 0].transpose(2, 1, 0), expected)
    assert image.notes == (() if note is None else (note,))


def test_a_jpeg_in_a_tiff_is_the_jpeg(tmp_path):
    pixels = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    Pillow.fromarray(pixels).save(tmp_path / "a.tif", compression="jpeg", quality=95)
    image = read_one(tmp_path / "a.tif")
    assert np.abs(image.array[0, :, :, 0].T.astype(int) - pixels).max() < 8


def test_pages_of_one_size_are_the_slices_of_a_volume(tmp_path):
    pixels = random_pixels(np.uint16, (4, 5, 7))
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for page in pixels:
            writer.write(page, photometric="minisblack", metadata=None)
        writer.write(pixels[0, ::2, ::2], photometric="minisblack", subfiletype=1, metadata=None)
    (source,), _ = formats.discover(tmp_path)
    assert source.dimensions == 3 and source.shape == (7, 5, 4)
    assert np.array_equal(formats.read(source).array[0].T, pixels)


@pytest.mark.parametrize(
    ("writes", "words"),
    [
        ([{"data": np.zeros((4, 5), np.uint8)}, {"data": np.zeros((4, 6), np.uint8)}], "pages of one size and kind"),
        ([{"data": np.zeros((4, 5), np.uint8)}, {"data": np.zeros((4, 5), np.uint16)}], "pages of one size and kind"),
        ([{"data": np.zeros((4, 5), np.int8)}], "found TIFF bits [8], sample format [2]"),
        ([{"data": np.zeros((4, 5, 3), np.uint16), "photometric": "rgb"}], "found TIFF bits [16]"),
        ([{"data": np.zeros((4, 5), np.float64)}], "TIFF picture of grey or RGB pixels"),
    ],
)
def test_a_tiff_that_is_no_scan_is_refused(tmp_path, writes, words):
    with tifffile.TiffWriter(tmp_path / "a.tif") as writer:
        for write in writes:
            writer.write(**{"photometric": "minisblack", "metadata": None, **write})
    assert words in reason(tmp_path / "a.tif")


@pytest.mark.parametrize(
    ("axes", "shape", "words"), [("TYX", (3, 4, 5), "TIFF of 3 times"), ("CYX", (2, 4, 5), "TIFF of 2 channels")]
)
@pytest.mark.parametrize("ome", [True, False])
def test_times_and_channels_as_pages_are_no_volume(tmp_path, axes, shape, words, ome):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros(shape, np.uint8), ome=ome, imagej=not ome, metadata={"axes": axes})
    assert words in reason(path)


def test_a_tiff_with_slices_within_one_page_is_refused(tmp_path):
    volume = np.random.default_rng(0).integers(0, 255, (16, 32, 48)).astype(np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", volume, photometric="minisblack", volumetric=True, tile=(16, 16, 16))
    assert "16 slices in one page (Image Depth, tag 32997)" in reason(tmp_path / "a.tif")


def test_a_stack_behind_one_page_is_refused(tmp_path):
    words = "ImageJ=1.53\nimages=90\nslices=90\n"
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((4, 5), np.uint8), description=words, metadata=None)
    assert "90 images that ImageJ names" in reason(tmp_path / "a.tif")


def test_an_absurd_tiff_takes_no_memory(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((40, 50), np.uint16), photometric="minisblack", metadata=None)
    data = (tmp_path / "a.tif").read_bytes()
    for width, height in [(12000, 13000), (60000, 60000)]:
        broken = data
        for tag, old, new in [(256, 50, width), (257, 40, height)]:
            entry = struct.pack("<HHII", tag, 3, 1, old)
            assert entry in broken or struct.pack("<HHII", tag, 4, 1, old) in broken
            for kind in (3, 4):
                broken = broken.replace(struct.pack("<HHII", tag, kind, 1, old), struct.pack("<HHII", tag, 4, 1, new))
        (tmp_path / "a.tif").write_bytes(broken)
        assert "expected" in reason(tmp_path / "a.tif")


# ------------------------------------------------------------------------------------------------ NIfTI


@pytest.fixture
def affine():
    rng = np.random.default_rng(4)
    result = np.eye(4)
    result[:3, :3] = np.linalg.qr(rng.normal(size=(3, 3)))[0] * [0.7, 0.8, 2.5]
    result[:3, 3] = rng.normal(size=3) * 50
    return result


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int32, np.float32, np.float64])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_voxels_and_affine_are_nibabels_to_the_bit(tmp_path, affine, kind, dtype, suffix):
    voxels = (np.random.default_rng(0).normal(size=(4, 5, 6)) * 50 + 100).astype(dtype)
    path = tmp_path / f"a{suffix}"
    nibabel.save(kind(voxels, affine), path)
    image = read_one(path)
    assert np.array_equal(image.array[0], voxels) and image.array.dtype == dtype
    assert np.array_equal(image.affine, nibabel.load(path).affine)


def test_a_big_endian_nifti_gives_native_voxels(tmp_path, affine):
    voxels = np.arange(24, dtype=">i2").reshape(2, 3, 4)
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, affine, header), tmp_path / "a.nii")
    assert (tmp_path / "a.nii").read_bytes()[:4] == b"\0\0\1\x5c"
    array = read_one(tmp_path / "a.nii").array
    assert array.dtype == np.dtype(np.int16) and array.dtype.isnative and np.array_equal(array[0], voxels)


@pytest.mark.parametrize(
    ("slope", "intercept", "dtype"),
    [(2, -1024, np.int16), (0.5, 3, np.float32), (1, 40000, np.int32), (0, 7, np.int16)],
)
def test_nifti_scaling_is_exact_and_whole_where_it_can_be(tmp_path, slope, intercept, dtype):
    image = nibabel.Nifti1Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.eye(4))
    nibabel.save(image, tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[112:120] = struct.pack("<ff", slope, intercept)
    (tmp_path / "a.nii").write_bytes(data)
    array = read_one(tmp_path / "a.nii").array
    assert array.dtype == dtype and np.array_equal(array[0], nibabel.load(tmp_path / "a.nii").get_fdata())


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 1, 1)])
def test_a_flat_nifti_is_a_picture(tmp_path, shape):
    nibabel.save(nibabel.Nifti1Image(np.zeros(shape, np.int16), np.eye(4)), tmp_path / "a.nii")
    (source,), _ = formats.discover(tmp_path)
    assert source.dimensions == 2 and source.shape == (4, 5, 1) and formats.read(source).array.shape == (1, 4, 5, 1)


def test_nifti_rgb_has_three_channels(tmp_path):
    rgb = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    rgb["G"] = np.arange(120).reshape(4, 5, 6)
    nibabel.save(nibabel.Nifti1Image(rgb, np.eye(4)), tmp_path / "a.nii")
    array = read_one(tmp_path / "a.nii").array
    assert array.shape == (3, 4, 5, 6) and np.array_equal(array[1], rgb["G"]) and not array[0].any()


@pytest.mark.parametrize("intent", ["vector", "rgb vector", "none"])
def test_nifti_bytes_of_three_components_are_colours(tmp_path, intent):
    rgb = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 1, 3)).astype(np.uint8)
    nibabel.save(with_intent(rgb, intent), tmp_path / "a.nii")
    assert np.array_equal(read_one(tmp_path / "a.nii").array, np.moveaxis(rgb[:, :, :, 0], 3, 0))


@pytest.mark.parametrize(("slope", "intercept"), [(2.0, np.nan), (1.0, np.inf)])
def test_an_intercept_that_is_no_number_is_named(tmp_path, slope, intercept):
    data = bytearray(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)).to_bytes())
    data[112:120] = struct.pack("<ff", slope, intercept)
    (tmp_path / "a.nii").write_bytes(data)
    assert f"(scl_inter) with the slope (scl_slope) {slope:g}, found {intercept}" in reason(tmp_path / "a.nii")


@pytest.mark.parametrize(("unit", "factor"), [("meter", 1000.0), ("micron", 0.001), ("mm", 1.0)])
def test_nifti_units_become_millimetres(tmp_path, affine, unit, factor):
    image = nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), affine)
    image.header.set_xyzt_units(unit)
    nibabel.save(image, tmp_path / "a.nii")
    assert np.allclose(
        read_one(tmp_path / "a.nii").affine[:3], nibabel.load(tmp_path / "a.nii").affine[:3] * factor, rtol=1e-12
    )


def test_a_nifti_without_orientation_says_so(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 2, 2), np.int16), None), tmp_path / "a.nii")
    assert "sform_code and qform_code are 0" in read_one(tmp_path / "a.nii").notes[0]


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (nibabel.Nifti1Image(np.zeros((2, 3, 4, 5), np.int16), np.eye(4)), "shape (2, 3, 4, 5): split the 4-D series"),
        (nibabel.Nifti1Image(np.zeros((2, 3, 4), np.complex64), np.eye(4)), "NIfTI datatype 32 (complex64)"),
        (
            nibabel.Nifti1Image(np.array([1, np.nan, np.inf, 4], np.float32).reshape(2, 2, 1), np.eye(4)),
            "found 2 of 4 that are NaN or infinite",
        ),
        (nibabel.Nifti1Image(np.zeros(7, np.int16), np.eye(4)), "expected a 2-D or 3-D volume"),
        (
            with_intent(np.zeros((2, 3, 4, 1, 3), np.float32), "vector"),
            "3 components of float32 at each voxel with NIfTI intent 1007",
        ),
        (with_intent(np.zeros((2, 3, 4, 1, 3), np.float32), "none"), "a vector or displacement field"),
        (with_intent(np.zeros((2, 3, 4, 1, 3), np.uint8), "displacement vector"), "NIfTI intent 1006"),
    ],
)
def test_a_nifti_that_is_no_scan_is_refused(tmp_path, image, words):
    nibabel.save(image, tmp_path / "a.nii")
    assert words in refusal(tmp_path / "a.nii")


@pytest.mark.parametrize("suffix", [".img", ".img.gz"])
@pytest.mark.parametrize("kind", [nibabel.Nifti1Pair, nibabel.Nifti2Pair])
def test_a_nifti_pair_is_one_scan(tmp_path, affine, kind, suffix):
    voxels = np.random.default_rng(0).integers(-999, 999, (4, 5, 6)).astype(np.int16)
    nibabel.save(kind(voxels, affine), tmp_path / "pair.img")
    if suffix == ".img.gz":
        (tmp_path / "pair.img.gz").write_bytes(gzip.compress((tmp_path / "pair.img").read_bytes()))
        (tmp_path / "pair.img").unlink()
    (source,), skipped = formats.discover(tmp_path)
    assert not skipped and [file.name for file in source.files] == ["pair.hdr", f"pair{suffix}"]
    image = formats.read(source)
    assert np.array_equal(image.array[0], voxels) and np.allclose(image.affine, affine, atol=1e-5)
    assert np.array_equal(image.affine, np.reshape(source.affine, (4, 4)))


def test_half_a_pair_is_told_until_the_other_half_comes(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(np.zeros((20, 30, 40), np.int16), np.eye(4)), tmp_path / "pair.img")
    whole = (tmp_path / "pair.img").read_bytes()
    (tmp_path / "pair.img").unlink()
    index = formats.Index()
    for content, words in [(None, "found none: copy both"), (b"", "expected at least"), (whole[:-1], "truncated")]:
        if content is not None:
            (tmp_path / "pair.img").write_bytes(content)
        sources, skipped = formats.discover(tmp_path, index=index)
        if sources:
            with pytest.raises(FormatError, match=words):
                formats.read(sources[0])
        else:
            assert any(words in entry.reason for entry in skipped)
    (tmp_path / "pair.img").write_bytes(whole)
    (source,), skipped = formats.discover(tmp_path, index=index)
    assert not skipped and formats.read(source).array.shape == (1, 20, 30, 40)


def test_an_analyze_header_is_refused(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "old.img")
    assert "Analyze 7.5" in reason(tmp_path / "old.hdr")


@pytest.mark.parametrize("compressed", [False, True])
def test_voxels_behind_those_that_the_header_claims_are_no_silent_cut(tmp_path, compressed):
    nibabel.save(nibabel.Nifti1Image(np.ones((20, 30, 40), np.int16), np.eye(4)), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    data[42:44] = struct.pack("<h", 19)
    (tmp_path / "b.nii").write_bytes(gzip.compress(data) if compressed else data)
    assert "as the header claims, found" in refusal(tmp_path / "b.nii")


def test_a_gzip_of_several_members_with_padding_is_whole(tmp_path):
    voxels = np.random.default_rng(0).integers(0, 999, (20, 30, 40)).astype(np.int16)
    nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "a.nii")
    data = (tmp_path / "a.nii").read_bytes()
    parts = gzip.compress(data[:10000]) + gzip.compress(b"") + gzip.compress(data[10000:]) + bytes(512)
    (tmp_path / "b.nii.gz").write_bytes(parts)
    assert np.array_equal(read_one(tmp_path / "b.nii.gz").array[0], voxels)
    (tmp_path / "c.nii.gz").write_bytes(parts + b"more")
    assert "behind its gzip" in refusal(tmp_path / "c.nii.gz")


def test_a_gzip_bomb_is_refused_with_the_memory_of_its_claim(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((10, 10, 10), np.int16), np.eye(4)), tmp_path / "a.nii")
    bomb = gzip.compress((tmp_path / "a.nii").read_bytes() + bytes(2**28))
    (tmp_path / "b.nii.gz").write_bytes(bomb)
    tracemalloc.start()
    assert "found more behind them" in refusal(tmp_path / "b.nii.gz")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize("compressed", [False, True])
def test_an_absurd_nifti_header_takes_no_memory(tmp_path, compressed):
    nibabel.save(nibabel.Nifti1Image(np.zeros((2, 3, 4), np.int16), np.eye(4)), tmp_path / "a.nii")
    data = bytearray((tmp_path / "a.nii").read_bytes())
    for shape, words in [
        ((1000, 1000, 2000), "truncated or its header is wrong"),
        ((30000, 30000, 30000), "at most 2^31 voxels"),
    ]:
        data[42:48] = struct.pack("<hhh", *shape)
        (tmp_path / "b.nii").write_bytes(gzip.compress(data) if compressed else data)
        assert words in reason(tmp_path / "b.nii")


def test_a_cut_gzip_is_refused(tmp_path):
    nibabel.save(
        nibabel.Nifti1Image(np.random.default_rng(0).integers(0, 999, (20, 20, 20)).astype(np.int16), np.eye(4)),
        tmp_path / "a.nii.gz",
    )
    data = (tmp_path / "a.nii.gz").read_bytes()
    (tmp_path / "a.nii.gz").write_bytes(data[: len(data) // 2])
    assert str(tmp_path) not in refusal(tmp_path / "a.nii.gz")
    assert "gzip or zlib stream, found it cut" in refusal(tmp_path / "a.nii.gz")


# ------------------------------------------------------------------------------------------------ NRRD and MetaImage


def sitk_volume(affine, dtype=np.int16):
    """A volume whose frame, in LPS, is the given RAS affine."""
    image = sitk.GetImageFromArray(np.arange(4 * 5 * 6).reshape(6, 5, 4).astype(dtype))
    lps = np.diag([-1, -1, 1, 1]) @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    image.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    return image


@pytest.mark.parametrize("name", ["a.nrrd", "a.nhdr", "a.mha", "a.mhd"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32])
def test_itk_volumes_keep_voxels_and_place(tmp_path, affine, name, compressed, dtype):
    if np.linalg.det(affine[:3, :3]) < 0:
        affine[:3, 0] *= -1
    image = sitk_volume(affine, dtype)
    sitk.WriteImage(image, str(tmp_path / name), useCompression=compressed)
    (source,), skipped = formats.discover(tmp_path)
    assert not skipped and len(source.files) == (2 if name in ("a.nhdr", "a.mhd") else 1)
    read = formats.read(source)
    assert np.array_equal(read.array[0].T, sitk.GetArrayFromImage(image)) and read.array.dtype == dtype
    assert np.allclose(read.affine, affine, rtol=0, atol=1e-4)


def same_as_itk(path):
    """One scan's voxels and frame against SimpleITK."""
    image, reference = read_one(path), sitk.ReadImage(str(path))
    voxels = sitk.GetArrayFromImage(reference)
    ours = image.array.transpose(3, 2, 1, 0)
    assert np.array_equal(ours.reshape(voxels.shape), voxels) and ours.dtype == voxels.dtype
    size = (*reference.GetSize(), 1)[:3]
    corner = [extent - 1 for extent in size]
    x, y, z = (*reference.TransformIndexToPhysicalPoint(corner[: reference.GetDimension()]), 0.0)[:3]
    assert np.allclose(image.affine @ [*corner, 1], [-x, -y, z, 1], atol=1e-4)
    return image


VOXELS = np.random.default_rng(3).integers(-3000, 3000, (4, 5, 6)).astype("<i2")
NRRD = {
    "type": "int16",
    "dimension": "3",
    "sizes": "6 5 4",
    "endian": "little",
    "encoding": "raw",
    "space": "left-posterior-superior",
    "space directions": "(0.7,0.1,0) (-0.1,0.7,0) (0,0.3,2.5)",
    "space origin": "(3,-40,7.5)",
}


def nrrd(path, data, **changes):
    fields = {**NRRD, **{key.replace("_", " "): value for key, value in changes.items()}}
    lines = [f"{key}: {value}" for key, value in fields.items() if value is not None]
    path.write_bytes("\n".join(["NRRD0005", "# words", *lines, "key:=a: b", "", ""]).encode() + data)


@pytest.mark.parametrize(
    ("changes", "data"),
    [
        ({}, VOXELS.tobytes()),
        ({"endian": "big"}, VOXELS.astype(">i2").tobytes()),
        ({"encoding": "gz"}, gzip.compress(VOXELS.tobytes())),
        ({"encoding": "ascii"}, " ".join(map(str, VOXELS.ravel())).encode()),
        ({"space": "RAS"}, VOXELS.tobytes()),
        ({"space": "left-anterior-superior"}, VOXELS.tobytes()),
        ({"byte_skip": "-1"}, b"something else" + VOXELS.tobytes()),
        ({"byte_skip": "3"}, b"abc" + VOXELS.tobytes()),
        ({"line_skip": "2"}, b"one\ntwo\n" + VOXELS.tobytes()),
        ({"space": None, "space_directions": None, "space_origin": None, "spacings": "0.7 0.8 2"}, VOXELS.tobytes()),
        ({"type": "unsigned short"}, VOXELS.astype("<u2").tobytes()),
        ({"type": "double"}, VOXELS.astype("<f8").tobytes()),
        (
            {
                "type": "uchar",
                "dimension": "4",
                "sizes": "3 6 5 4",
                "kinds": "RGB-color domain domain domain",
                "space_directions": "none (0.7,0.1,0) (-0.1,0.7,0) (0,0.3,2.5)",
            },
            bytes(range(3)) * 120,
        ),
    ],
)
def test_nrrd_headers_are_understood_as_itk_does(tmp_path, changes, data):
    nrrd(tmp_path / "a.nrrd", data, **changes)
    image = same_as_itk(tmp_path / "a.nrrd")
    assert any("no orientation" in note for note in image.notes) == ("spacings" in changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"encoding": "bz2"}, "encoding raw, gzip or text"),
        ({"sizes": "6 5 -4"}, "at least one voxel"),
        ({"sizes": "6 5"}, "as many sizes"),
        ({"sizes": "6 5 5"}, "expected 300 bytes"),
        ({"sizes": "6 5 3"}, "as the header claims, found 240"),
        ({"sizes": "60000 60000 1000"}, "at most 2^31 voxels"),
        ({"type": "block"}, "plain number type"),
        ({"space_origin": "(a,b,c)"}, "expected numbers"),
        ({"data_file": "LIST"}, "one file beside it"),
        ({"data_file": "../x.raw"}, "one file beside it"),
        ({"kinds": "domain vector domain"}, "neither space nor RGB-color (vector of 5)"),
    ],
)
def test_a_broken_nrrd_is_refused(tmp_path, changes, words):
    nrrd(tmp_path / "a.nrrd", VOXELS.tobytes(), **changes)
    assert words in refusal(tmp_path / "a.nrrd")


@pytest.mark.parametrize("kind", ["list", "vector", "3-vector", "time", "covariant-vector", "???", "HSV-color"])
@pytest.mark.parametrize("last", [False, True])
def test_an_nrrd_axis_of_three_is_colour_only_where_it_says_so(tmp_path, kind, last):
    three, kinds, directions = ["3"], [kind], ["none"]
    sizes, space = ["6", "5", "4"], ["(1,0,0)", "(0,1,0)", "(0,0,1)"]
    order = (lambda axis, rest: rest + axis) if last else (lambda axis, rest: axis + rest)
    changes = {
        "dimension": "4",
        "sizes": " ".join(order(three, sizes)),
        "kinds": " ".join(order(kinds, ["domain"] * 3)),
        "space_directions": " ".join(order(directions, space)),
    }
    nrrd(tmp_path / "a.nrrd", VOXELS.tobytes() * 3, **changes)
    assert f"neither space nor RGB-color ({kind.lower()} of 3)" in reason(tmp_path / "a.nrrd")


def test_a_picture_over_time_is_no_volume(tmp_path):
    nrrd(tmp_path / "a.nrrd", VOXELS.tobytes(), kinds="domain domain time")
    assert "(time of 4)" in reason(tmp_path / "a.nrrd")


META = """ObjectType = Image
NDims = 3
TransformMatrix = 0.8 0.6 0 -0.6 0.8 0 0 0 1
Offset = 3 -40 7.5
ElementSpacing = 0.7 0.8 2.5
DimSize = 6 5 4
ElementType = {kind}
{more}ElementDataFile = """


@pytest.mark.parametrize(
    ("kind", "more", "data"),
    [
        ("MET_SHORT", "", VOXELS.tobytes()),
        ("MET_SHORT", "BinaryDataByteOrderMSB = True\n", VOXELS.astype(">i2").tobytes()),
        ("MET_SHORT", "ElementByteOrderMSB = True\n", VOXELS.astype(">i2").tobytes()),
        (
            "MET_SHORT",
            f"CompressedData = True\nCompressedDataSize = {len(zlib.compress(VOXELS.tobytes()))}\n",
            zlib.compress(VOXELS.tobytes()),
        ),
        ("MET_INT", "", VOXELS.astype("<i4").tobytes()),
        ("MET_ULONG_LONG", "", VOXELS.astype("<u8").tobytes()),
        ("MET_DOUBLE", "", VOXELS.astype("<f8").tobytes()),
        ("MET_CHAR", "", VOXELS.astype("i1").tobytes()),
    ],
)
def test_metaimage_headers_are_understood_as_itk_does(tmp_path, kind, more, data):
    text = META.format(kind=kind, more="BinaryData = True\n" + more)
    (tmp_path / "a.mha").write_bytes(text.encode() + b"LOCAL\n" + data)
    same_as_itk(tmp_path / "a.mha")


def test_element_size_is_the_spacing_where_there_is_no_other(tmp_path):
    text = META.format(kind="MET_SHORT", more="BinaryData = True\n").replace("ElementSpacing", "ElementSize")
    (tmp_path / "a.mha").write_bytes(text.encode() + b"LOCAL\n" + VOXELS.tobytes())
    image = same_as_itk(tmp_path / "a.mha")
    assert image.spacing == pytest.approx((0.7, 0.8, 2.5)) and "ElementSize is taken" in image.notes[0]
    both = text.replace("ElementSize", "ElementSize = 9 9 9\nElementSpacing")
    (tmp_path / "a.mha").write_bytes(both.encode() + b"LOCAL\n" + VOXELS.tobytes())
    assert same_as_itk(tmp_path / "a.mha").notes == ()


def test_a_metaimage_whose_voxels_end_with_their_file_is_read(tmp_path):
    text = META.format(kind="MET_SHORT", more="HeaderSize = -1\n")
    (tmp_path / "a.mhd").write_text(text + "a.raw\n")
    (tmp_path / "a.raw").write_bytes(b"a header of some scanner" + VOXELS.tobytes())
    (source,), _ = formats.discover(tmp_path)
    assert np.array_equal(formats.read(source).array[0].T, VOXELS)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(tmp_path / "a.mhd"))), VOXELS)


def test_a_metaimage_is_read_under_any_name_and_its_modality_believed(tmp_path, affine):
    sitk.WriteImage(sitk_volume(np.diag([1.0, 1, 1, 1])), str(tmp_path / "a.mha"))
    data = (tmp_path / "a.mha").read_bytes().replace(b"ElementDataFile", b"Modality = MET_MOD_CT\nElementDataFile")
    (tmp_path / "scan").write_bytes(data)
    image = read_one(tmp_path / "scan")
    assert image.modality == "CT" and image.units == "HU" and image.array[0, 1, 0, 0] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ((b"DimSize = 4 5 6", b"DimSize = 4 5 600"), "truncated or its header is wrong"),
        ((b"DimSize = 4 5 6", b"DimSize = 40000 50000 60000"), "at most 2^31 voxels"),
        ((b"ElementDataFile = LOCAL", b"ElementDataFile = /etc/passwd"), "one file beside it"),
        ((b"ElementDataFile = LOCAL", b"ElementDataFile = LIST"), "one file beside it"),
        ((b"ElementDataFile = LOCAL", b"ElementDataFile = gone.raw"), "expected the voxel file that this header names"),
        ((b"NDims = 3", b"NDims = x"), "expected"),
        ((b"ElementDataFile = LOCAL", b"ElementDataFile = " + b"x" * 300), "one file beside it"),
        ((b"ElementDataFile = LOCAL", b"ElementDataFile = a\0b"), "one file beside it"),
    ],
)
def test_a_broken_metaimage_is_refused(tmp_path, change, words):
    sitk.WriteImage(sitk_volume(np.eye(4)), str(tmp_path / "a.mha"))
    data = (tmp_path / "a.mha").read_bytes()
    assert change[0] in data
    (tmp_path / "Doe^Jane.mha").write_bytes(data.replace(*change))
    assert words in refusal(tmp_path / "Doe^Jane.mha") and "Doe" not in refusal(tmp_path / "Doe^Jane.mha")


def test_time_series_and_vector_fields_are_refused(tmp_path):
    sitk.WriteImage(sitk.JoinSeries([sitk_volume(np.eye(4))] * 2), str(tmp_path / "a.nrrd"))
    assert "found shape (4, 5, 6, 2)" in reason(tmp_path / "a.nrrd")
    sitk.WriteImage(sitk.Image([4, 5, 6], sitk.sitkVectorFloat32, 3), str(tmp_path / "b.mha"))
    assert "3 components" in reason(tmp_path / "b.mha")


def test_a_cut_compressed_metaimage_is_refused_without_its_name_and_in_silence(tmp_path, capfd):
    sitk.WriteImage(sitk_volume(np.eye(4)), str(tmp_path / "Doe^Jane.mha"), useCompression=True)
    path = tmp_path / "Doe^Jane.mha"
    path.write_bytes(path.read_bytes()[:-20])
    words = refusal(path)
    assert "gzip or zlib stream, found it cut" in words and "Doe" not in words
    assert capfd.readouterr().err == ""


def test_an_rgb_metaimage_has_three_channels(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(pixels, isVector=True), str(tmp_path / "a.mha"))
    (source,), _ = formats.discover(tmp_path)
    assert source.channels == 3 and source.dimensions == 2
    assert np.array_equal(formats.read(source).array[..., 0].transpose(2, 1, 0), pixels)


# ------------------------------------------------------------------------------------------------ round trips with the writer


def slice_of(values, modality="CT"):
    affine = np.diag([-0.7, -0.8, 3.0, 1.0])
    affine[:3, 3] = 30, 40, -50
    return Image(values, affine, modality, "HU" if modality == "CT" else "a.u.")


@pytest.mark.parametrize("format", ["png", "nifti", "dicom"])
@pytest.mark.parametrize("modality", ["CT", "MR", "CR", "DX", "OT"])
def test_what_the_writer_writes_comes_back_in_the_same_units(tmp_path, format, modality):
    low = -1024 if modality == "CT" else 0
    values = np.random.default_rng(0).integers(low, 3000, (1, 20, 16, 1)).astype(np.int16)
    formats.write(slice_of(values, modality), tmp_path / "x", format, MARKING)
    image = read_one(tmp_path)
    assert np.array_equal(image.array, values)
    assert image.modality == modality and image.units == ("HU" if modality == "CT" else "a.u.")
    assert image.spacing[:2] == pytest.approx((0.7, 0.8), abs=1e-6) and image.spacing_known


@pytest.mark.parametrize("format", ["png", "nifti", "dicom"])
@pytest.mark.parametrize("modality", ["MR", "DX", "CR", "OT"])
def test_fractions_come_back_within_a_quantum(tmp_path, format, modality):
    values = np.random.default_rng(0).random((1, 20, 16, 1)).astype(np.float32) * 7
    formats.write(slice_of(values, modality), tmp_path / "x", format, MARKING)
    assert np.abs(read_one(tmp_path).array - values).max() <= 7 / 65535


@pytest.mark.parametrize("format", ["nifti", "dicom"])
def test_a_volume_comes_back_where_it_was(tmp_path, affine, format):
    if np.linalg.det(affine[:3, :3]) > 0:
        affine[:3, 2] *= -1
    values = np.random.default_rng(0).integers(-1024, 3000, (1, 8, 6, 5)).astype(np.int16)
    formats.write(Image(values, affine, "CT", "HU"), tmp_path / "x", format, MARKING)
    image = read_one(tmp_path)
    flipped = not np.allclose(image.affine[:3, 2], affine[:3, 2], atol=1e-3)  # DICOM: sorted along the slice normal
    assert np.array_equal(image.array[..., ::-1] if flipped else image.array, values)
    first = affine @ [0, 0, 4 if flipped else 0, 1]
    assert np.allclose(image.affine @ [0, 0, 0, 1], first, atol=1e-3)


@pytest.mark.parametrize("format", ["png", "nifti", "dicom"])
def test_colour_comes_back(tmp_path, format):
    values = np.random.default_rng(0).integers(0, 256, (3, 20, 16, 1)).astype(np.uint8)
    formats.write(Image(values, np.eye(4), spacing_known=False), tmp_path / "x", format, MARKING)
    image = read_one(tmp_path)
    assert np.array_equal(image.array, values) and not image.spacing_known


# ------------------------------------------------------------------------------------------------ broken bytes, real scans


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.nii", "a.nii.gz", "a.nrrd", "a.mha"])
def test_broken_bytes_raise_nothing_but_format_errors(tmp_path, name):
    if name.endswith(("png", "jpg")):
        Pillow.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)).save(tmp_path / name)
    else:
        sitk.WriteImage(sitk_volume(np.eye(4)), str(tmp_path / name))
    whole = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(5)
    for trial in range(40):
        broken = bytearray(whole[: rng.integers(1, len(whole))] if trial % 2 else whole)
        for _ in range(3):
            broken[rng.integers(0, min(len(broken), 400))] = rng.integers(0, 256)
        path = tmp_path / f"broken{trial}"
        path.write_bytes(broken)
        for source in formats.discover(path)[0]:
            try:
                formats.read(source)
            except (FormatError, OSError) as error:
                assert str(error)


def test_the_hippocampus_is_nibabels_to_the_bit(shared_data):
    sources, skipped = formats.discover(shared_data / "image_to_mask_3d_hippocampus" / "images")
    assert len(sources) == 70 and not skipped
    for source in sources[::5]:
        image, reference = formats.read(source), nibabel.load(source.files[0])
        assert np.array_equal(image.affine, reference.affine)
        assert np.array_equal(image.array[0], reference.get_fdata())


def test_volume_formats_come_out_right_or_are_skipped(shared_data):
    sources, skipped = formats.discover(shared_data / "volume_formats")
    assert sorted(entry.file.name for entry in skipped) == [
        "example4d.nii.gz",
        "example_nifti2.nii.gz",
        "functional.nii",
    ]
    assert all("4-D" in entry.reason for entry in skipped) and len(sources) == 9
    for source in sources:
        image = formats.read(source)
        reference = sitk.ReadImage(str(source.files[0]))
        assert np.array_equal(image.array[0].squeeze().T, sitk.GetArrayFromImage(reference).squeeze())
        corner = [size - 1 for size in source.shape]
        x, y, z = (*reference.TransformIndexToPhysicalPoint(corner[: reference.GetDimension()]), 0.0)[:3]
        assert np.allclose(image.affine @ [*corner, 1], [-x, -y, z, 1], atol=1e-2)


def test_mednist_is_pillows_to_the_bit(shared_data):
    sources, skipped = formats.discover(shared_data / "mednist_64px_classes" / "Hand")
    assert len(sources) == 1000 and not skipped
    for source in sources[::50]:
        assert np.array_equal(formats.read(source).array[0, :, :, 0].T, np.asarray(Pillow.open(source.files[0])))
