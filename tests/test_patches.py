"""How large the patches are that a translation of volumes learns from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from scansmith.train import probe
from scansmith.train.objective import Task
from scansmith.train.recipes import RECIPES

RECIPE = replace(RECIPES["fidelity"], width=4, batch=4, target=32, train_images=3)


class Watch(probe.Clock):
    """A clock that says how long a step takes in proportion to its voxels: a millisecond for 32 x 32 x 32 x 4."""

    def time(self, recipe, budget_s):
        return 1e-3 * self.task.grid(recipe.target).pixels * recipe.batch / (4 * 32**3)


def largest(size: tuple[int, ...], seconds: float, processes: int = 1):
    task = Task(1, size, 0, 3, made=1)
    return probe.largest_patch(RECIPE, 1e-3, Watch(task, torch.device("cpu"), processes), seconds, max(size))


@pytest.mark.parametrize("steps, target", [(1.05, 64), (0.95, 32)])
def test_patches_are_large_where_the_minutes_show_enough_steps(steps, target):
    seconds = steps * probe.LARGE_STEPS * 2e-3  # a patch of 64 has twice the voxels of four of 32
    recipe, step_s = largest((96, 128, 128), seconds)
    assert recipe.target == target and recipe.batch == (1 if target == 64 else 4)
    assert step_s == pytest.approx(2e-3 if target == 64 else 1e-3)


def test_patches_are_no_larger_than_the_scan_and_each_process_has_one():
    recipe, _ = largest((40, 48, 44), 1e6)
    assert recipe.target == 48 and recipe.batch == 1
    assert largest((96, 96, 96), 1e6, processes=3)[0].batch == 3
    assert largest((24, 32, 28), 1e6)[0] is RECIPE  # a patch of 32 shows it all


def test_what_a_clock_finds_too_slow_stays_small():
    class Slow(Watch):
        def time(self, recipe, budget_s):
            return 1.0

    task = Task(1, (96, 96, 96), 0, 3, made=1)
    slow = Slow(task, torch.device("cpu"))
    assert probe.largest_patch(RECIPE, 1e-3, slow, probe.LARGE_STEPS * 2.5e-3, 96)[0] is RECIPE
