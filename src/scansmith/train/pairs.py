"""What translation learns from: patches of sources and targets, and validation patients beside a simple method at every tick."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import conformal, inference
from ..dataset import Dataset
from ..pairings import Pairing, Part
from ..pairings.base import AIR, BEND, GAIN, brightened
from ..runtime import derive_seed
from . import watch
from .feed import epochs
from .objective import Batch, Objective
from .parallel import Group
from .recipes import ADVERSARY, Recipe, Values

OUTSIDE = 0.1  # weight of the others: air must be learned, too
TRIES = 4  # corners that are drawn until a patch is worth learning from
# Half of the pairs are turned and magnified or reduced by so much at most: few patients lie in few ways.
TURNED, ANGLE, SIZE = 0.5, math.radians(12.0), 0.12
# Images or volumes that are translated at a tick, within `WATCHED` of the run's time, at most and at least. Translating a patch
# without gradients takes a third of learning from it.
MOST_TICKED = {2: 24, 3: 3}
LEAST_TICKED = {2: 4, 3: 1}
WATCHED, FORWARD = 0.04, 1 / 3
# Of a large volume a box of so many patches a side is looked at, somewhere in the body: at a tick 2 or 3, for calibration 3. Windows
# overlap by half, so that k patches a side are (2 k - 1)**3 windows.
BOX, LEAST_BOX = 3, 2
LINE_IMAGES, LINE_VOXELS = 64, 4096  # that the straight line is fitted to
CALIBRATED_VOXELS = 2**20  # of a patient
APART = 0.25  # share of pairs that lie more than a voxel apart, above which that is learned, too
SHOWN = 8  # images in a sheet
TYPICAL = {2: 64, 3: 32}  # patches that batch norm's statistics are taken from


@dataclass(frozen=True)
class Pairs:
    """Training pairs at stored resolution.

    Attributes:
        pairing: what source and target of a row are.
        rows: of the training split.
        seen: rows that are translated at a tick, of validation patients, else of training patients.
        reference: "validation" or "train".
        patch: sides of what is learned from at a time.
        line: (intercept, slopes) of the least-squares line from encoded source to encoded target in the body, of several sources
            with one slope for each of `Pairing.regressors`.
        task: of the recipe.
        box: patches a side of what a tick translates of a large volume.
    """

    pairing: Pairing
    rows: np.ndarray
    seen: np.ndarray
    reference: str
    patch: tuple[int, ...]
    line: tuple[float, ...]
    task: str = "paired"
    box: int = BOX

    def counts(self, classes: int) -> list[int]:
        """Pairs have no classes."""
        return []

    # -------------------------------------------------------------------------------------------- a step

    def draw(self, recipe: Recipe, step: int, group: Group, now: Values) -> Batch:
        """This process's part of the batch of one step: a function of the seed and the step alone."""
        part = group.part(recipe.batch)
        chosen = epochs(len(self.rows), recipe, step)[part]
        numbers = range(recipe.batch)[part]
        patches = [
            self.cut(int(self.rows[row]), np.random.default_rng(derive_seed(recipe.seed, "patch", step, number)))
            for row, number in zip(chosen, numbers)
        ]
        random = torch.Generator().manual_seed(derive_seed(recipe.seed, "turn", step))
        turns = turned(recipe.batch, len(self.patch), random)[part]
        images, target, weight = (
            resampled(torch.from_numpy(np.stack(layer)), turns, fill) for layer, fill in zip(zip(*patches), self.fills)
        )
        return Batch(
            images.to(group.device), None, None, torch.zeros(len(images), 1), 0.0, 0.0, torch.Generator(),
            whole=recipe.batch if group.size > 1 else None, part=part,
            target=target.to(group.device), weight=weight.to(group.device), adversary=now.adversary,
        )  # fmt: skip

    def cut(self, row: int, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A random patch of one pair: source, target and weight, each (C, *patch), mirrored left to right half of the time."""
        pairing = self.pairing
        for _ in range(TRIES):
            part = self.corner(random)
            target = pairing.target(row, part)
            source = pairing.source(row, part, random)
            inside = pairing.body(source, target)
            if pairing.worth(inside, target, random):
                break
        if pairing.bendable:
            source = brightened(source, random.uniform(-GAIN, GAIN), random.uniform(-BEND, BEND))
        weight = np.where(inside, np.float32(1.0), np.float32(OUTSIDE))[None]
        layers = [self._padded(layer, fill) for layer, fill in zip((source, target, weight), self.fills)]
        if random.random() < 0.5:
            layers = [np.flip(layer, -1) for layer in layers]
        return tuple(np.ascontiguousarray(layer, np.float32) for layer in layers)  # type: ignore[return-value]

    def corner(self, random: np.random.Generator) -> Part:
        """A random patch, or as much of it as an image has."""
        stored = self.pairing.data.shape[1:]
        first = [int(random.integers(0, max(1, size - side + 1))) for size, side in zip(stored, self.patch)]
        return tuple(slice(start, start + side) for start, side in zip(first, self.patch))

    @property
    def fills(self) -> tuple[float, float, float]:
        """Source, target and weight beyond an image's borders."""
        return AIR, self.pairing.outside, 0.0

    def _padded(self, values: np.ndarray, fill: float) -> np.ndarray:
        """(C, *at most the patch) -> (C, *patch), the values in the middle."""
        missing = [side - size for side, size in zip(self.patch, values.shape[1:])]
        if not any(missing):
            return values
        return np.pad(values, [(0, 0), *((gap // 2, gap - gap // 2) for gap in missing)], constant_values=fill)

    def typical(self, recipe: Recipe, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """Patches of training pairs."""
        # Of few rows several patches each: one alone says nothing of the others' statistics.
        rows = self.rows[np.linspace(0, len(self.rows) - 1, TYPICAL[len(self.patch)]).astype(int)]
        random = np.random.default_rng(derive_seed(recipe.seed, "typical"))
        return torch.from_numpy(np.stack([self.cut(int(row), random)[0] for row in rows])).to(device), None

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
        """A tick: the averaged model's error on whole images beside that of the straight line, and a sheet of them."""
        began = time.monotonic()
        objective.settle(average, *self.typical(recipe, device))
        shown, found, tiles = set(self.seen[:: max(1, len(self.seen) // SHOWN)][:SHOWN].tolist()), [], []
        for row in self.seen.tolist():
            source, target = self.looked_at(row, self.box)
            middle = inference.translate(average, source, self.patch, device)[0]
            found.append(self.errors(row, source, target, middle))
            tiles += self.tiles(source, target, middle) if row in shown else []
        watch.save_sheet(run / "samples" / f"{images:09d}.png", np.stack(tiles)[:, None], columns=4)
        patients = self.pairing.data.columns["patient"][self.seen]
        each = [np.mean(np.array(found)[patients == patient], axis=0) for patient in dict.fromkeys(patients)]
        own, line, physical, sharp = np.array(each).T
        ratios = own / np.maximum(line, 1e-9)
        # With a judge of texture the least error is not what is wished: the last weights are kept.
        reference = "none" if recipe.adversary else self.reference
        return {
            "score": round(float(ratios.mean()), 5), "score_error": round(float(ratios.std() / np.sqrt(len(ratios))), 5),
            "quality": round(float(ratios.mean()), 4), "diversity": None, "error": round(float(physical.mean()), 4),
            "sharpness": round(float(sharp.mean()), 3), "reference": reference, "watch_s": round(time.monotonic() - began, 3),
        }  # fmt: skip

    def errors(
        self, row: int, source: np.ndarray, target: np.ndarray, middle: np.ndarray
    ) -> tuple[float, float, float, float]:
        """One image: the network's error and the simple method's, encoded, the network's in the target's units, and its `sharpness`."""
        pairing = self.pairing
        inside = pairing.body(source, target)
        own, simple = (pairing.error(made, target, inside) for made in (middle, pairing.simple(self.line, source)))
        return own, simple, pairing.in_units(own, row), sharpness(middle, target, inside)

    def tiles(self, source: np.ndarray, target: np.ndarray, middle: np.ndarray) -> list[np.ndarray]:
        """Source, output, target and absolute difference, each (*spatial)."""
        shown = [self.pairing.picture(middle), self.pairing.picture(target)]
        return [self.pairing.view(source), *shown, np.abs(shown[0] - shown[1]) - 1.0]

    def looked_at(self, row: int, box: int) -> tuple[np.ndarray, np.ndarray]:
        """Source and target of a row, of a large volume `box` patches a side about a voxel of the body that is always the same one."""
        pairing, size = self.pairing, self.pairing.data.shape[1:]
        if len(size) == 2 or all(side <= box * patch for side, patch in zip(size, self.patch)):
            return pairing.source(row), pairing.target(row)
        target = pairing.target(row)
        inside = np.argwhere((target > target.min()).any(axis=0))
        random = np.random.default_rng(derive_seed(0, "box", row))
        middle = inside[random.integers(len(inside))] if len(inside) else np.array(size) // 2
        sides = [min(side, box * patch) for side, patch in zip(size, self.patch)]
        first = [int(np.clip(m - n // 2, 0, side - n)) for m, n, side in zip(middle, sides, size)]
        part = tuple(slice(start, start + n) for start, n in zip(first, sides))
        return pairing.source(row, part), target[(slice(None), *part)]

    def words(self, row: dict[str, Any], health: str) -> str:
        """What the progress bar says of a tick."""
        return f"{self.pairing.words(row['error'], row['quality'])}, {health}"

    # -------------------------------------------------------------------------------------------- at the end

    def says(self, network: nn.Module, device: torch.device) -> dict[str, Any]:
        """How scans are brought to the network and its output to units, and how much the bounds must be widened.

        The calibration patients were seen by nothing else.
        """
        about = self.pairing.about()
        _, wished = self.pairing.windows
        data = self.pairing.data
        return {
            "intensity": {"low": wished.low, "high": wished.high, "units": wished.units},
            "familiarity": self.pairing.familiar(),
            "translation": {
                **about, "task": self.task, "patch": list(self.patch), "neighbours": int(data.info.get("neighbours") or 0),
                "choices": data.info["choices"], "line": list(self.line), **self.bounds(network, device),
            },
        }  # fmt: skip

    def bounds(self, network: nn.Module, device: torch.device) -> dict[str, Any]:
        """What the model's configuration says of its bounds: {"usual_width", "calibration"}; None where it gives none."""
        source, _ = self.looked_at(int(self.seen[0]), 1)
        if len(inference.translate(network, source, self.patch, device)) == 1:
            return {"usual_width": None, "calibration": None}
        found = conformal.calibrate(list(self._losses(network, device)))
        factor = found.factor if math.isfinite(found.factor) else None
        calibration = {**asdict(found), "factor": factor, "words": found.words()}
        return {"usual_width": self.usual_width(network, device), "calibration": calibration}

    def usual_width(self, network: nn.Module, device: torch.device) -> float:
        """Median distance between the bounds in the body of the images of a tick, encoded, before calibration."""
        widths = []
        for row in self.seen:
            source, target = self.looked_at(int(row), BOX)
            _, lower, upper = inference.translate(network, source, self.patch, device)
            widths.append((upper - lower)[:, self.pairing.body(source, target)].ravel()[::7])
        found = np.concatenate(widths)
        return float(np.median(found)) if len(found) else 1.0

    def _losses(self, network: nn.Module, device: torch.device) -> Iterator[np.ndarray]:
        rows = self.pairing.rows("calibration")
        patients = self.pairing.data.columns["patient"][rows]
        for patient in sorted(set(patients.tolist())):
            own = rows[patients == patient]
            each = max(1, CALIBRATED_VOXELS // len(own))
            values = [np.zeros((4, 0), np.float32)]
            for row in own:
                source, target = self.looked_at(int(row), BOX)
                middle, lower, upper = inference.translate(network, source, self.patch, device)
                inside = self.pairing.body(source, target)
                four = np.stack([one[:, inside].ravel() for one in (target, lower, middle, upper)])
                values.append(four[:, :: (four.shape[1] // each) | 1])
            joined = np.concatenate(values, axis=1)
            if joined.size:
                yield conformal.losses(*joined)


def turned(count: int, dimensions: int, random: torch.Generator) -> Tensor:
    """(count, n, n + 1) maps of `affine_grid`: about the slice axis by up to `ANGLE`, in size by up to `SIZE`; half are the identity."""
    some = (torch.rand(count, generator=random) < TURNED).float()
    angle, size = ((2.0 * torch.rand(count, generator=random) - 1.0) * some * most for most in (ANGLE, SIZE))
    maps = torch.eye(dimensions, dimensions + 1).repeat(count, 1, 1)
    cosine, sine, scale = angle.cos(), angle.sin(), size.exp()
    maps[:, 0, 0], maps[:, 0, 1] = scale * cosine, -scale * sine
    maps[:, 1, 0], maps[:, 1, 1] = scale * sine, scale * cosine
    return maps


def resampled(images: Tensor, maps: Tensor, fill: float) -> Tensor:
    """Images (B, C, *spatial) through the maps, linear, `fill` from beyond their borders; those of identities keep their bits."""
    moved = (maps != torch.eye(*maps.shape[1:])).flatten(1).any(1)
    if moved.any():
        some = images[moved] - fill
        grid = F.affine_grid(maps[moved], list(some.shape), align_corners=False)
        images[moved] = F.grid_sample(some, grid, align_corners=False) + fill
    return images


def sharpness(made: np.ndarray, target: np.ndarray, inside: np.ndarray) -> float:
    """Mean difference between neighbours in the body (*spatial) of an image (C', *spatial) over that of another; below 1 is blur."""
    sums = np.zeros(2)
    for axis in range(inside.ndim):
        both = np.diff(inside.astype(np.int8), axis=axis) == 0
        both &= inside[(*(slice(None),) * axis, slice(1, None))]
        sums += [float(np.abs(np.diff(one, axis=axis + 1))[:, both].sum()) for one in (made, target)]
    return float(sums[0] / max(sums[1], 1e-9))


def apart(data: Dataset) -> bool:
    """Whether many scans were found to lie more than a voxel away from those that they are paired with."""
    found = data.info.get("pairs") or {}
    return bool(found.get("far", 0) > APART * max(1, found.get("estimated", 0)))


def price(ticks: Sequence[dict[str, Any]], recipe: Recipe, units: str) -> dict[str, Any]:
    """What the judge of a translation cost and brought, from the ticks of a run: just before it came on, and at the end.

    The rest of the run would have made regression better still, so that the price is more than this rather than less.

    Returns:
        {"error": [before, after], "sharpness": [before, after], "words"}.
    """
    before = [row for row in ticks if row["images"] <= ADVERSARY[0] * recipe.images] or ticks[:1]
    errors, sharp = ([before[-1][name], ticks[-1][name]] for name in ("error", "sharpness"))
    words = f"the price of realism: error {errors[0]:.3g} {units} before the judge of texture came on, {errors[1]:.3g} {units} at the end ({errors[1] / max(errors[0], 1e-9) - 1.0:+.0%}); sharpness {sharp[0]:.0%} of the references' before, {sharp[1]:.0%} at the end"
    return {"error": errors, "sharpness": sharp, "words": words}


def ticked(recipe: Recipe, patch: Sequence[int], image: Sequence[int]) -> tuple[int, int]:
    """How many images or volumes of such sides a tick may translate, and how many patches a side of each volume."""
    dimensions = len(patch)
    granted = WATCHED * recipe.images / max(1, recipe.ticks) / FORWARD  # patches

    def count(box: int) -> int:
        if dimensions == 2:
            each = math.prod(image) / math.prod(patch)
        else:
            each = math.prod(
                2.0 * min(box, side / length) - 1.0 if side > length else 1.0 for side, length in zip(image, patch)
            )
        return int(min(MOST_TICKED[dimensions], granted / each))

    box = BOX if count(BOX) >= LEAST_TICKED[dimensions] else LEAST_BOX
    return max(LEAST_TICKED[dimensions], count(box)), box


def fitted_line(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> tuple[float, ...]:
    """(intercept, slopes) of the least-squares line through (n, R) values of sources and (n,) of targets; the shortest of equals."""
    x, y = (np.concatenate(side).astype(np.float64) for side in zip(*pairs))
    if x.shape[1] > 1:
        middle, height = x.mean(axis=0), float(y.mean())
        slopes = np.linalg.lstsq(x - middle, y - height)[0]
        return (height - float(middle @ slopes), *slopes.tolist())
    x = x[:, 0]
    if x.std() == 0.0:
        return float(y.mean()), 0.0
    slope = float(np.cov(x, y, bias=True)[0, 1] / x.var())
    return float(y.mean() - slope * x.mean()), slope


def gather(pairing: Pairing, recipe: Recipe, patch: Sequence[int]) -> Pairs:
    """Training pairs, the straight line through them, and the rows that ticks look at; the holdout is not touched."""
    rows, validation = pairing.rows("train"), pairing.rows("validation")
    reference = validation if len(validation) else rows
    most, box = ticked(recipe, patch, pairing.data.shape[1:])
    seen = reference[np.unique(np.linspace(0, len(reference) - 1, min(most, len(reference))).astype(int))]
    random = np.random.default_rng(derive_seed(recipe.seed, "line"))
    drawn = []
    for row in random.permutation(rows)[:LINE_IMAGES]:
        source, target = pairing.source(int(row)), pairing.target(int(row))
        inside = pairing.body(source, target)
        x, y = pairing.regressors(source)[:, inside].T, pairing.picture(target)[inside]
        chosen = random.permutation(len(x))[:LINE_VOXELS]
        drawn.append((x[chosen], y[chosen]))
    of = "validation" if len(validation) else "train"
    return Pairs(pairing, rows, seen, of, tuple(patch), fitted_line(drawn), recipe.task, box)
