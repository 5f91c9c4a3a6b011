"""What is measured at every tick: quality, diversity, coverage, copies and overfitting, each beside what real images give."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics import prdc
from ..metrics.energy import energy_distance
from ..metrics.frechet import frechet
from ..metrics.random_conv import SMALLEST, features
from ..networks.blocks import latent
from ..runtime import derive_seed, write_atomic

FEWEST = 16  # below this many images a Fréchet distance says nothing
MOST = 256
FLOOR_DRAWS = 8
SCORED = 64  # images of each kind whose scores the overfitting is read from; more cost as much as the samples
GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
FEWEST_AT_ONCE, VALUES_AT_ONCE = 8, 64 * 64 * 64  # samples made together: 64 of 64 x 64 pixels, fewer of larger ones
MEASURED = ("score", "score_error", "quality", "diversity", "coverage", "recall", "copying")
Scores = Callable[[Tensor, Tensor | None], Tensor]


@dataclass(frozen=True)
class Reference:
    """Real images that the samples are compared with at every tick, and what real images give among themselves.

    Attributes:
        features: (N, 512) of the validation images, or of half the training images where validation has too few.
        floor: distance between N training images and these.
        spread: mean distance of real images from their centre in feature space; apart: of two of them.
        name: "validation" or "train".
        radii: (N,) distance of each to its fifth neighbour.
        train: (M, 512) features of training images; of the other half where validation has too few.
        to_train: median distance of `features` to the nearest of `train`; to_real: to the nearest other of `features`.
        train_images, real_images: up to 64 of both, (n, C, *spatial) float32, with what D is told of them (n,), kind or class, or None.
    """

    features: np.ndarray
    floor: float
    spread: float
    apart: float
    name: str
    radii: np.ndarray
    train: np.ndarray
    to_train: float
    to_real: float
    train_images: Tensor
    real_images: Tensor
    train_kinds: Tensor | None = None
    real_kinds: Tensor | None = None


def reference(
    train: np.ndarray,
    validation: np.ndarray,
    seed: int,
    device: torch.device,
    train_kinds: np.ndarray | None = None,
    validation_kinds: np.ndarray | None = None,
    most: int = MOST,
) -> Reference | None:
    """The reference from encoded images (N, C, *spatial); None when there are too few or they are too small.

    Never sees the holdout. With fewer than 16 validation images the training set is halved, and the name says so. The
    floor is a mean over several draws of training images: one draw of 100 is off by a third. At most `most` images are compared.
    """
    random = np.random.default_rng(derive_seed(seed, "watch"))
    order = random.permutation(len(train))
    train, train_kinds = train[order], None if train_kinds is None else train_kinds[order]
    name = "validation" if len(validation) >= FEWEST else "train"
    half = len(train) // 2
    real, others = (validation, train) if name == "validation" else (train[:half], train[half:])
    real_kinds, other_kinds = validation_kinds, train_kinds
    if name == "train" and train_kinds is not None:
        real_kinds, other_kinds = train_kinds[:half], train_kinds[half:]
    count = min(len(real), len(others), most)
    if count < FEWEST or min(real.shape[2:]) < SMALLEST[real.ndim - 2]:
        return None
    real = real[:count]
    real_features, pool = features(real, device=device), features(others, device=device)
    draws = [pool[random.permutation(len(pool))[:count]] for _ in range(FLOOR_DRAWS)]
    floor = float(np.mean([frechet(draw, real_features) for draw in draws]))
    to_train, to_real = _nearest(real_features, pool), _nearest(real_features)
    spread, apart = _spread(real_features), _apart(real_features)
    if not (floor > 0 and apart > 0):
        return None
    return Reference(
        real_features, floor, spread, apart, name, prdc.radii(real_features), pool, to_train, to_real,
        torch.from_numpy(others[:SCORED]), torch.from_numpy(real[:SCORED]), _first(other_kinds), _first(real_kinds),
    )  # fmt: skip


def _first(kinds: np.ndarray | None) -> Tensor | None:
    return None if kinds is None else torch.from_numpy(np.asarray(kinds[:SCORED]))


def _spread(values: np.ndarray) -> float:
    return float(np.linalg.norm(values - values.mean(axis=0), axis=1).mean())


def _apart(values: np.ndarray) -> float:
    return float(prdc.distances(values, values).sum() / (len(values) * (len(values) - 1)))


def _nearest(values: np.ndarray, others: np.ndarray | None = None) -> float:
    """Median distance of (N, d) features to the nearest of the others, or to the nearest of the rest of themselves."""
    between = prdc.distances(values, values if others is None else others)
    if others is None:
        np.fill_diagonal(between, np.inf)
    return float(np.median(between.min(axis=1)))


def measure(
    generator: nn.Module,
    seed: int,
    classes: Sequence[int],
    real: Reference,
    device: torch.device,
    scores: Scores | None = None,
    images: np.ndarray | None = None,
) -> dict[str, Any]:
    """What the samples are worth now; as many as the reference has images, always from the same latents.

    Args:
        scores: D's scores (B,) of images (B, C, *spatial) and their kinds or classes under the present augmentation; None leaves
            the overfitting out.
        images: what `samples` gave for the same seed and classes, at least as many as the reference has; None makes them.

    Returns:
        "score": energy distance of all `images` over the mean distance of two real ones (0 = as real images, noise apart);
        "score_error": its standard error; "quality": Fréchet distance over floor (1 = as two sets of real images);
        "diversity": spread over the real spread; "coverage", "recall": see `prdc`; "copying": see `copying`; "overfit", "overfit_error": see `overfitting`;
        "watch_s": seconds all this took.
    """
    began = time.monotonic()
    count = len(real.features)
    if images is None:
        images = samples(generator, seed, count, classes, device, spread=True)
    every = features(images, device=device)
    fake = every[:count]
    if not np.isfinite(every).all():
        nothing = dict.fromkeys((*MEASURED, "overfit", "overfit_error"))
        return {**nothing, "reference": real.name, "watch_s": round(time.monotonic() - began, 3)}
    between = prdc.distances(real.features, fake)
    energy, error = energy_distance(every, real.features)
    row = {
        "score": energy / real.apart,
        "score_error": error / real.apart,
        "quality": frechet(fake, real.features) / real.floor,
        "diversity": _spread(fake) / real.spread,
        "coverage": float((between.min(axis=1) < real.radii).mean()),
        "recall": float((between < prdc.radii(fake)[None, :]).any(axis=1).mean()),
        "copying": copying(fake, real, between),
    }
    overfit, overfit_error = None, None
    if scores is not None and real.name == "validation":
        scored = images[:SCORED]
        told = told_of(generator, seed, len(scored), classes, device)
        sets = (
            (real.train_images, real.train_kinds),
            (real.real_images, real.real_kinds),
            (torch.from_numpy(scored), told),
        )
        overfit, overfit_error = overfitting(*(_scored(scores, *one, device) for one in sets))
    rounded = {key: None if value is None else round(value, 4) for key, value in row.items()}
    rest = {"overfit": overfit, "overfit_error": overfit_error, "reference": real.name}
    return {**rounded, **rest, "watch_s": round(time.monotonic() - began, 3)}


def _scored(scores: Scores, images: Tensor, kinds: Tensor | None, device: torch.device) -> np.ndarray:
    with torch.no_grad():
        return scores(images.to(device), None if kinds is None else kinds.to(device)).double().cpu().numpy()


def copying(fake: np.ndarray, real: Reference, between: np.ndarray) -> float | None:
    """How much nearer samples lie to training images than unseen real ones do: about 1 when they are new, 0 for copies.

    (d(fake, train) / d(validation, train)) / (d(fake, validation) / d(validation, validation)), medians of distances to the
    nearest. The lower half takes out what brings a sample near to any image, such as blur. Without validation images the
    upper half alone. None when half of the real images are copies of each other.
    """
    if min(real.to_train, real.to_real) <= 0.0:
        return None
    to_train = _nearest(fake, real.train) / real.to_train
    if real.name != "validation":
        return to_train
    return to_train / max(float(np.median(between.min(axis=0))) / real.to_real, 1e-12)


def overfitting(train: np.ndarray, validation: np.ndarray, fake: np.ndarray) -> tuple[float | None, float | None]:
    """(r, its standard error): r = (E D(train) - E D(validation)) / (E D(train) - E D(fake)).

    0 when D takes unseen real images for real, 1 when it takes them for fake; unchanged when a constant is added to all
    scores or they are multiplied by one, so it means something under a relativistic loss (r_v of Karras 2020, eq. 1). None
    when D does not tell train from fake by three standard errors: a quotient by about nothing says nothing.
    """
    gap = train.mean() - fake.mean()
    errors = [float(scores.std() / math.sqrt(len(scores))) for scores in (train, validation, fake)]
    if not gap > 3.0 * math.hypot(errors[0], errors[2]):
        return None, None
    r = float((train.mean() - validation.mean()) / gap)
    # Propagated: dr/dtrain = (1 - r) / gap, dr/dvalidation = -1 / gap, dr/dfake = r / gap.
    error = math.hypot((1.0 - r) * errors[0], errors[1], r * errors[2]) / float(gap)
    return round(r, 4), round(error, 4)


def samples(
    generator: nn.Module,
    seed: int,
    count: int,
    classes: Sequence[int],
    device: torch.device,
    spread: bool = False,
) -> np.ndarray:
    """`count` images of fixed latents, float32 (count, C, *spatial) in [-1, 1]; classes are taken in turns.

    Args:
        spread: give hidden kinds their exact shares, see `spread_latents`.
    """
    numbers = in_turns(classes, count)
    z = latent(seed, count, generator.latent)  # type: ignore[arg-type]
    if spread:
        z = spread_latents(generator, seed, count, numbers)
    made: list[Tensor] = []
    with torch.no_grad():
        start = 0
        while start < count:
            part = slice(start, start + (at_once(made[0][0].numel()) if made else FEWEST_AT_ONCE))
            chosen = None if numbers is None else numbers[part].to(device)
            made.append(generator(z[part].to(device), chosen).clamp(-1.0, 1.0).float().cpu())
            start = part.stop
    return torch.cat(made).numpy()


def spread_latents(generator: nn.Module, seed: int, count: int, classes: Tensor | None) -> Tensor:
    """The fixed latents of the ticks for classes (count,) or None, (count, latent).

    Where they pick hidden kinds, the last values of a class are no chance draws but multiples of the golden ratio, so that
    any first n of them give each kind its share. By chance 200 latents have a kind three points too often or too rarely, at
    every tick the same, and quality seems to fall as the kinds grow distinct.
    """
    z = latent(seed, count, generator.latent)  # type: ignore[arg-type]
    prior = getattr(generator, "prior", None)
    if prior is None or not prior.kinds:
        return z
    numbers = torch.zeros(count, dtype=torch.int64) if classes is None else classes
    for number in numbers.unique():
        own = numbers == number
        place = (0.5 + GOLDEN * torch.arange(int(own.sum()), dtype=torch.float64)) % 1.0
        z[own, -1] = torch.special.ndtri(place.clamp(1e-6, 1.0 - 1e-6)).float()
    return z


def in_turns(classes: Sequence[int], count: int) -> Tensor | None:
    """The classes of `count` samples, (count,) int64; None without classes."""
    return torch.tensor([classes[i % len(classes)] for i in range(count)]) if classes else None


def told_of(generator: nn.Module, seed: int, count: int, classes: Sequence[int], device: torch.device) -> Tensor | None:
    """What D is told of spread `samples`, (count,): their kinds, else their classes, else None."""
    numbers = in_turns(classes, count)
    prior = getattr(generator, "prior", None)
    if prior is None or not prior.kinds:
        return numbers
    z = spread_latents(generator, seed, count, numbers)
    told: Tensor = prior.told(z.to(device), None if numbers is None else numbers.to(device))
    return told


def at_once(values: int) -> int:
    """How many images of so many values are made together, so that a tick needs no more memory than a step."""
    return max(FEWEST_AT_ONCE, min(64, VALUES_AT_ONCE // values))


def save_sheet(path: Path, images: np.ndarray, columns: int = 8) -> None:
    """Write a contact sheet, 8-bit PNG, of images (N, C, H, W) in [-1, 1]; of volumes (N, C, D, H, W) the middle slices.

    Needs Pillow; without it nothing is written.
    """
    try:
        from PIL import Image as Picture
    except ImportError:  # a bare GPU host
        return
    if images.ndim == 5:
        images = images[:, :, images.shape[2] // 2]
    pixels = np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = np.zeros((channels, rows * (height + 2), columns * (width + 2)), np.uint8)
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (height + 2), (i % columns) * (width + 2)
        sheet[:, top : top + height, left : left + width] = picture
    canvas = Picture.fromarray(sheet[0] if channels == 1 else sheet[:3].transpose(1, 2, 0))
    write_atomic(path, lambda partial: canvas.save(partial, format="png"))
