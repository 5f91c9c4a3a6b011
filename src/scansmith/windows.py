"""A network over an image larger than the patches that it learned from: overlapping windows, blended without seams."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise, product

import torch
from torch import Tensor

SIGMA = 0.125  # of a window's side: deviation of the Gaussian by which windows are weighed (Isensee 2021)
LEAST = 1e-4  # weight at a window's borders along each axis, of that in its middle: no voxel is left without
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
    any_size: bool = False,
) -> Tensor:
    """The network's output for the whole image; memory is that of image and output and of one batch of windows.

    Args:
        network: (B, C, *patch) -> (B, K, *patch), on the image's device.
        image: (C, *spatial), 2 or 3 axes of any length.
        patch: sides of a window; where the image is smaller it is padded with `fill` (see `padded`).
        overlap: share of a window that the next one covers too, 0 to below 1.
        batch: windows at a time.
        step: a network that halves its input d times gives shifted windows the same output only if they are shifted by
            multiples of 2**d: windows then begin at multiples of this, and the image is padded to one.
        where: bool (*spatial), what is wanted; windows without any of it are not computed.
        fill: value around the image.
        any_size: the network takes images of any size, multiples of `step`, and gives a voxel the same value in all of them but
            for what lies near a border. Neighbouring windows are then computed as one larger one, up to the voxels of a batch:
            what they share is computed once, and sees more of the image. The weights stay those of the single windows.

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
    sides = [max(-(-side // step) * step, window) for side, window in zip(size, patch)]
    if sides != list(size):
        whole, inside = padded(image, sides, patch, fill)
        wanted = None
        if where is not None:
            wanted = where.new_zeros(sides)
            wanted[inside] = where
        return predict(network, whole, patch, overlap, batch, step, wanted, fill, any_size)[(slice(None), *inside)]
    if any_size and where is None:
        return joined(network, image, patch, firsts(size, patch, overlap, step), batch)
    total, weights, weight = None, torch.zeros(sides, device=image.device), blend(patch, image.device)
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
    total.div_(weights.clamp_min(torch.finfo(torch.float32).tiny))
    return total if where is None else total.masked_fill_(weights == 0, fill)


def padded(image: Tensor, sides: Sequence[int], patch: Sequence[int], fill: float) -> tuple[Tensor, tuple[slice, ...]]:
    """(C, *spatial) -> (C, *sides) with the image in the middle, and where it lies.

    Along an axis that is shorter than the patch with `fill`, as patches are learned from; else the border's values go on, so
    that no edge appears where an image is cut off.
    """
    gaps = [((to - have) // 2, to - have - (to - have) // 2) for to, have in zip(sides, image.shape[1:])]
    for axis, ((before, after), side, have) in enumerate(zip(gaps, patch, image.shape[1:]), 1):
        ends = [image.narrow(axis, place, 1) for place in (0, have - 1)]
        beside = [torch.full_like(end, fill) if have < side else end for end in ends]
        parts = [beside[0]] * before + [image] + [beside[1]] * after
        image = torch.cat(parts, axis) if before or after else image
    return image, tuple(slice(before, to - after) for (before, after), to in zip(gaps, sides))


def joined(
    network: Callable[[Tensor], Tensor],
    image: Tensor,
    patch: Sequence[int],
    starts: Sequence[Sequence[int]],
    batch: int,
) -> Tensor:
    """`predict` for networks that take any size: runs of windows along each axis as one, one at a time."""
    runs = shared(starts, patch, batch * math.prod(patch))
    weight, known = blend(patch, image.device), {}
    total = weights = None
    for some in product(*runs):
        corner = [own[0] for own in some]
        sides = [own[-1] - own[0] + side for own, side in zip(some, patch)]
        place = window(tuple(corner), sides)
        with torch.inference_mode():
            made = network(image[(slice(None), *place)][None])[0].float()
        if sides == list(image.shape[1:]):
            return made
        offsets = tuple(tuple(first - own[0] for first in own) for own in some)
        if offsets not in known:
            known[offsets] = summed(weight, offsets, sides)
        if total is None or weights is None:
            total, weights = made.new_zeros((len(made), *image.shape[1:])), weight.new_zeros(image.shape[1:])
        total[(slice(None), *place)].addcmul_(made, known[offsets])
        weights[place] += known[offsets]
    assert total is not None and weights is not None, "an image has windows"
    return total.div_(weights)


def summed(weight: Tensor, offsets: Sequence[Sequence[int]], sides: Sequence[int]) -> Tensor:
    """The weights of all windows that begin at every combination of the offsets, (*sides)."""
    result = weight.new_zeros(tuple(sides))
    for corner in product(*offsets):
        result[window(corner, weight.shape)] += weight
    return result


def shared(starts: Sequence[Sequence[int]], patch: Sequence[int], most: int) -> list[list[list[int]]]:
    """The first voxels of windows along each axis, cut into even runs.

    Of all ways in which no run of runs has more than `most` voxels, that with the fewest voxels in all.
    """
    ways = [[cut_evenly(own, count) for count in range(1, len(own) + 1)] for own in starts]

    def lengths(runs: list[list[int]], side: int) -> list[int]:
        return [own[-1] - own[0] + side for own in runs]

    sizes = [[lengths(way, side) for way in some] for some, side in zip(ways, patch)]
    least: tuple[int, tuple[int, ...]] | None = None
    for chosen in product(*(range(len(some)) for some in ways)):
        picked = [sizes[axis][number] for axis, number in enumerate(chosen)]
        if math.prod(map(max, picked)) > most:
            continue
        cost = math.prod(map(sum, picked))
        if least is None or cost < least[0]:
            least = cost, chosen
    assert least is not None, "single windows fit"
    return [ways[axis][number] for axis, number in enumerate(least[1])]


def cut_evenly(values: Sequence[int], count: int) -> list[list[int]]:
    """A sequence in so many parts of nearly equal length."""
    ends = [number * len(values) // count for number in range(count + 1)]
    return [list(values[first:last]) for first, last in pairwise(ends)]


def window(corner: Corner, patch: Sequence[int]) -> tuple[slice, ...]:
    """Where a window lies."""
    return tuple(slice(first, first + side) for first, side in zip(corner, patch))


def grid(size: Sequence[int], patch: Sequence[int], overlap: float, step: int = 1) -> Iterator[Corner]:
    """First voxels, multiples of `step`, of evenly spaced windows that cover the image and overlap by that share at least.

    Where windows cannot overlap so much, since one step is more, they lie a step apart.
    """
    return product(*firsts(size, patch, overlap, step))


def firsts(size: Sequence[int], patch: Sequence[int], overlap: float, step: int = 1) -> list[list[int]]:
    """Where the windows of `grid` begin along each axis."""
    axes = []
    for side, length in zip(size, patch):
        stride = max(step, math.floor(length * (1.0 - overlap) + 1e-9) // step * step)
        count = -(-(side - length) // stride)
        axes.append([number * (side - length) // max(count, 1) // step * step for number in range(count + 1)])
    return axes


def blend(patch: Sequence[int], device: torch.device) -> Tensor:
    """A Gaussian about the window's middle, along each axis 1 at most and `LEAST` at least, float32 (*patch).

    The least is along each axis, not of the product: where two windows share a corner of the image, the one whose border is
    there counts as little as elsewhere.
    """
    weight = torch.ones((), device=device)
    for side in patch:
        place = (torch.arange(side, device=device) - (side - 1) / 2.0) / (SIGMA * side)
        weight = weight[..., None] * torch.exp(-0.5 * place.square()).clamp_min(LEAST)
    return weight
