"""A scan made from a DICOM scan -> a new series of the same patient, study and frame of reference that names its source."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom.dataset import Dataset
from pydicom.uid import UID, CTImageStorage, SecondaryCaptureImageStorage

from ..image import Image
from ..runtime import write_atomic
from .derived import regridded, source_index, write_folder
from .dicom_file import read_header
from .dicom_write import (
    SPECIFIC,
    STORAGE,
    clean,
    code,
    decimal,
    make_dataset,
    make_uid,
    pixel_module,
    plane_module,
    storage_class,
    stored_pixels,
    to_bytes,
    value_module,
)
from .source import Source, quiet
from .write import with_suffix

if TYPE_CHECKING:
    from .derived import Derivation

# Attributes of the Patient, Clinical Trial Subject, General Study, Patient Study and Clinical Trial Study modules
# (PS3.3 C.7.1.1, C.7.1.3, C.7.2.1 to C.7.2.3), and the time zone that their times are in (C.12.1).
PERSON_WORDS = """
    PatientName PatientID IssuerOfPatientID IssuerOfPatientIDQualifiersSequence TypeOfPatientID OtherPatientIDsSequence
    OtherPatientNames PatientBirthDate PatientBirthTime PatientSex EthnicGroup PatientComments QualityControlSubject
    PatientSpeciesDescription PatientSpeciesCodeSequence PatientBreedDescription PatientBreedCodeSequence
    BreedRegistrationSequence StrainDescription ResponsiblePerson ResponsiblePersonRole ResponsibleOrganization
    PatientIdentityRemoved DeidentificationMethod DeidentificationMethodCodeSequence
    ClinicalTrialSponsorName ClinicalTrialProtocolID ClinicalTrialProtocolName ClinicalTrialSiteID ClinicalTrialSiteName
    ClinicalTrialSubjectID ClinicalTrialSubjectReadingID
    StudyInstanceUID StudyDate StudyTime ReferringPhysicianName StudyID AccessionNumber IssuerOfAccessionNumberSequence
    StudyDescription ProcedureCodeSequence PhysiciansOfRecord NameOfPhysiciansReadingStudy ReferencedStudySequence
    AdmittingDiagnosesDescription PatientAge PatientSize PatientWeight PatientSexNeutered MedicalAlerts Allergies
    Occupation SmokingStatus AdditionalPatientHistory PregnancyStatus AdmissionID
    ClinicalTrialTimePointID ClinicalTrialTimePointDescription LongitudinalTemporalInformationModified
    TimezoneOffsetFromUTC
"""
PERSON = tuple(PERSON_WORDS.split())
# Which part of the body lies how: as true of the derived scan as of its source. Lossy compression is, too: it never
# wears off (C.7.6.1.1.5).
ANATOMY = (
    "BodyPartExamined",
    "AnatomicRegionSequence",
    "Laterality",
    "PatientPosition",
    "PatientOrientation",
    "ViewPosition",
    "PositionReferenceIndicator",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)
# Image Plane module (C.7.6.2) of a single-frame file, copied digit by digit.
PLACE = ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness", "SliceLocation")
NAMES = ("SOPClassUID", "SOPInstanceUID", "SeriesNumber", "SeriesDescription", "InstanceNumber", "ImageLaterality")
KEYWORDS = ("SpecificCharacterSet", *PERSON, *ANATOMY, *PLACE, *NAMES, "GantryDetectorTilt")
# Type 2: present even where the source has nothing to say.
NEVER_ABSENT_WORDS = """
    PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber ReferringPhysicianName
"""
NEVER_ABSENT = dict.fromkeys(NEVER_ABSENT_WORDS.split(), "")


def write_dicom(source: Source, image: Image, out: Path, derivation: Derivation) -> list[Path]:
    """Write the series `out`/0001.dcm ... in K order, or `out`.dcm of a single slice.

    Patient, study and frame of reference are the source's; series and instances are new, and each names the source's
    instance (and frame) of its slice. A slice lies where the source's file says, digit by digit; of a multi-frame
    source, or on another grid, where the image's affine says. Slices of another grid are as thick as they are far apart,
    are numbered in the source's direction, and name the source's slices that they lie in or cover. Nothing that the
    scanner did is copied. CT and MR without a place in the patient, and modalities without a class here, become Secondary
    Capture.

    Raises:
        ValueError: a CT whose values are no HU, or an image that no storage class can hold.
    """
    if image.modality == "CT" and image.units != "HU":
        raise ValueError(f"expected HU in a CT image, got units {image.units!r}: use write_parametric_map")
    with quiet():  # pydicom warns of what the source says
        if image.array.shape[3] == 1:
            ((_, content),) = _files(source, image, derivation)
            path = with_suffix(out, ".dcm")
            write_atomic(path, content)
            return [path]
        return write_folder(out, _files(source, image, derivation))


def _files(source: Source, image: Image, derivation: Derivation) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each slice in K order."""
    headers = slice_headers(source)
    storage = _storage(source, image)
    pixels, slope, intercept = stored_pixels(image)
    common = {
        "SOPClassUID": storage,
        **SPECIFIC[storage](image),
        **person_module(source, headers[0]),
        **series_module(source, headers[0], image, derivation, storage),
        **mark_module(source, image, derivation, _scale_words(slope, intercept)),
        **value_module(image, storage, pixels, slope, intercept),
    }
    third = {"CT": ["AXIAL" if _is_axial(image.affine) else "OTHER"], "MR": ["OTHER"]}.get(image.modality, [])
    common["ImageType"] = ["DERIVED", "SECONDARY", *third]
    behind = slices_behind(source, image)
    numbers = _instance_numbers(source, headers, len(behind))
    references = source_references(source, headers, image)
    for k, near in enumerate(behind):
        header = headers[near[len(near) // 2]]
        own = {
            "InstanceNumber": str(numbers[k]),
            "SOPInstanceUID": make_uid("instance", common["SeriesInstanceUID"], k),
            "SourceImageSequence": [references[z] for z in near],
            **(_place_module(source, header, image, k, storage) if source.affine is not None else {}),
            **pixel_module(pixels[..., k]),
        }
        yield f"{k + 1:04d}.dcm", to_bytes(common | own)


def _storage(source: Source, image: Image) -> UID:
    """The storage class that can hold the image truthfully."""
    placeless = image.modality in ("CT", "MR") and source.affine is None
    if placeless or image.modality not in STORAGE:
        return SecondaryCaptureImageStorage
    return storage_class(image)


def _scale_words(slope: str, intercept: str) -> str:
    return "" if (slope, intercept) == ("1", "0") else f" Value = stored value x {slope} + {intercept}."


def _is_axial(affine: np.ndarray) -> bool:
    """Whether the slices lie nearer to across the body than along it."""
    normal = np.abs(np.cross(affine[:3, 0], affine[:3, 1]))
    return bool(normal.argmax() == 2)


# ------------------------------------------------------------------------------------------------ the source's files


def slice_headers(source: Source) -> list[Any]:
    """The header of each slice's file in K order: what is used of it, decoded, less what is broken or private.

    Raises:
        FormatError: a file is broken.
        OSError: a file cannot be opened.
    """
    opened = {file: _header(file) for file in dict.fromkeys(source.files)}
    files = source.files if len(source.files) > 1 else source.files * max(len(source.frames), 1)
    return [opened[file] for file in files]


def _header(file: Path) -> Any:
    dataset = read_header(file, KEYWORDS).dataset
    for tag in list(dataset.keys()):
        try:  # as it will be written
            setattr(Dataset(), dataset[tag].keyword, dataset[tag].value)
        except Exception:  # pydicom raises anything on broken values
            del dataset[tag]
    dataset.decode()
    dataset.remove_private_tags()
    return dataset


def _copied(header: Any, keywords: Sequence[str]) -> dict[str, Any]:
    """Those attributes that the header has."""
    return {keyword: header[keyword].value for keyword in keywords if keyword in header}


def _instance_numbers(source: Source, headers: list[Any], count: int) -> list[int]:
    """The source's Instance Numbers, so that a slice has the same number in both, else 1 ... in K order.

    Of another number of slices, 1 ... in the direction of the source's.
    """
    found = [header.get("InstanceNumber") for header in headers]
    if source.frames or None in found or len(set(found)) < len(found):
        return list(range(1, count + 1))
    numbers = [int(number) for number in found]
    if count == len(numbers):
        return numbers
    return list(range(1, count + 1)) if numbers[0] <= numbers[-1] else list(range(count, 0, -1))


def slices_behind(source: Source, image: Image) -> list[list[int]]:
    """Of each slice of the image, which of the source it lies in, or covers where it is thicker."""
    if image.array.shape[3] == source.shape[2]:
        return [[k] for k in range(source.shape[2])]
    index = source_index(source, image)
    reach = max(1.0, index[2, 2]) / 2.0 + 1e-6
    places = np.clip(index[2, 2] * np.arange(image.array.shape[3]) + index[2, 3], 0, source.shape[2] - 1)
    return [np.flatnonzero(np.abs(np.arange(source.shape[2]) - place) <= reach).tolist() for place in places]


def source_references(source: Source, headers: list[Any], image: Image) -> list[Dataset]:
    """Of each slice of the source an item of Source Image Sequence (0008,2112), PS3.3 C.7.6.1.1.4; purpose from PS3.16 CID 7202.

    Raises:
        ValueError: a file without SOP Class or Instance UID.
    """
    if not all("SOPClassUID" in header and "SOPInstanceUID" in header for header in headers):
        raise ValueError(
            "expected SOP Class UID (0008,0016) and SOP Instance UID (0008,0018) in every file of the source, found a file without: a series made from it could not name it"
        )
    frames: Sequence[int | None] = source.frames or (None,) * len(headers)
    preserved = "NO" if regridded(source, image) else "YES"
    return [
        make_dataset(
            {
                "ReferencedSOPClassUID": header.SOPClassUID,
                "ReferencedSOPInstanceUID": header.SOPInstanceUID,
                **({} if frame is None else {"ReferencedFrameNumber": frame + 1}),
                "SpatialLocationsPreserved": preserved,
                "PurposeOfReferenceCodeSequence": [
                    code("121322", "DCM", "Source image for image processing operation")
                ],
            }
        )
        for header, frame in zip(headers, frames)
    ]


# ------------------------------------------------------------------------------------------------ modules


def person_module(source: Source, header: Any) -> dict[str, Any]:
    """Patient, study and frame of reference as in the source, anatomy too; a scan has those of its first slice."""
    missing = {"StudyInstanceUID": make_uid("study", str(source.series), str(source.patient))}
    return NEVER_ABSENT | missing | _copied(header, (*PERSON, *ANATOMY)) | frame_module(source, header)


def frame_module(source: Source, header: Any) -> dict[str, Any]:
    """Frame of Reference (PS3.3 C.7.4.1); where the source has none, one for all that is made of it."""
    if source.affine is None:
        return {}
    return {
        "FrameOfReferenceUID": source.frame_of_reference or make_uid("frame", str(source.study), str(source.series)),
        "PositionReferenceIndicator": header.get("PositionReferenceIndicator", ""),
    }


def series_module(source: Source, header: Any, image: Image, derivation: Derivation, storage: UID) -> dict[str, Any]:
    """General Series and Equipment (PS3.3 C.7.3.1, C.7.5.1); its UID depends on source, derivation, voxels and class alone."""
    content = hashlib.sha256(np.ascontiguousarray(image.array).tobytes()).hexdigest()
    grid = (image.array.shape, image.affine.round(6).tolist())
    parts = (source.series, source.instances, source.frames, asdict(derivation), image.modality, storage, content, grid)
    described = f"SYNTHETIC {image.modality} {derivation.what} of {header.get('SeriesDescription') or 'series'}"
    return {
        "SeriesInstanceUID": make_uid("derived series", json.dumps(parts)),
        "Modality": image.modality,
        "SeriesNumber": str(int(header.get("SeriesNumber") or 0) + derivation.number),
        "SeriesDescription": clean(described, 64),
        "ImageLaterality": header.get("ImageLaterality") or header.get("Laterality") or "U",
        "Manufacturer": "scansmith",
        "ManufacturerModelName": "scansmith",
        "SoftwareVersions": clean(derivation.software, 64),
    }


def mark_module(source: Source, image: Image, derivation: Derivation, scale: str) -> dict[str, Any]:
    """Synthetic Data (0008,001C), Derivation Description (0008,2111), and which software and model, in words and codes.

    No code of PS3.16 CID 7203 (Image Derivation) means an image of another kind, so none is given.
    """
    words = f"Synthetic {image.modality}, {derivation.what}: {derivation.words} {derivation.software}, model {derivation.model}.{scale}"
    equipment = make_dataset(
        {
            "PurposeOfReferenceCodeSequence": [code("109100", "DCM", "Synthesizing Equipment")],
            "Manufacturer": "scansmith",
            "ManufacturerModelName": "scansmith",
            "SoftwareVersions": clean(derivation.software, 64),
            "ContributionDescription": clean(json.dumps({"model": derivation.model, "what": derivation.what}), 1024),
        }
    )
    return {
        "SyntheticData": "YES",
        "BurnedInAnnotation": "YES" if source.burned_in else "NO",
        "DerivationDescription": clean(words, 1024),
        "ContributingEquipmentSequence": [equipment],
    }


def _place_module(source: Source, header: Any, image: Image, k: int, storage: UID) -> dict[str, Any]:
    """Image Plane (PS3.3 C.7.6.2) of slice k."""
    tilt = ("GantryDetectorTilt",) if source.modality == "CT" and storage == CTImageStorage else ()
    if source.frames or regridded(source, image):
        return plane_module(image.affine, k) | _copied(header, ("PositionReferenceIndicator", *tilt))
    i, j, distance = image.spacing
    return {
        "PixelSpacing": [decimal(j), decimal(i)],
        "SliceThickness": decimal(distance),
        **_copied(header, (*PLACE, *tilt)),
    }
