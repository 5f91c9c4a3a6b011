"""Every generator and discriminator keeps one contract; the closed-form penalty equals autograd's."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from scansmith import losses
from scansmith.networks import DISCRIMINATORS, GENERATORS
from scansmith.networks.blocks import UpConv, count_parameters, latent

SHAPES = [((4, 4), 3, 1, 0), ((5, 7), 2, 3, 0), ((6, 4), 2, 1, 3)]  # base, doublings, channels, classes


def arguments(base, doublings, channels, classes):
    return {"channels": channels, "base": base, "doublings": doublings, "width": 8, "classes": classes}


def numbers(count, classes):
    return torch.arange(count) % classes if classes else None


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_generators_make_float32_images_of_the_grid_with_gradients_everywhere(name, shape):
    torch.manual_seed(0)
    base, doublings, channels, classes = shape
    network = GENERATORS[name](**arguments(*shape))
    z = latent(0, 3, network.latent)
    images = network(z, numbers(3, classes))
    assert images.shape == (3, channels, base[0] << doublings, base[1] << doublings)
    assert images.dtype == torch.float32
    images.square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in network.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(z, numbers(3, classes))
    assert rounded.dtype == torch.float32
    assert (rounded - images).abs().max() < 0.1 * images.abs().max()


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_discriminators_score_each_image_alone(name, shape):
    torch.manual_seed(0)
    base, doublings, channels, classes = shape
    network = DISCRIMINATORS[name](**arguments(*shape))
    images = torch.randn(4, channels, base[0] << doublings, base[1] << doublings)
    scores = network(images, numbers(4, classes))
    assert scores.shape == (4,) and scores.dtype == torch.float32
    part = network(images[1:2], numbers(4, classes)[1:2] if classes else None)
    torch.testing.assert_close(part, scores[1:2])


@pytest.mark.parametrize("family", [GENERATORS, DISCRIMINATORS])
def test_networks_are_the_same_for_the_same_seed_and_survive_safetensors(family, tmp_path):
    for name, network in family.items():
        torch.manual_seed(3)
        one = network(**arguments((4, 4), 2, 1, 2))
        torch.manual_seed(3)
        two = network(**arguments((4, 4), 2, 1, 2))
        save_file(one.state_dict(), tmp_path / f"{name}.safetensors")
        three = network(**arguments((4, 4), 2, 1, 2))
        three.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        for a, b, c in zip(one.parameters(), two.parameters(), three.parameters()):
            assert torch.equal(a, b) and torch.equal(a, c)


def test_one_transposed_convolution_equals_upsampling_then_convolution():
    torch.manual_seed(0)
    up = UpConv(5, 7)
    x = torch.randn(2, 5, 6, 9, requires_grad=True)
    plain = F.conv2d(F.interpolate(x, scale_factor=2.0, mode="nearest"), up.weight, up.bias, padding=1)
    torch.testing.assert_close(up(x), plain)
    upstream = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, (x, up.weight, up.bias), upstream, retain_graph=True)
    found = torch.autograd.grad(up(x), (x, up.weight, up.bias), upstream)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_closed_form_penalty_equals_double_backpropagation(shape, channels_last):
    """Scores, penalties and every weight gradient of a loss that mixes both, image by image."""
    torch.manual_seed(1)
    base, doublings, channels, classes = shape
    network = DISCRIMINATORS["strided"](**arguments(*shape)).double().float()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    images = torch.randn(6, channels, base[0] << doublings, base[1] << doublings)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    weights = torch.linspace(-1.0, 1.0, 6)

    def gradients(pair):
        scores, penalty = pair
        loss = F.softplus(weights * scores).sum() + (weights.square() * penalty.sqrt()).sum()
        return scores.detach(), penalty.detach(), torch.autograd.grad(loss, list(network.parameters()))

    own = gradients(network.scores_and_penalty(images, numbers(6, classes)))
    with_grad = images.clone().requires_grad_(True)
    scores = network(with_grad, numbers(6, classes))
    reference = gradients((scores, losses.gradient_penalty(scores, with_grad)))
    torch.testing.assert_close(own[0], reference[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(own[1], reference[1], rtol=1e-4, atol=1e-5)
    for found, wanted in zip(own[2], reference[2]):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_latents_depend_on_seed_and_index_only():
    whole = latent(5, 10, 8)
    assert torch.equal(latent(5, 3, 8, first=4), whole[4:7])
    assert not torch.equal(latent(6, 10, 8), whole)
    assert abs(float(latent(0, 4000, 4).std()) - 1.0) < 0.02


def test_the_default_pair_has_the_size_of_the_equal_time_trial():
    """1.2 M + .7 M parameters at 64 px, one channel."""
    generator = GENERATORS["strided"](channels=1, base=(4, 4), doublings=4)
    discriminator = DISCRIMINATORS["strided"](channels=1, base=(4, 4), doublings=4)
    assert 1.1e6 < count_parameters(generator) < 1.3e6
    assert 0.65e6 < count_parameters(discriminator) < 0.75e6
