"""Bytes of a file -> voxels, with memory for what the header claims and not a byte more."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from .source import FormatError

GZIP = b"\x1f\x8b"
# The most bytes that one byte of deflate can become (zlib's own limit).
DEFLATE_EXPANSION = 1032.0
# Read and inflated at once; pieces that fit the second-level cache are 15 % faster than one of 4 MB.
PIECE = 2**18


def stored_bytes(file: Path, start: int, skip: int, count: int, compressed: bool) -> np.ndarray:
    """(count,) uint8: what follows `skip` bytes of the stream that begins at `start`, which must end there.

    Args:
        file: the file.
        start: where the stream begins in it.
        skip: bytes of the stream, after decompression, that are passed over.
        count: bytes that the header claims.
        compressed: the stream is gzip (one member or several) or zlib, whose checksums are verified.

    Raises:
        FormatError: the stream is shorter or longer, or broken.
        OSError: the file cannot be opened.
    """
    if not compressed:
        return _plain(file, start + skip, count)
    result = np.empty(count, np.uint8)
    done = -skip
    for piece in inflate(file, start):
        first = max(-done, 0)
        done += len(piece)
        if done > count:
            raise FormatError(
                f"expected {count} bytes of voxels as the header claims, found more behind them: the header's size is wrong, or the file is broken; copy it again from its source"
            )
        if done > 0 and first < len(piece):
            result[done - len(piece) + first : done] = np.frombuffer(piece, np.uint8, offset=first)
    _require(max(done, 0), count)
    return result


def inflate(file: Path, start: int = 0) -> Iterator[bytes]:
    """A gzip or zlib stream in pieces of at most `PIECE` bytes; zeros behind it are padding.

    Raises:
        FormatError: the stream is broken, cut, or followed by something else.
        OSError: the file cannot be opened.
    """
    with open(file, "rb", buffering=0) as stream:
        stream.seek(start)
        data = stream.read(PIECE)
        while data:
            decoder = zlib.decompressobj(47)  # gzip or zlib, as its head says
            while not decoder.eof:
                try:
                    piece = decoder.decompress(data, PIECE)
                except zlib.error as error:
                    raise FormatError(
                        f"expected a whole gzip or zlib stream, found it broken ({error}): copy it again from its source"
                    ) from error
                if piece:
                    yield piece
                data = decoder.unconsumed_tail or (b"" if decoder.eof else stream.read(PIECE))
                if not data and not piece and not decoder.eof:
                    raise FormatError(
                        "expected a whole gzip or zlib stream, found it cut: copy it again from its source"
                    )
            data = decoder.unused_data
            if len(data) < len(GZIP):
                data += stream.read(PIECE)
            if not data.startswith(GZIP):
                while data:
                    if data.strip(b"\0"):
                        raise FormatError(
                            "expected the end of the file behind its gzip or zlib stream, found more: copy it again from its source"
                        )
                    data = stream.read(PIECE)


def _plain(file: Path, start: int, count: int) -> np.ndarray:
    with open(file, "rb", buffering=0) as stream:
        size = stream.seek(0, 2)
        _require(size - start, count)
        if size - start > count:
            raise FormatError(
                f"expected {count} bytes of voxels as the header claims, found {size - start}: the header's size is wrong, or something was added to the file"
            )
        stream.seek(start)
        return np.fromfile(stream, np.uint8, count)


def _require(found: int, count: int) -> None:
    if found < count:
        raise FormatError(
            f"expected {count} bytes of voxels, found {max(found, 0)}: it is truncated or its header is wrong; copy it again from its source"
        )
