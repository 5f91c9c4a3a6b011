"""What labels are worth, class by class: one model that is told them, one that is not, and one of each rare class alone.

    python benchmarks/classes.py DATASET OUT [--images 40000] [--side 64] [--rare 1000]

DATASET was prepared with labels. All trainings show the same number of images with the default recipe. Each class of the holdout
is compared with samples of it: of the model with labels those that were asked for it, of the model without those that lie
nearest to a training image of the class, so that its row says more about its shares than about its images. `obeys`: the share
of samples that lie nearest to a training image of the class that was asked for, as many training images of each class; the same
of real held-out images beside it. Each training is a folder of OUT; the same command goes on where it was stopped.
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
import torch
from equal_time import Arm, settled, train, with_ticks

from scansmith import dataset, model
from scansmith.dataset import Dataset
from scansmith.metrics import prdc
from scansmith.metrics.energy import energy_distance
from scansmith.metrics.frechet import frechet
from scansmith.metrics.random_conv import features
from scansmith.runtime import Interrupted, choose_device, write_atomic
from scansmith.train import stage, watch
from scansmith.train.probe import Clock, fastest_machine, for_grid
from scansmith.train.recipes import RECIPES, resized

RECIPE = "relativistic"
FLOORS = 8  # draws of training images for the real/real floor
FEWEST_SAMPLES = 400
FEWEST = 16  # images of a class in each split; of fewer nothing is learned, and nothing measured


@dataclass(frozen=True)
class Bench:
    """What all rows share.

    Attributes:
        data: with labels.
        train, held_out: class -> (N, 512) features.
        device: where it runs.
    """

    data: Dataset
    train: Mapping[str, np.ndarray]
    held_out: Mapping[str, np.ndarray]
    device: torch.device

    def samples(self, generator: torch.nn.Module, count: int, classes: list[int]) -> np.ndarray:
        return features(watch.samples(generator.to(self.device), 1, count, classes, self.device), device=self.device)

    def named(self, found: np.ndarray, most: int | None = None) -> np.ndarray:
        """The class of the training image that each of (N, 512) features lies nearest to; `most`: of so many of each class."""
        pool = {name: values[:most] for name, values in self.train.items()}
        names = np.repeat(list(pool), [len(values) for values in pool.values()])
        nearest: np.ndarray = names[prdc.distances(found, np.concatenate(list(pool.values()))).argmin(axis=1)]
        return nearest

    def row(self, name: str, label: str, fake: np.ndarray, share: str) -> str:
        """A row of the table, of samples of one class against its held-out images."""
        real, own = self.held_out[label], self.train[label]
        count = min(len(real), len(fake), len(own))
        random = np.random.default_rng(0)
        floor = np.mean([frechet(random.permutation(own)[:count], real[:count]) for _ in range(FLOORS)])
        energy, error = energy_distance(fake, real)
        recall, best = prdc.recall(real, fake), prdc.recall(real, own[: len(fake)])
        return (
            f"| {label} ({len(own)}) | {name} | {share} | {frechet(fake[:count], real[:count]) / floor:.2f} | {recall:.2f} ({best:.2f}) | "
            f"{prdc.coverage(real, fake):.2f} | {prdc.precision(real, fake):.2f} | {energy:.4f} ± {error:.4f} |"
        )


def part(data: Dataset, root: Path, rows: np.ndarray) -> Dataset:
    """Some rows without their labels; made once."""
    if (root / "dataset.json").is_file():
        return Dataset.open(root)
    info = {key: data.info[key] for key in ("modality", "units", "spacing", "source_format", "split_level")}
    columns = {name: values[rows] for name, values in data.columns.items()}
    columns["label"] = np.full(len(rows), "")
    images = (data.image(int(row)) for row in rows)
    changed = {**info, "labels": [], "hash": f"{data.info['hash'][:12]}{root.name[:4]:_<4}"}
    return dataset.write(root, changed, columns, images, data.image(0).dtype, data.shape)


def trained(
    data: Dataset, folder: Path, options: argparse.Namespace, machine: Mapping[str, Any]
) -> torch.nn.Module | None:
    """The generator of a run on `data`; None, with the reason printed, where it was ended as hopeless."""
    recipe = replace(with_ticks(settled(RECIPES[RECIPE], machine, data, options.side), 5.0), ticks=10, patience=0.0)
    result = train(Arm(folder, recipe, options.images, options.seed), data, options.device)
    if "failed" in result:
        print(f"{folder.name}: {result['failed']}", file=sys.stderr)
        return None
    return model.load(folder / "model").generator


def fastest(data: Dataset, side: int, device: torch.device) -> dict[str, Any]:
    """Precision, layout and threads that suit the machine."""
    clock = Clock(stage.task_of(data), device)
    found, _ = fastest_machine(
        for_grid(resized(RECIPES[RECIPE], "tiny"), stage.task_of(data), side), clock, budget_s=20.0
    )
    return {name: getattr(found, name) for name in ("precision", "channels_last", "threads")}


def measure(bench: Bench, options: argparse.Namespace, machine: Mapping[str, Any]) -> str:
    """Train all and compare, class by class."""
    data, labels = bench.data, list(bench.train)
    rows = [
        "| class (training images) | model | share | Fréchet ÷ floor | recall (of real images) | coverage | precision | energy distance |",
        "|---|---|---|---|---|---|---|---|",
    ]
    counts = {label: max(FEWEST_SAMPLES, len(bench.held_out[label])) for label in labels}
    told = trained(data, options.out / "labels", options, machine)
    whole = part(data, options.out / "unlabelled-data", np.arange(len(data)))
    untold = trained(whole, options.out / "no-labels", options, machine)
    if told is None or untold is None:
        sys.exit("a training of all classes failed")
    drawn = bench.samples(untold, 4 * sum(counts.values()), [])
    nearest = bench.named(drawn)
    total = sum(map(len, bench.train.values()))
    obeys = []
    for number, label in enumerate(labels):
        asked = bench.samples(told, counts[label], [number])
        rows.append(bench.row("labels", label, asked, "as asked"))
        own = drawn[nearest == label]
        shares = f"{len(own) / len(drawn):.0%} for {len(bench.train[label]) / total:.0%}"
        if len(own) >= 2:
            rows.append(bench.row("no labels", label, own[: counts[label]], shares))
        if len(bench.train[label]) < options.rare:
            chosen = np.flatnonzero(data.columns["label"] == label)
            alone = trained(
                part(data, options.out / f"{label}-data", chosen), options.out / f"{label}-alone", options, machine
            )
            if alone:
                rows.append(bench.row("its class alone", label, bench.samples(alone, counts[label], []), "all"))
        most = min(map(len, bench.train.values()))
        right = [(bench.named(values, most) == label).mean() for values in (asked, bench.held_out[label])]
        obeys.append(f"{label}: obeys {right[0]:.0%} (real images {right[1]:.0%})")
    return "\n".join([*rows, "", "; ".join(obeys)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="prepared dataset with labels")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=40_000)
    parser.add_argument("--side", type=int, default=64)
    parser.add_argument(
        "--rare", type=int, default=1000, help="classes with fewer training images are trained alone too"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rates", type=Path, help="rates.json of equal_time.py, for its machine settings")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    data, device = Dataset.open(options.source), choose_device(options.device)
    if len(data.labels) < 2:
        sys.exit(f"expected a dataset with labels in {options.source}, found {data.labels}: prepare it with labels")
    level = data.level(stage.task_of(data).grid(options.side))

    def encoded(split: str) -> dict[str, np.ndarray]:
        random, found = np.random.default_rng(0), {}
        for label in data.labels:
            rows = np.flatnonzero((data.columns["label"] == label) & (data.columns["split"] == split))
            if len(rows) < FEWEST:
                sys.exit(f"expected {FEWEST} {split} images of {label} or more in {options.source}, found {len(rows)}")
            found[label] = features(level.batch(random.permutation(rows)), device=device)
        return found

    bench = Bench(data, encoded("train"), encoded("holdout"), device)
    machine = json.loads(options.rates.read_text())["machine"] if options.rates else fastest(data, options.side, device)
    text = measure(bench, options, machine)
    write_atomic(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}")
