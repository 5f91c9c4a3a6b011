"""How much memory a training run takes, known before it starts: its step is run on tensors without storage and counted."""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..capacity import available as available
from ..capacity import gigabytes
from ..preprocess import Grid
from . import watch
from .objective import Batch, Task
from .objectives import OBJECTIVES
from .recipes import Recipe

# Beside the tensors, measured as the peak of whole processes (tests/test_memory.py, docs/log.md): the interpreter with
# its libraries and their work space; and what an allocator leaves between the tensors.
PROCESS = {"cpu": 440 * 2**20, "cuda": 1024 * 2**20}
FRAGMENTS = 1.15
SMALLEST = 16  # pixels; no smaller grid is proposed


@lru_cache(maxsize=256)
def needed(recipe: Recipe, task: Task, grid: Grid, processes: int = 1, device: str = "cpu") -> int:
    """Bytes that one process of a training takes at its peak.

    Weights and their averages, both moments and the copies that a checkpoint is written from are counted; gradients,
    activations and penalties are what a step of the objective, or a tick, leaves alive at the worst moment.

    Args:
        recipe: whole but for its length.
        task: what the data fix.
        grid: of the images.
        processes: that share each batch.
        device: type of device, "cpu" or "cuda".
    """
    batch = max(1, recipe.batch // processes)
    with FakeTensorMode(), Counted() as counted:
        objective = OBJECTIVES[recipe.objective](recipe, task, grid)
        weights = counted.now
        model = size(objective.get_submodule(objective.model))
        for _ in range(2):  # the gradients of the first are there in the second
            one_step(objective, some_batch(recipe, batch, task, grid), recipe.precision)
        at_tick(objective, recipe, task, grid)
    moments, averages = 2 * weights, 2 * model
    # A checkpoint is made twice in memory, as text and as bytes, beside what the allocator kept from the last step.
    written = 2 * (weights + moments + averages)
    return PROCESS[device] + int(FRAGMENTS * (counted.peak + moments + averages)) + written


def shared(recipe: Recipe, task: Task, grid: Grid, device: torch.device, processes: int = 1) -> int:
    """Bytes that all processes take which compute on one device: on a GPU one, on a CPU those of this host."""
    sharing = int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if device.type == "cpu" else 1
    return sharing * needed(recipe, task, grid, processes, device.type)


def some_batch(recipe: Recipe, count: int, task: Task, grid: Grid) -> Batch:
    """A batch of `count` images of any content."""
    numbers = torch.zeros(count, dtype=torch.int64) if task.classes else None
    images, z = torch.empty(count, task.channels, *grid.shape), torch.empty(count, recipe.latent)
    batch = Batch(images, numbers, numbers, z, 1.0, max(recipe.augment, 0.1), torch.Generator())
    if not task.made:
        return batch
    target, weight = torch.empty(count, task.made, *grid.shape), torch.ones(count, 1, *grid.shape)
    heard = 1.0 if recipe.task == "unpaired" else recipe.adversary
    return replace(batch, target=target, weight=weight, adversary=heard)


def one_step(objective: nn.Module, batch: Batch, precision: str) -> None:
    """Forward and backward of each player, as the loop has them move."""
    networks = {name: objective.get_submodule(name) for name in objective.players}  # type: ignore[union-attr]
    for name in networks:
        for other, network in networks.items():
            network.requires_grad_(other == name or other == objective.model)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss, _ = getattr(objective, f"{name}_loss")(batch)
        loss.backward()
        del loss


def at_tick(objective: nn.Module, recipe: Recipe, task: Task, grid: Grid) -> None:
    """What looking at the run takes, without gradients and in float32: samples, and D's scores."""
    made = some_batch(recipe, watch.at_once(task.channels * math.prod(grid.shape)), task, grid)
    scored = some_batch(recipe, watch.SCORED, task, grid)
    with torch.no_grad():
        objective.used(made)  # type: ignore[operator]
        if objective.judge is not None:
            objective.judge(scored.images, scored.classes)  # type: ignore[operator]


class Counted(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside and still alive.

    Attributes:
        now: bytes alive; peak: the most there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._seen: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._seen:
                self._seen.add(storage)
                self.now += storage.nbytes()
                self.peak = max(self.peak, self.now)
                weakref.finalize(storage, self._gone, storage.nbytes())
        return made

    def _gone(self, count: int) -> None:
        self.now -= count


def size(network: nn.Module) -> int:
    """Bytes of the weights and buffers."""
    return sum(value.numel() * value.element_size() for value in (*network.parameters(), *network.buffers()))


def refuse_if_too_large(recipe: Recipe, task: Task, grid: Grid, device: torch.device, processes: int = 1) -> None:
    """Nothing when the run fits.

    Args:
        processes: that share each batch.

    Raises:
        ValueError: the run needs more than there is; says which --side would fit.
    """
    free, wanted = available(device), shared(recipe, task, grid, device, processes)
    if wanted <= free:
        return
    smaller = [
        replace(grid, doublings=grid.doublings - less)
        for less in range(1, grid.doublings)
        if grid.side >> less >= SMALLEST
    ]
    fitting = next((g.side for g in smaller if shared(recipe, task, g, device, processes) <= free), None)
    out = f"use --side {fitting}" if fitting else "use --size tiny and a small --side"
    raise ValueError(
        f"expected a run that fits into the {gigabytes(free)} of memory free on {device}, found that {' x '.join(map(str, grid.shape))} with the {recipe.generator} pair of width {recipe.width} and batches of {recipe.batch} needs about {gigabytes(wanted)}: {out}, or a machine with more memory"
    )
