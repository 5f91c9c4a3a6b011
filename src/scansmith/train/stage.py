"""What `train` does around the loop: open the dataset, settle the recipe, fit, write the model."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__, model
from ..dataset import Dataset, Level
from ..preprocess import Grid
from ..runtime import Progress, choose_device, derive_seed, write_json
from . import checkpoint, loop, watch
from . import kinds as hidden
from .objective import Objective
from .objectives import OBJECTIVES
from .parallel import Group, join
from .probe import Probe, Task, probe
from .recipes import RECIPES, Recipe
from .start import model_folder as start_folder
from .start import warm_start

FEWEST_TRAINING = 4
SLACK = 1.08  # of the planned time, before the tail of a run is cut


def run_training(
    dataset: Path,
    run: Path,
    minutes: float,
    recipe_name: str | Recipe,
    side: int | None,
    images: int | None,
    model_folder: Path,
    seed: int,
    device_name: str,
    probed: Probe | None = None,
    size: str = "auto",
    start: Path | None = None,
) -> dict[str, Any]:
    """`train` with, besides, a recipe that is no row of `RECIPES`, and a probe that was made before (by `run`, for its plan)."""
    began, printed = time.monotonic(), probed is None
    group = join(choose_device(device_name))
    try:
        data, base = Dataset.open(dataset), base_recipe(recipe_name, seed)
        request = {
            "minutes": minutes, "recipe": base.name, "size": size, "side": side, "images": images, "seed": seed,
            "from": model.digest(start_folder(start)) if start else None, "data": data.info["hash"],
        }  # fmt: skip
        # The first process looks, for all: another might see what the first has meanwhile written.
        found = checkpoint.load_recipe(run, request) if group.main else None
        stored, begins = group.agree(
            [[asdict(found[0]), found[1]] if found else None, not (run / checkpoint.CHECKPOINT).is_file()]
        )
        earlier = (Recipe(**stored[0]), stored[1]) if stored else None
        if earlier is not None and (run / "result.json").is_file() and (model_folder / "config.json").is_file():
            return {"model": str(model_folder), **json.loads((run / "result.json").read_text())}  # finished before
        task = task_of(data)
        if earlier is None and probed is None and group.main:
            side = side or (model.load(start_folder(start)).config["recipe"]["target"] if start else None)
            probed = probe(base, task, 60.0 * minutes, side, group.device, size, group.size)
        target = group.agree(earlier[0].target if earlier else probed.recipe.target if probed else None)
        grid = task.grid(target)
        if group.main:
            data.level(grid)  # made once, then mapped by all
        group.agree(None)
        looks = (earlier[0] if earlier else base).kinds
        kinds = hidden_kinds(data, data.level(grid), run, group) if looks else None
        learned = gather(data, data.level(grid), seed, group.device, kinds)
        torch.manual_seed(seed)  # the networks' first weights
        if earlier is None:
            planned: Any = None
            if group.main:
                assert probed is not None
                # Only now is it known what is left for the steps.
                left = 60.0 * minutes - (time.monotonic() - began)
                recipe, reasons = probed.lasting(images or probed.images_in(left))
                planned = {"recipe": asdict(recipe), "reasons": reasons}
            planned = group.agree(planned)
            recipe, reasons = Recipe(**planned["recipe"]), planned["reasons"]
        else:
            recipe, reasons = earlier
        objective = OBJECTIVES[recipe.objective](
            recipe, task.channels, grid, task.classes, kinds.shares if kinds else ()
        )
        if start and begins:
            taken = warm_start(objective, start)
            reasons = reasons if taken in reasons else [*reasons, taken]
        if kinds and kinds.words(labels_of(data)) not in reasons:
            reasons = [*reasons, kinds.words(labels_of(data))]
        if group.main and earlier is None:
            checkpoint.save_recipe(run, recipe, reasons, request)
            if printed:
                tell(reasons)
        deadline_s = 60.0 * minutes * SLACK if images is None else float("inf")
        with Progress("training", recipe.images, quiet=not group.main) as progress:
            best, outcome = loop.fit(objective, recipe, learned, run, group, deadline_s, progress)
        if not group.main:
            return {"model": str(model_folder), **outcome}
        return finish(data, recipe, grid, objective, best, outcome, reasons, run, model_folder, group.device)
    finally:
        group.leave()


def finish(
    data: Dataset,
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
    """The model folder, what the objective leaves besides, and result.json."""
    made = model.save(model_folder, best, configuration(data, recipe, grid, objective, outcome))
    objective.leave(best, data, data.level(grid), run, device)
    acts = [row for row in checkpoint.read_log(run / "log.jsonl") if row["kind"] == "act"]
    result = {
        "hash": made.hash,
        **outcome,
        "grid": list(grid.shape),
        "plan": reasons,
        "acts": [row["words"] for row in acts],
    }
    write_json(run / "result.json", result)
    return {"model": str(model_folder), **result}


def tell(reasons: list[str]) -> None:
    """The plan, for people."""
    print("\n".join(["Plan", *(f"  - {sentence}" for sentence in reasons)]), file=sys.stderr, flush=True)


def base_recipe(name: str | Recipe, seed: int) -> Recipe:
    """The row of `RECIPES`, or the recipe itself, with the seed.

    Raises:
        ValueError: there is no such row.
    """
    if isinstance(name, Recipe):
        return replace(name, seed=seed)
    if name not in RECIPES:
        raise ValueError(f"expected a recipe of {sorted(RECIPES)}, got {name!r}")
    return replace(RECIPES[name], seed=seed)


def training_rows(data: Dataset) -> np.ndarray:
    """The rows to learn from: the training split, without images that have no label where others have one."""
    rows = data.rows("train")
    return rows[data.classes()[rows] >= 0] if labels_of(data) else rows


def labels_of(data: Dataset) -> list[str]:
    """The labels that are learned: a single one says nothing, and is left out."""
    return data.labels if len(data.labels) > 1 else []


def task_of(data: Dataset) -> Task:
    """The shape of the learning task.

    Raises:
        ValueError: too few training images.
    """
    count = len(training_rows(data))
    if count < FEWEST_TRAINING:
        raise ValueError(
            f"expected at least {FEWEST_TRAINING} training images in {data.root}, found {count}: add scans and prepare again"
        )
    channels, *size = data.shape
    return Task(channels, tuple(size), len(labels_of(data)), count)


def hidden_kinds(data: Dataset, level: Level, run: Path, group: Group) -> hidden.Kinds | None:
    """The kinds of the training images: those that an earlier start kept in the run folder, or found now."""
    if group.main and not (run / checkpoint.CHECKPOINT).is_file():
        rows = training_rows(data)
        found = hidden.find(level, rows, data.classes()[rows] if labels_of(data) else None)
        hidden.keep(found, run)
    group.agree(None)  # written for all
    return hidden.kept(run)


def gather(
    data: Dataset, level: Level, seed: int, device: torch.device, kinds: hidden.Kinds | None = None
) -> loop.Data:
    """Training rows, their classes and kinds, and the reference for quality; the holdout is not touched."""
    rows, classes = training_rows(data), data.classes() if labels_of(data) else None
    told = kinds_of_rows(data, level, kinds, classes) if kinds else classes
    random = np.random.default_rng(derive_seed(seed, "reference"))
    sample = random.permutation(rows)[: 2 * watch.MOST]
    unseen = data.rows("validation")
    validation = random.permutation(unseen if classes is None else unseen[classes[unseen] >= 0])[: watch.MOST]
    labelled = (None, None) if told is None else (told[sample], told[validation])
    real = watch.reference(level.batch(sample), level.batch(validation), seed, device, *labelled)
    return loop.Data(
        level, rows, None if classes is None else classes[rows], real, None if told is None else told[rows]
    )


def kinds_of_rows(data: Dataset, level: Level, kinds: hidden.Kinds, classes: np.ndarray | None) -> np.ndarray:
    """The kind of every row, (N,) int64; -1 in the holdout, which nobody looks at."""
    result, rows = np.full(len(data), -1), np.flatnonzero(data.columns["split"] != "holdout")
    result[rows] = kinds.numbers(level, rows, None if classes is None else classes[rows])
    return result


def configuration(
    data: Dataset, recipe: Recipe, grid: Grid, objective: Objective, outcome: dict[str, Any]
) -> dict[str, Any]:
    """`config.json` of the model folder."""
    spacing = data.info["spacing"]
    scale = [stored / box for stored, box in zip(data.shape[1:], grid.box)]
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
