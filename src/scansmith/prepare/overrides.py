"""Choices: what the user decides instead of the plan; everything that is left out is chosen from the scans."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..dataset import SPLITS

if TYPE_CHECKING:
    from .fingerprint import Plan

Crop = Literal["none", "body", "brain", "foreground"]
CROPS = get_args(Crop)


@dataclass(frozen=True)
class Choices:
    """The user's choices; None leaves one to the plan.

    Attributes:
        dimensions: 2 (slices), 2.5 (slices with their neighbours), or 3 (volumes).
        neighbours: for 2.5, slices on each side.
        depth, height, width: grid of the stored rows in voxels; depth for 3 dimensions alone.
        spacing: their voxel size in mm, (row, column) or (slice, row, column).
        crop: "none", "body", "brain" or "foreground".
        window: (low, high) in physical units for every scan.
        percentiles: (low, high) for each MR or X-ray scan's own window.
        bias_field: True takes out the shading of MR scans (N4).
        match_histogram: True brings MR histograms to one standard scale, learned from training patients.
        dtype: of the stored values.
        skip_masks: False keeps label maps that lie among the scans as scans.
        fractions: split -> its share of the patients.
        splits: CSV table with the columns split and one of patient or file: official splits.
    """

    dimensions: float | None = None
    neighbours: int | None = None
    depth: int | None = None
    height: int | None = None
    width: int | None = None
    spacing: tuple[float, ...] | None = None
    crop: Crop | None = None
    window: tuple[float, float] | None = None
    percentiles: tuple[float, float] | None = None
    bias_field: bool | None = None
    match_histogram: bool | None = None
    dtype: str | None = None
    skip_masks: bool | None = None
    fractions: tuple[tuple[str, float], ...] | None = None
    splits: str | None = None

    def made(self) -> dict[str, Any]:
        """The choices that the user made, as plain values."""
        return {one.name: getattr(self, one.name) for one in fields(self) if getattr(self, one.name) is not None}


def choices_of(plan: Plan | Choices | Mapping[str, Any] | Path | str | None) -> Choices:
    """The user's choices from a `Plan`, a mapping, a JSON file or JSON text.

    Raises:
        ValueError: an unknown name, or a value that is none of its kind.
    """
    if plan is None:
        return Choices()
    if isinstance(plan, Choices):
        return plan
    if not isinstance(plan, (Mapping, Path, str)):
        return _of_plan(plan)
    wished = plan if isinstance(plan, Mapping) else _read(plan)
    known = [one.name for one in fields(Choices)]
    unknown = sorted(set(wished) - set(known))
    if unknown:
        raise ValueError(f"expected choices of {', '.join(known)} in the plan, got {', '.join(map(repr, unknown))}")
    given = {name: _CHECKS[name](name, value) for name, value in wished.items() if value is not None}
    return _agree(Choices(**given))


def _agree(choices: Choices) -> Choices:
    if choices.depth is not None and choices.dimensions not in (None, 3):
        raise ValueError(f"expected no depth in the plan with dimensions {choices.dimensions}, got {choices.depth}")
    if choices.neighbours and choices.dimensions not in (None, 2.5):
        raise ValueError(f"expected neighbours in the plan with dimensions 2.5, got dimensions {choices.dimensions}")
    return replace(choices, dimensions=2.5) if choices.neighbours else choices


def _of_plan(plan: Plan) -> Choices:
    """All choices of a plan, for example one that `scansmith.prepare.plan` made and `dataclasses.replace` changed."""
    return Choices(
        dimensions=3 if plan.stored_dimensions == 3 else 2.5 if plan.neighbours else 2,
        neighbours=plan.neighbours or None,
        depth=plan.depth,
        height=plan.height,
        width=plan.width,
        spacing=plan.spacing,
        crop=plan.crop,
        window=plan.window,
        percentiles=plan.percentiles,
        bias_field=plan.bias_field,
        match_histogram=plan.landmarks is not None,
        dtype=plan.dtype,
        skip_masks=plan.skip_masks,
        fractions=plan.fractions,
        splits=plan.splits,
    )


def _read(plan: Path | str) -> Mapping[str, Any]:
    text = str(plan)
    if not text.lstrip().startswith("{"):
        file = Path(text)
        if not file.is_file():
            raise ValueError(
                f"expected a JSON file or JSON text such as '{{\"height\": 256}}' as plan, found no file {file}"
            )
        text = file.read_text()
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f'expected JSON in the plan, such as {{"height": 256}}, found {error}') from error
    if not isinstance(content, dict):
        raise ValueError(f'expected a JSON object in the plan, such as {{"height": 256}}, got {content!r}')
    return content


# ------------------------------------------------------------------------------------------------ checks


def _refuse(name: str, expected: str, value: Any) -> ValueError:
    return ValueError(f"expected {expected} as {name} in the plan, got {value!r}")


def _dimensions(name: str, value: Any) -> Any:
    if value not in (2, 2.5, 3) or isinstance(value, bool):
        raise _refuse(name, "2, 2.5 or 3", value)
    return value


def _whole(least: int, most: int) -> Any:
    def check(name: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise _refuse(name, f"a whole number from {least} to {most}", value)
        return value

    return check


def _yes_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _refuse(name, "true or false", value)
    return value


def _one_of(*allowed: str) -> Any:
    def check(name: str, value: Any) -> str:
        if value not in allowed:
            raise _refuse(name, f"one of {', '.join(allowed)}", value)
        return str(value)

    return check


def _numbers(name: str, value: Any, counts: tuple[int, ...]) -> tuple[float, ...]:
    good = isinstance(value, (list, tuple)) and len(value) in counts
    if not good or not all(
        isinstance(one, (int, float)) and not isinstance(one, bool) and math.isfinite(one) for one in value
    ):
        raise _refuse(name, f"{' or '.join(map(str, counts))} numbers", value)
    return tuple(float(one) for one in value)


def _spacing(name: str, value: Any) -> tuple[float, ...]:
    pair = _numbers(name, value, (2, 3))
    if min(pair) <= 0.001 or max(pair) > 100.0:
        raise _refuse(name, "voxel sizes of 0.001 to 100 mm", value)
    return pair


def _rising(name: str, value: Any) -> tuple[float, float]:
    low, high = _numbers(name, value, (2,))
    if not low < high or (name == "percentiles" and not 0 <= low < high <= 100):
        raise _refuse(
            name, "[low, high] with low < high" + (" within 0 to 100" if name == "percentiles" else ""), value
        )
    return low, high


def _fractions(name: str, value: Any) -> tuple[tuple[str, float], ...]:
    if isinstance(value, (list, tuple)) and all(isinstance(one, (list, tuple)) and len(one) == 2 for one in value):
        value = dict(value)
    good = (
        isinstance(value, dict)
        and set(value) <= set(SPLITS)
        and all(isinstance(share, (int, float)) and 0 <= share <= 1 for share in value.values())
    )
    if not good or abs(sum(value.values()) - 1.0) > 1e-6 or not value.get("train"):
        raise _refuse(name, f"shares of {', '.join(SPLITS)} that add up to 1", value)
    return tuple((split, float(value.get(split, 0.0))) for split in SPLITS)


def _file(name: str, value: Any) -> str:
    if not isinstance(value, str) or not Path(value).is_file():
        raise _refuse(name, "a CSV file", value)
    return value


_CHECKS: dict[str, Any] = {
    "dimensions": _dimensions,
    "neighbours": _whole(1, 8),
    "depth": _whole(8, 1024),
    "height": _whole(8, 8192),
    "width": _whole(8, 8192),
    "spacing": _spacing,
    "crop": _one_of(*CROPS),
    "window": _rising,
    "percentiles": _rising,
    "bias_field": _yes_no,
    "match_histogram": _yes_no,
    "dtype": _one_of("uint8", "int16", "uint16", "float32"),
    "skip_masks": _yes_no,
    "fractions": _fractions,
    "splits": _file,
}
