"""Label maps that a model makes of held-out scans, beside a threshold on intensity and the mean atlas of the training masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import inference
from ..dataset import Dataset
from ..metrics import overlap
from ..model import Model
from ..pairings import Pairing, cases_of, one_hot, pairing
from ..runtime import Progress, choose_device, derive_seed, write_atomic, write_json
from .numbers import FEWEST_PATIENTS, summary

METHODS = ("segmentation", "threshold", "atlas")
LEARNED_ROWS, LEARNED_VOXELS = 64, 16_384  # that the threshold is learned from
STEPS = 64  # thresholds that are tried
SHARES = np.linspace(0.05, 0.95, 19)  # of training masks that mark a voxel, from which on the atlas does
SHOWN = 8  # cases in pictures, worst first
TONES = {"both": (60, 160, 60), "missed": (33, 102, 172), "too much": (178, 24, 43)}


@dataclass(frozen=True)
class Threshold:
    """Where one label is marked by intensity alone.

    Attributes:
        channel: of the image.
        low, high: between these values.
    """

    channel: int
    low: float
    high: float

    def marks(self, image: np.ndarray) -> np.ndarray:
        """(C, *spatial) -> bool (*spatial)."""
        values = image[self.channel]
        return np.asarray((values >= self.low) & (values < self.high))


def evaluate_segmentation(
    data: Dataset, model: Model, out: Path, device_name: str = "auto", seed: int = 0
) -> dict[str, Any]:
    """Segment the held-out scans that have masks; write OUT/metrics.json and OUT/segmentation/ with pictures, worst first.

    Args:
        data: with masks; its holdout is judged, or its validation patients where nothing is held out.
        model: one that makes label maps.
        out: folder.
        device_name: see `choose_device`.
        seed: of the draws of patients.

    Returns:
        {"task", "split", "patients", "labels", "units" of distances, "metrics": method -> "dice", "dice 1", "hd95 1" ... ->
        {"value", "interval", "each"}, "pictures", "words"}; "dice" is the mean over labels.

    Raises:
        ValueError: no masks, other labels than the model knows, or nothing held out.
    """
    settings = model.config["translation"]
    pairs = pairing("segment", data)
    labels = list(settings["target"]["labels"])
    if labels != list(pairs.about()["target"]["labels"]):
        raise ValueError(
            f"expected masks with the labels {labels}, which the model learned, found {pairs.about()['target']['labels']} in {data.root}: give the dataset that it belongs to"
        )
    split = next((name for name in ("holdout", "validation") if len(pairs.rows(name))), None)
    if split is None:
        raise ValueError(
            f"expected held-out patients with masks in {data.root}, found none: prepare it again with more scans"
        )
    device = choose_device(device_name)
    model.generator.to(device)
    simple = {"threshold": by_threshold(pairs, seed), "atlas": by_atlas(pairs)}
    spacing, units = voxel(data)
    found: dict[str, dict[str, dict[str, list[float]]]] = {method: {} for method in METHODS}
    cases, scored = cases_of(data, pairs.rows(split)), []
    with Progress("evaluating", len(cases), "scans") as progress:
        for number, rows in enumerate(cases, 1):
            patient = str(data.columns["patient"][rows[0]])
            true = stacked(pairs.target(int(row)).argmax(0) for row in rows)
            own = stacked(segmented(pairs, int(row), model, device) for row in rows)
            made = {"segmentation": own} | {
                name: stacked(method(int(row)) for row in rows) for name, method in simple.items()
            }
            for method, chosen in made.items():
                for name, value in judged(chosen, true, labels, spacing).items():
                    found[method].setdefault(name, {}).setdefault(patient, []).append(value)
            scored.append((found["segmentation"]["dice"][patient][-1], rows, own, true))
            progress.update(number)
    result = {
        "task": "segmentation", "split": split, "patients": len(found["segmentation"]["dice"]), "labels": labels, "units": units,
        "model": model.hash,
        "metrics": {method: {name: known(each, seed) for name, each in names.items()} for method, names in found.items()},
    }  # fmt: skip
    worst = sorted(scored, key=lambda one: one[0])[:SHOWN]
    result["pictures"] = [
        picture(out / "segmentation", number, pairs, rows, own, true, score)
        for number, (score, rows, own, true) in enumerate(worst, 1)
    ]
    result["words"] = list(sentences(result))
    write_json(out / "metrics.json", result)
    return result


def stacked(maps: Iterator[np.ndarray]) -> np.ndarray:
    """Class numbers of slices (n, H, W), or of one volume (1, D, H, W)."""
    return np.stack(list(maps))


def segmented(pairs: Pairing, row: int, model: Model, device: torch.device) -> np.ndarray:
    """(*spatial) class numbers that the model gives."""
    scores = inference.translate(model.generator, pairs.source(row), model.config["translation"]["patch"], device)[0]
    return np.asarray(scores.argmax(0))


def voxel(data: Dataset) -> tuple[list[float], str]:
    """Size of a stored voxel and its unit."""
    spacing = data.info["spacing"]
    return ([1.0] * (len(data.shape) - 1), "pixels") if spacing is None else (list(spacing), "mm")


# ------------------------------------------------------------------------------------------------ simple methods


def by_threshold(pairs: Pairing, seed: int) -> Callable[[int], np.ndarray]:
    """Row -> class numbers by a range of intensity for each label, the one that fits training voxels best; of overlapping ones the better."""
    random = np.random.default_rng(derive_seed(seed, "threshold"))
    values, classes = [], []
    for row in random.permutation(pairs.rows("train"))[:LEARNED_ROWS]:
        image, true = pairs.middle(pairs.source(int(row))), pairs.target(int(row)).argmax(0)
        chosen = random.permutation(true.size)[:LEARNED_VOXELS]
        values.append(image.reshape(len(image), -1)[:, chosen])
        classes.append(true.ravel()[chosen])
    joined, numbers = np.concatenate(values, 1), np.concatenate(classes)
    best = [best_threshold(joined, numbers == label) for label in range(1, pairs.out_channels)]
    order = np.argsort([score for score, _ in best])

    def method(row: int) -> np.ndarray:
        image = pairs.middle(pairs.source(row))
        made = np.zeros(image.shape[1:], np.int64)
        for label in order:  # the best last
            made[best[label][1].marks(image)] = label + 1
        return made

    return method


def best_threshold(values: np.ndarray, marked: np.ndarray) -> tuple[float, Threshold]:
    """(Dice, threshold) of the range above or below one value, or between two, that marks training voxels (C, n) best."""
    best = (-1.0, Threshold(0, np.inf, np.inf))
    for channel, own in enumerate(values):
        edges = np.concatenate(
            [[-np.inf], np.unique(np.quantile(own, np.linspace(0.0, 1.0, STEPS + 1)[1:-1])), [np.inf]]
        )
        place = np.searchsorted(edges, own, side="right") - 1
        every = np.concatenate([[0], np.cumsum(np.bincount(place, minlength=len(edges)))])
        right = np.concatenate([[0], np.cumsum(np.bincount(place[marked], minlength=len(edges)))])
        inside = right[None, :] - right[:, None]
        score = 2.0 * inside / np.maximum(every[None, :] - every[:, None] + marked.sum(), 1)
        first, last = np.unravel_index(int(np.triu(score).argmax()), score.shape)
        if score[first, last] > best[0]:
            high = edges[last] if last < len(edges) else np.inf
            best = (float(score[first, last]), Threshold(channel, float(edges[first]), float(high)))
    return best


def by_atlas(pairs: Pairing) -> Callable[[int], np.ndarray]:
    """Row -> class numbers that training masks have most often at the same place, from the share on that fits them best."""
    rows = pairs.rows("train")
    mean = np.mean([pairs.target(int(row)) for row in rows[:: max(1, -(-len(rows) // 256))]], axis=0)
    likeliest, share = mean[1:].argmax(0) + 1, 1.0 - mean[0]
    some = [pairs.target(int(row)) for row in rows[:: max(1, -(-len(rows) // 32))]]
    made = [np.where(share >= least, likeliest, 0) for least in SHARES]
    fits = [np.mean([pairs.error(one_hot(one, len(mean)), true, share >= 0) for true in some]) for one in made]
    chosen = made[int(np.argmin(fits))]
    return lambda row: chosen


# ------------------------------------------------------------------------------------------------ numbers


def judged(made: np.ndarray, true: np.ndarray, labels: Sequence[int], spacing: Sequence[float]) -> dict[str, float]:
    """ "dice" and "hd95" of each label, such as "dice 2", and the mean "dice"; nan where neither map has a label.

    Dice is of all slices of a scan together; the distance of slices is a mean over those that show the label in both.
    """
    found = {}
    for number, label in enumerate(labels, 1):
        one, other = made == number, true == number
        found[f"dice {label}"] = overlap.dice(one, other)
        distances = [overlap.hausdorff95(*plane, spacing) for plane in zip(one, other)]
        finite = [value for value in distances if np.isfinite(value)]
        found[f"hd95 {label}"] = float(np.mean(finite)) if finite else np.nan
    values = [found[f"dice {label}"] for label in labels]
    return {"dice": float(np.nanmean(values)) if not np.isnan(values).all() else np.nan, **found}


def known(each: Mapping[str, list[float]], seed: int) -> dict[str, Any]:
    """`summary` over the patients that have a number."""
    finite = {patient: [value for value in values if np.isfinite(value)] for patient, values in each.items()}
    some = {patient: values for patient, values in finite.items() if values}
    return summary(some, seed) if some else {"value": None, "interval": None, "each": []}


def sentences(result: Mapping[str, Any]) -> Iterator[str]:
    own = result["metrics"]["segmentation"]["dice"]
    spread = f" ({own['interval'][0]:.3f} to {own['interval'][1]:.3f})" if own["interval"] else ""
    yield f"Mean Dice coefficient of {len(result['labels'])} label(s) in {result['patients']} {result['split']} patients: {own['value']:.3f}{spread}."
    others = {name: result["metrics"][name]["dice"]["value"] for name in METHODS[1:]}
    best = max(others, key=others.__getitem__)
    if own["value"] > others[best]:
        yield f"A threshold reaches {others['threshold']:.3f}, the mean atlas {others['atlas']:.3f}."
    else:
        yield f"That is no better than {best} ({others[best]:.3f}): do not use this model."
    for label in result["labels"]:
        one = {name: result["metrics"]["segmentation"][f"{name} {label}"]["value"] for name in ("dice", "hd95")}
        if one["dice"] is not None and one["hd95"] is not None:
            yield f"Label {label}: Dice {one['dice']:.3f}, 95 % of the surface within {one['hd95']:.2g} {result['units']}."
    if result["patients"] < FEWEST_PATIENTS:
        yield f"With fewer than {FEWEST_PATIENTS} patients no interval over patients is given, but a figure for each."


# ------------------------------------------------------------------------------------------------ pictures


def picture(
    folder: Path, number: int, pairs: Pairing, rows: np.ndarray, made: np.ndarray, true: np.ndarray, score: float
) -> str:
    """Write the slice of a scan with most mistakes: image, output, reference, and where they agree; its name below OUT."""
    from PIL import Image as Picture

    wrong = (made != true).reshape(-1, *made.shape[-2:])
    plane = int(wrong.sum((1, 2)).argmax())
    row = int(rows[plane if made.ndim == 3 else 0])
    image = pairs.middle(pairs.source(row))
    image = image if image.ndim == 3 else image[:, plane]
    flat_made, flat_true = (one.reshape(wrong.shape)[plane] for one in (made, true))
    grey = np.rint((np.clip(image, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    shown = grey.transpose(1, 2, 0) if len(grey) == 3 else np.repeat(grey[0, ..., None], 3, -1)
    tiles = [
        shown,
        coloured(flat_made, pairs.out_channels),
        coloured(flat_true, pairs.out_channels),
        agreement(shown, flat_made, flat_true),
    ]
    sheet = np.concatenate([np.pad(tile, ((0, 0), (0, 4), (0, 0)), constant_values=255) for tile in tiles], 1)
    name = f"{number:02d}-dice-{score:.3f}.png"
    scale = max(1, 256 // max(shown.shape[:2]))
    large = Picture.fromarray(np.repeat(np.repeat(sheet, scale, 0), scale, 1))
    write_atomic(folder / name, lambda path: large.save(path, format="PNG"))
    return f"segmentation/{name}"


def coloured(numbers: np.ndarray, classes: int) -> np.ndarray:
    """Class numbers (H, W) as greys (H, W, 3), background black."""
    grey = np.rint(255.0 * numbers / max(1, classes - 1)).astype(np.uint8)
    return np.repeat(grey[..., None], 3, -1)


def agreement(shown: np.ndarray, made: np.ndarray, true: np.ndarray) -> np.ndarray:
    """The image with what both mark in green, what is missed in blue, what is too much or another label in red."""
    result = shown.copy()
    where = {
        "both": (made == true) & (true > 0),
        "missed": (made == 0) & (true > 0),
        "too much": (made > 0) & (made != true),
    }
    for name, tone in TONES.items():
        result[where[name]] = (0.4 * result[where[name]] + 0.6 * np.array(tone)).astype(np.uint8)
    return result
