"""Do 90 % intervals cover 90 %? Phantom patients, one training, many draws of who calibrates.

    OMP_NUM_THREADS=1 python benchmarks/coverage.py OUT [--patients 200] [--minutes 10] [--draws 20] [--quick]

T1 -> CT of phantoms. A quarter of the patients is learned from, a twentieth chooses the model, all others are predicted once. In each
draw 20 of these calibrate by conformal risk control, or 60 by risk-controlling prediction sets, and what the rest have outside their
bounds is counted: a patient's share of the body's voxels, each patient once. Promised are at least 90 % inside on average over draws
by the former, and by the latter that at most a tenth of the draws has less. Beside the predicted bounds stand bounds at one constant
distance from the middle, calibrated in the same way: what they need in width is what the prediction of uncertainty is worth.

Draws share patients and each is judged on the rest alone, so that shares of draws scatter; the standard error of the mean over
draws, taken as if they were independent, is printed beside it.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import numpy as np
import torch

from scansmith import conformal, inference, model, pairings, phantom, prepare, train
from scansmith.dataset import Dataset
from scansmith.evaluate.translation import TISSUES
from scansmith.runtime import Interrupted, Progress, derive_seed, write_atomic

FRACTIONS = {"train": 0.25, "validation": 0.05, "calibration": 0.0, "holdout": 0.7}
ALPHA, DELTA = 0.1, 0.1
CALIBRATING = (
    20,
    60,
)  # patients: `calibrate` takes conformal risk control for the first, prediction sets for the second
CONSTANT = 0.1  # of constant bounds before they are calibrated, in [-1, 1]
KINDS = ("predicted", "constant")
PARTS = ("body", *TISSUES)


@dataclass(frozen=True)
class Losses:
    """What the patients that nothing has learned from lose, for each factor that bounds may be widened by.

    Attributes:
        outside: (patients, parts, factors) share of a part's voxels outside; NaN where a patient has none.
        width: (patients,) mean distance between the bounds in the body, HU, before they are widened.
    """

    outside: np.ndarray
    width: np.ndarray


def dataset(out: Path, patients: int, slices: int, size: int) -> Dataset:
    """Pairs of phantoms, split by patient; made once."""
    if not (out / "data" / "dataset.json").is_file():
        for modality in ("T1", "CT"):  # the same patients
            phantom(out / "made", patients=patients, modality=modality, slices=slices, size=size, format="nifti")  # type: ignore[arg-type]
        plan = json.dumps({"fractions": FRACTIONS})
        prepare(out / "made" / "scans", out / "data", pairs="*T1*:*CT*", modality="MR:CT", labels="none", masks="none", plan=plan)  # fmt: skip
    return Dataset.open(out / "data")


def predicted(data: Dataset, folder: Path) -> dict[str, Losses]:
    """Both kinds of bounds for every held-out patient, by one pass of the model."""
    opened, pairing = model.load(folder), pairings.pairing("paired", data)
    patch, rows = opened.config["translation"]["patch"], pairing.rows("holdout")
    patients = data.columns["patient"][rows]
    names = sorted(set(patients.tolist()))
    outside: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    widths: dict[str, list[float]] = {kind: [] for kind in KINDS}
    with Progress("predicting", len(names), "patients") as progress:
        for number, name in enumerate(names, 1):
            parts = []
            for row in rows[patients == name]:
                source, target = pairing.source(int(row)), pairing.target(int(row))
                made = inference.translate(opened.generator, source, patch, torch.device("cpu"))
                inside = pairing.body(source, target)
                parts.append(np.stack([one[:, inside].ravel() for one in (target, *made)]))
            true, middle, lower, upper = np.concatenate(parts, axis=1)
            window = pairing.window(int(rows[patients == name][0]))
            unit = (window.high - window.low) / 2.0
            physical = (true + 1.0) * unit + window.low
            for kind, (below, above) in {
                "predicted": (lower, upper),
                "constant": (middle - CONSTANT, middle + CONSTANT),
            }.items():
                outside[kind].append(of_parts(true, below, middle, above, physical))
                distances = conformal.distances(below, middle, above)
                widths[kind].append(float(sum(one.mean() for one in distances)) * unit)
            progress.update(number)
    return {kind: Losses(np.stack(outside[kind]), np.array(widths[kind])) for kind in KINDS}


def of_parts(
    true: np.ndarray, lower: np.ndarray, middle: np.ndarray, upper: np.ndarray, physical: np.ndarray
) -> np.ndarray:
    """(parts, factors): `conformal.losses` of one patient's body and of each tissue in it, by HU."""
    where = [np.ones(true.shape, bool), *((physical >= low) & (physical < high) for low, high in TISSUES.values())]
    missing = np.full(len(conformal.FACTORS), np.nan)
    return np.stack(
        [
            conformal.losses(true[part], lower[part], middle[part], upper[part]) if part.any() else missing
            for part in where
        ]
    )


# ------------------------------------------------------------------------------------------------ draws


@dataclass(frozen=True)
class Draws:
    """What many draws gave.

    Attributes:
        method: of the calibration.
        coverage: (draws, parts) of the patients who did not calibrate, each counted once.
        width: (draws,) mean of theirs, HU.
    """

    method: str
    coverage: np.ndarray
    width: np.ndarray


def drawn(losses: Losses, count: int, draws: int, seed: int) -> Draws:
    """Calibrate with `count` patients and judge by the others, again and again; no calibration where `count` is 0."""
    coverage, widths, method = [], [], "uncalibrated"
    for draw in range(draws if count else 1):
        order = np.random.default_rng(derive_seed(seed, "coverage", draw)).permutation(len(losses.width))
        own, others = order[:count], order[count:]
        factor = 1.0
        if count:
            found = conformal.calibrate(list(losses.outside[own, 0]), ALPHA, DELTA)
            factor, method = found.factor, found.method
            if not np.isfinite(factor):
                raise ValueError(
                    f"expected a factor that is enough, found none with {count} patients: train for longer"
                )
        at = int(np.abs(conformal.FACTORS - factor).argmin())
        coverage.append(1.0 - np.nanmean(losses.outside[others, :, at], axis=0))
        widths.append(factor * losses.width[others].mean())
    return Draws(method, np.stack(coverage), np.array(widths))


def rows(losses: Mapping[str, Losses], counts: tuple[int, ...], draws: int, seed: int) -> tuple[list[str], list[str]]:
    """The rows of the table, and in words whether promises were kept."""
    lines, words = [], []
    for count in counts:
        widths = {}
        for kind in KINDS:
            found = drawn(losses[kind], count, draws, seed)
            body, widths[kind] = found.coverage[:, 0], found.width.mean()
            low = f"{(body < 1.0 - ALPHA).sum()} of {len(body)}" if count else ""
            spread = f" ({body.min():.3f} to {body.max():.3f})" if count else ""
            tissues = " | ".join(f"{value:.3f}" for value in found.coverage[:, 1:].mean(axis=0))
            lines.append(
                f"| {kind} | {f'{found.method}, {count}' if count else found.method} | {body.mean():.3f}{spread} | {low} | {tissues} | {widths[kind]:.0f} |"
            )
            if count:
                words.append(
                    f"{kind} bounds, {found.method}, {count} patients: mean over draws {body.mean():.4f} ± {body.std(ddof=1) / np.sqrt(len(body)):.4f}, {(body < 1.0 - ALPHA).mean():.0%} of draws below {1.0 - ALPHA:.0%}"
                )
        if count:
            words.append(f"{count} patients: predicted bounds are {widths['predicted'] / widths['constant']:.0%} as wide as constant ones")  # fmt: skip
    return lines, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--patients", type=int, default=200, help="150 or more, 70 %% of them to draw from")
    parser.add_argument("--slices", type=int, default=4, help="of a patient")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="110 patients of 48 pixels, one minute: to try the way")
    options = parser.parse_args()
    patients, slices, size, minutes = options.patients, options.slices, options.size, options.minutes
    if options.quick:
        patients, slices, size, minutes = 110, 2, 48, 1.0
    if round(FRACTIONS["holdout"] * patients) < CALIBRATING[-1] + 10:
        parser.error(f"--patients: 100 or more, so that some are left beside {CALIBRATING[-1]}; found {patients}")
    data = dataset(options.out, patients, slices, size)
    train(data.root, options.out / "run", minutes=minutes, device="cpu")
    losses = predicted(data, options.out / "run" / "model")
    lines, words = rows(losses, (0, *CALIBRATING), options.draws, options.seed)
    head = f"| bounds | calibration, patients | inside, mean over {options.draws} draws (range) | draws below {1.0 - ALPHA:.0%} | {' | '.join(TISSUES)} | mean width, HU |"
    said = f"{date.today()}, {platform.machine()}, {patients} phantoms of {slices} x {size} x {size}, {len(losses['predicted'].width)} to draw from, {minutes:g} minutes"
    text = "\n".join([said, "", head, "|---" * (5 + len(TISSUES)) + "|", *lines, "", *words]) + "\n"
    write_atomic(options.out / "table.md", text)
    print(text)


if __name__ == "__main__":
    try:
        main()
    except Interrupted as stop:
        sys.exit(f"{stop}")
