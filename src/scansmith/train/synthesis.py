"""Objective `synthesis`: noise to image, D and G in turns, with any loss of `LOSSES` and a penalty on D's gradient."""

from __future__ import annotations

from dataclasses import fields
from itertools import repeat

import torch
from torch import Tensor, nn

from .. import augment
from ..losses import LOSSES, interpolated_penalty, scores_and_penalty
from ..networks import DISCRIMINATORS, GENERATORS
from ..networks.blocks import Shares, latent, layout_of, take_statistics
from ..preprocess import Grid
from . import watch
from .objective import Batch, Objective, Task
from .recipes import Recipe

# Latents from which batch norm's statistics are taken: at a tick, and at the end, there fewer of images above 64 x 64.
SETTLING, SETTLING_LAST, LAST_VALUES = 128, 4096, 4096 * 64 * 64


class Synthesis(Objective):
    """G and D of one run. `discriminator_loss` draws the fakes once; `generator_loss` of the same batch uses them again."""

    players = ("discriminator", "generator")
    model = "generator"

    def __init__(self, recipe: Recipe, task: Task, grid: Grid, kinds: Shares = ()) -> None:
        super().__init__()
        shape = {"channels": task.channels, "base": grid.base, "doublings": grid.doublings}
        self.generator_arguments = {**shape, "width": recipe.width, "latent": recipe.latent, "classes": task.classes}
        if kinds:
            self.generator_arguments["kinds"] = kinds
        self.generator = GENERATORS[recipe.generator](**self.generator_arguments)
        told = sum(map(len, kinds)) or task.classes
        self.discriminator = DISCRIMINATORS[recipe.discriminator](**shape, width=recipe.width, classes=told)
        self.d_loss, self.g_loss, self.kinds = *LOSSES[recipe.loss], kinds
        self.penalty, self.precision, self.averages = recipe.penalty, recipe.precision, recipe.ema_fraction > 0
        self._fake: Tensor | None = None

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of D, with its penalty, and what to log of it."""
        with torch.set_grad_enabled(batch.generator_moves):
            z = batch.z
            if self.kinds:  # each fake is of the kind of the real image that it is paired with
                z = self.generator.prior.within(z, batch.kinds)  # type: ignore[union-attr, operator]
            self._fake = self.generator(z, batch.classes)
        images = augmented(torch.cat([batch.images, self._fake.detach()]), batch, sets=2)
        logged: dict[str, Tensor] = {}
        # The penalty is taken at what D sees, after augmentation: cheaper than behind it, and D's smoothness is its aim.
        if self.penalty == "r1r2":
            told = None if batch.kinds is None else batch.kinds.repeat(2)
            scores, penalty = scores_and_penalty(self.discriminator, images, told)
            (real, fake), (r1, r2) = scores.chunk(2), penalty.chunk(2)
            extra = batch.gamma / 2.0 * (r1.mean() + r2.mean())  # Huang 2024, eq. 4
            logged = {"r1": r1.mean(), "r2": r2.mean()}
        else:
            real, fake = self.pair(images, batch.kinds)
            extra = torch.zeros((), device=images.device)
            if self.penalty == "interpolated":
                halves = images.chunk(2)
                between = interpolated_penalty(
                    self.discriminator, halves[0], halves[1], batch.kinds, batch.random, batch.whole, batch.part
                )
                logged, extra = {"r1": between.mean()}, batch.gamma * between.mean()
        adversarial = self.d_loss(real, fake)
        logged |= {"loss_d": adversarial, "gap": (real - fake).mean()}
        return adversarial + extra, {name: value.detach() for name, value in logged.items()}

    def generator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of G. D's weights take no gradient here: the caller switches them off."""
        assert self._fake is not None, "discriminator_loss comes first: it makes the fakes"
        # Scored anew after D's step: what D adds to all scores alike is free under a relativistic loss, and wanders.
        with torch.no_grad():
            real = self.discriminator(augmented(batch.images, batch), batch.kinds)
        fake = self.discriminator(augmented(self._fake, batch), batch.kinds)
        self._fake = None
        loss = self.g_loss(real, fake)
        return loss, {"loss_g": loss.detach()}

    def settle(self, average: nn.Module, images: Tensor, classes: Tensor | None, last: bool = False) -> None:
        """Batch norm's statistics for averaged weights, over fixed latents and the classes of the given training images."""
        if not self.averages:
            return
        values = images[0].numel()
        count = max(SETTLING, min(SETTLING_LAST, LAST_VALUES // values)) if last else SETTLING
        z = latent(0, count, average.latent).to(images.device)  # type: ignore[arg-type]
        chosen = None if classes is None else classes.repeat(-(-count // len(classes)))[:count].to(images.device)
        size = watch.at_once(values)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.precision == "bf16"):
            take_statistics(average, zip(z.split(size), repeat(None) if chosen is None else chosen.split(size)))

    @property
    def judge(self) -> nn.Module:
        return self.discriminator

    def seen(self, images: Tensor, augment: float, random: torch.Generator) -> Tensor:
        """Images under the augmentation, as in training."""
        return augmented(images, Batch(images, None, None, images, 0.0, augment, random))

    def pair(self, images: Tensor, kinds: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores of the real and of the fake half; apart where D normalises over the batch, as published."""
        if getattr(self.discriminator, "one_batch", True):
            real, fake = self.discriminator(images, None if kinds is None else kinds.repeat(2)).chunk(2)
        else:
            real, fake = (self.discriminator(half, kinds) for half in images.chunk(2))
        return real, fake


def augmented(images: Tensor, batch: Batch, sets: int = 1) -> Tensor:
    """Images of `sets` batches as D sees them, in the memory layout of the batch."""
    if batch.augment > 0.0:
        dimensions = images.ndim - 2
        drawn = augment.draw(sets * (batch.whole or len(batch.images)), batch.augment, batch.random, dimensions)
        if batch.whole is not None:
            own = batch.positions(sets)
            drawn = augment.Draw(**{item.name: getattr(drawn, item.name)[own] for item in fields(drawn)})
        images = augment.apply(images, drawn)
    return images.to(memory_format=layout_of(batch.images))
