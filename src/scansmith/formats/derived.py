"""A scan made from a scan -> files in the source's format and place: its translation, bounds and trust map."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np

from ..image import Image
from ..runtime import explain_os_error, write_atomic
from .nifti import COMMENT, SIZES, version
from .source import LPS_TO_RAS, Source
from .text_header import ENCODINGS, META_TYPES, MOST_HEADER, NRRD_TYPES, OWN
from .voxels import GZIP
from .write import Marking, nifti_voxels, with_suffix, write_png

# How far the image's affine may lie from the source's, in mm and mm a voxel: what rounding does.
SAME_PLACE = 1e-4
# Formats whose headers are made anew, so that what is made of a scan in colours may be grey, as a label map is.
GREY_FROM_COLOURS = ("dicom", "png", "jpeg", "tiff")
# Fields of text headers that say where the voxels lie; they are copied letter by letter.
PLACE_FIELDS = {
    "nrrd": (
        "dimension", "space", "space dimension", "sizes", "space directions", "space origin", "spacings", "kinds",
        "thicknesses", "axis mins", "axismins", "axis maxs", "axismaxs", "centers", "centerings", "space units", "units",
        "measurement frame",
    ),
    "metaimage": (
        "ndims", "dimsize", "transformmatrix", "rotation", "orientation", "offset", "position", "origin",
        "centerofrotation", "anatomicalorientation", "elementspacing", "elementsize", "distanceunits",
    ),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Derivation:
    """What a scan was made with; goes into every file in a machine-readable way.

    Attributes:
        software: name and version, "scansmith 0.1.0".
        model: the model's hash (hex).
        what: what the voxels are: "translated image", "lower bound", "upper bound", "trust map".
        words: how it was made and what it promises, in free words without patient data.
        number: added to the source's Series Number (0020,0011).
    """

    software: str
    model: str
    what: str
    words: str = ""
    number: int = 1000


def write_derived(source: Source, image: Image, out: Path, derivation: Derivation) -> list[Path]:
    """Write a scan in the format and the place of the scan that it was made from; equal inputs give equal bytes.

    It may have more or fewer voxels along axes of the source's grid over the same extent, as super-resolution makes them.

    HU are rounded to int16; other values keep their dtype, but in DICOM and PNG, which hold whole numbers with a scale.
    DICOM becomes a new series of the source's patient and study (`dicom_derived.write_dicom`), NIfTI keeps the header,
    NRRD and MetaImage keep the lines that say where the voxels lie, pictures become PNG.

    Args:
        source: the scan that it was made from, as `formats.discover` lists it.
        image: one channel on the voxel grid of `formats.read(source)`, or along some of its axes on a finer or coarser one
            (as `degradations.regridded_affine` gives), in physical units, of any modality. Where the source has no place
            in the patient, finer or coarser pixels of the same proportions are taken.
        out: path without suffix. A file with the suffix of the format, or for several slices in DICOM or PNG a folder
            with one file a slice, 0001 ..., in the order of K.
        derivation: what made it.

    Returns:
        The files written, in slice order.

    Raises:
        ValueError: another grid than the source's, colour, voxels that are no finite numbers, HU that int16 cannot
            hold, a folder that is not empty, or an image that the format cannot hold. Nothing is written then.
        OSError: full disk or unwritable folder, with the way out. Nothing is left then.
    """
    _check(source, image)
    return WRITERS[source.format](source, _whole_units(image), Path(out), derivation)


def write_parametric_map(source: Source, image: Image, out: Path, derivation: Derivation, meaning: str) -> list[Path]:
    """Write float values beside a DICOM series as one Parametric Map, `out`.dcm; see `parametric_map.write`.

    Args:
        source: the DICOM scan that it was made from.
        image: as for `write_derived`, in units "HU", "ratio" or "a.u.".
        out: path without suffix.
        derivation: what made it.
        meaning: what a value means, at most 64 characters.

    Returns:
        The one file.

    Raises:
        ValueError: as `write_derived`; also a source that is no DICOM or has no place in the patient, and other units.
        OSError: full disk or unwritable folder, with the way out.
    """
    _check(source, image)
    if source.format != "dicom" or source.affine is None or source.series is None:
        raise ValueError(
            f"expected a DICOM series with positions and a Series Instance UID for a Parametric Map, got {source.format}{' without' if source.format == 'dicom' else ''}: use write_derived"
        )
    from . import parametric_map  # highdicom is needed here alone

    return parametric_map.write(source, image, Path(out), derivation, meaning)


def write_segmentation(
    source: Source, image: Image, out: Path, derivation: Derivation, labels: Sequence[int]
) -> list[Path]:
    """Write a label map: of DICOM as one Segmentation, `out`.dcm, else, and of several slices without positions, as `write_derived` does.

    Args:
        source: the scan that it was made from.
        image: as for `write_derived`, whole numbers: 0 and `labels`.
        out: path without suffix.
        derivation: what made it.
        labels: values, rising.

    Returns:
        The files.

    Raises:
        ValueError: as `write_derived`; also other values.
        OSError: full disk or unwritable folder, with the way out.
    """
    placed = source.affine is not None or source.shape[2] == 1
    if source.format != "dicom" or source.series is None or not placed:
        return write_derived(source, image, out, derivation)
    _check(source, image)
    from . import segmentation  # highdicom is needed here alone

    return segmentation.write(source, image, Path(out), derivation, labels)


def write_folder(folder: Path, files: Iterable[tuple[str, bytes]]) -> list[Path]:
    """Write all files (name, content) of a new folder, or nothing.

    Raises:
        ValueError: the folder exists and is not empty.
        OSError: with the way out.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"expected a new folder, found something at {folder}: remove it, or write elsewhere")
    partial = folder.with_name(f".{folder.name}.partial")
    rmtree(partial, ignore_errors=True)
    try:
        names = []
        for name, content in files:
            write_atomic(partial / name, content)
            names.append(name)
        with suppress(FileNotFoundError):
            folder.rmdir()
        partial.rename(folder)
    except BaseException as error:
        rmtree(partial, ignore_errors=True)
        # write_atomic has explained its own.
        if isinstance(error, OSError) and error.filename is not None:
            raise explain_os_error(error, folder) from error
        raise
    return [folder / name for name in names]


# ------------------------------------------------------------------------------------------------ what is accepted


def _check(source: Source, image: Image) -> None:
    """Refuse an image that does not lie where the source lies, or holds what no format can.

    Raises:
        ValueError: it does not.
    """
    array = image.array
    if len(array) != 1 or (source.channels != 1 and source.format not in GREY_FROM_COLOURS):
        raise ValueError(
            f"expected a grey scan with one channel, got {len(array)} for a source of {source.channels}: colours cannot be written as a derived scan"
        )
    if array.shape[1:] == source.shape:
        if source.affine is not None:
            away = float(np.abs(image.affine - np.reshape(source.affine, (4, 4))).max())
            if not away < SAME_PLACE:
                raise ValueError(
                    f"expected the source's affine, got one that differs by {away:g} mm: bring the image to the grid of the source first"
                )
    elif not (_same_proportions if source.affine is None else _same_extent)(source, image):
        raise ValueError(
            f"expected the source's shape {source.shape}, or more or fewer voxels over the same extent, got {array.shape[1:]} elsewhere: bring the image to the grid of the source first"
        )
    if array.dtype.kind not in "biuf" or not np.isfinite([array.min(), array.max()]).all():
        raise ValueError(
            f"expected voxels that are finite real numbers, got {array.dtype} from {array.min()} to {array.max()}: the image is broken, make it again"
        )


def regridded(source: Source, image: Image) -> bool:
    """Whether the image has finer or coarser voxels than the source."""
    return image.array.shape[1:] != source.shape


def source_index(source: Source, image: Image) -> np.ndarray:
    """(4, 4): voxel index of the image -> that of a source with a place."""
    assert source.affine is not None
    return np.asarray(np.linalg.inv(np.reshape(source.affine, (4, 4))) @ image.affine)


def _same_proportions(source: Source, image: Image) -> bool:
    """Whether the image is the source scaled within its plane, to a pixel."""
    old, new = source.shape, image.array.shape[1:]
    return old[2] == new[2] and abs(new[0] * old[1] - new[1] * old[0]) <= max(old[:2])


def _same_extent(source: Source, image: Image) -> bool:
    """Whether both have the same axes and, within half the larger voxel, the same first and last border along each."""
    index = source_index(source, image)
    old, new = np.array(source.shape), np.array(image.array.shape[1:])
    step, first = np.diag(index)[:3], index[:3, 3]
    turned = index[:3, :3] - np.diag(step)
    begin, end = first - step / 2 + 0.5, first + (new - 0.5) * step - (old - 0.5)
    apart = np.maximum(np.abs(begin), np.abs(end))
    allowed = np.where(old == new, 1e-3, np.maximum(step, 1.0) / 2 + 1e-3)
    return bool((np.abs(turned) @ new < 1e-3).all() and (step > 0).all() and (apart < allowed).all())


def _whole_units(image: Image) -> Image:
    """HU as int16, anything else as it is.

    Raises:
        ValueError: HU outside int16.
    """
    if image.units != "HU":
        return image
    low, high, limits = float(image.array.min()), float(image.array.max()), np.iinfo(np.int16)
    if round(low) < limits.min or round(high) > limits.max:
        raise ValueError(f"expected HU that fit int16, got {low:g} to {high:g}: these are no Hounsfield units")
    return replace(image, array=np.rint(image.array).astype(np.int16))


# ------------------------------------------------------------------------------------------------ one per format


def write_dicom(source: Source, image: Image, out: Path, derivation: Derivation) -> list[Path]:
    """A new series; see `dicom_derived.write_dicom`."""
    from . import dicom_derived  # pydicom is needed here alone

    return dicom_derived.write_dicom(source, image, out, derivation)


def write_nifti(source: Source, image: Image, out: Path, derivation: Derivation) -> list[Path]:
    """One .nii or .nii.gz with the source's header: its sform, qform, codes, pixdim and units to the bit.

    On another grid both forms and pixdim are moved alike. Data type, scaling, display range, intent, `descrip` and `aux_file` are the image's own. Extensions are left out, as
    they describe the source; a comment extension holds the mark as JSON. A pair of .hdr and .img becomes one file.
    """
    import nibabel

    header, compressed = _nifti_header(source.files[0])
    if regridded(source, image):
        _move_nifti(header, image.array.shape[1:], source_index(source, image))
    voxels = nifti_voxels(image.array)
    header.set_data_dtype(voxels.dtype)
    header.set_intent("none")
    header["cal_min"], header["cal_max"] = 0, 0
    header["aux_file"] = b""
    words = f"SYNTHETIC {derivation.what}, {derivation.software} {derivation.model[:8]}"
    header["descrip"] = words.encode("ascii", "replace")[:79]
    kind = {348: nibabel.Nifti1Image, 540: nibabel.Nifti2Image}[int(header["sizeof_hdr"])]
    # Without an affine nibabel leaves the header's as they are.
    nifti = kind(voxels.reshape(header.get_data_shape()), None, header, dtype=voxels.dtype)
    mark = json.dumps(_mark(image, derivation)).encode()
    nifti.header.extensions.append(nibabel.nifti1.Nifti1Extension(COMMENT, mark))
    content = nifti.to_bytes()
    path = with_suffix(out, ".nii.gz" if compressed else ".nii")
    write_atomic(path, gzip.compress(content, compresslevel=5, mtime=0) if compressed else content)
    return [path]


def write_text_header(source: Source, image: Image, out: Path, derivation: Derivation) -> list[Path]:
    """One .nrrd or .mha: the lines of the source that say where its voxels lie, the image's type, and the voxels behind.

    On another grid these lines are new, in mm and LPS+. Compressed as the source is. Voxels in a file of their own come into
    the same file. ITK's writers, which give the directions of NRRD as unit vectors times lengths, would change the last digits.
    """
    with open(source.files[0], "rb") as stream:
        fields, place = _place_lines(stream.read(MOST_HEADER), source.format)
    if regridded(source, image):
        place = PLACES[source.format](image)
    voxels = nifti_voxels(image.array)
    content = voxels.astype(voxels.dtype.newbyteorder("<"), copy=False).tobytes("F")
    nrrd = source.format == "nrrd"
    make = _nrrd if nrrd else _metaimage
    path = with_suffix(out, ".nrrd" if nrrd else ".mha")
    write_atomic(path, make(fields, place, voxels.dtype.str[1:], content, _mark(image, derivation)))
    return [path]


def write_pictures(source: Source, image: Image, out: Path, derivation: Derivation) -> list[Path]:
    """One PNG, 16-bit but for bytes, with slope, offset, units and marking in text chunks; a stack of pages is refused."""
    marking = Marking(derivation.software, derivation.model, 0, 0, f"{derivation.what}: {derivation.words}")
    window = float(image.array.min()), float(image.array.max())
    return write_png(replace(image, window=window if window[0] < window[1] else None), out, marking)


WRITERS: dict[str, Callable[[Source, Image, Path, Derivation], list[Path]]] = {
    "dicom": write_dicom,
    "nifti": write_nifti,
    "nrrd": write_text_header,
    "metaimage": write_text_header,
    "png": write_pictures,
    "jpeg": write_pictures,
    "tiff": write_pictures,
}


# ------------------------------------------------------------------------------------------------ headers


def _mark(image: Image, derivation: Derivation) -> dict[str, Any]:
    """What a file says of itself where its format has no words for it; `nifti.read` takes modality and units from it."""
    return {
        "SyntheticData": "YES",
        **asdict(derivation),
        "modality": image.modality,
        "units": image.units,
        "spacing_known": image.spacing_known,
    }


def _nifti_header(file: Path) -> tuple[Any, bool]:
    """nibabel's header of a single file, its numbers as in `file`, and whether that is compressed."""
    import nibabel

    with open(file, "rb") as stream:
        compressed = stream.read(2) == GZIP
    with gzip.open(file) if compressed else open(file, "rb") as stream:
        head = stream.read(max(SIZES))
    kind, size = {1: (nibabel.Nifti1Header, 348), 2: (nibabel.Nifti2Header, 540)}[version(head) or 1]
    header = kind(head[:size], check=False)  # the magic of a pair would be refused
    header["magic"] = kind().structarr["magic"]
    header["vox_offset"] = 0  # nibabel finds the place behind the extensions
    return header, compressed


def _move_nifti(header: Any, shape: tuple[int, ...], index: np.ndarray) -> None:
    """Give a header another grid: voxel (i, j, k) lies where `index` of it lay, in both of its forms, in its own units."""
    old = header.get_data_shape()
    for letter, row in zip("xyz", header.get_sform() @ index):
        header[f"srow_{letter}"] = row
    with suppress(ValueError):  # a quaternion that is none is left as it is: the sform counts then
        for letter, row in zip("xyz", header.get_qform() @ index):
            header[f"qoffset_{letter}"] = row[3]
    header["pixdim"][1:4] *= np.diag(index)[:3]
    header.set_data_shape((*shape, *old[3:]) if len(old) > 2 or shape[2] > 1 else shape[:2])
    for field in ("slice_start", "slice_end", "slice_code", "slice_duration"):  # when each slice was measured
        header[field] = 0


def _words(values: np.ndarray) -> str:
    return " ".join(f"{value:.17g}" for value in values)


def _nrrd_place(image: Image) -> list[bytes]:
    """Lines of NRRD that say where the image's voxels lie."""
    lps = LPS_TO_RAS @ image.affine
    *axes, origin = (f"({_words(column).replace(' ', ',')})" for column in lps[:3].T)
    lines = [
        "dimension: 3",
        "space: left-posterior-superior",
        f"sizes: {_words(np.array(image.array.shape[1:]))}",
        f"space directions: {' '.join(axes)}",
        "kinds: domain domain domain",
        f"space origin: {origin}",
    ]
    return [line.encode() for line in lines]


def _metaimage_place(image: Image) -> list[bytes]:
    """Lines of MetaImage that say where the image's voxels lie."""
    lps = LPS_TO_RAS @ image.affine
    lines = [
        "NDims = 3",
        f"DimSize = {_words(np.array(image.array.shape[1:]))}",
        f"TransformMatrix = {_words((lps[:3, :3] / image.spacing).T.ravel())}",
        f"Offset = {_words(lps[:3, 3])}",
        "CenterOfRotation = 0 0 0",
        f"ElementSpacing = {_words(np.array(image.spacing))}",
    ]
    return [line.encode() for line in lines]


PLACES = {"nrrd": _nrrd_place, "metaimage": _metaimage_place}


def _place_lines(head: bytes, format: str) -> tuple[dict[str, bytes], list[bytes]]:
    """All fields of a text header, their keys in lower case, and its lines of `PLACE_FIELDS` letter by letter."""
    nrrd = format == "nrrd"
    fields: dict[str, bytes] = {}
    place: list[bytes] = []
    for line in io.BytesIO(head):
        line = line.strip()
        key, found, value = line.partition(b":" if nrrd else b"=")
        name = key.strip().lower().decode("latin-1")
        if (nrrd and not line) or name == "elementdatafile":
            break
        if not found or (nrrd and value.startswith(b"=")):  # a comment, or a key of somebody's own
            continue
        fields[name] = value.strip().lower()
        if name in PLACE_FIELDS[format]:
            place.append(line)
    return fields, place


def _nrrd(fields: dict[str, bytes], place: list[bytes], code: str, voxels: bytes, mark: dict[str, Any]) -> bytes:
    """NRRD; https://teem.sourceforge.net/nrrd/format.html."""
    packed = ENCODINGS.get(fields.get("encoding", b"").decode("latin-1")) == "gzip"
    own = [
        b"NRRD0005",
        f"type: {NRRD_TYPES[code][0]}".encode(),
        *place,
        b"endian: little",
        b"encoding: gzip" if packed else b"encoding: raw",
        *(f"{key}:={_line(value)}".encode() for key, value in mark.items()),
    ]
    return b"\n".join(own) + b"\n\n" + (gzip.compress(voxels, compresslevel=5, mtime=0) if packed else voxels)


def _metaimage(fields: dict[str, bytes], place: list[bytes], code: str, voxels: bytes, mark: dict[str, Any]) -> bytes:
    """MetaImage; https://docs.itk.org/en/latest/learn/metaio.html."""
    packed = fields.get("compresseddata") == b"true"
    data = zlib.compress(voxels, 5) if packed else voxels
    modality = f"MET_MOD_{OWN.get((mark['modality'], mark['units']), 'OTHER')}"
    own = [
        b"ObjectType = Image",
        f"Comment = {_line(json.dumps(mark))}".encode(),
        b"BinaryData = True",
        b"BinaryDataByteOrderMSB = False",
        f"CompressedData = {packed}".encode(),
        *([f"CompressedDataSize = {len(data)}".encode()] if packed else []),
        *place,
        f"Modality = {modality}".encode(),
        f"ElementType = {META_TYPES[code][0]}".encode(),
        b"ElementDataFile = LOCAL",
    ]
    return b"\n".join(own) + b"\n" + data


def _line(value: Any) -> str:
    """A value on one line of ASCII."""
    return " ".join(str(value).encode("ascii", "replace").decode().split())
