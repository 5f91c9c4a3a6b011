"""Verb `translate`: scans -> scans of another kind, voxel by voxel in their place, in units, with bounds."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from .formats import Source
    from .model import Model

# What is written beside a translation: name in `Translated.maps` -> what it is.
MAPS = {"lower": "lower bound", "upper": "upper bound", "trust": "trust map", "confidence": "confidence map"}
# What is said of label maps in place of a modality, and what a translation is called.
KINDS = {"mask": "label map"}
WHAT = {"image": "translated image", "mask": "label map"}


def translate(
    model: Path, scans: Path, out: Path, *, maps: bool = True, force: bool = False, device: str = "auto"
) -> dict[str, Any]:
    """Turn scans into the kind that the model learned, voxel by voxel in their place, in the format of their files.

    A DICOM series becomes a new series of the same patient and study that refers to its source; NIfTI, NRRD and MetaImage
    files keep their place to the bit; pictures become PNG. CT comes in HU. A scan unlike those that the model learned from is
    refused. One scan that cannot be translated never stops the others. Not for diagnosis.

    Args:
        model: model folder of a training on pairs (RUN/model).
        scans: folder of scans of the source's kind, or one file.
        out: folder for the translations; what this model has translated into it before is not translated again.
        maps: also write a lower and an upper bound and a trust map; in DICOM as Parametric Maps.
        force: translate also what is refused; the files say so.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"out", "count", "model", "maps", "promise", "files", "skipped"}.

    Raises:
        ValueError: a model that makes scans, or no scan that can be translated.
    """
    return translate_files(Path(model), Path(scans), None, Path(out), maps, force, device)


def translate_files(
    model: Path, scans: Path, only: Sequence[Path] | None, out: Path, maps: bool, force: bool, device: str
) -> dict[str, Any]:
    """`translate` for those files of the folder alone; None takes all."""
    from . import formats
    from .model import load
    from .runtime import Progress, choose_device, write_json
    from .translator import promise

    opened = load(model)
    if "translation" not in opened.config:
        raise ValueError(f"expected a model that translates in {model}, found one that makes scans: use synthesize")
    chosen = choose_device(device)
    opened.generator.to(chosen)
    found, skipped = formats.discover(scans, only)
    written: dict[str, list[str]] = {}
    earlier = finished(out, opened.hash, maps)
    sources = [source for source in found if source.role == "image" or opened.config["translation"]["input"] == "mask"]
    with Progress("translating", len(sources), "scans") as progress:
        for number, source in enumerate(sources, 1):
            name = name_of(source, scans, [*written])
            try:
                written[name] = earlier.get(name) or one_scan(opened, source, out, name, maps, force, chosen)
            except (ValueError, OSError) as error:
                skipped.append(formats.Skipped(source.files[0], str(error)))
            progress.update(number)
    listed = [f"{entry.file.name}: {entry.reason}" for entry in skipped]
    if not written:
        raise ValueError(
            f"expected scans to translate in {scans}, found none that can be: {listed[0] if listed else 'it is empty'}"
        )
    record = {"model": opened.hash, "maps": maps, "promise": promise(opened), "files": written, "skipped": listed}
    write_json(out / "translated.json", record)
    return {"out": str(out), "count": len(written), **record}


def finished(out: Path, model: str, maps: bool) -> dict[str, list[str]]:
    """What an earlier call with this model left whole: name -> its files."""
    record = out / "translated.json"
    if not record.is_file():
        return {}
    found = json.loads(record.read_text())
    if found["model"] != model or found["maps"] != maps:
        raise ValueError(
            f"expected an empty folder or one of model {model} with the same maps, found translations by {found['model']} in {out}: choose another folder"
        )
    return {name: files for name, files in found["files"].items() if all((out / file).is_file() for file in files)}


def name_of(source: Source, scans: Path, taken: Sequence[str]) -> str:
    """Where a scan's translation lies below the output folder, without suffix: as its file, or its series' folder, below `scans`."""
    file = source.files[0]
    inside = file.relative_to(scans) if scans.is_dir() and file.is_relative_to(scans) else Path(file.name)
    plain = (
        inside.parent
        if len(source.files) > 1 and inside.parent != Path()
        else inside.with_name(inside.name.split(".")[0])
    )
    name, number = plain.as_posix(), 1
    while name in taken:
        number += 1
        name = f"{plain.as_posix()}-{number}"
    return name


def one_scan(
    model: Model, source: Source, out: Path, name: str, maps: bool, force: bool, device: torch.device
) -> list[str]:
    """Translate and write one scan; the files, posix paths below `out`.

    Raises:
        ValueError: the scan cannot be translated, or written in its format.
        OSError: with the way out.
    """
    from . import __version__, formats
    from .translator import judged, translated

    unlike = readable(source, model)
    if unlike and not force:
        raise ValueError(unlike)
    scan = formats.read(source)
    judgement = judged(model, scan, source.format)
    refused = judgement is not None and judgement.refused
    if judgement and refused and not force:
        raise ValueError(f"refused: {judgement.words}; --force translates it all the same")
    made = translated(model, scan, source.format, device)
    settings = model.config["translation"]
    kinds = (
        KINDS.get(settings["output"], settings["target"]["modality"]),
        KINDS.get(settings["input"], settings["source"]["modality"]),
    )
    words = f"{kinds[0]} made from {kinds[1]} by a neural network, not acquired; {made.words}{'; FORCED: ' + judgement.words if judgement and refused else ''}"
    derivation = formats.Derivation(f"scansmith {__version__}", model.hash, WHAT[settings["output"]], words)
    files = formats.write_derived(source, made.image, out / name, derivation)
    for number, what in enumerate(MAPS, 1):
        image = made.maps.get(what) if maps else None
        if image is None:
            continue
        about = replace(derivation, what=MAPS[what], number=derivation.number + number)
        if source.format == "dicom" and source.affine is not None:
            files += formats.write_parametric_map(source, image, out / f"{name}-{what}", about, MAPS[what])
        else:
            files += formats.write_derived(source, image, out / f"{name}-{what}", about)
    return [file.relative_to(out).as_posix() for file in files]


def readable(source: Source, model: Model) -> str | None:
    """Why a scan cannot be translated by this model, from its header alone; None where it can."""
    settings = model.config["translation"]
    wished = settings["source"]["modality"]
    if settings["input"] == "image" and source.modality not in (wished, "OT") and wished != "OT":
        return f"expected {wished}, which the model learned to translate, found {source.modality}: use a model for it"
    return None
