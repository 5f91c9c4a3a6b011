"""Verb `compare`: several recipes on the same data for equal time, one table with intervals; the same command goes on."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from .evaluate.load import Scans

FEWEST_SAMPLES, MOST_SAMPLES = 200, 2000
LOOK_S = 0.2  # how often a training process is looked at
DRAWS = 1000  # for the intervals that `evaluate` does not make
FEWEST_STRETCHES = 4  # between ticks: fewer do not show how much the speed varies
FEWEST_SPREAD = 10  # images on each side: as many as `evaluate` wants for recall
# What is taken from metrics.json: name there -> name in compare.json. Distances are divided by their real/real floor.
DISTANCES = {"random_conv_frechet": "frechet", "radiomics_frechet": "radiomics"}
SHARES = ("precision", "recall", "density", "coverage", "near_copies", "nearest_training_median")


def compare(
    dataset: Path,
    out: Path,
    *,
    minutes: float = 5.0,
    recipes: str = "relativistic,dcgan,wasserstein,vae",
    seeds: int = 1,
    count: int | None = None,
    side: int | None = None,
    images: int | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Train several recipes on one dataset for equal time and put what they reached into one table.

    Each recipe trains in a process of its own, one after the other, on the same grid, then makes samples that are
    compared with the holdout. OUT gets compare.json, compare.html and a folder for each recipe and seed. Ctrl-C stops
    cleanly and the same command goes on; with more recipes or seeds it adds them to what is there.

    Args:
        dataset: folder made by `scansmith prepare`.
        out: folder for everything that comes out.
        minutes: wall time for each training.
        recipes: names with commas between, as `scansmith train --recipe` takes them; the first one's probe chooses the grid.
        seeds: trainings of each recipe, with seeds from `seed` on; numbers are averaged and shown with their range.
        count: samples of each; default: a quarter more than held-out images, 200 to 2000.
        side: longer side of the images in pixels; default: what the probe of the first recipe chooses.
        images: images to show to each recipe, in place of what the minutes allow (equal images, not equal time).
        seed: the first seed.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"page", "verdict", "table", "recipes", "skipped"}.

    Raises:
        ValueError: no dataset, an unknown recipe, or a folder with trainings of other settings.
        Interrupted: Ctrl-C; the same command goes on.
    """
    from .dataset import Dataset
    from .report import comparison

    dataset, out = Path(dataset), Path(out)
    names, opened = chosen(recipes), Dataset.open(dataset)
    if seeds < 1 or minutes <= 0:
        raise ValueError(f"expected at least one seed and more than 0 minutes, got seeds={seeds}, minutes={minutes}")
    samples = count or enough_samples(len(opened.rows("holdout")))
    announce(names, minutes, seeds, images)
    results: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    skipped: list[str] = []
    with alone(out) as lock:
        # All recipes once before any twice, so that an early stop leaves a whole table.
        for number in range(seed, seed + seeds):
            for name in names:
                folder = out / f"{name}-{number}"
                asked = {"minutes": minutes, "recipe": name, "side": side, "images": images, "seed": number}
                trained = train_apart(dataset, folder, asked, device, lock)
                if "failed" in trained:
                    skipped.append(f"{name}, seed {number}: {trained['failed']}")
                    continue
                side = side or longer_side(folder)
                measured = measure(dataset, folder, trained["result"]["hash"], samples, number, device)
                results[name].append({"seed": number, "folder": folder.name, **numbers(trained, measured, folder)})
    result = {
        "dataset": opened.info["hash"],
        "request": {"minutes": minutes, "images": images, "seeds": seeds, "seed": seed, "count": samples, "side": side},
        "recipes": {name: average(runs) for name, runs in results.items() if runs},
        "skipped": skipped,
    }
    return comparison.write(out, opened, result)


def chosen(recipes: str) -> list[str]:
    """The names of a list with commas, without repetition.

    Raises:
        ValueError: there is no such recipe, or none at all.
    """
    from .train.recipes import makers

    names = list(dict.fromkeys(name.strip() for name in recipes.split(",") if name.strip()))
    unknown = [name for name in names if name not in makers()]
    if unknown or not names:
        raise ValueError(f"expected recipes of {', '.join(makers())} with commas between, got {recipes!r}")
    return names


def enough_samples(held_out: int) -> int:
    """How many samples are made: `evaluate` compares 80 % of them at a time, so a quarter more than are held out."""
    return min(MOST_SAMPLES, max(FEWEST_SAMPLES, math.ceil(1.25 * held_out)))


@contextmanager
def alone(out: Path) -> Iterator[int | None]:
    """Hold the folder, so that two comparisons do not train in it at once; None where the system has no such lock.

    Raises:
        ValueError: another one is at work, or a training that it started.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield None
        return
    out.mkdir(parents=True, exist_ok=True)
    folder = os.open(out, os.O_RDONLY)
    try:
        try:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(
                f"expected {out} to be free, found another comparison or its training at work in it: wait for it, or choose another folder"
            ) from error
        yield folder
    finally:
        os.close(folder)


def announce(names: list[str], minutes: float, seeds: int, images: int | None) -> None:
    """The plan, for people."""
    runs = len(names) * seeds
    length = f"{minutes:g} min each, {runs * minutes:g} min in all" if images is None else f"{images:,} images each"
    times = f", {seeds} seeds" if seeds > 1 else ""
    print(
        f"Comparing {', '.join(names)}{times}: {length}, and about a minute for each to measure",
        file=sys.stderr,
        flush=True,
    )


# ------------------------------------------------------------------------------------------------ training, apart


def train_apart(
    dataset: Path, folder: Path, asked: dict[str, Any], device: str, lock: int | None = None
) -> dict[str, Any]:
    """`scansmith train` in a process of its own, unless this folder's training is done.

    Returns:
        {"asked", "result": what train returned, "peak_bytes": most memory the process held, None where the system does
        not say}, kept in FOLDER/trained.json; or {"failed": one sentence}.

    Raises:
        ValueError: the folder's training was asked for with other settings.
        Interrupted: Ctrl-C; the training wrote its checkpoint.
    """
    from .runtime import Interrupted, write_json

    record = folder / "trained.json"
    if record.is_file():
        done: dict[str, Any] = json.loads(record.read_text())
        # The first training chooses the grid, so its `side` stays what it was asked with.
        different = sorted(key for key in asked if done["asked"][key] != asked[key])
        if different and (different != ["side"] or longer_side(folder) != asked["side"]):
            changes = ", ".join(f"{key} {done['asked'][key]!r} -> {asked[key]!r}" for key in different)
            raise ValueError(
                f"expected the settings that the training in {folder} was made with, found {changes}: choose another folder, or remove this one to train anew"
            )
        return done
    print(f"{asked['recipe']}, seed {asked['seed']}:", file=sys.stderr, flush=True)
    options = [text for key, value in asked.items() if value is not None for text in (f"--{key}", str(value))]
    command = ["train", str(dataset), str(folder / "train"), *options, "--device", device, "--json"]
    code, said, failure, peak = apart(command, folder / "train.err", lock)
    if code == 130:
        raise Interrupted("stopped; the same command goes on from there")
    if code != 0:
        return {"failed": failure}
    trained = {"asked": asked, "result": json.loads(said), "peak_bytes": peak}
    write_json(record, trained)
    return trained


def apart(arguments: list[str], errors: Path, lock: int | None = None) -> tuple[int, str, str, int | None]:
    """Run a scansmith command in its own process and pass on what it says while it runs.

    Ctrl-C and SIGTERM are passed on once; the process then ends by itself.

    Args:
        arguments: verb and options.
        errors: file that its standard error goes through; removed at the end.
        lock: file descriptor that the process holds too.

    Returns:
        Exit code (130: stopped), standard output, the last line on standard error, and the most memory held at a time in
        bytes, None where unknown.
    """
    from .runtime import stop_flag

    errors.parent.mkdir(parents=True, exist_ok=True)
    peak, passed_on = 0, False
    with (
        errors.open("w+b") as spoken,
        errors.open("rb") as heard,
        errors.with_suffix(".out").open("w+b") as answer,
        stop_flag() as stopping,
    ):
        process = subprocess.Popen(
            [sys.executable, "-m", "scansmith.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=answer,
            stderr=spoken,
            # A group of its own: the terminal's Ctrl-C would reach it twice, and the second means "at once".
            process_group=0 if os.name == "posix" else None,
            # The lock goes along: while a process whose parent was killed lives on, nobody else starts here.
            pass_fds=() if lock is None else (lock,),
        )
        try:
            while True:
                ended = process.poll() is not None
                peak = max(peak, memory_peak(process.pid))
                sys.stderr.write(heard.read().decode(errors="replace"))
                sys.stderr.flush()
                if ended:
                    break
                if stopping() and not passed_on:
                    process.terminate()
                    passed_on = True
                time.sleep(LOOK_S)
        except BaseException:
            process.kill()
            process.wait()
            raise
        spoken.seek(0)
        answer.seek(0)
        lines = spoken.read().decode(errors="replace").strip().splitlines()
        said = answer.read().decode()
    for path in (errors, errors.with_suffix(".out")):
        path.unlink()
    last = lines[-1].removeprefix("scansmith: ") if lines else f"it ended with code {process.returncode}"
    # A process that was stopped before it could listen for the signal was stopped all the same.
    code = 130 if passed_on and process.returncode != 0 else process.returncode
    return code, said, last, peak or None


def memory_peak(process: int) -> int:
    """Most memory the process has held so far, in bytes; 0 where the system does not say (only Linux does).

    The kernel's own high-water mark: nothing between two looks is missed. `getrusage` would count what the parent held
    when it started the process.
    """
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    found = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")), "0")
    return 1024 * int(found)


def longer_side(folder: Path) -> int:
    """The grid that the training in this folder was given."""
    return int(json.loads((folder / "train" / "recipe.json").read_text())["target"])


# ------------------------------------------------------------------------------------------------ measuring


def measure(dataset: Path, folder: Path, model: str, count: int, seed: int, device: str) -> dict[str, Any]:
    """What metrics.json holds of samples of the trained model, and their "diversity"; made unless they are there."""
    from .evaluate import evaluate
    from .report.folder import read_json
    from .synthesize import synthesize

    found = read_json(folder / "metrics.json")
    if found.get("fake") != {"count": count, "model": model}:
        synthesize(folder / "train" / "model", folder / "images", count=count, seed=seed, device=device)
        # The same draws of held-out images for every recipe and seed.
        found = evaluate(dataset, folder / "images", folder, seed=0, device=device)
    return {**found, "diversity": diversity(dataset, folder, found, device)}


def diversity(dataset: Path, folder: Path, measured: dict[str, Any], device: str) -> dict[str, Any]:
    """Spread of the samples over the spread of the real images that they were compared with.

    The real images stay, as in `evaluate`; each draw takes as many samples as these are. The floor is what as many
    training images give.

    Args:
        measured: metrics.json of the same samples.

    Returns:
        {"fake", "value", "interval", "floor"}, kept in FOLDER/diversity.json; value and interval None with fewer than 10
        real images or when these are all alike, floor None then and without training images.
    """
    from .evaluate.verdict import choose_sets
    from .report.folder import read_json
    from .runtime import write_json

    path = folder / "diversity.json"
    kept = read_json(path)
    if kept.get("fake") == measured["fake"]:
        return kept
    sets, count = choose_sets(dataset, folder / "images", None, measured["seed"]), measured["compared_per_draw"]
    real = encoded(sets.reference, "real", count, measured, device)
    found: dict[str, Any] = {"fake": measured["fake"], "value": None, "interval": None, "floor": None}
    if len(real) >= FEWEST_SPREAD and (unit := spread(real)) > 0.0:
        # Draws with replacement from N images find a spread too small by 1 in 2 N.
        fake, others = (
            encoded(scans, side, 4 * count, measured, device)
            for side, scans in (("fake", sets.fake), ("others", sets.others))
        )
        found["value"], found["interval"] = resampled(lambda drawn: spread(drawn) / unit, fake, len(real))
        if len(others):
            found["floor"], _ = resampled(lambda drawn: spread(drawn) / unit, others, len(real))
    write_json(path, found)
    return found


def encoded(scans: Scans, side: str, most: int, measured: dict[str, Any], device: str) -> np.ndarray:
    """Features (N, 512) of at most so many of the scans, at the size that `evaluate` compared them at."""
    from .evaluate.load import load
    from .metrics.random_conv import features
    from .runtime import choose_device

    images, _ = load(scans.sample(most, measured["seed"], side), tuple(measured["size"]))
    return features(images, device=choose_device(device))


def spread(features: np.ndarray) -> float:
    """Mean distance of the rows of (N, d) from their centre."""
    import numpy as np

    return float(np.linalg.norm(features - features.mean(axis=0), axis=1).mean())


def resampled(statistic: Callable[[np.ndarray], float], rows: np.ndarray, count: int) -> tuple[float, list[float]]:
    """Mean and [5th, 95th percentile] of a statistic over `DRAWS` draws of so many of the rows with replacement (Efron 1979)."""
    import numpy as np

    from .evaluate.compare import interval
    from .runtime import derive_seed

    random = np.random.default_rng(derive_seed(0, "compare", count))
    values = [statistic(rows[random.integers(len(rows), size=count)]) for _ in range(DRAWS)]
    return float(np.mean(values)), interval(values)


def speed_interval(folder: Path) -> list[float] | None:
    """[low, high] of a training's images/s: how far the mean moves with the stretches between ticks that are drawn.

    None with fewer than four stretches. It holds how evenly this run went; another run of the same recipe may differ by more.
    """
    import numpy as np

    from .report.folder import RunFolder

    marks = [(0.0, 0.0), *((row["images"], row["seconds"]) for row in RunFolder(folder).ticks)]
    stretches = np.diff(np.array(marks), axis=0)
    if len(stretches) < FEWEST_STRETCHES:
        return None
    return resampled(lambda drawn: per_second(*drawn.sum(axis=0)), stretches, len(stretches))[1]


def per_second(images: float, seconds: float) -> float:
    """Images/s, also of a run too short for its clock."""
    return float(images / max(seconds, 1e-9))


def numbers(trained: dict[str, Any], measured: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What is compared of one training: name -> {"value", "interval", "floor"}, interval and floor None where unknown."""
    result, entries = trained["result"], measured["metrics"]
    found: dict[str, Any] = {}
    for name, short in DISTANCES.items():
        entry = entries.get(name)
        if entry and entry["ratio"] is not None:
            bounds = [bound / entry["floor"] for bound in entry["interval"]]
            found[short] = {"value": entry["ratio"], "interval": bounds, "floor": 1.0}
    for name in SHARES:
        if name in entries:
            found[name] = {key: entries[name][key] for key in ("value", "interval", "floor")}
    speed = per_second(result["images"], result["seconds"])
    found["diversity"] = {key: measured["diversity"][key] for key in ("value", "interval", "floor")}
    found["images_per_s"] = {"value": speed, "interval": speed_interval(folder), "floor": None}
    # One number of a training: only several seeds say how much it varies.
    plain = {"peak_bytes": trained["peak_bytes"], "device_peak_bytes": result.get("device_peak_bytes"),
             "images": result["images"], "seconds": result["seconds"]}  # fmt: skip
    found |= {name: {"value": value, "interval": None, "floor": None} for name, value in plain.items()}
    found = {name: entry for name, entry in found.items() if entry["value"] is not None}
    return {
        "numbers": found,
        "verdict": measured["verdict"],
        "compared": measured["compared_per_draw"],
        "split": measured["real"]["split"],
    }


def average(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """One recipe over its seeds.

    Each number is the mean of the seeds that have it, with "range" (lowest and highest seed) where there are several, and
    the interval from the lowest lower to the highest upper end: it holds what draws of images and seeds vary.
    """
    names = dict.fromkeys(name for run in runs for name in run["numbers"])
    joined: dict[str, Any] = {}
    for name in names:
        each = [run["numbers"][name] for run in runs if name in run["numbers"]]
        values = [one["value"] for one in each]
        floors = [one["floor"] for one in each if one["floor"] is not None]
        intervals = [one["interval"] for one in each if one["interval"] is not None]
        joined[name] = {
            "value": sum(values) / len(values),
            "interval": [min(low for low, _ in intervals), max(high for _, high in intervals)] if intervals else None,
            "floor": sum(floors) / len(floors) if floors else None,
            "range": [min(values), max(values)] if len(values) > 1 else None,
        }
    return {
        "numbers": joined,
        "runs": [{key: run[key] for key in ("seed", "folder", "verdict", "compared", "split")} for run in runs],
    }
