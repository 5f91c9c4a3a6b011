"""compare: recipes in processes of their own, equal grids, numbers beside floors, a verdict that respects the intervals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from scansmith import dataset
from scansmith.compare import (
    alone,
    apart,
    average,
    chosen,
    compare,
    diversity,
    enough_samples,
    memory_peak,
    numbers,
    resampled,
    speed_interval,
    spread,
)
from scansmith.report import comparison, figures
from scansmith.train import stage


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
        for column in ("diversity", "images_per_s"):
            low, high = values[column]["interval"]
            assert 0 < low < values[column]["value"] < high, column
        # As real training images, against the same held-out ones: not far from 1, and the same for every recipe.
        assert 0.7 < values["diversity"]["floor"] < 1.4
        assert values["diversity"]["floor"] == done["recipes"]["relativistic"]["numbers"]["diversity"]["floor"]
        assert values["peak_bytes"]["interval"] is None and "device_peak_bytes" not in values
        # Importing torch alone takes more than 100 MB; a process that took 100 GB would not have ended here.
        assert 1e8 < values["peak_bytes"]["value"] < 1e11
        metrics = json.loads((out / f"{name}-0" / "metrics.json").read_text())
        assert values["frechet"]["value"] == pytest.approx(metrics["metrics"]["random_conv_frechet"]["ratio"])
        assert metrics["real"]["split"] == "holdout" and metrics["fake"]["count"] == 40
    sides = {
        json.loads((out / f"{name}-0" / "train" / "recipe.json").read_text())["target"] for name in done["recipes"]
    }
    assert len(sides) == 1
    assert [line.split()[0] for line in done["table"][:2]] == ["recipe", "relativistic"] and len(done["table"]) == 5
    stored = json.loads((out / "compare.json").read_text())
    assert stored["recipes"] == done["recipes"] and stored["verdict"] == done["verdict"]


def test_the_page_holds_everything_and_asks_for_nothing(made):
    _, out, done = made
    html = (out / "compare.html").read_text()
    assert "SYNTHETIC, not for diagnosis" in html and html.count("<img") == 3
    values = [one["numbers"] for one in done["recipes"].values()]
    drawn = [column for column in comparison.PLOTTED if any(column in each for each in values)]
    assert {"frechet", "diversity", "recall", "near_copies", "images_per_s", "peak_bytes"} <= set(drawn)
    assert html.count("<svg") == 1 + len(drawn) and len(set(re.findall(r'id="([^"]*)"', html))) == html.count(' id="')
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


# ------------------------------------------------------------------------------------------------ intervals


def write_ticks(folder: Path, ticks: list[tuple[int, float]]) -> Path:
    """A training log that holds ticks at (images, seconds) and an act between them."""
    rows = [{"kind": "tick", "images": images, "seconds": seconds} for images, seconds in ticks]
    rows.insert(1, {"kind": "act", "images": ticks[0][0], "words": "something"})
    (folder / "train").mkdir(parents=True)
    (folder / "train" / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_the_interval_of_a_steady_speed_is_a_point_and_of_an_uneven_one_holds_the_mean(tmp_path):
    steady = write_ticks(tmp_path / "steady", [(100 * n, 2.0 * n) for n in range(1, 9)])
    assert speed_interval(steady) == pytest.approx([50.0, 50.0])
    # 100 images in 1 s and in 3 s by turns: 50 a second in all.
    uneven = write_ticks(tmp_path / "uneven", [(100 * n, 2.0 * n - n % 2) for n in range(1, 9)])
    low, high = speed_interval(uneven)
    assert 100 / 3 < low < 45 and 55 < high < 100
    long = write_ticks(tmp_path / "long", [(100 * n, 2.0 * n - n % 2) for n in range(1, 33)])
    assert low < speed_interval(long)[0] < 50 < speed_interval(long)[1] < high


def test_a_short_stretch_hardly_moves_the_interval_of_the_speed(tmp_path):
    """The last tick may follow the one before at once and hold little but its measurement."""
    ticks = [(100 * n, 2.0 * n) for n in range(1, 9)]
    low, high = speed_interval(write_ticks(tmp_path, [*ticks, (801, 16.1)]))
    assert 48 < low < high <= 50.0 + 1e-9


@pytest.mark.parametrize("ticks", [0, 3])
def test_too_few_ticks_give_no_interval_of_the_speed(tmp_path, ticks):
    folder = tmp_path if ticks == 0 else write_ticks(tmp_path, [(100 * n, 2.0 * n) for n in range(1, ticks + 1)])
    assert speed_interval(folder) is None


def test_spread_follows_the_scale_of_features_and_not_their_place():
    features = np.random.default_rng(0).normal(size=(100, 8))
    value, interval = resampled(spread, features, 50)
    scaled, interval_scaled = resampled(spread, 3.0 * features + 7.0, 50)
    assert scaled == pytest.approx(3.0 * value) and interval_scaled == pytest.approx([3.0 * end for end in interval])
    assert interval[0] < value < interval[1] and value == pytest.approx(spread(features), rel=0.05)
    assert spread(np.array([[0.0, 1.0], [0.0, -1.0]])) == 1.0


def test_more_images_narrow_the_interval_as_the_root_of_their_number():
    features = np.random.default_rng(0).normal(size=(5000, 8))
    widths = [np.ptp(resampled(spread, features, count)[1]) for count in (25, 400)]
    assert widths[0] / widths[1] == pytest.approx(4.0, rel=0.25)


def measured_of(made, tmp_path: Path) -> tuple[Path, dict]:
    """A copy of one recipe's samples, and its metrics.json."""
    folder = tmp_path / "copy"
    shutil.copytree(made[1] / "dcgan-0", folder, ignore=shutil.ignore_patterns("train", "diversity.json"))
    return folder, json.loads((folder / "metrics.json").read_text())


def test_samples_that_are_all_one_image_have_no_diversity(made, tmp_path):
    folder, measured = measured_of(made, tmp_path)
    files = sorted((folder / "images").glob("*.png"))
    for file in files[1:]:
        shutil.copyfile(files[0], file)
    found = diversity(made[0], folder, measured, "cpu")
    assert found["value"] == pytest.approx(0.0, abs=1e-9) and found["interval"] == pytest.approx([0.0, 0.0], abs=1e-9)
    assert found["floor"] == made[2]["recipes"]["dcgan"]["numbers"]["diversity"]["floor"]


def test_diversity_is_kept_for_the_same_samples_and_measured_anew_for_others(made, tmp_path):
    folder, measured = measured_of(made, tmp_path)
    first = diversity(made[0], folder, measured, "cpu")
    kept = {**first, "value": -1.0}
    (folder / "diversity.json").write_text(json.dumps(kept))
    assert diversity(made[0], folder, measured, "cpu") == kept
    other = {**measured, "fake": {**measured["fake"], "model": "another"}}
    assert diversity(made[0], folder, other, "cpu")["value"] == first["value"]


def test_too_few_images_give_no_diversity_and_no_column(made, tmp_path):
    folder, measured = measured_of(made, tmp_path)
    found = diversity(made[0], folder, {**measured, "compared_per_draw": 9}, "cpu")
    assert [found[key] for key in ("value", "interval", "floor")] == [None] * 3
    trained = json.loads((made[1] / "dcgan-0" / "trained.json").read_text())
    assert "diversity" not in numbers(trained, {**measured, "diversity": found}, folder)["numbers"]


# ------------------------------------------------------------------------------------------------ memory of a GPU


@pytest.mark.parametrize("device", ["cpu", "cuda:1"])
def test_the_result_of_a_training_on_a_gpu_says_what_it_held_there(made, tmp_path, monkeypatch, device):
    """A training that is over but for its result goes on and is finished as if on that device."""
    asked, finish = [], stage.finish
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda at: asked.append(at) or 3 * 2**30)
    monkeypatch.setattr(stage, "finish", lambda *rest: finish(*rest[:-1], torch.device(device)))
    done = made[1] / "dcgan-0"
    run = shutil.copytree(done / "train", tmp_path / "run", ignore=shutil.ignore_patterns("result.json"))
    stage.run_training(made[0], run, stage.Wish(**json.loads((done / "trained.json").read_text())["asked"]), "cpu")
    result = json.loads((run / "result.json").read_text())
    assert asked == ([] if device == "cpu" else [torch.device("cuda:1")])
    assert result.get("device_peak_bytes") == (None if device == "cpu" else 3 * 2**30)


def test_the_memory_of_a_gpu_has_its_own_column(made):
    folder = made[1] / "dcgan-0"
    trained = json.loads((folder / "trained.json").read_text())
    trained["result"]["device_peak_bytes"] = 2_500_000_000
    measured = json.loads((folder / "metrics.json").read_text())
    measured["diversity"] = json.loads((folder / "diversity.json").read_text())
    recipes = {"dcgan": average([{"seed": 0, "folder": "dcgan-0", **numbers(trained, measured, folder)}])}
    titles = [column["title"] for column in comparison.columns(recipes)]
    assert titles[-2:] == ["Peak memory", "Peak GPU memory"]
    assert comparison.rows(recipes)[0]["cells"][-1] == {"value": "2.50 GB", "interval": "", "range": "", "best": False}
    assert [one["title"] for one in comparison.forests(recipes)][-1] == "Peak GPU memory"
    assert "2.50 GB" in comparison.table(recipes)[1] and "GPU" not in made[2]["table"][0]


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
    from scansmith.train.recipes import makers

    assert set(makers()) == set(comparison.PURPOSE)


@pytest.mark.parametrize("wrong", ["", " , ", "relativistic,nothing", "relativistic,fidelity"])
def test_unknown_recipes_are_refused_with_the_list(wrong):
    with pytest.raises(ValueError, match=r"expected recipes of relativistic, .*vae"):
        chosen(wrong)


def test_recipes_are_taken_in_order_and_once_and_samples_cover_the_holdout():
    assert chosen("vae, dcgan,vae") == ["vae", "dcgan"]
    assert [enough_samples(held_out) for held_out in (0, 400, 10**6)] == [200, 500, 2000]


# ------------------------------------------------------------------------------------------------ table and charts


def entry(value: float, interval=None, range_=None, floor=None) -> dict:
    return {"value": value, "interval": interval, "range": range_, "floor": floor}


def full(seeds: int = 1) -> dict:
    """A recipe with every column of the terminal's table, in numbers of usual length."""
    share = entry(0.757, [0.693, 0.863], floor=0.9)
    memory = entry(4.8e8, range_=[4.6e8, 5.0e8] if seeds > 1 else None)
    found = {"frechet": entry(11.0, [10.4, 11.8], floor=1.0), "radiomics": entry(110.3, [101.0, 121.0], floor=1.0),
             **dict.fromkeys(("precision", "recall", "coverage", "diversity"), share), "near_copies": entry(0.105, [0.092, 0.131], floor=0.0),
             "images_per_s": entry(12_345.0, [11_234.0, 13_456.0]), "peak_bytes": memory, "device_peak_bytes": memory}  # fmt: skip
    return {"numbers": found, "runs": []}


def test_the_terminal_shows_every_interval_under_its_value_and_stays_narrow():
    lines = comparison.table(dict.fromkeys(("relativistic", "wasserstein", "least_squares", "vae"), full()))
    assert len(lines) == 1 + 2 * 4 and max(map(len, lines)) <= 150
    heads, values, below = (re.split(r"\s{2,}", line.strip()) for line in lines[:3])
    assert len(heads) == len(values) == 1 + len(comparison.SHORT)
    # No interval under the name of the recipe and under the two memories.
    assert below == ["10.4–11.8", "101–121", *["0.693–0.863"] * 4, "9.2–13.1 %", "11,234–13,456"]
    begins = [[found.start() for found in re.finditer(r"\S+( \S+)*", line)] for line in lines[:3]]
    assert begins[0] == begins[1] and begins[2] == begins[1][1:9]


def test_a_number_without_interval_shows_its_range_over_seeds():
    below = comparison.table({"vae": full(seeds=2)})[2]
    assert below.count("[0.46–0.50 GB]") == 2 and "[10.4" not in below
    bare = {"numbers": {"peak_bytes": entry(4.8e8)}, "runs": []}
    assert comparison.table({"vae": bare}) == ["recipe  memory", "vae     0.48 GB"]


def test_charts_show_intervals_or_ranges_in_the_units_of_the_table_and_mark_what_real_images_give(monkeypatch):
    drawn = {}
    monkeypatch.setattr(figures, "ratios", lambda name, words, rows, *rest: drawn.update({name: (rows, *rest)}) or name)
    comparison.forests({"one": full(), "two": full(seeds=2)})
    assert list(drawn) == [f"forest-{name}" for name in comparison.PLOTTED]
    rows, label, reference, log, _ = drawn["forest-near_copies"]
    assert rows[0] == pytest.approx({"title": "one", "ratio": 10.5, "low": 9.2, "high": 13.1}) and reference == 1.0
    assert label == "%, lower is better" and not log
    rows, label, reference, *_ = drawn["forest-peak_bytes"]
    assert [(row["low"], row["high"]) for row in rows] == [(None, None), pytest.approx((0.46, 0.50))]
    assert label == "GB, lower is better" and reference is None
    assert drawn["forest-frechet"][2:4] == (1.0, True) and drawn["forest-recall"][2:4] == (0.9, False)


@pytest.mark.parametrize("value", [0.0, float("nan")])
def test_a_chart_of_zeros_is_drawn_and_one_of_no_numbers_is_left_out(value):
    recipes = {"a": {"numbers": {"near_copies": entry(value), "frechet": entry(value, floor=1.0)}, "runs": []}}
    titles = [one["title"] for one in comparison.forests(recipes)]
    # A logarithmic axis has no 0.
    assert titles == (["Near copies"] if value == 0.0 else [])


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_page_says_what_the_intervals_hold_and_that_memory_has_none(seeds):
    said = comparison.intervals(seeds)
    assert (
        "stretches between two ticks" in said and "Peak memory is one number of a training and has no interval" in said
    )
    assert ("One seed: how much another training would differ" in said) == (seeds == 1)
    assert ("With 3 seeds, values are means" in said) == (seeds == 3)
