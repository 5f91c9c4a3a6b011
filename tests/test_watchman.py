"""The watchman: every detector on series with a known answer, the order of its acts, its memory, and planted faults in real runs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from scansmith.dataset import Level
from scansmith.metrics.random_conv import features
from scansmith.preprocess import Grid
from scansmith.runtime import Progress
from scansmith.train import loop, watch
from scansmith.train.checkpoint import read_log
from scansmith.train.feed import Images
from scansmith.train.objective import Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group
from scansmith.train.recipes import RECIPES, Recipe, Values, penalty_weight
from scansmith.train.watchman import (
    BLOCKS,
    BURDEN,
    FEWEST_IMAGES,
    LADDER,
    MOST_AUGMENT,
    OVERFIT,
    PROBATION,
    SAW,
    SKIPS,
    WAY_OUT,
    WINDOW,
    Act,
    Watchman,
    augmentation_step,
    oscillates,
    penalty_is_weak,
)

CPU = torch.device("cpu")
RECIPE = replace(
    RECIPES["relativistic"], width=8, latent=8, batch=16, images=16 * 1280, ticks=10, gamma=0.9, gamma_end=0.09, augment=0.5,
    precision="fp32", threads=1, train_images=100, target=32,
)  # fmt: skip
NOW = Values(learning_rate=1e-3, beta2=0.9, gamma=0.9, augment=0.5, ema_decay=0.9)
LN2 = math.log(2.0)
# A quiet update of D: a loss below ln 2 and a penalty that holds.
QUIET = {"loss": 0.62, "loss_d": 0.6, "norm": 1.0, "gap": 0.2, "r1": 0.02, "r2": 0.02}
GOOD = {
    "quality": 2.0,
    "diversity": 0.9,
    "coverage": 0.8,
    "copying": 1.0,
    "overfit": 0.3,
    "overfit_error": 0.1,
    "augment": NOW.augment,
}
MIDDLE = RECIPE.images // 2


def feed(watchman: Watchman, values: dict[str, float], times: int, player: str = "discriminator") -> list[Act]:
    """The same update again and again; what `urgent` said."""
    acts: list[Act] = []
    for _ in range(times):
        watchman.accepts(player, values)
        acts += watchman.urgent()
    return acts


def trouble(watchman: Watchman) -> list[Act]:
    """Updates a hundred times worse than a constant D, until something is done."""
    acts: list[Act] = []
    while not acts:
        acts = feed(watchman, QUIET | {"loss": 100.0 * LN2}, 1)
    return acts


def look(watchman: Watchman, *rows: dict[str, float | None]) -> list[Act]:
    """Ticks 128 updates apart, from the middle of the run on."""
    acts: list[Act] = []
    for number, row in enumerate(rows):
        acts += watchman.tick(row, MIDDLE + number * 128 * RECIPE.batch)
    return acts


def kinds(acts: Iterable[Act]) -> list[str]:
    return [act.act for act in acts]


# ------------------------------------------------------------------------------------------------ data


def test_too_few_images_end_the_run_with_what_to_do():
    (act,) = Watchman(RECIPE).begin([], 10)
    assert (act.reason, act.act) == ("few_images", "end")
    assert "10 training images" in act.words and "--from" in act.words


def test_few_images_warn_and_enough_images_say_nothing():
    assert kinds(Watchman(RECIPE).begin([], FEWEST_IMAGES)) == ["warn"]
    assert Watchman(RECIPE).begin([], 100) == [] == Watchman(RECIPE).begin([60, 40], 100)


@pytest.mark.parametrize("counts", [[0, 100, 0], [100, 0], [100]])
def test_labels_that_are_all_the_same_end_the_run(counts):
    (act,) = Watchman(RECIPE).begin(counts, 100)
    assert (act.reason, act.act) == ("one_class", "end") and "--labels none" in act.words


# ------------------------------------------------------------------------------------------------ updates


def test_a_jump_of_the_gradient_is_skipped_and_a_slow_rise_is_not():
    watchman, random = Watchman(RECIPE), np.random.default_rng(0)
    for step in range(600):  # rises tenfold over the run, with noise of a third
        norm = 10.0 ** (step / 600) * math.exp(0.3 * random.standard_normal())
        assert watchman.accepts("generator", {"loss": 0.7, "norm": norm})
    assert not watchman.accepts("generator", {"loss": 0.7, "norm": 100.0 * norm})
    assert watchman.accepts("generator", {"loss": 0.7, "norm": norm})
    assert watchman.urgent() == []


def test_the_first_updates_may_jump():
    watchman = Watchman(RECIPE)
    assert all(watchman.accepts("generator", {"loss": 0.7, "norm": 10.0**step}) for step in range(6))


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
@pytest.mark.parametrize("key", ["loss", "norm", "gap"])
def test_what_is_not_finite_is_skipped_and_after_a_while_rolled_back(key, wrong):
    watchman = Watchman(RECIPE)
    for _ in range(SKIPS):
        assert watchman.urgent() == []
        assert not watchman.accepts("discriminator", QUIET | {key: wrong})
    (act,) = watchman.urgent()
    assert (act.reason, act.act) == ("not_finite", "roll_back")
    assert watchman.urgent() == []


def test_a_discriminator_that_stays_worse_than_a_constant_is_rolled_back():
    spiking = QUIET | {"loss": 1.6 * LN2}
    patience = math.ceil(BURDEN / math.log2(1.6))
    assert feed(Watchman(RECIPE), spiking, patience - 1) == []
    (act,) = feed(Watchman(RECIPE), spiking, patience)
    assert (act.reason, act.act) == ("loss_spike", "roll_back")
    watchman = Watchman(RECIPE)
    assert not any(feed(watchman, spiking, 1) + feed(watchman, QUIET, 8) for _ in range(100))  # one in nine recovers


def test_a_penalty_without_weight_is_weak_and_a_balanced_one_is_not():
    """D's scale s minimises E softplus(-s x) + c s^2; whatever the gaps and c, the penalty is then worth a fair share."""
    random, scale = np.random.default_rng(0), np.geomspace(1e-3, 30.0, 4000)
    for mean, spread in ((0.3, 1.0), (1.0, 1.0), (1.0, 0.1)):
        gaps = random.normal(mean, spread, 200)
        adversarial = np.logaddexp(0.0, -scale[:, None] * gaps).mean(axis=1)
        for weight in (0.003, 0.03, 0.3):
            best = int((adversarial + weight * scale**2).argmin())
            gain, penalty = LN2 - adversarial[best], weight * scale[best] ** 2
            assert not penalty_is_weak(gain, penalty), (mean, spread, weight)
            assert penalty_is_weak(gain, penalty / 1000.0)


def test_gamma_0_is_raised_from_a_floor_without_a_roll_back():
    watchman = Watchman(replace(RECIPE, gamma=0.0, gamma_end=0.0))
    acts = feed(watchman, QUIET | {"loss": QUIET["loss_d"]}, WINDOW)
    assert [(act.reason, act.act) for act in acts] == [("weak_penalty", "raise_gamma")]
    nothing = replace(NOW, gamma=0.0)
    assert watchman.adjusted(nothing).gamma == pytest.approx(0.3 * penalty_weight(32, 1))
    feed(watchman, QUIET | {"loss": QUIET["loss_d"]}, WINDOW)
    assert watchman.adjusted(nothing).gamma == pytest.approx(0.6 * penalty_weight(32, 1))


def test_a_recipe_without_penalty_is_not_told_that_it_is_weak():
    watchman = Watchman(replace(RECIPE, penalty="none", gamma=0.0))
    assert feed(watchman, QUIET | {"loss": QUIET["loss_d"]}, 10 * WINDOW) == []


def test_without_watch_only_what_is_not_finite_is_refused():
    watchman = Watchman(replace(RECIPE, watch=False))
    assert feed(watchman, QUIET | {"loss": 1e9, "norm": 1e9}, 200) == []
    assert watchman.tick(GOOD | {"diversity": 0.0, "copying": 0.0}, MIDDLE) == []
    assert not watchman.accepts("discriminator", QUIET | {"loss": math.nan})


# ------------------------------------------------------------------------------------------------ the ladder


def test_the_ladder_is_climbed_in_its_fixed_order_to_an_end_that_says_what_to_do():
    watchman, done = Watchman(RECIPE), []
    for _ in LADDER:
        done.append(trouble(watchman))
    assert kinds(done[0]) == ["roll_back"]
    assert [kinds(acts)[-1] for acts in done] == list(LADDER)
    assert all(kinds(acts)[0] == "roll_back" for acts in done[1:-1])
    assert done[-1][0].words.endswith(WAY_OUT["loss_spike"]) and "--seed" in done[-1][0].words
    order = ["roll_back", "raise_gamma", "lower_rate", "raise_augmentation", "end"]
    assert [order.index(rung) for rung in LADDER] == sorted(order.index(rung) for rung in LADDER)


def test_each_rung_changes_what_it_says():
    watchman, seen = Watchman(RECIPE), []
    for _ in LADDER[:-1]:
        trouble(watchman)
        now = watchman.adjusted(NOW)
        seen.append((now.gamma / NOW.gamma, now.learning_rate / NOW.learning_rate, round(now.augment - NOW.augment, 9)))
    # Gamma did not help and goes back when the rate's turn comes.
    rates = [(1.0, 0.5**halvings, 0.0) for halvings in range(1, 7)]
    assert seen == [(1.0, 1.0, 0.0), (2.0, 1.0, 0.0), (4.0, 1.0, 0.0), *rates, (1.0, 0.5**6, 0.2)]


def test_after_calm_ticks_trouble_begins_at_the_foot_and_remedies_stay():
    watchman = Watchman(RECIPE)
    trouble(watchman)
    trouble(watchman)
    watchman.tick(GOOD, MIDDLE)
    assert not watchman.healthy  # the remedy has to show that it holds
    for tick in range(2):
        feed(watchman, QUIET, PROBATION)
        assert watchman.tick(GOOD, MIDDLE + tick) == [] and watchman.healthy
    assert kinds(trouble(watchman)) == ["roll_back"]
    assert watchman.adjusted(NOW).gamma == pytest.approx(2.0 * NOW.gamma)


def test_trouble_without_end_is_ended_even_between_calm_ticks():
    watchman, last = Watchman(RECIPE), []
    for _ in range(60):
        last = trouble(watchman)
        if "end" in kinds(last):
            break
        feed(watchman, QUIET, PROBATION)
        for _ in range(2):
            watchman.tick(GOOD, MIDDLE)
    assert kinds(last) == ["end"]


# ------------------------------------------------------------------------------------------------ ticks


@pytest.mark.parametrize(
    ("reason", "bad"),
    [
        ("collapse", {"diversity": 0.1}),
        ("low_coverage", {"coverage": 0.1, "quality": 4.0}),
        ("decline", {"quality": 6.0}),
        ("not_finite", {"quality": None}),
    ],
)
def test_two_bad_ticks_in_a_row_are_rolled_back_and_one_is_not(reason, bad):
    watchman = Watchman(RECIPE)
    for row in (GOOD, GOOD | bad, GOOD):
        assert look(watchman, row) == []
        assert watchman.healthy == (row == GOOD)
    (act,) = look(watchman, GOOD | bad, GOOD | bad)
    assert (act.reason, act.act) == (reason, "roll_back") and not watchman.healthy


def test_first_ticks_may_be_bad():
    """Samples are alike and far away before anything is learned."""
    watchman = Watchman(RECIPE)
    row = {**GOOD, "quality": 100.0, "diversity": 0.05, "coverage": 0.0}
    for images in range(RECIPE.images // 20, RECIPE.images // 4, RECIPE.images // 20):
        assert watchman.tick(row, images) == [] and watchman.healthy
    brief = Watchman(replace(RECIPE, images=200 * RECIPE.batch))
    assert not any(brief.tick(row, step * RECIPE.batch) for step in range(0, 200, 10))


def test_a_discriminator_that_always_wins_is_seen():
    watchman = Watchman(RECIPE)
    feed(watchman, QUIET | {"loss": 0.02, "loss_d": 0.003, "gap": 6.0}, 10 * WINDOW + 1)
    acts = look(watchman, GOOD, GOOD)
    assert [(act.reason, act.act) for act in acts] == [("score_gap", "roll_back")]


def test_a_period_is_found_in_a_series_and_noise_and_drift_are_none():
    random, time = np.random.default_rng(0), np.arange(BLOCKS)
    for period in (4, 8, 16, 20):
        assert oscillates((np.sin(2.0 * np.pi * time / period) + 0.3 * random.standard_normal(BLOCKS)).tolist()), period
    for _ in range(200):
        noise = random.standard_normal(BLOCKS)
        drift = np.exp(-time / random.uniform(3.0, 60.0))
        assert not oscillates(noise.tolist())
        assert not oscillates((drift + random.uniform(0.0, 0.3) * noise).tolist())
        assert not oscillates(np.cumsum(noise).tolist())  # a random walk
    assert not oscillates(np.ones(BLOCKS).tolist()) and not oscillates([])


def test_a_swinging_gap_is_rolled_back():
    watchman, acts = Watchman(RECIPE), []
    for step in range(RECIPE.steps):
        watchman.accepts("discriminator", QUIET | {"gap": 0.2 + math.sin(2.0 * math.pi * step / 100.0)})
        if (step + 1) % (RECIPE.steps // 10) == 0:
            acts += watchman.tick(GOOD, (step + 1) * RECIPE.batch)
    assert (acts[0].reason, acts[0].act) == ("oscillation", "roll_back")


# ------------------------------------------------------------------------------------------------ augmentation


def test_augmentation_moves_towards_its_target_by_a_clamped_step():
    assert augmentation_step(OVERFIT + 0.05, 0.1) == augmentation_step(None, None) == 0.0
    assert augmentation_step(2.0, 0.1) == -augmentation_step(-2.0, 0.1) == pytest.approx(0.1)
    assert 0.0 < augmentation_step(OVERFIT + 0.15, 0.1) < 0.1


def test_augmentation_stays_within_its_clamp_and_is_not_lowered_below_the_schedule():
    watchman, acts = Watchman(RECIPE), []
    for _ in range(12):
        applied = watchman.adjusted(NOW).augment
        acts += watchman.tick(GOOD | {"overfit": 1.0, "overfit_error": 0.05, "augment": applied}, MIDDLE)
    assert watchman.adjusted(NOW).augment == MOST_AUGMENT
    assert {act.act for act in acts} == {"raise_augmentation", "warn"} and kinds(acts).count("warn") == 1
    assert watchman.adjusted(NOW).gamma == NOW.gamma and watchman.adjusted(NOW).learning_rate == NOW.learning_rate
    for _ in range(12):
        watchman.tick(GOOD | {"overfit": -1.0, "overfit_error": 0.05}, MIDDLE)
    assert watchman.adjusted(NOW).augment == NOW.augment


def test_memorising_raises_augmentation_first_and_ends_a_run_that_it_does_not_help():
    watchman, acts = Watchman(RECIPE), []
    for number in range(12):
        applied = watchman.adjusted(NOW).augment
        acts += watchman.tick(GOOD | {"copying": 0.2, "augment": applied}, MIDDLE + number * 64 * RECIPE.batch)
        if "end" in kinds(acts):
            break
    assert kinds(acts)[0] == "raise_augmentation" and kinds(acts)[-1] == "end"
    assert {act.reason for act in acts} == {"memorising"} and "add scans" in acts[-1].words


def test_a_run_that_memorises_while_its_schedule_still_augments_little_is_not_given_up():
    watchman, acts, length = Watchman(replace(RECIPE, augment=0.8)), [], 0
    for number in range(5):
        values = watchman.adjusted(replace(NOW, augment=0.1))
        acts += watchman.tick(GOOD | {"copying": 0.2, "augment": values.augment}, MIDDLE + number * 64 * RECIPE.batch)
        assert values.augment >= length
        length = values.augment
    assert set(kinds(acts)) == {"raise_augmentation"} and length > 0.3


# ------------------------------------------------------------------------------------------------ memory


def test_the_memory_goes_through_json_without_the_loss_of_a_bit():
    random = np.random.default_rng(0)
    first = Watchman(RECIPE)

    def live(watchman: Watchman, draws: np.ndarray) -> list[object]:
        said: list[object] = []
        for number, (a, b) in enumerate(draws):
            loss = float(0.6 * math.exp(0.5 * a)) if number % 97 else math.nan
            values = QUIET | {"loss": loss, "norm": float(np.exp(b)), "gap": float(a)}
            said += [watchman.accepts(player, values) for player in ("discriminator", "generator")]
            said += watchman.urgent()
            if number % 30 == 0:
                row = {**GOOD, "quality": float(2.0 + a), "coverage": float(abs(b) / 3), "overfit": float(a)}
                said += watchman.tick(row, MIDDLE)
            said.append(watchman.adjusted(NOW))
        return said

    draws = random.standard_normal((600, 2))
    live(first, draws[:300])
    second = Watchman(RECIPE, json.loads(json.dumps(first.to_json(), allow_nan=False)))
    assert live(first, draws[300:]) == live(second, draws[300:])
    assert first.to_json() == second.to_json()


def test_what_was_handed_out_is_no_part_of_the_memory():
    watchman = Watchman(RECIPE)
    feed(watchman, QUIET, 5)
    state = watchman.to_json()
    feed(watchman, QUIET, 5)
    assert state["norms"]["discriminator"][2] == 5


# ------------------------------------------------------------------------------------------------ what is measured


def test_overfitting_is_a_share_that_neither_shift_nor_scale_of_scores_changes():
    random = np.random.default_rng(0)
    train, validation, fake = (random.normal(mean, 0.5, 128) for mean in (2.0, 1.5, 0.0))
    r, error = watch.overfitting(train, validation, fake)
    assert r == pytest.approx(0.25, abs=0.1) and 0.02 < error < 0.08
    assert watch.overfitting(3.0 * train - 7.0, 3.0 * validation - 7.0, 3.0 * fake - 7.0) == (r, error)
    assert watch.overfitting(train, train, fake)[0] == 0.0
    assert watch.overfitting(train, fake, fake)[0] == 1.0
    assert watch.overfitting(fake, validation, fake + 0.01) == (None, None)  # D tells nothing apart


def test_the_error_of_overfitting_is_what_repeated_draws_show():
    random = np.random.default_rng(0)
    draws = [watch.overfitting(*(random.normal(mean, 1.0, 100) for mean in (1.5, 1.0, 0.0))) for _ in range(300)]
    assert np.std([r for r, _ in draws]) == pytest.approx(np.mean([error for _, error in draws]), rel=0.2)


def blobs(count: int, seed: int, side: int = 16, dimensions: int = 2) -> np.ndarray:
    """Bright balls at random places, float32 (count, 1, ...)."""
    random = np.random.default_rng(seed)
    centre = random.uniform(0.3, 0.7, (count, dimensions)) * side
    size = random.uniform(0.1, 0.3, count) * side
    axes = np.meshgrid(*[np.arange(side)] * dimensions, indexing="ij")
    distance = sum((axis[None] - c.reshape(-1, *[1] * dimensions)) ** 2 for axis, c in zip(axes, centre.T))
    inside = distance < size.reshape(-1, *[1] * dimensions) ** 2
    return (np.where(inside, 0.8, -0.9) + 0.02 * random.standard_normal(inside.shape))[:, None].astype(np.float32)


class Fixed(torch.nn.Module):
    """A generator that gives prepared images."""

    latent = 4

    def __init__(self, images: np.ndarray) -> None:
        super().__init__()
        self.images, self.given = torch.from_numpy(images), 0

    def forward(self, z: torch.Tensor, classes: torch.Tensor | None = None) -> torch.Tensor:
        self.given += len(z)
        return self.images[self.given - len(z) : self.given]


@pytest.mark.parametrize("dimensions", [2, 3])
def test_copies_are_told_from_new_images_and_from_blur(dimensions):
    count = 64
    train = blobs(150, 0, 16, dimensions)
    real = watch.reference(train, blobs(count, 1, 16, dimensions), 0, CPU)
    assert real is not None and real.name == "validation"

    def row(images: np.ndarray) -> dict[str, float]:
        return watch.measure(Fixed(images), 0, [], real, CPU)

    new, copies, blurred = (
        row(blobs(count, 2, 16, dimensions)),
        row(train[:count]),
        row(0.5 * blobs(count, 3, 16, dimensions) - 0.3),
    )
    assert copies["copying"] < 0.1 < 0.7 < new["copying"] < 1.4
    assert blurred["copying"] > 0.7
    assert new["coverage"] > 0.7 and new["recall"] > 0.7 and new["diversity"] == pytest.approx(1.0, abs=0.25)
    one = row(np.repeat(train[:1], count, axis=0))
    assert one["diversity"] < 0.01 and one["coverage"] < 0.2 and one["recall"] == 0.0


def test_measure_reads_overfitting_from_the_scores_it_is_given():
    train = blobs(100, 0)
    real = watch.reference(train, blobs(40, 1), 0, CPU, np.zeros(100, np.int64), np.zeros(40, np.int64))
    known = {image.tobytes() for image in train}
    asked: list[torch.Tensor | None] = []

    def by_heart(images: torch.Tensor, classes: torch.Tensor | None) -> torch.Tensor:
        asked.append(classes)
        return torch.tensor([1.0 if image.numpy().tobytes() in known else 0.0 for image in images])

    row = watch.measure(Fixed(blobs(40, 2)), 0, [0], real, CPU, by_heart)
    assert row["overfit"] == 1.0 and row["overfit_error"] == 0.0
    assert [len(classes) for classes in asked if classes is not None] == [64, 40, 40]
    assert watch.measure(Fixed(blobs(40, 2)), 0, [0], real, CPU)["overfit"] is None


def test_features_that_are_not_finite_give_no_numbers():
    real = watch.reference(blobs(60, 0), blobs(40, 1), 0, CPU)
    row = watch.measure(Fixed(np.full((40, 1, 16, 16), np.nan, np.float32)), 0, [], real, CPU)
    assert {row[key] for key in ("quality", "diversity", "coverage", "recall", "copying", "overfit")} == {None}
    assert np.isfinite(features(blobs(2, 0))).all()


def test_health_is_said_in_words():
    watchman = Watchman(RECIPE)
    assert watchman.health == "healthy"
    watchman.state["burden"] = 1.0
    assert watchman.health == f"perhaps {SAW['loss_spike']}"
    late = RECIPE.images // 2
    watchman.tick({**GOOD, "diversity": 0.01}, late)
    assert watchman.health == f"perhaps {SAW['collapse']}"
    watchman.tick({**GOOD, "diversity": 0.01}, late + WINDOW * RECIPE.batch)
    assert watchman.health == "recovering"
    assert Watchman(replace(RECIPE, watch=False)).health == "not watched"


def test_every_reason_has_words_and_a_way_out_of_its_own_kind():
    assert SAW.keys() == WAY_OUT.keys()
    assert "gamma" in WAY_OUT["weak_penalty"] and "intensities" in WAY_OUT["not_finite"]
    assert "add scans" in WAY_OUT["memorising"] and "--seed" not in WAY_OUT["memorising"]


# ------------------------------------------------------------------------------------------------ real runs


def run(
    folder: Path, recipe: Recipe, count: int = 100, classes: np.ndarray | None = None, listed: int = 0, side: int = 32
) -> list[dict]:
    """Train on blobs; the acts in the log."""
    images = np.uint8((np.clip(blobs(count + 40, 5, side), -1, 1) + 1.0) * 127.5)
    level = Level(images, np.zeros(len(images), np.float32), np.full(len(images), 255.0, np.float32))
    rows = np.arange(count)
    real = watch.reference(level.batch(rows), level.batch(np.arange(count, count + 40)), 0, CPU)
    torch.manual_seed(0)
    objective = OBJECTIVES["synthesis"](recipe, Task(1, (side, side), listed, 20), Grid.choose((side, side), side))
    data = Images(level, rows, classes, real)
    loop.fit(objective, recipe, data, folder, Group(), 1e9, Progress("test", recipe.images, quiet=True))
    return [row for row in read_log(folder / "log.jsonl") if row["kind"] == "act"]


def short(steps: int, **changes: float) -> Recipe:
    return replace(
        RECIPE, **{"width": 32, "latent": 32, "batch": 8, "images": 8 * steps, "ticks": 3, "patience": 0.0} | changes
    )  # type: ignore[arg-type]


def test_a_healthy_run_is_left_alone(tmp_path):
    assert run(tmp_path, short(50)) == []


def test_thirty_times_the_rate_is_caught_rolled_back_and_cured(tmp_path):
    acts = run(tmp_path, short(50, learning_rate=0.03, learning_rate_end=0.03))
    assert {act["reason"] for act in acts} <= {"loss_spike", "gradient_spike"}
    assert acts[0]["act"] == "roll_back" and acts[-1]["act"] == "lower_rate" and acts[0]["images"] < 120
    last = read_log(tmp_path / "log.jsonl")[-1]
    assert last["kind"] == "tick" and last["loss_d"] < 1.5 * LN2 and last["lr"] < 0.01


def test_gamma_0_is_caught_and_raised(tmp_path):
    acts = run(tmp_path, short(70, gamma=0.0, gamma_end=0.0))
    assert [(act["reason"], act["act"]) for act in acts] == [("weak_penalty", "raise_gamma")]
    assert read_log(tmp_path / "log.jsonl")[-1]["gamma"] == pytest.approx(0.3 * penalty_weight(32, 1))


def test_one_label_ends_the_run_before_it_begins(tmp_path):
    with pytest.raises(loop.Hopeless, match="same label"):
        run(tmp_path, short(80), classes=np.zeros(100, np.int64), listed=3)


def test_ten_images_end_the_run_before_it_begins(tmp_path):
    with pytest.raises(loop.Hopeless, match=r"10 training images are too few.*--from"):
        run(tmp_path, short(80), count=10)
