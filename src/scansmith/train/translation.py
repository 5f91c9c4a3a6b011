"""Objective `translation`: a paired image to another, with bounds; regression first, with a judge of texture where one is wished."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..networks import TRANSLATORS
from ..networks.blocks import Shares, take_statistics
from ..networks.patch_discriminator import PatchDiscriminator
from ..networks.registrar import Registrar, moved
from ..preprocess import Grid
from .objective import Batch, Objective, Task
from .recipes import Recipe

STRUCTURE, EDGES, SQUARE = 0.25, 0.25, 0.5  # weights beside the absolute error
LEVELS = (0.05, 0.95)  # quantiles that the bounds learn
SETTLING = 16  # images that batch norm's statistics are taken from at a time
# Of a field that says what pairs are apart, in voxels: of its slope, and of what a whole batch is moved alike.
SMOOTH, CENTRED = 0.1, 0.01
LEAST_GRAIN = 0.002  # of a target with hardly any


class Translation(Objective):
    """The translator of one run, and who helps it to learn.

    Its loss is the absolute error in the body, a quarter of 1 - SSIM and of the error of differences between neighbours, half the
    squared error, and the pinball loss of both bounds (Koenker 1978), which leaves the middle alone.

    With `recipe.adversary` a discriminator of patches, told the source (Isola 2017), judges the middle and its texture once
    regression has found the anatomy. With `recipe.registered` a small network learns what is left between output and target (Kong 2021), and the
    output is compared where it has been moved to; in use nothing is moved.
    """

    model = "translator"

    def __init__(self, recipe: Recipe, task: Task, grid: Grid, kinds: Shares = ()) -> None:
        assert not kinds, "what is translated says itself what it is"
        super().__init__()
        self.generator_arguments = {
            "in_channels": task.channels, "out_channels": task.made, "dimensions": grid.dimensions,
            "width": recipe.width, "doublings": grid.doublings, "residual": task.residual, "sources": task.sources,
        }  # fmt: skip
        self.translator = TRANSLATORS[recipe.generator](**self.generator_arguments)
        self.averages, self.d_loss, self.g_loss = recipe.ema_fraction > 0, *losses.LOSSES[recipe.loss]
        helpers: dict[str, nn.Module] = {}
        if recipe.adversary > 0.0:
            shown = task.channels + 2 * task.made
            helpers["discriminator"] = PatchDiscriminator(shown, grid.dimensions, recipe.width, normalized=False)
        if recipe.registered:
            helpers["registrar"] = Registrar(2 * task.made, grid.dimensions)
        for name, network in helpers.items():
            self.add_module(name, network)
        self.players: Sequence[str] = (*helpers, "translator")
        self._made: Tensor | None = None

    def resting(self, batch: Batch) -> Sequence[str]:
        """The discriminator, as long as nobody listens to it."""
        return () if batch.adversary > 0.0 else ("discriminator",)

    def made(self, batch: Batch) -> Tensor:
        """(B, 3, C', *spatial): what the translator makes of the batch, once for all players that ask."""
        if self._made is None:
            self._made = self.translator(batch.images)
        return self._made

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the judge, which sees sources with their targets and with what was made."""
        assert batch.target is not None and batch.weight is not None
        middle = self.made(batch)[:, 0].detach()
        both = torch.cat([shown(one, batch.images, batch.target, batch.weight) for one in (batch.target, middle)])
        real, fake = self.get_submodule("discriminator")(both).chunk(2)
        loss = self.d_loss(real, fake)
        return loss, {"loss_d": loss.detach(), "gap": (real - fake).mean().detach()}

    def registrar_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The error that is left where the output has been moved to, of smooth fields that move no whole batch."""
        assert batch.target is not None and batch.weight is not None
        middle = self.made(batch)[:, 0].detach()
        field = self.get_submodule("registrar")(torch.cat([middle, batch.target], 1))
        error = losses.absolute(moved(middle, field), batch.target, batch.weight)
        slopes = torch.stack([field.diff(dim=axis).square().mean() for axis in range(2, field.ndim)]).mean()
        alike = field.mean(dim=(0, *range(2, field.ndim))).square().sum()
        loss = error + SMOOTH * slopes + CENTRED * alike
        return loss, {"moved": field.detach().square().sum(1).sqrt().mean()}

    def translator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss on one batch of pairs, and what to log of it."""
        assert batch.target is not None and batch.weight is not None
        real, weight, planes = batch.target, batch.weight, self.made(batch)
        self._made = None
        if "registrar" in self.players:
            with torch.no_grad():
                field = self.get_submodule("registrar")(torch.cat([planes[:, 0], real], 1))
            planes = moved(planes.flatten(1, 2), field).unflatten(1, planes.shape[1:3])
        middle, lower, upper = planes.unbind(1)
        error = losses.absolute(middle, real, weight)
        loss = regression(middle, real, weight)
        still = middle.detach() - middle  # what the bounds say about the middle is not heard
        loss = loss + losses.pinball(lower + still, real, LEVELS[0], weight)
        loss = loss + losses.pinball(upper + still, real, LEVELS[1], weight)
        if batch.adversary > 0.0:
            judge = self.get_submodule("discriminator")
            scores = judge(shown(middle, batch.images, real, weight))
            loss = loss + batch.adversary * self.g_loss(torch.zeros_like(scores), scores)
        return loss, {"loss_g": loss.detach(), "error": error.detach()}

    def settle(self, average: nn.Module, images: Tensor, classes: Tensor | None, last: bool = False) -> None:
        """Batch norm's statistics for averaged weights, over training patches."""
        if self.averages:
            settled(average, images)

    def used(self, batch: Batch) -> Tensor:
        """What the model makes of a batch, as at a tick."""
        made: Tensor = self.translator(batch.images)
        return made


def regression(middle: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """What a translation differs by from its target: absolute and squared error, structure and edges."""
    loss = losses.absolute(middle, real, weight) + SQUARE * losses.squared(middle, real, weight)
    return loss + STRUCTURE * losses.structural(middle, real, weight) + EDGES * losses.edges(middle, real, weight)


def settled(network: nn.Module, images: Tensor) -> None:
    """Batch norm's statistics of a network whose weights are an average, over patches."""
    parts = ((part,) for part in images.split(SETTLING) if len(part) == SETTLING or len(images) < SETTLING)
    take_statistics(network, parts)


def shown(image: Tensor, source: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """What the judge sees of a target or of what was made of the source: source, image and its texture, (B, C + 2 C', *spatial)."""
    return torch.cat([source, textured(image, target, weight).to(source.dtype)], 1)


def textured(image: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """An image with its texture, (B, 2 C', *spatial).

    Texture is what differs from the mean of the neighbours, in units of that of the target where it counts, and compressed: grain of
    some HU is a hundredth of the range of values, and a judge of values alone is blind to it (docs/log.md).
    """
    weight = torch.ones_like(target) if weight is None else weight.expand_as(target)
    usual = (grain(target).abs() * weight).flatten(1).sum(1) / weight.flatten(1).sum(1)
    scale = usual.clamp_min(LEAST_GRAIN).reshape(-1, *(1 for _ in image.shape[1:]))
    return torch.cat([image, torch.asinh(grain(image) / scale)], 1)


def grain(image: Tensor) -> Tensor:
    """An image (B, C, *spatial) without the mean of each voxel's neighbours."""
    pool = F.avg_pool2d if image.ndim == 4 else F.avg_pool3d
    return image - pool(image, 3, stride=1, padding=1, count_include_pad=False)
