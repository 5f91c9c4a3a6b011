"""nearest.png: the closest pairs side by side, with their difference on its own scale."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image as Picture
from PIL import ImageDraw, ImageFont

# Pixels: longest side of a picture, height of its caption, distance to the next.
SHOWN, CAPTION, GAP = 144, 20, 8


def align(image: np.ndarray, mirrored: bool, shift: tuple[int, int], reduced: int, unmirrored: int = 0) -> np.ndarray:
    """(C, H, W) training image, mirrored and moved as its comparison found best; `shift` counts in pixels of `reduced` a side.

    The last `unmirrored` channels are not mirrored: central sagittal slices.
    """
    scale = max(1.0, max(image.shape[-2:]) / reduced)
    rows, columns = (round(step * scale) for step in shift)
    if mirrored:
        turned = len(image) - unmirrored
        image = np.concatenate([image[:turned, :, ::-1], image[turned:]])
    padded = np.pad(image, ((0, 0), (abs(rows),) * 2, (abs(columns),) * 2), mode="edge")
    height, width = image.shape[-2:]
    return padded[
        :, abs(rows) - rows : abs(rows) - rows + height, abs(columns) - columns : abs(columns) - columns + width
    ]


def draw_pairs(path: Path, pairs: list[tuple[np.ndarray, np.ndarray, str, str, float]]) -> None:
    """Two columns of rows (of volumes one): synthetic | nearest training image | difference, which has its own scale.

    Args:
        path: PNG to write.
        pairs: (synthetic (C, H, W), training (C, H, W), name of either, similarity), images in [-1, 1].
    """
    height, width = pairs[0][0].shape[-2:]
    wide = width > 2 * height  # the three slices of a volume, side by side
    columns = 2 if len(pairs) > 1 and not wide else 1
    rows = -(-len(pairs) // columns)
    longest = 2 * SHOWN if wide else SHOWN
    height, width = round(height * longest / max(height, width)), round(width * longest / max(height, width))
    row_height, column_width = height + CAPTION + GAP, 3 * (width + GAP) + 3 * GAP
    sheet = Picture.new("RGB", (column_width * columns - 3 * GAP, row_height * rows), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (fake, train, fake_name, train_name, similarity) in enumerate(pairs):
        left, top = column_width * (number // rows), row_height * (number % rows)
        difference, largest = difference_colours(fake, train)
        captions = (
            f"synthetic {fake_name}, r = {similarity:.3f}",
            f"training {train_name}",
            f"difference, up to {100 * largest:.0f} %",
        )
        for place, (image, caption) in enumerate(zip((grey_or_rgb(fake), grey_or_rgb(train), difference), captions)):
            x = left + place * (width + GAP)
            pen.text((x, top + 2), caption, fill="#333333", font=font)
            shown = Picture.fromarray(image).resize(
                (width, height), Picture.Resampling.NEAREST if max(image.shape) < longest else Picture.Resampling.BOX
            )
            sheet.paste(shown, (x, top + CAPTION))
            pen.rectangle((x, top + CAPTION, x + width - 1, top + CAPTION + height - 1), outline="#cccccc")
    sheet.save(path, format="PNG")


def grey_or_rgb(image: np.ndarray) -> np.ndarray:
    """(C, H, W) in [-1, 1] -> (H, W, 3) uint8."""
    shown = np.rint((np.clip(image, -1.0, 1.0) + 1.0) * 127.5).astype(np.uint8).transpose(1, 2, 0)
    return shown if shown.shape[-1] == 3 else np.repeat(shown[..., :1], 3, axis=-1)


def difference_colours(fake: np.ndarray, train: np.ndarray) -> tuple[np.ndarray, float]:
    """The difference as (H, W, 3) uint8, red where the synthetic one is brighter, blue where darker; and what full colour means.

    Full colour is the largest difference, as a share of the intensity window, but at least 1 %: exact copies stay white.
    """
    difference = (fake - train).mean(axis=0, dtype=np.float64) / 2.0
    largest = max(float(np.abs(difference).max()), 0.01)
    strength = (np.abs(difference) / largest)[..., None]
    colour = np.where((difference > 0)[..., None], (178.0, 24.0, 43.0), (33.0, 102.0, 172.0))
    return np.rint(255.0 + strength * (colour - 255.0)).astype(np.uint8), largest
