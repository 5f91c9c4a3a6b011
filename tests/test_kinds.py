"""Kinds that nobody named: found where images fall apart into clouds, picked by z in their shares, told to both networks."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from test_train import TINY, make_dataset

from scansmith import dataset
from scansmith.dataset import Level
from scansmith.networks import GENERATORS
from scansmith.networks.blocks import Prior, latent
from scansmith.preprocess import Grid
from scansmith.train import kinds, loop, stage, watch
from scansmith.train.objective import Batch
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group

CPU = torch.device("cpu")


def pictures(counts: list[int], volumes: bool = False, seed: int = 0) -> Level:
    """Discs, of each kind at a place of its own, with sizes and grounds that vary; uint8 (N, 1, ...)."""
    random, side = np.random.default_rng(seed), 16 if volumes else 32
    axes = np.meshgrid(*[np.arange(side)] * (3 if volumes else 2), indexing="ij")
    places = [0.3, 0.7, 0.5]
    images = []
    for kind, count in enumerate(counts):
        for _ in range(count):
            centre = side * (places[kind] + random.normal(0, 0.02, len(axes)))
            distance = sum((axis - at) ** 2 for axis, at in zip(axes, centre))
            images.append(200 * (distance < (side * random.uniform(0.15, 0.2)) ** 2) + random.uniform(0, 30))
    values = np.uint8(images)[:, None]
    return Level(values, np.zeros(len(values), np.float32), np.full(len(values), 255.0, np.float32))


# ------------------------------------------------------------------------------------------------ finding


@pytest.mark.parametrize("volumes", [False, True])
def test_two_kinds_are_found_with_their_shares_and_every_image_goes_to_its_own(volumes):
    level = pictures([150, 350], volumes)
    found = kinds.find(level, np.arange(500))
    assert sorted(found.shares[0]) == [0.3, 0.7] and len(found.shares) == 1
    numbers = found.numbers(level, np.arange(500), None)
    assert len(set(numbers[:150])) == 1 and len(set(numbers[150:])) == 1 and numbers[0] != numbers[-1]
    assert found.shares[0][numbers[0]] == 0.3
    assert "2 kinds" in found.words([]) and "30%" in found.words([]) and "70%" in found.words([])


def test_kinds_are_cut_again_as_long_as_they_fall_apart():
    level = pictures([120, 200, 130])
    assert sorted(kinds.find(level, np.arange(450)).shares[0]) == pytest.approx([120 / 450, 130 / 450, 200 / 450])


def test_one_cloud_is_left_whole_however_long():
    """A normal cloud keeps 1 - 2/pi = .36 of its variance when cut in two, an even spread a quarter: neither falls apart."""
    random = np.random.default_rng(0)
    long = random.normal(size=(1000, 20)) * np.array([10.0, *[1.0] * 19])
    even = np.concatenate([random.uniform(-10, 10, (1000, 1)), random.normal(size=(1000, 19))], axis=1)
    assert kinds.cut(long) is None and kinds.cut(even) is None
    apart = np.concatenate([long[:500], long[:500] + np.array([100.0, *[0.0] * 19])])
    halves = kinds.cut(apart)
    assert sorted(map(len, halves)) == [500, 500]
    assert kinds.find(pictures([400]), np.arange(400)) is None


def test_a_kind_of_few_images_is_none_and_equal_images_have_none():
    assert kinds.find(pictures([400, kinds.FEWEST - 1]), np.arange(400 + kinds.FEWEST - 1)) is None
    level = Level(np.zeros((300, 1, 8, 8), np.uint8), np.zeros(300, np.float32), np.ones(300, np.float32))
    assert kinds.find(level, np.arange(300)) is None
    broken = pictures([150, 350])
    broken = Level(broken.array.astype(np.float32), broken.low, broken.high)
    broken.array[7] = np.nan
    assert kinds.find(broken, np.arange(500)) is None


def test_kinds_are_looked_for_within_each_class():
    level = pictures([150, 250, 200])
    classes = np.array([0] * 400 + [1] * 200)
    found = kinds.find(level, np.arange(600), classes, 3)
    assert sorted(found.shares[0]) == [150 / 400, 250 / 400] and found.shares[1:] == (
        (1.0,),
        (1.0,),
    )  # nothing of the third
    assert np.isfinite(found.centres).all() and len(found.centres) == 4
    numbers = found.numbers(level, np.arange(600), classes)
    assert set(numbers[:400]) == {0, 1} and set(numbers[400:]) == {2}
    # An image goes to a kind of its own class, wherever it would lie nearer.
    assert set(found.numbers(level, np.arange(400, 600), np.zeros(200, np.int64))) <= {0, 1}
    assert "hands" in found.words(["hands", "feet", "knees"])


def test_a_run_that_goes_on_has_the_kinds_it_began_with(tmp_path):
    found = kinds.find(pictures([150, 350]), np.arange(500))
    kinds.keep(found, tmp_path)
    again = kinds.kept(tmp_path)
    assert again.shares == found.shares and np.array_equal(again.centres, found.centres)
    kinds.keep(None, tmp_path)
    assert kinds.kept(tmp_path) is None


# ------------------------------------------------------------------------------------------------ z picks the kind

SHARES = ((0.2, 0.5, 0.3), (1.0,), (0.9, 0.1))


def test_z_picks_each_kind_of_a_class_as_often_as_its_share():
    prior, z = Prior(4, 3, SHARES), latent(0, 20_000, 4)
    for number, (row, first) in enumerate(zip(SHARES, (0, 3, 4))):
        told = prior.told(z, torch.full((len(z),), number))
        found = torch.bincount(told, minlength=6)[first : first + len(row)] / len(z)
        torch.testing.assert_close(found, torch.tensor(row), atol=0.015, rtol=0.0)
    alone = Prior(4, 0, SHARES[:1])
    assert torch.equal(alone.told(z, None), prior.told(z, torch.zeros(len(z), dtype=torch.int64)))


def test_z_that_is_moved_within_a_kind_picks_it_and_is_what_the_kind_would_have_drawn():
    prior, z = Prior(4, 3, SHARES), latent(0, 5000, 4)
    z[:3, -1] = torch.tensor([-40.0, 40.0, 0.0])  # further out than float32 can say
    classes = torch.arange(5000) % 3
    asked = prior.first[classes] + torch.arange(5000) % torch.tensor([3, 1, 2])[classes]
    moved = prior.within(z, asked)
    assert torch.isfinite(moved).all() and torch.equal(moved[:, :-1], z[:, :-1])
    assert torch.equal(prior.told(moved, classes), asked)
    # Kinds drawn in their shares and z moved within them: N(0, 1) again.
    kinds_drawn = torch.from_numpy(np.random.default_rng(0).choice(3, 5000, p=SHARES[0]))
    last = prior.within(latent(1, 5000, 4), kinds_drawn)[:, -1]
    assert abs(float(last.mean())) < 0.05 and abs(float(last.std()) - 1.0) < 0.05


def test_without_kinds_nothing_is_moved():
    z, classes = latent(0, 6, 4), torch.arange(6) % 2
    assert Prior(4, 2).within(z, classes) is z and Prior(4).within(z, None) is z
    assert Prior(4)(z) is z and Prior(4).size == 4
    assert torch.equal(Prior(4, 2).told(z, classes), classes)


@pytest.mark.parametrize("name", ["strided", "residual", "dcgan", "dense"])
def test_generators_take_kinds_as_config_json_says_them(name):
    shape = {"channels": 1, "base": [4, 4], "doublings": 2, "width": 16, "latent": 8}
    network = GENERATORS[name](**json.loads(json.dumps(shape | {"classes": 0, "kinds": [[0.5, 0.5]]}))).eval()
    z = latent(0, 2, 8)
    z[0, -1], z[1, -1] = -1.0, 1.0
    assert network.prior.told(z, None).tolist() == [0, 1]
    with torch.no_grad():
        before = network(z)
        network.prior.embed.weight[1] += 1.0
        after = network(z)
    assert torch.equal(before[0], after[0]) and not torch.allclose(before[1], after[1])


# ------------------------------------------------------------------------------------------------ training


def test_d_is_told_the_kind_of_every_image_and_each_fake_is_of_the_kind_of_its_pair():
    torch.manual_seed(0)
    objective = OBJECTIVES["synthesis"](TINY, 1, Grid.choose((16, 16), 16), 0, ((0.5, 0.5),))
    told, drawn = [], []
    objective.discriminator.register_forward_pre_hook(lambda _, given: told.append(given[1]))
    objective.generator.register_forward_pre_hook(lambda _, given: drawn.append(given[0]))
    asked = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0])
    random = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 16, 16, generator=random)
    batch = Batch(images, None, asked, torch.randn(8, TINY.latent, generator=random), 0.7, 0.0, random)
    for name in ("discriminator", "generator"):
        getattr(objective, f"{name}_loss")(batch)[0].backward()
    assert torch.equal(objective.generator.prior.told(drawn[0], None), asked) and len(drawn) == 1
    assert told and all(torch.equal(one, asked) for one in told)


def test_training_finds_the_kinds_keeps_them_and_never_asks_for_the_holdout(tmp_path):
    opened = dataset.Dataset.open(make_dataset(tmp_path / "data", count=24))
    level = pictures([300, 200, 0])
    columns = {name: np.resize(values, (500, *values.shape[1:])) for name, values in opened.columns.items()}
    columns["split"] = np.array((["train"] * 3 + ["validation"] + ["holdout"]) * 100)
    images = (level.array[row] for row in range(500))
    info = {key: opened.info[key] for key in ("modality", "units", "labels", "spacing", "source_format", "hash")}
    dataset.write(tmp_path / "two", info, columns, images, np.dtype(np.uint8), (1, 32, 32))
    data = dataset.Dataset.open(tmp_path / "two")
    recipe = replace(TINY, kinds=True, width=8)
    result = stage.run_training(
        data.root, tmp_path / "run", stage.Wish(5.0, recipe, side=32, images=64), "cpu", tmp_path / "model"
    )
    assert any("2 kinds of images" in sentence for sentence in result["plan"])
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert [len(row) for row in config["network"]["arguments"]["kinds"]] == [2]
    found = kinds.kept(tmp_path / "run")
    told = stage.kinds_of_rows(data, data.level(Grid.choose((32, 32), 32)), found, None)
    assert (told[data.rows("holdout")] == -1).all() and set(told[data.rows("train")]) == {0, 1}
    learned = stage.gather(data, data.level(Grid.choose((32, 32), 32)), 0, CPU, found)
    assert learned.classes is None and set(learned.kinds) == {0, 1} and set(learned.real.train_kinds.tolist()) == {0, 1}
    batch = loop.draw_batch(
        replace(recipe, images=64), 0, learned, Group(), loop.schedule(replace(recipe, images=64), 0)
    )
    assert batch.classes is None and len(batch.kinds) == recipe.batch


def test_the_samples_of_a_tick_give_each_kind_its_share_and_are_scored_with_it():
    shares = ((0.25, 0.6, 0.15),)
    network = GENERATORS["strided"](1, (4, 4), 2, width=4, latent=8, kinds=shares).eval()
    z = watch.spread_latents(network, 3, 200)
    told = network.prior.told(z, None)
    assert torch.equal(told, watch.told_of(network, 3, 200, [], CPU))
    for count in (64, 100, 200):  # any first ones
        found = torch.bincount(told[:count], minlength=3) / count
        torch.testing.assert_close(found, torch.tensor(shares[0]), atol=1.5 / count, rtol=0.0)
    assert torch.equal(z[:50], watch.spread_latents(network, 3, 50)) and torch.equal(
        z[:, :-1], latent(3, 200, 8)[:, :-1]
    )
    with torch.no_grad():
        wanted = network(z[:8]).clamp(-1, 1).numpy()
    assert np.array_equal(watch.samples(network, 3, 8, [], CPU, spread=True), wanted)
    assert not np.array_equal(watch.samples(network, 3, 8, [], CPU), wanted)
    plain = GENERATORS["strided"](1, (4, 4), 2, width=4, latent=8)
    assert torch.equal(watch.spread_latents(plain, 3, 40), latent(3, 40, 8))
    assert watch.told_of(plain, 3, 40, [], CPU) is None
