"""Quality while training: Fréchet distance of a few averaged samples over the real/real floor, diversity, sample sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..metrics.frechet import frechet
from ..metrics.random_conv import features
from ..networks.blocks import latent
from ..runtime import derive_seed, write_atomic

FEWEST = 16  # below this many images a Fréchet distance says nothing
MOST = 256
FLOOR_DRAWS = 8


@dataclass(frozen=True)
class Reference:
    """Real images that the samples are compared with at every tick, and the distance real images have among themselves.

    Attributes:
        features: (N, 512) of the validation images, or of half the training images where validation has too few.
        floor: distance between N training images and these.
        spread: mean distance of real images from their centre in feature space.
        name: "validation" or "train".
    """

    features: np.ndarray
    floor: float
    spread: float
    name: str


def reference(train: np.ndarray, validation: np.ndarray, seed: int, device: torch.device) -> Reference | None:
    """The reference from encoded images (N, C, H, W); None when there are too few or they are too small.

    Never sees the holdout. With fewer than 16 validation images the training set is halved, and the name says so. The
    floor is a mean over several draws of training images: one draw of 100 is off by a third.
    """
    random = np.random.default_rng(derive_seed(seed, "watch"))
    train = train[random.permutation(len(train))]
    name = "validation" if len(validation) >= FEWEST else "train"
    real, others = (validation, train) if name == "validation" else (train[: len(train) // 2], train[len(train) // 2 :])
    count = min(len(real), len(others), MOST)
    if count < FEWEST or min(real.shape[-2:]) < 16:
        return None
    real_features, pool = features(real[:count], device=device), features(others, device=device)
    draws = [pool[random.permutation(len(pool))[:count]] for _ in range(FLOOR_DRAWS)]
    floor = float(np.mean([frechet(draw, real_features) for draw in draws]))
    return Reference(real_features, floor, _spread(real_features), name) if floor > 0 else None


def _spread(values: np.ndarray) -> float:
    return float(np.linalg.norm(values - values.mean(axis=0), axis=1).mean())


def measure(
    generator: nn.Module, seed: int, classes: Sequence[int], real: Reference, device: torch.device
) -> dict[str, Any]:
    """{"quality": distance over floor (1 = as two sets of real images), "diversity": spread over the real spread}.

    As many samples as the reference has images, always from the same latents.
    """
    count = len(real.features)
    fake = features(samples(generator, seed, count, classes, device), device=device)
    distance = frechet(fake, real.features) / real.floor
    return {
        "quality": round(distance, 4) if math.isfinite(distance) else None,
        "diversity": round(_spread(fake) / real.spread, 4),
        "reference": real.name,
    }


def samples(generator: nn.Module, seed: int, count: int, classes: Sequence[int], device: torch.device) -> np.ndarray:
    """`count` images of fixed latents, float32 (count, C, H, W) in [-1, 1]; classes are taken in turns."""
    z = latent(seed, count, generator.latent)  # type: ignore[arg-type]
    numbers = torch.tensor([classes[i % len(classes)] for i in range(count)]) if classes else None
    made: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, count, 64):
            chosen = None if numbers is None else numbers[start : start + 64].to(device)
            made.append(generator(z[start : start + 64].to(device), chosen).clamp(-1.0, 1.0).float().cpu())
    return torch.cat(made).numpy()


def save_sheet(path: Path, images: np.ndarray, columns: int = 8) -> None:
    """Write a contact sheet, 8-bit PNG, of images (N, C, H, W) in [-1, 1]; needs Pillow, without it nothing is written."""
    try:
        from PIL import Image as Picture
    except ImportError:  # a bare GPU host
        return
    pixels = np.rint((np.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    count, channels, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = np.zeros((channels, rows * (height + 2), columns * (width + 2)), np.uint8)
    for i, picture in enumerate(pixels):
        top, left = (i // columns) * (height + 2), (i % columns) * (width + 2)
        sheet[:, top : top + height, left : left + width] = picture
    canvas = Picture.fromarray(sheet[0] if channels == 1 else sheet[:3].transpose(1, 2, 0))
    write_atomic(path, lambda partial: canvas.save(partial, format="png"))
