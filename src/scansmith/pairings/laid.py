"""Scans of two kinds and of different people, laid on each other by the outlines of their bodies: something to begin with without pairs.

A head is a head: a scan of the other kind whose outline is alike, moved and stretched into the outline of the source, has skin, bone
and air about where they belong. What a network learns from thousands of such poor pairs is what is true of them in the mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from ..runtime import derive_seed
from .base import AIR, BODY, WHOLE, Pairing, Part

MOST = {2: 512, 3: 24}  # slices or volumes of the other kind that sources are laid under
LOOKED_AT = {2: 64, 3: 8}  # sources that say whether outlines are alike
ALIKE = 8  # of the other kind that a source is laid under, one at a time
COARSE = 96  # voxels of the longest side of what outlines are found in
SMOOTH = 3  # of these voxels a side, of which most must lie above background
THUMB = 24  # voxels a side of an outline that is compared
FILLED = 0.95  # share of its box that a body fills; above, the image has no background and no outline
SHAPE = 0.5  # weight of the logarithm of a ratio of sides beside the share of the box that differs
FAR = 0.15  # of that sum, from which on outlines are not alike
MARGIN = 2  # voxels around what is resampled


@dataclass(frozen=True)
class Outline:
    """Where the body lies in an image.

    Attributes:
        first, sides: of its box, in voxels.
        thumb: the box on a small grid, 1 within the body.
    """

    first: np.ndarray
    sides: np.ndarray
    thumb: np.ndarray

    @property
    def known(self) -> bool:
        """Whether there is background around the body."""
        return float(self.thumb.mean()) < FILLED


@dataclass(frozen=True)
class Laid(Pairing):
    """Sources beside scans of the other kind that are moved and stretched into their outlines.

    Attributes:
        sources, others: both kinds, of other people.
        outlines: row of others -> outline, of those that sources are laid under.
        kept: row of sources -> its outline and the rows of others with the most alike ones, as they are asked for.
    """

    sources: Pairing
    others: Pairing
    outlines: dict[int, Outline]
    kept: dict[int, tuple[Outline, np.ndarray, float]] = field(default_factory=dict)

    @property
    def bendable(self) -> bool:
        return False

    def difference(self) -> float:
        """Median over sources of how unlike the most alike outline is, 0 for the same; infinite where most images of a kind have none."""
        rows = self.sources.rows("train")
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, LOOKED_AT[len(self.data.shape) - 1]).astype(int))]
        found = [self.alike(int(row)) for row in chosen]
        known = [[one.known for one in side] for side in ([one for one, _, _ in found], self.outlines.values())]
        if min(float(np.mean(side)) for side in known) < 0.5:
            return math.inf
        return float(np.median([far for _, _, far in found]))

    def alike(self, row: int) -> tuple[Outline, np.ndarray, float]:
        """(outline of a source, the rows of others with the most alike ones, how unlike the first of these is)."""
        if row not in self.kept:
            own, rows = outline_of(self.sources, row), np.array(list(self.outlines))
            thumbs = np.stack([one.thumb.ravel() for one in self.outlines.values()])
            far = unlike(own, thumbs, np.stack([ratios(one) for one in self.outlines.values()]))
            order = np.argsort(far, kind="stable")[:ALIKE]
            self.kept[row] = own, rows[order], float(far[order[0]])
        return self.kept[row]

    def target(self, row: int, part: Part = WHOLE) -> np.ndarray:
        """One of the scans alike, another for each part of a source, (C', *spatial)."""
        size = self.data.shape[1:]
        part = part or tuple(slice(0, side) for side in size)
        part = tuple(slice(one.start, min(one.stop, side)) for one, side in zip(part, size))
        own, choices, _ = self.alike(row)
        other = int(choices[derive_seed(row, "laid", *(one.start for one in part)) % len(choices)])
        return laid(self.others, other, self.outlines[other], own, part)


def laid(others: Pairing, row: int, its: Outline, own: Outline, part: Part) -> np.ndarray:
    """A part of an image's grid, filled by a scan whose outline is moved and stretched into that of the image, (C', *part)."""
    from scipy import ndimage

    scale = its.sides / own.sides
    starts = np.array([one.start for one in part])
    shape = tuple(one.stop - one.start for one in part)
    first = its.first + (starts - own.first) * scale  # where the part's first voxel is taken from
    last = first + (np.array(shape) - 1) * scale
    size = others.data.shape[1:]
    low = np.clip(np.floor(first).astype(int) - MARGIN, 0, size)
    high = np.clip(np.ceil(last).astype(int) + MARGIN + 1, low, size)
    if (high <= low).any():
        return np.full((others.out_channels, *shape), AIR, np.float32)
    cut = others.target(row, tuple(slice(a, b) for a, b in zip(low.tolist(), high.tolist())))
    found = [ndimage.affine_transform(one, scale, first - low, shape, order=1, cval=AIR) for one in cut]
    return np.stack(found).astype(np.float32)


def outline_of(pairing: Pairing, row: int) -> Outline:
    """The outline of a stored scan, of which every so many voxels along each axis are read."""
    steps = [max(1, -(-side // COARSE)) for side in pairing.data.shape[1:]]
    return outline(pairing.target(row, tuple(slice(None, None, step) for step in steps))[0], steps)


def outline(image: np.ndarray, steps: Sequence[int]) -> Outline:
    """Of an encoded image (*spatial) whose voxels lie `steps` apart: its largest part above background, its holes filled.

    Of one without any the whole image.
    """
    from scipy import ndimage

    side = np.array(image.shape, float) * steps
    bright = ndimage.uniform_filter((image > BODY).astype(np.float32), SMOOTH, mode="nearest") > 0.5
    around = np.pad(bright, 4, mode="edge")  # a body that ends at the border of the image is not worn away there
    parts, count = ndimage.label(ndimage.binary_opening(around))
    if count:
        largest = parts == 1 + int(np.argmax(ndimage.sum(parts > 0, parts, range(1, count + 1))))
        whole = ndimage.binary_fill_holes(ndimage.binary_closing(largest, iterations=4, border_value=0))
        body = whole[(slice(4, -4),) * image.ndim]
    if not count or not body.any():
        return Outline(np.zeros(image.ndim), side, np.ones((THUMB,) * image.ndim, np.float32))
    where = np.argwhere(body)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    box = body[tuple(slice(a, b) for a, b in zip(low, high))].astype(np.float32)
    scale = np.array(box.shape) / THUMB
    thumb = ndimage.affine_transform(box, scale, (scale - 1.0) / 2.0, (THUMB,) * box.ndim, order=1, mode="nearest")
    return Outline(low * np.array(steps), (high - low) * np.array(steps, float), thumb)


def unlike(one: Outline, others: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """How unlike an outline is to others, given as thumbs (N, n) and logarithms of ratios of their sides (N, axes - 1)."""
    inside = np.abs(others - one.thumb.ravel()).mean(axis=1)
    return np.asarray(inside + SHAPE * np.abs(shapes - ratios(one)).sum(axis=1))


def ratios(one: Outline) -> np.ndarray:
    """Logarithms of the sides of an outline, in those of the last axis."""
    return np.asarray(np.log(one.sides[:-1] / one.sides[-1]))


def lay(sources: Pairing, targets: Pairing) -> Laid:
    """Training scans of one kind beside those of another with the most alike outlines."""
    rows, most = targets.rows("train"), MOST[len(targets.data.shape) - 1]
    chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]
    return Laid(sources.data, sources, targets, {int(row): outline_of(targets, int(row)) for row in chosen})
