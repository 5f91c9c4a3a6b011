"""prepare: a folder of scans becomes a prepared dataset, split by patient, without identifiers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .fingerprint import Plan


def prepare(
    scans: Path,
    dataset: Path,
    *,
    labels: str = "auto",
    pairs: str | None = None,
    masks: str = "auto",
    modality: str | None = None,
    plan: str | None = None,
    max_side: int = 512,
    workers: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Turn a folder of DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG or TIFF scans into a prepared dataset.

    Grid, crop, intensity, slices and split follow from the scans; each choice is said with its reason. Patients never
    lie on both sides of the split, copies are stored once, near copies stay in one split, and no name, ID, date, path
    or text of the source goes into the dataset: real paths and the key of the pseudonyms go to DATASET.private.json
    beside it. A scan that cannot be used is listed with the reason and the rest goes on. The same command over the
    same files returns at once, over more files reads the new ones alone; no patient ever moves to another split.

    Args:
        scans: folder of scans (or one file), searched below, zip archives too; files are recognised by content.
        dataset: folder to write, outside `scans`.
        labels: "auto" takes sub-folders as classes when they look like classes, "none" takes none; otherwise a table
            (CSV, TSV, BIDS participants.tsv) with the column label, or TABLE:COLUMN, and one of file, patient or uid;
            or "tag:BodyPartExamined" and the like for a DICOM attribute. A table with the columns file and patient
            alone says whose the scans are.
        pairs: scans of two kinds that belong together: "MR:CT" by patient and place, "*T1*:*T2*" by name, or a table
            with the columns source and target; or the folder of the targets, whose scans belong to those of `scans` by
            patient and place or by name. Each source is brought onto its target's grid. Several sources of one target are
            "*T1*+*FLAIR*:*T2*", or the columns source, source2, ... of a table; some of them may be missing.
        masks: "auto" finds DICOM SEG and RTSTRUCT, BIDS derivatives, and files named after their scan; "none" takes
            none; "images/*.nii.gz:labels/*.nii.gz" says which belong together.
        modality: which scans of a mixed folder to take (CT, MR, CR, DX, MG, US, XA, RF, OT); for files that do not say
            what they are, such as NIfTI or PNG, what they are ("MR:CT" for pairs). None takes the kind with most images.
        plan: choices of your own, as a JSON file or as text such as '{"spacing": [1, 1], "crop": "none"}'.
        max_side: longest side of the stored images in pixels; larger ones are downsampled.
        workers: processes; None takes all cores when there are many files.
        seed: another seed gives another split.

    Returns:
        What was done: counts, splits, plan in words, and what was skipped (file, reason), left aside or found twice.

    Raises:
        ValueError: there are too few usable scans, or an argument does not fit them.
        OSError: the dataset cannot be written.
    """
    from .overrides import choices_of
    from .scans import Request
    from .write import prepare as implementation

    request = Request(str(labels), pairs, str(masks), modality, max_side, seed, choices_of(plan))
    return implementation(Path(scans), Path(dataset), request, workers)


def plan(
    scans: Path,
    *,
    labels: str = "auto",
    pairs: str | None = None,
    masks: str = "auto",
    modality: str | None = None,
    plan: str | None = None,
    max_side: int = 512,
    seed: int = 0,
) -> Plan:
    """What `prepare` would do with a folder of scans, each choice with its reason; nothing is kept on disk.

    The plan can be changed with `dataclasses.replace` and given to `prepare(plan=...)`.

    Args:
        scans: folder of scans.
        labels: as for `prepare`.
        pairs: as for `prepare`.
        masks: as for `prepare`.
        modality: as for `prepare`.
        plan: as for `prepare`.
        max_side: as for `prepare`.
        seed: as for `prepare`.

    Raises:
        ValueError: there are too few usable scans, or an argument does not fit them.
    """
    from .overrides import choices_of
    from .scans import Request
    from .write import looked

    request = Request(str(labels), pairs, str(masks), modality, max_side, seed, choices_of(plan))
    return looked(Path(scans), request).plan
