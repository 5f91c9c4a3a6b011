"""What a translator is given of a stored pair, and the translator over a whole scan: at once where it is small, else in windows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from . import familiarity, windows
from .dataset import Dataset
from .networks.unet import padding_to
from .preprocess.window import unclipped

AT_ONCE = 2**19  # pixels of an image that the network sees whole; volumes are always cut into windows
OVERLAP = 0.5
AIR = -1.0  # around an image, encoded
BODY = -0.9  # a voxel is of the body where source or target lies above, encoded
Part = tuple[slice, ...]
WHOLE: Part = ()
MOST_CASES = 200  # training scans that say what is familiar


def translate(network: nn.Module, source: np.ndarray, patch: Sequence[int], device: torch.device) -> np.ndarray:
    """Middle, lower and upper bound for one image or volume.

    Args:
        network: see `UNet`, in evaluation mode on the device.
        source: (C, H, W) or (C, D, H, W) float32, encoded, of any size.
        patch: sides of a window, multiples of the network's step.
        device: where the network is.

    Returns:
        (3, channels, *spatial) float32, encoded, lower <= middle <= upper.
    """
    image = torch.from_numpy(np.ascontiguousarray(source, np.float32)).to(device)
    step: int = network.step  # type: ignore[assignment]
    if image.ndim == 3 and image[0].numel() <= AT_ONCE:
        return whole(network, image, step)

    def flat(windowed: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = network(windowed).flatten(1, 2)
        return out

    made = windows.predict(flat, image, patch, OVERLAP, step=step, fill=AIR)
    return made.unflatten(0, (3, -1)).cpu().numpy()


def whole(network: nn.Module, image: torch.Tensor, step: int) -> np.ndarray:
    """(C, H, W) -> (3, channels, H, W) in one pass, padded to a multiple of `step`."""
    around = padding_to(image.shape[1:], step)
    padded = F.pad(image[None], [side for pair in reversed(around) for side in pair], value=AIR)
    with torch.inference_mode():
        made = network(padded)[0].float()
    inside = tuple(slice(before, before + side) for (before, _), side in zip(around, image.shape[1:]))
    result: np.ndarray = made[(slice(None), slice(None), *inside)].cpu().numpy()
    return result


# ------------------------------------------------------------------------------------------------ stored pairs


def source_of(data: Dataset, row: int, part: Part = WHOLE) -> np.ndarray:
    """(C, *spatial) float32, encoded: a row of a dataset, or a part of it; of a 2.5-D one the slices around it are further channels."""
    rows = data.neighbours(row) if data.info.get("neighbours") else [row]
    low, high = data.columns["low"][row], data.columns["high"][row]
    return np.concatenate([unclipped(data.image(int(one))[(slice(None), *part)], low, high) for one in rows])


def target_of(data: Dataset, row: int, part: Part = WHOLE) -> np.ndarray:
    """(C', *spatial) float32, encoded: the paired image of a row, or a part of it."""
    values = data.target(row)
    assert values is not None, "a dataset of pairs"
    columns = data.columns
    return unclipped(values[(slice(None), *part)], columns["target_low"][row], columns["target_high"][row])


def body(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """(*spatial) bool: where errors count; source and target (C, *spatial) encoded."""
    return np.asarray((source > BODY).any(axis=0) | (target > BODY).any(axis=0))


def straight(line: tuple[float, float], source: np.ndarray) -> np.ndarray:
    """(1, *spatial): the target that a line (intercept, slope) makes of the middle channel."""
    middle = len(source) // 2
    return line[0] + line[1] * source[middle : middle + 1]


# ------------------------------------------------------------------------------------------------ what is familiar


def cases_of(data: Dataset, split: str) -> list[np.ndarray]:
    """The rows of each scan of a split, in order of slices."""
    rows = data.rows(split)
    cases = data.columns["case"][rows]
    each = (rows[cases == case] for case in dict.fromkeys(cases.tolist()))
    return [own[np.argsort(data.columns["slice"][own], kind="stable")] for own in each]


def case_features(data: Dataset, rows: np.ndarray) -> familiarity.Features:
    """What of a stored scan is compared with others: its values on the dataset's grid, the voxel size of its file."""
    columns = data.columns
    stored = [unclipped(data.image(int(row)), columns["low"][row], columns["high"][row]) for row in rows]
    array = np.stack(stored, 1) if stored[0].ndim == 3 else stored[0]
    found = familiarity.describe(array, None, data.info["modality"])
    spacing, crop = columns["spacing"][rows[0]], columns["crop"][rows[0]][3:]
    if not (np.isfinite(spacing).all() and (crop > 0).all()):
        return found
    # The grid spans `crop` voxels of the file; slices are never resampled in 2-D.
    own = (
        spacing * np.array(array.shape[1:]) / crop
        if data.info.get("depth")
        else np.array([spacing[0], *(spacing[1:] * array.shape[2:] / crop[1:])])
    )
    size = [round(float(extent)) for extent in np.array(array.shape[1:]) * spacing / own]
    return replace(found, size=size, spacing=[float(step) for step in own])


def familiar(data: Dataset) -> dict[str, Any]:
    """What training scans are like, and how far from them the calibration patients' lie; see `familiarity.learn`."""
    cases = cases_of(data, "train")
    chosen = cases[:: max(1, -(-len(cases) // MOST_CASES))]
    patients: dict[str, list[familiarity.Features]] = {}
    for rows in cases_of(data, "calibration"):
        patients.setdefault(str(data.columns["patient"][rows[0]]), []).append(case_features(data, rows))
    return familiarity.learn([case_features(data, rows) for rows in chosen], list(patients.values()))
