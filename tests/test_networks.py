"""Every generator and discriminator keeps one contract, in 2-D and 3-D; the closed-form penalty equals autograd's."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from scansmith import losses
from scansmith.networks import DISCRIMINATORS, GENERATORS, penalised
from scansmith.networks.blocks import (
    CHANNELS_LAST,
    UP_CONVOLUTIONS,
    BatchNorm,
    latent,
    layout_of,
    take_statistics,
)
from scansmith.networks.residual import CHANNELS
from scansmith.preprocess import Grid
from scansmith.train import loop
from scansmith.train.objective import Batch, Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.recipes import RECIPES

# base, doublings, channels, classes
SHAPES = [((4, 4), 3, 1, 0), ((5, 7), 2, 3, 0), ((6, 4), 2, 1, 3), ((4, 5, 4), 2, 1, 0), ((4, 4, 5), 2, 2, 3)]
CLOSED = [name for name, network in DISCRIMINATORS.items() if hasattr(network, "scores_and_penalty")]


def arguments(base, doublings, channels, classes):
    return {"channels": channels, "base": base, "doublings": doublings, "width": 16, "classes": classes}


def size(shape):
    base, doublings, channels, _ = shape
    return (channels, *(side << doublings for side in base))


def count_parameters(network):
    return sum(parameter.numel() for parameter in network.parameters())


def numbers(count, classes):
    return torch.arange(count) % classes if classes else None


def discriminator(name, shape, std=0.2):
    """With random weights everywhere: some first weights are zero, and hide faults."""
    torch.manual_seed(1)
    network = DISCRIMINATORS[name](**arguments(*shape))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=std)
    return network


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_generators_make_float32_images_of_the_grid_with_gradients_everywhere(name, shape):
    torch.manual_seed(0)
    network = GENERATORS[name](**arguments(*shape))
    classes = numbers(3, shape[-1])
    z = latent(0, 3, network.latent)
    images = network(z, classes)
    assert images.shape == (3, *size(shape)) and images.dtype == torch.float32
    if hasattr(network, "encode"):
        images = network.decode(sum(network.encode(images.detach(), classes)), classes)
    images.square().mean().backward()
    used = [value for key, value in network.named_parameters() if not behind_zeros(name, key)]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in used)
    images = network(z, classes)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = network(z, classes)
    assert rounded.dtype == torch.float32
    assert (rounded - images).abs().max() < 0.1 * images.abs().max()


def behind_zeros(name, key):
    """A residual block's last convolution starts at zero, so at first no gradient reaches those before it."""
    return name == "residual" and "convolutions.0" in key


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("shape", SHAPES)
def test_discriminators_score_each_image_alone_unless_they_say_so(name, shape):
    network, classes = discriminator(name, shape, std=0.05), numbers(4, shape[-1])
    images = torch.randn(4, *size(shape))
    scores = network(images, classes)
    assert scores.shape == (4,) and scores.dtype == torch.float32
    part = network(images[1:3], None if classes is None else classes[1:3])
    assert torch.allclose(part, scores[1:3], rtol=1e-4, atol=1e-5) == network.one_batch
    if classes is not None:
        assert not torch.allclose(network(images, classes.roll(1)), scores)


@pytest.mark.parametrize("name", DISCRIMINATORS)
@pytest.mark.parametrize("shape", SHAPES[2:4])
def test_every_discriminator_can_be_penalised_in_both_precisions(name, shape):
    """By its closed form and by double backpropagation; bf16 finds nearly the direction of float32."""
    network, classes = discriminator(name, shape, std=0.1), numbers(6, shape[-1])
    images = torch.randn(6, *size(shape))
    ways = [lambda: losses.scores_and_penalty(network, images, classes), lambda: by_autograd(network, images, classes)]
    found = []
    for way in ways:
        for precision in (False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=precision):
                scores, penalty = way()
                loss = F.softplus(scores).mean() + penalty.mean().sqrt()
            assert scores.dtype == penalty.dtype == torch.float32
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            found.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert float(found[0].norm()) > 0
    for other in found[1:]:
        assert F.cosine_similarity(found[0], other, dim=0) > 0.98


def by_autograd(network, images, classes):
    images = images.clone().requires_grad_(True)
    scores = network(images, classes)
    return scores, losses.gradient_penalty(scores, images)


@pytest.mark.parametrize("family", [GENERATORS, DISCRIMINATORS])
@pytest.mark.parametrize("base", [(4, 4), (4, 4, 4)])
def test_networks_are_the_same_for_the_same_seed_and_survive_safetensors(family, base, tmp_path):
    for name, network in family.items():
        torch.manual_seed(3)
        one = network(**arguments(base, 2, 1, 2))
        torch.manual_seed(3)
        two = network(**arguments(base, 2, 1, 2))
        save_file(one.state_dict(), tmp_path / f"{name}.safetensors")
        three = network(**arguments(base, 2, 1, 2))
        three.load_state_dict(load_file(tmp_path / f"{name}.safetensors"))
        for a, b, c in zip(one.parameters(), two.parameters(), three.parameters()):
            assert torch.equal(a, b) and torch.equal(a, c)


@pytest.mark.parametrize("dimensions", UP_CONVOLUTIONS)
def test_one_transposed_convolution_equals_upsampling_then_convolution(dimensions):
    torch.manual_seed(0)
    up = UP_CONVOLUTIONS[dimensions](5, 7)
    x = torch.randn(2, 5, *(6, 9, 4)[:dimensions], requires_grad=True)
    convolve = {2: F.conv2d, 3: F.conv3d}[dimensions]
    plain = convolve(F.interpolate(x, scale_factor=2.0, mode="nearest"), up.weight, up.bias, padding=1)
    torch.testing.assert_close(up(x), plain)
    upstream = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, (x, up.weight, up.bias), upstream, retain_graph=True)
    found = torch.autograd.grad(up(x), (x, up.weight, up.bias), upstream)
    for a, b in zip(found, wanted):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CLOSED)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("channels_last", [False, True])
def test_closed_form_penalty_equals_double_backpropagation(name, shape, channels_last):
    """Scores, penalties and every weight gradient of a loss that mixes both, image by image."""
    network, classes = discriminator(name, shape), numbers(6, shape[-1])
    images = torch.randn(6, *size(shape))
    if channels_last:
        images = images.to(memory_format=CHANNELS_LAST[len(shape[0])])
    weights = torch.linspace(-1.0, 1.0, 6)

    def gradients(pair):
        scores, penalty = pair
        loss = F.softplus(weights * scores).sum() + (weights.square() * penalty.sqrt()).sum()
        return scores.detach(), penalty.detach(), torch.autograd.grad(loss, list(network.parameters()))

    own = gradients(network.scores_and_penalty(images, classes))
    reference = gradients(by_autograd(network, images, classes))
    torch.testing.assert_close(own[0], reference[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(own[1], reference[1], rtol=1e-4, atol=1e-5)
    for found, wanted in zip(own[2], reference[2]):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4 * float(wanted.abs().max()))


def test_closed_form_covers_bottleneck_blocks_with_groups():
    torch.manual_seed(2)
    network = DISCRIMINATORS["residual"](1, (4, 4), 0, width=768)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.03)
    images = torch.randn(2, 1, 4, 4)
    found, wanted = network.scores_and_penalty(images), by_autograd(network, images, None)
    torch.testing.assert_close(found[1], wanted[1], rtol=1e-4, atol=1e-6)
    gradients = [torch.autograd.grad(pair[1].sum(), list(network.levels.parameters())) for pair in (found, wanted)]
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * float(b.abs().max()))


def test_resampling_of_the_residual_pair_keeps_a_constant_and_interpolates():
    generator = GENERATORS["residual"](1, (4, 4), 1, width=16)
    nn.init.dirac_(generator.ups[0].weight)
    nn.init.dirac_(generator.end.weight)
    nn.init.zeros_(generator.end.bias)
    z = torch.zeros(1, 64)
    z[0, 0] = 1.0
    with torch.no_grad():
        generator.start.weight.zero_()[0, 0] = 1.0
        generator.basis[0] = torch.arange(4.0).repeat(4)
        row = generator(z)[0, 0, 2]
    torch.testing.assert_close(row[:7], torch.arange(7) / 2.0)


def test_a_width_without_a_row_is_refused_with_the_rows():
    with pytest.raises(ValueError, match=r"expected a width of .*384.*, found 40"):
        GENERATORS["residual"](1, (4, 4), 2, width=40)


def test_autoencoder_as_a_generator_decodes_the_fitted_gaussian():
    torch.manual_seed(0)
    network = GENERATORS["autoencoder"](**arguments((4, 4), 2, 1, 0)).eval()
    z = latent(0, 5, network.latent)
    assert torch.equal(network(z), network.decode(z))
    network.center.fill_(0.5)
    network.factor.copy_(torch.randn(64, 64).tril())
    torch.testing.assert_close(network(z), network.decode(torch.stack([0.5 + network.factor @ row for row in z])))
    assert {"center", "factor"} <= set(network.state_dict())


def test_a_class_shifts_what_the_encoder_says():
    torch.manual_seed(0)
    network = GENERATORS["autoencoder"](**arguments((4, 4), 2, 1, 2))
    nn.init.normal_(network.embed.weight)
    image = torch.randn(1, 1, 16, 16)
    (one, _), (two, _) = (network.encode(image, torch.tensor([number])) for number in (0, 1))
    torch.testing.assert_close(two - one, (network.embed.weight[1] - network.embed.weight[0])[None, :64])


def test_dcgan_is_laid_out_as_published():
    """64 px, width 128: 1024-512-256-128-3 channels (Radford 2015, figure 1), no bias before a norm, weights of .02."""
    with torch.device("meta"):
        generator = GENERATORS["dcgan"](3, (4, 4), 4, 128, latent=100)
        critic = DISCRIMINATORS["dcgan"](3, (4, 4), 4, 64)
    assert [up.weight.shape[:2] for up in generator.ups] == [(1024, 512), (512, 256), (256, 128), (128, 3)]
    assert [up.bias is None for up in generator.ups] == [True, True, True, False]
    assert [down.out_channels for down in critic.downs] == [64, 128, 256, 512]
    assert [type(norm) for norm in critic.norms] == [nn.Identity, *[BatchNorm] * 3]
    torch.manual_seed(0)
    weights = DISCRIMINATORS["dcgan"](1, (4, 4), 3, 32).downs[2].weight
    assert abs(float(weights.std().detach()) - 0.02) < 0.001 and abs(float(weights.mean().detach())) < 0.001


def test_dense_has_one_hidden_layer_and_ends_in_sigmoids():
    generator, critic = GENERATORS["dense"](1, (7, 7), 2, latent=10), DISCRIMINATORS["dense"](1, (7, 7), 2)
    assert count_parameters(generator) == 10 * 128 + 128 + 128 * 784 + 784
    assert count_parameters(critic) == 784 * 128 + 128 + 128 + 1
    with torch.no_grad():
        images = generator(100.0 * latent(0, 8, 10))
        scores = critic(100.0 * images)
    assert -1.0 <= float(images.min()) < -0.9 and 0.9 < float(images.max()) <= 1.0
    assert float(scores.min()) >= 0.0 and float(scores.max()) <= 1.0


@pytest.mark.parametrize("family", [GENERATORS, DISCRIMINATORS])
@pytest.mark.parametrize("base", [(4, 4), (4, 4, 4)])
def test_networks_can_be_laid_out_channels_last(family, base):
    for network in family.values():
        moved = network(**arguments(base, 2, 1, 2)).to(memory_format=CHANNELS_LAST[len(base)])
        assert {value.dim() for value in moved.state_dict().values()} <= {0, 1, 2, len(base) + 2}


def test_the_layout_of_images_and_volumes_is_seen():
    for dimensions, layout in CHANNELS_LAST.items():
        for channels in (1, 3):
            x = torch.zeros(2, channels, *[4] * dimensions)
            assert layout_of(x) == torch.contiguous_format
            assert layout_of(x.to(memory_format=layout)) == layout


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_every_convolution_of_the_strided_pair_keeps_the_layout_of_the_images(channels, layout, monkeypatch):
    """With one channel a tensor lies both ways; a first convolution that goes by the wrong one has every later layer copied."""
    seen: list[torch.memory_format] = []
    convolve = F.conv2d

    def watched(x, *rest):
        found = convolve(x, *rest)
        seen.extend([layout_of(x), layout_of(found)])
        return found

    monkeypatch.setitem(penalised._CONVOLVE, 2, watched)
    recipe = replace(RECIPES["relativistic"], width=4, latent=4, channels_last=layout == torch.channels_last)
    objective = OBJECTIVES["synthesis"](recipe, Task(channels, (16, 16), 0, 20), Grid.choose((16, 16), 16))
    loop.prepare_machine(objective, recipe, torch.device("cpu"))
    images = torch.zeros(4, channels, 16, 16).to(memory_format=layout)
    batch = Batch(images, None, None, torch.zeros(4, 4), 1.0, 0.5, torch.Generator().manual_seed(0))
    for name in ("discriminator", "generator"):
        getattr(objective, f"{name}_loss")(batch)[0].backward()
    assert len(seen) > 8 and set(seen) == {layout}


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


@pytest.mark.parametrize(("width", "millions"), [(128, 0.7), (256, 4.1), (384, 10.0), (768, 24.8)])
def test_both_residual_networks_of_a_size_weigh_the_same(width, millions):
    assert width in CHANNELS
    for family in (GENERATORS, DISCRIMINATORS):
        with torch.device("meta"):
            network = family["residual"](1, (4, 4), 5 if width <= 256 else 6, width)
        assert count_parameters(network) / 1e6 == pytest.approx(millions, rel=0.05)


@pytest.mark.parametrize("shape", [(6, 5, 4, 7), (3, 5, 4, 2, 3)])
def test_batch_norm_equals_that_of_torch_in_training_and_evaluation(shape):
    torch.manual_seed(0)
    own, theirs = BatchNorm(5), (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm3d)(5)
    with torch.no_grad():
        own.weight.copy_(torch.rand(5))
        theirs.weight.copy_(own.weight)
    for _ in range(3):
        x = 2.0 * torch.randn(shape) + 1.0
        torch.testing.assert_close(own(x), theirs(x))
    torch.testing.assert_close(own.running_var, theirs.running_var)
    torch.testing.assert_close(own.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("processes", [1, 2])
def test_statistics_for_averaged_weights_are_those_of_all_their_inputs(processes):
    torch.manual_seed(0)
    network = GENERATORS["strided"](1, (4, 4), 2, width=4, latent=8, classes=2)
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    for norm in norms:
        norm.processes = processes  # were the others asked, this would fail: there is no group
        norm.running_mean.fill_(9.0)
    z, classes = torch.randn(48, 8), torch.arange(48) % 2
    seen = []
    norms[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    take_statistics(network, zip(z.split(16), classes.split(16)))
    features = torch.cat(seen)
    torch.testing.assert_close(norms[0].running_mean, features.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    wanted = torch.stack([part.var((0, 2, 3)) for part in seen]).mean(0)
    torch.testing.assert_close(norms[0].running_var, wanted, rtol=1e-4, atol=1e-6)
    assert not network.training and {norm.processes for norm in norms} == {processes}
    assert {norm.momentum for norm in norms} == {0.1}
    before = network(z, classes)
    take_statistics(network, zip(z.split(16), classes.split(16)))
    torch.testing.assert_close(network(z, classes), before)


@pytest.mark.parametrize("name", ["strided", "residual", "dcgan", "dense"])
def test_an_untrained_generator_listens_to_z_far_more_than_to_the_class(name):
    """With N(0, 1) embeddings it listened to both alike, and the images of a class hardly differed after training."""
    torch.manual_seed(0)
    network = GENERATORS[name](1, (4, 4), 2, width=16, latent=32, classes=2).train()
    z, other = torch.randn(2, 64, 32)
    classes = torch.arange(64) % 2
    with torch.no_grad():
        images, of_other_class, of_other_z = network(z, classes), network(z, 1 - classes), network(other, classes)
    assert (of_other_class - images).square().mean() < 0.1 * (of_other_z - images).square().mean()
