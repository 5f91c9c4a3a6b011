"""Translation without pairs: losses in closed form, who moves whom, what is refused and said, and runs that go on exactly."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_pairings import make_scans
from test_translation import make_pairs

from scansmith import dataset, evaluate, losses, model, pairings, train
from scansmith.image import Image
from scansmith.networks.resnet import ResNet
from scansmith.preprocess import Grid
from scansmith.runtime import Progress
from scansmith.train import loop, stage, unpaired
from scansmith.train.contrastive import middle_of
from scansmith.train.cycle import coarsened
from scansmith.train.objective import Batch, Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group
from scansmith.train.recipes import RECIPES, chosen, schedule
from scansmith.train.translation import grain, textured
from scansmith.translator import translated

RECIPE = replace(RECIPES["contrastive"], width=4, batch=4, images=64, threads=1, train_images=8, target=32)


def an_objective(name: str, channels: int = 1):
    torch.manual_seed(0)
    return OBJECTIVES[name](
        replace(RECIPE, name=name, objective=name), Task(channels, (32, 32), 0, 20, made=1), Grid.patch((32, 32), 32)
    )


def a_batch(channels: int = 1) -> Batch:
    images, target = torch.randn(2, channels, 32, 32), torch.randn(2, channels, 32, 32)
    return Batch(
        images, None, None, torch.zeros(2, 1), 0.0, 0.0, torch.Generator().manual_seed(1), target=target, adversary=1.0
    )


@pytest.fixture(scope="module")
def both(tmp_path_factory) -> tuple[Path, Path]:
    """MR-like and CT images of the same kind of content."""
    root = tmp_path_factory.mktemp("unpaired")
    make_scans(root / "mr", "MR", masks=False)
    make_scans(root / "ct", "CT", masks=False)
    return root / "mr", root / "ct"


# ------------------------------------------------------------------------------------------------ losses


def test_contrast_is_the_cross_entropy_of_finding_each_place():
    eye = torch.eye(4)[None]
    others = 3 * math.exp(-1 / 0.07)
    assert losses.patch_contrast(eye, eye) == pytest.approx(math.log1p(others), abs=1e-6)
    assert losses.patch_contrast(eye, eye.roll(1, 1)) > 10.0
    alike = torch.ones(2, 4, 1)
    assert losses.patch_contrast(alike, alike) == pytest.approx(math.log(4), rel=1e-5)


@pytest.mark.parametrize("shape", [(24, 24), (12, 14, 16)])
def test_edges_are_compared_whatever_their_contrast(shape):
    random = torch.Generator().manual_seed(0)
    source = torch.randn(2, 1, *shape, generator=random)
    least = float(losses.gradient_field(source, source))
    assert losses.gradient_field(-3.0 * source + 1.0, source) == pytest.approx(least, abs=1e-4)
    other = torch.randn(2, 1, *shape, generator=random)
    assert losses.gradient_field(other, source) > 1.3 * least
    places = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij"))
    disc = (places.square().sum(0) < 0.5).float()[None, None]
    assert losses.gradient_field(1 - disc, disc) < 0.3 < least  # sharp edges and no noise
    kept = [unpaired.edges_kept(one[0].numpy(), disc[0].numpy()) for one in (disc, 5 - disc, 0 * disc)]
    assert kept == pytest.approx([1.0, 1.0, 0.0], abs=1e-3)
    assert losses.gradient_field(torch.zeros_like(source), source) == pytest.approx(1.0)


# ------------------------------------------------------------------------------------------------ networks


@pytest.mark.parametrize("dimensions", [2, 3])
def test_the_generator_gives_one_plane_and_maps_with_the_channels_it_says(dimensions):
    network = ResNet(3, 2, dimensions, 4)
    x = torch.randn(2, 3, *(16,) * dimensions)
    out, maps = network(x), network.encoded(x)[:-1]
    assert out.shape == (2, 1, 2, *(16,) * dimensions) and out.dtype == torch.float32
    assert [one.shape[1] for one in maps] == network.widths
    assert [one.shape[2] for one in maps] == [16, 8, 4, 4]
    out.square().mean().backward()
    assert all(value.grad is not None for value in network.parameters())
    with pytest.raises(ValueError, match="divisible by 4"):
        network(torch.randn(1, 3, *(18,) * dimensions))


@pytest.mark.parametrize("name", ["contrastive", "cycle"])
def test_each_player_is_moved_by_its_own_loss_alone(name):
    objective, batch = an_objective(name), a_batch()
    for player in objective.players:
        for other in objective.players:
            objective.get_submodule(other).requires_grad_(other in (player, objective.model))
        objective.zero_grad()
        loss, logged = getattr(objective, f"{player}_loss")(batch)
        loss.backward()
        assert math.isfinite(float(loss.detach())) and all(math.isfinite(float(value)) for value in logged.values())
        moved = {
            other
            for other in objective.players
            if any(p.grad is not None and p.grad.abs().sum() > 0 for p in objective.get_submodule(other).parameters())
        }
        assert moved == {player}


def test_of_stacks_the_middle_slice_is_judged_and_a_target_may_be_a_source():
    stack = torch.arange(5.0).reshape(1, 5, 1, 1)
    assert middle_of(stack, 1).item() == 2.0 and torch.equal(middle_of(stack, 5), stack)
    objective, batch = an_objective("contrastive", channels=5), a_batch(5)
    for player in objective.players:
        loss, _ = getattr(objective, f"{player}_loss")(batch)
        assert math.isfinite(float(loss.detach()))
    assert objective.compares_same(batch)
    assert not objective.compares_same(replace(batch, target=batch.target[:, :1]))


def test_what_is_turned_back_is_blurred_and_noisy():
    batch = a_batch()
    flat = torch.full((2, 1, 32, 32), 0.5)
    noise = coarsened(flat, batch) - 0.5
    assert noise.std() == pytest.approx(0.02, rel=0.1) and torch.equal(coarsened(flat, batch), coarsened(flat, batch))
    point = torch.zeros(2, 1, 32, 32)
    point[:, :, 16, 16] = 9.0
    np.testing.assert_allclose(coarsened(point, batch)[:, 0, 15:18, 15:18] - noise[:, 0, 15:18, 15:18], 1.0, atol=1e-5)


class Same(torch.nn.Module):
    """A translator that changes nothing."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, None]


@pytest.mark.parametrize("shape", [(24, 20), (10, 12, 14)])
def test_texture_is_seen_in_units_of_the_targets_and_whatever_the_range(shape):
    random = torch.Generator().manual_seed(0)
    places = torch.stack(torch.meshgrid(*(torch.linspace(-1, 1, side) for side in shape), indexing="ij"))
    flat = places.sum(0).expand(2, 1, *shape)  # a slope has no texture, but at its borders
    inner = (..., *(slice(1, -1),) * len(shape))
    assert grain(flat)[inner].abs().max() < 1e-6
    target = 0.01 * torch.randn(2, 1, *shape, generator=random)
    image, texture = textured(flat + target, target).chunk(2, 1)
    assert torch.equal(image, flat + target)
    assert texture[inner].abs().mean() == pytest.approx(0.8, abs=0.1)  # mean asinh |n| with mean |n| = 1
    _, more = textured(30.0 * (flat + target), 30.0 * target).chunk(2, 1)
    torch.testing.assert_close(more, texture, atol=1e-4, rtol=1e-4)
    weight = torch.ones(2, 1, *shape)
    weight[..., : shape[-1] // 2] = 0.0  # what does not count may be of any grain
    coarse = target.clone()
    coarse[..., : shape[-1] // 2 - 2] *= 100.0
    torch.testing.assert_close(textured(target, coarse, weight), textured(target, target, weight))
    assert not torch.allclose(textured(target, coarse), textured(target, target))


def test_translators_that_change_nothing_lose_only_what_is_blurred_and_the_judges_scores():
    objective, batch = an_objective("cycle"), a_batch()
    objective.translators.there = objective.translators.back = Same()
    loss, logged = objective.translators_loss(batch)
    blurred = sum((coarsened(one, batch) - one).abs().mean() for one in (batch.images, batch.target))
    judges = objective.discriminators
    fooled = sum(
        (judge(textured(image, real)) - 1.0).square().mean() / 2.0
        for judge, image, real in (
            (judges.of_targets, batch.images, batch.target),
            (judges.of_sources, batch.target, batch.images),
        )
    )
    assert float(logged["same"]) == 0.0
    torch.testing.assert_close(logged["cycle"], blurred)
    torch.testing.assert_close(loss, fooled + 10.0 * blurred)


def test_a_way_back_needs_equal_channels():
    with pytest.raises(
        ValueError, match=r"expected as many channels in both kinds .* found 5 and 1 .*: use the recipe contrastive"
    ):
        an_objective("cycle", channels=5)


# ------------------------------------------------------------------------------------------------ data


def test_a_batch_depends_on_seed_and_step_and_processes_share_it(both):
    data = unpaired.gather(*(dataset.Dataset.open(one) for one in both), RECIPE, (32, 32))
    now = schedule(RECIPE, 0)
    whole = data.draw(RECIPE, 3, Group(), now)
    assert torch.equal(whole.images, data.draw(RECIPE, 3, Group(), now).images)
    assert not torch.equal(whole.images, data.draw(RECIPE, 4, Group(), now).images)
    parts = [data.draw(RECIPE, 3, Group(rank, 2), now) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.target for part in parts]), whole.target)


def test_values_of_neither_kind_are_changed(both):
    data = unpaired.gather(*(dataset.Dataset.open(one) for one in both), RECIPE, (40, 48))
    for side in (data.sources, data.targets):
        assert pairings.Pairing(data.sources.pairing.data).bendable
        patch, _, _ = side.cut(1, np.random.default_rng(0))
        stored = side.pairing.source(1)
        assert any(np.array_equal(patch, one) for one in (stored, stored[..., ::-1]))


def test_equal_sets_are_no_distance_apart_and_others_are(both):
    random = np.random.default_rng(0)
    one, other, far = (
        [random.normal(mean, 0.3, (1, 32, 32)).astype(np.float32) for _ in range(12)] for mean in (0, 0, 0.8)
    )
    assert unpaired.distance(one, other, (32, 32)) < 0.15 * unpaired.distance(one, far, (32, 32))


def test_different_prevalence_and_fields_of_view_are_said(both, tmp_path):
    data = dataset.Dataset.open(both[0])
    assert unpaired.differences(data, data) == []
    sets = []
    for number, share in enumerate((0.25, 0.75)):
        made = make_scans(tmp_path / f"d{number}", masks=False)
        info = {**made.info, "labels": ["healthy", "tumour"]}
        ill = [("tumour" if row < share * 8 else "healthy") for row in range(len(made.columns["label"]))]
        sets.append(replace(made, info=info, columns={**made.columns, "label": np.array(ill)}))
    words = unpaired.differences(*sets)
    assert len(words) == 2 and "25% of the sources and 75% of the targets are labelled 'tumour'" in words[1]


def test_slices_and_volumes_or_other_voxel_sizes_are_refused_in_words(both, tmp_path):
    data = dataset.Dataset.open(both[0])
    with pytest.raises(
        ValueError, match=r"expected slices or volumes in both datasets, found 2-D images .* and 3-D ones"
    ):
        unpaired.refuse_unlike(data, make_scans(tmp_path / "deep", size=(16, 24, 24), masks=False))
    coarse = replace(data, info={**data.info, "spacing": [4.0, 4.0]})
    with pytest.raises(ValueError, match=r"expected voxels of one size .* found \[2.0, 1.5\] mm and \[4.0, 4.0\] mm"):
        unpaired.refuse_unlike(data, coarse)
    with pytest.raises(ValueError, match="expected another dataset"):
        chosen("unpaired", "auto", False, False)


# ------------------------------------------------------------------------------------------------ runs


@pytest.mark.parametrize("name", ["contrastive", "cycle"])
def test_a_model_is_learned_and_used_and_the_way_back_is_another(name, both, tmp_path):
    result = train(both[0], tmp_path / "run", to=both[1], recipe=name, images=64, minutes=0.1, device="cpu")
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    settings = config["translation"]
    assert settings["task"] == "unpaired" and settings["calibration"] is None
    assert config["intensity"]["units"] == "HU" and settings["source"]["modality"] == "MR"
    assert (tmp_path / "run" / "inverse").is_dir() == (name == "cycle") == ("inverse" in result)
    data = dataset.Dataset.open(both[0])
    scan = Image(data.image(1)[0].T[None, :, :, None], np.diag([-1.5, -2.0, 3.0, 1.0]), "MR")
    made = translated(model.load(tmp_path / "run" / "model"), scan, "nifti", torch.device("cpu"))
    assert made.image.array.shape == scan.array.shape and made.image.units == "HU" and not made.maps
    if name == "cycle":
        back = model.load(tmp_path / "run" / "inverse")
        assert back.config["translation"]["source"]["modality"] == "CT" and back.intensity.units == "a.u."


def without_sources(root: Path, pairs: dataset.Dataset) -> dataset.Dataset:
    """The targets of a dataset of pairs as scans of their own."""
    columns = pairs.columns | {"low": pairs.columns["target_low"], "high": pairs.columns["target_high"]}
    columns["units"] = np.full(len(columns["units"]), "HU")
    writer = dataset.Writer(root, {"images": (np.dtype(np.int16), pairs.shape)})
    for row in range(len(columns["units"])):
        writer.add({"images": pairs.target(row)[None]})
    kept = ("labels", "spacing", "source_format", "hash", "neighbours", "choices")
    writer.finish({name: pairs.info[name] for name in kept} | {"modality": "CT", "units": "HU"}, columns)
    return dataset.Dataset.open(root)


def fitted(name: str, root: Path, run: str, images: int, deadline_s: float = 1e9, width: int = 8):
    """(dataset of pairs, feed, recipe, objective, averaged model, outcome) of a run on sources of pairs and their shuffled, inverted targets."""
    pairs = dataset.Dataset.open(root / "pairs" if (root / "pairs").is_dir() else make_pairs(root / "pairs"))
    other = dataset.Dataset.open(root / "ct") if (root / "ct").is_dir() else without_sources(root / "ct", pairs)
    recipe = replace(
        RECIPES[name], width=width, images=images, ticks=2, threads=1, train_images=20, target=32,
        learning_rate=2e-3, learning_rate_end=5e-4,
    )  # fmt: skip
    data = unpaired.gather(pairs, other, recipe, (32, 32))
    torch.manual_seed(0)
    objective = OBJECTIVES[name](recipe, Task(1, (40, 48), 0, 20, made=1), Grid.patch((40, 48), 32))
    progress = Progress("test", images, quiet=True)
    best, outcome = loop.fit(objective, recipe, data, root / run, Group(), deadline_s, progress)
    return pairs, data, recipe, objective, best, outcome


@pytest.mark.parametrize("name", ["contrastive", "cycle"])
def test_a_run_that_was_cut_goes_on_to_the_same_bits(name, tmp_path):
    *_, whole, _ = fitted(name, tmp_path, "whole", 16, width=4)
    *_, first = fitted(name, tmp_path, "cut", 16, deadline_s=0.0, width=4)
    assert first["cut"] and first["images"] == 4
    *_, resumed, last = fitted(name, tmp_path, "cut", 16, width=4)
    assert last["images"] == 16
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_an_inverted_contrast_is_found_without_pairs_and_judged_on_pairs(tmp_path):
    pairs, data, recipe, objective, best, outcome = fitted("cycle", tmp_path, "run", 160)
    network = objective.saved(best)
    config = stage.configuration(pairs, recipe, Grid.patch((40, 48), 32), objective, outcome)
    model.save(tmp_path / "model", network, config | data.says(network, torch.device("cpu")))
    result = evaluate(tmp_path / "pairs", tmp_path / "model", tmp_path / "judged", device="cpu")
    errors = {method: result["metrics"][method]["mae"]["value"] for method in ("translation", "identity")}
    assert errors["translation"] < 0.85 * errors["identity"]
    assert result["coverage"] is None and result["width"] is None and result["calibration"] is None
