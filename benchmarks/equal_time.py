"""Quality after 5, 10 and 15 minutes on the same machine: ours beside the baselines, on any folder of scans.

    python benchmarks/equal_time.py SCANS_OR_DATASET OUT [--minutes 5,10,15] [--recipes relativistic,dcgan,wasserstein,vae] [--halves]

Ours trains anew for each budget, since its schedules are fractions of the run. A baseline, whose rates are constant, trains once
for the longest and is measured on the way. Steps of all recipes are first timed in turns, in one layout and precision (the
fastest for ours), and the minutes are turned into a number of images for each once; OUT/rates.json keeps both. From then on
nothing depends on how busy the machine is: `--rates FILE` takes what a quiet machine measured before, `--only-rates` stops
after the timing. Each training is a folder of OUT with a result.json; the same command goes on where it was stopped.

A ratio is the random-conv Fréchet distance of samples to held-out images over that of training images to them. The model is
the one that was best on validation images so far; `swing` is the range of the ratio of the weights of the moment over the
last third of the run.

`--halves` draws the images to learn from and those to hold out at random, half of each class, whoever the patient. Near copies
then lie on both sides, alike for all recipes, and the floor is what two random halves differ by, as in published tables; not
a way to judge a model that is to be used.
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from scansmith import dataset, prepare
from scansmith.dataset import Dataset
from scansmith.evaluate import compare, copies
from scansmith.metrics.nearest import nearest
from scansmith.networks import GENERATORS
from scansmith.runtime import Interrupted, choose_device, write_atomic, write_json
from scansmith.train import stage, watch
from scansmith.train.probe import OVERHEAD, Clock, Probe, fastest_machine, for_grid, quartile
from scansmith.train.recipes import RECIPES, Recipe, resized

OURS = "relativistic"
MOST = 2000  # images a side
DRAWS = 10
TICK_S = 25.0


# ------------------------------------------------------------------------------------------------ rates


def rates(
    path: Path, data: Dataset, recipes: Mapping[str, Recipe], side: int, device: torch.device, rounds: int
) -> dict[str, Any]:
    """Machine settings and seconds a step of each recipe; measured where `path` does not hold them yet.

    Precision, layout and threads are what is fastest for the first recipe, the same for all. Steps are timed in turns and
    judged by the lower quartile, since other work on the machine only ever adds time.
    """
    known: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    task = stage.task_of(data)
    clock = Clock(task, device)
    if known.get("side", side) != side:
        raise ValueError(f"expected rates at {side} pixels in {path}, found {known['side']}: choose another file")
    if "machine" not in known:
        first = for_grid(resized(next(iter(recipes.values())), "tiny"), task, side)
        fastest, _ = fastest_machine(first, clock, budget_s=20.0)
        known["machine"] = {name: getattr(fastest, name) for name in ("precision", "channels_last", "threads")}
        known |= {
            "side": side,
            "step_s": {},
            "date": str(date.today()),
            "host": platform.machine(),
            "torch": torch.__version__,
        }
    missing = {
        name: settled(one, known["machine"], data, side) for name, one in recipes.items() if name not in known["step_s"]
    }
    if missing:
        # Those that were timed before take part again, so that all turns meet the same moments.
        timed = {name: settled(one, known["machine"], data, side) for name, one in recipes.items()}
        steppers = {name: clock.stepper(one) for name, one in timed.items()}
        times: dict[str, list[float]] = {name: [] for name in timed}
        for turn in range(rounds + 2):
            for name, step in steppers.items():
                seconds = step()
                if turn >= 2:
                    times[name].append(seconds)
        known["step_s"] |= {name: quartile(found) for name, found in times.items()}
    write_json(path, known)
    return known


def settled(recipe: Recipe, machine: Mapping[str, Any], data: Dataset, side: int) -> Recipe:
    """The recipe with all that the probe would choose but the length: grid, penalty, augmentation, machine."""
    whole = for_grid(resized(recipe, "tiny"), stage.task_of(data), side)
    return replace(whole, **machine)


def images_in(minutes: float, recipe: Recipe, step_s: float) -> int:
    """Images that so many minutes show, the measurements' share taken off."""
    return max(1, int(60.0 * minutes * (1.0 - OVERHEAD) / step_s)) * recipe.batch


# ------------------------------------------------------------------------------------------------ training


@dataclass(frozen=True)
class Arm:
    """One training: its folder, its whole recipe but for the seed, its length, and the run that it starts from."""

    folder: Path
    recipe: Recipe
    images: int
    seed: int
    start: Path | None = None


def train(arm: Arm, data: Dataset, device_name: str, keep: bool = False) -> dict[str, Any]:
    """Train to the end, or go on; `keep`: the weights at each tick stay in FOLDER/snapshots.

    Returns:
        result.json of the run folder, or {"failed": why} where a run was ended as hopeless.
    """
    ticks = arm.recipe.ticks
    probed = Probe(replace(arm.recipe, seed=arm.seed, ticks=ticks), step_s=1.0, reasons=("settled by the benchmark",))
    watcher = Snapshots(arm.folder) if keep else None
    try:
        wish = stage.Wish(
            1e6,
            replace(arm.recipe, images=0),
            side=arm.recipe.target,
            images=arm.images,
            seed=arm.seed,
            start=arm.start,
        )
        return stage.run_training(data.root, arm.folder, wish, device_name, probed=probed)
    except RuntimeError as error:
        return {"failed": str(error)}
    finally:
        if watcher:
            watcher.stop()


class Snapshots:
    """Copies the averaged and the best weights of each checkpoint that a training in this process writes."""

    def __init__(self, run: Path) -> None:
        self.run, self.over, self.seen = run, threading.Event(), 0
        self.thread = threading.Thread(target=self.follow, daemon=True)
        self.thread.start()

    def follow(self) -> None:
        while not self.over.wait(0.5):
            self.look()

    def look(self) -> None:
        path = self.run / "checkpoint.safetensors"
        try:
            stamp = path.stat().st_mtime_ns
            if stamp == self.seen:
                return
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                names = [name for name in file.keys() if name.startswith(("average.", "best."))]  # noqa: SIM118
                kept = {name: file.get_tensor(name) for name in names}
        except (OSError, SafetensorError):
            return  # not yet there, or being replaced
        self.seen = stamp
        target = self.run / "snapshots" / f"{state['step']:09d}.safetensors"
        if not target.is_file():
            write_atomic(target, lambda partial: save_file(kept, partial))

    def stop(self) -> None:
        self.over.set()
        self.thread.join()
        self.look()


# ------------------------------------------------------------------------------------------------ measuring


class Judge:
    """Compares samples with held-out images; what the real images give is computed once."""

    def __init__(self, data: Dataset, recipe: Recipe, device: torch.device, count: int = MOST) -> None:
        if len(data.shape) == 4:
            raise ValueError(f"expected a dataset of 2-D images, found volumes in {data.root}")
        self.classes = list(range(len(data.labels)))
        self.device, self.level = device, data.level(stage.task_of(data).grid(recipe.target))
        random = np.random.default_rng(0)
        held_out, train = data.rows("holdout"), stage.training_rows(data)
        self.held_out_rows = random.permutation(held_out)[:MOST]
        self.held_out, self.train = (
            self.level.batch(self.held_out_rows),
            self.level.batch(random.permutation(train)[:MOST]),
        )
        self.groups = np.unique(data.columns["patient"][self.held_out_rows], return_inverse=True)[1]
        self.all_train = self.level.batch(train)
        self.count = min(count, max(200, int(1.25 * len(held_out)) + 1))
        self.real_nearest = nearest(self.held_out, self.all_train, device)

    def ratio(self, generator: torch.nn.Module) -> float:
        """Fréchet distance over the floor alone: quick."""
        return float(self.entries(self.samples(generator))["random_conv_frechet"]["ratio"])

    def entries(self, fake: np.ndarray) -> dict[str, Any]:
        features = compare.encode(self.held_out, self.train, fake, self.device)
        found, _, _ = compare.compare(features, DRAWS, 1000, 0)
        return found

    def samples(self, generator: torch.nn.Module) -> np.ndarray:
        return watch.samples(generator.to(self.device).eval(), 1, self.count, self.classes, self.device)

    def judge(self, generator: torch.nn.Module) -> dict[str, Any]:
        """name -> {"value", "interval", "floor"}: distances over their floor, shares, copies."""
        fake, result = self.samples(generator), {}
        for name, entry in self.entries(fake).items():
            divisor = entry["floor"] if entry["better"] == "lower" else 1.0
            bounds = [bound / divisor for bound in entry["interval"]]
            result[name] = {"value": entry["value"] / divisor, "interval": bounds, "floor": entry["floor"] / divisor}
        searched = copies.search(
            nearest(fake, self.all_train, self.device), self.real_nearest, fake, self.held_out, self.groups, self.device
        )
        for name, entry in copies.entries(searched, 0).items():
            result[name] = {key: entry[key] for key in ("value", "interval", "floor")}
        result["memorises"] = {"value": float(searched.alarm), "interval": None, "floor": 0.0}
        return result


def restored(run: Path, snapshot: Path, module: str) -> torch.nn.Module:
    """The generator of a snapshot: "average", the weights of the moment, or "best" so far on validation images."""
    network = json.loads((run / "model" / "config.json").read_text())["network"]
    generator = GENERATORS[network["name"]](**network["arguments"])
    stored = load_file(snapshot)
    generator.load_state_dict(
        {name.removeprefix(f"{module}."): value for name, value in stored.items() if name.startswith(f"{module}.")}
    )
    return generator.eval().requires_grad_(False)


def measured(arm: Arm, data: Dataset, judge: Judge, marks: Mapping[str, int], device_name: str) -> dict[str, Any]:
    """Train and measure at `marks` (name -> images); kept in FOLDER/measured.json, the snapshots are removed then."""
    path = arm.folder / "measured.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    began = time.monotonic()
    result = train(arm, data, device_name, keep=True)
    snapshots = sorted((arm.folder / "snapshots").glob("*.safetensors"))
    if "failed" in result or not snapshots:
        print(f"{arm.folder.name}: {result.get('failed', 'no checkpoint')}", file=sys.stderr)
        return {"failed": result.get("failed", "no checkpoint")}
    shown = [int(path.stem) * arm.recipe.batch for path in snapshots]
    at = {}
    for name, images in marks.items():
        nearest_one = int(np.argmin(np.abs(np.array(shown) - images)))
        at[name] = {"images": shown[nearest_one], **judge.judge(restored(arm.folder, snapshots[nearest_one], "best"))}
    last_third = [path for path, images in zip(snapshots, shown, strict=True) if images >= 2 * arm.images / 3]
    course = [judge.ratio(restored(arm.folder, snapshot, "average")) for snapshot in last_third]
    found = {
        "recipe": arm.recipe.name, "images": result["images"], "seconds": result["seconds"], "seed": arm.seed, "marks": at,
        "swing": [min(course), max(course)], "course": course, "wall_s": time.monotonic() - began,
    }  # fmt: skip
    write_json(path, found)
    shutil.rmtree(arm.folder / "snapshots")
    return found


# ------------------------------------------------------------------------------------------------ the table


SHARES = ("recall", "coverage", "precision")


def table(
    out: Path,
    found: Mapping[str, Mapping[str, Any]],
    minutes: Sequence[float],
    known: Mapping[str, Any],
    batches: Mapping[str, int],
) -> str:
    """A table in Markdown: images/s, ratio with interval at each budget, shares at each, swing of the last third."""
    heads = [f"{budget:g} min" for budget in minutes]
    recall = f"recall after {', '.join(f'{budget:g}' for budget in minutes)}"
    lines = [
        f"| recipe | images/s | {' | '.join(heads)} | {recall} | {' | '.join(SHARES[1:])} | swing, last third |",
        "|---|---|" + "---|" * (len(heads) + len(SHARES) + 1),
    ]
    for name, one in found.items():
        rate, marks = batches[name] / known["step_s"][name], [one["marks"].get(head) for head in heads]
        cells = [f"{rate:.0f}", *map(ratio_words, marks), *(shares_words(marks, share) for share in SHARES)]
        swing = " to ".join(map(ratio, one["swing"])) if one.get("swing") else "–"
        lines.append(f"| {name} | {' | '.join(cells)} | {swing} |")
    text = "\n".join(lines) + "\n"
    write_atomic(out / "table.md", text)
    return text


def ratio_words(mark: Mapping[str, Any] | None) -> str:
    """ "1.66 (1.60 to 1.74)": the Fréchet distance over its floor."""
    if mark is None:
        return "did not finish"
    frechet = mark["random_conv_frechet"]
    return f"{ratio(frechet['value'])} ({' to '.join(map(ratio, frechet['interval']))})"


def shares_words(marks: Sequence[Mapping[str, Any] | None], name: str) -> str:
    """ "0.56, 0.62, 0.61": one share at each budget."""
    return ", ".join(f"{mark[name]['value']:.2f}" if mark and name in mark else "–" for mark in marks)


def ratio(value: float) -> str:
    """Two decimals below 10, where they mean something, else one."""
    return f"{value:.2f}" if value < 9.995 else f"{value:.1f}"


def opened(source: Path, out: Path, halves: bool = False) -> Dataset:
    """A prepared dataset as it is; a folder of scans is prepared into OUT/dataset.

    Folders that are classes give every split the same share of each, and are then forgotten: no recipe is told the class.

    Args:
        halves: split at random, see `halved`.
    """
    prepared = (source / "dataset.json").is_file()
    if not prepared:
        prepare(source, out / "dataset")
    found = Dataset.open(source if prepared else out / "dataset")
    if not halves and (prepared or not found.labels):
        return found
    root = out / ("halves" if halves else "dataset-without-labels")
    if (root / "dataset.json").is_file():
        return Dataset.open(root)
    info = {key: found.info[key] for key in ("modality", "units", "spacing", "source_format", "split_level")}
    columns = {name: values for name, values in found.columns.items() if name != "label"}
    columns["label"] = np.full(len(found), "")
    if halves:
        columns["split"], info["split_level"] = halved(found), "image"
    images = (found.image(row) for row in range(len(found)))
    hash_ = f"{found.info['hash'][:12]}{'half' if halves else 'none'}"
    return dataset.write(
        root, {**info, "labels": [], "hash": hash_}, columns, images, found.image(0).dtype, found.shape
    )


def halved(found: Dataset) -> np.ndarray:
    """The split of each image: half of each class, at random, held out; a tenth of the others for validation."""
    split = found.columns["split"].copy()
    random = np.random.default_rng(0)
    for label in np.unique(found.columns["label"]):
        rows = random.permutation(np.flatnonzero(found.columns["label"] == label))
        held_out, rest = np.split(rows, [len(rows) // 2])
        validation, train = np.split(rest, [len(rest) // 10])
        split[held_out], split[validation], split[train] = "holdout", "validation", "train"
    return split


def with_ticks(recipe: Recipe, minutes: float, most: int = 24) -> Recipe:
    return replace(recipe, ticks=max(6, min(most, int(60.0 * minutes / TICK_S))))


def ours_for_each_budget(
    out: Path, recipe: Recipe, step_s: float, minutes: Sequence[float], seed: int, run_one: Any
) -> dict[str, Any]:
    """The default recipe, a run for each budget; the swing is that of the longest."""
    joined: dict[str, Any] = {"marks": {}}
    for budget in minutes:
        images = images_in(budget, recipe, step_s)
        arm = Arm(out / f"{recipe.name}-{budget:g}min-{seed}", with_ticks(recipe, budget), images, seed)
        one = run_one(arm, {f"{budget:g} min": images})
        joined["marks"] |= one.get("marks", {})
        joined["swing"] = one.get("swing")
    return joined


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="folder of scans, or prepared dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", default="5,10,15")
    parser.add_argument("--recipes", default="relativistic,dcgan,wasserstein,vae")
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--halves", action="store_true", help="random halves of each class")
    parser.add_argument("--rounds", type=int, default=20, help="turns of the timing")
    parser.add_argument("--rates", type=Path, help="rates.json that was measured before; default: OUT/rates.json")
    parser.add_argument("--only-rates", action="store_true", help="time the steps and stop")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    minutes = sorted(float(text) for text in options.minutes.split(","))
    device, data = choose_device(options.device), opened(options.source, options.out, options.halves)
    recipes = {name: replace(RECIPES[name], seed=options.seed) for name in options.recipes.split(",")}
    known = rates(
        options.rates or options.out / "rates.json",
        data,
        {OURS: RECIPES[OURS], **recipes},
        options.side,
        device,
        options.rounds,
    )
    whole = {name: settled(recipe, known["machine"], data, options.side) for name, recipe in recipes.items()}
    print(json.dumps(known, indent=1))
    if options.only_rates:
        return
    judge = Judge(data, next(iter(whole.values())), device)

    def run_one(arm: Arm, marks: Mapping[str, int]) -> dict[str, Any]:
        return measured(arm, data, judge, marks, options.device)

    found = {}
    for name, recipe in whole.items():
        step_s = known["step_s"][name]
        if name == OURS:
            found[name] = ours_for_each_budget(options.out, recipe, step_s, minutes, options.seed, run_one)
        else:
            arm = Arm(
                options.out / f"{name}-{options.seed}",
                with_ticks(recipe, minutes[-1]),
                images_in(minutes[-1], recipe, step_s),
                options.seed,
            )
            marks = {f"{budget:g} min": images_in(budget, recipe, step_s) for budget in minutes}
            found[name] = {"marks": {}, "swing": None, **run_one(arm, marks)}
        print(table(options.out, found, minutes, known, {name: one.batch for name, one in whole.items()}), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}")
