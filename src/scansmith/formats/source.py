"""Source: one scan as it lies on disk, and what every reader needs to judge a file and to bring its voxels to physical units."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

# DICOM and ITK say where a voxel lies with axes to the left and to the back, `Image` to the right and to the front.
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
# No scan this version can use is larger; a header that claims more is broken or hostile.
MAX_VOXELS = 2**31


@dataclass(frozen=True, slots=True)
class Source:
    """One scan as it lies on disk, known from headers alone.

    Attributes:
        files: the files that hold it, sorted by position for a series.
        format: "dicom", "nifti", "nrrd", "metaimage", "png", "jpeg" or "tiff".
        modality: one of `image.MODALITIES`; "OT" when the file does not say.
        channels: 1, or 3 for RGB.
        dimensions: 2 for a projection or picture, 3 for slices of a volume (also a CT or MR series of one slice).
        shape: (I, J, K): columns, rows, slices.
        patient: what names the patient in the source, or None; private, never written to artifacts.
        study: Study Instance UID (0020,000D), or None; private too.
        series: Series Instance UID (0020,000E), or None; private too.
        frame_of_reference: Frame of Reference UID (0020,0052), or None; private too.
        instances: SOP Instance UIDs (0008,0018) of the files, in their order, where known; private too.
        frames: of a multi-frame file its frames in stack order, counted from 0; empty where every file is one image.
        affine: (4, 4) as 16 numbers, row by row, voxel index -> mm in RAS+, where the header alone tells; else None.
        role: "image", or "mask" for a DICOM Segmentation or RT Structure Set, read by `formats.read_mask`.
        refers_to: of a mask, the SOP Instance and Series Instance UIDs of the images it was drawn on; private too.
        segments: of a DICOM mask, the names of its segments or ROIs; users write them, so private too.
        tags: (keyword, value) of the DICOM attributes that `discover` was asked for, where present; private too.
        burned_in: what Burned In Annotation (0028,0301) says: True, False, or None where it says nothing.
        notes: what is odd about it, in words, for example "a slice is missing: gap of 10 mm where the others are 5 mm".
    """

    files: tuple[Path, ...]
    format: str
    modality: str
    channels: int
    dimensions: int
    shape: tuple[int, int, int]
    patient: str | None = None
    study: str | None = None
    notes: tuple[str, ...] = ()
    series: str | None = None
    frame_of_reference: str | None = None
    instances: tuple[str, ...] = ()
    frames: tuple[int, ...] = ()
    affine: tuple[float, ...] | None = None
    role: str = "image"
    refers_to: tuple[str, ...] = ()
    segments: tuple[str, ...] = ()
    tags: tuple[tuple[str, str], ...] = ()
    burned_in: bool | None = None


@dataclass(frozen=True, slots=True)
class Skipped:
    """One file that is not used, and why.

    Attributes:
        file: its path.
        reason: one sentence without the path: what was expected, what was found (tag or syntax named), the way out.
    """

    file: Path
    reason: str


class FormatError(ValueError):
    """A file that cannot be read; the message is a sentence like `Skipped.reason`.

    Attributes:
        file: which file of a series it is; None where the scan is one file.
    """

    def __init__(self, reason: str, file: Path | None = None) -> None:
        super().__init__(reason)
        self.file = file


def explain(error: Exception, files: tuple[Path, ...]) -> str:
    """Another library's error as part of a sentence: one line, without the files' names, which often hold people's."""
    message = " ".join(str(error).split())
    for file in files:
        for name in (str(file), file.name):
            message = message.replace(name, "the file")
    return f"{type(error).__name__} ({message[:200]})"


@contextmanager
def quiet() -> Iterator[list[str]]:
    """Inside, libraries' warnings and log lines are collected in the list and shown to nobody."""
    words: list[str] = []
    loggers = [logging.getLogger(name) for name in ("pydicom", "nibabel.global", "PIL")]
    # Each change of a level empties the cache of every logger, which costs more than a small picture: inside an outer
    # `quiet` nothing is left to change.
    loud = [(logger, logger.level) for logger in loggers if logger.level <= logging.CRITICAL]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for logger, _ in loud:
            logger.setLevel(logging.CRITICAL + 1)
        try:
            yield words
        finally:
            for logger, level in loud:
                logger.setLevel(level)
            words.extend(dict.fromkeys(str(warning.message) for warning in caught))


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Inside, what C libraries print to the process's stderr goes nowhere (ITK's readers print on broken files)."""
    sys.stderr.flush()
    saved, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)
        os.close(nowhere)


def check_size(shape: tuple[int, ...], itemsize: float, available: int, expansion: float = 1.0) -> None:
    """Refuse a header that claims more voxels than the file can hold, before any memory is taken.

    Args:
        shape: what the header claims.
        itemsize: bytes a voxel (all channels).
        available: bytes in the file.
        expansion: the most that one stored byte can become (1 for uncompressed voxels, 1032 for deflate).

    Raises:
        FormatError: the claim is absurd, or the file is truncated.
    """
    voxels = 1
    for size in shape:
        voxels *= int(size)
    if min(shape) < 1:
        raise FormatError(f"expected at least one voxel along every axis, found shape {shape} in the header")
    if voxels > MAX_VOXELS:
        raise FormatError(
            f"expected at most 2^31 voxels, found shape {shape} in the header; the file is broken or must be cut into parts"
        )
    if voxels * itemsize > available * expansion:
        raise FormatError(
            f"expected {voxels * itemsize:.0f} bytes of voxels for shape {shape}, found room for {available} in the file: it is truncated or its header is wrong; copy it again from its source"
        )


def rescale(stored: np.ndarray, slope: float, intercept: float) -> np.ndarray:
    """stored * slope + intercept in the smallest dtype that is exact: integers stay integers, anything else is float32.

    Slope 1 with intercept 0 keeps the stored dtype; whole numbers give int16 where the values fit, else int32 or int64.
    """
    if slope == 1 and intercept == 0:
        return stored
    if stored.dtype.kind not in "iu" or not float(slope).is_integer() or not float(intercept).is_integer():
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    slope, intercept = int(slope), int(intercept)
    ends = [int(end) * slope + intercept for end in (stored.min(), stored.max())]
    dtype = smallest_dtype(min(ends), max(ends))
    limits = np.iinfo(dtype)
    if limits.min <= min(slope, intercept) and max(slope, intercept) <= limits.max:
        # Integers wrap around, so where the result fits no step before it need fit.
        values = stored.astype(dtype)
        if slope != 1:
            values *= dtype.type(slope)
        values += dtype.type(intercept)
        return values
    return (stored.astype(np.int64) * slope + intercept).astype(dtype)


def narrowest(values: np.ndarray) -> np.ndarray:
    """Integers as int16 where all fit, else int32, else int64."""
    if values.dtype == np.int16:
        return values
    return values.astype(smallest_dtype(int(values.min()), int(values.max())), copy=False)


def smallest_dtype(low: int, high: int) -> np.dtype:
    """int16 where both numbers fit, else int32, else int64."""
    for dtype in (np.int16, np.int32):
        if np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max:
            return np.dtype(dtype)
    return np.dtype(np.int64)


def require_finite(array: np.ndarray) -> None:
    """Refuse voxels that are NaN or infinite.

    Raises:
        FormatError: with their count and the way out.
    """
    if not np.issubdtype(array.dtype, np.floating):
        return
    bad = array.size - int(np.count_nonzero(np.isfinite(array)))
    if bad:
        raise FormatError(
            f"expected finite voxels, found {bad} of {array.size} that are NaN or infinite: set them to the background value in the tool that wrote the file"
        )
