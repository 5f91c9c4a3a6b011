"""Class labels: from sub-folders that are classes, or from the user's CSV table; none when in doubt."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..formats import Source

# Folder names that say what files are for, not what they show.
ROLES = {
    "train",
    "training",
    "val",
    "valid",
    "validation",
    "test",
    "testing",
    "holdout",
    "images",
    "image",
    "imgs",
    "img",
    "imagestr",
    "imagests",
    "labels",
    "label",
    "labelstr",
    "masks",
    "mask",
    "seg",
    "segs",
    "segmentation",
    "segmentations",
    "data",
    "raw",
    "dicom",
    "nifti",
    "scans",
    "new",
    "old",
}
MOST_CLASSES = 50
LEAST_SCANS_PER_FOLDER = 5
LEAST_SCANS_PER_CLASS_ON_AVERAGE = 15
KEYS = ("file", "patient", "uid")


def find(labels: str, scans: Path, sources: Sequence[Source], patients: Sequence[str]) -> tuple[list[str | None], str]:
    """For every scan its class or None, and where the classes come from in words.

    Args:
        labels: "auto" (sub-folders that look like classes), "none", or the path of a CSV table.
        scans: the folder of scans.
        sources: the scans.
        patients: what names each scan's patient.

    Raises:
        ValueError: the table cannot be read, fits no scan, or its labels are no classes.
    """
    if labels.lower() == "none":
        return [None] * len(sources), "labels: none, as asked"
    if labels.lower() == "auto":
        return from_folders(scans, sources, patients)
    return from_table(Path(labels), scans, sources)


def from_folders(scans: Path, sources: Sequence[Source], patients: Sequence[str]) -> tuple[list[str | None], str]:
    """Classes from the first level of sub-folders, unless these may be patients, series, splits or the like."""
    none: list[str | None] = [None] * len(sources)
    parts = [source.files[0].relative_to(scans).parts for source in sources]
    if any(len(names) < 2 for names in parts):
        return none, "labels: none (scans lie directly in the folder)"
    folders = [names[0] for names in parts]
    sizes = Counter(folders)
    doubt = why_not_classes(
        sizes, {folder: {patient for patient, own in zip(patients, folders) if own == folder} for folder in sizes}
    )
    if doubt:
        return none, f"labels: none ({doubt}; to give classes: --labels TABLE.csv with columns file and label)"
    return (
        list(folders),
        f"labels: {len(sizes)} classes from the sub-folders: {', '.join(f'{name} {size}' for name, size in sorted(sizes.items()))}",
    )


def why_not_classes(sizes: dict[str, int], patients: dict[str, set[str]]) -> str | None:
    """None when sub-folders look like classes, else why they do not.

    Args:
        sizes: folder -> number of scans.
        patients: folder -> its patients.
    """
    if len(sizes) < 2:
        return "one sub-folder only"
    if len(sizes) > MOST_CLASSES or sum(sizes.values()) < LEAST_SCANS_PER_CLASS_ON_AVERAGE * len(sizes):
        return f"{len(sizes)} sub-folders for {sum(sizes.values())} scans look like patients or series"
    if min(sizes.values()) < LEAST_SCANS_PER_FOLDER:
        return f"a sub-folder with {min(sizes.values())} scans is too small for a class"
    if min(len(who) for who in patients.values()) < 2:
        return "a sub-folder with a single patient looks like a patient"
    if any(name.lower() in ROLES for name in sizes):
        return "the sub-folders' names say what the files are for, such as train or masks"
    if len({re.sub(r"\d+", "#", name) for name in sizes}) == 1:
        return "numbered sub-folders look like patients"
    return None


def from_table(table: Path, scans: Path, sources: Sequence[Source]) -> tuple[list[str | None], str]:
    """Classes from a CSV table with the columns `label` and one of `file`, `patient` or `uid` (Study Instance UID)."""
    if not table.is_file():
        raise ValueError(f"expected 'auto', 'none' or a CSV file as labels, found no file {table}")
    key, wanted = _read_table(table)
    labels = [next((wanted[name] for name in _names(source, key, scans) if name in wanted), None) for source in sources]
    matched = sum(label is not None for label in labels)
    if not matched:
        example = next(iter(wanted), "nothing")
        raise ValueError(
            f"expected column {key!r} of {table} to name the scans, found no match among {len(wanted)} rows (the first is {example!r}): give paths as they lie below {scans}"
        )
    classes = sorted({label for label in labels if label is not None})
    _check_classes(classes, matched, sources, table)
    missing = f"; {len(sources) - matched} scans are not in it and have no label" if matched < len(sources) else ""
    return labels, f"labels: {len(classes)} classes from the table, matched by {key}{missing}"


def _read_table(table: Path) -> tuple[str, dict[str, str]]:
    """(key column, key -> label)."""
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = [
                {
                    str(name).strip().lower(): (value or "").strip()
                    for name, value in row.items()
                    if name and not isinstance(value, list)
                }
                for row in csv.DictReader(file)
            ]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"expected a CSV table in UTF-8, found {table}: {error}") from error
    columns = list(rows[0]) if rows else []
    key = next((name for name in KEYS if name in columns), None)
    if key is None or "label" not in columns:
        raise ValueError(
            f"expected the columns label and one of {', '.join(KEYS)} in {table}, found {', '.join(columns) or 'no rows'}: rename them in the first line"
        )
    given: defaultdict[str, set[str]] = defaultdict(set)
    for row in rows:
        if row[key] and row["label"]:
            given[row[key].replace("\\", "/") if key == "file" else row[key]].add(row["label"])
    twice = next((name for name, found in given.items() if len(found) > 1), None)
    if twice is not None:
        raise ValueError(f"expected one label for each {key} in {table}, found {sorted(given[twice])} for {twice!r}")
    return key, {name: found.pop() for name, found in given.items()}


def _names(source: Source, key: str, root: Path) -> list[str]:
    """What a table may call a scan: a path below the folder, a file name, the folder of a series; or patient or study."""
    if key == "patient":
        return [source.patient] if source.patient else []
    if key == "uid":
        return [source.study] if source.study else []
    relative = [file.relative_to(root) for file in source.files]
    folders = [relative[0].parent.as_posix()] if len(relative) > 1 else []
    return [*(path.as_posix() for path in relative), *(path.name for path in relative), *folders]


def _check_classes(classes: list[str], scans: int, sources: Sequence[Source], table: Path) -> None:
    """Refuse a column that names or describes patients instead of classing them: it would travel with the dataset."""
    people = {source.patient for source in sources if source.patient}
    if people & set(classes):
        raise ValueError(
            f"expected classes in column label of {table}, found Patient IDs: give a column with few different values"
        )
    if len(classes) > MOST_CLASSES or (scans >= 8 and 2 * len(classes) > scans):
        raise ValueError(
            f"expected at most {MOST_CLASSES} classes in column label of {table}, each for several scans, found {len(classes)} different values for {scans} scans: an identifier, a number or free text is no class"
        )
    long = next((name for name in classes if len(name) > 60 or "\n" in name), None)
    if long is not None:
        raise ValueError(
            f"expected short class names in column label of {table}, found one of {len(long)} characters: free text is no class"
        )
    if len(classes) == 1:
        raise ValueError(
            f"expected at least 2 classes in column label of {table}, found {classes[0]!r} alone: use --labels none"
        )
