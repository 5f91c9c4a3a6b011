"""OUT/translation/: held-out scans beside their translations, where no pair says what is true."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from .. import inference
from ..dataset import Dataset
from ..intensity import IntensityMap
from ..model import Model
from ..pairings import Pairing, cases_of
from ..pairings.base import BODY
from ..runtime import choose_device, write_atomic
from .panels import FOLDER, MOST, Panel, aspect_of, ends, sheet, short


def drawn_beside(data: Dataset, other: Dataset, model: Model, out: Path, device_name: str = "auto") -> dict[str, Any]:
    """Held-out sources in their middle, what the model makes of them, and some held-out scans of the wished kind.

    Args:
        data, other: the datasets that the model learned from.
        model: one that was learned without pairs.
        out: folder, which gets translation/beside-1.png ...
        device_name: see `choose_device`.

    Returns:
        {"source", "target": modalities; "pictures": [{"file" below OUT, "patient", "words"}]}.
    """
    settings, device = model.config["translation"], choose_device(device_name)
    model.generator.to(device)
    kinds = {side: str(settings[side]["modality"]) for side in ("source", "target")}
    sources, wished, found = Pairing(data), middles(other), []
    for number, row in enumerate(middles(data)):
        source = sources.source(row)
        made = inference.translate(model.generator, source, settings["patch"], device)[0]
        panels = [
            panel(f"Source ({kinds['source']})", sources.middle(source), data.intensity(row)),
            panel(f"SYNTHETIC {kinds['target']}", made, model.intensity),
        ]
        if wished:
            real = wished[number % len(wished)]
            window = other.intensity(real)
            panels.append(panel(f"Some real {kinds['target']}", window.encode(other.image(real)), window))
        patient = str(data.columns["patient"][row])
        words, name = f"patient {patient}, middle of the scan", f"{FOLDER}/beside-{number + 1}.png"
        write_atomic(out / name, sheet(panels, f"{words}. SYNTHETIC, not for diagnosis.", aspect_of(data.columns["spacing"][row])))  # fmt: skip
        found.append({"file": name, "patient": patient, "words": words})
    return {**kinds, "pictures": found}


def middles(data: Dataset) -> list[int]:
    """Rows in the middle of some held-out scans, of validation ones where nothing is held out."""
    rows = next((rows for name in ("holdout", "validation") if len(rows := data.rows(name))), np.zeros(0, np.int64))
    cases = cases_of(data, rows)
    chosen = np.unique(np.linspace(0, len(cases) - 1, min(MOST, len(cases))).astype(int)).tolist()
    return [int(cases[number][len(cases[number]) // 2]) for number in chosen]


def panel(title: str, encoded: np.ndarray, window: IntensityMap) -> Panel:
    """A slice of an encoded image (C, *spatial), shown between the values that most of it has above background."""
    plane = encoded[0] if encoded.ndim == 3 else encoded[0, encoded.shape[1] // 2]
    low, high = ends(plane[plane > BODY])
    first, last = ((one + 1.0) / 2.0 * (window.high - window.low) + window.low for one in (min(low, -1.0), high))
    return f"{title}\n{short(first)} to {short(last)} {window.units}", plane, {"cmap": "gray", "vmin": min(low, -1.0), "vmax": high}  # fmt: skip
