"""Index: what the headers of a folder's files said, so that a grown folder is listed by opening its new files alone."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .. import __version__
from ..runtime import write_atomic

# Raised whenever a reader's header changes its fields or what it refuses.
HEADERS = 2
# The reader of a file that could not be opened: it is tried again, as its permissions change neither size nor time.
UNREADABLE = "unreadable"


class Entry(NamedTuple):
    """What one file was found to be.

    Attributes:
        size, mtime_ns: of the file when it was opened.
        reader: the reader module's name; "zip" or "dicomdir"; None for a file that no reader knows.
        content: the reader's header, or one sentence that says why the file is no scan; None for one passed over.
    """

    size: int
    mtime_ns: int
    reader: str | None
    content: dict[str, Any] | str | None


@dataclass
class Index:
    """Posix path below the root -> `Entry`. Private: it holds file names and what the headers name.

    Attributes:
        tags: DICOM keywords that the entries were read with; `discover` clears an index that was read with others.
        entries: by path.
        opened: files opened since it was made or loaded.
    """

    tags: tuple[str, ...] = ()
    entries: dict[str, Entry] = field(default_factory=dict)
    opened: int = 0

    @classmethod
    def load(cls, path: Path) -> Index:
        """The index at this path; an empty one where there is none, or one that is broken or of another version."""
        try:
            with open(path, encoding="ascii") as lines:
                head = json.loads(next(lines))
                if head["version"] != _version():
                    return cls()
                entries = {name: Entry(*rest) for name, *rest in map(json.loads, lines)}
                whole = len(entries) == head["entries"]
        except (OSError, ValueError, TypeError, KeyError, StopIteration):
            return cls()
        return cls(tuple(head["tags"]), entries) if whole else cls()

    def save(self, path: Path) -> None:
        """Write it as JSON lines, atomically; names that are no Unicode are kept, too."""
        head = {"version": _version(), "tags": list(self.tags), "entries": len(self.entries)}
        lines = [json.dumps(head)]
        lines += [json.dumps([name, *entry], separators=(",", ":")) for name, entry in self.entries.items()]
        write_atomic(path, "\n".join(lines) + "\n")

    def ask_for(self, tags: tuple[str, ...]) -> None:
        """Forget what was read with other tags."""
        if tags != self.tags:
            self.entries.clear()
            self.tags = tags

    def lookup(self, name: str, stat: os.stat_result) -> Entry | None:
        """What the file was found to be, when neither its size nor its modification time has changed since."""
        entry = self.entries.get(name)
        same = entry is not None and (entry.size, entry.mtime_ns) == (stat.st_size, stat.st_mtime_ns)
        return entry if same else None

    def note(self, name: str, stat: os.stat_result, reader: str | None, content: dict[str, Any] | str | None) -> Entry:
        """Keep what a file that was just opened was found to be."""
        entry = Entry(stat.st_size, stat.st_mtime_ns, reader, content)
        if reader != UNREADABLE:
            self.entries[name] = entry
        self.opened += 1
        return entry

    def keep(self, names: set[str]) -> None:
        """Forget all files but these."""
        self.entries = {name: entry for name, entry in self.entries.items() if name in names}


def _version() -> str:
    return f"{__version__}/{HEADERS}"
