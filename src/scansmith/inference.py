"""A translator over a whole scan: at once where it is small enough, else in windows without seams."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from . import windows
from .networks.blocks import CHANNELS_LAST

AT_ONCE = 2**19  # pixels of an image that the network sees whole; volumes are always cut into windows
OVERLAP = 0.5
AIR = -1.0  # around an image, encoded


def translate(network: nn.Module, source: np.ndarray, patch: Sequence[int], device: torch.device) -> np.ndarray:
    """What a translator makes of one image or volume.

    Args:
        network: see `UNet`, in evaluation mode on the device.
        source: (C, H, W) or (C, D, H, W) float32, encoded, of any size.
        patch: sides of a window, multiples of the network's step.
        device: where the network is.

    Returns:
        (planes, channels, *spatial) float32, encoded: middle, lower and upper bound, or the middle alone.
    """
    image = torch.from_numpy(np.ascontiguousarray(source, np.float32)).to(device)
    step: int = network.step  # type: ignore[assignment]
    if image.ndim == 3 and image[0].numel() <= AT_ONCE:
        return whole(network, image, patch, step)

    planes = 1

    def flat(windowed: Tensor) -> Tensor:
        nonlocal planes
        out = applied(network, windowed)
        planes = out.shape[1]
        return out.flatten(1, 2)

    made = windows.predict(flat, image, patch, OVERLAP, step=step, fill=AIR, any_size=True)
    return made.unflatten(0, (planes, -1)).cpu().numpy()


def whole(network: nn.Module, image: Tensor, patch: Sequence[int], step: int) -> np.ndarray:
    """(C, H, W) -> (planes, channels, H, W) in one pass, padded to a multiple of `step` as `windows.padded` does."""
    sides = [-(-side // step) * step for side in image.shape[1:]]
    around, inside = windows.padded(image, sides, patch, AIR)
    with torch.inference_mode():
        made = applied(network, around[None])[0].float()
    result: np.ndarray = made[(slice(None), slice(None), *inside)].cpu().numpy()
    return result


def applied(network: nn.Module, images: Tensor) -> Tensor:
    """The network's output for a batch, in the layout and by the routines that are quick on its device."""
    swift: AbstractContextManager[Any] = nullcontext()
    if images.device.type == "cpu" and torch.backends.mkldnn.is_available():
        images, swift = images.to(memory_format=CHANNELS_LAST[images.ndim - 2]), OneDnn()
    with swift:
        made: Tensor = network(images)
    return made


class OneDnn(TorchFunctionMode):
    """Inside, oneDNN computes float32 convolutions of volumes, also of a single one, which PyTorch leaves to a slower routine."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is F.conv3d and not kwargs and len(args) == 7 and args[0].dtype == torch.float32:
            volumes, weight, bias, stride, padding, dilation, groups = args
            return torch.ops.aten.mkldnn_convolution(volumes, weight, bias, padding, stride, dilation, groups)
        return func(*args, **kwargs or {})
