"""What one call of `run` asks for, and what an earlier call in the same folder asked for."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from ..prepare.scans import Request

Found = TypeVar("Found")
MOST_SIDE = 512  # longest side of the stored images
WITHIN = ("superresolve", "segment", "paint")  # tasks that are learned within volumes where there are two or more


@dataclass(frozen=True)
class Job:
    """One call of `run`."""

    scans: Path
    out: Path
    minutes: float
    task: str
    to: Path | None
    pairs: str | None
    labels: str
    masks: str
    modality: str | None
    plan: str | None
    count: int | None
    seed: int
    device: str

    def refuse(self) -> None:
        """
        Raises:
            ValueError: options that do not fit each other.
        """
        related = ("auto", "paired", "denoise", "superresolve")
        if self.to is not None and self.pairs is not None:
            raise ValueError(f"expected --to or --pairs, got both: {self.to} and {self.pairs!r}; one says it all")
        if self.to is not None and self.task not in (*related, "unpaired"):
            raise ValueError(
                f"expected no folder to translate to (--to) with the task {self.task!r}, got {self.to}: leave out one of them; masks are named by --masks"
            )
        if self.pairs is not None and self.task not in related:
            raise ValueError(
                f"expected no --pairs with the task {self.task!r}, got {self.pairs!r}: leave out one of them"
            )
        if self.task in ("paired", "unpaired") and self.to is None and self.pairs is None:
            raise ValueError(
                f"expected a folder to translate to (--to), or --pairs, with the task {self.task!r}, got neither: give one"
            )
        if self.to is not None and not self.to.is_dir():
            raise ValueError(
                f"expected a folder of scans to translate to (--to), found none at {self.to}: check the path"
            )
        if self.count is not None and (self.task not in ("auto", "make") or self.to or self.pairs):
            raise ValueError(f"expected no --count where scans are translated, got {self.count}: leave it out")

    # -------------------------------------------------------------------------------------------- for prepare

    @property
    def sides(self) -> tuple[str | None, str | None]:
        """The modalities that the user says sources and targets have."""
        own, _, wished = (self.modality or "").partition(":")
        return own or None, wished or None

    def asked(self, task: str) -> Request:
        """What `prepare` is asked for: all scans, or where nothing is paired those of the sources."""
        from ..prepare.overrides import choices_of
        from ..prepare.scans import Request

        paired = str(self.to) if self.to else self.pairs
        alone = task == "unpaired"
        choices = choices_of(self.plan)
        return Request(
            self.labels,
            None if alone else paired,
            self.masks,
            self.sides[0] if alone else self.modality,
            MOST_SIDE,
            self.seed,
            replace(choices, window=self.window_of(0)) if alone else choices,
            task in WITHIN,
        )

    def asked_of_targets(self, dimensions: int, spacing: tuple[float, ...] | None) -> Request:
        """What `prepare` is asked for the scans to translate to without pairs: slices or volumes as the sources, with their voxels."""
        from ..prepare.overrides import choices_of
        from ..prepare.scans import Request

        chosen = choices_of(self.plan)
        kept = replace(
            chosen,
            dimensions=chosen.dimensions or dimensions, spacing=chosen.spacing or spacing, window=self.window_of(1),
            percentiles=None, bias_field=None, match_histogram=None, splits=None,
        )  # fmt: skip
        return Request("none", None, "none", self.sides[1], MOST_SIDE, self.seed, kept)

    def window_of(self, side: int) -> tuple[float, float] | None:
        """The plan's window, where it is for the sources (0) or targets (1) without pairs: for CT, if one of both is said to be CT."""
        from ..prepare.overrides import choices_of

        window = choices_of(self.plan).window
        others = self.sides[1 - side] == "CT" and self.sides[side] != "CT"
        return None if others or (side == 1 and self.sides[1] != "CT") else window

    def of_targets(self, look: Callable[[Request], Found], dimensions: int, spacing: tuple[float, ...] | None) -> Found:
        """What is found of the targets: on the sources' voxels, or where the files do not say theirs, as they are.

        Raises:
            ValueError: what `look` raises.
        """
        try:
            return look(self.asked_of_targets(dimensions, spacing))
        except ValueError:
            if spacing is None:
                raise
            return look(self.asked_of_targets(dimensions, None))

    # -------------------------------------------------------------------------------------------- for run.json

    def choices(self) -> dict[str, Any] | None:
        """What --plan says, as `prepare` understands it; a table of splits without its path."""
        from ..prepare.overrides import choices_of

        made = choices_of(self.plan).made()
        if "fractions" in made:
            made["fractions"] = dict(made["fractions"])
        if "splits" in made:
            made["splits"] = "TABLE.csv"
        return json.loads(json.dumps(made)) or None

    def request(self) -> dict[str, Any]:
        """What decides the result, without paths: a second call must ask for the same to go on."""
        from ..prepare.write import request_of

        return {
            "scans": request_of(self.scans, self.asked("auto")),
            "minutes": self.minutes,
            "task": self.task,
            "to": "folder" if self.to else None,
            "pairs": "table" if self.pairs and Path(self.pairs).exists() else self.pairs,
            "labels": self.labels if self.labels in ("auto", "none") else "table",
            "masks": self.masks,
            "modality": self.modality,
            "plan": self.choices(),
            "count": self.count,
            "seed": self.seed,
        }

    def earlier_state(self) -> dict[str, Any]:
        """What run.json of an earlier start says; {} for a new folder.

        Raises:
            ValueError: it was started with other settings or other scans, or is damaged.
        """
        path = self.out / "run.json"
        if not path.is_file():
            return {}
        way_out = "choose another folder, or remove this one to start anew"
        try:
            state: dict[str, Any] = json.loads(path.read_text())
            earlier = state["request"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"expected the state of a run in {path}, found something else: {way_out}") from error
        request = self.request()
        different = [name for name in request if name != "scans" and earlier.get(name) != request[name]]
        if different:
            changes = ", ".join(f"{name} {earlier.get(name)!r} -> {request[name]!r}" for name in different)
            raise ValueError(
                f"expected the settings that the run in {self.out} was started with, found {changes}: {way_out}"
            )
        if earlier.get("scans") != request["scans"]:
            raise ValueError(
                f"expected the scans that the run in {self.out} was started with, found other or changed files: {way_out}"
            )
        return state
