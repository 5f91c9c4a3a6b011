"""One DICOM file opened without trust: its header, and the stream that holds its pixels.

`read_header` gives pydicom's data set of any file. `read_elements` reads what nearly all files are, the two little endian
encodings, ten times faster, gives the same values, and asks pydicom about everything else.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO, cast

from .source import FormatError

DEFLATED = b"1.2.840.10008.1.2.1.99"
IMPLICIT_LITTLE, EXPLICIT_LITTLE, EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
# What one deflated byte can become at most (zlib's own limit), and the most that is inflated of any file.
MOST_INFLATION, MOST_INFLATED = 1032, 2**31
# The longest header of a deflated file; pixels are inflated later and only as far as the header claims.
DEFLATED_HEADER = 2**24
ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
# Value representations of explicit encoding: those with a length of two bytes, and those with four behind two reserved
# ones; PS3.5 7.1.2.
TWO_BYTES = "AE AS AT CS DA DS DT FD FL IS LO LT PN SH SL SS ST TM UI UL US"
FOUR_BYTES = "OB OD OF OL OV OW SQ SV UC UN UR UT UV"
SHORT_VRS, LONG_VRS = ({vr.encode(): vr for vr in text.split()} for text in (TWO_BYTES, FOUR_BYTES))
WHOLE_NUMBERS = {"US": (2, False), "SS": (2, True), "UL": (4, False), "SL": (4, True)}
# Specific Character Sets (0008,0005) in which bytes below 128 are ASCII.
ASCII_SETS = {b"", b"ISO_IR 6", b"ISO_IR 100", b"ISO_IR 192"}
# Float, Double Float and Pixel Data.
PIXEL_TAGS = {0x7FE00008, 0x7FE00009, 0x7FE00010}
META_KEYWORDS = ("TransferSyntaxUID", "MediaStorageSOPClassUID")
ITEM, ITEM_END, SEQUENCE_END, UNDEFINED = 0xFFFEE000, 0xFFFEE00D, 0xFFFEE0DD, 0xFFFFFFFF
# Bytes of a file that are searched for its header, one after the other: most are shorter than the first.
HEADER_BYTES = (2**14, 2**17, 2**21)
# Elements and items within one sequence of undefined length; more is left to pydicom, behind `_Guarded`.
MOST_NESTED = 2**12
_implicit_element = struct.Struct("<HHI").unpack_from
_explicit_element = struct.Struct("<HH2sH").unpack_from
_length = struct.Struct("<I").unpack_from


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before Pixel Data.

    Attributes:
        dataset: pydicom's FileDataset without pixels, or `Elements`; its file_meta always has a Transfer Syntax UID.
        position: where the element of the pixels begins; in a deflated file, in the inflated stream.
        available: bytes from there to the end of the file; of a deflated file, the most that they can become.
        deflated: whether the stream must be inflated.
    """

    dataset: Any
    position: int
    available: int
    deflated: bool = False


class Elements:
    """Elements of a header by keyword, bytes until one is asked for; of pydicom's Dataset what single images need.

    Values are pydicom's, but plain: lists where it has MultiValue, str where it has UID.

    Attributes:
        file_meta: those of the file meta information.
    """

    def __init__(self, raw: dict[str, Any], file_meta: Elements | None = None) -> None:
        self._raw = raw
        self._values: dict[str, Any] = {}
        self._dataset: Any = None
        self.file_meta = file_meta

    def __contains__(self, keyword: str) -> bool:
        return keyword in self._raw

    def __len__(self) -> int:
        return len(self._raw)

    def __getattr__(self, keyword: str) -> Any:
        if keyword.startswith("_") or keyword not in self._raw:
            raise AttributeError(f"no {keyword} in this header")
        return self.get(keyword)

    def __getitem__(self, keyword: str) -> Any:
        """The element as pydicom decodes it."""
        return self._by_pydicom()[keyword]

    def get_item(self, keyword: str) -> Any:
        """The element undecoded."""
        return self._raw[keyword]

    def get(self, keyword: str, default: Any = None) -> Any:
        if keyword not in self._raw:
            return default
        if keyword not in self._values:
            self._values[keyword] = self._decode(keyword)
        return self._values[keyword]

    def _decode(self, keyword: str) -> Any:
        raw = self._raw[keyword]
        vr, value = raw.VR or _dictionary_vr(raw.tag), raw.value
        if vr == "US or SS" and self.get("PixelRepresentation") in (0, 1):
            vr = "SS" if self.get("PixelRepresentation") else "US"
        if vr in WHOLE_NUMBERS and value and len(value) == WHOLE_NUMBERS[vr][0]:
            return int.from_bytes(value, "little", signed=WHOLE_NUMBERS[vr][1])
        if value and value.isascii():
            if vr in ("CS", "UI"):
                parts = value.decode("ascii").rstrip(" \0").split("\\")
                return parts[0] if len(parts) == 1 else parts
            if vr in ("LO", "SH") and b"\x1b" not in value and b"\\" not in value and self._ascii():
                return value.decode("ascii").rstrip(" \0")
        return self._by_pydicom()[keyword].value

    def _ascii(self) -> bool:
        """Whether bytes below 128 are surely ASCII: in Japanese sets some are not."""
        raw = self._raw.get("SpecificCharacterSet")
        return raw is None or not raw.value or raw.value.strip() in ASCII_SETS

    def _by_pydicom(self) -> Any:
        if self._dataset is None:
            import pydicom
            from pydicom.charset import convert_encodings

            self._dataset = pydicom.Dataset({raw.tag: raw for raw in self._raw.values()})
            sets = self._dataset.get("SpecificCharacterSet")
            implicit = next((raw.is_implicit_VR for raw in self._raw.values()), False)
            self._dataset.set_original_encoding(implicit, True, convert_encodings(sets))
        return self._dataset


class _Unusual(Exception):
    """A header that is left to pydicom."""


class _Short(Exception):
    """A header longer than the bytes at hand."""


class _Guarded:
    """A stream that never takes memory for more bytes than it has, nor lets a parser take more items than it can hold.

    pydicom takes 1.5 kB for a sequence item of eight bytes; in real files one stands for more than 64 (pixels
    counted).
    """

    def __init__(self, stream: BinaryIO, size: int) -> None:
        self._read, self.seek, self.tell = stream.read, stream.seek, stream.tell
        self._size, self._items_left = size, 1000 + size // 64

    def read(self, count: int = -1) -> bytes:
        if count > 65536:
            count = max(min(count, self._size - self.tell()), 0)
        data = self._read(count)
        if count == 8 and data[:4] in ITEMS:
            self._items_left -= 1
            if self._items_left < 0:
                raise EOFError("more sequence items than the file has room for")
        return data

    @property
    def exhausted(self) -> bool:
        return self._items_left < 0


@cache
def tag_number(keyword: str) -> int:
    """An attribute's tag as one number.

    Raises:
        ValueError: DICOM has no such keyword.
    """
    from pydicom.datadict import tag_for_keyword
    from pydicom.tag import Tag

    tag = tag_for_keyword(keyword)
    if tag is None:
        raise ValueError(f"expected the keyword of a DICOM attribute, for example BodyPartExamined, found {keyword!r}")
    return Tag(tag)  # an int, which pydicom need not convert again


@cache
def _tag_numbers(keywords: tuple[str, ...]) -> list[int]:
    return [tag_number(keyword) for keyword in keywords]


def read_elements(file: Path, keywords: tuple[str, ...]) -> Header:
    """These elements of one file's header, as `Elements` where its encoding is a usual one, else by `read_header`.

    Usual is: file meta information, little endian, not deflated, pixels at the end, of the sequences asked for none
    that has items, and no end of the file within an element.

    Raises:
        FormatError: as `read_header`.
        OSError: the file cannot be opened.
    """
    with open(file, "rb", buffering=0) as stream:
        size = os.fstat(stream.fileno()).st_size
        for count in HEADER_BYTES:
            stream.seek(0)
            try:
                return _elements(stream.read(count), size, keywords)
            except _Unusual:
                break
            except (_Short, struct.error):
                if count >= size:
                    break
    return read_header(file, keywords)


def _elements(data: bytes, size: int, keywords: tuple[str, ...]) -> Header:
    """The header in the first bytes of a file of `size` bytes.

    Raises:
        _Unusual: it is for pydicom to read.
        _Short, struct.error: it does not end in these bytes.
    """
    if data[128:132] != b"DICM":
        raise _Unusual
    meta, at = _walk(data, 132, size, False, _wanted(META_KEYWORDS), True)
    if "TransferSyntaxUID" not in meta:
        raise _Unusual
    file_meta = Elements(meta)
    syntax = file_meta.get("TransferSyntaxUID")
    if not isinstance(syntax, str) or not syntax.startswith(IMPLICIT_LITTLE):
        raise _Unusual  # private ones have encodings of their own
    if syntax in (EXPLICIT_BIG, DEFLATED.decode()):
        raise _Unusual
    implicit = syntax == IMPLICIT_LITTLE
    vr = data[at + 4 : at + 6]
    if implicit and vr.isalpha() and vr.isupper():
        raise _Unusual  # explicit after all
    found, position = _walk(data, at, size, implicit, _wanted(keywords), False)
    return Header(Elements(found, file_meta), position, size - position)


@cache
def _wanted(keywords: tuple[str, ...]) -> dict[int, tuple[str, Any]]:
    """Tag -> keyword, and the tag as pydicom's."""
    return {int(tag_number(keyword)): (keyword, tag_number(keyword)) for keyword in ("SpecificCharacterSet", *keywords)}


def _walk(
    data: bytes, at: int, size: int, implicit: bool, wanted: dict[int, tuple[str, Any]], meta: bool
) -> tuple[dict[str, Any], int]:
    """The wanted elements by keyword up to the pixels, or to the end of the file meta information, and where that is."""
    from pydicom.dataelem import RawDataElement

    found: dict[str, Any] = {}
    while True:
        group, number = _implicit_element(data, at)[:2]
        tag = group << 16 | number
        if (group != 2) if meta else tag in PIXEL_TAGS:
            return found, at
        if group == 0xFFFE or (group <= 2 and not meta):
            raise _Unusual
        vr, length, value_at = _element(data, at, implicit)
        if length == UNDEFINED:
            if tag in wanted or (vr or _dictionary_vr(tag)) not in ("SQ", None):
                raise _Unusual
            at = _behind_items(data, value_at, implicit)
            continue
        at = value_at + length
        if at > size:
            raise _Unusual
        if tag in wanted:
            if at > len(data):
                raise _Short
            keyword, known = wanted[tag]
            if length and keyword.endswith("Sequence"):
                raise _Unusual
            value = data[value_at:at] if length else _empty(vr)
            found[keyword] = RawDataElement(known, vr, length, value, value_at, implicit, True)


def _element(data: bytes, at: int, implicit: bool) -> tuple[str | None, int, int]:
    """VR (None in implicit encoding), length, and where the value begins, of the element at a position."""
    if implicit:
        return None, _length(data, at + 4)[0], at + 8
    code, length = _explicit_element(data, at)[2:]
    if code in SHORT_VRS:
        return SHORT_VRS[code], length, at + 8
    if code in LONG_VRS:
        return LONG_VRS[code], _length(data, at + 8)[0], at + 12
    raise _Unusual


def _behind_items(data: bytes, at: int, implicit: bool) -> int:
    """Where a sequence of undefined length ends that begins at a position; PS3.5 7.5."""
    open_items = [False]  # of the sequences and items around the position, which are items
    for _ in range(MOST_NESTED):
        group, number, length = _implicit_element(data, at)
        tag = group << 16 | number
        if tag == (ITEM_END if open_items[-1] else SEQUENCE_END):
            at += 8
            open_items.pop()
            if not open_items:
                return at
        elif open_items[-1]:
            vr, length, at = _element(data, at, implicit)
            if group == 0xFFFE or (length == UNDEFINED and (vr or _dictionary_vr(tag)) not in ("SQ", None)):
                raise _Unusual
            if length == UNDEFINED:
                open_items.append(False)
            else:
                at += length
        elif tag != ITEM:
            raise _Unusual
        elif length == UNDEFINED:
            at += 8
            open_items.append(True)
        else:
            at += 8 + length
    raise _Unusual


@cache
def _dictionary_vr(tag: int) -> str | None:
    """The VR of the data dictionary (PS3.6), None of a private element."""
    from pydicom.datadict import dictionary_VR

    try:
        return dictionary_VR(tag)
    except KeyError:
        return None


@cache
def _empty(vr: str | None) -> bytes | None:
    """What pydicom has for an element without a value, before it is decoded."""
    from pydicom.dataelem import empty_value_for_VR

    return cast("bytes | None", empty_value_for_VR(vr, raw=True))


def read_header(file: Path, keywords: tuple[str, ...] | None = None) -> Header:
    """The header of one file by pydicom; with keywords, these elements alone, which is faster.

    Raises:
        FormatError: nested or repeated beyond what a file of its size can hold, or cut off in a sequence.
        OSError: the file cannot be opened.
    """
    with open(file, "rb") as stream:
        size = stream.seek(0, io.SEEK_END)
        stream.seek(0)
        head = stream.read(1024)
        stream.seek(0)
        if head[128:132] == b"DICM" and DEFLATED in head:
            inflated = _inflate(stream, head, DEFLATED_HEADER)
            dataset, position = _parse(inflated, len(inflated.getbuffer()), keywords)
            return Header(dataset, position, min(size * MOST_INFLATION, MOST_INFLATED), True)
        dataset, position = _parse(stream, size, keywords)
        return Header(dataset, position, size - position)


@contextmanager
def pixel_stream(file: Path, header: Header, claimed: int) -> Iterator[BinaryIO]:
    """The file's stream, at the element of the pixels; a deflated file is inflated no further than `claimed` bytes of pixels."""
    with open(file, "rb") as stream:
        inside: BinaryIO = stream
        if header.deflated:
            inside = _inflate(stream, stream.read(1024), min(header.position + claimed + 1024, MOST_INFLATED))
        inside.seek(header.position)
        yield inside


def _inflate(stream: BinaryIO, head: bytes, limit: int) -> io.BytesIO:
    """A deflated file (PS3.5 A.5) as an Explicit VR Little Endian one, of at most `limit` inflated bytes.

    Raises:
        FormatError: no group length, or no deflate stream behind the file meta information.
    """
    length = int.from_bytes(head[140:144], "little")
    end = 144 + length
    if head[132:138] != b"\x02\x00\x00\x00UL" or end > 65536:
        raise FormatError(
            "expected the File Meta Information Group Length (0002,0000) first, as a deflated file needs it, found none: the file is broken"
        )
    stream.seek(0)
    meta = stream.read(end)
    try:
        inside = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(), limit)
    except zlib.error as error:
        raise FormatError(
            f"transfer syntax {DEFLATED.decode()} (0002,0010): expected a deflate stream, found {error}: copy the file again from its source"
        ) from error
    # UIDs are padded with zeros, so the shorter one takes the same room.
    inflated = io.BytesIO(meta.replace(DEFLATED, EXPLICIT_LITTLE.encode().ljust(len(DEFLATED), b"\0")))
    inflated.seek(0, io.SEEK_END)
    inflated.write(inside)
    inflated.seek(0)
    return inflated


def _parse(stream: BinaryIO, size: int, keywords: tuple[str, ...] | None) -> tuple[Any, int]:
    """The data set before the pixels, and where these begin."""
    import pydicom

    guard = _Guarded(stream, size)
    tags = None if keywords is None else _tag_numbers(keywords)
    try:
        dataset = pydicom.dcmread(
            cast(BinaryIO, guard), force=True, stop_before_pixels=True, specific_tags=cast(Any, tags)
        )
    except RecursionError as error:
        raise FormatError("sequences are nested hundreds of levels deep: the file is broken or hostile") from error
    except OSError as error:
        if error.errno is not None:
            raise
        found = "more sequence items than it has room for" if guard.exhausted else f"broken sequences ({error})"
        raise FormatError(f"expected a DICOM header, found {found}: copy the file again from its source") from error
    if guard.exhausted:
        raise FormatError("expected a DICOM header, found more sequence items than the file has room for: it is broken")
    if not getattr(dataset, "file_meta", None):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        # No file meta information: pydicom guessed the encoding from the first element.
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
        )
    dataset.buffer = None  # it would keep the stream
    return dataset, stream.tell()
