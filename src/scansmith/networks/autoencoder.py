"""Encoder and decoder of the autoencoder and the variational one (Kingma 2014): image -> latent -> image.

The encoder is the strided discriminator's layers, the decoder the strided generator, so that a comparison with the GAN
compares objectives and not networks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONVOLUTIONS, SLOPE
from .strided import StridedGenerator


class Autoencoder(nn.Module):
    """`encode` and `decode`; called with z ~ N(0, 1) it is a generator.

    Attributes:
        latent: length of a latent.
        center: (latent,), factor: (latent, latent), buffers: z ~ N(0, 1) becomes center + factor @ z before decoding.
            Set before samples are drawn, to the latents' mean and the Cholesky factor of their covariance.

    Args:
        channels, base, doublings, width, latent, classes: as in `StridedGenerator`; the encoder's layers mirror it.
    """

    center: Tensor
    factor: Tensor

    def __init__(
        self, channels: int, base: Sequence[int], doublings: int, width: int = 32, latent: int = 64, classes: int = 0
    ) -> None:
        super().__init__()
        self.latent = latent
        self.decoder = StridedGenerator(channels, base, doublings, width, latent, classes)
        widths = [channels, *(min(8, 2**level) * width for level in range(doublings))]
        convolution = CONVOLUTIONS[len(base)]
        self.downs = nn.ModuleList(convolution(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        self.end = nn.Linear(widths[-1] * math.prod(base), 2 * latent)
        self.embed = nn.Embedding(classes, 2 * latent) if classes else None
        if self.embed is not None:
            nn.init.zeros_(self.embed.weight)
        self.register_buffer("center", torch.zeros(latent))
        self.register_buffer("factor", torch.eye(latent))

    def encode(self, x: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Images -> the mean and log variance of q(z | x), Kingma 2014, eq. 9; a plain autoencoder uses the mean alone.

        Args:
            x: (B, channels, *spatial).
            classes: (B,) int64, needed when the network has classes; shifts the result, so that z need not hold the class.

        Returns:
            Two of (B, latent) float32.
        """
        for down in self.downs:
            x = F.leaky_relu(down(x), SLOPE)
        with torch.autocast(x.device.type, enabled=False):
            found = self.end(x.float().flatten(1))
            if self.embed is not None:
                assert classes is not None
                found = found + self.embed(classes)
        mean, log_variance = found.chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Latents as `encode` gives them (B, latent) -> images (B, channels, *spatial) float32, nominally in [-1, 1]."""
        images: Tensor = self.decoder(z, classes)
        return images

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """z ~ N(0, 1) (B, latent) -> images as in `decode`."""
        with torch.autocast(z.device.type, enabled=False):
            z = self.center + z.float() @ self.factor.T
        return self.decode(z, classes)
