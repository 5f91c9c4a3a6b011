"""Recipe: everything that decides a training run, flat and frozen; one row per family in `RECIPES`."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Recipe:
    """All settings of one run. Zeros marked "chosen" are filled in by the probe from the data and the minutes.

    Attributes:
        name: row of `RECIPES`.
        objective: key of `OBJECTIVES`.
        generator, discriminator: keys of `GENERATORS` and `DISCRIMINATORS`.
        width: channels at the finest level.
        latent: length of z.
        batch: real images per step.
        images: real images shown in the whole run (chosen); all schedules are fractions of it.
        ticks: how often quality is measured, logged and checkpointed in a run (chosen: every 25 s, 6 to 24 times).
        learning_rate, learning_rate_end: Adam's rate, cosine over the burn-in.
        beta2, beta2_end: Adam's second decay; beta1 is 0.
        gamma, gamma_end: weight of R1 + R2 (chosen: .0025 * side^2 / 3 per channel share, to a tenth).
        burn_in: fraction of the run over which the cosines run.
        augment: final probability of each augmentation (chosen from the number of images), reached at the burn-in's end.
        ema_fraction, ema_cap: half-life of the weight average = min(ema_fraction * images seen, ema_cap) images.
        precision: "bf16" or "fp32" (chosen); channels_last, threads: likewise.
        train_images, target, seed: of the data and the command; target is the wished longer side of the grid.
    """

    name: str = "relativistic"
    objective: str = "synthesis"
    generator: str = "strided"
    discriminator: str = "strided"
    width: int = 32
    latent: int = 64
    batch: int = 32
    images: int = 0
    ticks: int = 24
    learning_rate: float = 1e-3
    learning_rate_end: float = 2.5e-4
    beta2: float = 0.9
    beta2_end: float = 0.99
    gamma: float = 0.0
    gamma_end: float = 0.0
    burn_in: float = 0.35
    augment: float = -1.0
    ema_fraction: float = 0.05
    ema_cap: int = 500_000
    precision: str = "fp32"
    channels_last: bool = False
    threads: int = 0
    train_images: int = 0
    target: int = 0
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.images // self.batch)


RECIPES: dict[str, Recipe] = {
    # scansmith train DATASET RUN --minutes 15, two cores, 64 px: see docs/benchmarks.md for the score to expect.
    "relativistic": Recipe(),
}


def penalty_weight(side: int, channels: int) -> float:
    """gamma at the start: .0025 * side^2 for three channels (R3GAN's 256 px value), in proportion to the channels.

    The same picture in three equal channels has a third of the squared gradient norm per channel count, hence the share.
    """
    return 0.0025 * side**2 * channels / 3.0


def augmentation_strength(train_images: int) -> float:
    """Final augmentation probability: .8 at 100 images or fewer, .55 at 1,000, .3 at 10,000, 0 from 160,000 on."""
    return min(0.8, max(0.0, 0.8 - 0.25 * math.log10(max(train_images, 1) / 100.0)))


@dataclass(frozen=True)
class Values:
    """What the schedules say at one moment."""

    learning_rate: float
    beta2: float
    gamma: float
    augment: float
    ema_decay: float


def schedule(recipe: Recipe, images: int) -> Values:
    """The scheduled values after `images` real images: cosine over the burn-in, then constant (Huang 2024, appendix)."""
    progress = min(1.0, images / (recipe.burn_in * recipe.images))
    start = 0.5 * (1.0 + math.cos(math.pi * progress))

    def between(first: float, last: float) -> float:
        return last + (first - last) * start

    half_life = min(recipe.ema_fraction * images, recipe.ema_cap)
    return Values(
        learning_rate=between(recipe.learning_rate, recipe.learning_rate_end),
        beta2=between(recipe.beta2, recipe.beta2_end),
        gamma=between(recipe.gamma, recipe.gamma_end),
        augment=between(0.0, recipe.augment),
        ema_decay=0.5 ** (recipe.batch / half_life) if half_life > 0 else 0.0,
    )
