"""Objective `contrastive`: one kind of image to another without pairs; each place of the output stays recognisable in the source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..networks.blocks import Shares
from ..networks.patch_discriminator import PatchDiscriminator
from ..networks.resnet import ResNet
from ..preprocess import Grid
from .objective import Batch, Objective, Task
from .recipes import Recipe
from .translation import regression, settled, textured

PLACES = 256  # of each map that are compared
LENGTH = 128  # of what a place is described by
# Beside scans that are laid on the sources the others weigh less: with 1 and 1 the source's grey values came back (Harvard MR -> CT 92,
# with .2 and .01 73; docs/log.md).
LAID_ADVERSARY, LAID_CONTRAST = 0.2, 0.01
CONTRAST, STRUCTURE = 1.0, 1.0  # weights beside the adversary's: Park 2020, section 3.3, and edges
SAME = 5.0  # of what a target is changed by; that its places stay recognisable, as in Park 2020, says nothing of their values


class Contrastive(Objective):
    """Translator, discriminator and the heads that describe places (Park 2020, "contrastive unpaired translation").

    The adversary wants outputs that look like targets (least squares, Mao 2017). A place of the output must be told apart from others of
    the same source by what the encoder sees there, and a target must be left as it is, where both kinds have equal channels. Edges lie
    where the source has some.
    """

    players: Sequence[str] = ("discriminator", "heads", "translator")
    model = "translator"

    def __init__(self, recipe: Recipe, task: Task, grid: Grid, kinds: Shares = ()) -> None:
        assert not kinds, "what is translated says itself what it is"
        super().__init__()
        self.generator_arguments = {
            "in_channels": task.channels, "out_channels": task.made, "dimensions": grid.dimensions, "width": recipe.width,
        }  # fmt: skip
        self.translator = ResNet(**self.generator_arguments)
        self.discriminator = PatchDiscriminator(2 * task.made, grid.dimensions, recipe.width, normalized=False)
        self.heads = nn.ModuleList(
            nn.Sequential(nn.Linear(width, LENGTH), nn.ReLU(), nn.Linear(LENGTH, LENGTH))
            for width in self.translator.widths
        )
        self.averages, self.d_loss, self.g_loss = recipe.ema_fraction > 0, *losses.LOSSES[recipe.loss]
        self._made: Tensor | None = None
        self._maps: list[tuple[Tensor, Tensor]] = []

    def resting(self, batch: Batch) -> Sequence[str]:
        """All but the translator, as long as it learns from scans that are laid on each other."""
        return () if batch.adversary > 0.0 else ("discriminator", "heads")

    def discriminator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the judge of targets beside outputs."""
        assert batch.target is not None
        maps = self.translator.encoded(batch.images)
        self._made = self.translator.decoded(maps[-1])[:, 0]
        self._maps = self.pairs_of(maps, batch.images, self._made)
        real = middle_of(batch.judged, self._made.shape[1])
        both = torch.cat([textured(one, real) for one in (real, self._made.detach().to(real.dtype))])
        real_scores, fake_scores = self.discriminator(both).chunk(2)
        loss = self.d_loss(real_scores, fake_scores)
        return loss, {"loss_d": loss.detach(), "gap": (real_scores - fake_scores).mean().detach()}

    def heads_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The contrast of places, for the heads alone."""
        return self.contrast([(one.detach(), other.detach()) for one, other in self._maps], batch), {}

    def translator_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of the translator; the other players take no gradient here."""
        assert batch.target is not None
        if batch.adversary == 0.0:
            return laid_loss(self.translator(batch.images)[:, 0], batch.target, batch)
        assert self._made is not None
        made, maps = self._made, self._maps
        self._made, self._maps = None, []
        scores = self.discriminator(textured(made, middle_of(batch.judged, made.shape[1])))
        adversarial = self.g_loss(torch.zeros_like(scores), scores)
        contrast = self.contrast(maps, batch)
        logged = {"loss_g": adversarial, "contrast": contrast}
        if batch.laid:
            logged["laid"], _ = laid_loss(made, batch.target, batch)
            loss = logged["laid"] + LAID_ADVERSARY * adversarial + LAID_CONTRAST * contrast
            return loss, {name: one.detach() for name, one in logged.items()}
        logged["edges"] = losses.gradient_field(made, middle_of(batch.images, made.shape[1]))
        loss = adversarial + CONTRAST * contrast + STRUCTURE * logged["edges"]
        if self.compares_same(batch):
            kept = self.translator(batch.target)[:, 0]
            logged["same"] = (kept - middle_of(batch.target, kept.shape[1])).abs().mean()
            loss = loss + SAME * logged["same"]
        return loss, {name: one.detach() for name, one in logged.items()}

    def compares_same(self, batch: Batch) -> bool:
        """Whether a target can be a source, too."""
        return batch.target is not None and batch.target.shape[1] == batch.images.shape[1]

    def pairs_of(self, maps: Sequence[Tensor], source: Tensor, made: Tensor) -> list[tuple[Tensor, Tensor]]:
        """The maps of a source, without gradient, beside those of what was made of it, put in the place of its middle slice."""
        shown = made
        if source.shape[1] != made.shape[1]:
            shown = source.clone()
            middle_of(shown, made.shape[1]).copy_(made)
        return [(key.detach(), own) for key, own in zip(maps[:-1], self.translator.encoded(shown))]

    def contrast(self, maps: Sequence[tuple[Tensor, Tensor]], batch: Batch) -> Tensor:
        """Mean contrast over maps, of places that the step's own generator draws."""
        random = torch.Generator().manual_seed(int(batch.random.initial_seed()))
        terms = []
        for number, (source, made) in enumerate(maps):
            head = self.heads[number % len(self.heads)]
            flat_source, flat_made = (one.flatten(2).movedim(1, -1).float() for one in (source, made))
            chosen = torch.randperm(flat_source.shape[1], generator=random)[:PLACES].to(source.device)
            described, keys = (F.normalize(head(one[:, chosen]), dim=-1) for one in (flat_made, flat_source))
            terms.append(losses.patch_contrast(described, keys))
        return torch.stack(terms).mean()

    def settle(self, average: nn.Module, images: Tensor, classes: Tensor | None, last: bool = False) -> None:
        """Batch norm's statistics for averaged weights, over training patches."""
        if self.averages:
            settled(average, images)

    def used(self, batch: Batch) -> Tensor:
        """What the model makes of a batch, as at a tick."""
        made: Tensor = self.translator(batch.images)
        return made


def laid_loss(made: Tensor, target: Tensor, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
    """What outputs (B, C', *spatial) differ by from scans of other people that are laid on the sources."""
    assert batch.weight is not None
    loss = regression(made, middle_of(target, made.shape[1]), batch.weight)
    return loss, {"laid": loss.detach()}


def middle_of(stack: Tensor, channels: int) -> Tensor:
    """The channels of the slice that is meant, of a stack of slices (B, slices * channels, *spatial)."""
    first = (stack.shape[1] // channels // 2) * channels
    return stack[:, first : first + channels]
