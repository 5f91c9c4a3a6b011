"""Pairs for a model that was learned without pairs: scans are brought to the windows that it learned, as `translate` does."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from test_translation import make_pairs

from scansmith import dataset, pairings
from scansmith.evaluate.apart import as_learned
from scansmith.preprocess.window import window_of


def model_of(source: dict, target: dict, by_median: bool):
    choices = {"dimensions": 3, "window": None, "percentiles": None, "by_median": by_median}
    return SimpleNamespace(config={"translation": {"choices": choices, "source": source, "target": target}})


@pytest.fixture
def pairs(tmp_path) -> dataset.Dataset:
    """MR and CT whose windows are no scan's own."""
    made = dataset.Dataset.open(make_pairs(tmp_path / "pairs"))
    return replace(made, info=made.info | {"choices": made.info["choices"] | {"by_median": True}})


MR, CT = {"modality": "MR", "units": "a.u."}, {"modality": "CT", "units": "HU", "low": -900.0, "high": 1500.0}


def test_mr_sources_get_the_windows_of_scans_without_pairs(pairs):
    found = as_learned(pairs, model_of(MR | {"low": 0.0, "high": 1.0}, CT, by_median=False))
    for rows in pairings.cases_of(pairs, np.arange(len(pairs))):
        whole = np.stack([pairs.image(int(row)) for row in rows])
        wished = window_of(whole, "MR", 3)
        assert found.columns["low"][rows].tolist() == [wished.low] * len(rows)
        assert found.columns["high"][rows].tolist() == [wished.high] * len(rows)
    assert np.array_equal(found.columns["target_low"], pairs.columns["target_low"])
    assert np.array_equal(found.image(0), pairs.image(0)) and not np.array_equal(
        pairings.pairing("paired", found).source(0), pairings.pairing("paired", pairs).source(0)
    )


def test_what_both_do_alike_stays_and_ct_has_the_models_window(pairs):
    same = as_learned(pairs, model_of(MR, CT, by_median=True))
    assert all(np.array_equal(same.columns[f"{side}low"], pairs.columns[f"{side}low"]) for side in ("", "target_"))
    back = as_learned(pairs, model_of(CT, MR, by_median=False))
    assert set(back.columns["low"]) == {-900.0} and set(back.columns["high"]) == {1500.0}
    rows = pairings.cases_of(pairs, np.arange(len(pairs)))[0]
    wished = window_of(np.stack([pairs.target(int(row)) for row in rows]), "MR", 3)
    assert back.columns["target_high"][rows[0]] == wished.high


def test_x_rays_keep_the_windows_that_their_files_name(pairs):
    same = as_learned(
        pairs, model_of({"modality": "DX", "units": "a.u."}, {"modality": "DX", "units": "a.u."}, by_median=False)
    )
    assert all(
        np.array_equal(same.columns[name], pairs.columns[name]) for name in ("low", "high", "target_low", "target_high")
    )
