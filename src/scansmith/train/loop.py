"""The training loop: update the players in turns, average, and at every tick measure, act, log, save. Knows nothing of the task."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..networks.blocks import CHANNELS_LAST, BatchNorm
from ..runtime import Interrupted, Progress, stop_flag
from . import checkpoint
from .feed import Feed
from .objective import Batch, Objective
from .parallel import Group, peers_needed
from .recipes import Recipe, Values, schedule
from .watchman import Act, Watchman

SETTLED = 0.75  # of the schedules; before, rate and penalty still change, and quality with them


class Hopeless(RuntimeError):
    """The watchman ended the run; the message says why and what to do."""


def fit(
    objective: Objective, recipe: Recipe, data: Feed, run: Path, group: Group, deadline_s: float, progress: Progress
) -> tuple[nn.Module, dict[str, Any]]:
    """Train to the end of the recipe, or go on from the run folder's checkpoint.

    Args:
        objective: see `Objective`.
        data: what is learned from.
        run: folder for log.jsonl, samples/ and checkpoint.safetensors.
        group: the processes that train together, with the device of this one.
        deadline_s: seconds of training, earlier starts included, after which the tail is cut.

    Returns:
        The averaged model (float32, evaluation mode) that validation found best, and {"images", "seconds", "cut", ...}.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; the checkpoint is written.
        Hopeless: the watchman gave the run up.
    """
    prepare_machine(objective, recipe, group.device)
    share_statistics(objective, group.size)
    average = copy.deepcopy(objective.get_submodule(objective.model)).eval().requires_grad_(False)
    best = copy.deepcopy(average)
    optimizers = {name: adam(network, recipe) for name, network in players(objective).items()}
    keeper = checkpoint.Keeper(run, {"objective": objective, "average": average, "best": best}, optimizers, group)
    state = keeper.load()
    watchman, choice = Watchman(recipe, state["watchman"]), Choice(recipe, **state["choice"])
    progress.resume(state["step"] * recipe.batch)
    log = checkpoint.Log(run, state["step"] * recipe.batch or -1, writes=group.main)
    began, means, cut = time.monotonic() - state["seconds"], Means(state["means"]), False

    def carry_out(acts: Sequence[Act], images: int) -> None:
        """Log acts; those that only the loop can do are done here, the others speak through `watchman.adjusted`."""
        for act in acts:
            log.write({"kind": "act", "images": images, "reason": act.reason, "act": act.act, "words": act.words})
            progress.say(act.words)
            if act.act == "roll_back":
                keeper.roll_back()
            if act.act == "end":
                state["ended"] = act.words

    with stop_flag() as stopping:
        if state["step"] == 0:
            carry_out(watchman.begin(data.counts(objective.generator_arguments.get("classes", 0)), len(data.rows)), 0)
        for step in range(state["step"], 0 if state["ended"] else recipe.steps):
            images = (step + 1) * recipe.batch
            now = watchman.adjusted(schedule(recipe, step * recipe.batch))
            batch = data.draw(recipe, step, group, now)

            # update the players in turns
            resting = objective.resting(batch)
            for name in (name for name in moving(objective, recipe, step) if name not in resting):
                means.add(update(name, batch, objective, optimizers[name], recipe, now, group, watchman))

            # average the weights
            follow(average, objective.get_submodule(objective.model), now.ema_decay)
            carry_out(watchman.urgent(), images)

            # watch, act, log, save
            progress.update(images)
            seconds = time.monotonic() - began
            cut, stop = agreed(group, seconds > deadline_s and step + 1 < recipe.steps, stopping())
            state |= {"step": step + 1, "seconds": seconds}
            if cut or due(recipe, step) or state["ended"]:
                row = tick_row(images, seconds, progress.rate, means, now, cut)
                seen = data.observe(objective, average, recipe, run, images, now, group.device) if group.main else {}
                row |= group.agree(seen)
                log.write(row)
                if choice.better(row, images):
                    follow(best, average, 0.0)
                carry_out(watchman.tick(row, images), images)
                if choice.over(images):
                    state["ended"] = state["ended"] or "done"
                state |= {"watchman": watchman.to_json(), "choice": choice.to_json(), "means": {}}
                keeper.save(state, good=watchman.healthy)
                progress.update(images, data.words(row, watchman.health))
            elif stop:
                state |= {"watchman": watchman.to_json(), "means": means.sums}
                keeper.save(state)
            if stop:
                log.close()
                raise Interrupted(f"stopped at {images} of {recipe.images} images; the same command goes on from there")
            if cut or state["ended"]:
                break
    log.close()
    if group.main:
        objective.settle(best, *data.typical(recipe, group.device), last=True)
    return best, outcome_of(state, recipe, choice, cut)


def due(recipe: Recipe, step: int) -> bool:
    """Whether a tick follows this step: `ticks` of them evenly over the run, the last at its end."""
    return (step + 1) * recipe.ticks // recipe.steps > step * recipe.ticks // recipe.steps


def agreed(group: Group, *wishes: bool) -> list[bool]:
    """Each wish, granted to all processes if one of them has it."""
    found = group.average([], {str(number): float(wish) for number, wish in enumerate(wishes)})
    return [value > 0.0 for value in found.values()]


def outcome_of(state: dict[str, Any], recipe: Recipe, choice: Choice, cut: bool) -> dict[str, Any]:
    """What a run that is over says of itself; raises Hopeless when the watchman gave it up."""
    if state["ended"] not in ("", "done"):
        raise Hopeless(state["ended"])
    outcome = {"images": state["step"] * recipe.batch, "seconds": state["seconds"], "cut": cut}
    return {**outcome, "stopped_early": bool(state["ended"]), "best_at": choice.images, "quality": choice.quality}


def tick_row(images: int, seconds: float, rate: float, means: Means, now: Values, cut: bool) -> dict[str, Any]:
    """The part of a tick's row that needs no measuring."""
    row = {"kind": "tick", "images": images, "seconds": round(seconds, 2), "images_per_s": round(rate, 2)}
    return {**row, **means.take(), "lr": now.learning_rate, "gamma": now.gamma, "augment": now.augment, "cut": cut}


def share_statistics(objective: Objective, processes: int) -> None:
    """Batch norm, and a loss that is no mean over images, are taken over the parts of all processes."""
    for module in objective.modules():
        if isinstance(module, BatchNorm | Objective) and hasattr(module, "processes"):
            module.processes = processes


def prepare_machine(objective: Objective, recipe: Recipe, device: torch.device) -> None:
    """Threads, layout, device and compiling as the recipe fixes them."""
    if recipe.threads:
        torch.set_num_threads(recipe.threads)
    objective.to(device)
    if recipe.channels_last:
        for parameter in objective.parameters():
            if parameter.ndim - 2 in CHANNELS_LAST:
                parameter.data = parameter.data.to(memory_format=CHANNELS_LAST[parameter.ndim - 2])
    if recipe.compiled:
        # A machine without a compiler, perhaps another one than began the run, goes on without and says so.
        torch._dynamo.config.suppress_errors = True
        objective.get_submodule(objective.model).compile()


def players(objective: Objective) -> dict[str, nn.Module]:
    """The networks in the order in which they move."""
    return {name: objective.get_submodule(name) for name in objective.players}


def moving(objective: Objective, recipe: Recipe, step: int) -> Sequence[str]:
    """Who moves in a step: all, or all but the last, which waits for the others' `critic_steps`-th."""
    return objective.players if (step + 1) % recipe.critic_steps == 0 else objective.players[:-1]


def adam(network: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Adam; rate and beta2 are set before each step."""
    return torch.optim.Adam(network.parameters(), lr=0.0, betas=(recipe.beta1, recipe.beta2), fused=True)


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, decay: float) -> None:
    """average = decay * average + (1 - decay) * network; what a network counts besides its weights is copied."""
    torch._foreach_lerp_(list(average.parameters()), list(network.parameters()), 1.0 - decay)
    for own, other in zip(average.buffers(), network.buffers()):
        own.copy_(other)


def update(
    name: str,
    batch: Batch,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    recipe: Recipe,
    now: Values,
    group: Group,
    watchman: Watchman,
) -> dict[str, float]:
    """One step of one player, which the watchman may refuse; a loss or a gradient that is not finite moves nothing.

    Only the player that moves takes gradients. The others keep their graphs: G's fakes are made while D moves.
    """
    for other, network in players(objective).items():
        network.requires_grad_(other == name or other == objective.model)
    with peers_needed(within=True):  # batch norm asks the others, too
        with torch.autocast(group.device.type, torch.bfloat16, enabled=recipe.precision == "bf16"):
            loss, logged = getattr(objective, f"{name}_loss")(batch)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
    gradients = [value.grad for value in objective.get_submodule(name).parameters() if value.grad is not None]
    values = {"loss": loss.detach(), **logged}
    seen = group.average(gradients, dict(zip(values, torch.stack([v.float() for v in values.values()]).tolist())))
    seen["norm"] = float(torch.nn.utils.get_total_norm(gradients))
    if watchman.accepts(name, seen):
        optimizer.param_groups[0].update(lr=now.learning_rate, betas=(recipe.beta1, now.beta2))
        optimizer.step()
    return {key: seen[key] for key in logged} | {f"norm_{name[0]}": seen["norm"]}


@dataclass
class Choice:
    """Which tick's model is kept: the latest that validation images do not tell from the best one.

    Judged by the feed's score: of samples the energy distance, since with few images a Fréchet distance prefers narrow models. "Do not tell" is within one
    standard error of it (Breiman 1984, section 3.4.3): of models that are as good, the latest has seen most.

    Attributes:
        lowest: the least score seen.
        quality, images: of the kept one.
    """

    recipe: Recipe
    lowest: float | None = None
    quality: float | None = None
    images: int = 0

    def better(self, row: dict[str, Any], images: int) -> bool:
        """Whether the model of this tick is to be kept. Without validation images the last one is."""
        if row.get("reference") != "validation":
            self.quality, self.images = row["quality"], images
            return True
        score = row["score"]
        if score is None:  # samples that are not finite
            return False
        self.lowest = score if self.lowest is None else min(score, self.lowest)
        if score > self.lowest + row["score_error"]:
            return False
        self.quality, self.images = row["quality"], images
        return True

    def over(self, images: int) -> bool:
        """Whether all has been worse than the kept model for so long, with the schedules nearly done, that the rest is spared."""
        recipe = self.recipe
        patience, settled = recipe.patience * recipe.images, SETTLED * min(1.0, recipe.burn_in) * recipe.images
        return self.lowest is not None and patience > 0 and images - self.images > patience and images >= settled

    def to_json(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("lowest", "quality", "images")}


@dataclass
class Means:
    """Means since the last tick, of what was finite.

    Attributes:
        sums: name -> [sum, count].
    """

    sums: dict[str, list[float]] = field(default_factory=dict)

    def add(self, values: dict[str, float]) -> None:
        for key, value in values.items() if all(map(math.isfinite, values.values())) else ():
            total, count = self.sums.get(key, (0.0, 0))
            self.sums[key] = [total + value, count + 1]

    def take(self) -> dict[str, float | None]:
        """The means, rounded, and start anew."""
        result = {key: float(f"{total / count:.6g}") for key, (total, count) in self.sums.items()}
        self.sums = {}
        return {**dict.fromkeys(("loss_d", "loss_g", "gap", "r1", "r2")), **result}
