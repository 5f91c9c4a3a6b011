"""The residual pair for long runs and large images: R3GAN's plan, compact, D the mirror of G (Huang 2024, section 4).

No normalisation. A block adds what two 3x3 convolutions make of its input (768: 1x1, grouped 3x3, 1x1); the last one
starts at zero and the others are scaled to the depth (fix-up, Zhang 2019), so that the pair starts nearly linear and
grows into its depth. Between levels, [1,2,1] resampling beside a 1x1 convolution.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CHANNELS_LAST, CONVOLUTIONS, SLOPE, Prior, Shares
from .penalised import Bend, Convolution, Convolve, Discriminator

# Channels from the smallest grid up, the last one for all finer grids.
CHANNELS = {
    16: (16, 16, 16, 8),  # for tests
    128: (128, 128, 64, 32, 16),
    256: (256, 256, 256, 128, 64, 32),
    384: (384, 384, 384, 256, 128, 64, 32),
    768: (768, 768, 768, 768, 384, 192, 96),
}
BOTTLENECK = 768  # from this width on two blocks a level, each 1x1, grouped 3x3, 1x1; below one block of two 3x3
GROUP = 16  # channels of a group
_TRANSPOSE = {2: F.conv_transpose2d, 3: F.conv_transpose3d}


class ResidualGenerator(nn.Module):
    """z (and class) -> image: a learned picture per channel on the base grid, then blocks and upsampling per doubling.

    Args:
        channels: image channels.
        base: smallest grid, (h0, w0) for images or (d0, h0, w0) for volumes.
        doublings: the image is base * 2**doublings.
        width: a row of `CHANNELS`, channels at the smallest grid.
        latent: length of z.
        classes, kinds: what beside z says what is made, see `Prior`.

    Raises:
        ValueError: no such row.
    """

    def __init__(
        self,
        channels: int,
        base: Sequence[int],
        doublings: int,
        width: int = 384,
        latent: int = 64,
        classes: int = 0,
        kinds: Shares = (),
    ) -> None:
        super().__init__()
        n, widths = len(base), _widths(width, doublings)
        self.latent, self.base = latent, tuple(int(side) for side in base)
        self.prior = Prior(latent, classes, kinds)
        self.start = nn.Linear(self.prior.size, widths[0], bias=False)
        self.basis = nn.Parameter(torch.randn(widths[0], math.prod(self.base)))
        self.levels = nn.ModuleList(_blocks(n, c, width, doublings) for c in widths)
        self.ups = nn.ModuleList(CONVOLUTIONS[n](a, b, 1, bias=False) for a, b in pairwise(widths))
        self.end = CONVOLUTIONS[n](widths[-1], channels, 3, padding=1)
        for layer in (self.start, *self.ups, self.end):
            _scale(layer, 1.0)
        # No features, no tissue: padding weakens features along two edges at every doubling, which is to mean background.
        assert self.end.bias is not None
        nn.init.constant_(self.end.bias, -1.0)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Latents (B, latent), classes (B,) int64 or None -> (B, channels, *spatial) float32, nominally in [-1, 1]."""
        n, x = len(self.base), self.start(self.prior(z, classes))[:, :, None]
        x = (x * self.basis.to(x.dtype)).unflatten(2, self.base).contiguous(memory_format=CHANNELS_LAST[n])
        for level, blocks in enumerate(self.levels):
            if level:
                kernel = _resampled(self.ups[level - 1], 2.0).transpose(0, 1)
                x = _TRANSPOSE[n](x, kernel, stride=2, padding=1, output_padding=1)
            for block in blocks:  # type: ignore[attr-defined]
                x = x + block(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.end(x.float())


class ResidualDiscriminator(Discriminator):
    """Image (and class) -> score: blocks and downsampling per doubling, a learned picture per channel, a linear layer.

    Args:
        channels, base, doublings, width, classes: as in `ResidualGenerator`.
    """

    def __init__(self, channels: int, base: Sequence[int], doublings: int, width: int = 384, classes: int = 0) -> None:
        n, widths = len(base), _widths(width, doublings)[::-1]
        super().__init__(widths[-1], classes)
        self.first = CONVOLUTIONS[n](channels, widths[0], 3, padding=1, bias=False)
        self.levels = nn.ModuleList(_blocks(n, c, width, doublings) for c in widths)
        self.downs = nn.ModuleList(CONVOLUTIONS[n](a, b, 1, bias=False) for a, b in pairwise(widths))
        self.basis = nn.Parameter(torch.randn(widths[-1], math.prod(base)) / math.sqrt(math.prod(base)))
        for layer in (self.first, *self.downs, self.end):
            _scale(layer, 1.0)

    def _trunk(self, x: Tensor, convolve: Convolve, bend: Bend) -> Tensor:
        x, index = convolve(0, x), 1
        for level, blocks in enumerate(self.levels):
            if level:
                x, index = convolve(index, x), index + 1
            for block in blocks:  # type: ignore[attr-defined]
                y = x
                for number in range(len(block.convolutions)):
                    y, index = convolve(index, bend(y) if number else y), index + 1
                x = x + y
        return x

    def _convolutions(self) -> list[Convolution]:
        result = [Convolution.of(self.first)]
        for level, blocks in enumerate(self.levels):
            if level:
                result.append(Convolution(_resampled(self.downs[level - 1], 1.0), None, stride=2, padding=1))
            result += [Convolution.of(layer) for block in blocks for layer in block.convolutions]  # type: ignore[attr-defined]
        return result

    def _last(self, count: int, classes: Tensor | None) -> Tensor:
        """The linear layer behind the pictures, (B, channels * base pixels)."""
        return (super()._last(count, classes)[:, :, None] * self.basis).flatten(1)


class _Block(nn.Module):
    """What a residual block adds to its input, zero at first: convolutions with a leaky ReLU between them."""

    def __init__(self, dimensions: int, channels: int, width: int, depth: int) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[dimensions]
        if width >= BOTTLENECK:
            inner = 2 * channels
            layers = [
                convolution(channels, inner, 1),
                convolution(inner, inner, 3, padding=1, groups=inner // GROUP),
                convolution(inner, channels, 1, bias=False),
            ]
        else:
            layers = [
                convolution(channels, channels, 3, padding=1),
                convolution(channels, channels, 3, padding=1, bias=False),
            ]
        self.convolutions = nn.ModuleList(layers)
        # Fix-up: with m layers a block and `depth` blocks, He's scale times depth^(-1 / (2m - 2)); the last layer is zero.
        gain = math.sqrt(2.0 / (1.0 + SLOPE**2)) * depth ** (-1.0 / (2 * len(layers) - 2))
        for layer in layers:
            _scale(layer, gain)
        nn.init.zeros_(layers[-1].weight)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.convolutions
        x = first(x)
        for layer in rest:
            x = layer(F.leaky_relu(x, SLOPE))
        return x


def _widths(width: int, doublings: int) -> list[int]:
    """Channels per level, from the smallest grid up."""
    if width not in CHANNELS:
        raise ValueError(
            f"expected a width of {sorted(CHANNELS)} for the residual pair, found {width}: choose one of them"
        )
    row = CHANNELS[width]
    return [row[min(level, len(row) - 1)] for level in range(doublings + 1)]


def _blocks(dimensions: int, channels: int, width: int, doublings: int) -> nn.ModuleList:
    """The blocks of one level."""
    count = 2 if width >= BOTTLENECK else 1
    return nn.ModuleList(_Block(dimensions, channels, width, count * (doublings + 1)) for _ in range(count))


def _scale(layer: nn.Module, gain: float) -> None:
    """Weights ~ N(0, gain^2 / fan-in), biases 0."""
    assert isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
    nn.init.normal_(layer.weight, 0.0, gain / math.sqrt(layer.weight[0].numel()))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def _resampled(layer: nn.Module, gain: float) -> Tensor:
    """A 1x1 convolution and a [1,2,1] filter in one kernel, (out, in, 1, 1) -> (out, in, 3, 3), in 3-D likewise.

    As the kernel of a convolution with stride 2 it halves an image (gain 1), of a transposed one it doubles it by
    linear interpolation (gain 2 per axis). A dense kernel needs no grouped convolution, whose gradient is slow on CPUs:
    measured at 32 channels and 64 x 64 in bf16, 25 ms alone against 15 ms for a whole 3x3 convolution, both ways.
    """
    assert isinstance(layer.weight, Tensor)
    filtered, n = layer.weight, layer.weight.dim() - 2
    taps = torch.tensor([0.25, 0.5, 0.25], device=filtered.device) * gain
    for axis in range(n):
        filtered = filtered * taps.view(*[3 if axis == other else 1 for other in range(n)])
    return filtered
