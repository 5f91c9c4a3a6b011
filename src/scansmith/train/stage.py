"""What `train` does around the loop: open the dataset, settle the recipe, fit, write the model."""

from __future__ import annotations

import json
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
    began = time.monotonic()
    data, device = Dataset.open(dataset), choose_device(device_name)
    request = {
        "minutes": minutes,
        "recipe": recipe_name,
        "side": side,
        "images": images,
        "seed": seed,
        "data": data.info["hash"],
    }
    earlier = checkpoint.load_recipe(run, request)
    if earlier is not None and (run / "result.json").is_file() and (model_folder / "config.json").is_file():
        return {"model": str(model_folder), **json.loads((run / "result.json").read_text())}  # finished before
    task = task_of(data)
    if earlier is not None:
        target = earlier[0].target
    else:
        probed = probed or probe(base_recipe(recipe_name, seed), task, 60.0 * minutes, side, device)
        target = probed.recipe.target
    grid = task.grid(target)
    learned = gather(data, data.level(grid), seed, device)
    if earlier is None:
        assert probed is not None
        # Only now is it known what is left for the steps.
        left = 60.0 * minutes - (time.monotonic() - began)
        recipe, reasons = probed.lasting(images or probed.images_in(left))
        checkpoint.save_recipe(run, recipe, reasons, request)
    else:
        recipe, reasons = earlier
    torch.manual_seed(seed)  # the networks' first weights
    objective = OBJECTIVES[recipe.objective](recipe, task.channels, grid, task.classes)
    deadline_s = 60.0 * minutes * SLACK if images is None else float("inf")
    with Progress("training", recipe.images) as progress:
        average, outcome = loop.fit(objective, recipe, learned, run, device, deadline_s, progress)
    made = model.save(model_folder, average, configuration(data, recipe, grid, objective, outcome))
    result = {"hash": made.hash, **outcome, "grid": [grid.height, grid.width], "plan": reasons}
    write_json(run / "result.json", result)
    return {"model": str(model_folder), **result}


def base_recipe(name: str, seed: int) -> Recipe:
    """The row of `RECIPES`, with the seed.

    Raises:
        ValueError: there is no such row.
    """
    if name not in RECIPES:
        raise ValueError(f"expected a recipe of {sorted(RECIPES)}, got {name!r}")
    return replace(RECIPES[name], seed=seed)


def training_rows(data: Dataset) -> np.ndarray:
    """The rows to learn from: the training split, without images that have no label where others have one."""
    rows = data.rows("train")
    return rows[data.classes()[rows] >= 0] if data.labels else rows


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
    if data.info.get("depth"):
        raise ValueError(
            f"expected 2-D images in {data.root}, found volumes: this version trains on slices; prepare with --plan '{{\"dimensions\": 2}}'"
        )
    channels, height, width = data.shape
    return Task(channels, height, width, len(data.labels), count)


def gather(data: Dataset, level: Level, seed: int, device: torch.device) -> loop.Data:
    """Training rows, their classes, and the reference for quality; the holdout is not touched."""
    rows = training_rows(data)
    random = np.random.default_rng(derive_seed(seed, "reference"))
    sample = random.permutation(rows)[: 2 * watch.MOST]
    validation = random.permutation(data.rows("validation"))[: watch.MOST]
    real = watch.reference(level.batch(sample), level.batch(validation), seed, device)
    return loop.Data(level, rows, data.classes()[rows] if data.labels else None, real)


def configuration(
    data: Dataset, recipe: Recipe, grid: Grid, objective: nn.Module, outcome: dict[str, Any]
) -> dict[str, Any]:
    """`config.json` of the model folder."""
    spacing = data.info["spacing"]
    scale = [data.info["height"] / grid.box_height, data.info["width"] / grid.box_width]
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
        "orientation": common_orientation(data.columns["affine"][rows]),
        "spacing": None if spacing is None else [spacing[0] * scale[0], spacing[1] * scale[1]],
        "labels": data.labels,
        "label_counts": [int((data.classes()[rows] == number).sum()) for number in range(len(data.labels))],
        "data_hash": data.info["hash"],
        "recipe": asdict(recipe),
        "images_seen": outcome["images"],
    }


def common_orientation(affines: np.ndarray) -> list[list[float]] | None:
    """The unit vectors (RAS+) along columns and rows that most images have, to a tenth; None when none is known.

    Args:
        affines: (N, 4, 4), NaN where not known.
    """
    known = [affine[:3, :2].T for affine in affines if np.isfinite(affine).all()]
    units = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in known]
    if not units:
        return None
    keys = [tuple(np.rint(10.0 * vectors).ravel().tolist()) for vectors in units]
    most = Counter(keys).most_common(1)[0][0]
    return units[keys.index(most)].tolist()
