"""prepare once more: killed at any moment it ends as if it had not been; over a grown folder it reads the new files alone."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from test_prepare import ct_patients, dicom, nifti, noise, pngs

from scansmith import dataset as prepared
from scansmith import formats, runtime
from scansmith.dataset import Dataset
from scansmith.prepare import prepare, store


def contents(folder: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def with_key(root: Path, key: str = "ab" * 32) -> Path:
    """A dataset folder whose pseudonyms are known before it is made."""
    root.with_name(f"{root.name}.private.json").write_text(json.dumps({"key": key}))
    return root


def splits_by_patient(root: Path) -> dict[str, str]:
    """What names a patient -> its split."""
    opened = Dataset.open(root)
    parts = dict(zip(opened.columns["case"].tolist(), opened.columns["split"].tolist()))
    cases = json.loads(root.with_name(f"{root.name}.private.json").read_text())["cases"]
    return {entry["patient"]: parts[case] for case, entry in cases.items() if case in parts}


# ------------------------------------------------------------------------------------------------ killed


def scans_of_all_kinds(folder: Path) -> Path:
    """Volumes with masks, one broken, one copied, in several shards."""
    for i in range(6):
        nifti(folder / "images" / f"{i}.nii", noise(i, shape=(12, 10, 6), high=1000, dtype=np.int16))
        nifti(folder / "labels" / f"{i}.nii", (noise("m", i, shape=(12, 10, 6)) > 100).astype(np.uint8).repeat(1, 0))
    shutil.copy(folder / "images" / "1.nii", folder / "images" / "copy.nii")
    (folder / "images" / "cut.nii").write_bytes((folder / "images" / "0.nii").read_bytes()[:900])
    return folder


def test_killed_at_every_write_it_ends_as_if_it_had_not_been(tmp_path, monkeypatch):
    scans = scans_of_all_kinds(tmp_path / "scans")
    monkeypatch.setattr(prepared, "SHARD_BYTES", 3000)
    prepare(scans, with_key(tmp_path / "whole"), masks="images/*.nii:labels/*.nii")
    expected = contents(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("images")]) >= 3
    real, count, deaths = os.fsync, 0, 0

    def mortal(descriptor):
        nonlocal count
        count += 1
        if count == deaths:
            raise KeyboardInterrupt
        return real(descriptor)

    monkeypatch.setattr(runtime.os, "fsync", mortal)
    for deaths in range(1, 60):
        root, count = tmp_path / f"d{deaths}", 0
        with_key(root)
        try:
            prepare(scans, root, masks="images/*.nii:labels/*.nii")
        except KeyboardInterrupt:
            prepare(scans, root, masks="images/*.nii:labels/*.nii")
            assert contents(root) == expected, f"killed at write {deaths}"
        else:
            break
    assert deaths > 8  # shards, journals, index, manifest, dataset.json, private file, page


@pytest.mark.parametrize("wait", [0.2, 0.6])
def test_a_killed_process_is_no_harm(tmp_path, wait):
    scans = pngs(tmp_path / "scans", 150, shape=(100, 100))
    prepare(scans, with_key(tmp_path / "whole"))
    root = with_key(tmp_path / "d")
    code = f"from scansmith.prepare import prepare; prepare({str(scans)!r}, {str(root)!r}, workers=1)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(tmp_path.glob("d/.images-*")):
        time.sleep(0.01)
    time.sleep(wait / 10)
    process.send_signal(signal.SIGKILL)
    process.wait()
    prepare(scans, root)
    assert contents(root) == contents(tmp_path / "whole")


def test_what_was_read_before_the_end_is_not_read_again(tmp_path, monkeypatch):
    scans = scans_of_all_kinds(tmp_path / "scans")
    monkeypatch.setattr(prepared, "SHARD_BYTES", 3000)
    read: list[str] = []
    real = store.store

    def counted(scan, *rest):
        read.append(scan.name)
        if len(read) == 6:
            raise KeyboardInterrupt
        return real(scan, *rest)

    monkeypatch.setattr(store, "store", counted)
    with pytest.raises(KeyboardInterrupt):
        prepare(scans, tmp_path / "d", masks="none")
    first, read[:] = list(read), ["none", "none", "none", "none", "none", "none"]
    prepare(scans, tmp_path / "d", masks="none")
    assert 0 < len(set(first) - set(read)) < len(first)


# ------------------------------------------------------------------------------------------------ grown


def test_over_a_grown_folder_only_new_files_are_opened_and_nobody_moves(tmp_path, monkeypatch):
    scans = ct_patients(tmp_path / "scans", patients=12)
    prepare(scans, tmp_path / "d")
    before, rows = splits_by_patient(tmp_path / "d"), Dataset.open(tmp_path / "d")
    old = {digest: rows.image(row).copy() for row, digest in enumerate(rows.columns["sha256"].tolist())}
    opened: list[Path] = []
    for p in range(12, 20):
        for k in range(3):
            dicom(
                scans / f"p{p}" / f"{k}.dcm",
                noise(p, k, low=-1024, high=900, dtype=np.int32),
                f"P{p}",
                position=2.0 * k,
            )
    real = Path.open

    def counted(path, *arguments, **options):
        opened.append(path)
        return real(path, *arguments, **options)

    monkeypatch.setattr("pathlib.Path.open", counted)
    real_read = formats.read_runs
    monkeypatch.setattr(formats, "read_runs", lambda source: opened.extend(source.files) or real_read(source))
    prepare(scans, tmp_path / "d")
    touched = {path.parent.name for path in opened if path.suffix == ".dcm"}
    assert touched == {f"p{p}" for p in range(12, 20)}
    after, grown = splits_by_patient(tmp_path / "d"), Dataset.open(tmp_path / "d")
    assert len(grown) == 60 and grown.info["generation"] == 2
    assert {patient: after[patient] for patient in before} == before
    assert set(after.values()) == set(prepared.SPLITS)
    for row, digest in enumerate(grown.columns["sha256"].tolist()):
        if digest in old:
            np.testing.assert_array_equal(grown.image(row), old.pop(digest), strict=True)
    assert not old
    assert sorted(path.name for path in (tmp_path / "d").glob("*-00*")) == [
        "images-0002-00000.npy",
        "manifest-0002.npz",
    ]


def test_a_growing_dataset_keeps_its_grid_and_window_and_says_so(tmp_path):
    scans = ct_patients(tmp_path / "scans", patients=8)
    prepare(scans, tmp_path / "d")
    before = Dataset.open(tmp_path / "d")
    for k in range(3):
        large = noise("large", k, shape=(40, 40), low=-1024, high=3000, dtype=np.int32)
        dicom(scans / "new" / f"{k}.dcm", large, "New", position=2.0 * k)
    result = prepare(scans, tmp_path / "d")
    after = Dataset.open(tmp_path / "d")
    assert after.shape == before.shape
    assert set(after.columns["high"].tolist()) == set(before.columns["high"].tolist())
    assert any("kept from the dataset that grows" in line for line in result["plan"])


def test_what_is_taken_away_from_the_folder_leaves_the_dataset(tmp_path):
    scans = pngs(tmp_path / "scans", 20)
    prepare(scans, tmp_path / "d")
    before = splits_by_patient(tmp_path / "d")
    (scans / "003.png").unlink()
    result = prepare(scans, tmp_path / "d")
    after = splits_by_patient(tmp_path / "d")
    assert result["images"] == 19
    assert {patient: before[patient] for patient in after} == after


def test_a_changed_file_is_read_anew(tmp_path):
    scans = pngs(tmp_path / "scans", 12)
    prepare(scans, tmp_path / "d")
    before = set(Dataset.open(tmp_path / "d").columns["sha256"].tolist())
    Picture.fromarray(noise("changed")).save(scans / "003.png")
    prepare(scans, tmp_path / "d")
    after = set(Dataset.open(tmp_path / "d").columns["sha256"].tolist())
    assert len(after - before) == len(before - after) == 1


def test_other_arguments_make_the_dataset_anew(tmp_path):
    scans = pngs(tmp_path / "scans", 40, shape=(40, 30))
    prepare(scans, tmp_path / "d")
    prepare(scans, tmp_path / "d", max_side=20)
    assert Dataset.open(tmp_path / "d").shape == (1, 20, 15)


def test_a_new_patient_with_copies_on_both_sides_moves_nobody(tmp_path):
    scans = ct_patients(tmp_path / "scans", patients=12)
    prepare(scans, tmp_path / "d")
    before = splits_by_patient(tmp_path / "d")
    train = next(patient for patient, part in before.items() if part == "train").removeprefix("patient:P")
    held = next(patient for patient, part in before.items() if part == "holdout").removeprefix("patient:P")
    for k, owner in enumerate((train, held)):
        dicom(
            scans / "both" / f"{k}.dcm",
            noise(int(owner), k, low=-1024, high=900, dtype=np.int32),
            "Both",
            position=2.0 * k,
        )
    dicom(scans / "both" / "2.dcm", noise("both", low=-1024, high=900, dtype=np.int32), "Both", position=4.0)
    result = prepare(scans, tmp_path / "d")
    after = splits_by_patient(tmp_path / "d")
    assert {patient: after[patient] for patient in before} == before
    assert len(result["duplicates"]) == 2


def test_zipped_scans_give_the_same_images_as_unpacked_ones(tmp_path):
    scans = ct_patients(tmp_path / "scans", patients=8)
    shutil.make_archive(str(tmp_path / "zipped" / "all"), "zip", scans)
    prepare(scans, tmp_path / "a")
    prepare(tmp_path / "zipped", tmp_path / "b")
    a, b = Dataset.open(tmp_path / "a"), Dataset.open(tmp_path / "b")
    assert a.info["hash"] == b.info["hash"]
    assert len(b) == 24
    dicom(tmp_path / "zipped" / "9.dcm", noise("9", low=-1024, high=900, dtype=np.int32), "P9")
    assert prepare(tmp_path / "zipped", tmp_path / "b")["images"] == 25


def test_a_dataset_that_was_deleted_or_lost_a_part_is_made_anew(tmp_path):
    scans = pngs(tmp_path / "scans", 20)
    prepare(scans, tmp_path / "d")
    first = contents(tmp_path / "d")
    shutil.rmtree(tmp_path / "d")
    prepare(scans, tmp_path / "d")
    assert contents(tmp_path / "d") == first
    for name in ("images-0001-00000.npy", "manifest-0001.npz", "dataset.json"):
        (tmp_path / "d" / name).unlink()
        prepare(scans, tmp_path / "d")
        assert contents(tmp_path / "d") == first, name


def test_a_held_out_image_stays_held_out_when_a_training_patient_brings_a_copy_that_sorts_first(tmp_path):
    scans = ct_patients(tmp_path / "scans", 24)
    prepare(scans, tmp_path / "d")
    before, opened = splits_by_patient(tmp_path / "d"), Dataset.open(tmp_path / "d")
    where = dict(zip(opened.columns["sha256"].tolist(), opened.columns["split"].tolist()))
    trained = next(patient for patient, part in before.items() if part == "train").removeprefix("patient:")
    held = next(patient for patient, part in before.items() if part == "holdout").removeprefix("patient:P")
    for k in range(3):
        pixels = noise(int(held), 0, low=-1024, high=900, dtype=np.int32) if k == 0 else None
        pixels = noise("new", k, low=-1024, high=900, dtype=np.int32) if pixels is None else pixels
        dicom(scans / "a_first" / f"{k}.dcm", pixels, trained, series="2", position=2.0 * k)
    prepare(scans, tmp_path / "d")
    columns = Dataset.open(tmp_path / "d").columns
    after = dict(zip(columns["sha256"].tolist(), columns["split"].tolist()))
    assert {row: after[row] for row in where} == where


@pytest.mark.parametrize("change", ["key lost", "files moved", "dataset renamed"])
def test_nobody_moves_when_names_or_the_key_are_lost(tmp_path, change):
    scans, root = pngs(tmp_path / "scans", 60), tmp_path / "d"
    prepare(scans, root)
    columns = Dataset.open(root).columns
    where = dict(zip(columns["sha256"].tolist(), columns["split"].tolist()))
    if change == "key lost":
        (tmp_path / "d.private.json").unlink()
    elif change == "files moved":
        (scans / "batch1").mkdir()
        for file in scans.glob("*.png"):
            file.rename(scans / "batch1" / file.name)
    else:
        root = root.rename(tmp_path / "renamed")
    for i in range(30):
        Picture.fromarray(noise("z", i)).save(scans / f"z{i}.png")
    prepare(scans, root)
    columns = Dataset.open(root).columns
    after = dict(zip(columns["sha256"].tolist(), columns["split"].tolist()))
    assert len(after) == 90
    assert {row: after[row] for row in where} == where


def test_numbers_of_structures_stay_when_a_new_one_comes(tmp_path):
    scans = tmp_path / "scans"

    def patient(number, names):
        nifti(scans / f"p{number}" / "ct.nii", noise(number, shape=(16, 16, 6), high=1000, dtype=np.int16))
        for place, name in enumerate(names):
            mask = np.zeros((16, 16, 6), np.uint8)
            mask[2 + 4 * place : 5 + 4 * place, 3:9] = 1
            nifti(scans / f"p{number}" / "segmentations" / f"{name}.nii", mask)

    for number in range(6):
        patient(number, ["liver", "spleen"])
    prepare(scans, tmp_path / "d")
    before = Dataset.open(tmp_path / "d")
    old = {digest: before.mask(row) for row, digest in enumerate(before.columns["sha256"].tolist())}
    assert set(np.unique(before.mask(0))) == {0, 1, 2}
    patient(6, ["kidney", "liver", "spleen"])
    prepare(scans, tmp_path / "d")
    after = Dataset.open(tmp_path / "d")
    masks = {digest: after.mask(row) for row, digest in enumerate(after.columns["sha256"].tolist())}
    for digest, mask in old.items():
        np.testing.assert_array_equal(masks.pop(digest), mask)
    assert {value for mask in masks.values() for value in np.unique(mask)} == {0, 1, 2, 3}


def test_two_at_once_are_refused(tmp_path):
    from scansmith.prepare.write import alone

    scans = pngs(tmp_path / "scans", 12)
    prepare(scans, tmp_path / "d")
    Picture.fromarray(noise("more")).save(scans / "more.png")
    with alone(tmp_path / "d.private.cache"), pytest.raises(ValueError, match="another prepare is writing it"):
        prepare(scans, tmp_path / "d")
    assert prepare(scans, tmp_path / "d")["images"] == 13
