"""Objective `synthesis`: noise to image, relativistic pairing loss with R1 + R2 on every step (Huang 2024, eq. 2 to 4)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import augment
from ..losses import relativistic_discriminator, relativistic_generator, scores_and_penalty
from ..networks import DISCRIMINATORS, GENERATORS
from ..preprocess import Grid
from .recipes import Recipe


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    Attributes:
        images: (B, C, H, W) float32 in [-1, 1].
        classes: (B,) int64 or None.
        z: (B, latent).
        gamma: weight of the penalties; augment: probability of each augmentation.
        random: the step's own generator, on the CPU.
    """

    images: Tensor
    classes: Tensor | None
    z: Tensor
    gamma: float
    augment: float
    random: torch.Generator


class Synthesis(nn.Module):
    """G and D of one run. `discriminator_loss` draws the fakes once; `generator_loss` of the same batch uses them again."""

    def __init__(self, recipe: Recipe, channels: int, grid: Grid, classes: int) -> None:
        super().__init__()
        shape = {"channels": channels, "base": (grid.base_height, grid.base_width), "doublings": grid.doublings}
        self.generator_arguments = {**shape, "width": recipe.width, "latent": recipe.latent, "classes": classes}
        self.generator = GENERATORS[recipe.generator](**self.generator_arguments)
        self.discriminator = DISCRIMINATORS[recipe.discriminator](**shape, width=recipe.width, classes=classes)
        self._fake: Tensor | None = None

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """E softplus(-(D(x) - D(G(z)))) + gamma/2 (R1 + R2), and what to log of it."""
        self._fake = self.generator(batch.z, batch.classes)
        images = self._augmented(torch.cat([batch.images, self._fake.detach()]), batch)
        classes = None if batch.classes is None else batch.classes.repeat(2)
        # The penalty is taken at what D sees, after augmentation: cheaper than behind it, and D's smoothness is its aim.
        scores, penalty = scores_and_penalty(self.discriminator, images, classes)
        (real, fake), (r1, r2) = scores.chunk(2), penalty.chunk(2)
        adversarial = relativistic_discriminator(real, fake)
        loss = adversarial + batch.gamma / 2.0 * (r1.mean() + r2.mean())
        logged = {"loss_d": adversarial, "gap": (real - fake).mean(), "r1": r1.mean(), "r2": r2.mean()}
        return loss, {name: value.detach() for name, value in logged.items()}

    def generator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """E softplus(-(D(G(z)) - D(x))). D's weights take no gradient here: the caller switches them off."""
        assert self._fake is not None, "discriminator_loss comes first: it makes the fakes"
        with torch.no_grad():
            real = self.discriminator(self._augmented(batch.images, batch), batch.classes)
        fake = self.discriminator(self._augmented(self._fake, batch), batch.classes)
        self._fake = None
        loss = relativistic_generator(real, fake)
        return loss, {"loss_g": loss.detach()}

    @staticmethod
    def _augmented(images: Tensor, batch: Batch) -> Tensor:
        layout = (
            torch.channels_last
            if batch.images.is_contiguous(memory_format=torch.channels_last)
            else torch.contiguous_format
        )
        if batch.augment > 0.0:
            images = augment.apply(images, augment.draw(len(images), batch.augment, batch.random))
        return images.contiguous(memory_format=layout)
