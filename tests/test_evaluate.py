"""evaluate: planted defects must be named, identical sets must pass, tiny and broken sets must give words."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from PIL import Image as Picture
from scipy.ndimage import gaussian_filter
from test_metrics import blobs

import scansmith
from scansmith import dataset, formats
from scansmith.evaluate import compare as comparing
from scansmith.evaluate import verdict as judging
from scansmith.evaluate import words
from scansmith.evaluate.copies import Copies, repeats
from scansmith.evaluate.load import load, open_scans
from scansmith.evaluate.planes import upright
from scansmith.evaluate.verdict import choose_sets, compared_size, halves
from scansmith.image import Image
from scansmith.metrics import METRICS, Metric, classifier


@pytest.fixture(autouse=True)
def _short_classifier(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 4)


def grey(images: np.ndarray) -> np.ndarray:
    """[-1, 1] -> 8-bit grey."""
    return np.rint((np.clip(images, -1, 1) + 1) * 127.5).astype(np.uint8)


def prepared(
    root: Path,
    train: np.ndarray,
    holdout: np.ndarray,
    patients: list[str] | None = None,
    low: float = 0.0,
    high: float = 255.0,
) -> Path:
    """A prepared dataset of these (N, C, H, W) images."""
    images = np.concatenate([train, holdout])
    count = len(images)
    columns = {
        "case": [f"c{i}" for i in range(count)],
        "patient": patients or [f"p{i}" for i in range(count)],
        "split": ["train"] * len(train) + ["holdout"] * len(holdout),
        "low": [low] * count,
        "high": [high] * count,
        "units": ["a.u."] * count,
    }
    dataset.write(
        root,
        {"modality": "OT", "labels": [], "split_level": "patient"},
        columns,
        images,
        images.dtype,
        images.shape[1:],
    )
    return root


def pictures(root: Path, images: np.ndarray) -> Path:
    """A folder of 8-bit PNG."""
    root.mkdir(parents=True, exist_ok=True)
    for number, image in enumerate(images):
        Picture.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0)).save(root / f"{number:04d}.png")
    return root


@pytest.fixture(scope="module")
def hands(shared_data) -> np.ndarray:
    files = sorted((shared_data / "mednist_64px_classes" / "Hand").glob("*.jpeg"))[:560]
    return np.stack([np.asarray(Picture.open(file).convert("L"))[None] for file in files])


@pytest.fixture(scope="module")
def hand_dataset(hands, tmp_path_factory) -> Path:
    """260 training and 100 held-out hands; hands[360:] are neither."""
    return prepared(tmp_path_factory.mktemp("hands") / "dataset", hands[:260], hands[260:360])


def verdict(result: dict) -> str:
    return "\n".join(result["verdict"])


# ------------------------------------------------------------------------------------------------ planted defects on real scans


def test_fresh_real_scans_pass_without_an_alarm(hand_dataset, hands, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 25)
    result = scansmith.evaluate(hand_dataset, pictures(tmp_path / "fake", hands[360:]), tmp_path, draws=6)
    assert "ALARM" not in verdict(result) and "No sign of" in verdict(result)
    for name in ("random_conv_frechet", "radiomics_frechet", "precision", "recall", "coverage"):
        assert 0.7 < result["metrics"][name]["ratio"] < 1.3, name
    low, high = result["metrics"]["classifier"]["interval"]
    assert low <= 0.5 <= high
    assert 0.8 < result["metrics"]["train_holdout_ratio"]["ratio"] < 1.2


def test_copies_of_training_scans_raise_the_memorising_alarm(hand_dataset, hands, tmp_path):
    noise = np.random.default_rng(0).normal(0, 4, (12, 1, 64, 64))
    copied = np.concatenate([np.roll(hands[:6], 1, 3), hands[6:12, :, :, ::-1]])
    copied = np.clip(copied + noise, 0, 255).astype(np.uint8)
    result = scansmith.evaluate(
        hand_dataset, pictures(tmp_path / "fake", np.concatenate([hands[360:], copied])), tmp_path, draws=3
    )
    assert result["verdict"][0].startswith("ALARM, memorising")
    # One of the other 200 hands resembles a training one as closely: some patients are in this collection twice.
    assert sum(pair["fake"] == 200 + pair["train"] for pair in result["nearest"]) >= 9
    assert 12 / 212 <= result["metrics"]["near_copies"]["value"] <= 14 / 212


def test_twenty_repeated_scans_are_called_little_variety(hand_dataset, hands, tmp_path):
    repeated = hands[360:380][np.random.default_rng(0).integers(0, 20, 150)]
    result = scansmith.evaluate(hand_dataset, pictures(tmp_path / "fake", repeated), tmp_path, draws=6)
    assert "ALARM, little variety" in verdict(result) and "ALARM, memorising" not in verdict(result)
    assert result["metrics"]["recall"]["value"] < 0.7 * result["metrics"]["recall"]["floor"]
    assert result["metrics"]["repeats"]["value"] > 0.9


def test_another_organ_and_noise_are_told_from_real_scans(hand_dataset, hands, shared_data, tmp_path, monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 25)
    chests = [
        np.asarray(Picture.open(file).convert("L"))[None]
        for file in sorted((shared_data / "mednist_64px_classes" / "ChestCT").glob("*.jpeg"))[:60]
    ]
    other = scansmith.evaluate(hand_dataset, pictures(tmp_path / "chest", np.stack(chests)), tmp_path / "a", draws=3)
    noisy = np.clip(hands[360:420] + np.random.default_rng(0).normal(0, 14, (60, 1, 64, 64)), 0, 255).astype(np.uint8)
    noise = scansmith.evaluate(hand_dataset, pictures(tmp_path / "noise", noisy), tmp_path / "b", draws=3)
    assert other["metrics"]["random_conv_frechet"]["ratio"] > 5 and other["metrics"]["precision"]["ratio"] < 0.5
    assert other["metrics"]["classifier"]["value"] > 0.9
    assert "ALARM, tell-tale" in verdict(noise) and noise["metrics"]["radiomics_frechet"]["ratio"] > 4
    assert "ALARM, memorising" not in verdict(other) + verdict(noise)


# ------------------------------------------------------------------------------------------------ the file


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Path, Path]:
    """A prepared dataset of 40 + 24 pictures and a folder of 30 others."""
    root = tmp_path_factory.mktemp("small")
    return prepared(root / "dataset", grey(blobs(40, 0)), grey(blobs(24, 1))), pictures(
        root / "fake", grey(blobs(30, 2))
    )


def test_metrics_json_holds_every_number_beside_its_floor_and_the_same_seed_gives_the_same_file(small, tmp_path):
    result = scansmith.evaluate(*small, tmp_path / "a", draws=4, seed=3)
    stored = json.loads(
        (tmp_path / "a" / "metrics.json").read_text(), parse_constant=lambda word: pytest.fail(f"{word} in strict JSON")
    )
    assert stored == result
    assert scansmith.evaluate(*small, tmp_path / "b", draws=4, seed=3) == result
    assert set(METRICS) | {"classifier", "repeats", "near_copies", "train_holdout_ratio"} <= set(result["metrics"])
    assert result["real"] == {"count": 24, "split": "holdout", "split_level": "patient", "source": "prepared dataset"}
    assert (result["train"]["count"], result["fake"]["count"], result["compared_per_draw"], result["size"]) == (
        40,
        30,
        24,
        [32, 32],
    )
    for entry in result["metrics"].values():
        assert set(entry) == {
            "title",
            "value",
            "interval",
            "floor",
            "floor_interval",
            "ratio",
            "better",
            "counts",
            "extractor",
            "words",
        }
        assert entry["words"].endswith(".") and entry["interval"][0] <= entry["interval"][1]
    with Picture.open(tmp_path / "a" / result["nearest_picture"]) as picture:
        assert picture.width > 3 * 144
    assert len(result["nearest"]) == 10 and all(pair["file"] is None for pair in result["nearest"])
    text = json.dumps(result)
    assert "anonym" not in text.lower() and str(tmp_path.parent) not in text


def test_another_seed_draws_other_scans(small, tmp_path):
    first, second = (scansmith.evaluate(*small, tmp_path, draws=2, seed=seed) for seed in (0, 1))
    assert first["metrics"]["radiomics_frechet"]["floor"] != second["metrics"]["radiomics_frechet"]["floor"]


def test_a_new_metric_is_one_line_and_gets_a_floor(small, tmp_path, monkeypatch):
    brightness = Metric(
        "Brightness gap",
        lambda real, fake: abs(real.mean() - fake.mean()),
        lambda images, device: images.mean(axis=(1, 2, 3))[:, None],
        "mean grey value",
        "lower",
        2,
        "brightness",
    )
    monkeypatch.setitem(METRICS, "brightness", brightness)
    entry = scansmith.evaluate(*small, tmp_path, draws=3)["metrics"]["brightness"]
    assert (
        entry["floor"] > 0
        and entry["interval"][0] <= entry["value"] <= entry["interval"][1]
        and "Brightness gap" in entry["words"]
    )


def test_a_share_says_its_number_in_the_words_of_its_own_line(small, tmp_path, monkeypatch):
    half = METRICS["precision"]._replace(compare=lambda real, fake: 0.5, words="{share} of them, or {value}, are half")
    monkeypatch.setitem(METRICS, "half", half)
    result = scansmith.evaluate(*small, tmp_path, draws=2)["metrics"]
    assert result["half"]["words"] == "50 % of them, or 0.50, are half (two sets of your real scans: 50 %)."
    assert "in grey values, noise and texture" in result["radiomics_frechet"]["words"]
    assert " % of the variety of the real scans" in result["recall"]["words"]


def test_the_classifier_learns_from_scans_of_all_folders_and_not_from_the_first_ones(monkeypatch):
    learned = []
    monkeypatch.setattr(judging, "CLASSIFIED", 20)
    monkeypatch.setattr(classifier, "train_and_test", lambda *sets, **_: learned.append(sets) or 0)
    folders = np.repeat(np.linspace(-1, 1, 5, dtype=np.float32), 40)[:, None, None, None] * np.ones((1, 1, 16, 16))
    judging.classify(folders, folders, folders, 0, "cpu", {}, {})
    train_real, train_fake, test_real, test_fake = learned[0]
    assert [len(images) for images in learned[0]] == [20, 20, 20, 20]
    for images in (train_real, train_fake, test_real, test_fake):
        assert len(np.unique(images[:, 0, 0, 0])) >= 3


def test_it_is_said_when_every_draw_holds_the_whole_holdout(small, tmp_path):
    whole = scansmith.evaluate(*small, tmp_path, draws=2)
    part = scansmith.evaluate(*small, tmp_path, draws=2, limit=12)
    assert whole["compared_per_draw"] == whole["real"]["count"] == 24
    assert any("each draw takes all 24 real images" in sentence for sentence in whole["not_checked"])
    assert not any("each draw takes" in sentence for sentence in part["not_checked"])


def test_the_verdict_counts_images_where_it_counts_images(small, tmp_path):
    result = scansmith.evaluate(*small, tmp_path, draws=2)
    assert "none of 30 synthetic images is nearer to a training image" in verdict(result)
    assert "Only 24 held-out images calibrate" in verdict(result) and "Only 24 images are compared" in verdict(result)
    assert "of 30 synthetic images are near copies of one of 40 training images" in str(result["metrics"])


def test_a_metric_that_is_not_finite_is_left_out_with_a_reason(small, tmp_path, monkeypatch):
    monkeypatch.setitem(METRICS, "broken", METRICS["precision"]._replace(compare=lambda real, fake: float("nan")))
    result = scansmith.evaluate(*small, tmp_path, draws=2)
    assert "broken" not in result["metrics"] and "not finite" in result["not_computed"]["broken"]


def test_equal_sets_have_the_floor_of_equal_sets():
    features = comparing.encode(*[blobs(60, 0)] * 3, "cpu")
    entries, reasons, count = comparing.compare(features, draws=12, limit=1000, seed=0)
    assert count == 48 and not reasons
    for entry in entries.values():
        assert entry["value"] == pytest.approx(entry["floor"], rel=0.25)


# ------------------------------------------------------------------------------------------------ tiny and odd sets


@pytest.mark.parametrize(("train", "holdout", "fake"), [(1, 1, 1), (2, 2, 3), (5, 1, 12), (12, 9, 2), (12, 12, 12)])
def test_tiny_sets_give_words_instead_of_numbers(train, holdout, fake, tmp_path):
    real = prepared(tmp_path / "d", grey(blobs(train, 0)), grey(blobs(holdout, 1)))
    result = scansmith.evaluate(real, pictures(tmp_path / "f", grey(blobs(fake, 2))), tmp_path, draws=3)
    json.dumps(result, allow_nan=False)
    if min(holdout, fake) < 10:
        assert {"precision", "recall", "classifier"} <= set(result["not_computed"])
        assert "needs 10 images" in result["not_computed"]["recall"]
    assert any("numbers are rough" in sentence for sentence in result["verdict"])


@pytest.mark.parametrize(
    "which", ["fakes constant", "fakes repeated", "holdout repeated", "holdout constant", "everything constant"]
)
def test_sets_without_variety_give_words_and_strict_json(which, tmp_path):
    flat, one = np.full((20, 1, 32, 32), 90, np.uint8), np.repeat(grey(blobs(1, 5)), 20, axis=0)
    train, holdout, fake = grey(blobs(20, 0)), grey(blobs(20, 1)), grey(blobs(20, 2))
    if which.startswith("fakes"):
        fake = flat if "constant" in which else one
    if which.startswith("holdout"):
        holdout = flat if "constant" in which else one
    if which.startswith("everything"):
        train = holdout = fake = flat
    result = scansmith.evaluate(
        prepared(tmp_path / "d", train, holdout), pictures(tmp_path / "f", fake), tmp_path, draws=3
    )
    json.dumps(result, allow_nan=False)
    assert len(result["verdict"]) > 2
    if which.startswith("fakes"):
        assert "ALARM, little variety" in verdict(result)
    else:
        assert "all the same picture" in result["not_computed"]["recall"]


def test_a_holdout_that_repeats_training_scans_makes_the_search_blind(tmp_path):
    train = grey(blobs(30, 0))
    result = scansmith.evaluate(
        prepared(tmp_path / "d", train, train[:20]), pictures(tmp_path / "f", grey(blobs(20, 2))), tmp_path, draws=2
    )
    assert "held-out images are themselves copies" in result["verdict"][0]


def test_other_channels_empty_folders_and_wrong_numbers_are_refused_in_words(small, tmp_path):
    rgb = pictures(tmp_path / "rgb", grey(blobs(3, 0, channels=3)))
    with pytest.raises(ValueError, match=r"found 1 in .* and 3 in .*: convert one"):
        scansmith.evaluate(small[0], rgb, tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="found none"):
        scansmith.evaluate(small[0], tmp_path / "empty", tmp_path)
    with pytest.raises(ValueError, match="nothing at"):
        scansmith.evaluate(tmp_path / "nowhere", small[1], tmp_path)
    with pytest.raises(ValueError, match="draws"):
        scansmith.evaluate(*small, tmp_path, draws=0)
    assert not (tmp_path / "metrics.json").exists()


def test_a_broken_file_among_the_fakes_is_left_out(small, tmp_path):
    fake = pictures(tmp_path / "fake", grey(blobs(12, 2)))
    broken = (fake / "0004.png").read_bytes()
    (fake / "0004.png").write_bytes(broken[: len(broken) // 2])
    images, kept = load(open_scans(fake), (32, 32))
    assert len(images) == len(kept) == len(open_scans(fake)) - (1 if len(open_scans(fake)) == 12 else 0) == 11
    scansmith.evaluate(small[0], fake, tmp_path, draws=2)


# ------------------------------------------------------------------------------------------------ where scans come from


def test_a_plain_folder_is_halved_for_the_floor_and_train_is_searched_when_named(tmp_path):
    real, fake = pictures(tmp_path / "real", grey(blobs(40, 0))), pictures(tmp_path / "fake", grey(blobs(30, 1)))
    result = scansmith.evaluate(real, fake, tmp_path / "a", draws=2)
    assert result["train"] is None and result["nearest"] == [] and not (tmp_path / "a" / "nearest.png").exists()
    assert result["real"] == {"count": 20, "split": "half", "split_level": "unknown", "source": "folder of scans"}
    assert "--train" in result["not_computed"]["near_copies"] and "no training scans were given" in verdict(result)
    assert 0.5 < result["metrics"]["random_conv_frechet"]["ratio"] < 2
    copied = scansmith.evaluate(real, fake, tmp_path / "a", train=fake, draws=2)
    assert copied["verdict"][0].startswith("ALARM, memorising: 30 of 30")
    assert (tmp_path / "a" / "nearest.png").exists()


def test_halves_keep_the_images_of_one_volume_together(tmp_path):
    for number in range(4):
        image = Image(grey(blobs(6, number, 24)).transpose(1, 3, 2, 0).astype(np.int16), np.eye(4), "MR")
        formats.write(image, tmp_path / f"v{number}", "nifti", formats.Marking("test", "0", 0, number))
    scans = open_scans(tmp_path)
    first, second = halves(scans, 0)
    assert len(scans) == 24 and len(first) == len(second) == 12
    assert not set(first.groups) & set(second.groups) and len(set(first.groups)) == 2


def test_slices_of_files_and_rows_of_a_dataset_are_the_same_images_the_same_way_round(tmp_path):
    images = np.rint(blobs(6, 0, 40)[..., :24] * 400).astype(np.int16)  # rows 40, columns 24: a swap would not fit
    prepared(tmp_path / "d", images[:5], images[5:], low=-400.0, high=400.0)
    for number, image in enumerate(images):
        written = Image(image.transpose(0, 2, 1)[..., None], np.diag([-1.0, -1.0, 1.0, 1.0]), "MR")
        formats.write(written, tmp_path / "f" / f"{number:03d}", "nifti", formats.Marking("test", "0", 0, number))
    formats.write_manifest(
        tmp_path / "f", {"model": "ab12", "intensity": {"low": -400.0, "high": 400.0, "units": "a.u."}}
    )
    from_files, scans = load(open_scans(tmp_path / "f"), (40, 24))
    from_rows, _ = load(open_scans(tmp_path / "d"), (40, 24))
    np.testing.assert_array_equal(from_files, from_rows)
    assert scans.model == "ab12" and scans.size == (40, 24) and scans.file(2) == "f/002.nii.gz"


def test_fakes_take_the_grey_levels_of_integer_scans_so_that_bit_depth_gives_nothing_away(tmp_path):
    images = blobs(4, 0) * 100 + 100
    for number, image in enumerate(images):
        formats.write(
            Image(image.transpose(0, 2, 1)[..., None], np.eye(4), "OT"),
            tmp_path / f"{number:03d}",
            "png",
            formats.Marking("test", "0", 0, number),
        )
    formats.write_manifest(tmp_path, {"model": "ab12", "intensity": {"low": 0.0, "high": 200.0, "units": "a.u."}})
    rounded, _ = load(open_scans(tmp_path), (32, 32), rounded=True)
    kept, _ = load(open_scans(tmp_path), (32, 32))
    assert np.abs((rounded + 1) * 100 - np.rint((rounded + 1) * 100)).max() < 1e-4
    assert 0.2 < np.abs((kept - rounded) * 100).max() < 0.51


def test_ct_of_a_plain_folder_is_seen_through_the_window_of_the_synthetic_scans(tmp_path):
    volumes = np.rint(blobs(8, 0, 24)[:, 0].transpose(2, 1, 0) * 300 - 200).astype(np.int16)
    for name, scale in (("real", 1), ("fake", 2)):
        image = Image((volumes * scale)[None], np.diag([-1.0, -1.0, 1.0, 1.0]), "CT", "HU")
        formats.write(image, tmp_path / name / "scan", "dicom", formats.Marking("test", "0", 0, 0))
    formats.write_manifest(
        tmp_path / "fake", {"model": "ab12", "intensity": {"low": -1024.0, "high": 1976.0, "units": "HU"}}
    )
    sets = choose_sets(tmp_path / "real", tmp_path / "fake", None, 0)
    assert sets.reference.window == sets.fake.window and sets.reference.window.high == 1976.0
    images, _ = load(sets.reference, (24, 24))
    assert ((images + 1) * 1500 - 1024).min() == pytest.approx(float(volumes.min()), abs=60)


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 48), (64, 48)), ((512, 384), (256, 192)), ((8, 20), (16, 40)), ((512, 20), (256, 16))]
)
def test_everything_is_compared_at_the_size_of_the_synthetic_scans_within_bounds(size, expected):
    found = compared_size(size)
    assert max(found) <= 410 and min(found) >= 16
    if size != (512, 20):
        assert found == expected


def test_images_of_one_patient_are_said_to_be_correlated(tmp_path):
    patients = [f"p{i // 4}" for i in range(32)]
    real = prepared(tmp_path / "d", grey(blobs(20, 0)), grey(blobs(12, 1)), patients)
    result = scansmith.evaluate(real, pictures(tmp_path / "f", grey(blobs(12, 2))), tmp_path, draws=2)
    assert any(sentence.startswith("Correlated scans") for sentence in result["not_checked"])


def with_splits(root: Path, splits: list[str], seed: int, **info) -> Path:
    """A prepared dataset of this many pictures."""
    prepared(root, grey(blobs(len(splits), seed)), np.empty((0, 1, 32, 32), np.uint8))
    opened = dataset.Dataset.open(root)
    columns = {**opened.columns, "split": splits}
    images = np.stack([opened.image(row) for row in range(len(splits))])
    dataset.write(root, {**opened.info, **info}, columns, images, images.dtype, images.shape[1:])
    return root


def test_without_a_holdout_the_validation_scans_stand_in_and_copies_are_judged(tmp_path):
    real = with_splits(tmp_path / "d", ["train"] * 40 + ["validation"] * 20, 0)
    result = scansmith.evaluate(real, pictures(tmp_path / "f", grey(blobs(30, 2))), tmp_path, draws=2)
    assert (result["real"]["split"], result["real"]["count"], result["train"]["count"]) == ("validation", 20, 40)
    assert "near_copies" in result["metrics"] and "your validation scans" in verdict(result)
    assert any("no holdout, so validation scans stand in" in sentence for sentence in result["not_checked"])


def test_where_nothing_is_held_out_the_closest_pairs_are_shown_and_the_true_reason_is_said(tmp_path):
    real = with_splits(tmp_path / "d", ["train"] * 40, 0)
    fake = pictures(tmp_path / "f", grey(blobs(30, 2)))
    result = scansmith.evaluate(real, fake, tmp_path / "a", draws=2)
    assert result["real"]["split"] == "train" and result["train"]["count"] == 40
    assert len(result["nearest"]) == 10 and (tmp_path / "a" / "nearest.png").exists()
    assert "holds nothing out" in result["not_computed"]["near_copies"] and "holds nothing out" in verdict(result)
    assert "--train" not in json.dumps(result) and "ALARM, memorising" not in verdict(result)
    assert any("holds nothing out" in sentence for sentence in result["not_checked"])
    named = scansmith.evaluate(real, fake, tmp_path / "b", train=fake, draws=2)
    assert named["verdict"][0].startswith("ALARM, memorising: 30 of 30")


def test_a_split_by_study_is_said(tmp_path):
    real = with_splits(tmp_path / "d", ["train"] * 20 + ["holdout"] * 12, 0, split_level="study")
    result = scansmith.evaluate(real, pictures(tmp_path / "f", grey(blobs(12, 2))), tmp_path, draws=2)
    assert any("known by their study alone" in sentence for sentence in result["not_checked"])


@pytest.mark.parametrize("content", ['{"kind": "a dashboard", "files": []}', "[1, 2]", "no JSON"])
def test_a_folder_with_another_programs_manifest_is_a_plain_folder(content, tmp_path):
    root = pictures(tmp_path / "f", grey(blobs(3, 0)))
    (root / "manifest.json").write_text(content)
    scans = open_scans(root)
    assert scans.origin == "folder of scans" and len(scans) == 3


def test_of_synthetic_scans_exactly_those_of_the_manifest_are_read(tmp_path):
    for number, image in enumerate(grey(blobs(5, 0))):
        scan = Image(image.transpose(0, 2, 1)[..., None], np.eye(4), "OT")
        formats.write(scan, tmp_path / "class" / f"{number:03d}", "png", formats.Marking("test", "0", 0, number))
    files = [{"file": f"class/{number:03d}.png"} for number in range(3)]
    formats.write_manifest(tmp_path, {"model": "ab12", "files": files})
    scans = open_scans(tmp_path)
    assert [scans.file(position) for position in range(len(scans))] == [
        f"{tmp_path.name}/{entry['file']}" for entry in files
    ]
    (tmp_path / "class" / "001.png").unlink()
    with pytest.raises(ValueError, match=r"expected the 3 scans .* found that 1 are missing, the first 001\.png"):
        open_scans(tmp_path)


def test_of_a_series_with_a_broken_slice_the_others_are_compared(tmp_path):
    volume = np.rint(blobs(6, 0, 24)[:, 0].transpose(2, 1, 0) * 300).astype(np.int16)[None]
    formats.write(Image(volume, np.eye(4), "CT", "HU"), tmp_path / "s", "dicom", formats.Marking("test", "0", 0, 0))
    whole, _ = load(open_scans(tmp_path), (24, 24))
    broken = sorted((tmp_path / "s").iterdir())[2]
    header = pydicom.dcmread(broken)
    header.RescaleSlope = 0
    header.save_as(broken)
    images, kept = load(open_scans(tmp_path), (24, 24))
    assert [len(whole), len(images)] == [6, 5] and kept.rows.tolist() == [0, 1, 3, 4, 5]
    np.testing.assert_array_equal(images, whole[[0, 1, 3, 4, 5]])


# ------------------------------------------------------------------------------------------------ volumes

UPRIGHT = np.diag([-2.0, -2.0, 3.0, 1.0])  # as `prepare` stores volumes: columns to the left, rows to the back


def bodies(count: int, seed: int, shape: tuple[int, int, int] = (16, 20, 24)) -> np.ndarray:
    """Smooth random volumes (N, 1, D, H, W), int16: no two alike, all of one kind, and no axis like another."""
    noise = np.random.default_rng(seed).normal(size=(count, 1, *shape))
    smooth = gaussian_filter(noise, (0, 0, 1.5, 2.0, 2.5))
    return np.rint(np.tanh(1.2 * smooth / smooth.std()) * 400).astype(np.int16)


def dataset_of_volumes(root: Path, train: np.ndarray, holdout: np.ndarray) -> Path:
    volumes = np.concatenate([train, holdout])
    count = len(volumes)
    columns = {
        "case": [f"c{i}" for i in range(count)],
        "patient": [f"p{i}" for i in range(count)],
        "split": ["train"] * len(train) + ["holdout"] * len(holdout),
        "low": [-400.0] * count,
        "high": [400.0] * count,
        "units": ["a.u."] * count,
        "affine": [UPRIGHT] * count,
    }
    info = {"modality": "MR", "labels": [], "split_level": "patient"}
    dataset.write(root, info, columns, volumes, volumes.dtype, volumes.shape[1:])
    return root


def files_of_volumes(root: Path, volumes: np.ndarray, format: str = "nifti", turned: bool = False) -> Path:
    """A folder of synthetic volumes; `turned`: voxels in another order, with the affine that says so."""
    files = []
    for number, volume in enumerate(volumes):
        voxels, affine = volume.transpose(0, 3, 2, 1), UPRIGHT
        if turned:  # (rows, slices upside down, columns)
            voxels, order = voxels.transpose(0, 2, 3, 1)[:, :, ::-1], np.eye(4)[:, [1, 2, 0, 3]]
            order[2, 1], order[2, 3] = -1, voxels.shape[2] - 1
            affine = UPRIGHT @ order
        image = Image(np.ascontiguousarray(voxels), affine, "MR")
        formats.write(image, root / f"{number:03d}", format, formats.Marking("test", "0", 0, number))
        files.append({"file": f"{number:03d}" + (".nii.gz" if format == "nifti" else "")})
    window = {"low": -400.0, "high": 400.0, "units": "a.u."}
    formats.write_manifest(
        root, {"model": "ab12", "intensity": window, "size": list(volumes.shape[2:]), "files": files}
    )
    return root


@pytest.mark.parametrize(("format", "turned"), [("nifti", False), ("nifti", True), ("dicom", False)])
def test_volumes_of_files_and_of_a_dataset_are_the_same_images_whatever_their_orientation(tmp_path, format, turned):
    volumes = bodies(3, 0)
    dataset_of_volumes(tmp_path / "d", volumes[:2], volumes[2:])
    files_of_volumes(tmp_path / "f", volumes, format, turned)
    files, rows = (open_scans(tmp_path / name, volumes=True) for name in ("f", "d"))
    assert len(files) == 3 and files.size == rows.size == (16, 20, 24)
    (from_files, _), (from_rows, _) = load(files, (16, 20, 24)), load(rows, (16, 20, 24))
    assert from_rows.shape == (3, 3, 24, 24)
    np.testing.assert_array_equal(from_files, from_rows)


def test_the_channels_are_the_central_axial_coronal_and_sagittal_slice_with_the_head_at_the_top(tmp_path):
    volume = bodies(1, 0, (16, 16, 16))
    dataset_of_volumes(tmp_path / "d", volume, volume)
    images, _ = load(open_scans(tmp_path / "d", volumes=True), (16, 16, 16))
    axial, coronal, sagittal = images[0] * 400
    np.testing.assert_allclose(axial, volume[0, 0, 8], atol=0.01)
    np.testing.assert_allclose(coronal, volume[0, 0, ::-1, 8], atol=0.01)
    np.testing.assert_allclose(sagittal, volume[0, 0, ::-1, :, 8], atol=0.01)


def test_volumes_of_unknown_place_stay_as_they_lie():
    volume = bodies(1, 0)[0]
    np.testing.assert_array_equal(upright(volume, np.full((4, 4), np.nan)), volume)
    np.testing.assert_array_equal(upright(volume, np.diag([1.0, 1.0, 1.0, 1.0])), volume[:, :, ::-1, ::-1])


def test_equal_volumes_are_equally_good_and_fresh_ones_pass_and_the_words_say_what_was_compared(tmp_path):
    volumes = bodies(72, 0)
    real = dataset_of_volumes(tmp_path / "d", volumes[:32], volumes[32:52])
    fresh = scansmith.evaluate(real, files_of_volumes(tmp_path / "f", volumes[52:]), tmp_path / "a", draws=3)
    assert "ALARM" not in verdict(fresh) and fresh["metrics"]["near_copies"]["value"] == 0
    for name in ("random_conv_frechet", "radiomics_frechet", "coverage"):
        assert 0.6 < fresh["metrics"][name]["ratio"] < 1.5, name
    assert fresh["compared"] == "three central slices of each volume" and fresh["size"] == [16, 20, 24]
    assert "three central slices of each volume" in verdict(fresh) and fresh["channels"] == 1
    assert any("what lies beside them was not looked at" in sentence for sentence in fresh["not_checked"])
    identical = dataset_of_volumes(tmp_path / "same", volumes[:32], volumes[:20])
    same = scansmith.evaluate(identical, files_of_volumes(tmp_path / "g", volumes[:20]), tmp_path / "b", draws=2)
    assert same["metrics"]["precision"]["value"] > 0.9 and same["metrics"]["coverage"]["value"] > 0.9
    assert same["metrics"]["nearest_training_median"]["value"] == pytest.approx(1.0, abs=1e-5)


def test_mirrored_and_turned_copies_of_training_volumes_are_found(tmp_path):
    volumes = bodies(60, 0, (16, 20, 25))  # 25: the middle of the mirror image is the middle
    real = dataset_of_volumes(tmp_path / "d", volumes[:24], volumes[24:44])
    copied = np.concatenate([volumes[:4, ..., ::-1], volumes[4:8], volumes[44:]])
    result = scansmith.evaluate(real, files_of_volumes(tmp_path / "f", copied, turned=True), tmp_path / "o", draws=2)
    assert result["verdict"][0].startswith("ALARM, memorising: 8 of 24")
    assert sorted((p["fake"], p["train"]) for p in result["nearest"])[:8] == [(i, i) for i in range(8)]
    with Picture.open(tmp_path / "o" / "nearest.png") as picture:
        assert picture.width > 3 * 288  # axial, coronal and sagittal side by side


def test_shuffled_slices_are_seen_though_each_slice_is_real(tmp_path):
    volumes = bodies(64, 0)
    real = dataset_of_volumes(tmp_path / "d", volumes[:24], volumes[24:44])
    shuffled = volumes[44:, :, np.random.default_rng(0).permutation(16)]
    result = scansmith.evaluate(real, files_of_volumes(tmp_path / "f", shuffled), tmp_path / "o", draws=3)
    assert "ALARM, tell-tale" in verdict(result) and result["metrics"]["radiomics_frechet"]["ratio"] > 5


def test_volumes_and_pictures_are_not_compared(tmp_path):
    volumes, flat = bodies(6, 0), grey(blobs(6, 0))
    real, fakes = dataset_of_volumes(tmp_path / "d", volumes[:4], volumes[4:]), pictures(tmp_path / "p", flat)
    with pytest.raises(ValueError, match=r"expected volumes in .*p, as on the other side, found 2-D images"):
        scansmith.evaluate(real, fakes, tmp_path / "o")
    with pytest.raises(
        ValueError, match=r"expected volumes in .*e, .* found 2-D images: prepare with .*dimensions.: 3"
    ):
        scansmith.evaluate(real, prepared(tmp_path / "e", flat[:4], flat[4:]), tmp_path / "o")


@pytest.mark.parametrize(
    ("hits", "count", "alarm"),
    [(4, 20, False), (11, 20, False), (12, 20, True), (10, 10, True), (20, 200, False), (21, 200, True)],
)
def test_a_few_repeats_in_a_small_set_are_no_alarm_but_a_repeated_set_is(hits, count, alarm):
    assert (words.collapse({}, (hits, count)) is not None) == alarm


def test_slices_of_one_synthetic_patient_may_be_alike_patients_may_not(hands):
    real, fake = hands[:40].astype(np.float32) / 127.5 - 1.0, hands[40:50].astype(np.float32) / 127.5 - 1.0
    noise = np.random.default_rng(0).normal(0, 0.01, (40, 1, 64, 64)).astype(np.float32)
    slices, own, cpu = np.repeat(fake, 4, axis=0) + noise, np.repeat(np.arange(10), 4), torch.device("cpu")
    counted = partial(repeats, slices, real, np.arange(40), 0, cpu)
    assert counted(fake_groups=own)[0] <= 4
    assert counted() == counted(fake_groups=np.arange(40)) == (40, 40)
    assert counted(fake_groups=np.zeros(40, int)) is None
    assert counted(fake_groups=np.tile(np.arange(20), 2))[0] == 40


def test_one_near_copy_among_few_is_no_alarm_when_few_held_out_scans_calibrate_the_search():
    """A fresh scan is nearer to a training scan than all of n held-out ones in 1 of n + 1."""
    ratios, above = np.full(10, 0.9), np.arange(10) < 1
    few = Copies(np.full(10, 0.5), np.full(11, 0.5), 0.5, above, above, ratios, np.full(11, 0.9))
    many = Copies(np.full(10, 0.5), np.full(200, 0.5), 0.5, above, above, ratios, np.full(200, 0.9))
    assert not few.alarm and many.alarm
