"""evaluate: real and synthetic scans -> metrics.json, every number beside the real/real floor, and a verdict in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def evaluate(
    real: Path,
    fake: Path,
    out: Path,
    *,
    train: Path | None = None,
    draws: int = 20,
    limit: int = 1000,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Compare synthetic scans with real ones and say in words how far they can be trusted.

    Every number stands beside its floor: the same number for real scans that were set aside, so that the question is
    always "more than two sets of real scans differ?". Real scans are best a prepared dataset: its holdout is what the
    synthetic scans are compared with, its training scans give the floor and are searched for copies. Other
    folders are halved at random for the floor. OUT gets metrics.json and nearest.png.

    Args:
        real: prepared dataset, or folder of scans.
        fake: folder of synthetic scans, of any scans, or a prepared dataset; or a model that translates, which then
            translates the held-out pairs of the dataset `real`.
        out: folder for metrics.json and nearest.png.
        train: the scans the model learned from, a dataset or a folder; default: the training split of `real`.
        draws: random draws of scans that give the intervals (5th to 95th percentile).
        limit: most scans a side in one draw.
        seed: the same seed and files give the same numbers.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        The content of metrics.json.

    Raises:
        ValueError: there are no scans in a folder, or the channels of real and synthetic scans differ.
    """
    if (Path(fake) / "config.json").is_file():
        from ..dataset import Dataset
        from ..model import load
        from .segmentation import evaluate_segmentation
        from .translation import evaluate_translation

        model = load(fake)
        masks = (model.config.get("translation") or {}).get("output") == "mask"
        judge = evaluate_segmentation if masks else evaluate_translation
        return judge(Dataset.open(real), model, Path(out), device, seed)
    from .verdict import evaluate as implementation

    return implementation(
        Path(real), Path(fake), Path(out), None if train is None else Path(train), draws, limit, seed, device
    )
