"""Dice and surface distances beside MONAI and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from scansmith.metrics import overlap


def blobs(shape: tuple[int, ...], seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.arange(side) for side in shape), indexing="ij")
    return tuple(
        sum(((axis - side / 2 - random.uniform(-2, 2)) / (side * random.uniform(0.2, 0.3))) ** 2 for axis, side in zip(axes, shape)) < 1
        for _ in range(2)
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:monai:FutureWarning")
@pytest.mark.parametrize("shape", [(32, 40), (20, 24, 28)])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_are_what_monai_gives(shape, seed):
    torch, metrics = pytest.importorskip("torch"), pytest.importorskip("monai.metrics")
    one, other = blobs(shape, seed)
    spacing = [3.0, 1.5, 0.5][: len(shape)]
    two = [torch.from_numpy(mask)[None, None].float() for mask in (one, other)]
    assert overlap.dice(one, other) == pytest.approx(float(metrics.compute_dice(*two)))
    theirs = metrics.compute_hausdorff_distance(*two, include_background=True, percentile=95, spacing=spacing)
    assert overlap.hausdorff95(one, other, spacing) == pytest.approx(float(theirs), rel=1e-5)


def test_a_shift_is_its_length_and_equal_masks_are_perfect():
    mask = np.zeros((20, 20, 20), bool)
    mask[5:12, 5:12, 5:12] = True
    assert overlap.dice(mask, mask) == 1.0 and overlap.hausdorff95(mask, mask, (1, 1, 1)) == 0.0
    moved = np.roll(mask, 2, 0)
    assert overlap.dice(mask, moved) == pytest.approx(5 / 7)
    assert overlap.hausdorff95(mask, moved, (3.0, 1.0, 1.0)) == pytest.approx(6.0)


def test_empty_masks_have_no_distance():
    empty, full = np.zeros((8, 8), bool), np.ones((8, 8), bool)
    assert math.isnan(overlap.dice(empty, empty)) and overlap.dice(empty, full) == 0.0
    assert (
        math.isnan(overlap.hausdorff95(empty, empty, (1, 1))) and overlap.hausdorff95(empty, full, (1, 1)) == math.inf
    )
