"""Image -> PNG, NIfTI or DICOM files that say in machine-readable words that they are synthetic."""

from __future__ import annotations

import gzip
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..image import Image
from ..runtime import write_atomic, write_json

MANIFEST_KIND = "scansmith images"


@dataclass(frozen=True, slots=True)
class Marking:
    """What made a synthetic scan; goes into every file in a machine-readable way.

    Attributes:
        software: name and version, "scansmith 0.1.0".
        model: the model's hash (hex), or "phantom".
        seed: seed of the whole set.
        index: number of the sample; the output depends on (seed, index) alone.
        description: free words without patient data.
        subject: groups the files of one synthetic patient, never a real patient's name: in DICOM they share
            Patient ID, study and frame of reference. None: every index is a patient of its own.
    """

    software: str
    model: str
    seed: int
    index: int
    description: str = ""
    subject: str | None = None


def write(image: Image, stem: Path, format: str, marking: Marking) -> list[Path]:
    """Write one scan, marked as synthetic; equal inputs give equal bytes.

    Args:
        image: voxels in physical units; every value finite.
        stem: path without suffix; ".png", ".nii.gz" or ".dcm" is added. A volume in DICOM becomes the folder `stem`
            with one single-frame file per slice, in K order.
        format: a key of `WRITERS`.
        marking: what made the scan.

    Returns:
        The files written, in slice order.

    Raises:
        ValueError: unknown format, voxels that are not finite numbers, or a scan that the format cannot hold.
        OSError: full disk or unwritable folder, with the way out.
    """
    if format not in WRITERS:
        raise ValueError(f"expected a format of {tuple(WRITERS)}, got {format!r}")
    array = image.array
    if array.size == 0 or array.dtype.kind not in "biuf":
        raise ValueError(f"expected voxels that are real numbers, got {array.size} of dtype {array.dtype}")
    if not -1e30 < float(array.min()) <= float(array.max()) < 1e30:  # false for NaN too
        raise ValueError(
            f"expected finite voxels below 1e30, got values from {array.min()} to {array.max()}: the scan is broken, make it again"
        )
    if not np.isfinite(image.affine).all():
        raise ValueError(f"expected a finite affine, got {image.affine.tolist()}")
    return WRITERS[format](image, Path(stem), marking)


def with_suffix(stem: Path, suffix: str) -> Path:
    """`stem` + `suffix`, also where the stem holds dots."""
    return stem.with_name(stem.name + suffix)


def colour_8_bit(array: np.ndarray) -> np.ndarray:
    """(3, I, J, K) values from 0 to 255 -> uint8, rounded; colour has no rescale in PNG viewers and DICOM."""
    if array.min() < -0.5 or array.max() > 255.5:
        raise ValueError(
            f"expected 3-channel values from 0 to 255, got {array.min()} to {array.max()}: write NIfTI instead (format 'nifti')"
        )
    return np.clip(np.rint(array), 0, 255).astype(np.uint8)


# ------------------------------------------------------------------------------------------------ PNG


def png_scale(array: np.ndarray, modality: str, window: tuple[float, float] | None = None) -> tuple[float, float]:
    """Slope and offset of 16-bit pixels: physical = pixel * slope + offset.

    Integers within a span of 65535 come back exactly: the slope is a power of two, the smallest that fits, so that
    an ordinary viewer shows a picture and not black. CT from -1024 to 3071 HU always has the same scale (1/16 HU),
    so that sets compare even in tools that ignore the text chunks; so have fractions with a known `window`.
    """
    low, high = float(array.min()), float(array.max())
    if window is not None and array.dtype.kind == "f" and window[0] <= low and high <= window[1]:
        return (window[1] - window[0]) / 65535.0, window[0]
    if modality == "CT" and low >= -1024.0 and high <= 3071.0:
        return 1 / 16, -1024.0
    if array.dtype.kind in "biu" or bool((np.rint(array) == array).all()):
        offset = low if high - min(low, 0.0) > 65535.0 else min(low, 0.0)
        if high - offset <= 65535.0:
            return 2.0 ** -math.floor(math.log2(65535.0 / max(high - offset, 1.0))), offset
    if high == low:
        return 1.0, low
    return max((high - low) / 65535.0, float(np.finfo(np.float64).tiny)), low


def png_pixels(image: Image) -> tuple[np.ndarray, float, float]:
    """Pixels (J, I) or (J, I, 3), slope and offset; uint8 voxels and colour stay 8-bit, all else becomes uint16."""
    channels, _, _, slices = image.array.shape
    if slices != 1:
        raise ValueError(
            f"expected a 2-D image for PNG, got a volume of {slices} slices: write NIfTI or DICOM instead (format 'nifti' or 'dicom')"
        )
    if channels == 3:
        return colour_8_bit(image.array)[..., 0].transpose(2, 1, 0), 1.0, 0.0
    if channels != 1:
        raise ValueError(f"expected 1 or 3 channels for PNG, got {channels}: write NIfTI instead (format 'nifti')")
    array = image.array[0, :, :, 0].T
    if array.dtype == np.uint8:
        return array, 1.0, 0.0
    slope, offset = png_scale(array, image.modality, image.window)
    return np.rint((array.astype(np.float64) - offset) / slope).astype(np.uint16), slope, offset


def write_png(image: Image, stem: Path, marking: Marking) -> list[Path]:
    """One PNG with slope, offset, units and marking in text chunks (PNG 1.2, clause 4.2.3)."""
    from PIL import Image as Picture
    from PIL.PngImagePlugin import PngInfo

    pixels, slope, offset = png_pixels(image)
    text = {
        "Synthetic Data": "YES",
        "Software": marking.software,
        "Description": marking.description,
        "scansmith:model": marking.model,
        "scansmith:seed": str(marking.seed),
        "scansmith:index": str(marking.index),
        "scansmith:subject": marking.subject or "",
        "scansmith:modality": image.modality,
        "scansmith:units": image.units,
        "scansmith:slope": repr(slope),
        "scansmith:offset": repr(offset),
        # mm along I, J, K; absent where unknown
        "scansmith:spacing": " ".join(map(repr, image.spacing)) if image.spacing_known else "",
    }
    info = PngInfo()
    for key, value in text.items():
        if value:
            info.add_text(key, value)
    buffer = io.BytesIO()
    Picture.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG", pnginfo=info, compress_level=4)
    path = with_suffix(stem, ".png")
    write_atomic(path, buffer.getvalue())
    return [path]


# ------------------------------------------------------------------------------------------------ NIfTI


def nifti_voxels(array: np.ndarray) -> np.ndarray:
    """(C, I, J, K) -> (I, J, K), or (I, J, K, 1, C) as NIfTI stores vectors; integers stay integers."""
    if array.dtype == np.bool_:
        array = array.astype(np.uint8)
    elif array.dtype == np.float16:
        array = array.astype(np.float32)
    elif array.dtype.kind in "iu" and array.dtype.itemsize == 8 and array.min() >= -(2**31) and array.max() < 2**31:
        array = array.astype(np.int32)  # few tools read 64-bit integers
    return array[0] if len(array) == 1 else np.moveaxis(array, 0, -1)[:, :, :, None, :]


def write_nifti(image: Image, stem: Path, marking: Marking) -> list[Path]:
    """One .nii.gz: affine in sform and qform, marking in `descrip` and, whole, as JSON in a comment extension.

    The sform holds the affine in float32. A sheared affine has no qform (its code stays 0).
    """
    import nibabel

    voxels = nifti_voxels(image.array)
    nifti = nibabel.Nifti1Image(voxels, image.affine, dtype=voxels.dtype)
    header = nifti.header
    nifti.set_sform(image.affine, code=1)
    axes = image.affine[:3, :3] / np.maximum(image.spacing, 1e-12)
    orthogonal = np.abs(axes.T @ axes - np.eye(3)).max() < 1e-4
    nifti.set_qform(image.affine, code=1 if orthogonal else 0)
    if image.spacing_known:
        header.set_xyzt_units("mm")
    if voxels.ndim == 5:
        header.set_intent("vector")
    words = f"SYNTHETIC {marking.software} {marking.model[:8]} seed {marking.seed} sample {marking.index}"
    header["descrip"] = words.encode("ascii", "replace")[:79]
    mark = {
        "SyntheticData": "YES",
        **asdict(marking),
        "modality": image.modality,
        "units": image.units,
        "spacing_known": image.spacing_known,
    }
    header.extensions.append(nibabel.nifti1.Nifti1Extension(6, json.dumps(mark).encode()))
    path = with_suffix(stem, ".nii.gz")
    write_atomic(path, gzip.compress(nifti.to_bytes(), compresslevel=5, mtime=0))
    return [path]


# ------------------------------------------------------------------------------------------------ DICOM


def write_dicom(image: Image, stem: Path, marking: Marking) -> list[Path]:
    """One .dcm file, or a folder with one per slice; see `dicom_write.write_dicom`."""
    from . import dicom_write  # pydicom is needed here alone

    return dicom_write.write_dicom(image, stem, marking)


WRITERS: dict[str, Callable[[Image, Path, Marking], list[Path]]] = {
    "png": write_png,
    "nifti": write_nifti,
    "dicom": write_dicom,
}


# ------------------------------------------------------------------------------------------------ the images folder


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest.json`, last of all files, so that a folder that has it is whole; keys are the caller's.

    Raises:
        ValueError: a value that strict JSON cannot hold (NaN).
    """
    write_json(Path(folder) / "manifest.json", {"kind": MANIFEST_KIND, **manifest})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a folder of synthetic scans.

    Raises:
        ValueError: no such file, no JSON, or the manifest of something else.
    """
    path = Path(folder) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(
            f"expected a folder of scans made by scansmith in {folder}, found no manifest.json: make one with 'scansmith synthesize'"
        ) from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"expected JSON in {path}, found {error}: make the folder again") from None
    if not isinstance(manifest, dict) or manifest.get("kind") != MANIFEST_KIND:
        found = manifest.get("kind") if isinstance(manifest, dict) else type(manifest).__name__
        raise ValueError(
            f"expected 'kind': {MANIFEST_KIND!r} in {path}, found {found!r}: this is another program's manifest"
        )
    return manifest
