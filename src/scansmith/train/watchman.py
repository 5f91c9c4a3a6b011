"""The watchman: judges a run by what is measured and acts: skip, roll back, raise gamma, lower the rate, raise augmentation, end."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .recipes import Recipe, Values, penalty_weight

FEWEST_IMAGES = 16  # below, no generator does more than copy
FEW_IMAGES = 100  # below, a run is warned
SKIPS = 8  # refused updates of one player in a row, after which skipping does not help
WARM_UP = 64  # updates before a spike can be told from the beginning's rise
SPIKE_Z = 8.0
SPIKE_FLOOR = 0.35  # least standard deviation of the logarithm of a gradient norm
MEMORY = 1.0 / 200.0  # weight of one update in the running mean of norms
RECENT = 1.0 / 32.0  # weight of one update in the running mean of losses
MOST_AUGMENT = 0.85
AUGMENT_STEP = 0.1
TARGET_OVERFIT = 0.5
# The loss of a D that gives every image the same score: a D whose loss stays above it is worse than none.
CONSTANT_LOSS = {
    "relativistic": math.log(2.0),
    "minimax": 2.0 * math.log(2.0),
    "non_saturating": 2.0 * math.log(2.0),
    "least_squares": 0.5,
    "hinge": 2.0,
}
LADDER = ("roll_back", "raise_gamma", "raise_gamma", *("lower_rate",) * 6, "raise_augmentation", "end")


@dataclass(frozen=True)
class Act:
    """One thing the watchman does.

    Attributes:
        reason: code of what was seen, e.g. "gradient_spike".
        act: "skip", "roll_back", "raise_gamma", "lower_rate", "raise_augmentation", "warn" or "end".
        words: one sentence for the user; that of an "end" says what to do.
    """

    reason: str
    act: str
    words: str


class Watchman:
    """Judges every update and every tick; its whole memory is plain JSON, so that a resumed run goes on bit-identically."""

    def __init__(self, recipe: Recipe, state: dict[str, Any] | None = None) -> None:
        self.recipe = recipe
        self.state: dict[str, Any] = copy.deepcopy(state) if state is not None else fresh()

    def begin(self, class_counts: Sequence[int], train_images: int) -> list[Act]:
        """Faults of the data, before the first step."""
        if train_images < FEWEST_IMAGES:
            return [
                Act(
                    "few_images",
                    "end",
                    f"{train_images} training images are too few to learn from, a generator could only copy them: add scans ({FEW_IMAGES} or more), or start --from a pretrained model",
                )
            ]
        acts: list[Act] = []
        present = sum(count > 0 for count in class_counts)
        if len(class_counts) > 1 and present == 1:
            acts.append(
                Act(
                    "one_class",
                    "end",
                    f"{len(class_counts)} labels are listed but all training images have the same one: correct the labels, or prepare again with --labels none",
                )
            )
        elif len(class_counts) == 1:
            acts.append(Act("one_class", "warn", "all images have the same label: it tells the model nothing"))
        return acts

    def accepts(self, player: str, values: Mapping[str, float]) -> bool:
        """Whether the update may move the weights; called once per update, before they move."""
        state = self.state
        if not all(math.isfinite(value) for value in values.values()):
            return self._refuse(player, "not_finite")
        stats = state["norms"].setdefault(player, {"mean": 0.0, "variance": 0.0, "count": 0})
        size = math.log(values["norm"] + 1e-12)
        deviation = max(SPIKE_FLOOR, math.sqrt(stats["variance"]))
        if stats["count"] >= WARM_UP and size - stats["mean"] > SPIKE_Z * deviation:
            return self._refuse(player, "gradient_spike")
        state["skips"][player] = 0
        weight = max(MEMORY, 1.0 / (stats["count"] + 1))
        delta = size - stats["mean"]
        stats["mean"] += weight * delta
        stats["variance"] = (1.0 - weight) * (stats["variance"] + weight * delta * delta)
        stats["count"] += 1
        return True

    def _refuse(self, player: str, reason: str) -> bool:
        self.state["skips"][player] = self.state["skips"].get(player, 0) + 1
        if self.state["skips"][player] > SKIPS:
            self.state["trouble"] = reason
        return False

    def urgent(self) -> list[Act]:
        """What cannot wait for the next tick; called after each step."""
        reason, self.state["trouble"] = self.state["trouble"], None
        return [] if reason is None else self._climb(reason)

    def tick(self, row: Mapping[str, Any], images: int) -> list[Act]:
        """Judge what was measured; [] when healthy."""
        state = self.state
        state["healthy"] = True
        state["good"] = copy.deepcopy({"norms": state["norms"]})
        return []

    def _climb(self, reason: str) -> list[Act]:
        """The next rung of the ladder: back to the last good weights, and from the second time on with a remedy."""
        state = self.state
        act = LADDER[min(state["rung"], len(LADDER) - 1)]
        state["rung"] += 1
        state["skips"] = {}
        if state["good"] is not None:
            state["norms"] = copy.deepcopy(state["good"]["norms"])
        else:
            state["norms"] = {}
        if act == "end":
            return [Act(reason, "end", "the run cannot be held: start again with another --seed or a smaller --size")]
        acts = [Act(reason, "roll_back", f"{reason}: back to the last good weights")]
        if act == "raise_gamma":
            state["gamma"] *= 2.0
            acts.append(Act(reason, act, f"{reason}: gamma is doubled"))
        if act == "lower_rate":
            state["rate"] *= 0.5
            acts.append(Act(reason, act, f"{reason}: the learning rate is halved"))
        if act == "raise_augmentation":
            state["augment"] += AUGMENT_STEP
            acts.append(Act(reason, act, f"{reason}: augmentation is raised"))
        return acts

    @property
    def healthy(self) -> bool:
        """Whether the last tick's weights may serve as those to roll back to."""
        return bool(self.state["healthy"])

    def adjusted(self, now: Values) -> Values:
        """The scheduled values with the watchman's factors on gamma and rate and its offset of the augmentation."""
        state = self.state
        gamma = now.gamma * state["gamma"]
        if state["gamma"] > 1.0 and now.gamma <= 0.0:
            gamma = penalty_weight(max(self.recipe.target, 1), 1) * state["gamma"] / 2.0
        return replace(
            now,
            gamma=gamma,
            learning_rate=now.learning_rate * state["rate"],
            augment=min(MOST_AUGMENT, max(0.0, now.augment + state["augment"])),
        )

    def to_json(self) -> dict[str, Any]:
        """The whole memory, plain JSON."""
        return copy.deepcopy(self.state)


def fresh() -> dict[str, Any]:
    """The memory before the first step."""
    return {
        "norms": {},
        "skips": {},
        "trouble": None,
        "rung": 0,
        "gamma": 1.0,
        "rate": 1.0,
        "augment": 0.0,
        "healthy": True,
        "good": None,
    }
