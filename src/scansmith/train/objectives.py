"""What can be trained: one row per objective."""

from __future__ import annotations

from collections.abc import Callable

from .autoencoding import Autoencoding
from .contrastive import Contrastive
from .cycle import Cycle
from .objective import Objective
from .segmentation import Segmentation
from .synthesis import Synthesis
from .translation import Translation

OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "synthesis": Synthesis,
    "autoencoding": Autoencoding,
    "translation": Translation,
    "segmentation": Segmentation,
    "contrastive": Contrastive,
    "cycle": Cycle,
}
