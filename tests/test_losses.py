"""Losses by hand, and the Dirac-GAN, where theory says what must happen."""

from __future__ import annotations

import math

import pytest
import torch

from scansmith import losses


def test_relativistic_losses_equal_the_equation_by_hand():
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    d = sum(math.log1p(math.exp(-gap)) for gap in (0.5, -3.0)) / 2
    g = sum(math.log1p(math.exp(gap)) for gap in (0.5, -3.0)) / 2
    assert losses.relativistic_discriminator(real, fake).item() == pytest.approx(d, rel=1e-6)
    assert losses.relativistic_generator(real, fake).item() == pytest.approx(g, rel=1e-6)


def test_relativistic_losses_see_only_differences():
    real, fake = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        losses.relativistic_discriminator(real + 7, fake + 7), losses.relativistic_discriminator(real, fake)
    )


def test_relativistic_losses_pass_gradcheck():
    real, fake = (torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(losses.relativistic_discriminator, (real, fake))
    assert torch.autograd.gradcheck(losses.relativistic_generator, (real, fake))


def test_penalty_of_a_linear_score_is_its_squared_weight():
    weight = torch.tensor([3.0, -4.0]).view(1, 2, 1, 1)
    images = torch.randn(5, 2, 1, 1, requires_grad=True)
    penalty = losses.gradient_penalty((images * weight).sum(dim=(1, 2, 3)), images)
    torch.testing.assert_close(penalty, torch.full((5,), 25.0))


def test_scores_and_penalty_work_for_a_discriminator_without_a_closed_form():
    class Squares(torch.nn.Module):
        def forward(self, x, classes=None):
            return x.square().sum(dim=(1, 2, 3)) / 2.0

    images = torch.randn(3, 1, 4, 4)
    scores, penalty = losses.scores_and_penalty(Squares(), images)
    torch.testing.assert_close(penalty, 2.0 * scores)  # |x|^2 against |x|^2 / 2


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_dirac_gan_converges_linearly_with_the_penalty_only(gamma):
    """Mescheder 2018: real mass at 0, fake at theta, D(x) = psi x.

    At the equilibrium the eigenvalues are imaginary without a penalty (no linear convergence) and have a negative real
    part for any gamma > 0.
    """
    theta, psi = torch.tensor(1.0, requires_grad=True), torch.tensor(1.0, requires_grad=True)
    for _ in range(2000):
        real = torch.zeros(1)  # D(0) = 0
        loss_d = losses.relativistic_discriminator(real, (psi * theta.detach()).view(1)) + gamma / 2.0 * psi.square()
        loss_g = losses.relativistic_generator(real, (psi.detach() * theta).view(1))
        d_psi = torch.autograd.grad(loss_d, psi)[0]
        d_theta = torch.autograd.grad(loss_g, theta)[0]
        with torch.no_grad():
            psi -= 0.05 * d_psi
            theta -= 0.05 * d_theta
    distance = math.hypot(theta.item(), psi.item())
    assert distance < 1e-3 if gamma > 0 else distance > 0.3
