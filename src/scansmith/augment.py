"""Differentiable augmentation of real and generated images before the discriminator (Zhao 2020; Karras 2020).

The random part draws parameters, the deterministic part applies them. Only changes that keep anatomy plausible: no
flips (organs have sides), no quarter turns, no inversion. Images and volumes alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Draw:
    """One draw for B images of n dimensions; what is not applied to an image is the identity there.

    Attributes:
        shift: (B, n) in fractions of the image, along x, y (and z: the axes from the last one on).
        scale: (B,) magnification.
        brightness: (B,) added. contrast: (B,) factor about the image's mean.
        hole: (B, n) centre of the cut-out square, fraction of the image; hole_size: (B,) its side, 0 for none.
    """

    shift: Tensor
    scale: Tensor
    brightness: Tensor
    contrast: Tensor
    hole: Tensor
    hole_size: Tensor


def draw(count: int, p: float, generator: torch.Generator, dimensions: int = 2) -> Draw:
    """Parameters for `count` images of two or three dimensions, each change with probability `p` per image.

    Shift up to 1/8 of the side, scale 2^+-0.2, brightness +-0.2 (of a range of 2), contrast 2^+-0.4, a hole of 3/8.
    """
    n = dimensions
    uniform = torch.rand(count, 3 + 2 * n, generator=generator) * 2.0 - 1.0
    on = (torch.rand(count, 4, generator=generator) < p).float()
    return Draw(
        shift=uniform[:, :n] * 0.125 * on[:, :1],
        scale=2.0 ** (uniform[:, n] * 0.2 * on[:, 0]),
        brightness=uniform[:, n + 1] * 0.2 * on[:, 1],
        contrast=2.0 ** (uniform[:, n + 2] * 0.4 * on[:, 2]),
        hole=uniform[:, n + 3 :] * 0.5,
        hole_size=0.375 * on[:, 3],
    )


def apply(images: Tensor, parameters: Draw) -> Tensor:
    """(B, C, *spatial) in [-1, 1] -> the same shape, differentiable; outside the image is -1, the windows' lower end."""
    count, _, *spatial = images.shape
    n, to, each = len(spatial), images.device, (-1, *[1] * (len(spatial) + 1))
    assert parameters.shift.shape[1] == n, "draw was made for another number of dimensions"
    theta = torch.zeros(count, n, n + 1, device=to)
    theta[:, range(n), range(n)] = (1.0 / parameters.scale.to(to))[:, None]
    theta[:, :, n] = -2.0 * parameters.shift.to(to)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1.0, grid, padding_mode="zeros", align_corners=False) - 1.0
    mean = moved.mean(dim=tuple(range(1, n + 2)), keepdim=True)
    contrast, brightness = parameters.contrast.to(to).view(each), parameters.brightness.to(to).view(each)
    toned = (moved - mean) * contrast + mean + brightness
    return toned.masked_fill(_holes(spatial, parameters, to), 0.0)


def _holes(spatial: list[int], parameters: Draw, to: torch.device) -> Tensor:
    """(B, 1, *spatial), true within the cut-out square of each image."""
    n = len(spatial)
    half = parameters.hole_size.to(to) / 2.0
    inside = torch.ones(1, *[1] * (n + 1), dtype=torch.bool, device=to)
    for axis, side in enumerate(reversed(spatial)):  # x, y, z
        away = torch.linspace(-0.5, 0.5, side, device=to) - parameters.hole[:, axis : axis + 1].to(to)
        shape = [len(half), *[1] * (n + 1)]
        shape[-1 - axis] = side
        inside = inside & (away.abs() < half[:, None]).view(shape)
    return inside
