"""The watchman: judges a run by what is measured and acts: skip, roll back, raise gamma, lower the rate, raise augmentation, end.

Thresholds come from theory where there is some; otherwise what was measured stands beside the number. Measured means
runs of `benchmarks/watchman.py`: the strided pair at 16 and 32 pixels, 100 to 800 images.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from .recipes import Recipe, Values, penalty_weight

# Data. Below the first number nothing that makes images from noise can do more than copy; below the second a run is warned.
FEWEST_IMAGES, FEW_IMAGES = 16, 50

# The loss of a D that gives every image the same score. A D whose loss, its penalty included, stays above it is worse than
# none: healthy runs stay under 1.2 times it from the 64th update on; with 30 times the rate it is 10 to 1,000 times it.
CONSTANT_LOSS = {
    "relativistic": math.log(2.0),
    "minimax": 2.0 * math.log(2.0),
    "non_saturating": 2.0 * math.log(2.0),
    "least_squares": 0.5,
    "hinge": 2.0,
}
LOSS_SPIKE = 1.5  # times the constant loss
QUIET = 1.0 / 8.0  # what a quiet update takes off the burden; a spiking one adds log2(loss / constant loss)
BURDEN = 8.0  # from which D does not recover by itself
PROBATION, BURDEN_ON_PROBATION = 128, 2.0  # after a climb: updates for which a remedy has to show that it holds

# A gradient norm's logarithm: six standard deviations above its running mean, of which at least this one.
SPIKE_Z, SPIKE_FLOOR = 6.0, 0.4
WARM_UP = 64  # updates that set the level; in the first the norms rise by orders of magnitude
NORM_WINDOW = 200  # updates that the running mean remembers
SKIPS = 8  # refused updates of one player in a row after which skipping does not help

# What the penalty gamma/2 (R1 + R2) holds: if D cannot lower its loss by scaling its scores, then
# gamma (R1 + R2) = E[gap sigmoid(-gap)], so penalty / (constant loss - loss) is at most about 1/2. Measured in healthy runs .015 to .9, the
# penalty itself 1e-4 and more; below .001 of the gain, or of what can be told from no gain, it holds nothing.
WEAK_PENALTY = 0.001
LEAST_GAIN = 0.005  # twice the noise of the gain's running mean
GAMMA_FLOOR = 0.3  # of the weight that the probe would choose, where a recipe has less
SATURATED = 0.02  # share of the constant loss below which D always wins and G's gradient fades
WINDOW = 64  # updates that the running means of the losses remember

# Ticks. Two bad ones in a row count, over 64 updates at least: 100 validation images are noisy. Nothing is judged before a
# quarter of the run and 256 updates have passed: samples are alike and far away at the beginning (diversity .1 to .4 and
# quality swinging threefold in the first 60 updates at 64 px).
GRACE, GRACE_UPDATES = 0.25, 256
ALIKE, COLLAPSED = (
    0.1,
    0.3,
)  # diversity; share of the best diversity so far, of which no more than 1 counts: healthy .6 and more
# Of the best coverage so far, which must have reached .2, while quality is 1.5 times the best or more: healthy runs of 200
# steps dip to .3 for two ticks.
LOST_COVERAGE = 0.2
DECLINE = 2.0  # times the best quality so far, and one more: healthy runs of 200 steps swing by 2
COPYING = 0.5  # samples twice as near to training images as unseen real ones are: healthy .85 to 1.2
OSCILLATION = 0.5  # autocorrelation of the gap's block means one period on: 4 standard errors of noise
BLOCKS = 64  # block means of the gap that are kept, over half a run

# Augmentation.
MOST_AUGMENT = 0.85
OVERFIT = 0.5  # r where D judges unseen scans as much fake as real
AUGMENT_STEP = 0.1

LADDER = ("roll_back", "raise_gamma", "raise_gamma", *("lower_rate",) * 6, "raise_augmentation", "end")
CALM = 2  # healthy ticks after which trouble begins at the ladder's foot again
MOST_CLIMBS = 24

SAW = {
    "not_finite": "losses are no finite numbers",
    "gradient_spike": "gradients jump far above their usual size",
    "loss_spike": "the discriminator does worse than one that knows nothing",
    "weak_penalty": "nothing holds the discriminator's slope: its penalty is next to nothing",
    "score_gap": "the discriminator always wins, so the generator learns nothing",
    "collapse": "the samples have become alike",
    "low_coverage": "the samples cover far less of the real images than before",
    "decline": "quality has fallen far behind its best",
    "oscillation": "the two networks chase each other in circles",
    "memorising": "samples lie much nearer to training images than unseen real images do",
    "overfitting": "the discriminator knows the training images by heart",
}
DID = {
    "roll_back": "back to the last good weights",
    "raise_gamma": "gamma is raised",
    "lower_rate": "the learning rate is halved",
    "raise_augmentation": "augmentation is raised",
    "lower_augmentation": "augmentation is lowered again",
}
AGAIN = "start again with another --seed, and if it ends so again with a smaller --side or --size"
SCANS = "add scans, or start --from a pretrained model"
WAY_OUT = {
    "not_finite": f"look through the prepared images for wrong intensities, and {AGAIN}",
    "gradient_spike": f"look through the prepared images for wrong intensities, and {AGAIN}",
    "loss_spike": f"{AGAIN}; a recipe of your own needs a lower learning rate",
    "weak_penalty": "leave gamma to the plan (-1), or give it a larger value in the recipe",
    "score_gap": f"{SCANS}, or {AGAIN}",
    "collapse": f"{AGAIN}; {SCANS}",
    "low_coverage": f"{AGAIN}; {SCANS}",
    "decline": f"{AGAIN}; {SCANS}",
    "oscillation": f"{AGAIN}; a recipe of your own needs a larger gamma or a lower learning rate",
    "memorising": SCANS,
    "overfitting": SCANS,
}


@dataclass(frozen=True)
class Act:
    """One thing the watchman does.

    Attributes:
        reason: code of what was seen: a key of `SAW`, "few_images" or "one_class".
        act: "skip", "roll_back", "raise_gamma", "lower_rate", "raise_augmentation", "lower_augmentation", "warn" or "end".
        words: one sentence for the user; that of an "end" says what to do.
    """

    reason: str
    act: str
    words: str


class Watchman:
    """Judges every update and every tick of a run.

    Its whole memory is plain JSON, so that a resumed run goes on bit-identically; it counts updates and ticks, never seconds.
    With `recipe.watch` off it only refuses what is not finite.
    """

    def __init__(self, recipe: Recipe, state: dict[str, Any] | None = None) -> None:
        self.recipe = recipe
        self.state: dict[str, Any] = copy.deepcopy(state) if state is not None else fresh()
        self._constant = CONSTANT_LOSS.get(recipe.loss) if recipe.objective == "synthesis" else None

    def begin(self, class_counts: Sequence[int], train_images: int) -> list[Act]:
        """Faults of the data, before the first step.

        Args:
            class_counts: training images of every label that the dataset lists; [] without labels.
        """
        if self.recipe.task == "make" and train_images < FEWEST_IMAGES:
            few = f"{train_images} training images are too few: a generator could only copy them. Add scans ({FEW_IMAGES} or more); with {FEWEST_IMAGES} and more a start --from another model helps"
            return [Act("few_images", "end", few)]
        if sum(count > 0 for count in class_counts) == 1:
            # A label that never changes only adds a constant to z: quality was 1.8 times worse than without it.
            alike = f"all {train_images} training images have the same label (of {len(class_counts)} listed), which teaches nothing: correct the labels, or prepare again with --labels none"
            return [Act("one_class", "end", alike)]
        acts: list[Act] = []
        if train_images < FEW_IMAGES:
            acts.append(
                Act(
                    "few_images",
                    "warn",
                    f"only {train_images} training images: more scans would help, or a start --from a pretrained model",
                )
            )
        return acts

    # ------------------------------------------------------------------------------------------------ updates

    def accepts(self, player: str, values: Mapping[str, float]) -> bool:
        """Whether the update may move the weights; called once per update, before they move.

        Args:
            values: "loss" (penalty included), "norm" of the gradients, and what was logged: "loss_d", "gap".
        """
        if not all(math.isfinite(value) for value in values.values()):
            return self._refuse(player, "not_finite")
        if not self.recipe.watch:
            return True
        level = self.state["norms"].setdefault(player, [0.0, 0.0, 0])
        size = math.log(values["norm"] + 1e-12)
        if is_spike(level, size):
            return self._refuse(player, "gradient_spike")
        self.state["norms"][player] = updated(level, size)
        self.state["refused"][player] = 0
        if player == "discriminator" and self._constant is not None:
            self._judge_loss(values)
        return True

    def _refuse(self, player: str, reason: str) -> bool:
        refused = self.state["refused"]
        refused[player] = refused.get(player, 0) + 1
        self.state["skipped"][reason] = self.state["skipped"].get(reason, 0) + 1
        if refused[player] >= SKIPS:
            self.state["trouble"] = reason
        return False

    def _judge_loss(self, values: Mapping[str, float]) -> None:
        """D's loss beside that of a constant D, the penalty beside D's gain, and the series of the gap."""
        assert self._constant is not None
        state, constant = self.state, self._constant
        adversarial = values.get("loss_d", values["loss"])
        spiking = values["loss"] > LOSS_SPIKE * constant
        weight = math.log2(values["loss"] / constant) if spiking else -QUIET
        state["burden"] = max(0.0, state["burden"] + weight)
        if state["burden"] >= (BURDEN_ON_PROBATION if self._on_probation else BURDEN):
            state["trouble"] = "loss_spike"
        state["updates"] += 1
        weight = max(1.0 / state["updates"], 1.0 / WINDOW)
        for name, value in (("gain", constant - adversarial), ("penalty", values["loss"] - adversarial)):
            state[name] += weight * (value - state[name])
        judged = self.recipe.penalty == "r1r2" and state["updates"] % WINDOW == 0 and not spiking
        if judged and penalty_is_weak(state["gain"], state["penalty"]):
            state["trouble"] = "weak_penalty"
        self._follow_gap(values.get("gap", 0.0))

    @property
    def _on_probation(self) -> bool:
        return self.state["climbs"] > 0 and self.state["updates"] < PROBATION

    def _follow_gap(self, gap: float) -> None:
        """Means of the gap over blocks of 1/128 of the run; the last 64 are kept."""
        state, length = self.state, max(1, self.recipe.steps // (2 * BLOCKS))
        state["block"] = [state["block"][0] + gap, state["block"][1] + 1]
        if state["block"][1] >= length:
            state["gaps"] = [*state["gaps"][1 - BLOCKS :], state["block"][0] / state["block"][1]]
            state["block"] = [0.0, 0]

    def urgent(self) -> list[Act]:
        """What cannot wait for the next tick; called after each step."""
        reason, self.state["trouble"] = self.state["trouble"], None
        return [] if reason is None else self._climb(reason)

    # ------------------------------------------------------------------------------------------------ ticks

    def tick(self, row: Mapping[str, Any], images: int) -> list[Act]:
        """Judge what was measured; [] when healthy.

        Args:
            row: what `watch.measure` found; None where it could not be measured.
            images: real images shown so far.
        """
        state = self.state
        acts = [
            Act(reason, "skip", f"{SAW[reason]}: {times} updates were skipped")
            for reason, times in state["skipped"].items()
        ]
        state["skipped"] = {}
        if not self.recipe.watch:
            return acts
        suspected = self._suspicions(row, images)
        state["bad"] = {reason: state["bad"].get(reason, images) for reason in suspected}
        sure = [reason for reason, first in state["bad"].items() if images - first >= WINDOW * self.recipe.batch]
        acts += self._tune_augmentation(row, "memorising" in sure)
        grave = [reason for reason in sure if reason != "memorising"]
        if grave:
            acts += self._climb(grave[0])
            state["bad"] = {}
        state["healthy"] = not suspected and state["burden"] == 0.0 and not self._on_probation
        if state["healthy"]:
            state["calm"] += 1
            state["good"] = copy.deepcopy({"norms": state["norms"]})
        if not self._early(images):
            self._remember(row)
        return acts

    def _suspicions(self, row: Mapping[str, Any], images: int) -> list[str]:
        """What this tick alone makes one think of, the gravest first."""
        if self._early(images):
            return []
        best = self.state["best"]
        quality, diversity, coverage, copying = (
            row.get(key) for key in ("quality", "diversity", "coverage", "copying")
        )
        found = {
            "not_finite": quality is None and "quality" in best,
            "collapse": diversity is not None
            and diversity < max(ALIKE, COLLAPSED * min(1.0, best.get("diversity", 0.0))),
            "low_coverage": self._lost_coverage(coverage, quality),
            "decline": quality is not None and "quality" in best and quality > DECLINE * best["quality"] + 1.0,
            "score_gap": self._saturated(),
            "oscillation": oscillates(self.state["gaps"]),
            "memorising": copying is not None and copying < COPYING,
        }
        return [reason for reason, seen in found.items() if seen]

    def _early(self, images: int) -> bool:
        return images < max(GRACE * self.recipe.images, GRACE_UPDATES * self.recipe.batch)

    def _lost_coverage(self, coverage: float | None, quality: float | None) -> bool:
        best = self.state["best"]
        if coverage is None or quality is None or best.get("coverage", 0.0) < 0.2:
            return False
        return bool(coverage < LOST_COVERAGE * best["coverage"] and quality > 1.5 * best["quality"])

    def _saturated(self) -> bool:
        constant = self._constant
        return (
            constant is not None
            and self.state["updates"] >= WINDOW
            and constant - self.state["gain"] < SATURATED * constant
        )

    def _remember(self, row: Mapping[str, Any]) -> None:
        best = self.state["best"]
        for key, choose in (("quality", min), ("coverage", max), ("diversity", max)):
            if row.get(key) is not None:
                best[key] = choose(best.get(key, row[key]), row[key])

    def _tune_augmentation(self, row: Mapping[str, Any], memorising: bool) -> list[Act]:
        """One clamped step of the augmentation towards r = .5; down again only as far as it was raised before."""
        state = self.state
        reason = "memorising" if memorising else "overfitting"
        step = AUGMENT_STEP if memorising else augmentation_step(row.get("overfit"), row.get("overfit_error"))
        if step == 0.0 or (step < 0.0 and state["augment"] <= 0.0):
            return []
        if step < 0.0:
            state["augment"] = max(0.0, state["augment"] + step)
            return [self._act(reason, "lower_augmentation")]
        if row["augment"] < MOST_AUGMENT:  # what is applied now: the schedule reaches its own end only with the run
            state["augment"] += step
            return [self._act(reason, "raise_augmentation")]
        state["saturated"][reason] = state["saturated"].get(reason, 0) + 1
        if memorising and state["saturated"][reason] >= 2:
            return [Act(reason, "end", f"{SAW[reason]}, whatever the augmentation: {WAY_OUT[reason]}")]
        if state["saturated"][reason] == 1:
            return [Act(reason, "warn", f"{SAW[reason]}, and augmentation is at its limit: {WAY_OUT[reason]}")]
        return []

    # ------------------------------------------------------------------------------------------------ acts

    def _climb(self, reason: str) -> list[Act]:
        """The next rung of the ladder: back to the last good weights, and from the second time on with a remedy."""
        state = self.state
        if state["calm"] >= CALM:
            state["rung"], state["gamma_before"] = 0, state["gamma"]
        state["calm"] = 0
        state["climbs"] += 1
        remedy = self._next_rung(reason)
        self._forget()
        if remedy == "end" or state["climbs"] > MOST_CLIMBS:
            return [Act(reason, "end", f"{SAW[reason]}, and no remedy held: {WAY_OUT[reason]}")]
        # The weights of a run whose penalty is weak are not spoiled.
        acts = [] if reason == "weak_penalty" else [self._act(reason, "roll_back")]
        if remedy == "raise_gamma":
            low = self.recipe.gamma < self._gamma_floor() and not state["floor"]
            state["floor"], state["gamma"] = state["floor"] or low, state["gamma"] * (1.0 if low else 2.0)
        if remedy == "lower_rate":
            state["rate"] *= 0.5
            state["gamma"] = state["gamma_before"]  # it did not help
        if remedy == "raise_augmentation":
            state["augment"] += 2.0 * AUGMENT_STEP
        return acts if remedy == "roll_back" else [*acts, self._act(reason, remedy)]

    def _next_rung(self, reason: str) -> str:
        """The remedy whose turn it is; one that cannot help is passed over."""
        state = self.state
        while True:
            remedy = LADDER[min(state["rung"], len(LADDER) - 1)]
            state["rung"] += 1
            if reason == "weak_penalty" and remedy == "roll_back":
                continue
            if remedy == "raise_gamma" and self.recipe.penalty == "none":
                continue
            return remedy

    def _forget(self) -> None:
        """What was seen since the last good weights, when the run goes back to them."""
        state, new = self.state, fresh()
        good = state["good"] or {"norms": {}}
        state |= {
            name: new[name] for name in ("refused", "trouble", "burden", "updates", "gain", "penalty", "gaps", "block")
        }
        state["norms"] = copy.deepcopy(good["norms"])

    def _act(self, reason: str, act: str) -> Act:
        return Act(reason, act, f"{SAW[reason]}: {DID[act]}")

    def _gamma_floor(self) -> float:
        return GAMMA_FLOOR * penalty_weight(max(self.recipe.target, 1), 1)

    @property
    def healthy(self) -> bool:
        """Whether the last tick's weights may serve as those to roll back to."""
        return bool(self.state["healthy"])

    def adjusted(self, now: Values) -> Values:
        """The scheduled values with the watchman's factors on gamma and rate and its offset of the augmentation."""
        state = self.state
        gamma = max(now.gamma, self._gamma_floor()) if state["floor"] else now.gamma
        return replace(
            now,
            gamma=gamma * state["gamma"],
            learning_rate=now.learning_rate * state["rate"],
            augment=min(MOST_AUGMENT, max(0.0, now.augment + state["augment"])) if state["augment"] else now.augment,
        )

    @property
    def health(self) -> str:
        """How the run is, in words."""
        if not self.recipe.watch:
            return "not watched"
        if self.state["bad"]:
            return f"perhaps {SAW[next(iter(self.state['bad']))]}"
        if self._on_probation:
            return "recovering"
        return "healthy" if self.state["burden"] == 0.0 else f"perhaps {SAW['loss_spike']}"

    def to_json(self) -> dict[str, Any]:
        """The whole memory, plain JSON."""
        return copy.deepcopy(self.state)


def fresh() -> dict[str, Any]:
    """The memory before the first step."""
    return {
        "norms": {},  # player -> [mean, variance, count] of the logarithm of its gradient norm
        "refused": {},  # player -> updates refused in a row
        "skipped": {},  # reason -> updates skipped since the last tick
        "trouble": None,  # reason for `urgent`
        "burden": 0.0,  # how much D's loss has spiked of late
        "updates": 0,  # of D since the start or the last roll back
        "gain": 0.0,  # running mean of constant loss - D's loss
        "penalty": 0.0,  # running mean of the penalty
        "gaps": [],  # block means of the gap
        "block": [0.0, 0],  # sum and count of the block that is being filled
        "bad": {},  # reason -> images at the first of the bad ticks in a row
        "best": {},  # best quality, coverage and diversity so far
        "saturated": {},  # reason -> times augmentation was wanted at its limit
        "rung": 0,
        "calm": 0,  # healthy ticks since the last climb
        "climbs": 0,
        "gamma": 1.0,
        "gamma_before": 1.0,
        "floor": False,  # whether gamma has its floor
        "rate": 1.0,
        "augment": 0.0,
        "healthy": True,
        "good": None,  # what was known of the norms at the last good weights
    }


# ------------------------------------------------------------------------------------------------ detectors


def is_spike(level: Sequence[float], size: float) -> bool:
    """Whether a value lies far above its running (mean, variance, count)."""
    mean, variance, count = level
    return count >= WARM_UP and size - mean > SPIKE_Z * max(SPIKE_FLOOR, math.sqrt(variance))


def updated(level: Sequence[float], size: float) -> list[float]:
    """Running (mean, variance, count) with one value more: exact at first, then exponential over `NORM_WINDOW` values."""
    mean, variance, count = level
    weight = max(1.0 / (count + 1), 1.0 / NORM_WINDOW)
    return [mean + weight * (size - mean), (1.0 - weight) * (variance + weight * (size - mean) ** 2), count + 1]


def penalty_is_weak(gain: float, penalty: float) -> bool:
    """Whether gamma/2 (R1 + R2) is next to nothing beside what D gains over a constant D."""
    return penalty < WEAK_PENALTY * max(gain, LEAST_GAIN)


def oscillates(series: Sequence[float]) -> bool:
    """Whether a series swings with a period: its autocorrelation, trend removed, falls below 0 and comes back above .5.

    The parabola takes out the drift of the gap while gamma falls. Periods of up to a third of the series are found.
    """
    if len(series) < BLOCKS:
        return False
    place = np.linspace(-1.0, 1.0, len(series))
    values = np.asarray(series) - np.polynomial.Polynomial.fit(place, series, 2)(place)
    power = float(values @ values)
    if power < 1e-12 * float(np.square(series).sum()):
        return False
    correlation = [float(values[:-lag] @ values[lag:]) / power for lag in range(1, len(values) // 2 + 1)]
    crossing = next((lag for lag, value in enumerate(correlation) if value < 0.0), len(correlation))
    return max(correlation[crossing:], default=0.0) > OSCILLATION


def augmentation_step(overfit: float | None, error: float | None) -> float:
    """Towards r = .5 by at most `AUGMENT_STEP`; 0 when r lies within its standard error of it or is not known."""
    if overfit is None or error is None or abs(overfit - OVERFIT) <= error:
        return 0.0
    return AUGMENT_STEP * max(-1.0, min(1.0, (overfit - OVERFIT) / max(3.0 * error, 0.1)))
