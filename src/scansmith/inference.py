"""A translator over a whole scan: at once where it is small enough, else in windows without seams."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import windows
from .networks.unet import padding_to

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
        return whole(network, image, step)

    planes = 1

    def flat(windowed: torch.Tensor) -> torch.Tensor:
        nonlocal planes
        out: torch.Tensor = network(windowed)
        planes = out.shape[1]
        return out.flatten(1, 2)

    made = windows.predict(flat, image, patch, OVERLAP, step=step, fill=AIR, any_size=True)
    return made.unflatten(0, (planes, -1)).cpu().numpy()


def whole(network: nn.Module, image: torch.Tensor, step: int) -> np.ndarray:
    """(C, H, W) -> (planes, channels, H, W) in one pass, padded to a multiple of `step`."""
    around = padding_to(image.shape[1:], step)
    padded = F.pad(image[None], [side for pair in reversed(around) for side in pair], value=AIR)
    with torch.inference_mode():
        made = network(padded)[0].float()
    inside = tuple(slice(before, before + side) for (before, _), side in zip(around, image.shape[1:]))
    result: np.ndarray = made[(slice(None), slice(None), *inside)].cpu().numpy()
    return result
