"""scansmith: from a folder of CT, MR or X-ray scans to more scans, with evidence of how far they can be trusted."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare import compare as compare
    from .evaluate import evaluate as evaluate
    from .phantom import phantom as phantom
    from .prepare import prepare as prepare
    from .report import report as report
    from .run import run as run
    from .synthesize import synthesize as synthesize
    from .train import train as train

__version__ = "0.1.0"

VERBS = ("run", "prepare", "train", "compare", "synthesize", "translate", "evaluate", "report", "phantom")

__all__ = ["__version__", *VERBS]


def _verb(name: str) -> property:
    def load(package: ModuleType) -> Any:
        return getattr(importlib.import_module(f"{__name__}.{name}"), name)

    # The import system sets `scansmith.prepare` to the module; the setter drops that, so the name stays the function.
    return property(load, lambda package, module: None)


class _Package(ModuleType):
    """This package, with each verb a function imported at first use: `import scansmith` itself takes no time."""


for _name in VERBS:
    setattr(_Package, _name, _verb(_name))
sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted(__all__)
