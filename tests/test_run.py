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
import pydicom
import pytest
from PIL import Image as Picture

import scansmith
from scansmith import phantom, run, train
from scansmith.dataset import Dataset
from scansmith.run import line
from scansmith.run.job import Job
from scansmith.run.plan import survey, task_of
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


# ------------------------------------------------------------------------------------------------ translations


@pytest.fixture(scope="module")
def sides(tmp_path_factory):
    """MR and CT of phantom patients in two folders; one patient has no CT, another no MR."""
    folder = tmp_path_factory.mktemp("sides")
    phantom(folder, patients=10, slices=2, size=32, modality="all")
    for path in (folder / "scans").iterdir():
        for side, kind in (("source", "T1"), ("target", "CT")):
            (folder / side / path.name).mkdir(parents=True)
            (path / kind).rename(folder / side / path.name / kind)
    shutil.rmtree(folder / "source" / "patient-0002")
    shutil.rmtree(folder / "target" / "patient-0007")
    return folder / "source", folder / "target"


@pytest.fixture(scope="module")
def translation(sides, tmp_path_factory):
    out = tmp_path_factory.mktemp("translation") / "out"
    return out, run(sides[0], out, to=sides[1], minutes=MINUTES)


def test_two_folders_that_belong_together_give_translated_held_out_scans_and_a_report(translation, sides):
    out, result = translation
    text = " ".join(result["plan"])
    for words in ("learned: to translate sources to their targets, from pairs", "pairs: 8 of 9 sources and 9 targets, by patient and position",
                  "without a partner: 1 source and 1 target", "translate 3 s"):  # fmt: skip
        assert words in text, words
    assert list(result["stages"]) == ["prepare", "train", "translate", "evaluate", "report"]
    metrics = json.loads((out / "metrics.json").read_text())
    assert result["verdict"] == metrics["words"] and metrics["units"] == "HU" and (out / "report.html").is_file()
    assert {Path(entry["file"]).parent.parent.name for entry in result["skipped"]} == {"patient-0002", "patient-0007"}
    cases = json.loads((out / "dataset.private.json").read_text())["cases"]
    data = Dataset.open(out / "dataset")
    held = {str(case) for case in data.columns["case"][data.rows("holdout")]}
    patients = {Path(cases[case]["source"][0]).parent.parent.name for case in held}
    made = {path.relative_to(out / "translated").parts[0] for path in (out / "translated").rglob("*.dcm")}
    assert made == patients and len(held) == metrics["patients"]
    for path in (out / "translated").rglob("*/T1/*.dcm"):
        assert pydicom.dcmread(path).Modality == "CT" and pydicom.dcmread(path).SyntheticData == "YES"


def test_no_path_reaches_what_is_not_private_of_a_translation(translation, sides):
    out, _ = translation
    for path in out.rglob("*"):
        if path.is_file() and ".private." not in str(path) and "translated" not in path.parts:
            content = path.read_bytes()
            assert not any(str(side).encode() in content or b"patient-0002" in content for side in sides), path


def test_a_finished_translation_stays_and_goes_on_from_what_is_missing(translation, sides, capsys):
    out, first = translation
    before = (out / "model" / "model.safetensors").read_bytes()
    state = json.loads((out / "run.json").read_text())
    del state["stages"]["translate"]["done"]
    (out / "run.json").write_text(json.dumps(state))
    shutil.rmtree(out / "translated")
    again = run(sides[0], out, to=sides[1], minutes=MINUTES)
    assert again["verdict"] == first["verdict"] and (out / "translated" / "translated.json").is_file()
    assert (out / "model" / "model.safetensors").read_bytes() == before
    with pytest.raises(ValueError, match=r"to 'folder' -> None"):
        run(sides[0], out, minutes=MINUTES)


def test_the_plan_of_a_translation_names_who_has_no_partner_on_the_terminal_alone(sides, tmp_path, capsys):
    result = run(sides[0], tmp_path / "out", to=sides[1], minutes=MINUTES, plan_only=True)
    shown = capsys.readouterr().err
    assert "patient-0002" in shown and "patient-0007" in shown and not (tmp_path / "out").exists()
    assert not any("patient-00" in sentence for sentence in result["plan"])


def test_folders_without_anything_in_common_are_learned_without_pairs(sides, tmp_path):
    phantom(tmp_path, patients=9, slices=2, size=40, seed=9, modality="CT")
    others = tmp_path / "others"
    others.mkdir()
    for number, path in enumerate(sorted((tmp_path / "scans").iterdir())):
        for file in (path / "CT").iterdir():
            dataset = pydicom.dcmread(file)
            dataset.PatientID = f"stranger-{number}"
            dataset.save_as(file)
        path.rename(others / f"x{number}")
    job = job_of(sides[0], tmp_path / "out", to=others)
    found = survey(job)
    assert found.task == "unpaired" and found.targets.plan.modality == "CT" and found.plan.modality == "MR"
    assert found.targets.plan.spacing == found.plan.spacing and "no two scans" in found.words
    assert task_of(found).made == 1
    with pytest.raises(ValueError, match="--pairs"):
        survey(replace(job, task="paired"))
    assert survey(replace(job_of(*sides, to=sides[1]), task="unpaired")).task == "unpaired"


def job_of(scans, out, **options):
    usual = dict(minutes=MINUTES, task="auto", to=None, pairs=None, labels="auto", masks="auto", modality=None, plan=None, count=None, seed=0, device="cpu")  # fmt: skip
    return Job(scans=scans, out=out, **usual | options)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"to": "target", "pairs": "MR:CT"}, "expected --to or --pairs, got both"),
        ({"to": "target", "task": "segment"}, "with the task 'segment'.*--masks"),
        ({"pairs": "MR:CT", "task": "make"}, "expected no --pairs with the task 'make'"),
        ({"task": "paired"}, r"expected a folder to translate to \(--to\), or --pairs"),
        ({"task": "unpaired"}, r"expected a folder to translate to \(--to\)"),
        ({"to": "nowhere"}, "found none at .*nowhere"),
        ({"to": "target", "count": 9}, "expected no --count"),
    ],
)
def test_options_of_a_translation_that_do_not_fit_are_refused_before_anything_is_read(sides, tmp_path, options, words):
    if "to" in options:
        options = {**options, "to": sides[0].parent / options["to"]}
    with pytest.raises(ValueError, match=words):
        run(sides[0], tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_good_scans_alone_teach_to_denoise_and_the_line_is_the_same(sides, tmp_path):
    result = run(sides[1], tmp_path / "out", task="denoise", minutes=MINUTES, device="cpu")
    assert "learned: to take noise out of scans" in result["plan"][0]
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["translation"]["task"] == "denoise" and result["verdict"]
    assert list((tmp_path / "out" / "translated").rglob("CT/*.dcm"))


def test_without_pairs_held_out_scans_are_translated_and_shown_beside_their_sources(sides, tmp_path):
    out = tmp_path / "out"
    result = run(sides[0], out, to=sides[1], task="unpaired", minutes=MINUTES, device="cpu")
    metrics = json.loads((out / "metrics.json").read_text())
    held_out = set(
        Dataset.open(out / "dataset").columns["patient"][Dataset.open(out / "dataset").rows("holdout")].tolist()
    )
    shown = metrics["unpaired"]
    assert (shown["source"], shown["target"]) == ("MR", "CT") and metrics["verdict"] == result["verdict"]
    assert {one["patient"] for one in shown["pictures"]} == held_out
    for one in shown["pictures"]:
        with Picture.open(out / one["file"]) as picture:
            assert picture.text["SyntheticData"] == "YES" and picture.width > picture.height
    assert len(list((out / "translated").rglob("T1/*.dcm"))) == 2 * len(held_out)
    page = html.unescape((out / "report.html").read_text())
    assert "Translation of MR to CT, learned without pairs" in page and "Missing from this folder" not in page
    assert "scansmith train OUT/dataset OUT/train --task unpaired --to OUT/target" in page
    assert page.count("Source, translation, some real scan") == len(held_out)
    scansmith.report(out, real_images=False)
    hidden = (out / "report.html").read_text()
    assert "some real scan:" not in hidden and "left out of this page on request" in hidden


def test_without_pairs_stacks_of_slices_are_shown_by_their_middle(tmp_path):
    for side, kind, seed in (("mr", "T1", 1), ("ct", "CT", 2)):
        phantom(tmp_path / side, patients=9, slices=4, size=32, modality=kind, seed=seed)
    sides, out = [tmp_path / side / "scans" for side in ("mr", "ct")], tmp_path / "out"
    run(sides[0], out, to=sides[1], task="unpaired", minutes=MINUTES, plan='{"dimensions": 2.5}', device="cpu")
    assert Dataset.open(out / "dataset").info["neighbours"]
    shown = json.loads((out / "metrics.json").read_text())["unpaired"]["pictures"]
    assert shown and all((out / one["file"]).is_file() for one in shown)


def test_tasks_within_volumes_take_them_whole_however_few(tmp_path):
    phantom(tmp_path / "thin", patients=4, slices=24, size=32, seed=3)
    own = tmp_path / "thin" / "scans"
    stored = {task: survey(job_of(own, tmp_path / "out", task=task)).plan.stored_dimensions for task in ("make", "denoise", "superresolve")}  # fmt: skip
    assert stored == {"make": 2, "denoise": 2, "superresolve": 3}
    result = run(own, tmp_path / "out", task="superresolve", minutes=MINUTES, device="cpu")
    assert any(sentence.startswith("dimensions: 3-D") for sentence in result["plan"])
    assert Dataset.open(tmp_path / "out" / "dataset").info["depth"] == 24
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config["network"]["arguments"]["dimensions"] == 3
    assert list((tmp_path / "out" / "translated").rglob("CT/*.dcm"))
    page = html.unescape((tmp_path / "out" / "report.html").read_text())
    assert """scansmith prepare SCANS OUT/dataset --plan '{"dimensions": 3}'""" in page


def test_a_task_that_needs_masks_says_so_in_its_plan(sides, tmp_path):
    with pytest.raises(ValueError, match=r"expected scans with masks .* 'segment', found none.*--masks"):
        run(sides[1], tmp_path / "out", task="segment", minutes=MINUTES)
    assert not (tmp_path / "out").exists()


def test_a_table_of_pairs_gives_the_same_as_two_folders(sides, tmp_path):
    both = tmp_path / "both"
    for name, side in zip(("mr", "ct"), sides):
        shutil.copytree(side, both / name)
    rows = [f"mr/{path.name}/T1,ct/{path.name}/CT" for path in sides[0].iterdir() if (sides[1] / path.name).is_dir()]
    (tmp_path / "pairs.csv").write_text("\n".join(["source,target", *rows]) + "\n")
    found = survey(job_of(both, tmp_path / "out", pairs=str(tmp_path / "pairs.csv")))
    assert found.task == "paired" and "pairs: 8 from the table" in found.plan.reasons
    assert found.plan.images == survey(job_of(sides[0], tmp_path / "out", to=sides[1])).plan.images


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


def test_without_pairs_choices_for_one_kind_are_not_imposed_on_the_other(tmp_path):
    said = '{"percentiles": [1, 99], "bias_field": true, "window": [-160, 240], "crop": "none", "fractions": {"train": 0.7, "holdout": 0.3}}'
    job = replace(job_of(tmp_path, tmp_path, to=tmp_path), task="unpaired", modality="MR:CT", plan=said)
    own, wished = job.asked("unpaired").choices, job.asked_of_targets(2, (1.0, 2.0)).choices
    assert own.percentiles == (1, 99) and own.bias_field and own.window is None  # HU are no values of MR
    assert wished.window == (-160, 240) and wished.spacing == (1.0, 2.0) and wished.dimensions == 2
    assert wished.percentiles is None and wished.bias_field is None and wished.crop == "none"
    assert wished.fractions == own.fractions
    back = replace(job, modality="CT:MR")
    assert (
        back.asked("unpaired").choices.window == (-160, 240) and back.asked_of_targets(2, None).choices.window is None
    )


def test_targets_without_voxel_sizes_are_taken_as_they_are(tmp_path):
    job, asked = job_of(tmp_path, tmp_path, to=tmp_path), []

    def look(request):
        asked.append(request.choices.spacing)
        if request.choices.spacing:
            raise ValueError("no voxel size")
        return "found"

    assert job.of_targets(look, 2, (1.0, 1.0)) == "found" and asked == [(1.0, 1.0), None]
    with pytest.raises(ValueError, match="nothing"):
        job.of_targets(lambda request: (_ for _ in ()).throw(ValueError("nothing")), 2, None)


def test_without_pairs_nothing_translated_is_said_and_the_run_ends(tmp_path, capsys):
    (tmp_path / "translated").mkdir()
    (tmp_path / "translated" / "translated.json").write_text('{"files": {}, "skipped": ["a.nii: refused"]}')
    results = {"translate": {"skipped": ["a.nii: refused"]}}
    made = line.Run(job_of(tmp_path, tmp_path), {"task": "unpaired"}, None, results)
    assert "a.nii: refused" in line.evaluate(made)["words"][0]
    assert "nothing was judged" in capsys.readouterr().err
