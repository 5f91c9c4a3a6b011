"""Augmentation of images and volumes: identity where it is off, differentiable, drawn from the generator alone."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from scansmith import augment

BOTH = pytest.mark.parametrize("sides", [(16, 24), (6, 8, 10)])


def images(sides, seed=0):
    return torch.rand(4, 1, *sides, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def draw(sides, p, seed, count=4):
    return augment.draw(count, p, torch.Generator().manual_seed(seed), len(sides))


def only(n, **changes):
    """A draw for one image that changes nothing but what is named."""
    still = {"shift": torch.zeros(1, n), "scale": torch.ones(1), "brightness": torch.zeros(1)}
    return augment.Draw(
        **{**still, "contrast": torch.ones(1), "hole": torch.zeros(1, n), "hole_size": torch.zeros(1), **changes}
    )


@BOTH
def test_probability_zero_is_the_identity(sides):
    torch.testing.assert_close(augment.apply(images(sides), draw(sides, 0.0, 0)), images(sides), rtol=0, atol=1e-5)


@BOTH
def test_the_same_generator_state_draws_the_same_change(sides):
    one = augment.apply(images(sides), draw(sides, 0.8, 1))
    two = augment.apply(images(sides), draw(sides, 0.8, 1))
    other = augment.apply(images(sides), draw(sides, 0.8, 2))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_a_volume_that_repeats_an_image_is_changed_like_the_image():
    """In its middle slice, under the same draw with nothing along z; enlarged, so that no background comes in there."""
    flat = draw((16, 24), 1.0, 4)
    flat = dataclasses.replace(flat, scale=flat.scale.clamp(min=1.0))
    none = torch.zeros(4, 1)
    solid = dataclasses.replace(
        flat, shift=torch.cat([flat.shift, none], dim=1), hole=torch.cat([flat.hole, none], dim=1)
    )
    pictures = images((16, 24))
    found = augment.apply(pictures[:, :, None].expand(-1, -1, 5, -1, -1), solid)
    torch.testing.assert_close(found[:, :, 2], augment.apply(pictures, flat), rtol=1e-5, atol=1e-5)


def test_share_of_changed_images_follows_the_probability():
    drawn = augment.draw(20_000, 0.3, torch.Generator().manual_seed(0))
    assert abs(float((drawn.hole_size > 0).float().mean()) - 0.3) < 0.02
    assert abs(float((drawn.scale != 1).float().mean()) - 0.3) < 0.02


@pytest.mark.parametrize("sides", [(5, 6), (5, 6, 4)])
def test_gradients_reach_the_images_and_equal_finite_differences(sides):
    parameters = draw(sides, 1.0, 3, count=2)
    small = torch.rand(2, 1, *sides, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(4))
    x = small.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((augment.apply(x, parameters) * weight).sum(), x)
    direction = torch.randn(2, 1, *sides, generator=torch.Generator().manual_seed(5))
    step = 1e-2
    difference = (
        (augment.apply(small + step * direction, parameters) - augment.apply(small - step * direction, parameters))
        * weight
    ).sum() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_moves_the_picture_along_x_y_z_and_brings_background_in(axis):
    n = max(2, axis + 1)
    shift = torch.zeros(1, n)
    shift[0, axis] = 0.125
    moved = augment.apply(torch.full((1, 1, *[16] * n), 0.5), only(n, shift=shift)).movedim(-1 - axis, 0)
    assert torch.allclose(moved[:2], torch.tensor(-1.0)) and torch.allclose(moved[2:], torch.tensor(0.5))


@pytest.mark.parametrize("n", [2, 3])
def test_a_hole_is_a_square_or_a_cube_at_its_place(n):
    hole = torch.tensor([[0.25, 0.0, -0.25][:n]])
    found = augment.apply(torch.full((1, 1, *[33] * n), 0.5), only(n, hole=hole, hole_size=torch.tensor([0.375])))
    where = torch.nonzero(found[0, 0] == 0.0)
    sides = where.max(dim=0).values - where.min(dim=0).values + 1
    assert len(where) == int(sides.prod()) and all(11 <= side <= 13 for side in sides)
    centre = (where.float().mean(dim=0) / 32.0 - 0.5).flip(0)  # x, y, z
    torch.testing.assert_close(centre, hole[0], rtol=0, atol=0.02)
