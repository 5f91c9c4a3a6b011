"""NIfTI, NRRD and MetaImage -> Image: one 3-D volume or 2-D picture per file, or per header and the file beside it."""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

from ..image import Image
from . import nifti, text_header
from .source import FormatError, Skipped, Source
from .voxels import GZIP


def sniff(head: bytes) -> bool:
    """True for NIfTI-1 and -2 (plain or gzip), NRRD and MetaImage."""
    return _format(head) is not None


def header(file: Path, tags: tuple[str, ...] = ()) -> dict[str, Any]:
    """Format, modality, channels, dimensions, shape and affine of one volume; `tags` are for DICOM.

    Of voxels in another file it lists the names that this may have (`beside`) and the size that it must have at
    least (`least`, bytes); only `arrange` looks for it, as it may come later.

    Raises:
        FormatError: a broken header, or a file that this version does not read.
    """
    with open(file, "rb", buffering=0) as stream:
        name = _format(stream.read(1024))
    return nifti.header(file) if name == "nifti" else text_header.header(file)


def arrange(headers: list[tuple[Path, dict[str, Any]]]) -> tuple[list[Source], list[Skipped]]:
    """One source per volume."""
    sources: list[Source] = []
    skipped: list[Skipped] = []
    for file, said in headers:
        try:
            files = (file, _voxel_file(file, said)) if said["beside"] else (file,)
        except FormatError as error:
            skipped.append(Skipped(file, str(error)))
            continue
        i, j, k = said["shape"]
        affine = tuple(said["affine"])
        sources.append(
            Source(
                files, said["format"], said["modality"], said["channels"], said["dimensions"], (i, j, k), affine=affine
            )
        )
    return sources, skipped


def read(source: Source) -> Image:
    """Voxels in physical units; the affine as the header has it, in RAS+."""
    return nifti.read(source) if source.format == "nifti" else text_header.read(source)


def _format(head: bytes) -> str | None:
    name = text_header.format_of(head)
    if name is not None:
        return name
    if head.startswith(GZIP):
        try:
            head = zlib.decompressobj(31).decompress(head, 352)
        except zlib.error:
            return None
    return "nifti" if nifti.version(head) else None


def _voxel_file(file: Path, said: dict[str, Any]) -> Path:
    """The file beside a header that holds its voxels.

    Raises:
        FormatError: there is none, or it is too small.
    """
    beside = next((file.with_name(name) for name in said["beside"] if file.with_name(name).is_file()), None)
    if beside is None:
        raise FormatError("expected the voxel file that this header names beside it, found none: copy both files")
    if beside.stat().st_size < said["least"]:
        raise FormatError(
            f"expected at least {said['least']} bytes of voxels in the file beside this header, found {beside.stat().st_size}: it is truncated or the header is wrong; copy both files again"
        )
    return beside
