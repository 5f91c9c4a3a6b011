"""Which modes of a known distribution a GAN finds: ring (8), grid (25) and stacked digits (1000), every seed reported.

    python benchmarks/modes.py [--seeds 10] [--only ring,grid,digits] [--quick]

Rows: the default of `scansmith train` (relativistic pairing loss, R1 + R2 at every step, annealed gamma, rate and beta2,
weight average), the same with a discriminator a quarter as large, the same with finite differences in place of R1 + R2,
and four baselines as their papers train them, on the same networks, batch and number of D updates. Each row is its
worst and mean over the seeds. All seeds of a row train at once, as one network with a leading seed dimension: losses are
summed over the seeds and Adam works per element, so they do not touch each other.

Points: a mode is found when a sample lies within 3 sigma of it; HQ is the share of samples that lie so near one. Digits: a
mode is found when a classifier names its three digits in a sample, as published; HQ is the share of samples of which it
is sure (p > .9 for each digit). KL is that of the shares of the modes against equal shares, every sample counted to its
closest mode. The row of real samples is the best that can be reached. Protocol after Lin 2018 (PacGAN).

What to know before comparing rows:
- Ours was set by hand while looking at seeds 0 and 1 (the grid's length at 0 to 2, for the smaller D): networks, rate, gamma,
  length, and of the digits the share of it over which rate and gamma fall (over all of it, as in training, KL is .077). The baselines have one of three rates (`--search`) and no average or schedule, and the networks were chosen with
  ours. So rows differ by a whole recipe and by the care it got, not by the loss alone.
- Wasserstein moves G at every fifth update of D, as its paper does; non-saturating has DCGAN's Adam, not its batch norm.
- The digit networks see the three channels with the same weights, which is easier than stacked MNIST with convolutions over
  all channels: published rows stand beside, not against. Most baselines find most digits, too.
- Seeds share the draws of the interpolated penalty and of the finite differences: there a seed depends on its neighbours.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from functools import cache, partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from scansmith import losses
from scansmith.runtime import cpu_count, derive_seed
from scansmith.train.recipes import RECIPES, Recipe, Values, schedule

# As Lin 2018 (PacGAN) and Huang 2024 (R3GAN) print them: modes, high quality %, KL; "-" where they do not say.
PUBLISHED = {
    "ring": {
        "GAN [PacGAN]": "6.3   98.2   .45",
        "ALI [PacGAN]": "6.6   97.6   .36",
        "PacGAN2": "7.9   95.6   .07",
        "PacGAN4": "7.8   95.9   .07",
    },
    "grid": {
        "GAN [PacGAN]": "17.3   94.8   .70",
        "ALI [PacGAN]": "24.1   95.7   .14",
        "PacGAN2": "23.8   91.3   .13",
        "PacGAN4": "24.8   93.6   .04",
    },
    "digits": {
        "DCGAN, stacked MNIST [PacGAN]": "78.9   -   4.50",
        "ALI [PacGAN]": "16   -   5.40",
        "PacGAN2": "1000   -   .06",
        "PacGAN4": "1000   -   .07",
        "relativistic + R1 + R2 [R3GAN]": "1000   -   .078",
        "non-saturating + R1 + R2 [R3GAN]": "693   -   .927",
    },
}

# Baselines' rates. `--search` tries these on a seed that no table holds, over a quarter of the updates; taken is the rate
# with most modes, then the lowest KL, then the paper's.
SEARCHED, SEARCH_SEED = (2e-4, 1e-3, 3e-3), 100
RATES: dict[str, dict[str, float]] = {
    "ring": {"minimax": 1e-3, "non_saturating": 2e-4, "hinge": 2e-4, "wasserstein": 3e-3},
    "grid": {"minimax": 2e-4, "non_saturating": 2e-4, "hinge": 2e-4, "wasserstein": 2e-4},
    "digits": {"minimax": 1e-3, "non_saturating": 3e-3, "hinge": 3e-3, "wasserstein": 2e-4},
}

# -- networks: one member per seed ------------------------------------------------------------------------------------


class Linear(nn.Module):
    """One linear layer per seed, started like `nn.Linear`, each from its seed's own generator."""

    def __init__(self, randoms: list[torch.Generator], inputs: int, outputs: int) -> None:
        super().__init__()
        bound = inputs**-0.5
        draws = [torch.rand(inputs + 1, outputs, generator=random) for random in randoms]
        start = bound * (2.0 * torch.stack(draws) - 1.0)
        self.weight, self.bias = nn.Parameter(start[:, :-1].clone()), nn.Parameter(start[:, -1:].clone())

    def forward(self, x: Tensor) -> Tensor:
        """(S, B, inputs) -> (S, B, outputs)."""
        return torch.baddbmm(self.bias, x, self.weight)


class Mlp(nn.Module):
    """Fully connected with leaky ReLU of `slope`; sees (seeds * B, ...), seed after seed."""

    def __init__(self, randoms: list[torch.Generator], sizes: list[int], slope: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Linear(randoms, *pair) for pair in pairwise(sizes))
        self.seeds, self.slope = len(randoms), slope

    def forward(self, x: Tensor) -> Tensor:
        x = x.unflatten(0, (self.seeds, -1))
        for layer in self.layers[:-1]:
            x = F.leaky_relu(layer(x), self.slope)
        return self.layers[-1](x).flatten(0, 1)


class PointGenerator(Mlp):
    """z (., 2) -> point (., 2), four hidden layers; z times 4, since the way between modes is to be short."""

    def __init__(self, randoms: list[torch.Generator], width: int) -> None:
        super().__init__(randoms, [2, width, width, width, width, 2], slope=0.0)

    def forward(self, z: Tensor) -> Tensor:
        return super().forward(4.0 * z)


class PointDiscriminator(nn.Module):
    """Point (., 2) -> score (.,): Fourier features (Tancik 2020), three hidden layers.

    A plain network learns a bump of .0125 slowly: on-mode mass of ours on the grid after 3000 updates 63 %, with the points
    times 4 76 %, with the features 87 % (seed 0, one run each); after 8000 updates without them 91 % (seeds 0 and 1).
    """

    def __init__(self, randoms: list[torch.Generator], width: int) -> None:
        super().__init__()
        self.layers = Mlp(randoms, [2 + 2 * 16, width, width, width, 1], slope=0.2)
        self.register_buffer("waves", torch.stack([5.0 * torch.randn(2, 16, generator=random) for random in randoms]))

    def forward(self, x: Tensor, classes: None = None) -> Tensor:
        angles = (x.unflatten(0, (len(self.waves), -1)) @ self.waves).flatten(0, 1)
        return self.layers(torch.cat([x, angles.sin(), angles.cos()], dim=1))[:, 0]


class DigitGenerator(nn.Module):
    """z (., 64) -> (., 3, 8, 8): a linear code per channel, then one decoder for all channels."""

    def __init__(self, randoms: list[torch.Generator], width: int) -> None:
        super().__init__()
        self.codes = Mlp(randoms, [64, 3 * width], slope=0.0)
        self.decoder = Mlp(randoms, [width, 4 * width, 4 * width, 64], slope=0.0)

    def forward(self, z: Tensor) -> Tensor:
        return self.decoder(self.codes(z).view(3 * len(z), -1)).view(-1, 3, 8, 8)


class DigitDiscriminator(nn.Module):
    """(., 3, 8, 8) -> score (.,): one encoder for all channels, two layers that see the three together.

    Pairs that mix the channels at once learned far more slowly: 5 to 9 % good samples after 1000 to 3000 updates (strided
    convolutions, gamma .1 to 100, one seed each), against 31 to 33 % after 1500 with both networks shared over channels.
    """

    def __init__(self, randoms: list[torch.Generator], width: int) -> None:
        super().__init__()
        self.encoder = Mlp(randoms, [64, 4 * width, 2 * width], slope=0.2)
        self.end = Mlp(randoms, [6 * width, 4 * width, 1], slope=0.2)

    def forward(self, x: Tensor, classes: None = None) -> Tensor:
        features = F.leaky_relu(self.encoder(x.reshape(-1, 64)), 0.2)
        return self.end(features.view(len(x), -1))[:, 0]


# -- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """A distribution of known modes, and how it is learned.

    Attributes:
        draw: (count, generator) -> that many real images or points.
        judge: samples -> (closest mode of each, int64; whether it shows that the mode was found; whether it is good).
        generator, discriminator: classes called with the seeds' generators and a width.
        steps, batch: of every row.
        rate, gamma: of ours, falling to a third and a tenth.
        burn_in: share of the updates over which they fall.
        rates: of the baselines, by recipe; what `--search` found.
    """

    modes: int
    latent: int
    samples: int
    draw: Callable[[int, torch.Generator], Tensor]
    judge: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
    generator: Callable[..., nn.Module]
    discriminator: Callable[..., nn.Module]
    width: int
    steps: int
    batch: int
    rate: float
    gamma: float
    rates: dict[str, float]
    burn_in: float = 1.0


def points(centers: Tensor, sigma: float, **training: Any) -> Problem:
    """Equal Gaussians round `centers` (modes, 2)."""

    def draw(count: int, random: torch.Generator) -> Tensor:
        which = torch.randint(len(centers), (count,), generator=random)
        return centers[which] + sigma * torch.randn(count, 2, generator=random)

    def judge(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        distance, mode = torch.cdist(samples, centers).min(dim=1)
        good = distance < 3.0 * sigma
        return mode, good, good

    networks = (PointGenerator, PointDiscriminator)
    return Problem(len(centers), 2, 2500, draw, judge, *networks, 64, rate=3e-3, gamma=0.1, **training)


def ring() -> Problem:
    """Eight modes on the circle of radius 1, sigma .01."""
    angle = torch.arange(8) * (math.pi / 4)
    return points(torch.stack([angle.cos(), angle.sin()], dim=1), 0.01, steps=4000, batch=64, rates=RATES["ring"])


def grid() -> Problem:
    """5 x 5 modes 2 apart, sigma .05; learned at a quarter of the scale, so that it fills [-1, 1]."""
    side = torch.arange(-2.0, 3.0)
    return points(
        2.0 * torch.cartesian_prod(side, side) / 4.0, 0.05 / 4.0, steps=10_000, batch=128, rates=RATES["grid"]
    )


@cache
def real_digits() -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled digits: (1797, 8, 8) in [-1, 1] and their names."""
    from sklearn.datasets import load_digits

    images, names = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).view(-1, 8, 8) / 8.0 - 1.0, torch.tensor(names)


@cache
@torch.enable_grad()
def classifier() -> tuple[nn.Module, float]:
    """A network that names digits, and its accuracy on a fifth of them that it did not see."""
    images, names = real_digits()
    random = torch.Generator().manual_seed(derive_seed(0, "classifier", 0))
    order = torch.randperm(len(images), generator=random)
    held, train = order[: len(order) // 5], order[len(order) // 5 :]
    with torch.random.fork_rng():
        torch.manual_seed(derive_seed(0, "classifier", 1))
        network = nn.Sequential(nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    for _ in range(300):
        rows = train[torch.randint(len(train), (128,), generator=random)]
        noisy = images[rows] + 0.2 * torch.randn(128, 8, 8, generator=random)
        optimizer.zero_grad()
        F.cross_entropy(network(noisy), names[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        accuracy = (network(images[held]).argmax(1) == names[held]).float().mean().item()
    return network.requires_grad_(False), accuracy


def digits() -> Problem:
    """Three random digits as three channels."""

    def draw(count: int, random: torch.Generator) -> Tensor:
        images, _ = real_digits()
        return images[torch.randint(len(images), (count, 3), generator=random)]

    def judge(samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        network, _ = classifier()
        sure, name = network(samples.clamp(-1.0, 1.0).flatten(0, 1)).softmax(1).view(-1, 3, 10).max(dim=2)
        good = sure.amin(1) > 0.9
        return name @ torch.tensor([100, 10, 1]), torch.ones_like(good), good

    networks = (DigitGenerator, DigitDiscriminator)
    return Problem(
        1000,
        64,
        26_000,
        draw,
        judge,
        *networks,
        64,
        steps=6000,
        batch=64,
        rate=1.5e-3,
        gamma=60.0,
        rates=RATES["digits"],
        burn_in=0.35,
    )


PROBLEMS: dict[str, Callable[[], Problem]] = {"ring": ring, "grid": grid, "digits": digits}

# -- arms -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """A row of the table: a recipe, how many of D's parameters, and whether its penalty is by finite differences."""

    recipe: Recipe
    discriminator_share: float = 1.0
    finite_differences: bool = False


ARMS: dict[str, Arm] = {
    "ours: relativistic + R1 + R2": Arm(RECIPES["relativistic"]),
    "ours, D a quarter as large": Arm(RECIPES["relativistic"], discriminator_share=0.25),
    "ours, finite differences": Arm(RECIPES["relativistic"], finite_differences=True),
    "minimax (Goodfellow 2014)": Arm(RECIPES["minimax"]),
    "non-saturating, Adam as DCGAN": Arm(RECIPES["non_saturating"]),
    "hinge": Arm(RECIPES["hinge"]),
    "Wasserstein, interpolated penalty": Arm(RECIPES["wasserstein"]),
}

SIGMA = 0.01  # of the finite differences


@dataclass
class Pair:
    """Both networks of all seeds, their optimisers and randoms."""

    generator: nn.Module
    discriminator: nn.Module
    average: nn.Module
    optimizers: tuple[torch.optim.Adam, torch.optim.Adam]
    randoms: list[torch.Generator]
    shared: torch.Generator

    def draw(self, one: Callable[[torch.Generator], Tensor]) -> Tensor:
        """What `one` draws for each seed, (seeds * B, ...)."""
        return torch.cat([one(random) for random in self.randoms])


def begin(problem: Problem, arm: Arm, seeds: list[int]) -> Pair:
    def randoms(purpose: str) -> list[torch.Generator]:
        return [torch.Generator().manual_seed(derive_seed(seed, purpose, 0)) for seed in seeds]

    generator = problem.generator(randoms("generator"), problem.width)
    width = share_of_width(problem, arm.discriminator_share)
    discriminator = problem.discriminator(randoms("discriminator"), width)
    average = problem.generator(randoms("generator"), problem.width).requires_grad_(False)
    optimizers = tuple(torch.optim.Adam(player.parameters(), fused=True) for player in (generator, discriminator))
    shared = torch.Generator().manual_seed(derive_seed(seeds[0], "penalty", len(seeds)))
    return Pair(generator, discriminator, average, optimizers, randoms("draws"), shared)


def share_of_width(problem: Problem, share: float) -> int:
    """The largest width at which D has at most `share` of its parameters."""

    def size(width: int) -> int:
        return sum(weight.numel() for weight in problem.discriminator([torch.Generator()], width).parameters())

    return max(width for width in range(1, problem.width + 1) if size(width) <= share * size(problem.width))


def penalised(pair: Pair, arm: Arm, real: Tensor, fake: Tensor, gamma: float) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of real and fake, and the weighted penalty."""
    d = pair.discriminator
    if arm.recipe.penalty == "interpolated":
        penalty = losses.interpolated_penalty(d, real, fake, None, pair.shared)
        return d(real), d(fake), gamma * penalty.mean()
    if arm.recipe.penalty == "none":
        return d(real), d(fake), torch.zeros(())
    measure = partial(finite_differences, random=pair.shared) if arm.finite_differences else losses.scores_and_penalty
    scores, penalties = zip(*(measure(d, images) for images in (real, fake)))
    return *scores, gamma / 2.0 * sum(penalty.mean() for penalty in penalties)


def finite_differences(discriminator: nn.Module, images: Tensor, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """D(x) and (D(x) - D(x + sigma eps))^2 / sigma^2, whose mean over eps tends to || d D / d x ||^2 with sigma."""
    scores = discriminator(images)
    moved = discriminator(images + SIGMA * torch.randn(images.shape, generator=random))
    return scores, ((scores - moved) / SIGMA).square()


def settled(problem: Problem, recipe: Recipe, steps: int) -> Recipe:
    """The recipe with the problem's length and batch, and rates that suit networks so small."""
    recipe = replace(recipe, batch=problem.batch, images=steps * problem.batch)
    if recipe.penalty != "r1r2":
        return replace(recipe, learning_rate=problem.rates[recipe.name], learning_rate_end=problem.rates[recipe.name])
    rate, gamma = problem.rate, problem.gamma
    return replace(
        recipe,
        learning_rate=rate,
        learning_rate_end=rate / 3,
        gamma=gamma,
        gamma_end=gamma / 10,
        burn_in=problem.burn_in,
    )


def train(problem: Problem, arm: Arm, seeds: list[int], steps: int) -> Pair:
    """Let all seeds play `steps` steps; both players see the same fakes, as in `scansmith train`."""
    recipe = settled(problem, arm.recipe, steps)
    pair = begin(problem, arm, seeds)
    loss_d, loss_g = losses.LOSSES[recipe.loss]
    for step in range(steps):
        now = schedule(recipe, step * problem.batch)
        real = pair.draw(lambda random: problem.draw(problem.batch, random))
        fake = pair.generator(pair.draw(lambda random: torch.randn(problem.batch, problem.latent, generator=random)))
        scores_real, scores_fake, penalty = penalised(pair, arm, real, fake.detach(), now.gamma)
        update(pair, 1, loss_d(scores_real, scores_fake) + penalty, recipe, now)
        if (step + 1) % recipe.critic_steps == 0:
            update(pair, 0, loss_g(pair.discriminator(real), pair.discriminator(fake)), recipe, now)
        with torch.no_grad():
            for kept, weight in zip(pair.average.parameters(), pair.generator.parameters()):
                kept.lerp_(weight, 1.0 - now.ema_decay)
    return pair


def update(pair: Pair, player: int, loss: Tensor, recipe: Recipe, now: Values) -> None:
    """One step of Adam on the sum of the seeds' losses."""
    optimizer = pair.optimizers[player]
    optimizer.param_groups[0].update(lr=now.learning_rate, betas=(recipe.beta1, now.beta2))
    optimizer.zero_grad(set_to_none=True)
    (len(pair.randoms) * loss).backward(inputs=optimizer.param_groups[0]["params"])
    optimizer.step()


# -- what is counted --------------------------------------------------------------------------------------------------


def count(mode: Tensor, shows: Tensor, good: Tensor, modes: int) -> tuple[int, float, float]:
    """Modes found, good samples in %, and KL(q, uniform) = sum q log(modes q) over the shares q of the modes.

    Args:
        mode: (N,) the closest mode of each sample.
        shows: (N,) whether the sample shows that its mode was found.
        good: (N,) whether the sample is a good one.
        modes: how many there are.
    """
    share = torch.bincount(mode, minlength=modes).double() / len(mode)
    divergence = torch.special.xlogy(share, modes * share).sum().item()
    return len(mode[shows].unique()), 100.0 * good.double().mean().item(), divergence


@torch.no_grad()
def judged(problem: Problem, pair: Pair, seeds: list[int]) -> list[tuple[int, float, float]]:
    """(modes, HQ %, KL) of every seed's average generator."""
    randoms = [torch.Generator().manual_seed(derive_seed(seed, "samples", 0)) for seed in seeds]
    z = torch.cat([torch.randn(problem.samples, problem.latent, generator=random) for random in randoms])
    samples = pair.average(z).unflatten(0, (len(seeds), -1))
    return [count(*problem.judge(one), problem.modes) for one in samples]


def real_row(problem: Problem) -> tuple[int, float, float]:
    """(modes, HQ %, KL) of as many real samples: what a perfect generator would reach."""
    random = torch.Generator().manual_seed(derive_seed(0, "real", 0))
    return count(*problem.judge(problem.draw(problem.samples, random)), problem.modes)


# -- the table --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    problem: str
    arm: str
    seeds: list[int]
    steps: int
    rate: float | None = None  # instead of the problem's, for a baseline


def work(job: Job) -> tuple[Job, list[tuple[int, float, float]], float]:
    """Train and judge one row, in a process with one thread."""
    torch.set_num_threads(1)
    start = time.perf_counter()
    problem = PROBLEMS[job.problem]()
    if job.rate is not None:
        problem = replace(problem, rates=dict.fromkeys(problem.rates, job.rate))
    pair = train(problem, ARMS[job.arm], job.seeds, job.steps)
    return job, judged(problem, pair, job.seeds), time.perf_counter() - start


def line(name: str, scores: list[tuple[int, float, float]], seconds: float | None = None) -> str:
    """Mean and worst of each number, then the modes of every seed."""
    modes, good, divergence = zip(*scores)
    n = len(scores)
    return (
        f"{name:44s}{sum(modes) / n:8.1f}{min(modes):7d}{sum(good) / n:9.1f}{min(good):7.1f}"
        f"{sum(divergence) / n:9.3f}{max(divergence):8.3f}"
        + (f"{seconds:8.0f}   {' '.join(map(str, modes))}" if seconds is not None else "")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--digits-seeds", type=int, default=4, help="of the digits, whose rows take longest")
    parser.add_argument("--only", default=",".join(PROBLEMS), help="some of ring,grid,digits")
    parser.add_argument("--arms", default="", help="only rows whose name contains this")
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=cpu_count())
    parser.add_argument("--quick", action="store_true", help="two seeds and a fifth of the steps: a look, not a result")
    parser.add_argument("--search", action="store_true", help="the baselines at three rates instead of the table")
    options = parser.parse_args()
    names = options.only.split(",")
    if unknown := set(names) - set(PROBLEMS):
        parser.error(f"expected --only to name some of {','.join(PROBLEMS)}, got {','.join(sorted(unknown))}")
    if options.quick:
        options.seeds = options.digits_seeds = 2
    print(
        f"{date.today()}, {platform.processor() or platform.machine()}, {options.processes} processes of one thread, "
        f"torch {torch.__version__}"
    )
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(options.processes) as pool:
        for name in names:
            problem = PROBLEMS[name]()
            steps = problem.steps // (5 if options.quick else 1)
            number = min(options.seeds, options.digits_seeds) if name == "digits" else options.seeds
            seeds = list(range(options.first_seed, options.first_seed + number))
            if options.search:
                search(name, problem, options.arms, pool)
                continue
            heading(name, problem, steps, seeds)
            jobs = [Job(name, arm, seeds, steps) for arm in ARMS if options.arms in arm]
            for job, scores, seconds in pool.imap(work, jobs):
                print(line(job.arm, scores, seconds), flush=True)
            for source, row in PUBLISHED[name].items():
                print(f"{source:44s}{row}   (published)")
    print(f"\n{(time.perf_counter() - start) / 60:.1f} minutes")


def search(name: str, problem: Problem, part: str, pool: Any) -> None:
    """One line per baseline and rate: what `RATES` was chosen from."""
    baselines = [arm for arm in ARMS if ARMS[arm].recipe.name in problem.rates and part in arm]
    jobs = [Job(name, arm, [SEARCH_SEED], problem.steps // 4, rate) for arm in baselines for rate in SEARCHED]
    for job, scores, seconds in pool.imap(work, jobs):
        print(line(f"{name}, {job.arm[:24]}, {job.rate:g}", scores, seconds), flush=True)


def heading(name: str, problem: Problem, steps: int, seeds: list[int]) -> None:
    """What is learned and how, and the row of real samples."""
    print(
        f"\n{name}: {problem.modes} modes, {problem.samples} samples, {steps} updates of D, batch {problem.batch}, seeds {seeds[0]} to {seeds[-1]}"
    )
    if name == "digits":
        print(f"the classifier names {100 * classifier()[1]:.1f} % of unseen digits rightly")
    print(
        f"{'':44s}{'modes':>8s}{'worst':>7s}{'HQ %':>9s}{'worst':>7s}{'KL':>9s}{'worst':>8s}{'seconds':>8s}   modes of every seed"
    )
    print(line("real samples", [real_row(problem)]), flush=True)


if __name__ == "__main__":
    main()
