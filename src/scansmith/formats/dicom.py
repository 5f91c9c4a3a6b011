"""DICOM files -> Image: CT, MR, X-ray, ultrasound and secondary capture, single- and multi-frame, in physical units."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import fields, replace
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from ..image import MODALITIES, PICTURES, Image
from . import dicom_masks
from .dicom_file import Header, read_elements, read_header
from .dicom_frames import SEQUENCES, element_value, frame_attributes
from .dicom_masks import MASK_CLASSES, read_mask
from .dicom_pixels import (
    GREY,
    PALETTE,
    PALETTE_KEYWORDS,
    PIXEL_KEYWORDS,
    VALUE_KEYWORDS,
    Window,
    check_pixels,
    check_syntax,
    frame_count,
    number,
    numbers,
    palette_is_grey,
    physical_values,
    several,
    stored_frames,
    text_of,
    value_facts,
)
from .series import ACQUISITION, Slice, affine, drop_identical, source_files
from .series import arrange as arrange_series
from .source import MAX_VOXELS, FormatError, Skipped, Source, explain, require_finite

__all__ = ["arrange", "header", "read", "read_mask", "sniff"]

# SOP Class UID (0008,0016) -> modality; DICOM PS3.4 B.5.
STORAGE = "1.2.840.10008.5.1.4.1.1."
SOP_CLASSES = {
    STORAGE + "1": "CR",
    **dict.fromkeys((STORAGE + "1.1", STORAGE + "1.1.1"), "DX"),  # for presentation, for processing
    **dict.fromkeys((STORAGE + "1.2", STORAGE + "1.2.1"), "MG"),
    **dict.fromkeys((STORAGE + "1.3", STORAGE + "1.3.1"), "DX"),  # intra-oral
    STORAGE + "2": "CT",
    STORAGE + "2.1": "CT",  # enhanced
    STORAGE + "2.2": "CT",  # legacy converted enhanced
    STORAGE + "4": "MR",
    **dict.fromkeys((STORAGE + "4.1", STORAGE + "4.3", STORAGE + "4.4"), "MR"),  # enhanced, in colour, legacy converted
    **dict.fromkeys(
        (STORAGE + "6", STORAGE + "6.1", STORAGE + "3", STORAGE + "3.1"), "US"
    ),  # the short ones are retired
    **dict.fromkeys((STORAGE + "12.1", STORAGE + "12.1.1", STORAGE + "12.3"), "XA"),
    **dict.fromkeys((STORAGE + "12.2", STORAGE + "12.2.1"), "RF"),
}
ENHANCED = {STORAGE + end for end in ("2.1", "2.2", "4.1", "4.3", "4.4")}
# Secondary capture: one frame, then many of single bits, bytes, words and colours.
SECONDARY_CAPTURE = {STORAGE + "7", *(f"{STORAGE}7.{number}" for number in (1, 2, 3, 4))}
DICOMDIR = "1.2.840.10008.1.3.10"
# Codes of units (PS3.16, CID 7181 and older files) that are Hounsfield's.
HOUNSFIELD_CODES = {"[hnsf'U]", "HU", "hnsf'U"}
# Values of Image Type (0008,0008) of pictures of a screen, and of projections of several slices; blanks as underscores.
SCREENS = {"SCREEN_SAVE", "SCREENSAVE"}
PROJECTIONS = {"MIP", "MINIP", "MIN_IP", "PROJECTION_IMAGE"}
UNSCALED = "Rescale Slope and Intercept (0028,1053 and 1052) are absent: stored values are taken as HU"
# Without a rescale, tissue between air and water is what tells HU from anything else: no offset, no padding does so.
BETWEEN_AIR_AND_WATER = (-1024, -200)
TEXTS = (
    "PatientID",
    "PatientName",
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "SOPInstanceUID",
    "FrameOfReferenceUID",
    "BurnedInAnnotation",
)
PLACE_KEYWORDS = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "SliceThickness",
)
HEADER_KEYWORDS = (
    "SpecificCharacterSet",
    "SOPClassUID",
    "Modality",
    "InstanceNumber",
    "GantryDetectorTilt",
    "NumberOfFrames",
    "RescaleSlope",
    "RescaleIntercept",
    "RescaleType",
    "ModalityLUTSequence",
    "SyntheticData",
    *TEXTS,
    *PLACE_KEYWORDS,
    *PIXEL_KEYWORDS,
    *(keyword for keyword in ACQUISITION if " " not in keyword and keyword not in ("file", "StackID")),
)
ALL_KEYWORDS = (*HEADER_KEYWORDS, *PALETTE_KEYWORDS, *VALUE_KEYWORDS, *SEQUENCES, "ExtendedOffsetTable")


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


# ------------------------------------------------------------------------------------------------ header


def header(file: Path, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    """What one file's header says, JSON-able: `Slice` fields under "common", those of frames that differ under "frames".

    A run of 2-D frames (ultrasound, angiography) has "cine" with their number instead; a Segmentation or a structure
    set has "mask"; a DICOMDIR is empty.

    Args:
        file: where it lies.
        tags: keywords of attributes to keep as text.

    Raises:
        FormatError: not an image that this version reads, with the tag that says so.
        OSError: the file cannot be opened.
        ValueError: a keyword that DICOM does not know.
    """
    found = read_elements(file, (*HEADER_KEYWORDS, *tags))
    dataset = found.dataset
    uid = _sop_class(dataset)
    if dataset.file_meta.get("MediaStorageSOPClassUID") == DICOMDIR:
        return {}
    if uid in MASK_CLASSES:
        return {"mask": dicom_masks.mask_header(file, read_header(file).dataset)}
    modality = _modality(dataset, uid)
    _check_image_type(dataset, modality)
    check_syntax(str(dataset.file_meta.TransferSyntaxUID))
    check_pixels(dataset, found.available)
    if _is_large(dataset, uid):
        dataset = read_header(file, (*ALL_KEYWORDS, *tags)).dataset
    common, frames, _ = _describe(file, dataset, modality, tags)
    result: dict[str, Any] = {"common": _plain(common)}
    if frames:
        result["frames"] = [_plain(frame, common) for frame in frames]
    elif (count := frame_count(dataset)) > 1:
        if count * common.rows * common.columns * common.channels > MAX_VOXELS:
            raise FormatError(
                f"Number of Frames (0028,0008) is {count}: expected at most 2^31 voxels in one run; cut it into parts"
            )
        result["cine"] = count
    return result


def _is_large(dataset: Any, uid: str) -> bool:
    """Whether more is to be read of a header than `HEADER_KEYWORDS`: frames, functional groups, a palette."""
    return frame_count(dataset) > 1 or uid in ENHANCED or dataset.get("PhotometricInterpretation") == PALETTE


def _all_elements(file: Path) -> Header:
    """A header with all that reading its pixels needs."""
    found = read_elements(file, ALL_KEYWORDS)
    return read_header(file, ALL_KEYWORDS) if _is_large(found.dataset, _sop_class(found.dataset)) else found


def _sop_class(dataset: Any) -> str:
    return text_of(dataset, "SOPClassUID") or str(dataset.file_meta.get("MediaStorageSOPClassUID") or "")


def _plain(entry: Slice, common: Slice | None = None) -> dict[str, Any]:
    """The fields of a slice but its file; with `common`, those alone that differ from it."""
    return {
        field.name: getattr(entry, field.name)
        for field in fields(entry)
        if field.name != "file" and (common is None or getattr(entry, field.name) != getattr(common, field.name))
    }


def _slices(file: Path, content: dict[str, Any]) -> list[Slice]:
    """What `header` found, also after a round trip through JSON."""
    common = Slice(file=file, **_tuples(content["common"]))
    return [replace(common, **_tuples(frame)) for frame in content.get("frames", [])] or [common]


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {name: _tuple(value) if isinstance(value, list) else value for name, value in values.items()}


def _tuple(values: list[Any]) -> tuple[Any, ...]:
    return tuple(_tuple(value) if isinstance(value, list) else value for value in values)


def _modality(dataset: Any, uid: str) -> str:
    """One of `image.MODALITIES`, from the SOP class; a secondary capture counts as the picture it says it is, else OT.

    Colours of a CT or MR (perfusion maps, fused pictures) are no HU and no signal: OT.

    Raises:
        FormatError: another class.
    """
    said = text_of(dataset, "Modality")
    if not uid and len(dataset) == 0:
        raise FormatError(
            "expected a DICOM image, found no SOP Class UID (0008,0016) and no other element of one: the file is broken, or no DICOM file"
        )
    if uid in SECONDARY_CAPTURE:
        known = said in PICTURES or (dataset.get("SyntheticData") == "YES" and said in MODALITIES)
        modality = said if known else "OT"
    elif uid in SOP_CLASSES or (not uid and said in MODALITIES):
        modality = SOP_CLASSES.get(uid, said)
    else:
        raise FormatError(_stranger(uid, said))
    return (
        "OT"
        if modality in ("CT", "MR") and dataset.get("PhotometricInterpretation", "") not in (*GREY, "")
        else modality
    )


def _stranger(uid: str, said: str) -> str:
    from pydicom.uid import UID

    name = UID(uid).name if uid else ""
    words = f"SOP class {uid or '(none)'}{f' ({name})' if name not in ('', uid) else ''} (0008,0016)"
    if not uid:
        words += f" with Modality (0008,0060) {said!r}"
    return f"{words} is none that this version reads: CT, MR, X-ray (CR, DX, MG, XA, RF), ultrasound, secondary capture, Segmentation or RT Structure Set"


class _Described(NamedTuple):
    common: Slice
    frames: list[Slice]
    attributes: list[dict[str, Any]]


def _describe(file: Path, dataset: Any, modality: str, tags: tuple[str, ...] = ()) -> _Described:
    """The image as a slice, and each frame as one where frames have places of their own; with the frames' attributes."""
    common = _slice(file, dataset, modality, tags)
    count = frame_count(dataset)
    enhanced = _sop_class(dataset) in ENHANCED
    if count == 1 and not enhanced:
        return _Described(_scaled(common, dataset, dataset), [], [])
    attributes = frame_attributes(dataset, count)
    placed = modality not in PICTURES and any("ImagePositionPatient" in frame for frame in attributes)
    if not placed and not enhanced:
        return _Described(_scaled(common, dataset, dataset), [], attributes)
    units = {frame.get("units", "HU") for frame in attributes} - HOUNSFIELD_CODES
    if modality == "CT" and units:
        raise FormatError(f"Measurement Units Code Sequence (0040,08EA) says {min(units)!r}: expected a CT image in HU")
    places = {keyword: value for keyword in PLACE_KEYWORDS if (value := dataset.get(keyword)) is not None}
    frames = [_scaled(_frame(common, at, places | frame), dataset, frame) for at, frame in enumerate(attributes)]
    return _Described(common, frames, attributes)


def _slice(file: Path, dataset: Any, modality: str, tags: tuple[str, ...]) -> Slice:
    """The header's content as plain values."""
    notes: list[str] = []
    if modality == "CT":
        _check_rescale_type(dataset, notes)
    _note_projection(dataset, modality, notes)
    text = {name: text_of(dataset, name) for name in TEXTS}
    samples = int(dataset.get("SamplesPerPixel") or 1)
    if dataset.get("PhotometricInterpretation") == PALETTE:
        samples = 1 if palette_is_grey(dataset) else 3
    position, orientation, spacing = _place(dataset, modality, notes)
    return Slice(
        file=file,
        modality=modality,
        patient=text["PatientID"] or text["PatientName"] or None,
        study=text["StudyInstanceUID"] or None,
        series=text["SeriesInstanceUID"],
        instance_uid=text["SOPInstanceUID"],
        frame_of_reference=text["FrameOfReferenceUID"],
        channels=samples,
        rows=int(dataset.Rows),
        columns=int(dataset.Columns),
        position=position,
        orientation=orientation,
        spacing=spacing,
        thickness=number(dataset, "SliceThickness"),
        instance=number(dataset, "InstanceNumber") or 0.0,
        acquisition=tuple(_raw(dataset, name) if name in ACQUISITION_RAW else "" for name in ACQUISITION),
        notes=tuple(notes),
        tags=tuple((name, words) for name in tags if (words := _text(dataset, name))),
        burned_in={"YES": True, "NO": False}.get(text["BurnedInAnnotation"]),
        tilt=number(dataset, "GantryDetectorTilt"),
    )


ACQUISITION_RAW = frozenset(HEADER_KEYWORDS).intersection(ACQUISITION)


def _raw(dataset: Any, keyword: str) -> str:
    """An element's values as text, only to tell slices apart; by pydicom, ten more tags take 1 ms a file."""
    if keyword not in dataset:
        return ""
    # Image Type is decoded anyway.
    value = several(dataset, keyword) if keyword == "ImageType" else element_value(dataset.get_item(keyword))
    return "\\".join(str(part).strip() for part in (value if isinstance(value, list) else [value]))


def _text(dataset: Any, keyword: str) -> str:
    """An element's values as text; nothing for sequences and bytes."""
    from pydicom.datadict import dictionary_VR

    if keyword in dataset and dictionary_VR(keyword) == "PN":
        return text_of(dataset, keyword)
    if keyword not in dataset or dictionary_VR(keyword) in ("SQ", "OB", "OW", "OB or OW", "OF", "OD", "OL", "OV", "UN"):
        return ""
    return "\\".join(str(part).strip() for part in several(dataset, keyword))


def _frame(common: Slice, at: int, attributes: Mapping[str, Any]) -> Slice:
    """One frame as a slice: its own place, and what tells it apart."""
    notes: list[str] = []
    if common.modality == "CT":
        _check_rescale_type(attributes, notes)
    _note_projection(attributes, common.modality, notes)
    position, orientation, spacing = _place(attributes, common.modality, notes)
    own: dict[str, Any] = dict(attributes)
    own["ImageType"] = [*several(attributes, "ImageType"), *several(attributes, "ComplexImageComponent")]
    own["DiffusionGradientOrientation"] = attributes.get("gradient") or attributes.get("DiffusionDirectionality")
    own |= {f"dimension {place}": value for place, value in enumerate(attributes.get("dimensions", []))}
    own["file"] = common.instance_uid
    return replace(
        common,
        frame=at,
        position=position,
        orientation=orientation,
        spacing=spacing,
        thickness=number(attributes, "SliceThickness"),
        instance=float(at + 1),
        acquisition=tuple("\\".join(str(part) for part in several(own, name)) for name in ACQUISITION),
        notes=tuple(dict.fromkeys((*common.notes, *notes))),
    )


def _image_kinds(facts: Any) -> set[str]:
    return {str(value).strip().upper().replace(" ", "_") for value in several(facts, "ImageType")}


def _check_image_type(dataset: Any, modality: str) -> None:
    """Refuse CT and MR files that are no slices; PS3.3 C.8.2.1.1.1 knows LOCALIZER alone.

    Raises:
        FormatError: naming the tag.
    """
    if modality not in ("CT", "MR"):
        return
    kinds = _image_kinds(dataset)
    if "SCOUT" in kinds:
        raise FormatError("Image Type (0008,0008) SCOUT: a scout view, not a slice")
    if kinds & SCREENS:
        raise FormatError("Image Type (0008,0008) SCREEN SAVE: a picture of a screen, not a slice")


def _note_projection(facts: Any, modality: str, notes: list[str]) -> None:
    found = sorted(_image_kinds(facts) & PROJECTIONS) if modality in ("CT", "MR") else []
    if found:
        notes.append(f"Image Type (0008,0008) {found[0].replace('_', ' ')}: a projection of several slices")


def _scaled(entry: Slice, dataset: Any, facts: Any) -> Slice:
    """The slice, with a note where a CT has no rescale: it is Type 1 in PS3.3 C.8.2.1, and without it units are unknown.

    Args:
        entry: a slice of any modality.
        dataset: the file's header.
        facts: the same, or a frame's attributes.

    Raises:
        FormatError: no rescale, and stored values that cannot be HU.
    """
    if entry.modality != "CT" or dataset.get("SyntheticData") == "YES" or "ModalityLUTSequence" in dataset:
        return entry
    if number(facts, "RescaleSlope") is not None or number(facts, "RescaleIntercept") is not None:
        return entry
    if str(facts.get("RescaleType") or "").strip().startswith("HU"):
        return replace(entry, notes=(*entry.notes, f"{UNSCALED}, as Rescale Type (0028,1054) says"))
    if not dataset.get("PixelRepresentation"):
        raise _unscaled("unsigned values, which are no HU")
    return replace(entry, notes=(*entry.notes, UNSCALED))


def _unscaled(found: str) -> FormatError:
    return FormatError(
        f"expected Rescale Slope (0028,1053) and Rescale Intercept (0028,1052) in a CT image, found none and {found}: export it again from its source, or set both (dcmodify -i '(0028,1052)=-1024' -i '(0028,1053)=1' where air is 0)"
    )


Position = tuple[float, ...] | None


def _place(facts: Any, modality: str, notes: list[str]) -> tuple[Position, Position, tuple[float, float] | None]:
    """Position, orientation and spacing; pictures have no place in the patient. DICOM PS3.3 C.7.6.2.1.1."""
    position, orientation = numbers(facts, "ImagePositionPatient", 3), numbers(facts, "ImageOrientationPatient", 6)
    spacing = _spacing(facts, notes)
    if modality in PICTURES:
        return None, None, spacing
    if orientation is not None:
        row, column = orientation[:3], orientation[3:]
        lengths = [sum(value * value for value in axis) ** 0.5 for axis in (row, column)]
        product = sum(one * other for one, other in zip(row, column))
        if max(abs(length - 1) for length in lengths) > 0.01 or abs(product) > 0.01:
            notes.append("Image Orientation (0020,0037) is not a pair of perpendicular unit vectors: ignored")
            orientation = None
    return position, orientation, spacing


def _check_rescale_type(dataset: Any, notes: list[str]) -> None:
    """Refuse CT maps that are not HU (effective Z, iodine density); Rescale Type (0028,1054), DICOM PS3.3 C.8.15.3.10."""
    kind = str(dataset.get("RescaleType") or "HU").strip()
    if kind == "US":
        notes.append("Rescale Type (0028,1054) is US (unspecified): values are taken as HU")
    elif not kind.startswith("HU"):
        raise FormatError(f"Rescale Type (0028,1054) is {kind!r}: expected a CT image in HU")


def _spacing(facts: Any, notes: list[str]) -> tuple[float, float] | None:
    """(mm between rows, mm between columns), in this order as DICOM gives it, or None."""
    for keyword, tag in (
        ("PixelSpacing", "0028,0030"),
        ("ImagerPixelSpacing", "0018,1164"),
        ("NominalScannedPixelSpacing", "0018,2010"),
    ):
        pair = numbers(facts, keyword, 2)
        if pair is None:
            continue
        if min(pair) <= 0:
            notes.append(f"{keyword} ({tag}) {pair} is not positive: ignored")
            continue
        if keyword == "ImagerPixelSpacing":
            notes.append("pixel spacing is that at the detector (0018,1164), larger than in the patient")
        return pair[0], pair[1]
    return None


# ------------------------------------------------------------------------------------------------ scans


def arrange(headers: list[tuple[Path, dict[str, Any]]]) -> tuple[list[Source], list[Skipped]]:
    """Scans from headers: series sorted by position, pictures one by one, runs of pictures as one scan, masks."""
    contents = {file: content for file, content in headers if "common" in content}
    # Files first: a multi-frame file is a copy as a whole.
    firsts = [_slices(file, {"common": content["common"]})[0] for file, content in contents.items()]
    kept, copies = drop_identical(
        firsts, "SOP Instance UID (0008,0018)", [entry.instance_uid for entry in firsts], _file_digest
    )
    sources: list[Source] = []
    slices: list[Slice] = []
    for entry in kept:
        content = contents[entry.file]
        if _is_picture(entry) and "frames" not in content:
            sources.append(_picture(entry, content.get("cine", 0)))
        else:
            slices += _slices(entry.file, content)
    stacks, more = arrange_series(slices, _slice_digest)
    sources += [_volume(stack, notes) for stack, notes in stacks]
    masks = [(file, content["mask"]) for file, content in headers if "mask" in content]
    return sources + (dicom_masks.mask_sources(masks) if masks else []), copies + more


def _is_picture(entry: Slice) -> bool:
    return entry.modality in PICTURES or (entry.modality == "OT" and entry.position is None)


def _picture(entry: Slice, frames: int) -> Source:
    """A 2-D picture, or a run of them over time."""
    run = (f"{frames} frames (0028,0008) of one run: each is a 2-D picture of the same scan",) if frames else ()
    source = _volume([entry], run)
    shape = (entry.columns, entry.rows, frames or 1)
    return replace(source, dimensions=2, shape=shape, frames=tuple(range(frames)))


def _volume(stack: list[Slice], notes: tuple[str, ...]) -> Source:
    first = stack[0]
    files, frames = source_files(stack)
    instances = dict(zip((entry.file for entry in stack), (entry.instance_uid for entry in stack)))
    known = first.position is not None and first.orientation is not None
    return Source(
        files=files,
        format="dicom",
        modality=first.modality,
        channels=first.channels,
        dimensions=3,
        shape=(first.columns, first.rows, len(stack)),
        patient=first.patient,
        study=first.study,
        notes=notes + tuple(dict.fromkeys(note for entry in stack for note in entry.notes)),
        series=first.series or None,
        frame_of_reference=first.frame_of_reference or None,
        instances=tuple(instances[file] for file in files) if all(instances.values()) else (),
        frames=frames,
        affine=tuple(affine(stack).ravel().tolist()) if known else None,
        tags=first.tags,
        burned_in=_any_burned_in(stack),
    )


def _any_burned_in(stack: list[Slice]) -> bool | None:
    """True where one slice says yes, False where all say no, else None."""
    said = {entry.burned_in for entry in stack}
    return True if True in said else False if said == {False} else None


def _slice_digest(entry: Slice) -> str:
    """Hash of the decoded stored values, to tell copies (however compressed) from images that merely share a position."""
    return _digest(entry.file, [entry.frame or 0])


def _file_digest(entry: Slice) -> str:
    return _digest(entry.file, None)


def _digest(file: Path, frames: list[int] | None) -> str:
    opened = _all_elements(file)
    found = hashlib.sha256()
    for stored in stored_frames(file, opened, range(frame_count(opened.dataset)) if frames is None else frames, []):
        found.update(stored.astype("<i8").tobytes())
    return found.hexdigest()


# ------------------------------------------------------------------------------------------------ voxels


def read(source: Source) -> Image:
    """Voxels after the modality LUT: HU for CT, padding as air or background, MONOCHROME1 inverted (not CT).

    Slices are decoded one by one into the array, so the image and one compressed frame is all the memory it takes. An
    X-ray's VOI LUT becomes `Image.window`.

    Raises:
        FormatError: a file cannot be decoded; it is named.
        OSError: a file cannot be opened.
    """
    if source.role == "mask":
        raise FormatError("a mask, not an image: read it with read_mask, on the grid of its image")
    frames = source.frames or (0,) * len(source.files)
    files = source.files if len(source.files) == len(frames) else source.files * len(frames)
    notes = list(source.notes)
    slices: list[Slice] = []
    windows: set[Window] = set()
    # Memory holds slice behind slice, so that each is written and taken in one piece.
    array = np.empty((0, 0, 0, 0))
    for k, (plane, entry, words, window) in enumerate(_planes(files, frames)):
        if not slices:
            array = np.empty((len(frames), *plane.shape[::-1]), plane.dtype)
        if plane.shape != array.shape[:0:-1]:
            raise FormatError(
                f"expected slices of one size, found {array.shape[:0:-1]} and {plane.shape} in one series: the files changed since they were listed",
                entry.file,
            )
        array = _made_to_hold(array, plane.dtype)
        array[k] = plane.T
        slices.append(entry)
        windows.add(window)
        notes += words
    low, high = BETWEEN_AIR_AND_WATER
    if UNSCALED in source.notes and not any(((plane > low) & (plane < high)).any() for plane in array):
        raise _unscaled(f"no stored value between {low} and {high}, as HU of a body have")
    flat = source.dimensions == 2
    return Image(
        array.T,
        affine(slices[:1] if flat else slices),
        source.modality,
        "HU" if source.modality == "CT" else "a.u.",
        slices[0].spacing is not None,
        tuple(dict.fromkeys(notes)),
        windows.pop() if len(windows) == 1 else None,
    )


def _made_to_hold(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The array in a dtype that holds another one, too; slices of one series rarely differ. No float is wider than float32."""
    if array.dtype == dtype:
        return array
    floating = "f" in (array.dtype.kind, dtype.kind)
    return array.astype(np.float32 if floating else np.result_type(array.dtype, dtype), copy=False)


Plane = tuple[np.ndarray, Slice, list[str], Window]


def _planes(files: tuple[Path, ...], frames: tuple[int, ...]) -> Iterator[Plane]:
    """Of each slice its values (C, I, J), header, what was altered, and window.

    Raises:
        FormatError: with the file.
        OSError: the file cannot be opened.
    """
    for file, members in groupby(zip(files, frames), key=lambda pair: pair[0]):
        try:
            yield from _planes_of(file, [frame for _, frame in members])
        except FormatError as error:
            raise FormatError(str(error), file) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise _unreadable(file, error) from error
        except Exception as error:  # decoders raise anything on broken bytes
            raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> FormatError:
    return FormatError(
        f"expected a readable dicom file, found {explain(error, (file,))}: copy it again from its source", file
    )


def _planes_of(file: Path, frames: list[int]) -> Iterator[Plane]:
    stat = file.stat()
    opened, described, facts = _opened(file, stat.st_size, stat.st_mtime_ns)
    check_pixels(opened.dataset, opened.available)
    words: list[str] = []
    for at, stored in zip(frames, stored_frames(file, opened, frames, words)):
        own = described.attributes[at] if described.attributes else {}
        entry = described.frames[at] if described.frames else described.common
        plane, window = physical_values(stored, facts | own, entry.modality, words)
        require_finite(plane)
        yield plane, entry, words, window
        words.clear()


@lru_cache(maxsize=1)
def _opened(file: Path, size: int, mtime_ns: int) -> tuple[Header, _Described, dict[str, Any]]:
    """A file's header, kept for the next volume of the same file: one of 10,000 frames takes seconds."""
    opened = _all_elements(file)
    dataset = opened.dataset
    described = _describe(file, dataset, _modality(dataset, _sop_class(dataset)))
    return opened, described, value_facts(dataset)
