"""Scans of different people laid on each other: outlines, what is moved where, and what is learned from it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_pairings import make_scans
from test_unpaired import RECIPE, a_batch, an_objective

from scansmith import dataset
from scansmith.pairings import laid
from scansmith.train import unpaired
from scansmith.train.parallel import Group
from scansmith.train.recipes import schedule


def ellipsoid(shape, middle, radii) -> np.ndarray:
    """An encoded body with a bright rind and a dark hole in a background of air."""
    places = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), -1)
    far = np.linalg.norm((places - middle) / radii, axis=-1)
    image = np.full(shape, -1.0, np.float32)
    image[far < 1.0] = 0.8
    image[far < 0.8] = 0.0
    image[far < 0.3] = -1.0
    return image


class Scan:
    """A pairing of one image."""

    out_channels = 1

    def __init__(self, image: np.ndarray) -> None:
        self.image = image
        self.data = type("Data", (), {"shape": (1, *image.shape)})

    def target(self, row: int, part=()) -> np.ndarray:
        return self.image[None][(slice(None), *part)]


CASES = [((64, 80), (30, 41), (20, 30), (38, 35), (30, 22)), ((40, 48, 44), (20, 25, 20), (14, 18, 12), (18, 22, 24), (10, 14, 15))]  # fmt: skip


@pytest.mark.parametrize("shape, middle, radii, its_middle, its_radii", CASES)
def test_a_body_is_moved_and_stretched_onto_another(shape, middle, radii, its_middle, its_radii):
    wanted, scan = ellipsoid(shape, middle, radii), Scan(ellipsoid(shape, its_middle, its_radii))
    own, its = (laid.outline(one, (1,) * one.ndim) for one in (wanted, scan.image))
    whole = tuple(slice(0, side) for side in shape)
    made = laid.laid(scan, 0, its, own, whole)[0]
    assert np.abs(made - wanted).mean() < 0.25 * np.abs(scan.image - wanted).mean()
    # a part is that part of the whole, at the border, beyond the body and inside
    for part in ([slice(0, 16)] * len(shape), [slice(10, 26)] * len(shape), [slice(side - 9, side) for side in shape]):
        np.testing.assert_allclose(laid.laid(scan, 0, its, own, tuple(part))[0], made[tuple(part)], atol=1e-5)


@pytest.mark.parametrize("shape, middle, radii, its_middle, its_radii", CASES)
def test_an_outline_is_the_box_of_the_body_without_its_holes_and_the_table(shape, middle, radii, its_middle, its_radii):
    image = ellipsoid(shape, middle, radii)
    image[-3:-1] = 0.0  # a table
    found = laid.outline(image, (1,) * image.ndim)
    assert np.abs(found.first - (np.array(middle) - radii)).max() <= 1.0
    assert np.abs(found.sides - 2.0 * np.array(radii)).max() <= 2.0
    assert found.thumb[(laid.THUMB // 2,) * len(shape)] == 1.0 and found.thumb[(0,) * len(shape)] == 0.0
    assert found.thumb.mean() == pytest.approx(np.pi / (4 if len(shape) == 2 else 6), abs=0.08)


def test_an_image_without_background_is_its_own_outline():
    for flat in (np.zeros((40, 30), np.float32), np.full((40, 30), -1.0, np.float32)):
        found = laid.outline(flat, (2, 3))
        assert found.first.tolist() == [0, 0] and found.sides.tolist() == [80, 90]
        assert found.thumb.all() and not found.known


def test_scans_are_laid_under_those_with_the_most_alike_outlines(tmp_path):
    one, other = (make_scans(tmp_path / kind, kind, masks=False) for kind in ("MR", "CT"))
    found = laid.lay(unpaired.AsStored(one), unpaired.AsStored(other))
    assert found.difference() < laid.FAR and set(found.outlines) == set(other.rows("train").tolist())
    for row in one.rows("train").tolist():  # any, also of those that were not looked at before
        own, rows, far = found.alike(row)
        assert set(rows.tolist()) <= set(found.outlines)
        thumbs = np.stack([found.outlines[int(near)].thumb.ravel() for near in rows])
        shapes = np.stack([laid.ratios(found.outlines[int(near)]) for near in rows])
        every = laid.unlike(own, thumbs, shapes)
        assert (np.diff(every) >= 0).all() and every[0] == far


def test_thick_slices_keep_their_extent():
    """Every so many voxels are read along long axes alone."""
    shape = (12, 300, 280)
    image = ellipsoid(shape, (5.5, 150, 140), (20, 110, 90))
    steps = (1, 4, 3)
    found = laid.outline(image[::1, ::4, ::3], steps)
    assert found.known and found.first[0] == 0 and found.sides[0] == 12
    assert np.abs(found.sides[1:] - (2 * 110 * 0.96, 2 * 90 * 0.96)).max() < 12


def test_scans_without_background_are_not_laid_on_each_other(both_shapes, tmp_path):
    """They would all look alike."""
    writer = dataset.Writer(tmp_path / "full", {"images": (np.dtype(np.float32), (1, 40, 48))})
    example = both_shapes[0]
    for _ in range(6):
        writer.add({"images": np.full((1, 1, 40, 48), 0.3, np.float32)})
    kept = ("labels", "spacing", "source_format", "hash", "neighbours", "choices", "modality", "units")
    writer.finish({key: example.info[key] for key in kept if key in example.info}, example.columns)
    full = dataset.Dataset.open(tmp_path / "full")
    data = unpaired.gather(full, full, RECIPE, (32, 32))
    assert data.laid is None and "fill their images" in data.plan()


def test_judges_are_shown_targets_that_were_not_moved(both_shapes):
    data = unpaired.gather(both_shapes[0], both_shapes[0], RECIPE, (40, 48))
    first, last = (data.draw(RECIPE, step, Group(), schedule(RECIPE, 0)) for step in (0, 15))
    assert first.real is None and first.judged is first.target
    assert last.judged is last.real and not torch.equal(last.real, last.target)
    parts = [data.draw(RECIPE, 15, Group(rank, 2), schedule(RECIPE, 0)) for rank in (0, 1)]
    assert torch.equal(torch.cat([part.real for part in parts]), last.real)


def test_bodies_of_other_shapes_are_not_learned_from(both_shapes):
    round_one, _ = both_shapes
    alike, other = (unpaired.gather(round_one, one, RECIPE, (32, 32)) for one in both_shapes)
    assert alike.laid is not None and "differ by 0.00" in alike.plan()
    assert other.laid is None and "differ too much" in other.plan()


@pytest.fixture
def both_shapes(tmp_path):
    found = []
    for name, radii in (("round", (14, 14)), ("long", (6, 22))):
        writer = dataset.Writer(tmp_path / name, {"images": (np.dtype(np.float32), (1, 40, 48))})
        for number in range(6):
            writer.add({"images": ellipsoid((40, 48), (20 + number % 3, 24), radii)[None, None]})
        columns = {
            "split": np.array(["train"] * 6), "patient": np.array([f"p{number}" for number in range(6)]),
            "low": np.full(6, -1.0), "high": np.full(6, 1.0), "slice": np.zeros(6, int), "case": np.arange(6).astype(str),
        }  # fmt: skip
        example = make_scans(tmp_path / f"like-{name}", "MR", masks=False)
        columns = {key: columns.get(key, np.repeat(values[:1], 6, axis=0)) for key, values in example.columns.items()}
        kept = ("labels", "spacing", "source_format", "hash", "neighbours", "choices", "modality", "units")
        writer.finish({key: example.info[key] for key in kept if key in example.info}, columns)
        found.append(dataset.Dataset.open(tmp_path / name))
    return found


@pytest.mark.parametrize("name", ["contrastive", "cycle"])
def test_a_run_begins_with_scans_laid_on_each_other_and_rests_its_judges(name, both_shapes):
    data = unpaired.gather(both_shapes[0], both_shapes[0], RECIPE, (32, 32))
    steps = RECIPE.images // RECIPE.batch
    batches = [data.draw(RECIPE, step, Group(), schedule(RECIPE, 0)) for step in range(steps)]
    heard = [batch.adversary for batch in batches]
    assert all(batch.laid for batch in batches) and heard == sorted(heard)
    assert heard.count(0.0) == round(unpaired.LAID * steps + 0.4999) and heard[-1] == 1.0
    first, last = batches[0], batches[-1]
    # what is laid on a source has its outline: where one is air the other is, but for the border
    assert ((first.images > -0.9) != (first.target > -0.9)).float().mean() < 0.12
    objective = an_objective(name)
    assert set(objective.players) - set(objective.resting(first)) == {objective.model}
    assert not objective.resting(last)
    loss, logged = getattr(objective, f"{objective.model}_loss")(first)
    loss.backward()
    assert set(logged) == {"laid"} and float(loss.detach()) > 0.0


def test_regression_from_laid_scans_is_zero_only_for_the_target():
    objective, batch = an_objective("contrastive"), a_batch()
    batch = replace(batch, laid=True, adversary=0.0, weight=torch.ones(2, 1, 32, 32))
    made = objective.translator(batch.images)[:, 0].detach()
    exact, _ = objective.translator_loss(replace(batch, target=made))
    assert float(exact.detach()) < 1e-4 < float(objective.translator_loss(batch)[0].detach())
