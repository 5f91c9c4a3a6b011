"""Scores and squared input-gradient norms of a piecewise linear network, with both weight gradients in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F

from .blocks import SLOPE, layout_of

_leaky_relu_backward = torch.ops.aten.leaky_relu_backward
_convolution_backward = torch.ops.aten.convolution_backward
_CONVOLVE: dict[int, Callable[..., Tensor]] = {2: F.conv2d, 3: F.conv3d}

Convolve = Callable[[int, Tensor], Tensor]
Bend = Callable[[Tensor], Tensor]
Trunk = Callable[[Tensor, Convolve, Bend], Tensor]
"""(images, convolve, bend) -> features: calls `convolve(i, x)` for its i-th convolution, in order 0, 1, 2 ..., and
`bend(x)` for a leaky ReLU on what a convolution gave; beside these it only adds."""


@dataclass(frozen=True)
class Convolution:
    """One convolution of a trunk.

    Attributes:
        kernel: (out, in / groups, *size). bias: (out,) or None.
        stride, padding, groups: as in torch, the same along all axes.
    """

    kernel: Tensor
    bias: Tensor | None
    stride: int = 1
    padding: int = 0
    groups: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        convolve = _CONVOLVE[x.dim() - 2]
        return convolve(x, self.kernel, self.bias, self.stride, self.padding, 1, self.groups)

    def gradient(self, grad: Tensor, x: Tensor) -> Tensor:
        """The kernel's gradient where `grad` is that of self(x)."""
        n = x.dim() - 2
        one, pad, none = [self.stride] * n, [self.padding] * n, [0] * n
        mask = [False, True, False]
        found = _convolution_backward(grad, x, self.kernel, None, one, pad, [1] * n, False, none, self.groups, mask)
        kernel: Tensor = found[1]
        return kernel

    @staticmethod
    def of(layer: nn.Module) -> Convolution:
        """What a layer of `blocks.CONVOLUTIONS` computes."""
        assert isinstance(layer, nn.Conv2d | nn.Conv3d)
        padding = layer.padding[0]
        assert isinstance(padding, int)
        return Convolution(layer.weight, layer.bias, layer.stride[0], padding, layer.groups)


class Discriminator(nn.Module):
    """Image (and class) -> score: a piecewise linear trunk, then a linear layer, with the penalty in closed form.

    With classes the last layer is a projection: score = <w + e_class, features> + b (Miyato 2018, eq. 3). A subclass has
    `_trunk`, `_convolutions` and, where the features are not what `end` sees, `_last`.

    Args:
        features: length of what the last layer weighs.
        classes: number of classes (or kinds); 0 for none.
    """

    one_batch = True  # real and generated images may be scored together: no layer looks across the batch

    def __init__(self, features: int, classes: int) -> None:
        super().__init__()
        self.end = nn.Linear(features, 1)
        self.embed = nn.Embedding(classes, features) if classes else None
        if self.embed is not None:
            nn.init.zeros_(self.embed.weight)

    def forward(self, x: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B, channels, *spatial) -> scores (B,) float32; higher is more real, and only differences mean something."""
        x = plain(x, self._trunk, self._convolutions())
        with torch.autocast(x.device.type, enabled=False):
            return (x.float().flatten(1) * self._last(len(x), classes)).sum(1) + self.end.bias

    def scores_and_penalty(self, x: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Scores (B,) and squared input-gradient norms (B,), both differentiable in the weights."""
        scores, penalty = scores_and_penalty(x, self._trunk, self._convolutions(), self._last(len(x), classes))
        return scores + self.end.bias, penalty

    def _trunk(self, x: Tensor, convolve: Convolve, bend: Bend) -> Tensor:
        """See `Trunk`."""
        raise NotImplementedError

    def _convolutions(self) -> list[Convolution]:
        """All of the trunk, in its order."""
        raise NotImplementedError

    def _last(self, count: int, classes: Tensor | None) -> Tensor:
        """Weights of the trunk's flattened output per image, (B, values)."""
        if self.embed is None:
            return self.end.weight.expand(count, -1)
        assert classes is not None
        return self.end.weight + self.embed(classes)


def plain(x: Tensor, trunk: Trunk, convolutions: Sequence[Convolution]) -> Tensor:
    """The trunk's features, by autograd's own means and under autocast if it is on."""
    return trunk(x, lambda i, y: convolutions[i](y), lambda y: F.leaky_relu(y, SLOPE))


def scores_and_penalty(
    x: Tensor, trunk: Trunk, convolutions: Sequence[Convolution], last: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores s = <last, features> and penalties ||ds/dx||^2, both (B,) float32 and differentiable in all weights.

    Computes in autocast's precision if it is on, else in float32. No gradient reaches `x`, and there is no second one.

    Args:
        x: (B, C, *spatial).
        trunk: the network up to its features.
        convolutions: in the trunk's order.
        last: (B, features) float32, the last layer's weights of each image.
    """
    device = x.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    weights = [value for layer in convolutions for value in (layer.kernel, layer.bias)]
    with torch.autocast(device, enabled=False):
        scores, penalty = _Penalised.apply(x, dtype, trunk, convolutions, last, *weights)
    return scores, penalty


class _Penalised(torch.autograd.Function):
    """Scores s = D(x) and penalties P = ||dD/dx||^2 with both weight gradients in one pass over the layers.

    D is piecewise linear: with the slope masks of its leaky ReLUs held, every convolution's output depends linearly on
    its input. For convolution l with input a_l, let g_l = ds/d(its output): one backward pass, which also ends in the
    input gradient g. Two things follow:

    - the loss's backward signal at convolution l is ds_b g_l, the chain already computed for the penalty;
    - dP_b/dW_l pairs g_l with the tangent v_l, the convolution's input when 2 g goes through the network without biases
      and with the masks held (they have zero derivative).

    So one weight-gradient convolution per layer, of (ds_b a_l + dP_b v_l) against g_l, serves loss and penalty together:
    forward, chain, tangent and weight gradient are four passes, against the six and more of double backpropagation.
    Exact; tests compare it with autograd.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dtype: torch.dtype,
        trunk: Trunk,
        convolutions: Sequence[Convolution],
        last: Tensor,
        *weights: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """x (B, C, *spatial), last (B, features), weights (W_0, b_0, W_1, b_1, ...) -> s (B,), P (B,) float32."""
        layout = layout_of(x)
        layers = [_cast(layer, dtype, layout) for layer in convolutions]
        inputs: list[Tensor] = []
        bent: list[Tensor] = []
        edges: list[GradientEdge] = []

        def convolve(index: int, a: Tensor) -> Tensor:
            assert index == len(inputs), "a trunk calls its convolutions in order"
            inputs.append(a.detach())
            y = layers[index](a)
            edges.append(get_gradient_edge(y))
            return y

        def bend(a: Tensor) -> Tensor:
            bent.append(F.leaky_relu_(a, SLOPE))  # in place: the value before it is not needed
            return bent[-1]

        with torch.enable_grad():
            start = x.detach().to(dtype).requires_grad_(True)
            features = trunk(start, convolve, bend)
            upstream = last.to(dtype).view_as(features).contiguous(memory_format=layout)
            gradient, *chain = torch.autograd.grad([features], [get_gradient_edge(start), *edges], [upstream])
        features = features.detach()
        scores = (features.float().flatten(1) * last).sum(1)
        ctx.trunk, ctx.layers, ctx.counts = trunk, layers, (len(inputs), len(bent))
        ctx.save_for_backward(gradient, features, *inputs, *(mask.detach() for mask in bent), *chain)
        return scores, gradient.float().square().sum(dim=tuple(range(1, x.dim())))

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        d_scores, d_penalty = upstream
        (n, bends), (gradient, features, *saved) = ctx.counts, ctx.saved_tensors
        inputs, bent, chain = saved[:n], saved[n : n + bends], saved[n + bends :]
        one = (-1, *[1] * (gradient.dim() - 1))
        each = d_scores.to(gradient.dtype).view(one)
        masks = iter(bent)
        result: list[Tensor | None] = []

        def convolve(index: int, tangent: Tensor) -> Tensor:
            layer: Convolution = ctx.layers[index]
            paired = torch.addcmul(tangent, inputs[index], each)
            result.append(layer.gradient(chain[index], paired).float())
            axes = (0, *range(2, gradient.dim()))
            result.append(None if layer.bias is None else (chain[index] * each).float().sum(dim=axes))
            return _without_bias(layer)(tangent)

        def bend(tangent: Tensor) -> Tensor:
            bowed: Tensor = _leaky_relu_backward(tangent, next(masks), SLOPE, True)
            return bowed

        start = gradient * (2.0 * d_penalty).to(gradient.dtype).view(one)
        tangent = ctx.trunk(start, convolve, bend)
        d_last = features.float().flatten(1) * d_scores[:, None] + tangent.float().flatten(1)
        return None, None, None, None, d_last, *result


def _cast(layer: Convolution, dtype: torch.dtype, layout: torch.memory_format) -> Convolution:
    kernel = layer.kernel.detach().to(dtype).to(memory_format=layout)
    bias = None if layer.bias is None else layer.bias.detach().to(dtype)
    return Convolution(kernel, bias, layer.stride, layer.padding, layer.groups)


def _without_bias(layer: Convolution) -> Convolution:
    return Convolution(layer.kernel, None, layer.stride, layer.padding, layer.groups)
