"""GAN objectives and penalties, one function per equation. Scores are (B,) float32; every loss is a scalar."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-(D(x) - D(G(z)))): each real image should score above its fake partner.

    Source: Jolicoeur-Martineau 2018; as the pairing loss in Huang 2024 (R3GAN), eq. 2.
    """
    return F.softplus(fake - real).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-(D(G(z)) - D(x))): each fake should score above its real partner. Source: as above."""
    return F.softplus(real - fake).mean()


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """|| d D / d x ||^2 per image, (B,) float32, differentiable: R1 on real images, R2 on generated ones.

    Source: Mescheder 2018, eq. 9 and 10; the caller multiplies the means by gamma / 2.

    Args:
        scores: (B,) computed from `images`.
        images: (B, C, H, W), requires grad.
    """
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.float().square().sum(dim=(1, 2, 3))


def scores_and_penalty(discriminator: Any, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """D(x) (B,) and || d D / d x ||^2 (B,) for any discriminator: its own closed form if it has one, else autograd."""
    if hasattr(discriminator, "scores_and_penalty"):
        return discriminator.scores_and_penalty(images, classes)
    images = images.detach().requires_grad_(True)
    scores = discriminator(images, classes)
    return scores, gradient_penalty(scores, images)
