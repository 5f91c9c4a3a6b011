"""Differentiable augmentation of real and generated images before the discriminator (Zhao 2020; Karras 2020).

The random part draws parameters, the deterministic part applies them. Only changes that keep anatomy plausible: no
flips (organs have sides), no quarter turns, no inversion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Draw:
    """One draw for B images; what is not applied to an image is the identity there.

    Attributes:
        shift: (B, 2) in fractions of the image (x, y).
        scale: (B,) magnification.
        brightness: (B,) added. contrast: (B,) factor about the image's mean.
        hole: (B, 2) centre of the cut-out square, fraction of the image; hole_size: (B,) its side, 0 for none.
    """

    shift: Tensor
    scale: Tensor
    brightness: Tensor
    contrast: Tensor
    hole: Tensor
    hole_size: Tensor


def draw(count: int, p: float, generator: torch.Generator) -> Draw:
    """Parameters for `count` images, each change with probability `p` per image.

    Shift up to 1/8 of the side, scale 2^+-0.2, brightness +-0.2 (of a range of 2), contrast 2^+-0.4, a hole of 3/8.
    """
    uniform = torch.rand(count, 7, generator=generator) * 2.0 - 1.0
    on = (torch.rand(count, 4, generator=generator) < p).float()
    return Draw(
        shift=uniform[:, :2] * 0.125 * on[:, :1],
        scale=2.0 ** (uniform[:, 2] * 0.2 * on[:, 0]),
        brightness=uniform[:, 3] * 0.2 * on[:, 1],
        contrast=2.0 ** (uniform[:, 4] * 0.4 * on[:, 2]),
        hole=uniform[:, 5:7] * 0.5,
        hole_size=0.375 * on[:, 3],
    )


def apply(images: Tensor, parameters: Draw) -> Tensor:
    """(B, C, H, W) in [-1, 1] -> the same shape, differentiable; outside the image is -1, the windows' lower end."""
    count, _, height, width = images.shape
    to = images.device
    theta = torch.zeros(count, 2, 3, device=to)
    theta[:, 0, 0] = theta[:, 1, 1] = 1.0 / parameters.scale.to(to)
    theta[:, :, 2] = -2.0 * parameters.shift.to(to)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    moved = F.grid_sample(images + 1.0, grid, padding_mode="zeros", align_corners=False) - 1.0
    mean = moved.mean(dim=(1, 2, 3), keepdim=True)
    toned = (
        (moved - mean) * parameters.contrast.to(to).view(-1, 1, 1, 1)
        + mean
        + parameters.brightness.to(to).view(-1, 1, 1, 1)
    )
    rows = torch.linspace(-0.5, 0.5, height, device=to).view(1, -1, 1)
    columns = torch.linspace(-0.5, 0.5, width, device=to).view(1, 1, -1)
    centre, half = parameters.hole.to(to), parameters.hole_size.to(to).view(-1, 1, 1) / 2.0
    inside = (columns - centre[:, 0].view(-1, 1, 1)).abs().lt(half) & (rows - centre[:, 1].view(-1, 1, 1)).abs().lt(
        half
    )
    return toned.masked_fill(inside[:, None], 0.0)
