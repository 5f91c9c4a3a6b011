"""compare: recipes in processes of their own, equal grids, numbers beside floors, a verdict that respects the intervals."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from scansmith import dataset
from scansmith.compare import alone, apart, average, chosen, compare, enough_samples, memory_peak
from scansmith.report import comparison


def make_dataset(root: Path, count: int = 60, side: int = 16) -> Path:
    """Bright discs on black, uint8, place and size random; a third each of training, validation and holdout."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    images = []
    for size, y, x in zip(
        random.uniform(side / 6, side / 3, count), *random.uniform(side / 3, side * 2 / 3, (2, count)), strict=True
    ):
        images.append(np.uint8(200 * ((rows - y) ** 2 + (columns - x) ** 2 < size**2))[None] + np.uint8(10))
    values = {"case": [f"c{i}" for i in range(count)], "slice": [0] * count, "patient": [f"p{i}" for i in range(count)],
              "split": [("train", "validation", "holdout")[i % 3] for i in range(count)], "label": [""] * count, "spacing": [[1.0, 1.0, 1.0]] * count,
              "low": [0.0] * count, "high": [255.0] * count, "units": ["a.u."] * count, "affine": [np.eye(4)] * count}  # fmt: skip
    info = {
        "modality": "OT",
        "units": "a.u.",
        "labels": [],
        "spacing": [1.0, 1.0],
        "source_format": "png",
        "hash": "d" * 16,
    }
    dataset.write(root, info, values, iter(images), np.dtype(np.uint8), (1, side, side))
    return root


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> tuple[Path, Path, dict]:
    """(dataset, comparison, what was returned) of two recipes that see 64 images each."""
    root = tmp_path_factory.mktemp("compare")
    data = make_dataset(root / "data")
    done = compare(data, root / "out", minutes=0.02, recipes="relativistic,dcgan", images=64, count=40, device="cpu")
    return data, root / "out", done


# ------------------------------------------------------------------------------------------------ the verb


def test_each_recipe_is_trained_measured_and_stands_in_the_table(made):
    _, out, done = made
    assert json.loads(json.dumps(done)) == done and done["skipped"] == []
    assert list(done["recipes"]) == ["relativistic", "dcgan"]
    for name, one in done["recipes"].items():
        values = one["numbers"]
        assert {"frechet", "radiomics", "recall", "coverage", "near_copies", "images_per_s", "peak_bytes"} <= set(
            values
        )
        low, high = values["frechet"]["interval"]
        assert 0 < low <= values["frechet"]["value"] <= high and values["frechet"]["floor"] == 1.0
        # Importing torch alone takes more than 100 MB; a process that took 100 GB would not have ended here.
        assert 1e8 < values["peak_bytes"]["value"] < 1e11
        metrics = json.loads((out / f"{name}-0" / "metrics.json").read_text())
        assert values["frechet"]["value"] == pytest.approx(metrics["metrics"]["random_conv_frechet"]["ratio"])
        assert metrics["real"]["split"] == "holdout" and metrics["fake"]["count"] == 40
    sides = {
        json.loads((out / f"{name}-0" / "train" / "recipe.json").read_text())["target"] for name in done["recipes"]
    }
    assert len(sides) == 1
    assert len(done["table"]) == 3 and done["table"][1].startswith("relativistic") and "Fréchet" in done["table"][0]
    stored = json.loads((out / "compare.json").read_text())
    assert stored["recipes"] == done["recipes"] and stored["verdict"] == done["verdict"]


def test_the_page_holds_everything_and_asks_for_nothing(made):
    _, out, done = made
    html = (out / "compare.html").read_text()
    assert "SYNTHETIC, not for diagnosis" in html and html.count("<img") == 3 and html.count("<svg") == 2
    assert "http://" not in html and "https://" not in html and "<script" not in html and str(out) not in html
    assert all(source.startswith("data:image/") for source in re.findall(r'src="([^"]*)"', html))
    for expected in [
        done["verdict"][0],
        "relativistic",
        "dcgan",
        "64 images shown to each",
        comparison.PURPOSE["dcgan"][1:],
    ]:
        assert expected in html, expected


def test_a_second_call_trains_nothing_and_a_further_recipe_is_added(made, monkeypatch):
    data, out, done = made
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*/train/**/*") if path.is_file()}
    assert stamps
    trained = []
    monkeypatch.setattr(
        sys.modules["scansmith.compare"],
        "apart",
        lambda arguments, *rest: trained.append(arguments) or (1, "", "no", None),
    )
    again = compare(data, out, minutes=0.02, recipes="relativistic,dcgan,vae", images=64, count=40, device="cpu")
    assert {path: path.stat().st_mtime_ns for path in stamps} == stamps
    assert again["recipes"] == done["recipes"]
    assert len(trained) == 1 and trained[0][trained[0].index("--recipe") + 1] == "vae"
    assert trained[0][trained[0].index("--side") + 1] == "16"  # the grid of the first recipe
    assert again["skipped"] == ["vae, seed 0: no"] and "Did not finish: vae, seed 0: no" in again["verdict"]


def test_other_settings_are_refused_with_the_way_out(made):
    data, out, _ = made
    with pytest.raises(ValueError, match=r"images 64 -> 128.*choose another folder"):
        compare(data, out, minutes=0.02, recipes="relativistic", images=128, count=40, device="cpu")


# ------------------------------------------------------------------------------------------------ the process


def test_what_a_process_says_its_failure_and_its_memory_come_back(tmp_path, capsys):
    code, said, failure, _ = apart(
        ["train", str(tmp_path / "nothing"), str(tmp_path / "run"), "--json"], tmp_path / "e"
    )
    assert code == 1 and said == "" and str(tmp_path / "nothing") in failure and "scansmith:" not in failure
    assert failure in capsys.readouterr().err  # passed on while it ran
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says what a process held")
def test_memory_is_the_most_a_process_held_not_what_it_holds():
    code = "x = bytearray(300_000_000); x[::4096] = b'1' * len(x[::4096]); del x; print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert 3e8 < memory_peak(process.pid) < 4.5e8
        process.communicate(b"\n")
    assert memory_peak(process.pid) == 0


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_an_interrupted_comparison_leaves_no_process_and_goes_on(tmp_path):
    """SIGTERM to the parent alone stops the training cleanly; the folder is free again."""
    data = make_dataset(tmp_path / "data")
    code = f"from scansmith.compare import compare\nfrom pathlib import Path\ncompare(Path({str(data)!r}), Path({str(tmp_path / 'out')!r}), minutes=0.02, recipes='relativistic', images=10**7, side=16, device='cpu')"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True) as process:
        begun = tmp_path / "out" / "relativistic-0" / "train.out"
        while not begun.is_file() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(1.0)  # the file is opened just before the process is started
        with pytest.raises(ValueError, match="at work in it"), alone(tmp_path / "out"):
            pass
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert "Interrupted: stopped; the same command goes on" in said
    with alone(tmp_path / "out"):
        pass


# ------------------------------------------------------------------------------------------------ numbers and words


def recipe(value: float, low: float, high: float, copies: tuple[float, float, float] = (0.0, 0.0, 0.01)) -> dict:
    numbers = {
        "frechet": {"value": value, "interval": [low, high], "floor": 1.0},
        "near_copies": {"value": copies[0], "interval": list(copies[1:]), "floor": 0.0},
    }
    return {"numbers": numbers, "runs": [{"seed": 0, "folder": "x-0"}]}


def test_the_verdict_names_the_winner_and_says_when_intervals_overlap():
    apart_, near = recipe(9.0, 8.0, 10.0), recipe(3.4, 3.1, 3.7)
    said = comparison.verdict({"a": apart_, "b": recipe(3.0, 2.8, 3.2), "c": near}, [])
    assert said[0].startswith("b came closest") and "next is c with 3.40 times" in said[0]
    assert "overlap, so this comparison does not tell b and c apart" in said[1]
    said = comparison.verdict({"a": apart_, "b": recipe(3.0, 2.8, 3.2)}, ["d, seed 0: it failed"])
    assert "do not overlap" in said[1] and said[-1] == "Did not finish: d, seed 0: it failed"
    assert comparison.verdict({}, [])[0].startswith("No recipe won")


def test_memorising_is_said_only_when_its_interval_is_above_chance():
    one_percent = recipe(2.0, 1.0, 3.0, (0.02, 0.005, 0.05))
    assert not any("memorises" in sentence for sentence in comparison.verdict({"a": one_percent}, []))
    many = recipe(2.0, 1.0, 3.0, (0.2, 0.15, 0.25))
    assert "a memorises: 20 % of its samples" in comparison.verdict({"a": many}, [])[-1]


def test_unequal_training_times_are_said():
    def took(**seconds):
        return {name: {"numbers": {"seconds": {"value": value}}} for name, value in seconds.items()}

    assert comparison.spent(took(a=300.0, b=290.0)) == "Spent in training steps: a 5.00 min, b 4.83 min."
    assert "not equal: a run was ended early" in comparison.spent(took(a=300.0, b=200.0))


def test_seeds_are_averaged_with_their_range_and_the_widest_interval():
    runs = [
        {"seed": seed, "folder": f"a-{seed}", "verdict": [], "compared": 16, "split": "holdout",
         "numbers": {"frechet": {"value": value, "interval": [value - 1, value + 1], "floor": 1.0}, "diversity": {"value": value, "interval": None, "floor": 1.0}}}
        for seed, value in enumerate((2.0, 5.0))
    ]  # fmt: skip
    joined = average(runs)["numbers"]
    assert joined["frechet"] == {"value": 3.5, "interval": [1.0, 6.0], "floor": 1.0, "range": [2.0, 5.0]}
    assert joined["diversity"]["interval"] is None and joined["diversity"]["range"] == [2.0, 5.0]
    assert average(runs[:1])["numbers"]["frechet"]["range"] is None


def test_the_best_of_a_column_needs_a_direction_and_no_tie():
    recipes = {"a": recipe(2.0, 1.0, 3.0), "b": recipe(3.0, 2.0, 4.0)}
    assert comparison.best_of("frechet", recipes) == "a"
    assert comparison.best_of("near_copies", recipes) is None and comparison.best_of("diversity", recipes) is None


def test_every_recipe_has_a_purpose():
    from scansmith.train.recipes import RECIPES

    assert set(RECIPES) == set(comparison.PURPOSE)


@pytest.mark.parametrize("wrong", ["", " , ", "relativistic,nothing"])
def test_unknown_recipes_are_refused_with_the_list(wrong):
    with pytest.raises(ValueError, match=r"expected recipes of relativistic, .*vae"):
        chosen(wrong)


def test_recipes_are_taken_in_order_and_once_and_samples_cover_the_holdout():
    assert chosen("vae, dcgan,vae") == ["vae", "dcgan"]
    assert [enough_samples(held_out) for held_out in (0, 400, 10**6)] == [200, 500, 2000]
