"""A fixed convolutional encoder with random weights: features that need no download and no training.

Random embeddings rank sets of non-ImageNet images more faithfully than ImageNet features do (Naeem et al. 2020,
"Reliable fidelity and diversity metrics for generative models", section 4.3). Needs torch and numpy alone.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from torch.nn import functional

SEED = 0
FEATURES = 512
EXTRACTOR = f"random conv, {FEATURES} features, seed {SEED}"
# Smallest side that is encoded, by the number of axes; small volumes are common, and their features still tell.
SMALLEST = {2: 16, 3: 8}
# Most voxels of volumes that are encoded at once: the first stage makes 4 times as many float32 values of them.
AT_ONCE = 2**22
# Channels of the five stages, each at half the resolution of the one before; their means are the features.
WIDTHS = (32, 64, 96, 128, 192)


@lru_cache(maxsize=8)
def weights(channels: int, device: torch.device, dimensions: int = 2) -> tuple[torch.Tensor, ...]:
    """One (out, in, 3, 3) or (out, in, 3, 3, 3) float32 tensor per stage: He normal, every second filter with zero mean.

    Filters without a mean answer to edges and texture only; without them the features follow brightness and hardly
    move under blur or noise.
    """
    generator = torch.Generator().manual_seed(SEED)
    stages, space = [], tuple(range(2, 2 + dimensions))
    for fan_in, width in zip((channels, *WIDTHS), WIDTHS):
        weight = torch.randn(width, fan_in, *(3,) * dimensions, generator=generator)
        weight[::2] -= weight[::2].mean(dim=space, keepdim=True)
        weight *= (2.0 / (weight[0].numel() * weight.square().mean(dim=(1, *space), keepdim=True))) ** 0.5
        stages.append(weight.to(device))
    return tuple(stages)


def features(images: np.ndarray | torch.Tensor, batch: int = 64, device: torch.device | str = "cpu") -> np.ndarray:
    """Features of each image, float64 (N, 512), independent of `batch` and of the number of threads.

    Args:
        images: (N, C, H, W) or (N, C, D, H, W) float32 in [-1, 1], native channels, 16 pixels or 8 voxels a side or more.
        batch: images encoded at once, of volumes fewer.
        device: where the encoder runs.

    Raises:
        ValueError: the images have another shape or are smaller.
    """
    dimensions = images.ndim - 2
    if dimensions not in SMALLEST or min(images.shape[2:]) < SMALLEST[dimensions]:
        raise ValueError(
            f"expected images (N, C, H, W) of 16 pixels a side or more, or volumes (N, C, D, H, W) of 8 voxels, got shape {tuple(images.shape)}: enlarge them first"
        )
    device = torch.device(device)
    stages = weights(int(images.shape[1]), device, dimensions)
    convolve, space = (functional.conv2d, (2, 3)) if dimensions == 2 else (functional.conv3d, (2, 3, 4))
    if dimensions == 3:
        batch = max(1, min(batch, AT_ONCE // math.prod(images.shape[2:])))
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
                x = functional.relu(convolve(x, weight, stride=2, padding=1))
                pooled.append(x.mean(dim=space))
            result[start : start + batch] = torch.cat(pooled, dim=1).double().cpu().numpy()
    return result
