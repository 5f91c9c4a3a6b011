"""Generators and discriminators, one family per file, G and D side by side."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .strided import StridedDiscriminator, StridedGenerator

GENERATORS: dict[str, Callable[..., nn.Module]] = {"strided": StridedGenerator}
DISCRIMINATORS: dict[str, Callable[..., nn.Module]] = {"strided": StridedDiscriminator}
