"""Zip archives: their members are unpacked to a folder of the same name, within bounds, and then read as any other files."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import unicodedata
import zipfile
from collections import Counter
from pathlib import Path
from stat import S_IFMT, S_ISREG
from typing import Any, BinaryIO

from .source import Skipped, explain

SIGNATURES = (b"PK\x03\x04", b"PK\x05\x06")
# Scans and masks shrink to a hundredth at best, zeros to a thousandth: what grows beyond this was made to fill the disk.
# Below the bytes that any disk has room for, nothing is asked.
MOST_EXPANSION = 200
HARMLESS = 100 * 10**6
# Left free on the disk, in bytes.
MARGIN = 2**30
# Kept in an unpacked folder; tells which archive it came from and what was refused.
MARK = ".unpacked.json"
CHUNK = 2**20
OUTSIDE = "whose path is absolute or climbs out of the archive: left out"
# What a disk says of a name that it cannot hold.
BAD_NAME = {errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ}


def name_of(file: Path, root: Path, unpack_into: Path | None = None) -> str:
    """Posix path of a file below the root, or of an archive's member below the archive: "sub/scans.zip/series/1.dcm".

    Args:
        file: as `discover` lists it.
        root: the folder, or the one file, that was given to `discover`.
        unpack_into: as given to `discover`.
    """
    path = os.fspath(file)
    for base in (unpack_into, root):
        start = "" if base is None or base == Path() else f"{base}{os.sep}"
        if base is not None and path.startswith(start):
            return path[len(start) :].replace(os.sep, "/")
    return file.name if file == root else path.replace(os.sep, "/")


def unpack(archive: Path, target: Path) -> tuple[bool, list[Skipped]]:
    """Unpack a zip archive to the folder `target`, all that can be or nothing; one that is there already is left as it is.

    Members that are encrypted, links, absolute, or that climb out are refused, and so is what unpacks to more than
    100 MB and 200 times its size, one by one or all together, or to more than the disk holds. Unpacked files take the archive's own modification time, so
    that an `Index` knows them again.

    Returns:
        Whether the folder now holds what the archive does, and the archive with each reason why something does not
        come out; members that are hidden files are passed over.
    """
    partial = target.with_name(f".{target.name}.partial")
    try:
        stat = archive.stat()
        stamp = [stat.st_size, stat.st_mtime_ns]
        mark = _mark(target)
        if mark is None and target.exists():
            words = "a zip archive, but the folder to unpack it to holds something else: remove that folder"
            return False, [Skipped(archive, words)]
        if mark is None or mark["archive"] != stamp:
            for old in (target, partial):
                shutil.rmtree(old, ignore_errors=True)
            partial.mkdir(parents=True)
            mark = {"archive": stamp, "refused": _extract(archive, partial, stat.st_mtime_ns)}
            (partial / MARK).write_text(json.dumps(mark))
            partial.rename(target)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        words = f"a zip archive that cannot be unpacked ({error.strerror or type(error).__name__}): unpack it elsewhere"
        return False, [Skipped(archive, words)]
    return True, [Skipped(archive, words) for words in mark["refused"]]


def _mark(target: Path) -> dict[str, Any] | None:
    """What an earlier call left in the folder, or None where it did not make it."""
    try:
        mark = json.loads((target / MARK).read_text())
    except (OSError, ValueError):
        return None
    return mark if isinstance(mark, dict) and {"archive", "refused"} <= mark.keys() else None


def _extract(archive: Path, folder: Path, mtime_ns: int) -> list[str]:
    """Write the members below the folder; what was refused, one sentence for each reason.

    Raises:
        OSError: the archive cannot be opened, or the disk has no room.
    """
    try:
        with open(archive, "rb") as stream, zipfile.ZipFile(stream) as opened:
            if not opened.infolist():
                return ["expected a zip archive with members, found none: copy it again from its source"]
            members = [member for member in opened.infolist() if not _passed_over(member.filename)]
            bomb = _bomb(members, archive.stat().st_size)
            if bomb is not None:
                return [bomb]
            total, free = sum(member.file_size for member in members), shutil.disk_usage(folder).free
            if total > free - MARGIN:
                raise OSError(errno.ENOSPC, f"{total / 2**30:.1f} GB to unpack, {free / 2**30:.1f} GB free on the disk")
            return _extract_members(opened, members, folder, mtime_ns)
    except OSError:
        raise
    except Exception as error:  # zipfile raises anything on a broken directory
        return [f"expected a readable zip archive, found {explain(error, (archive,))}: copy it again from its source"]


def _extract_members(opened: zipfile.ZipFile, members: list[zipfile.ZipInfo], folder: Path, mtime_ns: int) -> list[str]:
    reasons: Counter[str] = Counter()
    for member in members:
        parts = _parts(member.filename)
        reason = OUTSIDE if parts is None else _refusal(member)
        if parts is not None and reason is None:
            reason = _write(opened, member, folder.joinpath(*parts), mtime_ns)
        if reason is not None:
            reasons[reason] += 1
    return [
        f"a zip archive with {count} {'member' if count == 1 else 'members'} {reason}"
        for reason, count in sorted(reasons.items())
    ]


def _passed_over(name: str) -> bool:
    """Folders, and hidden files: also those that macOS adds."""
    parts = name.replace("\\", "/").split("/")
    return parts[-1] == "" or any(
        (part.startswith(".") and part not in (".", "..")) or part == "__MACOSX" for part in parts
    )


def _bomb(members: list[zipfile.ZipInfo], size: int) -> str | None:
    """Why the archive as a whole is refused by what its directory claims, or None."""
    packed = sum(member.compress_size for member in members)
    total = sum(member.file_size for member in members)
    if packed > size:
        return f"expected members that lie one behind the other, found {packed} bytes of them in an archive of {size}: overlapping members, as in a zip bomb"
    if total > max(HARMLESS, MOST_EXPANSION * size):
        return f"expected at most {MOST_EXPANSION} times its {size} bytes when unpacked, found {total}, as in a zip bomb: unpack it yourself if you trust it"
    return None


def _parts(name: str) -> tuple[str, ...] | None:
    """The components of a member's path in normal form C, or None when it leaves the folder."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    if name.startswith("/") or re.match(r"[A-Za-z]:", name) or "\0" in name:
        return None
    parts = tuple(part for part in name.split("/") if part not in ("", "."))
    return None if not parts or ".." in parts else parts


def _refusal(member: zipfile.ZipInfo) -> str | None:
    """Why a member is refused by what the directory says of it, or None."""
    kind = S_IFMT(member.external_attr >> 16)
    if kind and not S_ISREG(kind):
        return "that are links or devices: left out"
    if member.flag_bits & 0x1:
        return "that are encrypted: unpack it first"
    # Of bzip2 and LZMA no bound is known before a piece is unpacked.
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return "that are compressed otherwise than by deflate: unpack it first"
    if member.file_size > max(HARMLESS, MOST_EXPANSION * member.compress_size):
        return f"that unpack to more than {HARMLESS // 10**6} MB and {MOST_EXPANSION} times their size, as in a zip bomb: unpack it yourself if you trust it"
    return None


def _write(opened: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, mtime_ns: int) -> str | None:
    """Unpack one member, or say why it is left out.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as unpacked:
            _copy(opened, member, unpacked)
        os.utime(path, ns=(mtime_ns, mtime_ns))
    except (FileExistsError, NotADirectoryError):
        return "of a name that came before: left out"
    except OSError as error:
        if error.errno in BAD_NAME:
            return "of a name that this disk cannot hold: left out"
        raise
    except Exception:  # zipfile and zlib raise anything on broken streams
        path.unlink()
        return "that are broken (checksum, length or stream): copy it again from its source"
    return None


def _copy(opened: zipfile.ZipFile, member: zipfile.ZipInfo, unpacked: BinaryIO) -> None:
    """Copy a member's bytes; zipfile gives no more than the declared size and checks CRC-32 at its end.

    Raises:
        zipfile.BadZipFile: it holds less, or something else.
    """
    with opened.open(member) as packed:
        while chunk := packed.read(CHUNK):
            unpacked.write(chunk)
    if unpacked.tell() != member.file_size:
        raise zipfile.BadZipFile
