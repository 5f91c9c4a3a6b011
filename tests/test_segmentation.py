"""Segmentation: the losses by hand, what is learned, judged beside simple methods, and written."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pairings import make_scans

from scansmith import evaluate, losses, model, pairings, train
from scansmith.dataset import Dataset
from scansmith.evaluate import segmentation as judging
from scansmith.image import Image
from scansmith.pairings import label_map, one_hot
from scansmith.translator import translated

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("segmentation")
    make_scans(root / "data", "MR")
    train(root / "data", root / "run", task="segment", images=480, minutes=0.1, device="cpu")
    return root / "data", root / "run"


def test_the_losses_are_those_of_their_definitions_and_borders_do_not_count():
    torch.manual_seed(0)
    scores = torch.randn(2, 3, 6, 8)
    numbers = torch.randint(0, 3, (2, 6, 8))
    real = torch.nn.functional.one_hot(numbers, 3).movedim(-1, 1).float()
    weight = torch.ones(2, 1, 6, 8)
    torch.testing.assert_close(
        losses.cross_entropy(scores, real, weight), torch.nn.functional.cross_entropy(scores, numbers)
    )
    share = scores.softmax(1)
    each = [2 * (share[:, k] * real[:, k]).sum() / (share[:, k] + real[:, k]).sum() for k in (1, 2)]
    torch.testing.assert_close(losses.dice(scores, real, weight), 1 - torch.stack(each).mean(), atol=1e-4, rtol=1e-4)
    weight[..., 4:] = 0.0
    changed = scores.clone()
    changed[..., 4:] = 50.0 * torch.randn(2, 3, 6, 4)
    for loss in (losses.dice, losses.cross_entropy):
        torch.testing.assert_close(loss(changed, real, weight), loss(scores, real, weight))
    perfect = 100.0 * (2 * real - 1)
    assert losses.dice(perfect, real, torch.ones(2, 1, 6, 8)) == pytest.approx(0.0, abs=1e-5)


def test_a_segmentation_is_learned_and_beats_a_threshold_and_the_atlas_only_if_it_says_so(learned, tmp_path):
    data, run = learned
    result = evaluate(data, run / "model", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    assert result["task"] == "segmentation" and result["labels"] == [3, 7] and result["split"] == "validation"
    metrics = result["metrics"]
    assert set(metrics) == {"segmentation", "threshold", "atlas"}
    # A bright and a dark square: intensity alone tells them, places do not.
    assert metrics["threshold"]["dice"]["value"] > 0.95 > metrics["atlas"]["dice"]["value"]
    assert metrics["segmentation"]["dice"]["value"] > 0.8
    assert metrics["segmentation"]["hd95 3"]["value"] < 20
    assert all((tmp_path / "out" / name).is_file() for name in result["pictures"]) and len(result["pictures"]) == 2
    assert any("no interval over patients" in words for words in result["words"])


def test_numbers_of_a_perfect_and_an_empty_map():
    true = np.zeros((2, 16, 16), np.int64)
    true[:, 2:8, 2:8], true[:, 9:14, 9:14] = 1, 2
    perfect = judging.judged(true, true, [3, 7], [2.0, 1.0])
    assert perfect == {"dice": 1.0, "dice 3": 1.0, "hd95 3": 0.0, "dice 7": 1.0, "hd95 7": 0.0}
    nothing = judging.judged(0 * true, true, [3, 7], [2.0, 1.0])
    assert nothing["dice"] == 0.0 and np.isnan(nothing["hd95 3"])
    moved = judging.judged(np.roll(true, 1, 1), true, [3, 7], [2.0, 1.0])
    assert moved["hd95 3"] == pytest.approx(2.0)


def test_a_threshold_may_lie_above_below_or_between():
    values = np.random.default_rng(0).uniform(-1, 1, (2, 4000))
    for marked in (values[1] > 0.5, values[1] < -0.2, (values[0] > -0.5) & (values[0] < 0.1)):
        score, found = judging.best_threshold(values, marked)
        assert score > 0.9 and (found.marks(values) == marked).mean() > 0.9


def test_a_scan_becomes_a_label_map_in_its_place_with_confidence(learned):
    data, run = Dataset.open(learned[0]), model.load(learned[1] / "model")
    scan = Image(data.image(1)[0].T[None, :, :, None], np.diag([-1.5, -2.0, 3.0, 1.0]), "MR")
    made = translated(run, scan, "nifti", CPU)
    assert made.image.array.shape == scan.array.shape and set(np.unique(made.image.array)) <= {0, 3, 7}
    assert np.array_equal(made.image.affine, scan.affine) and made.image.units == "label"
    confidence = made.maps["confidence"].array
    assert confidence.min() >= 1 / 3 - 1e-6 and confidence.max() <= 1.0
    true = data.mask(1).T[None, :, :, None]
    assert (made.image.array == true).mean() > 0.9


def test_other_labels_than_were_learned_are_refused(learned, tmp_path):
    run = model.load(learned[1] / "model")
    other = make_scans(tmp_path / "d", "MR")
    for file in (tmp_path / "d").glob("masks*.npy"):
        stored = np.load(file, mmap_mode="r+")
        stored[stored == 7] = 9
        stored.flush()
    with pytest.raises(ValueError, match=r"expected masks with the labels \[3, 7\].* found \[3, 9\]"):
        judging.evaluate_segmentation(Dataset.open(other.root), run, tmp_path / "out", "cpu")
    assert label_map(one_hot(np.array([0, 2]), 3), [3, 7]).tolist() == [0, 7]
    assert pairings.pairing("segment", other).labels == (3, 9)
