"""run: from a folder of scans to a report, each stage in its own part of OUT; the same command goes on."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def run(
    scans: Path,
    out: Path,
    *,
    minutes: float = 15.0,
    task: Literal["auto", "make", "paired", "unpaired", "denoise", "superresolve", "segment", "paint"] = "auto",
    to: Path | None = None,
    pairs: str | None = None,
    labels: str = "auto",
    masks: str = "auto",
    modality: str | None = None,
    plan: str | None = None,
    count: int | None = None,
    plan_only: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """From a folder of scans to synthetic scans, or with --to or --task to translated ones, with a verdict: prepare, train, synthesize or translate, evaluate, report.

    The plan is printed before anything starts. OUT gets dataset/ train/ model/ images/ metrics.json report.html, or translated/
    in place of images/: the scans of patients that the training never saw. They have the format of the scans; `synthesize` writes
    others. Ctrl-C stops cleanly; the same command goes on where it stopped.

    Args:
        scans: folder of DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG or TIFF scans; zip archives are looked into.
        out: folder for everything that comes out.
        minutes: the whole wall time.
        task: make more such scans; translate paired or unpaired ones; denoise or superresolve, also from good scans alone; segment, from
            scans with masks, or paint scans from masks; auto is make, or with `to` or `pairs` paired, or unpaired where no two scans
            of the folders belong together.
        to: folder of scans to translate to. They belong to those of `scans` by patient and place, or by names that are equal or
            differ by a word for the kind of scan.
        pairs: which scans of the folder belong together, as for `prepare`.
        labels: "auto" takes sub-folders that look like classes, "none" takes none, otherwise the path of a CSV table.
        masks: where the masks of the scans are, as for `prepare`.
        modality: CT, MR, CR or DX: which scans of a mixed folder to take, or what files without that word are; "MR:CT" for pairs.
        plan: choices of your own for `prepare`, as a JSON file or as text such as '{"dimensions": 3}' (learn whole volumes).
        count: synthetic scans to make; default: as many as training images, 200 to 1000.
        plan_only: print the plan and stop.
        seed: the same seed, scans and machine give the same result.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"report", "verdict", "plan", "stages", "skipped"}; with `plan_only` {"plan"}.

    Raises:
        ValueError: there are too few usable scans, an option does not fit the task, or OUT holds a run with other settings.
        Interrupted: Ctrl-C; the same command goes on.
    """
    from .job import Job
    from .line import carry_out

    job = Job(
        Path(scans), Path(out), minutes, task, None if to is None else Path(to), pairs, labels, str(masks), modality,
        plan, count, seed, device,
    )  # fmt: skip
    return carry_out(job, plan_only)
