"""What `--from` gains: a few scans learned from nothing, from a model of phantoms, and from a model of other scans.

    python benchmarks/start_from.py SHARED_DATA OUT [--minutes 1,3] [--seeds 2] [--count 100] [--before 5] [--only STARTS]

SHARED_DATA holds mednist_64px_classes. Abdominal CT is learned from COUNT images, drawn as limited_data.py draws them and
measured on its holdout. The models that are started from have learned for `--before` minutes from 600 phantom CT patients, and
from the chest CT of MedNIST. Minutes become images by rates (see equal_time.py). Each training is a folder of OUT; the same
command goes on. The minutes of the models that are started from are not counted.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from equal_time import Arm, Judge, images_in, rates, settled, train, with_ticks
from limited_data import COLUMNS, OURS, SIDE, limited, over_seeds

from scansmith import model, phantom, prepare
from scansmith.dataset import Dataset
from scansmith.runtime import Interrupted, choose_device, write_atomic, write_json
from scansmith.train.recipes import RECIPES

STARTS = {"nothing": "nothing", "phantom": "phantom CT", "chest": "chest CT"}
PHANTOM = {"patients": 600, "slices": 12, "modality": "CT"}
SIZE = 128  # of a phantom slice, stored whole: its grid is square, as that of MedNIST


def source(name: str, shared: Path, out: Path) -> Dataset:
    """What the model that is started from has learned from; prepared once."""
    root = out / "datasets" / name
    if not (root / "dataset.json").is_file():
        scans, plan = shared / "mednist_64px_classes" / "ChestCT", None
        if name == "phantom":
            phantom(out / "phantom", size=SIZE, **PHANTOM)  # type: ignore[arg-type]
            scans, plan = out / "phantom" / "scans", json.dumps({"crop": "none", "dimensions": 2})
        prepare(scans, root, labels="none", plan=plan)
    return Dataset.open(root)


def earlier(name: str, shared: Path, out: Path, known: dict[str, Any], minutes: float, device: str) -> Path | None:
    """The run to start from, trained to its end; None where nothing is started from."""
    if name == "nothing":
        return None
    data, run = source(name, shared, out), out / f"before-{name}"
    recipe = settled(RECIPES[OURS], known["machine"], data, SIDE)
    images = images_in(minutes, recipe, known["step_s"][OURS])
    trained = train(Arm(run, with_ticks(recipe, minutes), images, 0), data, device)
    if "failed" in trained:
        sys.exit(f"{run.name}: {trained['failed']}")
    return run


def table(found: dict[str, dict[str, list[dict[str, Any]]]]) -> str:
    """Markdown: a row for each start and length, mean and range over seeds; the real/real floor last."""
    lines = [
        "| minutes | started from | seeds | " + " | ".join(COLUMNS.values()) + " |",
        "|---" * (3 + len(COLUMNS)) + "|",
    ]
    for minutes, starts in found.items():
        for name, runs in starts.items():
            cells = [over_seeds(column, [run[column]["value"] for run in runs]) for column in COLUMNS]
            lines.append(f"| {minutes} | {STARTS[name]} | {len(runs)} | {' | '.join(cells)} |")
    floor = next((run for starts in found.values() for runs in starts.values() for run in runs), None)
    if floor is None:
        return "every training failed\n"
    cells = [over_seeds(column, [floor[column]["floor"]]) for column in COLUMNS]
    return "\n".join([*lines, f"| | real images | | {' | '.join(cells)} |"]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shared", type=Path, help="folder that holds mednist_64px_classes")
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", default="1,3")
    parser.add_argument("--before", type=float, default=5.0)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--only", default=",".join(STARTS))
    parser.add_argument("--rates", type=Path, help="rates.json that was measured before; default: OUT/rates.json")
    parser.add_argument("--device", default="auto")
    options = parser.parse_args()
    names = [name.strip() for name in options.only.split(",")]
    if unknown := sorted(set(names) - set(STARTS)):
        parser.error(f"--only takes {', '.join(STARTS)} with commas between; found {', '.join(unknown)}")
    device = choose_device(options.device)
    whole = options.out / "datasets" / "abdomen"
    if not (whole / "dataset.json").is_file():
        prepare(options.shared / "mednist_64px_classes" / "AbdomenCT", whole, labels="none")
    data = limited(Dataset.open(whole), options.out / "datasets" / f"abdomen-{options.count}", options.count)
    known = rates(options.rates or options.out / "rates.json", data, {OURS: RECIPES[OURS]}, SIDE, device, 20)
    recipe = settled(RECIPES[OURS], known["machine"], data, SIDE)
    judge = Judge(data, recipe, device)
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for minutes in options.minutes.split(","):
        found[minutes] = {name: [] for name in names}
        for seed in range(options.seeds):
            for name, runs in found[minutes].items():
                start = earlier(name, options.shared, options.out, known, options.before, options.device)
                run = options.out / f"{name}-{minutes}min-{seed}"
                images = images_in(float(minutes), recipe, known["step_s"][OURS])
                path = run / "measured.json"
                if not path.is_file():
                    arm = Arm(run, with_ticks(recipe, float(minutes)), images, seed, start)
                    trained = train(arm, data, options.device)
                    if "failed" in trained:
                        print(f"{run.name}: {trained['failed']}", file=sys.stderr, flush=True)
                        continue
                    write_json(path, judge.judge(model.load(run / "model").generator))
                runs.append(json.loads(path.read_text()))
                print(f"{run.name} done", file=sys.stderr, flush=True)
        write_atomic(options.out / "table.md", table(found))
        print(table(found), flush=True)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}")
