"""The strided pair: cheap layers that see many images in little time.

Radford 2015 (DCGAN) gave the layout; here the generator upsamples by nearest neighbour, the discriminator has no
normalisation (a gradient penalty and batch statistics do not mix) and ends in float32. The generator's batch norm is
worth much: normalised by groups, which takes each image's own level away, it began to differ between latents only after
some 5,000 images (docs/log.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CHANNELS_LAST, CONVOLUTIONS, SLOPE, UP_CONVOLUTIONS, BatchNorm, Prior, Shares
from .penalised import Bend, Convolution, Convolve, Discriminator


class StridedGenerator(nn.Module):
    """z (and class) -> image: a linear layer to the base grid, then `UpConv`, batch norm, leaky ReLU per doubling.

    Args:
        channels: image channels.
        base: smallest grid, (h0, w0) for images or (d0, h0, w0) for volumes.
        doublings: the image is (h0 * 2**doublings, w0 * 2**doublings); a volume likewise.
        width: channels at the finest level; doubled per coarser level up to 8 * width.
        latent: length of z.
        classes, kinds: what beside z says what is made, see `Prior`.
    """

    def __init__(
        self,
        channels: int,
        base: Sequence[int],
        doublings: int,
        width: int = 32,
        latent: int = 64,
        classes: int = 0,
        kinds: Shares = (),
    ) -> None:
        super().__init__()
        self.latent, self.base = latent, tuple(int(side) for side in base)
        widths = [min(8, 2 ** (doublings - 1 - level)) * width for level in range(doublings)]
        self.prior = Prior(latent, classes, kinds)
        self.start = nn.Linear(self.prior.size, widths[0] * math.prod(self.base))
        up = UP_CONVOLUTIONS[len(self.base)]
        self.ups = nn.ModuleList(up(a, b) for a, b in zip([widths[0], *widths], widths))
        self.norms = nn.ModuleList(BatchNorm(b) for b in widths)
        self.end = CONVOLUTIONS[len(self.base)](widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Latents -> images.

        Args:
            z: (B, latent).
            classes: (B,) int64, needed when the network has classes.

        Returns:
            (B, channels, H, W) or (B, channels, D, H, W) float32, nominally in [-1, 1] (no tanh: export clamps).
        """
        x = (
            self.start(self.prior(z, classes))
            .unflatten(1, (-1, *self.base))
            .contiguous(memory_format=CHANNELS_LAST[len(self.base)])
        )
        for up, norm in zip(self.ups, self.norms):
            x = F.leaky_relu(norm(up(x)), SLOPE)
        end: Tensor = self.end(x)
        return end.float()


class StridedDiscriminator(Discriminator):
    """Image (and class) -> score: 4x4 stride-2 convolutions with leaky ReLU, then a linear layer.

    Args:
        channels, base, doublings, classes: as in `StridedGenerator`.
        width: channels after the first layer; doubled per level up to 8 * width.
    """

    def __init__(self, channels: int, base: Sequence[int], doublings: int, width: int = 32, classes: int = 0) -> None:
        widths = [channels, *(min(8, 2**level) * width for level in range(doublings))]
        super().__init__(widths[-1] * math.prod(base), classes)
        convolution = CONVOLUTIONS[len(base)]
        self.downs = nn.ModuleList(convolution(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))

    def _trunk(self, x: Tensor, convolve: Convolve, bend: Bend) -> Tensor:
        for level in range(len(self.downs)):
            x = bend(convolve(level, x))
        return x

    def _convolutions(self) -> list[Convolution]:
        return [Convolution.of(down) for down in self.downs]
