"""NIfTI-1 and -2 -> Image: one file, plain or gzip, or the pair of .hdr and .img."""

from __future__ import annotations

import json
import math
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..image import MODALITIES, Image
from .source import FormatError, Source, check_size, require_finite, rescale
from .voxels import DEFLATE_EXPANSION, GZIP, PIECE, inflate, stored_bytes

SIZES = {348: 1, 540: 2}  # sizeof_hdr -> version
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
# Header and extensions that are looked at, in bytes; FreeSurfer and CIFTI-2 leave long ones.
MOST_HEADER = 2**20
COMMENT = 6  # code of an extension that holds text
DISPLACEMENT = 1006  # intent of a vector in mm


class Opened(NamedTuple):
    """What the header of one file says.

    Attributes:
        header: nibabel's Nifti1Header or Nifti2Header.
        mark: what `write.write_nifti` left in a comment extension: modality, units, spacing_known.
        paired: the voxels lie in another file.
        compressed: this file is gzip.
    """

    header: Any
    mark: dict[str, Any]
    paired: bool
    compressed: bool


def version(head: bytes) -> int | None:
    """1 or 2 from sizeof_hdr in either byte order, None for other files."""
    return SIZES.get(int.from_bytes(head[:4], "little")) or SIZES.get(int.from_bytes(head[:4], "big"))


def header(file: Path) -> dict[str, Any]:
    """Channels, dimensions, shape, modality and affine; `beside` lists the names that the voxels' file may have.

    Raises:
        FormatError: a broken header, or a file that this version does not read.
    """
    opened = _open(file)
    shape, channels, dimensions = _shape(opened.header)
    affine, _ = _affine(opened.header)
    claimed = _claimed_bytes(opened.header)
    check_size(shape, claimed / math.prod(shape), 2**62)
    if not opened.paired:
        check_room(claimed, file, opened.compressed)
    modality = opened.mark.get("modality", "OT")
    return {
        "format": "nifti",
        "modality": modality if modality in MODALITIES else "OT",
        "channels": channels,
        "dimensions": dimensions,
        "shape": list(shape),
        "affine": affine.ravel().tolist(),
        "beside": _image_names(file.name) if opened.paired else [],
        "least": math.ceil(claimed / DEFLATE_EXPANSION),
    }


def read(source: Source) -> Image:
    """Voxels as stored times slope plus intercept; the affine as the header has it, in RAS+."""
    file = source.files[0]
    opened = _open(file)
    shape, channels, _ = _shape(opened.header)
    holder = source.files[-1] if opened.paired else file
    compressed = _compressed(holder)
    dtype = opened.header.get_data_dtype()
    claimed = _claimed_bytes(opened.header)
    check_room(claimed, holder, compressed)
    offset = int(opened.header.get_data_offset())
    stored = stored_bytes(holder, 0, offset, claimed, compressed).view(dtype)
    if dtype.names:
        stored = np.stack([stored[name] for name in dtype.names])
    # NIfTI counts columns first; of a vector image, its fifth axis is the last.
    array = stored.reshape(channels, *reversed(shape)).transpose(0, 3, 2, 1)
    slope, intercept = opened.header.get_slope_inter()
    array = rescale(array, 1.0 if slope is None else slope, 0.0 if intercept is None else intercept)
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    require_finite(array)
    affine, notes = _affine(opened.header)
    units = opened.mark.get("units") or ("HU" if source.modality == "CT" else "a.u.")
    known = bool(opened.mark.get("spacing_known", True))
    return Image(array, affine, source.modality, units, known, source.notes + tuple(notes))


def check_room(claimed: int, file: Path, compressed: bool) -> None:
    """Refuse a header that claims more voxels than the file can hold.

    Raises:
        FormatError: it does.
    """
    available = file.stat().st_size
    if claimed > available * (DEFLATE_EXPANSION if compressed else 1.0):
        raise FormatError(
            f"expected {claimed} bytes of voxels, found room for {available} in the file: it is truncated or its header is wrong; copy it again from its source"
        )


def _compressed(file: Path) -> bool:
    with open(file, "rb", buffering=0) as stream:
        return stream.read(2) == GZIP


def _open(file: Path) -> Opened:
    """The header and extensions, however the file is called.

    Raises:
        FormatError: Analyze 7.5, or no NIfTI.
    """
    import nibabel

    compressed = _compressed(file)
    if compressed:
        head = b"".join(islice(inflate(file), -(-MOST_HEADER // PIECE)))
    else:
        with open(file, "rb") as stream:
            head = stream.read(MOST_HEADER)
    number = version(head)
    magic = head[344:347] if number == 1 else head[4:7]
    if magic not in (b"n+1", b"n+2", b"ni1", b"ni2"):
        raise FormatError(
            f"expected the NIfTI magic 'n+1' or 'ni1' (version 2: 'n+2' or 'ni2'), found {magic!r}: an Analyze 7.5 file, whose orientation is unknown, or a broken header; convert it to NIfTI"
        )
    kinds = {
        b"n+1": nibabel.Nifti1Header,
        b"ni1": nibabel.nifti1.Nifti1PairHeader,
        b"n+2": nibabel.Nifti2Header,
        b"ni2": nibabel.nifti2.Nifti2PairHeader,
    }
    size = 348 if number == 1 else 540
    said = kinds[magic](head[:size])
    _check_scaling(said)
    paired = magic in (b"ni1", b"ni2")
    end = len(head) if paired else min(int(said.get_data_offset()), len(head))
    return Opened(said, _own_mark(head[size:end], said.endianness), paired, compressed)


def _check_scaling(header: Any) -> None:
    """Refuse an intercept that is no number where there is a slope; without one, both are ignored (NIfTI-1, "Data scaling").

    Raises:
        FormatError: naming the field.
    """
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if math.isfinite(slope) and slope != 0 and not math.isfinite(intercept):
        raise FormatError(
            f"expected a finite intercept (scl_inter) with the slope (scl_slope) {slope:g}, found {intercept}: the header is broken; set scl_inter to 0, or write the file again"
        )


def _own_mark(extensions: bytes, endianness: str) -> dict[str, Any]:
    """What our own writer left in a comment extension; NIfTI-1, "Header extensions"."""
    order = "little" if endianness == "<" else "big"
    at = 4
    while extensions[:1] != b"\0" and at + 8 <= len(extensions):
        size = int.from_bytes(extensions[at : at + 4], order)  # type: ignore[arg-type]
        code = int.from_bytes(extensions[at + 4 : at + 8], order)  # type: ignore[arg-type]
        if size < 8:
            break
        if code == COMMENT:
            try:
                mark = json.loads(extensions[at + 8 : at + size].rstrip(b"\0"))
            except (ValueError, RecursionError):
                mark = None
            if isinstance(mark, dict) and mark.get("SyntheticData") == "YES":
                return mark
        at += size
    return {}


def _shape(header: Any) -> tuple[tuple[int, int, int], int, int]:
    """(I, J, K), channels and how many spatial axes the header declares.

    Raises:
        FormatError: a time series, a vector field, or voxels that are not real numbers.
    """
    shape = tuple(int(size) for size in header.get_data_shape())
    dtype = header.get_data_dtype()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if dtype.kind not in "iuf" and dtype.names != ("R", "G", "B"):
        raise FormatError(
            f"expected real voxels, found NIfTI datatype {int(header['datatype'])} ({dtype}): convert it to int16 or float32"
        )
    channels = 3 if dtype.names else 1
    if len(shape) == 5 and shape[3:] == (1, 3) and channels == 1:
        intent = int(header["intent_code"])
        if dtype.kind != "u" or intent == DISPLACEMENT:
            raise FormatError(
                f"expected a scalar or RGB volume, found 3 components of {dtype.name} at each voxel with NIfTI intent {intent} (a vector or displacement field): save one component, or its length"
            )
        channels, shape = 3, shape[:3]
    if not 2 <= len(shape) <= 3:
        raise FormatError(
            f"expected a 2-D or 3-D volume, found a NIfTI file of shape {shape}: split the 4-D series into 3-D files"
        )
    i, j, k = (*shape, 1)[:3]
    if min(i, j, k) < 1:
        raise FormatError(f"expected at least one voxel along every axis, found shape {shape} in the header")
    return (i, j, k), channels, 2 if k == 1 else 3


def _claimed_bytes(header: Any) -> int:
    return math.prod(int(size) for size in header.get_data_shape()) * int(header.get_data_dtype().itemsize)


def _image_names(name: str) -> list[str]:
    """Where the voxels of a pair may lie: a.hdr has a.img, a.IMG or a.img.gz."""
    stem = name.removesuffix(".gz")
    stem = stem[:-4] if stem.lower().endswith(".hdr") else stem
    return [f"{stem}{suffix}" for suffix in (".img", ".IMG", ".img.gz")]


def _affine(header: Any) -> tuple[np.ndarray, list[str]]:
    """nibabel's affine (sform, else qform, else pixdim), in millimetres; notes where the header is doubtful."""
    affine, notes = np.array(header.get_best_affine(), np.float64), []
    if int(header["sform_code"]) == 0 and int(header["qform_code"]) == 0:
        notes.append("the header gives no orientation (sform_code and qform_code are 0)")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12:
        notes.append("the header's affine is singular: 1 mm voxels without orientation instead")
        affine = np.eye(4)
    unit = header.get_xyzt_units()[0]
    if unit in MILLIMETRES:
        affine[:3] *= MILLIMETRES[unit]
        notes.append(f"affine converted from {unit} to mm")
    return affine, notes
