"""Kinds of images in one folder that nobody named (hands beside breasts, frontal beside lateral films), found before training.

A discriminator under a gradient penalty tells images by their texture and hardly feels how many of each kind there are: the
shares that G happens to begin with stay, and between kinds it makes mixtures of both. Told the kind of each image, as it would
be told a class, it settles the shares and the borders for good (Liu 2020, "Diverse image generation via self-conditioned GANs",
who cluster D's features again and again; here thumbnails are clustered once, and only where they fall apart into clouds).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from ..dataset import Level
from ..networks.blocks import Shares
from ..runtime import write_json

THUMBNAIL = {2: 16, 3: 8}  # pixels a side
FEWEST = 100  # images of a kind; of fewer G learns too little to be worth a kind of their own
# Of the variance along the line between two centres, the share that lies within the two halves. A normal cloud that is cut in
# two keeps 1 - 2/pi = .36 of it, an even spread .25; hands and breasts .03, CT of chest and abdomen .12 (docs/log.md).
APART = 0.15
MOST = 20_000  # images that are looked at; the others only go to the nearest centre
ROUNDS = 50  # of two-means; most end after ten
FILE = "kinds.json"


@dataclass(frozen=True)
class Kinds:
    """The kinds found in the training images.

    Attributes:
        shares: for each class (one row without classes) the shares of its kinds, which are numbered through.
        centres: (K, C * pixels) mean thumbnail of each kind.
    """

    shares: Shares
    centres: np.ndarray

    def numbers(self, level: Level, rows: np.ndarray, classes: np.ndarray | None) -> np.ndarray:
        """The kind of each row, int64 (N,): the nearest centre among those of its class."""
        shown, result = thumbnails(level, rows), np.zeros(len(rows), np.int64)
        first = 0
        for number, row in enumerate(self.shares):
            own = slice(None) if classes is None else classes == number
            centres = self.centres[first : first + len(row)]
            distances = (centres**2).sum(1) - 2.0 * shown[own] @ centres.T
            result[own] = first + distances.argmin(axis=1)
            first += len(row)
        return result

    def words(self, labels: Sequence[str]) -> str:
        """For the plan."""
        names = labels or ("",)
        parts = [
            " ".join(filter(None, (name, ", ".join(f"{share:.0%}" for share in row))))
            for name, row in zip(names, self.shares, strict=True)
        ]
        return f"{sum(map(len, self.shares))} kinds of images found by their looks, whose shares samples will keep: {'; '.join(parts)}"


def keep(kinds: Kinds | None, run: Path) -> None:
    """Write them to the run folder, so that a run that goes on has the same."""
    if kinds:
        write_json(run / FILE, {"shares": kinds.shares, "centres": kinds.centres.tolist()})
    else:
        (run / FILE).unlink(missing_ok=True)


def kept(run: Path) -> Kinds | None:
    """What `keep` wrote, or None."""
    if not (run / FILE).is_file():
        return None
    stored = json.loads((run / FILE).read_text())
    return Kinds(tuple(tuple(row) for row in stored["shares"]), np.array(stored["centres"]))


def find(level: Level, rows: np.ndarray, classes: np.ndarray | None = None, count: int = 0) -> Kinds | None:
    """Look for kinds among the training images, within each class apart; None where all looks like one cloud.

    Args:
        level: all images.
        rows: (N,) the training rows.
        classes: (N,) class numbers of `rows`, or None.
        count: number of classes, of which some may have no training image.
    """
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(np.int64))
    shown = thumbnails(level, rows[chosen])
    if not np.isfinite(shown).all():
        return None
    groups = [shown] if classes is None else [shown[classes[chosen] == number] for number in range(count)]
    parts = [clouds(group) for group in groups]
    if sum(map(len, parts)) == len(groups):
        return None
    shares = tuple(tuple(len(part) / max(1, len(group)) for part in found) for group, found in zip(groups, parts))
    centres = [group[part].sum(axis=0) / max(1, len(part)) for group, found in zip(groups, parts) for part in found]
    # A class without a training image has one kind, too.
    return Kinds(tuple(row if any(row) else (1.0,) for row in shares), np.array(centres))


def clouds(points: np.ndarray) -> list[np.ndarray]:
    """Cut (N, d) points in two, and the halves again, while the halves lie well apart; positions of each part."""
    halves = cut(points)
    if halves is None:
        return [np.arange(len(points))]
    return [half[part] for half in halves for part in clouds(points[half])]


def cut(points: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Positions of the two clouds that (N, d) points fall apart into (2-means), or None where they do not.

    Two-means start from the two sides of the first principal component, so that no chance is in it. Written out, since a bare
    GPU host has no SciPy.
    """
    if len(points) < 2 * FEWEST:
        return None
    centred = points - points.mean(axis=0)
    above = centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1] > 0
    for _ in range(ROUNDS):
        if min(above.sum(), (~above).sum()) < FEWEST:
            return None
        low, high = centred[~above].mean(axis=0), centred[above].mean(axis=0)
        before, above = above, (centred - (low + high) / 2.0) @ (high - low) > 0  # the nearer centre
        if (above == before).all():
            break
    along = centred @ (high - low)
    halves = np.flatnonzero(~above), np.flatnonzero(above)
    if min(map(len, halves)) < FEWEST:
        return None
    within = sum(float(((along[half] - along[half].mean()) ** 2).sum()) for half in halves)
    return halves if within < APART * float((along**2).sum()) else None


def thumbnails(level: Level, rows: np.ndarray, at_once: int = 512) -> np.ndarray:
    """Images in small, float64 (N, C * pixels)."""
    parts = []
    for start in range(0, len(rows), at_once):
        images = torch.from_numpy(level.batch(rows[start : start + at_once]))
        pool = F.adaptive_avg_pool2d if images.ndim == 4 else F.adaptive_avg_pool3d
        parts.append(pool(images, THUMBNAIL[images.ndim - 2]).flatten(1).double())
    return torch.cat(parts).numpy()
