"""Verb `translate`: scans -> scans of another kind, voxel by voxel in their place, in units, with bounds."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .familiarity import Judgement
    from .formats import Source
    from .image import Image
    from .intensity import IntensityMap
    from .model import Model
    from .preprocess.slices import Slices

LOWEST_HU, HIGHEST_HU = -1024.0, 3071.0
# What is written beside a translation: attribute of `Translated` -> (suffix of the name, what it is, its units unless the target's).
MAPS = {
    "lower": ("-lower", "lower bound", None),
    "upper": ("-upper", "upper bound", None),
    "trust": ("-trust", "trust map", "ratio"),
}


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
    from . import formats
    from .model import load
    from .runtime import Progress, choose_device, write_json

    opened, scans, out = load(model), Path(scans), Path(out)
    if "translation" not in opened.config:
        raise ValueError(f"expected a model that translates in {model}, found one that makes scans: use synthesize")
    chosen = choose_device(device)
    opened.generator.to(chosen)
    found, skipped = formats.discover(scans)
    written: dict[str, list[str]] = {}
    earlier = finished(out, opened.hash, maps)
    sources = [source for source in found if source.role == "image"]
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
    promise = opened.config["translation"]["calibration"]["words"]
    record = {"model": opened.hash, "maps": maps, "promise": promise, "files": written, "skipped": listed}
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

    unlike = readable(source, model)
    if unlike and not force:
        raise ValueError(unlike)
    scan = formats.read(source)
    judgement = judged(model, scan, source.format)
    if judgement.refused and not force:
        raise ValueError(f"refused: {judgement.words}; --force translates it all the same")
    made = translated(model, scan, source.format, device)
    target = model.config["translation"]["target"]["modality"]
    words = f"{target} made from {model.config['translation']['source']['modality']} by a neural network, not acquired; {made.words}{'; FORCED: ' + judgement.words if judgement.refused else ''}"
    derivation = formats.Derivation(f"scansmith {__version__}", model.hash, "translated image", words)
    files = formats.write_derived(source, made.image, out / name, derivation)
    for number, (attribute, (suffix, what, units)) in enumerate(MAPS.items() if maps else (), 1):
        image = getattr(made, attribute)
        image = replace(image, units=units) if units else image
        about = replace(derivation, what=what, number=derivation.number + number)
        if source.format == "dicom" and source.affine is not None:
            files += formats.write_parametric_map(source, image, out / f"{name}{suffix}", about, what)
        else:
            files += formats.write_derived(source, image, out / f"{name}{suffix}", about)
    return [file.relative_to(out).as_posix() for file in files]


@dataclass(frozen=True)
class Translated:
    """One scan of another kind, each on the voxels of the scan it was made of.

    Attributes:
        image: the translation, in the target's units.
        lower, upper: bounds in the same units.
        trust: 0 to 1: .5 where the bounds lie as far apart as they usually do in the body, nearer to 1 where they are narrower.
        words: what the bounds promise.
    """

    image: Image
    lower: Image
    upper: Image
    trust: Image
    words: str


def translated(model: Model, scan: Image, format: str, device: torch.device) -> Translated:
    """Translate one scan.

    Args:
        model: with `translation` in its configuration, its network on the device.
        scan: as `formats.read` gives it.
        format: of its file, which says how its slices lie.
        device: where to compute.

    Raises:
        ValueError: other channels than the model learned, or no contrast.
    """
    import numpy as np

    from .conformal import widened
    from .preprocess import align, corrected, volumes

    settings = model.config["translation"]
    choices = settings["choices"]
    if scan.array.shape[0] != choices["channels"]:
        raise ValueError(
            f"expected {choices['channels']} channels, found {scan.array.shape[0]}: another model is needed"
        )
    upright = volumes.straight(scan) if model.grid.dimensions == 3 else scan
    work = corrected(
        replace(upright, array=upright.array.astype(np.float32)), choices["bias_field"], choices["landmarks"]
    )
    made = through(model, work, source_window(model, scan), format, device)
    middle, lower, upper = made
    factor = settings["calibration"]["factor"]
    lower, upper = widened(lower, middle, upper, 1.0 if factor is None else factor)
    usual = settings["usual_width"]
    trust = usual / (usual + np.maximum(upper - lower, 1e-6))
    maps = [physical(model, values) for values in (middle, lower, upper)]
    units, modality = model.intensity.units, settings["target"]["modality"]
    images = [
        replace(upright, array=values, units=units, modality=modality, notes=(), window=None)
        for values in (*maps, trust)
    ]
    if upright is not scan:  # a tilted stack was straightened
        air = float(physical(model, np.full(1, -1.0))[0])
        fills = (air, air, air, 0.0)
        images = [
            replace(one, array=align.onto(one, scan, fill)[0].astype(np.float32), affine=scan.affine)
            for one, fill in zip(images, fills)
        ]
    image, below, above, trusted = images
    return Translated(image, below, above, trusted, settings["calibration"]["words"])


def judged(model: Model, scan: Image, format: str) -> Judgement:
    """Whether the scan is like those that the model learned from; what lies beyond the middle of its learned extent is not looked at."""
    import numpy as np

    from . import familiarity
    from .preprocess import corrected, volumes
    from .preprocess.slices import cut, upright
    from .preprocess.window import unclipped

    settings, volume = model.config["translation"], model.grid.dimensions == 3
    choices, window = settings["choices"], source_window(model, scan)
    work = volumes.straight(scan) if volume else scan
    work = corrected(replace(work, array=work.array.astype(np.float32)), choices["bias_field"], choices["landmarks"])
    slices = upright(work) if volume else cut(work, format)
    stored = [choices["depth"] if volume else None, choices["height"], choices["width"]]
    factor = [1.0] * (3 - model.grid.dimensions) + list(factors(model, slices))
    array = slices.array.swapaxes(0, 1)
    for axis, (most, times) in enumerate(zip(stored, factor), 1):
        kept = array.shape[axis] if most is None else min(array.shape[axis], max(1, round(most / times)))
        array = array.take(range((array.shape[axis] - kept) // 2, (array.shape[axis] - kept) // 2 + kept), axis)
    modality = settings["source"]["modality"] if scan.modality == "OT" else scan.modality
    features = familiarity.describe(unclipped(array, window.low, window.high), volumes.spacing_of(slices), modality)
    return familiarity.judge(features, model.config["familiarity"])


def source_window(model: Model, scan: Image) -> IntensityMap:
    """The values of a scan that become -1 and 1: of a CT those of the training scans, else its own."""
    from .intensity import IntensityMap
    from .preprocess import window_of

    settings = model.config["translation"]
    choices, learned = settings["choices"], settings["source"]
    own = window_of(
        scan.array, learned["modality"], choices["dimensions"], scan.window, choices["window"], choices["percentiles"]
    )
    return own or IntensityMap(learned["low"], learned["high"], learned["units"])


def physical(model: Model, encoded: np.ndarray) -> np.ndarray:
    """Encoded -> float32 in the target's units, not cut at the window's ends; HU within what CT can hold."""
    import numpy as np

    window = model.intensity
    values = (encoded.astype(np.float64) + 1.0) / 2.0 * (window.high - window.low) + window.low
    if window.units == "HU":
        values = np.clip(values, LOWEST_HU, HIGHEST_HU)
    return values.astype(np.float32)


def through(model: Model, work: Image, window: IntensityMap, format: str, device: torch.device) -> list[np.ndarray]:
    """Middle, lower and upper bound, encoded, each float32 (C', I, J, K) on the voxels of `work`."""
    import numpy as np

    from .preprocess.slices import cut, upright

    volume = model.grid.dimensions == 3

    def slices(image: Image) -> Slices:
        return upright(image) if volume else cut(image, format)

    scan = slices(work)
    channels = model.config["translation"]["target"]["channels"]
    made = [np.empty((channels, *work.array.shape[1:]), np.float32) for _ in range(3)]
    views = [slices(replace(work, array=array)).array for array in made]  # (K, C', H, W), written through
    if volume:
        whole = np.stack([*of_volume(model, scan, window, device)])
        for view, one in zip(views, whole):
            view[...] = one.swapaxes(0, 1)
        return made
    for k, three in enumerate(of_slices(model, scan, window, device)):
        for view, one in zip(views, three):
            view[k] = one
    return made


def of_slices(model: Model, scan: Slices, window: IntensityMap, device: torch.device) -> Iterator[np.ndarray]:
    """(3, C', H, W) of each slice, which is brought to the model's pixel size and back."""
    import numpy as np

    from . import inference
    from .preprocess import resize

    settings = model.config["translation"]
    size = scan.array.shape[2:]
    height, width = (max(1, round(side * factor)) for side, factor in zip(size, factors(model, scan)))
    last, count = len(scan.array) - 1, settings["neighbours"]

    def sized(k: int) -> np.ndarray:
        return encoded(resize(np.asarray(scan.array[k], np.float32), height, width), window)

    for k in range(last + 1):
        around = [sized(min(max(k + step, 0), last)) for step in range(-count, count + 1)]
        made = inference.translate(model.generator, np.concatenate(around), settings["patch"], device)
        yield resize(made, *size)


def of_volume(model: Model, scan: Slices, window: IntensityMap, device: torch.device) -> np.ndarray:
    """(3, C', D, H, W) of a volume, which is brought to the model's voxel size and back."""
    import numpy as np

    from . import inference
    from .preprocess import resize_volume

    volume = np.asarray(scan.array.swapaxes(0, 1), np.float32)
    size = volume.shape[1:]
    wished = [max(1, round(side * factor)) for side, factor in zip(size, factors(model, scan))]
    source = encoded(resize_volume(volume, wished), window)
    made = inference.translate(model.generator, source, model.config["translation"]["patch"], device)
    return resize_volume(made, size)


def factors(model: Model, scan: Slices) -> Sequence[float]:
    """By how much each axis is resampled for the model: (rows, columns), of volumes (slices, rows, columns).

    A voxel size within 2 % of the model's stays. Where one is not known, the scan is scaled to the model's size, proportions kept.
    """
    from .preprocess.slices import SAME_SPACING
    from .preprocess.volumes import spacing_of

    axes = model.grid.dimensions
    own, wished = spacing_of(scan), model.config["spacing"]
    if own is not None and wished is not None:
        ratios = [mine / theirs for mine, theirs in zip(own[-axes:], wished[-axes:], strict=True)]
        return [1.0 if abs(ratio - 1.0) <= SAME_SPACING else ratio for ratio in ratios]
    choices = model.config["translation"]["choices"]
    size = (len(scan.array), *scan.array.shape[2:])[-axes:]
    stored = (choices["depth"], choices["height"], choices["width"])[-axes:]
    return [min(most / side for most, side in zip(stored, size))] * axes


def encoded(values: np.ndarray, window: IntensityMap) -> np.ndarray:
    """As training does."""
    from .preprocess import window as preprocessing

    return preprocessing.unclipped(values, window.low, window.high)


def readable(source: Source, model: Model) -> str | None:
    """Why a scan cannot be translated by this model, from its header alone; None where it can."""
    wished = model.config["translation"]["source"]["modality"]
    if source.modality not in (wished, "OT") and wished != "OT":
        return f"expected {wished}, which the model learned to translate, found {source.modality}: use a model for it"
    return None
