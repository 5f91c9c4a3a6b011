"""The toy suite: what it counts, and that the default loss finds every mode of the ring in seconds."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import modes

OURS = modes.ARMS["ours: relativistic + R1 + R2"]


@pytest.mark.parametrize("name", ["ring", "grid"])
def test_real_points_fill_every_mode_and_lie_within_three_sigma(name):
    problem = modes.PROBLEMS[name]()
    found, good, divergence = modes.real_row(problem)
    assert found == problem.modes
    assert good == pytest.approx(100 * (1 - math.exp(-4.5)), abs=1.0)  # mass of a 2-D Gaussian within 3 sigma
    assert divergence < 3 * (problem.modes - 1) / (2 * problem.samples)  # 2 N KL is chi-squared with modes - 1


def test_a_planted_collapse_is_seen():
    problem = modes.ring()
    real = problem.draw(2000, torch.Generator().manual_seed(0))
    two_modes = real[problem.judge(real)[0] < 2]
    found, good, divergence = modes.count(*problem.judge(two_modes), 8)
    assert found == 2 and good > 97
    assert divergence == pytest.approx(math.log(8 / 2), abs=0.01)


def test_a_sample_between_the_modes_finds_none():
    problem = modes.ring()
    found, good, _ = modes.count(*problem.judge(torch.zeros(100, 2)), 8)
    assert (found, good) == (0, 0.0)
    edge = torch.tensor([[1.0 + 0.029, 0.0], [1.0 + 0.031, 0.0]])  # 3 sigma = .03
    assert problem.judge(edge)[1].tolist() == [True, False]


def test_divergence_has_its_closed_form():
    mode = torch.tensor([0] * 50 + [1] * 25 + [2] * 25)
    expected = 0.5 * math.log(4 * 0.5) + 2 * 0.25 * math.log(4 * 0.25)
    every = torch.ones(100, dtype=torch.bool)
    assert modes.count(mode, every, mode < 2, 4) == (3, 75.0, pytest.approx(expected))
    assert modes.count(mode, mode > 0, every, 4) == (2, 100.0, pytest.approx(expected))
    assert modes.count(torch.arange(4), every[:4], every[:4], 4)[2] == 0.0


def test_real_stacked_digits_are_named_rightly():
    pytest.importorskip("sklearn")
    problem = modes.digits()
    assert modes.classifier()[1] > 0.97
    images, names = modes.real_digits()
    triple = images[[0, 7, 500]][None]
    assert problem.judge(triple)[0].item() == int("".join(str(names[i].item()) for i in (0, 7, 500)))
    assert modes.real_row(problem)[0] == 1000


@pytest.mark.parametrize("name", ["ring", "digits"])
def test_networks_of_several_seeds_do_not_touch_each_other(name):
    """A seed trained beside another ends as it does alone, to rounding."""
    problem = modes.PROBLEMS[name]()
    together = modes.train(problem, OURS, [3, 4], steps=4)
    alone = modes.train(problem, OURS, [4], steps=4)
    for both, one in zip(together.generator.parameters(), alone.generator.parameters()):
        torch.testing.assert_close(both[1], one[0], atol=1e-5, rtol=1e-3)


def test_finite_differences_estimate_the_penalty():
    weight, random = torch.tensor([3.0, -4.0]), torch.Generator().manual_seed(0)
    scores, penalty = modes.finite_differences(lambda x: x @ weight, torch.ones(20_000, 2), random)
    assert scores.unique().tolist() == [-1.0]
    assert penalty.mean().item() == pytest.approx(25.0, rel=0.05)


@pytest.mark.parametrize("name", modes.PROBLEMS)
def test_a_quarter_of_a_discriminator_has_a_quarter_of_its_parameters(name):
    problem = modes.PROBLEMS[name]()

    def size(share):
        width = modes.share_of_width(problem, share)
        return sum(weight.numel() for weight in problem.discriminator([torch.Generator()], width).parameters())

    assert 0.2 < size(0.25) / size(1.0) <= 0.25


@pytest.mark.parametrize("arm", modes.ARMS)
def test_every_row_of_the_table_takes_its_steps(arm):
    problem = replace(modes.ring(), samples=100)
    pair = modes.train(problem, modes.ARMS[arm], [0, 1], steps=6)
    scores = modes.judged(problem, pair, [0, 1])
    assert len(scores) == 2 and all(parameter.isfinite().all() for parameter in pair.generator.parameters())
    start = modes.begin(problem, modes.ARMS[arm], [0, 1]).generator
    assert not torch.equal(next(start.parameters()), next(pair.generator.parameters()))


def test_a_short_run_finds_every_mode_of_the_ring():
    problem = modes.ring()
    pair = modes.train(problem, OURS, [0], steps=700)
    [(found, good, divergence)] = modes.judged(problem, pair, [0])
    assert found == 8 and divergence < 0.1
    assert good > 20
