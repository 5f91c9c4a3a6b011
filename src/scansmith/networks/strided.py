"""The strided pair: cheap layers that see many images in little time; the winner of the equal-time trial.

Radford 2015 (DCGAN) gave the layout; here the generator upsamples by nearest neighbour and normalises by groups, the
discriminator has no normalisation (a gradient penalty and batch statistics do not mix), and both end in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import UpConv

SLOPE = 0.2
_leaky_relu_backward = torch.ops.aten.leaky_relu_backward
_convolution_backward = torch.ops.aten.convolution_backward


class StridedGenerator(nn.Module):
    """z (and class) -> image: a linear layer to the base grid, then `UpConv`, group norm, leaky ReLU per doubling.

    Args:
        channels: image channels.
        base: smallest grid (h0, w0).
        doublings: the image is (h0 * 2**doublings, w0 * 2**doublings).
        width: channels at the finest level; doubled per coarser level up to 8 * width. A multiple of 8.
        latent: length of z.
        classes: number of classes, whose embedding goes beside z; 0 for none.
    """

    def __init__(
        self, channels: int, base: Sequence[int], doublings: int, width: int = 32, latent: int = 64, classes: int = 0
    ) -> None:
        super().__init__()
        self.latent, self.base = latent, (int(base[0]), int(base[1]))
        widths = [min(8, 2 ** (doublings - 1 - level)) * width for level in range(doublings)]
        self.embed = nn.Embedding(classes, latent) if classes else None
        self.start = nn.Linear(latent * (2 if classes else 1), widths[0] * self.base[0] * self.base[1])
        self.ups = nn.ModuleList(UpConv(a, b) for a, b in zip([widths[0], *widths], widths))
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in widths)
        self.end = nn.Conv2d(widths[-1], channels, 3, padding=1)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """Latents -> images.

        Args:
            z: (B, latent).
            classes: (B,) int64, needed when the network has classes.

        Returns:
            (B, channels, H, W) float32, nominally in [-1, 1] (no tanh: export clamps).
        """
        if self.embed is not None:
            assert classes is not None
            z = torch.cat([z, self.embed(classes)], dim=1)
        x = self.start(z).unflatten(1, (-1, *self.base)).contiguous(memory_format=torch.channels_last)
        for up, norm in zip(self.ups, self.norms):
            x = F.leaky_relu(norm(up(x)), SLOPE)
        with torch.autocast(x.device.type, enabled=False):
            return self.end(x.float())


class StridedDiscriminator(nn.Module):
    """Image (and class) -> score: 4x4 stride-2 convolutions with leaky ReLU, then a linear layer.

    With classes the last layer is a projection: score = <w + e_class, features> + b (Miyato 2018, eq. 3).

    Args:
        channels, base, doublings, classes: as in `StridedGenerator`.
        width: channels after the first layer; doubled per level up to 8 * width.
    """

    def __init__(self, channels: int, base: Sequence[int], doublings: int, width: int = 32, classes: int = 0) -> None:
        super().__init__()
        widths = [channels, *(min(8, 2**level) * width for level in range(doublings))]
        self.downs = nn.ModuleList(nn.Conv2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths))
        features = widths[-1] * int(base[0]) * int(base[1])
        self.end = nn.Linear(features, 1)
        self.embed = nn.Embedding(classes, features) if classes else None
        if self.embed is not None:
            nn.init.zeros_(self.embed.weight)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B, channels, H, W) -> scores (B,) float32; higher is more real, and only differences mean something."""
        for down in self.downs:
            x = F.leaky_relu(down(x), SLOPE)
        with torch.autocast(x.device.type, enabled=False):
            return (x.float().flatten(1) * self._last(len(x), classes)).sum(1) + self.end.bias

    def scores_and_penalty(self, x: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (B,) and squared input-gradient norms (B,), both differentiable in the weights; see `_Penalised`."""
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
        weights = [value for down in self.downs for value in (down.weight, down.bias)]
        with torch.autocast(device, enabled=False):
            scores, penalty = _Penalised.apply(x, dtype, self._last(len(x), classes), *weights)
        return scores + self.end.bias, penalty

    def _last(self, count: int, classes: Tensor | None) -> Tensor:
        """Weights of the last layer per image, (B, features)."""
        if self.embed is None:
            return self.end.weight.expand(count, -1)
        assert classes is not None
        return self.end.weight + self.embed(classes)


class _Penalised(torch.autograd.Function):
    """Scores s = D(x) and penalties P = ||dD/dx||^2 with both weight gradients in one pass over the layers.

    D is piecewise linear: layer l computes a_l = m_l * (W_l a_(l-1) + b_l) with the slope mask m_l of the leaky ReLU.
    The input gradient is therefore the masked backward chain g_(l-1) = W_l^T (m_l g_l). Two things follow:

    - the loss's backward signal at layer l is ds_b * m_l g_l, the chain already computed for the penalty;
    - dP_b/dW_l pairs m_l g_l with the tangent v_l = m_l W_l v_(l-1), where v_0 = 2 g_0 (a forward pass without biases;
      the masks have zero derivative).

    So one weight-gradient convolution per layer, of (ds_b a_(l-1) + dP_b v_(l-1)) against m_l g_l, serves loss and
    penalty together: forward, chain, tangent and weight gradient are four passes, against the six and more of double
    backpropagation. Exact; tests compare it with autograd.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, dtype: torch.dtype, last: Tensor, *weights: Tensor) -> tuple[Tensor, Tensor]:
        """x (B, C, H, W), last (B, features), weights (W_1, b_1, W_2, b_2, ...) -> s (B,), P (B,) float32."""
        layout = torch.channels_last if x.is_contiguous(memory_format=torch.channels_last) else torch.contiguous_format
        kernels = [weight.to(dtype).contiguous(memory_format=layout) for weight in weights[::2]]
        activations = [x.to(dtype)]
        for kernel, bias in zip(kernels, weights[1::2]):
            y = F.conv2d(activations[-1], kernel, bias.to(dtype), stride=2, padding=1)
            activations.append(F.leaky_relu(y, SLOPE))
        scores = (activations[-1].float().flatten(1) * last).sum(1)
        gradient = last.to(dtype).view_as(activations[-1]).contiguous(memory_format=layout)
        chain: list[Tensor] = []
        for level in reversed(range(len(kernels))):
            chain.insert(0, _leaky_relu_backward(gradient, activations[level + 1], SLOPE, True))
            gradient = _strided_backward(chain[0], activations[level], kernels[level], wanted="input")
        ctx.levels = len(kernels)
        ctx.save_for_backward(gradient, *kernels, *activations, *chain)
        return scores, gradient.float().square().sum(dim=(1, 2, 3))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_scores, d_penalty = upstream
        n, (gradient, *saved) = ctx.levels, ctx.saved_tensors
        kernels, activations, chain = saved[:n], saved[n : 2 * n + 1], saved[2 * n + 1 :]
        each = d_scores.to(gradient.dtype).view(-1, 1, 1, 1)
        tangent = gradient * (2.0 * d_penalty).to(gradient.dtype).view(-1, 1, 1, 1)
        result: list[Tensor] = []
        for level in range(n):
            paired = torch.addcmul(tangent, activations[level], each)
            result.append(_strided_backward(chain[level], paired, kernels[level], wanted="weight").float())
            result.append((chain[level] * each).float().sum(dim=(0, 2, 3)))
            tangent = F.conv2d(tangent, kernels[level], stride=2, padding=1)
            tangent = _leaky_relu_backward(tangent, activations[level + 1], SLOPE, True)
        d_last = activations[-1].float().flatten(1) * d_scores[:, None] + tangent.float().flatten(1)
        return None, None, d_last, *result


def _strided_backward(grad: Tensor, x: Tensor, kernel: Tensor, wanted: str) -> Tensor:
    """One of the two gradients of conv2d(x, kernel, stride=2, padding=1)."""
    mask = [wanted == "input", wanted == "weight", False]
    gradients = _convolution_backward(grad, x, kernel, None, [2, 2], [1, 1], [1, 1], False, [0, 0], 1, mask)
    return gradients[0] if wanted == "input" else gradients[1]
