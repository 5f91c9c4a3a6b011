"""The page: what stands in each section, gathered from the run folder and rendered by template.html."""

from __future__ import annotations

import json
import math
import shlex
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..preprocess import resize
from ..runtime import write_atomic
from . import figures
from .film import film
from .folder import PARTS, RunFolder, draw, images_seen
from .words import aside, duration, flat, interval, number, reasons, sentences, without_paths

if TYPE_CHECKING:
    from jinja2 import Environment

SECTIONS = {
    "pictures": "Synthetic beside real", "data": "The data found", "plan": "The plan and the time", "training": "Quality over time",
    "metrics": "Metrics in plain words", "nearest": "The closest training images", "limits": "What was not checked", "again": "How to reproduce",
}  # fmt: skip
MODALITY_WORDS = {"CT": "CT", "MR": "MR", "CR": "X-ray", "DX": "X-ray"}
MODALITY_TERMS = {"CT": "CT", "MR": "MR", "CR": "X-ray (CR)", "DX": "X-ray (DX)", "OT": "other (the files do not say)"}
SPLIT_WORDS = {
    "train": "training (the model learned from these)", "validation": "validation (quality during training)",
    "calibration": "calibration (thresholds)", "holdout": "holdout (seen by nothing before the evaluation)",
}  # fmt: skip
# Terms of papers for the fields of `Recipe`; a field that is not here keeps its name.
TERMS = {
    "name": "Recipe", "objective": "Objective", "generator": "Generator G", "discriminator": "Discriminator D", "width": "Channels at the finest level",
    "latent": "Latent dimension of z", "batch": "Batch size", "images": "Training images to show", "ticks": "Measurements during the run",
    "learning_rate": "Adam learning rate, start", "learning_rate_end": "Adam learning rate, end", "beta2": "Adam β₂, start", "beta2_end": "Adam β₂, end",
    "gamma": "R1 + R2 weight γ, start", "gamma_end": "R1 + R2 weight γ, end", "burn_in": "Burn-in (fraction of the run)",
    "augment": "Augmentation probability", "ema_fraction": "EMA half-life (fraction of images seen)", "ema_cap": "EMA half-life, at most (images)",
    "precision": "Precision", "channels_last": "Channels-last layout", "threads": "CPU threads", "train_images": "Training images", "side": "Longer side (pixels)", "target": "Longer side aimed at (pixels)", "seed": "Seed",
}  # fmt: skip
# Images a side that the intensity histogram is counted over: its shape is settled, and reading more only takes time.
HISTOGRAM_IMAGES = 200
MOST_CLASSES = 10
WIDEST, TALLEST = 1530, 900  # pixels of a picture that spans the page


def write(out: Path, *, title: str | None, count: int, real_images: bool, seed: int) -> dict[str, Any]:
    """See `report`."""
    folder = RunFolder(out)
    missing = folder.missing()
    if len(missing) == len(PARTS):
        raise ValueError(
            f"expected a run folder with at least one of {', '.join(PARTS)} in {out}, found none of them: make one with 'scansmith run SCANS {out}'"
        )
    if count < 1:
        raise ValueError(f"expected a count of at least 1 image, got {count!r}")
    context = {
        "header": header(folder, title), "real_images": real_images, "sections": SECTIONS, "missing": missing_rows(missing),
        "pictures": pictures(folder, count, real_images, seed), "beside": beside(folder, real_images), "data": data(folder, seed), "plan": plan(folder), "training": training(folder),
        "metrics": metrics(folder), "nearest": nearest(folder, real_images), "limits": limits(folder), "again": again(folder),
    }  # fmt: skip
    html = render(context)
    write_atomic(out / "report.html", html)
    return {
        "report": "report.html",
        "bytes": len(html.encode()),
        "sections": list(SECTIONS.values()),
        "missing": missing,
    }


def render(context: dict[str, Any]) -> str:
    """Fill the template; every value is escaped and stripped of file paths on its way onto the page."""
    return environment().get_template("template.html").render(context)


def environment() -> Environment:
    """Templates of this folder; what does not exist is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("scansmith.report", "."), autoescape=True, undefined=StrictUndefined,
        finalize=without_paths, trim_blocks=True, lstrip_blocks=True)  # fmt: skip
    made.filters["number"] = number
    return made


# ------------------------------------------------------------------------------------------------ sections


def software(folder: RunFolder) -> str:
    """Version of scansmith that made the run, else the one that makes the page."""
    named = folder.run.get("version") or folder.metrics.get("version")
    return str(
        named or str(folder.images.get("software", "")).removeprefix("scansmith ") or metadata.version("scansmith")
    )


def seed_of(folder: RunFolder) -> Any:
    """The seed of the run, of its recipe, its images or its evaluation, whichever is known."""
    named = [part.get("seed") for part in (request(folder), folder.run, folder.recipe, folder.images, folder.metrics)]
    return next((seed for seed in named if seed is not None), None)


def request(folder: RunFolder) -> dict[str, Any]:
    """What `run` was asked for."""
    asked = folder.run.get("request")
    return asked if isinstance(asked, dict) else {}


def header(folder: RunFolder, title: str | None) -> dict[str, Any]:
    """Title, verdict and what identifies the run."""
    dataset = folder.dataset
    kind = MODALITY_WORDS.get(dataset.info.get("modality", ""), "") if dataset is not None else ""
    total = len(set(dataset.columns["case"].tolist())) if dataset is not None else None
    words = f"Synthetic {kind} scans".replace("  ", " ") + (
        f" from {total:,} scan{'s' * (total != 1)}" if total else ""
    )
    if folder.without_pairs:
        kinds = (folder.without_pairs.get(side, "scans") for side in ("source", "target"))
        words = "Translation of {} to {}, learned without pairs".format(*kinds)
    facts = {
        "Software": f"scansmith {software(folder)}",
        "Date": folder.metrics.get("created") or folder.run.get("created"),
        "Seed": seed_of(folder),
        "Model": folder.model_hash,
        "Data": folder.data_hash and folder.data_hash[:16],
    }
    verdict = sentences(folder.metrics.get("verdict"))
    return {
        "title": title or words,
        "facts": {term: "not known" if fact is None else fact for term, fact in facts.items()},
        "verdict": verdict,
    }


def missing_rows(missing: list[str]) -> list[dict[str, str]]:
    return [{"part": part, "lost": PARTS[part][0], "verb": PARTS[part][1]} for part in missing]


def pictures(folder: RunFolder, count: int, real_images: bool, seed: int) -> dict[str, Any]:
    """Pairs of equal contact sheets, one for each class or one for all, and how they were drawn."""
    pool, split = real_pool(folder) if real_images else (np.zeros(0, np.int64), "")
    groups = class_groups(folder, pool)
    pairs = [sheet_pair(folder, pool, label, min(count, 6), seed) for label in groups] or [
        sheet_pair(folder, pool, None, count, seed)
    ]
    sampled = pairs[0]["synthetic"] is None and bool(folder.samples)
    if sampled:
        pairs = [
            {
                **pairs[0],
                "synthetic": (sample_strip(folder.samples) or [{"image": None}])[-1]["image"],
                "synthetic_words": "last sample sheet of the training",
            }
        ]
    return {
        "rows": pairs,
        "split": split,
        "sampled": sampled,
        "window": window_words(folder),
        "volumes": folder.dataset is not None and len(folder.dataset.shape) == 4,
        "labels_cut": len(groups) == MOST_CLASSES,
    }


def beside(folder: RunFolder, real_images: bool) -> dict[str, Any] | None:
    """Of a run without pairs held-out scans, their translations, and some real scans; None for others."""
    if not folder.without_pairs:
        return None
    found = list(figures.pictures(folder.root, folder.without_pairs.get("pictures") or [], (WIDEST, TALLEST)))
    return {"rows": found if real_images else [], "held_back": bool(found) and not real_images}


def sheet_pair(folder: RunFolder, pool: np.ndarray, label: str | None, count: int, seed: int) -> dict[str, Any]:
    """Two sheets of as many images each, of one class or (label None) of all; None where a side has no images."""
    names = folder.dataset.columns["label"] if folder.dataset is not None else np.zeros(0, "U1")
    real = [int(row) for row in pool if label is None or names[row] == label]
    fake = [path for path, name in folder.synthetic_files if label is None or name == label]
    wanted = min(count, len(fake) or count, len(real) or count)
    tiles = sheet_tiles(folder, [real[i] for i in draw(seed, f"real {label}", len(real), wanted)],
                        [fake[i] for i in draw(seed, f"synthetic {label}", len(fake), wanted)])  # fmt: skip
    pair: dict[str, Any] = {"label": label}
    for side, images in zip(("real", "synthetic"), tiles, strict=True):
        pair[side] = figures.contact_sheet(images, min(6, wanted), side == "synthetic") if images else None
        pair[f"{side}_words"] = f"{len(images)} image{'s' * (len(images) != 1)}" if images else ""
    return pair


def real_pool(folder: RunFolder) -> tuple[np.ndarray, str]:
    """Rows to draw real images from and their split: the holdout where there is one, else the training images."""
    if folder.dataset is None:
        return np.zeros(0, np.int64), ""
    for split in ("holdout", "train"):
        rows = folder.dataset.rows(split)
        if len(rows):
            return rows, split
    return np.zeros(0, np.int64), ""


def class_groups(folder: RunFolder, pool: np.ndarray) -> list[str]:
    """Classes to show one row each, at most `MOST_CLASSES`; none when the synthetic or the real images have no classes."""
    made = {name for _, name in folder.synthetic_files if name is not None}
    real = set(folder.dataset.columns["label"][pool].tolist()) - {""} if folder.dataset is not None else set()
    return sorted(made | real)[:MOST_CLASSES] if made and (real or not len(pool)) else []


def sheet_tiles(folder: RunFolder, real: list[int], fake: list[Path]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Equal uint8 tiles of both sides, on the synthetic images' grid."""
    encoded = folder.real(np.array(real, np.int64)) if real else []
    made = folder.synthetic(fake)
    shape = (made or encoded)[0].shape[-2:] if made or encoded else (1, 1)
    factor = min(1.0, figures.TILE / max(shape))
    height, width = max(1, round(shape[0] * factor)), max(1, round(shape[1] * factor))
    # Both sides go through the synthetic grid first: sharpness may differ only where the images do.
    sides = [
        [figures.display(resize(resize(image, *shape), height, width)) for image in side] for side in (encoded, made)
    ]
    equal = min(map(len, sides)) if all(sides) else None
    return sides[0][:equal], sides[1][:equal]


def window_words(folder: RunFolder) -> str:
    """The grey window of the contact sheets, in words."""
    real = one_window(folder)
    synthetic = folder.synthetic_map
    if real is not None and (synthetic is None or (synthetic.low, synthetic.high) == real[:2]):
        return f"both shown from {number(real[0], real[1])} (black) to {number(real[1], real[0])} {real[2]} (white)"
    return "each shown from the lower to the upper end of its own intensity window"


def one_window(folder: RunFolder) -> tuple[float, float, str] | None:
    """(low, high, units) when all real images share one window."""
    if folder.dataset is None or not len(folder.dataset):
        return None
    columns = folder.dataset.columns
    windows = set(zip(*(columns[name].tolist() for name in ("low", "high", "units")), strict=True))
    return windows.pop() if len(windows) == 1 else None


def data(folder: RunFolder, seed: int) -> dict[str, Any] | None:
    """Counts, splits, classes, what was left out, and the intensity histogram."""
    if folder.dataset is None:
        return None
    dataset, info = folder.dataset, folder.dataset.info
    images, pixels, spacing, axes = (
        ("Images (2-D)", "pixels", "Pixel spacing", 2)
        if len(dataset.shape) == 3
        else ("Volumes (3-D)", "voxels", "Voxel size", 3)
    )
    facts = {
        "Modality": MODALITY_TERMS.get(info.get("modality", ""), "not known"), "Scans": number(len(set(dataset.columns["case"].tolist()))), images: number(len(dataset)),
        "Stored size": f"{' × '.join(map(str, reversed(dataset.shape[1:])))} {pixels}" + (f", {dataset.shape[0]} channels" if dataset.shape[0] > 1 else ""),
        spacing: spacing_words(dataset.columns["spacing"][:, -axes:]), "Intensity": intensity_words(folder), "Split": split_words(info.get("split_level")),
    }  # fmt: skip
    fingerprint = info.get("fingerprint")
    return {
        "facts": facts, "splits": split_rows(folder), "classes": class_rows(folder), "plan": sentences(info.get("plan")),
        "skipped": reasons(info.get("skipped")), "left_aside": aside(info.get("left_aside")), "duplicates": duplicate_words(info.get("duplicates")), "empty": reasons(info.get("empty_slices")),
        "fingerprint": flat(fingerprint) if isinstance(fingerprint, dict) else [], "histogram": histogram(folder, seed),
    }  # fmt: skip


def spacing_words(spacing: np.ndarray) -> str:
    """The median pixel size, across before down, and its range; (N, 2 or 3) ..., row, column in mm, NaN where not known."""
    known = spacing[np.isfinite(spacing).all(axis=1), ::-1]
    if not len(known):
        return "not given by the files"
    median = np.median(known, axis=0)
    words = " × ".join(f"{mm:.3g}" for mm in median) + " mm"
    varied = np.ptp(known, axis=0).max() > 0.01 * median.max()
    words += f" (median; {known.min():.3g} to {known.max():.3g} mm)" if varied else ""
    return words + (f", not given for {len(spacing) - len(known):,} images" if len(known) < len(spacing) else "")


def intensity_words(folder: RunFolder) -> str:
    window = one_window(folder)
    if window is None:
        return "one window per scan, arbitrary units"
    return f"{number(window[0], window[1])} to {number(window[1], window[0])} {window[2]} for every scan"


def split_words(level: Any) -> str:
    """What the split into training and holdout keeps apart."""
    return {
        "patient": "by patient: no patient is on two sides",
        "study": "study-level split: some patients are known by their study alone, so studies of one patient may be on two sides",
        "image": "image-level split: no patient is known, so images of one patient may be on two sides",
        "slices": "blocked slices of one patient: no statement about other patients",
    }.get(str(level), "not known")


def split_rows(folder: RunFolder) -> list[dict[str, Any]]:
    assert folder.dataset is not None
    columns = folder.dataset.columns
    rows = []
    for split, words in SPLIT_WORDS.items():
        chosen = folder.dataset.rows(split)
        # Without known patients the column holds one key per scan, which counts nobody.
        patients = (
            set(columns["patient"][chosen].tolist()) - {""}
            if folder.dataset.info.get("split_level") == "patient"
            else set()
        )
        cases = set(columns["case"][chosen].tolist())
        rows.append(
            {
                "split": words,
                "patients": len(patients) if patients else None,
                "scans": len(cases),
                "images": len(chosen),
            }
        )
    return rows


def class_rows(folder: RunFolder) -> list[dict[str, Any]]:
    """Images of each class by side: training, holdout, all, synthetic."""
    dataset = folder.dataset
    if dataset is None or not dataset.labels:
        return []
    labels, splits = dataset.columns["label"], dataset.columns["split"]
    made = [name for _, name in folder.synthetic_files]
    return [{"label": label, "all": int((labels == label).sum()), "train": int(((labels == label) & (splits == "train")).sum()),
             "holdout": int(((labels == label) & (splits == "holdout")).sum()), "synthetic": made.count(label)} for label in dataset.labels]  # fmt: skip


def duplicate_words(value: Any) -> str:
    found = value if isinstance(value, int) else len(value) if isinstance(value, (list, dict)) else None
    if found is None:
        return ""
    return f"Exact duplicates: {found:,}." if found else "No exact duplicates were found."


def histogram(folder: RunFolder, seed: int) -> dict[str, Any] | None:
    """Share of pixels by intensity, real holdout beside synthetic, in physical units where all scans share a window."""
    pool, split = real_pool(folder)
    files = [path for path, _ in folder.synthetic_files]
    if not len(pool):
        return None
    real = folder.real(pool[draw(seed, "histogram real", len(pool), HISTOGRAM_IMAGES)])
    made = folder.synthetic([files[i] for i in draw(seed, "histogram synthetic", len(files), HISTOGRAM_IMAGES)])
    window = one_window(folder)
    edges = np.linspace(-1.0, 1.0, 65)
    if window is not None and (
        folder.synthetic_map is None or (folder.synthetic_map.low, folder.synthetic_map.high) == window[:2]
    ):
        low, high, label = (
            window[0],
            window[1],
            "Intensity (HU)" if window[2] == "HU" else "Intensity (arbitrary units)",
        )
    else:
        low, high, label = 0.0, 100.0, "Position in each scan's window (%)"
    series = []
    for name, images, dashed in (("real", real, False), ("synthetic", made, True)):
        if images:
            counted = sum(np.histogram(image[0], edges)[0].astype(np.float64) for image in images)
            # An empty bin has no place on a logarithmic axis.
            share = np.where(counted > 0, 100.0 * counted / np.sum(counted), np.nan)
            series.append({"label": f"{name} ({len(images):,} images)", "x": low + (edges + 1.0) / 2.0 * (high - low), "y": share,
                           "colour": name, "dashed": dashed, "step": True})  # fmt: skip
    words = "Histogram of pixel intensities, real beside synthetic"
    return {
        "svg": figures.lines("histogram", words, label, "Share of pixels (%, log.)", series, log=True),
        "split": split,
        "both": len(series) == 2,
    }


def plan(folder: RunFolder) -> dict[str, Any] | None:
    """The plan's sentences and how the minutes were spent."""
    stages = folder.run.get("stages")
    rows = []
    for name, stage in (stages if isinstance(stages, dict) else {}).items():
        if isinstance(stage, dict) and isinstance(stage.get("seconds"), (int, float)):
            planned = stage.get("planned_s")
            rows.append(
                {
                    "title": name,
                    "seconds": stage["seconds"],
                    "planned": planned if isinstance(planned, (int, float)) else None,
                }
            )
    if not rows and not folder.run.get("plan"):
        return None
    longest = max([row["seconds"] for row in rows] + [row["planned"] or 0.0 for row in rows], default=0.0)
    unit, divisor = (
        ("seconds", 1.0) if longest < 180 else ("minutes", 60.0) if longest < 3 * 3600 else ("hours", 3600.0)
    )
    marks = [
        {
            "title": row["title"],
            "value": row["seconds"] / divisor,
            "planned": None if row["planned"] is None else row["planned"] / divisor,
        }
        for row in rows
    ]
    chart = figures.bars("stages", "Time spent and planned by stage", f"Time ({unit})", marks) if rows else None
    planned_total = (
        sum(row["planned"] for row in rows) if rows and all(row["planned"] is not None for row in rows) else None
    )
    table = [
        {"title": row["title"], "spent": duration(row["seconds"]), "planned": duration(row["planned"])} for row in rows
    ]
    total = {"spent": duration(sum(row["seconds"] for row in rows)), "planned": duration(planned_total)}
    return {"sentences": sentences(folder.run.get("plan")), "rows": table, "total": total, "svg": chart}


def training(folder: RunFolder) -> dict[str, Any] | None:
    """Curves against images seen, sample sheets over time and the settings."""
    if not (folder.ticks or folder.samples or folder.recipe):
        return None
    sheets = sample_strip(folder.samples)
    last = folder.ticks[-1] if folder.ticks else {}
    quality = next(
        (row["quality"] for row in reversed(folder.ticks) if isinstance(row.get("quality"), (int, float))), None
    )
    summary = {
        "Images seen": number(int(last["images"])) if last else None,
        "Time": duration(last["seconds"]) if last.get("seconds") is not None else None,
        "Speed": f"{number(float(last['images_per_s']))} images/s" if last.get("images_per_s") else None,
        "Quality at the end": f"{number(float(quality))} × real/real floor" if quality is not None else None,
    }
    settings = {
        TERMS.get(name, name): value for name, value in folder.recipe.items() if name not in ("request", "reasons")
    }
    return {"charts": curves(folder.ticks, folder.acts), "sheets": sheets, "film": film(folder.samples), "acts": act_rows(folder.acts),
            "recipe": flat(settings), "reasons": sentences(folder.recipe.get("reasons")), "cut": bool(last.get("cut")), "summary": {term: fact for term, fact in summary.items() if fact is not None}}  # fmt: skip


CURVES: list[dict[str, Any]] = [
    {"name": "quality", "title": "Quality", "y": "Distance ÷ floor", "keys": [("quality", "synthetic", "synthetic")], "reference": 1.0,
     "words": "Random-conv Fréchet distance of samples to {reference}, divided by the distance between two sets of real images. Lower is better; 1 (dotted) is no farther than real."},
    {"name": "diversity", "title": "Diversity", "y": "Spread ÷ real spread", "keys": [("diversity", "synthetic", "synthetic")], "reference": 1.0,
     "words": "How much samples differ among themselves, as a share of how much real images do (dotted). A fall towards 0 is a collapse."},
    {"name": "losses", "title": "Losses", "y": "Loss (nats)", "keys": [("loss_d", "discriminator", "real"), ("loss_g", "generator", "synthetic")], "reference": None,
     "words": "Losses of a GAN are a tug of war: steady is healthy; they do not fall as quality rises."},
    {"name": "gap", "title": "Score gap", "y": "D(real) − D(synthetic)", "keys": [("gap", "D(real) − D(synthetic)", "ink")], "reference": 0.0,
     "words": "How well the discriminator tells real from synthetic. At 0 (dotted) it cannot."},
    {"name": "coverage", "title": "Coverage", "y": "Share of real images", "keys": [("coverage", "coverage", "synthetic"), ("recall", "recall", "real")], "reference": None,
     "words": "Share of {reference} that have a sample of their kind (coverage) or lie within the samples' variety (recall). Higher is better."},
    {"name": "copying", "title": "Copying", "y": "Distance to training ÷ usual", "keys": [("copying", "copying", "synthetic")], "reference": 1.0,
     "words": "How far samples lie from their nearest training image, as a share of how far unseen real images do (dotted). A fall towards 0 is memorising."},
    {"name": "overfit", "title": "Overfitting of the discriminator", "y": "r", "keys": [("overfit", "r", "ink")], "reference": 0.5,
     "words": "r = (D(training) − D(validation)) ÷ (D(training) − D(synthetic)): at 1 the discriminator takes unseen real images for synthetic. Augmentation is steered towards the dotted line."},
    {"name": "penalties", "title": "Gradient penalties", "y": "Mean squared gradient", "keys": [("r1", "R1 (real)", "real"), ("r2", "R2 (synthetic)", "synthetic")], "reference": None,
     "words": "What keeps the discriminator smooth. A steep climb precedes divergence."},
]  # fmt: skip


# Acts of the watchman as the page names them; reasons keep their codes, with spaces.
ACTS = {
    "skip": "update skipped", "roll_back": "rolled back", "raise_gamma": "penalty raised", "lower_rate": "learning rate lowered",
    "raise_augmentation": "augmentation raised", "lower_augmentation": "augmentation lowered", "warn": "warning", "end": "run ended",
}  # fmt: skip
MOST_ACTS = 40


def act_rows(acts: list[dict[str, Any]]) -> dict[str, Any]:
    """The timeline of the watchman: neighbours with the same reason and act become one row; the last `MOST_ACTS` are kept."""
    rows: list[dict[str, Any]] = []
    for act in acts:
        same = bool(rows) and all(rows[-1][name] == act.get(name) for name in ("reason", "act"))
        if same:
            rows[-1] |= {"last": act["images"], "times": rows[-1]["times"] + 1, "words": act.get("words")}
        else:
            named = {name: act.get(name) for name in ("reason", "act", "words")}
            rows.append({**named, "first": act["images"], "last": act["images"], "times": 1})
    shown = [
        {
            "when": number(int(row["first"]))
            + (f" to {number(int(row['last']))}" if row["last"] != row["first"] else ""),
            "what": ACTS.get(str(row["act"]), str(row["act"]))
            + (f", {row['times']} times" if row["times"] > 1 else ""),
            "why": str(row["reason"] or "").replace("_", " "),
            "words": str(row["words"] or ""),
        }
        for row in rows
    ]
    return {"rows": shown[-MOST_ACTS:], "left_out": max(0, len(shown) - MOST_ACTS)}


def curves(
    ticks: list[dict[str, Any]], acts: list[dict[str, Any]], asked: list[dict[str, Any]] = CURVES
) -> list[dict[str, Any]]:
    """One chart for every entry asked for that the log has values of; acts of the watchman are marked in each."""
    result = []
    reference = {"train": "one half of the training images", "validation": "the validation images"}.get(
        ticks[-1].get("reference", "") if ticks else "", "real images"
    )
    thousands = bool(ticks) and ticks[-1]["images"] >= 5000
    marks = sorted({act["images"] / (1000 if thousands else 1) for act in acts})
    for curve in asked:
        series = []
        for key, label, colour in curve["keys"]:
            points = [
                (row["images"] / (1000 if thousands else 1), row[key])
                for row in ticks
                if isinstance(row.get(key), (int, float)) and math.isfinite(row[key])
            ]
            points = points[:: math.ceil(len(points) / 400)] if points else []
            if points:
                series.append(
                    {
                        "label": label,
                        "x": [x for x, _ in points],
                        "y": [y for _, y in points],
                        "colour": colour,
                        "dashed": colour == "synthetic" and len(curve["keys"]) > 1,
                    }
                )
        if not series:
            continue
        values = [y for one in series for y in one["y"]]
        log = curve["name"] in ("quality", "penalties") and min(values) > 0 and max(values) / min(values) > 8
        x_label = "Training images seen (thousands)" if thousands else "Training images seen"
        chart = figures.lines(
            curve["name"],
            curve["title"],
            x_label,
            curve["y"] + (" (log.)" if log else ""),
            series,
            curve["reference"],
            log,
            marks[:: math.ceil(len(marks) / MOST_ACTS)] if marks else (),
        )
        result.append({"title": curve["title"], "words": curve["words"].format(reference=reference), "svg": chart})
    return result


def sample_strip(paths: list[Path]) -> list[dict[str, Any]]:
    """The first, middle and last sample sheet of the training."""
    chosen = [paths[i] for i in sorted({0, len(paths) // 2, len(paths) - 1})] if paths else []
    result = []
    for path in chosen:
        seen = images_seen(path)
        try:
            result.append(
                {
                    "image": figures.shrink(path, 560, 560, synthetic=True),
                    "words": "" if seen is None else f"after {seen:,} images",
                }
            )
        except OSError:
            continue
    return result


def metrics(folder: RunFolder) -> dict[str, Any] | None:
    """The table of metrics, the forest plot of ratios, and what was not computed."""
    if not folder.metrics:
        return None
    named = folder.metrics.get("metrics")
    rows = [
        metric_row(name, metric)
        for name, metric in (named if isinstance(named, dict) else {}).items()
        if isinstance(metric, dict)
    ]
    marks = [row["mark"] for row in rows if row["mark"] is not None]
    chart = (
        figures.ratios(
            "ratios", "Each distance as a multiple of the distance between two halves of the real data", marks
        )
        if marks
        else None
    )
    skipped = folder.metrics.get("not_computed")
    return {
        "rows": rows,
        "svg": chart,
        "setup": setup_words(folder.metrics),
        "not_computed": sorted(skipped.items()) if isinstance(skipped, dict) else [],
    }


def metric_row(name: str, metric: dict[str, Any]) -> dict[str, Any]:
    value, floor, bounds, floor_bounds = (metric.get(key) for key in ("value", "floor", "interval", "floor_interval"))
    like, floor_like = ([one for one in [middle, *(ends or [])] if isinstance(one, (int, float)) and math.isfinite(one)] or [0.0]
                        for middle, ends in ((value, bounds), (floor, floor_bounds)))  # fmt: skip
    counts = metric.get("counts") or {}
    how = "; ".join(
        [
            *(f"{number(found)} {'synthetic' if side == 'fake' else side}" for side, found in counts.items()),
            *sentences(metric.get("extractor")),
        ]
    )
    better = {"lower": "lower", "higher": "higher", "chance": "near chance"}.get(str(metric.get("better")), "–")
    return {
        "title": metric.get("title") or name, "name": name, "value": number(value, like), "interval": interval(bounds, like), "floor": number(floor, floor_like),
        "floor_interval": interval(floor_bounds, floor_like), "ratio": number(metric.get("ratio"), metric.get("ratio")), "better": better,
        "words": metric.get("words") or "", "how": how, "mark": ratio_mark(metric, name),
    }  # fmt: skip


def ratio_mark(metric: dict[str, Any], name: str) -> dict[str, Any] | None:
    """A row of the forest plot; only distances (lower is better) with a positive ratio belong there."""
    ratio, floor, bounds = metric.get("ratio"), metric.get("floor"), metric.get("interval")
    if metric.get("better") != "lower" or not isinstance(ratio, (int, float)) or not 0 < ratio < math.inf:
        return None
    usable = (
        isinstance(floor, (int, float))
        and floor > 0
        and isinstance(bounds, list)
        and len(bounds) == 2
        and all(isinstance(one, (int, float)) and one > 0 for one in bounds)
    )
    low, high = (bounds[0] / floor, bounds[1] / floor) if usable and bounds and floor else (None, None)
    return {"title": str(metric.get("title") or name), "ratio": ratio, "low": low, "high": high}


def setup_words(measured: dict[str, Any]) -> list[str]:
    """How the comparison was set up."""
    real, fake, train = (measured.get(side) or {} for side in ("real", "fake", "train"))
    words = []
    if real.get("count") is not None and fake.get("count") is not None:
        split = f" of the {real['split']} split" if real.get("split") else ""
        words.append(f"{number(fake['count'])} synthetic images were compared with {number(real['count'])} real images{split}, which the model never learned from." if real.get("split") == "holdout"
                     else f"{number(fake['count'])} synthetic images were compared with {number(real['count'])} real images{split}.")  # fmt: skip
    if train.get("count") is not None:
        words.append(
            f"{number(train['count'])} training images served for the search of copies and for the real/real floor."
        )
    if measured.get("draws") and measured.get("compared_per_draw"):
        words.append(
            f"Values are over {number(measured['draws'])} random draws of {number(measured['compared_per_draw'])} images a side; the interval says how far they vary between draws."
        )
    if real.get("split_level") in ("study", "image", "unknown"):
        words.append(
            "Real and training images were not kept apart by patient, so that a copied patient is harder to notice and the scores look better than they would in new patients."
        )
    return words


def nearest(folder: RunFolder, real_images: bool) -> dict[str, Any] | None:
    """The picture of the closest pairs and their table."""
    pairs = folder.metrics.get("nearest")
    rows = [
        {"fake": one.get("fake"), "train": one.get("train"), "similarity": number(one.get("similarity"), 0.5)}
        for one in pairs or []
        if isinstance(one, dict)
    ]
    picture = None
    if folder.nearest is not None and real_images:
        try:
            picture = figures.shrink(folder.nearest, 900, 1400, synthetic=False)
        except OSError:
            picture = None
    return (
        {"image": picture, "rows": rows, "held_back": folder.nearest is not None and not real_images}
        if rows or folder.nearest
        else None
    )


def limits(folder: RunFolder) -> dict[str, Any]:
    """What this evaluation cannot tell, the scorecard, and how to mark and cite."""
    version, model = software(folder), folder.model_hash
    made = folder.images.get("count") or len(folder.synthetic_files) or (folder.metrics.get("fake") or {}).get("count")
    learned = (
        len(folder.dataset.rows("train"))
        if folder.dataset is not None
        else (folder.metrics.get("train") or {}).get("count")
    )
    cite = f"{number(made)} synthetic images were generated" if made else "Synthetic images were generated"
    cite += f" with scansmith {version}" + (f" (model {model}, seed {seed_of(folder)})" if model else "")
    cite += f" by a model trained on {number(learned)} images" if learned else ""
    return {
        "not_checked": sentences(folder.metrics.get("not_checked")),
        "scorecard": scorecard(folder),
        "cite": cite + ".",
        "format": str(folder.images.get("format") or ""),
        "slices": folder.dataset is not None
        and folder.dataset.info.get("dimensions") == 3
        and len(folder.dataset.shape) == 3,
    }


def scorecard(folder: RunFolder) -> list[dict[str, str]]:
    """The seven criteria of Zamzmi et al. 2025 (Communications Engineering 4:130) and what this page has for each."""
    named = folder.metrics.get("metrics") or {}
    spread = [
        str(metric.get("title") or name)
        for name, metric in named.items()
        if any(word in name.lower() for word in ("recall", "coverage", "diversity", "vendi"))
    ]
    draws = folder.metrics.get("draws")
    return [
        {"name": "Congruence", "asks": "Do the images look like real ones?", "found": "Section 5: distances beside the real/real floor." if named else "Not assessed: no metrics."},
        {"name": "Coverage", "asks": "Is the variety of real patients there?", "found": f"Section 5: {', '.join(spread)}." if spread else "Not assessed."},
        {"name": "Constraint", "asks": "Do anatomy and physics hold?", "found": "Not assessed: needs readers or a segmentation that can be trusted."},
        {"name": "Completeness", "asks": "Is everything there that the task needs?", "found": "Images, window and class only; no clinical data, no reports, no follow-up."},
        {"name": "Compliance", "asks": "Do privacy, format and marking rules hold?", "found": "Section 6: closest training images; section 7: marking. The legal question is not answered here."},
        {"name": "Comprehension", "asks": "Is it clear how they were made and where they fail?", "found": "This page; settings in section 4, commands and versions in section 8."},
        {"name": "Consistency", "asks": "Do the results hold across repeats and sites?", "found": (f"Intervals over {number(draws)} random draws; " if draws else "") + "one training, one data set; other seeds and sites were not assessed."},
    ]  # fmt: skip


def again(folder: RunFolder) -> dict[str, Any]:
    """Commands, versions, seed and hashes."""
    seed, asked = seed_of(folder), request(folder)
    labels = {"auto": None, "none": "none"}.get(
        str(asked.get("labels", "auto")), "TABLE.csv"
    )  # never the table's own path
    plan = shlex.quote(json.dumps(asked["plan"])) if asked.get("plan") else None
    found = {"modality": asked.get("modality"), "labels": labels, "plan": plan}
    task, pairs, masks = (asked.get(name) for name in ("task", "pairs", "masks"))
    translated = {
        "task": None if task == "auto" else task,
        "to": "TARGET" if asked.get("to") else None,
        "pairs": "TABLE.csv" if pairs == "table" else pairs and shlex.quote(pairs),
        "masks": None if masks in (None, "auto") else shlex.quote(masks),
    }
    made = folder.images.get("count") or len(folder.synthetic_files)
    recorded = folder.run.get("versions")
    versions = (
        {str(name): str(version) for name, version in recorded.items()}
        if isinstance(recorded, dict)
        else installed_versions()
    )
    facts = {
        "Seed": seed, "Model (SHA-256 of weights and configuration, first 16 digits)": folder.model_hash, "Prepared data (SHA-256)": folder.data_hash,
        "Synthetic images": made or None,
    }  # fmt: skip
    training = {"minutes": folder.run.get("training_minutes"), "seed": seed}
    stages = [
        f"scansmith prepare SCANS OUT/dataset{flags({**found, 'seed': seed})}",
        f"scansmith train OUT/dataset OUT/train{flags(training)}",
        f"scansmith synthesize OUT/train/model OUT/images{flags({'count': made or None, 'seed': seed})}",
        f"scansmith evaluate OUT/dataset OUT/images OUT{flags({'seed': seed})}",
        "scansmith report OUT",
    ]
    if folder.without_pairs:
        own, _, wished = str(asked.get("modality") or "").partition(":")
        sides = {
            "modality": wished or None,
            "labels": "none",
            "masks": "none",
            "plan": plan_of_targets(folder),
            "seed": seed,
        }
        stages[:4] = [
            f"scansmith prepare SCANS OUT/dataset{flags({**found, 'modality': own or None, 'seed': seed})}",
            f"scansmith prepare TARGET OUT/target{flags(sides)}",
            f"scansmith train OUT/dataset OUT/train{flags({'task': 'unpaired', 'to': 'OUT/target', **training})}",
            "scansmith translate OUT/train/model HELD_OUT_SCANS OUT/translated",
            f"scansmith evaluate OUT/target OUT/translated OUT{flags({'seed': seed})}",
        ]
    if not plan and folder.dataset is not None and len(folder.dataset.shape) == 4:
        plan = shlex.quote(
            json.dumps({"dimensions": 3})
        )  # `run` takes volumes for some tasks where `prepare` takes slices
    pairs_of = translated["pairs"] or translated["to"]
    return {
        "prepared": {**found, "pairs": pairs_of, "masks": translated["masks"], "plan": plan, "seed": seed},
        "command": "scansmith run SCANS OUT" + flags({"minutes": asked.get("minutes"), "count": asked.get("count"), **translated, **found, "seed": seed}),
        "stages": stages,
        "versions": versions, "recorded": isinstance(recorded, dict), "facts": {term: fact for term, fact in facts.items() if fact is not None},
    }  # fmt: skip


def plan_of_targets(folder: RunFolder) -> str | None:
    """The plan with which scans to translate to lie on the sources' grid, without pairs."""
    if folder.dataset is None:
        return None
    info = folder.dataset.info
    kept = {"dimensions": 3 if info.get("depth") else 2} | ({"spacing": info["spacing"]} if info.get("spacing") else {})
    return shlex.quote(json.dumps(kept))


def flags(options: dict[str, Any]) -> str:
    """ " --minutes 10 --seed 7"; what is None is left out."""
    given = {name: f"{value:g}" if isinstance(value, float) else value for name, value in options.items()}
    return "".join(f" --{name} {value}" for name, value in given.items() if value is not None)


def installed_versions() -> dict[str, str]:
    """Versions of the packages that results depend on, as installed where this page was made."""
    names = ("scansmith", "torch", "numpy", "scipy", "scikit-image", "pydicom", "nibabel", "SimpleITK")
    return {name: metadata.version(name) for name in names}
