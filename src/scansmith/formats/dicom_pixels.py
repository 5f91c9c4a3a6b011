"""DICOM Pixel Data -> physical values: decoding, modality LUT, MONOCHROME1 and padding of one single-frame image."""

from __future__ import annotations

from functools import cache
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from .source import FormatError, check_size, explain, narrowest, quiet, rescale, silent_stderr

# Transfer syntaxes that SimpleITK (GDCM) decodes where pydicom's decoders may not: JPEG Baseline, Extended, Lossless, Lossless SV1.
GDCM_SYNTAXES = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 57, 70)}
DEFLATED = "1.2.840.10008.1.2.1.99"
RLE = "1.2.840.10008.1.2.5"
LOSSY = {f"1.2.840.10008.1.2.4.{number}" for number in (50, 51, 81, 91, 203)}
IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
UNCOMPRESSED = {IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG}
# What one byte of Pixel Data can become at most: run lengths (PS3.5 G.3) turn 2 bytes into 128.
MOST_EXPANSION = {**dict.fromkeys(UNCOMPRESSED, 1.0), RLE: 64.0}
# No detector has more; a compressed header that claims more is broken or hostile.
MAX_PIXELS = 2**28
AIR_HU = -1024


# ------------------------------------------------------------------------------------------------ elements


def several(dataset: Any, keyword: str) -> list[Any]:
    value = dataset.get(keyword)
    return [] if value is None or value == "" else [value] if isinstance(value, (str, int, float)) else list(value)


def numbers(dataset: Any, keyword: str, count: int) -> tuple[float, ...] | None:
    """Finite numbers of one element, None where it is absent or empty.

    Raises:
        FormatError: another count, or no numbers.
    """
    try:
        values = tuple(float(value) for value in several(dataset, keyword))
    except (TypeError, ValueError, OverflowError) as error:
        raise FormatError(
            f"expected {count} numbers in {keyword}, found text that is none ({error}): the header is broken"
        ) from error
    if not values:
        return None
    if len(values) != count or not np.isfinite(values).all():
        raise FormatError(f"expected {count} finite numbers in {keyword}, found {values}: the header is broken")
    return values


def number(dataset: Any, keyword: str) -> float | None:
    values = numbers(dataset, keyword, 1)
    return None if values is None else values[0]


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
    """Refuse what is not one grey frame that the file can hold.

    Raises:
        FormatError: naming the tag.
    """
    if "LOCALIZER" in [str(value) for value in several(dataset, "ImageType")]:
        raise FormatError("Image Type (0008,0008) LOCALIZER: a scout view, not a slice")
    for keyword, tag in (("Rows", "0028,0010"), ("Columns", "0028,0011"), ("BitsAllocated", "0028,0100")):
        if not isinstance(dataset.get(keyword), int) or dataset.get(keyword) < 1:
            raise FormatError(
                f"expected an image, found {keyword} ({tag}) {dataset.get(keyword)!r}: the file holds no pixels, or its header is broken"
            )
    frames = number(dataset, "NumberOfFrames")
    if frames is not None and frames > 1:
        raise FormatError(
            f"Number of Frames (0028,0008) is {frames:g}: expected a single-frame image; split it into single frames first"
        )
    photometric, samples = str(dataset.get("PhotometricInterpretation", "")), int(dataset.get("SamplesPerPixel") or 1)
    if dataset.get("SyntheticData") == "YES" and (samples, photometric) == (3, "RGB"):
        pass  # our own colour pictures
    elif samples != 1 or photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise FormatError(
            f"Photometric Interpretation (0028,0004) {photometric!r} with {samples} samples a pixel (0028,0002): expected a grey image (MONOCHROME1 or MONOCHROME2)"
        )
    bits = int(dataset.BitsAllocated)
    if bits not in (8, 16, 32):
        raise FormatError(f"Bits Allocated (0028,0100) is {bits}: expected 8, 16 or 32")
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if syntax in MOST_EXPANSION:
        check_size((columns, rows, 1), samples * bits / 8, available, MOST_EXPANSION[syntax])
    elif rows * columns > MAX_PIXELS:
        raise FormatError(
            f"Rows (0028,0010) {rows} and Columns (0028,0011) {columns}: expected at most 2^28 pixels in a compressed image"
        )


# ------------------------------------------------------------------------------------------------ decoding and values


def plane_values(dataset: Any, modality: str, available: int) -> tuple[np.ndarray, list[str]]:
    """One slice (C, I, J) in physical units, and what was altered."""
    notes: list[str] = []
    check_pixels(dataset, available)
    stored = stored_values(dataset, notes)
    if stored.shape[:2] != (int(dataset.Rows), int(dataset.Columns)):
        raise FormatError(
            f"expected {dataset.Rows} rows and {dataset.Columns} columns (0028,0010 and 0011), found pixels of shape {stored.shape}"
        )
    stored = np.atleast_3d(stored).transpose(2, 1, 0)
    if len(stored) == 3:
        return stored, notes
    padding = _padding(stored, dataset, notes)
    array = _modality_lut(stored, dataset)
    if str(dataset.PhotometricInterpretation) == "MONOCHROME1" and modality != "CT":  # HU are HU however they are shown
        array = _invert(array, dataset)
        notes.append("MONOCHROME1 inverted")
    if modality == "CT":
        return _hounsfield(array, padding, dataset, notes), notes
    return _background(array, padding, notes), notes


def stored_values(dataset: Any, notes: list[str]) -> np.ndarray:
    """Stored pixel values (rows, columns), decoded by pydicom, else by SimpleITK where that may help."""
    from pydicom.pixels import pixel_array

    if "PixelData" not in dataset:
        raise FormatError("expected Pixel Data (7FE0,0010), found none: the file is truncated or holds a header alone")
    syntax = dataset.file_meta.TransferSyntaxUID
    _check_codestream(dataset)
    # pylibjpeg's RLE decoder (Rust) panics on broken streams, past `except Exception`; pydicom's own takes 8 ms for 512x512.
    plugin = "pydicom" if str(syntax) == RLE else ""
    try:
        with quiet() as words:
            stored = np.asarray(pixel_array(dataset, decoding_plugin=plugin))
    except Exception as error:
        if syntax not in GDCM_SYNTAXES:
            raise FormatError(
                f"expected pixels in transfer syntax {syntax} ({syntax.name}), found {explain(error, ())}: copy it again from its source"
            ) from error
        return _stored_by_gdcm(dataset)
    notes += [f"decoder: {word}" for word in words if "precision" in word or "bits" in word.lower()]
    return stored.astype(stored.dtype.newbyteorder("="), copy=False)


def _check_codestream(dataset: Any) -> None:
    """Refuse a JPEG or JPEG 2000 stream whose own size is not the header's, before a decoder takes memory for it.

    JPEG: the frame header SOFn or SOF55 (ITU-T T.81 B.2.2, T.87 C.2.2); JPEG 2000: the SIZ marker (T.800 A.5.1).
    """
    from pydicom.encaps import generate_frames

    if str(dataset.file_meta.TransferSyntaxUID) in UNCOMPRESSED | {DEFLATED}:
        return
    frame = next(generate_frames(dataset.PixelData, number_of_frames=1), b"")
    size = _codestream_size(frame)
    if size is None and str(dataset.file_meta.TransferSyntaxUID) in GDCM_SYNTAXES:
        raise FormatError(
            "expected a JPEG stream in Pixel Data (7FE0,0010), found none with a frame header: the file is broken"
        )
    if size is not None and size != (int(dataset.Rows), int(dataset.Columns)):
        raise FormatError(
            f"expected {dataset.Rows} rows and {dataset.Columns} columns (0028,0010 and 0011), found {size[0]} and {size[1]} in the compressed stream: the file is broken"
        )


def _codestream_size(frame: bytes) -> tuple[int, int] | None:
    """(rows, columns) that a JPEG, JPEG-LS or JPEG 2000 stream claims; None for others and broken ones."""
    position = frame.find(b"\xff\x4f\xff\x51", 0, 256)
    if position >= 0:
        right, bottom, left, top = (
            int.from_bytes(frame[position + at : position + at + 4], "big") for at in (8, 12, 16, 20)
        )
        return bottom - top, right - left
    position = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while position + 9 <= len(frame) and frame[position] == 0xFF:
        marker = frame[position + 1]
        if marker in (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), 0xF7):
            return int.from_bytes(frame[position + 5 : position + 7], "big"), int.from_bytes(
                frame[position + 7 : position + 9], "big"
            )
        position += 1 if marker == 0xFF else 2 + int.from_bytes(frame[position + 2 : position + 4], "big")
    return None


def _stored_by_gdcm(dataset: Any) -> np.ndarray:
    """Stored values through SimpleITK's GDCM, which reads files alone and would rescale and invert.

    It is given a temporary file of the pixels and their format, without rescale, MONOCHROME1 or anything of the
    patient, and without the broken elements of the original that it might trip over.
    """
    import pydicom
    import SimpleITK as sitk

    syntax = dataset.file_meta.TransferSyntaxUID
    bare = pydicom.Dataset()
    bare.file_meta = pydicom.dataset.FileMetaDataset()
    bare.file_meta.TransferSyntaxUID = syntax
    bare.file_meta.MediaStorageSOPClassUID = bare.SOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    bare.file_meta.MediaStorageSOPInstanceUID = bare.SOPInstanceUID = pydicom.uid.generate_uid()
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "PixelData"):
        if keyword in dataset:
            bare[keyword] = dataset[keyword]
    bare.SamplesPerPixel, bare.PhotometricInterpretation = 1, "MONOCHROME2"
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
    return stored.reshape(stored.shape[-2:])


def _slope_intercept(dataset: Any) -> tuple[float, float]:
    """Rescale Slope (0028,1053) and Intercept (0028,1052), 1 and 0 where absent; our own files' Real World Value Mapping.

    Raises:
        FormatError: slope 0, which would make every voxel the same.
    """
    if dataset.get("SyntheticData") == "YES" and dataset.get("RealWorldValueMappingSequence"):
        # What dicom_write uses where the storage class has no rescale; real scanners' maps are of all kinds of units.
        dataset = dataset.RealWorldValueMappingSequence[0]
        return float(dataset.RealWorldValueSlope), float(dataset.RealWorldValueIntercept)
    slope, intercept = number(dataset, "RescaleSlope"), number(dataset, "RescaleIntercept")
    if slope == 0:
        raise FormatError("expected Rescale Slope (0028,1053) other than 0, found 0: the header is broken")
    return 1.0 if slope is None else slope, intercept or 0.0


def _stored_range(dataset: Any) -> tuple[int, int]:
    """Lowest and highest stored value that Bits Stored (0028,0101) allows."""
    bits = int(dataset.get("BitsStored") or dataset.BitsAllocated)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.get("PixelRepresentation", 0) else (0, 2**bits - 1)


def _modality_lut(stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Stored -> physical: Modality LUT Sequence (0028,3000) or slope and intercept; DICOM PS3.3 C.11.1."""
    from pydicom.pixels import apply_modality_lut

    if dataset.get("ModalityLUTSequence"):
        return np.asarray(apply_modality_lut(stored, dataset))
    return rescale(stored, *_slope_intercept(dataset))


def _invert(array: np.ndarray, dataset: Any) -> np.ndarray:
    """Physical values mirrored within the range that the stored bits allow, so that high is bright; PS3.3 C.7.6.3.1.2."""
    low, high = _stored_range(dataset)
    if dataset.get("ModalityLUTSequence"):
        low, high = int(array.min()), int(array.max())
        slope, intercept = 1.0, 0.0
    else:
        slope, intercept = _slope_intercept(dataset)
    total = (low + high) * slope + 2 * intercept
    if array.dtype.kind == "f":
        return (total - array.astype(np.float64)).astype(array.dtype)
    mirrored = int(total) - array.astype(np.int64)
    limits = np.iinfo(array.dtype)
    fits = limits.min <= mirrored.min() and mirrored.max() <= limits.max
    return mirrored.astype(array.dtype) if fits else narrowest(mirrored)


def _padding(stored: np.ndarray, dataset: Any, notes: list[str]) -> np.ndarray:
    """Mask of Pixel Padding Value (0028,0120) to Pixel Padding Range Limit (0028,0121); PS3.3 C.7.5.1.1.2."""
    value = number(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = number(dataset, "PixelPaddingRangeLimit")
    low, high = sorted(_as_stored(end, stored, notes) for end in (value, value if limit is None else limit))
    return (stored >= low) & (stored <= high)


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


def _hounsfield(array: np.ndarray, padding: np.ndarray, dataset: Any, notes: list[str]) -> np.ndarray:
    """CT values with air where padding was; int16 where whole numbers fit."""
    if array.dtype.kind in "iu":
        array = narrowest(array)
    array = _air(array, padding, notes)
    if str(dataset.file_meta.TransferSyntaxUID) in LOSSY and array.min() < AIR_HU:
        # Lossy compression smears the padding's edge over its neighbours.
        array = np.maximum(array, array.dtype.type(AIR_HU))
        notes.append(f"lossy compression: values below air set to {AIR_HU} HU")
    return narrowest(array) if array.dtype.kind in "iu" else array


def _air(array: np.ndarray, padding: np.ndarray, notes: list[str]) -> np.ndarray:
    """CT padding -> -1024 HU: what the header marks, and what it forgets.

    Scanners pad outside the round field of view with one value below air (-2000 stored, -2048 or -3024 HU). Where
    the tag is absent or wrong, that value stands alone: the next higher one is at least 100 HU away.
    """
    padding = padding.copy()
    if padding.any():
        notes.append(f"padding set to air ({AIR_HU} HU)")
    while not padding.all():
        rest = array[~padding]
        low = rest.min()
        above = rest[rest > low]
        if low >= AIR_HU or above.size == 0 or above.min() - low < 100:
            break
        padding |= array == low
        notes.append(f"padding that the header does not mark ({low:g} HU) set to air ({AIR_HU} HU)")
    return np.where(padding, array.dtype.type(AIR_HU), array) if padding.any() else array


def _background(array: np.ndarray, padding: np.ndarray, notes: list[str]) -> np.ndarray:
    """Padding of MR and X-ray -> the lowest value of the image proper; zero below all else stays, it is background."""
    if not padding.any() or padding.all():
        return array
    lowest = array[~padding].min()
    if array[padding].min() >= 0 and array[padding].max() <= lowest:
        return array
    notes.append(f"padding set to the lowest value of the image ({lowest:g})")
    return np.where(padding, lowest, array)
