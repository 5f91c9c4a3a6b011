"""Training: schedules, the probe, resuming to the bit, interruption, and what a run leaves behind."""

from __future__ import annotations

import copy
import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from scansmith import dataset, train
from scansmith.networks.blocks import latent, take_statistics
from scansmith.preprocess import Grid
from scansmith.runtime import Interrupted, Progress
from scansmith.train import checkpoint, feed, loop, stage, watch
from scansmith.train import probe as probe_module
from scansmith.train.objective import Batch, Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group
from scansmith.train.probe import (
    FEWEST_JUDGED,
    FEWEST_TICKS,
    IMAGES_PER_PIXEL,
    JUDGED_COST,
    TICK_COST,
    WATCHED,
    Clock,
    Probe,
    affordable,
    expectation,
    for_grid,
    watching,
)
from scansmith.train.recipes import RECIPES, Recipe, augmentation_strength, makers, penalty_weight, schedule
from scansmith.train.stage import common_orientation
from scansmith.train.start import warm_start
from scansmith.train.watchman import Act

CPU = torch.device("cpu")
TINY = Recipe(
    width=8,
    latent=8,
    batch=8,
    images=96,
    ticks=3,
    gamma=0.1,
    gamma_end=0.01,
    augment=0.5,
    precision="fp32",
    threads=1,
    train_images=20,
    target=16,
)


def make_dataset(root: Path, count: int = 40, labels: tuple[str, ...] = (), side: int = 16) -> Path:
    """Bright discs on black, uint8, the disc's place and size random; labels by size."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:side, :side]
    size = random.uniform(side / 6, side / 3, count)
    centre = random.uniform(side / 3, side * 2 / 3, (count, 2))
    images = [
        np.uint8(220 * ((rows - y) ** 2 + (columns - x) ** 2 < r**2))[None] + np.uint8(10)
        for (y, x), r in zip(centre, size)
    ]
    split = ["train"] * (count // 2) + ["validation"] * (count // 4) + ["holdout"] * (count - count // 2 - count // 4)
    values = {"case": [f"c{i}" for i in range(count)], "slice": [0] * count, "patient": [f"p{i}" for i in range(count)], "split": split,
              "label": [(labels[i % len(labels)] or "") if labels else "" for i in range(count)], "spacing": [[1.0, 1.0, 1.0]] * count,
              "low": [0.0] * count, "high": [255.0] * count, "units": ["a.u."] * count, "affine": [np.eye(4)] * count}  # fmt: skip
    info = {
        "modality": "OT",
        "units": "a.u.",
        "labels": sorted({name for name in labels if name}),
        "spacing": [1.0, 1.0],
        "source_format": "png",
        "hash": "d" * 16,
    }
    dataset.write(root, info, values, iter(images), np.dtype(np.uint8), (1, side, side))
    return root


def tiny_data(root: Path, labels: tuple[str, ...] = ()) -> tuple[dataset.Dataset, feed.Images]:
    opened = dataset.Dataset.open(make_dataset(root, labels=labels))
    rows = opened.rows("train")
    return opened, feed.Images(
        opened.level(Grid.choose((16, 16), 16)), rows, opened.classes()[rows] if labels else None, None
    )


def fit_tiny(run: Path, data: feed.Images, recipe: Recipe = TINY, deadline_s: float = 1e9, classes: int = 0):
    torch.manual_seed(0)
    objective = OBJECTIVES[recipe.objective](recipe, Task(1, (16, 16), classes, 20), Grid.choose((16, 16), 16))
    return loop.fit(objective, recipe, data, run, Group(), deadline_s, Progress("test", recipe.images, quiet=True))


def weights(network: torch.nn.Module) -> torch.Tensor:
    return torch.cat([parameter.flatten() for parameter in network.parameters()])


# ------------------------------------------------------------------------------------------------ schedules


def test_schedules_start_and_end_where_the_recipe_says():
    recipe = replace(TINY, images=1000)
    start, end = schedule(recipe, 0), schedule(recipe, 1000)
    assert (start.learning_rate, start.beta2, start.gamma, start.augment, start.ema_decay) == (1e-3, 0.9, 0.1, 0.0, 0.0)
    assert (end.learning_rate, end.beta2, end.gamma, end.augment) == pytest.approx((2.5e-4, 0.99, 0.01, 0.5))
    half = schedule(recipe, int(0.5 * recipe.burn_in * 1000))
    assert half.gamma == pytest.approx((0.1 + 0.01) / 2)  # a cosine's middle
    assert end.ema_decay == pytest.approx(0.5 ** (8 / 50))  # half-life .05 * 1000 images


def test_schedules_are_fractions_of_the_planned_images():
    short, long = replace(TINY, images=1000, ema_cap=10**9), replace(TINY, images=10_000, ema_cap=10**9)
    for share in (0.1, 0.3, 0.9):
        a, b = schedule(short, int(share * 1000)), schedule(long, int(share * 10_000))
        assert (a.learning_rate, a.beta2, a.gamma, a.augment) == pytest.approx(
            (b.learning_rate, b.beta2, b.gamma, b.augment)
        )


def test_penalty_and_augmentation_follow_the_published_values():
    assert penalty_weight(256, 3) == pytest.approx(150, rel=0.1)  # R3GAN, FFHQ-256
    assert penalty_weight(64, 1) == pytest.approx(3.4, rel=0.02)
    assert augmentation_strength(50) == augmentation_strength(100) == 0.8
    assert augmentation_strength(1000) == pytest.approx(0.55)
    assert augmentation_strength(10**6) == 0.0


# ------------------------------------------------------------------------------------------------ probe


def test_probe_takes_the_largest_grid_that_shows_enough_images():
    task = Task(1, (512, 512), 0, 700)
    rate = 100.0  # at 64 px
    enough = 64 * IMAGES_PER_PIXEL / rate / 0.95
    assert affordable(task, 64, rate, enough * 1.01) == 64
    assert affordable(task, 64, rate, enough * 0.99) == 32
    assert affordable(task, 64, rate, enough * 8.08) == 128  # twice the images, each four times the pixels
    assert affordable(task, 64, rate, enough * 7.92) == 64
    assert affordable(task, 64, rate, 1.0) == 32  # the smallest when nothing fits
    assert affordable(Task(1, (28, 28), 0, 700), 28, rate, 1e6) == 28  # never beyond the stored images


def test_probe_times_real_steps_and_plans_the_images_that_fit():
    task = Task(1, (16, 16), 2, 20)
    recipe = for_grid(TINY, task, 16)
    step_s = Clock(task, CPU).time(recipe, budget_s=0.0)
    assert 0 < step_s < 5
    probed = Probe(recipe, step_s=0.5, reasons=("why",))
    assert probed.images_in(100.0) == 8 * 190  # 95 s of 0.5 s steps of 8 images
    planned, reasons = probed.lasting(1520)
    assert planned.images == 1520 and reasons[0] == "why" and "1,520 images" in reasons[2]


@pytest.mark.parametrize(("classes", "dimensions"), [(0, 2), (2, 2), (12, 3)])
def test_more_time_is_never_expected_to_give_worse_images(classes, dimensions):
    """The figures of the plan, by the number of images shown."""
    found = []
    for images in (1_000, 10_000, 40_000, 200_000):
        said = expectation(
            replace(RECIPES["relativistic"], images=images, target=64, train_images=700), classes, dimensions
        )
        ratio = re.search(r"([\d.]+) to ([\d.]+) times", said)
        variety = re.search(r"and (\d+)% to (\d+)% of their variety", said)
        found.append([float(value) for value in (*ratio.groups(), *variety.groups())])
        assert ("more minutes" in said) == (images == 1_000)
    ratios, recalls = np.array(found)[:, :2], np.array(found)[:, 2:]
    assert (np.diff(ratios, axis=0) <= 0).all() and (np.diff(ratios[:, 1]) < 0).all()
    assert (np.diff(recalls, axis=0) >= 0).all() and recalls.max() < 95


@pytest.mark.parametrize(
    ("count", "classes", "dimensions", "said"),
    [
        (700, 0, 2, ()),
        (19, 0, 2, ("19 training images are fewer than the 100",)),
        (1000, 4, 2, ("250 images a class",)),
        (20_000, 20, 2, ("20 classes",)),
        (50, 2, 3, ("50 training volumes", "25 volumes a class", "hippocampi")),
    ],
)
def test_what_was_never_measured_is_doubted_in_the_plan(count, classes, dimensions, said):
    recipe = replace(RECIPES["relativistic"], images=50_000, target=64, train_images=count)
    doubts = expectation(recipe, classes, dimensions).split("; ")[1:]
    assert len(doubts) == len(said) and all(words in doubt for words, doubt in zip(said, doubts))
    assert "a relative of the default" in expectation(replace(recipe, name="dcgan"), classes, dimensions)


@pytest.mark.parametrize("images", [1_000, 6_000, 12_000, 25_000, 50_000, 150_000, 10**7])
def test_ticks_cost_two_per_cent_of_a_run_unless_the_fewest_cost_more(images):
    ticks, judged = watching(images, 24)
    cost = ticks * (TICK_COST + JUDGED_COST * judged) / images
    assert FEWEST_TICKS <= ticks <= 24 and FEWEST_JUDGED <= judged <= watch.MOST
    assert cost <= WATCHED or (ticks, judged) == (FEWEST_TICKS, FEWEST_JUDGED)
    assert (ticks, judged) != (FEWEST_TICKS, FEWEST_JUDGED) or images < 10_000
    assert watching(images, 4)[0] == 4  # no more than was asked


@pytest.mark.parametrize("steps", [1, 3, 7, 100, 389])
def test_ticks_lie_evenly_over_a_run_and_the_last_at_its_end(steps):
    recipe = replace(TINY, images=steps * TINY.batch, ticks=6)
    ticks = [step + 1 for step in range(steps) if loop.due(recipe, step)]
    gaps = np.diff([0, *ticks])
    assert ticks[-1] == steps and len(ticks) == min(6, steps) and gaps.max() - gaps.min() <= 1


def test_the_reference_has_no_more_images_than_a_tick_judges(tmp_path):
    opened = dataset.Dataset.open(make_dataset(tmp_path / "d", count=160))
    level = opened.level(Grid.choose((16, 16), 16))
    sizes = [len(stage.gather(opened, level, replace(TINY, judged=most), CPU).real.features) for most in (20, 256)]
    assert sizes == [20, 40]


@pytest.mark.parametrize(
    ("quality", "name"), [(0.9, "as real images"), (1.29, "as real images"), (1.5, "near"), (3.0, "some way"), (5.0, "far")]
)  # fmt: skip
def test_the_bar_says_quality_and_health_in_words(quality, name):
    bar = feed.Images(None, np.arange(1), None, None)
    said = bar.words({"quality": quality, "diversity": 0.8}, "healthy")
    assert said.startswith(f"quality {quality:.1f} ({name}") and said.endswith("diversity 80% of real, healthy")
    assert bar.words({"quality": None, "diversity": None}, "recovering").endswith("to say, recovering")


def test_what_the_watchman_does_is_told_at_once_and_stays(tmp_path, capsys, monkeypatch):
    """The words of an act were once overwritten by those of the tick, and never seen in a log."""
    said = []
    monkeypatch.setattr(loop.Watchman, "tick", lambda self, row, images: [Act("decline", "warn", f"at {images}")])
    monkeypatch.setattr(Progress, "say", lambda self, words: said.append(words))
    fit_tiny(tmp_path / "run", tiny_data(tmp_path / "d")[1])
    assert said[1:] == ["at 32", "at 64", "at 96"]
    monkeypatch.undo()
    with Progress("training", 10) as progress:
        progress.say("losses jump: back to the last good weights")
    assert capsys.readouterr().err == "training: losses jump: back to the last good weights\n"


def test_the_probe_takes_the_fastest_candidate_and_leaves_out_what_fails(monkeypatch):
    """bf16 fails on this made-up machine, channels-last is twice as fast, and one busy moment does not change that."""
    calls = []

    def machine(clock, recipe):
        def step():
            calls.append(recipe)
            if recipe.precision == "bf16":
                raise RuntimeError("no such kernel")
            return (5.0 if len(calls) == 5 else 0.1) if recipe.channels_last else 0.2

        return step

    monkeypatch.setattr(Clock, "stepper", machine)
    monkeypatch.setattr(probe_module, "cpu_count", lambda: 1)  # with more, bf16 on half of them is tried, too
    fastest, step_s = probe_module.fastest_machine(TINY, Clock(Task(1, (16, 16), 0, 20), CPU), budget_s=0.01)
    assert fastest.channels_last and fastest.precision == "fp32" and step_s == pytest.approx(0.1)
    assert sum(recipe.precision == "bf16" for recipe in calls) == 1


# ------------------------------------------------------------------------------------------------ loop


def test_batches_are_epochs_without_repetition_and_depend_on_seed_and_step(tmp_path):
    _, data = tiny_data(tmp_path / "d")
    drawn = np.concatenate([data.positions(TINY, step) for step in range(5)])  # 40 of 20 rows: two epochs
    assert sorted(drawn[:20]) == sorted(drawn[20:]) == list(range(20))
    assert np.array_equal(data.positions(TINY, 3), drawn[24:32])
    assert not np.array_equal(data.positions(replace(TINY, seed=1), 3), drawn[24:32])


@pytest.mark.parametrize("kl_weight", [0.0, 1.0])
def test_new_codes_are_drawn_as_those_of_the_images_scatter(kl_weight):
    recipe = replace(RECIPES["vae"], kl_weight=kl_weight, width=4, latent=5)
    torch.manual_seed(0)
    objective = OBJECTIVES["autoencoding"](recipe, Task(1, (16, 16), 0, 20), Grid.choose((16, 16), 16))
    network, images = objective.autoencoder, torch.rand(300, 1, 16, 16) * 2 - 1
    network.end.weight.data *= 5.0
    objective.settle(network, images, None)
    with torch.no_grad():
        means, log_variances = network.encode(images)
        codes = network.center + torch.randn(100_000, 5) @ network.factor.T
    scattered = means + (0.5 * log_variances).exp() * torch.randn(200, 300, 5) if kl_weight else means[None]
    scattered = scattered.reshape(-1, 5)
    assert torch.allclose(codes.mean(0), scattered.mean(0), atol=0.02)
    assert torch.allclose(torch.cov(codes.T), torch.cov(scattered.T), rtol=0.03, atol=0.02)


def test_a_labelled_set_with_fewer_validation_images_than_are_scored_is_watched(tmp_path):
    opened = dataset.Dataset.open(make_dataset(tmp_path / "d", count=120, labels=("a", "b")))
    assert watch.FEWEST <= len(opened.rows("validation")) < watch.SCORED
    result = train(opened.root, tmp_path / "run", minutes=0.02, images=96, side=16)
    ticks = [row for row in checkpoint.read_log(tmp_path / "run" / "log.jsonl") if row["kind"] == "tick"]
    assert len(ticks) == 4 and all(row["reference"] == "validation" for row in ticks) and result["quality"] > 0


def test_unbalanced_classes_are_drawn_by_the_square_root_of_their_counts():
    data = feed.Images(None, np.arange(1010), np.array([0] * 10 + [1] * 1000), None)
    recipe = replace(TINY, batch=2000)
    share = np.mean(data.positions(recipe, 0) < 10)
    assert share == pytest.approx(10**0.5 / (10**0.5 + 1000**0.5), abs=0.02)


def test_what_a_plan_says_of_the_number_of_images_follows_the_dataset():
    recipe = replace(TINY, train_images=336, augment=augmentation_strength(336))
    counted = Probe(recipe, 1.0, ()).learning(115)
    assert (counted.recipe.train_images, counted.recipe.augment) == (115, augmentation_strength(115))
    assert any("for 115 training images" in words for words in counted.lasting(640)[1])
    assert Probe(replace(recipe, augment=0.3), 1.0, ()).learning(115).recipe.augment == 0.3  # chosen by somebody


def test_what_is_settled_with_is_the_mixture_that_training_draws_though_a_dataset_lies_in_order_of_folders():
    """The averaged model's statistics, and the codes of an autoencoder, once came from the first folder alone."""
    values = np.arange(1010, dtype=np.float32)[:, None, None, None] * np.ones((1, 1, 2, 2), np.float32)
    level = dataset.Level(values, np.zeros(1010, np.float32), np.full(1010, 1010.0, np.float32))
    ordered = np.array([0] * 1000 + [1] * 10)
    shown, classes = feed.Images(level, np.arange(1010), ordered, None).typical(TINY, CPU)
    assert len(shown) == len(classes) == 512
    assert classes.float().mean() == pytest.approx(10**0.5 / (10**0.5 + 1000**0.5), abs=0.05)
    drawn = ((shown[:, 0, 0, 0] + 1) / 2 * 1010).round()
    assert ((drawn >= 1000) == (classes == 1)).all()
    shown, classes = feed.Images(level, np.arange(1010), None, None).typical(TINY, CPU)
    drawn = ((shown[:, 0, 0, 0] + 1) / 2 * 1010).round()
    assert classes is None and len(drawn.unique()) == 512 and drawn.mean() == pytest.approx(505, abs=60)


def test_discriminator_gradients_equal_plain_autograd_on_the_written_loss(tmp_path):
    """The objective against the equation: softplus(-(D(x) - D(G(z)))) + gamma/2 (R1 + R2), unaugmented."""
    torch.manual_seed(0)
    objective = OBJECTIVES["synthesis"](TINY, Task(1, (16, 16), 0, 20), Grid.choose((16, 16), 16))
    random = torch.Generator().manual_seed(0)
    batch = Batch(
        torch.randn(8, 1, 16, 16, generator=random), None, None, torch.randn(8, 8, generator=random), 0.7, 0.0, random
    )
    loss, _ = objective.discriminator_loss(batch)
    found = torch.autograd.grad(loss, list(objective.discriminator.parameters()))
    d, x, fake = (
        objective.discriminator,
        batch.images.clone().requires_grad_(True),
        objective.generator(batch.z).detach().requires_grad_(True),
    )
    r1, r2 = (
        torch.autograd.grad(d(image).sum(), image, create_graph=True)[0].square().sum() / 8 for image in (x, fake)
    )
    wanted = torch.nn.functional.softplus(-(d(x) - d(fake))).mean() + 0.35 * (r1 + r2)
    torch.testing.assert_close(loss, wanted, rtol=1e-5, atol=1e-6)
    for a, b in zip(found, torch.autograd.grad(wanted, list(d.parameters()))):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_average_follows_its_half_life(tmp_path, monkeypatch):
    """After each step: average = decay * average + (1 - decay) * weights, by hand from the weights of every step."""
    _, data = tiny_data(tmp_path / "d")
    seen, real = [], loop.update

    def spy(name, batch, objective, *rest):
        result = real(name, batch, objective, *rest)
        if name == "generator":
            seen.append(weights(objective.generator).detach().clone())
        return result

    monkeypatch.setattr(loop, "update", spy)
    average, _ = fit_tiny(tmp_path / "run", data)
    expected = seen[0]  # the first half-life is 0: the average starts at the first weights
    for step, now in enumerate(seen[1:], start=1):
        decay = 0.5 ** (TINY.batch / (TINY.ema_fraction * step * TINY.batch))
        expected = decay * expected + (1.0 - decay) * now
    assert len(seen) == 12 and not torch.equal(seen[0], seen[-1])
    torch.testing.assert_close(weights(average), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("machine", [{}, {"channels_last": True}, {"channels_last": True, "precision": "bf16"}])
def test_a_cut_and_resumed_run_ends_with_the_same_bits(tmp_path, machine):
    _, data = tiny_data(tmp_path / "d")
    recipe = replace(TINY, **machine)
    whole, _ = fit_tiny(tmp_path / "whole", data, recipe)
    _, first = fit_tiny(tmp_path / "cut", data, recipe, deadline_s=0.0)
    assert first["cut"] and first["images"] == 8
    resumed, last = fit_tiny(tmp_path / "cut", data, recipe)
    assert last["images"] == 96 and not last["cut"]
    assert torch.equal(weights(whole), weights(resumed))
    saved = [load_file(tmp_path / name / "checkpoint.safetensors") for name in ("whole", "cut")]
    assert saved[0].keys() == saved[1].keys()
    assert all(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])
    assert any(key.startswith("discriminator.") and key.endswith("exp_avg_sq") for key in saved[0])


def test_log_rows_after_the_checkpoint_are_dropped_on_resume(tmp_path):
    log = checkpoint.Log(tmp_path, 0)
    for images in (8, 16, 24):
        log.write({"kind": "tick", "images": images})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "tick", "ima')  # cut by a kill
    checkpoint.Log(tmp_path, 16).close()
    assert [row["images"] for row in checkpoint.read_log(tmp_path / "log.jsonl")] == [8, 16]


def test_a_loss_that_is_not_finite_moves_no_weight_and_too_many_end_the_run(tmp_path):
    level = dataset.Level(
        np.full((20, 1, 16, 16), np.nan, np.float32), np.zeros(20, np.float32), np.ones(20, np.float32)
    )
    with pytest.raises(loop.Hopeless):
        fit_tiny(
            tmp_path / "run", feed.Images(level, np.arange(20), None, None), replace(TINY, images=8 * 400, ticks=10)
        )
    with pytest.raises(loop.Hopeless):  # the same command does not hide it
        fit_tiny(
            tmp_path / "run", feed.Images(level, np.arange(20), None, None), replace(TINY, images=8 * 400, ticks=10)
        )
    saved = load_file(tmp_path / "run" / "checkpoint.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())
    means = loop.Means()
    means.add({"loss_d": float("inf")})
    means.add({"loss_d": 1.0})
    assert means.take()["loss_d"] == 1.0


def test_quality_is_near_one_for_real_images_and_large_for_noise():
    random = np.random.default_rng(0)

    def blobs(count, seed):
        return (
            torch.nn.functional.interpolate(
                torch.randn(count, 1, 4, 4, generator=torch.Generator().manual_seed(seed)),
                size=(32, 32),
                mode="bilinear",
            )
            .clamp(-1, 1)
            .numpy()
        )

    real = watch.reference(blobs(300, 0), blobs(100, 1), 0, CPU)

    class Fixed(torch.nn.Module):
        latent = 4

        def __init__(self, images):
            super().__init__()
            self.images, self.at = torch.from_numpy(images), 0

        def forward(self, z, classes=None):
            self.at += len(z)
            return self.images[self.at - len(z) : self.at]

    good = watch.measure(Fixed(blobs(100, 2)), 0, [], real, CPU)
    noise = watch.measure(Fixed(random.uniform(-1, 1, (100, 1, 32, 32)).astype(np.float32)), 0, [], real, CPU)
    collapsed = watch.measure(Fixed(np.repeat(blobs(1, 3), 100, axis=0)), 0, [], real, CPU)
    assert abs(good["score"]) < 3.0 * good["score_error"] and noise["score"] > 20.0 * noise["score_error"]
    assert collapsed["score"] > 0.2
    assert 0.7 < good["quality"] < 1.4 and 0.9 < good["diversity"] < 1.1
    assert noise["quality"] > 10 and collapsed["diversity"] < 0.01
    assert real.name == "validation"
    assert watch.reference(blobs(40, 0), blobs(3, 1), 0, CPU).name == "train"
    assert watch.reference(blobs(8, 0), blobs(3, 1), 0, CPU) is None


# ------------------------------------------------------------------------------------------------ the verb


def test_train_leaves_a_whole_run_and_a_model_without_the_discriminator(tmp_path):
    made = make_dataset(tmp_path / "data", labels=("large", "small"))
    result = train(made, tmp_path / "run", minutes=0.02, images=64, seed=1)
    assert result["images"] >= 64 and result["grid"] == [16, 16]
    run = tmp_path / "run"
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["precision"] in ("bf16", "fp32") and recipe["train_images"] == 20 and recipe["reasons"]
    ticks = checkpoint.read_log(run / "log.jsonl")
    assert ticks[-1]["images"] == result["images"] and np.isfinite(ticks[-1]["loss_d"])
    assert list((run / "samples").glob("*.png")) and list((run / "events").iterdir())
    names = load_file(run / "model" / "model.safetensors").keys()
    assert not any("down" in name for name in names) and "prior.embed.weight" in names
    again = train(made, run, minutes=0.02, images=64, seed=1)
    assert again["hash"] == result["hash"]


def test_a_folder_with_another_run_is_refused_with_the_way_out(tmp_path):
    made = make_dataset(tmp_path / "data")
    train(made, tmp_path / "run", minutes=0.02, images=8)
    with pytest.raises(ValueError, match=r"seed 0 -> 7.*choose another folder"):
        train(made, tmp_path / "run", minutes=0.02, images=8, seed=7)


def test_wrong_input_gets_one_clear_sentence(tmp_path):
    with pytest.raises(ValueError, match="scansmith prepare"):
        train(tmp_path, tmp_path / "run")
    made = make_dataset(tmp_path / "data")
    with pytest.raises(ValueError, match=r"expected a recipe of .*'relativistic'.*, got 'stylegan'"):
        train(made, tmp_path / "run", recipe="stylegan")
    with pytest.raises(ValueError, match="at least 4 training images"):
        train(make_dataset(tmp_path / "few", count=6), tmp_path / "run2", minutes=0.02)
    with pytest.raises(ValueError, match="this machine"):
        train(made, tmp_path / "run3", device="cuda:99")


SCRIPT = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import TINY, feed, fit_tiny
from scansmith import dataset
from scansmith.preprocess import Grid
from dataclasses import replace
opened = dataset.Dataset.open({data!r})
data = feed.Images(opened.level(Grid.choose((16, 16), 16)), opened.rows("train"), None, None)
fit_tiny(Path({run!r}), data, replace(TINY, images=8 * 300, ticks=60))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_run_ends_with_the_same_bits(tmp_path, number):
    """SIGKILL at some moment (resumes from the last tick) and SIGTERM (stops cleanly at the step)."""
    _, data = tiny_data(tmp_path / "data")
    recipe = replace(TINY, images=8 * 300, ticks=60)
    whole, _ = fit_tiny(tmp_path / "whole", data, recipe)
    run = tmp_path / "killed"
    script = SCRIPT.format(tests=str(Path(__file__).parent), data=str(tmp_path / "data"), run=str(run))
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    limit = time.monotonic() + 60
    while not checkpoint.read_log(run / "log.jsonl") and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.01)
    process.send_signal(number)
    _, words = process.communicate(timeout=60)
    assert process.returncode != 0, "the run was over before it was killed"
    if number == signal.SIGTERM:
        assert "the same command goes on" in words
    resumed, outcome = fit_tiny(run, data, recipe)
    assert outcome["images"] == 8 * 300
    assert torch.equal(weights(whole), weights(resumed))


def test_a_full_disk_while_checkpointing_keeps_the_last_good_one(tmp_path, monkeypatch):
    """The second checkpoint meets a disk with no space left, half-way through the file."""
    _, data = tiny_data(tmp_path / "d")
    whole, _ = fit_tiny(tmp_path / "whole", data)
    run, real, calls = tmp_path / "run", Path.write_bytes, []

    def full(path, content):
        if path.name == ".checkpoint.safetensors.partial":
            calls.append(path)
            if len(calls) == 2:
                real(path, content[: len(content) // 2])
                raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="free some space"):
        fit_tiny(run, data)
    assert len(calls) == 2 and not list(run.glob(".*partial"))
    resumed, _ = fit_tiny(run, data)
    assert torch.equal(weights(whole), weights(resumed))


def test_a_damaged_checkpoint_is_told_with_the_way_out(tmp_path):
    _, data = tiny_data(tmp_path / "d")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="remove it to start anew"):
        fit_tiny(tmp_path / "run", data)


def test_images_without_a_label_are_left_out_where_others_have_one(tmp_path):
    made = make_dataset(tmp_path / "data", count=80, labels=("large", "small", None, "small"))
    train(made, tmp_path / "run", minutes=0.02, images=16)
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["labels"] == ["large", "small"] and config["label_counts"] == [10, 20]
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["train_images"] == 30


def test_the_common_orientation_is_that_of_most_images():
    axial, sagittal = np.eye(4), np.eye(4)[[2, 0, 1, 3]]
    unknown = np.full((4, 4), np.nan)
    affines = np.array([axial @ np.diag([-2.0, -3.0, 1, 1])] * 3 + [sagittal] * 2 + [unknown])
    assert common_orientation(affines) == [[-1.0, 0.0, 0.0], [0.0, -1.0, 0.0]]
    assert common_orientation(unknown[None]) is None


def test_recipes_train_two_steps(tmp_path):
    _, data = tiny_data(tmp_path / "d", labels=("large", "small"))
    for name in makers():
        small = replace(
            RECIPES[name], width=8, batch=8, images=48, ticks=1, gamma=1.0, gamma_end=0.1, augment=0.3, threads=1
        )
        average, outcome = fit_tiny(tmp_path / name, data, small, classes=2)
        assert outcome["images"] == 48 and torch.isfinite(weights(average)).all()


@pytest.mark.parametrize("averaged", [True, False])
def test_the_model_has_the_statistics_of_its_own_weights_unless_they_are_the_last_ones(tmp_path, averaged):
    _, data = tiny_data(tmp_path / "d")
    average, _ = fit_tiny(tmp_path / "run", data, TINY if averaged else replace(TINY, ema_fraction=0.0))
    again = copy.deepcopy(average)
    take_statistics(again, [(part, None) for part in latent(0, 4096, average.latent).split(64)])
    found, own = (dict(network.named_buffers())["norms.0.running_mean"] for network in (average, again))
    assert torch.allclose(found, own, rtol=1e-3, atol=1e-5) is averaged


# ------------------------------------------------------------------------------------------------ best model, patience


def seen(energy, reference="validation", error=0.1):
    return {
        "score": energy,
        "score_error": error,
        "quality": None if energy is None else 10 * energy,
        "reference": reference,
    }


def test_the_latest_model_that_validation_images_do_not_tell_from_the_best_is_kept():
    choice = loop.Choice(replace(TINY, images=1000))
    given = [(5.0, 100), (2.0, 200), (2.05, 300), (2.5, 400)]
    assert [choice.better(seen(energy), images) for energy, images in given] == [True, True, True, False]
    assert (choice.images, choice.quality) == (300, 20.5)
    again = loop.Choice(replace(TINY, images=1000), **choice.to_json())
    assert not again.better(seen(None), 500), "samples that are not finite"
    assert not again.better(seen(2.5), 500) and again.better(seen(1.0), 600) and again.images == 600
    assert again.better(seen(1.5, error=0.6), 700), "within one standard error"
    assert again.better(seen(-0.3), 800) and not again.better(seen(-0.1), 900), "an unbiased distance may lie below 0"


def test_without_validation_images_the_last_model_is_kept_and_no_run_stopped():
    choice = loop.Choice(replace(TINY, images=1000))
    assert all(choice.better(seen(energy, "train"), images) for energy, images in [(1.0, 100), (9.0, 1000)])
    assert choice.images == 1000 and not choice.over(1000)


def test_a_run_is_over_when_all_is_worse_for_its_patience_and_the_schedules_are_nearly_done():
    choice = loop.Choice(replace(TINY, images=1000, patience=0.5, burn_in=1.0))
    choice.better(seen(2.0), 100)
    choice.better(seen(3.0), 500)
    assert not choice.over(700), "the rate is still high"
    assert choice.over(750)
    choice.better(seen(2.05), 600)
    assert not choice.over(1000), "no worse than the best is no reason to stop: the rate still falls"
    early = loop.Choice(replace(TINY, images=1000, patience=0.5, burn_in=0.2), lowest=2.0, images=100)
    assert not early.over(600) and early.over(601)
    assert not loop.Choice(replace(TINY, images=1000, patience=0.0), lowest=2.0, images=0).over(1000)


# ------------------------------------------------------------------------------------------------ from another model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A dataset and a run on it."""
    root = tmp_path_factory.mktemp("first")
    made = make_dataset(root / "d", side=16)
    train(made, root / "run", minutes=0.02, images=64, side=16, seed=1)
    return made, root / "run"


def shaped(root, made, shape):
    """The dataset `made` with noise of another shape as its images."""
    other = dataset.Dataset.open(made)
    random = np.random.default_rng(0)
    noise = (random.integers(0, 255, shape, dtype=np.uint8) for _ in range(len(other)))
    info = {name: other.info[name] for name in ("modality", "units", "labels", "spacing", "source_format", "hash")}
    dataset.write(root, {**info, "hash": "e" * 16}, other.columns, noise, np.dtype(np.uint8), shape)
    return root


def fresh_pair():
    """Networks like those of `trained`, with other weights."""
    torch.manual_seed(99)
    recipe = Recipe(train_images=20, target=16)
    return OBJECTIVES["synthesis"](recipe, Task(1, (16, 16), 0, 20), Grid.choose((16, 16), 16))


def test_a_run_starts_from_both_networks_of_another_and_from_a_model_alone_with_its_generator(trained, tmp_path):
    _, run = trained
    stored = load_file(run / "checkpoint.safetensors")
    learned = load_file(run / "model" / "model.safetensors")
    pair, before = fresh_pair(), fresh_pair().discriminator.state_dict()
    assert "100% of the generator's weights, 100% of the discriminator's" in warm_start(pair, run)
    assert all(torch.equal(value, learned[name]) for name, value in pair.generator.state_dict().items())
    for name, value in pair.discriminator.state_dict().items():
        assert torch.equal(value, stored[f"objective.discriminator.{name}"])
    shutil.copytree(run / "model", tmp_path / "alone")
    pair = fresh_pair()
    assert "discriminator" not in warm_start(pair, tmp_path / "alone")
    assert all(torch.equal(value, learned[name]) for name, value in pair.generator.state_dict().items())
    assert all(torch.equal(value, before[name]) for name, value in pair.discriminator.state_dict().items())


def test_a_run_with_classes_starts_from_a_model_without_with_all_that_z_says(trained):
    _, run = trained
    learned = load_file(run / "model" / "model.safetensors")["start.weight"]
    torch.manual_seed(99)
    recipe = Recipe(train_images=20, target=16)
    pair = OBJECTIVES["synthesis"](recipe, Task(1, (16, 16), 2, 20), Grid.choose((16, 16), 16))
    fresh = pair.generator.start.weight.detach().clone()
    warm_start(pair, run)
    now = pair.generator.start.weight.detach()
    assert learned.shape[1] == recipe.latent and now.shape[1] == 2 * recipe.latent
    assert torch.equal(now[:, : recipe.latent], learned) and torch.equal(
        now[:, recipe.latent :], fresh[:, recipe.latent :]
    )


def test_from_takes_the_grid_of_the_model_says_so_and_is_not_repeated_on_resume(trained, tmp_path, monkeypatch):
    _, run = trained
    opened = make_dataset(tmp_path / "larger", side=32)  # alone, the probe would take its 32 pixels
    calls = []
    monkeypatch.setattr(stage, "warm_start", lambda *given: calls.append(given) or warm_start(*given))
    command = {"minutes": 0.02, "images": 64, "from_": run}
    fit = loop.fit

    def interrupted(objective, recipe, data, folder, group, deadline_s, progress):
        fit(objective, recipe, data, folder, group, 0.0, progress)
        raise Interrupted("now")

    monkeypatch.setattr(loop, "fit", interrupted)
    with pytest.raises(Interrupted):
        train(opened, tmp_path / "run", **command)
    monkeypatch.setattr(loop, "fit", fit)
    result = train(opened, tmp_path / "run", **command)
    assert result["grid"] == [16, 16] and result["images"] == 64 and len(calls) == 1
    assert any("started from another model: 100% of the generator's" in sentence for sentence in result["plan"])
    with pytest.raises(ValueError, match="from"):
        train(opened, tmp_path / "run", minutes=0.02, images=64)


def test_a_run_that_no_longer_fits_into_memory_is_refused_before_it_goes_on(trained, tmp_path, monkeypatch):
    made, _ = trained
    fit = loop.fit

    def interrupted(objective, recipe, data, folder, group, deadline_s, progress):
        fit(objective, recipe, data, folder, group, 0.0, progress)
        raise Interrupted("now")

    monkeypatch.setattr(loop, "fit", interrupted)
    with pytest.raises(Interrupted):
        train(made, tmp_path / "run", minutes=0.02, images=64)
    monkeypatch.setattr(loop, "fit", fit)
    with monkeypatch.context() as poor:
        poor.setattr(stage.memory, "available", lambda device: 2**20)
        with pytest.raises(ValueError, match="that fits into"):
            train(made, tmp_path / "run", minutes=0.02, images=64)
    assert train(made, tmp_path / "run", minutes=0.02, images=64)["images"] == 64


def test_images_of_another_shape_go_onto_the_grid_of_the_model_that_is_started_from(trained, tmp_path):
    made, run = trained  # 16 x 16
    opened = shaped(tmp_path / "wide", made, (1, 20, 30))
    alone = train(opened, tmp_path / "alone", minutes=0.02, images=64, side=16)
    assert alone["grid"] != [16, 16]
    result = train(opened, tmp_path / "run", minutes=0.02, images=64, from_=run)
    assert result["grid"] == [16, 16]
    assert any("100% of the generator's weights, 100% of the discriminator's" in words for words in result["plan"])
    held = "16 x 16 pixels (stored: 20 x 30, images as 11 x 16 in it): as the model that is started from"
    assert any(held in words for words in result["plan"])
    again = train(opened, tmp_path / "again", minutes=0.02, images=64, from_=run, side=16, size="tiny")
    assert again["grid"] == [16, 16] and any("size tiny" in words and "as asked" in words for words in again["plan"])
    narrow = shaped(tmp_path / "narrow", made, (1, 20, 200))
    with pytest.raises(ValueError, match="would fill 12% of its grid of 16 x 16: start from another model"):
        train(narrow, tmp_path / "refused", minutes=0.02, images=64, from_=run)
    assert Grid.from_json(json.loads((tmp_path / "run" / "model" / "config.json").read_text())["grid"]).box == (11, 16)


def test_a_model_of_the_size_of_the_other_is_made_and_one_of_other_dimensions_refused(trained, tmp_path):
    opened, run = trained
    train(opened, tmp_path / "small", minutes=0.02, images=64, size="small", side=16)
    result = train(opened, tmp_path / "run", minutes=0.02, images=64, from_=tmp_path / "small")
    assert any("size small" in words and "as the model that is started from" in words for words in result["plan"])
    volumes = shaped(tmp_path / "volumes", opened, (1, 16, 16, 16))
    for side in ({}, {"side": 16}):
        with pytest.raises(ValueError, match=r"expected a model of 3-D images to start from .* found one of 2-D"):
            train(volumes, tmp_path / "other", minutes=0.02, images=64, from_=run, **side)


@pytest.mark.parametrize("change", [{"size": "small"}, {"recipe": "dcgan"}, {"side": 32}])
def test_from_a_model_of_other_networks_is_refused_with_the_way_out(trained, tmp_path, change):
    _, run = trained
    opened = make_dataset(tmp_path / "larger", side=32)
    with pytest.raises(ValueError, match="leave out --side and --size, and use the same --recipe"):
        train(opened, tmp_path / "run", **{"minutes": 0.02, "images": 64, "from_": run, **change})
    with pytest.raises(ValueError, match="give the folder that 'scansmith train' wrote"):
        train(opened, tmp_path / "other", minutes=0.02, images=64, from_=tmp_path)


# ------------------------------------------------------------------------------------------------ compiling


class Told(Clock):
    """A clock whose steps take what a test says, by whether the generator is compiled."""

    def stepper(self, recipe):
        took = iter([0.0] + [{False: 0.2, True: SECONDS["compiled"]}[recipe.compiled]] * 99)
        return lambda: next(took)


SECONDS = {"compiled": 0.1}


@pytest.mark.parametrize(
    ("compiled_s", "kept", "words"), [(0.1, True, "saves 900 s"), (0.1999, False, "not compiled: that saves 1 s")]
)
def test_the_generator_is_compiled_where_that_repays_its_cost(compiled_s, kept, words, monkeypatch):
    monkeypatch.setitem(SECONDS, "compiled", compiled_s)
    ticks = iter([0.0, 30.0])
    monkeypatch.setattr(probe_module.time, "monotonic", lambda: next(ticks))
    clock = Told(Task(1, (16, 16), 0, 20), CPU)
    recipe, step_s, why = probe_module.compiled_if_it_pays(TINY, 0.2, clock, 1800.0)
    assert recipe.compiled is kept and words in why and "costs 30 s" in why
    assert step_s == pytest.approx(compiled_s if kept else 0.2)


def test_a_machine_that_cannot_compile_trains_all_the_same(monkeypatch):
    def broken(self, *args, **kwargs):
        raise OSError("no C++ compiler")

    monkeypatch.setattr(torch.nn.Module, "compile", broken)
    recipe, step_s, why = probe_module.compiled_if_it_pays(TINY, 0.7, Clock(Task(1, (16, 16), 0, 20), CPU), 1800.0)
    assert not recipe.compiled and step_s == 0.7 and why == "not compiled: OSError when it was tried"


COMPILER = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # torch's own, on import of its compiler


@COMPILER
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler, and g++ is not here")
def test_a_compiled_generator_computes_what_an_eager_one_does_and_resumes_to_the_bit(tmp_path):
    _, data = tiny_data(tmp_path / "d")
    made, gradients = [], []
    for compiled in (False, True):
        torch.manual_seed(0)
        recipe = replace(TINY, compiled=compiled)
        objective = OBJECTIVES["synthesis"](recipe, Task(1, (16, 16), 0, 20), Grid.choose((16, 16), 16))
        loop.prepare_machine(objective, recipe, CPU)
        batch = data.draw(recipe, 0, Group(), schedule(recipe, 0))
        objective.discriminator_loss(batch)
        objective.generator_loss(batch)[0].backward()
        assert (objective.generator._compiled_call_impl is not None) is compiled
        made.append(objective.generator(batch.z).detach())
        gradients.append([value.grad for value in objective.generator.parameters()])
    torch.testing.assert_close(made[1], made[0], rtol=1e-4, atol=1e-5)
    for found, wanted in zip(gradients[1], gradients[0], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()) + 1e-7)
    recipe = replace(TINY, compiled=True, images=24)
    whole, _ = fit_tiny(tmp_path / "whole", data, recipe)
    fit_tiny(tmp_path / "cut", data, recipe, deadline_s=0.0)
    resumed, _ = fit_tiny(tmp_path / "cut", data, recipe)
    assert torch.equal(weights(whole), weights(resumed))


@COMPILER
def test_a_compiled_run_goes_on_where_there_is_no_compiler(tmp_path, monkeypatch):
    import torch._dynamo
    import torch._inductor.config

    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("/nowhere/g++",))
    monkeypatch.setattr(torch._inductor.config, "force_disable_caches", True)
    torch._dynamo.reset()
    _, data = tiny_data(tmp_path / "d")
    recipe = replace(TINY, images=24, width=16)
    found, _ = fit_tiny(tmp_path / "compiled", data, replace(recipe, compiled=True))
    wanted, _ = fit_tiny(tmp_path / "eager", data, recipe)
    assert torch.equal(weights(found), weights(wanted))
