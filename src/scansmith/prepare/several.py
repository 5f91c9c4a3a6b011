"""Several sources: which scans together are the source of which target, by name patterns joined with + or by the user's table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..formats import Source
from ..image import MODALITIES
from ..patterns import compiled, words_of
from . import tables
from .folders import KIND_WORDS
from .labels import private_words
from .names import is_patterns, plural, stem
from .pairs import by_patterns, by_table, check

if TYPE_CHECKING:
    from .scans import Scan

MOST_SOURCES = 16
COLUMN = re.compile(r"source([2-9]|1\d)?")
Members = tuple[int | None, ...]


@dataclass(frozen=True)
class Several:
    """Cases with several sources.

    Attributes:
        cases: (the scan of each source by number, None where it is missing; the target's).
        names: what each source is called, without anything private.
        patterns: each source's name pattern; None from a table, and where one holds words that may be private.
        words: how they were found.
    """

    cases: tuple[tuple[Members, int], ...]
    names: tuple[str, ...]
    patterns: tuple[str | None, ...]
    words: tuple[str, ...]

    def numbered(self, numbers: Sequence[int]) -> Several:
        """The same with other numbers for the scans."""
        cases = tuple(
            (tuple(None if one is None else numbers[one] for one in members), numbers[target])
            for members, target in self.cases
        )
        return replace(self, cases=cases)

    def of_first(self) -> dict[int, tuple[Members, int]]:
        """The first source that is there -> all sources and the target, of each case."""
        return {next(one for one in members if one is not None): (members, target) for members, target in self.cases}


def find(pairs: str, sources: Sequence[Source], patients: Sequence[str], names: Sequence[str]) -> Several | None:
    """The cases of `--pairs` with several sources; None where it says one source.

    Args:
        pairs: "*T1*+*FLAIR*:*T2*", or a table with the columns source, source2, ... and target.
        sources, patients, names: as for `pairs.find`.

    Raises:
        ValueError: a source is found in no case, or a scan would be in two.
    """
    images = [number for number, source in enumerate(sources) if source.role == "image"]
    columns = _patterns(pairs, [names[number] for number in images]) or _columns(pairs)
    if len(columns) < 2:
        return None
    if len(columns) > MOST_SOURCES:
        raise ValueError(f"expected at most {MOST_SOURCES} sources, found {len(columns)} in {pairs!r}")
    words: list[str] = []
    partners: list[dict[int, int]] = []  # of each column: target -> source
    for column in columns:
        how = by_patterns if ":" in column else by_table
        text = column if ":" in column else pairs
        found, said = how(text, sources, patients, names, *([] if ":" in column else [column]))
        check(found, text, names)
        partners.append({target: one for one, target in found})
        words += [line for line in said if not line.startswith(("pairs: ", "without a partner"))]
    targets = sorted({target for own in partners for target in own})
    _refuse_twice(partners, pairs, names)
    called, kept = _called(columns, partners, sources, names)
    here = ", ".join(f"{name} in {len(own)}" for name, own in zip(called, partners))
    way = "name patterns" if kept else "the table"
    counted = f"pairs: {plural(len(targets), 'case')} of {len(columns)} sources by {way}: {here}"
    short = sum(any(target not in own for own in partners) for target in targets)
    missing = [f"a source is missing in {plural(short, 'case')}, which stay and say so"] if short else []
    cases = tuple((tuple(own.get(target) for own in partners), target) for target in targets)
    private = private_words(kept, sources) if kept else "none"
    patterns: tuple[str | None, ...] = (None,) * len(columns) if private else tuple(kept)
    return Several(cases, called, patterns, (counted, *missing, *dict.fromkeys(words)))


def _patterns(pairs: str, names: Sequence[str]) -> list[str]:
    """Each source's pattern with the target's; a + that names hold is no sign."""
    if not is_patterns(pairs):
        return []
    left, _, right = pairs.partition(":")
    if any(compiled(left.strip()).fullmatch(name) for name in names):
        return [pairs]
    return [f"{one.strip()}:{right.strip()}" for one in left.split("+")]


def _columns(pairs: str) -> list[str]:
    """The columns of sources in a table; none where there is no table."""
    if is_patterns(pairs) or not Path(pairs).is_file():
        return []
    columns, _ = tables.read(Path(pairs))
    return sorted((name for name in columns if COLUMN.fullmatch(name)), key=lambda name: int(name[6:] or 1))


def _refuse_twice(partners: Sequence[dict[int, int]], pairs: str, names: Sequence[str]) -> None:
    """Every scan is one source of one case, or a target."""
    used = Counter(one for own in partners for one in own.values())
    used.update({target for own in partners for target in own})
    twice = next((scan for scan, count in used.items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"expected each scan as one source or as a target, found {names[twice]!r} as two of {pairs!r}: make the patterns exclude each other"
        )


def _called(
    columns: Sequence[str], partners: Sequence[dict[int, int]], sources: Sequence[Source], names: Sequence[str]
) -> tuple[tuple[str, ...], list[str]]:
    """What each source is called, and its pattern: by the words that only its pattern has; from a table by those for kinds of scans."""
    patterns = [column.partition(":")[0] for column in columns] if ":" in columns[0] else []
    if patterns:
        texts = [*patterns, columns[0].partition(":")[2]]
        words = [re.findall(r"[A-Za-z0-9]+", text) for text in texts]
    else:
        every = [[words_of(stem(names[one])) for one in own.values()] for own in partners]
        common = [sorted(KIND_WORDS.intersection(*own)) for own in every]
        words = [[*own] for own in common] + [[]]
    found = []
    for number in range(len(columns)):
        others = {word.casefold() for other in range(len(words)) if other != number for word in words[other]}
        own = [word for word in words[number] if word.casefold() not in others]
        found.append(" ".join(own) or f"source {number + 1}")
    return tuple(found), patterns


# ------------------------------------------------------------------------------------------------ kinds


def kinds(cases: Several, sources: Sequence[Source], modality: str | None) -> tuple[dict[str, Any], ...]:
    """What is known of each source: {"name", "modality", "pattern"}.

    Args:
        cases: of scans by number.
        sources: the scans.
        modality: what the user says of files that do not say it: "MR:CT" of all sources, "MR+CT:CT" of each.

    Raises:
        ValueError: a source of several modalities, or of colour, or volumes beside pictures.
    """
    said = [one.strip().upper() for one in (modality or "OT").partition(":")[0].split("+")]
    if len(said) not in (1, len(cases.names)) or not set(said) <= set(MODALITIES):
        raise ValueError(
            f"expected a modality of {', '.join(MODALITIES)} for all {len(cases.names)} sources or for each (MR+CT:CT), got {modality!r}"
        )
    found = []
    for number, name in enumerate(cases.names):
        own = [sources[one] for members, _ in cases.cases if (one := members[number]) is not None]
        of = {(one.modality, one.channels, one.dimensions) for one in own}
        if len(of) > 1 or own[0].channels != 1:
            raise ValueError(
                f"expected grey scans of one kind as source {name}, found {', '.join(sorted(f'{kind} {channels}-channel {axes}-D' for kind, channels, axes in of))}: narrow its pattern"
            )
        wished = said[number % len(said)]
        found.append({"name": name, "modality": wished if own[0].modality == "OT" else own[0].modality, "pattern": cases.patterns[number]})  # fmt: skip
    if len({sources[one].dimensions for members, _ in cases.cases for one in members if one is not None}) > 1:
        raise ValueError("expected volumes alone or pictures alone as sources, found both: narrow the patterns")
    return tuple(found)


def used_words(scans: Sequence[Scan], about: Sequence[dict[str, Any]]) -> str:
    """Which sources there are, for the plan."""
    here = [sum(scan.sources[number] is not None for scan in scans) for number in range(len(about))]
    listed = ", ".join(f"{one['name']} ({one['modality']}) {count}" for one, count in zip(about, here))
    return f"used: {plural(len(scans), 'case')} with up to {len(about)} sources each: {listed}"
