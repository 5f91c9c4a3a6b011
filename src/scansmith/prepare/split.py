"""Who learns and who judges: patients to splits, so that no patient and no copy of an image lies on both sides."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping

import numpy as np

from ..dataset import SPLITS

FRACTIONS = {"train": 0.70, "validation": 0.10, "calibration": 0.05, "holdout": 0.15}
# One or two patients calibrate nothing: below this number the holdout gets their share.
LEAST_FOR_CALIBRATION = 20


def counts(total: int) -> dict[str, int]:
    """How many of `total` patients go to each split: largest remainder of `FRACTIONS`.

    From two patients on one is held out, from three on one validates; a single patient is learned from.
    """
    share = dict(FRACTIONS)
    if total < LEAST_FOR_CALIBRATION:
        share["holdout"] += share["calibration"]
        share["calibration"] = 0.0
    result = {split: int(total * share[split] + 1e-9) for split in SPLITS}
    remainder = {split: total * share[split] - result[split] for split in SPLITS}
    # Ties go to the holdout, then to validation, without which nothing can be judged.
    order = sorted(("holdout", "validation", "train", "calibration"), key=lambda split: -round(remainder[split], 9))
    for split in order[: total - sum(result.values())]:
        result[split] += 1
    for split, least in (("holdout", 2), ("validation", 3)):
        if total >= least and result[split] == 0:
            giver = max(SPLITS, key=lambda name: result[name])
            result[giver] -= 1
            result[split] += 1
    return result


def join(patients: Iterable[str], copies: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Patient -> cluster: patients who share an exact copy of an image belong together (union-find).

    Args:
        patients: all of them.
        copies: pairs of patients that own the same image.
    """
    parent = {patient: patient for patient in patients}

    def root(patient: str) -> str:
        while parent[patient] != patient:
            parent[patient] = parent[parent[patient]]
            patient = parent[patient]
        return patient

    for one, other in copies:
        first, second = sorted((root(one), root(other)))
        parent[second] = first
    return {patient: root(patient) for patient in parent}


def assign(hashes: Mapping[str, Iterable[str]], labels: Mapping[str, str | None], seed: int) -> dict[str, str]:
    """Cluster -> split, in an order that depends on the seed and the images alone, not on names or their order.

    Every class is spread over the splits in the same proportions, as far as whole patients allow.

    Args:
        hashes: cluster -> hashes of its images.
        labels: cluster -> class, or None.
        seed: another seed gives another split.
    """
    content = {
        cluster: hashlib.sha256("".join(sorted(members)).encode()).hexdigest() for cluster, members in hashes.items()
    }
    ranked = sorted(content, key=lambda cluster: hashlib.sha256(f"{seed}:{content[cluster]}".encode()).digest())
    strata: dict[str, list[str]] = {}
    for cluster in ranked:
        strata.setdefault(labels[cluster] or "", []).append(cluster)
    result: dict[str, str] = {}
    for name, quota in _quotas({name: len(members) for name, members in strata.items()}).items():
        members = iter(strata[name])
        result.update({next(members): split for split in SPLITS for _ in range(quota[split])})
    return result


def _quotas(sizes: Mapping[str, int]) -> dict[str, dict[str, int]]:
    """Class -> split -> patients: rows add up to the classes' sizes and columns to `counts` of all.

    Controlled rounding (Cox 1987): every cell is its exact share rounded down or up. Which are rounded up is a transport
    problem, whose linear programme has whole-number solutions; those furthest above a whole number go first.
    """
    from scipy.optimize import linprog

    total = sum(sizes.values())
    wanted = counts(total)
    names = sorted(sizes)
    exact = np.array([[sizes[name] * wanted[split] / total for split in SPLITS] for name in names])
    down = np.floor(exact + 1e-9)
    rest = np.clip(exact - down, 0.0, None)
    rows, columns = np.indices(exact.shape)
    lines = [rows.ravel() == row for row in range(len(names))] + [
        columns.ravel() == column for column in range(len(SPLITS))
    ]
    sums = [
        *(np.array([sizes[name] for name in names]) - down.sum(axis=1)),
        *(np.array([wanted[split] for split in SPLITS]) - down.sum(axis=0)),
    ]
    bounds = [(0, 1 if value > 1e-9 else 0) for value in rest.ravel()]
    up = linprog(-rest.ravel(), A_eq=np.array(lines, float), b_eq=sums, bounds=bounds, method="highs-ds")
    assert up.success, up.message
    quota = (down + np.rint(up.x).reshape(exact.shape)).astype(int)
    return {name: dict(zip(SPLITS, row.tolist())) for name, row in zip(names, quota)}
