"""Who learns and who judges: patients to splits, so that no patient and no copy of an image lies on both sides."""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from ..dataset import SPLITS

FRACTIONS = {"train": 0.70, "validation": 0.10, "calibration": 0.05, "holdout": 0.15}
# One or two patients calibrate nothing: below this number the holdout gets their share.
LEAST_FOR_CALIBRATION = 20
# What people call the splits in their tables.
NAMES = {
    **dict.fromkeys(("train", "training", "tr"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "tune", "tuning"), "validation"),
    **dict.fromkeys(("cal", "calib", "calibration"), "calibration"),
    **dict.fromkeys(("holdout", "hold-out", "hold_out", "test", "testing", "ts"), "holdout"),
}


# ------------------------------------------------------------------------------------------------ how many


def counts(total: int, fractions: Mapping[str, float] = FRACTIONS) -> dict[str, int]:
    """How many of `total` patients go to each split: largest remainder of the fractions.

    From two patients on one is held out, from three on one validates; a single patient is learned from.
    """
    share = {split: fractions.get(split, 0.0) for split in SPLITS}
    if total < LEAST_FOR_CALIBRATION and share == FRACTIONS:
        share["holdout"] += share["calibration"]
        share["calibration"] = 0.0
    result = {split: int(total * share[split] + 1e-9) for split in SPLITS}
    remainder = {split: total * share[split] - result[split] for split in SPLITS}
    # Ties go to the holdout, then to validation, without which nothing can be judged.
    order = sorted(("holdout", "validation", "train", "calibration"), key=lambda split: -round(remainder[split], 9))
    for split in order[: total - sum(result.values())]:
        result[split] += 1
    for split, least in (("holdout", 2), ("validation", 3)):
        if total >= least and result[split] == 0 and share[split] > 0:
            giver = max(SPLITS, key=lambda name: result[name])
            result[giver] -= 1
            result[split] += 1
    return result


# ------------------------------------------------------------------------------------------------ who


def assign(
    hashes: Mapping[str, Iterable[str]],
    labels: Mapping[str, str | None],
    seed: int,
    earlier: Mapping[str, str] | None = None,
    fractions: Mapping[str, float] = FRACTIONS,
) -> dict[str, str]:
    """Cluster -> split, in an order that depends on the seed and the images alone, not on names or their order.

    Every class is spread over the splits in the same proportions, as far as whole patients allow. Who has a split keeps
    it; those who come later fill what lacks most. From scratch, with the same seed and the same images, a grown set
    keeps most patients where they were: of 40 grown to 60, 9 % move (13 % with three classes), of 100 grown to 110,
    3 % (6 %), measured over 150 draws; with `earlier` nobody moves.

    Args:
        hashes: cluster -> hashes of its images.
        labels: cluster -> class, or None.
        seed: another seed gives another split.
        earlier: cluster -> split it has, from an earlier run or from the user; None when all are new.
        fractions: split -> share of the patients.
    """
    held = {cluster: split for cluster, split in (earlier or {}).items() if cluster in hashes}
    assert set(held.values()) <= set(SPLITS), held
    content = {
        cluster: hashlib.sha256("".join(sorted(members)).encode()).hexdigest()
        for cluster, members in hashes.items()
        if cluster not in held
    }
    ranked = sorted(content, key=lambda cluster: hashlib.sha256(f"{seed}:{content[cluster]}".encode()).digest())
    strata: dict[str, list[str]] = {labels[cluster] or "": [] for cluster in hashes}
    for cluster in ranked:
        strata[labels[cluster] or ""].append(cluster)
    given = Counter((labels[cluster] or "", split) for cluster, split in held.items())
    result = dict(held)
    for name, quota in _quotas({name: len(new) for name, new in strata.items()}, given, fractions).items():
        members = iter(strata[name])
        result.update({next(members): split for split in SPLITS for _ in range(quota[split])})
    return result


def _quotas(
    sizes: Mapping[str, int], given: Mapping[tuple[str, str], int], fractions: Mapping[str, float]
) -> dict[str, dict[str, int]]:
    """Class -> split -> new patients: rows add up to the classes' sizes and, with those given, columns to `counts` of all.

    Controlled rounding (Cox 1987): every cell is its exact share rounded down or up. Which are rounded up is a transport
    problem, whose linear programme has whole-number solutions; those furthest above a whole number go first. Where
    given patients make a column's exact sum a fraction, it is rounded too, up where the whole split lacks patients.

    Args:
        sizes: class -> new patients.
        given: (class, split) -> patients who keep their split.
        fractions: as for `assign`.
    """
    names = sorted(sizes)
    new = np.array([sizes[name] for name in names])
    held = np.array([[given.get((name, split), 0) for split in SPLITS] for name in names]).reshape(-1, len(SPLITS))
    total = int(new.sum() + held.sum())
    wanted = counts(total, fractions)
    ideal = np.array([[size * wanted[split] / max(total, 1) for split in SPLITS] for size in new + held.sum(axis=1)])
    exact = np.array([_fill(*row) for row in zip(ideal, held, new)]).reshape(-1, len(SPLITS))
    quota = _round(exact, new, np.array([wanted[split] for split in SPLITS]) - held.sum(axis=0))
    return {name: dict(zip(SPLITS, row.tolist())) for name, row in zip(names, quota)}


def _fill(ideal: np.ndarray, held: np.ndarray, new: int) -> np.ndarray:
    """(splits,) share of `new` patients of one class for each split, in fractions of patients.

    Every split is filled up to the same part of its ideal; one that holds more already gets none. With nobody held, or
    nobody held too many, that is what each lacks.
    """
    if not new or (held <= ideal).all():
        return (ideal - held) * bool(new)
    result = np.zeros_like(ideal)
    full = np.divide(held, ideal, out=np.full_like(ideal, np.inf), where=ideal > 0)
    order = np.argsort(full, kind="stable")
    for last in range(1, len(order) + 1):
        filled = order[:last]
        level = (new + held[filled].sum()) / ideal[filled].sum()
        if last == len(order) or level <= full[order[last]]:
            break
    result[filled] = level * ideal[filled] - held[filled]
    return np.clip(result, 0.0, None)


def _round(exact: np.ndarray, rows: np.ndarray, lacking: np.ndarray) -> np.ndarray:
    """(classes, splits) whole numbers: `exact` rounded down or up, sums of rows kept, sums of columns rounded likewise.

    Args:
        exact: shares of patients.
        rows: (classes,) its sums of rows, whole numbers.
        lacking: (splits,) patients that each split lacks; says which columns are rather rounded up.
    """
    from scipy.optimize import linprog

    if not rows.sum():
        return np.zeros(exact.shape, int)
    down = np.floor(exact + 1e-9)
    rest = np.clip(exact - down, 0.0, None)
    row, column = np.indices(exact.shape)
    columns = exact.sum(axis=0)
    whole = np.abs(columns - np.rint(columns)) < 1e-6
    lines = [row.ravel() == k for k in range(len(exact))] + [column.ravel() == k for k in np.flatnonzero(whole)]
    sums = [*(rows - down.sum(axis=1)), *(np.rint(columns) - down.sum(axis=0))[whole]]
    loose = [column.ravel() == k for k in np.flatnonzero(~whole)]
    room = (np.floor(columns) - down.sum(axis=0))[~whole]
    bounds = [(0, 1 if value > 1e-9 else 0) for value in rest.ravel()]
    gain = rest + np.where(whole, 0.0, lacking - np.floor(columns))
    up = linprog(
        -gain.ravel(),
        A_eq=np.array(lines, float),
        b_eq=sums,
        A_ub=np.concatenate([np.array(loose, float), -np.array(loose, float)]) if loose else None,
        b_ub=[*(room + 1), *(-room)] if loose else None,
        bounds=bounds,
        method="highs-ds",
    )
    assert up.success, up.message
    return (down + np.rint(up.x).reshape(exact.shape)).astype(int)


# ------------------------------------------------------------------------------------------------ copies


def join(patients: Iterable[str], copies: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Patient -> cluster: patients who share an exact copy of an image belong together (union-find).

    Args:
        patients: all of them.
        copies: pairs of patients that own the same image.
    """
    parent = {patient: patient for patient in patients}
    for one, other in copies:
        first, second = sorted((_root(parent, one), _root(parent, other)))
        parent[second] = first
    return {patient: _root(parent, patient) for patient in parent}


def resolve(
    links: Iterable[tuple[int, int]],
    owner: Sequence[str],
    earlier: Mapping[str, str],
    known_rows: Collection[int] = (),
) -> tuple[dict[str, str], list[int]]:
    """Which patients belong together because they share copies, and which rows must go so that nobody moves.

    Patients who share a copy become one cluster, unless it would then hold two patients with different earlier splits:
    of such a pair of rows the newer one is left out of the dataset. A new patient who shares copies with both sides
    stays with the one it shares more with.

    Args:
        links: pairs of rows that are copies of each other, exact or near.
        owner: row -> patient.
        earlier: patient -> split it has; a new patient is not in it.
        known_rows: rows that were in the dataset before; of a pair the other is newer, else the higher number.

    Returns:
        Patient -> cluster (its first member by name), and the rows to leave out, ascending.
    """
    known = frozenset(known_rows)
    pairs = sorted({(min(pair), max(pair)) for pair in links if owner[pair[0]] != owner[pair[1]]})
    shared = Counter(_both(owner, pair) for pair in pairs)
    parent = {patient: patient for patient in owner}
    split = dict(earlier)
    left_out: set[int] = set()
    for pair in sorted(pairs, key=lambda pair: -shared[_both(owner, pair)]):
        if left_out & set(pair):
            continue
        first, second = sorted(_root(parent, owner[row]) for row in pair)
        here, there = split.get(first), split.get(second)
        if here and there and here != there:
            left_out.add(max(pair, key=lambda row: (row not in known, row)))
            continue
        parent[second] = first
        if here or there:
            split[first] = here or there or ""
    # Once more without the rows left out: what only they tied together comes apart again.
    kept = [(owner[i], owner[j]) for i, j in pairs if i not in left_out and j not in left_out]
    return join(owner, kept), sorted(left_out)


def splits_of_clusters(cluster: Mapping[str, str], earlier: Mapping[str, str]) -> dict[str, str]:
    """Cluster -> the split that its members have from before, for `assign`; clusters of new patients are not in it.

    Args:
        cluster: patient -> cluster, as `resolve` gives it.
        earlier: patient -> split.
    """
    result: dict[str, str] = {}
    for patient, split in earlier.items():
        if patient in cluster:
            assert result.setdefault(cluster[patient], split) == split, "two splits in one cluster"
    return result


def _both(owner: Sequence[str], pair: tuple[int, int]) -> tuple[str, str]:
    one, other = sorted(owner[row] for row in pair)
    return one, other


def _root(parent: dict[str, str], patient: str) -> str:
    while parent[patient] != patient:
        parent[patient] = parent[parent[patient]]
        patient = parent[patient]
    return patient


# ------------------------------------------------------------------------------------------------ given by the user


def read_splits(table: Path) -> dict[str, str]:
    """Patient or file -> split, from the user's CSV table (TSV by its name) with the columns split and patient or file.

    Splits may be called train, val, validation, test, holdout, calibration and the like.

    Raises:
        ValueError: the table cannot be read as one, lacks a column, names an unknown split, or gives one name two.
    """
    key, rows = _read_table(table)
    result: dict[str, str] = {}
    for line, row in rows:
        name, word = row[key], row["split"]
        if not name and not word:
            continue
        if not name or not word:
            raise ValueError(
                f"expected a {key} and a split in line {line} of {table}, found {name or word!r} alone: complete it or delete the line"
            )
        split = NAMES.get(word.lower())
        if split is None:
            raise ValueError(
                f"expected train, validation, calibration or holdout (also val, test) as split in line {line} of {table}, found {word!r}"
            )
        name = name.replace("\\", "/").removeprefix("./") if key == "file" else name
        if result.setdefault(name, split) != split:
            raise ValueError(f"expected one split for {key} {name!r} in {table}, found {result[name]} and {split}")
    if not result:
        raise ValueError(f"expected at least one {key} with a split in {table}, found an empty table")
    return result


def _read_table(table: Path) -> tuple[str, list[tuple[int, dict[str, str]]]]:
    """(key column, (line, row) with lower-case column names)."""
    if not table.is_file():
        raise ValueError(f"expected a CSV table of splits, found no file {table}: check the path")
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, delimiter="\t" if table.suffix.lower() == ".tsv" else ",", restval="")
            columns = [(name or "").strip().lower() for name in reader.fieldnames or ()]
            rows = [
                (reader.line_num, {name.strip().lower(): value.strip() for name, value in row.items() if name})
                for row in reader
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"expected a CSV table in UTF-8, found {table}: {error}") from error
    key = next((name for name in ("patient", "file") if name in columns), None)
    if key is None or "split" not in columns:
        raise ValueError(
            f"expected the columns split and one of patient, file in {table}, found {', '.join(columns) or 'no columns'}: rename them in the first line"
        )
    return key, rows


def patients_of(given: Mapping[str, str], names: Sequence[str], patients: Sequence[str]) -> dict[str, str]:
    """Patient -> split, from a table that names patients or files.

    Args:
        given: as `read_splits` gives it.
        names: of every scan its path below the folder of scans, with forward slashes.
        patients: what names each scan's patient.

    Raises:
        ValueError: the table names none of the scans, or puts scans of one patient into two splits.
    """
    result: dict[str, str] = {}
    for name, patient in zip(names, patients):
        split = next((given[key] for key in (patient, name, name.rsplit("/", 1)[-1]) if key in given), None)
        if split is not None and result.setdefault(patient, split) != split:
            raise ValueError(
                f"expected all scans of one patient in one split, found {name} in {split} and others of the same patient in {result[patient]}: what is learned from a patient cannot be judged on it"
            )
    if given and not result:
        raise ValueError(
            f"expected the table of splits to name the scans, found no match among its {len(given)} names (the first is {next(iter(given))!r}): give patients, or paths as they lie below the folder"
        )
    return result
