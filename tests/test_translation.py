"""Translation: the objective by hand, pairs as drawn, a learned line, and scans of every kind that come back in their place."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from scansmith import dataset, evaluate, formats, losses, model, pairings, synthesize, train, translate
from scansmith.evaluate import translation as judging
from scansmith.image import Image
from scansmith.preprocess import Grid
from scansmith.train import checkpoint, pairs
from scansmith.train.objective import Batch, Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group
from scansmith.train.recipes import RECIPES, schedule
from scansmith.translate import readable
from scansmith.translator import translated

CPU = torch.device("cpu")
RECIPE = replace(RECIPES["fidelity"], width=4, batch=4, images=64, threads=1, train_images=20, target=32)


def make_pairs(
    root: Path,
    count: int = 40,
    size: tuple[int, ...] = (40, 48),
    neighbours: int = 0,
    patients: int = 20,
    folded: bool = False,
) -> Path:
    """MR-like blobs, and a CT that is 1000 - 2 times them inside a disc, or `folded` about 300, which no line can follow; air outside."""
    random = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, side) for side in size), indexing="ij")
    inside = sum(axis**2 for axis in axes) < 0.8
    smooth = [
        np.prod([np.cos(random.uniform(1, 6) * axis + random.uniform(0, 6)) for axis in axes], axis=0)
        for _ in range(count)
    ]
    images = [np.where(inside, 300 + 200 * one, 0).astype(np.int16)[None] for one in smooth]
    made = [4 * np.abs(one - 300.0) - 200 if folded else 1000 - 2.0 * one for one in images]
    targets = [np.where(inside, one, -1024).astype(np.int16) for one in made]
    splits = (
        ["train"] * (count // 2) + ["validation"] * (count // 4) + ["calibration"] * (count - count // 2 - count // 4)
    )
    values = {
        "case": [f"c{i * patients // count}" for i in range(count)], "slice": list(range(count)), "patient": [f"p{i * patients // count}" for i in range(count)],
        "split": splits, "label": [""] * count, "spacing": [[3.0, 2.0, 1.5]] * count, "low": [0.0] * count, "high": [500.0] * count, "units": ["a.u."] * count,
        "target_low": [-1024.0] * count, "target_high": [1000.0] * count, "affine": [np.eye(4)] * count,
        "crop": [[0.0, 0.0, 0.0, float(size[0] if len(size) == 3 else 1), float(size[-2]), float(size[-1])]] * count,
    }  # fmt: skip
    depth = size[0] if len(size) == 3 else None
    choices = {"channels": 1, "dimensions": 3, "bias_field": False, "landmarks": None, "window": [0.0, 500.0], "percentiles": None,
               "depth": depth, "height": size[-2], "width": size[-1]}  # fmt: skip
    info = {
        "modality": "MR", "units": "a.u.", "labels": [], "spacing": [3.0, 2.0, 1.5][-len(size):], "source_format": "nifti", "hash": "d" * 16,
        "neighbours": neighbours, "target": {"modality": "CT", "channels": 1, "units": "HU"}, "choices": choices,
    }  # fmt: skip
    columns = {name: values.get(name, default(name, count)) for name in dataset.COLUMNS}
    writer = dataset.Writer(
        root, {"images": (np.dtype(np.int16), (1, *size)), "targets": (np.dtype(np.int16), (1, *size))}
    )
    for image, target in zip(images, targets):
        writer.add({"images": image[None], "targets": target[None]})
    writer.finish(info, columns)
    return root


def default(name: str, count: int) -> list:
    kind, shape = dataset.COLUMNS[name]
    return [np.zeros(shape, kind) if shape else ("" if kind == "U" else 0)] * count


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> tuple[Path, Path]:
    """A 2-D dataset, and a run of 2,400 images on it."""
    root = tmp_path_factory.mktemp("translation")
    made = make_pairs(root / "data", folded=True)
    train(made, root / "run", images=2400, minutes=0.1, device="cpu")
    return made, root / "run"


def feed(root: Path, patch: tuple[int, ...] = (32, 32)) -> pairs.Pairs:
    return pairs.gather(pairings.pairing("paired", dataset.Dataset.open(root)), RECIPE, patch)


# ------------------------------------------------------------------------------------------------ objective


def test_the_loss_is_what_is_written_and_the_bounds_leave_the_middle_alone():
    torch.manual_seed(0)
    objective = OBJECTIVES["translation"](RECIPE, Task(2, (40, 48), 0, 20, made=1), Grid.patch((40, 48), 32))
    for parameter in objective.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    images, target = torch.randn(3, 2, 32, 32), torch.rand(3, 1, 32, 32)
    weight = (torch.rand(3, 1, 32, 32) < 0.7).float()
    batch = Batch(images, None, None, images, 0.0, 0.0, torch.Generator(), target=target, weight=weight)
    objective.eval()
    loss, logged = objective.translator_loss(batch)
    middle, lower, upper = objective.translator(images).unbind(1)
    share = weight.sum()
    absolute = ((middle - target).abs() * weight).sum() / share
    rest = (target - lower) * weight, (target - upper) * weight
    bounds = sum(torch.maximum(level * one, (level - 1) * one).sum() / share for level, one in zip((0.05, 0.95), rest))
    square = ((middle - target).square() * weight).sum() / share
    wanted = (
        absolute
        + 0.5 * square
        + 0.25 * losses.structural(middle, target, weight)
        + 0.25 * losses.edges(middle, target, weight)
        + bounds
    )
    torch.testing.assert_close(loss, wanted)
    torch.testing.assert_close(logged["error"], absolute.detach())
    gradient = torch.autograd.grad(loss, objective.translator.end.bias)[0]
    middle, *_ = objective.translator(images).unbind(1)
    alone = (
        ((middle - target).abs() * weight).sum() / share
        + 0.5 * ((middle - target).square() * weight).sum() / share
        + 0.25 * losses.structural(middle, target, weight)
        + 0.25 * losses.edges(middle, target, weight)
    )
    torch.testing.assert_close(gradient[0], torch.autograd.grad(alone, objective.translator.end.bias)[0][0])


# ------------------------------------------------------------------------------------------------ pairs


def test_a_batch_depends_on_seed_and_step_and_processes_share_it(tmp_path):
    data, now = feed(make_pairs(tmp_path / "d")), schedule(RECIPE, 0)
    whole = data.draw(RECIPE, 3, Group(), now)
    assert torch.equal(whole.images, data.draw(RECIPE, 3, Group(), now).images)
    assert not torch.equal(whole.images, data.draw(RECIPE, 4, Group(), now).images)
    assert not torch.equal(whole.images, data.draw(replace(RECIPE, seed=1), 3, Group(), now).images)
    parts = [data.draw(RECIPE, 3, Group(rank, 2), now) for rank in (0, 1)]
    for name in ("images", "target", "weight"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


def test_source_and_target_of_a_patch_are_cut_and_mirrored_alike_and_only_the_source_is_brightened(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(pairs, "TURNED", 0.0)
    monkeypatch.setattr(pairs, "BEND", 0.0)
    data = feed(make_pairs(tmp_path / "d"))
    batch = data.draw(RECIPE, 0, Group(), schedule(RECIPE, 0))
    for source, target, weight in zip(batch.images, batch.target, batch.weight):
        hounsfield = (target[0] + 1) * 1012 - 1024
        inside = hounsfield > -1000
        assert torch.equal(weight[0] == 1.0, inside) and set(weight.unique().tolist()) <= {1.0, np.float32(0.1)}
        true = (1000 - hounsfield[inside]) / 2
        gain = (source[0][inside] + 1) * 250 / true
        assert gain.std() < 0.01 and 0.9 <= gain.mean() <= 1.1


def test_pairs_are_turned_and_scaled_alike_and_nothing_counts_beyond_their_borders(tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "TURNED", 1.0)
    monkeypatch.setattr(pairs, "GAIN", 0.0)
    monkeypatch.setattr(pairs, "BEND", 0.0)
    data = feed(make_pairs(tmp_path / "d"))
    batch = data.draw(RECIPE, 0, Group(), schedule(RECIPE, 0))
    hounsfield, values = (batch.target + 1) * 1012 - 1024, (batch.images + 1) * 250
    deep = torch.nn.functional.avg_pool2d((batch.weight == 1.0).float(), 5, 1, 2) == 1.0  # not beside the body's edge
    assert deep.sum() > 500 and (hounsfield - (1000 - 2 * values))[deep].abs().max() < 2.0
    maps = pairs.turned(400, 2, torch.Generator().manual_seed(0))
    scale = torch.linalg.det(maps[:, :, :2]).sqrt()
    assert np.exp(-0.12) <= scale.min() < 0.9 and 1.1 < scale.max() <= np.exp(0.12) and (maps[:, :, 2] == 0).all()
    white = pairs.resampled(torch.ones(400, 1, 16, 16), maps, 0.0)
    assert white.min() >= 0 and white.max() <= 1.0 + 1e-6 and white[:, :, 4:12, 4:12].min() > 0.999
    same = torch.randn(3, 1, 8, 8)
    assert torch.equal(pairs.resampled(same.clone(), torch.eye(2, 3).repeat(3, 1, 1), -1.0), same)


def test_brightening_keeps_order_air_and_the_window(tmp_path):
    values = np.linspace(-1.2, 2.0, 200, dtype=np.float32)
    for gain, bend in ((0.1, 0.3), (-0.1, -0.3), (0.0, 0.0)):
        made = pairs.brightened(values, gain, bend)
        assert (np.diff(made) >= 0).all() and np.array_equal(made[values <= -1], values[values <= -1])
    np.testing.assert_allclose(pairs.brightened(values, 0.0, 0.0), values, atol=1e-6)


def test_slices_around_are_further_channels_and_volumes_have_three_axes(tmp_path):
    flat = make_pairs(tmp_path / "flat", neighbours=2, patients=2)
    data = feed(flat)
    source = data.pairing.source(5)
    assert source.shape == (5, 40, 48)
    assert np.array_equal(source[2], data.pairing.source(5)[2]) and np.allclose(source[3], data.pairing.source(6)[2])
    volumes = feed(make_pairs(tmp_path / "deep", count=8, size=(16, 24, 20)), (16, 16, 16))
    batch = volumes.draw(RECIPE, 0, Group(), schedule(RECIPE, 0))
    assert batch.images.shape == batch.target.shape == (4, 1, 16, 16, 16)


def test_the_straight_line_is_the_least_squares_one(tmp_path):
    data = feed(make_pairs(tmp_path / "d"))
    # HU = 1000 - 2 v; encoded x = v / 250 - 1, y = (HU + 1024) / 1012 - 1
    slope = -500 / 1012
    assert data.line[1] == pytest.approx(slope, rel=0.01) and data.line[0] == pytest.approx(
        slope + 1012 / 1012, rel=0.02
    )


# ------------------------------------------------------------------------------------------------ learned


def test_it_is_chosen_by_itself_and_learns(learned):
    _, run = learned
    config, recipe = (json.loads((run / name).read_text()) for name in ("model/config.json", "recipe.json"))
    assert recipe["name"] == "fidelity" and config["network"]["name"] == "unet"
    ticks = [row for row in checkpoint.read_log(run / "log.jsonl") if row["kind"] == "tick"]
    assert ticks[-1]["quality"] < 0.4 and ticks[-1]["reference"] == "validation"
    assert config["translation"]["calibration"]["method"] == "uncalibrated"  # five patients
    assert (run / "samples").is_dir() and len(list((run / "samples").glob("*.png"))) == len(ticks)


@pytest.mark.parametrize("flip", [(1, 1, 1), (-1, 1, 1), (1, -1, -1)])
@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2)])
def test_a_scan_however_it_lies_gives_the_same_translation_in_its_place(learned, flip, order):
    """Voxels turned and mirrored with their affine: the same patient, so the same CT, voxel for voxel."""
    made, run = learned
    opened, data = model.load(run / "model"), dataset.Dataset.open(made)
    slices = np.stack([data.image(row)[0] for row in range(3)])  # (K, H, W): rows to the back, columns to the left
    affine = np.diag([-1.5, -2.0, 3.0, 1.0])
    scan = Image(slices.transpose(2, 1, 0)[None], affine, "MR")
    plain = translated(opened, scan, "nifti", CPU)
    turn = np.zeros((4, 4))
    turn[3, 3] = 1
    array = scan.array.transpose(0, *(axis + 1 for axis in order))
    for new, (old, sign) in enumerate(zip(order, flip)):
        turn[old, new] = sign
        if sign < 0:
            array = np.flip(array, new + 1)
            turn[old, 3] = scan.array.shape[old + 1] - 1
    turned = translated(opened, Image(np.ascontiguousarray(array), affine @ turn, "MR"), "nifti", CPU)
    assert np.array_equal(turned.image.affine, affine @ turn) and turned.image.array.shape == array.shape
    back = turned.image.array
    for new, sign in enumerate(flip):
        back = np.flip(back, new + 1) if sign < 0 else back
    np.testing.assert_allclose(
        back.transpose(0, *(order.index(axis) + 1 for axis in range(3))), plain.image.array, atol=0.5
    )
    true = np.stack([data.target(row)[0] for row in range(3)]).transpose(2, 1, 0)[None]
    inside = true > -1000
    assert plain.image.units == "HU" and plain.image.modality == "CT"
    assert np.abs(plain.image.array - true)[inside].mean() < 60
    assert (plain.maps["lower"].array <= plain.image.array + 1e-3).all() and (
        plain.image.array <= plain.maps["upper"].array + 1e-3
    ).all()
    assert plain.maps["trust"].array.min() > 0 and plain.maps["trust"].array.max() < 1


def test_another_voxel_size_is_brought_to_the_models_and_back(learned):
    made, run = learned
    opened, data = model.load(run / "model"), dataset.Dataset.open(made)
    fine = np.repeat(np.repeat(data.image(0)[0], 2, 0), 2, 1).T[None, :, :, None]
    out = translated(opened, Image(fine, np.diag([-0.75, -1.0, 3.0, 1.0]), "MR"), "nifti", CPU).image
    coarse = translated(
        opened, Image(data.image(0)[0].T[None, :, :, None], np.diag([-1.5, -2.0, 3.0, 1.0]), "MR"), "nifti", CPU
    ).image
    assert out.array.shape == fine.shape
    inside = np.zeros(coarse.array.shape, bool)
    inside[:, 14:34, 12:28] = True
    shrunk = out.array.reshape(1, 48, 2, 40, 2, 1).mean((2, 4))
    assert np.abs(shrunk - coarse.array)[inside].mean() < 15


def test_other_channels_and_scans_without_pairs_are_refused_in_words(learned, tmp_path):
    made, run = learned
    opened = model.load(run / "model")
    with pytest.raises(ValueError, match="expected 1 channels, found 3"):
        translated(opened, Image(np.zeros((3, 8, 8, 1), np.uint8), np.eye(4), "MR"), "png", CPU)
    bare = json.loads((made / "dataset.json").read_text())
    alone = tmp_path / "alone"
    alone.mkdir()
    for file in made.iterdir():
        if file.is_file() and not file.name.startswith("targets"):
            (alone / file.name).write_bytes(file.read_bytes())
    del bare["target"], bare["layers"]["targets"]
    (alone / "dataset.json").write_text(json.dumps(bare))
    with pytest.raises(ValueError, match=r"expected paired scans .* --pairs"):
        train(alone, tmp_path / "run", recipe="fidelity", images=64)


def written(folder: Path, slices: int = 3) -> Path:
    """Three scans below a folder: two MR files and one that is none."""
    data = np.stack([np.pad(np.full((20, 24), 200 + 40 * k, np.int16), 10) for k in range(slices)], -1).transpose(
        1, 0, 2
    )
    for name in ("a/first.nii.gz", "b/second.nii.gz"):
        (folder / name).parent.mkdir(parents=True)
        nibabel.save(nibabel.Nifti1Image(data, np.diag([-1.5, -2.0, 3.0, 1.0])), folder / name)
    (folder / "broken.nii.gz").write_bytes(b"no scan")
    return folder


def test_scans_become_files_of_their_format_in_their_place_and_one_bad_file_stops_nothing(learned, tmp_path):
    _, run = learned
    scans, out = written(tmp_path / "scans"), tmp_path / "out"
    result = translate(run / "model", scans, out)
    names = {
        f"{name}{suffix}.nii.gz" for name in ("a/first", "b/second") for suffix in ("", "-lower", "-upper", "-trust")
    }
    assert {path.relative_to(out).as_posix() for path in out.rglob("*.nii.gz")} == names
    assert result["count"] == 2 and len(result["skipped"]) == 1 and "broken.nii.gz" in result["skipped"][0]
    assert "uncalibrated" in result["promise"]
    source, made, lower, upper, trust = (
        nibabel.load(path)
        for path in (
            scans / "a/first.nii.gz",
            *(out / f"a/first{suffix}.nii.gz" for suffix in ("", "-lower", "-upper", "-trust")),
        )
    )
    assert (
        np.array_equal(made.affine, source.affine) and made.shape == source.shape and made.get_data_dtype() == np.int16
    )
    assert (lower.get_fdata() <= made.get_fdata()).all() and (made.get_fdata() <= upper.get_fdata()).all()
    assert trust.get_fdata().min() > 0 and trust.get_fdata().max() < 1
    direct = translated(model.load(run / "model"), formats.read(formats.discover(scans / "a")[0][0]), "nifti", CPU)
    np.testing.assert_allclose(made.get_fdata(), direct.image.array[0], atol=0.51)


def test_the_same_command_goes_on_and_another_model_is_refused(learned, tmp_path):
    _, run = learned
    scans, out = written(tmp_path / "scans"), tmp_path / "out"
    translate(run / "model", scans, out, maps=False)
    assert not list(out.rglob("*-lower*"))
    (out / "b/second.nii.gz").unlink()
    before = (out / "a/first.nii.gz").stat().st_mtime_ns
    assert translate(run / "model", scans, out, maps=False)["count"] == 2
    assert (out / "a/first.nii.gz").stat().st_mtime_ns == before and (out / "b/second.nii.gz").is_file()
    record = json.loads((out / "translated.json").read_text())
    (out / "translated.json").write_text(json.dumps({**record, "model": "f" * 16}))
    with pytest.raises(ValueError, match="found translations by ffffffffffffffff"):
        translate(run / "model", scans, out, maps=False)


def test_folders_without_a_scan_of_the_right_kind_and_models_that_make_scans_are_refused(learned, tmp_path):
    _, run = learned
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="expected scans to translate"):
        translate(run / "model", tmp_path / "empty", tmp_path / "out")
    source = formats.discover(written(tmp_path / "scans"))[0][0]
    assert readable(source, model.load(run / "model")) is None
    assert "expected MR" in readable(replace(source, modality="CT"), model.load(run / "model"))


def test_scans_unlike_those_that_were_learned_from_are_refused_unless_forced(learned, tmp_path):
    made, run = learned
    data = dataset.Dataset.open(made)
    like = np.stack([data.image(row)[0] for row in range(2)]).transpose(2, 1, 0)
    scans = tmp_path / "scans"
    scans.mkdir()
    for name, array, voxel in (("like", like, 1.5), ("coarse", like, 15.0)):
        nibabel.save(
            nibabel.Nifti1Image(array, np.diag([-voxel, -2.0 * voxel / 1.5, 3.0, 1.0])), scans / f"{name}.nii.gz"
        )
    result = translate(run / "model", scans, tmp_path / "out", maps=False)
    assert list(result["files"]) == ["like"]
    assert (
        len(result["skipped"]) == 1
        and "coarse.nii.gz: refused" in result["skipped"][0]
        and "mm" in result["skipped"][0]
    )
    forced = translate(run / "model", scans, tmp_path / "forced", maps=False, force=True)
    assert sorted(forced["files"]) == ["coarse", "like"]


# ------------------------------------------------------------------------------------------------ judged


def test_held_out_patients_are_judged_beside_simple_methods_and_the_numbers_are_those_of_the_definitions(
    learned, tmp_path
):
    made, run = learned
    result = evaluate(made, run / "model", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == result
    assert result["split"] == "validation" and result["patients"] == 5 and result["units"] == "HU"
    metrics = result["metrics"]
    assert metrics["translation"]["mae"]["value"] < 0.5 * min(
        metrics[name]["mae"]["value"] for name in ("line", "histogram", "identity")
    )
    assert all(
        metrics["translation"][name]["value"] > metrics["line"][name]["value"] for name in ("psnr", "ssim", "ms_ssim")
    )
    assert metrics["translation"]["mae"]["interval"] is None and len(metrics["translation"]["mae"]["each"]) == 5
    data, opened = dataset.Dataset.open(made), model.load(run / "model")
    scan = judging.translated_scan(
        pairings.pairing("paired", data), pairings.cases_of(data, data.rows("validation"))[0], opened, CPU
    )
    numbers = judging.judged(scan, scan.middle, "HU")
    error = np.abs(scan.units(scan.middle) - scan.units(scan.target))[scan.inside]
    assert numbers["mae"] == pytest.approx(error.mean(), rel=1e-4)
    assert metrics["translation"]["mae"]["each"][0] == pytest.approx(numbers["mae"], rel=1e-3)
    assert "uncalibrated" in result["words"][-1]


def test_a_perfect_translation_has_no_error_and_full_coverage():
    random = np.random.default_rng(0)
    true = random.uniform(-0.8, 0.8, (9, 16, 16))
    scan = judging.Scan("p", true, true, true, true - 0.1, true + 0.1, np.ones(true.shape, bool), (-1024.0, 1000.0))
    perfect = judging.judged(scan, true, "HU")
    assert perfect["mae"] == 0.0 and perfect["psnr"] == np.inf and perfect["ssim"] == pytest.approx(1.0)
    assert set(judging.shares_outside(scan, "HU").values()) == {0.0}
    off = replace(scan, lower=true + 0.05)
    assert judging.shares_outside(off, "HU")["body"] == 1.0
    assert judging.judged(scan, true + 0.1, "HU")["mae"] == pytest.approx(0.1 * 1012)
    assert judging.judged(scan, true + 0.1, "a.u.")["mae"] == pytest.approx(0.1 * 1012)


def test_intervals_are_over_patients_and_need_eight():
    few, many = ({f"p{i}": [float(i), float(i) + 2] for i in range(count)} for count in (7, 8))
    assert judging.summary(few, 0)["interval"] is None and judging.summary(few, 0)["value"] == 4.0
    low, high = judging.summary(many, 0)["interval"]
    # The deviation of a mean of 8 of the values 1 to 8 is 2.29 / sqrt(8).
    assert low == pytest.approx(4.5 - 1.645 * 0.81, abs=0.25) and high == pytest.approx(4.5 + 1.645 * 0.81, abs=0.25)


def test_a_model_that_makes_scans_and_data_without_pairs_are_refused(learned, tmp_path):
    made, run = learned
    opened = model.load(run / "model")
    maker = replace(opened, config={key: value for key, value in opened.config.items() if key != "translation"})
    with pytest.raises(ValueError, match="one that makes scans"):
        judging.evaluate_translation(dataset.Dataset.open(made), maker, tmp_path)
    with pytest.raises(ValueError, match="found one that translates"):
        synthesize(run / "model", tmp_path / "images", count=2)
