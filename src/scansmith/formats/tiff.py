"""TIFF -> Image: a grey or RGB picture, or a stack of equal pages as the slices of one volume."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..image import Image
from .source import FormatError, Source, check_size, narrowest, require_finite, silent_stderr

if TYPE_CHECKING:
    from PIL.TiffImagePlugin import TiffImageFile

# Little and big endian, each classic and BigTIFF.
SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# More pages than any scan has slices.
MOST_PAGES = 2**14
# Tags of TIFF 6.0.
SUBFILE, BITS, COMPRESSION, PHOTOMETRIC, DESCRIPTION, ORIENTATION, SAMPLES, COLOUR_MAP, SAMPLE_FORMAT = (
    254, 258, 259, 262, 270, 274, 277, 320, 339
)  # fmt: skip
# SGI's tags of slices within one page: Image Depth and Tile Depth.
DEPTHS = (32997, 32998)
MIN_IS_WHITE, RGB, PALETTE, CMYK, YCBCR = 0, 2, 3, 5, 6
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
# Compression -> the most that one byte can become: none, PackBits, and LZW by its 12-bit codes; the rest is as deflate.
EXPANSION = {1: 1.0, 32773: 64.0, 5: 1400.0}
DEFLATE_EXPANSION = 1100.0


class Page(NamedTuple):
    """What all pages of a stack share.

    Attributes:
        size: (columns, rows), upright.
        channels: 1 or 3.
        bits: of a channel.
        kind: `UNSIGNED`, `SIGNED` or `FLOAT`.
        photometric: how a number looks: 0 MinIsWhite, 1 MinIsBlack, 2 RGB, 3 palette, 5 CMYK, 6 YCbCr.
        samples: numbers a pixel, with transparency and other extra ones.
        orientation: 1 to 4; 1 is upright, the others are flipped by Pillow.
        compression: 1 for none.
    """

    size: tuple[int, int]
    channels: int
    bits: int
    kind: int
    photometric: int
    samples: int
    orientation: int
    compression: int


def header(file: Path) -> dict[str, Any]:
    """Channels and shape; pages marked as reduced copies of others do not count.

    Raises:
        FormatError: a broken header, or pages that are no slices of one volume.
    """
    with _open(file) as picture:
        page, pages = _pages(picture, file.stat().st_size)
    return {"format": "tiff", "modality": "OT", "channels": page.channels, "shape": [*page.size, len(pages)]}


def read(source: Source) -> Image:
    """Pixels as stored, in the dtype they are stored in; where they lie in the patient is unknown."""
    with _open(source.files[0]) as picture:
        page, pages = _pages(picture, source.files[0].stat().st_size)
        planes = []
        for number in pages:
            picture.seek(number)
            with silent_stderr():  # libtiff prints
                planes.append(_plane(picture, page))
    array = np.stack(planes, axis=-1)
    require_finite(array)
    if page.kind == UNSIGNED and page.bits == 32:
        array = narrowest(array.astype(np.int64))
    return Image(array, np.diag([-1.0, -1.0, 1.0, 1.0]), source.modality, "a.u.", False, (*source.notes, *_notes(page)))


def _open(file: Path) -> TiffImageFile:
    """The file at its first page, its pixels not decoded.

    Raises:
        FormatError: Pillow does not know its kind of pixels.
    """
    from PIL import Image as Pillow
    from PIL import UnidentifiedImageError
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        picture = Pillow.open(file, formats=("TIFF",))
    except Pillow.DecompressionBombError as error:
        raise FormatError(
            f"expected a picture of at most {2 * (Pillow.MAX_IMAGE_PIXELS or 0)} pixels, found more in the header: cut it into parts"
        ) from error
    except UnidentifiedImageError as error:
        raise FormatError(
            "expected a TIFF picture of grey or RGB pixels, found a broken or unusual one: copy it again or convert it to PNG"
        ) from error
    assert isinstance(picture, TiffImageFile)
    return picture


def _pages(picture: TiffImageFile, size: int) -> tuple[Page, list[int]]:
    """What the pages share, and the numbers of those that are slices.

    Raises:
        FormatError: they differ, or are more than the file can hold.
    """
    first = _page(picture)
    words = str(picture.tag_v2.get(DESCRIPTION, ""))
    numbers = [0]
    for number in range(1, MOST_PAGES + 1):
        try:
            picture.seek(number)
        except EOFError:
            break
        if int(picture.tag_v2.get(SUBFILE, 0)) & 1:
            continue
        if (page := _page(picture)) != first:
            raise FormatError(
                f"expected pages of one size and kind, found {first.size} with {first.bits} bits and {page.size} with {page.bits}: save them as one file each"
            )
        numbers.append(number)
    else:
        raise FormatError(
            f"expected at most {MOST_PAGES} pages, found more: the file is broken or must be cut into parts"
        )
    _require_slices(words, len(numbers), first.channels)
    expansion = EXPANSION.get(first.compression, DEFLATE_EXPANSION)
    check_size((*first.size, len(numbers)), first.samples * first.bits / 8, size, expansion)
    return first, numbers


def _page(picture: TiffImageFile) -> Page:
    """What the tags of the current page say.

    Raises:
        FormatError: pixels that Pillow alters in silence, or that are neither grey nor RGB.
    """
    tags = picture.tag_v2
    depth = max(int(tags.get(tag, 1)) for tag in DEPTHS)
    if depth > 1:
        raise FormatError(
            f"expected a page for each slice, found a volumetric TIFF with {depth} slices in one page (Image Depth, tag 32997): save its slices as pages, or as NIfTI"
        )
    bits, kinds = set(tags.get(BITS, (1,))), set(tags.get(SAMPLE_FORMAT, (1,)))
    photometric, samples = int(tags.get(PHOTOMETRIC, 0)), int(tags.get(SAMPLES, 1))
    width, kind = max(bits), max(kinds)
    colour = photometric in (RGB, CMYK, YCBCR) or (photometric == PALETTE and not _grey_palette(tags))
    plain = photometric in (MIN_IS_WHITE, 1, RGB, PALETTE, CMYK, YCBCR)
    grey = (kind == UNSIGNED and width in (1, 2, 4, 8, 12, 16, 32)) or (kind, width) in ((2, 16), (2, 32), (3, 32))
    whole = (kind == UNSIGNED and width == 8) if colour or photometric == PALETTE else grey
    if not plain or not whole or len(bits) > 1 or len(kinds) > 1 or (photometric == MIN_IS_WHITE and kind != UNSIGNED):
        raise FormatError(
            f"expected grey pixels of 8, 16 or 32 bits or RGB of 8, found TIFF bits {sorted(bits)}, sample format {sorted(kinds)}, photometric interpretation {photometric}: convert it to 16-bit grey or 8-bit RGB"
        )
    orientation, compression = int(tags.get(ORIENTATION, 1)), int(tags.get(COMPRESSION, 1))
    if orientation not in (1, 2, 3, 4):
        raise FormatError(
            f"expected an upright picture, found TIFF orientation {orientation} (rows are columns): save it turned upright"
        )
    # Pillow 10 to 13 takes decompressed numbers, which are native, for big-endian ones.
    if compression != 1 and tags.prefix.startswith(b"MM") and width > 8 and (width, kind) != (16, UNSIGNED):
        raise FormatError(
            "expected little-endian or plain voxels, found a TIFF with compressed big-endian signed or 32-bit ones: save it without compression"
        )
    return Page(
        (int(picture.size[0]), int(picture.size[1])),
        3 if colour else 1,
        width,
        kind,
        photometric,
        samples,
        orientation,
        compression,
    )


def _grey_palette(tags: Any) -> bool:
    """True when the colour map's thirds, red, green and blue, are equal."""
    table = np.array(tags.get(COLOUR_MAP, (0, 0, 1)), np.int64)
    return len(table) % 3 == 0 and bool((table.reshape(3, -1) == table[: len(table) // 3]).all())


def _require_slices(words: str, pages: int, channels: int) -> None:
    """Refuse what ImageJ or OME say is no stack of slices.

    Raises:
        FormatError: channels or times as pages, or many images behind one page.
    """
    said = (
        dict(re.findall(r"^(images|channels|frames)=(\d{1,9})\s*$", words, re.M)) if words.startswith("ImageJ") else {}
    )
    if "<OME" in words:
        said = dict(re.findall(r"\bSize([TC])=\"(\d{1,9})\"", words))
    many = {name: int(size) for name, size in said.items() if int(size) > 1}
    for name in ("channels", "frames", "T", "C"):
        if name in many and not (name in ("C", "channels") and channels == 3):
            raise FormatError(
                f"expected slices of one volume, found a TIFF of {many[name]} {'times' if name in ('frames', 'T') else 'channels'}: save one volume each"
            )
    if "images" in many and many["images"] != pages:
        raise FormatError(
            f"expected a page for each image, found {pages} pages for the {many['images']} images that ImageJ names: save it as a plain TIFF"
        )


def _plane(picture: TiffImageFile, page: Page) -> np.ndarray:
    """(C, I, J) of the current page in its stored dtype; MinIsWhite inverted."""
    if page.channels == 3:
        return np.asarray(picture.convert("RGB")).transpose(2, 1, 0)
    if page.bits <= 8:
        return np.asarray(picture.convert("L")).T[None]
    pixels = np.asarray(picture)
    if page.kind == FLOAT:
        return pixels.astype(np.float32).T[None]
    if page.kind == SIGNED:
        return pixels.astype(np.int16 if page.bits == 16 else np.int32).T[None]
    if page.bits == 32:
        pixels = pixels.astype(np.int32).view(np.uint32)  # Pillow keeps the bits in int32
    whole = pixels.astype(np.int64)
    whole = 2**page.bits - 1 - whole if page.photometric == MIN_IS_WHITE else whole
    return whole.astype(np.uint16 if page.bits <= 16 else np.uint32).T[None]


def _notes(page: Page) -> list[str]:
    """What was altered."""
    notes = []
    if page.orientation != 1:
        notes.append("flipped as its orientation tag says")
    if page.photometric == MIN_IS_WHITE:
        notes.append("MinIsWhite inverted")
    if page.photometric == PALETTE:
        notes.append("palette converted")
    if page.photometric in (CMYK, YCBCR):
        notes.append(f"{'CMYK' if page.photometric == CMYK else 'YCbCr'} converted to RGB")
    if (
        page.samples > (4 if page.photometric == CMYK else 1 if page.channels == 1 else 3)
        and page.photometric != PALETTE
    ):
        notes.append("transparency ignored")
    return notes
