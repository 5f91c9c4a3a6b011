"""DICOM files -> Image: single-frame CT, MR, CR and DX in physical units."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from ..image import PROJECTION, Image
from .dicom_pixels import (
    EXPLICIT_BIG,
    EXPLICIT_LITTLE,
    IMPLICIT_LITTLE,
    check_pixels,
    check_syntax,
    number,
    numbers,
    plane_values,
    stored_values,
)
from .series import Slice, affine, arrange, drop_identical
from .source import FormatError, Skipped, Source, explain, require_finite

# SOP Class UID (0008,0016) -> modality. DICOM PS3.4 B.5.
SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.1": "CR",
    "1.2.840.10008.5.1.4.1.1.1.1": "DX",  # for presentation
    "1.2.840.10008.5.1.4.1.1.1.1.1": "DX",  # for processing
    "1.2.840.10008.5.1.4.1.1.2": "CT",
    "1.2.840.10008.5.1.4.1.1.4": "MR",
}
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"
ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1",
    "1.2.840.10008.5.1.4.1.1.4.1",
    "1.2.840.10008.5.1.4.1.1.2.2",
    "1.2.840.10008.5.1.4.1.1.4.4",
}
DICOMDIR = "1.2.840.10008.1.3.10"
HEADER_TAGS = [
    "SpecificCharacterSet",
    "ImageType",
    "SOPClassUID",
    "SOPInstanceUID",
    "Modality",
    "PatientName",
    "PatientID",
    "SliceThickness",
    "EchoTime",
    "EchoNumbers",
    "InversionTime",
    "FlipAngle",
    "TriggerTime",
    "DiffusionBValue",
    "ImagerPixelSpacing",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "AcquisitionNumber",
    "InstanceNumber",
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "FrameOfReferenceUID",
    "TemporalPositionIdentifier",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "PixelSpacing",
    "BitsAllocated",
    "BitsStored",
    "RescaleType",
    "ConvolutionKernel",
    "NominalScannedPixelSpacing",
    "SyntheticData",
]
# What tells images at one position apart, the most telling first.
ACQUISITION_TAGS = (
    "ImageType",
    "EchoNumbers",
    "EchoTime",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "InversionTime",
    "FlipAngle",
    "ConvolutionKernel",
    "AcquisitionNumber",
    "TriggerTime",
)


def sniff(head: bytes) -> bool:
    """True for a DICOM file, also one without the 128-byte preamble (DICOM PS3.10, 7.1)."""
    if head[128:132] == b"DICM":
        return True
    # Without it, a file starts with an element of group 0002 or 0008, in either byte order, with or without a VR.
    orders: tuple[Literal["little", "big"], ...] = ("little", "big")
    for order in orders:
        group, element = int.from_bytes(head[:2], order), int.from_bytes(head[2:4], order)
        if group in (0x0002, 0x0008) and element <= 0x0100 and len(head) >= 12:
            explicit = head[4:6].isalpha() and head[4:6].isupper()
            return explicit or int.from_bytes(head[4:8], order) <= 1024
    return False


def inspect(files: list[Path]) -> tuple[list[Source], list[Skipped]]:
    """Sources from headers alone: series grouped and sorted by position, projections one by one."""
    slices: list[Slice] = []
    skipped: list[Skipped] = []
    for file in files:
        try:
            header = _header(file)
        except FormatError as error:
            skipped.append(Skipped(file, str(error)))
        except Exception as error:  # pydicom raises anything on broken files
            skipped.append(
                Skipped(
                    file,
                    f"expected a readable DICOM header, found {explain(error, (file,))}: copy it again from its source",
                )
            )
        else:
            slices += [header] if header else []
    slices, copies = drop_identical(
        slices, "SOP Instance UID (0008,0018)", lambda entry: entry.instance_uid, pixel_digest
    )
    stacks, more = arrange(slices, pixel_digest)
    sources = [_source(stack, notes) for stack, notes in stacks]
    return sources, skipped + copies + more


def read(source: Source) -> Image:
    """Voxels after the modality LUT: HU for CT, padding as air or background, MONOCHROME1 inverted (not CT).

    Raises:
        FormatError: a file cannot be decoded; it is named.
        OSError: a file cannot be opened.
    """
    planes: list[np.ndarray] = []
    headers: list[Slice] = []
    notes = list(source.notes)
    for file in source.files:
        plane, header, words = _read_slice(file)
        if planes and plane.shape != planes[0].shape:
            raise FormatError(
                f"expected slices of one size, found {planes[0].shape} and {plane.shape} in one series: the files changed since they were listed",
                file,
            )
        planes.append(plane)
        headers.append(header)
        notes += words
    floating = any(plane.dtype.kind == "f" for plane in planes)
    dtype = np.dtype(np.float32) if floating else np.result_type(*planes)
    array = np.empty((*planes[0].shape, len(planes)), dtype)
    for index, plane in enumerate(planes):
        array[..., index] = plane
    return Image(
        array,
        affine(headers),
        source.modality,
        "HU" if source.modality == "CT" else "a.u.",
        headers[0].spacing is not None,
        tuple(dict.fromkeys(notes)),
    )


def _read_slice(file: Path) -> tuple[np.ndarray, Slice, list[str]]:
    """One file: values (C, I, J), header, and what was altered.

    Raises:
        FormatError: with the file.
        OSError: the file cannot be opened.
    """
    try:
        dataset = open_dataset(file)
        header = _slice(file, dataset)
        plane, words = plane_values(dataset, header.modality, file.stat().st_size)
        require_finite(plane)
    except FormatError as error:
        raise FormatError(str(error), file) from error
    except OSError:
        raise
    except Exception as error:  # decoders raise anything on broken bytes
        raise FormatError(
            f"expected a readable dicom file, found {explain(error, (file,))}: copy it again from its source", file
        ) from error
    return plane, header, words


def pixel_digest(file: Path) -> str:
    """Hash of the decoded stored values, to tell copies (however compressed) from images that merely share a position."""
    stored = stored_values(open_dataset(file), [])
    return hashlib.sha256(stored.astype("<i8").tobytes()).hexdigest()


def _source(stack: list[Slice], notes: tuple[str, ...]) -> Source:
    first = stack[0]
    every = dict.fromkeys(note for entry in stack for note in entry.notes)
    flat = first.modality in PROJECTION or (first.modality == "OT" and first.position is None)
    return Source(
        tuple(entry.file for entry in stack),
        "dicom",
        first.modality,
        first.channels,
        2 if flat else 3,
        (first.columns, first.rows, len(stack)),
        first.patient,
        first.study,
        notes + tuple(every),
    )


# ------------------------------------------------------------------------------------------------ header


def open_dataset(file: Path | BinaryIO, tags: list[str] | None = None) -> Any:
    """The data set of one file; with tags, these alone and no pixels."""
    import pydicom

    dataset = pydicom.dcmread(file, force=True, stop_before_pixels=tags is not None, specific_tags=tags)
    if not getattr(dataset, "file_meta", None):
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
    if not dataset.file_meta.get("TransferSyntaxUID"):
        # No file meta information: pydicom guessed the encoding from the first element.
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            IMPLICIT_LITTLE if implicit else EXPLICIT_LITTLE if little else EXPLICIT_BIG
        )
    return dataset


def _header(file: Path) -> Slice | None:
    """What the header says, or None for a DICOMDIR.

    Raises:
        FormatError: not an image this version reads, with the tag that says so.
    """
    with open(file, "rb") as stream:
        dataset = open_dataset(stream, HEADER_TAGS)
        available = file.stat().st_size - stream.tell()  # what follows the header: Pixel Data
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
        return None
    _modality(dataset)
    check_syntax(str(dataset.file_meta.TransferSyntaxUID))
    check_pixels(dataset, available)
    return _slice(file, dataset)


def _modality(dataset: Any) -> str:
    """CT, MR, CR or DX from the SOP class; a grey secondary capture counts as the X-ray it says it is.

    Raises:
        FormatError: anything else.
    """
    from pydicom.uid import UID

    uid = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    said = str(dataset.get("Modality") or "")
    if not uid and len(dataset) == 0:
        raise FormatError(
            "expected a DICOM image, found no elements that DICOM knows: the file is broken, or no DICOM file"
        )
    if not uid and said in SOP_CLASSES.values():
        return said
    if uid == SECONDARY_CAPTURE and (said in PROJECTION or dataset.get("SyntheticData") == "YES"):
        return said if said in SOP_CLASSES.values() else "OT"
    if uid in SOP_CLASSES:
        return SOP_CLASSES[uid]
    name = UID(uid).name if uid else "no SOP class"
    words = (
        f"SOP class {uid} ({name}) (0008,0016)" if uid and name != uid else f"SOP class {uid or '(none)'} (0008,0016)"
    )
    extra = f" with Modality (0008,0060) {said!r}" if uid in ("", SECONDARY_CAPTURE) else ""
    way_out = ": convert it to single-frame files (dcmtk, dcm2niix) or NIfTI" if uid in ENHANCED else ""
    raise FormatError(f"{words}{extra} is not a single-frame CT, MR, CR or DX image{way_out}")


def _slice(file: Path, dataset: Any) -> Slice:
    """The header's content as plain values; DICOM PS3.3 C.7.6.2.1.1 for the geometry."""
    notes: list[str] = []
    modality = _modality(dataset)
    if modality == "CT":
        _check_rescale_type(dataset, notes)
    position, orientation = numbers(dataset, "ImagePositionPatient", 3), numbers(dataset, "ImageOrientationPatient", 6)
    if orientation is not None:
        row, column = np.array(orientation[:3]), np.array(orientation[3:])
        if abs(np.linalg.norm(row) - 1) > 0.01 or abs(np.linalg.norm(column) - 1) > 0.01 or abs(row @ column) > 0.01:
            notes.append("Image Orientation (0020,0037) is not a pair of perpendicular unit vectors: ignored")
            orientation = None
    if modality in PROJECTION:
        position = orientation = None
    text = {
        name: str(dataset.get(name) or "").strip()
        for name in (
            "PatientID",
            "PatientName",
            "StudyInstanceUID",
            "SeriesInstanceUID",
            "SOPInstanceUID",
            "FrameOfReferenceUID",
        )
    }
    return Slice(
        file=file,
        modality=modality,
        patient=text["PatientID"] or text["PatientName"] or None,
        study=text["StudyInstanceUID"] or None,
        series=text["SeriesInstanceUID"],
        instance_uid=text["SOPInstanceUID"],
        frame_of_reference=text["FrameOfReferenceUID"],
        channels=int(dataset.get("SamplesPerPixel") or 1),
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=position,
        orientation=orientation,
        spacing=_spacing(dataset, notes),
        thickness=number(dataset, "SliceThickness"),
        instance=number(dataset, "InstanceNumber") or 0.0,
        acquisition=tuple(_raw(dataset, name) for name in ACQUISITION_TAGS),
        notes=tuple(notes),
    )


def _raw(dataset: Any, keyword: str) -> str:
    """An element's undecoded value as text, only to tell slices apart; decoding ten more tags takes 1 ms a file."""
    return str(dataset.get_item(keyword).value).strip() if keyword in dataset else ""


def _check_rescale_type(dataset: Any, notes: list[str]) -> None:
    """Refuse CT maps that are not HU (effective Z, iodine density); Rescale Type (0028,1054), DICOM PS3.3 C.8.15.3.10."""
    kind = str(dataset.get("RescaleType") or "HU").strip()
    if kind == "US":
        notes.append("Rescale Type (0028,1054) is US (unspecified): values are taken as HU")
    elif not kind.startswith("HU"):
        raise FormatError(f"Rescale Type (0028,1054) is {kind!r}: expected a CT image in HU")


def _spacing(dataset: Any, notes: list[str]) -> tuple[float, float] | None:
    """(mm between rows, mm between columns), in this order as DICOM gives it, or None."""
    for keyword, tag in (
        ("PixelSpacing", "0028,0030"),
        ("ImagerPixelSpacing", "0018,1164"),
        ("NominalScannedPixelSpacing", "0018,2010"),
    ):
        pair = numbers(dataset, keyword, 2)
        if pair is None:
            continue
        if min(pair) <= 0:
            notes.append(f"{keyword} ({tag}) {pair} is not positive: ignored")
            continue
        if keyword == "ImagerPixelSpacing":
            notes.append("pixel spacing is that at the detector (0018,1164), larger than in the patient")
        return pair[0], pair[1]
    return None
