"""What the loop knows of a task: its networks, the order in which they move, and one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..dataset import Dataset
from ..preprocess import Grid


@dataclass(frozen=True)
class Task:
    """What the data fix.

    Attributes:
        channels, size: of the stored images, (H, W) or (D, H, W).
        classes: their number, 0 without labels.
        train_images: number of training images.
        made: channels of the image that each is translated to; 0 where nothing is translated.
        residual: whether that image is the source's middle channels, a little changed.
        sources: of several sources their number, 0 of one.
        like: grid of the model that is started from, which is then the only one; None chooses by the wished side.
    """

    channels: int
    size: tuple[int, ...]
    classes: int
    train_images: int
    like: Grid | None = None
    made: int = 0
    residual: bool = False
    sources: int = 0

    def grid(self, target: int) -> Grid:
        """The training grid whose longest side is near `target`; of a translation the patch of that side at most."""
        if self.made:
            return Grid.patch(self.size, target)
        if self.like:
            return Grid.holding(self.size, self.like.base, self.like.doublings)
        return Grid.choose(self.size, target)


@dataclass(frozen=True)
class Batch:
    """What one step learns from: this process's part of the step's batch.

    Attributes:
        images: (B, C, *spatial) float32 in [-1, 1].
        classes: (B,) int64 or None.
        kinds: (B,) int64, what D is told of each image: its kind, without kinds its class, or None.
        z: (B, latent).
        gamma: weight of the penalties; augment: probability of each augmentation.
        random: the step's own generator, on the CPU.
        whole: images of the step over all processes; None: B.
        part: which of them these are.
        generator_moves: whether G learns in this step too.
        target: (B, C', *spatial) what the images are to be translated to, or None.
        weight: (B, 1, *spatial) how much each voxel counts, or None.
        adversary: weight of the judge of a translation.
        laid: whether images and targets are of different people, laid on each other.
        real: (B, C', *spatial) what a judge is shown as real where that is not the target, or None.
    """

    images: Tensor
    classes: Tensor | None
    kinds: Tensor | None
    z: Tensor
    gamma: float
    augment: float
    random: torch.Generator
    whole: int | None = None
    part: slice = field(default_factory=lambda: slice(None))
    generator_moves: bool = True
    target: Tensor | None = None
    weight: Tensor | None = None
    adversary: float = 0.0
    laid: bool = False
    real: Tensor | None = None

    @property
    def judged(self) -> Tensor:
        """(B, C', *spatial): what a judge is shown as real."""
        found = self.target if self.real is None else self.real
        assert found is not None
        return found

    def positions(self, sets: int) -> Tensor:
        """Where the images of `sets` batches, one after the other, lie among those of all processes."""
        own = torch.arange(self.whole or len(self.images))
        return torch.cat([own[self.part] + number * len(own) for number in range(sets)])


class Objective(nn.Module):
    """What is trained, made from (recipe, task, grid, kinds); one subclass per task, listed in `OBJECTIVES`.

    It has a method `<player>_loss(batch) -> (loss, what to log of it)` for each of its players.

    Attributes:
        players: names of its networks in the order in which they move.
        model: name of the network that is averaged and saved.
        generator_arguments: of the class in `GENERATORS` that makes that network again.
    """

    players: Sequence[str]
    model: str
    generator_arguments: dict[str, Any]

    @property
    def judge(self) -> nn.Module | None:
        """The discriminator, whose scores tell how much it has learned by heart; None without one."""
        return None

    def resting(self, batch: Batch) -> Sequence[str]:
        """Players that do not move at this batch."""
        return ()

    def used(self, batch: Batch) -> Tensor:
        """What the model makes at a tick, of as many as the batch has."""
        made: Tensor = self.get_submodule(self.model)(batch.z, batch.classes)
        return made

    def seen(self, images: Tensor, augment: float, random: torch.Generator) -> Tensor:
        """Images as the judge sees them under an augmentation of that probability."""
        return images

    def settle(self, average: nn.Module, images: Tensor, classes: Tensor | None, last: bool = False) -> None:
        """Before samples are drawn: what the averaged model still needs; `last`: for good, so that it may take longer."""

    def saved(self, average: nn.Module) -> nn.Module:
        """Of the averaged model the network that becomes the model folder."""
        return average

    def inverse(self, average: nn.Module) -> nn.Module | None:
        """Of the averaged model the network of the way back, if there is one."""
        return None

    def leave(self, average: nn.Module, data: Dataset, grid: Grid, run: Path, device: torch.device) -> None:
        """At the end: files for the run folder besides the model; most leave none."""
