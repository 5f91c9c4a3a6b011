"""The page of a translation or a segmentation: how far from the true scans, where it is worst, and what it may be trusted with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..runtime import write_atomic
from . import figures, page
from .folder import RunFolder
from .words import flat, interval, number, sentences

JUDGED = ("translation", "segmentation")  # what metrics.json calls itself, and the method that is judged
SECTIONS = {
    "worst": "The worst cases first", "metrics": "Error beside simple methods", "bounds": "How sure it is", "lesions": "Lesions",
    "slices": "Blur and flicker", "refusal": "What is refused", "data": "The data found", "training": "How it was learned",
    "limits": "What this does not show", "again": "How to reproduce",
}  # fmt: skip
ONLY = {"bounds": "translation", "lesions": "translation", "slices": "translation"}  # sections of one task
TASKS = {
    "paired": "Translation of {source} to {target}", "unpaired": "Translation of {source} to {target}, learned without pairs",
    "denoise": "Denoising of {source}", "superresolve": "Super-resolution of {source}", "paint": "{target} painted from label maps",
}  # fmt: skip
METHODS = {
    "translation": "This model", "segmentation": "This model", "line": "Straight line through the values", "histogram": "Matched histograms",
    "identity": "The source as it is", "floor": "Reference, its noise anew (floor)", "threshold": "Threshold on intensity", "atlas": "Mean of the training masks",
}  # fmt: skip
# First word of a metric -> title, unit (None: the result's), what is better.
METRICS: dict[str, tuple[str, str | None, str]] = {
    "mae": ("Mean absolute error", None, "lower"), "psnr": ("PSNR", "dB", "higher"), "ssim": ("SSIM", "", "higher"),
    "ms_ssim": ("MS-SSIM", "", "higher"), "vif": ("VIF", "", "higher"), "dice": ("Dice", "", "higher"), "hd95": ("95 % surface distance", None, "lower"),
}  # fmt: skip
TISSUES = {"body": "whole body"}
CURVES: list[dict[str, Any]] = [
    {"name": "quality", "title": "Error", "y": "Error ÷ simple method's", "keys": [("quality", "this model", "synthetic")], "reference": 1.0,
     "words": "Error on {reference} as a share of a simple method's (dotted at 1). Lower is better."},
    {"name": "sharpness", "title": "Sharpness", "y": "Differences ÷ reference's", "keys": [("sharpness", "sharpness", "synthetic")], "reference": 1.0,
     "words": "How much neighbouring pixels differ, as a share of what they do in the reference (dotted). Below 1 is blur, or less noise."},
    {"name": "losses", "title": "Losses", "y": "Loss", "keys": [("loss_g", "translator", "synthetic"), ("loss_d", "discriminator", "real")], "reference": None,
     "words": "The loss on training patches."},
]  # fmt: skip


def judged(folder: RunFolder) -> bool:
    """Whether metrics.json is of a model that translates or segments."""
    return folder.metrics.get("task") in JUDGED


def write(out: Path, *, title: str | None, real_images: bool, seed: int) -> dict[str, Any]:
    """Write OUT/report.html from the evaluation of a translation and what else lies there; see `report`."""
    folder = RunFolder(out)
    task = folder.metrics["task"]
    sections = {name: words for name, words in SECTIONS.items() if ONLY.get(name, task) == task}
    context = {
        "header": header(folder, title), "real_images": real_images, "sections": sections, "worst": worst(folder, real_images),
        "metrics": metrics(folder), "bounds": bounds(folder), "lesions": lesions(folder), "slices": slices(folder), "refusal": refusal(folder),
        "data": page.data(folder, seed), "plan": page.plan(folder), "training": training(folder), "limits": limits(folder), "again": again(folder),
    }  # fmt: skip
    html = page.environment().get_template("translation.html").render(context)
    write_atomic(out / "report.html", html)
    return {
        "report": "report.html",
        "bytes": len(html.encode()),
        "sections": list(sections.values()),
        "missing": [name for name, part in (("dataset/", folder.dataset), ("train/", folder.ticks)) if not part],
    }


# ------------------------------------------------------------------------------------------------ sections


def header(folder: RunFolder, title: str | None) -> dict[str, Any]:
    """Title, verdict and what identifies model and data."""
    found = folder.metrics
    facts = {
        "Software": f"scansmith {page.software(folder)}", "Judged": f"{number(found.get('patients'))} {found.get('split')} patients",
        "Seed": page.seed_of(folder), "Model": found.get("model"), "Data": folder.data_hash and folder.data_hash[:16],
    }  # fmt: skip
    elsewhere = {found.get(name, {}).get("words") for name in ("constant",) if found.get(name)}
    elsewhere |= set((found.get("sources") or {}).get("words", []))
    lesioned = (found.get("lesions") or {}).get("words", [])
    elsewhere |= {*lesioned[1:2], *lesioned[-1:]}
    return {
        "title": title or named(folder),
        "facts": {term: "not known" if fact is None else fact for term, fact in facts.items()},
        "verdict": [one for one in sentences(found.get("words")) if one not in elsewhere],
    }


def named(folder: RunFolder) -> str:
    """ "Translation of MR to CT"."""
    found = folder.metrics
    if found["task"] == "segmentation":
        return "Segmentation"
    kinds = {side: (found.get(side) or {}).get("modality", "scans") for side in ("source", "target")}
    return TASKS.get(found.get("translation", ""), TASKS["paired"]).format(**kinds)


def worst(folder: RunFolder, real_images: bool) -> dict[str, Any]:
    """The pictures of the evaluation, worst first."""
    entries = folder.metrics.get("pictures") or []
    rows = list(figures.pictures(folder.root, entries, (page.WIDEST, page.TALLEST))) if real_images else []
    bounds = bool(folder.metrics.get("calibration"))
    return {"rows": rows, "held_back": bool(entries) and not real_images, "bounds": bounds, "task": folder.metrics["task"]}  # fmt: skip


def metrics(folder: RunFolder) -> dict[str, Any]:
    """A row for each metric with this model beside simple methods, and the first of them as a chart."""
    found = {name: numbers for name, numbers in (folder.metrics.get("metrics") or {}).items() if name in METHODS}
    own = folder.metrics["task"]
    methods = [own, *(name for name in found if name != own)]
    rows = [row(name, folder, methods) for name in found.get(own, {})]
    return {
        "methods": [METHODS[name] for name in methods],
        "rows": rows,
        "svg": chart(folder, methods),
        "sources": (folder.metrics.get("sources") or {}).get("words", []),
        "each": each(folder),
    }


def unit_of(name: str, units: Any) -> tuple[str, str, str]:
    """(title, unit, what is better) of a metric such as "psnr chest" or "hd95 2"."""
    first, _, rest = name.partition(" ")
    title, unit, better = METRICS.get(first, (first, "", ""))
    more = f", {'label' if rest.isdigit() else 'window'} {rest}" if rest else ""
    return title + more, str(units) if unit is None else unit, better


def row(name: str, folder: RunFolder, methods: list[str]) -> dict[str, Any]:
    """One metric."""
    title, unit, better = unit_of(name, folder.metrics.get("units"))
    cells, best = [], None
    for method in methods:
        entry = folder.metrics["metrics"].get(method, {}).get(name) or {}
        value = entry.get("value")
        cells.append({"value": number(value), "interval": interval(entry.get("interval"), value), "best": False})
        score = None if value is None else -value if better == "lower" else value
        if score is not None and better and method != "floor" and (best is None or score > best[0]):
            best = (score, cells[-1])
    if best is not None:
        best[1]["best"] = True
    return {"title": title + (f" ({unit})" if unit else ""), "better": better, "cells": cells}


def chart(folder: RunFolder, methods: list[str]) -> Any:
    """The first metric of each method, with its interval."""
    name = "mae" if folder.metrics["task"] == "translation" else "dice"
    title, unit, _ = unit_of(name, folder.metrics.get("units"))
    marks = []
    for method in methods:
        entry = folder.metrics["metrics"].get(method, {}).get(name) or {}
        low, high = entry.get("interval") or (None, None)
        if entry.get("value") is not None:
            marks.append({"title": METHODS[method], "ratio": entry["value"], "low": low, "high": high})
    label = title + (f" ({unit})" if unit else "")
    return figures.ratios("methods", f"{title} of each method", marks, label, None, False) if marks else None


def each(folder: RunFolder) -> list[str]:
    """One figure per patient where there is no interval."""
    name = "mae" if folder.metrics["task"] == "translation" else "dice"
    entry = folder.metrics["metrics"].get(folder.metrics["task"], {}).get(name) or {}
    return [] if entry.get("interval") else [number(value, entry.get("value")) for value in entry.get("each", [])]


def bounds(folder: RunFolder) -> dict[str, Any] | None:
    """What the bounds promise, what they kept by tissue, and bounds of one width beside them."""
    found = folder.metrics
    if not found.get("calibration"):
        return None
    constant = found.get("constant") or {}
    beside = (constant.get("coverage") or {}).get("constant", {})
    rows = [
        {
            "tissue": TISSUES.get(name, name), "own": percent(entry), "interval": percents(entry.get("interval")),
            "constant": percent(beside[name]) if name in beside else "–",
        }
        for name, entry in (found.get("coverage") or {}).items()
    ]  # fmt: skip
    return {
        "promise": found["calibration"]["words"],
        "asked": f"{1.0 - found['calibration']['alpha']:.0%}",
        "uncalibrated": found["calibration"]["method"] == "uncalibrated",
        "rows": rows,
        "width": f"{number((found.get('width') or {}).get('value'))} {found.get('units')}",
        "constant": constant.get("words"),
    }


def percent(entry: dict[str, Any]) -> str:
    return "–" if entry.get("value") is None else f"{100 * entry['value']:.1f} %"


def percents(ends: Any) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %" if ends else ""


def lesions(folder: RunFolder) -> dict[str, Any] | None:
    """What became of inserted lesions."""
    found = folder.metrics.get("lesions")
    if not found:
        return None
    shares = {
        "survival": ("Put into the source: still seen in the translation", "higher"),
        "left": ("Taken out again: still leave a trace", f"near {100 * found.get('chance', 0.05):.0f} %"),
        "creation": ("No lesion there: translation differs from reference by as much", "lower"),
    }
    rows = [
        {"title": title, "value": percent(found[name]), "count": f"{found[name]['hits']} of {found[name]['count']}",
         "interval": percents(found[name]["interval"]), "better": better}
        for name, (title, better) in shares.items() if found.get(name)
    ]  # fmt: skip
    return {"rows": rows, "words": [found["words"][0], found["words"][-1]]}


def slices(folder: RunFolder) -> dict[str, Any] | None:
    """How much the translation varies beside the reference."""
    found = folder.metrics.get("variation") or {}
    titles = {"slices": "From slice to slice", "in_plane": "Within slices"}
    rows = [
        {"title": title, "value": number(found[name]["value"]), "interval": interval(found[name]["interval"], 1.0)}
        for name, title in titles.items()
        if found.get(name) and found[name]["value"] is not None
    ]
    return {"rows": rows, "between": "slices" in found} if rows else None


def refusal(folder: RunFolder) -> dict[str, Any]:
    """How many held-out scans would be refused, and which of the translated ones were."""
    from .folder import read_json

    record = read_json(folder.root / "translated" / "translated.json")
    skipped = [str(one).rsplit(": ", 1)[-1] if "refused" not in str(one) else "refused" + str(one).split("refused", 1)[1] for one in record.get("skipped", [])]  # fmt: skip
    return {"found": folder.metrics.get("familiar"), "translated": record.get("count"), "skipped": skipped[:8]}


def training(folder: RunFolder) -> dict[str, Any] | None:
    """Curves and settings."""
    if not (folder.ticks or folder.recipe):
        return None
    settings = {
        page.TERMS.get(name, name): value for name, value in folder.recipe.items() if name not in ("request", "reasons")
    }
    return {
        "charts": page.curves(folder.ticks, folder.acts, CURVES), "acts": page.act_rows(folder.acts),
        "recipe": flat(settings), "reasons": sentences(folder.recipe.get("reasons")),
    }  # fmt: skip


def limits(folder: RunFolder) -> list[str]:
    """What no number on the page says."""
    found, said = folder.metrics, []
    if found["task"] == "translation":
        said = [
            "A translation is a guess from the source at what another scan would show. What the source does not show, it cannot know: it must not be read as a scan that was taken, nor used for diagnosis.",
            "A low mean error is no proof that a small finding is kept: it covers few voxels. The pictures above show where errors lie, the lesions what becomes of simulated spots.",
        ]
        if "floor" in (found.get("metrics") or {}):
            said.append(
                "The real/real floor is an estimate: the data hold one scan of each patient and kind, so it is what two scans with the noise of the reference's flattest places would differ by. Between two real scans the patient moves as well, and between those of a pair, too."
            )
        if found.get("translation") == "unpaired":
            said.append(
                "The model learned without pairs. If findings are more frequent in one kind of its training scans than in the other, it may add or remove them."
            )
        if found.get("target", {}).get("units") != "HU":
            said.append(
                "The target's values have no fixed scale: errors are in the units of these files and say nothing of another scanner's."
            )
    said.append("Everything is measured on scans like those that were learned from; other scanners and protocols were not tried. No reader has looked at the results.")  # fmt: skip
    said.append("How one training differs from another with the same data is not in the intervals.")
    return said


def again(folder: RunFolder) -> dict[str, Any]:
    """Commands, versions, seed and hashes."""
    found = page.again(folder)
    asked = {"seed": page.seed_of(folder)}
    stages = [
        f"scansmith prepare SCANS OUT/dataset{page.flags(found['prepared'])}",
        f"scansmith train OUT/dataset OUT/train{page.flags({'task': folder.metrics.get('translation', 'segment'), 'minutes': folder.run.get('training_minutes'), **asked})}",
        "scansmith translate OUT/train/model SCANS OUT/translated",
        f"scansmith evaluate OUT/dataset OUT/train/model OUT{page.flags(asked)}",
        "scansmith report OUT",
    ]
    return {**found, "stages": stages, "whole": bool(folder.run)}
