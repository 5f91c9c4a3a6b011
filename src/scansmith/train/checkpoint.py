"""Run folder: recipe.json, log.jsonl, samples/ and the checkpoint that lets a killed run end as if it had not been."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialize
from torch import Tensor, nn

from ..runtime import explain_os_error, write_atomic, write_json
from .parallel import Group
from .recipes import Recipe

CHECKPOINT, GOOD = "checkpoint.safetensors", "good.safetensors"


class Keeper:
    """The checkpoints of one run: the last one, and the last one that the watchman found healthy, to roll back to."""

    def __init__(
        self,
        run: Path,
        modules: Mapping[str, nn.Module],
        optimizers: Mapping[str, torch.optim.Optimizer],
        group: Group,
    ) -> None:
        self.run, self.modules, self.optimizers, self.group = run, modules, optimizers, group

    def load(self) -> dict[str, Any]:
        """Go on from the last checkpoint, or write the first one; returns its state."""
        path = self.run / CHECKPOINT
        if not self.group.agree(path.is_file()):
            state = {"step": 0, "seconds": 0.0, "ended": "", "good_at": 0, "watchman": None, "choice": {}, "means": {}}
            self.save(state, good=True)
            return state
        state = load(path, self.modules, self.optimizers)
        if state["good_at"] == state["step"] and self.group.main:
            self._mark_good()  # a kill between the two writes left the older one
        return state

    def save(self, state: dict[str, Any], good: bool = False) -> None:
        """Write the last checkpoint; `good` makes it the one to roll back to. The first process writes, all wait."""
        if good:
            state["good_at"] = state["step"]
        if self.group.main:
            save(self.run / CHECKPOINT, self.modules, self.optimizers, state)
            if good:
                self._mark_good()
        self.group.agree(None)

    def roll_back(self) -> None:
        """Weights, averages and moments of the last good checkpoint; what was chosen as best stays."""
        load(self.run / GOOD, {name: m for name, m in self.modules.items() if name != "best"}, self.optimizers)

    def _mark_good(self) -> None:
        """The same file under a second name: both are only ever replaced, never written into."""
        partial = self.run / f".{GOOD}.partial"
        partial.unlink(missing_ok=True)
        try:
            os.link(self.run / CHECKPOINT, partial)
        except OSError:  # a file system without hard links
            shutil.copyfile(self.run / CHECKPOINT, partial)
        partial.replace(self.run / GOOD)


def save(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer], state: dict[str, Any]
) -> None:
    """Write one file atomically: weights, averages, both optimisers' moments, and `state` (step, seconds) as JSON.

    Random numbers need no entry: every draw is seeded by (seed, step); schedules are functions of the step.
    """
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}.{key}": value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}.{index}.{key}": value.detach().cpu().contiguous() for key, value in moments.items()}
    write_atomic(path, serialize(tensors, metadata={"state": json.dumps(state)}))


def load(
    path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, torch.optim.Optimizer]
) -> dict[str, Any]:
    """Read what `save` wrote into the given modules and optimisers; returns `state`.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (safe_open is not a dict)
            state: dict[str, Any] = json.loads(file.metadata()["state"])
    except SafetensorError as error:
        raise ValueError(
            f"expected a checkpoint in {path}, found a damaged file ({error}): remove it to start anew"
        ) from error
    for name, module in modules.items():
        module.load_state_dict(
            {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        )
    for name, optimizer in optimizers.items():
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith(f"{name}."):
                _, index, moment = key.rsplit(".", 2)
                # The fused update walks raw memory: moments need the layout of their weights (channels-last or not).
                like = optimizer.param_groups[0]["params"][int(index)]
                fitted = torch.empty_like(like).copy_(value) if value.shape == like.shape else value
                moments.setdefault(int(index), {})[moment] = fitted
        optimizer.load_state_dict({"state": moments, "param_groups": optimizer.state_dict()["param_groups"]})
    return state


def save_recipe(run: Path, recipe: Recipe, reasons: list[str], request: dict[str, Any]) -> None:
    """`recipe.json`: the recipe flat, what was asked for, and why the probe chose what it chose."""
    write_json(run / "recipe.json", {**asdict(recipe), "request": request, "reasons": reasons})


def load_recipe(run: Path, request: dict[str, Any]) -> tuple[Recipe, list[str]] | None:
    """The recipe of an earlier start in this folder, or None.

    Raises:
        ValueError: the folder holds a run that was asked for with other settings.
    """
    if not (run / "recipe.json").is_file():
        return None
    stored = json.loads((run / "recipe.json").read_text())
    earlier, reasons = stored.pop("request"), stored.pop("reasons")
    different = sorted(key for key in {*earlier, *request} if earlier.get(key) != request.get(key))
    if different:
        changes = ", ".join(f"{key} {earlier.get(key)!r} -> {request.get(key)!r}" for key in different)
        raise ValueError(
            f"expected the settings that {run} was started with, found {changes}: choose another folder, or remove this one to start anew"
        )
    return Recipe(**stored), reasons


class Log:
    """log.jsonl, one object a line, and TensorBoard events beside it when tensorboardX is installed."""

    def __init__(self, run: Path, images: int, writes: bool = True) -> None:
        """Open for appending; rows beyond `images`, written after the checkpoint by a run that was killed, are dropped.

        Args:
            run: the run folder.
            images: where the run goes on.
            writes: False for all but the first of several processes.
        """
        self.path, self.writes = run / "log.jsonl", writes
        self.events: Any = None
        if not writes:
            return
        run.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read_log(self.path) if row["images"] <= images]
        write_atomic(self.path, "".join(json.dumps(row) + "\n" for row in rows))
        try:
            from tensorboardX import SummaryWriter
        except ImportError:  # a bare GPU host
            pass
        else:
            self.events = SummaryWriter(str(run / "events"), purge_step=images + 1, write_to_disk=True)

    def write(self, row: dict[str, Any]) -> None:
        """Append one row; numbers go to TensorBoard too, at the step row["images"]."""
        if not self.writes:
            return
        line = json.dumps(row, allow_nan=False) + "\n"
        try:
            with self.path.open("a") as file:
                file.write(line)
        except OSError as error:
            raise explain_os_error(error, self.path) from error
        if self.events is not None:
            for name, value in row.items():
                if isinstance(value, int | float) and name != "images":
                    self.events.add_scalar(name, value, row["images"])

    def close(self) -> None:
        if self.events is not None:
            self.events.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a log.jsonl; a last line cut by a kill is left out."""
    rows: list[dict[str, Any]] = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows
