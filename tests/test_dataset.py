"""Prepared dataset: what is written is what is read, and half a dataset is never taken for a whole one."""

from __future__ import annotations

import json

import numpy as np
import pytest

from scansmith import dataset
from scansmith.dataset import Dataset
from scansmith.preprocess import Grid

INFO = {"modality": "CT", "labels": ["a", "b"]}


def columns(count):
    return {
        "case": [f"case{i}" for i in range(count)],
        "split": ["train", "holdout"] * (count // 2) + ["train"] * (count % 2),
        "label": ["a", "", "b"] * (count // 3) + ["a"] * (count % 3),
        "low": [-1024.0] * count,
        "high": [1000.0] * count,
        "units": ["HU"] * count,
    }


def images(count, shape=(1, 5, 7), dtype=np.int16):
    return np.random.default_rng(0).integers(-1024, 1000, (count, *shape)).astype(dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.float32])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_rows_come_back_bit_for_bit_whatever_the_shards(tmp_path, monkeypatch, count, dtype):
    array = images(count, dtype=dtype)
    monkeypatch.setattr(dataset, "SHARD_BYTES", 3 * array[0].nbytes)
    opened = dataset.write(tmp_path / "d", INFO, columns(count), iter(array), np.dtype(dtype), (1, 5, 7))
    assert len(list((tmp_path / "d").glob("images-*.npy"))) == -(-count // 3)
    assert opened.shape == (1, 5, 7)
    assert len(opened) == count
    for row in range(count):
        np.testing.assert_array_equal(opened.image(row), array[row], strict=True)
    with pytest.raises(IndexError):
        opened.image(count)


def test_shards_are_plain_npy_files_of_the_true_length(tmp_path):
    array = images(5)
    dataset.write(tmp_path, INFO, columns(5), array, np.dtype(np.int16), (1, 5, 7))
    np.testing.assert_array_equal(np.load(tmp_path / "images-0001-00000.npy", allow_pickle=False), array, strict=True)


def test_rows_of_a_split_and_classes_follow_the_manifest(tmp_path):
    opened = dataset.write(tmp_path, INFO, columns(6), images(6), np.dtype(np.int16), (1, 5, 7))
    assert opened.rows("train").tolist() == [0, 2, 4]
    assert opened.rows("calibration").tolist() == []
    assert opened.classes().tolist() == [0, -1, 1, 0, -1, 1]
    with pytest.raises(ValueError, match="expected a split of"):
        opened.rows("test")


def test_a_level_holds_every_image_on_the_grid_and_encodes_as_the_intensity_map_does(tmp_path):
    array = images(6)
    opened = dataset.write(tmp_path, INFO, columns(6), array, np.dtype(np.int16), (1, 5, 7))
    grid = Grid.choose(opened.shape[1:], 14)
    level = opened.level(grid)
    for row in range(6):
        np.testing.assert_array_equal(level.array[row], grid.apply(array[row], -1024))
        np.testing.assert_allclose(
            level.batch(np.array([row]))[0], opened.intensity(row).encode(level.array[row]), atol=1e-6
        )
    made = (tmp_path / "levels" / f"{grid.height}x{grid.width}.npy").stat().st_mtime_ns
    opened.level(grid)
    assert (tmp_path / "levels" / f"{grid.height}x{grid.width}.npy").stat().st_mtime_ns == made


def test_a_level_of_volumes_holds_each_on_the_grid_in_its_own_window(tmp_path):
    array = images(4, (1, 9, 12, 10))
    windows = {**columns(4), "high": [1000.0, 500.0, 800.0, 100.0]}
    opened = dataset.write(tmp_path, INFO, windows, array, np.dtype(np.int16), (1, 9, 12, 10))
    grid = Grid.choose(opened.shape[1:], 14)
    level = opened.level(grid)
    assert grid.dimensions == 3 and level.array.shape == (4, 1, *grid.shape) and level.array.dtype == np.int16
    batch = level.batch(np.array([3, 1]))
    assert batch.shape == (2, 1, *grid.shape) and batch.dtype == np.float32
    for encoded, row in zip(batch, (3, 1)):
        np.testing.assert_array_equal(level.array[row], grid.apply(array[row], -1024))
        np.testing.assert_allclose(encoded, opened.intensity(row).encode(level.array[row]), atol=1e-6)


def test_an_interrupted_write_leaves_no_dataset_and_the_next_one_leaves_nothing_behind(tmp_path):
    array = images(6)
    dataset.write(tmp_path, INFO, columns(6), array, np.dtype(np.int16), (1, 5, 7)).level(
        dataset.Grid((4, 4), 1, (5, 7))
    )

    def killed():
        yield from array[:2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dataset.write(tmp_path, INFO, columns(6), killed(), np.dtype(np.int16), (1, 5, 7))
    with pytest.raises(ValueError, match="expected a prepared dataset"):
        Dataset.open(tmp_path)
    assert not list((tmp_path / "levels").iterdir())
    dataset.write(tmp_path, INFO, columns(4), array[:4], np.dtype(np.int16), (1, 5, 7))
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {
        "dataset.json",
        "manifest-0001.npz",
        "images-0001-00000.npy",
    }


def test_a_copy_that_lost_a_shard_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(dataset, "SHARD_BYTES", 2 * 70)
    dataset.write(tmp_path, INFO, columns(6), images(6), np.dtype(np.int16), (1, 5, 7))
    (tmp_path / "images-0001-00001.npy").unlink()
    with pytest.raises(ValueError, match=r"expected 6 images .* found 4"):
        Dataset.open(tmp_path)


def test_a_dataset_of_another_version_is_refused(tmp_path):
    dataset.write(tmp_path, INFO, columns(2), images(2), np.dtype(np.int16), (1, 5, 7))
    (tmp_path / "dataset.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(ValueError, match="found 99: prepare it again"):
        Dataset.open(tmp_path)


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    dataset.write(tmp_path, INFO, columns(2), images(2), np.dtype(np.int16), (1, 5, 7))
    assert (tmp_path / "notes.txt").read_text() == "mine"
