"""Phantom: write procedural patients with known truth, the data for demonstrations and tests."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .runtime import Progress, derive_seed, write_atomic

if TYPE_CHECKING:
    from .anatomy import Patient
    from .formats import Marking
    from .image import Image

CHOICES: dict[str, tuple[str, ...]] = {
    "CT": ("CT",),
    "T1": ("T1",),
    "T2": ("T2",),
    "MR": ("T1", "T2"),
    "XR": ("XR",),
    "all": ("CT", "T1", "T2", "XR"),
}
FORMATS = ("dicom", "nifti", "png")


def phantom(
    out: Path,
    *,
    patients: int = 40,
    modality: Literal["CT", "T1", "T2", "MR", "XR", "all"] = "CT",
    format: Literal["dicom", "nifti", "png"] = "dicom",
    slices: int = 16,
    size: int = 128,
    lesions: float = 0.5,
    by_class: bool = False,
    dose: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Write procedural thorax patients with known truth, for demonstrations and tests.

    `out/scans` holds one folder per patient with one scan per modality, all of one patient on the same anatomy;
    `out/truth` holds masks (NIfTI) and truth.csv, apart from the scans so that a later stage never takes a mask for one:
    give `out/scans` to `scansmith prepare`.

    Args:
        out: folder to write into; made if needed. Files of an earlier call with other options stay.
        patients: how many.
        modality: CT, one MR weighting, MR (T1 and T2, paired), XR (one frontal chest radiograph each), or all of them.
        format: dicom (a folder of slices per scan), nifti (a file per scan) or png (a file per slice).
        slices: axial slices per CT or MR scan; they span 192 mm, or stand 10 mm apart where there are fewer than 20.
        size: pixels along each side of a slice, over 384 mm; 32 to 1024.
        lesions: share of patients with a lung nodule, 0 to 1.
        by_class: sort patients into scans/lesion and scans/normal, folders that a later stage reads as class labels.
        dose: relative exposure of CT and XR; the quantum noise's variance is proportional to 1/dose.
        seed: of the whole set; patient i depends on (seed, i) alone.

    Raises:
        ValueError: an option outside its range.
    """
    _check_range("patients", patients, 1, 1_000_000)
    _check_range("slices", slices, 1, 512)
    _check_range("size", size, 32, 1024)
    _check_range("lesions", lesions, 0.0, 1.0)
    _check_range("dose", dose, 1e-3, 1e6)
    _check_choice("modality", modality, CHOICES)
    _check_choice("format", format, FORMATS)
    out = Path(out)
    rows, files = [], 0
    with Progress("phantom", patients, "patients") as progress:
        for index in range(patients):
            row, written = _write_patient(
                out, index, CHOICES[modality], format, slices, size, _has_lesion(index, lesions), by_class, dose, seed
            )
            rows.append(row)
            files += written
            progress.update(index + 1)
    _write_truth(out / "truth", rows)
    return {
        "out": str(out),
        "scans": str(out / "scans"),
        "truth": str(out / "truth" / "truth.csv"),
        "patients": patients,
        "with_lesion": sum(row["lesion"] == "yes" for row in rows),
        "modalities": list(CHOICES[modality]),
        "files": files,
        "seed": seed,
    }


def _check_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"expected {name} between {low:g} and {high:g}, got {value!r}")


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"expected {name} as one of {', '.join(known)}, got {value!r}")


def _has_lesion(index: int, share: float) -> bool:
    """Whether patient `index` has a lesion: spread evenly, so that any first n patients hold floor(n share) of them."""
    return math.floor((index + 1) * share + 1e-9) > math.floor(index * share + 1e-9)


def _write_patient(
    out: Path,
    index: int,
    kinds: tuple[str, ...],
    format: str,
    slices: int,
    size: int,
    lesion: bool,
    by_class: bool,
    dose: float,
    seed: int,
) -> tuple[dict[str, Any], int]:
    """Draw, render and write one patient; returns its row of truth.csv and how many scan files were written."""
    from . import anatomy

    name = f"patient-{index + 1:04d}"
    patient = anatomy.draw_patient(derive_seed(seed, "phantom", index), lesion)
    scans, masks = _render(patient, kinds, slices, size, dose)
    folder = out / "scans" / ("lesion" if lesion else "normal") / name if by_class else out / "scans" / name
    files = 0
    for kind, image in scans.items():
        files += _write_scan(image, folder, kind, format, name, index, seed)
    for kind, mask in masks.items():
        _write_mask(mask, out / "truth" / name / kind, name, index, seed)
    return _row(name, patient), files


def _render(
    patient: Patient, kinds: tuple[str, ...], slices: int, size: int, dose: float
) -> tuple[dict[str, Image], dict[str, Image]]:
    """The wished scans by kind, and the masks by file name: labels, lesion and, for a radiograph, the lesion's shadow."""
    from dataclasses import replace

    from . import anatomy

    noise = derive_seed(patient.seed, "noise")
    scans: dict[str, Image] = {}
    masks: dict[str, Image] = {}
    if set(kinds) - {"XR"}:
        tissues = anatomy.render(patient, anatomy.axial_raster(size, slices))
        for kind in kinds:
            if kind != "XR":
                scans[kind] = anatomy.ct(tissues, noise, dose) if kind == "CT" else anatomy.mr(tissues, kind, noise)
        first = next(iter(scans.values()))
        for name, mask in (("labels", anatomy.label_map(tissues)), ("lesion", anatomy.lesion_mask(tissues))):
            masks[name] = replace(first, array=mask[None], modality="OT", units="a.u.")
    if "XR" in kinds:
        scans["XR"], shadow = anatomy.radiograph(patient, size, noise, dose)
        masks["lesion-XR"] = replace(scans["XR"], array=shadow[None], modality="OT")
    if patient.lesion is None:
        masks = {name: mask for name, mask in masks.items() if not name.startswith("lesion")}
    return scans, masks


def _write_scan(image: Image, folder: Path, kind: str, format: str, name: str, index: int, seed: int) -> int:
    """Write one scan as folder/kind...; PNG holds one slice per file. Returns the number of files."""
    from dataclasses import replace

    from .formats import write

    marking = _marking(kind, name, index, seed)
    slices = image.array.shape[3]
    if format != "png" or slices == 1:
        return len(write(image, folder / kind, format, marking))
    for k in range(slices):
        write(replace(image, array=image.array[..., k : k + 1]), folder / kind / f"slice-{k + 1:03d}", format, marking)
    return slices


def _write_mask(mask: Image, stem: Path, name: str, index: int, seed: int) -> None:
    from .formats import write

    write(mask, stem, "nifti", _marking(stem.name, name, index, seed))


def _marking(kind: str, name: str, index: int, seed: int) -> Marking:
    from . import __version__
    from .formats import Marking

    return Marking(f"scansmith {__version__}", "phantom", seed, index, f"procedural thorax, {kind}", subject=name)


def _row(name: str, patient: Patient) -> dict[str, Any]:
    """One row of truth.csv; the centre in mm RAS+, the frame of NIfTI and `Image`."""
    lesion = patient.lesion
    if lesion is None:
        return {"patient": name, "lesion": "no", "x_mm": "", "y_mm": "", "z_mm": "", "diameter_mm": ""}
    x, y, z = lesion.centre
    return {
        "patient": name,
        "lesion": "yes",
        "x_mm": f"{-x:.2f}",
        "y_mm": f"{-y:.2f}",
        "z_mm": f"{z:.2f}",
        "diameter_mm": f"{lesion.diameter:.2f}",
    }


def _write_truth(folder: Path, rows: list[dict[str, Any]]) -> None:
    """truth.csv (one row per patient) and labels.json (index -> tissue of the label masks)."""
    from . import anatomy
    from .runtime import write_json

    lines = [",".join(rows[0])] + [",".join(str(value) for value in row.values()) for row in rows]
    write_atomic(folder / "truth.csv", "\n".join(lines) + "\n")
    write_json(folder / "labels.json", {str(index): name for index, name in enumerate(anatomy.NAMES)})
