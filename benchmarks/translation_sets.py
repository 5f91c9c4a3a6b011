"""Every shared set of real scans that can be translated, each learned for the same minutes and judged on patients left out.

    python benchmarks/translation_sets.py SHARED_DATA OUT [--minutes 15] [--only harvard,openms] [--quick]

SHARED_DATA holds the folders that `SETS` names. Each set is prepared, learned with `scansmith train` and judged with `scansmith
evaluate DATASET MODEL` beside what is simpler: of images the source itself (identity), a straight line and matched histograms; of
label maps a threshold and the mean atlas. OUT/table.md has a row for each metric, with a figure for each held-out patient. Sets of
one patient are cut into blocks of slices, with a gap between what is learned and what is judged: they say that the way works, not
how well the model does on another patient. DICOM is translated as well, each file checked with dciodvfy and its references.
A set that fails has its error in the table and does not stop the others. The same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pydicom

from scansmith import evaluate, prepare, train, translate
from scansmith.dataset import Dataset, Writer
from scansmith.runtime import Interrupted, write_atomic, write_json

# Rows of the table: metric -> (what it is called, decimals).
METRICS = {"mae": ("MAE", 3), "psnr": ("PSNR", 1), "ssim": ("SSIM", 3), "dice": ("Dice", 3)}
OURS = ("translation", "segmentation", "ours", "model")
CALIBRATED = {"train": 0.55, "validation": 0.1, "calibration": 0.2, "holdout": 0.15}  # 10 patients or more calibrate


@dataclass(frozen=True)
class Set:
    """One set of scans and what is learned from it.

    Attributes:
        about: what is translated to what.
        task: of `train`.
        held_out: which scans were left out, in words.
        make: (shared data, folder of the set) -> fills the folder: data, for unpaired scans also `to` and `judged`.
        series: folder below the shared data of a DICOM series that is translated as files.
    """

    about: str
    task: str
    held_out: str
    make: Callable[[Path, Path], None]
    series: str | None = None


# ------------------------------------------------------------------------------------------------ preparing


def table(path: Path, rows: Iterable[Mapping[str, Any]]) -> str:
    """Write a CSV table; its path."""
    rows = list(rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return str(path)


def split_plan(work: Path, splits: Mapping[str, str], **choices: Any) -> str:
    """A plan with official splits, file -> split."""
    file = table(work / "splits.csv", ({"file": name, "split": split} for name, split in splits.items()))
    return json.dumps({"splits": file, **choices})


def resplit(data: Dataset, root: Path, blocks: Mapping[str, range]) -> None:
    """The same dataset with blocks of slices as splits, each a patient of its own; slices in no block are left out."""
    place = {number: split for split, numbers in blocks.items() for number in numbers}
    numbers = data.columns["slice"] - data.columns["slice"].min()
    rows = np.flatnonzero([int(number) in place for number in numbers])
    columns = {name: values[rows].copy() for name, values in data.columns.items()}
    splits = [place[int(number)] for number in numbers[rows]]
    columns["split"], columns["patient"], columns["case"] = (np.array(splits) for _ in range(3))
    values = {"images": data.image, "targets": data.target, "masks": lambda row: data.mask(row)[None]}
    layers = {name: (np.dtype(about["dtype"]), values[name](0).shape) for name, about in data.info["layers"].items()}
    shutil.rmtree(root, ignore_errors=True)
    writer = Writer(root, layers)
    for row in rows:
        writer.add({name: values[name](int(row))[None] for name in layers})
    derived = {"version", "channels", "depth", "height", "width", "generation", "layers"}
    writer.finish({name: value for name, value in data.info.items() if name not in derived}, columns)


HARVARD = {2: "train", 16: "train", 21: "train", 28: "train", 32: "validation", 20: "holdout", 34: "holdout"}
# Whose MR, and whose CT, is learned from without pairs; 20 and 34 are judged.
UNPAIRED = {"MRI": (2, 16, 28), "CT": (21, 32)}


def harvard_rows(shared: Path) -> list[dict[str, str]]:
    """case, mri and ct of each pair of slices."""
    with open(shared / "paired_mr_ct_2d_harvard" / "index.csv", newline="") as file:
        return list(csv.DictReader(file))


def harvard_patients(work: Path, files: Mapping[str, str]) -> str:
    """A table that says whose each file is, file -> case."""
    rows = ({"file": name, "patient": f"case-{case}"} for name, case in files.items())
    return table(work / "patients.csv", rows)


def harvard(shared: Path, work: Path, name: str = "data") -> None:
    """Pairs by the index, split by case."""
    rows = harvard_rows(shared)
    pairs = table(work / "pairs.csv", ({"source": row["mri"], "target": row["ct"]} for row in rows))
    files = {row[side]: row["case"] for row in rows for side in ("mri", "ct")}
    plan = split_plan(work, {row["mri"]: HARVARD[int(row["case"])] for row in rows})
    prepare(
        shared / "paired_mr_ct_2d_harvard",
        work / name,
        pairs=pairs,
        modality="MR:CT",
        labels=harvard_patients(work, files),
        masks="none",
        plan=plan,
    )


def unpaired(shared: Path, work: Path) -> None:
    """MR of some cases and CT of others, and the pairs of those that neither has."""
    rows = harvard_rows(shared)
    for column, side, name in (("mri", "MRI", "data"), ("ct", "CT", "to")):
        own = [row for row in rows if int(row["case"]) in UNPAIRED[side]]
        scans, tables = work / f"scans-{name}", work / f"tables-{name}"
        for row in own:
            target = scans / row[column]
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(shared / "paired_mr_ct_2d_harvard" / row[column], target)
        last = str(UNPAIRED[side][-1])
        patients = harvard_patients(tables, {row[column]: row["case"] for row in own})
        plan = split_plan(tables, {row[column]: "validation" if row["case"] == last else "train" for row in own})
        prepare(scans, work / name, modality="MR" if side == "MRI" else "CT", labels=patients, masks="none", plan=plan)
    harvard(shared, work, "judged")


def openms(shared: Path, work: Path) -> None:
    """Volumes of two patients: one to learn from, one to judge."""
    files = {
        file.relative_to(shared / "paired_t1_t2_flair_3d_openms").as_posix(): "holdout"
        if file.parent.name == "patient19"
        else "train"
        for file in sorted((shared / "paired_t1_t2_flair_3d_openms").rglob("T1_*.nii.gz"))
    }
    plan = split_plan(work, files, dimensions=3)
    prepare(
        shared / "paired_t1_t2_flair_3d_openms",
        work / "data",
        pairs="*T1_*:*T2_*",
        modality="MR:MR",
        masks="none",
        labels="none",
        plan=plan,
    )


def brats(shared: Path, work: Path) -> None:
    """Volumes of three patients: two to learn from, the one with the whole head to judge."""
    root = shared / "paired_flair_t1c_3d_brats2013"
    files = {
        file.relative_to(root).as_posix(): "holdout" if "pat0005" in file.parent.name else "train"
        for file in sorted(root.rglob("Flair_*.nii.gz"))
    }
    prepare(
        root,
        work / "data",
        pairs="*Flair_*:*T1c_*",
        modality="MR:MR",
        masks="none",
        labels="none",
        plan=split_plan(work, files, dimensions=3),
    )


def series(folder: str, source: str, target: str, blocks: Mapping[str, range]) -> Callable[[Path, Path], None]:
    """Two DICOM series of one patient, slice by slice, in blocks."""

    def make(shared: Path, work: Path) -> None:
        pairs = table(work / "pairs.csv", [{"source": source, "target": target}])
        prepare(
            shared / folder,
            work / "whole",
            pairs=pairs,
            labels="none",
            masks="none",
            plan=json.dumps({"dimensions": 2}),
        )
        resplit(Dataset.open(work / "whole"), work / "data", blocks)

    return make


def chest(shared: Path, work: Path) -> None:
    """Slices of 14 patients, split by Patient ID."""
    prepare(shared / "chest_ct_slices_contrast_labels", work / "data", labels="none", masks="none")


def chase(shared: Path, work: Path) -> None:
    """Fundus photographs of 14 children, both eyes in one split; vessels by the first observer."""
    root = shared / "image_to_mask_2d_retina_chase"
    files = sorted(file.name for file in root.glob("Image_*.jpg"))
    last = {**dict.fromkeys(range(1, 10), "train"), 10: "validation"}
    child = {name: int(name[6:8]) for name in files}
    patients = table(work / "patients.csv", ({"file": name, "patient": f"child-{child[name]}"} for name in files))
    prepare(
        root,
        work / "data",
        masks="auto",
        labels=patients,
        plan=split_plan(work, {name: last.get(number, "holdout") for name, number in child.items()}),
    )


def hippocampus(masks: str) -> Callable[[Path, Path], None]:
    """70 volumes; which are left and right of one person is not known."""

    def make(shared: Path, work: Path) -> None:
        root = shared / "image_to_mask_3d_hippocampus"
        plan = json.dumps({"dimensions": 3, "fractions": CALIBRATED})
        prepare(
            root if masks != "none" else root / "images",
            work / "data",
            masks=masks,
            modality="MR",
            labels="none",
            plan=plan,
        )

    return make


PGBM, KERNELS = "dicom_paired_series_pgbm/Study3", "dicom_ct_kernel_pair_phantom"
VOLUMES = "38 of 70 volumes learned from, 7 to choose, 14 to calibrate, 11 judged, at random"
LABELS = "images/*.nii.gz:labels/*.nii.gz"
SETS = {
    "harvard": Set("brain MR -> CT, 8-bit slices", "paired", "by case: 2, 16, 21, 28 learned from, 32 to choose, 20 and 34 judged", harvard),
    "unpaired": Set(
        "brain MR -> CT without pairs, 8-bit slices", "unpaired",
        "by case: MR of 2 and 16, CT of 21 learned from, 28 and 32 to choose, pairs of 20 and 34 judged", unpaired,
    ),
    "openms": Set("brain T1 -> T2, volumes", "paired", "patient 07 learned from, 19 judged", openms),
    "brats": Set("brain FLAIR -> T1c with tumours, volumes", "paired", "0004 and 0006 learned from, 0005 judged", brats),
    "pgbm": Set(
        "brain T1post -> FLAIR, DICOM slices", "paired",
        "one patient: slices 1 to 13 learned from, 14 to 16 left out, 17 to 22 judged",
        series(PGBM, "11-T1post-18670", "36468-FLAIRreg-58706", {"train": range(13), "holdout": range(16, 22)}),
        f"{PGBM}/11-T1post-18670",
    ),
    "kernels": Set(
        "skull phantom CT, bone -> soft kernel, DICOM slices", "denoise",
        "one phantom: slices 1 to 3 learned from, 4 left out, 5 and 6 judged",
        series(KERNELS, "S2030", "S2020", {"train": range(3), "holdout": range(4, 6)}),
        f"{KERNELS}/S2030",
    ),
    "low-dose": Set("chest CT at a quarter of the dose (simulated) -> full, slices", "denoise", "by patient, at random: 14 in all", chest),
    "superresolve": Set("hippocampus MR, thick slices -> thin, volumes", "superresolve", VOLUMES, hippocampus("none")),
    "chase": Set("retina -> vessels, slices", "segment", "by child: 1 to 9 learned from, 10 to choose, 11 to 14 judged", chase),
    "hippocampus": Set("hippocampus MR -> anterior and posterior, volumes", "segment", VOLUMES, hippocampus(LABELS)),
    "paint": Set("anterior and posterior hippocampus -> MR, volumes", "paint", VOLUMES, hippocampus(LABELS)),
}  # fmt: skip


# ------------------------------------------------------------------------------------------------ one set


def measured(name: str, one: Set, shared: Path, out: Path, minutes: float, seed: int, device: str) -> dict[str, Any]:
    """Prepare, train, evaluate; kept in OUT/NAME/measured.json, or {"failed": why}."""
    work = out / name
    path = work / "measured.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        return found
    step = "prepare"
    try:
        if not (work / "prepared.json").is_file():
            one.make(shared, work)
            write_json(work / "prepared.json", {"set": name})
        step, to = "train", work / "to"
        other = to if to.is_dir() else None
        trained = train(work / "data", work / "run", minutes=minutes, task=one.task, to=other, seed=seed, device=device)  # type: ignore[arg-type]
        step, judged = "evaluate", work / "judged" if to.is_dir() else work / "data"
        judgement = evaluate(judged, work / "run" / "model", work / "evaluated", device=device)
        step = "translate"
        files = checked(work, shared / one.series, device) if one.series else None
    except Interrupted:
        raise
    except Exception as error:
        return {"failed": f"{step}: {type(error).__name__}: {error}"}
    result = {
        "images": trained["images"],
        "seconds": trained["seconds"],
        "grid": trained["grid"],
        "evaluated": judgement,
        "files": files,
    }
    write_json(path, result)
    return result


def checked(work: Path, scans: Path, device: str) -> str:
    """Translate a DICOM series; in words what dciodvfy says of each file and whether references, place and patient are those of the source."""
    made = work / "translated"
    shutil.rmtree(made, ignore_errors=True)
    translate(work / "run" / "model", scans, made, device=device)
    source = {one.SOPInstanceUID: one for one in map(pydicom.dcmread, sorted(scans.iterdir()))}
    wrong: Counter[str] = Counter()
    files = sorted(file for file in made.rglob("*") if file.suffix == ".dcm")
    for file in files:
        wrong.update(unlike(pydicom.dcmread(file), source))
    known = complaints(sorted(scans.iterdir())[:1])
    found = [line for line in complaints(files) if line not in known]
    said = ", ".join(f"{what} {count}" for what, count in wrong.items()) or "none wrong"
    words = ("; ".join(dict.fromkeys(found)) or "no error") if shutil.which("dciodvfy") else "not there"
    return f"{len(files)} DICOM files for {len(source)} source slices; dciodvfy: {words}; references, place and patient: {said}"


def complaints(files: Iterable[Path]) -> list[str]:
    """Errors that dciodvfy finds, but for (0008,001C) and QUANTITY, which are younger than it is."""
    if not shutil.which("dciodvfy"):
        return []
    lines: list[str] = []
    for file in files:
        said = subprocess.run(["dciodvfy", "-new", str(file)], capture_output=True, text=True, check=False).stderr
        lines += [line for line in said.splitlines() if line.startswith("Error")]
    return [line for line in lines if "(0008,001c)" not in line and "<QUANTITY>" not in line]


def unlike(made: pydicom.Dataset, source: Mapping[str, pydicom.Dataset]) -> list[str]:
    """What of a translated file is not as it must be."""
    first = next(iter(source.values()))
    found = [
        f"other {name}"
        for name in ("PatientID", "StudyInstanceUID", "FrameOfReferenceUID")
        if made.get(name) != first.get(name)
    ]
    found += ["source's own SOPInstanceUID"] if made.SOPInstanceUID in source else []
    found += ["source's own SeriesInstanceUID"] if made.SeriesInstanceUID == first.SeriesInstanceUID else []
    told = {str(element.value) for element in made.iterall() if element.keyword == "ReferencedSOPInstanceUID"}
    found += [] if told & set(source) else ["no reference to a source slice"]
    if "ImagePositionPatient" in made:
        near = [one for uid, one in source.items() if uid in told] or list(source.values())
        away = min(np.abs(np.subtract(made.ImagePositionPatient, one.ImagePositionPatient)).max() for one in near)
        found += ["another place"] if away > 1e-3 else []
    return found


# ------------------------------------------------------------------------------------------------ the table


def markdown(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A row for each set and metric; below it how data were held out, what the bounds cover, and what DICOM files are like."""
    lines = [
        "| set | task | images shown | metric | **ours** | each patient | simple methods |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for name, result in found.items():
        one = SETS[name]
        if "failed" in result:
            lines.append(f"| {name}: {one.about} | {one.task} | | | failed | | {result['failed']} |")
            continue
        judgement = result["evaluated"]
        lines += [
            f"| {name}: {one.about} | {one.task} | {result['images']:,} | {row} |" for row in metric_rows(judgement)
        ]
        notes.append(
            f"- {name}: {one.held_out}; {judgement['patients']} patients of the split {judgement['split']}. {bounds(judgement)}"
        )
        notes += [f"- {name}: {result['files']}."] if result["files"] else []
    return "\n".join([*lines, "", *notes]) + "\n"


def metric_rows(judgement: Mapping[str, Any]) -> Iterable[str]:
    """ "MAE, HU | 42.7 | 41.0, 44.3 | line 329, identity 358" for each metric that was measured."""
    metrics = judgement["metrics"]
    own = next((name for name in OURS if name in metrics), next(iter(metrics)))
    alone = sum(name.startswith("dice ") for name in metrics[own]) == 1  # that of one label is the mean
    shown = sorted(
        (name for name in metrics[own] if name.split()[0] in METRICS and not (alone and name.startswith("dice "))),
        key=lambda name: [*METRICS].index(name.split()[0]),
    )
    for metric in shown:  # "dice 1" is that of a label
        word, decimals = METRICS[metric.split()[0]]
        units = f", {judgement['units']}" if metric == "mae" else metric[len(metric.split()[0]) :]
        each = ", ".join(number(value, decimals) for value in metrics[own][metric]["each"])
        others = [
            f"{name} {number(entry[metric]['value'], decimals)}"
            for name, entry in metrics.items()
            if name != own and metric in entry
        ]
        yield f"{word}{units} | {number(metrics[own][metric]['value'], decimals)} | {each} | {', '.join(others)}"


def number(value: float | None, decimals: int) -> str:
    """Three figures of what has units, else so many decimals."""
    if value is None:
        return "–"
    return f"{value:.3g}" if decimals == 3 and abs(value) >= 1.0 else f"{value:.{decimals}f}"


def bounds(judgement: Mapping[str, Any]) -> str:
    """How much of the body the bounds cover."""
    if not judgement.get("coverage"):
        return ""
    calibration = judgement.get("calibration") or {"words": "no calibration"}
    shares = ", ".join(f"{tissue} {entry['value']:.2f}" for tissue, entry in judgement["coverage"].items())
    return f"Within the bounds: {shares}; {calibration['words']}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder of the shared sets")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0, help="of each training")
    parser.add_argument("--only", default=",".join(SETS), help="names with commas between")
    parser.add_argument("--quick", action="store_true", help="a third of a minute each, to try the way")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",")]
    if unknown := sorted(set(names) - set(SETS)):
        parser.error(f"--only takes {', '.join(SETS)} with commas between; found {', '.join(unknown)}")
    minutes = 0.3 if options.quick else options.minutes
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        found[name] = measured(name, SETS[name], options.shared, options.out, minutes, options.seed, options.device)
        print(f"{name}: {found[name].get('failed', 'done')}", file=sys.stderr, flush=True)
    text = f"{date.today()}, {minutes:g} minutes each, seed {options.seed}\n\n{markdown(found)}"
    write_atomic(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}")
