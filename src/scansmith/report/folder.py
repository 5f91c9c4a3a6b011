"""What lies in a run folder: every part read leniently, so that a report can be made of what is there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..dataset import Dataset
from ..intensity import IntensityMap
from ..runtime import derive_seed

# part -> what the page cannot show without it, and the verb that makes it.
PARTS = {
    "run.json": ("the plan and where the time went", "run"),
    "dataset/": ("the data found, the real images and the intensity histogram", "prepare"),
    "train/log.jsonl": ("quality over time", "train"),
    "train/recipe.json": ("the settings of the training", "train"),
    "train/samples/": ("the sample sheets over time", "train"),
    "model/": ("what the model knows of its data", "train"),
    "images/": ("the synthetic images and their marking", "synthesize"),
    "metrics.json": ("the verdict and the metrics", "evaluate"),
    "nearest.png": ("the closest training images", "evaluate"),
}


@dataclass(frozen=True)
class RunFolder:
    """A folder of `run`, or of `train` alone; a part that is missing or cannot be read is an empty dict or list, or None."""

    root: Path

    @cached_property
    def run(self) -> dict[str, Any]:
        return read_json(self.root / "run.json")

    @cached_property
    def metrics(self) -> dict[str, Any]:
        return read_json(self.root / "metrics.json")

    @cached_property
    def training(self) -> Path:
        """Where `train` wrote its log: OUT/train, or the folder itself where `train` made it."""
        return self.root / "train" if (self.root / "train").is_dir() else self.root

    @cached_property
    def without_pairs(self) -> dict[str, Any]:
        """Of a run that learned without pairs the kinds of scans and the pictures; empty for others."""
        return dict(self.metrics.get("unpaired") or {})

    @cached_property
    def recipe(self) -> dict[str, Any]:
        return read_json(self.training / "recipe.json")

    @cached_property
    def model_folder(self) -> Path:
        """OUT/model, or the one beside the log, where `train` put it."""
        return next(
            (place for place in (self.root / "model", self.training / "model") if place.is_dir()), self.root / "model"
        )

    @cached_property
    def model(self) -> dict[str, Any]:
        return read_json(self.model_folder / "config.json")

    @cached_property
    def images(self) -> dict[str, Any]:
        return read_json(self.root / "images" / "manifest.json")

    @cached_property
    def dataset(self) -> Dataset | None:
        try:
            return Dataset.open(self.root / "dataset")
        except (ValueError, OSError):
            return None

    @cached_property
    def log(self) -> list[dict[str, Any]]:
        """Rows of the training log that say after how many images they were written, oldest first."""
        try:
            text = (self.training / "log.jsonl").read_text()
        except (OSError, UnicodeDecodeError):
            return []
        rows = [_parse(line) for line in text.splitlines()]
        return [row for row in rows if isinstance(row.get("images"), (int, float))]

    @property
    def ticks(self) -> list[dict[str, Any]]:
        """Rows that hold measurements."""
        return [row for row in self.log if row.get("kind") == "tick"]

    @property
    def acts(self) -> list[dict[str, Any]]:
        """Rows that hold what the watchman did."""
        return [row for row in self.log if row.get("kind") == "act"]

    @cached_property
    def samples(self) -> list[Path]:
        """Sheets named by the images seen, oldest first; the reconstructions of autoencoders hold real images and are none."""
        sheets = (self.training / "samples").glob("*.png")
        return sorted((path for path in sheets if images_seen(path) is not None), key=lambda path: int(path.stem))

    @cached_property
    def nearest(self) -> Path | None:
        path = self.root / str(self.metrics.get("nearest_picture") or "nearest.png")
        return path if path.is_file() and path.resolve().is_relative_to(self.root.resolve()) else None

    def missing(self) -> list[str]:
        """Names of `PARTS` that are not there."""
        found = {
            "run.json": self.run, "dataset/": self.dataset is not None, "train/log.jsonl": self.ticks, "train/recipe.json": self.recipe,
            "train/samples/": self.samples, "model/": self.model, "images/": self.images or self.without_pairs, "metrics.json": self.metrics, "nearest.png": self.nearest,
        }  # fmt: skip
        return [part for part in PARTS if not found[part]]

    @cached_property
    def model_hash(self) -> str | None:
        """The hash that stands in the synthetic scans; without them that of the model folder."""
        from ..model import digest

        named = self.images.get("model") or (self.metrics.get("fake") or {}).get("model")
        try:
            return str(named) if named else digest(self.model_folder)
        except OSError:
            return None

    @cached_property
    def data_hash(self) -> str | None:
        """The hash of the dataset as `prepare` or the model names it."""
        named = (self.dataset.info.get("hash") if self.dataset is not None else None) or self.model.get("data_hash")
        return str(named) if named else None

    # ------------------------------------------------------------------------------------------------ images

    def real(self, rows: np.ndarray) -> list[np.ndarray]:
        """Rows of the dataset -> float32 (C, H, W) in [-1, 1], each in its own window; the middle slice of a volume."""
        assert self.dataset is not None
        return [self.dataset.intensity(int(row)).encode(middle(self.dataset.image(int(row)))) for row in rows]

    @cached_property
    def synthetic_files(self) -> list[tuple[Path, str | None]]:
        """File and class name of every synthetic scan of the manifest that lies inside the run folder."""
        result = []
        for entry in self.images.get("files", []):
            if not isinstance(entry, dict) or not entry.get("file"):
                continue
            for path in (self.root / "images" / str(entry["file"]), self.root / str(entry["file"])):
                if path.exists() and path.resolve().is_relative_to(self.root.resolve()):
                    result.append((path, self._class_name(entry.get("label"))))
                    break
        return result

    def _class_name(self, label: str | int | None) -> str | None:
        labels = self.dataset.labels if self.dataset is not None else []
        if isinstance(label, int):
            return labels[label] if 0 <= label < len(labels) else str(label)
        return str(label) if label else None

    @cached_property
    def synthetic_map(self) -> IntensityMap | None:
        """The window of the synthetic scans, physical units <-> [-1, 1]."""
        window = self.images.get("intensity") or self.model.get("intensity") or {}
        try:
            return IntensityMap(float(window["low"]), float(window["high"]), str(window.get("units", "a.u.")))
        except (KeyError, TypeError, ValueError):
            return None

    def synthetic(self, paths: list[Path]) -> list[np.ndarray]:
        """Synthetic files -> float32 (C, H, W) in [-1, 1]; the middle slice of a volume; unreadable files are left out."""
        from .. import formats

        result = []
        for path in paths:
            sources, _ = formats.discover(path)
            if not sources:
                continue
            try:
                array = formats.read(sources[0]).array
            except ValueError:
                continue
            image = array[..., array.shape[-1] // 2].transpose(0, 2, 1)
            window = self.synthetic_map or IntensityMap(
                float(array.min()), max(float(array.max()), float(array.min()) + 1.0)
            )
            result.append(window.encode(image))
        return result


def middle(image: np.ndarray) -> np.ndarray:
    """(C, H, W) as it is, (C, D, H, W) -> its middle slice."""
    return image[:, image.shape[1] // 2] if image.ndim == 4 else image


def draw(seed: int, purpose: str, total: int, count: int) -> np.ndarray:
    """`count` of `total` places at random, the same for the same seed and purpose, in ascending order."""
    generator = np.random.default_rng(derive_seed(seed, "report", purpose))
    return np.sort(generator.permutation(total)[:count])


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one when the file is missing, cut off or holds something else."""
    try:
        return _parse(path.read_text())
    except (OSError, UnicodeDecodeError):
        return {}


def _parse(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return value if isinstance(value, dict) else {}


def images_seen(path: Path) -> int | None:
    """The number of images seen that names a sample sheet; None of other pictures."""
    return int(path.stem) if path.stem.isdecimal() else None
