"""Augmentation: identity where it is off, differentiable, drawn from the generator alone."""

from __future__ import annotations

import torch

from scansmith import augment


def images(seed=0):
    return torch.rand(4, 1, 16, 24, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_probability_zero_is_the_identity():
    parameters = augment.draw(4, 0.0, torch.Generator().manual_seed(0))
    torch.testing.assert_close(augment.apply(images(), parameters), images(), rtol=0, atol=1e-5)


def test_the_same_generator_state_draws_the_same_change():
    one = augment.apply(images(), augment.draw(4, 0.8, torch.Generator().manual_seed(1)))
    two = augment.apply(images(), augment.draw(4, 0.8, torch.Generator().manual_seed(1)))
    other = augment.apply(images(), augment.draw(4, 0.8, torch.Generator().manual_seed(2)))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_share_of_changed_images_follows_the_probability():
    drawn = augment.draw(20_000, 0.3, torch.Generator().manual_seed(0))
    assert abs(float((drawn.hole_size > 0).float().mean()) - 0.3) < 0.02
    assert abs(float((drawn.scale != 1).float().mean()) - 0.3) < 0.02


def test_gradients_reach_the_images_and_equal_finite_differences():
    parameters = augment.draw(2, 1.0, torch.Generator().manual_seed(3))
    small = torch.rand(2, 1, 5, 6, generator=torch.Generator().manual_seed(0))
    weight = torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(4))
    x = small.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad((augment.apply(x, parameters) * weight).sum(), x)
    direction = torch.randn(2, 1, 5, 6, generator=torch.Generator().manual_seed(5))
    step = 1e-2
    difference = (
        (augment.apply(small + step * direction, parameters) - augment.apply(small - step * direction, parameters))
        * weight
    ).sum() / (2 * step)
    torch.testing.assert_close((gradient * direction).sum(), difference, rtol=1e-3, atol=1e-3)


def test_a_shift_moves_the_picture_and_brings_background_in():
    picture = torch.full((1, 1, 16, 16), 0.5)
    still = torch.zeros(1)
    moved = augment.apply(
        picture,
        augment.Draw(torch.tensor([[0.125, 0.0]]), torch.ones(1), still, torch.ones(1), torch.zeros(1, 2), still),
    )
    assert torch.allclose(moved[..., :, :2], torch.tensor(-1.0)) and torch.allclose(
        moved[..., :, 2:], torch.tensor(0.5)
    )
