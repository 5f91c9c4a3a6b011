"""Generators, discriminators and translators, one family per file, G and D side by side."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .autoencoder import Autoencoder
from .dcgan import DcganDiscriminator, DcganGenerator
from .dense import DenseDiscriminator, DenseGenerator
from .residual import ResidualDiscriminator, ResidualGenerator
from .resnet import ResNet
from .strided import StridedDiscriminator, StridedGenerator
from .unet import UNet

GENERATORS: dict[str, Callable[..., nn.Module]] = {
    "strided": StridedGenerator,
    "dcgan": DcganGenerator,
    "dense": DenseGenerator,
    "residual": ResidualGenerator,
    "autoencoder": Autoencoder,
}
TRANSLATORS: dict[str, Callable[..., nn.Module]] = {"unet": UNet, "resnet": ResNet}
DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {
    "strided": StridedDiscriminator,
    "dcgan": DcganDiscriminator,
    "dense": DenseDiscriminator,
    "residual": ResidualDiscriminator,
}
