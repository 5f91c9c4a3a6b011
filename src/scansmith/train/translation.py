"""Objective `translation`: a paired image to another, with bounds; regression first, no adversary."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from .. import losses
from ..networks import TRANSLATORS
from ..networks.blocks import Shares, take_statistics
from ..preprocess import Grid
from .objective import Batch, Objective, Task
from .recipes import Recipe

STRUCTURE, EDGES = 0.25, 0.25  # weights beside the absolute error
LEVELS = (0.05, 0.95)  # quantiles that the bounds learn
SETTLING = 16  # images that batch norm's statistics are taken from at a time


class Translation(Objective):
    """The translator of one run.

    Its loss is the absolute error in the body, a quarter of 1 - SSIM and of the error of differences between neighbours, and
    the pinball loss of both bounds (Koenker 1978), which leaves the middle alone.
    """

    players: Sequence[str] = ("translator",)
    model = "translator"

    def __init__(self, recipe: Recipe, task: Task, grid: Grid, kinds: Shares = ()) -> None:
        assert not kinds, "what is translated says itself what it is"
        super().__init__()
        self.generator_arguments = {
            "in_channels": task.channels, "out_channels": task.made, "dimensions": grid.dimensions,
            "width": recipe.width, "doublings": grid.doublings, "residual": task.residual,
        }  # fmt: skip
        self.translator = TRANSLATORS[recipe.generator](**self.generator_arguments)
        self.averages = recipe.ema_fraction > 0

    def translator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on one batch of pairs, and what to log of it."""
        assert batch.target is not None and batch.weight is not None
        real, weight = batch.target, batch.weight
        middle, lower, upper = self.translator(batch.images).unbind(1)
        error = losses.absolute(middle, real, weight)
        loss = error + STRUCTURE * losses.structural(middle, real, weight) + EDGES * losses.edges(middle, real, weight)
        still = middle.detach() - middle  # what the bounds say about the middle is not heard
        loss = loss + losses.pinball(lower + still, real, LEVELS[0], weight)
        loss = loss + losses.pinball(upper + still, real, LEVELS[1], weight)
        return loss, {"loss_g": loss.detach(), "error": error.detach()}

    def settle(self, average: nn.Module, images: Tensor, classes: Tensor | None, last: bool = False) -> None:
        """Batch norm's statistics for averaged weights, over training patches."""
        if self.averages:
            take_statistics(
                average, ((part,) for part in images.split(SETTLING) if len(part) == SETTLING or len(images) < SETTLING)
            )

    def used(self, batch: Batch) -> Tensor:
        """What the model makes of a batch, as at a tick."""
        made: Tensor = self.translator(batch.images)
        return made
