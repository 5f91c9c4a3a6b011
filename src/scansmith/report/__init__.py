"""report: one self-contained HTML page from what lies in a run folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def report(
    out: Path, *, title: str | None = None, count: int = 36, real_images: bool = True, seed: int = 0
) -> dict[str, Any]:
    """Write OUT/report.html, one page that needs no other file, from what lies in a run folder.

    The page says what `evaluate` measured: of synthetic scans, or of a model that translates or segments.
    Parts of the folder that are missing are named on the page; the rest is shown. The same folder gives the same page.

    Args:
        out: a run folder: run.json, dataset/, train/, model/, images/, metrics.json, nearest.png, or some of these.
        title: heading of the page; by default modality and number of scans.
        count: images in each of the two contact sheets, real and synthetic; with classes, up to six of each class.
        real_images: show real patients' images; without them the page can leave the place where the scans may be seen.
        seed: which real and synthetic images the contact sheets draw.

    Returns:
        {"report": file name, "bytes": its size, "sections": [...], "missing": [...]}.

    Raises:
        ValueError: there is nothing of a run in the folder.
    """
    from . import page, translation
    from .folder import RunFolder

    if translation.judged(RunFolder(Path(out))):
        return translation.write(Path(out), title=title, real_images=real_images, seed=seed)
    return page.write(Path(out), title=title, count=count, real_images=real_images, seed=seed)
