"""Verb `train`: prepared dataset -> run folder with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def train(
    dataset: Path,
    run: Path,
    *,
    minutes: float = 15.0,
    recipe: str = "relativistic",
    side: int | None = None,
    images: int | None = None,
    model: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Train a generator on a prepared dataset; the same command goes on after Ctrl-C or a kill.

    A short probe times real steps on this machine, then fixes image size, precision, length and schedules in
    RUN/recipe.json. While training, RUN/log.jsonl, RUN/events (TensorBoard) and RUN/samples grow.

    Args:
        dataset: folder made by `scansmith prepare`.
        run: folder for everything the training writes.
        minutes: wall time granted, the probe included.
        recipe: how to train; "relativistic" is the default family.
        side: longer side of the images in pixels; default: the largest that the minutes allow.
        images: images to show in all, in place of what the minutes allow (for comparable runs).
        model: where the model folder goes; default RUN/model.
        seed: the same seed, data and machine give the same model.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"model", "hash", "images", "seconds", "cut", "grid", "plan"}.

    Raises:
        ValueError: no dataset, no training images, an unknown recipe, or a folder with another run in it.
        Interrupted: Ctrl-C; the checkpoint is written.
    """
    from .stage import run_training

    return run_training(
        Path(dataset),
        Path(run),
        minutes,
        recipe,
        side,
        images,
        Path(model) if model else Path(run) / "model",
        seed,
        device,
    )
