"""The dense pair, for teaching: one hidden layer of 128 in both networks, no convolution.

Every pixel has weights of its own, so nothing learned at one place serves another: pictures stay noisy and G soon makes
one picture for all latents. It shows what the other pairs are for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import Prior, Shares

HIDDEN = 128


class DenseGenerator(nn.Module):
    """z (and class) -> image: linear, ReLU, linear, sigmoid, the sigmoid brought from [0, 1] to [-1, 1].

    Args:
        channels: image channels.
        base, doublings: the image is base * 2**doublings, of two or three axes.
        width: not used; the hidden layer has 128 units.
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
        self.latent, self.shape = latent, (channels, *(int(side) << doublings for side in base))
        self.prior = Prior(latent, classes, kinds)
        self.hidden = nn.Linear(self.prior.size, HIDDEN)
        self.end = nn.Linear(HIDDEN, math.prod(self.shape))

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Latents (B, latent) and classes (B,) int64 or None -> (B, channels, *spatial) float32 in [-1, 1]."""
        x = self.end(F.relu(self.hidden(self.prior(z, classes))))
        return (2.0 * torch.sigmoid(x.float()) - 1.0).unflatten(1, self.shape)


class DenseDiscriminator(nn.Module):
    """Image (and class) -> score in [0, 1]: linear, ReLU, linear, sigmoid.

    With classes the last layer is a projection before the sigmoid (Miyato 2018, eq. 3).

    Args:
        channels, base, doublings, width, classes: as in `DenseGenerator`.
    """

    one_batch = True

    def __init__(self, channels: int, base: Sequence[int], doublings: int, width: int = 32, classes: int = 0) -> None:
        super().__init__()
        pixels = channels * math.prod(int(side) << doublings for side in base)
        self.hidden = nn.Linear(pixels, HIDDEN)
        self.end = nn.Linear(HIDDEN, 1)
        self.embed = nn.Embedding(classes, HIDDEN) if classes else None
        if self.embed is not None:
            nn.init.zeros_(self.embed.weight)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B, channels, *spatial) -> scores (B,) float32 in [0, 1]; higher is more real."""
        features = F.relu(self.hidden(x.flatten(1)))
        with torch.autocast(x.device.type, enabled=False):
            features = features.float()
            scores = self.end(features).squeeze(1)
            if self.embed is not None:
                assert classes is not None
                scores = scores + (features * self.embed(classes)).sum(1)
            return torch.sigmoid(scores)
