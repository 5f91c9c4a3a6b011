"""nearest.png: the closest pairs side by side, with their difference on its own scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np


def align(image: np.ndarray, mirrored: bool, shift: tuple[int, int], reduced: int) -> np.ndarray:
    """(C, H, W) training image, mirrored and moved as its comparison found best; `shift` counts in pixels of `reduced` a side."""
    scale = max(1.0, max(image.shape[-2:]) / reduced)
    rows, columns = (round(step * scale) for step in shift)
    image = image[..., ::-1] if mirrored else image
    padded = np.pad(image, ((0, 0), (abs(rows),) * 2, (abs(columns),) * 2), mode="edge")
    height, width = image.shape[-2:]
    return padded[:, abs(rows) - rows : abs(rows) - rows + height, abs(columns) - columns : abs(columns) - columns + width]


def draw_pairs(path: Path, pairs: list[tuple[np.ndarray, np.ndarray, str, float]]) -> None:
    """Two columns of rows: synthetic | nearest training image | difference, which has its own scale.

    Args:
        path: PNG to write.
        pairs: (synthetic (C, H, W), training (C, H, W), caption, similarity), images in [-1, 1].
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(pairs) > 1 else 1
    rows = -(-len(pairs) // columns)
    aspect = pairs[0][0].shape[-2] / pairs[0][0].shape[-1]
    figure = Figure(figsize=(4.5 * columns, (1.4 * aspect + 0.42) * rows + 0.3), dpi=100, layout="constrained")
    blocks = np.atleast_1d(figure.subfigures(1, columns, wspace=0.06))
    for column, block in enumerate(blocks):
        axes = block.subplots(rows, 3, squeeze=False)
        for row in range(rows):
            number = column * rows + row
            for axis in axes[row]:
                axis.set_axis_off()
            if number < len(pairs):
                draw_row(block, axes[row], *pairs[number])
    canvas = FigureCanvasAgg(figure)
    canvas.print_png(str(path))


def draw_row(figure: object, axes: np.ndarray, fake: np.ndarray, train: np.ndarray, caption: str, similarity: float) -> None:
    """One pair with its captions and the scale of its difference."""
    difference = (fake - train).mean(axis=0)
    # At least two grey levels in 255: the difference of exact copies stays blank instead of showing rounding.
    largest = max(float(np.abs(difference).max()), 4.0 / 255.0)
    for axis, image in zip(axes[:2], (fake, train)):
        shown = (np.clip(image, -1.0, 1.0).transpose(1, 2, 0) + 1.0) / 2.0
        axis.imshow(shown[..., 0] if shown.shape[-1] != 3 else shown, cmap="gray", vmin=0, vmax=1)
    drawn = axes[2].imshow(difference / 2.0, cmap="RdBu_r", vmin=-largest / 2.0, vmax=largest / 2.0)
    bar = axes[2].figure.colorbar(drawn, ax=axes[2], fraction=0.05, pad=0.03, ticks=[-largest / 2.0, 0.0, largest / 2.0], format="%+.2f")
    bar.ax.tick_params(labelsize=6, length=2)
    bar.outline.set_visible(False)
    for axis, text in zip(axes, (f"synthetic {caption.split('|')[0]}", f"training {caption.split('|')[1]}, r = {similarity:.3f}", "difference")):
        axis.set_title(text, fontsize=7, pad=2)
