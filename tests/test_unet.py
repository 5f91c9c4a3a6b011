"""The U-Net: shapes, ordered bounds, gradients everywhere, windows that agree with the whole, any precision."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scansmith.networks.unet import UNet
from scansmith.pairings.scans import with_presence
from scansmith.windows import predict


def network(dimensions=2, **changes):
    torch.manual_seed(0)
    made = UNet(
        **{"in_channels": 2, "out_channels": 1, "dimensions": dimensions, "width": 8, "doublings": 2, **changes}
    )
    for parameter in made.parameters():  # zeros hide faults
        parameter.data += 0.1 * torch.randn_like(parameter)
    return made


@pytest.mark.parametrize(("dimensions", "sides"), [(2, (16, 24)), (3, (8, 12, 16))])
def test_bounds_are_ordered_and_every_weight_learns(dimensions, sides):
    made = network(dimensions)
    x = torch.randn(3, 2, *sides)
    out = made(x)
    assert out.shape == (3, 3, 1, *sides) and out.dtype == torch.float32
    middle, lower, upper = out.unbind(1)
    assert (lower < middle).all() and (middle < upper).all()
    (out * torch.randn_like(out)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in made.parameters())


def test_it_begins_at_nothing_with_narrow_bounds():
    out = UNet(1, 2, width=8, doublings=2)(torch.randn(2, 1, 16, 16))
    middle, lower, upper = out.unbind(1)
    assert (middle == 0).all() and 0.12 < float((upper - middle).detach().max()) < 0.13 and torch.equal(upper, -lower)


def test_in_use_an_image_does_not_depend_on_its_neighbours_and_a_window_sees_what_the_whole_does():
    made = network(in_channels=1).eval()
    images = torch.randn(4, 1, 100, 100)
    with torch.no_grad():
        alone, together = made(images[:1]), made(images)[:1]
        torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)
        whole = made(images[:1])[0, 0]
    windows = predict(lambda x: made(x)[:, 0], images[0], (64, 64), 0.5, step=made.step)
    # Zero padding at a window's border reaches some voxels inward, where its weight is least.
    assert (windows - whole).abs().mean() < 0.05 * whole.abs().mean()


@pytest.mark.parametrize("dimensions", [2, 3])
def test_it_is_told_where_all_sources_are_empty_which_dark_fluid_is_not(dimensions):
    made = network(dimensions).eval()
    made.start.weight.data[:, :2] = 0.0  # blind to values
    x = torch.rand(1, 2, *(16,) * dimensions)
    x[..., :8] = -1.0
    x[:, 1, ..., :4] = -0.99
    x[..., 5], x[..., 6] = -1.0 + 2e-7, -1.25  # rounded, and below the window
    told = torch.zeros(1, 1, *(16,) * dimensions)
    told[..., 4:8] = 1.0
    found = []
    made.start.register_forward_hook(lambda module, given, out: found.append(given[0]))
    with torch.no_grad():
        assert torch.equal(made(x), made(torch.where(told > 0, -1.0, 0.5).expand_as(x)))
    assert torch.equal(found[0], torch.cat([x, told], 1))


def test_of_several_sources_those_that_are_missing_do_not_count():
    made = network(in_channels=12, sources=2).eval()  # a slice with one neighbour on each side
    images = torch.rand(3, 2, 16, 16)
    images[..., :8] = -1.0
    images[1, 0, :, :4] = 0.3  # a neighbour shows something
    told = []
    made.start.register_forward_hook(lambda module, given, out: told.append(given[0][0, -1]))
    for here in (np.array([True, True]), np.array([True, False])):
        shown = images.clone()
        shown[:, ~torch.from_numpy(here)] = -1.0
        with torch.no_grad():
            made(torch.from_numpy(np.concatenate([with_presence(one.numpy(), here) for one in shown]))[None])
    expected = torch.zeros(16, 16)
    expected[:, 4:8] = 1.0
    assert torch.equal(told[0], expected) and torch.equal(told[1], expected)


def test_output_stays_in_float32_where_training_is_in_bf16():
    made = network()
    x = torch.randn(2, 2, 16, 16)
    with torch.autocast("cpu", torch.bfloat16):
        out = made(x)
    assert out.dtype == torch.float32 and len(out[0, 0].unique()) > 200
    torch.testing.assert_close(out, made(x), rtol=0.1, atol=0.1)


def test_sides_that_do_not_halve_are_refused():
    with pytest.raises(ValueError, match="divisible by 4"):
        network()(torch.randn(1, 2, 18, 16))
