"""The line of a run: its stages one after the other, each in its own part of OUT, with its seconds in run.json."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .job import Job
from .plan import Found, describe, probe_training, stages_of, survey, synthetic_count

if TYPE_CHECKING:
    from ..train.probe import Probe

MOST_LISTED = 20  # scans without a partner that are named
MOST_TRANSLATED = 100  # held-out scans that are translated


@dataclass
class Run:
    """A run on its way.

    Attributes:
        job: what was asked for.
        state: the content of run.json.
        probed: what the probe found in this call.
        results: stage -> what it gave.
    """

    job: Job
    state: dict[str, Any]
    probed: Probe | None
    results: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def task(self) -> str:
        return str(self.state["task"])

    @property
    def out(self) -> Path:
        return self.job.out

    def keep(self) -> None:
        """Write run.json."""
        from ..runtime import write_json

        write_json(self.out / "run.json", self.state)


def carry_out(job: Job, plan_only: bool) -> dict[str, Any]:
    """See `scansmith.run.run`."""
    job.refuse()
    state, probed = job.earlier_state(), None
    if state:
        print(f"Going on with the run in {job.out}", file=sys.stderr, flush=True)
    else:
        state, probed = begin(job, plan_only)
    if plan_only:
        return {"plan": state["plan"]}
    run = Run(job, state, probed)
    for name in stages_of(run.task):
        pass_through(run, name)
    return {
        "report": str(job.out / "report.html"),
        "verdict": run.results["evaluate"].get("verdict") or run.results["evaluate"].get("words", []),
        "plan": state["plan"],
        "stages": state["stages"],
        "skipped": [*run.results["prepare"].get("skipped", []), *run.results.get("translate", {}).get("skipped", [])],
    }


def begin(job: Job, plan_only: bool) -> tuple[dict[str, Any], Probe]:
    """Survey the scans, probe the machine, print the plan; unless `plan_only`, write the first run.json."""
    from .. import __version__
    from ..prepare.write import refuse_inside
    from ..runtime import write_atomic, write_json

    began = time.monotonic()
    found = survey(job)
    if not plan_only:
        for folder in (job.scans, *([job.to] if job.to else [])):
            refuse_inside(folder, job.out)
        write_atomic(job.out / ".writable", "")  # fail now, not after the minutes
        (job.out / ".writable").unlink()
    probed = probe_training(job, found)
    plan, budget = describe(job, found, probed)
    print("\n".join(["Plan", *(f"  - {sentence}" for sentence in plan), *alone(found)]), file=sys.stderr, flush=True)
    state = {
        "version": __version__,
        "request": job.request(),
        "task": found.task,
        "plan": plan,
        "stages": {name: {"planned_s": budget[name]} for name in stages_of(found.task)},
        "before_s": round(time.monotonic() - began, 1),
    }
    if not plan_only:
        write_json(job.out / "run.json", state)
    return state, probed


def alone(found: Found) -> list[str]:
    """The scans without a partner by their names, for the terminal alone."""
    from ..prepare.scans import NO_PARTNER

    files = [entry.file for entry in found.scans.skipped if entry.reason == NO_PARTNER]
    more = [f"      and {len(files) - MOST_LISTED} more"] if len(files) > MOST_LISTED else []
    named = [f"      {file}" for file in files[:MOST_LISTED]]
    return ["    without a partner:", *named, *more] if files else []


def pass_through(run: Run, name: str) -> None:
    """One stage; its seconds go to run.json when it ends."""
    stage, start = run.state["stages"][name], time.monotonic()
    # The other stages see by themselves that nothing is left to do.
    if stage.get("done") and name in KEPT:
        run.results[name] = KEPT[name](run)
        return
    print(f"{name} ...", file=sys.stderr, flush=True)
    run.results[name] = WORK[name](run)
    stage |= {"seconds": round(stage.get("seconds", 0.0) + time.monotonic() - start, 1), "done": True}
    run.keep()


# ------------------------------------------------------------------------------------------------ stages


def prepare(run: Run) -> dict[str, Any]:
    """OUT/dataset; without pairs also OUT/target, with voxels of the same size."""
    from ..dataset import Dataset
    from ..prepare.write import prepare as prepared

    job = run.job
    result = prepared(job.scans, run.out / "dataset", job.asked(run.task))
    if run.task != "unpaired":
        return result
    to = job.to
    assert to is not None
    chosen = Dataset.open(run.out / "dataset").info["choices"]
    spacing = tuple(chosen["spacing"]) if chosen["spacing"] else None
    targets = job.of_targets(
        lambda asked: prepared(to, run.out / "target", asked), chosen["stored_dimensions"], spacing
    )
    return {**result, "skipped": [*result.get("skipped", []), *targets.get("skipped", [])], "target": targets}


def train(run: Run) -> dict[str, Any]:
    """OUT/train and OUT/model, in the minutes that the stages before it left and those after it need."""
    from ..dataset import Dataset
    from ..train.pairs import apart
    from ..train.stage import Wish, run_training

    state, out = run.state, run.out
    if "training_minutes" not in state:
        before = state["before_s"] + state["stages"]["prepare"]["seconds"]
        after = sum(state["stages"][name]["planned_s"] for name in stages_of(run.task)[2:])
        state["training_minutes"] = round(max(0.1, run.job.minutes - (before + after) / 60.0), 3)
        run.keep()
    to = out / "target" if run.task == "unpaired" else None
    wish = Wish(state["training_minutes"], seed=run.job.seed, task=run.task, to=to)
    # Pairs that turn out to lie apart are learned with another network than the one that was timed.
    probed = None if apart(Dataset.open(out / "dataset")) else run.probed
    return run_training(out / "dataset", out / "train", wish, run.job.device, out / "model", probed)


def synthesize(run: Run) -> dict[str, Any]:
    """OUT/images."""
    from ..synthesize import synthesize as synthesized

    count = synthetic_count(run.job.count, run.results["prepare"]["splits"]["train"]["images"])
    return synthesized(run.out / "model", run.out / "images", count=count, seed=run.job.seed, device=run.job.device)


def translate(run: Run) -> dict[str, Any]:
    """OUT/translated: the scans of patients that nothing was learned from, in their format."""
    from ..prepare.write import held_out
    from ..translate import translate_files

    scans = held_out(run.out / "dataset", "masks" if run.task == "paint" else "source")
    if len(scans) > MOST_TRANSLATED:
        print(f"translating {MOST_TRANSLATED} of {len(scans)} held-out scans", file=sys.stderr, flush=True)
    files = [file for scan in scans[:MOST_TRANSLATED] for file in scan]
    # The dataset knows whole paths.
    folder, out, device = run.job.scans.absolute(), run.out / "translated", run.job.device
    try:
        made = translate_files(run.out / "model", folder, files, out, True, False, device)
    except ValueError as error:  # the judgement of the dataset's own rows goes on
        print(f"nothing translated: {error}", file=sys.stderr, flush=True)
        return {"count": 0, "skipped": [str(error)]}
    return {"count": made["count"], "skipped": made["skipped"]}


def evaluate(run: Run) -> dict[str, Any]:
    """OUT/metrics.json."""
    from ..evaluate import evaluate as evaluated

    real, fake = JUDGED.get(run.task, ("dataset", "model"))
    if run.task == "unpaired" and not read_json(run.out / "translated" / "translated.json").get("files"):
        reasons = run.results.get("translate", {}).get("skipped") or ["no scan is held out"]
        why = f"no held-out scan was translated, so nothing was judged: {'; '.join(reasons)}"
        print(why, file=sys.stderr, flush=True)
        return {"words": [why]}
    result = evaluated(run.out / real, run.out / fake, run.out, seed=run.job.seed, device=run.job.device)
    return beside(run, result) if run.task == "unpaired" else result


def beside(run: Run, result: dict[str, Any]) -> dict[str, Any]:
    """The result with pictures of held-out scans beside their translations, in OUT/metrics.json, too."""
    from ..dataset import Dataset
    from ..evaluate.without_pairs import drawn_beside
    from ..model import load
    from ..runtime import write_json

    data, other = (Dataset.open(run.out / name) for name in ("dataset", "target"))
    found = result | {"unpaired": drawn_beside(data, other, load(run.out / "model"), run.out, run.job.device)}
    write_json(run.out / "metrics.json", found)
    return found


def report(run: Run) -> dict[str, Any]:
    """OUT/report.html."""
    from ..report import report as reported

    return reported(run.out)


def read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.is_file() else {}


# Task -> what is judged beside what; the others are judged on the held-out rows of the dataset, by their model.
JUDGED = {"make": ("dataset", "images"), "unpaired": ("target", "translated")}
WORK: dict[str, Callable[[Run], dict[str, Any]]] = {
    "prepare": prepare,
    "train": train,
    "synthesize": synthesize,
    "translate": translate,
    "evaluate": evaluate,
    "report": report,
}
# What a stage gave that is done.
KEPT: dict[str, Callable[[Run], dict[str, Any]]] = {
    "synthesize": lambda run: {},
    "translate": lambda run: read_json(run.out / "translated" / "translated.json"),
    "evaluate": lambda run: read_json(run.out / "metrics.json"),
}
