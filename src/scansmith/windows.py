"""A network over an image larger than the patches that it learned from: overlapping windows, blended without seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, product

import torch
from torch import Tensor

SIGMA = 0.125  # of a window's side: deviation of the Gaussian by which windows are weighed (Isensee 2021)
LEAST = 1e-3  # weight at a window's corners, of that in its middle: no voxel is left without
Corner = tuple[int, ...]


def predict(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    patch: Sequence[int],
    overlap: float = 0.5,
    batch: int = 4,
    step: int = 1,
    where: Tensor | None = None,
    fill: float = -1.0,
) -> Tensor:
    """The network's output for the whole image; memory is that of image and output and of one batch of windows.

    Args:
        network: (B, C, *patch) -> (B, K, *patch), on the image's device.
        image: (C, *spatial), 2 or 3 axes of any length.
        patch: sides of a window; where the image is smaller it is padded with `fill`.
        overlap: share of a window that the next one covers too, 0 to below 1.
        batch: windows at a time.
        step: a network that halves its input d times gives shifted windows the same output only if they are shifted by
            multiples of 2**d: windows then begin at multiples of this, and the image is padded to one.
        where: bool (*spatial), what is wanted; windows without any of it are not computed.
        fill: value around the image.

    Returns:
        (K, *spatial) float32; `fill` where no window was computed.

    Raises:
        ValueError: a patch of other dimensions or no multiple of `step`, an overlap or a batch out of range, nothing wanted.
    """
    size = image.shape[1:]
    if len(patch) != len(size) or any(side < 1 or side % step for side in patch):
        raise ValueError(
            f"expected a patch of {len(size)} sides, multiples of {step}, found {tuple(patch)}: give another patch"
        )
    if not 0.0 <= overlap < 1.0 or batch < 1:
        raise ValueError(
            f"expected an overlap from 0 to below 1 and a batch of 1 or more, found {overlap} and {batch}: give others"
        )
    padded = [max(-(-side // step) * step, window) for side, window in zip(size, patch)]
    if padded != list(size):
        whole = image.new_full((len(image), *padded), fill)
        inside = tuple(slice((large - side) // 2, (large - side) // 2 + side) for large, side in zip(padded, size))
        whole[(slice(None), *inside)] = image
        wanted = None
        if where is not None:
            wanted = where.new_zeros(padded)
            wanted[inside] = where
        return predict(network, whole, patch, overlap, batch, step, wanted, fill)[(slice(None), *inside)]
    total, weights, weight = None, torch.zeros(padded, device=image.device), blend(patch, image.device)
    corners = (
        corner for corner in grid(size, patch, overlap, step) if where is None or where[window(corner, patch)].any()
    )
    while some := list(islice(corners, batch)):
        with torch.inference_mode():
            made = network(torch.stack([image[(slice(None), *window(corner, patch))] for corner in some])).float()
        if total is None:
            total = torch.zeros((made.shape[1], *size), device=image.device)
        for corner, one in zip(some, made):
            total[(slice(None), *window(corner, patch))].addcmul_(one, weight)
            weights[window(corner, patch)] += weight
    if total is None:
        raise ValueError("expected some of the image to be wanted, found an empty mask: give the body's mask")
    seen = weights > 0
    return torch.where(seen, total / weights.clamp_min(torch.finfo(torch.float32).tiny), fill)


def window(corner: Corner, patch: Sequence[int]) -> tuple[slice, ...]:
    """Where a window lies."""
    return tuple(slice(first, first + side) for first, side in zip(corner, patch))


def grid(size: Sequence[int], patch: Sequence[int], overlap: float, step: int = 1) -> Iterator[Corner]:
    """First voxels, multiples of `step`, of evenly spaced windows that cover the image and overlap by that share at least.

    Where windows cannot overlap so much, since one step is more, they lie a step apart.
    """
    axes = []
    for side, length in zip(size, patch):
        stride = max(step, math.floor(length * (1.0 - overlap) + 1e-9) // step * step)
        count = -(-(side - length) // stride)
        axes.append([number * (side - length) // max(count, 1) // step * step for number in range(count + 1)])
    return product(*axes)


def blend(patch: Sequence[int], device: torch.device) -> Tensor:
    """A Gaussian about the window's middle, 1 at most and `LEAST` at least, float32 (*patch)."""
    weight = torch.ones((), device=device)
    for side in patch:
        place = (torch.arange(side, device=device) - (side - 1) / 2.0) / (SIGMA * side)
        weight = weight[..., None] * torch.exp(-0.5 * place.square())
    return weight.clamp_min(LEAST)
