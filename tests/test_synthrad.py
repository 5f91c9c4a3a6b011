"""The metrics of SynthRAD: against re-computation from their definitions by other means, closed forms and invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from scansmith.metrics.synthrad import ms_ssim, synthrad2023, synthrad2025

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)


def scans(shape, seed=0):
    """(CT, a translation of it, a mask) with values beyond both ends of the windows."""
    random = np.random.default_rng(seed)
    smooth = gaussian_filter(random.normal(size=shape), 2.0)
    real = 1500.0 * smooth / smooth.std() + 300.0
    made = real + 60.0 * gaussian_filter(random.normal(size=shape), 1.0) / 0.1 + 40.0
    mask = gaussian_filter(random.normal(size=shape), 4.0) > -0.01
    assert real.max() > 3071 and real.min() < -1024 and 0.3 < mask.mean() < 0.95
    return real.astype(np.float32), made.astype(np.float32), mask


def box_mean(x, side=7):
    """The mean over each whole window, by running sums."""
    for axis in range(x.ndim):
        sums = np.cumsum(np.insert(x, 0, 0.0, axis=axis), axis=axis)
        last = np.arange(side, sums.shape[axis])
        x = (np.take(sums, last, axis) - np.take(sums, last - side, axis)) / side
    return x


def parts(a, b, extent):
    """l, c, s of Wang 2004 for every whole window."""
    n = 7**a.ndim
    ma, mb = box_mean(a), box_mean(b)
    va, vb = (n / (n - 1) * (box_mean(x * x) - m * m) for x, m in ((a, ma), (b, mb)))
    vab = n / (n - 1) * (box_mean(a * b) - ma * mb)
    c1, c2 = (0.01 * extent) ** 2, (0.03 * extent) ** 2
    both = np.sqrt(va.clip(0) * vb.clip(0))
    return (2 * ma * mb + c1) / (ma**2 + mb**2 + c1), (2 * both + c2) / (va + vb + c2), (vab + c2 / 2) / (both + c2 / 2)


def inner(mask):
    return mask[(slice(3, -3),) * mask.ndim]


def prepared(real, made, mask, top):
    return (np.where(mask, np.clip(x.astype(np.float64), -1024, top) + 1024, 0.0) for x in (real, made))


@pytest.mark.parametrize("shape", [(40, 37), (21, 18, 25)])
def test_synthrad2023_is_what_its_definition_gives(shape):
    real, made, mask = scans(shape)
    found = synthrad2023(real, made, mask)
    a, b = prepared(real, made, mask, 3000)
    light, contrast, structure = parts(a, b, 4024.0)
    assert found["mae"] == pytest.approx(np.mean([abs(float(x) - float(y)) for x, y in zip(real[mask], made[mask])]))
    assert found["psnr"] == pytest.approx(20 * math.log10(4024 / math.sqrt(((a - b)[mask] ** 2).mean())))
    assert found["ssim"] == pytest.approx((light * contrast * structure)[inner(mask)].mean(), abs=1e-9)


@pytest.mark.parametrize("shape", [(120, 101), (60, 100, 98)])
def test_synthrad2025_and_the_textbook_variant_are_what_their_definitions_give(shape):
    real, made, mask = scans(shape)
    a, b = prepared(real, made, mask, 3071)
    pad = [((97 - side) // 2, 97 - side - (97 - side) // 2) if side < 97 else (0, 0) for side in shape]
    a, b, inside = (np.pad(x, pad, mode="edge") for x in (a, b, mask))
    everywhere, coarsest = 1.0, 1.0
    for scale, weight in enumerate(WEIGHTS):
        light, contrast, structure = (x.clip(0) for x in parts(a, b, 4095.0))
        rest = (contrast * structure) ** weight
        everywhere *= (light**weight * rest)[inner(inside)].mean()
        coarsest *= ((light**weight if scale == 4 else 1.0) * rest)[inner(inside)].mean()
        a, b = (
            fftconvolve(x, np.ones((2,) * x.ndim) / 2**x.ndim, mode="same")[(slice(None, None, 2),) * x.ndim]
            for x in (a, b)
        )
        inside = inside[(slice(None, None, 2),) * inside.ndim]
    found = synthrad2025(real, made, mask)
    assert found["ms_ssim"] == pytest.approx(everywhere, abs=1e-9)
    assert ms_ssim(real, made, mask) == pytest.approx(coarsest, abs=1e-9)
    assert found["ms_ssim"] < coarsest  # a shift of all values lowers every scale's luminance
    assert found["mae"] == pytest.approx(np.abs(real.astype(float) - made)[mask].mean())


@pytest.mark.parametrize(("metrics", "extent"), [(synthrad2023, 4024.0), (synthrad2025, 4095.0)])
def test_closed_forms_and_what_lies_outside_the_mask(metrics, extent):
    real, made, mask = scans((110, 99))
    same = metrics(real, real, mask)
    assert same.pop("mae") == 0.0 and math.isinf(same.pop("psnr")) and list(same.values()) == [pytest.approx(1.0)]
    soft = np.clip(real, -900, 900)
    shifted = metrics(soft, soft + 25.0, mask)
    assert shifted["mae"] == pytest.approx(25.0, rel=1e-6)
    assert shifted["psnr"] == pytest.approx(20 * math.log10(extent / 25.0), rel=1e-6)
    elsewhere = np.where(mask, made, 777.0)
    assert metrics(real, elsewhere, mask) == metrics(real, made, mask)
    halves = [metrics(real, real + noise * (made - real), mask) for noise in (0.3, 1.0, 3.0)]
    assert halves[0]["mae"] < halves[1]["mae"] < halves[2]["mae"]
    name = next(key for key in halves[0] if "ssim" in key)
    assert halves[0][name] > halves[1][name] > halves[2][name]


def test_other_shapes_and_an_empty_mask_are_refused():
    real, made, mask = scans((30, 40))
    with pytest.raises(ValueError, match="of one shape"):
        synthrad2023(real, made[:20], mask)
    with pytest.raises(ValueError, match="sides of 7 voxels"):
        synthrad2023(real[:5], made[:5], mask[:5])
    with pytest.raises(ValueError, match="found an empty one"):
        synthrad2025(real, made, np.zeros_like(mask))
