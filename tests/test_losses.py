"""Losses by hand and at their known optimum, and the Dirac-GAN, where theory says what must happen."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import nn

from scansmith import losses
from scansmith.losses import LOSSES


def softplus(x):
    return math.log1p(math.exp(x))


# D and G loss at the scores real = (1, -2), fake = (.5, 1)
BY_HAND = {
    "relativistic": ((softplus(-0.5) + softplus(3.0)) / 2, (softplus(0.5) + softplus(-3.0)) / 2),
    "minimax": ((softplus(-1) + softplus(2) + softplus(0.5) + softplus(1)) / 2, -(softplus(0.5) + softplus(1)) / 2),
    "non_saturating": (
        (softplus(-1) + softplus(2) + softplus(0.5) + softplus(1)) / 2,
        (softplus(-0.5) + softplus(-1)) / 2,
    ),
    "least_squares": ((0 + 9) / 4 + (0.25 + 1) / 4, (0.25 + 0) / 4),
    "hinge": ((0 + 3) / 2 + (1.5 + 2) / 2, -0.75),
    "wasserstein": (0.75 + 0.5, -0.75),
}

# What the best D scores where real images have density p and generated ones q, up to a constant for `relativistic`
OPTIMAL_SCORES = {
    "relativistic": lambda p, q: (p / q).log(),
    "minimax": lambda p, q: (p / q).log(),
    "non_saturating": lambda p, q: (p / q).log(),
    "least_squares": lambda p, q: p / (p + q),
    "hinge": lambda p, q: (p - q).sign(),
}


@pytest.mark.parametrize("name", LOSSES)
def test_losses_equal_their_equations_by_hand(name):
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 1.0])
    for loss, expected in zip(LOSSES[name], BY_HAND[name]):
        assert loss(real, fake).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_pass_gradcheck(name):
    random = torch.Generator().manual_seed(0)
    real, fake = (torch.randn(5, dtype=torch.float64, generator=random, requires_grad=True) for _ in range(2))
    for loss in LOSSES[name]:
        assert torch.autograd.gradcheck(loss, (real, fake))


@pytest.mark.parametrize("name", LOSSES)
def test_generators_gain_when_their_scores_rise_and_discriminators_when_they_fall(name):
    scores = torch.linspace(-0.9, 0.9, 7, requires_grad=True)
    discriminator, generator = LOSSES[name]
    (down,) = torch.autograd.grad(generator(torch.zeros(7), scores), scores)
    assert (down < 0).all()
    fake = torch.linspace(0.1, 0.9, 7, requires_grad=True)
    (up,) = torch.autograd.grad(discriminator(torch.zeros(7), fake), fake)
    assert (up > 0).all()


def discriminator_loss(name, scores, p, q):
    """The D loss over every pair of a real and a fake image drawn 10 p and 10 q times, as a batch of 100 pairs."""
    real = scores.repeat_interleave((10 * p).round().int())
    fake = scores.repeat_interleave((10 * q).round().int())
    return LOSSES[name][0](real.repeat_interleave(10), fake.repeat(10))


@pytest.mark.parametrize("name", OPTIMAL_SCORES)
def test_discriminator_losses_have_their_known_optimum(name):
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)
    scores = OPTIMAL_SCORES[name](p, q)
    best = discriminator_loss(name, scores, p, q)
    random = torch.Generator().manual_seed(0)
    for _ in range(50):
        other = scores + 0.3 * torch.randn(3, generator=random).double()
        assert discriminator_loss(name, other, p, q) >= best
    if name != "hinge":  # its optimum is a kink
        scores.requires_grad_(True)
        (slope,) = torch.autograd.grad(discriminator_loss(name, scores, p, q), scores)
        torch.testing.assert_close(slope, torch.zeros(3).double(), atol=1e-12, rtol=0)


def test_discriminator_losses_measure_the_divergence_of_their_paper():
    """At its optimum the loss is 2 log 2 - 2 JSD (Goodfellow 2014, theorem 1), 2 - 2 TV for hinge (Lim and Ye 2017)."""
    p, q = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]], dtype=torch.float64)
    middle = (p + q) / 2
    divergence = ((p * (p / middle).log()).sum() + (q * (q / middle).log()).sum()).item() / 2
    minimax = discriminator_loss("minimax", OPTIMAL_SCORES["minimax"](p, q), p, q).item()
    assert minimax == pytest.approx(2 * math.log(2) - 2 * divergence)
    hinge = discriminator_loss("hinge", OPTIMAL_SCORES["hinge"](p, q), p, q).item()
    assert hinge == pytest.approx(2 - (p - q).abs().sum().item())


def test_wasserstein_loss_of_a_critic_of_slope_one_is_the_distance_of_two_points():
    real, fake = torch.full((4, 1), 3.0), torch.full((4, 1), 1.0)
    critic = lambda x, classes=None: x.flatten()
    assert LOSSES["wasserstein"][0](critic(real), critic(fake)).item() == -2.0
    random = torch.Generator().manual_seed(0)
    assert losses.interpolated_penalty(critic, real, fake, None, random).tolist() == [0.0] * 4


@pytest.mark.parametrize("name", ["relativistic", "wasserstein"])
def test_some_losses_see_only_differences(name):
    real, fake = torch.randn(2, 5, generator=torch.Generator().manual_seed(0))
    loss = LOSSES[name][0]
    torch.testing.assert_close(loss(real + 7, fake + 7), loss(real, fake))


class Squares(nn.Module):
    """D(x) = |x|^2 / 2, whose gradient is x."""

    def forward(self, x, classes=None):
        return x.square().flatten(1).sum(1) / 2.0


@pytest.mark.parametrize("shape", [(5, 2), (5, 2, 1, 1), (5, 2, 3, 1, 2)])
def test_penalty_of_a_linear_score_is_its_squared_weight(shape):
    images = torch.randn(shape, requires_grad=True)
    weight = torch.zeros(shape[1:])
    weight[0], weight[1] = 3.0, -4.0
    penalty = losses.gradient_penalty((images * weight).flatten(1).sum(1), images)
    torch.testing.assert_close(penalty, torch.full((5,), weight.square().sum().item()))


@pytest.mark.parametrize("size", [(4,), (4, 4), (4, 3, 2)])
def test_scores_and_penalty_work_for_a_discriminator_without_a_closed_form(size):
    scores, penalty = losses.scores_and_penalty(Squares(), torch.randn(3, 1, *size))
    torch.testing.assert_close(penalty, 2.0 * scores)  # |x|^2 against |x|^2 / 2


@pytest.mark.parametrize("size", [(4,), (4, 4), (4, 3, 2)])
def test_interpolated_penalty_lies_between_real_and_fake(size):
    real, fake = torch.full((64, 1, *size), 2.0), torch.full((64, 1, *size), 1.0)
    penalty = losses.interpolated_penalty(Squares(), real, fake, None, torch.Generator().manual_seed(1))
    norms = penalty.sqrt() + 1.0  # of the gradient, which is the point itself; all lie beyond 1
    low, high = (math.prod(size) ** 0.5 * value for value in (1.0, 2.0))
    assert low < norms.min() < low + 0.1 * (high - low) and high - 0.1 * (high - low) < norms.max() < high


def test_interpolated_penalty_teaches_the_discriminator_alone():
    critic, real, fake = nn.Linear(3, 1), torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    penalty = losses.interpolated_penalty(lambda x, c: critic(x)[:, 0], real, fake, None, torch.Generator())
    penalty.mean().backward()
    assert fake.grad is None
    weight = critic.weight.detach()
    norm = weight.norm()
    torch.testing.assert_close(critic.weight.grad, 2.0 * (norm - 1.0) * weight / norm)


def test_interpolated_penalty_of_a_flat_discriminator_has_a_gradient():
    flat = nn.Linear(3, 1)
    nn.init.zeros_(flat.weight)
    penalty = losses.interpolated_penalty(
        lambda x, c: flat(x)[:, 0], torch.randn(4, 3), torch.randn(4, 3), None, torch.Generator()
    )
    penalty.mean().backward()
    assert penalty.tolist() == [1.0] * 4 and flat.weight.grad.isfinite().all()


def test_penalties_pass_gradcheck():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.Softplus(), nn.Linear(4, 1)).double()
    points = torch.randn(2, 5, 3, dtype=torch.float64)

    def penalties(weight):
        def score(x, classes=None):
            return net[2](net[1](nn.functional.linear(x, weight, net[0].bias)))[:, 0]

        random = torch.Generator().manual_seed(3)
        return losses.scores_and_penalty(score, points[0])[1], losses.interpolated_penalty(score, *points, None, random)

    assert torch.autograd.gradcheck(penalties, (net[0].weight,))


# The Dirac-GAN of Mescheder 2018: real mass at 0, fake mass at theta, D(x) = psi x. At the equilibrium (0, 0) the
# gradient field of (psi, theta) is [[-gamma, f], [-f, 0]], f = |l'(0)| the slope of the loss: eigenvalues
# -gamma / 2 +- sqrt(gamma^2 / 4 - f^2). R1 and R2 are both psi^2 there, so that together they damp as 2 gamma.

SLOPES = {"relativistic": 0.5, "non_saturating": 0.5, "minimax": 0.5, "hinge": 1.0, "wasserstein": 1.0}


def uphill(name, gamma, r2, psi, theta):
    """d loss_d / d psi and d loss_g / d theta by the package's own losses and penalty, one after the other."""
    critic = lambda x, classes=None: (psi * x).flatten()
    discriminator, generator = LOSSES[name]
    real, fake = torch.zeros(1, 1).double(), theta.view(1, 1)
    loss = discriminator(critic(real), critic(fake))
    for images in [real, fake] if r2 else [real]:
        loss = loss + gamma / 2.0 * losses.scores_and_penalty(critic, images)[1].mean()
    yield torch.autograd.grad(loss, psi, create_graph=True)[0]
    yield torch.autograd.grad(generator(critic(real), critic(fake)), theta, create_graph=True)[0]


def play(name, gamma, r2, steps, rate=0.2, start=0.3):
    """(steps, 2) path of (psi, theta) under alternating gradient steps."""
    psi, theta = (torch.tensor(start, dtype=torch.float64, requires_grad=True) for _ in range(2))
    path = []
    for _ in range(steps):
        psi = (psi - rate * next(uphill(name, gamma, r2, psi, theta))).detach().requires_grad_(True)
        *_, slope = uphill(name, 0.0, False, psi, theta)
        theta = (theta - rate * slope).detach().requires_grad_(True)
        path.append((psi.item(), theta.item()))
    return torch.tensor(path, dtype=torch.float64)


def turns(path):
    """How often theta passes through 0."""
    return int((path[1:, 1].sign() != path[:-1, 1].sign()).sum())


@pytest.mark.parametrize(("gamma", "r2"), [(0.1, False), (1.0, False), (0.1, True), (3.0, True)])
@pytest.mark.parametrize("name", ["relativistic", "non_saturating"])
def test_dirac_gan_converges_for_any_gamma(name, gamma, r2):
    path = play(name, gamma, r2, steps=600)
    assert path[-1].norm() < 0.01 * path[0].norm()
    assert path[-1].norm() < path[300].norm() < path[0].norm()


@pytest.mark.parametrize("name", SLOPES)
def test_dirac_gan_circles_without_a_penalty(name):
    rate, steps = 0.1, 600
    path = play(name, 0.0, False, steps, rate, start=0.02)
    radius = path.norm(dim=1)
    assert radius[-100:].max() > 0.98 * radius[:100].max()  # no nearer
    assert turns(path) == pytest.approx(
        steps * rate * SLOPES[name] / math.pi, abs=1
    )  # |l'(0)| radians per unit of time


@pytest.mark.parametrize("name", ["relativistic", "non_saturating"])
def test_dirac_gan_without_a_penalty_creeps_in_no_faster_than_one_over_the_root_of_time(name):
    """d r^2 / dt = -2 psi theta tanh(psi theta / 2), in the mean over a turn -r^4 / 8, so 1 / r^2 grows by t / 8."""
    rate, steps = 0.2, 600
    first, last = play(name, 0.0, False, steps, rate).norm(dim=1)[[0, -1]] ** -2
    assert (last - first).item() == pytest.approx(rate * steps / 8.0, rel=0.15)


def rates(name, gamma, r2):
    """Eigenvalues of the field at the equilibrium, from the losses by autograd."""
    zero = torch.zeros(2, dtype=torch.float64)

    def field(point):
        return -torch.stack(list(uphill(name, gamma, r2, point[0].clone(), point[1].clone())))

    return torch.linalg.eigvals(torch.autograd.functional.jacobian(field, zero))


@pytest.mark.parametrize("r2", [False, True])
@pytest.mark.parametrize("name", SLOPES)
def test_dirac_gan_is_critically_damped_at_twice_the_slope_of_the_loss(name, r2):
    critical = 2.0 * SLOPES[name] / (2.0 if r2 else 1.0)
    assert rates(name, 0.0, r2).real.abs().max() == 0.0  # purely imaginary: it circles
    below, at, above = (rates(name, factor * critical, r2) for factor in (0.9, 1.0, 1.1))
    assert below.imag.abs().min() > 0.1 and above.imag.abs().max() == 0.0
    torch.testing.assert_close(at.real, torch.full((2,), -SLOPES[name]).double(), atol=1e-6, rtol=0)
    assert at.real.max() + 0.01 < min(below.real.max(), above.real.max())  # no other weight decays as fast


@pytest.mark.parametrize("name", ["relativistic", "non_saturating"])
def test_dirac_gan_with_alternating_steps_stops_circling_where_theory_says(name):
    """With steps of size h the eigenvalues meet at 1 - h gamma = (1 - h f)^2, that is gamma = 2 f - h f^2."""
    rate, slope = 0.4, SLOPES[name]
    critical = 2.0 * slope - rate * slope**2
    assert turns(play(name, 0.8 * critical, False, 100, rate, start=0.01)) >= 2
    assert turns(play(name, 1.02 * critical, False, 100, rate, start=0.01)) <= 1


# ------------------------------------------------------------------------------------------------ translation


def some_pair(shape, dtype=torch.float64):
    random = torch.Generator().manual_seed(3)
    real, noise = (torch.rand(shape, dtype=dtype, generator=random) * 1.6 - 0.8 for _ in range(2))
    weight = (torch.rand((shape[0], 1, *shape[2:]), generator=random) > 0.3).to(dtype)
    return (0.7 * real + 0.3 * noise).requires_grad_(True), real, weight


@pytest.mark.parametrize("shape", [(2, 1, 12, 15), (1, 2, 9, 8, 10)])
def test_errors_of_a_translation_are_means_over_what_counts(shape):
    made, real, weight = some_pair(shape)
    a, b = made.detach().numpy(), real.numpy()
    w = np.broadcast_to(weight.numpy(), a.shape)
    assert losses.absolute(made, real, weight).item() == pytest.approx(np.abs(a - b)[w > 0].mean())
    expected = []
    for axis in range(2, a.ndim):
        both = np.moveaxis(w, axis, 0)
        both = both[1:] * both[:-1] > 0
        expected.append(np.abs(np.diff(np.moveaxis(a - b, axis, 0), axis=0))[both].mean())
    assert losses.edges(made, real, weight).item() == pytest.approx(np.mean(expected))
    similar = []
    for image in np.ndindex(a.shape[:2]):
        _, found = structural_similarity(a[image] + 1.0, b[image] + 1.0, win_size=7, data_range=2.0, full=True)
        inner = (slice(3, -3),) * (a.ndim - 2)
        similar.append(found[inner][w[image][inner] > 0])
    assert losses.structural(made, real, weight).item() == pytest.approx(1.0 - np.concatenate(similar).mean(), abs=1e-5)


@pytest.mark.parametrize("name", ["absolute", "edges", "structural"])
def test_a_perfect_translation_has_no_error_and_what_does_not_count_no_gradient(name):
    made, real, weight = some_pair((2, 1, 20, 18))
    loss = getattr(losses, name)
    assert loss(real, real, weight).item() == pytest.approx(0.0, abs=1e-6)
    assert loss(made, real, weight).item() > 0.01
    assert loss(made, real, torch.zeros_like(weight)).item() == 0.0
    half = torch.zeros_like(weight)
    half[..., :5] = 1.0
    (gradient,) = torch.autograd.grad(loss(made, real, half), made)
    reach = 3 if name == "structural" else 0
    assert (gradient[..., 5 + reach :] == 0).all() and (gradient[..., :5] != 0).any()
    if name != "structural":  # computed in float32
        assert torch.autograd.gradcheck(lambda x: loss(x, real, weight), made)


@pytest.mark.parametrize("grey", [-0.9, -0.5, -0.05, 0.0, 0.3, 0.8])
def test_a_shift_of_all_values_costs_little_structure_at_every_grey_level(grey):
    random = torch.Generator().manual_seed(0)
    real = grey + 0.1 * torch.randn((2, 1, 24, 24), generator=random)
    assert 0.0 <= losses.structural(real + 0.06, real, torch.ones(())).item() < 0.15


def test_images_smaller_than_a_window_have_no_structural_error():
    made, real, weight = some_pair((1, 1, 6, 30))
    assert losses.structural(made, real, weight).item() == 0.0


@pytest.mark.parametrize("level", [0.05, 0.5, 0.95])
def test_pinball_is_least_at_the_quantile(level):
    real = torch.distributions.Exponential(1.0).icdf((torch.arange(2000, dtype=torch.float64) + 0.5) / 2000)
    true = -math.log(1.0 - level)
    candidates = torch.linspace(0.0, 4.0, 401, dtype=torch.float64)
    found = [losses.pinball(q.expand_as(real), real, level, torch.ones(())).item() for q in candidates]
    assert candidates[int(np.argmin(found))].item() == pytest.approx(true, abs=0.02)
    by_hand = (level * 1.0 + (1 - level) * 2.0) / 2
    pair = losses.pinball(torch.zeros(2), torch.tensor([1.0, -2.0]), level, torch.ones(2))
    assert pair.item() == pytest.approx(by_hand, rel=1e-6)
