"""Image -> DICOM single-frame files that validate: CT, MR, CR, DX and Secondary Capture, marked as synthetic."""

from __future__ import annotations

import hashlib
import io
import json
import math
import re
import uuid
from dataclasses import asdict
from decimal import ROUND_CEILING, ROUND_FLOOR, Context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydicom import dcmwrite
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    UID,
    ComputedRadiographyImageStorage,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
)
from pydicom.valuerep import format_number_as_ds

from ..image import MODALITIES, PROJECTION, Image
from ..runtime import write_atomic
from .write import colour_8_bit, with_suffix

if TYPE_CHECKING:
    from .write import Marking

STORAGE = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "CR": ComputedRadiographyImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "OT": SecondaryCaptureImageStorage,
}
# No clock enters a file (equal inputs give equal bytes), but directories and archives sort studies by a date.
STUDY_DATE, STUDY_TIME = "20000101", "000000"


def write_dicom(image: Image, stem: Path, marking: Marking) -> list[Path]:
    """Write `stem`.dcm, or for a volume the series `stem`/0001.dcm ... in K order.

    The affine becomes Image Position and Orientation (Patient) in CT, MR and in volumes of unknown modality;
    projections and 2-D Secondary Capture keep the pixel spacing alone. A 2-D CT, MR or DX image without known spacing,
    which its own storage class demands, becomes Secondary Capture under its modality.

    Raises:
        ValueError: colour outside 0 to 255, a channel count other than 1 and 3, a projection of several slices, a
            volume without spacing, or an affine whose pixel axes are not at right angles.
    """
    storage = storage_class(image)
    pixels, slope, intercept = stored_pixels(image)
    common = {
        "SOPClassUID": storage,
        **patient_module(marking),
        **series_module(image, marking),
        **marking_module(image, marking),
        **SPECIFIC[storage](image),
        **value_module(image, storage, pixels, slope, intercept),
    }
    spatial = storage in (CTImageStorage, MRImageStorage) or image.array.shape[3] > 1
    paths = []
    for k in range(image.array.shape[3]):
        slice_only = {
            "InstanceNumber": str(k + 1),
            "SOPInstanceUID": make_uid("instance", common["SeriesInstanceUID"], k),
            **pixel_module(pixels[..., k]),
        }
        if spatial:
            slice_only |= plane_module(image.affine, k) | {
                "FrameOfReferenceUID": make_uid("frame", marking.model, patient_id(marking))
            }
        path = with_suffix(stem, ".dcm") if image.array.shape[3] == 1 else stem / f"{k + 1:04d}.dcm"
        write_atomic(path, to_bytes(common | slice_only))
        paths.append(path)
    return paths


def storage_class(image: Image) -> UID:
    """The storage class that can hold the image truthfully.

    Raises:
        ValueError: no class can.
    """
    channels, slices = image.array.shape[0], image.array.shape[3]
    if channels not in (1, 3):
        raise ValueError(f"expected 1 or 3 channels for DICOM, got {channels}: write NIfTI instead (format 'nifti')")
    if slices > 1 and image.modality in PROJECTION:
        raise ValueError(
            f"expected a 2-D image for modality {image.modality}, got {slices} slices: a projection has one"
        )
    if slices > 1 and not image.spacing_known:
        raise ValueError(
            f"expected a volume with known voxel spacing for DICOM, got {slices} slices without it: write NIfTI instead (format 'nifti')"
        )
    if channels == 3 or not (image.spacing_known or image.modality == "CR"):
        return SecondaryCaptureImageStorage
    return STORAGE[image.modality]


# ------------------------------------------------------------------------------------------------ values


def stored_pixels(image: Image) -> tuple[np.ndarray, str, str]:
    """Stored values (C, I, J, K), slope and intercept as decimal strings: physical = stored * slope + intercept.

    Slope 1 holds integers exactly, and rounds CT (to 1 HU) and any scan over 1000 units wide; intercept 0 wherever the
    values fit. 8-bit scans outside CT and MR stay 8-bit. All other scans are spread over 16 bits.
    """
    array = image.array
    if len(array) == 3:
        return colour_8_bit(array), "1", "0"
    if array.dtype == np.uint8 and image.modality not in ("CT", "MR"):
        return array, "1", "0"
    low, high = float(array.min()), float(array.max())
    whole = array.dtype.kind in "biu" or bool((np.rint(array) == array).all())
    unit = whole or image.modality == "CT" or high - low >= 1000
    signed = image.modality == "CT" or (low < 0 and image.modality != "DX")  # DX is unsigned (PS3.3 C.8.11.3)
    limits = np.iinfo(np.int16 if signed else np.uint16)
    if unit and limits.min <= round(low) and round(high) <= limits.max:
        return np.rint(array).astype(limits.dtype), "1", "0"
    if unit and high - math.floor(low) <= 65535 and abs(low) < 1e14:
        slope, intercept = "1", str(math.floor(low))
    else:  # a decimal string holds 16 characters: rounded outwards, so that every value stays inside
        intercept = str(Context(9, ROUND_FLOOR).create_decimal_from_float(low))
        slope = str(Context(7, ROUND_CEILING).create_decimal_from_float(max((high - float(intercept)) / 65535, 1e-35)))
    stored = np.rint((array.astype(np.float64) - float(intercept)) / float(slope))
    return stored.astype(np.uint16), slope, intercept


def value_module(image: Image, storage: UID, pixels: np.ndarray, slope: str, intercept: str) -> dict[str, Any]:
    """What stored values mean: Modality LUT (PS3.3 C.11.1), or a Real World Value Mapping (C.7.6.16.2.11) where the
    class has no Modality LUT (MR) or fixes it (DX); and the window to show first (C.11.2)."""
    if len(pixels) == 3:
        return {}
    mapped = storage in (MRImageStorage, DigitalXRayImageStorageForPresentation)
    result: dict[str, Any] = {}
    if storage != MRImageStorage:
        result = {
            "RescaleSlope": "1" if mapped else slope,
            "RescaleIntercept": "0" if mapped else intercept,
            "RescaleType": "HU" if image.modality == "CT" else "US",
        }
    if mapped and (slope, intercept) != ("1", "0"):
        result["RealWorldValueMappingSequence"] = [
            make_dataset(
                {
                    "RealWorldValueFirstValueMapped": int(pixels.min()),
                    "RealWorldValueLastValueMapped": int(pixels.max()),
                    "RealWorldValueSlope": float(slope),
                    "RealWorldValueIntercept": float(intercept),
                    "LUTExplanation": "Physical value of the synthetic image",
                    "LUTLabel": "PHYSICAL",
                    "MeasurementUnitsCodeSequence": [code("[arb'U]", "UCUM", "arbitrary unit")],
                }
            )
        ]
    values = pixels if mapped else image.array
    low, high = float(values.min()), float(values.max())
    if image.modality == "CT":
        low, high = -160.0, 240.0  # soft tissue
    if slope == "1" or mapped or high - low >= 100:  # the linear window function degenerates below a few units
        result |= {"WindowCenter": decimal((low + high) / 2), "WindowWidth": decimal(max(high - low, 1.0))}
    return result


def pixel_module(pixels: np.ndarray) -> dict[str, Any]:
    """Image Pixel module (PS3.3 C.7.6.3) of one slice (C, I, J): rows are J, columns I."""
    data = np.ascontiguousarray(pixels.transpose(2, 1, 0)).astype(pixels.dtype.newbyteorder("<")).tobytes()
    bits = pixels.dtype.itemsize * 8
    colour = {"PlanarConfiguration": 0} if len(pixels) == 3 else {}
    return {
        "SamplesPerPixel": len(pixels),
        "PhotometricInterpretation": "RGB" if colour else "MONOCHROME2",
        **colour,
        "Rows": pixels.shape[2],
        "Columns": pixels.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
        "PixelData": data + b"\0" * (len(data) % 2),
    }


# ------------------------------------------------------------------------------------------------ geometry


def plane_module(affine: np.ndarray, k: int) -> dict[str, Any]:
    """Image Plane module (PS3.3 C.7.6.2) of slice k; the affine's RAS+ becomes DICOM's LPS+.

    Raises:
        ValueError: the pixel axes are not at right angles, or an axis has no length.
    """
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
    lengths = np.linalg.norm(lps[:3, :3], axis=0)
    if lengths.min() < 1e-6:
        raise ValueError(
            f"expected an affine with three axes, got lengths {lengths.tolist()} mm: write NIfTI instead (format 'nifti')"
        )
    right, down = lps[:3, 0] / lengths[0], lps[:3, 1] / lengths[1]
    if abs(right @ down) > 1e-4:
        raise ValueError(
            f"expected pixel axes at right angles for DICOM, got a cosine of {right @ down:.6f}: write NIfTI instead (format 'nifti')"
        )
    # Along the normal, as Spacing Between Slices is defined; a tilted gantry shears K against it.
    distance = decimal(abs(float(np.cross(right, down) @ lps[:3, 2])))
    position = lps @ np.array([0.0, 0.0, k, 1.0])
    return {
        "ImagePositionPatient": [decimal(x) for x in position[:3]],
        "ImageOrientationPatient": [decimal(x) for x in (*right, *down)],
        "PixelSpacing": [decimal(lengths[1]), decimal(lengths[0])],  # between rows, then between columns
        "SliceThickness": distance,
        "SpacingBetweenSlices": distance,
        "PositionReferenceIndicator": "",
    }


def patient_orientation(affine: np.ndarray) -> list[str]:
    """Letters of the patient direction of columns I and rows J of a projection, for example ["L", "F"].

    An affine without a vertical axis in the picture is a placeholder; then the way radiographs are hung.
    """
    letters = []
    for column in (affine[:3, 0], affine[:3, 1]):
        axis = int(np.argmax(np.abs(column)))
        letters.append(("RL", "AP", "HF")[axis][int(column[axis] < 0)])
    vertical = [letter in "HF" for letter in letters]
    return letters if sum(vertical) == 1 else ["L", "F"]


# ------------------------------------------------------------------------------------------------ who and what


def patient_id(marking: Marking) -> str:
    """The synthetic patient, for example "SYN-3fa2b1c0-0-000017"; equal for all files of one `Marking.subject`."""
    name = f"{marking.index:06d}" if marking.subject is None else marking.subject
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,24}", name):
        name = hashlib.sha256(name.encode()).hexdigest()[:12]
    return clean(f"SYN-{marking.model[:8]}-{marking.seed}-{name}", 64)


def patient_module(marking: Marking) -> dict[str, Any]:
    """Patient and General Study modules (PS3.3 C.7.1.1, C.7.2.1): one patient has one study."""
    patient = patient_id(marking)
    return {
        "PatientName": f"SYNTHETIC^{patient}",
        "PatientID": patient,
        "PatientBirthDate": "",
        "PatientSex": "",
        "StudyInstanceUID": make_uid("study", marking.model, patient),
        "StudyDate": STUDY_DATE,
        "StudyTime": STUDY_TIME,
        "StudyID": "1",
        "AccessionNumber": "",
        "ReferringPhysicianName": "",
        "StudyDescription": "SYNTHETIC",
    }


def series_module(image: Image, marking: Marking) -> dict[str, Any]:
    """General Series and Equipment (PS3.3 C.7.3.1, C.7.5.1); the series UID depends on the content too, so that two
    different scans never share one. Image Laterality U: no side is claimed."""
    content = hashlib.sha256(
        np.ascontiguousarray(image.array).tobytes() + image.affine.astype("<f8").tobytes()
    ).hexdigest()
    return {
        "SeriesInstanceUID": make_uid("series", json.dumps(asdict(marking)), image.modality, content),
        "Modality": image.modality,
        "SeriesNumber": str(1 + MODALITIES.index(image.modality)),
        "SeriesDescription": f"SYNTHETIC {image.modality} sample {marking.index}",
        "ImageLaterality": "U",
        "Manufacturer": "scansmith",
        "ManufacturerModelName": "scansmith",
        "SoftwareVersions": clean(marking.software, 64),
    }


def marking_module(image: Image, marking: Marking) -> dict[str, Any]:
    """Synthetic Data (0008,001C), Image Type, and in words and codes which software, model, seed and sample."""
    source = {"model": marking.model, "seed": marking.seed, "index": marking.index}
    words = f"Synthetic image, not of a person: {marking.software}, model {marking.model}, seed {marking.seed}, sample {marking.index}. {marking.description}"
    equipment = make_dataset(
        {
            "PurposeOfReferenceCodeSequence": [code("109100", "DCM", "Synthesizing Equipment")],
            "Manufacturer": "scansmith",
            "ManufacturerModelName": "scansmith",
            "SoftwareVersions": clean(marking.software, 64),
            "ContributionDescription": clean(json.dumps(source), 1024),
        }
    )
    third = {"CT": ["AXIAL"], "MR": ["OTHER"]}.get(image.modality, [])
    return {
        "SyntheticData": "YES",
        "ImageType": ["DERIVED", "SECONDARY", *third],
        "BurnedInAnnotation": "NO",
        "DerivationDescription": clean(words, 1024),
        "ContributingEquipmentSequence": [equipment],
    }


# ------------------------------------------------------------------------------------------------ one per storage class


def ct_module(image: Image) -> dict[str, Any]:
    """CT Image (PS3.3 C.8.2.1): what no scanner measured is present and empty."""
    return {"KVP": "", "AcquisitionNumber": "", "PatientPosition": ""}


def mr_module(image: Image) -> dict[str, Any]:
    """MR Image (PS3.3 C.8.3.1): sequence "research mode", since no scanner ran one."""
    return {
        "ScanningSequence": "RM",
        "SequenceVariant": "NONE",
        "ScanOptions": "",
        "MRAcquisitionType": "",
        "EchoTime": "",
        "RepetitionTime": "",
        "EchoTrainLength": "",
        "PatientPosition": "",
    }


def cr_module(image: Image) -> dict[str, Any]:
    """CR Series and Image (PS3.3 C.8.1)."""
    return {
        "BodyPartExamined": "",
        "ViewPosition": "",
        "PatientOrientation": patient_orientation(image.affine),
        **pixel_spacing(image, "ImagerPixelSpacing", "PixelSpacing"),
    }


def dx_module(image: Image) -> dict[str, Any]:
    """DX Series, Image, Anatomy and Detector, for presentation (PS3.3 C.8.11): bright is dense (sign -1)."""
    return {
        "PresentationIntentType": "FOR PRESENTATION",
        "PresentationLUTShape": "IDENTITY",
        "LossyImageCompression": "00",
        "PixelIntensityRelationship": "LOG",
        "PixelIntensityRelationshipSign": -1,
        "DetectorType": "",
        "AnatomicRegionSequence": [],
        "AcquisitionContextSequence": [],
        "PatientOrientation": patient_orientation(image.affine),
        **pixel_spacing(image, "ImagerPixelSpacing", "PixelSpacing"),
    }


def sc_module(image: Image) -> dict[str, Any]:
    """SC Equipment and Image (PS3.3 C.8.6): conversion type "synthetic image"."""
    return {"ConversionType": "SYN", "PatientOrientation": "", **pixel_spacing(image, "PixelSpacing")}


SPECIFIC = {
    CTImageStorage: ct_module,
    MRImageStorage: mr_module,
    ComputedRadiographyImageStorage: cr_module,
    DigitalXRayImageStorageForPresentation: dx_module,
    SecondaryCaptureImageStorage: sc_module,
}


def pixel_spacing(image: Image, *keywords: str) -> dict[str, Any]:
    """Distance between rows (J), then between columns (I), in mm, as DICOM orders them; nothing where unknown.

    Equal Imager Pixel Spacing and Pixel Spacing say that no magnification was corrected (PS3.3 10.7.1.3).
    """
    return {word: [decimal(image.spacing[1]), decimal(image.spacing[0])] for word in keywords if image.spacing_known}


# ------------------------------------------------------------------------------------------------ encoding


def decimal(value: float) -> str:
    """A number as DS, at most 16 characters (PS3.5 6.2)."""
    return str(format_number_as_ds(float(value) + 0.0))


def clean(text: str, length: int) -> str:
    """Text that a DICOM string may hold: no backslash, which would split it, and no control characters."""
    return re.sub(r"[\\\x00-\x1f\x7f]+", " ", text).strip()[:length]


def make_uid(*parts: int | str) -> UID:
    """A UID under 2.25 (PS3.5 B.2) that depends on the parts alone."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_OID, json.dumps(['scansmith', *parts])).int}")


def code(value: str, scheme: str, meaning: str) -> Dataset:
    """One item of a code sequence (PS3.3 8.8)."""
    return make_dataset({"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning})


def make_dataset(values: dict[str, Any]) -> Dataset:
    """Keyword -> value as a data set."""
    dataset = Dataset()
    for keyword, value in values.items():
        setattr(dataset, keyword, value)
    return dataset


def to_bytes(values: dict[str, Any]) -> bytes:
    """A whole DICOM file, Explicit VR Little Endian, text in UTF-8."""
    dataset = make_dataset({"SpecificCharacterSet": "ISO_IR 192", **values})
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.ImplementationClassUID = make_uid("implementation")
    dataset.file_meta.ImplementationVersionName = "SCANSMITH"
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    return buffer.getvalue()
