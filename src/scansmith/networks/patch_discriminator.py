"""A discriminator of patches: a score for each place, which sees no more than its surroundings (Isola 2017, section 3.2.2)."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONVOLUTIONS, SLOPE

DOUBLINGS = 3
WIDEST = 8  # times the first width


class PatchDiscriminator(nn.Module):
    """Images (B, channels, *spatial) -> scores (B, 1, *spatial / 8), each of about 54 voxels a side.

    Args:
        channels: of the images, with whatever they are shown beside.
        dimensions: 2 or 3.
        width: channels of the first layer.
        normalized: whether each image is brought to one scale (instance norm), as where it is shown beside its source. Without, its
            values count as they are: alone they are all that says what is air.
    """

    def __init__(self, channels: int, dimensions: int = 2, width: int = 32, normalized: bool = True) -> None:
        super().__init__()
        self.normalized = normalized
        convolution = CONVOLUTIONS[dimensions]
        widths = [channels, *(width * min(WIDEST, 2**level) for level in range(DOUBLINGS))]
        self.downs = nn.ModuleList(convolution(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.last = convolution(widths[-1], widths[-1], 3, padding=1)
        self.end = convolution(widths[-1], 1, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        for number, layer in enumerate([*self.downs, self.last]):
            x = layer(x)
            x = F.leaky_relu(F.instance_norm(x) if self.normalized and number else x, SLOPE)
        with torch.autocast(x.device.type, enabled=False):
            scores: Tensor = self.end(x.float())
        return scores
