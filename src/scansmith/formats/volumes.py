"""NIfTI, NRRD and MetaImage -> Image: one 3-D volume or 2-D picture per file."""

from __future__ import annotations

import gzip
import json
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ..image import MODALITIES, Image
from .source import (
    LPS_TO_RAS,
    FormatError,
    Skipped,
    Source,
    check_size,
    explain,
    require_finite,
    rescale,
    silent_stderr,
)

DEFLATE_EXPANSION = 1032.0  # the most bytes that one byte of deflate can become
NIFTI_SIZES = {348: 1, 540: 2}  # sizeof_hdr -> version
MILLIMETRES = {"meter": 1000.0, "micron": 0.001}
ITK_READERS = {"nrrd": "NrrdImageIO", "metaimage": "MetaImageIO"}
METAIMAGE_MODALITIES = {"MET_MOD_CT": "CT", "MET_MOD_MR": "MR", "CT": "CT", "MR": "MR"}


def sniff(head: bytes) -> bool:
    """True for NIfTI-1 and -2 (plain or gzip), NRRD and MetaImage."""
    return _format(head) is not None


def inspect(files: list[Path]) -> tuple[list[Source], list[Skipped]]:
    """One source per file, from its header alone."""
    sources: list[Source] = []
    skipped: list[Skipped] = []
    for file in files:
        try:
            with open(file, "rb") as stream:
                name = _format(stream.read(1024))
            sources.append(_inspect_nifti(file) if name == "nifti" else _inspect_itk(file, str(name)))
        except FormatError as error:
            skipped.append(Skipped(file, str(error)))
        except Exception as error:  # nibabel and ITK raise anything on broken headers
            skipped.append(
                Skipped(
                    file, f"expected a readable header, found {explain(error, (file,))}: copy it again from its source"
                )
            )
    return sources, skipped


def read(source: Source) -> Image:
    """Voxels as stored times slope plus intercept; the affine as the header has it, in RAS+."""
    array, affine, notes, said = _read_nifti(source) if source.format == "nifti" else _read_itk(source)
    array = array.astype(array.dtype.newbyteorder("="), copy=False)
    require_finite(array)
    units = said.get("units") or ("HU" if source.modality == "CT" else "a.u.")
    return Image(
        array, affine, source.modality, units, bool(said.get("spacing_known", True)), source.notes + tuple(notes)
    )


def _format(head: bytes) -> str | None:
    if head.startswith(b"NRRD000"):
        return "nrrd"
    if re.match(rb"\s*(ObjectType|NDims|Comment)\s*=", head) and b"NDims" in head:
        return "metaimage"
    if head.startswith(b"\x1f\x8b"):
        try:
            head = zlib.decompressobj(31).decompress(head, 352)
        except zlib.error:
            return None
    return "nifti" if _nifti_version(head) else None


def _nifti_version(head: bytes) -> int | None:
    """1 or 2 from sizeof_hdr in either byte order, None for other files."""
    return NIFTI_SIZES.get(int.from_bytes(head[:4], "little")) or NIFTI_SIZES.get(int.from_bytes(head[:4], "big"))


# ------------------------------------------------------------------------------------------------ NIfTI


def _open_nifti(file: Path) -> Any:
    """A nibabel image whose voxels are not read yet, whatever the file is called; close `file_map["image"].fileobj`."""
    import nibabel
    from nibabel.fileholders import FileHolder

    with open(file, "rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
    stream: Any = gzip.open(file, "rb") if compressed else open(file, "rb")  # noqa: SIM115
    try:
        head = stream.read(540)
        version = _nifti_version(head)
        magic = head[344:348] if version == 1 else head[4:8]
        if magic[:3] == b"ni1" or magic[:3] == b"ni2":
            raise FormatError(
                "expected one NIfTI file, found the header of a pair (magic 'ni1'; .hdr and .img): convert it to one .nii file"
            )
        if magic[:3] not in (b"n+1", b"n+2"):
            raise FormatError(
                f"expected the NIfTI magic 'n+1' or 'n+2', found {magic!r}: an Analyze 7.5 file, whose orientation is unknown, or a broken header; convert it to NIfTI"
            )
        stream.seek(0)
        kind = nibabel.Nifti2Image if version == 2 else nibabel.Nifti1Image
        holder = FileHolder(fileobj=stream)
        return kind.from_file_map({"header": holder, "image": holder})
    except BaseException:
        stream.close()
        raise


def _nifti_shape(header: Any) -> tuple[tuple[int, int, int], int, int]:
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
        channels, shape = 3, shape[:3]
    if not 2 <= len(shape) <= 3:
        raise FormatError(
            f"expected a 2-D or 3-D volume, found a NIfTI file of shape {shape}: split the 4-D series into 3-D files"
        )
    i, j, k = (*shape, 1)[:3]
    return (i, j, k), channels, 2 if k == 1 else 3


def _own_mark(header: Any) -> dict[str, Any]:
    """What `write.write_nifti` left in a comment extension: modality, units, spacing_known."""
    for extension in header.extensions:
        if extension.get_code() == 6:
            try:
                mark = json.loads(extension.get_content())
            except ValueError:
                continue
            if isinstance(mark, dict) and mark.get("SyntheticData") == "YES":
                return mark
    return {}


def _inspect_nifti(file: Path) -> Source:
    image = _open_nifti(file)
    try:
        shape, channels, dimensions = _nifti_shape(image.header)
        modality = _own_mark(image.header).get("modality", "OT")
        compressed = isinstance(image.file_map["image"].fileobj, gzip.GzipFile)
        itemsize = image.header.get_data_dtype().itemsize * (1 if image.header.get_data_dtype().names else channels)
    finally:
        image.file_map["image"].fileobj.close()
    check_size(shape, itemsize, file.stat().st_size, DEFLATE_EXPANSION if compressed else 1.0)
    return Source((file,), "nifti", modality if modality in MODALITIES else "OT", channels, dimensions, shape)


def _read_nifti(source: Source) -> tuple[np.ndarray, np.ndarray, list[str], dict[str, Any]]:
    image = _open_nifti(source.files[0])
    try:
        header = image.header
        shape, channels, _ = _nifti_shape(header)
        stored = np.asarray(image.dataobj.get_unscaled())
    finally:
        image.file_map["image"].fileobj.close()
    if stored.dtype.names:
        stored = np.stack([stored[name] for name in stored.dtype.names])
    elif channels == 3:
        stored = np.moveaxis(stored.reshape(*shape, 3), -1, 0)
    # nibabel clears the header's own scl_slope and scl_inter once the voxels have a proxy.
    array = rescale(stored.reshape(channels, *shape, order="A"), float(image.dataobj.slope), float(image.dataobj.inter))
    if array.dtype.itemsize > 8:
        array = array.astype(np.float64)
    affine, notes = _nifti_affine(image)
    return array, affine, notes, _own_mark(header)


def _nifti_affine(image: Any) -> tuple[np.ndarray, list[str]]:
    """nibabel's affine (sform, else qform, else pixdim), in millimetres; notes where the header is doubtful."""
    header = image.header
    affine, notes = np.array(image.affine, np.float64), []
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


# ------------------------------------------------------------------------------------------------ NRRD and MetaImage


def _header_text(file: Path) -> dict[str, str]:
    """The text header's fields, keys in lower case; it ends at an empty line (NRRD) or with ElementDataFile (MetaImage)."""
    fields: dict[str, str] = {}
    with open(file, "rb") as stream:
        for _ in range(10_000):
            line = stream.readline(65536)
            if not line.strip():
                break
            key, separator, value = line.decode("latin-1").partition("=" if b"=" in line and b": " not in line else ":")
            if separator:
                fields[key.strip().lower()] = value.lstrip("=").strip()
            if key.strip() == "ElementDataFile":
                break
    return fields


def _voxel_file(file: Path, fields: dict[str, str]) -> Path:
    """Where the voxels lie: the file itself, or the one that a detached header names beside it.

    Raises:
        FormatError: they lie in several files, elsewhere, or nowhere.
    """
    name = fields.get("elementdatafile") or fields.get("data file") or fields.get("datafile") or "LOCAL"
    if name.upper() == "LOCAL":
        return file
    if name.upper().startswith("LIST") or "%" in name or "/" in name or "\\" in name:
        raise FormatError(
            "expected voxels in this file or in one file beside it, found a list or another folder in its header: save it as one file"
        )
    if not file.with_name(name).is_file():
        raise FormatError("expected the voxel file that this header names beside it, found none: copy both files")
    return file.with_name(name)


def _itk_reader(file: Path, name: str) -> Any:
    """A SimpleITK reader that has read the header alone."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetImageIO(ITK_READERS[name])
    reader.SetFileName(str(file))
    with silent_stderr():
        reader.ReadImageInformation()
    return reader


def _itk_shape(reader: Any) -> tuple[tuple[int, int, int], int]:
    """(I, J, K) and channels.

    Raises:
        FormatError: more than three axes, complex voxels, or a vector field.
    """
    import SimpleITK as sitk

    size = tuple(int(value) for value in reader.GetSize())
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    words = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    channels = int(reader.GetNumberOfComponents())
    if "complex" in words or channels not in (1, 3) or (channels == 3 and "float" in words):
        raise FormatError(
            f"expected grey or integer RGB voxels, found {channels} components of {words}: convert it to a scalar volume"
        )
    if not 2 <= len(size) <= 3:
        raise FormatError(f"expected a 2-D or 3-D volume, found shape {size}: split it into 3-D files")
    i, j, k = (*size, 1)[:3]
    return (i, j, k), channels


def _inspect_itk(file: Path, name: str) -> Source:
    fields = _header_text(file)
    voxels = _voxel_file(file, fields)
    reader = _itk_reader(file, name)
    shape, channels = _itk_shape(reader)
    raw = fields.get("compresseddata", "false").lower() != "true" and fields.get("encoding", "raw") == "raw"
    check_size(shape, channels * _itk_itemsize(reader), voxels.stat().st_size, 1.0 if raw else DEFLATE_EXPANSION)
    modality = METAIMAGE_MODALITIES.get(fields.get("modality", ""), "OT")
    return Source(
        (file,) if voxels == file else (file, voxels), name, modality, channels, 2 if shape[2] == 1 else 3, shape
    )


def _itk_itemsize(reader: Any) -> int:
    """Bytes of one component."""
    import SimpleITK as sitk

    words = sitk.GetPixelIDValueAsString(reader.GetPixelID())
    return next((bits // 8 for bits in (64, 32, 16, 8) if f"{bits}-bit" in words), 1)


def _read_itk(source: Source) -> tuple[np.ndarray, np.ndarray, list[str], dict[str, Any]]:
    import SimpleITK as sitk

    _voxel_file(source.files[0], _header_text(source.files[0]))
    reader = _itk_reader(source.files[0], source.format)
    shape, channels = _itk_shape(reader)
    with silent_stderr():
        image = reader.Execute()
    stored = sitk.GetArrayFromImage(image)  # (K, J, I) or (K, J, I, C)
    array = stored.reshape(*reversed(shape), channels).transpose(3, 2, 1, 0)
    return array, _itk_affine(image), [], {}


def _itk_affine(image: Any) -> np.ndarray:
    """Index -> mm in RAS+ from ITK's direction, spacing and origin (LPS+); a 2-D picture lies in the axial plane."""
    count = image.GetDimension()
    n = min(count, 3)
    affine = np.eye(4)
    direction = np.array(image.GetDirection()).reshape(count, count)[:n, :n]
    affine[:n, :n] = direction * np.array(image.GetSpacing())[:n]
    affine[:n, 3] = image.GetOrigin()[:n]
    return LPS_TO_RAS @ affine
