"""What is learned from: the images of one training on their grid, a batch for each step, and what is seen of them at a tick."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..dataset import Level
from ..networks.blocks import CHANNELS_LAST
from ..runtime import derive_seed
from . import watch
from .objective import Batch, Objective
from .parallel import Group
from .recipes import Recipe, Values

# Fréchet distance over that of real images -> how it is called.
NAMED = ((1.3, "as real images among themselves"), (2.0, "near"), (5.0, "some way off"), (math.inf, "far off"))


class Feed(Protocol):
    """What the loop learns from; one class per kind of data."""

    @property
    def rows(self) -> np.ndarray:
        """(N,) the training rows."""

    def counts(self, classes: int) -> list[int]:
        """Images of each of so many classes; [] without classes."""

    def draw(self, recipe: Recipe, step: int, group: Group, now: Values) -> Batch:
        """This process's part of the batch of one step: a function of the seed and the step alone."""

    def typical(self, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """What an averaged model is settled with: images and their classes."""

    def observe(
        self,
        objective: Objective,
        average: nn.Module,
        recipe: Recipe,
        run: Path,
        images: int,
        now: Values,
        device: torch.device,
    ) -> dict[str, Any]:
        """A tick: "score" with "score_error", by which the kept model is chosen (less is better), "quality", "reference", ..."""

    def words(self, row: dict[str, Any], health: str) -> str:
        """What the progress bar says of a tick's row and the watchman's `health`."""

    def says(self, network: nn.Module, device: torch.device) -> dict[str, Any]:
        """What the model's config.json has to say besides, now that training is over."""


def epochs(count: int, recipe: Recipe, step: int) -> np.ndarray:
    """Positions among `count` rows of one step, (batch,): epochs without repetition."""
    start = step * recipe.batch
    numbers = range(start // count, (start + recipe.batch - 1) // count + 1)
    order = np.concatenate(
        [np.random.default_rng(derive_seed(recipe.seed, "epoch", epoch)).permutation(count) for epoch in numbers]
    )
    first = start - numbers[0] * count
    return order[first : first + recipe.batch]


@dataclass(frozen=True)
class Images:
    """Training images of an objective that makes images.

    Attributes:
        level: every image of the dataset on the training grid.
        rows: (N,) the training rows in it.
        classes: (N,) class number of each of `rows`, or None.
        real: what quality is measured against at every tick, or None.
        kinds: (N,) what D is told of each of `rows`, see `kinds.find`; None: its class.
        tick_classes: classes of the samples of a tick, one after the other and again; (): each as often.
    """

    level: Level
    rows: np.ndarray
    classes: np.ndarray | None
    real: watch.Reference | None
    kinds: np.ndarray | None = None
    tick_classes: Sequence[int] = ()

    @property
    def class_numbers(self) -> list[int]:
        return [] if self.classes is None else sorted(set(self.classes.tolist()))

    def counts(self, classes: int) -> list[int]:
        """Images of each of so many classes; [] without classes."""
        return [] if self.classes is None else np.bincount(self.classes, minlength=classes).tolist()

    def draw(self, recipe: Recipe, step: int, group: Group, now: Values) -> Batch:
        """This process's part of the batch of one step: a function of the seed and the step alone."""
        part = group.part(recipe.batch)
        chosen = self.positions(recipe, step)[part]
        images = torch.from_numpy(self.level.batch(self.rows[chosen]))
        if recipe.channels_last:
            images = images.to(memory_format=CHANNELS_LAST[images.ndim - 2])
        random = torch.Generator().manual_seed(derive_seed(recipe.seed, "step", step))
        z = torch.randn(recipe.batch, recipe.latent, generator=random)[part]
        classes = None if self.classes is None else torch.from_numpy(self.classes[chosen]).to(group.device)
        kinds = classes if self.kinds is None else torch.from_numpy(self.kinds[chosen]).to(group.device)
        return Batch(
            images.to(group.device, non_blocking=True), classes, kinds, z.to(group.device), now.gamma, now.augment, random,
            whole=recipe.batch if group.size > 1 else None, part=part, generator_moves=(step + 1) % recipe.critic_steps == 0,
        )  # fmt: skip

    def positions(self, recipe: Recipe, step: int) -> np.ndarray:
        """Positions in `rows`, (batch,): epochs without repetition, or with classes by the square root of their counts."""
        count = len(self.rows)
        if self.classes is None:
            return epochs(count, recipe, step)
        _, inverse, counts = np.unique(self.classes, return_inverse=True, return_counts=True)
        weight = (counts**-0.5)[inverse]
        random = np.random.default_rng(derive_seed(recipe.seed, "rows", step))
        return random.choice(count, recipe.batch, p=weight / weight.sum())

    def typical(self, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Up to 512 images and their classes, in the mixture that training draws; a dataset lies in order of folders."""
        typical = replace(recipe, batch=min(len(self.rows), 512), seed=derive_seed(recipe.seed, "typical"))
        chosen = self.positions(typical, 0)
        shown = torch.from_numpy(self.level.batch(self.rows[chosen])).to(device)
        return shown, None if self.classes is None else torch.from_numpy(self.classes[chosen])

    def observe(
        self,
        objective: Objective,
        average: nn.Module,
        recipe: Recipe,
        run: Path,
        images: int,
        now: Values,
        device: torch.device,
    ) -> dict[str, Any]:
        """A tick: what the averaged model is worth now, and its sample sheet."""
        began = time.monotonic()
        objective.settle(average, *self.typical(recipe, device))
        count = max(64, 0 if self.real is None else len(self.real.features))
        # In the precision of training: a fifth off the tick, and D sees no finer ones either.
        classes = self.tick_classes or self.class_numbers
        with torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            made = watch.samples(average, recipe.seed, count, classes, device, spread=True)
            sheet = made[:64]
            if self.tick_classes:  # rare classes are to be seen, too
                sheet = watch.samples(average, recipe.seed, 64, self.class_numbers, device, spread=True)
        watch.save_sheet(run / "samples" / f"{images:09d}.png", sheet)
        row: dict[str, Any] = {"quality": None, "diversity": None}
        if self.real is not None:
            scores = scoring(objective, recipe, images, now)
            row = watch.measure(average, recipe.seed, classes, self.real, device, scores, made)
        return {**row, "watch_s": round(time.monotonic() - began, 3)}

    def words(self, row: dict[str, Any], health: str) -> str:
        """Quality and diversity beside those of real images, and health."""
        quality = row["quality"]
        if quality is None:
            return f"quality: too few images to say, {health}"
        name = next(name for limit, name in NAMED if quality < limit or limit == math.inf)
        return f"quality {quality:.1f} ({name}), diversity {row['diversity']:.0%} of real, {health}"

    def says(self, network: nn.Module, device: torch.device) -> dict[str, Any]:
        """Nothing."""
        return {}


def scoring(objective: Objective, recipe: Recipe, images: int, now: Values) -> watch.Scores | None:
    """The judge's scores of any images under the present augmentation; None without a judge."""
    judge = objective.judge
    if judge is None:
        return None

    def scores(shown: Tensor, kinds: Tensor | None) -> Tensor:
        # The same draws for every set that is asked about.
        random = torch.Generator().manual_seed(derive_seed(recipe.seed, "scores", images))
        training = judge.training
        judge.eval()  # batch norm must not learn from what it is asked
        found: Tensor = judge(objective.seen(shown, now.augment, random), kinds)
        judge.train(training)
        return found

    return scores
