"""DICOM Segmentation and RT Structure Set as label maps: highdicom as reference, closed forms, planted faults."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from highdicom.seg import Segmentation, SegmentDescription, segread
from hypothesis import given
from hypothesis import strategies as st
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from scansmith import formats
from scansmith.formats import FormatError, Source, dicom_masks
from scansmith.formats.dicom_masks import even_odd, mask_header, mask_sources, read_mask, refusal
from scansmith.formats.source import quiet

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
SHAPE = (12, 10, 6)
COS, SIN = float(np.cos(0.4)), float(np.sin(0.4))
OBLIQUE = [COS, SIN, 0.0, -SIN * 0.8, COS * 0.8, 0.6]
AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def image_series(orientation=OBLIQUE, shape=SHAPE, spacing=(1.5, 0.75), step=2.5):
    """A small CT series: data sets in the order of K, and its affine in RAS+."""
    row, column = np.array(orientation[:3]), np.array(orientation[3:])
    across = np.cross(row, column)
    columns, rows, slices = shape
    series, study, frame = "1.2.3.4", "1.2.3", "1.2.5"
    datasets = []
    for k in range(slices):
        dataset = Dataset()
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.4.{k + 1}"
        dataset.PatientID, dataset.PatientName, dataset.PatientBirthDate, dataset.PatientSex = "P1", "A^B", "", ""
        dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = study, series, frame
        dataset.StudyID = dataset.StudyDate = dataset.StudyTime = dataset.AccessionNumber = ""
        dataset.ReferringPhysicianName, dataset.Modality = "", "CT"
        dataset.Rows, dataset.Columns, dataset.PixelSpacing, dataset.SliceThickness = rows, columns, list(spacing), step
        dataset.ImageOrientationPatient = [round(x, 8) for x in orientation]
        dataset.ImagePositionPatient = [round(float(x), 6) for x in np.array([-20, 30, 7]) + k * step * across]
        datasets.append(dataset)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = row * spacing[1], column * spacing[0], across * step
    affine[:3, 3] = [-20, 30, 7]
    return datasets, LPS @ affine


def describe(number, label):
    return SegmentDescription(
        number,
        label,
        codes.SCT.Organ,
        codes.SCT.Liver,
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.MANUAL,
    )


def write_seg(path, datasets, array, kind="BINARY", labels=("liver", "lesion"), **options):
    """array (K, J, I) or (K, J, I, segments), written by highdicom."""
    with quiet():
        segmentation = Segmentation(
            datasets,
            array,
            kind,
            [describe(n + 1, label) for n, label in enumerate(labels)],
            series_instance_uid=generate_uid(),
            series_number=9,
            sop_instance_uid=generate_uid(),
            instance_number=1,
            manufacturer="M",
            manufacturer_model_name="M",
            software_versions="1",
            device_serial_number="1",
            **options,
        )
        segmentation.save_as(path)
    return path


def source_of(path):
    with quiet():
        header = mask_header(path, pydicom.dcmread(path, stop_before_pixels=True))
    (source,) = mask_sources([(path, json.loads(json.dumps(header)))])
    return source


def two_segments(rng, shape=SHAPE):
    """(K, J, I) labels: random blobs, with empty first and last slices."""
    array = rng.choice([0, 0, 0, 1, 2], shape[::-1]).astype(np.uint8)
    array[[0, -1]] = 0
    return array


# ------------------------------------------------------------------------------------------------ Segmentation


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_a_segmentation_lies_on_its_image_voxel_by_voxel(tmp_path, orientation, kind):
    datasets, affine = image_series(orientation)
    array = two_segments(np.random.default_rng(0))
    source = source_of(write_seg(tmp_path / "seg", datasets, array, kind))
    assert (source.role, source.format, source.patient, source.study) == ("mask", "dicom", "P1", "1.2.3")
    assert source.frame_of_reference == "1.2.5" and source.segments == ("liver", "lesion")
    assert {"1.2.3.4", "1.2.3.4.2"} <= set(source.refers_to)
    # the writer left out the empty planes, so its own grid is shorter
    assert source.shape == (12, 10, 4)
    assert np.allclose(np.reshape(source.affine, (4, 4)) @ [0, 0, -1, 1], affine[:, 3], atol=1e-4)
    mask = read_mask(source, affine, SHAPE)
    assert mask.array.dtype == np.uint8 and np.array_equal(mask.array, array.transpose(2, 1, 0))
    assert mask.names == {1: "liver", 2: "lesion"} and mask.notes == ()


def test_highdicoms_own_volume_is_the_same(tmp_path):
    datasets, affine = image_series()
    array = two_segments(np.random.default_rng(1))
    path = write_seg(tmp_path / "seg", datasets, array)
    with quiet():
        volume = segread(path).get_volume(combine_segments=True)
    ours = read_mask(source_of(path), LPS @ volume.affine, volume.array.shape)
    assert np.array_equal(ours.array, volume.array) and ours.array.any()
    mapped = read_mask(source_of(path), affine, SHAPE).array
    assert np.count_nonzero(mapped) == np.count_nonzero(volume.array)


@given(
    order=st.permutations([0, 1, 2]),
    flips=st.tuples(*[st.booleans()] * 3),
    start=st.tuples(*[st.integers(0, 2)] * 3),
)
def test_flipped_turned_and_cropped_grids_give_the_same_voxels_in_mm(tmp_path_factory, order, flips, start):
    folder = tmp_path_factory.getbasetemp() / "flips"
    folder.mkdir(exist_ok=True)
    array = two_segments(np.random.default_rng(2))
    datasets, affine = image_series()
    if not (folder / "seg").is_file():
        write_seg(folder / "seg", datasets, array)
    # The image's grid as another reader might present it: axes in another order, some backwards, cropped.
    into = np.zeros((4, 4))
    size = [SHAPE[axis] - start[axis] for axis in order]
    for new, old in enumerate(order):
        into[old, new] = -1 if flips[new] else 1
        into[old, 3] = SHAPE[old] - 1 if flips[new] else start[old]
    into[3, 3] = 1
    mask = read_mask(source_of(folder / "seg"), affine @ into, tuple(size))
    expected = array.transpose(2, 1, 0)[tuple(slice(first, None) for first in start)].transpose(order)
    expected = np.flip(expected, [axis for axis in range(3) if flips[axis]])
    assert np.array_equal(mask.array, expected)
    assert not any("nearest" in note for note in mask.notes)


def test_frames_in_any_order_are_placed_by_position(tmp_path):
    datasets, affine = image_series()
    array = two_segments(np.random.default_rng(3))
    path = write_seg(tmp_path / "seg", datasets, array, "LABELMAP")
    dataset = pydicom.dcmread(path)
    order = np.random.default_rng(4).permutation(int(dataset.NumberOfFrames))
    pixels = dataset.pixel_array[order]
    dataset.PixelData = pixels.tobytes()
    dataset.PerFrameFunctionalGroupsSequence = [dataset.PerFrameFunctionalGroupsSequence[int(k)] for k in order]
    dataset.save_as(path)
    assert np.array_equal(read_mask(source_of(path), affine, SHAPE).array, array.transpose(2, 1, 0))


@pytest.mark.parametrize("shape", [(7, 5, 6), (9, 11, 7), (13, 7, 5)])
def test_frames_that_begin_and_end_within_a_byte_are_read(tmp_path, shape):
    """35, 99 and 91 bits: a frame of 35 that begins at the sixth bit lies in six bytes, though five would hold it."""
    datasets, affine = image_series(shape=shape)
    array = two_segments(np.random.default_rng(4), shape)
    mask = read_mask(source_of(write_seg(tmp_path / "seg", datasets, array)), affine, shape)
    assert np.array_equal(mask.array, array.transpose(2, 1, 0))


def test_where_segments_overlap_the_smaller_wins_and_the_note_counts(tmp_path):
    datasets, affine = image_series()
    array = np.zeros((*SHAPE[::-1], 3), bool)
    array[1:5, 1:4, 1:4, 0] = True  # 36 voxels
    array[1:5, 1:9, 1:9, 1] = True  # 256 voxels
    array[2, 3, 3:5, 2] = True  # 2 voxels: one within the first, both within the second
    source = source_of(write_seg(tmp_path / "seg", datasets, array, labels=("small", "large", "tiny")))
    mask = read_mask(source, affine, SHAPE)
    assert [int((mask.array == label).sum()) for label in (1, 2, 3)] == [35, 256 - 37, 2]
    assert mask.notes == ("segments overlap in 37 voxels: the smaller segment has them",)


def test_a_fractional_segmentation_is_cut_at_one_half(tmp_path):
    datasets, affine = image_series()
    values = np.random.default_rng(5).random(SHAPE[::-1])
    path = write_seg(tmp_path / "seg", datasets, values[..., None], "FRACTIONAL", ("liver",), max_fractional_value=200)
    with quiet():
        stored = segread(path).get_volume(rescale_fractional=True)
    mask = read_mask(source_of(path), LPS @ stored.affine, stored.array.shape[:3])
    assert np.array_equal(mask.array, stored.array[..., 0] >= 0.5)
    assert np.array_equal(read_mask(source_of(path), affine, SHAPE).array > 0, np.rint(values * 200).T >= 100)
    assert "one half" in mask.notes[0]


def test_another_grid_is_resampled_to_the_nearest_voxel_with_a_note(tmp_path):
    datasets, affine = image_series()
    array = np.zeros(SHAPE[::-1], np.uint8)
    array[1:5, 2:8, 3:9] = 1
    array[2:4, 4:6, 5:7] = 2
    source = source_of(write_seg(tmp_path / "seg", datasets, array))
    # half the voxel size, turned by 10 degrees about a corner
    turn = np.eye(4)
    turn[:2, :2] = [[np.cos(0.17), -np.sin(0.17)], [np.sin(0.17), np.cos(0.17)]]
    other = turn @ affine @ np.diag([0.5, 0.5, 0.5, 1])
    shape = tuple(2 * size for size in SHAPE)
    mask = read_mask(source, other, shape)
    where = np.rint(
        np.linalg.inv(affine) @ other @ np.stack([*np.indices(shape).reshape(3, -1), np.ones(np.prod(shape))])
    )[:3].astype(int)
    inside = ((where >= 0) & (where < np.array(SHAPE)[:, None])).all(0)
    expected = np.zeros(np.prod(shape), np.uint8)
    expected[inside] = array.transpose(2, 1, 0)[tuple(where[:, inside])]
    assert (mask.array.ravel() != expected).mean() < 1e-3 and mask.array.any()
    assert "its grid is not the image's: resampled to the nearest voxel" in mask.notes


def test_empty_planes_that_the_writer_left_out_stay_empty_when_resampled(tmp_path):
    datasets, affine = image_series()
    array = np.zeros(SHAPE[::-1], np.uint8)
    array[[1, 3], 2:8, 3:9] = 1
    source = source_of(write_seg(tmp_path / "seg", datasets, array))
    fine = affine @ np.diag([1, 1, 0.5, 1])
    mask = read_mask(source, fine, (12, 10, 11))
    # slices of half the thickness: those nearest to slices 1 and 3
    assert "nearest" in mask.notes[0] and set(np.flatnonzero(mask.array.any((0, 1)))) <= {1, 2, 3, 5, 6, 7}
    assert {2, 6} <= set(np.flatnonzero(mask.array.any((0, 1)))) and not mask.array[..., 4].any()


def test_a_part_outside_the_image_is_counted_and_all_of_it_refused(tmp_path):
    datasets, affine = image_series()
    array = np.zeros(SHAPE[::-1], np.uint8)
    array[1:3, 2:4, 2:4] = 1
    source = source_of(write_seg(tmp_path / "seg", datasets, array))
    mask = read_mask(source, affine, (12, 10, 2))
    assert mask.array.sum() == 4 and "4 voxels lie outside the image: left out" in mask.notes
    away = affine.copy()
    away[0, 3] += 500
    for elsewhere in (away, away @ np.diag([0.7, 0.7, 0.7, 1])):
        with pytest.raises(FormatError, match="lies outside") as refused:
            read_mask(source, elsewhere, SHAPE)
        assert refused.value.file == tmp_path / "seg"


def test_more_than_255_segments_are_refused_and_high_numbers_renumbered(tmp_path):
    datasets, affine = image_series()
    path = write_seg(tmp_path / "seg", datasets, two_segments(np.random.default_rng(6)), "LABELMAP")
    dataset = pydicom.dcmread(path)
    dataset.SegmentSequence[-1].SegmentNumber = 3000
    wide = dataset.pixel_array.astype(np.uint16)
    wide[wide == 2] = 3000
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelData = wide.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.save_as(path)
    mask = read_mask(source_of(path), affine, SHAPE)
    assert np.array_equal(mask.array, two_segments(np.random.default_rng(6)).transpose(2, 1, 0))
    assert mask.names == {1: "liver", 2: "lesion"} and "labels are renumbered from 1" in mask.notes
    with pytest.raises(FormatError, match="at most 255"):
        dicom_masks._labels(list(range(300)))


@pytest.mark.parametrize("name", ["liver", "liver_expb", "liver_deflate", "liver_j2k", "liver_rle"])
def test_every_syntax_of_the_liver_gives_pydicoms_frames(shared_data, name):
    folder = shared_data / "dicom_varied" / "pydicom_data"
    for part, reference in (("", "liver"), ("_nonbyte_aligned", "liver_nonbyte_aligned")):
        path = folder / f"{name.replace('liver', f'liver{part}')}.dcm"
        if not path.is_file():
            continue
        source = source_of(path)
        frames = pydicom.dcmread(folder / f"{reference}.dcm").pixel_array
        mask = read_mask(source, np.reshape(source.affine, (4, 4)), source.shape)
        # the frames run downwards in the file
        heights = [
            float(group.PlanePositionSequence[0].ImagePositionPatient[2])
            for group in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence
        ]
        assert np.array_equal(mask.array, frames[np.argsort(heights)].transpose(2, 1, 0))
        assert mask.names == {1: "Liver"}


def test_real_segmentations_agree_with_highdicom(shared_data):
    folder = shared_data / "dicom_varied" / "highdicom"
    for name in ("binary", "binary_fractional", "true_fractional", "binary_single_frame"):
        path = folder / f"seg_image_ct_{name}.dcm"
        with quiet():
            volume = segread(path).get_volume()
        mask = read_mask(source_of(path), LPS @ volume.affine, volume.array.shape[:3])
        assert np.array_equal(mask.array, volume.array[..., 0] >= 0.5) and mask.array.any()


@pytest.mark.parametrize("name", ["binary", "binary_overlap", "true_fractional"])
def test_real_segmentations_lie_on_the_series_they_were_drawn_on(shared_data, name):
    varied = shared_data / "dicom_varied"
    source = source_of(varied / "highdicom" / f"seg_image_ct_{name}.dcm")
    images, _ = formats.discover(varied / "pydicom" / "dicomdirtests" / "77654033" / "CT2")
    assert [image.shape for image in images] == [(16, 16, 1), (16, 16, 3)]
    for image in images:
        affine = np.reshape(image.affine, (4, 4))
        if name != "binary_overlap" and image.shape[2] == 1:
            with pytest.raises(FormatError, match="lies outside"):
                read_mask(source, affine, image.shape, image)
            continue
        mask = read_mask(source, affine, image.shape, image)
        # frame by frame: the plane at the same height
        dataset = pydicom.dcmread(source.files[0])
        for k in range(image.shape[2]):
            planes = {
                int(group.SegmentIdentificationSequence[0].ReferencedSegmentNumber): pixels
                for group, pixels in zip(dataset.PerFrameFunctionalGroupsSequence, dataset.pixel_array)
                if abs(float(group.PlanePositionSequence[0].ImagePositionPatient[2]) - affine[2, 3] - k * affine[2, 2])
                < 0.01
            }
            assert planes
            limit = int(dataset.get("MaximumFractionalValue", 1)) / 2
            assert np.array_equal(
                mask.array[..., k].T > 0, np.any([plane >= limit for plane in planes.values()], axis=0)
            )
        assert mask.array.any()


def test_a_mask_without_positions_is_taken_pixel_for_pixel_of_its_picture(shared_data):
    source = source_of(shared_data / "dicom_varied" / "highdicom" / "seg_image_cr_binary.dcm")
    assert source.affine is None and source.shape == (0, 0, 0)
    mask = read_mask(source, np.diag([0.2, 0.2, 1, 1]), (16, 16, 1))
    assert np.array_equal(mask.array[..., 0].T, pydicom.dcmread(source.files[0]).pixel_array)
    assert "the mask has no position: taken pixel for pixel" in mask.notes
    with pytest.raises(FormatError, match="a picture of 16 x 16 pixels"):
        read_mask(source, np.eye(4), (16, 17, 1))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: d.__setattr__("SegmentationType", "OTHER"), "Segmentation Type (0062,0001) is 'OTHER'"),
        (lambda d: d.__delattr__("SegmentSequence"), "Segment Sequence (0062,0002) is absent"),
        (lambda d: d.__setattr__("TotalPixelMatrixColumns", 50), "a mask of a microscopy slide"),
        (lambda d: d.__setattr__("NumberOfFrames", 999), "for 999 frames, found"),
        (lambda d: d.__setattr__("Rows", 0), "Rows (0028,0010) 0"),
        (lambda d: [d.__setattr__("Rows", 65535), d.__setattr__("Columns", 65535)], "1 to 2^28 pixels"),
        (lambda d: d.__setattr__("SOPClassUID", "1.2.3"), "SOP class 1.2.3 (0008,0016) is neither"),
    ],
)
def test_a_broken_segmentation_is_refused_with_the_tag(tmp_path, spoil, words):
    datasets, _ = image_series()
    dataset = pydicom.dcmread(write_seg(tmp_path / "seg", datasets, two_segments(np.random.default_rng(0))))
    spoil(dataset)
    with pytest.raises(FormatError) as refused:
        mask_header(tmp_path / "seg", dataset)
    assert words in str(refused.value) and str(tmp_path) not in str(refused.value)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP", "RTSTRUCT"])
def test_a_truncated_or_mutated_mask_raises_format_errors_alone(tmp_path, kind):
    datasets, affine = image_series()
    path = tmp_path / "mask"
    if kind == "RTSTRUCT":
        source = write_structures(path, {"a": [in_plane(affine, square(1.5, 6.5), k) for k in range(5)]})
    else:
        source = source_of(write_seg(path, datasets, two_segments(np.random.default_rng(7)), kind))
    whole = path.read_bytes()
    rng = np.random.default_rng(8)
    refused = 0
    for trial in range(60):
        broken = bytearray(whole[: rng.integers(200, len(whole))] if trial % 3 == 0 else whole)
        for place in rng.integers(0, len(broken), 6):
            broken[place] = rng.integers(0, 256)
        path.write_bytes(broken)
        with quiet():
            try:
                mask = read_mask(source, affine, SHAPE)
                assert mask.array.shape == SHAPE
            except FormatError as error:
                refused += 1
                assert str(path) not in str(error)
    assert refused > 10


# ------------------------------------------------------------------------------------------------ which image


def test_a_mask_of_another_image_is_refused_by_reference_and_frame(tmp_path):
    datasets, affine = image_series()
    source = source_of(write_seg(tmp_path / "seg", datasets, two_segments(np.random.default_rng(0))))
    image = Source((Path("a"),), "dicom", "CT", 1, 3, SHAPE, series="1.9", frame_of_reference="1.8", instances=("1.7",))
    assert "another Frame of Reference (0020,0052)" in (refusal(source, image) or "")
    with pytest.raises(FormatError, match="0020,0052"):
        read_mask(source, affine, SHAPE, image)
    for fits in ({"series": "1.2.3.4"}, {"instances": ("1.7", "1.2.3.4.3")}, {"frame_of_reference": "1.2.5"}):
        assert refusal(source, replace(image, **fits)) is None
        assert read_mask(source, affine, SHAPE, replace(image, **fits)).array.any()
    nothing = replace(source, refers_to=(), frame_of_reference=None)
    assert refusal(nothing, image) is None


# ------------------------------------------------------------------------------------------------ RT Structure Set


def write_structures(path, rois, frame="1.2.5", geometric="CLOSED_PLANAR", numbers=None):
    """rois: {name: [points (n, 3) in mm LPS+]}; a ROI is also given as (geometric type, points)."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.481.3"
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.6"
    dataset.PatientID, dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "P1", "1.2.3", "1.2.7"
    frames, study, series, image = Dataset(), Dataset(), Dataset(), Dataset()
    image.ReferencedSOPClassUID, image.ReferencedSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", "1.2.3.4.1"
    series.SeriesInstanceUID, series.ContourImageSequence = "1.2.3.4", [image]
    study.RTReferencedSeriesSequence = [series]
    frames.FrameOfReferenceUID, frames.RTReferencedStudySequence = frame, [study]
    dataset.ReferencedFrameOfReferenceSequence = [frames]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in zip(numbers or range(1, 1 + len(rois)), rois.items()):
        roi, outline = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, roi.ReferencedFrameOfReferenceUID = number, name, frame
        outline.ReferencedROINumber, outline.ContourSequence = number, []
        for points in contours:
            kind, points = points if isinstance(points, tuple) else (geometric, points)
            contour = Dataset()
            contour.ContourGeometricType, contour.NumberOfContourPoints = kind, len(points)
            contour.ContourData = [f"{value:.5f}" for value in np.ravel(points)]
            outline.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(outline)
    dataset.save_as(path, enforce_file_format=True)
    return source_of(path)


def in_plane(affine, ij, k):
    """Pixels (n, 2) of slice k as mm in LPS+."""
    voxels = np.column_stack([ij, np.full(len(ij), k), np.ones(len(ij))])
    return (LPS @ affine @ voxels.T)[:3].T


def square(low, high):
    return np.array([[low, low], [high, low], [high, high], [low, high]], float)


def circle(centre, radius, points=400):
    angle = np.linspace(0, 2 * np.pi, points, endpoint=False)
    return np.column_stack([centre[0] + radius * np.cos(angle), centre[1] + radius * np.sin(angle)])


@given(
    st.floats(0.25, 8),
    st.floats(0.25, 8),
    st.floats(4, 9),
    st.floats(4, 9),
)
def test_a_rectangle_holds_the_pixels_whose_centres_it_holds(left, top, width, height):
    corners = np.array([[left, top], [left + width, top], [left + width, top + height], [left, top + height]], float)
    inside = np.zeros((24, 24), bool)
    i0, j0, part = even_odd([corners], (24, 24))
    inside[i0 : i0 + part.shape[0], j0 : j0 + part.shape[1]] = part
    i, j = np.indices((24, 24))
    expected = (i >= left) & (i < left + width) & (j >= top) & (j < top + height)
    clear = (np.abs(i - left) > 1e-4) & (np.abs(i - left - width) > 1e-4)
    assert np.array_equal(inside[clear], expected[clear])


def test_even_odd_agrees_with_matplotlib_on_stars_and_is_half_open_on_edges():
    from matplotlib.path import Path as Outline

    rng = np.random.default_rng(9)
    for _ in range(20):
        ring = rng.uniform(-5, 45, (rng.integers(3, 12), 2))
        found = np.zeros((40, 40), bool)
        cut = even_odd([ring], (40, 40))
        if cut is not None:
            found[cut[0] : cut[0] + cut[2].shape[0], cut[1] : cut[1] + cut[2].shape[1]] = cut[2]
        # A self-crossing outline by matplotlib is nonzero-winding, so parity is counted here edge by edge.
        centres = np.stack(np.indices((40, 40)), -1).reshape(-1, 2)
        start, end = ring, np.roll(ring, -1, axis=0)
        above = (start[None, :, 1] > centres[:, None, 1]) != (end[None, :, 1] > centres[:, None, 1])
        with np.errstate(divide="ignore", invalid="ignore"):
            meets = start[:, 0] + (centres[:, None, 1] - start[:, 1]) / (end - start)[:, 1] * (end - start)[:, 0]
        parity = (above & (meets < centres[:, None, 0])).sum(1) % 2 == 1
        assert np.array_equal(found.ravel(), parity)
        triangle = even_odd([ring[:3]], (40, 40))
        if triangle is not None:
            i0, j0, part = triangle
            where = np.argwhere(np.ones_like(part)) + [i0, j0]
            assert np.array_equal(part.ravel(), Outline(ring[:3]).contains_points(where))
    left, right = even_odd([square(2, 5)], (9, 9)), even_odd([square(2, 5) + [3, 0]], (9, 9))
    assert left[2].sum() == 9 + 0 * right[2].sum() and right[0] == 5 and right[2].sum() == 9
    assert even_odd([square(20, 30)], (9, 9)) is None


@pytest.mark.parametrize("orientation", [AXIAL, OBLIQUE])
def test_circles_squares_and_holes_have_the_area_of_the_closed_form(tmp_path, orientation):
    _, affine = image_series(orientation, shape=(120, 100, 5), spacing=(0.5, 0.5))
    disc, hole = circle((60.3, 50.2), 40), circle((60.3, 50.2), 20)
    source = write_structures(
        tmp_path / "rt",
        {
            "ring": [in_plane(affine, disc, 2), in_plane(affine, hole, 2)],
            "block": [in_plane(affine, square(-0.5, 9.5) + [3, 4], k) for k in (0, 1)],
        },
    )
    assert source.shape == (0, 0, 0) and source.affine is None and source.frame_of_reference == "1.2.5"
    assert set(source.refers_to) == {"1.2.3.4", "1.2.3.4.1"} and source.segments == ("ring", "block")
    mask = read_mask(source, affine, (120, 100, 5))
    assert mask.names == {1: "ring", 2: "block"} and mask.notes == ()
    assert np.count_nonzero(mask.array == 1) == pytest.approx(np.pi * (40**2 - 20**2), rel=0.01)
    assert not mask.array[60, 50, 2] and mask.array[60, 20, 2] == 1 and not mask.array[:, :, 3:].any()
    expected = np.zeros((120, 100), np.uint8)
    expected[3:13, 4:14] = 2
    assert np.array_equal(mask.array[..., 0], expected) and np.array_equal(mask.array[..., 1], expected)


def test_a_keyhole_is_a_hole(tmp_path):
    _, affine = image_series(AXIAL, shape=(40, 40, 2))
    outer, inner = square(4.5, 30.5), square(10.5, 20.5)[::-1]
    keyhole = np.concatenate([outer, outer[:1], inner, inner[:1]])
    source = write_structures(tmp_path / "rt", {"a": [in_plane(affine, keyhole, 1)]})
    mask = read_mask(source, affine, (40, 40, 2))
    assert mask.array.sum() == 26**2 - 10**2 and not mask.array[11:21, 11:21].any()


def test_outlines_between_slices_go_to_the_nearest_and_the_nearest_plane_wins(tmp_path):
    _, affine = image_series(shape=(30, 30, 4))
    source = write_structures(
        tmp_path / "rt",
        {"a": [in_plane(affine, square(4.5, 4.5 + side), k) for side, k in ((4, 0.8), (6, 1.1), (8, 1.4), (3, 2.9))]},
    )
    mask = read_mask(source, affine, (30, 30, 4))
    assert [int(mask.array[..., k].sum()) for k in range(4)] == [0, 36, 0, 9]
    assert mask.notes == ("2 outlines lie between slices: put on the nearest",)


def test_outlines_of_thicker_slices_leave_gaps_that_the_note_names(tmp_path):
    _, affine = image_series(shape=(30, 30, 9))
    rois = {"a": [in_plane(affine, square(4.5, 9.5), k) for k in (1, 4, 7)]}
    mask = read_mask(write_structures(tmp_path / "rt", rois), affine, (30, 30, 9))
    assert np.flatnonzero(mask.array.any((0, 1))).tolist() == [1, 4, 7]
    assert mask.notes == ("1 structures are outlined on every second slice or fewer: slices between stay empty",)


def test_what_is_odd_about_outlines_is_left_out_and_counted(tmp_path):
    _, affine = image_series(shape=(30, 30, 4))
    good = in_plane(affine, square(4.5, 9.5), 1)
    across = good + np.array([[0], [0], [1], [1]]) * 4 * (LPS @ affine)[:3, 2]
    source = write_structures(
        tmp_path / "rt",
        {
            "a": [
                good,
                good,
                across,
                in_plane(affine, square(4.5, 9.5), 9),
                ("POINT", good[:1]),
                ("OPEN_PLANAR", good),
            ],
            "empty": [],
        },
    )
    mask = read_mask(source, affine, (30, 30, 4))
    assert mask.array.sum() == 25 and mask.names == {1: "a", 2: "empty"}
    assert set(mask.notes) == {
        "2 outlines are points or open lines: left out",
        "1 outlines lie across the image's slices: left out",
        "1 outlines lie before the first or behind the last slice: left out",
        "1 outlines are there twice: used once",
    }
    sideways = affine[:, [2, 0, 1, 3]]
    with pytest.raises(FormatError, match="across its slices"):
        read_mask(source, sideways, (30, 30, 4))


def test_overlapping_structures_give_way_to_the_smaller_and_numbers_stay(tmp_path):
    _, affine = image_series(shape=(30, 30, 2))
    rois = {"body": [in_plane(affine, square(1.5, 21.5), 0)], "organ": [in_plane(affine, square(5.5, 9.5), 0)]}
    mask = read_mask(write_structures(tmp_path / "rt", rois, numbers=[200, 7]), affine, (30, 30, 2))
    assert (mask.array == 200).sum() == 400 - 16 and (mask.array == 7).sum() == 16
    assert mask.notes == ("segments overlap in 16 voxels: the smaller segment has them",)
    mask = read_mask(write_structures(tmp_path / "rt", rois, numbers=[0, 900]), affine, (30, 30, 2))
    assert mask.names == {1: "body", 2: "organ"} and (mask.array == 2).sum() == 16


def test_broken_structures_are_refused_in_words(tmp_path):
    _, affine = image_series(shape=(30, 30, 2))
    points = in_plane(affine, square(5.5, 9.5), 0)
    source = write_structures(tmp_path / "rt", {"a": [points]}, geometric="POINT")
    with pytest.raises(FormatError, match="found none: the structure set holds no areas"):
        read_mask(source, affine, (30, 30, 2))
    source = write_structures(tmp_path / "rt", {"a": [points]})
    dataset = pydicom.dcmread(source.files[0])
    for numbers, words in (
        (["1", "2", "3", "4"] * 3 + ["1"], "found 13 numbers"),
        (["1e300", "2", "3"] * 3, "kilometre"),
    ):
        dataset.ROIContourSequence[0].ContourSequence[0].ContourData = numbers
        dataset.save_as(source.files[0])
        with pytest.raises(FormatError, match=words):
            read_mask(source, affine, (30, 30, 2))
    del dataset.ROIContourSequence
    with pytest.raises(FormatError, match="3006,0039"):
        mask_header(source.files[0], dataset)


def test_notes_and_errors_hold_no_name_and_no_identifier(tmp_path):
    _, affine = image_series(shape=(30, 30, 2))
    rois = {"SECRET^NAME": [in_plane(affine, square(1.5, 21.5), 0)], "ID 4711": [in_plane(affine, square(5, 9), 0.3)]}
    source = write_structures(tmp_path / "rt", rois)
    mask = read_mask(source, affine, (30, 30, 2))
    assert len(mask.notes) == 2 and not any(word in " ".join(mask.notes) for word in ("SECRET", "4711", "P1", "1.2"))


def test_the_structure_set_of_rt_utils_covers_what_its_mask_covered(shared_data):
    """Points are at pixel centres of 0.488 mm: the area lies between that of the outline and that with its border."""
    folder = shared_data / "dicom_varied" / "rtutils"
    first, second = (pydicom.dcmread(folder / "mock_data" / f"ct_{n}.dcm") for n in (1, 2))
    affine = np.diag([-0.488281, -0.488281, 5.0, 1.0])
    affine[:3, 3] = [125, 125, 60]
    assert list(first.ImagePositionPatient) == [-125, -125, 60] and second.ImagePositionPatient[2] == 65
    source = source_of(folder / "mock_data" / "rt.dcm")
    assert (
        refusal(source, Source((Path("a"),), "dicom", "CT", 1, 3, (512, 512, 2), series=str(first.SeriesInstanceUID)))
        is None
    )
    mask = read_mask(source, affine, (512, 512, 2))
    contours = [
        np.reshape(list(map(float, c.ContourData)), (-1, 3))
        for c in pydicom.dcmread(source.files[0]).ROIContourSequence[0].ContourSequence
    ]
    areas = [abs(np.sum(c[:, 0] * np.roll(c[:, 1], -1) - c[:, 1] * np.roll(c[:, 0], -1))) / 2 for c in contours]
    assert not mask.array[..., 1].any()
    # the second outline is nested in the first, a hole
    assert np.count_nonzero(mask.array) * 0.488281**2 == pytest.approx(abs(areas[0] - areas[1]), rel=0.05)
