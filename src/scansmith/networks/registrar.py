"""What two images are apart, as a field of displacements (Kong 2021, Reg-GAN: misregistration is noise that can be learned)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .blocks import CONVOLUTIONS, SLOPE

WIDTH = 16
COARSE = 8  # voxels a side of what is moved alike
MODES = {2: "bilinear", 3: "trilinear"}


class Registrar(nn.Module):
    """Two images, one after the other (B, C, *spatial) -> (B, n, *spatial) displacements in voxels, smooth by making.

    Args:
        channels: of both images together.
        dimensions: n, 2 or 3.
    """

    def __init__(self, channels: int, dimensions: int) -> None:
        super().__init__()
        convolution, layers = CONVOLUTIONS[dimensions], []
        for number in range(3):  # 2**3 = COARSE
            into = channels if number == 0 else WIDTH * 2 ** (number - 1)
            layers += [convolution(into, WIDTH * 2**number, 4, stride=2, padding=1), nn.LeakyReLU(SLOPE)]
        widest = WIDTH * 4
        layers += [convolution(widest, widest, 3, padding=1), nn.LeakyReLU(SLOPE)]
        self.body = nn.Sequential(*layers)
        self.end = convolution(widest, dimensions, 3, padding=1)
        nn.init.zeros_(self.end.weight)  # at first nothing is moved
        assert self.end.bias is not None
        nn.init.zeros_(self.end.bias)
        self.mode = MODES[dimensions]

    def forward(self, images: Tensor) -> Tensor:
        coarse = self.end(self.body(images)).float()
        return F.interpolate(coarse, size=images.shape[2:], mode=self.mode, align_corners=False)


def moved(images: Tensor, field: Tensor) -> Tensor:
    """Images (B, C, *spatial) sampled, linearly, where a field (B, n, *spatial) of displacements in voxels points; beyond the border its value."""
    sides = images.shape[2:]
    axes = [torch.arange(side, device=images.device, dtype=torch.float32) for side in sides]
    place = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None] + field
    # grid_sample wants the last axis first, -1 and 1 at the outer borders of the first and last voxel
    scaled = [(2.0 * place[:, axis] + 1.0) / sides[axis] - 1.0 for axis in reversed(range(len(sides)))]
    grid = torch.stack(scaled, -1)
    return F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
