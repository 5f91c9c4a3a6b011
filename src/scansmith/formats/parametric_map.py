"""Float values beside a DICOM series -> Parametric Map (PS3.3 A.75), written by highdicom: bounds and trust maps."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import MRImageStorage, ParametricMapStorage, SecondaryCaptureImageStorage

from ..image import Image
from ..runtime import write_atomic
from .dicom_derived import mark_module, person_module, series_module, slice_headers, slices_behind, source_references
from .dicom_write import STUDY_DATE, STUDY_TIME, clean, make_dataset, make_uid, plane_module
from .source import Source, quiet
from .write import with_suffix

if TYPE_CHECKING:
    from .derived import Derivation

# Image.units -> code in UCUM; PS3.16 CID 7181.
UNITS = {
    "HU": Code("[hnsf'U]", "UCUM", "Hounsfield unit"),
    "ratio": Code("{ratio}", "UCUM", "ratio"),
    "a.u.": Code("[arb'U]", "UCUM", "arbitrary unit"),
}


def write(source: Source, image: Image, out: Path, derivation: Derivation, meaning: str) -> list[Path]:
    """Write `out`.dcm: float32 values as they are, one frame a slice, each naming the source's instances of that slice.

    Patient, study and frame of reference are the source's, series and instance are new. Equal inputs give equal bytes:
    the times that the class demands are those of the study.

    Args:
        source: a DICOM scan with a place in the patient.
        image: one channel on its grid, in units of `UNITS`.
        out: path without suffix.
        derivation: what made it.
        meaning: what a value means, at most 64 characters: LUT Explanation (0028,3003).

    Raises:
        ValueError: units without a code, or an affine whose pixel axes are not at right angles.
        OSError: with the way out.
    """
    if image.units not in UNITS:
        raise ValueError(f"expected units of {tuple(UNITS)} in a Parametric Map, got {image.units!r}")
    with quiet():
        headers = slice_headers(source)
        references = source_references(source, headers, image)
        person = person_module(source, headers[0])
        series = series_module(source, headers[0], image, derivation, ParametricMapStorage)
        planes = planes_of(source, image, person)
        dataset = _parametric_map(planes, image, series, derivation, meaning)
        name_sources(dataset, planes, slices_behind(source, image), references)
        without_clock_and_chance(dataset, person)
        side = {"ImageLaterality": series["ImageLaterality"]}
        for keyword, value in (side | mark_module(source, image, derivation, "")).items():
            setattr(dataset, keyword, value)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
    path = with_suffix(out, ".dcm")
    write_atomic(path, buffer.getvalue())
    return [path]


def planes_of(source: Source, image: Image, person: dict[str, Any]) -> list[Dataset]:
    """Each slice of the source as a single-frame image of its own, also those of a multi-frame file, whose frames
    highdicom would want in the file's order; `name_sources` puts class and instance right."""
    i, j, _ = image.array.shape[1:]
    return [
        make_dataset(
            {
                "SpecificCharacterSet": "ISO_IR 192",
                **person,
                **(plane_module(image.affine, k) if source.affine is not None else {}),
                "SeriesInstanceUID": source.series,
                "SOPClassUID": SecondaryCaptureImageStorage if source.affine is None else MRImageStorage,
                "SOPInstanceUID": make_uid("plane", k),
                "Rows": j,
                "Columns": i,
            }
        )
        for k in range(image.array.shape[3])
    ]


def _parametric_map(
    planes: list[Dataset], image: Image, series: dict[str, Any], derivation: Derivation, meaning: str
) -> Any:
    """highdicom's data set of the values (K, J, I) as float32."""
    values = image.array[0].transpose(2, 1, 0).astype(np.float32)
    low, high = float(values.min()), float(values.max())
    mapping = highdicom.pm.RealWorldValueMapping(
        lut_label=clean(derivation.what.upper(), 16),
        lut_explanation=clean(meaning, 64),
        unit=UNITS[image.units],
        value_range=(low, high),
        slope=1.0,
        intercept=0.0,
    )
    # LINEAR asks for a width of 1 or more (PS3.3 C.11.2.1.2.1), which shares have not.
    window = highdicom.VOILUTTransformation(
        window_center=(low + high) / 2, window_width=max(high - low, 1e-6), voi_lut_function="LINEAR_EXACT"
    )
    return highdicom.pm.ParametricMap(
        source_images=planes,
        pixel_array=values,
        series_instance_uid=series["SeriesInstanceUID"],
        series_number=int(series["SeriesNumber"]),
        sop_instance_uid=make_uid("instance", series["SeriesInstanceUID"], 0),
        instance_number=1,
        manufacturer=series["Manufacturer"],
        manufacturer_model_name=series["ManufacturerModelName"],
        software_versions=series["SoftwareVersions"],
        device_serial_number=clean(derivation.model, 64),
        # A volume of a head shows its face, and nothing here says which part of the body it is.
        contains_recognizable_visual_features=True,
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label=re.sub(r"[^A-Z0-9]+", "_", derivation.what.upper()[:16]).strip("_"),
        content_description=clean(derivation.what, 64),
        series_description=series["SeriesDescription"],
    )


def name_sources(dataset: Any, planes: list[Dataset], behind: list[list[int]], references: list[Dataset]) -> None:
    """Each frame names its slices, with the frame's number where the source has frames; the whole names each file once.

    highdicom sorts the frames, so they are found by their positions.
    """
    at = {_position(plane): [references[z] for z in near] for plane, near in zip(planes, behind)}
    for frame in dataset.PerFrameFunctionalGroupsSequence:
        frame.DerivationImageSequence[0].SourceImageSequence = at[_position(frame)]
    files = {item.ReferencedSOPInstanceUID: item.ReferencedSOPClassUID for item in references}
    whole = [
        make_dataset({"ReferencedSOPClassUID": kind, "ReferencedSOPInstanceUID": uid}) for uid, kind in files.items()
    ]
    dataset.SourceImageSequence = whole
    dataset.ReferencedSeriesSequence[0].ReferencedInstanceSequence = whole


def _position(item: Dataset) -> tuple[float, ...]:
    """Where a plane or a frame lies; () of a picture, which lies nowhere."""
    place = item.get("PlanePositionSequence", [item])[0]
    return tuple(float(value) for value in place.get("ImagePositionPatient", ()))


def without_clock_and_chance(dataset: Any, person: dict[str, Any]) -> None:
    """The study's time instead of that of writing, and UIDs that depend on the series instead of random ones."""
    del dataset.InstanceCreationDate, dataset.InstanceCreationTime
    dataset.ContentDate, dataset.ContentTime = person["StudyDate"] or STUDY_DATE, person["StudyTime"] or STUDY_TIME
    dimensions = make_uid("dimensions", dataset.SeriesInstanceUID)
    for item in (*dataset.DimensionOrganizationSequence, *dataset.DimensionIndexSequence):
        item.DimensionOrganizationUID = dimensions
