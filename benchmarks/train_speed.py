"""Training images/s at 64 px against the plain way: same networks, batch, threads and exact R1 + R2, in turns in one process.

    python benchmarks/train_speed.py [--rounds 12] [--batch 16] [--device cpu] [--compile]

The plain way is eager, float32 and NCHW, upsamples then convolves, takes the penalty's gradient by double backpropagation,
and draws new fakes for each player. Each row adds one thing to the row above, up to what `scansmith train` runs.
Also printed: what drawing a batch from the memory map costs, in per cent of a step.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from scansmith import losses
from scansmith.dataset import Level
from scansmith.networks.blocks import UpConv
from scansmith.runtime import choose_device, cpu_count
from scansmith.train import feed, loop
from scansmith.train.objective import Batch, Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group
from scansmith.train.recipes import RECIPES, Recipe, Values, schedule
from scansmith.train.synthesis import augmented
from scansmith.train.watchman import Watchman

SIDE = 64
OURS = "+ both players on the same fakes = scansmith train"
FREE = "the last row without its penalty"
COMPILED = "scansmith train with a compiled generator"


class PlainUpConv(UpConv):
    """The same weights, computed as written in the papers: nearest upsampling, then a 3x3 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), self.weight, self.bias, padding=1)


class Training:
    """Whole steps as `scansmith train` makes them: both players on the same fakes, then the average of G's weights.

    Attributes:
        seconds: of each step so far; drawing: of them, until its batch was drawn.
    """

    def __init__(self, recipe: Recipe, data: feed.Images, device: torch.device, fused_up: bool = True) -> None:
        torch.manual_seed(0)
        self.recipe, self.data, self.group = recipe, data, Group(device=device)
        task = Task(1, data.level.array.shape[2:], 0, recipe.train_images)
        self.objective = OBJECTIVES["synthesis"](recipe, task, task.grid(recipe.target))
        if not fused_up:
            for up in self.objective.generator.ups:
                up.__class__ = PlainUpConv
        loop.prepare_machine(self.objective, recipe, device)
        self.average = copy.deepcopy(self.objective.generator).requires_grad_(False)
        self.optimizers = {name: loop.adam(network, recipe) for name, network in loop.players(self.objective).items()}
        self.watchman = Watchman(recipe)
        self.seconds: list[float] = []
        self.drawing: list[float] = []

    def step(self, number: int) -> None:
        start = time.perf_counter()
        now = schedule(self.recipe, self.recipe.images)
        batch = self.data.draw(self.recipe, number, self.group, now)
        self.drawing.append(time.perf_counter() - start)
        self.update(batch, now)
        loop.follow(self.average, self.objective.generator, now.ema_decay)
        if self.group.device.type == "cuda":
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - start)

    def update(self, batch: Batch, now: Values) -> None:
        """Both players."""
        for name, optimizer in self.optimizers.items():
            loop.update(name, batch, self.objective, optimizer, self.recipe, now, self.group, self.watchman)


class PlainTraining(Training):
    """The same networks moved as a textbook writes it: new fakes for each player; the penalty by double backpropagation or not."""

    def __init__(
        self,
        recipe: Recipe,
        data: feed.Images,
        device: torch.device,
        fused_up: bool = False,
        closed_form: bool = False,
    ) -> None:
        super().__init__(recipe, data, device, fused_up)
        self.closed_form = closed_form

    def update(self, batch: Batch, now: Values) -> None:
        g, d = self.objective.generator, self.objective.discriminator
        d.requires_grad_(True)
        mixed = torch.autocast(self.group.device.type, torch.bfloat16, enabled=self.recipe.precision == "bf16")
        with mixed:
            with torch.no_grad():
                fake = g(batch.z)
            images = augmented(torch.cat([batch.images, fake]), batch, sets=2).requires_grad_(True)
            if self.closed_form:
                scores, penalty = d.scores_and_penalty(images)
            else:
                scores = d(images)
                penalty = losses.gradient_penalty(scores, images)
            loss = losses.relativistic_discriminator(*scores.chunk(2)) + now.gamma / 2.0 * sum(
                part.mean() for part in penalty.chunk(2)
            )
        self.move("discriminator", loss, now)
        d.requires_grad_(False)
        with mixed:
            images = augmented(torch.cat([batch.images, g(batch.z)]), batch, sets=2)
            loss = losses.relativistic_generator(*d(images).chunk(2))
        self.move("generator", loss, now)

    def move(self, name: str, loss: Tensor, now: Values) -> None:
        optimizer = self.optimizers[name]
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.param_groups[0].update(lr=now.learning_rate, betas=(0.0, now.beta2))
        optimizer.step()


def noise(count: int, side: int) -> np.ndarray:
    """uint8 (count, 1, side, side)."""
    return np.random.default_rng(0).integers(0, 256, (count, 1, side, side), np.uint8)


def images_of(stored: np.ndarray) -> feed.Images:
    """What is trained on, from uint8 (N, 1, H, W)."""
    count = len(stored)
    level = Level(stored, np.zeros(count, np.float32), np.full(count, 255, np.float32))
    return feed.Images(level, np.arange(count), None, None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=RECIPES["relativistic"].batch)
    parser.add_argument("--device", default="auto")
    parser.add_argument(
        "--compile", action="store_true", help="a row with a compiled generator, and how long that takes"
    )
    options = parser.parse_args()
    device = choose_device(options.device)
    threads = cpu_count() if device.type == "cpu" else 0
    recipe = replace(
        RECIPES["relativistic"],
        batch=options.batch,
        images=10**6,
        gamma=3.4,
        gamma_end=0.34,
        augment=0.5,
        threads=threads,
        train_images=20,
        target=SIDE,
    )
    fast = replace(recipe, precision="bf16", channels_last=True)
    with tempfile.TemporaryDirectory() as folder:
        np.save(Path(folder) / "level.npy", noise(8000, SIDE))
        data = images_of(np.load(Path(folder) / "level.npy", mmap_mode="r"))
        arms: dict[str, Training] = {
            "plain: eager, fp32, NCHW": PlainTraining(recipe, data, device),
            "+ channels-last": PlainTraining(replace(recipe, channels_last=True), data, device),
            "+ bf16": PlainTraining(fast, data, device),
            "+ upsampling folded into one transposed convolution": PlainTraining(fast, data, device, fused_up=True),
            "+ closed-form penalty": PlainTraining(fast, data, device, fused_up=True, closed_form=True),
            OURS: Training(fast, data, device),
            FREE: Training(replace(fast, penalty="none"), data, device),
        }
        if options.compile:
            arms[COMPILED] = Training(replace(fast, compiled=True), data, device)
            start = time.perf_counter()
            arms[COMPILED].step(0)
            print(f"first step of the compiled generator: {time.perf_counter() - start:.0f} s")
        for number in range(options.rounds + 2):
            for arm in arms.values():
                arm.step(number)
        batches = [
            timed(lambda number=number: data.level.batch(data.rows[data.positions(recipe, number)]))
            for number in range(200)
        ]
    report(arms, batches, recipe, device, threads)


def timed(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def report(
    arms: Mapping[str, Training], batches: Sequence[float], recipe: Recipe, device: torch.device, threads: int
) -> None:
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, {device}, {threads or '-'} threads, torch {torch.__version__}, batch {recipe.batch}, {SIDE} px"
    )
    medians = {name: statistics.median(arm.seconds[2:]) for name, arm in arms.items()}
    first = next(iter(medians.values()))
    print(f"{'':54s}{'images/s':>10s}{'ratio':>8s}")
    for name, median in medians.items():
        print(f"{name:54s}{recipe.batch / median:10.1f}{first / median:8.2f}")
    last = medians[OURS]
    print(f"a step with the penalty over one without it: {last / medians[FREE]:.2f}")
    print(
        f"drawing a batch from the memory map: {1e3 * statistics.median(batches):.2f} ms, {100 * statistics.median(batches) / last:.2f} % of a step of scansmith train"
    )


if __name__ == "__main__":
    main()
