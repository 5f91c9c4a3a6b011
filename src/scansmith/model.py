"""Model folder: the trained generator and all that is needed to use it; this module alone reads and writes it.

    model.safetensors   EMA generator (never the discriminator: it is the strongest membership attack)
    config.json         network, grid, intensity map, geometry, labels, data fingerprint, recipe, version
    README.md           the model card

Loading runs no code: safetensors and JSON only.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as serialize
from torch import nn

from .intensity import IntensityMap
from .networks import GENERATORS, TRANSLATORS
from .preprocess import Grid
from .runtime import write_atomic, write_json

VERSION = 2


@dataclass(frozen=True)
class Model:
    """An opened model.

    Attributes:
        generator: float32, evaluation mode, on the CPU.
        config: `config.json`.
        hash: first 16 hex digits of SHA-256 over weights and configuration; names the model everywhere.
    """

    generator: nn.Module
    config: dict[str, Any]
    hash: str

    @property
    def grid(self) -> Grid:
        return Grid.from_json(self.config["grid"])

    @property
    def intensity(self) -> IntensityMap:
        return IntensityMap(**self.config["intensity"])

    @property
    def labels(self) -> list[str]:
        return list(self.config["labels"])


def save(folder: Path, generator: nn.Module, config: dict[str, Any]) -> Model:
    """Write a model folder; `config.json` comes last and marks it complete.

    Args:
        folder: made if needed.
        generator: its `state_dict` is stored in float32.
        config: "network" {"name", "arguments"}, "grid", "intensity", "labels", "modality", "spacing" ... (JSON values).
    """
    state = {name: value.detach().cpu().float().contiguous() for name, value in generator.state_dict().items()}
    (folder / "config.json").unlink(missing_ok=True)
    write_atomic(folder / "model.safetensors", serialize(state))
    write_atomic(folder / "README.md", (_translator_card if "translation" in config else _card)(config))
    write_json(folder / "config.json", {"version": VERSION, **config})
    return load(folder)


def load(folder: Path | str) -> Model:
    """Open a model folder.

    Raises:
        ValueError: no model there, another version, an unknown network, or weights that do not fit.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"expected a model in {folder}, found no config.json: make one with 'scansmith train DATASET RUN' (the model is RUN/model)"
        )
    config = json.loads((folder / "config.json").read_bytes())
    if config.get("version") != VERSION:
        raise ValueError(
            f"expected model version {VERSION} in {folder}, found {config.get('version')!r}: train it again with this release"
        )
    missing = {"network", "grid", "intensity", "labels", "modality", "spacing", "source_format"} - set(config)
    if missing:
        raise ValueError(f"expected a model in {folder}, found a config.json without {sorted(missing)}: train it again")
    name = config["network"]["name"]
    known = GENERATORS | TRANSLATORS
    if name not in known:
        raise ValueError(
            f"expected a network of {sorted(known)} in {folder}, found {name!r}: it was made by another release"
        )
    try:
        generator = known[name](**config["network"]["arguments"])
        generator.load_state_dict(load_file(folder / "model.safetensors"))
    except (RuntimeError, TypeError, OSError, SafetensorError) as error:
        raise ValueError(f"expected weights that fit config.json in {folder}, found: {error}") from error
    return Model(generator.eval().requires_grad_(False), config, digest(folder))


def digest(folder: Path) -> str:
    """The model's hash: first 16 hex digits of SHA-256 over weights and configuration."""
    content = [(folder / name).read_bytes() for name in ("model.safetensors", "config.json")]
    return hashlib.sha256(b"".join(content)).hexdigest()[:16]


def _card(config: dict[str, Any]) -> str:
    """The model card, Markdown."""
    grid, recipe = Grid.from_json(config["grid"]), config["recipe"]
    labels = ", ".join(config["labels"]) or "none"
    made, unit = ("volumes", "voxels") if grid.dimensions == 3 else ("images", "pixels")
    size = f"{' x '.join(map(str, grid.box))} {unit}"
    return f"""# scansmith model: synthetic {config["modality"]} {made}

Makes {made} of {size}, {config["channels"]} channel(s), in {config["intensity"]["units"]}. Labels: {labels}.

- Generator `{config["network"]["name"]}`, trained with the recipe `{recipe["name"]}` on {recipe["train_images"]} {made}
  ({recipe["images"]} seen, seed {recipe["seed"]}); data fingerprint `{config["data_hash"]}`.
- Use: `scansmith synthesize MODEL OUT --count 100`. Loading runs no code (safetensors and JSON).
- Every image is marked as synthetic in its file. Not for diagnosis. The model may reproduce features of its training
  scans: read the evaluation that came with it before sharing it.
"""


# Task -> title of the card.
CARDS = {
    "paired": "{source} to {target}", "unpaired": "{source} to {target}, without pairs", "denoise": "denoising {source}",
    "superresolve": "super-resolution of {source}", "segment": "{source} to label maps", "paint": "label maps to {target}",
}  # fmt: skip


def _translator_card(config: dict[str, Any]) -> str:
    """The model card of a model that translates, segments or paints, Markdown."""
    settings, recipe, network = config["translation"], config["recipe"], config["network"]
    source, target = settings["source"], settings["target"]
    voxels = "volumes" if network["arguments"]["dimensions"] == 3 else "slices"
    spacing = config["spacing"]
    size = "unknown size" if spacing is None else " x ".join(f"{step:.3g}" for step in spacing) + " mm"
    near = f", each with {settings['neighbours']} neighbours on either side" if settings["neighbours"] else ""
    lines = [
        f"In: {_side(settings['input'], source, settings.get('sources'))}, {voxels} with voxels of {size}{near}. Other voxel sizes are resampled. {_grid(settings['task'])}",
        f"Out: {_side(settings['output'], target, None)}. {_units(settings['output'], config['intensity']['units'])}",
        f"Bounds: {_promise(settings)}",
        f"Refusal: {_refusal(config['familiarity'], settings)}",
        f"Network `{network['name']}`, task `{settings['task']}`, recipe `{recipe['name']}`, trained on {recipe['train_images']} images ({recipe['images']} shown, seed {recipe['seed']}); data fingerprint `{config['data_hash']}`.",
        "Use: `scansmith translate MODEL SCANS OUT`. Loading runs no code (safetensors and JSON).",
    ]
    limits = [
        "Every output is marked as synthetic in its file. Not for diagnosis.",
        "It knows the scanners, protocols and patients of its training scans alone, and cannot show what the source does not.",
        *(["It learned without pairs: it may add or remove findings."] if settings["task"] == "unpaired" else []),
        "Read the evaluation (`scansmith evaluate DATASET MODEL OUT`): error beside simple methods, coverage by tissue, what becomes of lesions, worst cases.",
    ]
    listed = ["\n".join(f"- {line}" for line in part) for part in (lines, limits)]
    title = CARDS[settings["task"]].format(source=source["modality"], target=target["modality"])
    return f"# scansmith model: {title}\n\n{listed[0]}\n\nLimits\n\n{listed[1]}\n"


def _grid(task: str) -> str:
    """Which voxels the output has."""
    finer = "The output has voxels as fine as these, where the scan's are coarser."
    return finer if task == "superresolve" else "The output lies on the scan's own voxels."


def _side(kind: str, about: dict[str, Any], sources: list[dict[str, Any]] | None) -> str:
    """What goes in or comes out, in words."""
    if kind == "mask":
        return f"a label map with the values 0 and {', '.join(map(str, about['labels']))}"
    if sources:
        named = ", ".join(f"{one['name']} ({one['modality']})" for one in sources)
        return f"any of the scans {named}, more are better"
    return f"one {about['modality']} scan"


def _units(kind: str, units: str) -> str:
    """What its values mean."""
    known = {"HU": "Values are Hounsfield units.", "label": "Values are labels."}
    usual = f"Values are in {units}, on the scale of the training scans: they are comparable within a scan, not with another scanner's."
    return known["label"] if kind == "mask" else known.get(units, usual)


def _promise(settings: dict[str, Any]) -> str:
    """What the bounds promise."""
    if settings["calibration"]:
        return f"{settings['calibration']['words']}."
    other = "a map says for each voxel how sure the label is, which is not calibrated."
    return f"none; {other}" if settings["output"] == "mask" else "none: the model never says how sure it is."


def _refusal(learned: dict[str, Any] | None, settings: dict[str, Any]) -> str:
    """Which scans are refused."""
    found = learned or next((one["familiarity"] for one in settings.get("sources") or [] if one["familiarity"]), None)
    if found is None:
        return "nothing is refused for being unlike the training data."
    count = len(found["scores"])
    unusual = (
        f"one that is merely unusual only from 99 calibration patients on (there are {count})"
        if count < 99
        else f"and so is one more unusual than 99 % of {count} calibration patients"
    )
    return f"a scan of another kind, size, voxel size or range of values than the training scans is refused unless forced, {unusual}."
