"""Objective `cycle`: one kind of image to another and back without pairs; the way back is a model of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import losses
from ..networks import TRANSLATORS
from ..networks.blocks import CONVOLUTIONS, Shares
from ..networks.patch_discriminator import PatchDiscriminator
from ..preprocess import Grid
from .contrastive import laid_loss
from .objective import Batch, Objective, Task
from .recipes import Recipe
from .translation import settled, textured

# Zhu 2017, sections 4 and 5.2. Without the second the inverted contrast is as good a solution as the right one: on phantoms air became
# bright and tissue dark.
CYCLE, SAME = 10.0, 5.0
# An output is blurred and given noise before it is turned back, or the way there hides the source in fine grain (Chu 2017).
BLUR, NOISE = 1, 0.02  # voxels to either side; standard deviation, encoded


class Both(nn.Module):
    """The translators there and back."""

    def __init__(self, there: nn.Module, back: nn.Module) -> None:
        super().__init__()
        self.there, self.back = there, back


class Judges(nn.Module):
    """The discriminators of targets and of sources."""

    def __init__(self, of_targets: nn.Module, of_sources: nn.Module) -> None:
        super().__init__()
        self.of_targets, self.of_sources = of_targets, of_sources


class Cycle(Objective):
    """Two translators and two discriminators (Zhu 2017): there and back again is the same image, and what is a target stays."""

    players: Sequence[str] = ("translators", "discriminators")
    model = "translators"

    def __init__(self, recipe: Recipe, task: Task, grid: Grid, kinds: Shares = ()) -> None:
        assert not kinds, "what is translated says itself what it is"
        if task.channels != task.made:
            raise ValueError(
                f"expected as many channels in both kinds of scans for a way back, found {task.channels} and {task.made} (2.5-D sources are stacks of slices): use the recipe contrastive"
            )
        super().__init__()
        self.generator_arguments = {
            "in_channels": task.channels, "out_channels": task.made, "dimensions": grid.dimensions, "width": recipe.width,
        }  # fmt: skip
        self.translators = Both(*(TRANSLATORS[recipe.generator](**self.generator_arguments) for _ in range(2)))
        self.discriminators = Judges(
            *(PatchDiscriminator(2 * task.made, grid.dimensions, recipe.width, normalized=False) for _ in range(2))
        )
        self.averages, self.d_loss, self.g_loss = recipe.ema_fraction > 0, *losses.LOSSES[recipe.loss]
        self._made: tuple[Tensor, Tensor] | None = None

    def resting(self, batch: Batch) -> Sequence[str]:
        """The discriminators, as long as translators learn from scans that are laid on each other."""
        return () if batch.adversary > 0.0 else ("discriminators",)

    def translators_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of both translators; the discriminators take no gradient here."""
        assert batch.target is not None
        there, back, judges = self.translators.there, self.translators.back, self.discriminators
        made, returned = there(batch.images)[:, 0], back(batch.target)[:, 0]
        self._made = made.detach(), returned.detach()
        laid: dict[str, Tensor] = {}
        if batch.laid:
            both = [laid_loss(one, other, batch)[0] for one, other in ((made, batch.target), (returned, batch.images))]
            laid["laid"] = torch.stack(both).sum()
            if batch.adversary == 0.0:
                return laid["laid"], {"laid": laid["laid"].detach()}
        again = (
            back(coarsened(made, batch))[:, 0] - batch.images,
            there(coarsened(returned, batch))[:, 0] - batch.target,
        )
        kept = there(batch.target)[:, 0] - batch.target, back(batch.images)[:, 0] - batch.images
        cycle, same = (torch.stack([error.abs().mean() for error in errors]).sum() for errors in (again, kept))
        adversarial = torch.zeros((), device=made.device)
        for judge, image, real in (
            (judges.of_targets, made, batch.judged),
            (judges.of_sources, returned, batch.images),
        ):
            scores = judge(textured(image, real))
            adversarial = adversarial + self.g_loss(torch.zeros_like(scores), scores)
        logged = {"loss_g": adversarial, "cycle": cycle, "same": same} | laid
        loss = adversarial + CYCLE * cycle + laid.get("laid", SAME * same)
        return loss, {name: one.detach() for name, one in logged.items()}

    def discriminators_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of both discriminators, on what was made just before."""
        assert batch.target is not None and self._made is not None
        made, returned = self._made
        self._made = None
        judges = self.discriminators
        loss, gap = torch.zeros((), device=made.device), torch.zeros((), device=made.device)
        for judge, real, fake in (
            (judges.of_targets, batch.judged, made),
            (judges.of_sources, batch.images, returned),
        ):
            both = torch.cat([textured(one, real) for one in (real, fake.to(real.dtype))])
            real_scores, fake_scores = judge(both).chunk(2)
            loss = loss + self.d_loss(real_scores, fake_scores)
            gap = gap + (real_scores - fake_scores).mean().detach() / 2.0
        return loss, {"loss_d": loss.detach(), "gap": gap}

    def saved(self, average: nn.Module) -> nn.Module:
        assert isinstance(average, Both)
        return average.there

    def inverse(self, average: nn.Module) -> nn.Module:
        assert isinstance(average, Both)
        return average.back

    def settle(self, average: nn.Module, images: Tensor, classes: Tensor | None, last: bool = False) -> None:
        """Batch norm's statistics for averaged weights: there over sources, back over what that makes of them."""
        if not self.averages:
            return
        assert isinstance(average, Both)
        settled(average.there, images)
        with torch.no_grad():
            made = torch.cat([average.there(part)[:, 0] for part in images.split(8)])
        settled(average.back, made)

    def used(self, batch: Batch) -> Tensor:
        """What the model makes of a batch, as at a tick."""
        made: Tensor = self.translators.there(batch.images)
        return made


def coarsened(images: Tensor, batch: Batch) -> Tensor:
    """Images blurred over three voxels along each axis, with noise that the step's own generator draws."""
    dimensions, channels = images.ndim - 2, images.shape[1]
    side = 2 * BLUR + 1
    weight = images.new_full((channels, 1, *(side,) * dimensions), 1.0 / side**dimensions)
    padded = F.pad(images, (BLUR, BLUR) * dimensions, mode="replicate")
    convolve = F.conv2d if CONVOLUTIONS[dimensions] is nn.Conv2d else F.conv3d
    smooth = convolve(padded, weight, groups=channels)
    random = torch.Generator().manual_seed(int(batch.random.initial_seed()))
    noise = torch.randn(images.shape, generator=random).to(images.device)
    return smooth + NOISE * noise
