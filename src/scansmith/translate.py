"""Verb `translate`: scans -> scans of another kind, voxel by voxel in their place, in units, with bounds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch

    from .formats import Source
    from .image import Image
    from .intensity import IntensityMap
    from .model import Model
    from .preprocess.slices import Slices

LOWEST_HU, HIGHEST_HU = -1024.0, 3071.0


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
