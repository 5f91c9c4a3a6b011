"""What can be trained: one row per objective."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from .synthesis import Synthesis

OBJECTIVES: dict[str, Callable[..., nn.Module]] = {"synthesis": Synthesis}
