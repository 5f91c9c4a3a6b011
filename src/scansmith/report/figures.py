"""Figures of the report: contact sheets as PNG, charts as SVG whose colours follow the page (light, dark, print)."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL import Image as Picture

# Charts are drawn in these colours, which the page then exchanges for its own (style.css), so that dark mode reaches them.
COLOURS = {
    "ink": "#101418",
    "muted": "#5b6670",
    "grid": "#dde2e7",
    "paper": "#fdfdfe",
    "real": "#1f5fa8",
    "synthetic": "#b4540a",
    # Further lines of one chart.
    "third": "#2a7d46",
    "fourth": "#7d3f98",
    "fifth": "#8a6d03",
    "sixth": "#b0305c",
}
RC = {
    "svg.fonttype": "none", "svg.hashsalt": "scansmith", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9.0, "axes.titlesize": 9.0, "axes.labelsize": 9.0, "xtick.labelsize": 8.5, "ytick.labelsize": 8.5,
    "legend.fontsize": 8.5, "legend.frameon": False, "lines.linewidth": 1.5, "axes.linewidth": 0.8,
    "text.color": COLOURS["ink"], "axes.labelcolor": COLOURS["ink"], "axes.edgecolor": COLOURS["muted"],
    "xtick.color": COLOURS["muted"], "ytick.color": COLOURS["muted"], "grid.color": COLOURS["grid"], "grid.linewidth": 0.7,
    "axes.spines.top": False, "axes.spines.right": False, "figure.facecolor": "none", "axes.facecolor": "none",
    "axes.formatter.useoffset": False, "axes.unicode_minus": True,
}  # fmt: skip
TILE = 128  # longest side of one image in a contact sheet, pixels
GAP = 3


# ------------------------------------------------------------------------------------------------ pictures


def display(encoded: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> uint8 (H, W), or (H, W, 3) for three channels; other counts show the first channel."""
    gray = np.rint((np.clip(encoded, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8)
    return np.ascontiguousarray(gray.transpose(1, 2, 0)) if len(gray) == 3 else gray[0]


def contact_sheet(tiles: Sequence[np.ndarray], columns: int, synthetic: bool) -> str:
    """Equal uint8 tiles (H, W) or (H, W, 3), row by row, as a PNG data address; the gaps are transparent."""
    from PIL import Image

    height, width = tiles[0].shape[:2]
    rows = -(-len(tiles) // columns)
    size = (rows * (height + GAP) - GAP, columns * (width + GAP) - GAP)
    colour = tiles[0].shape[2:]
    canvas = np.zeros((*size, (colour[0] if colour else 1) + 1), np.uint8)
    for index, tile in enumerate(tiles):
        top, left = index // columns * (height + GAP), index % columns * (width + GAP)
        canvas[top : top + height, left : left + width, :-1] = tile.reshape(height, width, -1)
        canvas[top : top + height, left : left + width, -1] = 255
    return png(Image.fromarray(canvas, "RGBA" if colour else "LA"), synthetic)


def png(picture: Picture.Image, synthetic: bool) -> str:
    """A picture as a PNG data address; a synthetic one says so in a text chunk (EU AI Act, Art. 50(2))."""
    from PIL.PngImagePlugin import PngInfo

    marking = PngInfo()
    if synthetic:
        marking.add_text("SyntheticData", "YES")
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, pnginfo=marking)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def shrink(path: Path, width: int, height: int, synthetic: bool) -> str:
    """A picture file as a PNG data address, without the file's own metadata, at most `width` by `height` pixels.

    Raises:
        OSError: the file is no picture.
    """
    from PIL import Image

    with Image.open(path) as opened:
        picture = opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    factor = min(width / picture.width, height / picture.height)
    if factor < 1.0:
        size = max(1, round(picture.width * factor)), max(1, round(picture.height * factor))
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    return png(picture, synthetic)


def pictures(root: Path, entries: Sequence[Any], most: tuple[int, int]) -> Iterator[dict[str, str]]:
    """{"image", "words"} of pictures that an evaluation named; what is no picture below the folder is left out."""
    for entry in entries:
        entry = entry if isinstance(entry, dict) else {"file": entry}
        path = root / str(entry.get("file"))
        if not path.resolve().is_relative_to(root.resolve()):
            continue
        try:
            yield {"image": shrink(path, *most, synthetic=True), "words": str(entry.get("words") or "")}
        except OSError:
            continue


# ------------------------------------------------------------------------------------------------ charts


def _figure(width: float, height: float, left: float = 0.6, top: float = 0.08) -> tuple[Figure, Axes]:
    """An empty chart; sizes and margins in inches, fixed so that the axes of all charts line up."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height))
    return figure, figure.add_axes(
        (left / width, 0.48 / height, (width - left - 0.12) / width, (height - 0.48 - top) / height)
    )


def svg(figure: Figure, name: str, words: str) -> Markup:
    """A figure as inline SVG: the page's colours, identifiers that no other figure of the page has, no metadata."""
    file = io.StringIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\s(xmlns|xmlns:xlink|version)="[^"]*"', "", text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = (
        re.sub(r'\bid="', f'id="{name}-', text)
        .replace('xlink:href="#', f'href="#{name}-')
        .replace("url(#", f"url(#{name}-")
    )
    text = re.sub(r"font: ([\d.]+)px '[^']*'[^;\"]*", r"font-size: \1px", text)
    for role, colour in COLOURS.items():
        text = text.replace(colour, f"var(--{role})")
    size = re.search(r'width="([\d.]+)pt" height="([\d.]+)pt"', text)
    assert size is not None
    # 4/3 CSS pixels a point: the chart is never drawn larger than planned, so all charts share one letter size.
    head = f'style="max-width:{float(size[1]) * 4 / 3:.0f}px" role="img" aria-label="{Markup.escape(words)}"'
    return Markup(text.replace(size[0], head, 1))


def lines(
    name: str,
    words: str,
    x_label: str,
    y_label: str,
    series: list[dict[str, Any]],
    reference: float | None = None,
    log: bool = False,
    marks: Sequence[float] = (),
    size: tuple[float, float] = (3.5, 2.5),
) -> Markup:
    """A line chart.

    Args:
        name: unique on the page.
        words: what it shows, for those who cannot see it.
        series: {"label" (None: not in the legend), "x", "y", "colour" (a role of `COLOURS`), "dashed", "step"}.
        reference: a horizontal line, for example 1 where synthetic and real would be alike.
        log: logarithmic y axis.
        marks: places on the x axis where something happened, each a thin vertical line.
        size: width and height in inches.
    """
    from matplotlib import rc_context

    with rc_context(RC):
        # Tick labels such as 0.0001 are wide.
        named = sum(one["label"] is not None for one in series)
        columns = max(1, min(named, round(size[0] / 1.5)))
        top = 0.3 * -(-named // columns) if named > 1 else 0.08
        figure, axes = _figure(*size, left=0.8 if log else 0.6, top=top)
        for one in series:
            options: dict[str, Any] = {
                "color": COLOURS[one["colour"]],
                "linestyle": "--" if one.get("dashed") else "-",
                "label": one["label"] or "_",
            }
            if one.get("step"):
                axes.stairs(one["y"], one["x"], baseline=None, linewidth=1.5, **options)
            else:
                axes.plot(one["x"], one["y"], marker="o" if len(one["x"]) < 25 else "", markersize=3, **options)
        if log:
            axes.set_yscale("log")
            _plain_log_ticks(axes.yaxis)
        if reference is not None:
            axes.axhline(reference, color=COLOURS["muted"], linewidth=1.0, linestyle=":")
        for mark in marks:
            axes.axvline(mark, color=COLOURS["muted"], linewidth=0.8, linestyle=(0, (4, 2)), zorder=0)
        axes.grid(axis="y")
        axes.set(xlabel=x_label, ylabel=y_label)
        if named > 1:
            figure.legend(loc="upper right", ncols=columns, borderaxespad=0.0)
        return svg(figure, name, words)


def _plain_log_ticks(axis: Any) -> None:
    """Ticks such as 0.1, 2 and 50 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    near = high / max(low, 1e-12) < 60.0
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if near else (1.0,)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(NullFormatter())


def ratios(
    name: str,
    words: str,
    rows: list[dict[str, Any]],
    x_label: str = "Distance ÷ real/real floor (log.)",
    reference: float | None = 1.0,
    log: bool = True,
    width: float = 4.4,
) -> Markup:
    """A forest plot: one number a row, by default a distance as a multiple of what two halves of the real data differ by.

    Args:
        rows: {"title", "ratio", "low", "high"}; low and high None without an interval.
        x_label: what the numbers are.
        reference: a dotted vertical line at what real data give; None draws none.
        log: logarithmic x axis; else it begins at 0.
        width: in inches.
    """
    from matplotlib import rc_context

    with rc_context(RC):
        figure, axes = _figure(width, 0.6 + 0.42 * len(rows), left=0.08)
        for place, row in enumerate(rows):
            if row["low"] is not None:
                axes.plot([row["low"], row["high"]], [place, place], color=COLOURS["synthetic"], solid_capstyle="butt")
            axes.plot([row["ratio"]], [place], marker="s", markersize=5, color=COLOURS["synthetic"])
            # The name stands above its row, so that the figure stays narrow enough for a phone.
            box = {"facecolor": COLOURS["paper"], "edgecolor": "none", "pad": 1.0}
            where: dict[str, Any] = {
                "transform": axes.get_yaxis_transform(),
                "va": "center",
                "parse_math": False,
                "bbox": box,
            }
            axes.text(0.0, place - 0.34, row["title"], **where)
        if reference is not None:
            axes.axvline(reference, color=COLOURS["real"], linewidth=1.2, linestyle=":")
        axes.set_yticks([])
        axes.set_ylim(len(rows) - 0.6, -0.7)
        edges = [edge for row in rows for edge in (row["low"], row["high"], row["ratio"]) if edge]
        if log:
            axes.set_xscale("log")
            axes.set_xlim(min([0.5, *edges]) * 0.8, max([2.0, *edges]) * 1.25)
            _plain_log_ticks(axes.xaxis)
        else:
            right = max([*edges, reference or 0.0]) or 1.0
            axes.set_xlim(-0.03 * right, 1.08 * right)  # a mark at 0 is seen whole
        axes.spines["left"].set_visible(False)
        axes.grid(axis="x")
        axes.set_xlabel(x_label)
        return svg(figure, name, words)


def bars(name: str, words: str, x_label: str, rows: list[dict[str, Any]]) -> Markup:
    """Horizontal bars of minutes spent with a mark where the plan was.

    Args:
        rows: {"title", "value", "planned"}; planned None when there was no plan.
    """
    from matplotlib import rc_context

    with rc_context(RC):
        figure, axes = _figure(
            4.2, 0.8 + 0.3 * len(rows), left=0.2 + 0.08 * max(len(row["title"]) for row in rows), top=0.3
        )
        places = np.arange(len(rows))
        axes.barh(places, [row["value"] for row in rows], height=0.56, color=COLOURS["real"], label="spent")
        planned = [
            (place, row["planned"]) for place, row in zip(places, rows, strict=True) if row["planned"] is not None
        ]
        if planned:
            axes.plot(
                [value for _, value in planned],
                [place for place, _ in planned],
                linestyle="",
                marker="|",
                markersize=15,
                markeredgewidth=2.0,
                color=COLOURS["synthetic"],
                label="planned",
            )
            figure.legend(loc="upper right", ncols=2, borderaxespad=0.0)
        axes.set_yticks(places, [row["title"] for row in rows])
        axes.tick_params(axis="y", length=0, labelcolor=COLOURS["ink"])
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(x_label)
        return svg(figure, name, words)
