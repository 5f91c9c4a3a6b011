"""Folders: which scan of one folder belongs to which scan of another, by patient and place or by name."""

from __future__ import annotations

import filecmp
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

from ..formats import Source
from .geometry import Pairs, within
from .names import plural, stem

# What the names of scans in the folder of targets begin with.
TARGET = "target:/"
# Words that say of which kind a scan is, not whose it is.
KIND_WORDS = frozenset(
    (
        "ct", "mr", "mri", "mra", "t1", "t1w", "t2", "t2w", "flair", "pd", "pdw", "t1c", "t1ce", "t1gd", "dwi", "adc", "cbct", "ldct", "ndct",
        "source", "target", "src", "tgt", "input", "output",
    )
)  # fmt: skip


class Unrelated(ValueError):
    """Two folders of which no two scans belong together."""


def find(
    folder: Path, sources: Sequence[Source], patients: Sequence[str], names: Sequence[str], modality: str | None = None
) -> tuple[Pairs, tuple[str, ...]]:
    """The (source, target) pairs, by number, and in words how they were found, without anything private.

    The first of `WAYS` that pairs any two scans is taken. Scans of two known patients are never a pair.

    Args:
        folder: of the targets.
        sources, patients: as for `pairs.find`.
        names: each scan's posix path below its own folder, that of a target behind `TARGET`.
        modality: what the user says that both sides are, "MR:CT", or None.

    Raises:
        Unrelated: no two scans belong together.
        ValueError: a side is empty, two scans of a side have one name, or the sides are swapped or hold the same scans.
    """
    images = [number for number, source in enumerate(sources) if source.role == "image"]
    right = [number for number in images if names[number].startswith(TARGET)]
    left = [number for number in images if number not in set(right)]
    if not left or not right:
        raise ValueError(
            f"expected scans in the folder of sources and in that of targets, found {len(left)} and {len(right)}: check the paths"
        )
    _refuse_other_way_round(left, right, sources, modality)
    keyed = _Sides(left, right, sources, patients, names)
    ways = ((words, keyed.pairs(key(keyed), key in (_by_name, _by_words))) for words, key in WAYS.items())
    words, found = next((way for way in ways if way[1]), ("", []))
    if not found:
        raise Unrelated(
            f"expected scans in {folder} that belong to the sources, found none by patient, frame of reference, study or name: give a CSV table with the columns source and target (--pairs), or learn from both folders without pairs (--task unpaired)"
        )
    _refuse_swapped(found, sources, names)
    _refuse_same(found, sources, names)
    said = [f"pairs: {len(found)} of {plural(len(left), 'source')} and {plural(len(right), 'target')}, by {words}"]
    missing = len(left) - len(found), len(right) - len(found)
    if any(missing):
        said.append(
            f"without a partner: {plural(missing[0], 'source')} and {plural(missing[1], 'target')}, left out and listed"
        )
    return found, tuple(said)


# ------------------------------------------------------------------------------------------------ ways


class _Sides:
    """The scans of both folders, and what may bring them together."""

    def __init__(
        self,
        left: list[int],
        right: list[int],
        sources: Sequence[Source],
        patients: Sequence[str],
        names: Sequence[str],
    ) -> None:
        self.left, self.right, self.sources, self.names = left, right, sources, names
        self.patients = [name.strip().casefold() if name.startswith("patient:") else None for name in patients]

    def pairs(self, keys: dict[int, Hashable | None], named: bool) -> Pairs:
        """Scans with one key; of several the ones that lie alike.

        Args:
            keys: of each scan; None pairs with nothing.
            named: whether they are names, of which each should be there once.

        Raises:
            ValueError: several have one name and no place.
        """
        groups: defaultdict[Hashable, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
        for side, numbers in enumerate((self.left, self.right)):
            for number in numbers:
                if keys[number] is not None:
                    groups[keys[number]][side].append(number)
        found: Pairs = []
        for own, wished in groups.values():
            found += self._of_one_key(own, wished, named)
        return [(one, other) for one, other in found if not self._strangers(one, other)]

    def _of_one_key(self, own: list[int], wished: list[int], named: bool) -> Pairs:
        placed = all(self.sources[number].affine is not None for number in (*own, *wished))
        if placed or len(own) == len(wished) == 1 or not own or not wished:
            return within(own, wished, self.sources)[0]
        if not named:
            return []
        several = max(own, wished, key=len)
        raise ValueError(
            f"expected one partner for each scan, found {self.names[several[0]]!r} and {self.names[several[1]]!r} for one, and no positions that tell them apart: keep one of them, or give a CSV table with the columns source and target (--pairs)"
        )

    def _strangers(self, one: int, other: int) -> bool:
        """Whether two scans are known to be of different patients."""
        pair = self.patients[one], self.patients[other]
        return None not in pair and pair[0] != pair[1]

    def numbers(self) -> list[int]:
        return [*self.left, *self.right]


def _by_patient(sides: _Sides) -> dict[int, Hashable | None]:
    return {number: sides.patients[number] for number in sides.numbers()}


def _by_frame(sides: _Sides) -> dict[int, Hashable | None]:
    return {number: sides.sources[number].frame_of_reference for number in sides.numbers()}


def _by_study(sides: _Sides) -> dict[int, Hashable | None]:
    return {number: sides.sources[number].study for number in sides.numbers()}


def _by_name(sides: _Sides) -> dict[int, Hashable | None]:
    """The path below the own folder without suffix; of a series that of its folder."""
    return {number: _path(sides.names[number], sides.sources[number]) for number in sides.numbers()}


def _by_words(sides: _Sides) -> dict[int, Hashable | None]:
    """The words of the path without those of a kind: known ones, and those that all names of one side have and none of the other."""
    words = {number: re.split(r"[^a-z0-9]+", path) for number, path in _by_name(sides).items() if isinstance(path, str)}
    some = [[set(words[number]) for number in side] for side in (sides.left, sides.right)]
    every, any_ = ([how(*side) for side in some] for how in (set.intersection, set.union))
    left_out = KIND_WORDS | (every[0] - any_[1]) | (every[1] - any_[0])
    kept = {number: tuple(word for word in own if word and word not in left_out) for number, own in words.items()}
    return {number: own or None for number, own in kept.items()}


def _path(name: str, source: Source) -> str:
    below = name.removeprefix(TARGET).lower()
    folder = below.rpartition("/")[0]
    return folder if len(source.files) > 1 else f"{folder}/{stem(below)}".lstrip("/")


# How scans belong together, in words -> a key of each; the first way that pairs any two is taken.
WAYS: dict[str, Callable[[_Sides], dict[int, Hashable | None]]] = {
    "patient and position": _by_patient,
    "frame of reference": _by_frame,
    "study and position": _by_study,
    "equal names": _by_name,
    "names that differ by a word for the kind of scan": _by_words,
}


# ------------------------------------------------------------------------------------------------ refused


def _refuse_other_way_round(left: list[int], right: list[int], sources: Sequence[Source], modality: str | None) -> None:
    """Refuse sides whose files say the opposite of what the user says."""
    said = (modality or "").upper().split(":")
    found = [{sources[number].modality for number in side} for side in (left, right)]
    if len(said) == 2 and said[0] != said[1] and found == [{said[1]}, {said[0]}]:
        raise ValueError(
            f"expected {said[0]} scans as sources and {said[1]} scans as targets, found them the other way round: swap the folders"
        )


def _refuse_swapped(found: Pairs, sources: Sequence[Source], names: Sequence[str]) -> None:
    """Refuse pairs of which some are of two kinds the other way round."""
    kinds = {pair: (sources[pair[0]].modality, sources[pair[1]].modality) for pair in found}
    counts = Counter(kinds.values())
    for (one, other), count in sorted(counts.items(), key=lambda entry: (entry[1], entry[0])):
        if one != other and (other, one) in counts:
            first = next(pair for pair in found if kinds[pair] == (one, other))
            raise ValueError(
                f"expected sources of one kind and targets of another, found {plural(count, 'pair')} of {one} to {other} among {counts[other, one]} of {other} to {one} (such as {names[first[0]]!r}): their files are swapped; put them right"
            )


def _refuse_same(found: Pairs, sources: Sequence[Source], names: Sequence[str]) -> None:
    """Refuse pairs of a scan and itself."""
    same = [pair for pair in found if _same(sources[pair[0]], sources[pair[1]])]
    if same:
        raise ValueError(
            f"expected two different scans in a pair, found the same one on both sides in {len(same)} of {plural(len(found), 'pair')} (such as {names[same[0][0]]!r}): the folder of targets must hold what the sources are to become"
        )


def _same(one: Source, other: Source) -> bool:
    if set(one.instances) & set(other.instances):
        return True
    return len(one.files) == len(other.files) and all(
        filecmp.cmp(mine, its, shallow=False) for mine, its in zip(one.files[:1], other.files[:1])
    )
