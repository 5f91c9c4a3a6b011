"""DICOMDIR: the table of contents of a DICOM medium (DICOM PS3.10, 8; PS3.3, F), used to notice files that were not copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .dicom_file import read_header

SOP_CLASS = b"1.2.840.10008.1.3.10"  # Media Storage Directory
# The largest that is read, in bytes: about 200,000 images.
MOST_BYTES = 2**28


def sniff(head: bytes) -> bool:
    """True when the file meta information says Media Storage Directory, (0002,0002)."""
    at = head.find(b"\x02\x00\x02\x00UI", 132, 400)
    length = int.from_bytes(head[at + 6 : at + 8], "little")
    return head[128:132] == b"DICM" and at >= 0 and head[at + 8 : at + 8 + length].rstrip(b"\0 ") == SOP_CLASS


def header(file: Path) -> dict[str, Any]:
    """{"names": posix path below the DICOMDIR's folder of each file that it names}; none when it is broken.

    Raises:
        OSError: it cannot be opened.
    """
    if file.stat().st_size > MOST_BYTES:
        return {"names": []}
    try:
        records = read_header(file, ("DirectoryRecordSequence",)).dataset.get("DirectoryRecordSequence") or []
        found = [_parts(record.get("ReferencedFileID")) for record in records]
    except OSError:
        raise
    except Exception:  # its images are found without it
        found = []
    return {"names": sorted({"/".join(parts) for parts in found if parts})}


def missing(file: Path, content: dict[str, Any]) -> int:
    """How many of the files that it names are not there; case does not count, as ISO 9660 has capitals alone."""
    wanted = {name for name in content["names"] if not (file.parent / name).exists()}
    if not wanted:
        return 0
    there = {path.relative_to(file.parent).as_posix().lower() for path in file.parent.rglob("*")}
    return len({name.lower().rstrip(".") for name in wanted} - there)


def _parts(identifier: Any) -> list[str]:
    """The components of a Referenced File ID (0004,1500); none when absent, or when it leaves the folder or is no name."""
    if not identifier:
        return []
    parts = [identifier] if isinstance(identifier, str) else [str(part) for part in identifier]
    odd = any(part in ("", ".", "..") or len(part) > 64 or set(part) & {"/", "\\", "\0"} for part in parts)
    return [] if odd or len(parts) > 16 else parts
