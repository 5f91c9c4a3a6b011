"""NRRD and MetaImage -> Image: voxels behind a text header, or in one file beside it."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..image import Image
from .source import LPS_TO_RAS, FormatError, Source, check_size, require_finite
from .voxels import DEFLATE_EXPANSION, stored_bytes

# What `derived` leaves in NRRD, (modality, units) -> modality; a trust map is no CT.
OWN = {("CT", "HU"): "CT", ("MR", "a.u."): "MR"}
MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "CT": "CT", "MR": "MR"}
# The longest header that is read, in bytes.
MOST_HEADER = 2**20
# The longest value of a field that is looked at: sixteen axes take less.
MOST_VALUE = 4096
# NRRD type and MetaImage ElementType -> numpy; https://teem.sourceforge.net/nrrd/format.html and MetaIO's metaTypes.h.
NRRD_TYPES = {
    "i1": ("signed char", "int8", "int8_t"),
    "u1": ("uchar", "unsigned char", "uint8", "uint8_t"),
    "i2": ("short", "short int", "signed short", "signed short int", "int16", "int16_t"),
    "u2": ("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"),
    "i4": ("int", "signed int", "int32", "int32_t"),
    "u4": ("uint", "unsigned int", "uint32", "uint32_t"),
    "i8": ("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64", "int64_t"),
    "u8": ("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"),
    "f4": ("float",),
    "f8": ("double",),
}
META_TYPES = {
    "i1": ("MET_CHAR",),
    "u1": ("MET_UCHAR",),
    "i2": ("MET_SHORT",),
    "u2": ("MET_USHORT",),
    "i4": ("MET_INT", "MET_LONG"),
    "u4": ("MET_UINT", "MET_ULONG"),
    "i8": ("MET_LONG_LONG",),
    "u8": ("MET_ULONG_LONG",),
    "f4": ("MET_FLOAT",),
    "f8": ("MET_DOUBLE",),
}
DTYPES = {name: code for table in (NRRD_TYPES, META_TYPES) for code, names in table.items() for name in names}
# NRRD space -> signs that bring its axes to LPS; the other spaces name no anatomy and are taken as LPS, as ITK does.
SPACES = {
    "right-anterior-superior": (-1.0, -1.0, 1.0),
    "ras": (-1.0, -1.0, 1.0),
    "left-anterior-superior": (1.0, -1.0, 1.0),
    "las": (1.0, -1.0, 1.0),
}
SPATIAL_KINDS = {"domain", "space", "???", "none", ""}
COLOUR_KINDS = {"rgb-color", "3-color"}
ENCODINGS = {"raw": "raw", "gzip": "gzip", "gz": "gzip", "text": "text", "txt": "text", "ascii": "text"}


class Layout(NamedTuple):
    """What a text header says.

    Attributes:
        sizes: of all axes, the fastest first; with `colour`, the number of the axis that holds the channels, or None.
        dtype: of the voxels, in the file's byte order.
        encoding: "raw", "gzip" (zlib too) or "text".
        skip: bytes before the voxels, after decompression; -1 when they end with their file.
        lines: lines before them.
        beside: name of the file that holds them, or None for this one.
        end: where the header ends in this file.
        affine: (4, 4), index -> mm in RAS+.
        modality: one of `image.MODALITIES`.
        notes: what is doubtful.
    """

    sizes: tuple[int, ...]
    colour: int | None
    dtype: np.dtype
    encoding: str
    skip: int
    lines: int
    beside: str | None
    end: int
    affine: np.ndarray
    modality: str
    notes: tuple[str, ...]


def format_of(head: bytes) -> str | None:
    """ "nrrd", "metaimage" or None."""
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head) and b"NDims" in head:
        return "metaimage"
    return None


def header(file: Path) -> dict[str, Any]:
    """Channels, dimensions, shape, modality and affine; `beside` lists the name of the voxels' file.

    Raises:
        FormatError: a broken header, or a file that this version does not read.
    """
    layout, name = _layout(file)
    shape, channels = _shape(layout)
    claimed = math.prod(layout.sizes) * layout.dtype.itemsize
    check_size(shape, channels * layout.dtype.itemsize, 2**62)
    if layout.beside is None:
        check_room(layout, claimed, file)
    return {
        "format": name,
        "modality": layout.modality,
        "channels": channels,
        "dimensions": 2 if shape[2] == 1 else 3,
        "shape": list(shape),
        "affine": layout.affine.ravel().tolist(),
        "beside": [] if layout.beside is None else [layout.beside],
        "least": math.ceil(claimed / _expansion(layout)),
    }


def read(source: Source) -> Image:
    """Voxels as stored; the affine as the header has it, in RAS+."""
    file = source.files[0]
    layout, _ = _layout(file)
    shape, channels = _shape(layout)
    holder = file if layout.beside is None else source.files[-1]
    claimed = math.prod(layout.sizes) * layout.dtype.itemsize
    check_room(layout, claimed, holder)
    stored = _voxels(layout, holder, claimed).reshape(layout.sizes[::-1])
    colour = stored.ndim if layout.colour is None else stored.ndim - 1 - layout.colour
    stored = stored[..., None] if layout.colour is None else stored
    array = np.moveaxis(stored, colour, 0).reshape(channels, *reversed(shape)).transpose(0, 3, 2, 1)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    require_finite(array)
    units = "HU" if source.modality == "CT" else "a.u."
    return Image(array, layout.affine, source.modality, units, True, source.notes + layout.notes)


def check_room(layout: Layout, claimed: int, holder: Path) -> None:
    """Refuse a header that claims more voxels than the file can hold.

    Raises:
        FormatError: it does.
    """
    available = holder.stat().st_size - (layout.end if layout.beside is None else 0)
    if claimed > (available + 1) * _expansion(layout):
        raise FormatError(
            f"expected {claimed} bytes of voxels, found room for {available} in the file: it is truncated or its header is wrong; copy it again from its source"
        )


def _expansion(layout: Layout) -> float:
    """The most bytes of voxels that one byte of the file can become; as text, a digit and a space make one voxel."""
    return {"raw": 1.0, "gzip": DEFLATE_EXPANSION, "text": layout.dtype.itemsize / 2}[layout.encoding]


def _voxels(layout: Layout, holder: Path, claimed: int) -> np.ndarray:
    """All voxels in the file's order, flat."""
    start = layout.end if layout.beside is None else 0
    if layout.lines:
        start = _behind_lines(holder, start, layout.lines)
    if layout.encoding == "text":
        with open(holder, "rb") as stream:
            stream.seek(start)
            text = stream.read(64 * (1 + math.prod(layout.sizes)))
        values = np.array(text.split(), layout.dtype.newbyteorder("="))
        if values.size != math.prod(layout.sizes):
            raise FormatError(f"expected {math.prod(layout.sizes)} numbers as the header claims, found {values.size}")
        return values
    if layout.skip < 0:
        start = holder.stat().st_size - claimed
    return stored_bytes(holder, start, max(layout.skip, 0), claimed, layout.encoding == "gzip").view(layout.dtype)


def _behind_lines(holder: Path, start: int, lines: int) -> int:
    with open(holder, "rb") as stream:
        stream.seek(start)
        for _ in range(lines):
            if not stream.readline():
                raise FormatError("expected more lines than the file has before its voxels (line skip): copy it again")
        return stream.tell()


def _shape(layout: Layout) -> tuple[tuple[int, int, int], int]:
    """(I, J, K) and channels.

    Raises:
        FormatError: more than three axes, or a vector field.
    """
    sizes = [size for axis, size in enumerate(layout.sizes) if axis != layout.colour]
    channels = 1 if layout.colour is None else layout.sizes[layout.colour]
    if channels not in (1, 3) or (channels == 3 and layout.dtype.kind == "f"):
        raise FormatError(
            f"expected grey or integer RGB voxels, found {channels} components of {layout.dtype.name}: convert it to a scalar volume"
        )
    while len(sizes) > 3 and sizes[-1] == 1:
        sizes = sizes[:-1]
    if not 2 <= len(sizes) <= 3:
        raise FormatError(f"expected a 2-D or 3-D volume, found shape {tuple(sizes)}: split it into 3-D files")
    i, j, k = (*sizes, 1)[:3]
    return (i, j, k), channels


def _layout(file: Path) -> tuple[Layout, str]:
    """What the header says, and the format's name.

    Raises:
        FormatError: a broken header, or one of a kind that this version does not read.
    """
    with open(file, "rb") as stream:
        head = stream.read(MOST_HEADER)
    if head.startswith(b"NRRD"):
        return _nrrd(*_fields(head)), "nrrd"
    return _metaimage(*_fields(head)), "metaimage"


def _fields(head: bytes) -> tuple[dict[str, str], int]:
    """Keys in lower case -> values, and where the header ends: at an empty line (NRRD), or behind ElementDataFile.

    A header without an end is that of a detached NRRD. Of NRRD's keys of somebody's own, "key:=value", the key ends with "=".
    """
    nrrd = head.startswith(b"NRRD")
    fields: dict[str, str] = {}
    at = 0
    while at < len(head):
        stop = head.find(b"\n", at)
        stop = len(head) if stop < 0 else stop
        line = head[at:stop].decode("latin-1").strip()
        at = stop + 1
        if not line and nrrd:
            break
        key, found, value = line.partition(":" if nrrd else "=")
        own = nrrd and value.startswith("=")
        if found and not key.startswith("#"):
            fields[key.strip().lower() + "=" * own] = value[own:].strip()[:MOST_VALUE]
        if not nrrd and key.strip().lower() == "elementdatafile":
            break
    return fields, min(at, len(head))


def _nrrd(fields: dict[str, str], end: int) -> Layout:
    sizes = _whole(fields, "sizes")
    count = len(sizes)
    directions = re.findall(r"none|\([^)]*\)", fields.get("space directions", "")) or [""] * count
    kinds = fields.get("kinds", "").lower().split() or [""] * count
    if len(kinds) != count or len(directions) != count or _whole(fields, "dimension") != [count]:
        raise FormatError(
            f"expected as many sizes, kinds and space directions as the dimension {fields.get('dimension')!r}, found {count}, {len(kinds)} and {len(directions)} in the NRRD header"
        )
    colour = [axis for axis in range(count) if directions[axis] == "none" or kinds[axis] not in SPATIAL_KINDS]
    # An axis of length 1 holds no more than its voxels do.
    others = [axis for axis in colour if sizes[axis] != 1 and kinds[axis] not in COLOUR_KINDS]
    if len(colour) > 1 or others:
        what = " ".join(f"{kinds[axis] or 'unknown'} of {sizes[axis]}" for axis in others or colour)
        raise FormatError(
            f"expected a scalar or RGB volume, found an NRRD axis that is neither space nor RGB-color ({what}): save one scalar volume each, or set the kind RGB-color where it holds colours"
        )
    encoding = ENCODINGS.get(fields.get("encoding", "").lower())
    if encoding is None:
        raise FormatError(
            f"expected the NRRD encoding raw, gzip or text, found {fields.get('encoding')!r}: save it with gzip"
        )
    affine, notes = _nrrd_affine(fields, [axis for axis in range(count) if axis not in colour], directions)
    return Layout(
        tuple(sizes),
        colour[0] if colour else None,
        _dtype(fields.get("type", "").lower(), fields.get("endian", "little").lower() == "big"),
        encoding,
        (_whole(fields, "byte skip", "0") or [0])[0],
        (_whole(fields, "line skip", "0") or [0])[0],
        _beside(fields.get("data file") or fields.get("datafile") or "LOCAL"),
        end,
        affine,
        OWN.get((fields.get("modality=", ""), fields.get("units=", "")), "OT"),
        notes,
    )


def _nrrd_affine(fields: dict[str, str], axes: list[int], directions: list[str]) -> tuple[np.ndarray, tuple[str, ...]]:
    """Space directions and origin, else spacings, in RAS+."""
    affine = np.eye(4)
    if directions[axes[0]] if axes else "":
        for column, axis in enumerate(axes[:3]):
            vector = _numbers(directions[axis])
            affine[: len(vector), column] = vector
        if len(axes) == 2:
            affine[:3, 2] = np.cross(affine[:3, 0], affine[:3, 1])
            affine[:3, 2] /= np.linalg.norm(affine[:3, 2]) or 1.0
        origin = _numbers(fields.get("space origin", ""))
        affine[: len(origin), 3] = origin
        signs = SPACES.get(fields.get("space", "").lower().removesuffix("-time"), (1.0, 1.0, 1.0))
        affine[:3] *= np.array(signs)[:, None]
        return _checked(LPS_TO_RAS @ affine, ())
    spacings = _numbers(fields.get("spacings", "").replace("nan", "1").replace("NaN", "1"))
    for column, axis in enumerate(axes[:3]):
        affine[column, column] = spacings[axis] if axis < len(spacings) else 1.0
    return _checked(LPS_TO_RAS @ affine, ("the header gives no orientation (space directions)",))


def _metaimage(fields: dict[str, str], end: int) -> Layout:
    sizes = _whole(fields, "dimsize")
    if _whole(fields, "ndims") != [len(sizes)]:
        raise FormatError(f"expected {fields.get('ndims')} sizes as NDims says, found DimSize {sizes}")
    channels = (_whole(fields, "elementnumberofchannels", "1") or [1])[0]
    count = len(sizes)
    n = min(count, 3)
    spacing = _numbers(fields.get("elementspacing", ""))
    notes: tuple[str, ...] = ()
    if not spacing and (spacing := _numbers(fields.get("elementsize", ""))):
        notes = ("ElementSpacing is absent: ElementSize is taken as the spacing",)
    spacing = spacing or [1.0] * count
    matrix = next((fields[key] for key in ("transformmatrix", "rotation", "orientation") if key in fields), "")
    origin = next((fields[key] for key in ("offset", "position", "origin") if key in fields), "")
    turns, place = _numbers(matrix) or np.eye(count).ravel().tolist(), _numbers(origin) or [0.0] * count
    if len(spacing) != count or len(turns) != count * count or len(place) != count:
        raise FormatError(f"expected spacing, matrix and offset of {count} axes in the MetaImage header, found others")
    affine = np.eye(4)
    affine[:n, :n] = np.array(turns).reshape(count, count)[:n, :n].T * np.array(spacing[:n])
    affine[:n, 3] = place[:n]
    affine, notes = _checked(LPS_TO_RAS @ affine, notes)
    text = fields.get("binarydata", "true").lower() == "false"
    packed = fields.get("compresseddata", "false").lower() == "true"
    big = any(fields.get(key, "").lower() == "true" for key in ("binarydatabyteordermsb", "elementbyteordermsb"))
    return Layout(
        (channels, *sizes) if channels > 1 else tuple(sizes),
        0 if channels > 1 else None,
        _dtype(fields.get("elementtype", ""), big),
        "text" if text else "gzip" if packed else "raw",
        (_whole(fields, "headersize", "0") or [0])[0],
        0,
        _beside(fields.get("elementdatafile", "LOCAL")),
        end,
        affine,
        MODALITIES.get(fields.get("modality", ""), "OT"),
        notes,
    )


def _checked(affine: np.ndarray, notes: tuple[str, ...]) -> tuple[np.ndarray, tuple[str, ...]]:
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        return np.eye(4), (*notes, "the header's affine is singular: 1 mm voxels without orientation instead")
    return affine, notes


def _whole(fields: dict[str, str], key: str, default: str = "") -> list[int]:
    """The whole numbers of a field.

    Raises:
        FormatError: it is absent or holds something else.
    """
    words = fields.get(key, default).split()
    if not words or len(words) > 16 or not all(re.fullmatch(r"-?\d{1,18}", word) for word in words):
        raise FormatError(f"expected whole numbers in the header's field {key!r}, found {fields.get(key)!r:.100}")
    return [int(word) for word in words]


def _numbers(text: str) -> list[float]:
    words = re.sub(r"[(),]", " ", text).split()[:16]
    try:
        return [float(word) for word in words]
    except ValueError as error:
        raise FormatError(f"expected numbers in the header, found {text!r:.100}") from error


def _dtype(name: str, big: bool) -> np.dtype:
    code = DTYPES.get(" ".join(name.split()))
    if code is None:
        raise FormatError(f"expected voxels of a plain number type, found {name!r:.100} in the header: convert it")
    return np.dtype((">" if big else "<") + code)


def _beside(name: str) -> str | None:
    """The name of the file that holds the voxels, or None for this one.

    Raises:
        FormatError: several files, or another folder.
    """
    if name.upper() == "LOCAL":
        return None
    if (
        name.upper().startswith("LIST")
        or "%" in name
        or "/" in name
        or "\\" in name
        or name in ("", ".", "..")
        or len(name.encode()) > 255
        or "\0" in name
    ):
        raise FormatError(
            "expected voxels in this file or in one file beside it, found a list or another folder in its header: save it as one file"
        )
    return name
