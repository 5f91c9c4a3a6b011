"""OUT/translation/: the worst slices of held-out scans, each as source, translation, reference, difference and width of the bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..runtime import write_atomic
from .held_out import Scan

Panel = tuple[str, np.ndarray, dict[str, Any]]  # heading, picture, how matplotlib shows it

MOST = 8  # pictures
LEAST_BODY = 0.25  # of the scan's largest section of the body, that a slice must show
FOLDER = "translation"
# Shares of the body's values between which a picture is shown.
SHOWN = (0.005, 0.995)
WIDE, HEADING, LETTERS = 2.35, 0.68, 9.0  # inches of a panel, of what stands above; points
INK, MUTED = "#14181d", "#55606b"


@dataclass(frozen=True)
class Slice:
    """One slice of a held-out scan, in units but for the source.

    Attributes:
        error: mean absolute error in the body, in units.
        patient: pseudonym; number: of the slice in the scan.
        source: encoded; output, reference, width: in units, width None without bounds.
        inside: the body.
        aspect: height of a pixel over its width.
    """

    error: float
    patient: str
    number: int
    source: np.ndarray
    output: np.ndarray
    reference: np.ndarray
    width: np.ndarray | None
    inside: np.ndarray
    aspect: float


@dataclass
class Worst:
    """The worst slices so far: of few scans several slices each, of many one."""

    kept: list[Slice] = field(default_factory=list)

    def add(self, scan: Scan, scans: int) -> None:
        """Look at one scan of so many."""
        each = math.ceil(MOST / scans)
        self.kept = sorted([*self.kept, *worst_of(scan, each)], key=lambda one: -one.error)[:MOST]

    def draw(self, out: Path, settings: Mapping[str, Any], units: str) -> list[dict[str, Any]]:
        """Write the pictures into OUT/translation/, the worst first.

        Returns:
            [{"file" below OUT, "patient", "slice", "mae", "words"}].
        """
        for old in (out / FOLDER).glob("worst-*.png"):
            old.unlink()
        found = []
        for number, one in enumerate(self.kept, 1):
            name = f"{FOLDER}/worst-{number}.png"
            write_atomic(out / name, drawn(one, settings, units))
            words = f"patient {one.patient}, slice {one.number + 1}: mean absolute error {one.error:.3g} {units}"
            found.append({"file": name, "patient": one.patient, "slice": one.number, "mae": one.error, "words": words})
        return found


def worst_of(scan: Scan, count: int) -> list[Slice]:
    """The slices with the largest error in the body, some way apart, of those that show much of it."""
    area = scan.inside.sum(axis=(1, 2))
    error = scan.spans(np.abs(scan.middle - scan.target))
    each = np.array([error[k][scan.inside[k]].mean() if area[k] else -1.0 for k in range(len(area))])
    each[area < LEAST_BODY * area.max()] = -1.0
    chosen: list[int] = []
    apart = max(1, len(area) // (2 * count))
    for k in np.argsort(-each, kind="stable").tolist():
        if len(chosen) < count and each[k] >= 0.0 and all(abs(k - other) >= apart for other in chosen):
            chosen.append(k)
    return [cut(scan, k, float(each[k])) for k in chosen]


def cut(scan: Scan, k: int, error: float) -> Slice:
    """One slice of a scan."""
    width = scan.spans(scan.upper[k] - scan.lower[k])
    return Slice(
        error, scan.patient, k, scan.source[k].copy(), scan.units(scan.middle[k]), scan.units(scan.target[k]),
        width if width.any() else None, scan.inside[k].copy(), aspect_of(scan.spacing),
    )  # fmt: skip


def aspect_of(spacing: Sequence[float]) -> float:
    """Height of a pixel over its width, from (slice, row, column) in mm; 1 where it is not known."""
    rows, columns = spacing[1:]
    return float(rows / columns) if np.isfinite(rows) and np.isfinite(columns) and columns > 0 else 1.0


def ends(values: np.ndarray) -> tuple[float, float]:
    """Between which values a picture is shown."""
    low, high = (float(end) for end in np.quantile(values, SHOWN)) if values.size else (0.0, 0.0)
    return (low, high) if high > low else (low, low + 1.0)


def drawn(one: Slice, settings: Mapping[str, Any], units: str) -> bytes:
    """The panels of one slice as PNG, marked as synthetic."""
    kind, wished = settings["source"]["modality"], settings["target"]["modality"]
    low, high = ends(one.reference[one.inside])
    difference = one.output - one.reference
    most = float(np.quantile(np.abs(difference[one.inside]), 0.99)) if one.inside.any() else 0.0
    window = f"{short(low)} to {short(high)} {units}"
    grey: dict[str, Any] = {"cmap": "gray", "vmin": low, "vmax": high}
    first, last = ends(one.source[one.inside])
    panels: list[Panel] = [
        (f"Source ({kind})", one.source, {"cmap": "gray", "vmin": min(first, -1.0), "vmax": last}),
        (f"SYNTHETIC {wished}\n{window}", one.output, grey),
        (f"Reference ({wished})\n{window}", one.reference, grey),
        (f"Synthetic − reference\n({units})", difference, {"cmap": "RdBu_r", "vmin": -(most or 1.0), "vmax": most or 1.0}),
    ]  # fmt: skip
    if one.width is not None:
        top = float(np.quantile(one.width[one.inside], 0.99)) if one.inside.any() else float(one.width.max())
        panels.append((bounds_title(settings, units), one.width, {"cmap": "magma", "vmin": 0.0, "vmax": top or 1.0}))
    words = f"{one.patient}, slice {one.number + 1}: mean absolute error {one.error:.3g} {units}. SYNTHETIC, not for diagnosis."
    return sheet(panels, words, one.aspect)


def sheet(panels: Sequence[Panel], words: str, aspect: float) -> bytes:
    """Pictures in a row, and words below, as PNG that is marked as synthetic."""
    import io

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    tall = WIDE * aspect * max(image.shape[0] / image.shape[1] for _, image, _ in panels)
    with rc_context({"font.size": LETTERS, "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"]}):
        figure = Figure(figsize=(WIDE * len(panels), tall + HEADING), dpi=130, facecolor="white")
        for place, (title, image, options) in enumerate(panels):
            panel(figure, (place, len(panels)), title, image, aspect, options)
        figure.text(0.005, 0.012, words, color=MUTED, fontsize=LETTERS - 0.5)
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"SyntheticData": "YES", "Software": None})
    return file.getvalue()


def panel(
    figure: Any, place: tuple[int, int], title: str, image: np.ndarray, aspect: float, options: dict[str, Any]
) -> None:
    """One picture with its heading; what is no grey picture with a colour bar in its lower part."""
    width, height = figure.get_size_inches()
    left, gap = place[0] / place[1], 0.03 / width
    bottom, tall = 0.2 / height, (height - HEADING) / height
    axes = figure.add_axes((left + gap, bottom, 1.0 / place[1] - 2 * gap, tall))
    shown = axes.imshow(image, aspect=aspect, interpolation="nearest", **options)
    axes.set_axis_off()
    axes.set_title(title, color=INK, fontsize=LETTERS, pad=3)
    if options["cmap"] != "gray":
        inner = figure.add_axes((left + gap + 0.2 / place[1], bottom + 0.16 / height, 0.6 / place[1], 0.07 / height))
        bar = figure.colorbar(shown, cax=inner, orientation="horizontal", ticks=[options["vmin"], options["vmax"]])
        tone = "white" if options["cmap"] == "magma" else INK
        bar.ax.tick_params(labelsize=LETTERS - 1.0, colors=tone, length=0, pad=1)
        bar.ax.set_xticklabels([short(options["vmin"]), short(options["vmax"])])
        bar.outline.set_visible(False)


def short(value: float) -> str:
    """ "−1,024", "0.25"."""
    return (f"{value:,.0f}" if abs(value) >= 100.0 else f"{value:.3g}").replace("-", "−")


def bounds_title(settings: Mapping[str, Any], units: str) -> str:
    """What the width is of."""
    calibration = settings["calibration"] or {}
    if calibration.get("method") == "uncalibrated" or calibration.get("factor") is None:
        return f"Width of the bounds\n({units}), uncalibrated"
    return f"Width of the {1.0 - calibration['alpha']:.0%} bounds\n({units})"
