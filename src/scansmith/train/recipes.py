"""Recipe: everything that decides a training run, flat and frozen; one row per family in `RECIPES`."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

# Shares of a run between which the weight of a translation's judge rises. Regression has gone through its schedule by then, so that
# what is lost afterwards is the judge's price.
ADVERSARY = (0.6, 0.7)


@dataclass(frozen=True)
class Recipe:
    """All settings of one run. What is marked "chosen" is filled in by the probe from the data and the minutes.

    Attributes:
        name: row of `RECIPES`.
        objective: key of `OBJECTIVES`.
        task: "make", what a translator learns (a key of `PAIRINGS`), or "unpaired".
        loss: key of `losses.LOSSES`.
        penalty: of D's gradient: "r1r2", "interpolated" (towards 1, between real and fake) or "none".
        generator, discriminator: keys of `GENERATORS` or `TRANSLATORS` and of `DISCRIMINATORS`; the judge of a translation is "patch".
        size: "tiny", "small", "base" or "large" (chosen); decides the networks and their width, see `SIZES`.
        width: channels at the finest level (strided), or row of the table of widths (residual).
        latent: length of z.
        kinds: whether kinds of images are looked for and told to both networks, see `kinds`.
        batch: real images per step, over all processes.
        images: real images shown in the whole run (chosen); all schedules are fractions of it.
        ticks: how often quality is measured, logged and checkpointed in a run (chosen: every 25 s at most, 4 to 24 times).
        judged: images that a tick judges at most (chosen: fewer in short runs, so that all ticks take 2 % of the time).
        critic_steps: D moves at every step, G at each `critic_steps`-th.
        learning_rate, learning_rate_end: Adam's rate, cosine over the burn-in.
        beta1: Adam's first decay.
        beta2, beta2_end: Adam's second decay.
        gamma, gamma_end: weight of the penalty; below 0 chosen: .0025 * side^2 / 3 per channel, to a tenth.
        adversary: weight of the judge of a translation, which comes on once regression has found the anatomy; 0 is none.
        registered: whether what pairs are apart is learned beside the translation (chosen, from the dataset).
        kl_weight: of the Kullback-Leibler term of a variational autoencoder; 0 is a plain one.
        burn_in: fraction of the run over which the cosines run; after it all is constant.
        augment: final probability of each augmentation, reached at the burn-in's end; below 0 chosen from the number of images.
        ema_fraction, ema_cap: half-life of the weight average = min(ema_fraction * images seen, ema_cap) images; 0: the last weights.
        watch: whether the watchman acts; it always measures.
        patience: a run is stopped when it has been worse than the kept model for this share of it; 0 never.
        precision: "bf16" or "fp32" (chosen); channels_last, threads: likewise.
        compiled: whether G is compiled (chosen, in runs of half an hour or more).
        train_images, target, seed: of the data and the command; target is the wished longer side of the grid.
    """

    name: str = "relativistic"
    objective: str = "synthesis"
    task: str = "make"
    loss: str = "relativistic"
    penalty: str = "r1r2"
    generator: str = "strided"
    discriminator: str = "strided"
    size: str = "tiny"
    width: int = 32
    latent: int = 64
    kinds: bool = False
    batch: int = 16
    images: int = 0
    ticks: int = 24
    judged: int = 256
    critic_steps: int = 1
    learning_rate: float = 1e-3
    learning_rate_end: float = 2.5e-4
    beta1: float = 0.0
    beta2: float = 0.9
    beta2_end: float = 0.99
    gamma: float = -1.0
    gamma_end: float = -1.0
    adversary: float = 0.0
    registered: bool = False
    kl_weight: float = 1.0
    burn_in: float = 1.0
    augment: float = -1.0
    ema_fraction: float = 0.05
    ema_cap: int = 500_000
    watch: bool = True
    patience: float = 0.5
    precision: str = "fp32"
    channels_last: bool = False
    threads: int = 0
    compiled: bool = False
    train_images: int = 0
    target: int = 0
    seed: int = 0

    @property
    def steps(self) -> int:
        return max(1, self.images // self.batch)


# As the article and the papers train, but for augmentation: constant rates, no average, no penalty, nobody who watches.
_PLAIN: dict[str, Any] = {
    "batch": 32,
    "penalty": "none",
    "gamma": 0.0,
    "gamma_end": 0.0,
    "learning_rate": 2e-4,
    "learning_rate_end": 2e-4,
    "beta1": 0.5,
    "beta2": 0.999,
    "beta2_end": 0.999,
    "ema_fraction": 0.0,
    "watch": False,
    "patience": 0.0,
}

_PENALISED_CRITIC: dict[str, Any] = {
    "penalty": "interpolated",
    "gamma": 10.0,
    "gamma_end": 10.0,
    "critic_steps": 5,
    "learning_rate": 1e-4,
    "learning_rate_end": 1e-4,
    "beta1": 0.0,
    "beta2": 0.9,
    "beta2_end": 0.9,
}
_ENCODED: dict[str, Any] = {
    "batch": 32,
    "penalty": "none",
    "gamma": 0.0,
    "gamma_end": 0.0,
    "augment": 0.0,
    "beta1": 0.9,
}

# Adam as published (2e-4, .5), with an average of weights; regression has no part in it.
_UNPAIRED: dict[str, Any] = {
    "batch": 4,
    "loss": "least_squares",
    "penalty": "none",
    "discriminator": "patch",
    "gamma": 0.0,
    "gamma_end": 0.0,
    "augment": 0.0,
    "learning_rate": 4e-4,
    "learning_rate_end": 1e-4,
    "burn_in": 0.3,  # as long as scans are laid on each other, see `unpaired.LAID`
    "beta1": 0.5,
    "beta2": 0.99,
    "beta2_end": 0.99,
    "patience": 0.0,
}

RECIPES: dict[str, Recipe] = {
    # scansmith train DATASET RUN --minutes 15, two cores, 64 px: see docs/benchmarks.md for the score to expect.
    "relativistic": Recipe(kinds=True),
    # The article's pair; no convolution sees that neighbouring pixels belong together. For teaching.
    "dense": Recipe("dense", loss="wasserstein", generator="dense", discriminator="dense", **_PLAIN),
    # Radford 2015: batch norm in both networks.
    "dcgan": Recipe("dcgan", loss="non_saturating", generator="dcgan", discriminator="dcgan", **_PLAIN),
    # The strided pair with another loss and nothing else, so that the loss is what is compared.
    "minimax": Recipe("minimax", loss="minimax", **_PLAIN),
    "non_saturating": Recipe("non_saturating", loss="non_saturating", **_PLAIN),
    "least_squares": Recipe("least_squares", loss="least_squares", **_PLAIN),
    "hinge": Recipe("hinge", loss="hinge", **_PLAIN),
    # Gulrajani 2017, algorithm 1: five steps of D for one of G, weight 10, Adam (0, .9) at 1e-4.
    "wasserstein": Recipe("wasserstein", loss="wasserstein", **_PLAIN | _PENALISED_CRITIC),
    # Kingma 2014 with the variance that is optimal for a batch (Rybkin 2021); without D nothing needs augmentation.
    "vae": Recipe("vae", "autoencoding", generator="autoencoder", discriminator="", **_ENCODED),
    "autoencoder": Recipe(
        "autoencoder", "autoencoding", generator="autoencoder", discriminator="", kl_weight=0.0, **_ENCODED
    ),
    # Regression, no adversary: scansmith train DATASET RUN where scans are paired. Batches of 4 patches reach after 5,000 of them what
    # batches of 8 do not (48.7 and 50.3 HU on phantoms, docs/log.md).
    "fidelity": Recipe(
        "fidelity", "translation", "paired", generator="unet", discriminator="", **_ENCODED | {"batch": 4}
    ),
    # The same, with a judge of texture once regression is done; what that costs is measured.
    "realism": Recipe(
        "realism",
        "translation",
        "paired",
        generator="unet",
        discriminator="patch",
        adversary=0.1,
        burn_in=ADVERSARY[0],
        loss="least_squares",
        **_ENCODED | {"batch": 4},
    ),
    # Image to label map: scansmith train DATASET RUN --task segment where scans have masks.
    "segment": Recipe(
        "segment", "segmentation", "segment", generator="unet", discriminator="", **_ENCODED | {"batch": 4}
    ),
    # Without pairs (Park 2020): scansmith train DATASET RUN --to OTHER.
    "contrastive": Recipe("contrastive", "contrastive", "unpaired", generator="resnet", **_UNPAIRED),
    # The same with a way back (Zhu 2017), which is saved as RUN/inverse.
    "cycle": Recipe("cycle", "cycle", "unpaired", generator="resnet", **_UNPAIRED),
}

# Task -> the recipe it is learned with unless another is named; tasks with the same one may change recipes.
USUAL = {
    "make": "relativistic", "paired": "fidelity", "denoise": "fidelity", "superresolve": "fidelity", "paint": "fidelity",
    "segment": "segment", "unpaired": "contrastive",
}  # fmt: skip

# size -> (family of the pair, width). The strided pair, whose steps are cheap, for short runs, the residual pair for long ones.
SIZES: dict[str, tuple[str, int]] = {
    "tiny": ("strided", 32),
    "small": ("strided", 64),
    "base": ("residual", 384),
    "large": ("residual", 768),
}
WIDTHS = {"tiny": 32, "small": 64, "base": 96, "large": 128}  # of networks that come in one family
UNET_WIDTHS = {"tiny": 16, "small": 32, "base": 48, "large": 64}  # channels at full resolution


def makers() -> list[str]:
    """The recipes that make images from noise or codes; the others translate."""
    return [name for name, recipe in RECIPES.items() if recipe.task == "make"]


def chosen(task: str, name: str, pairs: bool, other: bool) -> Recipe:
    """The recipe for a task.

    Args:
        task: key of `USUAL`; "auto" is what the named recipe is for, else `paired` where scans are, `unpaired` where there is
            another dataset, and else `make`.
        name: row of `RECIPES`, or "auto".
        pairs: whether the scans of the dataset are paired.
        other: whether another dataset is given, to translate to.

    Raises:
        ValueError: there is no such row or task, or they do not fit each other.
    """
    if name != "auto" and name not in RECIPES:
        raise ValueError(f"expected a recipe of {sorted(RECIPES)}, got {name!r}")
    if task == "auto":
        task = RECIPES[name].task if name != "auto" else "unpaired" if other else "paired" if pairs else "make"
    if task not in USUAL:
        raise ValueError(f"expected a task of {['auto', *USUAL]}, got {task!r}")
    if other != (task == "unpaired"):
        found = f"{'one' if other else 'none'} with the task {task!r}"
        raise ValueError(f"expected another dataset (--to) for the task 'unpaired' and no other, found {found}")
    recipe = RECIPES[USUAL[task] if name == "auto" else name]
    if recipe.objective not in fitting(task):
        fit = [name for name, row in RECIPES.items() if row.objective in fitting(task)]
        raise ValueError(f"expected a recipe for the task {task!r}, one of {fit}, got {name!r}")
    return replace(recipe, task=task)


def fitting(task: str) -> set[str]:
    """The objectives that a task can be learned with."""
    return {row.objective for row in RECIPES.values() if USUAL[row.task] == USUAL[task]}


def resized(recipe: Recipe, size: str) -> Recipe:
    """The recipe with the networks of a size.

    Raises:
        ValueError: there is no such size.
    """
    if size not in SIZES:
        raise ValueError(f"expected a size of {['auto', *SIZES]}, got {size!r}")
    if (recipe.generator, recipe.discriminator) != ("strided", "strided"):
        return replace(
            recipe, size=size, width=(UNET_WIDTHS if recipe.generator in ("unet", "resnet") else WIDTHS)[size]
        )
    family, width = SIZES[size]
    return replace(recipe, size=size, generator=family, discriminator=family, width=width)


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
    adversary: float = 0.0


def schedule(recipe: Recipe, images: int) -> Values:
    """The scheduled values after `images` real images: cosine over the burn-in, then constant (Huang 2024, appendix)."""
    progress = min(1.0, images / (recipe.burn_in * recipe.images))
    start = 0.5 * (1.0 + math.cos(math.pi * progress))

    def between(first: float, last: float) -> float:
        return last + (first - last) * start

    onset, full = ADVERSARY
    half_life = min(recipe.ema_fraction * images, recipe.ema_cap)
    return Values(
        learning_rate=between(recipe.learning_rate, recipe.learning_rate_end),
        beta2=between(recipe.beta2, recipe.beta2_end),
        gamma=between(recipe.gamma, recipe.gamma_end),
        augment=between(0.0, recipe.augment),
        ema_decay=0.5 ** (recipe.batch / half_life) if half_life > 0 else 0.0,
        adversary=recipe.adversary * min(1.0, max(0.0, (images / recipe.images - onset) / (full - onset))),
    )
