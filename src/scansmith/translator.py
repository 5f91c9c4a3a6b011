"""A model that translates, applied to one scan: brought to the model's voxels and values, and back."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from . import degradations, familiarity, inference, together
from .conformal import widened
from .familiarity import Judgement
from .image import PICTURES, Image
from .intensity import IntensityMap
from .model import Model
from .pairings import label_map, one_hot, with_presence
from .preprocess import align, corrected, resize, resize_volume, volumes, window_of
from .preprocess.slices import SAME_SPACING, Axes, Slices, lying, lying_as, turned
from .preprocess.volumes import spacing_of
from .preprocess.window import unclipped

LOWEST_HU, HIGHEST_HU = -1024.0, 3071.0
AIR = -1.0
PICTURE_FILES = ("png", "jpeg", "tiff")
ALONE = ("denoise", "superresolve")  # tasks that good scans alone teach: source and target have one scale
AIR_HU, LEAST_AIR = -500.0, 0.02  # values below it, and their share, that no MR has
MOST_VALUES = 2**20  # that are looked at
MOST_PLANES = 3  # that a network gives
PROCESS_BYTES = 2**29  # of the libraries, and of a batch of windows in a network
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


@dataclass(frozen=True)
class Ready:
    """A scan as its voxels are worked on.

    Attributes:
        image: axes at right angles, corrected, for super-resolution refined; float32, of a label map as it is.
        axes: how its slices lie.
        begins: (K, 2) where each slice of a tilted stack begins in it along I and J; None of other scans.
        here: which of several sources are there, of which the image is `together.joined`; None of one.
    """

    image: Image
    axes: Axes
    begins: np.ndarray | None
    here: np.ndarray | None = None


def translated(model: Model, scan: Image, format: str, device: torch.device, ready: Ready | None = None) -> Translated:
    """Translate one scan.

    Args:
        model: with `translation` in its configuration, its network on the device.
        scan: as `formats.read` gives it; of several sources the first that is there.
        format: of its file, which says how its slices lie.
        device: where to compute.
        ready: `prepared` of them, where it is known; of several sources `prepared_together`.

    Raises:
        ValueError: other channels or labels than the model learned, or no contrast.
    """
    settings = model.config["translation"]
    encode = encoder(model, scan) if ready is None or ready.here is None else encoder_together(ready.here)
    ready = ready or prepared(model, scan, format)
    planes = through(model, ready.image, ready.axes, encode, device)
    home = replace(scan, affine=ready.image.affine) if ready.begins is None else scan
    if settings["task"] == "superresolve":
        upright = volumes.straight(scan) if model.grid.dimensions == 3 else scan
        planes = faithful(model, upright, ready.axes, planes)
        home = on_finer(scan, finer(model, upright, ready.axes))
    inside = None
    if ready.begins is not None:
        planes = [volumes.slid_back(plane, ready.begins, scan.array.shape[1:]) for plane in planes]
    elif ready.image.array.shape[1:] != home.array.shape[1:]:  # a tilted stack was straightened
        placed = replace(ready.image, array=np.concatenate(planes), window=None)
        back = align.onto(placed, home, np.nan)[0].astype(np.float32)
        inside = np.isfinite(back[:1])
        planes = list(np.where(inside, back, AIR).reshape(len(planes), -1, *home.array.shape[1:]))
    values = OUTPUTS[settings["output"]](model, planes, target_window(model, scan))
    about: dict[str, Any] = {"modality": settings["target"]["modality"], "notes": (), "window": None}
    units = {"trust": "ratio", "confidence": "ratio"}
    images = {
        name: replace(home, array=array, units=units.get(name, model.intensity.units), **about)
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


def prepared(model: Model, scan: Image, format: str) -> Ready:
    """The scan as its voxels are worked on."""
    settings, volume = model.config["translation"], model.grid.dimensions == 3
    choices, mask = settings["choices"], settings["input"] == "mask"
    work, begins = scan, None
    if volume and settings["task"] == "superresolve":
        work = volumes.straight(scan)
    elif volume:
        work, begins = volumes.slid(scan, 0.0 if mask else background(scan))
    axes = turning(model, work, format)
    if mask:
        return Ready(work, axes, begins)
    work = replace(work, array=work.array.astype(np.float32, copy=False))
    work = corrected(work, choices["bias_field"], choices["landmarks"])
    return Ready(refined(model, work, axes) if settings["task"] == "superresolve" else work, axes, begins)


def prepared_together(model: Model, sources: together.Together, format: str) -> Ready:
    """Several sources as their voxels are worked on."""
    work, begins = sources.image, None
    if model.grid.dimensions == 3:
        work, begins = volumes.slid(work, AIR)
    return Ready(work, turning(model, work, format), begins, sources.here)


def background(scan: Image) -> float:
    """The value beside a scan: air."""
    return LOWEST_HU if scan.units == "HU" else float(scan.array.min())


def turning(model: Model, scan: Image, format: str) -> Axes:
    """How the slices of a scan lie: volumes upright, slices as nearly all that the model learned from, else as prepared."""
    learned = model.config["translation"].get("lying")
    if model.grid.dimensions == 2 and learned and scan.modality not in PICTURES and format not in PICTURE_FILES:
        return lying_as(scan, tuple((int(axis), int(sign)) for axis, sign in learned))
    return lying(scan, "volume" if model.grid.dimensions == 3 else format)[0]


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


def encoder_together(here: np.ndarray) -> Encode:
    """How the encoded voxels of several sources come to the network: in its size, with the channels that say which are there."""
    return lambda values, size: with_presence(sized(values, size), here)


def sized(values: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """(C, *spatial) -> (C, *size), anti-aliased."""
    return resize(values, size[0], size[1]) if len(size) == 2 else resize_volume(values, size)


def source_window(model: Model, scan: Image) -> IntensityMap:
    """The values of a scan that become -1 and 1: of a CT those of the training scans, else its own."""
    settings = model.config["translation"]
    choices, learned = settings["choices"], settings["source"]
    own = window_of(
        scan.array,
        learned["modality"],
        choices["dimensions"],
        scan.window,
        choices["window"],
        choices["percentiles"],
        choices.get("by_median", False),
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
    values = np.multiply(encoded, np.float32((window.high - window.low) / 2.0), dtype=np.float32)
    values += np.float32((window.high + window.low) / 2.0)
    return np.clip(values, LOWEST_HU, HIGHEST_HU, out=values) if window.units == "HU" else values


def as_image(model: Model, planes: Sequence[np.ndarray], window: IntensityMap) -> dict[str, np.ndarray]:
    """Middle, and where the network gives them calibrated bounds and trust; slice by slice, in the memory of the planes."""
    settings = model.config["translation"]
    if len(planes) == 1:
        return {"image": physical(window, planes[0])}
    found = settings["calibration"]["factor"]
    factor, usual = 1.0 if found is None else found, settings["usual_width"]
    trust = np.empty_like(planes[0], np.float32)
    for k in range(trust.shape[-1]):
        middle, lower, upper = (plane[..., k] for plane in planes)
        lower, upper = widened(lower, middle, upper, factor)
        trust[..., k] = usual / (usual + np.maximum(upper - lower, 1e-6))
        for plane, values in zip(planes, (middle, lower, upper)):
            plane[..., k] = physical(window, values)
    return {**dict(zip(("image", "lower", "upper"), planes)), "trust": trust}


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
    make = of_volume if model.grid.dimensions == 3 else of_slices
    made = make(model, scan, encode, device)
    return [turned_back(plane, axes) for plane in made]


def turned_back(plane: np.ndarray, axes: Axes) -> np.ndarray:
    """(C', D, H, W) of slices that were turned by `axes` -> a view (C', I, J, K)."""
    for number, (_, sign) in enumerate(axes):
        plane = np.flip(plane, 3 - number) if sign < 0 else plane
    place = {axis: 3 - number for number, (axis, _) in enumerate(axes)}
    return plane.transpose(0, *(place[axis] for axis in range(3)))


def of_slices(model: Model, scan: Slices, encode: Encode, device: torch.device) -> np.ndarray:
    """(planes, C', D, H, W) of slices, each of which is brought to the model's pixel size and back."""
    settings = model.config["translation"]
    size = scan.array.shape[2:]
    wished = [max(1, round(side * factor)) for side, factor in zip(size, factors(model, scan))]
    last, count = len(scan.array) - 1, settings["neighbours"]
    around: dict[int, np.ndarray] = {}  # the slices that the next one needs
    result = None
    for k in range(last + 1):
        near = [min(max(k + step, 0), last) for step in range(-count, count + 1)]
        around = {
            one: around[one] if one in around else encode(np.asarray(scan.array[one], np.float32), wished)
            for one in near
        }
        source = np.concatenate([around[one] for one in near])
        made = inference.translate(model.generator, source, settings["patch"], device)
        if result is None:
            result = np.empty((*made.shape[:2], last + 1, *size), np.float32)
        result[:, :, k] = resize(made, *size)
    assert result is not None, "a scan has slices"
    return result


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


def needed(model: Model, scan: Image, format: str) -> int:
    """Bytes that the translation of a scan takes at its peak, about; of the scan's array only the shape counts.

    Its voxels as stored and as float32, the encoded ones, weights of windows and every plane that the network gives, on the
    scan's voxels and, where these are others, on the model's; and one batch of windows in the network.
    """
    settings, axes = model.config["translation"], turning(model, scan, format)
    network, volume = model.config["network"]["arguments"], model.grid.dimensions == 3
    made = network["out_channels"] * (MOST_PLANES if settings["calibration"] else 1)
    voxels = math.prod(scan.array.shape[1:])
    if settings["task"] == "superresolve":
        finest = math.prod(factor for _, factor in finer(model, scan, axes))
        return PROCESS_BYTES + int(4 * voxels * (2 + finest * (made + network["in_channels"] + 3)))
    times = math.prod(factors(model, turned(scan, axes, ""))) if volume else 0.0
    within = network["in_channels"] + made + 1 if volume else 0  # planes of the model's voxels
    own = 2 * len(scan.array) + made + 1
    return PROCESS_BYTES + int(4 * voxels * (own + (within - made if times == 1.0 else within * times)))


# ------------------------------------------------------------------------------------------------ refusal


def judged(model: Model, scan: Image, format: str, ready: Ready | None = None) -> Judgement | None:
    """Whether the scan is like those that the model learned from; what lies beyond the middle of its learned extent is not looked at.

    None for label maps, which may show any anatomy.
    """
    settings = model.config["translation"]
    if ready is not None and ready.here is not None:
        slices = turned(ready.image, ready.axes, "")
        return together.judged(model, learned_extent(model, slices), spacing_of(slices), ready.here)
    if model.config["familiarity"] is None:
        return None
    window = source_window(model, scan)
    ready = ready or prepared(model, scan, format)
    slices = turned(ready.image, ready.axes, "")
    array = learned_extent(model, slices)
    modality = settings["source"]["modality"] if scan.modality == "OT" else scan.modality
    features = familiarity.describe(unclipped(array, window.low, window.high), spacing_of(slices), modality)
    found, other = familiarity.judge(features, model.config["familiarity"]), other_kind(model, scan)
    if other is None:
        return found
    return replace(found, refused=True, reasons=(other, *found.reasons), words=f"refused: {other}; {found.words}")


def learned_extent(model: Model, slices: Slices) -> np.ndarray:
    """(C, D, H, W): the middle of a scan, as much of it as the model learned from."""
    choices = model.config["translation"]["choices"]
    stored = [choices["depth"] if model.grid.dimensions == 3 else None, choices["height"], choices["width"]]
    factor = [1.0] * (3 - model.grid.dimensions) + list(factors(model, slices))
    array = slices.array.swapaxes(0, 1)
    for axis, (most, times) in enumerate(zip(stored, factor), 1):
        kept = array.shape[axis] if most is None else min(array.shape[axis], max(1, round(most / times)))
        first = (array.shape[axis] - kept) // 2
        array = array[(*(slice(None),) * axis, slice(first, first + kept))]
    return array


def other_kind(model: Model, scan: Image) -> str | None:
    """Why a scan whose file names no modality cannot be of the kind that the model learned, from its values; None where it can."""
    wished = model.config["translation"]["source"]
    if scan.modality != "OT" or wished["modality"] == "OT":
        return None
    values = scan.array.ravel(order="K")[:: (scan.array.size // MOST_VALUES) | 1]
    share = float((values < AIR_HU).mean())
    if wished["units"] != "HU":
        words = f"expected {wished['modality']}, found that {share:.0%} of the values lie below {AIR_HU:g}, as those of air in CT do"
        return f"{words}: use a model for CT" if share > LEAST_AIR else None
    lowest = max(high for _, high in model.config["familiarity"]["lowest"])  # encoded, of all training scans
    airy = (lowest + 1.0) / 2.0 * (wished["high"] - wished["low"]) + wished["low"] < AIR_HU
    if airy and share == 0.0:
        return f"expected CT in HU with air below {AIR_HU:g} as in all training scans, found none and values from {float(values.min()):g} to {float(values.max()):g}: another kind of scan, or not in HU"
    return None
