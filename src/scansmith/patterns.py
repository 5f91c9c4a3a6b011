"""Patterns: what the wildcards of a pattern such as *T1* match in the names of scans, and which scans are one case by it."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .formats import Source


def keys(
    pattern: str, sources: Sequence[Source], names: Sequence[str], folders: bool = False
) -> dict[tuple[str, ...], list[int]]:
    """What the wildcards match, in lower case -> the scans; with `folders` without the wildcards of the last part."""
    whole, (head, _, last) = compiled(pattern), pattern.rpartition("/")
    above, file = compiled(head) if head else None, compiled(last)
    in_last = file.groups - 1 if folders else 0
    result: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, (source, name) in enumerate(zip(sources, names)):
        folder, _, base = name.rpartition("/")
        found = whole.fullmatch(name if len(source.files) == 1 else folder)
        if found:
            groups = found.groups()[: whole.groups - in_last]
        elif len(source.files) > 1 and above and file.fullmatch(base) and (found := above.fullmatch(folder)):
            groups = found.groups()  # the numbers of a series' files say nothing about what belongs together
        else:
            continue
        result[tuple((text or "").lower() for text in groups)].append(number)
    return dict(result)


def compiled(pattern: str) -> re.Pattern[str]:
    """A pattern with a group for the folders above it and one for every wildcard."""
    text = pattern.removeprefix("./")
    signs = {"**/": "((?:[^/]+/)*?)", "**": "(.*?)", "*": "([^/]*?)", "?": "([^/])"}
    pieces = re.split(r"(\*\*/|\*\*|\*|\?)", text)
    return re.compile("(?:(.*?)/)?" + "".join(signs.get(piece, re.escape(piece)) for piece in pieces), re.IGNORECASE)


# ------------------------------------------------------------------------------------------------ cases


@dataclass(frozen=True)
class Cases:
    """Scans that are together the sources of one translation.

    Attributes:
        cases: of each case its scans by number, in the order of the sources, None where one is missing.
        left: (scan, why it is of no case).
    """

    cases: tuple[tuple[int | None, ...], ...]
    left: tuple[tuple[int, str], ...]


def cases(about: Sequence[Mapping[str, Any]], sources: Sequence[Source], names: Sequence[str]) -> Cases:
    """Which scans are one case: those whose patterns' wildcards are the same, else those of one folder.

    Args:
        about: of each source of a model {"name", "modality", "pattern"}; the pattern may be None.
        sources: the scans.
        names: each scan's whole posix path, of a series its first file's.
    """
    which = _which(about, sources, names)
    left = [
        (scan, f"expected one of {_listed(about)}, found that its name and modality say none of them: rename it")
        for scan in range(len(sources))
        if scan not in which
    ]
    groups = _grouped(which, _by_name(about, which, sources, names))
    if len(set(which.values())) > 1 and all(len({which[scan] for scan in group}) == 1 for group in groups):
        groups = _grouped(which, _by_folder(about, which, sources, names))
    found = []
    for group in groups:
        own = [[scan for scan in group if which[scan] == number] for number in range(len(about))]
        several = next((number for number, scans in enumerate(own) if len(scans) > 1), None)
        if several is None:
            found.append(tuple(scans[0] if scans else None for scans in own))
            continue
        words = f"expected one {about[several]['name']} in a case, found {len(own[several])} that belong together by name: put each case into a folder of its own"
        left += [(scan, words) for scan in group]
    return Cases(tuple(found), tuple(left))


def _which(about: Sequence[Mapping[str, Any]], sources: Sequence[Source], names: Sequence[str]) -> dict[int, int]:
    """Scan -> which source it is: by the pattern with most letters, else by a modality that one source alone has, else by words."""
    result: dict[int, int] = {}
    patterned = [number for number, one in enumerate(about) if one["pattern"]]
    for number in sorted(patterned, key=lambda number: len(re.sub(r"[*?]", "", about[number]["pattern"]))):
        for scans in keys(about[number]["pattern"], sources, names).values():
            result |= dict.fromkeys(scans, number)
    modalities = [one["modality"] for one in about]
    for scan, source in enumerate(sources):
        if scan not in result and source.modality != "OT" and modalities.count(source.modality) == 1:
            result[scan] = modalities.index(source.modality)
        said = {
            number
            for number, one in enumerate(about)
            if words_of(one["name"]) <= words_of(_called(source, names[scan]))
        }
        if scan not in result and len(said) == 1:
            result[scan] = said.pop()
    return result


def _by_name(
    about: Sequence[Mapping[str, Any]], which: Mapping[int, int], sources: Sequence[Source], names: Sequence[str]
) -> dict[int, Hashable]:
    """Scan -> what its pattern's wildcards match; without a pattern its folder, and where that holds several cases the words that do not name the source."""
    result: dict[int, Hashable] = {}
    for number, one in enumerate(about):
        found = keys(one["pattern"], sources, names) if one["pattern"] else {}
        result |= {scan: key for key, scans in found.items() for scan in scans if which[scan] == number}
    unmatched = sorted(which.keys() - result.keys())
    folders = {scan: _folder(sources[scan], names[scan]) for scan in unmatched}
    counts = Counter((folders[scan], which[scan]) for scan in unmatched)
    crowded = {folder for (folder, _), count in counts.items() if count > 1}
    for scan in unmatched:
        rest = words_of(_called(sources[scan], names[scan])) - words_of(about[which[scan]]["name"])
        result[scan] = (folders[scan], *(sorted(rest) if folders[scan] in crowded else ()))
    return result


def _by_folder(
    about: Sequence[Mapping[str, Any]], which: Mapping[int, int], sources: Sequence[Source], names: Sequence[str]
) -> dict[int, Hashable]:
    """Scan -> its folder, and what the pattern's wildcards match above the last part."""
    result: dict[int, Hashable] = {}
    for number, one in enumerate(about):
        found = keys(one["pattern"], sources, names, folders=True) if one["pattern"] else {}
        result |= {scan: key for key, scans in found.items() for scan in scans if which[scan] == number}
    whole = result.keys() == which.keys()
    return result if whole else {scan: _folder(sources[scan], names[scan]) for scan in which}


def _grouped(which: Mapping[int, int], key: Mapping[int, Hashable]) -> list[list[int]]:
    """Scans with one key together, in their order."""
    groups: defaultdict[Hashable, list[int]] = defaultdict(list)
    for scan in sorted(which):
        groups[key[scan]].append(scan)
    return list(groups.values())


def _called(source: Source, name: str) -> str:
    """What a scan itself is called: its file, of a series the folder."""
    return PurePosixPath(name).parent.name if len(source.files) > 1 else PurePosixPath(name).name


def _folder(source: Source, name: str) -> str:
    """Where a scan lies: the folder of its file, of a series that around its own."""
    parent = PurePosixPath(name).parent
    return str(parent.parent if len(source.files) > 1 else parent)


def words_of(text: str) -> set[str]:
    """The words of a name, in lower case."""
    return set(re.findall(r"[a-z0-9]+", text.lower()))


def _listed(about: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['name']} ({one['pattern'] or one['modality']})" for one in about)
