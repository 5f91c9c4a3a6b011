"""One DICOM file opened without trust: its header as a pydicom data set, and the stream that holds its pixels."""

from __future__ import annotations

import io
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


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before Pixel Data.

    Attributes:
        dataset: pydicom's FileDataset without pixels; its file_meta always has a Transfer Syntax UID.
        position: where the element of the pixels begins; in a deflated file, in the inflated stream.
        available: bytes from there to the end of the file; of a deflated file, the most that they can become.
    """

    dataset: Any
    position: int
    available: int


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


def read_header(file: Path, keywords: tuple[str, ...] | None = None) -> Header:
    """The header of one file; with keywords, these elements alone, which is faster.

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
            return Header(dataset, position, min(size * MOST_INFLATION, MOST_INFLATED))
        dataset, position = _parse(stream, size, keywords)
        return Header(dataset, position, size - position)


@contextmanager
def pixel_stream(file: Path, header: Header, claimed: int) -> Iterator[BinaryIO]:
    """The file's stream, at the element of the pixels; a deflated file is inflated no further than `claimed` bytes of pixels."""
    with open(file, "rb") as stream:
        head = stream.read(1024)
        if head[128:132] == b"DICM" and DEFLATED in head:
            inside: BinaryIO = _inflate(stream, head, min(header.position + claimed + 1024, MOST_INFLATED))
        else:
            inside = stream
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
