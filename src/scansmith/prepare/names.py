"""Names: which scans a file path means, and which scans belong together by what the wildcards of two patterns match."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..formats import Source
from ..patterns import keys as pattern_keys

# Suffixes that are taken off a file's name together.
DOUBLE_SUFFIXES = (".nii.gz", ".nii.bz2")


def files_of(source: Source, name: str) -> list[str]:
    """The posix paths below root of all files of a scan, of which `name` is the first's."""
    prefix = source.files[0].parts[: len(source.files[0].parts) - len(PurePosixPath(name).parts)]
    return [name, *("/".join(file.parts[len(prefix) :]) for file in source.files[1:])]


def stem(name: str) -> str:
    """The file name without folder and suffix: "a/b.nii.gz" -> "b"; a name without a suffix stays."""
    last = name.rsplit("/", 1)[-1]
    double = next((suffix for suffix in DOUBLE_SUFFIXES if last.lower().endswith(suffix)), None)
    return last[: -len(double)] if double else PurePosixPath(last).stem


def plural(count: int, noun: str) -> str:
    """ "1 scan", "2 scans"."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# ------------------------------------------------------------------------------------------------ paths in a table


def locate(paths: Iterable[str], sources: Sequence[Source], names: Sequence[str]) -> dict[str, list[int]]:
    """For each path of a table the scans that it means, by number.

    A path may be given below root or in full (also with backslashes), as its last parts or the bare file name, without
    suffix, or as a folder. What lies nearest to the full path counts. A folder in full means everything below it, the
    last parts of a folder the series in it; a shortened path that fits several scans or folders means none, and is
    there with an empty list. Paths that fit nothing are not there.
    """
    wanted: defaultdict[str, list[tuple[int, str]]] = defaultdict(list)
    tops = {_top(source, name) for source, name in zip(sources, names)}
    for path in dict.fromkeys(paths):
        for order, spelling in enumerate(_spellings(path, tops)):
            wanted[spelling].append((order, path))
    # path -> (which spelling, how directly) -> scan -> the folder that is meant
    found: defaultdict[str, defaultdict[tuple[int, int], dict[int, str]]] = defaultdict(lambda: defaultdict(dict))
    for number, (source, name) in enumerate(zip(sources, names)):
        for candidate, level in _candidates(source, name):
            for order, path in wanted.get(candidate, ()):
                found[path][order, level][number] = name.rpartition("/")[0]
    result: dict[str, list[int]] = {}
    for path, ways in found.items():
        (_, level), hits = min(ways.items())
        one = len(hits) == 1 or level in (WHOLE, BELOW) or (level == FOLDER and len(set(hits.values())) == 1)
        result[path] = list(hits) if one else []
    return result


# How directly a path names a scan, the most direct first: its file, a folder above it, a shortened file name, that
# without suffix, the last folders of a series.
WHOLE, BELOW, TAIL, BARE, FOLDER = range(5)


def _candidates(source: Source, name: str) -> Iterable[tuple[str, int]]:
    """What a table may call a scan, and how directly."""
    folders = name.split("/")[:-1]
    for end in range(1, len(folders) + 1):
        yield "/".join(folders[:end]), BELOW
    for file in files_of(source, name):
        parts = file.split("/")
        bare = stem(file)
        for start in range(len(parts)):
            yield "/".join(parts[start:]), TAIL if start else WHOLE
            yield "/".join([*parts[start:-1], bare]), BARE
    if len(source.files) > 1:
        for start in range(1, len(folders)):
            yield "/".join(folders[start:]), FOLDER


def _top(source: Source, name: str) -> str:
    """The name of the root folder itself."""
    parts = source.files[0].parts
    above = len(parts) - len(PurePosixPath(name).parts)
    return parts[above - 1] if above > 0 else ""


def _spellings(path: str, tops: set[str]) -> list[str]:
    """A table's path as it may lie below root: with slashes, and without what leads to root."""
    parts = [part for part in path.replace("\\", "/").split("/") if part not in ("", ".")]
    below = ["/".join(parts[at + 1 :]) for at, part in enumerate(parts[:-1]) if part in tops]
    return list(dict.fromkeys(["/".join(parts), *below]))


# ------------------------------------------------------------------------------------------------ patterns


@dataclass(frozen=True, slots=True)
class Matches:
    """What two patterns match.

    Attributes:
        pairs: (scan of the left pattern, scan of the right), whose wildcards and folder are the same.
        left, right: scans that one pattern matches and that have no partner.
        by_folder: no two names had the same wildcards, and the only two scans of each folder were taken.
    """

    pairs: list[tuple[int, int]]
    left: list[int]
    right: list[int]
    by_folder: bool


def is_patterns(text: str) -> bool:
    """Whether an option's text is two patterns "left:right" rather than words or a path."""
    return text.count(":") == 1 and any(sign in text for sign in "*?")


def match(option: str, patterns: str, sources: Sequence[Source], names: Sequence[str]) -> Matches:
    """Pair scans by two patterns on their names, such as "MRI/*.png:CT/*.png" or "*_flair*:*_t1c*".

    A pattern matches the last parts of a name, upper or lower case; `*` and `?` stay within one part, `**` crosses
    folders. Two scans belong together when the folder above the pattern and the text of every wildcard are the same.
    A series of several files is matched by its folder ("*/CT:*/MR") or by folder and files ("*/CT/*:*/MR/*"). Where no
    two names agree (as series numbers in them do not), a folder's only scan of either pattern belong together.

    Raises:
        ValueError: the patterns have different numbers of wildcards, one matches nothing, no two scans belong together,
            or one scan would have two partners.
    """
    left_pattern, right_pattern = (part.strip().replace("\\", "/") for part in patterns.split(":"))
    wildcards = [re.findall(r"\*+|\?", part) for part in (left_pattern, right_pattern)]
    if not left_pattern or not right_pattern or len(wildcards[0]) != len(wildcards[1]):
        raise ValueError(
            f"expected as many wildcards on both sides of {option} {patterns!r}, found {len(wildcards[0])} and {len(wildcards[1])}: every * of the left must match the same text on the right"
        )
    left, right = (pattern_keys(pattern, sources, names) for pattern in (left_pattern, right_pattern))
    for pattern, keys in ((left_pattern, left), (right_pattern, right)):
        if not keys:
            raise ValueError(
                f"expected {option} {patterns!r} to match names on both sides, found none for {pattern!r}; names look like {_examples(names)}"
            )
    common = [key for key in left if key in right]
    by_folder = not common
    if by_folder:
        left, right = (pattern_keys(pattern, sources, names, folders=True) for pattern in (left_pattern, right_pattern))
        common = [key for key in left if any(key) and len(left[key]) == len(right.get(key, ())) == 1]
    if not common:
        strict = [pattern_keys(pattern, sources, names) for pattern in (left_pattern, right_pattern)]
        raise ValueError(
            f"expected {option} {patterns!r} to pair names, found none: the wildcards match {_said(strict[0])} on the left and {_said(strict[1])} on the right, never the same; where names differ in more than the pattern says, give a CSV table with the columns source and target"
        )
    for key in common:
        if len(left[key]) > 1 or len(right[key]) > 1:
            several = left[key] if len(left[key]) > 1 else right[key]
            raise ValueError(
                f"expected one partner for each scan by {option} {patterns!r}, found {names[several[0]]!r} and {names[several[1]]!r} with the same wildcards: make the pattern longer"
            )
    pairs = sorted((left[key][0], right[key][0]) for key in common)
    paired = {index for pair in pairs for index in pair}
    alone = [sorted({hit for hits in keys.values() for hit in hits} - paired) for keys in (left, right)]
    return Matches(pairs, alone[0], alone[1], by_folder)


def _examples(names: Sequence[str]) -> str:
    return ", ".join(repr(names[at]) for at in sorted({0, len(names) // 2, len(names) - 1})) if names else "nothing"


def _said(keys: dict[tuple[str, ...], list[int]]) -> str:
    return " + ".join(repr(text) for text in next(iter(keys)) if text) or "nothing"
