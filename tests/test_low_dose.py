"""Windowed PSNR, SSIM and VIF beside torchmetrics and closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansmith.metrics import low_dose


@pytest.fixture(scope="module")
def pair() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:64j, -1:1:72j]
    real = 40 + 60 * np.sin(5 * x) * np.cos(7 * y) - 1000 * (x**2 + y**2 > 0.9)
    return real, real + random.normal(0, 20, real.shape)


def test_windows_show_black_to_white_over_their_width():
    assert low_dose.windowed(np.array([-1350.0, -600.0, 150.0, 900.0]), "chest").tolist() == [0.0, 0.5, 1.0, 1.0]
    assert low_dose.windowed(np.array([-150.0, 50.0, 150.0, 250.0]), "abdomen").tolist() == [0.0, 0.5, 0.75, 1.0]
    assert low_dose.windowed(np.array([0.0, 40.0, 80.0]), "neuro").tolist() == [0.0, 0.5, 1.0]


@pytest.mark.parametrize("window", low_dose.WINDOWS)
def test_psnr_is_that_of_torchmetrics_and_equal_images_are_perfect(pair, window):
    metrics = pytest.importorskip("torchmetrics.functional.image")
    real, made = (torch.from_numpy(low_dose.windowed(one, window)) for one in pair)
    found = low_dose.low_dose(*pair, window)
    assert found["psnr"] == pytest.approx(float(metrics.peak_signal_noise_ratio(made, real, data_range=1.0)), rel=1e-5)
    same = low_dose.low_dose(pair[0], pair[0], window)
    assert same == {"psnr": np.inf, "ssim": pytest.approx(1.0), "vif": pytest.approx(1.0, abs=1e-6)}


@pytest.mark.parametrize("window", low_dose.WINDOWS)
def test_vif_is_that_of_torchmetrics(pair, window):
    metrics = pytest.importorskip("torchmetrics.functional.image")
    real, made = (255 * low_dose.windowed(one, window) for one in pair)
    theirs = metrics.visual_information_fidelity(*(torch.from_numpy(one)[None, None] for one in (made, real)))
    assert low_dose.vif(real, made) == pytest.approx(float(theirs), rel=1e-4)


def test_vif_falls_with_noise_and_rises_with_contrast(pair):
    real = 255 * low_dose.windowed(pair[0], "abdomen")
    random = np.random.default_rng(1)
    values = [low_dose.vif(real, real + random.normal(0, sigma, real.shape)) for sigma in (0, 5, 20, 80)]
    assert sorted(values, reverse=True) == values and values[-1] < 0.2
    assert low_dose.vif(real, 1.5 * real) > 1.0


def test_small_and_flat_slices_have_no_vif():
    flat = np.full((64, 64), 40.0)
    assert set(low_dose.low_dose(flat, flat + 10, "neuro")) == {"psnr", "ssim"}
    small = np.random.default_rng(0).normal(50, 30, (32, 64))
    assert set(low_dose.low_dose(small, small, "abdomen")) == {"psnr", "ssim"}
