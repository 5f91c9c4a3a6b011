"""The whole line in one command: what comes out, going on after a stop, and bad input in one sentence."""

from __future__ import annotations

import html
import inspect
import json
import os
import re
import shutil
import signal
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture

import scansmith
from scansmith import phantom, run, train
from scansmith.runtime import Interrupted
from scansmith.train import loop, probe

MINUTES = 0.05  # the stages around training take longer; training itself gets its least


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Phantom patients as DICOM, a broken file among them."""
    folder = tmp_path_factory.mktemp("phantom")
    phantom(folder, patients=12, slices=3, size=32, seed=0)
    (folder / "scans" / "notes.dcm").write_text("this is not DICOM")
    return folder / "scans"


@pytest.fixture(scope="module")
def done(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "out"
    return out, run(scans, out, minutes=MINUTES, count=40)


def test_one_command_goes_from_scans_to_a_report(done):
    out, result = done
    for part in (
        "run.json",
        "dataset/dataset.json",
        "train/log.jsonl",
        "model/model.safetensors",
        "images/manifest.json",
        "metrics.json",
        "report.html",
    ):
        assert (out / part).is_file(), part
    assert len(list((out / "images").rglob("*.dcm"))) == 40
    assert result["report"] == str(out / "report.html")
    assert result["verdict"] and all(isinstance(sentence, str) for sentence in result["verdict"])
    assert [Path(entry["file"]).name for entry in result["skipped"]] == ["notes.dcm"]


def test_the_plan_says_what_was_found_what_is_done_why_and_how_the_minutes_are_spent(done):
    _, result = done
    text = " ".join(result["plan"])
    for word in ("CT", "patient", "HU", "images shown", "minutes in all", "prepare", "train", "gamma"):
        assert word in text, word
    assert all(stage["seconds"] >= 0 and stage["planned_s"] > 0 for stage in result["stages"].values())


def test_no_real_path_reaches_the_artifacts(done, scans):
    out, _ = done
    for path in out.rglob("*"):
        if path.is_file() and ".private." not in str(path):
            content = path.read_bytes()
            assert str(scans).encode() not in content and b"notes.dcm" not in content, path


def test_the_same_command_over_a_finished_run_changes_nothing(done, scans):
    out, first = done
    before = (out / "model" / "model.safetensors").read_bytes(), (out / "metrics.json").read_text()
    again = run(scans, out, minutes=MINUTES, count=40)
    assert again["verdict"] == first["verdict"]
    assert before == ((out / "model" / "model.safetensors").read_bytes(), (out / "metrics.json").read_text())


def test_other_settings_over_the_same_folder_are_refused(done, scans):
    out, _ = done
    with pytest.raises(ValueError, match=r"count 40 -> 50.*choose another folder"):
        run(scans, out, minutes=MINUTES, count=50)


def test_plan_only_prints_and_writes_nothing(scans, tmp_path, capsys):
    result = run(scans, tmp_path / "out", minutes=MINUTES, plan_only=True)
    assert set(result) == {"plan"} and not (tmp_path / "out").exists()
    assert "Plan" in capsys.readouterr().err


def test_plan_only_over_an_existing_run_only_says_its_plan(done, scans):
    out, first = done
    before = (out / "run.json").read_bytes()
    assert run(scans, out, minutes=MINUTES, count=40, plan_only=True) == {"plan": first["plan"]}
    assert (out / "run.json").read_bytes() == before


def test_other_scans_over_the_same_folder_are_refused_before_anything_is_touched(done, tmp_path):
    out, _ = done
    phantom(tmp_path, patients=8, slices=1, size=32, seed=5)
    before = (out / "dataset" / "dataset.json").read_bytes()
    with pytest.raises(ValueError, match="other or changed files"):
        run(tmp_path / "scans", out, minutes=MINUTES, count=40)
    assert (out / "dataset" / "dataset.json").read_bytes() == before


def test_ctrl_c_stops_cleanly_and_the_same_command_ends_with_the_same_bits(scans, tmp_path, monkeypatch):
    """A labelled run too: the table's path must not reach the artifacts. Slow steps are claimed, so that no tail is cut."""
    out, real, calls = tmp_path / "out", loop.update, []
    table = tmp_path / "secret-name.csv"
    patients = sorted(path for path in scans.rglob("CT") if path.is_dir())
    rows = [
        f"{file.relative_to(scans)},{'ab'[i % 2]}" for i, folder in enumerate(patients) for file in folder.iterdir()
    ]
    table.write_text("\n".join(["file,label", *rows]) + "\n")

    def stop_in_the_middle(*arguments):
        calls.append(1)
        if len(calls) == 9:
            os.kill(os.getpid(), signal.SIGINT)
        return real(*arguments)

    monkeypatch.setattr(probe, "fastest_machine", lambda recipe, *_args, **_options: (replace(recipe, threads=1), 0.4))
    monkeypatch.setattr(probe.Clock, "time", lambda *_args, **_options: 0.4)
    monkeypatch.setattr(loop, "update", stop_in_the_middle)
    with pytest.raises(Interrupted, match="the same command goes on"):
        run(scans, out, minutes=MINUTES, count=40, labels=str(table))
    monkeypatch.setattr(loop, "update", real)
    result = run(scans, out, minutes=MINUTES, count=40, labels=str(table))
    assert result["verdict"] and sorted(path.name for path in (out / "images").iterdir() if path.is_dir()) == ["a", "b"]
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(out / "train" / "recipe.json", whole / "recipe.json")
    train(out / "dataset", whole, minutes=json.loads((out / "run.json").read_text())["training_minutes"])
    assert not json.loads((out / "train" / "result.json").read_text())["cut"]
    hashes = [
        sha256((folder / "model.safetensors").read_bytes()).hexdigest() for folder in (out / "model", whole / "model")
    ]
    assert hashes[0] == hashes[1]
    for path in out.rglob("*"):
        if path.is_file() and ".private." not in str(path):
            assert b"secret-name" not in path.read_bytes(), path


def test_the_commands_on_the_page_are_commands(done):
    out, _ = done
    page = html.unescape((out / "report.html").read_text())
    found = [
        line.split() for line in page.splitlines() if "scansmith " in line and re.search(r"(^|>)scansmith \w+ ", line)
    ]
    verbs = [words[words.index(next(w for w in words if w.endswith("scansmith"))) + 1] for words in found]
    assert verbs == ["run", "prepare", "train", "synthesize", "evaluate", "report"]
    for verb, words in zip(verbs, found):
        known = {name.rstrip("_").replace("_", "-") for name in inspect.signature(getattr(scansmith, verb)).parameters}
        assert {word[2:] for word in words if word.startswith("--")} <= known, words


# ------------------------------------------------------------------------------------------------ volumes


def test_whole_volumes_are_learned_made_and_judged_where_the_plan_says_so(tmp_path):
    phantom(tmp_path / "phantom", patients=30, slices=16, size=32, format="nifti")
    scans, out, volumes = tmp_path / "phantom" / "scans", tmp_path / "out", '{"dimensions": 3}'
    result = run(scans, out, minutes=MINUTES, count=8, plan=volumes)
    assert any("voxels (stored: " in sentence for sentence in result["plan"])
    made = [nibabel.load(path) for path in (out / "images").rglob("*.nii.gz")]
    grid = json.loads((out / "train" / "result.json").read_text())["grid"]
    box = json.loads((out / "model" / "config.json").read_text())["grid"]["box"]
    assert len(made) == 8 and len(grid) == 3 and all(sorted(volume.shape) == sorted(box) for volume in made)
    page = (out / "report.html").read_text()
    for words in ("Volumes (3-D)", "Voxel size", "Of each volume its middle slice is shown", "three central slices"):
        assert words in page
    assert "single slice" not in page and page.count("--plan &#39;{&#34;dimensions&#34;: 3}&#39;") == 2
    with pytest.raises(ValueError, match=r"plan .*dimensions"):
        run(scans, out, minutes=MINUTES, count=8)


# ------------------------------------------------------------------------------------------------ bad input


def test_an_empty_folder_a_single_image_and_a_missing_folder_get_one_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found"):
        run(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "one").mkdir()
    Picture.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "one" / "a.png")
    with pytest.raises(ValueError, match="expected at least"):
        run(tmp_path / "one", tmp_path / "out")
    with pytest.raises(ValueError, match="nothing at"):
        run(tmp_path / "nowhere", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_is_a_file_is_told(scans, tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(OSError, match="choose another output folder"):
        run(scans, tmp_path / "out", minutes=MINUTES)
