"""Verb `train`: prepared dataset -> run folder with a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal


def train(
    dataset: Path,
    run: Path,
    *,
    minutes: float = 15.0,
    task: Literal["auto", "make", "paired", "unpaired", "denoise", "superresolve", "segment", "paint"] = "auto",
    to: Path | None = None,
    size: Literal["auto", "tiny", "small", "base", "large"] = "auto",
    recipe: str = "auto",
    side: int | None = None,
    images: int | None = None,
    from_: Path | None = None,
    seed: int = 0,
    device: str = "auto",
) -> dict[str, Any]:
    """Train a generator on a prepared dataset; the same command goes on after Ctrl-C or a kill.

    A short probe times real steps on this machine, then fixes network size, image size, batch, precision, length and
    schedules in RUN/recipe.json and prints them with reasons. While training, RUN/log.jsonl, RUN/events (TensorBoard) and
    RUN/samples grow, and a watchman acts when the run goes wrong. The model is RUN/model. Started by torchrun, all
    processes train one model.

    Args:
        dataset: folder made by `scansmith prepare`; 2-D images or volumes.
        run: folder for everything the training writes.
        minutes: wall time granted, the probe included.
        task: make more such scans; translate paired ones; translate to the scans of another dataset without pairs (unpaired);
            denoise or superresolve, also from good scans alone; segment, from scans with masks, or paint scans from masks; auto
            is paired where scans are, unpaired with `to`, else make.
        to: for unpaired, the prepared dataset of scans to translate to.
        size: of the networks; "auto" lets minutes and machine decide.
        recipe: how to train: relativistic (makes scans; the best), dense, dcgan, minimax, non_saturating, least_squares, hinge,
            wasserstein, vae or autoencoder; fidelity (translates by regression); segment; auto takes the usual one of the task.
        side: longer side of the images in pixels; default: the largest that the minutes allow.
        images: images to show in all, in place of what the minutes allow (for comparable runs).
        from_: model folder, or run folder with its discriminator too, to start from: a help when scans or minutes are few.
        seed: the same seed, data and machine give the same model.
        device: "auto", "cpu", "cuda" or "cuda:1".

    Returns:
        {"model", "hash", "images", "seconds", "cut", "quality", "grid", "plan", "acts"}.

    Raises:
        ValueError: no dataset, no training images, an unknown recipe, too little memory, or a folder with another run.
        Interrupted: Ctrl-C; the checkpoint is written.
        RuntimeError: the watchman ended a hopeless run; the message says what to do.
    """
    from .stage import Wish, run_training

    wish = Wish(
        minutes, recipe, size, side, images, seed, Path(from_) if from_ else None, task, Path(to) if to else None
    )
    return run_training(Path(dataset), Path(run), wish, device)
