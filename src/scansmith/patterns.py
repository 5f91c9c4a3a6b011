"""Patterns: what the wildcards of a pattern such as *T1* match in the names of scans, and which scans are one case by it."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING

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
