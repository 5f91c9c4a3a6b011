"""Pairs: which scan is the source of which target, by patient and geometry, by name patterns, by the user's table or by folders."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

from ..formats import Source
from ..image import MODALITIES
from ..preprocess.align import onto
from . import folders, tables
from .geometry import Pairs, same_frame, within
from .names import is_patterns, locate, match, plural
from .registration import LEAST_CONFIDENCE, Shift, misregistration

__all__ = ["LEAST_CONFIDENCE", "Shift", "find", "misregistration", "onto"]


def find(
    pairs: str,
    sources: Sequence[Source],
    patients: Sequence[str],
    names: Sequence[str],
    modality: str | None = None,
) -> tuple[Pairs, tuple[str, ...]]:
    """The (source, target) pairs, by number and sorted, and in words how they were found, without anything private.

    Args:
        pairs: "MR:CT" (modalities; matched within a patient by geometry), "*T1*:*T2*" (name patterns, see `names.match`),
            the path of a table with the columns source and target (paths below root), or the folder of the targets, see
            `folders.find`.
        sources: the scans; masks among them are passed over.
        patients: what names each scan's patient; "patient:" and the Patient ID where it is known.
        names: each scan's posix path below root, of a series its first file's.
        modality: what the user says that both sides are, "MR:CT", or None.

    Raises:
        ValueError: no pair is found, one side matches nothing, a scan would be in two pairs, or all pairs are of two
            patients.
    """
    if Path(pairs).is_dir():
        found, words = folders.find(Path(pairs), sources, patients, names, modality)
    elif Path(pairs).is_file() or pairs.lower().endswith((".csv", ".tsv")):
        found, words = by_table(pairs, sources, patients, names)
    elif is_patterns(pairs):
        found, words = by_patterns(pairs, sources, patients, names)
    else:
        found, words = _by_modality(pairs, sources, patients)
    check(found, pairs, names)
    return sorted(found), words


def check(found: Pairs, pairs: str, names: Sequence[str]) -> None:
    """Every scan in one pair, on one side."""
    left, right = Counter(one for one, _ in found), Counter(other for _, other in found)
    both = next((scan for scan in left if scan in right), None)
    if both is not None:
        raise ValueError(
            f"expected sources and targets to be different scans, found {names[both]!r} on both sides of {pairs!r}: make the two sides exclude each other"
        )
    twice = next((scan for counts in (left, right) for scan, count in counts.items() if count > 1), None)
    if twice is not None:
        raise ValueError(
            f"expected each scan in one pair, found {names[twice]!r} in {left[twice] + right[twice]} pairs of {pairs!r}: keep one of them"
        )


# ------------------------------------------------------------------------------------------------ patterns, table


def _within_patients(
    found: Pairs, words: tuple[str, ...], pairs: str, patients: Sequence[str]
) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs without those whose two scans are known to be of different patients, and in words how many these are."""
    kept = [
        (one, other)
        for one, other in found
        if not (patients[one].startswith("patient:") and patients[other].startswith("patient:"))
        or patients[one].strip().casefold() == patients[other].strip().casefold()
    ]
    crossed = len(found) - len(kept)
    if not crossed:
        return found, words
    if not kept:
        raise ValueError(
            f"expected the two scans of a pair to be of one patient, found different Patient IDs (0010,0020; in BIDS the subjects) in every one of {plural(len(found), 'pair')} of {pairs!r}: correct the names in it or, if the scans do belong together, the Patient IDs"
        )
    return kept, (
        *words,
        f"left out: {plural(crossed, 'pair')} of them, whose two scans are of different patients by Patient ID (0010,0020); {len(kept)} stay",
    )


def by_patterns(
    pairs: str, sources: Sequence[Source], patients: Sequence[str], names: Sequence[str]
) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs of name patterns, and how they were found."""
    images = [number for number, source in enumerate(sources) if source.role == "image"]
    found = match("pairs", pairs, [sources[number] for number in images], [names[number] for number in images])
    words = [f"pairs: {len(found.pairs)} by name patterns"]
    if found.by_folder:
        words.append(
            "the names' wildcards are never the same: the only source and the only target of a folder are pairs"
        )
    if found.left or found.right:
        words.append(
            f"without a partner: {plural(len(found.left), 'source')} and {plural(len(found.right), 'target')}, left out"
        )
    return _within_patients([(images[one], images[other]) for one, other in found.pairs], tuple(words), pairs, patients)


def by_table(
    pairs: str, sources: Sequence[Source], patients: Sequence[str], names: Sequence[str], side: str = "source"
) -> tuple[Pairs, tuple[str, ...]]:
    """The pairs of a table, one column of it with the column target, and how they were found."""
    table = Path(pairs)
    if not table.is_file():
        raise ValueError(f"expected a CSV table with the columns source and target as pairs, found no file {table}")
    columns, rows = tables.read(table)
    if side not in columns or "target" not in columns:
        raise ValueError(
            f"expected the columns {side} and target in {table}, found {', '.join(columns) or 'no rows'}: rename them in the first line"
        )
    rows = [row for row in rows if row[side] and row["target"]]
    scans = locate([row[column] for row in rows for column in (side, "target")], sources, names)
    found = {
        (scans[row[side]][0], scans[row["target"]][0])
        for row in rows
        if len(scans.get(row[side], ())) == 1 and len(scans.get(row["target"], ())) == 1
    }
    if not found:
        example = rows[0][side] if rows else "nothing"
        raise ValueError(
            f"expected {side} and target of {table} to name scans, found no pair among {len(rows)} rows (the first is {example!r}): give paths as they lie below the folder of scans, in full where a file name occurs twice"
        )
    sides = [(scans.get(row[side]), scans.get(row["target"])) for row in rows]
    missing = sum(None in both for both in sides)
    several = sum(None not in both and any(len(hits or ()) != 1 for hits in both) for both in sides)
    words = [f"pairs: {len(found)} from the table"]
    if missing:
        words.append(f"{missing} of the table's {len(rows)} rows name a file that is no usable scan, left out")
    if several:
        words.append(
            f"{several} of the table's {len(rows)} rows fit several scans, left out: give the path of one scan in full"
        )
    return _within_patients(sorted(found), tuple(words), pairs, patients)


# ------------------------------------------------------------------------------------------------ modalities


def _by_modality(pairs: str, sources: Sequence[Source], patients: Sequence[str]) -> tuple[Pairs, tuple[str, ...]]:
    """Within a patient, each target with the source that lies as it does."""
    kinds = [part.strip().upper() for part in pairs.split(":")]
    if len(kinds) != 2 or not set(kinds) <= set(MODALITIES) or kinds[0] == kinds[1]:
        raise ValueError(
            f"expected pairs as two different modalities such as MR:CT (of {', '.join(MODALITIES)}), two name patterns such as *T1*:*T2*, or a CSV table with the columns source and target, got {pairs!r}"
        )
    groups: defaultdict[str, tuple[list[int], list[int]]] = defaultdict(lambda: ([], []))
    for number, (source, patient) in enumerate(zip(sources, patients)):
        if source.role == "image" and source.modality in kinds:
            groups[patient][kinds.index(source.modality)].append(number)
    counts = [sum(len(group[side]) for group in groups.values()) for side in (0, 1)]
    if not all(counts):
        raise ValueError(
            f"expected {kinds[0]} and {kinds[1]} scans for pairs {pairs!r}, found {counts[0]} and {counts[1]}: files such as NIfTI and PNG do not say their modality; pair them by name patterns such as *MR*:*CT*"
        )
    found: Pairs = []
    ambiguous = framed = 0
    for own, wished in groups.values():
        chosen, unclear = within(own, wished, sources)
        found += chosen
        ambiguous += unclear
        framed += sum(same_frame(sources[one], sources[other]) for one, other in chosen)
    if not found:
        raise ValueError(
            f"expected a patient with {kinds[0]} and {kinds[1]} of one region for pairs {pairs!r}, found {plural(counts[0], 'source')} and {plural(counts[1], 'target')} of {plural(len(groups), 'patient')} and none that overlap: check that Patient ID (0010,0020) is the same in both, or give a CSV table with the columns source and target"
        )
    return found, _modality_words(kinds, found, counts, ambiguous, framed)


def _modality_words(kinds: list[str], found: Pairs, counts: list[int], ambiguous: int, framed: int) -> tuple[str, ...]:
    words = [f"pairs: {len(found)} of {kinds[0]} and {kinds[1]}, by patient and position"]
    if framed < len(found):
        words.append(
            f"{plural(len(found) - framed, 'pair')} without a common Frame of Reference UID (0020,0052): positions are taken as they are; look at the misregistration"
        )
    if ambiguous:
        words.append(
            f"{plural(ambiguous, 'target')} with several sources that fit equally well: the first by name was taken; name patterns choose another"
        )
    left = [counts[side] - len(found) for side in (0, 1)]
    if any(left):
        words.append(
            f"without a partner: {plural(left[0], f'{kinds[0]} scan')} and {plural(left[1], f'{kinds[1]} scan')}, left out"
        )
    return tuple(words)
