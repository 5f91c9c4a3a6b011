"""Tables: a CSV or TSV file of the user as rows of text, whatever program wrote it."""

from __future__ import annotations

import csv
from pathlib import Path

SEPARATORS = ",;\t|"
# How programs, and BIDS, write that a value is missing, in lower case.
MISSING = {"", "n/a", "nan", "null"}


def read(table: Path) -> tuple[list[str], list[dict[str, str]]]:
    """The columns (stripped, lower case) and the rows of a table; empty rows are left out, missing cells are "".

    Missing is also what says n/a, NaN or null, in upper or lower case.

    The separator (comma, semicolon, tab or bar) is the one that the first line has most of; UTF-8, with or without a
    mark, and the UTF-16 of spreadsheets are understood, and the line "sep=;" that they put first.

    Raises:
        ValueError: it cannot be read, or two columns have one name.
    """
    try:
        content = table.read_bytes()
        text = content.decode("utf-16" if content[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
        lines = text.splitlines(keepends=True)
        said = lines[0].strip().lower() if lines else ""
        separator = said[4] if said.startswith("sep=") and len(said) == 5 else None
        lines = lines[1:] if separator else lines
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator or _separator(lines))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"expected a CSV table in UTF-8, found {table}: {error}; save it as CSV in UTF-8") from error
    rows = [row for row in rows if any(row)]
    columns = [name.lower() for name in rows[0]] if rows else []
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"expected different names for the columns of {table}, found {twice!r} twice: rename one")
    rows = [["" if cell.lower() in MISSING else cell for cell in row] for row in rows[1:]]
    return columns, [dict(zip(columns, row + [""] * (len(columns) - len(row)))) for row in rows]


def _separator(lines: list[str]) -> str:
    """The separator that the first line with text holds most of, outside quotes."""
    first = next((line for line in lines if line.strip()), "")
    outside = "".join(first.split('"')[::2])
    return max(SEPARATORS, key=outside.count)
