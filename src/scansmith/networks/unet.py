"""A residual U-Net that turns one image into another, with bounds: full resolution kept by skips, no limit on the output.

Ronneberger 2015 gave the layout. Batch norm, not instance norm: in use it is a fixed scale per channel, so that neither the share of
air in a window of an image nor its neighbours move a value; but for its border a window that begins at a multiple of
2**doublings gets the output that the whole image would.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONVOLUTIONS, SLOPE, UP_CONVOLUTIONS, BatchNorm

WIDEST = 8  # times the width at full resolution
# Bounds begin at softplus(-2) = .13 from the middle. They and logits move so many times as fast as other outputs: their losses are
# flat, and short runs are few steps.
FIRST, QUICK = -2.0, 4.0
BOTTOM = -1.0 + 1e-4  # of the window, encoded; resampling and thickening round


class UNet(nn.Module):
    """Image -> middle, lower and upper bound of another, or logits, each (B, out_channels, *spatial).

    Args:
        in_channels, out_channels: of the images.
        dimensions: 2 or 3.
        width: channels at full resolution; doubled per level up to `WIDEST` times that.
        doublings: levels below full resolution; sides must be divisible by 2**doublings.
        residual: the middle is what is added to the source's middle channels.
        heads: 3, or 1 for logits alone.
        sources: of several sources their number: in each slice of the input so many channels are images, and as many say which are there.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        dimensions: int = 2,
        width: int = 32,
        doublings: int = 4,
        residual: bool = False,
        heads: int = 3,
        sources: int = 0,
    ) -> None:
        super().__init__()
        self.heads, self.sources = heads, sources
        before = (in_channels - out_channels) // 2
        self.added = slice(before, before + out_channels) if residual else None
        convolution, up = CONVOLUTIONS[dimensions], UP_CONVOLUTIONS[dimensions]
        widths = [width * min(WIDEST, 2**level) for level in range(doublings + 1)]
        self.step = 2**doublings
        self.start = convolution(in_channels + 1, width, 3, padding=1)
        self.encoders = nn.ModuleList(Block(dimensions, channels) for channels in widths)
        self.downs = nn.ModuleList(convolution(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.ups = nn.ModuleList(up(b, a) for a, b in pairwise(widths))
        self.joins = nn.ModuleList(convolution(2 * channels, channels, 1) for channels in widths[:-1])
        self.decoders = nn.ModuleList(Block(dimensions, channels) for channels in widths[:-1])
        self.norm = BatchNorm(width)
        self.end = convolution(width, heads * out_channels, 1)
        nn.init.zeros_(self.end.weight)
        assert self.end.bias is not None
        nn.init.zeros_(self.end.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, *spatial) -> (B, heads, out_channels, *spatial) float32: middle, lower, upper with lower <= middle <= upper."""
        source = x
        if any(side % self.step for side in x.shape[2:]):
            raise ValueError(f"expected sides divisible by {self.step}, found {tuple(x.shape[2:])}: pad the image")
        # Where there is nothing, as around a brain that was cut out, all voxels lie at the bottom; in dark fluid they lie near it.
        images = x.unflatten(1, (-1, 2 * self.sources))[:, :, : self.sources].flatten(1, 2) if self.sources else x
        nothing = (images <= BOTTOM).all(1, keepdim=True)
        x = self.encoders[0](self.start(torch.cat([x, nothing.to(x.dtype)], 1)))
        skips = []
        for down, encoder in zip(self.downs, list(self.encoders)[1:]):
            skips.append(x)
            x = encoder(down(x))
        for up, join, decoder, skip in zip(
            *(list(part)[::-1] for part in (self.ups, self.joins, self.decoders)), skips[::-1]
        ):
            x = decoder(join(torch.cat([up(x), skip], 1)))
        x = F.leaky_relu(self.norm(x), SLOPE, inplace=True)
        with torch.autocast(x.device.type, enabled=False):  # a step of bf16 near 1 is 8 HU
            # A convolution of one voxel, as a product: in float32 that is many times faster.
            made = F.linear(x.float().movedim(1, -1), self.end.weight.flatten(1), self.end.bias).movedim(-1, 1)
            middle, *bounds = made.chunk(self.heads, 1)
            if self.added is not None:
                middle = middle + source[:, self.added].float()
            if not bounds:
                return QUICK * middle[:, None]
            below, above = bounds
            widths = (F.softplus(QUICK * side + FIRST) for side in (below, above))
            return torch.stack([middle, *(middle + sign * width for sign, width in zip((-1.0, 1.0), widths))], 1)


class Block(nn.Module):
    """x + two convolutions of it, each behind batch norm and leaky ReLU (He 2016, "pre-activation")."""

    def __init__(self, dimensions: int, channels: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dimensions]
        self.norms = nn.ModuleList(BatchNorm(channels) for _ in range(2))
        self.convolutions = nn.ModuleList(convolution(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for norm, convolution in zip(self.norms, self.convolutions):
            y = convolution(F.leaky_relu(norm(y), SLOPE, inplace=True))
        return y.add_(x)
