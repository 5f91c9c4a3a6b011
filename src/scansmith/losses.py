"""GAN objectives and penalties, one function per equation. Scores are (B,) float32; every loss is a scalar.

D(x) is the score of a real image, D(G(z)) that of a generated one, both without a final sigmoid; sigmoid(D) is the
probability of "real" where a paper writes one. Both players minimise.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def relativistic_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-(D(x) - D(G(z)))): each real image should score above its fake partner.

    Source: Jolicoeur-Martineau 2018; as the pairing loss in Huang 2024 (R3GAN), eq. 2.
    """
    return F.softplus(fake - real).mean()


def relativistic_generator(real: Tensor, fake: Tensor) -> Tensor:
    """mean softplus(-(D(G(z)) - D(x))): each fake should score above its real partner. Source: as above."""
    return F.softplus(real - fake).mean()


def minimax_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """-mean log sigmoid(D(x)) - mean log(1 - sigmoid(D(G(z)))): cross entropy. Source: Goodfellow 2014, eq. 1."""
    return F.softplus(-real).mean() + F.softplus(fake).mean()


def minimax_generator(real: Tensor, fake: Tensor) -> Tensor:
    """mean log(1 - sigmoid(D(G(z)))): its gradient vanishes where D is sure. Source: Goodfellow 2014, eq. 1."""
    return -F.softplus(fake).mean()


def non_saturating_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-mean log sigmoid(D(G(z))), beside the minimax discriminator. Source: Goodfellow 2014, section 3."""
    return F.softplus(-fake).mean()


def least_squares_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean (D(x) - 1)^2 / 2 + mean D(G(z))^2 / 2. Source: Mao 2017, eq. 9 (a = 0, b = c = 1)."""
    return 0.5 * (real - 1.0).square().mean() + 0.5 * fake.square().mean()


def least_squares_generator(real: Tensor, fake: Tensor) -> Tensor:
    """mean (D(G(z)) - 1)^2 / 2. Source: as above."""
    return 0.5 * (fake - 1.0).square().mean()


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean max(0, 1 - D(x)) + mean max(0, 1 + D(G(z))). Source: Lim and Ye 2017; Miyato 2018, eq. 16."""
    return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()


def wasserstein_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean D(G(z)) - mean D(x), for a D of slope at most 1. Source: Arjovsky 2017, eq. 2 and 3."""
    return fake.mean() - real.mean()


def wasserstein_generator(real: Tensor, fake: Tensor) -> Tensor:
    """-mean D(G(z)). Source: Arjovsky 2017; with hinge_discriminator Miyato 2018, eq. 17."""
    return -fake.mean()


Loss = Callable[[Tensor, Tensor], Tensor]

LOSSES: dict[str, tuple[Loss, Loss]] = {
    "relativistic": (relativistic_discriminator, relativistic_generator),
    "minimax": (minimax_discriminator, minimax_generator),
    "non_saturating": (minimax_discriminator, non_saturating_generator),
    "least_squares": (least_squares_discriminator, least_squares_generator),
    "hinge": (hinge_discriminator, wasserstein_generator),
    "wasserstein": (wasserstein_discriminator, wasserstein_generator),
}


def gradient_penalty(scores: Tensor, images: Tensor) -> Tensor:
    """|| d D / d x ||^2 per image, (B,) float32, differentiable: R1 on real images, R2 on generated ones.

    Source: Mescheder 2018, eq. 9 and 10; the caller multiplies the means by gamma / 2.

    Args:
        scores: (B,) computed from `images`.
        images: (B, C, *spatial) of any number of dimensions, requires grad.
    """
    gradient = _input_gradient(scores, images)
    return gradient.square().sum(dim=tuple(range(1, gradient.ndim)))


def interpolated_penalty(
    discriminator: Any,
    real: Tensor,
    fake: Tensor,
    classes: Tensor | None,
    random: torch.Generator,
    whole: int | None = None,
    part: slice = slice(None),
) -> Tensor:
    """(|| d D / d x || - 1)^2 at one random point between each pair, (B,) float32, differentiable.

    Source: Gulrajani 2017 (WGAN-GP), eq. 3; the caller multiplies the mean by lambda (10 there).

    Args:
        discriminator: called with (B, C, *spatial) and `classes`; its samples must not see each other (no batch norm).
        real, fake: (B, C, *spatial); no gradient flows into them.
        classes: (B,) or None.
        random: draws the points; on any device.
        whole, part: where several processes share a batch, its size and which of it these pairs are.
    """
    shape = (whole or len(real),) + (1,) * (real.ndim - 1)
    share = torch.rand(shape, generator=random, device=random.device)[part].to(real)
    points = torch.lerp(fake.detach(), real.detach(), share).requires_grad_(True)
    gradient = _input_gradient(discriminator(points, classes), points)
    # vector_norm has derivative 0 at 0, where a square root would give NaN
    return (torch.linalg.vector_norm(gradient.flatten(1), dim=1) - 1.0).square()


def scores_and_penalty(discriminator: Any, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """D(x) (B,) and || d D / d x ||^2 (B,) for any discriminator: its own closed form if it has one, else autograd."""
    if hasattr(discriminator, "scores_and_penalty"):
        return discriminator.scores_and_penalty(images, classes)
    images = images.detach().requires_grad_(True)
    scores = discriminator(images, classes)
    return scores, gradient_penalty(scores, images)


# ------------------------------------------------------------------------------------------------ translation

# Of a translated image beside the true one, both (B, C, *spatial); `weight` has their shape or broadcasts to it: 1 where an error
# counts, 0 outside the body. Each is a scalar, a mean over what counts.

WINDOW = 7  # pixels a side of the windows of `structural`


def _mean(errors: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean; 0 where nothing counts."""
    weight = weight.expand_as(errors).to(errors.dtype)
    return (errors * weight).sum() / weight.sum().clamp_min(1.0)


def absolute(made: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """mean |made - real| over what counts, so that the share of air in an image does not scale the step."""
    return _mean((made - real).abs(), weight)


def squared(made: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """mean (made - real)^2 over what counts: where two values are likely, it wants the mean of both, the absolute error the likelier one."""
    return _mean((made - real).square(), weight)


def edges(made: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """mean |d made - d real| of differences between neighbours along each axis, where both count (Mathieu 2016, eq. 6, with signs)."""
    error = made - real
    weight = weight.expand_as(error)
    terms = [
        _mean(
            error.diff(dim=axis).abs(),
            weight.narrow(axis, 1, weight.shape[axis] - 1) * weight.narrow(axis, 0, weight.shape[axis] - 1),
        )
        for axis in range(2, error.ndim)
    ]
    return torch.stack(terms).mean()


def structural(made: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """1 - SSIM (Wang 2004, eq. 13) of images in [-1, 1], in windows of 7 pixels that lie inside the image; sample covariances.

    A window counts as its middle does. Images smaller than a window give 0.
    """
    if min(made.shape[2:]) < WINDOW:
        return made.sum() * 0.0
    made, real = (
        image.float().contiguous() + 1.0 for image in (made, real)
    )  # above 0, or luminance means nothing about grey 0
    mean_a, mean_b, square_a, square_b, product = window_means(
        torch.cat([made, real, made.square(), real.square(), made * real])
    ).chunk(5)
    count = WINDOW ** (made.ndim - 2)
    variance_a, variance_b, covariance = (
        (moment - expected) * (count / (count - 1))
        for moment, expected in (
            (square_a, mean_a.square()),
            (square_b, mean_b.square()),
            (product, mean_a * mean_b),
        )
    )
    c1, c2 = (0.01 * 2.0) ** 2, (0.03 * 2.0) ** 2
    similar = (2.0 * mean_a * mean_b + c1) * (2.0 * covariance + c2)
    similar = similar / ((mean_a.square() + mean_b.square() + c1) * (variance_a + variance_b + c2))
    inner = [slice(WINDOW // 2, side - WINDOW // 2) for side in real.shape[2:]]
    return _mean(1.0 - similar, weight.expand_as(real)[(slice(None), slice(None), *inner)])


def patch_contrast(described: Tensor, keys: Tensor, temperature: float = 0.07) -> Tensor:
    """Cross-entropy of finding each place among the others of its image by how it is described (Park 2020, eq. 3).

    Args:
        described, keys: (B, places, length), each of length 1; place i of one belongs to place i of the other.
    """
    alike = described @ keys.transpose(1, 2) / temperature
    right = torch.arange(alike.shape[1], device=alike.device).expand(len(alike), -1)
    return F.cross_entropy(alike.flatten(0, 1), right.flatten())


def gradient_field(made: Tensor, source: Tensor) -> Tensor:
    """1 - how far edges of one image run along those of another, whatever their contrast (Haber and Modersitzki 2006, eq. 7).

    Mean over voxels, each counting as far as the source has an edge there; slopes below the mean one of their image are taken for
    noise, so that an image beside itself does not give 0 but the least that its noise allows. 1 where no edges are shared.

    Args:
        made, source: (B, C, *spatial); C is averaged.
    """
    slopes = []
    for image in (made, source):
        image = image.float().mean(1)
        axes = range(1, image.ndim)
        inner = [slice(0, side - 1) for side in image.shape[1:]]
        slopes.append(torch.stack([image.diff(dim=axis)[(slice(None), *inner)] for axis in axes], 1))
    one, other = slopes
    floors = [
        slope.detach().square().sum(1).mean(dim=tuple(range(1, slope.ndim - 1)), keepdim=True) + 1e-6
        for slope in slopes
    ]
    sizes = [slope.square().sum(1) for slope in slopes]
    along = (one * other).sum(1).square() / ((sizes[0] + floors[0]) * (sizes[1] + floors[1]))
    weight = sizes[1] / (sizes[1] + floors[1])
    return 1.0 - (weight * along).sum() / weight.square().sum().clamp_min(1e-6)


def dice(scores: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """1 - the mean soft Dice coefficient of the labels over the batch, from softmax (Milletari 2016, eq. 1, without squares).

    Over the batch, so that a patch without a label does not count for nothing or all. Labels that are in no target of the batch are
    left out; 0 without any.

    Args:
        scores: (B, 1 + labels, *spatial) logits, background first.
        real: the same shape, one-hot.
        weight: (B, 1, *spatial); 0 beyond an image's borders.
    """
    axes = (0, *range(2, scores.ndim))
    share = scores.float().softmax(1)[:, 1:]
    real, counts = real[:, 1:], (weight > 0).to(share.dtype)
    both, sizes = (share * real * counts).sum(axes), ((share + real) * counts).sum(axes)
    seen = ((real * counts).sum(axes) > 0).to(share.dtype)
    return _mean(1.0 - (2.0 * both + 1e-5) / (sizes + 1e-5), seen)


def cross_entropy(scores: Tensor, real: Tensor, weight: Tensor) -> Tensor:
    """Mean -log softmax of the true class over what counts; arguments as for `dice`."""
    return _mean(-(scores.float().log_softmax(1) * real).sum(1, keepdim=True), (weight > 0).float())


def window_means(x: Tensor) -> Tensor:
    """Means over windows of 7 voxels a side inside the image, (B, C, *spatial) -> 6 fewer along each axis; sums of sums, as 7 = 4 + 2 + 1."""
    for axis in range(2, x.ndim):
        length = x.shape[axis]
        two = x.narrow(axis, 0, length - 1) + x.narrow(axis, 1, length - 1)
        four = two.narrow(axis, 0, length - 3) + two.narrow(axis, 2, length - 3)
        left = length - WINDOW + 1
        x = four.narrow(axis, 0, left) + two.narrow(axis, 4, left) + x.narrow(axis, 6, left)
    return x / WINDOW ** (x.ndim - 2)


def pinball(bound: Tensor, real: Tensor, level: float, weight: Tensor) -> Tensor:
    """mean max(level (y - q), (level - 1) (y - q)), least where q is the `level` quantile of y (Koenker 1978, eq. 3.1)."""
    rest = real - bound
    return _mean(torch.maximum(level * rest, (level - 1.0) * rest), weight)


def _input_gradient(scores: Tensor, images: Tensor) -> Tensor:
    """d D / d x of every image in its shape, in float32 at least (bf16 squares would lose the sum)."""
    (gradient,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return gradient.to(torch.promote_types(gradient.dtype, torch.float32))
