"""The DCGAN pair as published: transposed and strided 4x4 convolutions with batch norm (Radford 2015, section 3).

A baseline. Two things are ours: the base grid need not be 4x4, and classes, when there are any, enter as in `strided`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CHANNELS_LAST, CONVOLUTIONS, SLOPE, BatchNorm, Prior, Shares

DEVIATION = 0.02  # of all first weights (Radford 2015, section 4)
_TRANSPOSED: dict[int, type[nn.ConvTranspose2d] | type[nn.ConvTranspose3d]] = {
    2: nn.ConvTranspose2d,
    3: nn.ConvTranspose3d,
}


class DcganGenerator(nn.Module):
    """z (and class) -> image: transposed convolutions with batch norm and ReLU, tanh at the end.

    Its averages of the batch statistics are buffers: a copy of the network needs them beside the weights.

    Args:
        channels: image channels.
        base: smallest grid, (h0, w0) for images or (d0, h0, w0) for volumes.
        doublings: the image is base * 2**doublings.
        width: channels before the last layer; doubled per coarser level up to 8 * width.
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
        transposed = _TRANSPOSED[len(self.base)]
        widths = [min(8, 2 ** (doublings - 1 - level)) * width for level in range(doublings)]
        self.prior = Prior(latent, classes, kinds)
        # The paper's first layer, a transposed convolution of one pixel, is this linear one.
        self.start = nn.Linear(self.prior.size, widths[0] * math.prod(self.base), bias=False)
        self.norms = nn.ModuleList(BatchNorm(width) for width in widths)
        self.ups = nn.ModuleList(
            transposed(a, b, 4, stride=2, padding=1, bias=level == doublings - 1)
            for level, (a, b) in enumerate(pairwise([*widths, channels]))
        )
        self.apply(_first_weights)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Latents (B, latent) and classes (B,) int64 or None -> (B, channels, *spatial) float32 in [-1, 1]."""
        x = (
            self.start(self.prior(z, classes))
            .unflatten(1, (-1, *self.base))
            .contiguous(memory_format=CHANNELS_LAST[len(self.base)])
        )
        for norm, up in zip(self.norms, self.ups):
            x = up(F.relu(norm(x)))
        return torch.tanh(x.float())


class DcganDiscriminator(nn.Module):
    """Image (and class) -> score: strided convolutions with leaky ReLU, batch norm on all but the first.

    Batch norm sees the whole batch: real and generated images are scored apart from each other, as published, and a
    score depends on its neighbours. With classes the last layer is a projection (Miyato 2018, eq. 3).

    Args:
        channels, base, doublings, classes: as in `DcganGenerator`.
        width: channels after the first layer; doubled per level up to 8 * width.
    """

    one_batch = False

    def __init__(self, channels: int, base: Sequence[int], doublings: int, width: int = 32, classes: int = 0) -> None:
        super().__init__()
        convolution = CONVOLUTIONS[len(base)]
        widths = [channels, *(min(8, 2**level) * width for level in range(doublings))]
        self.downs = nn.ModuleList(
            convolution(a, b, 4, stride=2, padding=1, bias=level == 0) for level, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList([nn.Identity(), *(BatchNorm(width) for width in widths[2:])])
        features = widths[-1] * math.prod(base)
        self.end = nn.Linear(features, 1)  # the paper's last layer, a convolution over the whole base grid
        self.embed = nn.Embedding(classes, features) if classes else None
        self.apply(_first_weights)
        if self.embed is not None:
            nn.init.zeros_(self.embed.weight)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B, channels, *spatial) -> scores (B,) float32, before the sigmoid, which belongs to the loss."""
        for down, norm in zip(self.downs, self.norms):
            x = F.leaky_relu(norm(down(x)), SLOPE)
        with torch.autocast(x.device.type, enabled=False):
            features = x.float().flatten(1)
            scores = self.end(features).squeeze(1)
            if self.embed is not None:
                assert classes is not None
                scores = scores + (features * self.embed(classes)).sum(1)
        return scores


def _first_weights(module: nn.Module) -> None:
    """Weights ~ N(0, .02), norms ~ N(1, .02), biases 0."""
    if isinstance(module, BatchNorm):
        nn.init.normal_(module.weight, 1.0, DEVIATION)
    elif isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d | nn.ConvTranspose2d | nn.ConvTranspose3d):
        nn.init.normal_(module.weight, 0.0, DEVIATION)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
