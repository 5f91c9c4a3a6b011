"""A generator of residual blocks that turns one kind of image into another (Johnson 2016; Zhu 2017, section 7.1).

Batch norm instead of instance norm: in use it is a fixed scale per channel, so that a window of an image gets what the whole image
would get, and the level of a patch, which is HU, is not taken away.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONVOLUTIONS, SLOPE, UP_CONVOLUTIONS, BatchNorm
from .unet import Block

DOUBLINGS = 2


class ResNet(nn.Module):
    """Images (B, in_channels, *spatial) -> (B, 1, out_channels, *spatial) float32, without a limit.

    Args:
        in_channels, out_channels: of the images.
        dimensions: 2 or 3.
        width: channels at full resolution, doubled twice.
        blocks: residual blocks at a quarter of the resolution.
    """

    step = 2**DOUBLINGS

    def __init__(
        self, in_channels: int, out_channels: int, dimensions: int = 2, width: int = 32, blocks: int = 6
    ) -> None:
        super().__init__()
        convolution, up = CONVOLUTIONS[dimensions], UP_CONVOLUTIONS[dimensions]
        widths = [width * 2**level for level in range(DOUBLINGS + 1)]
        self.widths = [*widths, widths[-1]]  # of what `encoded` gives, but for the last
        self.start = convolution(in_channels, width, 5, padding=2)
        self.downs = nn.ModuleList(convolution(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.blocks = nn.ModuleList(Block(dimensions, widths[-1]) for _ in range(blocks))
        self.ups = nn.ModuleList(up(b, a) for a, b in pairwise(widths))
        self.down_norms = nn.ModuleList(BatchNorm(channels) for channels in widths[:-1])
        self.up_norms = nn.ModuleList(BatchNorm(channels) for channels in widths)
        self.end = convolution(width, out_channels, 5, padding=2)

    def encoded(self, x: Tensor) -> list[Tensor]:
        """What the encoder sees, (B, C, *spatial / 1, 2, 4, 4, 4): at three resolutions, behind half and behind all of the blocks."""
        if any(side % self.step for side in x.shape[2:]):
            raise ValueError(f"expected sides divisible by {self.step}, found {tuple(x.shape[2:])}: pad the image")
        x = self.start(x)
        found = [x]
        for norm, down in zip(self.down_norms, self.downs):
            x = down(F.leaky_relu(norm(x), SLOPE))
            found.append(x)
        for number, block in enumerate(self.blocks, 1):
            x = block(x)
            if number in (len(self.blocks) // 2, len(self.blocks)):
                found.append(x)
        return found

    def forward(self, x: Tensor) -> Tensor:
        return self.decoded(self.encoded(x)[-1])

    def decoded(self, x: Tensor) -> Tensor:
        """The image (B, 1, out_channels, *spatial) of the last map that the encoder gave."""
        norms: Sequence[nn.Module] = list(self.up_norms)[::-1]
        for norm, up in zip(norms, list(self.ups)[::-1]):
            x = up(F.leaky_relu(norm(x), SLOPE))
        x = F.leaky_relu(norms[-1](x), SLOPE)
        with torch.autocast(x.device.type, enabled=False):  # a step of bf16 near 1 is 8 HU
            made: Tensor = self.end(x.float())
        return made[:, None]
