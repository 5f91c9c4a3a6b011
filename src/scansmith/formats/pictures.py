"""PNG, JPEG and TIFF -> Image: grey of 8 or 16 bits, or RGB of 8 bits; TIFF has more (tiff.py)."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from ..image import MODALITIES, Image
from . import tiff
from .source import FormatError, Skipped, Source, check_size, narrowest, rescale

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
JPEG_SIGNATURE = b"\xff\xd8\xff"
# Deflate turns one byte into at most 1032; a JPEG block of 8x8 pixels takes at least a few bits.
MOST_EXPANSION = 1100.0
HEAD_BYTES = 26  # of a PNG: its signature and IHDR up to the colour type


def sniff(head: bytes) -> bool:
    """True for PNG, JPEG and TIFF."""
    return head.startswith((PNG_SIGNATURE, JPEG_SIGNATURE, *tiff.SIGNATURES))


def header(file: Path, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Format, modality, channels and shape of one picture; `tags` are for DICOM.

    Raises:
        FormatError: a broken header, or a picture that this version does not read.
    """
    with open(file, "rb") as stream:
        head = stream.read(HEAD_BYTES)
        if head.startswith(tiff.SIGNATURES):
            return tiff.header(file)
        stream.seek(0)
        return _header(stream, head)


def _header(stream: BinaryIO, head: bytes) -> dict[str, Any]:
    with _open(stream, head) as picture:
        width, height = picture.size
        if picture.format != "PNG" and picture.getexif().get(0x0112, 1) >= 5:
            width, height = height, width
        channels = 1 if _grey(picture) else 3
        modality = _own_text(picture).get("modality", "OT")
        itemsize = 1 / 8 if picture.mode in ("1", "P") else channels
        name = str(picture.format).lower()
    check_size((width, height, 1), itemsize, stream.seek(0, 2), MOST_EXPANSION)
    return {
        "format": name,
        "modality": modality if modality in MODALITIES else "OT",
        "channels": channels,
        "shape": [width, height, 1],
    }


def arrange(headers: list[tuple[Path, dict[str, Any]]]) -> tuple[list[Source], list[Skipped]]:
    """One source per picture."""
    return [_source(file, header) for file, header in headers], []


def _source(file: Path, header: dict[str, Any]) -> Source:
    i, j, k = header["shape"]
    dimensions = 2 if k == 1 else 3
    return Source((file,), header["format"], header["modality"], header["channels"], dimensions, (i, j, k))


def read(source: Source) -> Image:
    """Pixels as stored, or in physical units where our own PNG writer left slope and offset.

    PNG and JPEG do not say how the picture lies in the patient: the affine puts it in the axial plane at the origin
    as DICOM's identity orientation does (columns towards the patient's left), with 1 mm where spacing is unknown.
    """
    if source.format == "tiff":
        return tiff.read(source)
    with open(source.files[0], "rb") as stream:
        head = stream.read(HEAD_BYTES)
        if head.startswith(PNG_SIGNATURE):
            _require_checksums(stream)
        stream.seek(0)
        return _read(source, stream, head)


def _require_checksums(stream: BinaryIO) -> None:
    """Refuse a PNG with a broken chunk (PNG, 5.4): Pillow reads past the CRC of image data.

    Raises:
        FormatError: a checksum is wrong, or a chunk is cut.
    """
    size = stream.seek(0, 2)
    stream.seek(len(PNG_SIGNATURE))
    kind = b""
    while kind != b"IEND":
        start = stream.read(8)
        length, kind = int.from_bytes(start[:4]), start[4:]
        # `read` takes memory for what it is asked for.
        data, checksum = stream.read(min(length, size)), stream.read(4)
        if len(checksum) < 4 or zlib.crc32(data, zlib.crc32(kind)) != int.from_bytes(checksum):
            raise FormatError("expected a whole PNG, found a chunk that is cut or of another checksum: copy it again")


def _read(source: Source, stream: BinaryIO, head: bytes) -> Image:
    with _open(stream, head) as picture:
        notes = list(source.notes)
        channels, upright = _plain(picture, notes)
        pixels = np.asarray(upright)
        text = _own_text(picture)
    array = pixels.T[None] if channels == 1 else pixels.transpose(2, 1, 0)
    array = _physical(array, float(text.get("slope", 1.0)), float(text.get("offset", 0.0)))[..., None]
    spacing = [float(value) for value in text.get("spacing", "").split()]
    known = len(spacing) == 3 and all(0.0 < value < np.inf for value in spacing)
    i, j, k = spacing if known else (1.0, 1.0, 1.0)
    affine = np.diag([-i, -j, k, 1.0])
    return Image(array, affine, source.modality, text.get("units", "a.u."), known, tuple(notes))


def _open(stream: BinaryIO, head: bytes) -> Picture:
    """The picture, its pixels not yet decoded; pictures that Pillow would alter in silence are refused."""
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError

    if head.startswith(PNG_SIGNATURE) and len(head) == HEAD_BYTES and head[24] == 16 and head[25] != 0:
        raise FormatError(
            "expected 16-bit grey or 8-bit colour, found a PNG with 16 bits a channel and colour or alpha: convert it to 16-bit grey or 8-bit RGB"
        )
    try:
        return Pillow.open(stream, formats=("PNG", "JPEG"))
    except Pillow.DecompressionBombError as error:
        raise FormatError(
            f"expected a picture of at most {2 * (Pillow.MAX_IMAGE_PIXELS or 0)} pixels, found more in the header: cut it into parts"
        ) from error
    except UnidentifiedImageError as error:
        raise FormatError(
            "expected a PNG or JPEG picture, found a broken or unusual one (12-bit and lossless JPEG are not read): copy it again or convert it to PNG"
        ) from error


def _own_text(picture: Picture) -> dict[str, Any]:
    """What `write.write_png` left in text chunks: slope, offset, units, modality, spacing."""
    return {str(key)[10:]: value for key, value in picture.info.items() if str(key).startswith("scansmith:")}


def _physical(pixels: np.ndarray, slope: float, offset: float) -> np.ndarray:
    """pixels * slope + offset; whole numbers, which the writer scales by a power of two, come back as integers."""
    array = rescale(pixels.astype(pixels.dtype.newbyteorder("="), copy=False), slope, offset)
    if array.dtype == np.float32 and bool((np.rint(array) == array).all()):
        return narrowest(array.astype(np.int64))
    return array


def _grey(picture: Picture) -> bool:
    """True when the pixels are grey, also through a palette."""
    if picture.mode in ("P", "PA"):
        # `getpalette` would decode the pixels.
        mode, data = picture.palette.getdata() if picture.palette is not None else ("RGB", b"\0\0\1")
        table = np.frombuffer(data, np.uint8).reshape(-1, len(mode.partition(";")[0]))[:, :3]
        return bool((table == table[:, :1]).all())
    return picture.mode in ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")


def _plain(picture: Picture, notes: list[str]) -> tuple[int, Picture]:
    """Channels and the picture as plain grey or RGB, upright; what was changed is added to the notes."""
    from PIL import ImageOps

    channels = 1 if _grey(picture) else 3
    if picture.format != "PNG" and picture.getexif().get(0x0112, 1) != 1:
        picture = ImageOps.exif_transpose(picture)
        notes.append("turned upright as its EXIF orientation says")
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        notes.append("transparency ignored")
    if picture.mode in ("P", "PA"):
        notes.append("palette converted")
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        notes.append(f"{picture.mode} converted to RGB")
    if channels == 3:
        return 3, picture if picture.mode == "RGB" else picture.convert("RGB")
    if picture.mode.startswith("I"):  # 16-bit grey
        return 1, picture
    return 1, picture if picture.mode == "L" else picture.convert("L")
