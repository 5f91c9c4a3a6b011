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
    modality: str | None = None,
    max_side: int = 512,
    workers: int | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Turn a folder of DICOM, NIfTI, NRRD, MetaImage, PNG or JPEG scans into a prepared dataset.

    Grid, intensity window, slices and split follow from the scans; each choice is said with its reason. Patients never
    lie on both sides of the split, exact copies are stored once, and no name, ID, date, path or text of the source goes
    into the dataset: real paths and the key of the pseudonyms go to DATASET.private.json beside it. A scan that cannot
    be used is listed with the reason and the rest goes on. The same command over the same files returns at once.

    Args:
        scans: folder of scans, searched below; files are recognised by content.
        dataset: folder to write, outside `scans`.
        labels: "auto" takes sub-folders as classes when they look like classes, "none" takes none, otherwise the path of
            a CSV table with the columns label and one of file, patient or uid (Study Instance UID).
        modality: which scans of a mixed folder to take (CT, MR, CR, DX, OT); for files that do not say what they are,
            such as NIfTI or PNG, what they are. None takes the kind with most images.
        max_side: longest side of the stored images in pixels; larger ones are downsampled.
        workers: processes; None takes all cores when there are many files.
        seed: another seed gives another split.

    Returns:
        What was done: counts, splits, plan in words, and what was skipped (file, reason), left aside or found twice.

    Raises:
        ValueError: there are too few usable scans, or an argument does not fit them.
        OSError: the dataset cannot be written.
    """
    from .write import prepare as implementation

    return implementation(Path(scans), Path(dataset), str(labels), modality, max_side, workers, seed)


def plan(scans: Path, *, labels: str = "auto", modality: str | None = None, max_side: int = 512, seed: int = 0) -> Plan:
    """What `prepare` would do with a folder of scans, each choice with its reason; nothing is written.

    Args:
        scans: folder of scans.
        labels: as for `prepare`.
        modality: as for `prepare`.
        max_side: as for `prepare`.
        seed: as for `prepare`.

    Raises:
        ValueError: there are too few usable scans, or an argument does not fit them.
    """
    from .fingerprint import survey

    return survey(Path(scans), str(labels), modality, max_side, seed).plan
