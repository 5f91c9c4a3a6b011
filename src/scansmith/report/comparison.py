"""compare.html: several recipes side by side, from their folders and what `compare` measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import Dataset
from ..preprocess import resize
from ..runtime import write_atomic, write_json
from . import figures
from .folder import RunFolder, draw, middle
from .page import environment, software
from .words import number

SHEET = 24  # samples shown of each recipe
COLOURS = ("real", "synthetic", "third", "fourth", "fifth", "sixth")
# Column -> heading, what is better, what it says.
COLUMNS: dict[str, tuple[str, str, str]] = {
    "frechet": ("Fréchet distance ÷ floor", "lower", "Random-conv Fréchet distance to the held-out images, divided by the distance between two sets of real images; 1 is no farther than real."),
    "radiomics": ("Radiomics Fréchet ÷ floor", "lower", "The same for grey values, noise and texture."),
    "precision": ("Precision", "higher", "Share of samples that lie within what real images look like."),
    "recall": ("Recall", "higher", "Share of the variety of real images that the samples reach."),
    "coverage": ("Coverage", "higher", "Share of real images that have a sample of their kind."),
    "diversity": ("Diversity", "", "Spread of samples among themselves over that of the held-out images; 1 is as varied as these. It sees no error: noise spreads samples too."),
    "near_copies": ("Near copies", "lower", "Share of samples that are near copies of a training image; held-out images, which cannot be copies, give up to 1 % by the same rule."),
    "nearest_training_median": ("Similarity to training", "", "Similarity of half the samples to their nearest training image at least; far above what held-out images reach means memorising."),
    "images_per_s": ("Images/s", "higher", "Training images shown a second, measurements at ticks included; no interval with fewer than four ticks. Another machine gives other numbers."),
    "peak_bytes": ("Peak memory", "lower", "Most of the machine's memory that the training process held, not that of a GPU."),
    "device_peak_bytes": ("Peak GPU memory", "lower", "Most of the GPU's memory that the training process held: what torch reserved, which is more than the tensors filled."),
}  # fmt: skip
# Column -> heading in the terminal.
SHORT = {"frechet": "Fréchet", "radiomics": "radiomics", "precision": "precision", "recall": "recall", "coverage": "coverage",
         "diversity": "diversity", "near_copies": "copies", "images_per_s": "images/s", "peak_bytes": "memory", "device_peak_bytes": "GPU"}  # fmt: skip
# Column -> factor, unit and decimals in which it is shown; the others have three significant digits.
UNITS = {"near_copies": (100.0, " %", 1), "peak_bytes": (1e-9, " GB", 2), "device_peak_bytes": (1e-9, " GB", 2)}
# Columns that are drawn, in this order.
PLOTTED = ("frechet", "diversity", "recall", "coverage", "near_copies", "images_per_s", "peak_bytes", "device_peak_bytes")  # fmt: skip
# What a family is for, whatever this comparison says.
PURPOSE = {
    "relativistic": "the default: sharp samples that keep their variety, without tuning",
    "dense": "teaching: the simplest pair there is; it knows nothing of neighbouring pixels, so its samples stay noisy",
    "dcgan": "the published baseline: many images a second, but it tends to swing and to lose variety",
    "minimax": "teaching: the first GAN loss; its generator learns little while the discriminator is sure",
    "non_saturating": "teaching and comparison: the loss most GANs use, here without a penalty",
    "least_squares": "comparison: smoother gradients than the first losses, no guard against collapse",
    "hinge": "comparison: the loss of large class-conditional GANs",
    "wasserstein": "steady training whose loss says how far it is; slow, as the critic moves five times for each step of the generator",
    "vae": "a stable latent space, no collapse and no discriminator; samples are blurred",
    "autoencoder": "reconstruction and features; its samples come from a Gaussian fitted to the latents and are the least sharp",
}
NOTICEABLE_COPIES = 0.01  # the lower end of the interval above which a sentence warns
UNEQUAL = 1.1  # times the shortest training, above which times are called unequal


def write(out: Path, dataset: Dataset, result: dict[str, Any]) -> dict[str, Any]:
    """Write OUT/compare.json and OUT/compare.html; returns what `compare` returns."""
    result = {"version": software(RunFolder(out)), **result, "verdict": verdict(result["recipes"], result["skipped"])}
    write_json(out / "compare.json", result)
    folders = {name: RunFolder(out / one["runs"][0]["folder"]) for name, one in result["recipes"].items()}
    context = {
        "result": result, "columns": columns(result["recipes"]), "rows": rows(result["recipes"]), "setup": setup(result),
        "race": race(out, result["recipes"]), "forests": forests(result["recipes"]), "sheets": sheets(dataset, folders),
        "purposes": [(name, purpose(name, result["recipes"])) for name in result["recipes"]],
    }  # fmt: skip
    write_atomic(out / "compare.html", environment().get_template("comparison.html").render(context))
    return {
        "page": str(out / "compare.html"),
        "verdict": result["verdict"],
        "table": table(result["recipes"]),
        "recipes": result["recipes"],
        "skipped": result["skipped"],
    }


# ------------------------------------------------------------------------------------------------ words


def verdict(recipes: dict[str, Any], skipped: list[str]) -> list[str]:
    """Which recipe won, whether the intervals overlap, who memorises, and what did not finish."""
    ranked = sorted(
        (one["numbers"]["frechet"]["value"], name) for name, one in recipes.items() if "frechet" in one["numbers"]
    )
    said = []
    if not ranked:
        said.append("No recipe won: no Fréchet distance could be computed, since too few images are held out.")
    else:
        best, winner = ranked[0]
        said.append(f"{winner} came closest to the held-out images: {times(best)} the real/real floor.")
    if len(ranked) > 1:
        said[0] = said[0][:-1] + f"; next is {ranked[1][1]} with {times(ranked[1][0])}."
        said.append(overlap(ranked[0][1], ranked[1][1], recipes))
    for name, one in recipes.items():
        copied = one["numbers"].get("near_copies")
        if copied and copied["interval"] and copied["interval"][0] > NOTICEABLE_COPIES:
            said.append(
                f"{name} memorises: {100 * copied['value']:.0f} % of its samples are near copies of training images, which rules it out for sharing."
            )
    return said + [f"Did not finish: {sentence}" for sentence in skipped]


def times(ratio: float) -> str:
    return f"{number(ratio)} times"


def overlap(winner: str, second: str, recipes: dict[str, Any]) -> str:
    """Whether the intervals of the first two tell them apart."""
    first, next_ = (recipes[name]["numbers"]["frechet"]["interval"] for name in (winner, second))
    several = len(recipes[winner]["runs"]) > 1
    if first[1] < next_[0]:
        return "Their intervals do not overlap" + (
            ", seeds included." if several else "; more seeds would show whether that holds for other trainings."
        )
    return f"Their intervals overlap, so this comparison does not tell {winner} and {second} apart: more seeds, minutes or held-out images would."


def purpose(name: str, recipes: dict[str, Any]) -> str:
    """What the recipe is good for in general, and what it was best in here."""
    best = [COLUMNS[column][0] for column in COLUMNS if best_of(column, recipes) == name]
    general = PURPOSE.get(name, "no general advice")
    return (
        general[0].upper()
        + general[1:]
        + "."
        + (f" Best here in: {', '.join(best)}." if best and len(recipes) > 1 else "")
    )


def best_of(column: str, recipes: dict[str, Any]) -> str | None:
    """The recipe with the best value of a column; None where nothing is better, or several are equal."""
    better = COLUMNS[column][1]
    found = {name: one["numbers"][column]["value"] for name, one in recipes.items() if column in one["numbers"]}
    if not better or not found:
        return None
    goal = (min if better == "lower" else max)(found.values())
    reached = [name for name, value in found.items() if value == goal]
    return reached[0] if len(reached) == 1 else None


def setup(result: dict[str, Any]) -> list[str]:
    """How the comparison was made."""
    asked, runs = result["request"], [run for one in result["recipes"].values() for run in one["runs"]]
    length = (
        f"{asked['minutes']:g} minutes of training each"
        if asked["images"] is None
        else f"{asked['images']:,} images shown to each"
    )
    said = [
        f"{length}, one after the other in a process of its own, on the same grid, for {asked['side']} pixels on the longer side."
    ]
    if asked["images"] is None and len(result["recipes"]) > 1:
        said.append(spent(result["recipes"]))
    if runs:
        split = {"holdout": "held-out images, which no training saw", "validation": "validation images, since nothing is held out"}  # fmt: skip
        against = split.get(runs[0]["split"], "real images")
        said.append(
            f"{asked['count']:,} samples of each; {runs[0]['compared']:,} at a time were compared with {against}."
        )
    return [*said, intervals(asked["seeds"])]


def intervals(seeds: int) -> str:
    """What the intervals are, and what they leave out."""
    said = (
        "Intervals: 5th to 95th percentile over random draws, of images or, for images/s, of the stretches between two ticks of the training; "
        "95 % confidence for near copies. Peak memory is one number of a training and has no interval"
    )
    if seeds > 1:
        return f"{said}. With {seeds} seeds, values are means, [brackets] hold the lowest and highest seed, and intervals reach over all seeds."
    return f"{said}: several seeds would give its range. One seed: how much another training would differ is not in the intervals."


def spent(recipes: dict[str, Any]) -> str:
    """How long each recipe really trained, and a warning where that was not equal."""
    seconds = {name: one["numbers"]["seconds"]["value"] for name, one in recipes.items()}
    said = "Spent in training steps: " + ", ".join(
        f"{name} {number(value / 60.0)} min" for name, value in seconds.items()
    )
    if max(seconds.values()) > UNEQUAL * min(seconds.values()):
        return f"{said}. That is not equal: a run was ended early, or the minutes are so few that starting takes a large share of them. Small differences in the table mean nothing."
    return f"{said}."


# ------------------------------------------------------------------------------------------------ table


def shown(column: str, value: float) -> str:
    """A value as its column writes it."""
    if column not in UNITS:
        return number(float(value))
    factor, unit, decimals = UNITS[column]
    return f"{factor * value:.{decimals}f}{unit}"


def ends(column: str, bounds: list[float] | None) -> str:
    """Two values with a dash between and their unit once; nothing for None."""
    if bounds is None:
        return ""
    if column not in UNITS:
        return "–".join(number(float(bound), bounds) for bound in bounds)
    low, high = (shown(column, bound) for bound in bounds)
    return low.removesuffix(UNITS[column][1]) + "–" + high


def columns(recipes: dict[str, Any]) -> list[dict[str, str]]:
    """The columns of which any recipe has a value."""
    return [
        {"name": name, "title": title, "better": better, "words": words}
        for name, (title, better, words) in COLUMNS.items()
        if any(name in one["numbers"] for one in recipes.values())
    ]


def rows(recipes: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each recipe, a cell for each column: value, interval, range over seeds, whether it is the best."""
    best = {column["name"]: best_of(column["name"], recipes) for column in columns(recipes)}
    result: list[dict[str, Any]] = []
    for name, one in recipes.items():
        cells = []
        for column in columns(recipes):
            found = one["numbers"].get(column["name"])
            cells.append(cell(column["name"], found, best[column["name"]] == name and len(recipes) > 1))
        result.append({"name": name, "cells": cells})
    return result


def cell(column: str, found: dict[str, Any] | None, best: bool) -> dict[str, Any]:
    if found is None:
        return {"value": "–", "interval": "", "range": "", "best": False}
    either = {key: ends(column, found[key]) for key in ("interval", "range")}
    return {"value": shown(column, found["value"]), **either, "best": best}


def table(recipes: dict[str, Any]) -> list[str]:
    """The table as lines, for a terminal: under the values of a recipe their intervals, or [ranges over seeds] without these."""
    kept = [column["name"] for column in columns(recipes) if column["name"] in SHORT]
    lines = [["recipe", *(SHORT[name] for name in kept)]]
    for name, one in recipes.items():
        entries = [(column, one["numbers"].get(column)) for column in kept]
        lines.append([name, *("–" if found is None else shown(column, found["value"]) for column, found in entries)])
        below = ["" if found is None else beneath(column, found) for column, found in entries]
        lines += [["", *below]] if any(below) else []
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def beneath(column: str, found: dict[str, Any]) -> str:
    """What stands under a value in the terminal: its interval, else [its range over seeds], else nothing."""
    over_seeds = ends(column, found["range"])
    return ends(column, found["interval"]) or (over_seeds and f"[{over_seeds}]")


# ------------------------------------------------------------------------------------------------ figures


def race(out: Path, recipes: dict[str, Any]) -> Any:
    """Quality on the validation images against time, a line for each training; None when no log holds a quality."""
    series: list[dict[str, Any]] = []
    for place, (name, one) in enumerate(recipes.items()):
        for order, run in enumerate(one["runs"]):
            points = [
                (row["seconds"] / 60.0, row["quality"])
                for row in RunFolder(out / run["folder"]).ticks
                if isinstance(row.get("quality"), (int, float)) and isinstance(row.get("seconds"), (int, float))
            ]
            if points:
                series.append({"label": name if order == 0 else None, "x": [x for x, _ in points], "y": [y for _, y in points],
                               "colour": COLOURS[place % len(COLOURS)], "dashed": place >= len(COLOURS)})  # fmt: skip
    if not series:
        return None
    values = [y for one in series for y in one["y"]]
    log = min(values) > 0 and max(values) / min(values) > 8
    y_label = "Distance ÷ floor" + (" (log.)" if log else "")
    return figures.lines(
        "race", "Quality against time", "Minutes of training", y_label, series, 1.0, log, size=(6.6, 3.4)
    )


def forests(recipes: dict[str, Any]) -> list[dict[str, Any]]:
    """{"title", "chart"} of each column that is drawn and that any recipe has a value of."""
    found = {name: forest(name, recipes) for name in PLOTTED}
    return [{"title": COLUMNS[name][0], "chart": chart} for name, chart in found.items() if chart is not None]


def forest(column: str, recipes: dict[str, Any]) -> Any:
    """A row for each recipe: its value with the interval, without one with the range over seeds; None without values."""
    title, better, _ = COLUMNS[column]
    factor, unit, _ = UNITS.get(column, (1.0, "", 0))
    log = column == "frechet"
    marks = []
    for name, one in recipes.items():
        found = one["numbers"].get(column)
        if found and math.isfinite(found["value"]) and not (log and found["value"] <= 0):
            bounds = found["interval"] or found["range"]
            low, high = [factor * end for end in bounds] if bounds else (None, None)
            marks.append({"title": name, "ratio": factor * found["value"], "low": low, "high": high})
    if not marks:
        return None
    says = [unit.strip(), f"{better} is better" if better else "dotted: training images", "log." if log else ""]
    usual = among_real(column, recipes)
    return figures.ratios(
        f"forest-{column}",
        f"{title} of each recipe",
        marks,
        ", ".join(filter(None, says)),
        None if usual is None else factor * usual,
        log,
        3.5,
    )


def among_real(column: str, recipes: dict[str, Any]) -> float | None:
    """What real images give in a column, of near copies at most; None where they say nothing."""
    if column == "near_copies":
        return NOTICEABLE_COPIES
    floors = [one["numbers"][column]["floor"] for one in recipes.values() if column in one["numbers"]]
    known = [floor for floor in floors if floor is not None]
    return sum(known) / len(known) if known else None


def sheets(dataset: Dataset, folders: dict[str, RunFolder]) -> list[dict[str, Any]]:
    """A contact sheet of each recipe's samples, the same indices for all, beside one of held-out images."""
    made = {}
    for name, folder in folders.items():
        files = [path for path, _ in folder.synthetic_files]
        made[name] = folder.synthetic([files[i] for i in draw(0, "compare", len(files), SHEET)])
    shape = next((images[0].shape[-2:] for images in made.values() if images), None)
    if shape is None:
        return []
    pool = next(rows for rows in (dataset.rows(split) for split in ("holdout", "validation", "train")) if len(rows))
    chosen = pool[draw(0, "compare real", len(pool), SHEET)]
    real = [middle(dataset.intensity(int(row)).encode(dataset.image(int(row)))) for row in chosen]
    factor = min(1.0, figures.TILE / max(shape))
    height, width = max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))

    def sheet(name: str, images: list[np.ndarray], synthetic: bool) -> dict[str, Any]:
        tiles = [figures.display(resize(resize(image, *shape), height, width)) for image in images]
        picture = figures.contact_sheet(tiles, 6, synthetic)
        return {"name": name, "synthetic": synthetic, "image": picture, "count": len(tiles)}

    return [sheet("Real", real, False), *(sheet(name, images, True) for name, images in made.items() if images)]
