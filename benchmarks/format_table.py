"""Every file below a folder, how it is read, and whether another library reads the same voxels: a Markdown table.

    python benchmarks/format_table.py FOLDER [FOLDER ...] > table.md

DICOM is checked against pydicom, or SimpleITK where pydicom cannot decode it; NIfTI against nibabel, other volumes
against SimpleITK, pictures against Pillow.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from scansmith import formats
from scansmith.formats.source import quiet, silent_stderr

Row = tuple[str, str, str]


def rows(folder: Path) -> Iterator[Row]:
    """(path below the folder, what it is, outcome) of every scan, mask and skipped file."""
    sources, skipped = formats.discover(folder)
    for source in sources:
        where = source.files[0].relative_to(folder)
        files = set(source.files)
        name = str(where) if len(files) == 1 else f"{where} (+{len(files) - 1})"
        yield name, _describe(source), _outcome(source, sources)
    for (_, reason), entries in groupby(skipped, key=lambda entry: (entry.file.parent, entry.reason)):
        some = [entry.file for entry in entries]
        name = str(some[0].relative_to(folder)) + (f" (+{len(some) - 1})" if len(some) > 1 else "")
        yield name, _identify(some[0]), f"skipped: {reason}"


def _describe(source: formats.Source) -> str:
    """Modality, size, frames, and of DICOM the encoding."""
    size = "x".join(map(str, source.shape if source.dimensions == 3 else source.shape[:2]))
    frames = f", {len(source.frames)} of its frames" if source.frames else ""
    colour = " RGB" if source.channels == 3 else ""
    what = "mask" if source.role == "mask" else source.modality
    said = _identify(source.files[0]) if source.format == "dicom" else source.format
    return f"{what} {size}{colour}{frames}; {said}"


@lru_cache(maxsize=1024)
def _identify(file: Path) -> str:
    """SOP class, transfer syntax and photometric interpretation of a DICOM file, else its suffix."""
    import pydicom

    with open(file, "rb") as stream:
        if not formats.dicom.sniff(stream.read(1024)):
            return file.suffix or "no suffix"
    try:
        with quiet():
            dataset = pydicom.dcmread(file, force=True, stop_before_pixels=True)
            meta = getattr(dataset, "file_meta", None) or pydicom.Dataset()
            uid = pydicom.uid.UID(str(dataset.get("SOPClassUID") or meta.get("MediaStorageSOPClassUID") or ""))
            syntax = pydicom.uid.UID(str(meta.get("TransferSyntaxUID") or ""))
    except Exception as error:
        return f"DICOM that pydicom does not open ({type(error).__name__})"
    parts = [uid.name.removesuffix(" Storage") or "no SOP class", syntax.name or "no transfer syntax"]
    return ", ".join([*parts, str(dataset.get("PhotometricInterpretation", ""))]).rstrip(", ")


def _outcome(source: formats.Source, sources: list[formats.Source]) -> str:
    if source.role == "mask":
        return _mask_outcome(source, sources)
    try:
        image = formats.read(source)
    except (formats.FormatError, OSError) as error:
        return f"refused: {error}"
    checks = {"dicom": _check_dicom, "nifti": _check_nifti, "png": _check_picture, "jpeg": _check_picture}
    try:
        with quiet(), silent_stderr():
            return checks.get(source.format, _check_volume)(source, image.array)
    except Exception as error:
        return f"read; the other library fails: {type(error).__name__} {str(error)[:80]}"


def _mask_outcome(source: formats.Source, sources: list[formats.Source]) -> str:
    images = [
        image for image in sources if image.role == "image" and set(source.refers_to) & {*image.instances, image.series}
    ]
    if not images:
        return "listed as a mask; its image is not in the folder"
    try:
        grid = max(images, key=lambda image: image.shape[2])
        mask = formats.dicom.read_mask(source, formats.read(grid).affine, grid.shape)
    except (formats.FormatError, OSError) as error:
        return f"refused: {error}"
    return f"mask read on its image's grid, {len(mask.names)} labels"


# ------------------------------------------------------------------------------------------------ other libraries


def _check_dicom(source: formats.Source, array: np.ndarray) -> str:
    frames = source.frames or (0,) * len(source.files)
    files = source.files if len(source.files) == len(frames) else source.files * len(frames)
    checked = {_check_frame(array[..., k].T, file, frame, source) for k, (file, frame) in enumerate(zip(files, frames))}
    worst = [words for words in checked if words.startswith("DIFFERS")]
    return worst[0] if worst else "read: " + ", ".join(sorted(checked))


def _check_frame(found: np.ndarray, file: Path, frame: int, source: formats.Source) -> str:
    """Compare one frame (rows, columns, channels), but for what the reader says it altered."""
    dataset, stored, library = _stored(file)
    if int(dataset.get("NumberOfFrames") or 1) > 1:
        stored = stored[frame]
    found = found if found.shape[-1] == 3 else found[..., 0]
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        colours = np.asarray(apply_color_lut(stored, dataset))
        colours = colours >> 8 if colours.dtype == np.uint16 and found.dtype == np.uint8 else colours
        return _verdict(np.array_equal(found, colours if found.ndim == 3 else colours[..., 0]), f"{library}, palette")
    if found.ndim == 3:
        return _verdict(np.array_equal(found, stored), library)
    expected = stored if library == "SimpleITK" else _rescaled(stored, dataset, frame)
    if dataset.PhotometricInterpretation == "MONOCHROME1" and source.modality != "CT":
        total = found.astype(float) + expected
        return _verdict(np.allclose(total, total[0, 0], rtol=0, atol=1e-3), f"{library}, inverted")
    if source.modality == "CT":  # padding becomes air
        kept = expected >= -1024
        same = np.allclose(found[kept], expected[kept], rtol=0, atol=1e-3)
        return _verdict(
            same and bool(np.all(found[~kept] <= np.maximum(expected[~kept], -1024))),
            library if kept.all() else f"{library}, but for padding",
        )
    return _verdict(np.allclose(found, expected, rtol=1e-6, atol=1e-6), library)


def _verdict(same: bool, library: str) -> str:
    return f"equals {library}" if same else f"DIFFERS from {library}"


@lru_cache(maxsize=1)
def _stored(file: Path) -> tuple[Any, np.ndarray, str]:
    """Header and all stored values (rescaled ones from SimpleITK) as another library reads them."""
    import pydicom
    import SimpleITK as sitk
    from pydicom.pixels import pixel_array

    dataset = pydicom.dcmread(file, force=True)
    if not getattr(dataset, "file_meta", None) or "TransferSyntaxUID" not in dataset.file_meta:
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        implicit, little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            "1.2.840.10008.1.2" if implicit else f"1.2.840.10008.1.2.{1 if little else 2}"
        )
    try:
        return dataset, pixel_array(dataset), "pydicom"
    except Exception:
        stored = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
        return dataset, stored if stored.shape[0] > 1 and stored.ndim == 3 else stored[0], "SimpleITK"


def _rescaled(stored: np.ndarray, dataset: Any, frame: int) -> np.ndarray:
    """After the modality LUT, which an enhanced image may have frame by frame."""
    from pydicom.pixels import apply_modality_lut

    groups = [dataset]
    for keyword, at in (("SharedFunctionalGroupsSequence", 0), ("PerFrameFunctionalGroupsSequence", frame)):
        if dataset.get(keyword) and "PixelValueTransformationSequence" in dataset[keyword][at]:
            groups.append(dataset[keyword][at].PixelValueTransformationSequence[0])
    return np.asarray(apply_modality_lut(stored, groups[-1]))


def _check_nifti(source: formats.Source, array: np.ndarray) -> str:
    import nibabel

    loaded = nibabel.load(source.files[0])
    other = np.asarray(loaded.dataobj)
    other = other.reshape(*other.shape[:3], -1)[..., 0] if other.ndim > 3 else other.reshape(array.shape[1:])
    return "read: " + _verdict(
        np.allclose(np.sort(array[0], None), np.sort(other, None), rtol=1e-5, atol=1e-5), "nibabel"
    )


def _check_volume(source: formats.Source, array: np.ndarray) -> str:
    import SimpleITK as sitk

    other = sitk.GetArrayFromImage(sitk.ReadImage(str(source.files[0]))).T
    return "read: " + _verdict(
        np.allclose(np.sort(array, None), np.sort(other.reshape(-1), None), rtol=1e-5, atol=1e-5), "SimpleITK"
    )


def _check_picture(source: formats.Source, array: np.ndarray) -> str:
    from PIL import Image

    other = np.atleast_3d(np.asarray(Image.open(source.files[0])))
    return "read: " + _verdict(np.array_equal(array[..., 0].T, other[..., : len(array)]), "Pillow")


def main() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    warnings.simplefilter("ignore")
    print("| file | what it is | outcome |\n|---|---|---|")
    for folder in map(Path, sys.argv[1:]):
        for name, what, outcome in rows(folder):
            print(f"| {folder.name}/{name} | {what} | {outcome} |".replace("\n", " "))


if __name__ == "__main__":
    main()
