"""Feed of two kinds of scans that do not belong together: patches of either, and at every tick how far outputs are from real targets."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .. import inference, losses
from ..dataset import Dataset
from ..metrics import random_conv
from ..metrics.energy import energy_distance
from ..pairings import Pairing
from ..pairings.base import BODY, WHOLE
from ..pairings.laid import FAR, lay
from ..runtime import derive_seed
from . import watch
from .feed import epochs
from .objective import Batch, Objective
from .pairs import Pairs, resampled, ticked, turned
from .parallel import Group
from .recipes import Recipe, Values

SHOWN = 8  # images in a sheet
PLACES = (1 / 3, 2 / 3)  # along each axis, of the patches whose features are compared
SAME_VOXELS = 1.25  # times, that voxel sizes of both kinds may differ
LAID = 0.3  # of the run is learned from sources laid under targets
DIFFERS = 0.15  # in shares of a label, or of the image that is body, from which on it is said


@dataclass(frozen=True)
class AsStored(Pairing):
    """Scans whose values are learned as they are: those of targets are what outputs must get, and each kind may be the target."""

    @property
    def bendable(self) -> bool:
        return False


@dataclass(frozen=True)
class Unpaired:
    """Sources and targets of different patients.

    Attributes:
        sources, targets: patches of either; of a `Pairs` only what cuts patches is used.
        compared: rows of validation targets, else of training targets.
        laid: sources under targets with alike outlines, which the run begins with; None where outlines differ.
        unlike: how much outlines differ, see `pairings.laid`.
    """

    sources: Pairs
    targets: Pairs
    compared: np.ndarray
    laid: Pairs | None = None
    unlike: float = 0.0

    @property
    def rows(self) -> np.ndarray:
        return self.sources.rows

    @property
    def patch(self) -> tuple[int, ...]:
        return self.sources.patch

    def counts(self, classes: int) -> list[int]:
        """Scans that are translated have no classes."""
        return []

    def draw(self, recipe: Recipe, step: int, group: Group, now: Values) -> Batch:
        """This process's part of the batch of one step: a function of the seed and the step alone."""
        if self.laid is not None:
            alone = step * recipe.batch < LAID * recipe.images
            drawn = self.laid.draw(recipe, step, group, now)
            random = torch.Generator().manual_seed(derive_seed(recipe.seed, "step", step))
            # What is moved and stretched has lost its grain: the judge is shown targets as they are.
            real = None if alone else self._real(recipe, step, drawn.part).to(group.device)
            return replace(drawn, random=random, laid=True, real=real, adversary=0.0 if alone else 1.0)
        part = group.part(recipe.batch)
        seed = derive_seed(recipe.seed, "sources")
        sides = self._patches(self.sources, replace(recipe, seed=seed), step, part), self._real(recipe, step, part)
        images, target = (side.to(group.device) for side in sides)
        return Batch(
            images, None, None, torch.zeros(len(images), 1), 0.0, 0.0,
            torch.Generator().manual_seed(derive_seed(recipe.seed, "step", step)),
            whole=recipe.batch if group.size > 1 else None, part=part, target=target, adversary=1.0,
        )  # fmt: skip

    def _real(self, recipe: Recipe, step: int, part: slice) -> Tensor:
        """Patches of targets."""
        return self._patches(self.targets, replace(recipe, seed=derive_seed(recipe.seed, "targets")), step, part)

    def _patches(self, side: Pairs, recipe: Recipe, step: int, part: slice) -> Tensor:
        rows = side.rows[epochs(len(side.rows), recipe, step)][part]
        numbers = range(recipe.batch)[part]
        cut = [
            side.cut(int(row), np.random.default_rng(derive_seed(recipe.seed, "patch", step, number)))[0]
            for row, number in zip(rows, numbers)
        ]
        maps = turned(
            recipe.batch, len(self.patch), torch.Generator().manual_seed(derive_seed(recipe.seed, "turn", step))
        )
        return resampled(torch.from_numpy(np.stack(cut)), maps[part], side.fills[0])

    def typical(self, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Patches of training sources."""
        return self.sources.typical(recipe, device)

    # -------------------------------------------------------------------------------------------- a tick

    def observe(
        self,
        objective: Objective,
        average: nn.Module,
        recipe: Recipe,
        run: Path,
        images: int,
        now: Values,
        device: torch.device,
    ) -> dict[str, Any]:
        """A tick: how far outputs are from real targets, as a share of how far the sources are, and how well edges are kept.

        The last weights are kept: neither number says by itself which model is best.
        """
        began = time.monotonic()
        objective.settle(average, *self.typical(recipe, device))
        network = objective.saved(average)
        sources, made = [], []
        for row in self.sources.seen.tolist():
            source, _ = self.sources.looked_at(row, self.sources.box)
            sources.append(self.sources.pairing.middle(source))
            made.append(inference.translate(network, source, self.patch, device)[0])
        real = [
            self.targets.pairing.middle(self.targets.looked_at(row, self.targets.box)[0])
            for row in self.compared.tolist()
        ]
        kept = [edges_kept(one, source) for one, source in zip(made, sources)]
        far = [distance(side, real, self.patch) for side in (made, sources)]
        tiles = [
            tile[0]
            for source, one, target in zip(sources[:SHOWN], made, real * SHOWN)
            for tile in (source, one, target)
        ]
        watch.save_sheet(run / "samples" / f"{images:09d}.png", np.stack(same_size(tiles))[:, None], columns=3)
        quality = far[0] / max(far[1], 1e-9)
        return {
            "score": round(quality, 5), "score_error": 0.0, "quality": round(quality, 4), "diversity": None,
            "kept_edges": round(float(np.mean(kept)), 3), "reference": "none", "watch_s": round(time.monotonic() - began, 3),
        }  # fmt: skip

    def words(self, row: dict[str, Any], health: str) -> str:
        """What the progress bar says of a tick."""
        return f"{row['quality']:.0%} of the sources' distance to real targets, {row['kept_edges']:.0%} of edges kept, {health}"

    # -------------------------------------------------------------------------------------------- at the end

    def says(self, network: nn.Module, device: torch.device) -> dict[str, Any]:
        """How scans are brought to the network and its output to units; without pairs there are no bounds."""
        source, target = self.sources.pairing, self.targets.pairing
        wished, _ = target.windows
        info, other = source.data.info, target.data.info
        return {
            "intensity": {"low": wished.low, "high": wished.high, "units": wished.units},
            "familiarity": source.familiar(),
            "translation": {
                **source.about(), "task": "unpaired",
                "target": {"modality": other["modality"], "channels": int(target.data.shape[0]), "units": wished.units},
                "patch": list(self.patch), "neighbours": int(info.get("neighbours") or 0), "choices": info["choices"],
                "line": [0.0, 1.0], "usual_width": None, "calibration": None, "warnings": differences(source.data, target.data),
            },
        }  # fmt: skip

    def plan(self) -> str:
        """How the run begins."""
        if math.isinf(self.unlike):
            return "scans cannot be laid on each other: most of a kind fill their images, so that no outline of a body is seen"
        if self.laid is None:
            return f"outlines of sources and targets differ too much to lay scans on each other ({self.unlike:.2f}, below {FAR:g} is wanted): scans of other body parts or cuts are harder to learn"
        return f"each source is laid under targets with the most alike outlines (they differ by {self.unlike:.2f}, 0 is the same): regression from such poor pairs alone for {LAID:.0%} of the run, then with a discriminator"

    def turned_round(self) -> Unpaired:
        """The same for the way back."""
        return Unpaired(self.targets, self.sources, self.sources.seen)


def gather(data: Dataset, other: Dataset, recipe: Recipe, patch: Sequence[int]) -> Unpaired:
    """Training scans of both kinds, and the rows that ticks look at; no holdout is touched.

    Raises:
        ValueError: slices in one and volumes in the other, other channels, or voxel sizes that differ too much.
    """
    refuse_unlike(data, other)
    sides, seen = [], []
    for one in (data, other):
        pairing = AsStored(one)
        validation, rows = pairing.rows("validation"), pairing.rows("train")
        reference = validation if len(validation) else rows
        most, box = ticked(recipe, patch, one.shape[1:])
        seen.append(reference[np.unique(np.linspace(0, len(reference) - 1, min(most, len(reference))).astype(int))])
        sides.append(Pairs(pairing, rows, seen[-1], "none", tuple(patch), (0.0, 1.0), "unpaired", box))
    outlines = lay(sides[0].pairing, sides[1].pairing)
    unlike = outlines.difference()
    laid = replace(sides[0], pairing=outlines) if unlike < FAR else None
    return Unpaired(sides[0], sides[1], seen[1], laid, unlike)


def channels(data: Dataset) -> int:
    """Channels of a source."""
    return Pairing(data).in_channels


def refuse_unlike(data: Dataset, other: Dataset) -> None:
    """
    Raises:
        ValueError: slices in one and volumes in the other, other channels, or voxel sizes that differ too much.
    """
    if data.shape[0] != other.shape[0]:
        raise ValueError(
            f"expected as many channels in both datasets, found {data.shape[0]} in {data.root} and {other.shape[0]} in {other.root}: bring both to grey or both to colours"
        )
    if len(data.shape) != len(other.shape):
        raise ValueError(
            f"expected slices or volumes in both datasets, found {len(data.shape) - 1}-D images in {data.root} and {len(other.shape) - 1}-D ones in {other.root}: prepare both alike (--plan '{{\"dimensions\": 2}}')"
        )
    own, wished = data.info["spacing"], other.info["spacing"]
    if own is None or wished is None:
        return
    if any(max(one / two, two / one) > SAME_VOXELS for one, two in zip(own, wished)):
        raise ValueError(
            f"expected voxels of one size in both datasets, found {own} mm and {wished} mm: prepare one of them on the other's (--plan '{{\"spacing\": {list(own)}}}')"
        )


def differences(data: Dataset, other: Dataset) -> list[str]:
    """Where two sets of scans differ in more than their kind: a discriminator makes up for it, by adding or taking away (Cohen 2018)."""
    found = []
    shares = [label_shares(one) for one in (data, other)]
    for label in sorted(set(shares[0]) & set(shares[1])):
        one, two = shares[0][label], shares[1][label]
        if abs(one - two) > DIFFERS:
            found.append(
                f"{one:.0%} of the sources and {two:.0%} of the targets are labelled {label!r}: what matches distributions adds or removes such findings; take sets with equal shares"
            )
    bodies = [body_share(one) for one in (data, other)]
    if abs(bodies[0] - bodies[1]) > DIFFERS:
        found.append(
            f"the body fills {bodies[0]:.0%} of the sources and {bodies[1]:.0%} of the targets: fields of view differ, and outputs may be stretched or filled up"
        )
    return found


def label_shares(data: Dataset) -> dict[str, float]:
    """Share of the labelled training images that have each label."""
    classes = data.classes()[data.rows("train")]
    known = classes[classes >= 0]
    return {label: float((known == number).mean()) for number, label in enumerate(data.labels)} if len(known) else {}


def body_share(data: Dataset, most: int = 64) -> float:
    """Share of training images that lies above background."""
    rows, pairing = data.rows("train"), Pairing(data)
    chosen = rows[:: max(1, -(-len(rows) // most))]
    return float(np.mean([(pairing.target(int(row), WHOLE) > BODY).mean() for row in chosen]))


def edges_kept(made: np.ndarray, source: np.ndarray) -> float:
    """Share of a source's edges (C, *spatial) along which those of the output run: 1 for the source itself."""
    one, other = (torch.from_numpy(np.ascontiguousarray(image))[None] for image in (made, source))
    most = 1.0 - float(losses.gradient_field(other, other))
    return (1.0 - float(losses.gradient_field(one, other))) / max(most, 1e-6)


def distance(images: Sequence[np.ndarray], real: Sequence[np.ndarray], patch: Sequence[int]) -> float:
    """Energy distance between random-conv features of patches, no less than its standard error."""
    sets = [np.stack(patches_of(side, patch)) for side in (images, real)]
    return max(energy_distance(*(random_conv.features(side) for side in sets)))


def patches_of(images: Sequence[np.ndarray], patch: Sequence[int]) -> list[np.ndarray]:
    """Four patches of each image, of volumes eight, about the middle, where the body is; of the first channel."""
    found = []
    for image in images:
        sides = [min(side, length) for side, length in zip(image.shape[1:], patch)]
        for shares in product(PLACES, repeat=len(sides)):
            first = [int(share * (size - side)) for share, size, side in zip(shares, image.shape[1:], sides)]
            found.append(image[(slice(0, 1), *(slice(start, start + side) for start, side in zip(first, sides)))])
    return same_size(found)


def same_size(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Images cut to the least of their sides, about their middles."""
    sides = np.min([image.shape for image in images], axis=0)
    return [
        image[tuple(slice((size - side) // 2, (size - side) // 2 + side) for size, side in zip(image.shape, sides))]
        for image in images
    ]
