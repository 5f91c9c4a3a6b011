"""Objective `segmentation`: an image to the class of each of its voxels."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .. import losses
from ..networks.blocks import Shares
from ..networks.unet import UNet
from ..preprocess import Grid
from .objective import Batch, Task
from .recipes import Recipe
from .translation import Translation


class Segmentation(Translation):
    """The translator of one run, whose output are logits of classes, background first.

    Its loss is the soft Dice of the labels (Milletari 2016) and the cross-entropy, one for one (Isensee 2021).
    """

    players: Sequence[str] = ("translator",)

    def __init__(self, recipe: Recipe, task: Task, grid: Grid, kinds: Shares = ()) -> None:
        super().__init__(recipe, task, grid, kinds)
        self.generator_arguments |= {"residual": False, "heads": 1}
        self.translator = translator = UNet(**self.generator_arguments)
        translator.end.reset_parameters()  # logits that begin at 0 grow too slowly for short runs

    def translator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on one batch of images with label maps, and what to log of it."""
        assert batch.target is not None and batch.weight is not None
        scores = self.translator(batch.images)[:, 0]
        overlap = losses.dice(scores, batch.target, batch.weight)
        loss = overlap + losses.cross_entropy(scores, batch.target, batch.weight)
        return loss, {"loss_g": loss.detach(), "error": overlap.detach()}
