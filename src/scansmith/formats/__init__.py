"""Formats: files <-> Image. Files are recognised by content, scans are listed from headers alone and read one at a time.

To add a reader, write one module with `sniff`, `inspect` and `read` and list it in `READERS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

from ..image import Image
from . import dicom, pictures, volumes
from .source import FormatError, Skipped, Source, explain, quiet
from .write import WRITERS, Marking, read_manifest, write, write_manifest

__all__ = [
    "READERS",
    "WRITERS",
    "FormatError",
    "Marking",
    "Skipped",
    "Source",
    "discover",
    "read",
    "read_manifest",
    "read_runs",
    "write",
    "write_manifest",
]

# Source.format -> module with sniff(head) -> bool, inspect(files) -> (sources, skipped), read(source) -> Image.
READERS: dict[str, ModuleType] = {
    "dicom": dicom,
    "nifti": volumes,
    "nrrd": volumes,
    "metaimage": volumes,
    "png": pictures,
    "jpeg": pictures,
}
HEAD_BYTES = 1024
# Files that lie beside scans and are no scans: passed over in silence, unless their content is a scan after all.
COMPANIONS = {
    ".md",
    ".txt",
    ".csv",
    ".tsv",
    ".json",
    ".jsonl",
    ".xml",
    ".html",
    ".htm",
    ".pdf",
    ".yaml",
    ".yml",
    ".log",
    ".py",
    ".ipynb",
    ".xls",
    ".xlsx",
    ".doc",
    ".docx",
    ".bval",
    ".bvec",
    ".md5",
    ".sha256",
    ".ini",
    ".css",
    ".js",
    ".npy",
    ".npz",
}
COMPANION_NAMES = {"dicomdir", "thumbs.db", "license", "readme", "changelog"}
# First bytes of files that people put beside scans and this version does not read.
STRANGERS = {
    b"PK\x03\x04": "a zip archive: unpack it first",
    b"\x1f\x8b": "a gzip file that does not hold a NIfTI volume: unpack it first",
    b"7z\xbc\xaf": "a 7-zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"II*\x00": "a TIFF picture: convert it to PNG",
    b"MM\x00*": "a TIFF picture: convert it to PNG",
    b"BM": "a BMP picture: convert it to PNG",
    b"GIF8": "a GIF picture: convert it to PNG",
    b"\x89HDF": "an HDF5 or MINC file: convert it to NIfTI",
    b"MINC": "a MINC file: convert it to NIfTI",
}


def discover(root: Path, only: Iterable[Path] | None = None) -> tuple[list[Source], list[Skipped]]:
    """List every scan below a folder (or in one file) from headers alone.

    Hidden files and those that usually lie beside scans (notes, tables, DICOMDIR) are passed over; everything else that
    is not a usable scan is listed with the reason. One bad file never stops the rest.

    Args:
        root: folder or file.
        only: look at these files alone; None takes all.

    Returns:
        The scans and the skipped files, each sorted by path.

    Raises:
        ValueError: there is no such folder or file.
    """
    root = Path(root)
    if not root.exists():
        raise ValueError(f"expected a folder of scans, found nothing at {root}: check the path")
    files, skipped = _walk(root) if only is None else (sorted(only), [])
    groups: dict[ModuleType, list[Path]] = {module: [] for module in READERS.values()}
    unknown: list[Skipped] = []
    for file in files:
        try:
            head = _head(file)
        except OSError as error:
            skipped.append(Skipped(file, f"cannot be opened ({error.strerror or error}): check its permissions"))
            continue
        module = next((module for module in groups if module.sniff(head)), None)
        if module is not None:
            groups[module].append(file)
        elif not _companion(file):
            unknown.append(Skipped(file, _stranger(head)))
    sources: list[Source] = []
    for module, members in groups.items():
        if members:
            with quiet():
                found, refused = module.inspect(members)
            sources += found
            skipped += refused
    # The voxels of a detached header (.mhd + .raw, .nhdr + .raw) carry no mark of their own.
    used = {file for source in sources for file in source.files}
    skipped += [entry for entry in unknown if entry.file not in used]
    return sorted(sources, key=lambda source: source.files), sorted(
        skipped, key=lambda entry: (entry.file, entry.reason)
    )


def read(source: Source) -> Image:
    """Read one scan: voxels in physical units, in the native dtype where that is exact.

    CT is int16 HU when slope and intercept are whole numbers, else float32. What the reader altered is in `Image.notes`.

    Raises:
        FormatError: the file cannot be decoded, or holds NaN or infinite voxels.
        OSError: the file cannot be opened.
    """
    try:
        with quiet():
            return READERS[source.format].read(source)
    except FormatError:
        raise
    except OSError as error:
        if error.errno is not None:
            raise
        # Pillow and gzip raise OSError without a number for broken content.
        raise FormatError(
            f"expected a readable {source.format} file, found {explain(error, source.files)}: copy it again from its source"
        ) from error
    except Exception as error:  # decoders raise anything on broken bytes; the rest of the folder goes on
        raise FormatError(
            f"expected a readable {source.format} file, found {explain(error, source.files)}: copy it again from its source"
        ) from error


def read_runs(source: Source) -> tuple[list[tuple[int, Image]], list[Skipped]]:
    """All that can be read of a scan: a slice that cannot is left out, and what lies before and behind it is read apart.

    Returns:
        (number of its first slice, voxels) of each run of slices, and the files that cannot be read.
    """
    runs: list[tuple[int, Image]] = []
    broken: list[Skipped] = []
    left = [(0, source)]
    while left:
        first, part = left.pop()
        try:
            runs.append((first, read(part)))
        except (FormatError, OSError) as error:
            named = str(error.file if isinstance(error, FormatError) else error.filename)
            at = next((k for k, file in enumerate(part.files) if str(file) == named), None)
            broken.append(Skipped(part.files[at or 0], _reason(error)))
            if part.format != "dicom" or at is None:
                continue
            # The stack gives them back in their order.
            for start, files in ((at + 1, part.files[at + 1 :]), (0, part.files[:at])):
                if files:
                    left.append((first + start, replace(part, files=files, shape=(*part.shape[:2], len(files)))))
    return runs, broken


def _reason(error: FormatError | OSError) -> str:
    if isinstance(error, FormatError):
        return str(error)
    return f"cannot be opened ({error.strerror or type(error).__name__}): check its permissions"


def _walk(root: Path) -> tuple[list[Path], list[Skipped]]:
    """Every regular file below root, sorted by path; hidden ones are left out, links to folders are not followed."""
    if root.is_file():
        return [root], []
    files: list[Path] = []
    skipped: list[Skipped] = []

    def refuse(error: OSError) -> None:
        skipped.append(
            Skipped(Path(error.filename), f"this folder cannot be opened ({error.strerror}): check its permissions")
        )

    for folder, names, members in os.walk(root, onerror=refuse):
        names[:] = [name for name in names if not name.startswith(".")]
        for member in members:
            file = Path(folder) / member
            if member.startswith("."):
                continue
            if file.is_file():
                files.append(file)
            else:
                skipped.append(Skipped(file, "expected a regular file, found a broken link or a device"))
    return sorted(files), skipped


def _head(file: Path) -> bytes:
    with open(file, "rb", buffering=0) as stream:
        return stream.read(HEAD_BYTES)


def _companion(file: Path) -> bool:
    return file.suffix.lower() in COMPANIONS or file.name.lower() in COMPANION_NAMES


def _stranger(head: bytes) -> str:
    """Why a file that no reader recognises is skipped."""
    if not head:
        return "expected a scan, found an empty file (0 bytes): copy it again from its source"
    for magic, words in STRANGERS.items():
        if head.startswith(magic):
            return f"expected a scan, found {words}"
    return "expected DICOM, NIfTI, NRRD, MetaImage, PNG or JPEG, found none of their signatures"
