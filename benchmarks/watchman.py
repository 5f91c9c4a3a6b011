"""The watchman's proof: planted faults are caught and rescued or ended, healthy runs are left alone, and it costs little.

    python benchmarks/watchman.py [--seeds 10] [--cases rate_x30,gamma_0] [--data FOLDER] [--side 32] [--steps 200]

Every run is short and small: the strided pair at `--side` pixels, batches of 16, one thread. Without `--data` the images are
slices of procedural patients; with it, the pictures of a folder whose sub-folders are the labels. Where there are no labels
in a case, a run sees one kind of picture, another for each seed. A run is *rescued* when its held-out Fréchet ratio is at
most 1.25 times that of the healthy run of the same seed and images; the last line is what watching costs at 64 px.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from scansmith import anatomy
from scansmith.dataset import Level
from scansmith.metrics.frechet import frechet
from scansmith.metrics.random_conv import features
from scansmith.preprocess import Grid
from scansmith.runtime import Progress
from scansmith.train import feed, loop, watch
from scansmith.train.checkpoint import read_log
from scansmith.train.objective import Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group
from scansmith.train.recipes import RECIPES, Recipe, augmentation_strength, penalty_weight, schedule
from scansmith.train.watchman import Watchman

CPU = torch.device("cpu")
COMPARABLE = 1.25
UNTOUCHED = {"warn", "raise_augmentation", "lower_augmentation", "skip"}  # what a healthy run may see


class Case(NamedTuple):
    """One line of the table.

    Attributes:
        images: training images.
        labels: how the rows are labelled: "none", "true", "same" (several are listed, all rows have one), "single" (one is listed).
        rate, gamma: factors on the recipe's.
        length: factor on the number of steps.
        reasons: any of them is the right one; empty: the run is healthy.
    """

    images: int
    labels: str = "none"
    rate: float = 1.0
    gamma: float = 1.0
    length: float = 1.0
    reasons: tuple[str, ...] = ()


CASES = {
    "healthy_100": Case(100),
    "healthy_many": Case(1000),
    "healthy_classes": Case(300, "true"),
    "healthy_long": Case(100, length=4.0),
    "rate_x30": Case(100, rate=30.0, reasons=("loss_spike", "gradient_spike", "not_finite")),
    "gamma_0": Case(100, gamma=0.0, reasons=("weak_penalty", "score_gap", "loss_spike")),
    "one_label_of_several": Case(100, "same", reasons=("one_class",)),
    "one_label": Case(100, "single", reasons=("one_class",)),
    "ten_images": Case(10, reasons=("few_images",)),
}


class Pool(NamedTuple):
    """All images of a source, uint8 (N, 1, side, side), their class numbers, and the patient of each."""

    images: np.ndarray
    classes: np.ndarray
    patients: np.ndarray


def phantoms(side: int, patients: int = 75, slices: int = 20) -> Pool:
    """CT slices of procedural patients in a window of -1000 to 400 HU; the class is the upper or the lower half."""
    images = []
    for seed in range(patients):
        drawn = anatomy.draw_patient(seed, lesion=seed % 2 == 0)
        hu = anatomy.hounsfield(anatomy.render(drawn, anatomy.axial_raster(side, slices, spacing=400.0 / side)))
        images.append(np.uint8(np.clip((hu + 1000.0) / 1400.0, 0.0, 1.0) * 255.0)[:, None])
    half = np.tile(np.arange(slices) * 2 // slices, patients)
    return Pool(np.concatenate(images), half, np.repeat(np.arange(patients), slices))


def pictures(folder: Path, side: int) -> Pool:
    """Pictures in sub-folders, reduced to `side`; every picture counts as a patient."""
    from PIL import Image as Picture

    images, classes = [], []
    for number, sub in enumerate(sorted(path for path in folder.iterdir() if path.is_dir())):
        for path in sorted(sub.iterdir()):
            if path.suffix.lower() in {".png", ".jpg", ".jpeg"}:
                images.append(np.asarray(Picture.open(path).convert("L").resize((side, side), Picture.Resampling.BOX)))
                classes.append(number)
    return Pool(np.stack(images)[:, None], np.array(classes), np.arange(len(images)))


def run_case(name: str, pool: Pool, seed: int, side: int, steps: int, width: int, watched: bool = True) -> dict:
    """Train once; what the watchman did and how good the model is on images that neither it nor the training saw."""
    case = CASES[name]
    random = np.random.default_rng(1000 + seed)
    order = np.concatenate(
        [np.flatnonzero(pool.patients == patient) for patient in random.permutation(np.unique(pool.patients))]
    )
    if case.labels != "true":  # one kind of picture
        order = order[pool.classes[order] == seed % (pool.classes.max() + 1)]
    hold, validation, rows = order[:200], order[200:300], order[300 : 300 + case.images]
    level = Level(pool.images, np.zeros(len(pool.images), np.float32), np.full(len(pool.images), 255.0, np.float32))
    kinds = pool.classes if case.labels == "true" else np.zeros(len(pool.images), np.int64)
    listed = {"none": 0, "true": int(pool.classes.max()) + 1, "same": 3, "single": 1}[case.labels]
    classes, seen = (kinds[rows], kinds[validation]) if listed else (None, None)
    gamma = penalty_weight(side, 1) * case.gamma
    recipe = replace(
        RECIPES["relativistic"], width=width, batch=16, images=int(16 * steps * case.length), ticks=12, gamma=gamma, gamma_end=gamma / 10.0,
        learning_rate=1e-3 * case.rate, learning_rate_end=2.5e-4 * case.rate, augment=augmentation_strength(len(rows)), precision="fp32",
        threads=1, channels_last=True, train_images=len(rows), target=side, seed=seed, watch=watched, patience=0.0,
    )  # fmt: skip
    real = watch.reference(level.batch(rows), level.batch(validation), seed, CPU, classes, seen)
    data = feed.Images(level, rows, classes, real)
    return outcome(recipe, data, listed, level.batch(hold))


def outcome(recipe: Recipe, data: feed.Images, listed: int, hold: np.ndarray) -> dict:
    """Train to the end, if there is one: quality on the held-out images, the words of an end, acts and ticks."""
    torch.manual_seed(recipe.seed)
    grid = Grid.choose((hold.shape[-2], hold.shape[-1]), hold.shape[-1])
    objective = OBJECTIVES[recipe.objective](recipe, Task(1, grid.shape, listed, 20), grid)
    result: dict = {"ended": "", "quality": None}
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        try:
            model, _ = loop.fit(
                objective, recipe, data, Path(folder), Group(0, 1, CPU), 1e9, Progress("run", recipe.images, quiet=True)
            )
            result["quality"] = held_out(model, recipe.seed, data.class_numbers, hold)
        except loop.Hopeless as error:
            result["ended"] = str(error)
        log = read_log(Path(folder) / "log.jsonl")
    acts = [row for row in log if row["kind"] == "act"]
    ticks = [row for row in log if row["kind"] == "tick"]
    seconds = time.monotonic() - began
    return result | {
        "acts": dict(Counter(f"{act['reason']}: {act['act']}" for act in acts)),
        "reasons": sorted({act["reason"] for act in acts}),
        "kinds": sorted({act["act"] for act in acts}),
        "first": acts[0]["images"] / recipe.images if acts else None,
        "seconds": seconds,
        "ticks": ticks,
    }


def held_out(model: torch.nn.Module, seed: int, classes: list[int], hold: np.ndarray) -> float:
    """Fréchet distance of as many samples to the held-out images, over that of the halves of these."""
    real = features(hold)
    half = len(real) // 2
    return frechet(features(watch.samples(model, seed, half, classes, CPU)), real[half:]) / frechet(
        real[:half], real[half:]
    )


def right(name: str, result: dict, healthy: float | None) -> bool:
    """Whether the watchman did what it should."""
    case = CASES[name]
    if not case.reasons:
        return not result["ended"] and set(result["kinds"]) <= UNTOUCHED
    caught = any(reason in case.reasons for reason in result["reasons"])
    return caught and bool(result["ended"] or (healthy is not None and result["quality"] <= COMPARABLE * healthy))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="first seed")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--side", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--unwatched", action="store_true", help="the same runs without the watchman")
    parser.add_argument("--json", type=Path, help="append one line for every run")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pool = pictures(options.data, options.side) if options.data else phantoms(options.side)
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, torch {torch.__version__}, 1 thread; {len(pool.images)} images of {options.side} px"
    )
    print("| case | right | seconds | held-out ratio, median (worst) | what was done |\n|---|---|---|---|---|")
    healthy: dict[int, float] = {}

    def train(name: str, seed: int) -> dict:
        return run_case(name, pool, seed, options.side, options.steps, options.width, watched=not options.unwatched)

    for name in options.cases.split(","):
        results = []
        for seed in range(options.first, options.first + options.seeds):
            result = train(name, seed)
            if name == "healthy_100":
                healthy[seed] = result["quality"]
            elif CASES[name].reasons and not result["ended"] and seed not in healthy:
                healthy[seed] = train("healthy_100", seed)["quality"]
            result["right"] = right(name, result, healthy.get(seed))
            results.append(result)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps({"case": name, "seed": seed, **result}) + "\n")
        print(line(name, results), flush=True)
    print(cost())


def cost(side: int = 64, images: int = 256, every: float = 25.0) -> str:
    """Seconds of one thread that all of a tick takes and an update is judged, beside those of the training."""
    random = np.random.default_rng(0)
    noise = random.uniform(-1.0, 1.0, (2 * images, 1, side, side)).astype(np.float32)
    recipe = replace(
        RECIPES["relativistic"], images=10**6, gamma=3.4, gamma_end=0.34, augment=0.5, target=side, threads=1,
        channels_last=True, precision="bf16",
    )  # fmt: skip
    objective = OBJECTIVES["synthesis"](recipe, Task(1, (side, side), 0, 20), Grid.choose((side, side), side))
    loop.prepare_machine(objective, recipe, CPU)
    level = Level(noise, np.full(len(noise), -1.0, np.float32), np.ones(len(noise), np.float32))
    data = feed.Images(level, np.arange(images), None, watch.reference(noise[images:], noise[:images], 0, CPU))
    average, now = copy.deepcopy(objective.generator).eval(), schedule(recipe, 0)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "samples").mkdir()
        seen = (objective, average, recipe, Path(folder), 0, now, CPU)
        tick = min(timed(lambda: data.observe(*seen)) for _ in range(5))
    watchman, values = Watchman(recipe), {"loss": 0.62, "loss_d": 0.6, "norm": 1.0, "gap": 0.2}
    judged = (
        min(timed(lambda: [watchman.accepts("discriminator", values) for _ in range(1000)]) for _ in range(5)) / 1000
    )
    step = min(timed(lambda: one_step(objective, recipe, data)) for _ in range(8))
    return (
        f"\nWatching at {side} px, {images} validation images: a tick {tick:.2f} s of one core, {tick / every:.1%} of one core and {tick / every / 2:.1%} "
        f"of two when it comes every {every:.0f} s; judging a step {2e6 * judged:.0f} us of {step:.2f} s ({2 * judged / step:.2%})"
    )


def timed(work: Callable[[], object]) -> float:
    """Seconds of processor time."""
    began = time.process_time()
    work()
    return time.process_time() - began


def one_step(objective: torch.nn.Module, recipe: Recipe, data: feed.Images) -> None:
    """The forward and backward passes of both players."""
    batch = data.draw(recipe, 0, Group(0, 1, CPU), schedule(recipe, 0))
    for name in objective.players:
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss = getattr(objective, f"{name}_loss")(batch)[0]
        loss.backward()


def line(name: str, results: list[dict]) -> str:
    qualities = [result["quality"] for result in results if result["quality"] is not None]
    quality = f"{statistics.median(qualities):.2f} ({max(qualities):.2f})" if qualities else "ended"
    acts: Counter[str] = Counter()
    for result in results:
        acts.update(result["acts"])
    done = ", ".join(f"{act} x{times}" for act, times in acts.most_common()) or "nothing"
    seconds = statistics.median(result["seconds"] for result in results)
    return (
        f"| {name} | {sum(result['right'] for result in results)}/{len(results)} | {seconds:.1f} | {quality} | {done} |"
    )


if __name__ == "__main__":
    main()
