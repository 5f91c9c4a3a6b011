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
from scansmith.train import kinds, stage, watch
from scansmith.train.objective import Batch, Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group
from scansmith.train.recipes import schedule

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


def look(level: Level, images: int, patients: np.ndarray | None = None, **given) -> kinds.Kinds | None:
    """Kinds of the first images, each of a patient of its own."""
    rows = np.arange(images)
    return kinds.find(level, rows, rows[:0], rows if patients is None else patients, **given)


# ------------------------------------------------------------------------------------------------ finding


@pytest.mark.parametrize("volumes", [False, True])
def test_two_kinds_are_found_with_their_shares_and_every_image_goes_to_its_own(volumes):
    level = pictures([150, 350], volumes)
    found = look(level, 500)
    assert sorted(found.shares[0]) == [0.3, 0.7] and len(found.shares) == 1
    numbers = found.numbers
    assert len(set(numbers[:150])) == 1 and len(set(numbers[150:])) == 1 and numbers[0] != numbers[-1]
    assert found.shares[0][numbers[0]] == 0.3
    assert "2 kinds" in found.words([]) and "30%" in found.words([]) and "70%" in found.words([])


def test_kinds_are_cut_again_as_long_as_they_fall_apart():
    level = pictures([120, 200, 130])
    assert sorted(look(level, 450).shares[0]) == pytest.approx([120 / 450, 130 / 450, 200 / 450])


def test_one_cloud_is_left_whole_however_long():
    """A normal cloud keeps 1 - 2/pi = .36 of its variance when cut in two, an even spread a quarter: neither falls apart."""
    random = np.random.default_rng(0)
    long = random.normal(size=(1000, 20)) * np.array([10.0, *[1.0] * 19])
    even = np.concatenate([random.uniform(-10, 10, (1000, 1)), random.normal(size=(1000, 19))], axis=1)
    own = np.arange(1000)  # patients
    assert kinds.cut(long, own) is None and kinds.cut(even, own) is None
    apart = np.concatenate([long[:500], long[:500] + np.array([100.0, *[0.0] * 19])])
    halves = kinds.cut(apart, own)
    assert sorted(map(len, halves)) == [500, 500]
    assert look(pictures([400]), 400) is None


def test_a_kind_of_few_images_is_none_and_equal_images_have_none():
    assert look(pictures([400, kinds.FEWEST - 1]), 400 + kinds.FEWEST - 1) is None
    level = Level(np.zeros((300, 1, 8, 8), np.uint8), np.zeros(300, np.float32), np.ones(300, np.float32))
    assert look(level, 300) is None
    broken = pictures([150, 350])
    broken = Level(broken.array.astype(np.float32), broken.low, broken.high)
    broken.array[7] = np.nan
    assert look(broken, 500) is None


def test_what_one_patient_looks_like_is_no_kind():
    level, patients = pictures([150, 350]), np.arange(500)
    assert look(level, 500, patients=np.where(patients < 150, 0, patients)) is None
    assert look(level, 500, patients=np.where(patients < 150, patients % kinds.FEWEST_PATIENTS, patients)) is not None


def test_kinds_are_looked_for_within_each_class_also_where_a_class_has_no_training_image():
    level = pictures([150, 250, 200])
    classes = np.array([0] * 400 + [2] * 200)  # nothing of 1 and of 3
    found = look(level, 600, classes=classes, count=4)
    assert sorted(found.shares[0]) == [150 / 400, 250 / 400] and found.shares[1:] == ((1.0,), (1.0,), (1.0,))
    assert set(found.numbers[:400]) == {0, 1} and set(found.numbers[400:]) == {3}
    assert "hands" in found.words(["hands", "feet", "knees", "hips"])


def test_validation_images_go_to_the_kinds_of_their_own_class_and_no_other_image_is_looked_at():
    level = pictures([200, 300, 50])
    classes = np.array([0] * 500 + [1] * 50)
    train, others = np.arange(0, 500, 2), np.array([1, 499, 520])
    found = kinds.find(level, train, others, np.arange(550), classes, 2)
    assert found.numbers[1] == found.numbers[0] != found.numbers[498] == found.numbers[499] and found.numbers[520] == 2
    untouched = np.setdiff1d(np.arange(550), np.concatenate([train, others]))
    assert (found.numbers[untouched] == -1).all() and (found.numbers[train] >= 0).all()


def test_a_run_that_goes_on_has_the_kinds_it_began_with_or_says_that_they_are_gone(tmp_path):
    found = look(pictures([150, 350]), 500)
    kinds.keep(found, tmp_path)
    again = kinds.kept(tmp_path)
    assert again.shares == found.shares and np.array_equal(again.numbers, found.numbers)
    kinds.keep(None, tmp_path)
    assert kinds.kept(tmp_path) is None
    (tmp_path / kinds.FILE).unlink()
    with pytest.raises(ValueError, match="remove the folder to start anew"):
        kinds.kept(tmp_path)


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
    objective = OBJECTIVES["synthesis"](TINY, Task(1, (16, 16), 0, 20), Grid.choose((16, 16), 16), ((0.5, 0.5),))
    told, drawn = [], []
    objective.discriminator.register_forward_pre_hook(lambda _, given: told.append(given[1]))
    scored = objective.discriminator.scores_and_penalty

    def spy(images, given):
        told.extend(given.chunk(2))
        return scored(images, given)

    objective.discriminator.scores_and_penalty = spy
    objective.generator.register_forward_pre_hook(lambda _, given: drawn.append(given[0]))
    asked = torch.tensor([0, 1, 1, 0, 1, 0, 0, 0])
    random = torch.Generator().manual_seed(0)
    images = torch.randn(8, 1, 16, 16, generator=random)
    batch = Batch(images, None, asked, torch.randn(8, TINY.latent, generator=random), 0.7, 0.0, random)
    for name in ("discriminator", "generator"):
        getattr(objective, f"{name}_loss")(batch)[0].backward()
    assert torch.equal(objective.generator.prior.told(drawn[0], None), asked) and len(drawn) == 1
    assert len(told) == 4 and all(torch.equal(one, asked) for one in told)


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
    assert (found.numbers[data.rows("holdout")] == -1).all() and set(found.numbers[data.rows("train")]) == {0, 1}
    learned = stage.gather(data, data.level(Grid.choose((32, 32), 32)), recipe, CPU, found)
    assert learned.classes is None and set(learned.kinds) == {0, 1} and set(learned.real.train_kinds.tolist()) == {0, 1}
    batch = learned.draw(recipe, 0, Group(), schedule(replace(recipe, images=64), 0))
    assert batch.classes is None and len(batch.kinds) == recipe.batch


def test_the_samples_of_a_tick_give_each_kind_its_share_and_are_scored_with_it():
    shares = ((0.25, 0.6, 0.15),)
    network = GENERATORS["strided"](1, (4, 4), 2, width=4, latent=8, kinds=shares).eval()
    z = watch.spread_latents(network, 3, 200, None)
    told = network.prior.told(z, None)
    assert torch.equal(told, watch.told_of(network, 3, 200, [], CPU))
    for count in (64, 100, 200):  # any first ones
        found = torch.bincount(told[:count], minlength=3) / count
        torch.testing.assert_close(found, torch.tensor(shares[0]), atol=1.5 / count, rtol=0.0)
    assert torch.equal(z[:50], watch.spread_latents(network, 3, 50, None)) and torch.equal(
        z[:, :-1], latent(3, 200, 8)[:, :-1]
    )
    with torch.no_grad():
        wanted = network(watch.spread_latents(network, 3, 8, None)).clamp(-1, 1).numpy()
    assert np.array_equal(watch.samples(network, 3, 8, [], CPU, spread=True), wanted)
    assert not np.array_equal(watch.samples(network, 3, 8, [], CPU), wanted)
    plain = GENERATORS["strided"](1, (4, 4), 2, width=4, latent=8)
    assert torch.equal(watch.spread_latents(plain, 3, 40, None), latent(3, 40, 8))
    assert watch.told_of(plain, 3, 40, [], CPU) is None


@pytest.mark.parametrize("classes", [8, 13])
def test_the_samples_of_a_tick_give_each_kind_its_share_within_every_class(classes):
    """Multiples of the golden ratio taken class by class in turns would show each class a narrow stretch of the line."""
    network = GENERATORS["strided"](1, (4, 4), 2, width=4, latent=8, classes=classes, kinds=((0.5, 0.5),) * classes)
    told = watch.told_of(network, 0, 20 * classes, range(classes), CPU)
    assert torch.bincount(told, minlength=2 * classes).tolist() == [10] * 2 * classes
