"""The helpers of a translation: a judge of texture with its price, and misregistration that is learned away."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_translation import make_pairs

from scansmith import dataset, model, pairings, train
from scansmith.networks.patch_discriminator import PatchDiscriminator
from scansmith.networks.registrar import Registrar, moved
from scansmith.preprocess import Grid
from scansmith.train import checkpoint, pairs
from scansmith.train.objective import Batch, Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.recipes import RECIPES, chosen, schedule
from scansmith.train.translation import textured

RECIPE = replace(RECIPES["fidelity"], width=4, batch=4, images=1000, threads=1, train_images=20, target=32)


def an_objective(**wishes):
    torch.manual_seed(0)
    made = OBJECTIVES["translation"](
        replace(RECIPE, **wishes), Task(1, (32, 32), 0, 20, made=1), Grid.patch((32, 32), 32)
    )
    for parameter in made.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return made


def a_batch(adversary: float = 0.0) -> Batch:
    images, target = torch.randn(3, 1, 32, 32), torch.rand(3, 1, 32, 32)
    weight = (torch.rand(3, 1, 32, 32) < 0.7).float()
    return Batch(
        images, None, None, images, 0.0, 0.0, torch.Generator(), target=target, weight=weight, adversary=adversary
    )


# ------------------------------------------------------------------------------------------------ realism


def test_the_judge_comes_on_in_the_middle_of_a_run_and_rests_before():
    recipe = replace(RECIPE, adversary=0.02)
    weights = [schedule(recipe, images).adversary for images in (0, 600, 650, 700, 1000)]
    assert weights == pytest.approx([0.0, 0.0, 0.01, 0.02, 0.02])
    assert schedule(RECIPE, 1000).adversary == 0.0
    objective = an_objective(adversary=0.02, loss="least_squares")
    assert objective.players == ("discriminator", "translator")
    assert objective.resting(a_batch()) == ("discriminator",) and objective.resting(a_batch(0.01)) == ()


def test_the_loss_with_a_judge_is_that_without_it_and_the_least_squares_of_its_scores():
    objective, batch = an_objective(adversary=0.5, loss="least_squares").eval(), a_batch(0.5)
    plain, _ = objective.translator_loss(replace(batch, adversary=0.0))
    loss, _ = objective.translator_loss(batch)
    middle = objective.translator(batch.images)[:, 0]
    fake, real = (
        objective.discriminator(torch.cat([batch.images, textured(one, batch.target, batch.weight)], 1))
        for one in (middle, batch.target)
    )
    torch.testing.assert_close(loss - plain, 0.5 * 0.5 * (fake - 1).square().mean())
    judged, logged = objective.discriminator_loss(batch)
    torch.testing.assert_close(judged, 0.5 * (real - 1).square().mean() + 0.5 * fake.square().mean())
    torch.testing.assert_close(logged["gap"], (real - fake).mean().detach())


def test_the_judge_moves_no_weight_of_the_translator_and_the_translator_hears_it():
    objective, batch = an_objective(adversary=0.5, loss="least_squares"), a_batch(0.5)
    loss, _ = objective.discriminator_loss(batch)
    loss.backward()
    assert all(value.grad is None for value in objective.translator.parameters())
    assert all(value.grad.abs().sum() > 0 for value in objective.discriminator.end.parameters())
    quiet, loud = (
        torch.autograd.grad(
            objective.translator_loss(replace(batch, adversary=weight))[0], objective.translator.start.weight
        )[0]
        for weight in (0.0, 0.5)
    )
    assert not torch.allclose(quiet, loud)


@pytest.mark.parametrize("dimensions", [2, 3])
def test_a_score_sees_only_its_surroundings(dimensions):
    torch.manual_seed(0)
    network = PatchDiscriminator(2, dimensions, 4)
    shape = (32, 160) if dimensions == 2 else (32, 32, 160)
    x = torch.randn(1, 2, *shape, requires_grad=True)
    scores = network(x)
    assert scores.shape == (1, 1, *(side // 8 for side in shape)) and scores.dtype == torch.float32
    # Instance norm alone reaches further: through means it spreads, a little, what a convolution cannot see.
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.functional, "instance_norm", lambda values: values)
        (gradient,) = torch.autograd.grad(network(x)[..., 10].sum(), x)
    reached = gradient.abs().sum(tuple(range(gradient.ndim - 1))).nonzero().ravel()
    assert reached.max() - reached.min() + 1 == 54


def test_the_preset_is_trained_its_price_is_measured_and_the_last_weights_are_kept(tmp_path):
    made = make_pairs(tmp_path / "data", folded=True)
    result = train(made, tmp_path / "run", recipe="realism", images=640, minutes=0.1, device="cpu")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    ticks = [row for row in checkpoint.read_log(tmp_path / "run" / "log.jsonl") if row["kind"] == "tick"]
    price = config["translation"]["price"]
    assert result["price"] == price["words"] and "error" in price["words"] and "HU" in price["words"]
    before = [row for row in ticks if row["images"] <= 384][-1]
    assert price["error"] == [before["error"], ticks[-1]["error"]] and result["best_at"] == 640
    assert price["sharpness"] == [before["sharpness"], ticks[-1]["sharpness"]]
    assert before["loss_d"] is None and ticks[-1]["loss_d"] > 0  # nobody judged before
    assert chosen("denoise", "realism", False, False).task == "denoise"


def test_sharpness_is_that_of_differences_between_neighbours_in_the_body():
    random = np.random.default_rng(0)
    target = random.normal(size=(1, 24, 32))
    inside = np.zeros((24, 32), bool)
    inside[4:20, 6:20] = True
    assert pairs.sharpness(target, target, inside) == pytest.approx(1.0)
    assert pairs.sharpness(3.0 * target + 1.0, target, inside) == pytest.approx(3.0)
    other = np.where(inside, target, 100.0 * random.normal(size=target.shape))
    assert pairs.sharpness(other, target, inside) == pytest.approx(1.0)
    smooth = (target + np.roll(target, 1, 1) + np.roll(target, 1, 2) + np.roll(target, (1, 1), (1, 2))) / 4
    assert pairs.sharpness(smooth, target, inside) < 0.7


# ------------------------------------------------------------------------------------------------ misregistration


@pytest.mark.parametrize("shape", [(9, 12), (6, 9, 12)])
def test_images_are_moved_by_whole_and_half_voxels(shape):
    random = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, *shape, generator=random)
    field = torch.zeros(2, len(shape), *shape)
    torch.testing.assert_close(moved(images, field), images)
    field[:, 0] = 2.0
    torch.testing.assert_close(moved(images, field)[:, :, :-2], images[:, :, 2:])
    field[:, 0], field[:, -1] = 0.0, 0.5
    torch.testing.assert_close(moved(images, field)[..., :-1], (images[..., :-1] + images[..., 1:]) / 2)


def test_nothing_is_moved_at_first_and_the_loss_is_the_plain_one():
    plain, helped, batch = an_objective(), an_objective(registered=True), a_batch()
    assert helped.players == ("registrar", "translator")
    helped.registrar = Registrar(2, 2)
    helped.translator.load_state_dict(plain.translator.state_dict())
    torch.testing.assert_close(helped.translator_loss(batch)[0], plain.translator_loss(batch)[0])


def test_a_shift_that_differs_from_image_to_image_is_learned():
    torch.manual_seed(0)
    objective = an_objective(registered=True)
    objective.registrar = network = Registrar(2, 2)
    optimizer = torch.optim.Adam(network.parameters(), 2e-3)
    random = torch.Generator().manual_seed(1)
    for _ in range(150):
        coarse = torch.randn(8, 1, 6, 6, generator=random)
        smooth = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic")
        shifts = 4.0 * torch.rand(8, 2, 1, 1, generator=random) - 2.0
        target = moved(smooth, shifts.expand(8, 2, 32, 32))
        objective._made = smooth[:, None].expand(-1, 3, -1, -1, -1)
        batch = replace(a_batch(), images=smooth, target=target, weight=torch.ones_like(target))
        loss, _ = objective.registrar_loss(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        left = (moved(smooth, network(torch.cat([smooth, target], 1))) - target).abs()[..., 4:-4, 4:-4].mean()
    assert left < 0.75 * (smooth - target).abs()[..., 4:-4, 4:-4].mean()


def test_pairs_that_lie_apart_are_noticed(tmp_path):
    made = make_pairs(tmp_path / "data")
    info = json.loads((made / "dataset.json").read_text())
    for far, wanted in ((0, False), (2, False), (10, True)):
        (made / "dataset.json").write_text(
            json.dumps({**info, "pairs": {"count": 20, "estimated": 20, "measured": 20, "far": far}})
        )
        assert pairs.apart(dataset.Dataset.open(made)) == wanted
    result = train(made, tmp_path / "run", images=64, minutes=0.1, device="cpu")
    assert any("more than a voxel apart" in words for words in result["plan"])
    assert set(model.load(tmp_path / "run" / "model").generator.state_dict()) & {"registrar.end.weight"} == set()


# ------------------------------------------------------------------------------------------------ runs


def test_a_model_of_patches_keeps_the_voxel_size_of_its_dataset(tmp_path):
    made = make_pairs(tmp_path / "data")
    train(made, tmp_path / "run", side=16, images=64, minutes=0.1, device="cpu")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["translation"]["patch"] == [16, 16]
    assert config["spacing"] == dataset.Dataset.open(made).info["spacing"]


def test_ticks_of_short_runs_translate_fewer_images():
    short, long = replace(RECIPE, images=2_000, ticks=4), replace(RECIPE, images=200_000, ticks=24)
    assert pairs.ticked(short, (128, 128), (512, 512)) == (4, 2)
    assert pairs.ticked(long, (128, 128), (128, 128)) == (24, 3)
    assert pairs.ticked(short, (32, 32, 32), (200, 200, 200)) == (2, 2)
    assert pairs.ticked(long, (32, 32, 32), (200, 200, 200)) == (3, 3)


def test_of_a_large_volume_a_box_in_the_body_is_looked_at_always_the_same(tmp_path):
    data = pairs.gather(
        pairings.pairing("paired", dataset.Dataset.open(make_pairs(tmp_path / "d", count=8, size=(40, 48, 44)))),
        RECIPE,
        (16, 16, 16),
    )
    source, target = data.looked_at(1, 2)
    again, _ = data.looked_at(1, 2)
    assert source.shape == target.shape == (1, 32, 32, 32) and np.array_equal(source, again)
    assert (target > -0.9).mean() > 0.3
    whole = data.looked_at(1, 3)[0]
    assert np.array_equal(whole, data.pairing.source(1))
    at = np.argwhere((np.lib.stride_tricks.sliding_window_view(whole[0], (32, 32, 32)) == source[0]).all((3, 4, 5)))
    assert len(at) == 1


def test_one_volume_is_enough_to_learn_a_translation_from(tmp_path):
    made = make_pairs(tmp_path / "data", count=2, size=(16, 24, 20), patients=2)
    result = train(made, tmp_path / "run", images=64, minutes=0.1, device="cpu")
    assert result["images"] == 64 and "only 1 training images" in result["acts"][0]


def test_statistics_are_of_many_patches_even_of_a_single_volume(tmp_path):
    made = dataset.Dataset.open(make_pairs(tmp_path / "d", count=2, size=(16, 24, 20), patients=2))
    data = pairs.gather(pairings.pairing("paired", made), RECIPE, (16, 16, 16))
    patches, _ = data.typical(RECIPE, torch.device("cpu"))
    assert len(data.rows) == 1 and len(patches) == 32 and len(torch.unique(patches.flatten(1).mean(1))) > 16
