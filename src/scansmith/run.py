"""Verb `run`: from a folder of scans to a report, each stage in its own part of OUT; the same command goes on."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .prepare.fingerprint import Plan
    from .prepare.scans import Request
    from .train.objective import Task
    from .train.probe import Probe

STAGES = ("prepare", "train", "synthesize", "evaluate", "report")
RECIPE = "relativistic"
MOST_SIDE = 512  # longest side of the stored images
TRAIN_SHARE = 0.7
PROBE_S = 12.0  # survey and probe
MOST_SCANS = 1000  # synthetic scans made by default, and never more than there are training images, but at least 200


def run(
    scans: Path,
    out: Path,
    *,
    minutes: float = 15.0,
    labels: str = "auto",
    modality: str | None = None,
    plan: str | None = None,
    count: int | None = None,
    plan_only: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """From a folder of scans to synthetic scans with a verdict: prepare, train, synthesize, evaluate, report.

    The plan is printed before anything starts. OUT gets dataset/ train/ model/ images/ metrics.json report.html. Synthetic
    scans have the format of the scans; `synthesize` writes others. Ctrl-C stops cleanly; the same command goes on where it stopped.

    Args:
        scans: folder of DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG or TIFF scans; zip archives are looked into.
        out: folder for everything that comes out.
        minutes: the whole wall time.
        labels: "auto" takes sub-folders that look like classes, "none" takes none, otherwise the path of a CSV table.
        modality: CT, MR, CR or DX: which scans of a mixed folder to take, or what files without that word are.
        plan: choices of your own for `prepare`, as a JSON file or as text such as '{"dimensions": 3}' (learn whole volumes).
        count: synthetic scans to make; default: as many as training images, 200 to 1000.
        plan_only: print the plan and stop.
        seed: the same seed, scans and machine give the same result.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"report", "verdict", "plan", "stages", "skipped"}; with `plan_only` {"plan"}.

    Raises:
        ValueError: there are too few usable scans, or OUT holds a run with other settings.
        Interrupted: Ctrl-C; the same command goes on.
    """
    job = Job(Path(scans), Path(out), minutes, labels, modality, plan, count, seed, device)
    state = earlier_state(job)
    probed = None
    if state:
        print(f"Going on with the run in {out}", file=sys.stderr, flush=True)
    else:
        state, probed = begin(job, plan_only)
    if plan_only:
        return {"plan": state["plan"]}
    results = carry_out(job, state, probed)
    return {
        "report": str(job.out / "report.html"),
        "verdict": results["evaluate"]["verdict"],
        "plan": state["plan"],
        "stages": state["stages"],
        "skipped": results["prepare"].get("skipped", []),
    }


@dataclass(frozen=True)
class Job:
    """One call of `run`."""

    scans: Path
    out: Path
    minutes: float
    labels: str
    modality: str | None
    plan: str | None
    count: int | None
    seed: int
    device: str

    def asked(self) -> Request:
        """What `prepare` is asked for."""
        from .prepare.overrides import choices_of
        from .prepare.scans import Request

        choices = choices_of(self.plan)
        return Request(self.labels, modality=self.modality, max_side=MOST_SIDE, seed=self.seed, choices=choices)

    def choices(self) -> dict[str, Any] | None:
        """What --plan says, as `prepare` understands it; a table of splits without its path."""
        from .prepare.overrides import choices_of

        made = choices_of(self.plan).made()
        if "fractions" in made:
            made["fractions"] = dict(made["fractions"])
        if "splits" in made:
            made["splits"] = "TABLE.csv"
        return json.loads(json.dumps(made)) or None

    def request(self) -> dict[str, Any]:
        """What decides the result, without paths: a second call must ask for the same to go on."""
        from .prepare.write import request_of

        return {
            "scans": request_of(self.scans, self.asked()),
            "minutes": self.minutes,
            "labels": self.labels if self.labels in ("auto", "none") else "table",
            "modality": self.modality,
            "plan": self.choices(),
            "count": self.count,
            "seed": self.seed,
        }


def earlier_state(job: Job) -> dict[str, Any]:
    """What run.json of an earlier start says; {} for a new folder.

    Raises:
        ValueError: it was started with other settings or other scans, or is damaged.
    """
    path = job.out / "run.json"
    if not path.is_file():
        return {}
    way_out = "choose another folder, or remove this one to start anew"
    try:
        state: dict[str, Any] = json.loads(path.read_text())
        earlier = state["request"]
    except (ValueError, KeyError) as error:
        raise ValueError(f"expected the state of a run in {path}, found something else: {way_out}") from error
    request = job.request()
    different = [name for name in request if name != "scans" and earlier.get(name) != request[name]]
    if different:
        changes = ", ".join(f"{name} {earlier.get(name)!r} -> {request[name]!r}" for name in different)
        raise ValueError(
            f"expected the settings that the run in {job.out} was started with, found {changes}: {way_out}"
        )
    if earlier.get("scans") != request["scans"]:
        raise ValueError(
            f"expected the scans that the run in {job.out} was started with, found other or changed files: {way_out}"
        )
    return state


def begin(job: Job, plan_only: bool) -> tuple[dict[str, Any], Probe]:
    """Survey the scans, probe the machine, print the plan; unless `plan_only`, write the first run.json."""
    from . import __version__
    from .prepare import plan as survey
    from .prepare.write import refuse_inside
    from .runtime import write_atomic, write_json

    began = time.monotonic()
    found = survey(
        job.scans, labels=job.labels, modality=job.modality, plan=job.plan, max_side=MOST_SIDE, seed=job.seed
    )
    if not plan_only:
        refuse_inside(job.scans, job.out)
        write_atomic(job.out / ".writable", "")  # fail now, not after the minutes
        (job.out / ".writable").unlink()
    probed = probe_training(job, found)
    plan, budget = describe(job, found, probed)
    print("\n".join(["Plan", *(f"  - {sentence}" for sentence in plan)]), file=sys.stderr, flush=True)
    stages = {name: {"planned_s": budget[name]} for name in STAGES}
    state = {
        "version": __version__,
        "request": job.request(),
        "plan": plan,
        "stages": stages,
        "before_s": round(time.monotonic() - began, 1),
    }
    if not plan_only:
        write_json(job.out / "run.json", state)
    return state, probed


def carry_out(job: Job, state: dict[str, Any], probed: Probe | None) -> dict[str, Any]:
    """All stages in turn; each one's seconds go to run.json when it ends."""
    from .evaluate import evaluate
    from .prepare import prepare
    from .report import report
    from .runtime import write_json
    from .synthesize import synthesize

    out = job.out
    results: dict[str, Any] = {}

    def count() -> int:
        return synthetic_count(job.count, results["prepare"]["splits"]["train"]["images"])

    work: dict[str, Callable[[], dict[str, Any]]] = {
        "prepare": lambda: prepare(
            job.scans,
            out / "dataset",
            labels=job.labels,
            modality=job.modality,
            plan=job.plan,
            max_side=MOST_SIDE,
            seed=job.seed,
        ),
        "train": lambda: train(job, state, probed),
        "synthesize": lambda: synthesize(
            out / "model", out / "images", count=count(), seed=job.seed, device=job.device
        ),
        "evaluate": lambda: evaluate(out / "dataset", out / "images", out, seed=job.seed, device=job.device),
        "report": lambda: report(out),
    }
    for name in STAGES:
        stage, start = state["stages"][name], time.monotonic()
        # The other stages see by themselves that nothing is left to do.
        if stage.get("done") and name in ("synthesize", "evaluate"):
            results[name] = json.loads((out / "metrics.json").read_text()) if name == "evaluate" else {}
            continue
        print(f"{name} ...", file=sys.stderr, flush=True)
        results[name] = work[name]()
        stage |= {"seconds": round(stage.get("seconds", 0.0) + time.monotonic() - start, 1), "done": True}
        write_json(out / "run.json", state)
    return results


def train(job: Job, state: dict[str, Any], probed: Probe | None) -> dict[str, Any]:
    """The training stage, in the minutes that the stages before it left and those after it need."""
    from .runtime import write_json
    from .train.stage import Wish, run_training

    if "training_minutes" not in state:
        before = state["before_s"] + state["stages"]["prepare"]["seconds"]
        after = sum(state["stages"][name]["planned_s"] for name in STAGES[2:])
        state["training_minutes"] = round(max(0.1, job.minutes - (before + after) / 60.0), 3)
        write_json(job.out / "run.json", state)
    wish = Wish(state["training_minutes"], RECIPE, seed=job.seed)
    return run_training(job.out / "dataset", job.out / "train", wish, job.device, job.out / "model", probed)


def probe_training(job: Job, found: Plan) -> Probe:
    """What this machine can do with such scans in the minutes."""
    from .runtime import choose_device
    from .train.probe import FIRST, probe
    from .train.recipes import RECIPES

    task = task_of(found)
    seconds = stage_budget(job, found, task.grid(FIRST[len(task.size)]).shape)["train"]
    return probe(replace(RECIPES[RECIPE], seed=job.seed), task, seconds, None, choose_device(job.device))


def task_of(found: Plan) -> Task:
    """What there will be to learn."""
    from .train.objective import Task

    size = (found.height, found.width) if found.depth is None else (found.depth, found.height, found.width)
    return Task(found.channels, size, len(found.labels), training_images(found))


def training_images(found: Plan) -> int:
    """About how many images there will be to learn from."""
    share = dict(found.fractions or ()).get("train", TRAIN_SHARE)
    return max(1, round(share * found.images))


def describe(job: Job, found: Plan, probed: Probe) -> tuple[list[str], dict[str, float]]:
    """The plan in sentences, and the seconds each stage is given."""
    budget = stage_budget(job, found, task_of(found).grid(probed.recipe.target).shape)
    spent = ", ".join(f"{name} {duration(budget[name])}" for name in STAGES)
    _, training = probed.lasting(probed.images_in(budget["train"]))
    sentences = [*found.reasons, *training, f"{job.minutes:g} minutes in all: {spent}"]
    if budget["train"] < 0.5 * 60.0 * job.minutes:
        sentences.append(
            "the stages around the training take most of this time: more minutes would all go to the training"
        )
    return sentences, budget


def synthetic_count(count: int | None, training_images: int) -> int:
    """How many synthetic scans are made: as asked, or as many as training images, 200 to 1000."""
    return count or min(MOST_SCANS, max(200, training_images))


def stage_budget(job: Job, found: Plan, shape: tuple[int, ...]) -> dict[str, float]:
    """Seconds for each stage, from costs measured on two cores; training takes what the others leave.

    `shape`: of one synthetic image, or of a volume, of which three slices are compared.
    """
    scans = synthetic_count(job.count, training_images(found))
    compared, voxels = min(scans, 2000), math.prod(shape)
    looked_at = voxels if len(shape) == 2 else 3 * max(shape) ** 2
    budget = {
        "prepare": 2.0 + 0.002 * found.images + 0.1 * found.images * math.prod(task_of(found).size) / 1e6,
        "synthesize": 2.0 + scans * (0.005 + 0.5e-6 * voxels),
        "evaluate": 8.0 + compared * (0.008 + 0.8e-6 * looked_at),
        "report": 4.0,
    }
    budget["train"] = max(5.0, 60.0 * job.minutes - sum(budget.values()) - PROBE_S)
    return {name: round(budget[name], 1) for name in STAGES}


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
