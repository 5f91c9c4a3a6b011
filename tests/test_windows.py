"""Windows over a large image: no seams, every voxel once its weight, MONAI's result, only what is wanted is computed."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

from scansmith.windows import blend, cut_evenly, grid, predict, summed


class Counting(nn.Module):
    """Applies a function and counts windows and the largest batch."""

    def __init__(self, function):
        super().__init__()
        self.function, self.windows, self.largest = function, 0, 0

    def forward(self, x):
        self.windows, self.largest = self.windows + len(x), max(self.largest, len(x))
        return self.function(x)


@pytest.mark.parametrize(
    ("size", "patch"),
    [((70, 45), (32, 32)), ((20, 90), (32, 24)), ((40, 33, 50), (16, 24, 20)), ((5, 7, 9), (8, 8, 8))],
)
@pytest.mark.parametrize("overlap", [0.0, 0.25, 0.5, 0.7])
def test_what_acts_on_each_voxel_alone_gives_the_same_in_windows(size, patch, overlap):
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    network = Counting(lambda x: torch.stack([x[:, 0] * 3.0 - 1.0, x.sum(1), x[:, 1] ** 2], 1))
    made = predict(network, image, patch, overlap, batch=3)
    torch.testing.assert_close(made, network.function(image[None])[0], rtol=1e-5, atol=1e-5)
    assert network.largest <= 3


def test_a_constant_has_no_seams_even_where_windows_disagree_smoothly():
    made = predict(lambda x: torch.full_like(x, 0.7), torch.zeros(1, 100, 90), (32, 32))
    torch.testing.assert_close(made, torch.full((1, 100, 90), 0.7), rtol=0, atol=1e-6)
    # Each window sees a level of its own: the blend may ramp, but must not jump.
    levels = iter(torch.linspace(0, 1, 1000))
    made = predict(
        lambda x: torch.stack([torch.full_like(one, float(next(levels)) * 100) for one in x]),
        torch.zeros(1, 32, 200),
        (32, 32),
    )
    assert made.diff(dim=2).abs().max() < 0.15 * made.max()


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.5])
def test_the_grid_covers_everything_evenly_with_at_least_the_overlap(overlap):
    for side, length in ((64, 64), (65, 64), (200, 48), (131, 32), (64, 5), (50, 7)):
        firsts = [corner[0] for corner in grid((side,), (length,), overlap)]
        assert firsts[0] == 0 and firsts[-1] == side - length
        gaps = [b - a for a, b in itertools.pairwise(firsts)]
        assert all(gap <= max(1, length * (1 - overlap)) for gap in gaps) and (not gaps or max(gaps) - min(gaps) <= 1)


def test_only_windows_with_something_wanted_are_computed():
    image, where = torch.randn(1, 96, 96), torch.zeros(96, 96, dtype=torch.bool)
    where[:20, :20] = True
    network = Counting(lambda x: x + 1.0)
    made = predict(network, image, (32, 32), where=where)
    everything = len(list(grid((96, 96), (32, 32), 0.5)))
    assert network.windows == 4 < everything
    torch.testing.assert_close(made[:, where], image[:, where] + 1.0, rtol=1e-5, atol=1e-5)
    assert (made[:, 60:, 60:] == -1.0).all()
    with pytest.raises(ValueError, match="empty mask"):
        predict(network, image, (32, 32), where=torch.zeros(96, 96, dtype=torch.bool))


def test_a_network_that_sees_its_surroundings_gives_what_monai_gives():
    inferers = pytest.importorskip("monai.inferers")
    torch.manual_seed(0)
    network = nn.Conv3d(1, 2, 5, padding=2).eval()
    image = torch.randn(1, 1, 48, 40, 56)
    with torch.no_grad():
        theirs = inferers.sliding_window_inference(image, (16, 16, 16), 2, network, overlap=0.5, mode="gaussian")
        whole = network(image)[0]
    ours = predict(network, image[0], (16, 16, 16), 0.5, 2)
    # The same windows here, since all sides are multiples of a step. Where borders meet near those of the image, theirs take
    # windows that see nothing beyond their own border for as good as others.
    inner = (slice(None), *[slice(8, -8)] * 3)
    assert (ours - theirs[0])[inner].abs().mean() < 0.02 * theirs.abs().mean()
    assert (ours - whole).abs().max() < 0.05 * (theirs[0] - whole).abs().max()


@pytest.mark.parametrize(("size", "patch", "batch"), [((70, 45), (32, 32), 4), ((40, 33, 50), (16, 24, 16), 3)])
def test_windows_computed_together_weigh_what_they_weigh_alone_and_need_no_more_memory(size, patch, batch):
    image = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    network = Counting(lambda x: torch.stack([x[:, 0] * 3.0 - 1.0, x.sum(1)], 1))
    made = predict(network, image, patch, 0.5, batch, any_size=True)
    torch.testing.assert_close(made, network.function(image[None])[0], rtol=1e-5, atol=1e-5)
    pieces = []
    for some in (False, True):
        voxels = Counting(lambda x: pieces.append(x[0, 0].numel()) or x)
        pieces.clear()
        predict(voxels, image, patch, 0.5, batch if some else 1, any_size=some)
        if not some:
            alone = sum(pieces)
    assert max(pieces) <= batch * math.prod(patch) and sum(pieces) < 0.7 * alone


def test_weights_of_a_run_are_the_sums_of_its_windows_weights():
    weight = blend((4, 6), torch.device("cpu"))
    found = summed(weight, ((0, 2), (0, 3, 6)), (6, 12))
    single = torch.zeros(6, 12)
    for down, across in itertools.product((0, 2), (0, 3, 6)):
        single[down : down + 4, across : across + 6] += weight
    torch.testing.assert_close(found, single)
    assert cut_evenly(range(7), 3) == [[0, 1], [2, 3], [4, 5, 6]]


def test_weights_are_highest_in_the_middle_symmetric_and_nowhere_nothing():
    weight = blend((9, 12), torch.device("cpu"))
    assert (
        weight.max() == weight[4, 5] and torch.equal(weight, weight.flip(0)) and torch.allclose(weight, weight.flip(1))
    )
    assert weight.min() > 0.0
    # Along each axis a border counts as little beside a middle, also near the other axes' borders.
    for row in (weight[0], weight[4], weight[-1]):
        assert row[0] < 0.002 * row[6]


@pytest.mark.parametrize("side", [96, 100, 152, 164])
def test_windows_of_a_network_that_halves_begin_where_it_gives_the_same(side):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 8, 4, 2, 1), nn.LeakyReLU(), nn.Conv2d(8, 8, 4, 2, 1), nn.LeakyReLU(),
                            nn.ConvTranspose2d(8, 8, 4, 2, 1), nn.LeakyReLU(), nn.ConvTranspose2d(8, 1, 4, 2, 1)).eval()  # fmt: skip
    image = torch.randn(1, side, side)
    with torch.no_grad():
        whole = network(image[None])[0]
    aligned, anywhere = (predict(network, image, (64, 64), step=step) for step in (4, 1))
    off = [float((made - whole).abs().mean() / whole.abs().mean()) for made in (aligned, anywhere)]
    assert off[0] < 0.06
    assert all(corner[0] % 4 == 0 for corner in grid((side, side), (64, 64), 0.5, 4))
    assert side == 96 or off[1] > 2 * off[0]  # the fault that this guards against


def test_an_image_that_no_step_divides_is_padded():
    image = torch.randn(1, 70, 45)
    made = predict(lambda x: x * 2.0, image, (32, 32), step=16)
    torch.testing.assert_close(made, image * 2.0, rtol=1e-5, atol=1e-5)


def test_a_patch_of_other_dimensions_and_an_overlap_of_one_are_refused():
    with pytest.raises(ValueError, match="2 sides"):
        predict(lambda x: x, torch.zeros(1, 8, 8), (4, 4, 4))
    for change in ({"batch": 0}, {"step": 3}):
        with pytest.raises(ValueError, match=r"batch of 1|multiples of 3"):
            predict(lambda x: x, torch.zeros(1, 8, 8), (4, 4), **change)
    with pytest.raises(ValueError, match="overlap"):
        predict(lambda x: x, torch.zeros(1, 8, 8), (4, 4), 1.0)
