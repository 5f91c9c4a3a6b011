"""The real/real floor of a translation: noise found in a reference, and what it alone makes two scans differ by."""

from __future__ import annotations

import numpy as np
import pytest

from scansmith.evaluate import floor
from scansmith.evaluate.held_out import Scan
from scansmith.evaluate.numbers import judged


def organs(noise: float, shape=(24, 96, 96)) -> tuple[np.ndarray, np.ndarray]:
    """(image with sharp organs on a slope and white noise, body)."""
    random = np.random.default_rng(0)
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, side) for side in shape[1:]), indexing="ij")
    body = np.broadcast_to(rows**2 + columns**2 < 0.8, shape)
    values = 0.1 * rows + 0.3 * ((rows - 0.2) ** 2 + columns**2 < 0.1) - 0.2 * (np.abs(columns) < 0.08)
    return np.where(body, values + noise * random.normal(size=shape), -1.0), body


@pytest.mark.parametrize("noise", [0.003, 0.02, 0.1])
def test_noise_is_found_beside_edges(noise):
    image, body = organs(noise)
    assert floor.noise(image, body) == pytest.approx(noise, rel=0.06)
    assert floor.noise(3.0 * image + 1.0, body) == pytest.approx(3.0 * noise, rel=0.06)


def test_folds_are_no_noise_as_long_as_some_place_is_flat():
    image, body = organs(0.02)
    folds = 0.3 * np.sin(np.arange(96.0)) * (np.arange(96)[:, None] < 70)
    assert floor.noise(image + folds, body) == pytest.approx(0.02, rel=0.15)


def test_an_image_without_noise_or_body_has_none():
    image, body = organs(0.0)
    assert floor.noise(image, body) < 1e-7
    assert np.isnan(floor.noise(image, np.zeros_like(body)))
    assert np.isnan(floor.noise(np.full_like(image, 0.3), body))


def test_what_was_cut_away_around_a_brain_counts_for_nothing():
    image, body = organs(0.02)
    assert floor.noise(image, np.ones_like(body)) == pytest.approx(0.02, rel=0.2)  # its rim counts as well
    box = np.full((24, 300, 300), -1.0)
    box[:, 100:196, 100:196] = image
    scan = Scan("p", box, box, box, box, box, np.ones_like(box, bool), (0.0, 1.0))
    made = floor.repeated(scan, 3)
    assert made is not None and (made - box).std() == pytest.approx(np.sqrt(2.0) * 0.02, rel=0.06)
    blank = Scan("p", box, -np.ones_like(box), box, box, box, scan.inside, (0.0, 1.0))
    assert floor.repeated(blank, 3) is None


def test_the_floor_is_what_two_scans_with_noise_of_their_own_differ_by():
    noise = 0.02
    image, body = organs(noise)
    scan = Scan("p", image, image, image, image, image, body, (-1024.0, 1024.0))
    made = floor.repeated(scan, 3)
    assert (
        made is not None
        and np.array_equal(made, floor.repeated(scan, 3))
        and not np.array_equal(made, floor.repeated(scan, 4))
    )
    found = judged(scan, made, "HU")
    assert found["mae"] == pytest.approx(2.0 / np.sqrt(np.pi) * noise * 1024.0, rel=0.06)  # mean |N(0, 2 sigma^2)|
    assert found["psnr"] == pytest.approx(10.0 * np.log10(4024.0**2 / (2.0 * (noise * 1024.0) ** 2)), abs=0.5)
