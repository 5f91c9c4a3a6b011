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
FEWEST_PATIENTS = 10  # of a kind: what one patient looks like is no kind of image
# Of the variance along the line between two centres, the share that lies within the two halves. A normal cloud that is cut in
# two keeps 1 - 2/pi = .36 of it, an even spread .25; hands and breasts .03, CT of chest and abdomen .12 (docs/log.md).
APART = 0.15
MOST = 20_000  # images of a class that are cut; the others only go to the nearest centre
ROUNDS = 50  # of two-means; most end after ten
VALUES_AT_ONCE = 1 << 22
FILE = "kinds.json"


@dataclass(frozen=True)
class Kinds:
    """The kinds found in the training images.

    Attributes:
        shares: for each class (one row without classes) the shares of its kinds, which are numbered through.
        numbers: (rows of the dataset,) kind of every row that was looked at, -1 of the others.
    """

    shares: Shares
    numbers: np.ndarray

    def words(self, labels: Sequence[str]) -> str:
        """For the plan."""
        parts = [
            " ".join(filter(None, (name, ", ".join(f"{share:.0%}" for share in row))))
            for name, row in zip(labels or ("",), self.shares, strict=True)
        ]
        return f"{sum(map(len, self.shares))} kinds of images found by their looks, whose shares samples will keep: {'; '.join(parts)}"


def keep(kinds: Kinds | None, run: Path) -> None:
    """Write them to the run folder, also that there are none, so that a run that goes on has the same."""
    stored = {"shares": kinds.shares, "numbers": kinds.numbers.tolist()} if kinds else {"shares": [], "numbers": []}
    write_json(run / FILE, stored)


def kept(run: Path) -> Kinds | None:
    """What `keep` wrote.

    Raises:
        ValueError: the file is gone.
    """
    if not (run / FILE).is_file():
        raise ValueError(
            f"expected {FILE} in {run}, which the run was begun with, found none: bring it back, or remove the folder to start anew"
        )
    stored = json.loads((run / FILE).read_text())
    return Kinds(tuple(map(tuple, stored["shares"])), np.array(stored["numbers"])) if stored["shares"] else None


def find(
    level: Level,
    train: np.ndarray,
    others: np.ndarray,
    patients: np.ndarray,
    classes: np.ndarray | None = None,
    count: int = 1,
) -> Kinds | None:
    """Look for kinds among the training images, within each class apart; None where all look like one cloud.

    Args:
        level: all images.
        train: (N,) rows that kinds are looked for in.
        others: rows that are told their kind, too: those of validation.
        patients: of every row of the dataset.
        classes: class number of every row of the dataset, or None.
        count: number of classes, of which some may have no training image.
    """
    numbers = np.full(len(patients), -1)
    shares: list[tuple[float, ...]] = []
    for own in range(count):
        learned, told = [rows if classes is None else rows[classes[rows] == own] for rows in (train, others)]
        first = sum(map(len, shares))
        centres = np.array(centres_of(level, learned, patients))
        rows = np.concatenate([learned, told])
        numbers[rows] = first
        if len(centres) > 1:
            shown = thumbnails(level, rows)
            numbers[rows] += ((centres**2).sum(axis=1) - 2.0 * shown @ centres.T).argmin(axis=1)
        counts = np.bincount(numbers[learned] - first, minlength=len(centres))
        shares.append(tuple((counts / counts.sum()).tolist()) if len(centres) > 1 else (1.0,))
    return Kinds(tuple(shares), numbers) if sum(map(len, shares)) > count else None


def centres_of(level: Level, rows: np.ndarray, patients: np.ndarray) -> list[np.ndarray]:
    """The mean thumbnail of each cloud that the images fall apart into; one, of no meaning, where they do not."""
    chosen = rows[np.linspace(0, len(rows) - 1, min(len(rows), MOST)).astype(np.int64)]
    if len(chosen) < 2 * FEWEST:
        return [np.zeros(0)]
    shown = thumbnails(level, chosen)
    if not np.isfinite(shown).all():
        return [np.zeros(0)]
    return [shown[part].mean(axis=0) for part in clouds(shown, patients[chosen])]


def clouds(points: np.ndarray, patients: np.ndarray) -> list[np.ndarray]:
    """Cut (N, d) points in two, and the halves again, while the halves lie well apart; positions of each part."""
    halves = cut(points, patients)
    if halves is None:
        return [np.arange(len(points))]
    return [half[part] for half in halves for part in clouds(points[half], patients[half])]


def cut(points: np.ndarray, patients: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
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
    if min(map(len, halves)) < FEWEST or min(len(set(patients[half].tolist())) for half in halves) < FEWEST_PATIENTS:
        return None
    within = sum(float(((along[half] - along[half].mean()) ** 2).sum()) for half in halves)
    return halves if within < APART * float((along**2).sum()) else None


def thumbnails(level: Level, rows: np.ndarray) -> np.ndarray:
    """Images in small, float64 (N, C * pixels)."""
    at_once, parts = max(1, VALUES_AT_ONCE // level.array[0].size), []
    for start in range(0, len(rows), at_once):
        images = torch.from_numpy(level.batch(rows[start : start + at_once]))
        pool = F.adaptive_avg_pool2d if images.ndim == 4 else F.adaptive_avg_pool3d
        parts.append(pool(images, THUMBNAIL[images.ndim - 2]).flatten(1).double())
    return torch.cat(parts).numpy()
