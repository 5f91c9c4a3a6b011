"""Structures of masks beside the body: their error, and what of them lies within the bounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_pairings import make_scans

from scansmith import pairings
from scansmith.evaluate import held_out
from scansmith.evaluate import translation as judging


def test_each_structure_of_a_mask_has_its_error_and_coverage():
    true = np.zeros((2, 12, 12), np.float32)
    made, labels = true.copy(), np.zeros(true.shape, np.uint8)
    labels[:, 2:4, 2:4], labels[0, 8:10, 8:10] = 3, 7
    made[labels == 3] += 0.1
    made[labels == 7] -= 0.3
    body = np.ones(true.shape, bool)
    scan = judging.Scan("p", true, true, made, made - 0.2, made + 0.2, body, (-1024.0, 1000.0), labels=labels)
    found = judging.judged(scan, made, "HU")
    assert found["mae 3"] == pytest.approx(0.1 * 1012) and found["mae 7"] == pytest.approx(0.3 * 1012)
    assert found["mae"] == pytest.approx((8 * 0.1 + 4 * 0.3) * 1012 / true.size)
    outside = judging.shares_outside(scan, "a.u.")
    assert outside == {"body": 4 / true.size, "label 3": 0.0, "label 7": 1.0}
    assert "mae 3" not in judging.judged(replace(scan, labels=None), made, "HU")


def test_masks_are_looked_up_where_the_whole_scan_has_them(tmp_path):
    data = make_scans(tmp_path / "scans")
    denoise = pairings.pairing("denoise", data)
    found = held_out.marked(denoise, np.array([2, 3]))
    assert found.shape == (2, 40, 48) and np.array_equal(found[1], data.mask(3)) and set(np.unique(found)) == {0, 3, 7}
    assert held_out.marked(denoise, np.array([0, 1])) is None  # row 0 has none
    assert held_out.marked(pairings.pairing("paint", data), np.array([2, 3])) is None
    bare = make_scans(tmp_path / "bare", masks=False)
    assert held_out.marked(pairings.pairing("denoise", bare), np.array([2, 3])) is None
