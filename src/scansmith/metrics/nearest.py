"""The nearest training image of each synthetic one: Pearson correlation over small shifts and mirror images."""

from __future__ import annotations

from functools import reduce as fold
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional

EXTRACTOR = "Pearson correlation, shifts of up to 2 in 64 pixels, mirrored"
SEARCH_SIZE = 32
SIZE = 64
CANDIDATES = 3
# Standard deviation, of a range of 2, below which an image has no contrast to correlate.
FLAT = 1e-4


class Nearest(NamedTuple):
    """For each of N images: its nearest of M others, and how to lay that one over it.

    Attributes:
        rows: (N,) int64 row of the nearest image.
        similarity: (N,) float64 Pearson correlation, -1 to 1; 0 when an image is constant.
        mirrored: (N,) bool, the nearest image has to be mirrored left to right first.
        shift: (N, 2) int64 rows and columns that it then has to be moved by, on the reduced grid of at most 64 pixels.
    """

    rows: np.ndarray
    similarity: np.ndarray
    mirrored: np.ndarray
    shift: np.ndarray


def reduce(images: np.ndarray) -> np.ndarray:
    """(N, C, H, W) -> float32 with a longer side of at most 64, by area: what `nearest` compares."""
    return _area(torch.from_numpy(np.ascontiguousarray(images, np.float32)), SIZE).numpy()


def nearest(
    images: np.ndarray,
    others: np.ndarray,
    device: torch.device | str = "cpu",
    groups: np.ndarray | None = None,
    chunk: int = 1024,
    unmirrored: int = 0,
) -> Nearest:
    """Find the most similar of `others` for each of `images`.

    Two passes: at 32 pixels over shifts of one pixel and mirror images, then the three best of either at 64 over shifts
    of up to two. Memory stays near chunk x chunk similarities.

    Args:
        images, others: (N, C, H, W) and (M, C, H, W), N, M >= 1, of one size; larger ones are reduced by area first.
        device: where the products run.
        groups: (N,) int64, for two equal sets: rows of one group (one patient) are not compared with each other. None
            compares everything. An image that has nobody to be compared with gets similarity -1.
        chunk: rows compared at once.
        unmirrored: the last so many channels are the same in a mirror image: central sagittal slices.
    """
    assert len(others) > 0 and (groups is None or len(groups) == len(images) == len(others))
    own = None if groups is None else torch.as_tensor(groups, device=device)
    a, b = (torch.from_numpy(reduce(x)).to(device) for x in (images, others))
    found: list[Nearest] = []
    with torch.inference_mode(), torch.autocast(torch.device(device).type, enabled=False):
        b_small = _area(b, SEARCH_SIZE)
        for start in range(0, len(a), chunk):
            rows, small = a[start : start + chunk], _area(a[start : start + chunk], SEARCH_SIZE)
            candidates = [
                (mirrored, row)
                for mirrored, query in ((False, small), (True, mirror(small, unmirrored)))
                for row in _candidates(query, b_small, own, start, chunk).T
            ]
            found.append(_refine(rows, b, candidates, unmirrored))
    return Nearest(*(np.concatenate(column) for column in zip(*found)))


def join(first: Nearest, second: Nearest, offset: int) -> Nearest:
    """The nearer of two searches over parts of the others; rows of the second part begin at `offset`."""
    better = second.similarity > first.similarity
    moved = np.where(better[:, None], second.shift, first.shift)
    return Nearest(
        np.where(better, second.rows + offset, first.rows),
        np.where(better, second.similarity, first.similarity),
        np.where(better, second.mirrored, first.mirrored),
        moved,
    )


def mirror(images: torch.Tensor, unmirrored: int) -> torch.Tensor:
    """(..., C, H, W) left to right, but for the last `unmirrored` channels."""
    flipped = images.flip(-1)
    if unmirrored:
        flipped[..., -unmirrored:, :, :] = images[..., -unmirrored:, :, :]
    return flipped


def _area(images: torch.Tensor, size: int) -> torch.Tensor:
    """(N, C, H, W) with a longer side of at most `size`."""
    height, width = images.shape[-2:]
    if max(height, width) <= size:
        return images
    scale = size / max(height, width)
    return functional.interpolate(
        images, size=(max(8, round(height * scale)), max(8, round(width * scale))), mode="area"
    )


def _unit(windows: torch.Tensor) -> torch.Tensor:
    """(..., C, h, w) -> (..., C h w) with zero mean and unit norm, so that a product of two is Pearson's r."""
    flat = windows.flatten(-3)
    flat = flat - flat.mean(dim=-1, keepdim=True)
    # A window without contrast has no correlation: rounding noise must not be scaled up to one.
    norm = flat.norm(dim=-1, keepdim=True)
    return torch.where(norm > FLAT * flat.shape[-1] ** 0.5, flat / norm.clamp_min(1e-12), torch.zeros_like(flat))


def _moved(images: torch.Tensor, reach: int) -> list[tuple[int, int, torch.Tensor]]:
    """(rows, columns, window) for every shift: the interior as it looks after that move."""
    height, width = images.shape[-2:]
    return [
        (dy, dx, images[..., reach - dy : height - reach - dy, reach - dx : width - reach - dx])
        for dy, dx in product(range(-reach, reach + 1), repeat=2)
    ]


def _candidates(
    images: torch.Tensor, others: torch.Tensor, own: torch.Tensor | None, first: int, chunk: int
) -> torch.Tensor:
    """(N, k) rows of the k others that look nearest at 32 pixels, best first; -1 for none.

    `own` has the group of every image; images[0] is row `first` of it.
    """
    # The queries move, not the others: they are the smaller set and are normalised once for each move.
    queries = [_unit(window) for _, _, window in _moved(images, 1)]
    values, rows = [], []
    for start in range(0, len(others), chunk):
        part = _unit(others[start : start + chunk, :, 1:-1, 1:-1]).T
        similarity = fold(torch.maximum, (query @ part for query in queries))
        if own is not None:
            same = own[first : first + len(images), None] == own[None, start : start + part.shape[1]]
            similarity = similarity.masked_fill(same, -2.0)
        value, row = similarity.topk(min(CANDIDATES, part.shape[1]), dim=1)
        values.append(value)
        rows.append(row + start)
    value, row = torch.cat(values, 1), torch.cat(rows, 1)
    value, order = value.topk(min(CANDIDATES, value.shape[1]), dim=1)
    return torch.where(value > -1.5, row.gather(1, order), -1)


def _refine(
    images: torch.Tensor, others: torch.Tensor, candidates: list[tuple[bool, torch.Tensor]], unmirrored: int
) -> Nearest:
    """The best candidate of each image at full size, over shifts of up to 2 pixels; `candidates`: (mirrored, row of each)."""
    inner = _unit(images[..., 2:-2, 2:-2])
    best = torch.full((len(images),), -2.0, device=images.device)
    move = torch.zeros((len(images), 4), dtype=torch.int64, device=images.device)
    for mirrored, row in candidates:
        candidate = mirror(others[row], unmirrored) if mirrored else others[row]
        norms = _window_norms(candidate, inner.shape[1])
        for number, (dy, dx, window) in enumerate(_moved(candidate, 2)):
            value = (inner * window.flatten(1)).sum(dim=1) / norms[:, number]
            value = value.masked_fill(row < 0, -1.0)
            this = torch.stack([row, *(torch.full_like(row, x) for x in (int(mirrored), dy, dx))], 1)
            better = value > best
            best, move = torch.where(better, value, best), torch.where(better[:, None], this, move)
    found = move.cpu().numpy()
    return Nearest(found[:, 0], best.double().clamp(-1, 1).cpu().numpy(), found[:, 1].astype(bool), found[:, 2:])


def _window_norms(images: torch.Tensor, pixels: int) -> torch.Tensor:
    """(N, 25) norm of each window of `_moved(images, 2)` about its mean; infinite for a window without contrast.

    From integral images in float64: centring each of 25 windows would cost five times the products themselves.
    """
    wide = images.double() - images.double().mean(dim=(1, 2, 3), keepdim=True)
    total, squares = (_window_sums(x.sum(dim=1)) for x in (wide, wide.square()))
    variance = (squares / pixels - (total / pixels).square()).clamp_min(0.0).float()
    # `_moved` goes from the lowest shift, which shows the window farthest down and right, to the highest.
    return torch.where(variance > FLAT**2, (variance * pixels).sqrt(), torch.inf).flatten(1).flip(1)


def _window_sums(images: torch.Tensor) -> torch.Tensor:
    """(N, H, W) -> (N, 5, 5) sums over the windows of (H - 4, W - 4)."""
    height, width = images.shape[-2] - 4, images.shape[-1] - 4
    integral = functional.pad(images.cumsum(-1).cumsum(-2), (1, 0, 1, 0))
    return integral[:, height:, width:] - integral[:, :5, width:] - integral[:, height:, :5] + integral[:, :5, :5]
