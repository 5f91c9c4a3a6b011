"""The probe: times real steps on this machine and settles precision, layout, threads, size and length of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..dataset import Level
from ..preprocess import Grid
from ..runtime import cpu_count
from . import loop
from .objectives import OBJECTIVES
from .recipes import Recipe, augmentation_strength, penalty_weight, schedule

SIDES = (32, 64, 128, 256, 512)
# A grid is taken only if the minutes show this many images per pixel of its longer side: below, sharper is not better.
# Measured at 64 px: 20,000 hands are recognisable, with different poses (docs/log.md).
IMAGES_PER_PIXEL = 20_000 / 64
OVERHEAD = 0.05  # share of the training time that ticks take: samples, features, sheet, checkpoint


@dataclass(frozen=True)
class Task:
    """What the data fix: (channels, height, width) of the stored images, classes, number of training images."""

    channels: int
    height: int
    width: int
    classes: int
    train_images: int

    def grid(self, target: int) -> Grid:
        """The training grid whose longer side is near `target`."""
        return Grid.choose(self.height, self.width, target)


@dataclass(frozen=True)
class Probe:
    """What the probe found.

    Attributes:
        recipe: whole but for its length.
        step_s: seconds of one step.
        reasons: why, in words.
    """

    recipe: Recipe
    step_s: float
    reasons: tuple[str, ...]

    def images_in(self, seconds: float) -> int:
        """Images that so many seconds of training show, ticks taken off."""
        return int(seconds * (1.0 - OVERHEAD) / self.step_s) * self.recipe.batch

    def lasting(self, images: int) -> tuple[Recipe, list[str]]:
        """The whole recipe for a run of `images`, at least one step per tick, and all reasons."""
        recipe = replace(self.recipe, images=max(images, self.recipe.ticks * self.recipe.batch))
        times = recipe.images / max(recipe.train_images, 1)
        length = f"{recipe.images:,} images shown ({times:.0f} times each of {recipe.train_images:,}), about {recipe.images / self.recipe.batch * self.step_s / 60:.1f} min at {self.recipe.batch / self.step_s:.0f} images/s"
        return recipe, [*self.reasons, length]


def probe(base: Recipe, task: Task, seconds: float, side: int | None, device: torch.device) -> Probe:
    """Settle all but the length of a run by timing real steps, within about 2 % of the time, 12 s at most.

    Args:
        base: a row of `RECIPES` with the seed.
        seconds: for training; decides the grid.
        side: longer side of the training grid; None lets the minutes decide.
    """
    native = max(task.height, task.width)
    base = replace(base, ticks=max(6, min(base.ticks, int(seconds / 25.0))))
    first = for_grid(base, task, min(side or 64, native))
    recipe, step_s = fastest_machine(first, task, device, budget_s=min(9.0, 0.012 * seconds))
    layout = "channels-last" if recipe.channels_last else "NCHW"
    reasons = [f"{recipe.precision}, {layout}, {recipe.threads or 'default'} threads: the fastest this machine offers"]
    target = first.target if side else affordable(task, first.target, recipe.batch / step_s, seconds)
    if target != first.target:
        recipe = for_grid(
            replace(base, precision=recipe.precision, channels_last=recipe.channels_last, threads=recipe.threads),
            task,
            target,
        )
        step_s = time_step(recipe, task, device, budget_s=min(5.0, 0.006 * seconds))
    grid = task.grid(target)
    why = "as asked" if side else reason_for(target, recipe.batch / step_s * seconds * (1.0 - OVERHEAD))
    reasons.append(f"{grid.height} x {grid.width} pixels (stored: {task.height} x {task.width}): {why}")
    reasons.append(
        f"gamma {recipe.gamma:.3g} -> {recipe.gamma_end:.3g} for this grid; "
        f"augmentation up to {recipe.augment:.2f} for {task.train_images:,} training images"
    )
    return Probe(recipe, step_s, tuple(reasons))


def for_grid(base: Recipe, task: Task, target: int) -> Recipe:
    """The recipe with what follows from data and grid: penalty weight, augmentation, batch."""
    grid = task.grid(target)
    side = max(grid.height, grid.width)
    gamma = base.gamma or penalty_weight(side, task.channels)
    return replace(
        base,
        target=target,
        train_images=task.train_images,
        gamma=gamma,
        gamma_end=base.gamma_end or gamma / 10.0,
        augment=base.augment if base.augment >= 0 else augmentation_strength(task.train_images),
        batch=base.batch if side <= 128 else base.batch // 2,
    )


def affordable(task: Task, timed: int, rate: float, seconds: float) -> int:
    """The largest target on which the time shows enough images; a step's time goes with the pixels."""
    native = max(task.height, task.width)
    targets = sorted({min(side, native) for side in SIDES})

    def images(target: int) -> float:
        return rate * task.grid(timed).pixels / task.grid(target).pixels * seconds * (1.0 - OVERHEAD)

    return max((target for target in targets if images(target) >= IMAGES_PER_PIXEL * target), default=targets[0])


def reason_for(target: int, images: float) -> str:
    """Why this grid, in words."""
    needed = f"{IMAGES_PER_PIXEL * target:,.0f} images"
    if images < IMAGES_PER_PIXEL * target:
        return f"the smallest grid, though the minutes do not show the {needed} that it needs: more minutes are better"
    return f"the largest grid on which the minutes show enough images ({needed})"


def fastest_machine(recipe: Recipe, task: Task, device: torch.device, budget_s: float) -> tuple[Recipe, float]:
    """The fastest of bf16 and fp32, channels-last and NCHW, all or half the cores, and its seconds a step.

    The candidates take turns, so that a busy moment of the machine meets all alike. Each is judged by the lower quartile of
    its steps, since other work only ever adds time. What fails here, or is three times slower, is left out.
    """
    cores = cpu_count() if device.type == "cpu" else 0
    plain = replace(recipe, precision="fp32", channels_last=False, threads=cores)
    candidates = [plain, replace(plain, channels_last=True), replace(plain, channels_last=True, precision="bf16")]
    if cores >= 4:
        candidates.append(replace(candidates[-1], threads=cores // 2))
    steps = {candidate: stepper(candidate, task, device) for candidate in candidates}
    times: dict[Recipe, list[float]] = {candidate: [] for candidate in candidates}
    began, rounds = time.monotonic(), 0
    while rounds < 4 or time.monotonic() - began < budget_s:
        for candidate in list(steps):
            try:
                seconds = steps[candidate]()
            except RuntimeError:  # an operator without this precision or layout on this machine
                del steps[candidate], times[candidate]
                continue
            if rounds > 0:  # the first step warms up
                times[candidate].append(seconds)
        rounds += 1
        if rounds == 3:
            least = min(min(values) for values in times.values())
            steps = {candidate: step for candidate, step in steps.items() if min(times[candidate]) < 3.0 * least}
    usual = {candidate: quartile(times[candidate]) for candidate in steps}
    fastest = min(usual, key=usual.__getitem__)
    return fastest, usual[fastest]


def time_step(recipe: Recipe, task: Task, device: torch.device, budget_s: float) -> float:
    """Seconds of a whole training step on noise: the lower quartile, after one step of warming up."""
    step, began = stepper(recipe, task, device), time.monotonic()
    times: list[float] = []
    while len(times) < 4 or time.monotonic() - began < budget_s:
        times.append(step())
    return quartile(times[1:])


def quartile(values: list[float]) -> float:
    """The lower quartile."""
    return float(np.quantile(values, 0.25))


def stepper(recipe: Recipe, task: Task, device: torch.device) -> Callable[[], float]:
    """A function that does one whole training step on noise and returns its seconds."""
    grid = task.grid(recipe.target)
    objective = OBJECTIVES[recipe.objective](recipe, task.channels, grid, task.classes)
    loop.prepare_machine(objective, recipe, device)
    optimizers = {name: loop.adam(network) for name, network in loop.players(objective).items()}
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, (recipe.batch, task.channels, grid.height, grid.width))
    level = Level(noise.astype(np.float32), np.full(recipe.batch, -1.0, np.float32), np.ones(recipe.batch, np.float32))
    classes = np.arange(recipe.batch) % task.classes if task.classes else None
    data = loop.Data(level, np.arange(recipe.batch), classes, None)
    timed = replace(recipe, images=10 * recipe.batch)

    def step() -> float:
        if recipe.threads:
            torch.set_num_threads(recipe.threads)
        start = time.perf_counter()
        now = schedule(timed, timed.images)
        batch = loop.draw_batch(timed, 0, data, device, now)
        for name, optimizer in optimizers.items():
            loop.update(name, batch, objective, optimizer, timed.precision, now, device)
        return time.perf_counter() - start

    return step
