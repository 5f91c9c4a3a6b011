"""Copies: are synthetic images nearer to training images than held-out real ones are, and do they repeat each other?"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from ..metrics.intervals import wilson
from ..metrics.nearest import EXTRACTOR, Nearest, join, nearest
from ..runtime import derive_seed

CLOSEST = 10
# A copy is at most half as far from a training image as from any held-out one, whatever few held-out images allow.
HALF_AS_FAR = 0.5


@dataclass(frozen=True)
class Copies:
    """The search for copies.

    Attributes:
        fake, real: similarity of each synthetic and each held-out image to its nearest training image.
        threshold: 99th percentile of `real`.
        above: (N,) bool, synthetic images more similar than the threshold.
        copied: (N,) bool, those of them that are also much nearer to a training than to any held-out image.
        fake_ratio, real_ratio: distance to the nearest training image over that to the nearest held-out image of another
            patient; real_ratio is empty when fewer than 5 held-out images have others to be compared with.
    """

    fake: np.ndarray
    real: np.ndarray
    threshold: float
    above: np.ndarray
    copied: np.ndarray
    fake_ratio: np.ndarray
    real_ratio: np.ndarray

    @property
    def blind(self) -> bool:
        """Held-out images are themselves copies of training images, so that none can be told apart."""
        return self.threshold > 0.9999

    @property
    def alarm(self) -> bool:
        """More than 1 in 100 are copies (95 % confidence), or half of all are much nearer to training than real ones are.

        Of few held-out images n the rule is only as sharp as the nearest of them: a fresh one exceeds it in 1 of n + 1.
        """
        few = wilson(int(self.copied.sum()), len(self.copied))[0] > max(0.01, 1.0 / (len(self.real) + 1))
        drawn = len(self.real_ratio) > 0 and np.median(self.fake_ratio) < HALF_AS_FAR * np.median(self.real_ratio)
        return bool(few or drawn)


def search(
    fake: Nearest,
    real: Nearest,
    fake_images: np.ndarray,
    reference: np.ndarray,
    groups: np.ndarray,
    device: torch.device,
    unmirrored: int = 0,
) -> Copies:
    """Judge synthetic images by two rules calibrated on held-out ones, which cannot be copies.

    More similar to a training image than 99 % of held-out images are; and nearer to it, measured by the distance to
    the nearest held-out image, than 99 % of held-out images are. The first alone flags smooth images, which resemble
    everything; the second alone flags rare ones (data-copying test of Meehan et al. 2020, per image). Measured on 400 hand
    X-rays with 5 % planted copies: all exact, shifted and noisy ones found, 65 % of 70/30 blends, no false alarm under blur.

    Args:
        fake, real: nearest training image of each synthetic and each held-out image.
        fake_images, reference: (N, C, H, W) and (M, C, H, W), the images themselves.
        groups: (M,) patient of each held-out image.
        device: where it runs.
        unmirrored: see `nearest`.
    """
    threshold = float(np.percentile(real.similarity, 99))
    to_held_out = nearest(fake_images, reference, device, unmirrored=unmirrored).similarity
    among = nearest(reference, reference, device, groups=groups, unmirrored=unmirrored).similarity
    usable = among > -1.0
    fake_ratio = (1.0 - fake.similarity) / np.maximum(1.0 - to_held_out, 1e-6)
    real_ratio = ((1.0 - real.similarity) / np.maximum(1.0 - among, 1e-6))[usable]
    if len(real_ratio) < 5:
        real_ratio = np.empty(0)
    nearer = min(HALF_AS_FAR, float(np.percentile(real_ratio, 1))) if len(real_ratio) else HALF_AS_FAR
    above = fake.similarity > threshold
    return Copies(
        fake.similarity, real.similarity, threshold, above, above & (fake_ratio < nearer), fake_ratio, real_ratio
    )


def nearest_in_parts(
    sets: list[np.ndarray],
    part: np.ndarray,
    offset: int,
    found: list[Nearest] | None,
    device: torch.device,
    unmirrored: int = 0,
) -> list[Nearest]:
    """Go on with the search of each set for its nearest training images: `part` holds those from row `offset` on."""
    here = [nearest(images, part, device, unmirrored=unmirrored) for images in sets]
    return here if found is None else [join(earlier, now, offset) for earlier, now in zip(found, here)]


def repeats(
    fake: np.ndarray, real: np.ndarray, groups: np.ndarray, seed: int, device: torch.device, unmirrored: int = 0,
    fake_groups: np.ndarray | None = None,
) -> tuple[int, int] | None:  # fmt: skip
    """How many synthetic images resemble another one more than 99 % of equally many real ones resemble one of another patient.

    Slices of one synthetic patient (`fake_groups`; default: each image is one) are alike as those of a real one are, so that only
    others count.

    Returns:
        (images that repeat another, images looked at); None when fewer than 10 on a side can be compared, or all are of one patient.
    """
    count = min(len(fake), len(real))
    if count < 10:
        return None
    rng = np.random.default_rng(derive_seed(seed, "repeats"))
    real_rows, fake_rows = (rng.choice(len(images), count, replace=False) for images in (real, fake))
    look = partial(nearest, device=device, unmirrored=unmirrored)
    among_real = look(real[real_rows], real[real_rows], groups=groups[real_rows]).similarity
    among_real = among_real[among_real > -1.0]
    if len(among_real) < 10:
        return None
    own = np.arange(len(fake)) if fake_groups is None else fake_groups
    if len(np.unique(own[fake_rows])) == 1:
        return None
    among_fake = look(fake[fake_rows], fake[fake_rows], groups=own[fake_rows]).similarity
    # Constant images have similarity 0 to everything, so they are counted apart.
    flat = np.ptp(fake[fake_rows].reshape(count, -1), axis=1) < 1e-3
    return int(((among_fake > np.percentile(among_real, 99)) | flat).sum()), count


def entries(copies: Copies, seed: int) -> dict[str, dict[str, Any]]:
    """Entries of metrics.json without words: median, 99th percentile, share above the threshold, copies, ratio."""
    counts = {"real": len(copies.real), "fake": len(copies.fake)}
    real_above = copies.real > copies.threshold

    def quantile(title: str, q: float) -> dict[str, Any]:
        return {
            "title": title,
            "value": float(np.percentile(copies.fake, q)),
            "interval": bootstrap(copies.fake, q, seed),
            "floor": float(np.percentile(copies.real, q)),
            "floor_interval": bootstrap(copies.real, q, seed),
            "ratio": None,
            "better": "lower",
            "counts": counts,
            "extractor": EXTRACTOR,
        }

    def share(title: str, flagged: np.ndarray, floor: float, floor_interval: list[float]) -> dict[str, Any]:
        return {
            "title": title,
            "value": float(flagged.mean()),
            "interval": list(wilson(int(flagged.sum()), len(flagged))),
            "floor": floor,
            "floor_interval": floor_interval,
            "ratio": None,
            "better": "lower",
            "counts": counts,
            "extractor": EXTRACTOR,
        }

    usual = list(wilson(int(real_above.sum()), len(real_above)))
    result = {
        "nearest_training_median": quantile("Similarity to the nearest training image, median", 50),
        "nearest_training_p99": quantile("Similarity to the nearest training image, 99th percentile", 99),
        "above_holdout_p99": share(
            "More similar to a training image than 99 % of held-out ones", copies.above, float(real_above.mean()), usual
        ),
        "near_copies": share("Near copies of a training image", copies.copied, 0.0, [0.0, 0.01]),
    }
    if len(copies.real_ratio):
        value, floor = float(np.median(copies.fake_ratio)), float(np.median(copies.real_ratio))
        result["train_holdout_ratio"] = {
            "title": "Distance to training over distance to held-out images",
            "value": value,
            "interval": bootstrap(copies.fake_ratio, 50, seed),
            "floor": floor,
            "floor_interval": bootstrap(copies.real_ratio, 50, seed),
            "ratio": value / floor if floor > 1e-9 else None,
            "better": "higher",
            "counts": counts,
            "extractor": EXTRACTOR,
        }
    return result


def bootstrap(values: np.ndarray, q: float, seed: int, resamples: int = 200) -> list[float]:
    """5th and 95th percentile of a percentile over bootstrap resamples."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    drawn = np.percentile(values[rng.integers(0, len(values), (resamples, len(values)))], q, axis=1)
    return [float(x) for x in np.percentile(drawn, (5, 95))]


def closest(found: Nearest) -> np.ndarray:
    """Positions of the ten synthetic images most similar to a training image, each training image once, best first."""
    order = np.argsort(-found.similarity, kind="stable")
    _, first = np.unique(found.rows[order], return_index=True)
    return order[np.sort(first)[:CLOSEST]]
