"""Few images: ours against dcgan, Wasserstein and vae on equal time, layout, precision and augmentation.

    python benchmarks/limited_data.py SHARED_DATA OUT [--minutes 5] [--seeds 2] [--only hands-100/relativistic,...]

SHARED_DATA holds mednist_64px_classes/Hand and mednist_64px_classes/AbdomenCT. Training images are drawn from the train split,
with validation images in the proportion that `prepare` gives; the holdout is the same for all. Ours keeps its defaults.
Each baseline takes the augmentation of ours and the best of three learning rates: one minute each with seed 0, judged on
validation images. Minutes become images by rates timed in turns (see equal_time.py; `--rates FILE`, `--only-rates`). Each
training is a folder of OUT with a result.json; the same command goes on, also after --only, and prints what is there.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from equal_time import Arm, Judge, images_in, rates, settled, train, with_ticks

from scansmith import dataset, model, prepare
from scansmith.dataset import Dataset
from scansmith.prepare.split import FRACTIONS
from scansmith.runtime import Interrupted, choose_device, derive_seed, write_atomic, write_json
from scansmith.train.recipes import RECIPES, Recipe

SIDE = 64
OURS = "relativistic"
BASELINES = ("dcgan", "wasserstein", "vae")
# name -> (folder, training images, what they are); of a folder of 1,000 hands `prepare` gives 700 to the train split.
TASKS = {
    "hands-100": ("Hand", 100, "hands"),
    "hands-700": ("Hand", 700, "hands"),
    "abdomen-ct-300": ("AbdomenCT", 300, "abdominal CT"),
}
NAMES = {OURS: "**ours**", "dcgan": "DCGAN", "wasserstein": "Wasserstein", "vae": "VAE"}
RATE_FACTORS = (1 / 3, 1.0, 3.0)  # of the recipe's own learning rate
SEARCH_MINUTES = 1.0
FEWEST_VALIDATION = 16  # below this many, quality would be measured on training images


# ------------------------------------------------------------------------------------------------ data


def limited(source: Dataset, root: Path, count: int) -> Dataset:
    """`count` training images of `source`, validation in proportion, the whole holdout; made once."""
    if (root / "dataset.json").is_file():
        return Dataset.open(root)
    random = np.random.default_rng(derive_seed(0, "limited", count))
    train, validation = (random.permutation(source.rows(split)) for split in ("train", "validation"))
    wanted = max(FEWEST_VALIDATION, round(min(count, len(train)) * FRACTIONS["validation"] / FRACTIONS["train"]))
    rows = np.concatenate([np.sort(train[:count]), np.sort(validation[:wanted]), source.rows("holdout")])
    columns = {name: values[rows] for name, values in source.columns.items()}
    info = {key: source.info[key] for key in ("modality", "units", "labels", "spacing", "source_format", "split_level")}
    info["hash"] = f"{source.info['hash'][:12]}{count:04d}"
    images = (source.image(int(row)) for row in rows)
    return dataset.write(root, info, columns, images, source.image(0).dtype, source.shape)


# ------------------------------------------------------------------------------------------------ trainings


@dataclass(frozen=True)
class Bench:
    """What all trainings of one task share.

    Attributes:
        out: folder of the task.
        data: the limited dataset.
        known: machine settings and rates.
        minutes: of one training.
        device: where it runs.
    """

    out: Path
    data: Dataset
    known: Mapping[str, Any]
    minutes: float
    device: str

    def recipe(self, name: str) -> Recipe:
        """The whole recipe but for its length; a baseline with a discriminator is augmented as ours is."""
        ours = settled(RECIPES[OURS], self.known["machine"], self.data, SIDE)
        one = settled(RECIPES[name], self.known["machine"], self.data, SIDE)
        return one if one.objective != ours.objective else replace(one, augment=ours.augment)

    def arm(self, folder: str, recipe: Recipe, minutes: float, seed: int) -> Arm:
        images = images_in(minutes, recipe, self.known["step_s"][recipe.name])
        return Arm(self.out / folder, with_ticks(recipe, minutes), images, seed)


def searched(bench: Bench, name: str) -> Recipe:
    """The baseline with the best of three learning rates on validation images; kept in NAME-search.json."""
    recipe, path = bench.recipe(name), bench.out / f"{name}-search.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    candidates = {f"{recipe.learning_rate * factor:.3g}": factor for factor in RATE_FACTORS}
    for text, factor in candidates.items():
        if text not in found:
            one = scaled(recipe, factor)
            result = train(
                bench.arm(f"{name}-search-{text}", one, min(SEARCH_MINUTES, bench.minutes), 0), bench.data, bench.device
            )
            found[text] = result.get("quality")
            write_json(path, found)
    judged = {text: quality for text, quality in found.items() if quality is not None}
    best = min(judged, key=judged.__getitem__) if judged else f"{recipe.learning_rate:.3g}"
    return scaled(recipe, candidates[best])


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """The recipe with its learning rates multiplied."""
    return replace(
        recipe, learning_rate=recipe.learning_rate * factor, learning_rate_end=recipe.learning_rate_end * factor
    )


def result_of(bench: Bench, judge: Judge, name: str, seed: int) -> dict[str, Any]:
    """Train and measure on the holdout, unless FOLDER/measured.json is there."""
    path = bench.out / f"{name}-{seed}" / "measured.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    recipe = bench.recipe(name) if name == OURS else searched(bench, name)
    arm = bench.arm(path.parent.name, recipe, bench.minutes, seed)
    trained = train(arm, bench.data, bench.device)
    if "failed" in trained:
        print(f"{bench.out.name}/{name}-{seed}: {trained['failed']}", file=sys.stderr)
        return {}
    found = {
        **judge.judge(model.load(arm.folder / "model").generator), "learning_rate": recipe.learning_rate,
        "images": trained["images"], "seconds": trained["seconds"], "train_images": recipe.train_images, "augment": recipe.augment,
    }  # fmt: skip
    write_json(path, found)
    return found


# ------------------------------------------------------------------------------------------------ the table

COLUMNS = {"random_conv_frechet": "Fréchet ÷ floor", "recall": "recall", "coverage": "coverage", "precision": "precision",
           "radiomics_frechet": "radiomics ÷ floor", "near_copies": "near copies (%)",
           "nearest_training_median": "similarity to training"}  # fmt: skip


def table(found: Mapping[str, Mapping[str, list[dict[str, Any]]]]) -> str:
    """Markdown: a block of rows for each task, the value of every seed; the last row of a block is the real/real floor."""
    lines = [
        "| data | recipe | rate | " + " | ".join(COLUMNS.values()) + " |",
        "|---|---|---|" + "---|" * len(COLUMNS),
    ]
    for task, recipes in found.items():
        done = {name: [run for run in runs if run] for name, runs in recipes.items() if any(runs)}
        for name, runs in done.items():
            what = f"{TASKS[task][2]}, {runs[0]['train_images']:,} images"
            lines.append(row(what, NAMES[name], f"{runs[0]['learning_rate']:.2g}", runs, "value"))
        if done:
            lines.append(row("", "real images", "", next(iter(done.values()))[:1], "floor"))
    return "\n".join(lines) + "\n"


def row(what: str, name: str, rate: str, runs: list[dict[str, Any]], key: str) -> str:
    """One row; `key` is the "value" or the "floor" of each entry."""
    cells = [over_seeds(column, [run[column][key] for run in runs if column in run]) for column in COLUMNS]
    return f"| {what} | {name} | {rate} | {' | '.join(cells)} |"


def over_seeds(column: str, values: list[float]) -> str:
    """ "5.31, 5.12": the value of each seed."""
    factor, digits = (100.0, 1) if column == "near_copies" else (1.0, 2)
    return ", ".join(f"{factor * value:.{digits}f}" for value in values) or "–"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder that holds mednist_64px_classes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", default="", help="tasks, recipes or TASK/RECIPE with commas between")
    parser.add_argument("--rounds", type=int, default=20, help="turns of the timing")
    parser.add_argument("--rates", type=Path, help="rates.json that was measured before; default: OUT/rates.json")
    parser.add_argument("--only-rates", action="store_true", help="time the steps and stop")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    only = {text.strip() for text in options.only.split(",") if text.strip()}
    device = choose_device(options.device)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for task, (folder, count, _) in TASKS.items():
        names = [name for name in (OURS, *BASELINES) if not only or only & {task, name, f"{task}/{name}"}]
        if not names:
            continue
        prepared = options.out / "datasets" / folder
        if not (prepared / "dataset.json").is_file():
            prepare(options.shared / "mednist_64px_classes" / folder, prepared, labels="none")
        data = limited(Dataset.open(prepared), options.out / task / "dataset", count)
        timed = {name: RECIPES[name] for name in (OURS, *BASELINES)}
        known = rates(options.rates or options.out / "rates.json", data, timed, SIDE, device, options.rounds)
        if options.only_rates:
            print(json.dumps(known, indent=1))
            return
        bench = Bench(options.out / task, data, known, options.minutes, options.device)
        judge = Judge(data, bench.recipe(OURS), device)
        found[task] = {name: [] for name in names}
        # Each seed of all recipes before the next seed, so that an early stop leaves a whole table.
        for seed in range(options.seeds):
            for name in names:
                found[task][name].append(result_of(bench, judge, name, seed))
                print(f"{task}/{name}-{seed} done", file=sys.stderr, flush=True)
        text = table(found)
        write_atomic(options.out / "table.md", text)
        print(text, flush=True)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}")
