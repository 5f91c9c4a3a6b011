"""Start a run from another one's weights (`--from`): the strongest help when scans are few."""

from __future__ import annotations

from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from .. import model
from ..networks import DISCRIMINATORS
from .checkpoint import CHECKPOINT
from .objective import Objective

LEAST = 0.5  # share of the generator's weights that must fit


def model_folder(start: Path) -> Path:
    """The model folder of a model or run folder.

    Raises:
        ValueError: there is none.
    """
    for folder in (start, start / "model"):
        if (folder / "config.json").is_file():
            return folder
    raise ValueError(
        f"expected a model or a run to start from in {start}, found no config.json: give the folder that 'scansmith train' wrote"
    )


def warm_start(objective: Objective, start: Path) -> str:
    """Copy the weights that fit by name and shape; returns in words what was taken.

    The generator comes from the model folder, the discriminator from the checkpoint of the run that the folder lies in, where
    there is one: a model alone does not hold it.

    Raises:
        ValueError: no model there, or one of other networks.
    """
    folder = model_folder(start)
    other, network = model.load(folder), objective.get_submodule(objective.model)
    # Layers of another family may have the same names and shapes by chance.
    related = type(other.generator) is type(network)
    share = copy_fitting(network, dict(other.generator.state_dict()), columns=True) if related else 0.0
    if share < LEAST:
        raise ValueError(
            f"expected a model whose networks fit this run in {start}, found that {share:.0%} of the weights do: leave out --side and --size, and use the same --recipe"
        )
    taken = f"started from another model: {share:.0%} of the {objective.model}'s weights"
    checkpoint = folder.parent / CHECKPOINT
    judge = objective.judge
    family = type(judge) is DISCRIMINATORS.get(other.config["recipe"]["discriminator"])
    if judge is not None and family and folder.name == "model" and checkpoint.is_file():
        prefix = "objective.discriminator."
        with safe_open(checkpoint, framework="pt") as file:
            stored = {
                name.removeprefix(prefix): file.get_tensor(name)
                for name in file.keys()  # noqa: SIM118 (safe_open is not a dict)
                if name.startswith(prefix)
            }
        taken += f", {copy_fitting(judge, stored):.0%} of the discriminator's"
    return taken


def copy_fitting(network: nn.Module, stored: dict[str, Tensor], columns: bool = False) -> float:
    """Copy what has the same name and shape; returns the share of the network's values that came.

    Args:
        network: whose weights are replaced.
        stored: name -> values.
        columns: of matrices that differ in their columns alone, copy those that both have. For a generator: z comes first, and
            only one of the two may have a class beside it.
    """
    own, taken = network.state_dict(), 0
    for name, value in own.items():
        other = stored.get(name)
        if other is None or other.ndim != value.ndim:
            continue
        if other.shape == value.shape:
            value.copy_(other)
            taken += value.numel()
        elif columns and value.ndim == 2 and len(other) == len(value):
            common = min(value.shape[1], other.shape[1])
            value[:, :common] = other[:, :common]
            taken += len(value) * common
    return taken / max(1, sum(value.numel() for value in own.values()))
