"""The plan of a run: what belongs together, what is learned of it, and how the minutes are spent."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .job import Job

if TYPE_CHECKING:
    from ..prepare.fingerprint import Plan, Survey
    from ..train.objective import Task
    from ..train.probe import Probe
    from ..train.recipes import Recipe

MAKING = ("prepare", "train", "synthesize", "evaluate", "report")
TRANSLATING = ("prepare", "train", "translate", "evaluate", "report")
PROBE_S = 12.0  # survey and probe
MOST_SCANS = 1000  # synthetic scans made by default, and never more than there are training images, but at least 200
LEARNED = {
    "make": "to make more such scans",
    "paired": "to translate sources to their targets, from pairs",
    "unpaired": "to translate scans of one folder to look like those of the other, without pairs: no translation can be checked against a true one",
    "denoise": "to take noise out of scans",
    "superresolve": "to refine coarse scans",
    "segment": "to mark what the masks mark",
    "paint": "to make scans from masks",
}


def stages_of(task: str) -> tuple[str, ...]:
    """The stages of a run in their order."""
    return MAKING if task == "make" else TRANSLATING


@dataclass(frozen=True)
class Found:
    """What was found for a run.

    Attributes:
        task: key of `LEARNED`.
        scans: the survey of the sources, or of the pairs.
        targets: of the scans to translate to without pairs.
        words: why this task.
    """

    task: str
    scans: Survey
    targets: Survey | None = None
    words: str = ""

    @property
    def plan(self) -> Plan:
        return self.scans.plan


def survey(job: Job) -> Found:
    """Look at the folders and settle the task.

    Raises:
        ValueError: too few scans, or pairs that are none.
    """
    from ..prepare.folders import Unrelated
    from ..prepare.write import looked

    task, words = job.task, ""
    if task == "auto":
        task = "paired" if job.to or job.pairs else "make"
    if task != "unpaired":
        try:
            return with_masks(Found(task, looked(job.scans, job.asked(task))), job)
        except Unrelated:
            if job.task != "auto":
                raise
            words = "no two scans of the folders belong together by patient, frame of reference, study or name"
    to = job.to
    assert to is not None
    sources = looked(job.scans, job.asked("unpaired"))
    plan = sources.plan
    targets = job.of_targets(lambda asked: looked(to, asked), plan.stored_dimensions, plan.spacing)
    return Found("unpaired", sources, targets, words)


def with_masks(found: Found, job: Job) -> Found:
    """
    Raises:
        ValueError: the task needs masks, and there are none.
    """
    if found.task in ("segment", "paint") and "masks" not in found.plan.layers:
        raise ValueError(
            f"expected scans with masks in {job.scans} for the task {found.task!r}, found none: say which files they are, such as --masks 'images/*.nii.gz:labels/*.nii.gz'"
        )
    return found


def task_of(found: Found) -> Task:
    """The shape of what there will be to learn."""
    from ..train.objective import Task

    plan = found.plan
    count, source, labels = (
        training_images(plan),
        (2 * len(plan.sources) or plan.channels) * (2 * plan.neighbours + 1),
        1 + max(1, len(plan.segments)),
    )
    target = plan.target_channels or plan.channels
    wished: dict[str, Callable[[], Task]] = {
        "make": lambda: Task(plan.channels, plan.grid, len(plan.labels), count),
        "paired": lambda: Task(source, plan.grid, 0, count, made=target, sources=len(plan.sources)),
        "denoise": lambda: Task(source, plan.grid, 0, count, made=target, residual=True),
        "superresolve": lambda: Task(source, plan.grid, 0, count, made=target, residual=True),
        "segment": lambda: Task(source, plan.grid, 0, count, made=labels),
        "paint": lambda: Task(labels * (2 * plan.neighbours + 1), plan.grid, 0, count, made=plan.channels),
        "unpaired": lambda: Task(
            plan.channels, plan.grid, 0, count, made=found.targets.plan.channels if found.targets else plan.channels
        ),
    }
    return wished[found.task]()


def training_images(plan: Plan) -> int:
    """About how many images there will be to learn from."""
    from ..prepare.split import FRACTIONS

    share = dict(plan.fractions or ()).get("train", FRACTIONS["train"])
    return max(1, round(share * plan.images))


def held_out_images(plan: Plan) -> int:
    """About how many images there will be to judge."""
    from ..prepare.split import FRACTIONS

    share = dict(plan.fractions or ()).get("holdout", FRACTIONS["holdout"])
    return max(1, round(share * plan.images))


def base_of(job: Job, task: str) -> Recipe:
    """The usual recipe of a task."""
    from ..train.recipes import chosen

    return replace(chosen(task, "auto", task == "paired", task == "unpaired"), seed=job.seed)


def probe_training(job: Job, found: Found) -> Probe:
    """What this machine can do with such scans in the minutes."""
    from ..runtime import choose_device
    from ..train.probe import FIRST, probe

    task = task_of(found)
    seconds = stage_budget(job, found, task.grid(FIRST[len(task.size)]).shape)["train"]
    return probe(base_of(job, found.task), task, seconds, None, choose_device(job.device))


def describe(job: Job, found: Found, probed: Probe) -> tuple[list[str], dict[str, float]]:
    """The plan in sentences, and the seconds each stage is given."""
    budget = stage_budget(job, found, task_of(found).grid(probed.recipe.target).shape)
    spent = ", ".join(f"{name} {duration(budget[name])}" for name in stages_of(found.task))
    _, training = probed.lasting(probed.images_in(budget["train"]))
    told = [] if found.task == "make" else [f"learned: {LEARNED[found.task]}{'; ' if found.words else ''}{found.words}"]
    targets = [f"targets: {sentence}" for sentence in found.targets.plan.reasons] if found.targets else []
    sentences = [*told, *found.plan.reasons, *targets, *training, f"{job.minutes:g} minutes in all: {spent}"]
    if budget["train"] < 0.5 * 60.0 * job.minutes:
        sentences.append(
            "the stages around the training take most of this time: more minutes would all go to the training"
        )
    return sentences, budget


def synthetic_count(count: int | None, training_images: int) -> int:
    """How many synthetic scans are made: as asked, or as many as training images, 200 to 1000."""
    return count or min(MOST_SCANS, max(200, training_images))


def stage_budget(job: Job, found: Found, shape: tuple[int, ...]) -> dict[str, float]:
    """Seconds for each stage, from costs measured on two cores; training takes what the others leave.

    `shape`: of one synthetic image, or of a volume, of which three slices are compared; of a translation a patch.
    """
    plan = found.plan
    images = plan.images + (found.targets.plan.images if found.targets else 0)
    around = {"prepare": 2.0 + 0.002 * images + 0.1 * images * math.prod(plan.grid) / 1e6, "report": 4.0}
    around |= (making if found.task == "make" else translating)(job, plan, shape)
    around["train"] = max(5.0, 60.0 * job.minutes - sum(around.values()) - PROBE_S)
    return {name: round(around[name], 1) for name in stages_of(found.task)}


def making(job: Job, plan: Plan, shape: tuple[int, ...]) -> dict[str, float]:
    """Seconds to make scans and to judge them."""
    scans = synthetic_count(job.count, training_images(plan))
    compared, voxels = min(scans, 2000), math.prod(shape)
    looked_at = voxels if len(shape) == 2 else 3 * max(shape) ** 2
    return {
        "synthesize": 2.0 + scans * (0.005 + 0.5e-6 * voxels),
        "evaluate": 8.0 + compared * (0.008 + 0.8e-6 * looked_at),
    }


def translating(job: Job, plan: Plan, shape: tuple[int, ...]) -> dict[str, float]:
    """Seconds to translate the held-out scans and to judge the translation."""
    images, voxels = held_out_images(plan), math.prod(plan.grid)
    return {"translate": 3.0 + images * (0.02 + 4e-6 * voxels), "evaluate": 4.0 + images * (0.05 + 8e-6 * voxels)}


def duration(seconds: float) -> str:
    return f"{seconds / 60:.1f} min" if seconds >= 90 else f"{seconds:.0f} s"
