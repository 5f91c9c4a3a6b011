"""What each task makes of stored rows: sources that are worse than their targets, label maps either way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from test_translation import default, make_pairs

from scansmith import dataset, degradations, pairings
from scansmith.dataset import Dataset
from scansmith.pairings import degraded, label_map, one_hot


def make_scans(root: Path, modality: str = "CT", size: tuple[int, ...] = (40, 48), masks: bool = True) -> Dataset:
    """Twelve smooth images of 6 patients, ten of them with a label map of the values 3 and 7: a bright square and a dark one."""
    random, count = np.random.default_rng(0), 12
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    disc = sum(axis**2 for axis in axes) < 0.8
    maps = np.zeros((count, *size), np.uint8)
    for row in range(count):
        corner = [int(random.integers(side // 4, side // 2)) for side in size]
        maps[row][tuple(slice(c, c + 6) for c in corner)] = 3
        maps[row][tuple(slice(c - 6, c) for c in corner)] = 7
    values = {0: 40.0, 3: 300.0, 7: -200.0}
    images = np.where(disc, np.select([maps == one for one in values], list(values.values())), -1000.0)
    low, high = (-1024.0, 1000.0) if modality == "CT" else (-1000.0, 300.0)
    columns = {name: default(name, count) for name in dataset.COLUMNS} | {
        "case": [f"c{row // 2}" for row in range(count)], "slice": list(range(count)),
        "patient": [f"p{row // 2}" for row in range(count)], "split": ["train"] * 8 + ["validation"] * 4,
        "spacing": [[3.0, 2.0, 1.5]] * count, "low": [low] * count, "high": [high] * count, "units": ["HU" if modality == "CT" else "a.u."] * count,
        "affine": [np.eye(4)] * count, "masked": [row not in (0, 9) for row in range(count)],
    }  # fmt: skip
    layers = {"images": (np.dtype(np.int16), (1, *size))} | (
        {"masks": (np.dtype(np.uint8), (1, *size))} if masks else {}
    )
    writer = dataset.Writer(root, layers)
    for image, mask in zip(images.astype(np.int16), maps):
        writer.add({"images": image[None, None]} | ({"masks": mask[None, None]} if masks else {}))
    info = {"modality": modality, "units": "HU" if modality == "CT" else "a.u.", "labels": [], "spacing": [3.0, 2.0, 1.5][-len(size):],
            "source_format": "nifti", "hash": "d" * 16, "neighbours": 0, "choices": {"channels": 1, "dimensions": 3, "bias_field": False, "landmarks": None, "window": None, "percentiles": None, "depth": None, "height": size[-2], "width": size[-1]}}  # fmt: skip
    if len(size) == 3:
        info["depth"] = size[0]
    writer.finish(info, columns)
    return Dataset.open(root)


# ------------------------------------------------------------------------------------------------ noise


def test_ct_is_given_the_noise_of_a_smaller_dose_around_the_true_image(tmp_path):
    pairing = pairings.pairing("denoise", make_scans(tmp_path / "d"))
    assert pairing.residual and pairing.in_channels == pairing.out_channels == 1
    target, source = pairing.target(1), pairing.source(1)
    np.testing.assert_array_equal(source, pairing.source(1))  # what ticks and evaluations see stays
    noise = (source - target) * 1012
    assert 1.0 < noise.std() < 200.0 and abs(noise.mean()) < 0.2 * noise.std()
    drawn = [(pairing.source(1, random=np.random.default_rng(seed)) - target) * 1012 for seed in range(40)]
    assert np.abs(np.mean(drawn, axis=0)).std() < 0.5 * noise.std()
    stronger = [one.std() for one in drawn]
    # Quantum noise: from .5 to .1 of the dose, sqrt(1 / dose - 1) goes from 1 to 3.
    assert 1.8 < max(stronger) / min(stronger) <= 3.05


def test_a_part_of_a_noisy_image_is_that_part_of_the_whole(tmp_path):
    for modality in ("CT", "MR"):
        pairing = pairings.pairing("denoise", make_scans(tmp_path / modality, modality))
        part = (slice(8, 24), slice(0, 16))
        np.testing.assert_array_equal(pairing.source(2, part), pairing.source(2)[:, 8:24, 0:16])


def test_patterns_of_noise_are_kept_while_there_is_room(tmp_path, monkeypatch):
    pairing = pairings.pairing("denoise", make_scans(tmp_path / "d"))
    calls = []
    monkeypatch.setattr(
        degraded.degradations, "ct_noise", lambda image, *rest: calls.append(1) or np.ones_like(image, np.float32)
    )
    for _ in range(3):
        pairing.pattern(1, 0)
    assert len(calls) == 1 and pairing.pattern(1, 0).dtype == np.float16
    monkeypatch.setattr(degraded, "KEPT_BYTES", 0)
    for _ in range(3):
        pairing.pattern(1, 1)
    assert len(calls) == 4


def test_noise_of_mr_is_never_below_nothing(tmp_path):
    pairing = pairings.pairing("denoise", make_scans(tmp_path / "d", "MR"))
    source = pairing.source(1)
    assert (
        source.min() >= -1.0 - 1e-6 and (source - pairing.target(1))[0, :4, :4].mean() > 0.02
    )  # Rician: air is raised


# ------------------------------------------------------------------------------------------------ coarse


def test_volumes_get_thick_slices_and_images_large_pixels(tmp_path):
    flat = pairings.pairing("superresolve", make_scans(tmp_path / "flat"))
    assert flat.source(1).shape == flat.target(1).shape == (1, 40, 48)
    deep = pairings.pairing("superresolve", make_scans(tmp_path / "deep", size=(18, 24, 24), masks=False))
    source, target = deep.source(1), deep.target(1)
    across = [np.abs(np.diff(one, axis=1)).mean() for one in (source, target)]
    assert across[0] < 0.95 * across[1]  # blurred along slices
    measured = degradations.thickened(target, degraded.USUAL_FACTOR)
    np.testing.assert_allclose(source, degradations.refined(measured, 18, degraded.USUAL_FACTOR), atol=1e-5)
    part = (slice(4, 12), slice(0, 16), slice(8, 24))
    np.testing.assert_allclose(deep.source(1, part), source[:, 4:12, 0:16, 8:24], atol=1e-5)
    factors = {
        round(float(np.abs(deep.source(1, random=np.random.default_rng(seed)) - target).mean()), 4) for seed in range(5)
    }
    assert len(factors) == 5


@pytest.mark.parametrize("task", ["denoise", "superresolve"])
def test_paired_scans_of_one_kind_are_themselves_the_worse_and_the_better(tmp_path, task):
    made = make_pairs(tmp_path / "d")
    with pytest.raises(ValueError, match=r"expected pairs of one kind of scan .* found MR and CT: use --task paired"):
        pairings.pairing(task, Dataset.open(made)).about()
    info = json.loads((made / "dataset.json").read_text())
    info["target"] = {"modality": "MR", "channels": 1, "units": "a.u."}
    (made / "dataset.json").write_text(json.dumps(info))
    data = Dataset.open(made)
    pairing = pairings.pairing(task, data)
    assert pairing.residual and pairing.about()["target"]["modality"] == "MR"
    np.testing.assert_array_equal(pairing.source(3), pairings.pairing("paired", data).source(3))


# ------------------------------------------------------------------------------------------------ label maps


def test_label_maps_are_targets_of_segmentation_and_sources_of_painting(tmp_path):
    data = make_scans(tmp_path / "d")
    segmentation, painting = (pairings.pairing(task, data) for task in ("segment", "paint"))
    assert segmentation.labels == painting.labels == (3, 7)
    assert (segmentation.in_channels, segmentation.out_channels) == (1, 3)
    assert (painting.in_channels, painting.out_channels) == (3, 1)
    assert 0 not in segmentation.rows("train") and 9 not in segmentation.rows("validation")  # without a mask
    stored = data.mask(1)
    target, source = segmentation.target(1), painting.source(1)
    assert set(np.unique(target)) == {0.0, 1.0} and set(np.unique(source)) == {-1.0, 1.0}
    np.testing.assert_array_equal(source, 2 * target - 1)
    np.testing.assert_array_equal(target.sum(0), np.ones((40, 48)))
    np.testing.assert_array_equal(label_map(target, segmentation.labels), stored)
    np.testing.assert_array_equal(segmentation.source(1), painting.target(1))
    assert (segmentation.input, segmentation.output, painting.input, painting.output) == (
        "image",
        "mask",
        "mask",
        "image",
    )
    assert painting.familiar() is None and painting.about()["source"]["labels"] == [3, 7]
    assert segmentation.about()["target"]["labels"] == [3, 7]


def test_the_error_of_a_segmentation_is_one_less_its_dice(tmp_path):
    pairing = pairings.pairing("segment", make_scans(tmp_path / "d"))
    numbers = np.zeros((8, 8), np.int64)
    numbers[:4, :4], numbers[4:, 4:] = 1, 2
    target, everywhere = one_hot(numbers, 3), np.ones((8, 8), bool)
    assert pairing.error(target, target, everywhere) == 0.0
    half = numbers.copy()
    half[:2] = 0  # half of the first label: Dice 2 * 8 / (8 + 16)
    assert pairing.error(one_hot(half, 3), target, everywhere) == pytest.approx(1 - (2 / 3 + 1) / 2)
    assert pairing.error(pairing.simple((0.0, 0.0), target), target, everywhere) == 1.0
    nothing = one_hot(np.zeros((8, 8), np.int64), 3)
    assert pairing.error(nothing, nothing, everywhere) == 0.0


def test_datasets_without_masks_or_with_empty_ones_are_refused_in_words(tmp_path):
    with pytest.raises(ValueError, match=r"expected scans with masks .* found none: prepare them again with --masks"):
        pairings.pairing("segment", make_scans(tmp_path / "bare", masks=False))
    data = make_scans(tmp_path / "empty")
    for file in (tmp_path / "empty").glob("masks*.npy"):
        stored = np.load(file, mmap_mode="r+")
        stored[...] = 0
        stored.flush()
    with pytest.raises(ValueError, match=r"expected 1 to 64 labels .* found nothing marked"):
        pairings.pairing("paint", replace(data))


def test_what_is_judged_of_thick_slices_agrees_with_them_as_what_is_delivered(tmp_path):
    volumes, slices = (make_scans(tmp_path / name, size=size, masks=False) for name, size in (("3d", (12, 20, 24)), ("2d", (20, 24))))  # fmt: skip
    pairs = pairings.pairing("superresolve", volumes)
    planes = np.random.default_rng(0).normal(size=(3, 12, 20, 24)).astype(np.float32)
    made = pairs.faithful(1, planes)
    measured = degradations.thickened(pairs.target(1), degraded.USUAL_FACTOR)
    assert (
        np.abs(degradations.thickened(made[:1], degraded.USUAL_FACTOR) - measured).max() < 0.01 * np.abs(measured).max()
    )
    np.testing.assert_allclose(made - made[:1], planes - planes[:1], atol=1e-5)  # bounds move with the middle
    true = np.repeat(pairs.target(1), 3, axis=0)
    np.testing.assert_allclose(pairs.faithful(1, true), true, atol=1e-4)
    flat = planes[:, 0]
    assert pairings.pairing("superresolve", slices).faithful(1, flat) is flat
    assert pairings.pairing("segment", make_scans(tmp_path / "masks")).faithful(1, flat) is flat


def test_what_thick_slices_smear_into_padding_is_no_error(tmp_path):
    pairs = pairings.pairing("superresolve", make_scans(tmp_path / "3d", size=(12, 20, 24), masks=False))
    target = np.full((1, 12, 20, 24), -1.0, np.float32)
    target[:, 2:9, 4:15] = 0.3
    target[:, 5, 8:10] = -1.0  # air within the scan counts where the source shows something
    source = np.full_like(target, 0.1)
    body = pairs.body(source, target)
    assert body[2:9, 4:15].all() and body.sum() == 7 * 11 * 24
    assert not pairs.body(source, np.full_like(target, -1.0)).any()
    assert degraded.between(np.array([0, 1, 0, 0, 1, 0], bool)).tolist() == [False, True, True, True, True, False]
