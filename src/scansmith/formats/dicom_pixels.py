"""DICOM Pixel Data -> physical values: decoding, palettes, modality LUT, VOI LUT, MONOCHROME1 and padding, frame by frame."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

from ..image import PROJECTION
from .dicom_file import EXPLICIT_BIG, EXPLICIT_LITTLE, IMPLICIT_LITTLE, Header, pixel_stream
from .dicom_frames import frame_reader, sequence_items
from .source import FormatError, explain, narrowest, quiet, rescale, silent_stderr

# Transfer syntaxes that SimpleITK (GDCM) decodes where pydicom's decoders may not: JPEG Baseline, Extended, Lossless, Lossless SV1.
GDCM_SYNTAXES = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)}
JPEG_LS = {"1.2.840.10008.1.2.4.80", "1.2.840.10008.1.2.4.81"}
RLE = "1.2.840.10008.1.2.5"
LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203)}
UNCOMPRESSED = {IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG}
NATIVE = {IMPLICIT_LITTLE, EXPLICIT_LITTLE}
# What one byte of Pixel Data can become at most: run lengths (PS3.5 G.3) turn 2 bytes into 128; the others have no
# bound, and an image that is smaller than this holds nothing.
MOST_EXPANSION = {**dict.fromkeys(UNCOMPRESSED, 1.0), RLE: 64.0}
EXPANSION = 2.0**14
# No detector has more; a header that claims more is broken or hostile.
MAX_PIXELS = 2**28
# Long runs of functional MR have some 50,000.
MAX_FRAMES = 100_000
AIR_HU = -1024
GREY = ("MONOCHROME1", "MONOCHROME2")
COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
PALETTE = "PALETTE COLOR"
PALETTE_KEYWORDS = tuple(
    f"{segmented}{colour}PaletteColorLookupTable{part}"
    for colour in ("Red", "Green", "Blue")
    for segmented, part in (("", "Descriptor"), ("", "Data"), ("Segmented", "Data"))
)
# What the way from stored to physical values needs of the header.
VALUE_KEYWORDS = (
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "RealWorldValueMappingSequence",
    "VOILUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "SyntheticData",
)
# Header elements that hold decimal text (DS, IS).
DECIMALS = {
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SliceThickness",
    "InstanceNumber",
    "GantryDetectorTilt",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
}
# Padding that no tag marks fills at least this part of an image, and as many pixels.
LEAST_PADDING, LEAST_PADDED = 0.001, 4
# How many values that stand alone below air are looked at.
MOST_LONELY = 16
# What a decoder needs of the header.
PIXEL_KEYWORDS = (
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
)


# ------------------------------------------------------------------------------------------------ elements


def raw_values(dataset: Any, keyword: str) -> list[Any]:
    """Like `several`; decimal text stays bytes, which `float` takes as well and pydicom needs 0.05 ms to check."""
    if keyword in DECIMALS and hasattr(dataset, "get_item") and keyword in dataset:
        value = dataset.get_item(keyword).value
        if isinstance(value, bytes):
            value = value.strip(b" \0")
            return value.split(b"\\") if value else []
    return several(dataset, keyword)


def text_of(dataset: Any, keyword: str) -> str:
    """An element as text; plain ASCII is not decoded by pydicom, which checks it."""
    if keyword not in dataset:
        return ""
    value = dataset.get_item(keyword).value
    if isinstance(value, bytes) and value.isascii() and b"\x1b" not in value:
        return value.decode("ascii").strip(" \0")
    return str(dataset.get(keyword) or "").strip()


def several(dataset: Any, keyword: str) -> list[Any]:
    """The values of one element of a data set or a dict; none where it is absent or empty."""
    value = dataset.get(keyword)
    return [] if value is None or value == "" else [value] if isinstance(value, (str, int, float)) else list(value)


def numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Finite numbers of one element, None where it is absent or empty.

    Raises:
        FormatError: another count, or no numbers.
    """
    try:
        values = tuple(float(value) for value in raw_values(dataset, keyword))
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(
            f"expected {count} numbers in {keyword}, found text that is none ({error}): the header is broken"
        ) from error
    if not values:
        return None
    if len(values) != count or not all(map(isfinite, values)):
        raise FormatError(f"expected {count} finite numbers in {keyword}, found {values}: the header is broken")
    return values


def number(dataset: Any, keyword: str) -> float | None:
    values = numbers(dataset, keyword, 1)
    return None if values is None else values[0]


def frame_count(dataset: Any) -> int:
    """Number of Frames (0028,0008), 1 where it is absent.

    Raises:
        FormatError: it is no whole number above 0.
    """
    count = number(dataset, "NumberOfFrames")
    if count is not None and (count < 1 or not count.is_integer()):
        raise FormatError(f"expected Number of Frames (0028,0008) of 1 or more, found {count:g}: the header is broken")
    return int(count or 1)


# ------------------------------------------------------------------------------------------------ what can be decoded


@cache
def check_syntax(uid: str) -> None:
    """Refuse a transfer syntax that nothing here decodes.

    Raises:
        FormatError: with its name.
    """
    from pydicom.pixels import get_decoder
    from pydicom.uid import UID

    try:
        usable = uid in GDCM_SYNTAXES or bool(get_decoder(UID(uid)).is_available)
    except NotImplementedError:
        usable = False
    if not usable:
        raise FormatError(
            f"transfer syntax {uid} ({UID(uid).name}) (0002,0010) cannot be decoded here: decompress the file with 'gdcmconv --raw' or dcmtk's 'dcmdjpeg'"
        )


def check_pixels(dataset: Any, available: int) -> None:
    """Refuse what is no image, and claims that the file cannot hold.

    Raises:
        FormatError: naming the tag.
    """
    frames = frame_count(dataset)
    _check_kind(dataset, frames)
    for keyword, tag in (("Rows", "0028,0010"), ("Columns", "0028,0011"), ("BitsAllocated", "0028,0100")):
        if not isinstance(dataset.get(keyword), int) or dataset.get(keyword) < 1:
            raise FormatError(
                f"expected an image, found {keyword} ({tag}) {dataset.get(keyword)!r}: the file holds no pixels, or its header is broken"
            )
    samples, bits = _check_photometric(dataset)
    _check_bits(dataset)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    if rows * columns > MAX_PIXELS:
        raise FormatError(
            f"Rows (0028,0010) {rows} and Columns (0028,0011) {columns}: expected at most 2^28 pixels in an image; the header is broken"
        )
    if frames > MAX_FRAMES or (syntax not in UNCOMPRESSED and frames * 8 > available):
        raise FormatError(
            f"Number of Frames (0028,0008) is {frames}: the file has no room for so many; it is truncated or its header is wrong"
        )
    size = frame_bytes(dataset) if syntax in UNCOMPRESSED else rows * columns * samples * bits // 8
    if size * frames > available * MOST_EXPANSION.get(syntax, EXPANSION):
        raise FormatError(
            f"Columns (0028,0011), Rows (0028,0010) and Number of Frames (0028,0008): expected {size * frames} bytes of voxels for shape {(columns, rows, frames)}, found room for {available} in the file: it is truncated or its header is wrong; copy it again from its source"
        )


def _check_kind(dataset: Any, frames: int) -> None:
    kinds = [str(value) for value in several(dataset, "ImageType")]
    if "LOCALIZER" in kinds:
        raise FormatError("Image Type (0008,0008) LOCALIZER: a scout view, not a slice")
    if "MOSAIC" in kinds and frames == 1:
        raise FormatError(
            "Image Type (0008,0008) MOSAIC: the slices of a volume lie side by side in one picture: convert it with dcm2niix, or export it from the scanner as enhanced MR"
        )


def _check_photometric(dataset: Any) -> tuple[int, int]:
    """(samples a pixel, bits of a sample) of a grey, palette or colour image.

    Raises:
        FormatError: another kind, naming the tag.
    """
    photometric, samples = str(dataset.get("PhotometricInterpretation", "")), int(dataset.get("SamplesPerPixel") or 1)
    if not (samples == 1 and photometric in (*GREY, PALETTE)) and not (samples == 3 and photometric in COLOUR):
        raise FormatError(
            f"Photometric Interpretation (0028,0004) {photometric!r} with {samples} samples a pixel (0028,0002): expected a grey, palette or colour image ({', '.join((*GREY, PALETTE, *COLOUR))})"
        )
    bits = int(dataset.BitsAllocated)
    allowed = (8, 16, 32) if photometric in GREY else (8,) if photometric.startswith("YBR_FULL") else (8, 16)
    if bits not in allowed:
        raise FormatError(
            f"Bits Allocated (0028,0100) is {bits}: expected {' or '.join(map(str, allowed))} with Photometric Interpretation (0028,0004) {photometric}"
        )
    return samples, bits


def _check_bits(dataset: Any) -> None:
    """Refuse pixels that do not fill the lowest bits; DICOM has done so since 2014 (PS3.5 8.1.1).

    Raises:
        FormatError: High Bit is another one.
    """
    stored, high = dataset.get("BitsStored"), dataset.get("HighBit")
    if isinstance(stored, int) and isinstance(high, int) and high != stored - 1:
        raise FormatError(
            f"High Bit (0028,0102) is {high} with Bits Stored (0028,0101) {stored}: expected {stored - 1}, pixels in the lowest bits; which bits hold them is unclear: convert it with 'gdcmconv --raw', or export it again from its source"
        )


def frame_bytes(dataset: Any) -> int:
    """Bytes of one uncompressed frame; YBR_FULL_422 shares its colours between two pixels."""
    pixels = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    subsampled = str(dataset.get("PhotometricInterpretation", "")) == "YBR_FULL_422"
    return pixels * (2 if subsampled else int(dataset.get("SamplesPerPixel") or 1))


# ------------------------------------------------------------------------------------------------ decoding


def stored_frames(file: Path, header: Header, frames: Iterable[int], notes: list[str]) -> Iterator[np.ndarray]:
    """Stored values (rows, columns) or (rows, columns, 3 of RGB) of the frames asked for, one frame in memory at a time.

    Raises:
        FormatError: the pixels cannot be decoded.
        OSError: the file cannot be opened.
    """
    dataset = header.dataset
    compressed = str(dataset.file_meta.TransferSyntaxUID) not in UNCOMPRESSED
    size, count = frame_bytes(dataset), frame_count(dataset)
    dtype = _native_dtype(dataset)
    single = _pixel_elements(dataset) if dtype is None else None
    with pixel_stream(file, header, size * count) as stream:
        frame = frame_reader(stream, dataset, size, compressed)
        for number in frames:
            if number >= count:
                raise FormatError(f"expected frame {number + 1}, found {count}: the file changed since it was listed")
            if dtype is None:
                yield _stored(single, frame(number), compressed, notes)
            else:
                pixels = np.frombuffer(frame(number), dtype).reshape(dataset.Rows, dataset.Columns)
                yield _used_bits(pixels.astype(dtype.newbyteorder("="), copy=False), dataset.BitsStored)


def _native_dtype(dataset: Any) -> np.dtype | None:
    """That of uncompressed little endian pixels of one sample; None of others, and where pydicom should say what is wrong."""
    bits, stored, signed = (dataset.get(name) for name in ("BitsAllocated", "BitsStored", "PixelRepresentation"))
    usual = (
        str(dataset.file_meta.TransferSyntaxUID) in NATIVE
        and str(dataset.get("PhotometricInterpretation", "")) in (*GREY, PALETTE)
        and dataset.get("SamplesPerPixel") == 1
        and bits in (8, 16, 32)
        and isinstance(stored, int)
        and 1 <= stored <= bits
        and signed in (0, 1)
    )
    return np.dtype(f"<{'i' if signed else 'u'}{bits // 8}") if usual else None


def _used_bits(pixels: np.ndarray, stored: int) -> np.ndarray:
    """Pixels of the lowest bits alone: the others may hold anything (PS3.5 8.1.1), but rarely do."""
    unused = 8 * pixels.dtype.itemsize - stored
    if unused == 0:
        return pixels
    signed = pixels.dtype.kind == "i"
    top = 2 ** (stored - signed)
    if pixels.max() < top and (not signed or pixels.min() >= -top):
        return pixels
    return np.asarray(np.right_shift(np.left_shift(pixels, unused), unused))


def _pixel_elements(dataset: Any) -> Any:
    """What a decoder needs of a header as a data set of one frame: nothing of the patient, no rescale, no broken rest."""
    import pydicom

    single = pydicom.Dataset()
    single.file_meta = pydicom.dataset.FileMetaDataset()
    single.file_meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    for keyword in PIXEL_KEYWORDS:
        if keyword in dataset:
            single[keyword] = dataset[keyword]
    return single


def _stored(single: Any, frame: bytes, compressed: bool, notes: list[str]) -> np.ndarray:
    """One frame's stored values, decoded by pydicom, else by SimpleITK where that may help."""
    from pydicom.dataelem import DataElement
    from pydicom.encaps import encapsulate
    from pydicom.pixels import pixel_array

    syntax = single.file_meta.TransferSyntaxUID
    if compressed:
        _check_codestream(single, frame)
        single["PixelData"] = DataElement(0x7FE00010, "OB", encapsulate([frame]), is_undefined_length=True)
    else:
        single["PixelData"] = DataElement(0x7FE00010, "OB" if single.BitsAllocated == 8 else "OW", frame)
    # pylibjpeg's RLE decoder (Rust) panics on broken streams, past `except Exception`; pydicom's own takes 8 ms for 512x512.
    plugin = "pydicom" if str(syntax) == RLE else ""
    try:
        with quiet() as words:
            stored = np.asarray(pixel_array(single, decoding_plugin=plugin))
    except Exception as error:
        if syntax not in GDCM_SYNTAXES:
            raise FormatError(
                f"expected pixels in transfer syntax {syntax} ({syntax.name}), found {explain(error, ())}: copy it again from its source"
            ) from error
        stored = _stored_by_gdcm(single)
    notes += [f"decoder: {word}" for word in words if "precision" in word or "bits" in word.lower()]
    if stored.shape[:2] != (int(single.Rows), int(single.Columns)):
        raise FormatError(
            f"expected {single.Rows} rows and {single.Columns} columns (0028,0010 and 0011), found pixels of shape {stored.shape}"
        )
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _check_codestream(single: Any, frame: bytes) -> None:
    """Refuse a JPEG or JPEG 2000 stream whose own size is not the header's, before a decoder takes memory for it.

    JPEG: the frame header SOFn or SOF55 (ITU-T T.81 B.2.2, T.87 C.2.2); JPEG 2000: the SIZ marker (T.800 A.5.1).
    """
    syntax = single.file_meta.TransferSyntaxUID
    if syntax == RLE:
        return
    size = _codestream_size(frame)
    if size is None:
        raise FormatError(
            f"expected a stream of transfer syntax {syntax} ({syntax.name}) in Pixel Data (7FE0,0010), found none with a frame header: the file is broken"
        )
    if syntax in JPEG_LS and b"\xff\xd9" not in frame[-16:]:
        # CharLS takes six seconds for some streams without their end.
        raise FormatError(
            f"expected a stream of transfer syntax {syntax} ({syntax.name}) up to its end marker, found none: the file is truncated; copy it again from its source"
        )
    bits = size.bits
    jpeg = syntax in GDCM_SYNTAXES
    lowest = 2 if jpeg or syntax in JPEG_LS else 1
    if not lowest <= bits <= min(int(single.BitsAllocated), 16 if jpeg else 32):
        # GDCM crashes on a precision that JPEG does not have.
        raise FormatError(
            f"expected pixels of at most {single.BitsAllocated} bits (0028,0100), found {bits} bits in the compressed stream: the file is broken"
        )
    expected = (int(single.Rows), int(single.Columns), int(single.get("SamplesPerPixel") or 1))
    if size[:3] != expected:
        raise FormatError(
            f"expected {expected[0]} rows and {expected[1]} columns (0028,0010 and 0011) of {expected[2]} samples (0028,0002), found {size[0]} and {size[1]} in the compressed stream, of {size[2]}: the file is broken"
        )


class _Stream(NamedTuple):
    rows: int
    columns: int
    samples: int
    bits: int


def _codestream_size(frame: bytes) -> _Stream | None:
    """What a JPEG, JPEG-LS or JPEG 2000 stream claims; None for others and broken ones."""
    position = frame.find(b"\xff\x4f\xff\x51", 0, 4096)
    if position >= 0:
        right, bottom, left, top = (
            int.from_bytes(frame[position + at : position + at + 4], "big") for at in (8, 12, 16, 20)
        )
        samples, depth = frame[position + 40 : position + 42], frame[position + 42 : position + 43]
        bits = (int.from_bytes(depth, "big") & 127) + 1
        return _Stream(bottom - top, right - left, int.from_bytes(samples, "big"), bits)
    position = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while position + 10 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7):
            rows, columns = (int.from_bytes(frame[position + at : position + at + 2], "big") for at in (5, 7))
            return _Stream(rows, columns, frame[position + 9], frame[position + 4])
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _stored_by_gdcm(single: Any) -> np.ndarray:
    """Stored values through SimpleITK's GDCM, which reads files alone: it is given a temporary one of the pixels."""
    import pydicom
    import SimpleITK as sitk

    syntax, samples = single.file_meta.TransferSyntaxUID, int(single.get("SamplesPerPixel") or 1)
    photometric = str(single.PhotometricInterpretation)
    if samples == 3 and photometric != "RGB":
        raise FormatError(
            f"Photometric Interpretation (0028,0004) {photometric!r} in transfer syntax {syntax} ({syntax.name}) cannot be decoded here: decompress the file with dcmtk's 'dcmdjpeg'"
        )
    bare = pydicom.Dataset(single)
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID = pydicom.uid.generate_uid()
    bare.PhotometricInterpretation = "RGB" if samples == 3 else "MONOCHROME2"  # GDCM would invert MONOCHROME1
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    with TemporaryDirectory() as folder:
        reader.SetFileName(f"{folder}/pixels")
        bare.save_as(f"{folder}/pixels", enforce_file_format=True)
        try:
            with silent_stderr():
                stored = sitk.GetArrayFromImage(reader.Execute())
        except RuntimeError as error:
            raise FormatError(
                f"transfer syntax {syntax} ({syntax.name}) (0002,0010): neither pydicom nor SimpleITK decodes these pixels; decompress the file with dcmtk's 'dcmdjpeg'"
            ) from error
    return stored.reshape(stored.shape[-3:] if samples == 3 else stored.shape[-2:])


# ------------------------------------------------------------------------------------------------ tables


def _lookup_table(data: Any, entries: int, big: bool) -> np.ndarray:
    """LUT Data of one table as unsigned numbers: words, or bytes where there are as few as entries; PS3.3 C.11.1.1.1."""
    if isinstance(data, (bytes, bytearray)):
        words = len(data) >= 2 * entries
        table = np.frombuffer(
            data, (">u2" if big else "<u2") if words else "u1", count=-1 if not words else len(data) // 2
        )
    else:
        table = np.asarray(data)
    if table.size < entries:
        raise FormatError(f"expected a lookup table of {entries} entries, found {table.size}: the header is broken")
    return table[:entries].astype(np.uint16)


def _apply_table(values: np.ndarray, table: np.ndarray, first: int) -> np.ndarray:
    """Values below `first` take the first entry, those behind the last take the last."""
    return np.asarray(table[np.clip(values.astype(np.int64) - first, 0, len(table) - 1)])


def _descriptor(values: list[Any], signed: bool) -> tuple[int, int, int]:
    """(entries, first value mapped, bits) of a LUT Descriptor; 0 entries mean 65536."""
    if len(values) != 3:
        raise FormatError(f"expected 3 numbers in a LUT Descriptor, found {values}: the header is broken")
    entries, first, bits = (int(value) for value in values)
    return entries or 65536, first - 65536 if signed and first > 32767 else first, bits


def _table_item(item: Any, facts: dict[str, Any], signed: bool) -> tuple[np.ndarray, int, int]:
    """Table, first value mapped and bits of one item of a Modality or VOI LUT Sequence."""
    entries, first, bits = _descriptor(several(item, "LUTDescriptor"), signed)
    return _lookup_table(item.get("LUTData"), entries, facts["syntax"] == EXPLICIT_BIG), first, bits


def palette(dataset: Any) -> tuple[np.ndarray, int]:
    """(entries, 3) colours of a PALETTE COLOR image, uint8 where that is exact, and the value of the first; PS3.3 C.7.6.3.1.5.

    Raises:
        FormatError: the palette is missing or broken.
    """
    from pydicom.pixels import apply_color_lut

    descriptor = several(dataset, "RedPaletteColorLookupTableDescriptor")
    if not descriptor:
        raise FormatError(
            "expected Red Palette Color Lookup Table Descriptor (0028,1101) with Photometric Interpretation (0028,0004) PALETTE COLOR, found none: the header is broken"
        )
    entries, first, _ = _descriptor(descriptor, bool(dataset.get("PixelRepresentation", 0)))
    big = str(dataset.file_meta.TransferSyntaxUID) == EXPLICIT_BIG
    names = [f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue")]
    if names[0] in dataset:
        table = np.stack([_lookup_table(dataset.get(name), entries, big) for name in names], axis=1)
    else:  # segmented, PS3.3 C.7.9.2
        table = np.asarray(apply_color_lut(np.arange(first, first + entries), dataset))[:, :3]
    # Palettes of 8-bit colours are kept in words, either repeated in both bytes or in the high one.
    if table.max(initial=0) < 256:
        return table.astype(np.uint8), first
    low, high = table & 255, table >> 8
    return (high.astype(np.uint8), first) if not low.any() or np.array_equal(low, high) else (table, first)


def palette_is_grey(dataset: Any) -> bool:
    return _is_grey(palette(dataset)[0])


def _is_grey(table: np.ndarray) -> bool:
    return bool(np.array_equal(table[:, 0], table[:, 1]) and np.array_equal(table[:, 0], table[:, 2]))


# ------------------------------------------------------------------------------------------------ values

Window = tuple[float, float] | None


def value_facts(dataset: Any) -> dict[str, Any]:
    """What `physical_values` needs of a header; what a frame's functional groups say may be laid over it."""
    facts = {
        keyword: sequence_items(dataset, keyword)
        if keyword.endswith("Sequence")
        else raw_values(dataset, keyword)
        if keyword in DECIMALS
        else dataset.get(keyword)
        for keyword in (*VALUE_KEYWORDS, *PIXEL_KEYWORDS)
        if keyword in dataset
    }
    if facts.get("PhotometricInterpretation") == PALETTE:
        facts["palette"] = palette(dataset)
    return facts | {"syntax": str(dataset.file_meta.TransferSyntaxUID)}


def physical_values(
    stored: np.ndarray, facts: dict[str, Any], modality: str, notes: list[str]
) -> tuple[np.ndarray, Window]:
    """Stored values of one frame -> (C, I, J) in physical units, and the window of an X-ray where the header has one.

    Args:
        stored: (rows, columns) or (rows, columns, 3).
        facts: of `value_facts`, for a frame with what its functional groups say.
        modality: one of `image.MODALITIES`.
        notes: what was altered is added here.
    """
    photometric = str(facts["PhotometricInterpretation"])
    if photometric == PALETTE:
        table, first = facts["palette"]
        stored = _apply_table(stored, table[:, 0] if _is_grey(table) else table, first)
    stored = np.atleast_3d(stored).transpose(2, 1, 0)
    if photometric not in GREY:
        return stored, None
    padding = _padding(stored, facts, notes)
    array = _modality_lut(stored, facts)
    window, bounds = None, _bounds(array, facts)
    if modality in PROJECTION:
        array, window, bounds = _voi(array, facts, bounds, notes)
    if photometric == "MONOCHROME1" and modality == "CT":
        notes.append("MONOCHROME1: HU stay as they are")
    elif photometric == "MONOCHROME1":
        array, total = _invert(array, bounds), sum(bounds)
        window = (total - window[1], total - window[0]) if window else None
        notes.append("MONOCHROME1 inverted")
    if modality == "CT":
        return _hounsfield(array, padding, facts, notes), None
    return _background(array, padding, notes), window


def _voi(
    array: np.ndarray, facts: dict[str, Any], bounds: tuple[float, float], notes: list[str]
) -> tuple[np.ndarray, Window, tuple[float, float]]:
    """An X-ray's VOI LUT (PS3.3 C.11.2): a table is applied, a window is told; with the bounds of the values after it."""
    items = several(facts, "VOILUTSequence")
    if items:
        signed = bool(facts.get("PixelRepresentation", 0)) or array.dtype.kind == "f" or bool(array.min() < 0)
        table, first, bits = _table_item(items[0], facts, signed)
        which = f", the first of {len(items)}," if len(items) > 1 else ""
        notes.append(f"VOI LUT Sequence (0028,3010){which} applied")
        top = float(2**bits - 1)
        return _apply_table(np.rint(array) if array.dtype.kind == "f" else array, table, first), (0.0, top), (0.0, top)
    return array, _window(array, facts, notes), bounds


def _window(array: np.ndarray, facts: dict[str, Any], notes: list[str]) -> Window:
    """(low, high) of Window Center and Width (0028,1050 and 1051), the first where several; PS3.3 C.11.2.1.2.

    LINEAR: all above centre - 0.5 - (width - 1) / 2 and up to centre - 0.5 + (width - 1) / 2 (C.11.2.1.2.1);
    LINEAR_EXACT: centre -+ width / 2 (C.11.2.1.3.2), and so a SIGMOID (C.11.2.1.3.1), whose ends this clips.
    """
    centres, widths = several(facts, "WindowCenter"), several(facts, "WindowWidth")
    if not centres or not widths:
        return None
    try:
        centre, width = float(centres[0]), float(widths[0])
    except (TypeError, ValueError):
        centre, width = np.nan, np.nan
    kind = str(facts.get("VOILUTFunction") or "LINEAR")
    low, high = centre - width / 2, centre + width / 2
    if kind == "LINEAR":
        low, high = centre - 0.5 - (width - 1) / 2, centre - 0.5 + (width - 1) / 2
    elif kind == "SIGMOID":
        notes.append("VOI LUT Function (0028,1056) SIGMOID: taken as linear from its centre -+ half its width")
    if not low < high or high <= array.min() or low >= array.max():
        notes.append(f"Window Center and Width (0028,1050 and 1051) {centre:g} and {width:g} show nothing: ignored")
        return None
    return low, high


def _slope_intercept(facts: dict[str, Any]) -> tuple[float, float]:
    """Rescale Slope (0028,1053) and Intercept (0028,1052), 1 and 0 where absent; our own files' Real World Value Mapping.

    Raises:
        FormatError: slope 0, which would make every voxel the same.
    """
    if facts.get("SyntheticData") == "YES" and facts.get("RealWorldValueMappingSequence"):
        # What dicom_write uses where the storage class has no rescale; real scanners' maps are of all kinds of units.
        mapping = facts["RealWorldValueMappingSequence"][0]
        return float(mapping.RealWorldValueSlope), float(mapping.RealWorldValueIntercept)
    slope, intercept = number(facts, "RescaleSlope"), number(facts, "RescaleIntercept")
    if slope == 0:
        raise FormatError("expected Rescale Slope (0028,1053) other than 0, found 0: the header is broken")
    return 1.0 if slope is None else slope, intercept or 0.0


def _stored_range(facts: dict[str, Any]) -> tuple[int, int]:
    """Lowest and highest stored value that Bits Stored (0028,0101) allows."""
    bits = int(facts.get("BitsStored") or facts["BitsAllocated"])
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if facts.get("PixelRepresentation", 0) else (0, 2**bits - 1)


def _modality_lut(stored: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Stored -> physical: Modality LUT Sequence (0028,3000) or slope and intercept; DICOM PS3.3 C.11.1."""
    items = several(facts, "ModalityLUTSequence")
    if items:
        table, first, _ = _table_item(items[0], facts, bool(facts.get("PixelRepresentation", 0)))
        return _apply_table(stored, table, first)
    return rescale(stored, *_slope_intercept(facts))


def _bounds(array: np.ndarray, facts: dict[str, Any]) -> tuple[float, float]:
    """Lowest and highest physical value that the stored bits allow; of a modality table, those that there are."""
    if facts.get("ModalityLUTSequence"):
        return float(array.min()), float(array.max())
    slope, intercept = _slope_intercept(facts)
    low, high = (end * slope + intercept for end in _stored_range(facts))
    return low, high


def _invert(array: np.ndarray, bounds: tuple[float, float]) -> np.ndarray:
    """Physical values mirrored within their bounds, so that high is bright; PS3.3 C.7.6.3.1.2."""
    total = sum(bounds)
    if array.dtype.kind == "f":
        return np.asarray(total - array.astype(np.float64)).astype(array.dtype)
    mirrored = int(total) - array.astype(np.int64)
    limits = np.iinfo(array.dtype)
    fits = limits.min <= mirrored.min() and mirrored.max() <= limits.max
    return mirrored.astype(array.dtype) if fits else narrowest(mirrored)


def _padding(stored: np.ndarray, facts: dict[str, Any], notes: list[str]) -> np.ndarray | None:
    """Mask of Pixel Padding Value (0028,0120) to Pixel Padding Range Limit (0028,0121), None where nothing is; PS3.3 C.7.5.1.1.2."""
    value = number(facts, "PixelPaddingValue")
    if value is None:
        return None
    limit = number(facts, "PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(end, stored, notes) for end in (value, value if limit is None else limit))
    padding = stored == low if low == high else (stored >= low) & (stored <= high)
    return padding if padding.any() else None


def _as_stored(value: float, stored: np.ndarray, notes: list[str]) -> int:
    """A padding value in the pixels' own dtype: 63536 in signed data (US where SS belongs) means -2000."""
    limits, span = np.iinfo(stored.dtype), 2 ** (8 * stored.dtype.itemsize)
    wrapped = int(value)
    if not limits.min <= wrapped <= limits.max:
        wrapped = (wrapped - limits.min) % span + limits.min
        notes.append(
            f"Pixel Padding Value (0028,0120) {int(value)} is illegal in {stored.dtype} pixels: read as {wrapped}"
        )
    return wrapped


def _hounsfield(array: np.ndarray, padding: np.ndarray | None, facts: dict[str, Any], notes: list[str]) -> np.ndarray:
    """CT values with air where padding was; int16 where whole numbers fit."""
    if array.dtype.kind in "iu":
        array = narrowest(array)
    array = _air(array, padding, notes)
    if facts["syntax"] in LOSSY and array.min() < AIR_HU:
        # Lossy compression smears the padding's edge over its neighbours.
        array = np.maximum(array, array.dtype.type(AIR_HU))
        notes.append(f"lossy compression: values below air set to {AIR_HU} HU")
    return narrowest(array) if array.dtype.kind in "iu" else array


def _air(array: np.ndarray, padding: np.ndarray | None, notes: list[str]) -> np.ndarray:
    """CT padding -> -1024 HU: what the header marks, and what it forgets.

    Scanners pad outside the round field of view with one value below air (-2000 stored, -2048 or -3024 HU). Where
    the tag is absent or wrong, that value stands alone, the next higher one at least 100 HU away, and fills a part of
    the image: a few such pixels are streaks of metal and stay.
    """
    air = array.dtype.type(AIR_HU)
    filled = array
    if padding is not None:
        filled = np.where(padding, air, array)
        notes.append(f"padding set to air ({AIR_HU} HU)")
    seen = padding
    for _ in range(MOST_LONELY):
        if filled.min() >= AIR_HU:
            break
        # The highest value stands where none is to be looked at.
        top = filled.max()
        low = filled.min() if seen is None else np.where(seen, top, filled).min()
        if low >= AIR_HU:
            break
        alone = filled == low
        seen = alone if seen is None else seen | alone
        above = np.where(seen, top, filled).min()
        if seen.all() or float(above) - float(low) < 100:
            break
        if np.count_nonzero(alone) >= max(LEAST_PADDED, LEAST_PADDING * alone.size):
            filled = np.where(alone, air, filled)
            notes.append(f"padding that the header does not mark ({low:g} HU) set to air ({AIR_HU} HU)")
    return filled


def _background(array: np.ndarray, padding: np.ndarray | None, notes: list[str]) -> np.ndarray:
    """Padding of MR and X-ray -> the lowest value of the image proper; zero below all else stays, it is background."""
    if padding is None or padding.all():
        return array
    lowest = array[~padding].min()
    if array[padding].min() >= 0 and array[padding].max() <= lowest:
        return array
    notes.append(f"padding set to the lowest value of the image ({lowest:g})")
    return np.where(padding, lowest, array)
