"""What `train` does around the loop: open the dataset, settle the recipe, fit, write the model."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import nn

from .. import __version__, model
from ..dataset import Dataset
from ..preprocess import Grid
from ..runtime import Progress, choose_device, write_json
from . import checkpoint, loop, watch
from .objectives import OBJECTIVES
from .probe import Probe, Task, probe
from .recipes import RECIPES, Recipe

FEWEST_TRAINING = 4
SLACK = 1.08  # of the planned time, before the tail of a run is cut


def run_training(
    dataset: Path,
    run: Path,
    minutes: float,
    recipe_name: str,
    side: int | None,
    images: int | None,
    model_folder: Path,
    seed: int,
    device_name: str,
    probed: Probe | None = None,
) -> dict[str, Any]:
    """`train` with, besides, a probe that was made before (by `run`, for its plan)."""
    data = Dataset.open(dataset)
    device = choose_device(device_name)
    request = {
        "minutes": minutes,
        "recipe": recipe_name,
        "side": side,
        "images": images,
        "seed": seed,
        "data": data.info["hash"],
    }
    task = task_of(data)
    recipe, reasons = settle(run, request, task, device, probed)
    if (run / "result.json").is_file() and (model_folder / "config.json").is_file():
        return json.loads((run / "result.json").read_text())  # finished before
    grid = task.grid(recipe.target)
    torch.manual_seed(seed)  # the networks' first weights
    objective = OBJECTIVES[recipe.objective](recipe, task.channels, grid, task.classes)
    level = data.level(grid)
    learned = gather(data, level, recipe, device)
    planned_s = 60.0 * minutes if images is None else float("inf")
    with Progress("training", recipe.images) as progress:
        average, outcome = loop.fit(objective, recipe, learned, run, device, planned_s * SLACK, progress)
    made = model.save(model_folder, average, configuration(data, recipe, grid, objective, outcome))
    result = {
        "model": str(model_folder),
        "hash": made.hash,
        **outcome,
        "grid": [grid.height, grid.width],
        "plan": reasons,
    }
    write_json(run / "result.json", result)
    return result


def task_of(data: Dataset) -> Task:
    """The shape of the learning task.

    Raises:
        ValueError: too few training images.
    """
    count = len(data.rows("train"))
    if count < FEWEST_TRAINING:
        raise ValueError(
            f"expected at least {FEWEST_TRAINING} training images in {data.root}, found {count}: add scans and prepare again"
        )
    channels, height, width = data.shape
    return Task(channels, height, width, len(data.labels), count)


def settle(
    run: Path, request: dict[str, Any], task: Task, device: torch.device, probed: Probe | None
) -> tuple[Recipe, list[str]]:
    """The recipe of an earlier start in this folder, or a new one from the probe, stored before anything else."""
    if request["recipe"] not in RECIPES:
        raise ValueError(f"expected a recipe of {sorted(RECIPES)}, got {request['recipe']!r}")
    earlier = checkpoint.load_recipe(run, request)
    if earlier is not None:
        return earlier
    base = replace(RECIPES[request["recipe"]], seed=request["seed"])
    began, seconds = time.monotonic(), 60.0 * request["minutes"]
    probed = probed or probe(base, task, seconds, request["side"], device)
    left = seconds - (time.monotonic() - began)
    recipe, reasons = probed.lasting(request["images"] or probed.images_in(left))
    checkpoint.save_recipe(run, recipe, request, reasons)
    return recipe, reasons


def gather(data: Dataset, level: Any, recipe: Recipe, device: torch.device) -> loop.Data:
    """Training rows, their classes, and the reference for quality; the holdout is not touched."""
    rows = data.rows("train")
    validation = data.rows("validation")
    sample = rows[np.random.default_rng(recipe.seed).permutation(len(rows))[: 2 * watch.MOST]]
    real = watch.reference(level.batch(sample), level.batch(validation[: watch.MOST]), recipe.seed, device)
    return loop.Data(level, rows, data.classes()[rows] if data.labels else None, real)


def configuration(
    data: Dataset, recipe: Recipe, grid: Grid, objective: nn.Module, outcome: dict[str, Any]
) -> dict[str, Any]:
    """`config.json` of the model folder."""
    spacing = data.info["spacing"]
    scale = [data.info["height"] / grid.box_height, data.info["width"] / grid.box_width]
    rows = data.rows("train")
    window = {name: float(median(data.columns[name][row] for row in rows)) for name in ("low", "high")}
    return {
        "software": f"scansmith {__version__}",
        "network": {"name": recipe.generator, "arguments": objective.generator_arguments},
        "grid": grid.to_json(),
        "channels": data.shape[0],
        "modality": data.info["modality"],
        "source_format": data.info["source_format"],
        "intensity": {**window, "units": data.info["units"]},
        "spacing": None if spacing is None else [spacing[0] * scale[0], spacing[1] * scale[1]],
        "labels": data.labels,
        "label_counts": [int((data.classes()[rows] == number).sum()) for number in range(len(data.labels))],
        "data_hash": data.info["hash"],
        "recipe": asdict(recipe),
        "images_seen": outcome["images"],
    }
