"""Scans of two kinds and of different people, laid on each other by the outlines of their bodies: something to begin with without pairs.

A head is a head: a scan of the other kind whose outline is alike, moved and stretched into the outline of the source, has skin, bone
and air about where they belong. What a network learns from thousands of such poor pairs is what is true of them in the mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from ..runtime import derive_seed
from .base import AIR, BODY, WHOLE, Pairing, Part

MOST = {2: 512, 3: 64}  # slices or volumes of each kind that are laid on each other
ALIKE = 8  # of the other kind that a source is laid under, one at a time
COARSE = 96  # voxels of the longest side of what outlines are found in
THUMB = 24  # voxels a side of an outline that is compared
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


@dataclass(frozen=True)
class Laid(Pairing):
    """Sources beside scans of the other kind that are moved and stretched into their outlines.

    Attributes:
        others: the targets, of other people.
        outlines, other_outlines: row -> outline.
        alike: row of a source -> rows of targets, the most alike first.
        difference: median over sources of how unlike the best is, 0 for the same outline.
    """

    others: Pairing
    outlines: Mapping[int, Outline]
    other_outlines: Mapping[int, Outline]
    alike: Mapping[int, np.ndarray]
    difference: float

    @property
    def bendable(self) -> bool:
        return False

    @property
    def usable(self) -> bool:
        """Whether outlines are alike enough to learn from."""
        return self.difference < FAR

    def target(self, row: int, part: Part = WHOLE) -> np.ndarray:
        """One of the scans alike, another for each part of a source, (C', *spatial)."""
        size = self.data.shape[1:]
        part = part or tuple(slice(0, side) for side in size)
        part = tuple(slice(one.start, min(one.stop, side)) for one, side in zip(part, size))
        choices = self.alike[row]
        other = int(choices[derive_seed(row, "laid", *(one.start for one in part)) % len(choices)])
        own, its = self.outlines[row], self.other_outlines[other]
        return laid(self.others, other, its, own, part)


def laid(others: Pairing, row: int, its: Outline, own: Outline, part: Part) -> np.ndarray:
    """A part of an image's grid, filled by a scan whose outline is moved and stretched into that of the image, (C', *part)."""
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


def outline(image: np.ndarray) -> Outline:
    """Of an encoded image (*spatial): its largest part above background, its holes filled; of one without any the whole image."""
    step = max(1, -(-max(image.shape) // COARSE))
    coarse = ndimage.uniform_filter(image, step)[(slice(None, None, step),) * image.ndim] > BODY
    parts, count = ndimage.label(ndimage.binary_opening(np.pad(coarse, 1)))
    if not count:
        return Outline(np.zeros(image.ndim), np.array(image.shape, float), np.ones((THUMB,) * image.ndim, np.float32))
    body = parts == 1 + int(np.argmax(ndimage.sum(parts > 0, parts, range(1, count + 1))))
    body = ndimage.binary_fill_holes(ndimage.binary_closing(np.pad(body, 4), iterations=4))[
        (slice(5, -5),) * image.ndim
    ]
    body = body if body.any() else np.ones_like(body)
    where = np.argwhere(body)
    low, high = where.min(axis=0), where.max(axis=0) + 1
    box = body[tuple(slice(a, b) for a, b in zip(low, high))].astype(np.float32)
    thumb = ndimage.affine_transform(
        box, np.array(box.shape) / THUMB, (np.array(box.shape) / THUMB - 1.0) / 2.0, (THUMB,) * box.ndim, order=1, mode="nearest"
    )  # fmt: skip
    return Outline(low * step, (high - low).astype(float) * step, thumb)


def unlike(one: Outline, others: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """How unlike an outline is to others, given as thumbs (N, n) and logarithms of ratios of their sides (N, axes - 1)."""
    inside = np.abs(others - one.thumb.ravel()).mean(axis=1)
    return np.asarray(inside + SHAPE * np.abs(shapes - ratios(one)).sum(axis=1))


def ratios(one: Outline) -> np.ndarray:
    """Logarithms of the sides of an outline, in those of the last axis."""
    return np.asarray(np.log(one.sides[:-1] / one.sides[-1]))


def lay(sources: Pairing, targets: Pairing) -> Laid:
    """Training scans of one kind under those of another with the most alike outlines."""
    found = []
    for pairing in (sources, targets):
        rows, most = pairing.rows("train"), MOST[len(pairing.data.shape) - 1]
        chosen = rows[np.unique(np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int))]
        found.append({int(row): outline(pairing.target(int(row))[0]) for row in chosen})
    own, its = found
    rows = np.array(list(its))
    thumbs = np.stack([one.thumb.ravel() for one in its.values()])
    shapes = np.stack([ratios(one) for one in its.values()])
    alike, least = {}, []
    for row, one in own.items():
        far = unlike(one, thumbs, shapes)
        order = np.argsort(far, kind="stable")[:ALIKE]
        alike[row] = rows[order]
        least.append(float(far[order[0]]))
    return Laid(sources.data, targets, own, its, alike, float(np.median(least)))
