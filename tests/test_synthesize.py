"""Synthesis: sample i depends on (seed, i) only, values come out in physical units, every file is marked, models load no code."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import scansmith
from scansmith import formats, model, synthesize
from scansmith.networks import GENERATORS
from scansmith.preprocess import Grid
from scansmith.synthesize import draw


def make_model(
    folder, labels=(), modality="CT", source="dicom", low=-1024.0, high=1000.0, units="HU", height=12, width=16
):
    torch.manual_seed(0)
    grid = Grid.choose((height, width), 16)
    arguments = {
        "channels": 1,
        "base": list(grid.base),
        "doublings": grid.doublings,
        "width": 8,
        "latent": 8,
        "classes": len(labels),
    }
    config = {
        "network": {"name": "strided", "arguments": arguments}, "grid": grid.to_json(), "channels": 1, "modality": modality,
        "source_format": source, "intensity": {"low": low, "high": high, "units": units}, "orientation": None, "spacing": [2.0, 1.5], "labels": list(labels),
        "label_counts": [30, 10][: len(labels)], "data_hash": "d" * 16, "recipe": {"name": "relativistic", "train_images": 40, "images": 800, "seed": 0},
    }  # fmt: skip
    return model.save(folder, GENERATORS["strided"](**arguments), config)


def voxels(folder):
    sources, skipped = formats.discover(folder)
    assert not skipped
    return {source.files[0].name.split(".")[0]: formats.read(source).array for source in sources}


@pytest.mark.parametrize("format", ["png", "nifti", "dicom"])
def test_sample_i_depends_on_seed_and_index_only(tmp_path, format):
    make_model(tmp_path / "m")
    synthesize(tmp_path / "m", tmp_path / "many", count=40, format=format)
    synthesize(tmp_path / "m", tmp_path / "part", count=3, first=19, format=format)
    synthesize(tmp_path / "m", tmp_path / "other", count=3, first=19, format=format, seed=1)
    many, part, other = (voxels(tmp_path / name) for name in ("many", "part", "other"))
    assert len(many) == 40 and sorted(part) == ["000019", "000020", "000021"]
    for name, array in part.items():
        assert np.array_equal(array, many[name]) and not np.array_equal(array, other[name])
        grid = Grid.choose((12, 16), 16)
        assert array.shape == (1, grid.box_width, grid.box_height, 1)  # without the grid's padding


def test_hounsfield_units_are_whole_and_inside_the_window_and_equal_in_every_format(tmp_path):
    made = make_model(tmp_path / "m")
    z = model.load(tmp_path / "m").generator
    assert z.training is False and made.intensity.units == "HU"
    arrays = []
    for format in ("png", "nifti", "dicom"):
        synthesize(tmp_path / "m", tmp_path / format, count=2, format=format)
        arrays.append(voxels(tmp_path / format)["000001"].astype(np.float64))
    assert np.array_equal(arrays[0], arrays[1]) and np.array_equal(arrays[0], arrays[2])
    assert np.array_equal(arrays[0], np.rint(arrays[0])) and arrays[0].min() >= -1024 and arrays[0].max() <= 1000


def test_slices_lie_as_the_training_slices_did(tmp_path):
    """Coronal training slices: columns to the patient's left, rows to the feet."""
    made = make_model(tmp_path / "m")
    coronal = {**made.config, "orientation": [[-1.0, 0.0, 0.0], [0.0, 0.0, -1.0]]}
    model.save(tmp_path / "m", made.generator, {key: value for key, value in coronal.items() if key != "version"})
    for format in ("nifti", "dicom"):
        synthesize(tmp_path / "m", tmp_path / format, count=1, format=format)
        (source,), _ = formats.discover(tmp_path / format)
        image = formats.read(source)
        assert image.spacing[:2] == pytest.approx((1.5, 2.0))
        np.testing.assert_allclose(image.affine[:3, :2], [[-1.5, 0.0], [0.0, 0.0], [0.0, -2.0]], atol=1e-6)
        assert np.linalg.det(image.affine[:3, :3]) > 0 or format == "nifti"


def test_classes_get_folders_and_the_frequencies_of_training(tmp_path):
    make_model(tmp_path / "m", labels=("benign", "with/slash"))
    result = synthesize(tmp_path / "m", tmp_path / "o", count=200, format="png")
    assert sum(result["label_counts"].values()) == 200
    assert result["label_counts"]["benign"] == pytest.approx(150, abs=25)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["benign", "manifest.json", "with_slash"]
    only = synthesize(tmp_path / "m", tmp_path / "one", count=5, label="benign")
    assert only["label_counts"] == {"benign": 5, "with/slash": 0}
    with pytest.raises(ValueError, match=r"expected a label of \['benign', 'with/slash'\], got 'malign'"):
        synthesize(tmp_path / "m", tmp_path / "x", label="malign")


def test_the_manifest_names_model_seed_and_every_file(tmp_path):
    made = make_model(tmp_path / "m")
    synthesize(tmp_path / "m", tmp_path / "o", count=5, seed=3)
    manifest = formats.read_manifest(tmp_path / "o")
    assert (
        manifest["model"] == made.hash
        and manifest["seed"] == 3
        and manifest["synthetic"] is True
        and manifest["format"] == "dicom"
    )
    assert [entry["index"] for entry in manifest["files"]] == list(range(5))
    assert all((tmp_path / "o" / entry["file"]).is_file() for entry in manifest["files"])


def test_running_again_replaces_and_foreign_files_are_not_touched(tmp_path):
    make_model(tmp_path / "m")
    synthesize(tmp_path / "m", tmp_path / "o", count=8)
    synthesize(tmp_path / "m", tmp_path / "o", count=2)
    assert len(list((tmp_path / "o").glob("*.dcm"))) == 2
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "real.dcm").write_bytes(b"years of work")
    with pytest.raises(ValueError, match=r"real\.dcm.*choose another folder"):
        synthesize(tmp_path / "m", tmp_path / "mine", count=1)
    assert (tmp_path / "mine" / "real.dcm").read_bytes() == b"years of work"


def test_a_stopped_synthesis_is_marked_incomplete_and_the_same_command_finishes_it(tmp_path, monkeypatch):
    make_model(tmp_path / "m")
    real, calls = formats.write, []

    def stop(image, stem, format, marking):
        calls.append(stem)
        if len(calls) == 4:
            (stem.parent / f".{stem.name}.dcm.partial").write_bytes(b"half")
            raise KeyboardInterrupt
        return real(image, stem, format, marking)

    monkeypatch.setattr(formats, "write", stop)
    with pytest.raises(KeyboardInterrupt):
        synthesize(tmp_path / "m", tmp_path / "o", count=6)
    assert formats.read_manifest(tmp_path / "o")["complete"] is False
    monkeypatch.setattr(formats, "write", real)
    synthesize(tmp_path / "m", tmp_path / "o", count=2)
    assert formats.read_manifest(tmp_path / "o")["complete"] is True and len(list((tmp_path / "o").glob("*.dcm"))) == 2


# ------------------------------------------------------------------------------------------------ volumes

# Sagittal slices of a head tilted by 20 degrees, 3 mm apart, pixels of 1.5 mm down and 2 mm to the right.
TILT = np.deg2rad(20)
ORIENTATION = [[0.0, -np.cos(TILT), -np.sin(TILT)], [0.0, np.sin(TILT), -np.cos(TILT)], [1.0, 0.0, 0.0]]
SPACING = [3.0, 1.5, 2.0]


def make_model_of_volumes(folder, size=(14, 20, 16), **config):
    """An untrained generator of volumes, upright as `prepare` stores them."""
    torch.manual_seed(0)
    grid, labels = Grid.choose(size, 24), config.get("labels", [])
    arguments = {
        "channels": 1, "base": list(grid.base), "doublings": grid.doublings, "width": 8, "latent": 8, "classes": len(labels),
    }  # fmt: skip
    config = {
        "network": {"name": "strided", "arguments": arguments}, "grid": grid.to_json(), "channels": 1, "modality": "MR",
        "source_format": "nifti", "intensity": {"low": 0.0, "high": 400.0, "units": "a.u."}, "orientation": ORIENTATION, "spacing": SPACING,
        "labels": labels, "label_counts": [30, 10][: len(labels)], "data_hash": "d" * 16,
        "recipe": {"name": "relativistic", "train_images": 40, "images": 800, "seed": 0}, **config,
    }  # fmt: skip
    return model.save(folder, GENERATORS["strided"](**arguments), config)


@pytest.mark.parametrize("format", ["nifti", "dicom"])
def test_volumes_lie_in_space_as_the_training_volumes_did(tmp_path, format):
    made = make_model_of_volumes(tmp_path / "m")
    synthesize(tmp_path / "m", tmp_path / "o", count=2, format=format)
    sources, skipped = formats.discover(tmp_path / "o")
    assert len(sources) == 2 and not skipped
    image = formats.read(sources[1])
    encoded = list(draw(made, 0, 2, None, 0, torch.device("cpu")))[1]
    assert encoded.shape == (1, *made.grid.box) and image.array.shape == (1, *made.grid.box[::-1])
    expected = made.intensity.decode(encoded).transpose(0, 3, 2, 1)
    np.testing.assert_allclose(image.array, expected, atol=400 / 2**15)
    np.testing.assert_allclose(image.affine[:3, :3], np.array(ORIENTATION).T * SPACING[::-1], atol=1e-5)


def test_nibabel_reads_the_spacing_and_orientation_of_prepared_training_volumes(tmp_path):
    """From NIfTI files of another orientation through `prepare` to synthetic NIfTI files."""
    import nibabel

    from scansmith.dataset import Dataset
    from scansmith.train.stage import common_orientation

    affine = nibabel.affines.from_matvec(np.array([[0.0, 0.0, 1.2], [1.6, 0.0, 0.0], [0.0, -1.4, 0.0]]), [5, 6, 7])
    (tmp_path / "scans").mkdir()
    for number in range(8):
        voxels = np.random.default_rng(number).integers(0, 900, (20, 18, 24)).astype(np.int16)
        nibabel.Nifti1Image(voxels, affine).to_filename(tmp_path / "scans" / f"{number}.nii.gz")
    scansmith.prepare(tmp_path / "scans", tmp_path / "d", modality="MR", plan='{"dimensions": 3, "crop": "none"}')
    data = Dataset.open(tmp_path / "d")
    made = make_model_of_volumes(
        tmp_path / "m",
        data.shape[1:],
        orientation=common_orientation(data.columns["affine"], 3),
        spacing=[
            mm * side / box
            for mm, side, box in zip(data.info["spacing"], data.shape[1:], Grid.choose(data.shape[1:], 24).box)
        ],
    )
    synthesize(tmp_path / "m", tmp_path / "o", count=1)
    written = nibabel.load(tmp_path / "o" / "000000.nii.gz")
    axes = nibabel.io_orientation(data.columns["affine"][0])
    np.testing.assert_array_equal(nibabel.io_orientation(written.affine), axes)
    extent = np.array(written.header.get_zooms()) * written.shape
    np.testing.assert_allclose(extent, np.array(data.shape[:0:-1]) * data.info["spacing"][::-1], rtol=1e-5)
    assert written.shape == made.grid.box[::-1] and written.header.get_xyzt_units()[0] == "mm"


def test_volume_i_depends_on_seed_and_index_only_and_classes_get_folders(tmp_path):
    make_model_of_volumes(tmp_path / "m", labels=["a", "b"])
    for format in ("nifti", "dicom"):
        synthesize(tmp_path / "m", tmp_path / format, count=18, format=format)
        synthesize(tmp_path / "m", tmp_path / f"{format}_part", count=1, first=17, format=format)
        entry = formats.read_manifest(tmp_path / f"{format}_part")["files"][0]
        whole, part = (
            formats.read(formats.discover(tmp_path / name / entry["file"])[0][0]).array
            for name in (format, f"{format}_part")
        )
        np.testing.assert_array_equal(whole, part)
        assert entry["file"].startswith(f"{entry['label']}/000017")
    assert formats.read_manifest(tmp_path / "dicom")["size"] == list(model.load(tmp_path / "m").grid.box)


def test_running_again_takes_the_series_of_the_last_run_away_but_no_file_of_others(tmp_path):
    make_model_of_volumes(tmp_path / "m")
    synthesize(tmp_path / "m", tmp_path / "o", count=3, format="dicom")
    synthesize(tmp_path / "m", tmp_path / "o", count=1)
    assert sorted(path.name for path in (tmp_path / "o").iterdir()) == ["000000.nii.gz", "manifest.json"]
    synthesize(tmp_path / "m", tmp_path / "o", count=1, format="dicom")
    (tmp_path / "o" / "000000" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="choose another folder"):
        synthesize(tmp_path / "m", tmp_path / "o", count=1)
    assert (tmp_path / "o" / "000000" / "notes.txt").read_text() == "mine"


def test_formats_that_cannot_hold_volumes_are_refused_before_anything_is_written(tmp_path):
    make_model_of_volumes(tmp_path / "m", spacing=None, source_format="dicom", orientation=None)
    with pytest.raises(ValueError, match=r"'nifti' or 'dicom' for a model of volumes, got 'png'.*leave --format out"):
        synthesize(tmp_path / "m", tmp_path / "o", count=1, format="png")
    with pytest.raises(ValueError, match=r"voxel size .* leave --format out"):
        synthesize(tmp_path / "m", tmp_path / "o", count=1, format="dicom")
    assert not (tmp_path / "o").exists()
    assert synthesize(tmp_path / "m", tmp_path / "o", count=1)["format"] == "nifti"
    make_model_of_volumes(tmp_path / "m", source_format="dicom")
    assert synthesize(tmp_path / "m", tmp_path / "o", count=1)["format"] == "dicom"


def test_the_card_of_a_model_of_volumes_says_so(tmp_path):
    made = make_model_of_volumes(tmp_path / "m")
    size = " x ".join(map(str, made.grid.box))
    assert f"Makes volumes of {size} voxels" in (tmp_path / "m" / "README.md").read_text()


def test_models_of_tiff_scans_make_pictures(tmp_path):
    make_model(tmp_path / "m", modality="OT", source="tiff", low=0.0, high=255.0, units="a.u.")
    assert synthesize(tmp_path / "m", tmp_path / "o", count=1)["format"] == "png"


# ------------------------------------------------------------------------------------------------ the model folder


def test_a_model_survives_saving_to_the_bit_and_its_hash_names_its_content(tmp_path):
    one = make_model(tmp_path / "one")
    loaded = model.load(tmp_path / "one")
    for a, b in zip(one.generator.parameters(), loaded.generator.parameters()):
        assert torch.equal(a, b)
    assert one.hash == loaded.hash == make_model(tmp_path / "two").hash
    assert make_model(tmp_path / "three", high=1001.0).hash != one.hash


def test_a_model_folder_holds_only_tensors_and_json(tmp_path):
    make_model(tmp_path / "m")
    assert sorted(path.name for path in (tmp_path / "m").iterdir()) == ["README.md", "config.json", "model.safetensors"]
    json.loads((tmp_path / "m" / "config.json").read_text())
    assert "Not for diagnosis" in (tmp_path / "m" / "README.md").read_text()


def test_models_that_do_not_fit_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match="scansmith train"):
        model.load(tmp_path)
    make_model(tmp_path / "m")
    config = json.loads((tmp_path / "m" / "config.json").read_text())

    def refused(words, **changes):
        (tmp_path / "m" / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(ValueError, match=words):
            model.load(tmp_path / "m")

    refused("expected model version 2", version=99)
    refused("found 'os.system'", network={"name": "os.system", "arguments": {}})
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    tensors = load_file(tmp_path / "m" / "model.safetensors")
    save_file(
        {name: value for name, value in tensors.items() if name != "end.bias"}, tmp_path / "m" / "model.safetensors"
    )
    with pytest.raises(ValueError, match="weights that fit"):
        model.load(tmp_path / "m")
    (tmp_path / "m" / "model.safetensors").write_bytes(b"\x80\x04pickled")
    with pytest.raises(ValueError, match="weights that fit"):
        model.load(tmp_path / "m")


def test_pictures_of_one_model_share_one_scale(tmp_path):
    """Tools that ignore the text chunks must not see each picture stretched on its own."""
    from PIL import Image as Picture

    make_model(tmp_path / "m", modality="OT", source="png", low=0.0, high=255.0, units="a.u.")
    synthesize(tmp_path / "m", tmp_path / "o", count=3)
    for name in ("000000", "000001", "000002"):
        with Picture.open(tmp_path / "o" / f"{name}.png") as picture:
            assert picture.mode.startswith("I;16")
            assert (
                float(picture.text["scansmith:slope"]) == pytest.approx(255 / 65535)
                and float(picture.text["scansmith:offset"]) == 0.0
            )
            stored = np.asarray(picture).astype(np.float64) * 255 / 65535
        np.testing.assert_allclose(voxels(tmp_path / "o")[name][0, :, :, 0].T, stored, atol=0.002)
