"""The command: help that teaches, JSON for programs, exit codes, one clear sentence for each error."""

from __future__ import annotations

import importlib
import inspect
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image as Picture

import scansmith
from scansmith import cli
from scansmith.runtime import Interrupted


def run(*arguments):
    try:
        return cli.main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return stop.code


@pytest.fixture
def pictures(tmp_path):
    random, folder = np.random.default_rng(0), tmp_path / "scans"
    folder.mkdir()
    for i in range(12):
        Picture.fromarray(random.integers(0, 256, (20, 16), np.uint8)).save(folder / f"{i}.png")
    return folder


def test_help_lists_every_verb_with_a_sentence(capsys):
    assert run("--help") == 0
    text = capsys.readouterr().out
    assert all(verb in text for verb in scansmith.VERBS) and "scansmith run SCANS OUT" in text
    assert run() == 0  # nothing at all is a question for help


@pytest.mark.parametrize("verb", scansmith.VERBS)
def test_every_option_of_every_verb_is_explained(verb, capsys):
    assert run(verb, "--help") == 0
    text = capsys.readouterr().out
    function = getattr(scansmith, verb)
    parameters = inspect.signature(function).parameters.values()
    assert len(parameters) <= 14
    documented = inspect.getdoc(function).split("Args:")[1].split("Returns:")[0]
    for parameter in parameters:
        option = (
            parameter.name.upper()
            if parameter.default is parameter.empty
            else "--" + parameter.name.rstrip("_").replace("_", "-")
        )
        if parameter.default is True:
            option = option.replace("--", "--no-")
        assert option in text
        assert f"{parameter.name}:" in documented
    assert "--json" in text and "--strict" in text


def test_json_is_one_object_and_nothing_else_on_standard_output(pictures, tmp_path, capsys):
    assert run("prepare", pictures, tmp_path / "data", "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"] == 12


def test_exit_codes_tell_done_skipped_wrong_usage_and_failed(pictures, tmp_path, capsys):
    (pictures / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    assert run("prepare", pictures, tmp_path / "a") == 0
    assert "broken.png" in capsys.readouterr().out
    assert run("prepare", pictures, tmp_path / "b", "--strict") == 1
    assert run("prepare", pictures) == 2
    assert run("prepare", tmp_path / "nowhere", tmp_path / "c") == 1
    words = capsys.readouterr().err.strip().splitlines()[-1]
    assert words.startswith("scansmith: ") and "nowhere" in words and "Traceback" not in words


def test_an_unknown_verb_is_wrong_usage(capsys):
    assert run("conjure") == 2


def test_interruption_says_that_the_same_command_goes_on(monkeypatch, capsys, tmp_path):
    def stop(*_arguments):
        raise Interrupted("stopped at 3 of 9 images; the same command goes on from there")

    monkeypatch.setattr(importlib.import_module("scansmith.prepare.write"), "prepare", stop)
    assert run("prepare", tmp_path, tmp_path / "x") == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_the_installed_command_answers(tmp_path):
    result = subprocess.run([sys.executable, "-m", "scansmith.cli", "--version"], capture_output=True, text=True)
    assert result.returncode == 0 and result.stdout.strip() == f"scansmith {scansmith.__version__}"


def test_results_for_people_are_lines_and_long_lists_are_shortened():
    text = cli.as_text(
        {
            "a": 1,
            "skipped": [{"file": f"f{i}", "reason": "bad"} for i in range(50)],
            "plan": ["one", "two"],
            "none": [],
            "deep": {"b": 2.5},
        }
    )
    lines = text.splitlines()
    assert lines[0] == "a: 1" and "  f0, bad" in lines and "  ... and 10 more (--json lists all)" in lines
    assert "  one" in lines and "none: none" in lines and "  b: 2.5" in lines
