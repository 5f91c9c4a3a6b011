"""Verb `run`: from a folder of scans to a report, each stage in its own part of OUT; the same command goes on."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from .prepare.fingerprint import Plan
    from .train.probe import Probe

STAGES = ("prepare", "train", "synthesize", "evaluate", "report")
MOST_SCANS = 1000  # synthetic scans made by default, and never more than there are training images, but at least 200


def run(
    scans: Path,
    out: Path,
    *,
    minutes: float = 15.0,
    labels: str = "auto",
    modality: str | None = None,
    count: int | None = None,
    format: Literal["auto", "png", "nifti", "dicom"] = "auto",
    plan_only: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """From a folder of scans to synthetic scans with a verdict: prepare, train, synthesize, evaluate, report.

    The plan is printed before anything starts. OUT gets dataset/ train/ model/ images/ metrics.json report.html.
    Ctrl-C stops cleanly; the same command goes on where it stopped.

    Args:
        scans: folder of DICOM, NIfTI, NRRD, MetaImage, PNG or JPEG scans.
        out: folder for everything that comes out.
        minutes: the whole wall time.
        labels: "auto" takes sub-folders that look like classes, "none" takes none, otherwise the path of a CSV table.
        modality: CT, MR, CR or DX: which scans of a mixed folder to take, or what files without that word are.
        count: synthetic scans to make; default: as many as training images, 200 to 1000.
        format: of the synthetic scans; "auto" follows the source.
        plan_only: print the plan and stop.
        seed: the same seed, scans and machine give the same result.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"report", "verdict", "plan", "stages", "skipped"}; with `plan_only` {"plan"}.

    Raises:
        ValueError: there are too few usable scans, or OUT holds a run with other settings.
        Interrupted: Ctrl-C; the same command goes on.
    """
    from . import __version__
    from .prepare import plan as survey_scans
    from .prepare.write import refuse_inside
    from .runtime import write_atomic, write_json

    began, out = time.monotonic(), Path(out)
    request = {
        "minutes": minutes,
        "labels": labels,
        "modality": modality,
        "count": count,
        "format": format,
        "seed": seed,
    }
    state = earlier_state(out, request)
    if not state:
        found = survey_scans(Path(scans), labels=labels, modality=modality, seed=seed)
        if not plan_only:
            refuse_inside(Path(scans), out)
            write_atomic(out / ".writable", "")  # fail now, not after the minutes
            (out / ".writable").unlink()
        probed = probe_training(found, minutes, seed, device)
        plan, budget = describe(found, probed, minutes)
        state = {
            "version": __version__,
            "request": request,
            "plan": plan,
            "stages": {name: {"planned_s": budget[name]} for name in STAGES},
        }
        print("\n".join(["Plan", *(f"  - {sentence}" for sentence in plan)]), file=sys.stderr, flush=True)
        if plan_only:
            return {"plan": plan}
        write_json(out / "run.json", state)
        state["before_s"] = time.monotonic() - began
    else:
        probed = None
        print(f"Going on with the run in {out}", file=sys.stderr, flush=True)
    results = carry_out(Path(scans), out, request, state, probed, device)
    return {
        "report": str(out / "report.html"),
        "verdict": results["evaluate"]["verdict"],
        "plan": state["plan"],
        "stages": state["stages"],
        "skipped": results["prepare"].get("skipped", []),
    }


def carry_out(
    scans: Path, out: Path, request: dict[str, Any], state: dict[str, Any], probed: Probe | None, device: str
) -> dict[str, Any]:
    """All stages in turn; each one's seconds go to run.json when it ends."""
    from .evaluate import evaluate
    from .prepare import prepare
    from .report import report
    from .runtime import write_json
    from .synthesize import synthesize
    from .train.stage import run_training

    results: dict[str, Any] = {}

    def train() -> dict[str, Any]:
        spent = state.get("before_s", 0.0) + state["stages"]["prepare"]["seconds"]
        after = sum(state["stages"][name]["planned_s"] for name in STAGES[2:])
        granted = state.setdefault("training_minutes", round(max(0.1, request["minutes"] - (spent + after) / 60.0), 3))
        write_json(out / "run.json", state)
        return run_training(
            out / "dataset",
            out / "train",
            granted,
            "relativistic",
            None,
            None,
            out / "model",
            request["seed"],
            device,
            probed,
        )

    def synthesized() -> dict[str, Any]:
        made = request["count"] or min(MOST_SCANS, max(200, results["prepare"]["splits"]["train"]["images"]))
        return synthesize(
            out / "model", out / "images", count=made, format=request["format"], seed=request["seed"], device=device
        )

    work: dict[str, Callable[[], dict[str, Any]]] = {
        "prepare": lambda: prepare(
            scans, out / "dataset", labels=request["labels"], modality=request["modality"], seed=request["seed"]
        ),
        "train": train,
        "synthesize": synthesized,
        "evaluate": lambda: evaluate(out / "dataset", out / "images", out, seed=request["seed"], device=device),
        "report": lambda: report(out),
    }
    for name in STAGES:
        stage, start = state["stages"][name], time.monotonic()
        if stage.get("done") and name in (
            "synthesize",
            "evaluate",
        ):  # the others see by themselves that nothing is left to do
            results[name] = json.loads((out / "metrics.json").read_text()) if name == "evaluate" else {}
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = work[name]()
        stage |= {"seconds": round(stage.get("seconds", 0.0) + time.monotonic() - start, 1), "done": True}
        write_json(out / "run.json", state)
    return results


def earlier_state(out: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What run.json of an earlier start says; {} for a new folder.

    Raises:
        ValueError: it was started with other settings.
    """
    path = out / "run.json"
    if not path.is_file():
        return {}
    state: dict[str, Any] = json.loads(path.read_text())
    different = sorted(name for name in request if state["request"].get(name) != request[name])
    if different:
        changes = ", ".join(f"{name} {state['request'].get(name)!r} -> {request[name]!r}" for name in different)
        raise ValueError(
            f"expected the settings that the run in {out} was started with, found {changes}: choose another folder, or remove this one to start anew"
        )
    return state


def probe_training(found: Plan, minutes: float, seed: int, device: str) -> Probe:
    """What this machine can do with such scans in the minutes."""
    from dataclasses import replace

    from .runtime import choose_device
    from .train.probe import Task, probe
    from .train.recipes import RECIPES

    task = Task(found.channels, found.height, found.width, len(found.labels), max(1, round(0.7 * found.images)))
    seconds = stage_budget(found, minutes)["train"]
    return probe(replace(RECIPES["relativistic"], seed=seed), task, seconds, None, choose_device(device))


def describe(found: Plan, probed: Probe, minutes: float) -> tuple[list[str], dict[str, float]]:
    """The plan in sentences, and the seconds each stage is given."""
    budget = stage_budget(found, minutes)
    spent = ", ".join(f"{name} {duration(budget[name])}" for name in STAGES)
    _, training = probed.lasting(probed.images_in(budget["train"]))
    sentences = [*found.reasons, *training, f"{minutes:g} minutes in all: {spent}"]
    if budget["train"] < 0.5 * 60.0 * minutes:
        sentences.append(
            "the stages around the training need most of the time here: more minutes would serve the training alone"
        )
    return sentences, budget


def stage_budget(found: Plan, minutes: float) -> dict[str, float]:
    """Seconds for each stage, from costs measured on two cores; training takes what the others leave."""
    scans = min(MOST_SCANS, max(200, round(0.7 * found.images)))
    megapixels = found.images * found.height * found.width / 1e6
    budget = {
        "prepare": 3.0 + 0.003 * found.images + 0.1 * megapixels,
        "synthesize": 3.0 + 0.012 * scans,
        "evaluate": 15.0 + 0.025 * scans,
        "report": 6.0,
    }
    budget["train"] = max(5.0, 60.0 * minutes - sum(budget.values()) - 20.0)  # 20 s: survey and probe
    return {name: round(budget[name], 1) for name in STAGES}


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
