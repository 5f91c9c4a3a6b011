"""The training loop: update D, update G, average, and at every tick measure, log, save. Knows nothing of the task."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..dataset import Level
from ..runtime import Interrupted, Progress, derive_seed, stop_flag
from . import checkpoint, watch
from .recipes import Recipe, Values, schedule
from .synthesis import Batch

LONGEST_FAULT = 20  # consecutive updates whose loss is not finite before a run is given up


@dataclass(frozen=True)
class Data:
    """What is learned from.

    Attributes:
        level: every image of the dataset on the training grid.
        rows: (N,) the training rows in it.
        classes: (N,) class number of each of `rows`, or None.
        real: what quality is measured against at every tick, or None.
    """

    level: Level
    rows: np.ndarray
    classes: np.ndarray | None
    real: watch.Reference | None

    @property
    def class_numbers(self) -> list[int]:
        return [] if self.classes is None else sorted(set(self.classes.tolist()))


def fit(
    objective: nn.Module,
    recipe: Recipe,
    data: Data,
    run: Path,
    device: torch.device,
    deadline_s: float,
    progress: Progress,
) -> tuple[nn.Module, dict[str, Any]]:
    """Train to the end of the recipe, or go on from the run folder's checkpoint.

    Args:
        objective: has `generator`, `discriminator`, `discriminator_loss(batch)` and `generator_loss(batch)`.
        run: folder for log.jsonl, samples/ and checkpoint.safetensors.
        deadline_s: seconds of training, earlier starts included, after which the tail is cut.

    Returns:
        The averaged generator (float32, evaluation mode) and {"images", "seconds", "cut"}.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the checkpoint is written.
        RuntimeError: the losses were not finite for too long.
    """
    prepare_machine(objective, recipe, device)
    networks = players(objective)
    average = copy.deepcopy(networks["generator"]).eval().requires_grad_(False)
    optimizers = {name: adam(network) for name, network in networks.items()}
    modules, saved = {"objective": objective, "average": average}, run / "checkpoint.safetensors"
    state: dict[str, Any] = {"step": 0, "seconds": 0.0}
    if saved.is_file():
        state = checkpoint.load(saved, modules, optimizers)
    progress.resume(state["step"] * recipe.batch)
    log = checkpoint.Log(run, state["step"] * recipe.batch)
    tick_every = max(1, recipe.steps // recipe.ticks)
    began, means, cut = time.monotonic() - state["seconds"], Means(), False

    with stop_flag() as stopping:
        for step in range(state["step"], recipe.steps):
            images = (step + 1) * recipe.batch
            now = schedule(recipe, step * recipe.batch)
            batch = draw_batch(recipe, step, data, device, now)

            # update D, then G on the same fakes
            for name in networks:
                means.add(update(name, batch, objective, optimizers[name], recipe.precision, now, device))

            # average the weights
            torch._foreach_lerp_(
                list(average.parameters()),
                [value.detach() for value in networks["generator"].parameters()],
                1.0 - now.ema_decay,
            )

            # watch, log, save
            progress.update(images)
            seconds = time.monotonic() - began
            cut = seconds > deadline_s and step + 1 < recipe.steps
            state = {"step": step + 1, "seconds": seconds}
            if cut or (step + 1) % tick_every == 0 or step + 1 == recipe.steps:
                row = {
                    "kind": "tick",
                    "images": images,
                    "seconds": round(seconds, 2),
                    "images_per_s": round(progress.rate, 2),
                }
                row |= {**means.take(), "lr": now.learning_rate, "gamma": now.gamma, "augment": now.augment, "cut": cut}
                row |= observe(average, recipe, data, run / "samples" / f"{images:09d}.png", device)
                log.write(row)
                checkpoint.save(saved, modules, optimizers, state)
                progress.update(images, words(row))
            if stopping():
                checkpoint.save(saved, modules, optimizers, state)
                log.close()
                raise Interrupted(f"stopped at {images} of {recipe.images} images; the same command goes on from there")
            if cut:
                break
    log.close()
    return average, {"images": state["step"] * recipe.batch, "seconds": state["seconds"], "cut": cut}


def prepare_machine(objective: nn.Module, recipe: Recipe, device: torch.device) -> None:
    """Threads, layout and device as the recipe fixes them."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    objective.to(device)
    if recipe.channels_last:
        objective.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def players(objective: nn.Module) -> dict[str, nn.Module]:
    """The networks in the order in which they move."""
    return {name: objective.get_submodule(name) for name in ("discriminator", "generator")}


def adam(network: nn.Module) -> torch.optim.Optimizer:
    """Adam with beta1 = 0; rate and beta2 are set before each step."""
    return torch.optim.Adam(network.parameters(), lr=0.0, betas=(0.0, 0.9), fused=True)


def draw_batch(recipe: Recipe, step: int, data: Data, device: torch.device, now: Values) -> Batch:
    """The batch of one step: a function of the seed and the step alone."""
    chosen = draw_rows(recipe, step, data)
    images = torch.from_numpy(data.level.batch(data.rows[chosen]))
    if recipe.channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    random = torch.Generator().manual_seed(derive_seed(recipe.seed, "step", step))
    z = torch.randn(recipe.batch, recipe.latent, generator=random)
    classes = None if data.classes is None else torch.from_numpy(data.classes[chosen]).to(device)
    return Batch(images.to(device), classes, z.to(device), now.gamma, now.augment, random)


def draw_rows(recipe: Recipe, step: int, data: Data) -> np.ndarray:
    """Positions in `data.rows`: epochs without repetition, or with classes by the square root of their counts."""
    count, start = len(data.rows), step * recipe.batch
    if data.classes is not None:
        _, inverse, counts = np.unique(data.classes, return_inverse=True, return_counts=True)
        weight = (counts**-0.5)[inverse]
        return np.random.default_rng(derive_seed(recipe.seed, "rows", step)).choice(
            count, recipe.batch, p=weight / weight.sum()
        )
    epochs = range(start // count, (start + recipe.batch - 1) // count + 1)
    order = np.concatenate(
        [np.random.default_rng(derive_seed(recipe.seed, "epoch", epoch)).permutation(count) for epoch in epochs]
    )
    first = start - epochs[0] * count
    return order[first : first + recipe.batch]


def update(
    name: str,
    batch: Batch,
    objective: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: str,
    now: Values,
    device: torch.device,
) -> dict[str, float]:
    """One step of one player; a loss that is not finite moves nothing.

    D takes no gradient while G moves; G keeps its graph while D moves, since both learn from the same fakes.
    """
    players(objective)["discriminator"].requires_grad_(name == "discriminator")
    with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss, logged = getattr(objective, f"{name}_loss")(batch)
    optimizer.zero_grad(set_to_none=True)
    if torch.isfinite(loss):
        loss.backward()
        optimizer.param_groups[0].update(lr=now.learning_rate, betas=(0.0, now.beta2))
        optimizer.step()
    return {key: value.item() for key, value in logged.items()}


def observe(average: nn.Module, recipe: Recipe, data: Data, sheet: Path, device: torch.device) -> dict[str, Any]:
    """Quality of the averaged generator now, and its sample sheet."""
    watch.save_sheet(sheet, watch.samples(average, recipe.seed, 64, data.class_numbers, device))
    if data.real is None:
        return {"quality": None, "diversity": None}
    return watch.measure(average, recipe.seed, data.class_numbers, data.real, device)


def words(row: dict[str, Any]) -> str:
    """What the progress bar says of a tick."""
    if row["quality"] is None:
        return "quality: too few images to say"
    return f"quality {row['quality']:.1f} x two real halves (1 is best), diversity {row['diversity']:.0%}"


@dataclass
class Means:
    """Means since the last tick; raises when nothing finite came for too long."""

    sums: dict[str, list[float]] = field(default_factory=dict)
    faults: int = 0

    def add(self, values: dict[str, float]) -> None:
        finite = all(math.isfinite(value) for value in values.values())
        self.faults = 0 if finite else self.faults + 1
        if self.faults > LONGEST_FAULT:
            raise RuntimeError(
                "training lost its footing: the losses are not finite numbers any more. Start again in a new folder with another --seed"
            )
        for key, value in values.items() if finite else ():
            self.sums.setdefault(key, []).append(value)

    def take(self) -> dict[str, float | None]:
        """The means, rounded, and start anew."""
        result = {key: float(f"{sum(values) / len(values):.6g}") for key, values in self.sums.items()}
        self.sums = {}
        return {key: result.get(key) for key in ("loss_d", "loss_g", "gap", "r1", "r2")}
