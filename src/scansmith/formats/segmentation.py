"""A label map beside a DICOM series -> Segmentation (PS3.3 A.51), written by highdicom: one binary segment for each label."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import highdicom
import numpy as np
from pydicom.sr.codedict import codes
from pydicom.uid import SegmentationStorage

from ..image import Image
from ..runtime import write_atomic
from .dicom_derived import mark_module, person_module, series_module, slice_headers, slices_behind, source_references
from .dicom_write import clean, make_uid
from .parametric_map import name_sources, planes_of, without_clock_and_chance
from .source import Source, quiet
from .write import with_suffix

if TYPE_CHECKING:
    from .derived import Derivation


def write(source: Source, image: Image, out: Path, derivation: Derivation, labels: Sequence[int]) -> list[Path]:
    """Write `out`.dcm: segment n is the n-th label, called "label VALUE"; each frame names the source's instances of its slice.

    Patient, study and frame of reference are the source's, series and instance are new. Equal inputs give equal bytes. What a label
    means is not known here, so that each is coded as tissue (SNOMED CT 85756007).

    Args:
        source: a DICOM scan with a place in the patient, or a single picture.
        image: one channel on its grid, whole numbers: 0 and `labels`.
        out: path without suffix.
        derivation: what made it.
        labels: values, rising.

    Raises:
        ValueError: other values, or pixel axes that are not at right angles.
        OSError: with the way out.
    """
    values = image.array[0].transpose(2, 1, 0)
    if not np.isin(values, [0, *labels]).all():
        raise ValueError(
            f"expected the values 0 and {list(labels)} in a label map, got {np.unique(values)[:8].tolist()}"
        )
    numbers = np.searchsorted(np.array([0, *labels]), values).astype(np.uint8)
    with quiet():
        headers = slice_headers(source)
        references = source_references(source, headers, image)
        person = person_module(source, headers[0])
        series = series_module(source, headers[0], image, derivation, SegmentationStorage)
        planes = planes_of(source, image, person)
        dataset = _segmentation(planes, numbers, series, derivation, labels)
        name_sources(dataset, planes, slices_behind(source, image), references)
        without_clock_and_chance(dataset, person)
        # Of a picture type 2C (PS3.3 C.7.6.1.1.1): what its file says, or nothing.
        turn = {} if source.affine is not None else {"PatientOrientation": person.get("PatientOrientation", "")}
        for keyword, value in (turn | mark_module(source, image, derivation, "")).items():
            setattr(dataset, keyword, value)
        buffer = io.BytesIO()
        dataset.save_as(buffer)
    path = with_suffix(out, ".dcm")
    write_atomic(path, buffer.getvalue())
    return [path]


def _segmentation(
    planes: list[Any], numbers: np.ndarray, series: dict[str, Any], derivation: Derivation, labels: Sequence[int]
) -> Any:
    """highdicom's data set of segment numbers (K, J, I)."""
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name="scansmith", version=clean(derivation.software, 64), family=codes.DCM.ArtificialIntelligence
    )
    segments = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=f"label {label}",
            segmented_property_category=codes.SCT.Tissue,
            segmented_property_type=codes.SCT.Tissue,
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, label in enumerate(labels, 1)
    ]
    return highdicom.seg.Segmentation(
        source_images=planes,
        pixel_array=numbers,
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=segments,
        series_instance_uid=series["SeriesInstanceUID"],
        series_number=int(series["SeriesNumber"]),
        sop_instance_uid=make_uid("instance", series["SeriesInstanceUID"], 0),
        instance_number=1,
        manufacturer=series["Manufacturer"],
        manufacturer_model_name=series["ManufacturerModelName"],
        software_versions=series["SoftwareVersions"],
        device_serial_number=clean(derivation.model, 64),
        content_label="LABEL_MAP",
        content_description=clean(derivation.what, 64),
        series_description=series["SeriesDescription"],
        omit_empty_frames=bool(numbers.any()),
    )
