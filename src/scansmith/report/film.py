"""The training film: the sample sheets of a fixed latent grid, one frame each, as an animated picture inside the page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .folder import images_seen

if TYPE_CHECKING:
    from PIL import Image as Picture

COLUMNS = 8  # of a sample sheet
FEWEST_COLUMNS = 4  # of a sheet whose images are too large to show eight of them side by side
WIDEST = 528  # pixels: 8 images of 64 and their gaps
STRIP = 22  # pixels under the sheet, for the number of images seen
MOST_FRAMES = 36
FRAME_MS, LAST_MS = 350, 2500
MOST_BYTES = 1_500_000
# (side, WebP quality), the first that keeps the film small enough is taken: noise at the start is what costs most.
STEPS = ((1.0, 72), (1.0, 40), (0.75, 30), (0.5, 25), (0.33, 20))
MARKING = "SyntheticData=YES. SYNTHETIC, not for diagnosis."


def film(sheets: Sequence[Path]) -> dict[str, Any] | None:
    """Sample sheets, oldest first -> {"moving", "still": data addresses, "frames", "first", "last": images seen}.

    The still is the last frame, for print and for readers who asked for less motion. None with fewer than two sheets
    that can be read.
    """
    kept = [sheets[round(i)] for i in spaced(len(sheets), MOST_FRAMES)]
    numbers = [images_seen(path) or 0 for path in kept]
    frames, seen = [], []
    for path, number in zip(kept, numbers, strict=True):
        try:
            frames.append(frame(path, number, max(numbers)))
        except (OSError, ValueError):
            continue
        seen.append(number)
    # A sheet of another size belongs to another training in the same folder.
    same = [i for i, picture in enumerate(frames) if picture.size == frames[-1].size]
    frames, seen = [frames[i] for i in same], [seen[i] for i in same]
    if len(frames) < 2:
        return None
    return {
        "moving": small_enough(frames),
        "still": encode(frames[-1:], 1.0, 80),
        "frames": len(frames),
        "first": seen[0],
        "last": seen[-1],
    }


def spaced(count: int, most: int) -> list[float]:
    """At most `most` of `count` places, evenly spaced, first and last among them."""
    if count <= most:
        return [float(i) for i in range(count)]
    return [i * (count - 1) / (most - 1) for i in range(most)]


def frame(path: Path, number: int, last: int) -> Picture.Image:
    """One sheet, cropped to columns that can be seen, with the images seen and the progress of the run under it.

    Raises:
        OSError: the file is no picture.
    """
    from PIL import Image as Picture
    from PIL import ImageDraw, ImageFont

    with Picture.open(path) as opened:
        sheet = opened.convert("L" if opened.mode in ("1", "L", "LA") else "RGB")
    step = sheet.width / COLUMNS
    columns = min(COLUMNS, max(FEWEST_COLUMNS, int(WIDEST / step)))
    sheet = sheet.crop((0, 0, max(1, round(columns * step)), min(sheet.height, max(1, round(columns * step)))))
    if sheet.width != WIDEST:
        # Small images are enlarged without smoothing, so that a pixel stays a pixel.
        way = Picture.Resampling.LANCZOS if sheet.width > WIDEST else Picture.Resampling.NEAREST
        sheet = sheet.resize((WIDEST, max(1, round(sheet.height * WIDEST / sheet.width))), way)
    canvas = Picture.new(sheet.mode, (WIDEST, sheet.height + STRIP))
    canvas.paste(sheet, (0, 0))
    pen = ImageDraw.Draw(canvas)
    white = 255 if canvas.mode == "L" else (255, 255, 255)
    grey = 110 if canvas.mode == "L" else (110, 110, 110)
    pen.text((4, sheet.height + 3), f"{number:,} images seen", fill=white, font=ImageFont.load_default(size=13))
    left, right, middle = WIDEST // 2, WIDEST - 6, sheet.height + STRIP // 2
    pen.line((left, middle, right, middle), fill=grey, width=2)
    pen.line((left, middle, left + (right - left) * number // max(last, 1), middle), fill=white, width=4)
    return canvas


def small_enough(frames: Sequence[Picture.Image]) -> str:
    """The animation as a data address of at most `MOST_BYTES`, or as small as the last of `STEPS` makes it."""
    address = ""
    for scale, quality in STEPS:
        address = encode(frames, scale, quality)
        if len(address) <= MOST_BYTES:
            break
    return address


def encode(frames: Sequence[Picture.Image], scale: float, quality: int) -> str:
    """Frames as a data address: WebP, or GIF where Pillow was built without it; the file says that it is synthetic."""
    from PIL import Image as Picture
    from PIL import features

    size = round(frames[0].width * scale), round(frames[0].height * scale)
    shown = [one if one.size == size else one.resize(size, Picture.Resampling.BOX) for one in frames]
    file = io.BytesIO()
    times = [FRAME_MS] * (len(shown) - 1) + [LAST_MS]
    if features.check("webp"):
        exif = Picture.Exif()
        exif[0x010E] = MARKING  # ImageDescription
        options: dict[str, Any] = {"quality": quality, "method": 0, "exif": exif}
        kind = "webp"
    else:
        options, kind = {"comment": MARKING}, "gif"
    if len(shown) > 1:
        options |= {"save_all": True, "append_images": shown[1:], "duration": times, "loop": 0}
    shown[0].save(file, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(file.getvalue()).decode()
