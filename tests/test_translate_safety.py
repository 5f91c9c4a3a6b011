"""What a translation must never do: change units or geometry, show seams, flicker, or write something wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import SimpleITK
import torch
from pydicom.dataset import Dataset
from pydicom.uid import EnhancedCTImageStorage

from scansmith import formats, model, translate
from scansmith.formats import Marking
from scansmith.image import Image
from scansmith.networks.unet import UNet
from scansmith.preprocess import Grid

CPU = torch.device("cpu")
SHAPE = (20, 18, 9)
CT = {"modality": "CT", "low": -1024.0, "high": 1900.0, "units": "HU"}
MR = {"modality": "MR", "low": 0.0, "high": 900.0, "units": "a.u."}
KINDS = {"2-D": (2, 0), "2.5-D": (2, 2), "3-D": (3, 0)}


def about(
    dimensions: int = 2,
    neighbours: int = 0,
    source: dict[str, Any] = CT,
    target: dict[str, Any] = CT,
    spacing: tuple[float, ...] | None = (2.5, 0.7, 0.7),
    **more: Any,
) -> dict[str, Any]:
    """The configuration of a model without familiarity that learned patches of 16."""
    target = {"channels": 1, **target}
    choices = {"channels": 1, "dimensions": 3 if spacing else 2, "bias_field": False, "landmarks": None, "window": None, "percentiles": None,
               "depth": 16 if dimensions == 3 else None, "height": 27, "width": 33}  # fmt: skip
    return {
        "network": {"name": "unet", "arguments": {"in_channels": 1 + 2 * neighbours, "out_channels": 1, "dimensions": dimensions, "width": 4, "doublings": 3, "residual": True}},
        "grid": Grid.patch((16,) * dimensions, 16).to_json(), "labels": [], "modality": target["modality"], "spacing": spacing and list(spacing[-dimensions:]), "source_format": "nifti",
        "intensity": {name: target[name] for name in ("low", "high", "units")}, "channels": 1, "data_hash": "d" * 16, "familiarity": None,
        "recipe": {"name": "fidelity", "train_images": 1, "images": 1, "seed": 0},
        "translation": {"task": "paired", "input": "image", "output": "image", "source": source, "target": target, "patch": [16] * dimensions,
                        "neighbours": neighbours, "choices": choices, "line": [0.0, 1.0], "usual_width": 0.25,
                        "calibration": {"factor": 1.0, "words": "uncalibrated: made by hand"}, **more},
    }  # fmt: skip


def untrained(folder: Path, kind: str = "2-D", familiar: dict[str, Any] | None = None, **more: Any) -> model.Model:
    """A model that returns its source's middle channels: its last convolution is zero and its output is added to them."""
    config = about(*KINDS[kind], **more)
    return model.save(folder, UNet(**config["network"]["arguments"]), config | {"familiarity": familiar})


# ------------------------------------------------------------------------------------------------ units and geometry


def turned(angle: float, tilt: float) -> np.ndarray:
    """A rotation about S, then about R."""
    c, s, d, t = np.cos(angle), np.sin(angle), np.cos(tilt), np.sin(tilt)
    return np.array([[1, 0, 0], [0, d, -t], [0, t, d]]) @ np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def placed(axes: np.ndarray, sizes: tuple[float, float, float] = (0.7, 0.7, 2.5)) -> np.ndarray:
    result = np.eye(4)
    result[:3, :3] = axes * sizes
    result[:3, 3] = -123.456789012, 50.25, 1000.0 / 3
    return result


AXIAL = np.diag([-1.0, -1.0, 1.0])
PLACES = {
    "axial": placed(AXIAL),
    "oblique": placed(turned(0.3, -0.2) @ AXIAL),
    "anisotropic": placed(AXIAL, (0.5, 0.9, 7.0)),
    "flipped": placed(np.diag([-1.0, -1.0, -1.0])),
    "coronal": placed(np.array([[-1.0, 0, 0], [0, 0, 1], [0, -1, 0]])),
    "tilted": placed(AXIAL @ np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1.0]])),
}


def scan(where: str = "axial", shape: tuple[int, int, int] = SHAPE) -> Image:
    """CT of pure noise over all that a CT holds but metal: nothing that is resampled or smoothed comes back."""
    values = np.random.default_rng(0).integers(-1024, 3071, (1, *shape), np.int16)
    return Image(values, PLACES[where], "CT", "HU")


def write_nifti(image: Image, folder: Path) -> Path:
    path = folder / "scan.nii.gz"
    nifti = nibabel.Nifti1Image(image.array[0], image.affine)
    nifti.set_qform(image.affine, 1, strip_shears=True)
    nibabel.save(nifti, path)
    return path


def write_itk(image: Image, folder: Path, suffix: str) -> Path:
    path = folder / f"scan{suffix}"
    lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    itk = SimpleITK.GetImageFromArray(image.array[0].T)
    itk.SetSpacing(image.spacing)
    itk.SetOrigin(lps[:3, 3])
    itk.SetDirection((lps[:3, :3] / image.spacing).ravel())
    SimpleITK.WriteImage(itk, path)
    return path


def write_series(image: Image, folder: Path) -> Path:
    """Slices of one file each, named and numbered against their order."""
    files = formats.write(image, folder / "series", "dicom", Marking("scanner", "ab", 0, 0))
    for k, path in enumerate(files):
        dataset = pydicom.dcmread(path)
        dataset.PatientID, dataset.InstanceNumber = "4711", len(files) - k
        dataset.save_as(path.with_name(f"im{99 - k}.dcm"))
        path.unlink()
    return folder / "series"


def write_frames(image: Image, folder: Path) -> Path:
    """One Enhanced CT whose frames are not in order."""
    pixels = image.array[0].T.astype(np.int16)
    order = np.random.default_rng(1).permutation(len(pixels))
    lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = EnhancedCTImageStorage, "1.2.3.9"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.FrameOfReferenceUID = "1.2.1", "1.2.2", "1.2.4"
    dataset.PatientName, dataset.PatientID, dataset.Modality = "Doe^Jane", "4711", "CT"
    dataset.Rows, dataset.Columns, dataset.NumberOfFrames = *pixels.shape[1:], len(pixels)
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 16, 15
    measures, orientation, values, frames = Dataset(), Dataset(), Dataset(), []
    measures.PixelSpacing, measures.SliceThickness = [image.spacing[1], image.spacing[0]], image.spacing[2]
    orientation.ImageOrientationPatient = (lps[:3, :2] / image.spacing[:2]).T.ravel().tolist()
    values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, 0, "HU"
    shared = Dataset()
    shared.PixelMeasuresSequence, shared.PlaneOrientationSequence = [measures], [orientation]
    shared.PixelValueTransformationSequence = [values]
    dataset.SharedFunctionalGroupsSequence = [shared]
    for k in order:
        position, frame = Dataset(), Dataset()
        position.ImagePositionPatient = (lps @ [0, 0, k, 1])[:3].tolist()
        frame.PlanePositionSequence = [position]
        frames.append(frame)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.PixelData = np.ascontiguousarray(pixels[order]).tobytes()
    path = folder / "frames.dcm"
    dataset.save_as(path, enforce_file_format=True)
    return path


FORMATS = {
    "nifti": write_nifti,
    "nrrd": lambda image, folder: write_itk(image, folder, ".nrrd"),
    "metaimage": lambda image, folder: write_itk(image, folder, ".mha"),
    "dicom": write_series,
    "frames": write_frames,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", PLACES)
@pytest.mark.parametrize("format", FORMATS)
def test_what_changes_nothing_returns_the_scan_within_half_a_unit_in_its_place(tmp_path, format, where, kind):
    if where == "tilted" and format in ("nrrd", "metaimage"):
        pytest.skip("ITK's files cannot hold a tilted stack")
    untrained(tmp_path / "model", kind, spacing=(7.0, 0.9, 0.5) if where == "anisotropic" else (2.5, 0.7, 0.7))
    (tmp_path / "in").mkdir()
    path = FORMATS[format](scan(where), tmp_path / "in")
    result = translate(tmp_path / "model", path, tmp_path / "out", maps=False)
    assert not result["skipped"]
    (source,), _ = formats.discover(path)
    (made,), _ = formats.discover(tmp_path / "out")
    before, after = formats.read(source), formats.read(made)
    assert np.array_equal(after.affine, before.affine) or format == "frames"  # its frames become files: digits of DS
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
    assert (after.modality, after.units) == ("CT", "HU")
    assert apart(after, before) <= 0.5


def apart(one: Image, other: Image) -> float:
    """Greatest difference of two scans of one shape."""
    assert one.array.shape == other.array.shape
    return float(np.abs(one.array.astype(np.float64) - other.array).max())


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_comes_back_as_a_picture(tmp_path, kind):
    grey = {"modality": "OT", "low": 0.0, "high": 255.0, "units": "a.u."}
    untrained(tmp_path / "model", kind, source=grey, target=grey, spacing=None)
    values = np.random.default_rng(0).integers(0, 256, (1, 33, 27, 1), np.uint8)
    formats.write(Image(values, np.eye(4)), tmp_path / "in/picture", "png", Marking("scanner", "ab", 0, 0))
    (source,), _ = formats.discover(tmp_path / "in")
    translate(tmp_path / "model", tmp_path / "in", tmp_path / "out", maps=False)
    (made,), _ = formats.discover(tmp_path / "out")
    assert apart(formats.read(made), formats.read(source)) <= 0.5
