"""What a translation must never do: change units or geometry, show seams, flicker, or write something wrong."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
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
from test_translation import default

from scansmith import formats, inference, model, pairings, phantom, prepare, train, translate
from scansmith.dataset import COLUMNS, Writer
from scansmith.dataset import Dataset as Prepared
from scansmith.formats import Marking
from scansmith.image import Image
from scansmith.networks.unet import UNet
from scansmith.preprocess import Grid, slices
from scansmith.translator import needed, translated

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


# ITK's files cannot hold a tilted stack.
CASES = [
    (format, where)
    for format in FORMATS
    for where in PLACES
    if where != "tilted" or format not in ("nrrd", "metaimage")
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("format", "where"), CASES)
def test_what_changes_nothing_returns_the_scan_within_half_a_unit_in_its_place(tmp_path, format, where, kind):
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


@pytest.fixture(scope="module")
def learned_identity(tmp_path_factory):
    """A model that was trained on CT slices of noise beside themselves."""
    root, random = tmp_path_factory.mktemp("identity"), np.random.default_rng(0)
    count, size, window = 24, (40, 48), {"low": -1024.0, "high": 1000.0}
    values = {
        "case": [f"c{k}" for k in range(count)], "patient": [f"p{k}" for k in range(count)], "spacing": [[2.5, 0.7, 0.7]] * count,
        "split": ["train"] * 16 + ["validation"] * 8, "units": ["HU"] * count, "affine": [np.eye(4)] * count,
        "crop": [[0.0, 0.0, 0.0, 1.0, 40.0, 48.0]] * count,
        **{f"{side}{end}": [value] * count for side in ("", "target_") for end, value in window.items()},
    }  # fmt: skip
    choices = {"channels": 1, "dimensions": 3, "bias_field": False, "landmarks": None, "window": None, "percentiles": None,
               "depth": None, "height": 40, "width": 48}  # fmt: skip
    info = {
        "modality": "CT", "units": "HU", "labels": [], "spacing": [0.7, 0.7], "source_format": "nifti", "hash": "d" * 16,
        "neighbours": 0, "target": {"modality": "CT", "channels": 1, "units": "HU"}, "choices": choices,
    }  # fmt: skip
    layers = {name: (np.dtype(np.int16), (1, *size)) for name in ("images", "targets")}
    writer = Writer(root / "data", layers)
    for _ in range(count):
        slices = random.integers(-1024, 1000, (1, 1, *size)).astype(np.int16)
        writer.add({"images": slices, "targets": slices})
    writer.finish(info, {name: values.get(name, default(name, count)) for name in COLUMNS})
    return Path(train(root / "data", root / "run", task="denoise", images=800, minutes=0.1, device="cpu")["model"])


@pytest.mark.parametrize(
    ("format", "where"), [case for case in CASES if case[1] in ("axial", "oblique", "flipped", "tilted")]
)
def test_what_learned_to_change_nothing_returns_the_scan_within_half_a_unit_in_its_place(
    learned_identity, tmp_path, format, where
):
    clean = scan(where)
    clean = replace(clean, array=np.clip(clean.array, -1024, 1000))
    (tmp_path / "in").mkdir()
    path = FORMATS[format](clean, tmp_path / "in")
    assert not translate(learned_identity, path, tmp_path / "out", maps=False, force=True)["skipped"]
    (source,), _ = formats.discover(path)
    (made,), _ = formats.discover(tmp_path / "out")
    before, after = formats.read(source), formats.read(made)
    assert np.array_equal(after.affine, before.affine) or format == "frames"
    np.testing.assert_allclose(after.affine, before.affine, atol=1e-5)
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


def test_tilted_labels_and_bounds_come_back_voxel_by_voxel(tmp_path):
    opened = untrained(tmp_path / "model", "3-D")
    image = scan("tilted")
    made = translated(opened, image, "nifti", CPU)
    assert all(one.array.shape == image.array.shape for one in made.maps.values())
    lower, upper = (made.maps[name].array for name in ("lower", "upper"))
    assert (lower <= made.image.array).all() and (made.image.array < upper).all()
    assert made.maps["trust"].array.min() > 0.0  # no voxel was left without


# ------------------------------------------------------------------------------------------------ slices


class Below(UNet):
    """Gives the slice two below, so that the order of the slices shows."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([x[:, :1]] * 3, 1)


def test_the_slices_around_one_are_the_same_however_the_file_counts_them(tmp_path):
    config = about(2, 2, lying=[[0, -1], [1, -1], [2, 1]])
    opened = model.save(tmp_path / "model", UNet(**config["network"]["arguments"]), config)
    below = Below(**config["network"]["arguments"]).eval()
    ways = {"feet first": AXIAL, "head first": AXIAL @ np.diag([1.0, 1, -1]), "mirrored": AXIAL @ np.diag([-1.0, 1, 1])}
    found = {}
    for way, axes in ways.items():
        values = scan().array
        for axis in np.flatnonzero(np.diag(axes) != np.diag(AXIAL)):
            values = np.flip(values, axis + 1)
        (tmp_path / way).mkdir()
        image = Image(np.ascontiguousarray(values), placed(axes), "CT", "HU")
        for format, write in (("nifti", write_nifti), ("dicom", write_series)):
            (source,), _ = formats.discover(write(image, tmp_path / way))
            read = formats.read(source)
            made = translated(replace(opened, generator=below), read, format, CPU)
            lies = slices.lying_as(made.image, ((0, -1), (1, -1), (2, 1)))
            found[way, format] = slices.turned(made.image, lies, "").array
    expected = scan().array[0].transpose(2, 1, 0)[[0, 0, *range(SHAPE[2] - 2)]]
    for one in found.values():
        np.testing.assert_allclose(one[:, 0], expected, atol=1e-2)


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Six patients with T1 and CT in NIfTI that does not say which it is, 8 axial slices of 40 x 40."""
    root = tmp_path_factory.mktemp("phantoms")
    phantom(root, patients=6, modality="all", format="nifti", slices=8, size=40)
    for path in (root / "scans").rglob("*.nii.gz"):
        one = nibabel.load(path)
        nibabel.save(nibabel.Nifti1Image(np.asarray(one.dataobj), one.affine), path)
    return root / "scans"


def stored_otherwise(path: Path, order: tuple[int, int, int], flips: tuple[int, ...]) -> None:
    """The same scan with its axes in another order and some of them reversed."""
    one = nibabel.load(path)
    turn = np.array([[order[axis], -1 if axis in flips else 1] for axis in range(3)])
    codes = nibabel.orientations.inv_ornt_aff(turn, one.shape)
    values = nibabel.orientations.apply_orientation(np.asarray(one.dataobj), turn)
    nibabel.save(nibabel.Nifti1Image(values, one.affine @ codes), path)


def test_the_network_sees_in_use_what_it_saw_in_training_however_sources_are_stored(phantoms, tmp_path, monkeypatch):
    """Sources stored sagittally, or upside down, are learned from on the slices of their targets; and translated on the same."""
    shutil.copytree(phantoms, tmp_path / "scans")
    scans = sorted((tmp_path / "scans").rglob("*T1*.nii.gz"))
    for number, path in enumerate(scans):
        stored_otherwise(path, *(((1, 2, 0), (0,)) if number % 2 else ((0, 1, 2), (2,))))
    prepare(
        tmp_path / "scans", tmp_path / "data", pairs="*T1*:*CT*", modality="MR:CT", labels="none", masks="none",
        plan={"neighbours": 2, "crop": "none"},
    )  # fmt: skip
    data = Prepared.open(tmp_path / "data")
    pairing = pairings.pairing("paired", data)
    said = pairing.about()
    assert said["lying"] == [[0, -1], [1, -1], [2, 1]] and pairing.slices == 5
    config = about(2, 2, said["source"], said["target"] | CT, spacing=tuple(data.info["spacing"]), lying=said["lying"])
    config["translation"]["choices"] = data.info["choices"]
    opened = model.save(tmp_path / "model", UNet(**config["network"]["arguments"]), config)
    sources: list[np.ndarray] = []
    real = inference.translate

    def seen(network: Any, source: np.ndarray, *rest: Any) -> np.ndarray:
        sources.append(source)
        return real(network, source, *rest)

    monkeypatch.setattr(inference, "translate", seen)
    for path in scans:
        (source,), _ = formats.discover(path)
        translated(opened, formats.read(source), "nifti", CPU)
    learned = [pairing.source(row) for row in range(len(data))]
    assert len(learned) == 8 * len(scans) and learned[0].shape == sources[0].shape
    for one in learned:
        assert min(float(np.abs(one - other).max()) for other in sources) < 0.02


# ------------------------------------------------------------------------------------------------ seams and flicker


class Averaging(torch.nn.Module):
    """Middle and both bounds: the mean of the neighbourhood within the image."""

    step = 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = torch.nn.functional.avg_pool3d if x.ndim == 5 else torch.nn.functional.avg_pool2d
        return torch.stack([pool(x, 5, 1, 2, count_include_pad=False)] * 3, 1)


HU = 4095.0 / 2.0  # of one encoded unit


@pytest.mark.parametrize("size", [(40, 37, 50), (16, 16, 16), (21, 60, 17), (37, 50)])
def test_a_constant_stays_one_through_windows(size):
    made = inference.translate(Averaging(), np.full((1, *size), 0.3, np.float32), (16,) * len(size), CPU)
    assert np.abs(made - 0.3).max() * HU < 0.1


def random_network(dimensions: int) -> UNet:
    """Random weights, batch norm's statistics of noise, an output that spans about [-1, 1]."""
    torch.manual_seed(0)
    made = UNet(1, 1, dimensions, width=4, doublings=2)
    torch.nn.init.normal_(made.end.weight, std=0.2)
    made.train()
    with torch.no_grad():
        made(torch.randn(4, 1, *(32,) * dimensions))
    return made.eval().requires_grad_(False)


def body(size: tuple[int, ...]) -> np.ndarray:
    """Smooth noise in an ellipsoid, air around it, encoded (1, *size)."""
    random = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    waves = [
        np.cos(random.uniform(2, 12, len(size)) @ [a.ravel() for a in axes] + random.uniform(0, 6)) for _ in range(6)
    ]
    inside = sum(axis**2 for axis in axes) < 0.8
    return np.where(inside, 0.4 * np.mean(waves, 0).reshape(size), -1.0)[None].astype(np.float32)


def test_windows_of_a_network_that_looks_around_give_what_the_whole_image_gives(monkeypatch):
    for size, patch in (((64, 56, 72), (32, 32, 32)), ((150, 170), (64, 64))):
        network, image = random_network(len(size)), body(size)
        whole = inference.whole(network, torch.from_numpy(image), patch, network.step)[0, 0]
        monkeypatch.setattr(inference, "AT_ONCE", 0)
        made = inference.translate(network, image, patch, CPU)[0, 0]
        assert 0.0 < np.abs(made - whole).max() < 0.003 * np.ptp(whole)
        flicker = [float(np.abs(np.diff(one, axis=0)).mean()) for one in (made, whole)]
        assert 0.99 < flicker[0] / flicker[1] < 1.01


def test_a_2_d_model_that_changes_nothing_neither_adds_nor_takes_variation_between_slices(tmp_path):
    for kind in KINDS:
        opened = untrained(tmp_path / kind, kind)
        image = scan()
        made = translated(opened, image, "nifti", CPU).image.array
        each = [float(np.abs(np.diff(one.astype(np.float64), axis=3)).mean()) for one in (made, image.array)]
        assert 0.999 < each[0] / each[1] < 1.001


# ------------------------------------------------------------------------------------------------ bad input


def mr(folder: Path, name: str, shape: tuple[int, ...] = (20, 18, 9), values: np.ndarray | None = None) -> Path:
    """An MR-like NIfTI file."""
    if values is None:
        values = np.random.default_rng(0).uniform(100, 800, shape).astype(np.float32)
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, PLACES["axial"]), path)
    return path


def huge(path: Path) -> Path:
    """A NIfTI file that claims, and as a sparse file has, 2^31 voxels of 8 bytes."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float64)
    header.set_data_shape((2048, 1024, 1024))
    header.set_sform(PLACES["axial"], 1)
    header["vox_offset"], header["magic"] = 352, b"n+1"
    path.write_bytes(header.binaryblock + bytes(4))
    os.truncate(path, 352 + 2**34)
    return path


def bad_scans(folder: Path) -> dict[str, str]:
    """Files that cannot be translated from MR: name -> a word of the reason."""
    folder.mkdir()
    dotted = np.full((20, 18, 9), 300.0, np.float32)
    dotted[3, 4, 5] = np.nan
    mr(folder, "nan.nii.gz", values=dotted)
    colours = np.zeros((20, 18, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    mr(folder, "colours.nii.gz", values=colours)
    whole = mr(folder, "cut.nii.gz").read_bytes()
    (folder / "cut.nii.gz").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.nii").write_bytes(b"")
    huge(folder / "huge.nii")
    write_series(scan(), folder)
    formats.write(
        replace(scan(), array=np.zeros((3, 8, 8, 1), np.uint8), modality="OT", units="a.u."),
        folder / "rgb",
        "png",
        Marking("s", "ab", 0, 0),
    )
    return {"nan.nii.gz": "finite", "colours.nii.gz": "grey", "cut.nii.gz": "copy it again", "empty.nii": "empty file",
            "huge.nii": "which need about", "series": "expected MR", "rgb": "grey"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_no_bad_file_stops_a_good_one_or_is_dropped_in_silence(tmp_path, kind):
    untrained(tmp_path / "model", kind, source=MR, target=CT)
    bad = bad_scans(tmp_path / "in")
    mr(tmp_path / "in", "z/good.nii.gz")
    result = translate(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    assert list(result["files"]) == ["z/good"]
    for name, word in bad.items():
        (said,) = [one for one in result["skipped"] if one.startswith(name)]
        assert "expected" in said and word in said, said
    assert len(result["skipped"]) == len(bad)
    wrong = {path.relative_to(tmp_path / "out").parts[0] for path in (tmp_path / "out").rglob("*")}
    assert wrong == {"z", "translated.json"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(20, 18, 1), (3, 2, 2), (40, 2, 9)])
def test_scans_smaller_than_a_patch_and_single_slices_are_translated_whole(tmp_path, kind, shape):
    opened = untrained(tmp_path / "model", kind)
    image = scan(shape=shape)
    assert apart(translated(opened, image, "nifti", CPU).image, image) <= 0.5


@pytest.fixture(scope="module")
def familiar_with(phantoms, tmp_path_factory) -> dict[str, dict[str, Any]]:
    """What models know of the T1 and of the CT that they learned from."""
    known = {}
    for source, target, kinds in (("T1", "CT", "MR:CT"), ("CT", "T1", "CT:MR")):
        root = tmp_path_factory.mktemp("familiar")
        prepare(phantoms, root / "data", pairs=f"*{source}*:*{target}*", modality=kinds, labels="none", masks="none")
        pairing = pairings.pairing("paired", Prepared.open(root / "data"))
        known[source] = {
            "familiar": pairing.familiar(),
            **pairing.about(),
            "choices": pairing.data.info["choices"],
            "spacing": tuple(pairing.data.info["spacing"]),
        }
    return known


def test_source_and_target_in_each_others_place_are_refused_though_no_header_names_them(
    phantoms, familiar_with, tmp_path
):
    own = {"T1": "CT", "CT": "T1"}
    for learned, other in own.items():
        known = familiar_with[learned]
        config = about(
            2,
            0,
            known["source"],
            {"channels": 1, **(CT if other == "CT" else MR)},
            known["spacing"],
            lying=known["lying"],
        )
        config["translation"]["choices"] = known["choices"]
        model.save(
            tmp_path / learned, UNet(**config["network"]["arguments"]), config | {"familiarity": known["familiar"]}
        )
        result = translate(tmp_path / learned, phantoms, tmp_path / f"out {learned}", maps=False)
        assert [name for name in result["files"] if name.endswith(other)] == []
        assert len([name for name in result["files"] if name.endswith(learned)]) == 6
        said = [one for one in result["skipped"] if f"{other}.nii.gz" in one]
        assert len(said) == 6 and all("refused: " in one and "--force" in one for one in said)


# ------------------------------------------------------------------------------------------------ files


def test_nothing_that_is_no_translation_of_the_scan_is_ever_overwritten(tmp_path):
    untrained(tmp_path / "model", source=MR, target=CT)
    first, second = mr(tmp_path / "one", "scan.nii.gz"), mr(tmp_path / "two", "scan.nii.gz", (20, 18, 8))
    before = first.read_bytes()
    with pytest.raises(ValueError, match="choose another folder"):
        translate(tmp_path / "model", first, tmp_path / "one")
    assert first.read_bytes() == before
    translate(tmp_path / "model", tmp_path / "one", tmp_path / "out")
    made = (tmp_path / "out/scan.nii.gz").read_bytes()
    with pytest.raises(ValueError, match="choose another folder"):
        translate(tmp_path / "model", second, tmp_path / "out")
    assert (tmp_path / "out/scan.nii.gz").read_bytes() == made
    assert translate(tmp_path / "model", first, tmp_path / "out")["count"] == 1


def test_every_scan_and_every_map_has_a_name_of_its_own(tmp_path):
    untrained(tmp_path / "model", source=MR, target=CT)
    for name in ("a.nii.gz", "a.nii", "a-lower.nii.gz", "1.2.840.nii", "1.2.841.nii"):
        mr(tmp_path / "in", name)
    write_series(replace(scan(), modality="MR", units="a.u.", array=np.abs(scan().array)), tmp_path / "in/b")
    outer = write_series(
        replace(scan("oblique"), modality="MR", units="a.u.", array=np.abs(scan().array)), tmp_path / "in/c"
    )
    for file in outer.iterdir():
        file.rename(tmp_path / "in/b" / f"z{file.name}")
    result = translate(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    assert result["count"] == 7 and not result["skipped"]
    files = [file for some in result["files"].values() for file in some]
    assert len(set(files)) == len(files) and all((tmp_path / "out" / file).is_file() for file in files)
    assert {"1.2.840", "1.2.841", "a-lower"} <= set(result["files"])


def test_a_folder_of_translations_below_the_scans_is_not_translated_again(tmp_path):
    grey = {"modality": "OT", "low": 0.0, "high": 900.0, "units": "a.u."}
    untrained(tmp_path / "model", source=grey, target=grey)
    mr(tmp_path / "in", "scan.nii.gz")
    for _ in range(2):
        assert translate(tmp_path / "model", tmp_path / "in", tmp_path / "in/out")["count"] == 1


def test_a_command_that_was_broken_off_goes_on_where_it_was(tmp_path, monkeypatch):
    """Killed between the image and its maps: the half translation is made again, the whole one is not."""
    untrained(tmp_path / "model", source=MR, target=CT)
    for name, where in (("a", "axial"), ("b", "oblique")):
        image = replace(scan(where), modality="MR", units="a.u.", array=np.abs(scan().array))
        write_series(image, tmp_path / "in" / name)
    real, calls = formats.write_parametric_map, []

    def dies(*args: Any) -> Any:
        calls.append(args)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(formats, "write_parametric_map", dies)
    with pytest.raises(KeyboardInterrupt):
        translate(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    assert (tmp_path / "out/b/series").is_dir()
    whole = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/a").rglob("*.dcm")}
    monkeypatch.setattr(formats, "write_parametric_map", real)
    result = translate(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    assert result["skipped"] == [] and result["count"] == 2
    assert all((tmp_path / "out" / file).is_file() for some in result["files"].values() for file in some)
    assert {path: path.stat().st_mtime_ns for path in whole} == whole
    assert json.loads((tmp_path / "out/translated.json").read_text())["begun"] is None


def test_too_little_memory_on_the_way_is_said_and_the_others_go_on(tmp_path, monkeypatch):
    untrained(tmp_path / "model", source=MR, target=CT)
    for name in ("a", "b", "c"):
        mr(tmp_path / "in", f"{name}.nii.gz", (20, 18, 9 + ord(name) % 3))
    real, errors = inference.translate, [MemoryError(), torch.OutOfMemoryError("CUDA out of memory")]

    def poor(*args: Any) -> np.ndarray:
        if errors:
            raise errors.pop()
        return real(*args)

    monkeypatch.setattr(inference, "translate", poor)
    result = translate(tmp_path / "model", tmp_path / "in", tmp_path / "out")
    assert list(result["files"]) == ["c"] and all("expected enough memory" in one for one in result["skipped"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "c.nii.gz",
        "c-lower.nii.gz",
        "c-upper.nii.gz",
        "c-trust.nii.gz",
        "translated.json",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_memory_that_is_foretold_grows_with_the_scan_and_covers_its_planes(tmp_path, kind):
    opened = untrained(tmp_path / "model", kind)
    wanted = []
    for shape in ((128, 128, 100), (256, 256, 200), (512, 512, 400)):
        place = Image(np.broadcast_to(np.int16(0), (1, *shape)), PLACES["axial"], "CT", "HU")
        wanted.append(needed(opened, place, "nifti"))
        assert wanted[-1] > 4 * 6 * np.prod(shape)
    assert wanted[2] - wanted[1] == pytest.approx(8 * (wanted[1] - wanted[0]), rel=0.01)


# ------------------------------------------------------------------------------------------------ pairs


def test_pairs_of_different_patients_or_regions_are_left_out_in_words(tmp_path):
    for patient in "abcd":
        for name, shift in (("MR", 0.0), ("CT", 500.0 if patient == "d" else 0.0)):
            place = PLACES["axial"].copy()
            place[2, 3] += shift
            values = np.random.default_rng(ord(patient)).integers(-900, 900, (24, 24, 6), np.int16)
            (tmp_path / "in").mkdir(exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, place), tmp_path / "in" / f"{patient}_{name}.nii.gz")
    prepare(tmp_path / "in", tmp_path / "data", pairs="*MR*:*CT*", modality="MR:CT", labels="none", masks="none")
    made = Prepared.open(tmp_path / "data")
    assert len(set(made.columns["case"].tolist())) == 3
    assert any("one region" in one and "0%" in one for one in map(str, made.info["skipped"]))
