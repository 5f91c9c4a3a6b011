"""A model that translates, applied to one scan: brought to the model's voxels and values, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from . import degradations, familiarity, inference
from .conformal import widened
from .familiarity import Judgement
from .image import Image
from .intensity import IntensityMap
from .model import Model
from .pairings import label_map, one_hot
from .preprocess import align, corrected, resize, resize_volume, volumes, window_of
from .preprocess.slices import SAME_SPACING, Axes, Slices, lying, turned
from .preprocess.volumes import spacing_of
from .preprocess.window import unclipped

LOWEST_HU, HIGHEST_HU = -1024.0, 3071.0
AIR = -1.0
ALONE = ("denoise", "superresolve")  # tasks that good scans alone teach: source and target have one scale
FINEST = 8.0  # times as many voxels along an axis as the scan has


@dataclass(frozen=True)
class Translated:
    """One scan of another kind, on the voxels of the scan it was made of, or after super-resolution on finer ones.

    Attributes:
        image: the translation, in the target's units; of a segmentation the label map.
        maps: what is known besides, on the same voxels: of an image with bounds "lower" and "upper" in the same units and "trust",
            0 to 1: .5 where the bounds lie as far apart as they usually do in the body, nearer to 1 where they are
            narrower; of a label map "confidence", the share that its label has of the network's belief.
        words: what the bounds promise.
    """

    image: Image
    maps: dict[str, Image]
    words: str


def translated(model: Model, scan: Image, format: str, device: torch.device) -> Translated:
    """Translate one scan.

    Args:
        model: with `translation` in its configuration, its network on the device.
        scan: as `formats.read` gives it.
        format: of its file, which says how its slices lie.
        device: where to compute.

    Raises:
        ValueError: other channels or labels than the model learned, or no contrast.
    """
    settings = model.config["translation"]
    work, lie = prepared(model, scan, format)
    encode = encoder(model, scan)
    planes = through(model, work, lie, encode, device)
    home = scan
    if settings["task"] == "superresolve":
        upright = volumes.straight(scan) if model.grid.dimensions == 3 else scan
        planes = faithful(model, upright, lie, planes)
        home = on_finer(scan, finer(model, upright, lie))
    inside = None
    if work.array.shape[1:] != home.array.shape[1:]:  # a tilted stack was straightened
        placed = replace(work, array=np.concatenate(planes), window=None)
        back = align.onto(placed, home, np.nan)[0].astype(np.float32)
        inside = np.isfinite(back[:1])
        planes = list(np.where(inside, back, AIR).reshape(len(planes), -1, *home.array.shape[1:]))
        work = home
    values = OUTPUTS[settings["output"]](model, planes, target_window(model, scan))
    about: dict[str, Any] = {"modality": settings["target"]["modality"], "notes": (), "window": None}
    units = {"trust": "ratio", "confidence": "ratio"}
    images = {
        name: replace(work, array=array, units=units.get(name, model.intensity.units), **about)
        for name, array in values.items()
    }
    if inside is not None and "trust" in images:
        images["trust"] = replace(images["trust"], array=np.where(inside, images["trust"].array, np.float32(0.0)))
    image = images.pop("image")
    return Translated(image, images, promise(model))


def promise(model: Model) -> str:
    """What the model's bounds promise, in words."""
    calibration = model.config["translation"]["calibration"]
    return str(calibration["words"]) if calibration else "no bounds: the model gives none"


def prepared(model: Model, scan: Image, format: str) -> tuple[Image, Axes]:
    """The scan as its voxels are worked on: axes at right angles, corrected, for super-resolution refined; and how its slices lie."""
    settings, volume = model.config["translation"], model.grid.dimensions == 3
    choices = settings["choices"]
    work = volumes.straight(scan, "nearest" if settings["input"] == "mask" else "linear") if volume else scan
    axes, _ = lying(work, "volume" if volume else format)
    if settings["input"] == "mask":
        return work, axes
    work = replace(work, array=work.array.astype(np.float32))
    work = corrected(work, choices["bias_field"], choices["landmarks"])
    return (refined(model, work, axes) if settings["task"] == "superresolve" else work), axes


def refined(model: Model, scan: Image, axes: Axes) -> Image:
    """The scan on voxels as small as the model's, along each axis where its own are larger; the place in the patient stays."""
    found = finer(model, scan, axes)
    home, array = on_finer(scan, found), scan.array
    for axis, factor in found:
        array = degradations.refined(array, home.array.shape[axis + 1], factor, axis=axis + 1)
    return replace(home, array=array)


def on_finer(scan: Image, found: Sequence[tuple[int, float]]) -> Image:
    """The grid of the scan with as many times the voxels along some axes, over the same extent; it holds no values."""
    shape, affine = list(scan.array.shape[1:]), scan.affine
    for axis, factor in found:
        old, shape[axis] = shape[axis], max(1, round(shape[axis] * factor))
        affine = degradations.regridded_affine(affine, old, shape[axis], 1.0 / factor, axis)
    return replace(scan, array=np.broadcast_to(np.float32(0.0), (1, *shape)), affine=affine)


def finer(model: Model, scan: Image, axes: Axes) -> list[tuple[int, float]]:
    """(voxel axis, factor) of each axis along which the model's voxels are smaller."""
    wished = factors(model, turned(scan, axes, ""))
    return [(axis, min(factor, FINEST)) for (axis, _), factor in zip(axes, wished[::-1]) if factor > 1.0]


def faithful(model: Model, scan: Image, axes: Axes, planes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What was made of a refined scan, changed until its thick slices are the measured ones; all planes by the same.

    Where several axes were refined, along the one that was refined most.
    """
    found = finer(model, scan, axes)
    if not found:
        return list(planes)
    axis, factor = max(found, key=lambda one: one[1])
    window = source_window(model, scan)
    measured = unclipped(scan.array, window.low, window.high)
    for other, times in found:
        if other != axis:
            measured = degradations.refined(measured, planes[0].shape[other + 1], times, axis=other + 1)
    change = degradations.consistent(planes[0], measured, factor, axis=axis + 1) - planes[0]
    return [plane + change for plane in planes]


# ------------------------------------------------------------------------------------------------ values

# (C, *spatial) voxels of a scan, and a size -> channels of the network in that size, encoded.
Encode = Callable[[np.ndarray, Sequence[int]], np.ndarray]


def encoder(model: Model, scan: Image) -> Encode:
    """How the voxels of a scan, or of one of its slices, come to the network.

    Raises:
        ValueError: other channels, or labels, than the model learned.
    """
    settings = model.config["translation"]
    channels = scan.array.shape[0]
    if settings["input"] == "mask":
        labels = settings["source"]["labels"]
        found = np.unique(scan.array)
        if channels != 1 or not np.isin(found, [0, *labels]).all():
            raise ValueError(
                f"expected a label map with the values 0 and {labels}, which the model learned, found {found[:8].tolist()}: change the values"
            )
        table = np.zeros(int(max(labels)) + 1, np.int64)
        table[labels] = np.arange(1, len(labels) + 1)

        def shares(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
            return 2.0 * sized(one_hot(table[values[0].astype(np.int64)], 1 + len(labels)), size) - 1.0

        return shares
    wished = settings["choices"]["channels"]
    if channels != wished:
        raise ValueError(f"expected {wished} channels, found {channels}: another model is needed")
    window = source_window(model, scan)
    return lambda values, size: unclipped(sized(values, size), window.low, window.high)


def sized(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(C, *spatial) -> (C, *size), anti-aliased."""
    return resize(values, size[0], size[1]) if len(size) == 2 else resize_volume(values, size)


def source_window(model: Model, scan: Image) -> IntensityMap:
    """The values of a scan that become -1 and 1: of a CT those of the training scans, else its own."""
    settings = model.config["translation"]
    choices, learned = settings["choices"], settings["source"]
    own = window_of(
        scan.array, learned["modality"], choices["dimensions"], scan.window, choices["window"], choices["percentiles"]
    )
    return own or IntensityMap(learned["low"], learned["high"], learned["units"])


def target_window(model: Model, scan: Image) -> IntensityMap:
    """The values that -1 and 1 become: those of training targets, or the scan's own where good scans alone taught to improve it."""
    settings, wished = model.config["translation"], model.intensity
    learned = settings["source"]
    alone = settings["task"] in ALONE and (learned["low"], learned["high"]) == (wished.low, wished.high)
    return source_window(model, scan) if alone else wished


def physical(window: IntensityMap, encoded: np.ndarray) -> np.ndarray:
    """Encoded -> float32 in the target's units, not cut at the window's ends; HU within what CT can hold."""
    values = (encoded.astype(np.float64) + 1.0) / 2.0 * (window.high - window.low) + window.low
    if window.units == "HU":
        values = np.clip(values, LOWEST_HU, HIGHEST_HU)
    return values.astype(np.float32)


def as_image(model: Model, planes: Sequence[np.ndarray], window: IntensityMap) -> dict[str, np.ndarray]:
    """Middle, and where the network gives them calibrated bounds and trust."""
    settings = model.config["translation"]
    if len(planes) == 1:
        return {"image": physical(window, planes[0])}
    middle, lower, upper = planes
    factor = settings["calibration"]["factor"]
    lower, upper = widened(lower, middle, upper, 1.0 if factor is None else factor)
    usual = settings["usual_width"]
    made = {name: physical(window, values) for name, values in (("image", middle), ("lower", lower), ("upper", upper))}
    return {**made, "trust": (usual / (usual + np.maximum(upper - lower, 1e-6))).astype(np.float32)}


def as_labels(model: Model, planes: Sequence[np.ndarray], window: IntensityMap) -> dict[str, np.ndarray]:
    """The label map, uint8 (1, I, J, K), and its confidence."""
    scores = planes[0]
    belief = np.exp(scores - scores.max(axis=0, keepdims=True))
    chosen = label_map(scores, model.config["translation"]["target"]["labels"])
    return {"image": chosen[None], "confidence": 1.0 / belief.sum(axis=0, keepdims=True)}


OUTPUTS: dict[str, Callable[[Model, Sequence[np.ndarray], IntensityMap], dict[str, np.ndarray]]] = {
    "image": as_image,
    "mask": as_labels,
}


# ------------------------------------------------------------------------------------------------ voxels


def through(model: Model, work: Image, axes: Axes, encode: Encode, device: torch.device) -> list[np.ndarray]:
    """What the network gives, encoded: each plane float32 (C', I, J, K) on the voxels of `work`."""
    scan = turned(work, axes, "")
    each = (
        iter([of_volume(model, scan, encode, device)])
        if model.grid.dimensions == 3
        else of_slices(model, scan, encode, device)
    )
    made: list[np.ndarray] = []
    views: list[np.ndarray] = []
    for k, planes in enumerate(each):
        if not made:
            made = [np.empty((planes.shape[1], *work.array.shape[1:]), np.float32) for _ in planes]
            # (K, C', H, W), written through
            views = [turned(replace(work, array=array), axes, "").array for array in made]
        for view, plane in zip(views, planes):
            if model.grid.dimensions == 3:
                view[...] = plane.swapaxes(0, 1)
            else:
                view[k] = plane
    return made


def of_slices(model: Model, scan: Slices, encode: Encode, device: torch.device) -> Iterator[np.ndarray]:
    """(planes, C', H, W) of each slice, which is brought to the model's pixel size and back."""
    settings = model.config["translation"]
    size = scan.array.shape[2:]
    height, width = (max(1, round(side * factor)) for side, factor in zip(size, factors(model, scan)))
    last, count = len(scan.array) - 1, settings["neighbours"]

    def brought(k: int) -> np.ndarray:
        return encode(np.asarray(scan.array[k], np.float32), (height, width))

    for k in range(last + 1):
        around = [brought(min(max(k + step, 0), last)) for step in range(-count, count + 1)]
        made = inference.translate(model.generator, np.concatenate(around), settings["patch"], device)
        yield resize(made, *size)


def of_volume(model: Model, scan: Slices, encode: Encode, device: torch.device) -> np.ndarray:
    """(planes, C', D, H, W) of a volume, which is brought to the model's voxel size and back."""
    volume = np.asarray(scan.array.swapaxes(0, 1), np.float32)
    size = volume.shape[1:]
    wished = [max(1, round(side * factor)) for side, factor in zip(size, factors(model, scan))]
    made = inference.translate(model.generator, encode(volume, wished), model.config["translation"]["patch"], device)
    return resize_volume(made, size)


def factors(model: Model, scan: Slices) -> Sequence[float]:
    """By how much each axis is resampled for the model: (rows, columns), of volumes (slices, rows, columns).

    A voxel size within 2 % of the model's stays. Where one is not known, the scan is scaled to the model's size, proportions kept.
    """
    axes = model.grid.dimensions
    own, wished = spacing_of(scan), model.config["spacing"]
    if own is not None and wished is not None:
        ratios = [mine / theirs for mine, theirs in zip(own[-axes:], wished[-axes:], strict=True)]
        return [1.0 if abs(ratio - 1.0) <= SAME_SPACING else ratio for ratio in ratios]
    choices = model.config["translation"]["choices"]
    size = (len(scan.array), *scan.array.shape[2:])[-axes:]
    stored = (choices["depth"], choices["height"], choices["width"])[-axes:]
    return [min(most / side for most, side in zip(stored, size))] * axes


# ------------------------------------------------------------------------------------------------ refusal


def judged(model: Model, scan: Image, format: str) -> Judgement | None:
    """Whether the scan is like those that the model learned from; what lies beyond the middle of its learned extent is not looked at.

    None for label maps, which may show any anatomy.
    """
    settings = model.config["translation"]
    if model.config["familiarity"] is None:
        return None
    choices, window = settings["choices"], source_window(model, scan)
    work, axes = prepared(model, scan, format)
    slices = turned(work, axes, "")
    stored = [choices["depth"] if model.grid.dimensions == 3 else None, choices["height"], choices["width"]]
    factor = [1.0] * (3 - model.grid.dimensions) + list(factors(model, slices))
    array = slices.array.swapaxes(0, 1)
    for axis, (most, times) in enumerate(zip(stored, factor), 1):
        kept = array.shape[axis] if most is None else min(array.shape[axis], max(1, round(most / times)))
        array = array.take(range((array.shape[axis] - kept) // 2, (array.shape[axis] - kept) // 2 + kept), axis)
    modality = settings["source"]["modality"] if scan.modality == "OT" else scan.modality
    features = familiarity.describe(unclipped(array, window.low, window.high), spacing_of(slices), modality)
    return familiarity.judge(features, model.config["familiarity"])
