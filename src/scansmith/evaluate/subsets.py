"""Several sources: the error of a translation from each set of them, so that it is known what a missing one costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from ..pairings import Pairing, Several, cases_of

MOST_CASES = 24  # of each set


def check(settings: Mapping[str, Any], pairs: Pairing) -> None:
    """Nothing when the dataset has the sources that the model learned.

    Raises:
        ValueError: others.
    """
    learned = [(one["name"], one["modality"]) for one in settings.get("sources", [])]
    found = [(one["name"], one["modality"]) for one in pairs.data.info.get("sources") or []]
    if learned != found:
        listed = [", ".join(f"{name} ({kind})" for name, kind in one) or "one source" for one in (learned, found)]
        raise ValueError(
            f"expected a dataset of {listed[0]} as the model learned, found {listed[1]} in {pairs.data.root}: prepare it with the same patterns"
        )


def sets_of(count: int) -> list[tuple[int, ...]]:
    """All sources, each alone, and all but each, without repetition."""
    every = tuple(range(count))
    alone = [(number,) for number in every]
    without = [tuple(one for one in every if one != number) for number in every]
    return list(dict.fromkeys([every, *alone, *without]))


def table(
    pairs: Several, split: str, error: Callable[[Several, np.ndarray], float], summary: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """The error with each set of sources, on the cases that have all of the set; other sources are hidden from the model.

    Args:
        pairs: the sources.
        split: whose cases.
        error: of one case, given by its rows, in the units of the target.
        summary: of the errors by patient.

    Returns:
        [{"sources": names, "cases", "mae"}], "mae" being None where no case has the set.
    """
    found = []
    for only in sets_of(len(pairs.names)):
        some = replace(pairs, only=only)
        cases = cases_of(pairs.data, some.rows(split))
        cases = cases[:: -(-len(cases) // MOST_CASES)] if cases else []
        each: dict[str, list[float]] = {}
        for rows in cases:
            each.setdefault(str(pairs.data.columns["patient"][rows[0]]), []).append(error(some, rows))
        names = [pairs.names[number] for number in only]
        found.append({"sources": names, "cases": len(cases), "mae": summary(each) if each else None})
    return found


def words(found: list[dict[str, Any]], pairs: Several, units: str) -> Iterator[str]:
    """The table for people, and what identity means."""
    parts = [f"{' + '.join(one['sources'])} {one['mae']['value']:.3g} ({one['cases']})" for one in found if one["mae"]]
    yield f"Error in {units} by the sources given, with the cases that have them: {'; '.join(parts)}."
    none = [" + ".join(one["sources"]) for one in found if not one["mae"]]
    if none:
        yield f"No held-out case has {', nor '.join(none)}: what they give is not known."
    if pairs.alike is None:
        kind = pairs.data.info["target"]["modality"]
        yield f"No source is {kind}: nothing is compared with the source as it is (identity)."
    else:
        yield f"Identity is {pairs.names[pairs.alike]}, the first source of the target's modality, where it is there; the line is fitted to all sources."
