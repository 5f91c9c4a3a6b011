"""DICOM Segmentation and RT Structure Set -> label map on an image's grid."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from .dicom_file import Header, pixel_stream, read_header
from .dicom_frames import bit_reader, frame_reader
from .dicom_pixels import MAX_PIXELS, RLE, UNCOMPRESSED, frame_count, stored_frames
from .source import LPS_TO_RAS, MAX_VOXELS, FormatError, Source, explain

# SOP Class UID (0008,0016) -> what it is.
MASK_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.66.4": "SEG",
    "1.2.840.10008.5.1.4.1.1.66.7": "SEG",  # Label Map Segmentation
    "1.2.840.10008.5.1.4.1.1.481.3": "RTSTRUCT",
}
DEFLATED_FRAMES = "1.2.840.10008.1.2.8.1"
# No image has more slices; a header that claims more is broken or hostile.
MAX_SLICES = 10_000
# Contour Geometric Type (3006,0042) of outlines that have an inside.
CLOSED = ("CLOSED_PLANAR", "CLOSEDPLANAR_XOR")
SAME_PLANE_MM = 0.01
# Nothing of a patient lies further from the origin; NaN and infinity do not pass either.
FARTHEST_MM = 1e6
# A frame whose pixels lie within this of the image's voxel centres, in voxels, is on the image's grid.
ON_GRID = 0.1
# Outlines of one plane differ by no more than this along the slice axis, in slices.
ONE_PLANE = 0.02


@dataclass(frozen=True, slots=True, eq=False)
class Mask:
    """A label map on an image's grid.

    Attributes:
        array: (I, J, K) uint8; 0 is background.
        names: label -> Segment Label (0062,0005) or ROI Name (3006,0026). Text that users typed: private, it may hold
            anything.
        notes: what was altered, in words; no name and no identifier.
    """

    array: np.ndarray
    names: dict[int, str]
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Frames:
    """Where each of n frames lies: origin of its affine (n, 3), directions of one column and one row (n, 3), RAS+ mm.

    segments: (n,) Referenced Segment Number (0062,000B), 0 in a label map. positioned: False without positions.
    between: Spacing Between Slices (0018,0088) or None; thickness: Slice Thickness (0018,0050) or None.
    """

    segments: np.ndarray
    positioned: bool
    origin: np.ndarray
    along_row: np.ndarray
    along_column: np.ndarray
    between: float | None
    thickness: float | None


# ------------------------------------------------------------------------------------------------ headers


def mask_header(file: Path, dataset: Any) -> dict[str, Any]:
    """What `mask_sources` needs of one file; JSON-able.

    Args:
        file: where it lies.
        dataset: all of its data set; Pixel Data is not needed.

    Raises:
        FormatError: it is no mask that this version reads.
    """
    kind = _kind(dataset)
    grid = None
    if kind == "SEG":
        _check_segmentation(dataset)
        grid = _own_grid(_frames(dataset), int(dataset.Columns), int(dataset.Rows))
    elif not dataset.get("ROIContourSequence"):
        raise FormatError("ROI Contour Sequence (3006,0039) is absent or empty: the structure set holds no outlines")
    return {
        "kind": kind,
        **{name: str(dataset.get(keyword) or "").strip() for name, keyword in TEXTS.items()},
        "frame_of_reference": _frame_of_reference(dataset),
        "refers_to": _references(dataset),
        "segments": _segment_names(dataset, kind),
        "shape": None if grid is None else [int(size) for size in grid[1]],
        "affine": None if grid is None else [float(value) for value in grid[0].ravel()],
    }


TEXTS = {
    "patient": "PatientID",
    "name": "PatientName",
    "study": "StudyInstanceUID",
    "series": "SeriesInstanceUID",
    "instance": "SOPInstanceUID",
}


def mask_sources(headers: list[tuple[Path, dict[str, Any]]]) -> list[Source]:
    """One Source a file, with role "mask"; shape and affine are those of a Segmentation's own frames, where they tell.

    A structure set, or a Segmentation whose frames form no volume, has shape (0, 0, 0) and no affine.
    """
    return [
        Source(
            files=(file,),
            format="dicom",
            modality="OT",
            channels=1,
            dimensions=3,
            shape=tuple(header["shape"] or (0, 0, 0)),
            patient=header["patient"] or header["name"] or None,
            study=header["study"] or None,
            series=header["series"] or None,
            frame_of_reference=header["frame_of_reference"] or None,
            instances=(header["instance"],) if header["instance"] else (),
            affine=None if header["affine"] is None else tuple(header["affine"]),
            role="mask",
            refers_to=tuple(header["refers_to"]),
            segments=tuple(header["segments"]),
        )
        for file, header in headers
    ]


def _kind(dataset: Any) -> str:
    """SEG or RTSTRUCT.

    Raises:
        FormatError: another SOP class.
    """
    uid = str(dataset.get("SOPClassUID") or dataset.file_meta.get("MediaStorageSOPClassUID") or "")
    if uid not in MASK_CLASSES:
        raise FormatError(f"SOP class {uid or '(none)'} (0008,0016) is neither a Segmentation nor an RT Structure Set")
    return MASK_CLASSES[uid]


def _segment_names(dataset: Any, kind: str) -> list[str]:
    """Names as `Mask.names` has them, each once."""
    if kind == "RTSTRUCT":
        return list(dict.fromkeys(_text(item, "ROIName") for item in _items(dataset, "StructureSetROISequence")))
    numbered = [item for item in _items(dataset, "SegmentSequence") if int(item.SegmentNumber)]
    return list(dict.fromkeys(_text(item, "SegmentLabel") for item in numbered))


def _frame_of_reference(dataset: Any) -> str:
    """Frame of Reference UID (0020,0052); of a structure set also from what it refers to."""
    candidates = [dataset.get("FrameOfReferenceUID")]
    candidates += [item.get("FrameOfReferenceUID") for item in _items(dataset, "ReferencedFrameOfReferenceSequence")]
    candidates += [item.get("ReferencedFrameOfReferenceUID") for item in _items(dataset, "StructureSetROISequence")]
    return next((str(uid) for uid in candidates if uid), "")


def _references(dataset: Any) -> list[str]:
    """SOP Instance and Series Instance UIDs of the images that it was drawn on; each once."""
    found: list[str] = []
    for series in _items(dataset, "ReferencedSeriesSequence"):
        found += [_text(series, "SeriesInstanceUID"), *_instances(series, "ReferencedInstanceSequence")]
    found += _instances(dataset, "SourceImageSequence")
    for group in (
        *_items(dataset, "SharedFunctionalGroupsSequence"),
        *_items(dataset, "PerFrameFunctionalGroupsSequence"),
    ):
        for image in _items(group, "DerivationImageSequence"):
            found += _instances(image, "SourceImageSequence")
    for frame in _items(dataset, "ReferencedFrameOfReferenceSequence"):
        for study in _items(frame, "RTReferencedStudySequence"):
            for series in _items(study, "RTReferencedSeriesSequence"):
                found += [_text(series, "SeriesInstanceUID"), *_instances(series, "ContourImageSequence")]
    for roi in _items(dataset, "ROIContourSequence"):
        for contour in _items(roi, "ContourSequence"):
            found += _instances(contour, "ContourImageSequence")
    return [uid for uid in dict.fromkeys(found) if uid]


def _instances(item: Any, keyword: str) -> list[str]:
    return [_text(image, "ReferencedSOPInstanceUID") for image in _items(item, keyword)]


def _items(item: Any, keyword: str) -> list[Any]:
    return list(item.get(keyword) or ())


def _text(item: Any, keyword: str) -> str:
    return str(item.get(keyword) or "").strip()


# ------------------------------------------------------------------------------------------------ reading


def refusal(mask: Source, image: Source) -> str | None:
    """Why a mask cannot be one of this image, or None: it refers to the image, or both share a frame of reference."""
    if set(mask.refers_to) & {image.series, *image.instances}:
        return None
    if mask.frame_of_reference and mask.frame_of_reference == image.frame_of_reference:
        return None
    unknown = not mask.frame_of_reference or not image.frame_of_reference
    if unknown and (not mask.refers_to or not (image.series or image.instances)):
        return None  # nothing speaks against it
    return (
        "expected the mask's image, found one that it does not refer to (0008,1115) and another Frame of Reference "
        "(0020,0052): give it the series that it was drawn on"
    )


def read_mask(mask: Source, affine: np.ndarray, shape: tuple[int, int, int], image: Source | None = None) -> Mask:
    """Read a Segmentation or structure set as a label map on an image's grid.

    Frames that lie on the grid are copied voxel by voxel, whatever their order and direction; others are resampled
    to the nearest voxel. Outlines are filled by the even-odd rule at voxel centres. Where segments overlap, the
    smaller one wins. Segment and ROI numbers are the labels where they are 1 to 255.

    Args:
        mask: from `mask_sources`.
        affine: (4, 4), the image's voxel index -> mm in RAS+.
        shape: (I, J, K) of the image.
        image: where given, it is checked that the mask is one of this image.

    Raises:
        FormatError: it cannot be read, lies outside the image, or belongs to another one.
        OSError: the file cannot be opened.
    """
    reason = None if image is None else refusal(mask, image)
    if reason is not None:
        raise FormatError(reason, mask.files[0])
    try:
        header = read_header(mask.files[0])
        kind = _kind(header.dataset)
        if kind == "SEG":
            return _read_segmentation(mask.files[0], header, affine, shape)
        return _read_structures(header.dataset, affine, shape)
    except FormatError as error:
        raise FormatError(str(error), mask.files[0]) from error
    except OSError:
        raise
    except Exception as error:  # pydicom and decoders raise anything on broken files
        raise FormatError(
            f"expected a readable DICOM mask, found {explain(error, mask.files)}: copy it again from its source",
            mask.files[0],
        ) from error


def _labels(numbers: list[int]) -> tuple[dict[int, int], list[str]]:
    """Segment or ROI number -> label in 1..255: itself where possible.

    Raises:
        FormatError: more than 255.
    """
    numbers = list(dict.fromkeys(numbers))
    if all(1 <= number <= 255 for number in numbers):
        return {number: number for number in numbers}, []
    if len(numbers) > 255:
        raise FormatError(f"expected at most 255 segments in one mask, found {len(numbers)}: split it")
    return {number: 1 + index for index, number in enumerate(sorted(numbers))}, ["labels are renumbered from 1"]


def _overlap_note(overlap: int) -> list[str]:
    return [f"segments overlap in {overlap} voxels: the smaller segment has them"] if overlap else []


# ------------------------------------------------------------------------------------------------ Segmentation


# Frame numbers -> the decoded frames.
Planes = Callable[[list[int]], Iterator[np.ndarray]]


def _check_segmentation(dataset: Any) -> None:
    """Refuse what is no label map of a volume or picture.

    Raises:
        FormatError: with the tag that says so.
    """
    if dataset.get("TotalPixelMatrixColumns") or str(dataset.get("DimensionOrganizationType") or "").startswith(
        "TILED"
    ):
        raise FormatError(
            "Dimension Organization Type (0020,9311) is tiled: a mask of a microscopy slide, which this version does not read"
        )
    kind = _text(dataset, "SegmentationType")
    if kind not in ("BINARY", "FRACTIONAL", "LABELMAP"):
        raise FormatError(f"Segmentation Type (0062,0001) is {kind!r}: expected BINARY, FRACTIONAL or LABELMAP")
    if not dataset.get("SegmentSequence"):
        raise FormatError("Segment Sequence (0062,0002) is absent or empty: the mask holds no segments")
    if not 0 < int(dataset.get("Rows") or 0) * int(dataset.get("Columns") or 0) <= MAX_PIXELS:
        raise FormatError(
            f"expected 1 to 2^28 pixels a frame, found Rows (0028,0010) {dataset.get('Rows')} and Columns (0028,0011) {dataset.get('Columns')}"
        )
    frames, described = (
        frame_count(dataset),
        len(_items(dataset, "PerFrameFunctionalGroupsSequence")),
    )
    if described < frames:
        raise FormatError(
            f"expected Per-Frame Functional Groups (5200,9230) for {frames} frames, found {described}: the header is broken"
        )


def _read_segmentation(file: Path, header: Header, affine: np.ndarray, shape: tuple[int, int, int]) -> Mask:
    dataset = header.dataset
    _check_segmentation(dataset)
    planes = partial(_planes, file, header)
    frames = _frames(dataset)
    columns, rows = int(dataset.Columns), int(dataset.Rows)
    segments = {int(item.SegmentNumber): _text(item, "SegmentLabel") for item in dataset.SegmentSequence}
    segments.pop(0, None)  # of a label map: background, by its definition
    labels, notes = _labels(list(segments))
    names = {label: segments[number] for number, label in labels.items()}
    if _text(dataset, "SegmentationType") == "FRACTIONAL":
        notes.append("fractional segmentation: voxels of one half and more are inside")
    if not frames.positioned:
        affine = _pixel_for_pixel(frames, (columns, rows), shape)
        notes.append("the mask has no position: taken pixel for pixel")
    placed = None if _is_coarser(frames, affine) else _on_grid(frames, affine, columns, rows)
    if placed is not None:
        array, outside, overlap = _paint(planes, frames, placed, shape, labels)
        notes += [f"{outside} voxels lie outside the image: left out"] if outside else []
        missed = outside > 0 and not array.any()
    else:
        own, own_affine, overlap = _on_own_grid(planes, frames, (columns, rows), labels)
        array = _nearest(own, own_affine, affine, shape)
        notes.append("its grid is not the image's: resampled to the nearest voxel")
        missed = bool(own.any()) and not array.any()
    if missed:
        raise FormatError("expected a mask of this image, found that all of it lies outside: give it its own image")
    return Mask(array, names, (*notes, *_overlap_note(overlap)))


def _on_own_grid(
    planes: Planes, frames: _Frames, size: tuple[int, int], labels: dict[int, int]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Label map on the grid of the frames themselves, its affine, and how many voxels several segments claim.

    Raises:
        FormatError: the frames form no volume.
    """
    own = _own_grid(frames, *size)
    if own is None:
        raise FormatError(
            "expected evenly spaced frames or the image's own grid, found neither in Plane Position (0020,9113): give it the series that it was drawn on"
        )
    placed = _on_grid(frames, own[0], *size)
    assert placed is not None, "a mask lies on its own grid"
    array, _, overlap = _paint(planes, frames, placed, own[1], labels)
    return array, own[0], overlap


def _frames(dataset: Any) -> _Frames:
    """Segment and place of every frame; DICOM PS3.3 C.7.6.16.2 (functional groups), C.8.20.2 (Segmentation).

    Raises:
        FormatError: a frame says neither which segment it is nor where it lies.
    """
    shared = (_items(dataset, "SharedFunctionalGroupsSequence") or [{}])[0]
    count = frame_count(dataset)
    groups = _items(dataset, "PerFrameFunctionalGroupsSequence")[:count]
    label_map = _text(dataset, "SegmentationType") == "LABELMAP"

    def each(sequence: str, keyword: str) -> list[Any]:
        common = (_items(shared, sequence) or [{}])[0].get(keyword)
        return [common if not (own := _items(group, sequence)) else own[0].get(keyword) for group in groups]

    segments = [0] * count if label_map else each("SegmentIdentificationSequence", "ReferencedSegmentNumber")
    if any(number is None for number in segments):
        raise FormatError("Referenced Segment Number (0062,000B) is absent: which segment a frame is cannot be known")
    position = each("PlanePositionSequence", "ImagePositionPatient")
    orientation = each("PlaneOrientationSequence", "ImageOrientationPatient")
    spacing = each("PixelMeasuresSequence", "PixelSpacing")
    positioned = all(value is not None for value in (*position, *orientation, *spacing))
    if not positioned:
        position, orientation, spacing = [(0, 0, 0)] * count, [(1, 0, 0, 0, 1, 0)] * count, [(1, 1)] * count
    places, turns = _array(position, 3), _array(orientation, 6)
    sizes = _array(spacing, 2)
    if (sizes <= 0).any() or (np.linalg.norm(np.cross(turns[:, :3], turns[:, 3:]), axis=1) < 0.9).any():
        raise FormatError(
            "expected positive Pixel Spacing (0028,0030) and perpendicular directions (0020,0037) of every frame, found others: the header is broken"
        )
    flip = np.diag(LPS_TO_RAS)[:3]
    return _Frames(
        np.array(segments, int),
        positioned,
        places * flip,
        turns[:, :3] * sizes[:, 1:] * flip,
        turns[:, 3:] * sizes[:, :1] * flip,
        _positive(each("PixelMeasuresSequence", "SpacingBetweenSlices")[0]),
        _positive(each("PixelMeasuresSequence", "SliceThickness")[0]),
    )


def _array(values: list[Any], width: int) -> np.ndarray:
    if any(len(value) != width for value in values):
        raise FormatError(
            f"expected {width} numbers a frame in its position, orientation or spacing: the header is broken"
        )
    array = np.array([[float(number) for number in value] for value in values])
    if not (np.abs(array) <= FARTHEST_MM).all():
        raise FormatError("expected positions of frames in mm, found some beyond a kilometre: the header is broken")
    return array


def _positive(value: Any) -> float | None:
    """A distance; some writers give it a sign."""
    number = abs(float(value)) if value not in (None, "") else 0.0
    return number if 0 < number < np.inf else None


def _own_grid(frames: _Frames, columns: int, rows: int) -> tuple[np.ndarray, tuple[int, int, int]] | None:
    """Affine (RAS+) and shape of the volume whose planes the frames are, where empty ones may be absent; None if none."""
    along_row, along_column = frames.along_row[0], frames.along_column[0]
    turned = (
        np.abs(frames.along_row - along_row).max() > 1e-3 or np.abs(frames.along_column - along_column).max() > 1e-3
    )
    if turned or not frames.positioned:
        return None
    # In RAS+ as in LPS+, row x column is the side that K points to.
    across = np.cross(along_row, along_column)
    across /= np.linalg.norm(across)
    heights = frames.origin @ across
    order = np.argsort(heights, kind="stable")
    first, last = frames.origin[order[0]], frames.origin[order[-1]]
    gaps = np.diff(heights[order])
    gaps = gaps[gaps > SAME_PLANE_MM]
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 3] = along_row, along_column, first
    if gaps.size == 0:
        affine[:3, 2] = across * (frames.between or frames.thickness or 1.0)
        count = 1
    else:
        step = _step(gaps, frames.between)
        count = 1 + round(float(heights[order[-1]] - heights[order[0]]) / step)
        affine[:3, 2] = (last - first) / (count - 1)
        indices = np.rint((heights - heights[order[0]]) / step)
        away = np.abs(frames.origin - first - indices[:, None] * affine[:3, 2]).max()
        if away > max(0.1, 0.02 * step) + 1e-6 or away > 0.25 * step:
            return None
    shape = (columns, rows, count)
    if count > MAX_SLICES or columns * rows * count > MAX_VOXELS:
        return None
    return affine, shape


def _step(gaps: np.ndarray, between: float | None) -> float:
    """Distance of planes: Spacing Between Slices where the gaps are multiples of it, else the smallest gap."""
    smallest = float(gaps.min())
    if between is not None:
        away = np.abs(gaps - np.rint(gaps / between) * between)
        if (np.rint(gaps / between) >= 1).all() and away.max() <= min(max(0.1, 0.02 * between), 0.25 * between):
            return between
    return smallest


def _is_coarser(frames: _Frames, affine: np.ndarray) -> bool:
    """True where the mask's own planes are further apart than the image's slices: those between them are not empty."""
    across = np.cross(frames.along_row[0], frames.along_column[0])
    across /= np.linalg.norm(across)
    gaps = np.diff(np.sort(frames.origin @ across))
    gaps = gaps[gaps > SAME_PLANE_MM]
    if frames.between is None or gaps.size == 0 or _step(gaps, frames.between) != frames.between:
        return False
    return frames.between > 1.5 * float(np.abs(across @ affine[:3, :3]).max())


def _pixel_for_pixel(frames: _Frames, size: tuple[int, int], shape: tuple[int, int, int]) -> np.ndarray:
    """The affine of a picture's mask, which has no place in the patient.

    Raises:
        FormatError: the image is no picture of the mask's size.
    """
    if size != shape[:2] or shape[2] != 1:
        raise FormatError(
            f"expected Plane Position (0020,9113) or a picture of {size[0]} x {size[1]} pixels, found an image of shape {shape}: give it its own image"
        )
    return LPS_TO_RAS


def _on_grid(frames: _Frames, affine: np.ndarray, columns: int, rows: int) -> np.ndarray | None:
    """Each frame's (origin, step of a column, step of a row) in whole voxels of a grid, (n, 3, 3), or None."""
    inverse = np.linalg.inv(affine)
    origin = frames.origin @ inverse[:3, :3].T + inverse[:3, 3]
    steps = np.stack([frames.along_row @ inverse[:3, :3].T, frames.along_column @ inverse[:3, :3].T], axis=1)
    whole = np.concatenate([np.rint(origin)[:, None], np.rint(steps)], axis=1)
    if np.abs(whole).max() > 2**31:
        return None
    # One voxel along one axis each, and not both along the same.
    lengths = np.abs(whole[:, 1:]).sum(axis=2)
    if (lengths != 1).any() or (np.abs(whole[:, 1:]).sum(axis=1) > 1).any():
        return None
    for column, row in ((0, 0), (columns - 1, 0), (0, rows - 1)):
        away = origin + column * steps[:, 0] + row * steps[:, 1]
        away = away - (whole[:, 0] + column * whole[:, 1] + row * whole[:, 2])
        if np.abs(away).max() > ON_GRID:
            return None
    return whole.astype(np.int64)


def _planes(file: Path, header: Header, order: list[int]) -> Iterator[np.ndarray]:
    """Decoded frames (rows, columns) in a given order, one in memory at a time: inside or not, or segment numbers."""
    kind = _text(header.dataset, "SegmentationType")
    most = int(header.dataset.get("MaximumFractionalValue") or 255)
    for plane in _decoded(file, header, order):
        if kind == "LABELMAP":
            yield plane
        else:
            yield plane > 0 if kind == "BINARY" else plane.astype(np.int64) * 2 >= most


def _decoded(file: Path, header: Header, order: list[int]) -> Iterator[np.ndarray]:
    """Stored values of frames; single bits, and frames that are deflated, are decoded here."""
    dataset = header.dataset
    syntax, bits = str(dataset.file_meta.TransferSyntaxUID), int(dataset.BitsAllocated)
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    size = (rows * columns * bits + 7) // 8
    if bits == 1 and syntax in UNCOMPRESSED:
        with pixel_stream(file, header, size * frame_count(dataset)) as stream:
            packed = bit_reader(stream, dataset, rows * columns)
            for index in order:
                yield packed(index).reshape(rows, columns)
    elif syntax != DEFLATED_FRAMES and not (syntax == RLE and bits == 1):
        yield from stored_frames(file, header, order, [])
    else:
        with pixel_stream(file, header, size) as stream:
            frame = frame_reader(stream, dataset, size, True)
            for index in order:
                stored = (
                    _inflated(frame(index), size) if syntax == DEFLATED_FRAMES else _run_lengths(frame(index), size)
                )
                if len(stored) < size:
                    raise FormatError(f"expected {size} bytes in frame {index}, found {len(stored)}: it is truncated")
                values = np.frombuffer(stored, np.uint8 if bits < 16 else "<u2")
                values = np.unpackbits(values, bitorder="little")[: rows * columns] if bits == 1 else values
                yield values.reshape(rows, columns)


def _inflated(frame: bytes, size: int) -> bytes:
    """A deflated frame (PS3.5 A.4.12), no further than size bytes."""
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, size)


def _run_lengths(coded: bytes, size: int) -> bytes:
    """A frame of one RLE segment behind its header (PS3.5 G.3.2 and G.5), no further than size bytes."""
    decoded = bytearray()
    at = 64
    while at < len(coded) and len(decoded) < size:
        count = coded[at]
        if count < 128:
            decoded += coded[at + 1 : at + 2 + count]
            at += 2 + count
        else:
            decoded += coded[at + 1 : at + 2] * (257 - count if count > 128 else 0)
            at += 2 if count > 128 else 1
    return bytes(decoded[:size])


def _paint(
    planes: Planes, frames: _Frames, placed: np.ndarray, shape: tuple[int, int, int], labels: dict[int, int]
) -> tuple[np.ndarray, int, int]:
    """Label map (I, J, K), the voxels outside of it, and those that several segments claim."""
    order = np.arange(len(placed))
    array, outside, overlap, sizes = _paint_in_order(planes, frames, placed, shape, labels, order)
    if overlap:
        # The smaller segment is painted later.
        order = np.array(sorted(order, key=lambda index: -sizes[int(frames.segments[index])]))
        array, outside, overlap, _ = _paint_in_order(planes, frames, placed, shape, labels, order)
    return array, outside, overlap


def _paint_in_order(
    planes: Planes,
    frames: _Frames,
    placed: np.ndarray,
    shape: tuple[int, int, int],
    labels: dict[int, int],
    order: np.ndarray,
) -> tuple[np.ndarray, int, int, dict[int, int]]:
    """Label map, voxels outside, voxels painted again with another label, and the size of each segment."""
    array = np.zeros(shape, np.uint8)
    table = np.zeros(max(labels, default=0) + 1, np.uint8)
    table[list(labels)] = list(labels.values())
    outside = 0
    claimed = np.zeros(shape, bool)
    sizes: dict[int, int] = defaultdict(int)
    for index, plane in zip(order, planes([int(index) for index in order])):
        row, column = np.nonzero(plane)
        number = int(frames.segments[index])
        values = table[np.full(row.size, number) if number else plane[row, column].clip(0, len(table) - 1)]
        sizes[number] += row.size
        origin, along_row, along_column = placed[index]
        voxel = origin + column[:, None] * along_row + row[:, None] * along_column
        inside = ((voxel >= 0) & (voxel < shape)).all(axis=1) & (values > 0)
        outside += int(np.count_nonzero(values)) - int(np.count_nonzero(inside))
        where = np.ravel_multi_index(tuple(voxel[inside].T), shape)
        before = array.flat[where]
        claimed.flat[where[(before > 0) & (before != values[inside])]] = True
        array.flat[where] = values[inside]
    return array, outside, int(np.count_nonzero(claimed)), sizes


def _nearest(array: np.ndarray, own: np.ndarray, affine: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Label map at the voxel centres of another grid."""
    from scipy.ndimage import affine_transform

    into = np.linalg.inv(own) @ affine
    # A border of background, so that the outer half of the outermost voxels counts.
    return np.asarray(
        affine_transform(np.pad(array, 1), into[:3, :3], into[:3, 3] + 1, output_shape=tuple(shape), order=0)
    )


# ------------------------------------------------------------------------------------------------ RT Structure Set


def _read_structures(dataset: Any, affine: np.ndarray, shape: tuple[int, int, int]) -> Mask:
    """Outlines filled slice by slice; DICOM PS3.3 C.8.8.6."""
    rois = {int(item.ROINumber): _text(item, "ROIName") for item in _items(dataset, "StructureSetROISequence")}
    outlines: dict[int, list[np.ndarray]] = defaultdict(list)
    open_ones = 0
    to_voxels = np.linalg.inv(affine) @ LPS_TO_RAS
    for item in _items(dataset, "ROIContourSequence"):
        number = int(item.ReferencedROINumber)
        rois.setdefault(number, "")
        for contour in _items(item, "ContourSequence"):
            points = _points(contour)
            if _text(contour, "ContourGeometricType") not in CLOSED or len(points) < 3:
                open_ones += 1
                continue
            outlines[number].append(points @ to_voxels[:3, :3].T + to_voxels[:3, 3])
    if not outlines:
        raise FormatError(
            "expected closed outlines (3006,0042 CLOSED_PLANAR), found none: the structure set holds no areas"
        )
    labels, notes = _labels(list(rois))
    notes += [f"{open_ones} outlines are points or open lines: left out"] if open_ones else []
    counts: dict[str, int] = defaultdict(int)
    areas = {labels[number]: _fill(rings, shape, counts) for number, rings in outlines.items()}
    array, overlap = _stack(areas, shape)
    if not array.any():
        raise FormatError(
            "expected outlines in the slices of this image, found that they lie outside or across its slices: give it the series that it was drawn on"
        )
    notes += [f"{count} outlines {words}" for words, count in counts.items()]
    sparse = sum(_is_sparse(area) for area in areas.values())
    if sparse:
        notes.append(f"{sparse} structures are outlined on every second slice or fewer: slices between stay empty")
    return Mask(array, {labels[number]: name for number, name in rois.items()}, (*notes, *_overlap_note(overlap)))


def _points(contour: Any) -> np.ndarray:
    """Contour Data (3006,0050) as (n, 3) mm in LPS+, parsed at once: pydicom makes an object of each number.

    Raises:
        FormatError: no triples of finite numbers.
    """
    element = contour.get_item("ContourData") if "ContourData" in contour else None
    value = None if element is None else element.value
    parts = value.strip(b" \0").split(b"\\") if isinstance(value, bytes) else list(value or ())
    try:
        numbers = np.array([part for part in parts if part != b""], dtype=np.float64)
    except ValueError as error:
        raise FormatError("expected numbers in Contour Data (3006,0050), found text: the header is broken") from error
    if numbers.size % 3 or not (np.abs(numbers) <= FARTHEST_MM).all():
        raise FormatError(
            f"expected x, y, z in mm in Contour Data (3006,0050), found {numbers.size} numbers or some beyond a kilometre: the header is broken"
        )
    return numbers.reshape(-1, 3)


Area = dict[int, tuple[int, int, np.ndarray]]


def _fill(rings: list[np.ndarray], shape: tuple[int, int, int], counts: dict[str, int]) -> Area:
    """One ROI: slice -> (first i, first j, inside) for each slice that the nearest plane of outlines is drawn on.

    Args:
        rings: outlines (n, 3) in voxels.
        shape: (I, J, K) of the image.
        counts: what is odd -> how many outlines, added to.
    """
    kept: dict[bytes, np.ndarray] = {}
    for ring in rings:
        middle = float(ring[:, 2].mean())
        if np.abs(ring[:, 2] - middle).max() > 0.5:
            counts["lie across the image's slices: left out"] += 1
        elif not -0.5 <= middle <= shape[2] - 0.5:
            counts["lie before the first or behind the last slice: left out"] += 1
        else:
            counts["lie between slices: put on the nearest"] += int(abs(middle - round(middle)) > ON_GRID)
            # Rounded, so that an outline through voxel centres is not frayed by the 15th decimal.
            rounded = np.round(ring, 4) + 0.0
            counts["are there twice: used once"] += int(rounded.tobytes() in kept)
            kept[rounded.tobytes()] = rounded
    for words in [words for words, count in counts.items() if not count]:
        del counts[words]
    nearest: dict[int, tuple[float, list[np.ndarray]]] = {}
    for middle, plane in _by_plane(list(kept.values())):
        k = min(max(round(middle), 0), shape[2] - 1)
        if k not in nearest or abs(middle - k) < abs(nearest[k][0] - k):
            nearest[k] = middle, plane
    return {k: inside for k, (_, plane) in nearest.items() if (inside := even_odd(plane, shape[:2])) is not None}


def _is_sparse(area: Area) -> bool:
    """True where outlines usually skip a slice: they were drawn on thicker slices than the image's."""
    return len(area) > 2 and bool(np.median(np.diff(sorted(area))) > 1)


def _by_plane(rings: list[np.ndarray]) -> list[tuple[float, list[np.ndarray]]]:
    """Outlines that lie in one plane together, with its place in slices."""
    planes: list[tuple[float, list[np.ndarray]]] = []
    for ring in sorted(rings, key=lambda ring: float(ring[:, 2].mean())):
        middle = float(ring[:, 2].mean())
        if planes and middle - planes[-1][0] <= ONE_PLANE:
            planes[-1][1].append(ring)
        else:
            planes.append((middle, [ring]))
    return planes


def even_odd(rings: list[np.ndarray], size: tuple[int, int]) -> tuple[int, int, np.ndarray] | None:
    """Pixels whose centre lies inside an odd number of polygons: a nested outline is a hole.

    A line of pixels is walked along I; each edge that it crosses turns inside into outside. A centre on an edge is
    inside at the edge's low side only, so areas that share an edge share no pixel.

    Args:
        rings: polygons (n, 2 or more) of (i, j) in pixels, closed by themselves.
        size: (I, J) of the picture.

    Returns:
        (first i, first j, inside as bool (i, j)), cut to where the polygons lie; None when they miss the picture.
    """
    start = np.concatenate([ring[:, :2] for ring in rings])
    end = np.concatenate([np.roll(ring[:, :2], -1, axis=0) for ring in rings])
    i0, j0 = (max(0, int(np.ceil(low))) for low in start.min(axis=0))
    i1, j1 = (min(limit - 1, int(np.floor(high))) for high, limit in zip(start.max(axis=0), size))
    if i1 < i0 or j1 < j0:
        return None
    swap = start[:, 1] > end[:, 1]
    start[swap], end[swap] = end[swap], start[swap]
    first = np.clip(np.ceil(start[:, 1]), j0, j1 + 1).astype(int)
    lines = np.clip(np.ceil(end[:, 1]), j0, j1 + 1).astype(int) - first
    edge = np.repeat(np.arange(len(start)), lines)
    j = first[edge] + np.arange(edge.size) - np.repeat(np.cumsum(lines) - lines, lines)
    slope = (end[edge, 0] - start[edge, 0]) / (end[edge, 1] - start[edge, 1])
    crossing = start[edge, 0] + (j - start[edge, 1]) * slope
    i = np.clip(np.ceil(np.round(crossing, 6)), i0, i1 + 1).astype(int)
    turns = np.zeros((i1 - i0 + 2, j1 - j0 + 1), np.int32)
    np.add.at(turns, (i - i0, j - j0), 1)
    return i0, j0, np.cumsum(turns[:-1], axis=0) % 2 == 1


def _stack(areas: dict[int, Area], shape: tuple[int, int, int]) -> tuple[np.ndarray, int]:
    """Label map, the smaller ROI above the larger one, and the number of voxels that several claim."""
    array = np.zeros(shape, np.uint8)
    claimed = np.zeros(shape, bool)
    sizes = {label: sum(int(inside.sum()) for *_, inside in area.values()) for label, area in areas.items()}
    for label in sorted(areas, key=lambda label: -sizes[label]):
        for k, (i, j, inside) in areas[label].items():
            window = (slice(i, i + inside.shape[0]), slice(j, j + inside.shape[1]), k)
            claimed[window] |= inside & (array[window] > 0)
            array[window][inside] = label
    return array, int(np.count_nonzero(claimed))
