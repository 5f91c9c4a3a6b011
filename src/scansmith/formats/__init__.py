"""Formats: files <-> Image. Files are recognised by content, scans are listed from headers alone and read one at a time.

To add a reader, write one module with `sniff`, `header`, `arrange` and `read` and list it in `READERS`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from stat import S_ISREG
from types import ModuleType
from typing import Any

import numpy as np

from ..image import Image
from ..runtime import ordered_map
from . import bids, dicom, dicomdir, pictures, volumes
from .archives import SIGNATURES as ZIP_SIGNATURES
from .archives import name_of, unpack
from .derived import Derivation, write_derived, write_parametric_map, write_segmentation
from .dicom_file import tag_number
from .dicom_masks import Mask
from .index import UNREADABLE, Entry, Index
from .source import FormatError, Skipped, Source, explain, quiet
from .write import WRITERS, Marking, read_manifest, write, write_manifest

__all__ = [
    "READERS",
    "WRITERS",
    "Derivation",
    "FormatError",
    "Index",
    "Marking",
    "Mask",
    "Skipped",
    "Source",
    "discover",
    "name_of",
    "part_of",
    "read",
    "read_mask",
    "read_manifest",
    "read_runs",
    "write",
    "write_derived",
    "write_manifest",
    "write_parametric_map",
    "write_segmentation",
]

# Source.format -> module with
#   sniff(head) -> bool
#   header(file, tags) -> JSON-able dict, of one file, from its header alone; raises anything on a broken one
#   arrange([(file, header)]) -> (sources, skipped), which groups and sorts
#   read(source) -> Image
READERS: dict[str, ModuleType] = {
    "dicom": dicom,
    "nifti": volumes,
    "nrrd": volumes,
    "metaimage": volumes,
    "png": pictures,
    "jpeg": pictures,
    "tiff": pictures,
}
MODULES = {module.__name__.rpartition(".")[2]: module for module in READERS.values()}
Content = dict[str, Any] | str | None
HEAD_BYTES = 1024
# A task of 0.01 to 0.1 s.
FILES_PER_TASK = 128
NO_FILE = "expected a regular file, found a broken link or a device"
BROKEN_HEADER = "expected a readable header, found {}: copy it again from its source"
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
    ".ppt",
    ".pptx",
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
    b"PK\x05\x06": "an empty zip archive",
    b"\x1f\x8b": "a gzip file that does not hold a NIfTI volume: unpack it first",
    b"7z\xbc\xaf": "a 7-zip archive: unpack it first",
    b"Rar!": "a RAR archive: unpack it first",
    b"BM": "a BMP picture: convert it to PNG",
    b"GIF8": "a GIF picture: convert it to PNG",
    b"\x89HDF": "an HDF5 or MINC file: convert it to NIfTI",
    b"MINC": "a MINC file: convert it to NIfTI",
}


def discover(
    root: Path,
    only: Iterable[Path] | None = None,
    *,
    index: Index | None = None,
    workers: int = 1,
    unpack_into: Path | None = None,
    tags: tuple[str, ...] = (),
) -> tuple[list[Source], list[Skipped]]:
    """List every scan below a folder (or in one file) from headers alone; masks are listed too, with role "mask".

    Hidden files and those that usually lie beside scans (notes, tables, DICOMDIR) are passed over; everything else that
    is not a usable scan is listed with the reason. One bad file never stops the rest.

    Args:
        root: folder or file.
        only: look at these files alone; None takes all.
        index: what earlier calls found; files that it knows are not opened again, and what is new is noted in it.
        workers: processes that read headers.
        unpack_into: zip archives are unpacked below this folder; None skips them.
        tags: keywords of DICOM attributes to keep in `Source.tags`.

    Returns:
        The scans and the skipped files, each sorted by path.

    Raises:
        ValueError: there is no such folder or file, or DICOM knows no such keyword.
    """
    root = Path(root)
    if not root.exists():
        raise ValueError(f"expected a folder of scans, found nothing at {root}: check the path")
    for tag in tags:
        tag_number(tag)
    index = Index() if index is None else index
    index.ask_for(tags)
    files, skipped = walk(root) if only is None else _stats(sorted(only))
    if only is None and unpack_into is not None and unpack_into.is_relative_to(root):
        files = {file: stat for file, stat in files.items() if not file.is_relative_to(unpack_into)}
    names = {file: name_of(file, root, unpack_into) for file in files}
    entries = _look(files, names, index, workers)
    zips = [file for file, entry in entries.items() if entry.reader == "zip"]
    if unpack_into is not None and zips:
        more, refused = _unpack(zips, names, unpack_into)
        names |= {file: name_of(file, root, unpack_into) for file in more}
        entries |= _look(more, names, index, workers)
        skipped += refused
    if only is None:
        index.keep(set(names.values()))
    sources, refused = _arrange(entries)
    # The voxels of a detached header (.mhd + .raw, .nhdr + .raw, .hdr + .img) carry no mark of their own.
    used = {file for source in sources for file in source.files}
    skipped += [entry for entry in refused if entry.file not in used]
    skipped += _unread(entries, set(zips) if unpack_into is not None else set(), used)
    sources = bids.understand(sources, names, root)
    return (
        sorted(sources, key=lambda source: ([file.parts for file in source.files], source.frames)),
        sorted(skipped, key=lambda entry: (entry.file.parts, entry.reason)),
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


def read_mask(mask: Source, image: Source | Image) -> Mask:
    """Read a DICOM Segmentation or RT Structure Set as a label map on an image's grid.

    Args:
        mask: listed by `discover` with role "mask".
        image: the scan that it was drawn on. A `Source` must be one with a known affine, and is checked to be the
            one that the mask refers to.

    Raises:
        FormatError: it cannot be read, lies outside the image, or belongs to another one.
        OSError: the file cannot be opened.
    """
    with quiet():
        if isinstance(image, Image):
            i, j, k = image.array.shape[1:]
            return dicom.read_mask(mask, image.affine, (i, j, k))
        if image.affine is None:
            raise FormatError("expected an image whose place in the patient is known, found one without", mask.files[0])
        return dicom.read_mask(mask, np.reshape(image.affine, (4, 4)), image.shape, image)


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
            count = _slices_of(part)
            at = _broken_slice(part, error)
            if at is None and count > 1 and part.frames:  # one file: the broken frame is found by halving
                left += [
                    (first + count // 2, part_of(part, range(count // 2, count))),
                    (first, part_of(part, range(count // 2))),
                ]
                continue
            broken.append(Skipped(part.files[at or 0], _reason(error)))
            if part.format != "dicom" or at is None:
                continue
            # The stack gives them back in their order.
            for start, end in ((at + 1, count), (0, at)):
                if start < end:
                    left.append((first + start, part_of(part, range(start, end))))
    return runs, list(dict.fromkeys(broken))


def part_of(source: Source, slices: Sequence[int]) -> Source:
    """Some slices of a DICOM series or multi-frame file, by their numbers, rising; the rest of the source is the same."""
    files = tuple(source.files[k] for k in slices) if len(source.files) > 1 else source.files
    known = len(source.instances) == len(source.files) > 1
    even = len(slices) < 2 or slices[-1] - slices[0] == len(slices) - 1
    affine = None
    if source.affine is not None and even:
        step = np.eye(4)
        step[2, 3] = slices[0]
        affine = tuple((np.reshape(source.affine, (4, 4)) @ step).ravel().tolist())
    return replace(
        source,
        files=files,
        frames=tuple(source.frames[k] for k in slices) if source.frames else (),
        instances=tuple(source.instances[k] for k in slices) if known else source.instances,
        shape=(*source.shape[:2], len(slices)),
        affine=affine,
    )


def _slices_of(source: Source) -> int:
    return len(source.frames) or len(source.files)


def _broken_slice(source: Source, error: FormatError | OSError) -> int | None:
    """Which slice a series' error is about; None when the files do not tell."""
    if len(source.files) == 1 and len(source.frames) > 1:
        return None
    named = str(error.file if isinstance(error, FormatError) else error.filename)
    return next((k for k, file in enumerate(source.files) if str(file) == named), None)


def _reason(error: FormatError | OSError) -> str:
    if isinstance(error, FormatError):
        return str(error)
    return f"cannot be opened ({error.strerror or type(error).__name__}): check its permissions"


def _look(files: dict[Path, os.stat_result], names: dict[Path, str], index: Index, workers: int) -> dict[Path, Entry]:
    """What each file is: from the index where it is known there, else from its head and header."""
    known = {file: index.lookup(names[file], stat) for file, stat in files.items()}
    unknown = [file for file, entry in known.items() if entry is None]
    tasks = [(unknown[start : start + FILES_PER_TASK], index.tags) for start in range(0, len(unknown), FILES_PER_TASK)]
    for (some, _), found in zip(tasks, ordered_map(_open_all, tasks, workers)):
        for file, (reader, content) in zip(some, found):
            known[file] = index.note(names[file], files[file], reader, content)
    return {file: entry for file, entry in known.items() if entry is not None}


def _unpack(
    zips: list[Path], names: dict[Path, str], unpack_into: Path
) -> tuple[dict[Path, os.stat_result], list[Skipped]]:
    """The files that the archives hold, unpacked; an archive inside an archive stays one."""
    files: dict[Path, os.stat_result] = {}
    skipped: list[Skipped] = []
    for archive in zips:
        target = unpack_into / names[archive]
        whole, refused = unpack(archive, target)
        skipped += refused
        if whole:
            found, refused = walk(target)
            files |= found
            skipped += refused
    return files, skipped


def _open_all(task: tuple[list[Path], tuple[str, ...]]) -> list[tuple[str | None, Content]]:
    """Reader and header of each file, or why it is no scan: the work of one process."""
    files, tags = task
    with quiet():
        return [_open(file, tags) for file in files]


def _open(file: Path, tags: tuple[str, ...]) -> tuple[str | None, Content]:
    try:
        with open(file, "rb", buffering=0) as stream:
            head = stream.read(HEAD_BYTES)
        if dicomdir.sniff(head):
            return "dicomdir", dicomdir.header(file)
        name = next((name for name, module in MODULES.items() if module.sniff(head)), None)
        if name is not None:
            return name, MODULES[name].header(file, tags)
        if _companion(file):
            return None, None
        return ("zip" if head.startswith(ZIP_SIGNATURES) else None), _stranger(head)
    except FormatError as error:
        return None, str(error)
    except OSError as error:
        if error.errno is not None:
            return UNREADABLE, f"cannot be opened ({error.strerror or type(error).__name__}): check its permissions"
        return None, BROKEN_HEADER.format(explain(error, (file,)))
    except Exception as error:  # readers raise anything on broken headers
        return None, BROKEN_HEADER.format(explain(error, (file,)))


def _arrange(entries: dict[Path, Entry]) -> tuple[list[Source], list[Skipped]]:
    sources: list[Source] = []
    skipped: list[Skipped] = []
    for name, module in MODULES.items():
        headers = [
            (file, entry.content)
            for file, entry in entries.items()
            if entry.reader == name and isinstance(entry.content, dict)
        ]
        if headers:
            with quiet():
                found, refused = module.arrange(headers)
            sources += found
            skipped += refused
    return sources, skipped


def _unread(entries: dict[Path, Entry], unpacked: set[Path], used: set[Path]) -> list[Skipped]:
    """The files that are no scans, with the reasons."""
    skipped = [
        Skipped(file, entry.content)
        for file, entry in entries.items()
        if isinstance(entry.content, str) and file not in unpacked and file not in used
    ]
    for file, entry in entries.items():
        if entry.reader == "dicomdir" and isinstance(entry.content, dict):
            gone = dicomdir.missing(file, entry.content)
            if gone:
                files = "1 file that is" if gone == 1 else f"{gone} files that are"
                skipped.append(Skipped(file, f"a DICOMDIR that names {files} not there: copy them, too"))
    return skipped


def _stats(files: list[Path]) -> tuple[dict[Path, os.stat_result], list[Skipped]]:
    """The size and time of each file, and those that are not there or no files."""
    found: dict[Path, os.stat_result] = {}
    skipped: list[Skipped] = []
    for file in files:
        try:
            stat = file.stat()
        except OSError as error:
            skipped.append(
                Skipped(file, f"cannot be opened ({error.strerror or type(error).__name__}): check its permissions")
            )
            continue
        if S_ISREG(stat.st_mode):
            found[file] = stat
        else:
            skipped.append(Skipped(file, NO_FILE))
    return found, skipped


def walk(root: Path) -> tuple[dict[Path, os.stat_result], list[Skipped]]:
    """Every regular file below root, sorted by path; hidden ones are left out, links to folders are not followed."""
    if root.is_file():
        return _stats([root])
    files: dict[Path, os.stat_result] = {}
    skipped: list[Skipped] = []
    folders = [root]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as found:
                entries = sorted(found, key=lambda entry: entry.name)
        except OSError as error:
            skipped.append(Skipped(folder, f"this folder cannot be opened ({error.strerror}): check its permissions"))
            continue
        for entry in entries:
            if not entry.name.startswith("."):
                _sort_entry(entry, root, folders, files, skipped)
    return dict(sorted(files.items(), key=lambda item: item[0].parts)), skipped


def _sort_entry(
    entry: os.DirEntry[str],
    root: Path,
    folders: list[Path],
    files: dict[Path, os.stat_result],
    skipped: list[Skipped],
) -> None:
    """One entry of a folder goes to the folders, the files or the skipped."""
    file = Path(entry.path)
    try:
        if entry.is_dir(follow_symlinks=False):
            folders.append(file)
        elif entry.is_dir():
            if not file.resolve().is_relative_to(root.resolve()):
                skipped.append(Skipped(file, "a link to a folder, which is not followed: give that folder itself"))
        elif entry.is_file():
            files[file] = entry.stat()
        else:
            skipped.append(Skipped(file, NO_FILE))
    except OSError as error:
        skipped.append(Skipped(file, f"cannot be opened ({error.strerror}): check its permissions"))


def _companion(file: Path) -> bool:
    return file.suffix.lower() in COMPANIONS or file.name.lower() in COMPANION_NAMES


def _stranger(head: bytes) -> str:
    """Why a file that no reader recognises is skipped."""
    if not head:
        return "expected a scan, found an empty file (0 bytes): copy it again from its source"
    for magic, words in STRANGERS.items():
        if head.startswith(magic):
            return f"expected a scan, found {words}"
    return "expected DICOM, NIfTI, NRRD, MetaImage, PNG, JPEG or TIFF, found none of their signatures"
