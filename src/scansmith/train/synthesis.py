"""Objective `synthesis`: noise to image, D and G in turns, with any loss of `LOSSES` and a penalty on D's gradient."""

from __future__ import annotations

from dataclasses import fields

import torch
from torch import Tensor, nn

from .. import augment
from ..losses import LOSSES, interpolated_penalty, scores_and_penalty
from ..networks import DISCRIMINATORS, GENERATORS
from ..networks.blocks import layout_of
from ..preprocess import Grid
from .objective import Batch, Objective
from .recipes import Recipe


class Synthesis(Objective):
    """G and D of one run. `generator_loss` takes the fakes and the real scores that `discriminator_loss` of its batch made."""

    players = ("discriminator", "generator")
    model = "generator"

    def __init__(self, recipe: Recipe, channels: int, grid: Grid, classes: int) -> None:
        super().__init__()
        shape = {"channels": channels, "base": grid.base, "doublings": grid.doublings}
        self.generator_arguments = {**shape, "width": recipe.width, "latent": recipe.latent, "classes": classes}
        self.generator = GENERATORS[recipe.generator](**self.generator_arguments)
        self.discriminator = DISCRIMINATORS[recipe.discriminator](**shape, width=recipe.width, classes=classes)
        self.d_loss, self.g_loss = LOSSES[recipe.loss]
        self.penalty = recipe.penalty
        self._fake: Tensor | None = None
        self._real_scores: Tensor | None = None

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of D, with its penalty, and what to log of it."""
        with torch.set_grad_enabled(batch.generator_moves):
            self._fake = self.generator(batch.z, batch.classes)
        images = augmented(torch.cat([batch.images, self._fake.detach()]), batch, sets=2)
        logged: dict[str, Tensor] = {}
        # The penalty is taken at what D sees, after augmentation: cheaper than behind it, and D's smoothness is its aim.
        if self.penalty == "r1r2":
            classes = None if batch.classes is None else batch.classes.repeat(2)
            scores, penalty = scores_and_penalty(self.discriminator, images, classes)
            (real, fake), (r1, r2) = scores.chunk(2), penalty.chunk(2)
            extra = batch.gamma / 2.0 * (r1.mean() + r2.mean())  # Huang 2024, eq. 4
            logged = {"r1": r1.mean(), "r2": r2.mean()}
        else:
            real, fake = self.pair(images, batch.classes)
            extra = torch.zeros((), device=images.device)
            if self.penalty == "interpolated":
                halves = images.chunk(2)
                between = interpolated_penalty(self.discriminator, halves[0], halves[1], batch.classes, batch.random)
                logged, extra = {"r1": between.mean()}, batch.gamma * between.mean()
        self._real_scores = real.detach()
        adversarial = self.d_loss(real, fake)
        logged |= {"loss_d": adversarial, "gap": (real - fake).mean()}
        return adversarial + extra, {name: value.detach() for name, value in logged.items()}

    def generator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of G. D's weights take no gradient here: the caller switches them off.

        The real scores are those from before D moved: one step of D does not change what they are compared with
        (docs/log.md), and scoring the real images again would cost a twentieth of a step.
        """
        assert self._fake is not None and self._real_scores is not None, (
            "discriminator_loss comes first: it makes the fakes"
        )
        fake = self.discriminator(augmented(self._fake, batch), batch.classes)
        loss = self.g_loss(self._real_scores, fake)
        self._fake = self._real_scores = None
        return loss, {"loss_g": loss.detach()}

    @property
    def judge(self) -> nn.Module:
        return self.discriminator

    def seen(self, images: Tensor, augment: float, random: torch.Generator) -> Tensor:
        """Images under the augmentation, as in training."""
        return augmented(images, Batch(images, None, images, 0.0, augment, random))

    def pair(self, images: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
        """Scores of the real and of the fake half; apart where D normalises over the batch, as published."""
        if getattr(self.discriminator, "one_batch", True):
            real, fake = self.discriminator(images, None if classes is None else classes.repeat(2)).chunk(2)
        else:
            real, fake = (self.discriminator(half, classes) for half in images.chunk(2))
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
