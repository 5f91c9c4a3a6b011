"""Mutated files: every reader refuses in words or reads what the header claims, in bounded time and memory.

`SCANSMITH_FUZZ=100000 pytest tests/test_fuzz.py` tries so many mutations of each kind of file.
"""

from __future__ import annotations

import gzip
import io
import os
import re
import resource
import struct
import time
import zipfile
import zlib

import nibabel
import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image as Pillow
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLSLossless,
    RLELossless,
    UltrasoundMultiFrameImageStorage,
)

from scansmith import formats
from scansmith.formats import FormatError
from scansmith.runtime import derive_seed

TRIALS = int(os.environ.get("SCANSMITH_FUZZ", "200"))
MOST_SECONDS = 5.0
# A few small voxels never need it; what a broken header claims would.
MOST_BYTES = 2**28
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0xEA60, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
RNG = np.random.default_rng(11)
VOXELS = RNG.integers(-1000, 3000, (6, 5, 4)).astype(np.int16)
PIXELS = RNG.integers(0, 256, (40, 36)).astype(np.uint8)
COLOURS = RNG.integers(0, 256, (12, 10, 3)).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ small whole files


def picture(pixels, format, **options):
    stream = io.BytesIO()
    Pillow.fromarray(pixels).save(stream, format, **options)
    return stream.getvalue()


def tiff(pixels, **options):
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **{"photometric": "minisblack", "metadata": None, **options})
    return stream.getvalue()


def nifti(kind=nibabel.Nifti1Image):
    return kind(VOXELS, np.diag([2.0, 2, 3, 1])).to_bytes()


def nrrd(data, encoding):
    head = "NRRD0004\ntype: short\ndimension: 3\nspace: LPS\nsizes: 4 5 6\nspace directions: (1,0,0) (0,1,0) (0,0,2)"
    return f"{head}\nendian: little\nencoding: {encoding}\nspace origin: (1,2,3)\n\n".encode() + data


def metaimage(data, compressed):
    head = "ObjectType = Image\nNDims = 3\nBinaryData = True\nTransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 0 0 0"
    rest = f"CompressedData = {compressed}\nElementSpacing = 1 1 2\nDimSize = 4 5 6\nElementType = MET_SHORT"
    return f"{head}\n{rest}\nElementDataFile = LOCAL\n".encode() + data


def dicom(syntax, frames=1):
    """A CT slice, or a run of ultrasound frames."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage if frames == 1 else UltrasoundMultiFrameImageStorage
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    dataset = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, "1.2.3.4"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.5", "1.2.6", "1.2.7"
    dataset.PatientID, dataset.Modality = "p", "CT" if frames == 1 else "US"
    dataset.InstanceNumber = 1
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = 40, 36, 1
    dataset.PhotometricInterpretation, dataset.PixelRepresentation = "MONOCHROME2", 0
    bits = 8 if frames > 1 or syntax == JPEGBaseline8Bit else 16
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = bits, min(bits, 12), min(bits, 12) - 1
    if frames == 1:
        dataset.ImagePositionPatient, dataset.ImageOrientationPatient = [0, 0, 5], [1, 0, 0, 0, 1, 0]
        dataset.PixelSpacing, dataset.SliceThickness = [0.7, 0.8], 2
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, -1024
    else:
        dataset.NumberOfFrames = frames
    pixels = np.tile(PIXELS, (frames, 1)).astype(np.uint8 if bits == 8 else np.uint16) * (1 if bits == 8 else 10)
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    if syntax == JPEGBaseline8Bit:
        dataset.PixelData = encapsulate([picture(PIXELS, "JPEG")])
        dataset["PixelData"].is_undefined_length = True
        meta.TransferSyntaxUID = syntax
    elif syntax in (RLELossless, JPEG2000Lossless, JPEGLSLossless):
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == ExplicitVRBigEndian:
        dataset.PixelData = pixels.byteswap().tobytes()
    stream = io.BytesIO()
    meta.TransferSyntaxUID = syntax
    little, implicit = syntax != ExplicitVRBigEndian, syntax == ImplicitVRLittleEndian
    meta.FileMetaInformationGroupLength, meta.FileMetaInformationVersion = 0, b"\0\1"
    pydicom.dcmwrite(stream, dataset, little_endian=little, implicit_vr=implicit, force_encoding=True)
    return stream.getvalue()


def archive():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as opened:
        opened.writestr("a/one.png", picture(PIXELS, "PNG"))
        opened.writestr("two.nii", nifti())
    return stream.getvalue()


WHOLE = {
    "dicom-implicit": lambda: dicom(ImplicitVRLittleEndian),
    "dicom-explicit": lambda: dicom(ExplicitVRLittleEndian),
    "dicom-big": lambda: dicom(ExplicitVRBigEndian),
    "dicom-deflated": lambda: dicom(DeflatedExplicitVRLittleEndian),
    "dicom-rle": lambda: dicom(RLELossless),
    "dicom-jpeg": lambda: dicom(JPEGBaseline8Bit),
    "dicom-j2k": lambda: dicom(JPEG2000Lossless),
    "dicom-jls": lambda: dicom(JPEGLSLossless),
    "dicom-frames": lambda: dicom(ExplicitVRLittleEndian, 3),
    "nifti1": nifti,
    "nifti2": lambda: nifti(nibabel.Nifti2Image),
    "nifti-gz": lambda: gzip.compress(nifti(), mtime=0),
    "nrrd": lambda: nrrd(VOXELS.tobytes(), "raw"),
    "nrrd-gz": lambda: nrrd(gzip.compress(VOXELS.tobytes(), mtime=0), "gzip"),
    "metaimage": lambda: metaimage(VOXELS.tobytes(), False),
    "metaimage-z": lambda: metaimage(zlib.compress(VOXELS.tobytes()), True),
    "png": lambda: picture(PIXELS, "PNG"),
    "png-colour": lambda: picture(COLOURS, "PNG"),
    "jpeg": lambda: picture(PIXELS, "JPEG"),
    "tiff": lambda: tiff(PIXELS),
    "tiff-pages": lambda: tiff(np.stack([PIXELS] * 3)),
    "tiff-deflate": lambda: tiff(COLOURS, photometric="rgb", compression="zlib"),
    "tiff-lzw": lambda: picture(PIXELS, "TIFF", compression="tiff_lzw"),
    "zip": archive,
}  # fmt: skip
# Where a checksum guards the voxels: the bytes of the stream.
GUARDED = {
    "nifti-gz": lambda data: (10, len(data)),
    "nrrd-gz": lambda data: (data.find(b"\x1f\x8b") + 10, len(data)),
    "metaimage-z": lambda data: (data.find(b"LOCAL\n") + 6, len(data)),
    "png": lambda data: (data.find(b"IDAT") + 4, data.find(b"IEND") - 4),
    "png-colour": lambda data: (data.find(b"IDAT") + 4, data.find(b"IEND") - 4),
}


# ------------------------------------------------------------------------------------------------ mutations


def flip_bits(data, rng):
    for _ in range(rng.integers(1, 9)):
        data[position(data, rng)] ^= 1 << int(rng.integers(8))


def cut(data, rng):
    del data[position(data, rng) :]


def fill(data, rng):
    at = position(data, rng)
    length = min(int(rng.integers(1, 40)), len(data) - at)
    data[at : at + length] = bytes([rng.choice([0, 0xFF, int(rng.integers(256))])]) * length


def claim(data, rng):
    """An extreme number where a length or a size may stand."""
    at, size = position(data, rng), int(rng.choice([1, 2, 4, 8]))
    value = int(rng.choice(EXTREMES)) & (256**size - 1)
    data[at : at + size] = value.to_bytes(size, "little" if rng.random() < 0.5 else "big")


def drop(data, rng):
    at = position(data, rng)
    del data[at : at + int(rng.integers(1, 20))]


def repeat(data, rng):
    at, length = position(data, rng), int(rng.integers(1, 60))
    data[at:at] = bytes(data[at : at + length]) * int(rng.integers(1, 20))


def write_numbers(data, rng):
    """Another number in a text header."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", bytes(data[:1200])))
    if found:
        one = found[int(rng.integers(len(found)))]
        number = rng.choice(
            ["0", "-1", "60000", "2147483648", "99999999999999999999", "1e308", "nan", "", "0.0001", "7"]
        )
        data[one.start() : one.end()] = str(number).encode()


MUTATIONS = (flip_bits, cut, fill, claim, claim, drop, repeat, write_numbers)


def position(data, rng):
    """Half of the mutations hit the header."""
    return int(rng.integers(min(len(data), 600) if rng.random() < 0.5 else len(data))) if data else 0


def mutated(name, trial):
    """The same bytes for the same name and number: what a failure names can be made again."""
    rng = np.random.default_rng(derive_seed(0, "fuzz", name, trial))
    data = bytearray(whole(name))
    for _ in range(int(rng.choice([1, 1, 1, 2, 4]))):
        if data:
            MUTATIONS[int(rng.integers(len(MUTATIONS)))](data, rng)
    return bytes(data)


def whole(name, made={}):  # noqa: B006
    if name not in made:
        made[name] = WHOLE[name]()
    return made[name]


# ------------------------------------------------------------------------------------------------ the tests


@pytest.fixture
def little_memory():
    """Inside, this process may take `MOST_BYTES` more than it has."""
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    old = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, old)


def look(path, unpack_into=None):
    """Everything that can be read of a file; the words of all refusals."""
    sources, skipped = formats.discover(path, unpack_into=unpack_into)
    images, words = [], [entry.reason for entry in skipped]
    for source in sources:
        if source.role == "mask":
            continue
        try:
            image = formats.read(source)
        except FormatError as error:
            words.append(str(error))
            continue
        assert image.array.shape == (source.channels, *source.shape), "another shape than the header claims"
        assert np.isfinite(image.array).all() and np.isfinite(image.affine).all()
        images.append(image)
    # In an archive, a mutation may hide a member by a dot before its name.
    assert images or words or unpack_into is not None, "neither an image nor a reason"
    assert not any("MemoryError" in text for text in words), words
    return images, words


@pytest.mark.parametrize("name", WHOLE)
def test_the_whole_file_is_read(tmp_path, name):
    (tmp_path / "a").write_bytes(whole(name))
    images, words = look(tmp_path / "a", tmp_path / "u")
    assert len(images) == (2 if name == "zip" else 1) and not words


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc to bound the memory by")  # noqa: PTH110
@pytest.mark.parametrize("name", WHOLE)
def test_a_mutated_file_is_refused_in_words_or_read_as_it_claims(tmp_path, name, little_memory):
    slowest = 0.0
    for trial in range(TRIALS):
        path = tmp_path / "a"
        path.write_bytes(mutated(name, trial))
        began = time.monotonic()
        try:
            look(path, tmp_path / f"u{trial}" if name == "zip" else None)
        except Exception as error:
            raise AssertionError(f"mutated({name!r}, {trial}): {type(error).__name__}: {error}") from error
        slowest = max(slowest, time.monotonic() - began)
        assert slowest < MOST_SECONDS, f"mutated({name!r}, {trial}) took {slowest:.1f} s"


@pytest.mark.parametrize("name", GUARDED)
def test_a_change_behind_a_checksum_is_noticed(tmp_path, name):
    data, path = whole(name), tmp_path / "a"
    start, end = GUARDED[name](data)
    rng = np.random.default_rng(derive_seed(0, "guarded", name))
    path.write_bytes(data)
    (expected,), _ = look(path)
    for _ in range(TRIALS):
        broken = bytearray(data)
        for at in rng.integers(start, end, rng.integers(1, 4)):
            broken[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        images, _ = look(path)
        # Some bits of deflate mean nothing, such as the padding before a stored block.
        assert all(np.array_equal(image.array, expected.array) for image in images)


def test_what_comes_out_of_a_broken_zip_is_what_went_in(tmp_path):
    data, path = whole("zip"), tmp_path / "a"
    rng = np.random.default_rng(5)
    start, end = 30, data.find(b"PK\x01\x02")
    for trial in range(TRIALS):
        broken = bytearray(data)
        broken[int(rng.integers(start, end))] ^= 1 << int(rng.integers(8))
        path.write_bytes(broken)
        for image in look(path, tmp_path / f"u{trial}")[0]:
            true = PIXELS.T[None, :, :, None] if image.array.dtype == np.uint8 else VOXELS[None]
            assert np.array_equal(image.array, true)


@pytest.mark.parametrize("name", ["nifti1", "nifti-gz", "nrrd", "metaimage", "dicom-explicit", "png", "tiff"])
def test_a_header_that_claims_60000_by_60000_by_1000_voxels_takes_no_memory(tmp_path, name, little_memory):
    data = bytearray(whole(name))
    if name == "nifti-gz":
        data = bytearray(gzip.decompress(data))
    if name.startswith("nifti"):
        data[42:48] = struct.pack("<hhh", 30000, 30000, 1000)
        data = gzip.compress(data) if name == "nifti-gz" else data
    elif name == "nrrd":
        data = data.replace(b"sizes: 4 5 6", b"sizes: 60000 60000 1000")
    elif name == "metaimage":
        data = data.replace(b"DimSize = 4 5 6", b"DimSize = 60000 60000 1000")
    elif name == "dicom-explicit":
        for tag, old in ((0x10, 40), (0x11, 36)):
            head = struct.pack("<HH", 0x28, tag) + b"US\x02\x00"
            data = data.replace(head + struct.pack("<H", old), head + struct.pack("<H", 60000))
    elif name == "png":
        header = b"IHDR" + struct.pack(">II", 60000, 60000) + data[24:29]
        data[12:33] = header + struct.pack(">I", zlib.crc32(header))
    else:
        for tag, old in ((256, 36), (257, 40)):
            data = data.replace(struct.pack("<HHII", tag, 4, 1, old), struct.pack("<HHII", tag, 4, 1, 60000))
    assert bytes(data) != whole(name)
    (tmp_path / "a").write_bytes(data)
    images, words = look(tmp_path / "a")
    assert not images and len(words) == 1
