"""Pictures and charts of the prepared dataset's page, as data addresses and inline SVG in the page's own colours."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from markupsafe import Markup, escape

from ..dataset import Dataset
from ..intensity import IntensityMap
from ..preprocess import resize

TILE = 192  # longest side of one picture, pixels
SOFT_TISSUE = IntensityMap(-160.0, 240.0, "HU")  # level 40, width 400, as on any CT console
WIDE_HU = 1000.0  # a window at least as wide hides soft tissue
# Outlines, by label value; told apart in grey pictures and by most colour-blind readers.
OUTLINES = ("#ffd400", "#00c8ff", "#ff5cc8", "#7cff6b", "#ff8a00", "#b69cff")
# Radiological display, RAS+ axis of the normal -> (columns run along, towards), (rows run along, towards): the patient's
# right at the picture's left, anterior at the left in sagittal planes, superior or anterior up.
PLANES = {
    2: ("axial", (0, -1), (1, -1)),
    1: ("coronal", (0, -1), (2, -1)),
    0: ("sagittal", (1, -1), (2, -1)),
}
THIN = "\u202f"
MINUS = "\u2212"


@dataclass(frozen=True, slots=True)
class Plane:
    """One displayed plane of a row, on the stored grid.

    Attributes:
        name: "axial", "coronal", "sagittal", or "" for a 2-D row.
        image: (C, H, W), physical units.
        target: the paired scan's plane, (C, H, W), or None.
        mask: label map (H, W), or None.
        spacing: (row, column) pixel size in mm, (1, 1) where it is not known.
    """

    name: str
    image: np.ndarray
    target: np.ndarray | None
    mask: np.ndarray | None
    spacing: tuple[float, float]

    @property
    def size(self) -> tuple[float, float]:
        """Height and width in mm."""
        return self.image.shape[-2] * self.spacing[0], self.image.shape[-1] * self.spacing[1]


# ------------------------------------------------------------------------------------------------ numbers


def number(value: float, like: float | None = None) -> str:
    """Three significant digits, decimals as the larger of `value` and `like` needs; thin spaces between thousands."""
    if isinstance(value, (int, np.integer)):
        return grouped(f"{value:,}")
    largest = max(abs(value), abs(like or 0.0))
    if not math.isfinite(value) or not math.isfinite(largest):
        return "not known"
    decimals = 2 - math.floor(math.log10(largest)) if largest else 0
    return grouped(f"{value:,.{min(max(decimals, 0), 6)}f}")


def short(value: float) -> str:
    """`number` without zeros that say nothing: 512.0 is 512, 0.750 is 0.75."""
    text = number(float(value))
    return text.rstrip("0").rstrip(".") if "." in text else text


def grouped(text: str) -> str:
    """A formatted number with thin spaces for commas and a minus sign for a hyphen."""
    return text.replace(",", THIN).replace("-", MINUS)


# ------------------------------------------------------------------------------------------------ pictures


def views(dataset: Dataset, row: int) -> tuple[list[dict[str, str]], list[int]]:
    """The pictures of one row, and the widths of those that stand side by side.

    A 2-D row: itself, on CT in a soft-tissue window too, with the mask's outline, and the paired scan. A 3-D row: the same,
    each as three orthogonal planes through the middle, on one scale.

    Returns:
        {"src", "words"} of each picture; the width of each column in pixels of the pictures.
    """
    cuts, window, layers = planes(dataset, row), dataset.intensity(row), dataset.info["layers"]
    soft = window.units == "HU" and window.high - window.low >= WIDE_HU
    marked = "no mask" if cuts[0].mask is None else "mask outline"
    kinds: list[tuple[str, IntensityMap, str]] = [(window_words(window), window, "")]
    kinds += [("soft-tissue window", SOFT_TISSUE, "")] if soft else []
    kinds += [(marked, SOFT_TISSUE if soft else window, "outline")] if "masks" in layers else []
    kinds += [("paired scan", dataset.target_intensity(row), "target")] if "targets" in layers else []
    scale = TILE / max(max(cut.size) for cut in cuts)
    shown = [
        {"src": tile(cut, shades, scale, layer), "words": f"{cut.name}, {words}".removeprefix(", ")}
        for words, shades, layer in kinds
        for cut in cuts
    ]
    widths = [max(1, round(cut.size[1] * scale)) for cut in cuts]
    return shown, widths if len(cuts) > 1 else widths * len(shown)


def window_words(window: IntensityMap) -> str:
    """For example "−1024 to 1000 HU"."""
    units = f" {window.units}" if window.units == "HU" else ""
    return f"{short(window.low)} to {short(window.high)}{units}"


def planes(dataset: Dataset, row: int) -> list[Plane]:
    """The row itself, or the three orthogonal planes through the middle of a volume."""
    image, target, mask = dataset.image(row), dataset.target(row), dataset.mask(row)
    spacing = np.asarray(dataset.columns["spacing"][row], np.float64)
    spacing = np.where(np.isfinite(spacing) & (spacing > 0), spacing, 1.0)
    if image.ndim == 3:
        return [Plane("", image, target, mask, (float(spacing[-2]), float(spacing[-1])))]
    axes, signs = orientation(np.asarray(dataset.columns["affine"][row], np.float64))
    result = []
    for normal, (name, columns, rows) in PLANES.items():
        cut = (axes[normal], axes[rows[0]], axes[columns[0]])
        flip = (signs[rows[0]] != rows[1], signs[columns[0]] != columns[1])
        pixel = float(spacing[axes[rows[0]]]), float(spacing[axes[columns[0]]])
        parts = [None if part is None else middle(part, cut, flip) for part in (image, target)]
        labels = None if mask is None else middle(mask[None], cut, flip)[0]
        assert parts[0] is not None
        result.append(Plane(name, parts[0], parts[1], labels, pixel))
    return result


def orientation(affine: np.ndarray) -> tuple[dict[int, int], dict[int, int]]:
    """RAS+ axis -> axis of a stored (D, H, W) volume, and RAS+ axis -> the direction it runs in there.

    Args:
        affine: (column, row, slice, 1) -> mm in RAS+; without one an axial stack, from below upwards, is taken.
    """
    if np.isfinite(affine).all():
        world = [int(np.abs(affine[:3, column]).argmax()) for column in range(3)]
        if sorted(world) == [0, 1, 2]:
            signs = {axis: int(np.sign(affine[axis, column])) for column, axis in enumerate(world)}
            return {axis: 2 - column for column, axis in enumerate(world)}, signs
    return {0: 2, 1: 1, 2: 0}, {0: -1, 1: -1, 2: 1}


def middle(volume: np.ndarray, axes: tuple[int, int, int], flip: tuple[bool, bool]) -> np.ndarray:
    """(C, D, H, W) -> (C, rows, columns): the middle plane across axes[0], rows along axes[1], columns along axes[2]."""
    turned = volume.transpose(0, *(axis + 1 for axis in axes))
    plane = turned[:, turned.shape[1] // 2]
    return plane[:, :: -1 if flip[0] else 1, :: -1 if flip[1] else 1]


def tile(plane: Plane, window: IntensityMap, scale: float, layer: str = "") -> str:
    """One picture as a PNG data address.

    Args:
        plane: what to show.
        window: from black to white.
        scale: pixels of the picture a mm.
        layer: "" for the image, "outline" for the image and its mask's borders, "target" for the paired scan.
    """
    values = plane.target if layer == "target" else plane.image
    assert values is not None
    height, width = (max(1, round(side * scale)) for side in plane.size)
    encoded = resize(window.encode(values), height, width)
    grey = np.rint((np.clip(encoded, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    picture = grey.transpose(1, 2, 0) if len(grey) == 3 else grey[0]
    if layer == "outline" and plane.mask is not None:
        picture = outline(picture, plane.mask)
    return png(picture)


def outline(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A picture (H, W) or (H, W, 3), uint8, with the border of every label of a mask drawn in, (H, W, 3)."""
    height, width = picture.shape[:2]
    rows = ((np.arange(height) + 0.5) * mask.shape[0] / height).astype(int)
    columns = ((np.arange(width) + 0.5) * mask.shape[1] / width).astype(int)
    labels = mask[rows][:, columns]
    around = np.pad(labels, 1, mode="edge")
    neighbours = (around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:])
    border = np.any([labels != other for other in neighbours], axis=0) & (labels > 0)
    drawn = picture if picture.ndim == 3 else np.repeat(picture[:, :, None], 3, axis=2)
    drawn = drawn.copy()
    colours = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in OUTLINES], np.uint8)
    drawn[border] = colours[(labels[border].astype(int) - 1) % len(OUTLINES)]
    return drawn


def png(picture: np.ndarray) -> str:
    """uint8 (H, W) or (H, W, 3) as a PNG data address."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(picture)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


# ------------------------------------------------------------------------------------------------ histograms

WIDTH, HEIGHT = 420.0, 226.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 398.0, 34.0, 184.0


def histogram_svg(
    histogram: dict[str, Any],
    *,
    window: tuple[float, float] | None,
    units: str,
    marks: Sequence[tuple[float, str, str]],
    floor: int,
    words: str,
    behind: dict[str, Any] | None = None,
) -> Markup:
    """A histogram as inline SVG: share of the values, logarithmic, over physical units.

    Args:
        histogram: {"low", "high", "counts"}, equal bins.
        window: the ends of the intensity window, drawn in.
        units: "HU" or "a.u.".
        marks: (value, name, "start" or "end": whether the name starts or ends at its line).
        floor: power of ten of percent at which the axis begins.
        words: what it shows, for those who cannot see it.
        behind: another histogram, drawn as a thin line for comparison.
    """
    ends = [float(one[end]) for one in (histogram, behind) if one for end in ("low", "high")] + list(window or ())
    low, high = min(ends), max(ends)

    def x(value: float) -> float:
        return LEFT + (RIGHT - LEFT) * (value - low) / ((high - low) or 1.0)

    def y(share: float) -> float:
        return (
            BOTTOM - (BOTTOM - TOP) * (max(math.log10(share), floor) - floor) / (2.0 - floor) if share > 0 else BOTTOM
        )

    parts = [*y_axis(floor, y), *x_axis(low, high, units, x)]
    steps = stairs(histogram, x, y)
    parts.append(
        f'<path class="area" d="M{x(float(histogram["low"])):.1f},{BOTTOM} L{steps} L{x(float(histogram["high"])):.1f},{BOTTOM} Z"/>'
    )
    if behind is not None:
        parts.append(f'<path class="behind" d="M{stairs(behind, x, y)}"/>')
    parts += [line(x(value), name, "mark", side, TOP - 5) for value, name, side in marks if low <= value <= high]
    if window is not None:
        outward = x(window[1]) - x(window[0]) < 130.0
        sides = ("end", "start") if outward else ("start", "end")
        parts += [line(x(value), short(value), "window", side, TOP - 20) for value, side in zip(window, sides)]
    head = f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" style="max-width:{WIDTH * 1.25:g}px" role="img" aria-label="{escape(words)}">'
    return Markup(head + "".join(parts) + "</svg>")  # numbers and our own words; what comes from outside is escaped


def shares(histogram: dict[str, Any]) -> np.ndarray:
    """Percent of all values in each bin."""
    counts = np.asarray(histogram["counts"], np.float64)
    return 100.0 * counts / max(counts.sum(), 1.0)


def floor_of(histograms: Sequence[dict[str, Any]]) -> int:
    """Power of ten below the smallest share of any bin, between 0.001 % and 1 %: one axis for all charts."""
    percent = np.concatenate([shares(one) for one in histograms] or [np.zeros(0)])
    found = percent[percent > 0]
    return int(np.clip(math.floor(math.log10(found.min())), -3, 0)) if len(found) else 0


def stairs(histogram: dict[str, Any], x: Any, y: Any) -> str:
    """The steps of a histogram as points of a path."""
    edges = np.linspace(float(histogram["low"]), float(histogram["high"]), len(histogram["counts"]) + 1)
    points = [
        f"{x(edge):.1f},{y(share):.1f}" for share, pair in zip(shares(histogram), pairwise(edges)) for edge in pair
    ]
    return " ".join(points)


def line(x: float, name: str, kind: str, side: str, y: float) -> str:
    """A vertical line with its name above, beginning ("start") or ending ("end") at the line."""
    place = x + 3 if side == "start" else x - 3
    text = f'<text class="{kind}" x="{place:.1f}" y="{y:g}" text-anchor="{side}">{escape(name)}</text>'
    return f'<path class="{kind}" d="M{x:.1f},{y - 8:g} V{BOTTOM:g}"/>{text}'


def y_axis(floor: int, y: Any) -> list[str]:
    """A grid line for every power of ten of percent."""
    parts = []
    for power in range(floor, 3):
        height = y(10.0**power)
        parts.append(f'<path class="grid" d="M{LEFT:g},{height:.1f} H{RIGHT:g}"/>')
        parts.append(f'<text x="{LEFT - 5:g}" y="{height + 3.5:.1f}" text-anchor="end">{10.0**power:g}</text>')
    middle_y = (TOP + BOTTOM) / 2
    turn = f'x="10" y="{middle_y:g}" text-anchor="middle" transform="rotate(-90 10 {middle_y:g})"'
    return [*parts, f"<text {turn}>Share (%, log.)</text>"]


def x_axis(low: float, high: float, units: str, x: Any) -> list[str]:
    """Round numbers below the axis, and what they are."""
    step = nice_step((high - low) / 4.0)
    ticks = [step * i for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    parts = [f'<path class="axis" d="M{LEFT:g},{BOTTOM:g} H{RIGHT:g}"/>']
    for tick in ticks:
        parts.append(f'<path class="axis" d="M{x(tick):.1f},{BOTTOM:g} v4"/>')
        parts.append(f'<text x="{x(tick):.1f}" y="{BOTTOM + 16:g}" text-anchor="middle">{grouped(f"{tick:,g}")}</text>')
    name = "Intensity (HU)" if units == "HU" else "Intensity (arbitrary units)"
    return [*parts, f'<text x="{(LEFT + RIGHT) / 2:g}" y="{HEIGHT - 8:g}" text-anchor="middle">{name}</text>']


def nice_step(least: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is no smaller than `least`."""
    power = 10.0 ** math.floor(math.log10(least)) if least > 0 else 1.0
    return next(power * factor for factor in (1.0, 2.0, 5.0, 10.0) if power * factor >= least * (1 - 1e-9))
