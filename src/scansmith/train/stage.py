"""What `train` does around the loop: open the dataset, settle the recipe, fit, write the model."""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__, model, pairings
from ..dataset import Dataset, Level
from ..pairings import PAIRINGS, Pairing
from ..preprocess import Grid
from ..runtime import Progress, choose_device, derive_seed, write_json
from . import checkpoint, loop, memory, pairs, unpaired, watch
from . import kinds as hidden
from .feed import Feed, Images
from .objective import Objective, Task
from .objectives import OBJECTIVES
from .parallel import Group, join
from .probe import LIKE, Probe, probe
from .recipes import Recipe, chosen
from .start import model_folder as start_folder
from .start import warm_start

FEWEST_TRAINING = 4
LEAST_FILLED = 0.4  # of the grid of a model that is started from
SLACK = 1.08  # of the planned time, before the tail of a run is cut


@dataclass(frozen=True)
class Wish:
    """What a training was asked for; the same wish in the same folder goes on.

    Attributes:
        minutes: wall time granted, the probe included.
        task: what is to be learned, a key of `recipes.USUAL`, or "auto".
        to: dataset to translate to without pairs.
        recipe: row of `RECIPES`, or a recipe that is none.
        size: of the networks, or "auto".
        side: longer side of the images in pixels; None lets the minutes decide.
        images: to show in all, in place of what the minutes allow.
        seed: of everything that is drawn.
        start: model or run folder to start from.
    """

    minutes: float
    recipe: str | Recipe = "auto"
    size: str = "auto"
    side: int | None = None
    images: int | None = None
    seed: int = 0
    start: Path | None = None
    task: str = "auto"
    to: Path | None = None

    def to_json(self, base: Recipe, data: Dataset, other: Dataset | None) -> dict[str, Any]:
        """For recipe.json: with names and hashes in place of recipe, model and datasets."""
        start = model.digest(start_folder(self.start)) if self.start else None
        said = {name: getattr(self, name) for name in ("minutes", "size", "side", "images", "seed")}
        hashes = {"data": data.info["hash"], "to": other.info["hash"] if other else None}
        return {**said, "recipe": base.name, "task": base.task, "from": start, **hashes}

    def base(self, data: Dataset) -> Recipe:
        """The recipe before anything is measured.

        Raises:
            ValueError: see `recipes.chosen`.
        """
        if isinstance(self.recipe, Recipe):
            return replace(self.recipe, seed=self.seed)
        return replace(
            chosen(self.task, self.recipe, bool(data.info.get("target")), self.to is not None), seed=self.seed
        )

    def learned(self, data: Dataset, pairing: Pairing | None, other: Dataset | None) -> Task:
        """The shape of what is learned; on the grid of the model that is started from, unless another side is wished.

        Raises:
            ValueError: too few training images, slices for a model of volumes or the other way round, or images of another shape.
        """
        task = translation_of(data, pairing, other) if pairing or other else task_of(data)
        if self.start is None:
            return task
        config = model.load(start_folder(self.start)).config
        like = Grid.from_json(config["grid"])
        if like.dimensions != len(task.size):
            raise ValueError(
                f"expected a model of {len(task.size)}-D images to start from in {self.start}, found one of {like.dimensions}-D: prepare both alike"
            )
        if self.side not in (None, like.side, config["recipe"]["target"]):
            return task
        held = replace(task, like=like).grid(like.side)
        if math.prod(held.box) < LEAST_FILLED * held.pixels:
            raise ValueError(
                f"expected images shaped as those of the model in {self.start}, found that {' x '.join(map(str, task.size))} would fill {math.prod(held.box) / held.pixels:.0%} of its grid of {' x '.join(map(str, held.shape))}: start from another model"
            )
        return replace(task, like=like)

    def probed(self, base: Recipe, task: Task, group: Group) -> Probe:
        """What the machine can do in the minutes, with networks of the size of the model that is started from, if there is one."""
        side, size = self.side, self.size
        if self.start:
            other = model.load(start_folder(self.start)).config["recipe"]
            side, size = side or other["target"], other["size"] if size == "auto" else size
        words = LIKE if self.start and self.size == "auto" else ""
        return probe(base, task, 60.0 * self.minutes, side, group.device, size, group.size, words)


def run_training(
    dataset: Path,
    run: Path,
    wish: Wish,
    device_name: str = "auto",
    model_folder: Path | None = None,
    probed: Probe | None = None,
) -> dict[str, Any]:
    """`train`; `probed` was made before (by `run`, for its plan), and the plan is not printed again."""
    began, printed, model_folder = time.monotonic(), probed is None, model_folder or run / "model"
    group = join(choose_device(device_name))
    try:
        data = Dataset.open(dataset)
        base, other = wish.base(data), Dataset.open(wish.to) if wish.to else None
        pairing = pairings.pairing(base.task, data) if base.task in PAIRINGS else None
        base = replace(base, registered=base.registered or (pairing is not None and pairs.apart(data)))
        request = wish.to_json(base, data, other)
        earlier, begins = started_before(run, request, group)
        if earlier and (run / "result.json").is_file() and (model_folder / "config.json").is_file():
            return {"model": str(model_folder), **json.loads((run / "result.json").read_text())}  # finished before
        task = wish.learned(data, pairing, other)
        probed = probed and probed.learning(task.train_images)
        if group.main and not earlier and not probed:
            probed = wish.probed(base, task, group)
        grid = task.grid(group.agree(earlier[0].target if earlier else probed.recipe.target if probed else None))
        kinds = found_kinds(data, grid, run, group) if (earlier[0] if earlier else base).kinds else None
        level = None if task.made else level_for_all(data, grid, group)
        recipe, reasons = earlier or planned(probed, wish, began, group)
        if earlier:  # the probe looks at a new one
            memory.refuse_if_too_large(recipe, task, grid, group.device, group.size)
        learned: Feed
        if other:
            learned = unpaired.gather(data, other, recipe, grid.shape)
            more = [learned.plan(), *unpaired.differences(data, other)]
            reasons = [*reasons, *(words for words in more if words not in reasons)]
        elif pairing:
            learned = pairs.gather(pairing, recipe, grid.shape)
        else:
            assert level
            learned = gather(data, level, recipe, group.device, kinds)
        torch.manual_seed(wish.seed)  # the networks' first weights
        objective = OBJECTIVES[recipe.objective](recipe, task, grid, kinds.shares if kinds else ())
        told = [warm_start(objective, wish.start)] if wish.start and begins else []
        told += [kinds.words(labels_of(data))] if kinds else []
        reasons = [*reasons, *(words for words in told if words not in reasons)]
        if group.main and not earlier:
            checkpoint.save_recipe(run, recipe, reasons, request)
            if printed:
                tell(reasons)
        deadline_s = 60.0 * wish.minutes * SLACK if wish.images is None else float("inf")
        if group.device.type == "cuda":  # what is reported is the training's, not the probe's
            torch.cuda.reset_peak_memory_stats(group.device)
        with Progress("training", recipe.images, quiet=not group.main) as progress:
            best, outcome = loop.fit(objective, recipe, learned, run, group, deadline_s, progress)
        if not group.main:
            return {"model": str(model_folder), **outcome}
        return finish(data, learned, recipe, grid, objective, best, outcome, reasons, run, model_folder, group.device)
    finally:
        group.leave()


def started_before(run: Path, request: dict[str, Any], group: Group) -> tuple[tuple[Recipe, list[str]] | None, bool]:
    """Recipe and reasons of an earlier start in this folder, or None; and whether there is no checkpoint yet.

    The first process looks, for all: another might see what the first has meanwhile written.
    """
    found = checkpoint.load_recipe(run, request) if group.main else None
    stored, begins = group.agree(
        [[asdict(found[0]), found[1]] if found else None, not (run / checkpoint.CHECKPOINT).is_file()]
    )
    return (Recipe(**stored[0]), stored[1]) if stored else None, begins


def planned(probed: Probe | None, wish: Wish, began: float, group: Group) -> tuple[Recipe, list[str]]:
    """The whole recipe with its reasons, now that it is known what is left for the steps; from the first process to all."""
    plan: Any = None
    if group.main:
        assert probed is not None
        left = 60.0 * wish.minutes - (time.monotonic() - began)
        recipe, reasons = probed.lasting(wish.images or probed.images_in(left))
        plan = {"recipe": asdict(recipe), "reasons": reasons}
    plan = group.agree(plan)
    return Recipe(**plan["recipe"]), plan["reasons"]


def level_for_all(data: Dataset, grid: Grid, group: Group) -> Level:
    """The images on the grid: made once, by the first process, then mapped by all."""
    if group.main:
        data.level(grid)
    group.agree(None)
    return data.level(grid)


def finish(
    data: Dataset,
    learned: Feed,
    recipe: Recipe,
    grid: Grid,
    objective: Objective,
    best: nn.Module,
    outcome: dict[str, Any],
    reasons: list[str],
    run: Path,
    model_folder: Path,
    device: torch.device,
) -> dict[str, Any]:
    """The model folder, what the objective leaves besides, and result.json.

    On a GPU "device_peak_bytes" is the most of its memory that this process held, reserved by torch's allocator: more than
    the tensors filled, and what no other program could have had. The probe is part of the process.
    """
    config = configuration(data, recipe, grid, objective, outcome) | learned.says(objective.saved(best), device)
    log = checkpoint.read_log(run / "log.jsonl")
    if recipe.adversary:
        ticks = [row for row in log if row["kind"] == "tick"]
        config["translation"]["price"] = pairs.price(ticks, recipe, config["intensity"]["units"])
        outcome = {**outcome, "price": config["translation"]["price"]["words"]}
        print(outcome["price"], file=sys.stderr, flush=True)
    made = model.save(model_folder, objective.saved(best), config)
    back = objective.inverse(best)
    if back is not None:
        assert isinstance(learned, unpaired.Unpaired)
        other = learned.turned_round()
        said = configuration(other.sources.pairing.data, recipe, grid, objective, outcome) | other.says(back, device)
        outcome = {**outcome, "inverse": model.save(run / "inverse", back, said).hash}
    objective.leave(best, data, grid, run, device)
    acts = [row for row in log if row["kind"] == "act"]
    result = {
        "hash": made.hash,
        **outcome,
        "grid": list(grid.shape),
        "plan": reasons,
        "acts": [row["words"] for row in acts],
    }
    if device.type == "cuda":
        result["device_peak_bytes"] = torch.cuda.max_memory_reserved(device)
    write_json(run / "result.json", result)
    return {"model": str(model_folder), **result}


def tell(reasons: list[str]) -> None:
    """The plan, for people."""
    print("\n".join(["Plan", *(f"  - {sentence}" for sentence in reasons)]), file=sys.stderr, flush=True)


def training_rows(data: Dataset) -> np.ndarray:
    """The rows to learn from: the training split, without images that have no label where others have one."""
    rows = data.rows("train")
    return rows[data.classes()[rows] >= 0] if labels_of(data) else rows


def validation_rows(data: Dataset) -> np.ndarray:
    """The rows that quality is measured on, with a label where labels are learned."""
    rows = data.rows("validation")
    return rows[data.classes()[rows] >= 0] if labels_of(data) else rows


def labels_of(data: Dataset) -> list[str]:
    """The labels that are learned: a single one says nothing, and is left out."""
    return data.labels if len(data.labels) > 1 else []


def task_of(data: Dataset) -> Task:
    """The shape of what is learned from images alone.

    Raises:
        ValueError: too few training images.
    """
    channels, *size = data.shape
    return Task(channels, tuple(size), len(labels_of(data)), enough(data, len(training_rows(data))))


def translation_of(data: Dataset, pairing: Pairing | None, other: Dataset | None) -> Task:
    """The shape of a translation of pairs, or from one dataset to another.

    Raises:
        ValueError: too few training images.
    """
    size = data.shape[1:]
    if pairing:
        count = enough(data, len(pairing.rows("train")), fewest=1)
        sources = len(pairing.names) if isinstance(pairing, pairings.Several) else 0
        return Task(
            pairing.in_channels, size, 0, count, made=pairing.out_channels, residual=pairing.residual, sources=sources
        )
    assert other
    enough(other, len(other.rows("train")), fewest=1)
    count = enough(data, len(data.rows("train")), fewest=1)
    return Task(unpaired.channels(data), size, 0, count, made=other.shape[0])


def enough(data: Dataset, count: int, fewest: int = FEWEST_TRAINING) -> int:
    """The number of training images; a translation learns from patches, of which one volume has many.

    Raises:
        ValueError: too few.
    """
    if count < fewest:
        raise ValueError(
            f"expected at least {fewest} training images in {data.root}, found {count}: add scans and prepare again"
        )
    return count


def found_kinds(data: Dataset, grid: Grid, run: Path, group: Group) -> hidden.Kinds | None:
    """The kinds of the training images: those that an earlier start kept in the run folder, or found now."""
    if group.main and not (run / checkpoint.CHECKPOINT).is_file():
        labels = labels_of(data)
        classes = data.classes() if labels else None
        found = hidden.find(
            data.level(grid),
            training_rows(data),
            validation_rows(data),
            data.columns["patient"],
            classes,
            max(1, len(labels)),
        )
        hidden.keep(found, run)
    group.agree(None)  # written for all
    return hidden.kept(run)


def gather(
    data: Dataset, level: Level, recipe: Recipe, device: torch.device, kinds: hidden.Kinds | None = None
) -> Images:
    """Training rows, their classes and kinds, and the reference for quality; the holdout is not touched."""
    rows, classes = training_rows(data), data.classes() if labels_of(data) else None
    told = kinds.numbers if kinds else classes
    random = np.random.default_rng(derive_seed(recipe.seed, "reference"))
    sample = random.permutation(rows)[: 2 * watch.MOST]
    validation = random.permutation(validation_rows(data))[: watch.MOST]
    sides = (None, None) if told is None else (told[sample], told[validation])
    real = watch.reference(
        level.batch(sample), level.batch(validation), recipe.seed, device, sides[0], sides[1], recipe.judged
    )
    if classes is None or told is None:
        return Images(level, rows, None, real, None if told is None else told[rows])
    # Ticks show classes as often as the images that they are compared with.
    shown = validation if real and real.name == "validation" else sample
    return Images(level, rows, classes[rows], real, told[rows], classes[shown].tolist())


def configuration(
    data: Dataset, recipe: Recipe, grid: Grid, objective: Objective, outcome: dict[str, Any]
) -> dict[str, Any]:
    """`config.json` of the model folder."""
    spacing = data.info["spacing"]
    # The grid of a translation is a patch at stored resolution, any other holds the whole image.
    held = grid.box if recipe.task == "make" else data.shape[1:]
    scale = [stored / box for stored, box in zip(data.shape[1:], held)]
    rows = training_rows(data)
    window = {name: float(np.median(data.columns[name][rows])) for name in ("low", "high")}
    return {
        "software": f"scansmith {__version__}",
        "network": {"name": recipe.generator, "arguments": objective.generator_arguments},
        "grid": grid.to_json(),
        "channels": data.shape[0],
        "modality": data.info["modality"],
        "source_format": data.info["source_format"],
        "intensity": {**window, "units": data.info["units"]},
        "orientation": common_orientation(data.columns["affine"][rows], grid.dimensions),
        "spacing": None if spacing is None else [mm * factor for mm, factor in zip(spacing, scale, strict=True)],
        "labels": labels_of(data),
        "label_counts": [int((data.classes()[rows] == number).sum()) for number in range(len(labels_of(data)))],
        "data_hash": data.info["hash"],
        "recipe": asdict(recipe),
        "images_seen": outcome["images"],
    }


def common_orientation(affines: np.ndarray, dimensions: int = 2) -> list[list[float]] | None:
    """The unit vectors (RAS+) along columns and rows, and of volumes along slices, that most images have, to a tenth.

    Args:
        affines: (N, 4, 4), NaN where not known; None is returned when none is.
        dimensions: 2 or 3.
    """
    known = [affine[:3, :dimensions].T for affine in affines if np.isfinite(affine).all()]
    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in known]
    if not units:
        return None
    keys = [tuple(np.rint(10.0 * vectors).ravel().tolist()) for vectors in units]
    most = Counter(keys).most_common(1)[0][0]
    return units[keys.index(most)].tolist()
