"""A fixed convolutional encoder with random weights: features that need no download and no training.

Random embeddings rank sets of non-ImageNet images more faithfully than ImageNet features do (Naeem et al. 2020,
"Reliable fidelity and diversity metrics for generative models", section 4.3). Needs torch and numpy alone.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

SEED = 0
FEATURES = 512
EXTRACTOR = f"random conv, {FEATURES} features, seed {SEED}"
# Channels of the five stages, each at half the resolution of the one before; their means are the features.
WIDTHS = (32, 64, 96, 128, 192)


@lru_cache(maxsize=8)
def weights(channels: int, device: torch.device) -> tuple[torch.Tensor, ...]:
    """One (out, in, 3, 3) float32 tensor per stage: He normal, every second filter with zero mean.

    Filters without a mean answer to edges and texture only; without them the features follow brightness and hardly
    move under blur or noise.
    """
    generator = torch.Generator().manual_seed(SEED)
    stages = []
    for fan_in, width in zip((channels, *WIDTHS), WIDTHS):
        weight = torch.randn(width, fan_in, 3, 3, generator=generator)
        weight[::2] -= weight[::2].mean(dim=(2, 3), keepdim=True)
        weight *= (2.0 / (weight[0].numel() * weight.square().mean(dim=(1, 2, 3), keepdim=True))) ** 0.5
        stages.append(weight.to(device))
    return tuple(stages)


def features(images: np.ndarray | torch.Tensor, batch: int = 64, device: torch.device | str = "cpu") -> np.ndarray:
    """Features of each image, float64 (N, 512), independent of `batch` and of the number of threads.

    Args:
        images: (N, C, H, W) float32 in [-1, 1], native channels, 16 pixels a side or more.
        batch: images encoded at once.
        device: where the encoder runs.

    Raises:
        ValueError: the images are not (N, C, H, W) or are smaller than 16 pixels.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < 16:
        raise ValueError(
            f"expected images (N, C, H, W) of 16 pixels a side or more, got shape {tuple(images.shape)}: enlarge them first"
        )
    device = torch.device(device)
    stages = weights(int(images.shape[1]), device)
    result = np.empty((len(images), FEATURES))
    # TF32 and autocast would make the numbers depend on the machine.
    with (
        torch.inference_mode(),
        torch.autocast(device.type, enabled=False),
        torch.backends.cudnn.flags(allow_tf32=False),
    ):
        for start in range(0, len(images), batch):
            x = torch.as_tensor(images[start : start + batch], dtype=torch.float32, device=device)
            pooled = []
            for weight in stages:
                x = functional.relu(functional.conv2d(x, weight, stride=2, padding=1))
                pooled.append(x.mean(dim=(2, 3)))
            result[start : start + batch] = torch.cat(pooled, dim=1).double().cpu().numpy()
    return result
