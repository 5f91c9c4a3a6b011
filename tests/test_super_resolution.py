"""Scans with thick slices become scans with thin ones, in their place and format, and show the measured slices."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_derived import SHAPE, affine, dicom_source, itk_source, nifti_source, one, turned
from test_pairings import make_scans

from scansmith import degradations, formats, model, train, translate
from scansmith.dataset import Dataset
from scansmith.image import Image
from scansmith.model import Model
from scansmith.translator import translated

CPU = torch.device("cpu")
SIZE, VOXEL = (16, 24, 20), (0.8, 0.8, 0.7)  # (D, H, W) and mm


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model that learned volumes with voxels of .8 x .8 x .7 mm from thick slices of them."""
    root = tmp_path_factory.mktemp("superresolve")
    make_scans(root / "data", "MR", SIZE, masks=False)
    info = json.loads((root / "data" / "dataset.json").read_text())
    info["choices"] = {"channels": 1, "dimensions": 3, "bias_field": False, "landmarks": None, "window": None,
                       "percentiles": [0.0, 100.0], "depth": SIZE[0], "height": SIZE[1], "width": SIZE[2]}  # fmt: skip
    (root / "data" / "dataset.json").write_text(json.dumps(info | {"spacing": list(VOXEL)}))
    assert Dataset.open(root / "data").info["spacing"] == list(VOXEL)
    train(root / "data", root / "run", task="superresolve", recipe="fidelity", images=32, minutes=0.02, device="cpu")
    return root / "run" / "model"


@pytest.fixture(scope="module")
def opened(folder) -> Model:
    return model.load(folder)


def scan_of(axes: np.ndarray, shape: tuple[int, ...] = SHAPE[1:]) -> Image:
    """Voxels of .7 x .8 x 2.5 mm, with a gradient along each axis."""
    values = sum(step * index for step, index in zip((20.0, 30.0, 60.0), np.indices(shape)))
    return Image(values[None].astype(np.float32), affine(axes), "MR")


@pytest.mark.parametrize(
    "axes", [np.diag([-1.0, -1, 1]), np.diag([-1.0, -1, -1]), turned()], ids=["LPS", "flipped", "oblique"]
)
def test_thick_slices_become_as_thin_as_the_models_over_the_same_extent(opened, axes):
    scan = scan_of(axes)
    made = translated(opened, scan, "nifti", CPU)
    factor = 2.5 / 0.8
    assert made.image.array.shape == (1, 7, 5, round(4 * factor))
    expected = degradations.regridded_affine(scan.affine, 4, round(4 * factor), 1 / factor)
    assert np.allclose(made.image.affine, expected, atol=1e-9)
    # What the finer scan shows in thick slices is what was measured.
    seen = degradations.thickened(made.image.array, factor, axis=3)
    assert np.abs(seen - scan.array).max() < 0.02 * np.ptp(scan.array)
    for image in made.maps.values():
        assert image.array.shape == made.image.array.shape and np.array_equal(image.affine, made.image.affine)


def test_a_tilted_stack_comes_back_on_thin_slices_with_its_tilt(opened):
    scan = scan_of(np.array([[1, 0, 0], [0, 1, 0.3], [0, 0, 1.0]]), (9, 12, 6))
    made = translated(opened, scan, "nifti", CPU)
    count = made.image.array.shape[3]
    step = 6 / count
    assert count > 15 and made.image.array.shape[1:3] == (9, 12)
    assert np.allclose(made.image.affine[:3, 2], step * scan.affine[:3, 2], rtol=0.05)
    assert np.linalg.norm(np.cross(made.image.affine[:3, 2], scan.affine[:3, 2])) < 1e-9
    assert np.array_equal(made.image.affine[:, :2], scan.affine[:, :2])
    assert np.isfinite(made.image.array).all()


def test_a_scan_as_fine_as_the_model_keeps_its_voxels(opened):
    scan = replace(scan_of(np.diag([-1.0, -1, 1])), affine=np.diag([-0.7, -0.8, 0.79, 1.0]))
    made = translated(opened, scan, "nifti", CPU)
    assert made.image.array.shape == scan.array.shape and np.array_equal(made.image.affine, scan.affine)


SOURCES = {
    "dicom": lambda folder, where: dicom_source(folder / "mr", where),
    "nifti": lambda folder, where: nifti_source(folder / "a.nii.gz"),
    "nrrd": lambda folder, where: itk_source(folder, "nrrd", "oblique" if where == "tilted" else where),
    "mha": lambda folder, where: itk_source(folder, "mha", "oblique" if where == "tilted" else where),
}


@pytest.mark.parametrize("where", ["oblique", "flipped", "tilted"])
@pytest.mark.parametrize("format", SOURCES)
def test_files_of_every_format_come_back_finer_in_their_place(folder, tmp_path, format, where):
    (tmp_path / "scans").mkdir()
    source = SOURCES[format](tmp_path / "scans", where)
    result = translate(folder, tmp_path / "scans", tmp_path / "out", force=True)
    assert result["count"] == 1 and result["skipped"] == []
    (files,) = result["files"].values()
    first = tmp_path / "out" / files[0]
    back = formats.read(one(first if first.parent == tmp_path / "out" else first.parent))
    scan = formats.read(source)
    thin = back.array.shape[3]
    assert thin > 9 and back.array.shape[1:3] == scan.array.shape[1:3]
    outer = np.array([[3.0, 2, -0.5, 1], [3, 2, 3.5, 1]]).T
    mine = np.array([[3.0, 2, -0.5, 1], [3, 2, thin - 0.5, 1]]).T
    assert np.allclose(back.affine @ mine, scan.affine @ outer, atol=0.5)
    assert len([file for file in files if "-trust" in file]) == 1
