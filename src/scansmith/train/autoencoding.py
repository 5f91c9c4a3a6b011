"""Objective `autoencoding`: the GAN's relatives. A (variational) autoencoder learns to give an image back from a short code."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..dataset import Dataset
from ..networks import GENERATORS
from ..networks.blocks import Shares
from ..preprocess import Grid
from ..runtime import write_atomic
from . import watch
from .objective import Batch, Objective, Task
from .recipes import Recipe


class Autoencoding(Objective):
    """Encoder and decoder of one run, which move together.

    With `kl_weight` > 0 a variational autoencoder (Kingma 2014, eq. 10), whose decoder has the variance that is optimal for
    the batch (Rybkin 2021, eq. 4 and 5), so that no weight between the two terms has to be searched. With 0 a plain one: its
    code is the encoder's mean. New images of both are drawn from a Gaussian fitted to the codes afterwards (Ghosh 2020,
    section 4): codes of a few hundred images never fill the prior of a variational one, and between them it decodes nothing.
    """

    players = ("autoencoder",)
    model = "autoencoder"
    processes: int

    def __init__(self, recipe: Recipe, task: Task, grid: Grid, kinds: Shares = ()) -> None:
        assert not kinds, "codes tell the kinds apart by themselves"
        super().__init__()
        self.generator_arguments = {
            "channels": task.channels, "base": grid.base, "doublings": grid.doublings,
            "width": recipe.width, "latent": recipe.latent, "classes": task.classes,
        }  # fmt: skip
        self.autoencoder = GENERATORS[recipe.generator](**self.generator_arguments)
        self.kl_weight = recipe.kl_weight
        self.processes = 1

    def autoencoder_loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """-ELBO per image in units of one pixel: 1/2 log MSE + kl_weight * KL / pixels."""
        mean, log_variance = self.autoencoder.encode(batch.images, batch.classes)  # type: ignore[operator]
        variational = self.kl_weight > 0.0
        code = mean + (0.5 * log_variance).exp() * batch.z if variational else mean
        made = self.autoencoder.decode(code, batch.classes)  # type: ignore[operator]
        error = mean_over((made.float() - batch.images).square().mean(), self.processes)
        # -KL of Kingma 2014, eq. 10: 1/2 sum(1 + log var - mean^2 - var)
        kl = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1.0).sum(1).mean()
        loss = 0.5 * (error + 1e-8).log()
        if variational:
            loss = loss + self.kl_weight * kl / batch.images[0].numel()
        logged = {"loss_g": loss, "reconstruction": error.sqrt(), "kl": kl if variational else torch.zeros(())}
        return loss, {name: value.detach() for name, value in logged.items()}

    def settle(self, average: nn.Module, images: Tensor, classes: Tensor | None, last: bool = False) -> None:
        """Before samples are drawn: mean and covariance of the codes; of a variational one their own variances are added."""
        codes, variances = (found.double() for found in encode(average, images, classes))
        centred = codes - codes.mean(0)
        covariance = centred.T @ centred / max(1, len(codes) - 1)
        if self.kl_weight > 0.0:
            covariance += variances.mean(0).diag()
        # A little of the diagonal keeps the root real where images are fewer than code numbers.
        covariance += 1e-4 * covariance.diagonal().mean() * torch.eye(codes.shape[1], dtype=torch.float64)
        average.center.copy_(codes.mean(0))  # type: ignore[operator]
        average.factor.copy_(torch.linalg.cholesky(covariance))  # type: ignore[operator]

    def leave(self, average: nn.Module, data: Dataset, grid: Grid, run: Path, device: torch.device) -> None:
        """latents.npz (codes of every image with its case, slice, split and label) and samples/reconstructions.png.

        Where classes are learned, images without a label have neither.
        """
        level = data.level(grid)
        classes = torch.from_numpy(data.classes()) if self.generator_arguments["classes"] else None
        known = np.arange(len(data)) if classes is None else np.flatnonzero(data.classes() >= 0)
        codes = [
            encode(average, torch.from_numpy(level.batch(rows)).to(device), None if classes is None else classes[rows])[
                0
            ]
            for rows in np.array_split(known, -(-len(known) // 512))
        ]
        columns = {name: data.columns[name][known] for name in ("case", "slice", "split", "label")}
        arrays = {"latents": torch.cat(codes).numpy(), **columns}
        write_atomic(run / "latents.npz", lambda partial: savez(partial, arrays))
        split = "validation" if "validation" in columns["split"] else "train"
        rows = known[columns["split"] == split][:32]
        shown = torch.from_numpy(level.batch(rows)).to(device)
        chosen = None if classes is None else classes[rows].to(device)
        with torch.no_grad():
            again = average.decode(average.encode(shown, chosen)[0], chosen)  # type: ignore[operator]
        pairs = torch.stack([shown, again.clamp(-1.0, 1.0)], dim=1).flatten(0, 1)
        watch.save_sheet(run / "samples" / "reconstructions.png", pairs.float().cpu().numpy())


def mean_over(value: Tensor, processes: int) -> Tensor:
    """The mean over the processes that share a batch, with its gradient: the logarithm of a mean is no mean of logarithms."""
    if processes == 1:
        return value
    from torch.distributed.nn.functional import all_reduce

    total: Tensor = all_reduce(value)
    return total / processes


def savez(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with open(path, "wb") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def encode(average: nn.Module, images: Tensor, classes: Tensor | None, group: int = 64) -> tuple[Tensor, Tensor]:
    """Codes (the encoder's means) and variances of images (N, C, *spatial), each float32 (N, latent) on the CPU."""
    device = next(average.parameters()).device
    found = []
    with torch.no_grad():
        for start in range(0, len(images), group):
            chosen = None if classes is None else classes[start : start + group].to(device)
            mean, log_variance = average.encode(images[start : start + group].to(device), chosen)  # type: ignore[operator]
            found.append(torch.stack([mean.float(), log_variance.float().exp()]).cpu())
    means, variances = torch.cat(found, 1)
    return means, variances
