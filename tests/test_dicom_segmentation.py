"""Label maps beside DICOM series: what is written reads back, validates, and names its source."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from pydicom.uid import SegmentationStorage
from test_derived import DERIVATION, NEED_DCIODVFY, complaints, dicom_source, multi_frame_source

from scansmith import formats
from scansmith.formats import dicom_masks
from scansmith.image import Image


def a_label_map(source: formats.Source) -> np.ndarray:
    made = np.zeros((1, *source.shape), np.uint8)
    made[0, 1:4, 2:5, 0], made[0, 3:6, 1:3, -1] = 3, 7
    return made


@pytest.mark.parametrize("kind", ["oblique", "tilted", "multi-frame"])
def test_a_label_map_reads_back_and_names_its_source(tmp_path, kind):
    source = (
        multi_frame_source(tmp_path / "enhanced.dcm")
        if kind == "multi-frame"
        else dicom_source(tmp_path / "source", kind)
    )
    scan = formats.read(source)
    image = replace(scan, array=a_label_map(source), units="label")
    (path,) = formats.write_segmentation(source, image, tmp_path / "out", DERIVATION, [3, 7])
    made, its = pydicom.dcmread(path), pydicom.dcmread(source.files[0])
    assert made.SOPClassUID == SegmentationStorage and made.SyntheticData == "YES"
    for keyword in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID"):
        assert made[keyword].value == its[keyword].value
    assert [segment.SegmentLabel for segment in made.SegmentSequence] == ["label 3", "label 7"]
    assert made.ReferencedSeriesSequence[0].SeriesInstanceUID == source.series
    frames = made.pixel_array.reshape(-1, *made.pixel_array.shape[-2:])
    found = {}
    for frame, item in zip(frames, made.PerFrameFunctionalGroupsSequence):
        number = item.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        place = np.array(item.PlanePositionSequence[0].ImagePositionPatient, float) * (-1, -1, 1)
        k = int(
            np.abs(scan.affine[:3, 3] + np.outer(np.arange(source.shape[2]), scan.affine[:3, 2]) - place)
            .sum(1)
            .argmin()
        )
        found[number, k] = frame.T
    last = source.shape[2] - 1
    assert set(found) == {(1, 0), (2, last)}
    assert np.array_equal(found[1, 0], image.array[0, ..., 0] == 3)
    assert np.array_equal(found[2, last], image.array[0, ..., last] == 7)
    again = formats.write_segmentation(source, image, tmp_path / "again", DERIVATION, [3, 7])[0]
    assert again.read_bytes() == path.read_bytes()


def test_an_empty_map_is_written_and_other_values_are_refused(tmp_path):
    source = dicom_source(tmp_path / "source", "oblique")
    scan = formats.read(source)
    image = replace(scan, array=a_label_map(source), units="label")
    with pytest.raises(ValueError, match=r"expected the values 0 and \[3\] in a label map"):
        formats.write_segmentation(source, image, tmp_path / "out", DERIVATION, [3])
    (path,) = formats.write_segmentation(
        source, replace(image, array=np.zeros_like(image.array)), tmp_path / "empty", DERIVATION, [3, 7]
    )
    assert not pydicom.dcmread(path).pixel_array.any()


@NEED_DCIODVFY
def test_a_label_map_validates(tmp_path):
    source = dicom_source(tmp_path / "source", "oblique")
    image = replace(formats.read(source), array=a_label_map(source), units="label")
    files = formats.write_segmentation(source, image, tmp_path / "map", DERIVATION, [3, 7])
    assert complaints(files) == {"Segmentation"}


@pytest.mark.parametrize("where", ["LPS", "flipped", "coronal", "oblique", "tilted"])
def test_a_label_map_comes_back_through_our_own_reader_as_a_mask_of_its_source(tmp_path, where):
    source = dicom_source(tmp_path / "source", where)
    scan = formats.read(source)
    made = np.random.default_rng(0).choice([0, 0, 3, 7], scan.array.shape).astype(np.uint8)
    made[..., 1] = 0
    formats.write_segmentation(source, replace(scan, array=made, units="label"), tmp_path / "out", DERIVATION, [3, 7])
    (mask,), skipped = formats.discover(tmp_path / "out.dcm")
    assert not skipped and mask.role == "mask" and mask.frame_of_reference == source.frame_of_reference
    assert set(source.instances) <= set(mask.refers_to)
    back = formats.read_mask(mask, source)
    assert np.array_equal(back.array, np.searchsorted([0, 3, 7], made[0]))
    assert back.names == {1: "label 3", 2: "label 7"} and back.notes == ()


@NEED_DCIODVFY
@pytest.mark.parametrize(("modality", "channels"), [("DX", 1), ("CR", 1), ("OT", 3)])
def test_a_film_and_a_photograph_get_a_segmentation_pixel_for_pixel(tmp_path, modality, channels):
    array = np.random.default_rng(0).integers(0, 255, (channels, 7, 5, 1)).astype(np.uint8)
    film = Image(array, np.eye(4), modality, spacing_known=modality == "DX")
    formats.write(film, tmp_path / "film", "dicom", formats.Marking("scanner", "ab", 0, 0))
    (source,), _ = formats.discover(tmp_path / "film.dcm")
    assert source.affine is None and source.channels == channels
    made = np.random.default_rng(1).choice([0, 3, 7], (1, 7, 5, 1)).astype(np.uint8)
    image = replace(formats.read(source), array=made, units="label")
    (path,) = formats.write_segmentation(source, image, tmp_path / "out", DERIVATION, [3, 7])
    assert complaints([path]) == {"Segmentation"}
    (mask,), _ = formats.discover(path)
    assert set(source.instances) <= set(mask.refers_to)
    back = dicom_masks.read_mask(mask, np.eye(4), source.shape, source)
    assert np.array_equal(back.array, np.searchsorted([0, 3, 7], made[0]))
