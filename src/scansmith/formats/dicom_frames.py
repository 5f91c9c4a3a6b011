"""Multi-frame DICOM: what the functional groups say of each frame, and where its bytes lie in Pixel Data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any, BinaryIO

import numpy as np

from .dicom_file import tag_number
from .source import FormatError

# Functional group (PS3.3 C.7.6.16.2) -> its elements, each under the keyword that a single-frame image uses for it.
GROUPS: dict[str, dict[str, str]] = {
    "PlanePositionSequence": {"ImagePositionPatient": "ImagePositionPatient"},
    "PlaneOrientationSequence": {"ImageOrientationPatient": "ImageOrientationPatient"},
    "PixelMeasuresSequence": {"PixelSpacing": "PixelSpacing", "SliceThickness": "SliceThickness"},
    "PixelValueTransformationSequence": {
        "RescaleSlope": "RescaleSlope",
        "RescaleIntercept": "RescaleIntercept",
        "RescaleType": "RescaleType",
    },
    "FrameVOILUTSequence": {
        "WindowCenter": "WindowCenter",
        "WindowWidth": "WindowWidth",
        "VOILUTFunction": "VOILUTFunction",
    },
    "FrameContentSequence": {
        "StackID": "StackID",
        "TemporalPositionIndex": "TemporalPositionIdentifier",
        "FrameAcquisitionNumber": "AcquisitionNumber",
        "DimensionIndexValues": "DimensionIndexValues",
    },
    "MRImageFrameTypeSequence": {"FrameType": "ImageType", "ComplexImageComponent": "ComplexImageComponent"},
    "CTImageFrameTypeSequence": {"FrameType": "ImageType"},
    "MREchoSequence": {"EffectiveEchoTime": "EchoTime"},
    "MRDiffusionSequence": {"DiffusionBValue": "DiffusionBValue", "DiffusionDirectionality": "DiffusionDirectionality"},
    "MRModifierSequence": {"InversionTimes": "InversionTime"},
    "MRTimingAndRelatedParametersSequence": {"FlipAngle": "FlipAngle"},
    "CTReconstructionSequence": {"ConvolutionKernel": "ConvolutionKernel"},
    "CTXRayDetailsSequence": {"KVP": "KVP"},
    "RealWorldValueMappingSequence": {},  # of which the units are taken
    "CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": "TriggerTime"},
    # What a converter of single-frame files could place nowhere else (Legacy Converted Enhanced images, C.7.6.16.2.25).
    "UnassignedPerFrameConvertedAttributesSequence": {
        keyword: keyword
        for keyword in ("EchoNumbers", "EchoTime", "InversionTime", "FlipAngle", "TriggerTime", "AcquisitionNumber")
    },
}
GROUPS["UnassignedSharedConvertedAttributesSequence"] = GROUPS["UnassignedPerFrameConvertedAttributesSequence"]
FRAME_KEYWORDS = tuple(dict.fromkeys(name for group in GROUPS.values() for name in group.values()))
# Binary value representations, PS3.5 6.2.
NUMBERS = {"FD": "f8", "FL": "f4", "US": "u2", "SS": "i2", "UL": "u4", "SL": "i4"}
# Header elements that only a multi-frame image has.
SEQUENCES = (
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "DimensionIndexSequence",
    "RealWorldValueMappingSequence",
)
# Dimensions (0020,9165) that number the places of a stack: In-Stack Position Number, Image Position, Stack ID (kept by itself).
PLACES = {0x00209057, 0x00200032, 0x00209056, 0x00209113}
DIMENSIONS = 6
ITEM, BIG_ITEM = b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00"
MOST_FRAGMENTS = 2**20
UNDEFINED = 0xFFFFFFFF  # length of an element that ends with a delimiter
FRAGMENTS = "expected Pixel Data (7FE0,0010) of defined length in an uncompressed file, found fragments: its transfer syntax (0002,0010) is wrong"
Span = list[tuple[int, int]]


# ------------------------------------------------------------------------------------------------ functional groups


def frame_attributes(dataset: Any, count: int) -> list[dict[str, Any]]:
    """Of every frame the elements that a single-frame image would have: its own, else the shared, else the file's.

    Raises:
        FormatError: the functional groups are not those of `count` frames.
    """
    top = {keyword: dataset.get(keyword) for keyword in FRAME_KEYWORDS if keyword in dataset}
    shared = top | _attributes(dataset)
    for item in sequence_items(dataset, "SharedFunctionalGroupsSequence")[:1]:
        shared |= _attributes(item)
    frames = sequence_items(dataset, "PerFrameFunctionalGroupsSequence")
    if frames and len(frames) != count:
        raise FormatError(
            f"expected {count} items in Per-frame Functional Groups Sequence (5200,9230), as Number of Frames (0028,0008) says, found {len(frames)}: the file is broken"
        )
    varying = _dimensions(dataset)
    if not frames:
        return [shared] * count
    result = []
    for item in frames:
        attributes = shared | _attributes(item)
        values = attributes.pop("DimensionIndexValues", [])
        values = values if isinstance(values, list) else [values]
        attributes["dimensions"] = [str(values[at]) for at in varying if at < len(values)][:DIMENSIONS]
        result.append(attributes)
        item.clear()  # pydicom's elements take ten times the room
    return result


def _attributes(item: Any) -> dict[str, Any]:
    """The known elements of one item of functional groups, under their single-frame keywords."""
    found: dict[str, Any] = {}
    known = _known_groups()
    for tag in item.keys() & known.keys():
        sequence, elements = known[tag]
        for group in sequence_items(item, sequence)[:1]:
            for element_tag in group.keys() & elements.keys():
                value = element_value(group.get_item(element_tag))
                if value != []:
                    found[elements[element_tag]] = value
            if sequence == "MRDiffusionSequence":
                for direction in sequence_items(group, "DiffusionGradientDirectionSequence")[:1]:
                    found["gradient"] = direction.get("DiffusionGradientOrientation")
            if sequence == "RealWorldValueMappingSequence":
                for unit in sequence_items(group, "MeasurementUnitsCodeSequence")[:1]:
                    found["units"] = str(unit.get("CodeValue") or "")
    return found


@cache
def _known_groups() -> dict[int, tuple[str, dict[int, str]]]:
    """`GROUPS` by tags, which are faster to look up."""
    return {
        tag_number(sequence): (sequence, {tag_number(keyword): name for keyword, name in elements.items()})
        for sequence, elements in GROUPS.items()
    }


def element_value(element: Any) -> Any:
    """An element's value, or the list of its values; decimal text stays text. pydicom checks each, which takes 0.05 ms."""
    raw, vr = element.value, element.VR
    if not isinstance(raw, bytes):
        return [] if raw is None or raw == "" else raw if isinstance(raw, (str, int, float)) else list(raw)
    vr = _vr(element.tag) if vr in (None, "UN") else vr
    values: list[Any]
    if vr in NUMBERS:
        dtype = np.dtype(NUMBERS[vr]).newbyteorder("<" if element.is_little_endian else ">")
        values = np.frombuffer(raw, dtype, len(raw) // dtype.itemsize).tolist()
    else:
        text = raw.decode("latin-1").strip(" \0")
        values = text.split("\\") if text else []
    return values[0] if len(values) == 1 else values


@cache
def _vr(tag: int) -> str:
    from pydicom.datadict import dictionary_VR

    return dictionary_VR(tag)


def _dimensions(dataset: Any) -> list[int]:
    """Which of the Dimension Index Values (0020,9157) do not number the places of a stack; C.7.6.17."""
    pointers = [item.get("DimensionIndexPointer") for item in sequence_items(dataset, "DimensionIndexSequence")]
    return [at for at, pointer in enumerate(pointers) if pointer is not None and int(pointer) not in PLACES]


def sequence_items(dataset: Any, keyword: str) -> list[Any]:
    """The items of a sequence, refusing one that claims more items than its bytes can hold (pydicom takes 1.5 kB each)."""
    if keyword not in dataset:
        return []
    raw = dataset.get_item(keyword).value
    if isinstance(raw, bytes) and max(raw.count(ITEM), raw.count(BIG_ITEM)) > 1000 + len(raw) // 32:
        raise FormatError(
            f"expected a sequence in {keyword}, found more items than it has room for: the file is broken"
        )
    value = dataset.get(keyword)
    return list(value) if value and not isinstance(value, (str, bytes)) else []


# ------------------------------------------------------------------------------------------------ bytes of frames


def frame_reader(stream: BinaryIO, dataset: Any, frame_bytes: int, encapsulated: bool) -> Callable[[int], bytes]:
    """Frame number -> its bytes as stored, read when asked; the stream stands at the element of Pixel Data.

    Raises:
        FormatError: there is no Pixel Data, or its parts are not those of the frames.
    """
    count = int(dataset.get("NumberOfFrames") or 1)
    vr, length = _pixel_element(stream, str(dataset.file_meta.TransferSyntaxUID) == "1.2.840.10008.1.2.2")
    start = stream.tell()
    if not encapsulated:
        swapped = str(dataset.file_meta.TransferSyntaxUID) == "1.2.840.10008.1.2.2" and vr == b"OW"
        if length == UNDEFINED:
            raise FormatError(FRAGMENTS)
        return partial(_native_frame, stream, start, frame_bytes, swapped and dataset.BitsAllocated == 8)
    if length != UNDEFINED:
        raise FormatError(
            "expected compressed fragments in Pixel Data (7FE0,0010), found one uncompressed block: the transfer syntax (0002,0010) is wrong"
        )
    spans = _spans(stream, dataset, count)
    return lambda number: b"".join(_read(stream, position, size) for position, size in spans[number])


def bit_reader(stream: BinaryIO, dataset: Any, pixels: int) -> Callable[[int], np.ndarray]:
    """Frame number -> its uncompressed single bits (pixels,), uint8; a frame may begin and end within a byte (PS3.5 8.1.1).

    The stream stands at the element of Pixel Data. pydicom 3.0.2 leaves out the last byte of a frame that lies in one more than
    it has bytes.

    Raises:
        FormatError: as `frame_reader`.
    """
    _, length = _pixel_element(stream, str(dataset.file_meta.TransferSyntaxUID) == "1.2.840.10008.1.2.2")
    if length == UNDEFINED:
        raise FormatError(FRAGMENTS)
    start = stream.tell()

    def bits(number: int) -> np.ndarray:
        byte, before = divmod(number * pixels, 8)
        packed = _read(stream, start + byte, (before + pixels + 7) // 8)
        return np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[before : before + pixels]

    return bits


def _pixel_element(stream: BinaryIO, big: bool) -> tuple[bytes, int]:
    """VR and length of Pixel Data; the stream is moved to its value."""
    head = stream.read(8)
    order = "big" if big else "little"
    tag = (int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order))  # type: ignore[arg-type]
    if tag != (0x7FE0, 0x0010):
        found = {
            (0x7FE0, 0x0008): "Float Pixel Data (7FE0,0008)",
            (0x7FE0, 0x0009): "Double Float Pixel Data (7FE0,0009)",
        }
        raise FormatError(
            f"expected Pixel Data (7FE0,0010), found {found.get(tag, 'none')}: the file is truncated or holds a header alone"
        )
    if head[4:6] in (b"OB", b"OW", b"UN", b"OF", b"OD"):
        return head[4:6], int.from_bytes(stream.read(4), order)  # type: ignore[arg-type]
    return b"OW", int.from_bytes(head[4:8], order)  # type: ignore[arg-type]


def _native_frame(stream: BinaryIO, start: int, size: int, swapped: bool, number: int) -> bytes:
    """One uncompressed frame. Bytes of 8-bit pixels in big endian words (OW) are put in their order, PS3.5 D.1."""
    if not swapped:
        return _read(stream, start + number * size, size)
    first = number * size // 2 * 2
    words = _read(stream, start + first, (number + 1) * size + (number + 1) * size % 2 - first)
    return np.frombuffer(words, "u2").byteswap().tobytes()[number * size - first :][:size]


def _read(stream: BinaryIO, position: int, size: int) -> bytes:
    stream.seek(position)
    data = stream.read(size)
    if len(data) < size:
        raise FormatError(
            f"expected {size} bytes of Pixel Data (7FE0,0010), found {len(data)}: the file is truncated; copy it again from its source"
        )
    return data


def _spans(stream: BinaryIO, dataset: Any, count: int) -> list[Span]:
    """(position, bytes) of the fragments of each frame; PS3.5 A.4.

    One fragment a frame needs no table; else the Extended or Basic Offset Table says where frames begin, else the
    end marker that closes every JPEG and JPEG 2000 stream.
    """
    table, fragments = _fragments(stream)
    origin = fragments[0][0] - 8 if fragments else 0
    extended = dataset.get("ExtendedOffsetTable")
    if len(fragments) == count:
        return [[fragment] for fragment in fragments]
    if count == 1 and fragments:
        return [fragments]
    if extended and len(extended) == 8 * count:
        table = np.frombuffer(extended, "<u8").tolist()
    if len(table) == count and len(fragments) > count:
        begins = np.searchsorted([position - 8 - origin for position, _ in fragments], table)
        ends = [*begins[1:], len(fragments)]
        spans = [fragments[begin:end] for begin, end in zip(begins, ends)]
    else:
        spans = _by_end_marker(stream, fragments)
    if len(spans) != count or not all(spans):
        raise FormatError(
            f"expected {count} compressed frames in Pixel Data (7FE0,0010), as Number of Frames (0028,0008) says, found {len(fragments)} fragments that do not make them: the file is truncated or broken"
        )
    return spans


def _fragments(stream: BinaryIO) -> tuple[list[int], Span]:
    """Basic Offset Table and (position of the value, bytes) of every fragment behind it."""
    found: Span = []
    while len(head := stream.read(8)) == 8 and head[:4] == ITEM:
        size = int.from_bytes(head[4:], "little")
        found.append((stream.tell(), size))
        if size == 0xFFFFFFFF or len(found) > MOST_FRAGMENTS:
            raise FormatError("expected fragments in Pixel Data (7FE0,0010), found an endless list: the file is broken")
        stream.seek(size, 1)
    if not found:
        raise FormatError("expected fragments in Pixel Data (7FE0,0010), found none: the file is truncated")
    (position, size), fragments = found[0], found[1:]
    table = np.frombuffer(_read(stream, position, size - size % 4), "<u4").tolist() if size < 2**26 else []
    # The last one of a truncated file: its decoder says what is missing.
    end = stream.seek(0, 2)
    return table, [(at, min(length, end - at)) for at, length in fragments if at < end]


def _by_end_marker(stream: BinaryIO, fragments: Span) -> list[Span]:
    """Fragments of one frame each up to the one that ends with the marker FFD9."""
    spans: list[Span] = [[]]
    for position, size in fragments:
        spans[-1].append((position, size))
        tail = min(10, size)
        if b"\xff\xd9" in _read(stream, position + size - tail, tail):
            spans.append([])
    return spans if spans[-1] else spans[:-1]
