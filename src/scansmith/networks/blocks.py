"""Pieces that several networks share; all of them serve images of two and of three dimensions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SLOPE = 0.2  # of every leaky ReLU
Shares = Sequence[Sequence[float]]
CONVOLUTIONS: dict[int, type[nn.Conv2d] | type[nn.Conv3d]] = {2: nn.Conv2d, 3: nn.Conv3d}
CHANNELS_LAST = {2: torch.channels_last, 3: torch.channels_last_3d}


def layout_of(x: Tensor) -> torch.memory_format:
    """Channels-last if a batch of images (B, C, H, W) or (B, C, D, H, W) lies so in memory, else contiguous.

    With one channel the values lie alike both ways, and the strides alone say which is meant: a convolution goes by them.
    `x.to(memory_format=...)` sets them; `x.contiguous(memory_format=...)` sees nothing to do and leaves them.
    """
    last = CHANNELS_LAST[x.dim() - 2]
    return last if x.stride(1) == 1 and x.is_contiguous(memory_format=last) else torch.contiguous_format


class UpConv(nn.Conv2d):
    """Nearest x2 upsampling followed by a 3x3 convolution, computed as one 4x4 transposed convolution.

    Each output pixel of the pair sees only 2 x 2 distinct inputs, so the nine products of the 3x3 kernel collapse into
    four: the same function with 2.25 times fewer multiplications. The weight keeps its 3x3 shape.

    (B, C, H, W) -> (B, out_channels, 2H, 2W).
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose2d(x, folded(self.weight), self.bias, stride=2, padding=1)


class UpConv3d(nn.Conv3d):
    """`UpConv` for volumes: 27 products collapse into eight. (B, C, D, H, W) -> (B, out_channels, 2D, 2H, 2W)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(in_channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv_transpose3d(x, folded(self.weight), self.bias, stride=2, padding=1)


UP_CONVOLUTIONS: dict[int, type[UpConv] | type[UpConv3d]] = {2: UpConv, 3: UpConv3d}


def folded(weight: Tensor) -> Tensor:
    """Full correlation of the flipped kernel with a box of ones: (out, in, 3, 3) -> (in, out, 4, 4); in 3-D likewise."""
    axes = tuple(range(2, weight.dim()))
    kernel = weight.flip(*axes).transpose(0, 1)
    for axis in reversed(axes):
        inner = [0, 0] * (weight.dim() - 1 - axis)
        kernel = F.pad(kernel, [*inner, 0, 1]) + F.pad(kernel, [*inner, 1, 0])
    return kernel


class BatchNorm(nn.Module):
    """Batch normalisation of (B, C, *spatial) with any number of dimensions (Ioffe 2015, algorithm 1).

    With `processes` > 1 a training step takes the statistics over the parts of all processes, so that their number
    changes rounding only. In evaluation mode running averages stand in, and no image depends on its neighbours.

    Attributes:
        processes: that share each batch; the training loop sets it, so that nothing else ever waits for others.
    """

    running_mean: Tensor
    running_var: Tensor
    momentum, eps = 0.1, 1e-5

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.processes = 1

    def forward(self, x: Tensor) -> Tensor:
        if self.processes > 1 and self.training:
            return self._over_processes(x)
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )

    def _over_processes(self, x: Tensor) -> Tensor:
        from torch.distributed.nn.functional import all_reduce

        axes = [0, *range(2, x.dim())]
        own = x.float()
        sums = torch.stack([own.mean(axes), own.square().mean(axes)])
        mean, square = (all_reduce(sums) / self.processes).unbind()
        variance = square - mean.square()
        with torch.no_grad():
            count = self.processes * x.numel() // x.shape[1]
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(1, count - 1)), self.momentum)
        scale = self.weight * torch.rsqrt(variance + self.eps)
        shape = (1, -1, *(1,) * (x.dim() - 2))
        return (own * scale.view(shape) + (self.bias - mean * scale).view(shape)).to(x.dtype)


@torch.no_grad()
def take_statistics(network: nn.Module, batches: Iterable[tuple[Tensor | None, ...]]) -> None:
    """Batch norm's running averages of a network whose weights are an average: plain means over the given inputs.

    Averaged weights have statistics of their own; those that the network of the moment ran up do not fit them, and sway
    with its last few batches (Izmailov 2018, section 3.2). Leaves the network in evaluation mode.

    Args:
        network: called as network(*batch).
        batches: (z, classes or None), or (images,), of equal size.
    """
    norms = [module for module in network.modules() if isinstance(module, BatchNorm)]
    if not norms:
        return
    shared = norms[0].processes
    network.train()
    for number, batch in enumerate(batches, 1):
        for norm in norms:
            norm.momentum, norm.processes = 1.0 / number, 1  # nobody else is asked
        network(*batch)
    for norm in norms:
        norm.momentum, norm.processes = BatchNorm.momentum, shared
    network.eval()


class Prior(nn.Module):
    """What a generator draws from: z ~ N(0, 1), and beside it the embedding of the class, or of a kind within the class.

    Kinds (see `train.kinds`) are picked by z itself: the share of N(0, 1) below its last value is the place on a line on which
    each kind of the class has its share. So G(z, class) makes all kinds as often as they are among the real images.

    First embeddings N(0, .1^2): with the usual N(0, 1) the class drowns z, and the images of a class hardly differ. Four
    clusters of 700 hands as classes, recall after 8,000 images with 1: .13, .4: .57, .2: .63, .05: .74 (docs/log.md).

    Args:
        latent: length of z.
        classes: number of classes; 0 for none.
        kinds: for each class (one row without classes) the shares of its kinds, which are numbered through; () for none.

    Attributes:
        size: length of what `forward` returns.
    """

    INSIDE = (
        1e-4  # of a kind's share, at both ends, that `within` leaves out, so that rounding never crosses to a neighbour
    )

    upper: Tensor
    lower: Tensor
    ends: Tensor
    first: Tensor

    def __init__(self, latent: int, classes: int = 0, kinds: Shares = ()) -> None:
        super().__init__()
        self.kinds = sum(map(len, kinds))
        count = self.kinds or classes
        self.size = latent * (2 if count else 1)
        self.embed = nn.Embedding(count, latent) if count else None
        if self.embed is not None:
            nn.init.normal_(self.embed.weight, std=0.1)
        if not kinds:
            return
        uppers = [[sum(row[: number + 1]) / sum(row) for number in range(len(row))] for row in kinds]
        firsts = [sum(map(len, kinds[:number])) for number in range(len(kinds))]
        most = max(map(len, kinds))
        # Ends at which the next kind begins; the last has none.
        ends = [[*row[:-1], *[2.0] * (most - len(row) + 1)] for row in uppers]
        for name, values in (
            ("upper", [value for row in uppers for value in row]),
            ("lower", [value for row in uppers for value in (0.0, *row[:-1])]),
            ("ends", ends),
            ("first", firsts),
        ):
            self.register_buffer(name, torch.tensor(values), persistent=False)

    def forward(self, z: Tensor, classes: Tensor | None = None) -> Tensor:
        """(B, latent), classes (B,) int64 or None -> (B, size)."""
        if self.embed is None:
            return z
        return torch.cat([z, self.embed(self.told(z, classes))], dim=1)

    def told(self, z: Tensor, classes: Tensor | None) -> Tensor:
        """The number that is embedded, (B,) int64: the kind, or without kinds the class."""
        if not self.kinds:
            assert classes is not None
            return classes
        assert classes is not None or len(self.first) == 1
        row = torch.zeros(len(z), dtype=torch.int64, device=z.device) if classes is None else classes
        place = torch.special.ndtr(z[:, -1].float())
        return self.first[row] + (place[:, None] >= self.ends[row]).sum(1)

    def within(self, z: Tensor, kinds: Tensor | None) -> Tensor:
        """z with its last value moved to where it picks the given kinds (B,); as it is without kinds."""
        if kinds is None or not self.kinds:
            return z
        lower, upper = self.lower[kinds], self.upper[kinds]
        place = self.INSIDE + (1.0 - 2.0 * self.INSIDE) * torch.special.ndtr(z[:, -1].float())
        last = torch.special.ndtri(lower + (upper - lower) * place)
        return torch.cat([z[:, :-1], last[:, None].to(z.dtype)], dim=1)


def latent(seed: int, count: int, dimension: int, first: int = 0) -> Tensor:
    """Latents z ~ N(0, 1), float32 (count, dimension) on the CPU; row i depends on (seed, first + i) only."""
    from ..runtime import derive_seed

    rows = [
        torch.randn(dimension, generator=torch.Generator().manual_seed(derive_seed(seed, "latent", first + i)))
        for i in range(count)
    ]
    return torch.stack(rows) if rows else torch.empty(0, dimension)
