"""The nearest training image of each synthetic one: Pearson correlation over small shifts and mirror images."""

from __future__ import annotations

from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

EXTRACTOR = "Pearson correlation, shifts of up to 2 in 64 pixels, mirrored"
SEARCH_SIZE = 32
SIZE = 64
CANDIDATES = 4


class Nearest(NamedTuple):
    """For each of N images: its nearest of M others, and how to lay that one over it.

    Attributes:
        index: (N,) int64 row of the nearest image.
        similarity: (N,) float64 Pearson correlation, -1 to 1; 0 when an image is constant.
        mirrored: (N,) bool, the nearest image has to be mirrored left to right first.
        shift: (N, 2) int64 rows and columns that it then has to be moved by, on the reduced grid of at most 64 pixels.
    """

    index: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    shift: np.ndarray


def reduce(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> float32 with a longer side of at most 64, by area: what `nearest` compares."""
    return _area(torch.from_numpy(np.ascontiguousarray(images, np.float32)), SIZE).numpy()


def nearest(images: np.ndarray, others: np.ndarray, device: torch.device | str = "cpu", groups: np.ndarray | None = None,
            chunk: int = 1024) -> Nearest:
    """Find the most similar of `others` for each of `images`.

    Two passes: at 32 pixels over shifts of one pixel and mirror images, then the four best at 64 over shifts
    of up to two. Memory stays near chunk x chunk similarities.

    Args:
        images, others: (N, C, H, W) and (M, C, H, W), N, M >= 1, of one size; larger ones are reduced by area first.
        device: where the products run.
        groups: (N,) int64, for two equal sets: rows of one group (one patient) are not compared with each other. None
            compares everything. An image that has nobody to be compared with gets similarity -1.
        chunk: rows compared at once.
    """
    assert len(others) > 0 and (groups is None or len(groups) == len(images) == len(others))
    own = None if groups is None else torch.as_tensor(groups, device=device)
    a, b = (torch.from_numpy(reduce(x)).to(device) for x in (images, others))
    found = []
    with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
        for start in range(0, len(a), chunk):
            rows = a[start : start + chunk]
            candidates = _candidates(rows, b, own, start, chunk)
            found.append(_refine(rows, b, candidates))
    return Nearest(*(np.concatenate(column) for column in zip(*found)))


def join(first: Nearest, second: Nearest, offset: int) -> Nearest:
    """The nearer of two searches over parts of the others; rows of the second part begin at `offset`."""
    better = second.similarity > first.similarity
    pick = lambda a, b: np.where(better if a.ndim == 1 else better[:, None], b, a)
    return Nearest(pick(first.index, second.index + offset), *(pick(a, b) for a, b in zip(first[1:], second[1:])))


def _area(images: torch.Tensor, size: int) -> torch.Tensor:
    """(N, C, H, W) with a longer side of at most `size`."""
    height, width = images.shape[-2:]
    if max(height, width) <= size:
        return images
    scale = size / max(height, width)
    return functional.interpolate(images, size=(max(8, round(height * scale)), max(8, round(width * scale))), mode="area")


def _unit(windows: torch.Tensor) -> torch.Tensor:
    """(..., C, h, w) -> (..., C h w) with zero mean and unit norm, so that a product of two is Pearson's r."""
    flat = windows.flatten(-3)
    flat = flat - flat.mean(dim=-1, keepdim=True)
    # A window without contrast has no correlation: rounding noise must not be scaled up to one.
    norm = flat.norm(dim=-1, keepdim=True)
    return torch.where(norm > 1e-4 * flat.shape[-1] ** 0.5, flat / norm.clamp_min(1e-12), torch.zeros_like(flat))


def _windows(images: torch.Tensor, reach: int) -> list[tuple[bool, int, int, torch.Tensor]]:
    """(mirrored, rows, columns, window) for every mirroring and shift: the interior as it looks after that move."""
    height, width = images.shape[-2:]
    return [(mirrored, dy, dx, (images.flip(-1) if mirrored else images)[..., reach - dy : height - reach - dy, reach - dx : width - reach - dx])
            for mirrored, dy, dx in product((False, True), range(-reach, reach + 1), range(-reach, reach + 1))]


def _candidates(images: torch.Tensor, others: torch.Tensor, own: torch.Tensor | None, first: int, chunk: int) -> torch.Tensor:
    """(N, k) rows of the k others that look nearest at 32 pixels, -1 for none; `first`: row of images[0] in `own`."""
    # The queries move, not the others: they are the smaller set and are normalised once for each move.
    queries = [_unit(window) for _, _, _, window in _windows(_area(images, SEARCH_SIZE), 1)]
    values, rows = [], []
    for start in range(0, len(others), chunk):
        part = _unit(_area(others[start : start + chunk], SEARCH_SIZE)[..., 1:-1, 1:-1])
        similarity = queries[0] @ part.T
        for query in queries[1:]:
            similarity = torch.maximum(similarity, query @ part.T)
        if own is not None:
            same = own[first : first + len(images), None] == own[None, start : start + len(part)]
            similarity = similarity.masked_fill(same, -2.0)
        value, row = similarity.topk(min(CANDIDATES, len(part)), dim=1)
        values.append(value)
        rows.append(row + start)
    value, row = torch.cat(values, 1), torch.cat(rows, 1)
    value, order = value.topk(min(CANDIDATES, value.shape[1]), dim=1)
    return torch.where(value > -1.5, row.gather(1, order), -1)


def _refine(images: torch.Tensor, others: torch.Tensor, candidates: torch.Tensor) -> tuple[np.ndarray, ...]:
    """Index, similarity, mirrored, shift of the best candidate of each image, over shifts of up to 2 pixels."""
    inner = _unit(images[..., 2:-2, 2:-2])
    count = len(images)
    best = torch.full((count,), -2.0, device=images.device)
    move = torch.zeros((count, 4), dtype=torch.int64, device=images.device)
    for column in range(candidates.shape[1]):
        for mirrored, dy, dx, window in _windows(others[candidates[:, column]], 2):
            value = (inner * _unit(window)).sum(dim=1).masked_fill(candidates[:, column] < 0, -1.0)
            this = torch.stack([candidates[:, column], *(torch.full_like(candidates[:, column], x) for x in (int(mirrored), dy, dx))], 1)
            better = value > best
            best, move = torch.where(better, value, best), torch.where(better[:, None], this, move)
    best, move = best.double().clamp(-1, 1).cpu(), move.cpu()
    return move[:, 0].numpy(), best.numpy(), move[:, 1].bool().numpy(), move[:, 2:].numpy()
