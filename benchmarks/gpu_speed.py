"""Whole training steps of the default pairs on one device: images/s, operations and memory, at several sides.

    python benchmarks/gpu_speed.py [--sides 64,128,256,512] [--sizes tiny,small,base] [--device auto] [--seconds 3] [--peak TFLOPS] [--eager]

A step is what `scansmith train` repeats: a batch is drawn, D and G move, with exact R1 + R2, and G's weights are averaged; in
bf16 and channels-last. The batch doubles until that brings less than 25 % more images/s, or memory is full; with the same batch
the generator is then compiled. What fails says so in its row.

Operations are those of convolutions and matrix products, a multiplication and its addition being two. They are counted by
PyTorch's FlopCounterMode on tensors without storage, so that no device is needed for it. Of the backward pass of a grouped
convolution that counts too many: our formula stands in. Before anything is timed, counts are compared with some made by hand.
The share of the peak is beside what makers publish for dense bf16, and beside a large matrix product timed on the spot.

Drawing is the share of a step that the host takes until its batch is drawn: where it is large, a faster device brings nothing.
"""

from __future__ import annotations

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from train_speed import Training, images_of, noise

from scansmith.networks.strided import StridedDiscriminator
from scansmith.runtime import choose_device
from scansmith.train import memory
from scansmith.train.objective import Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.probe import BATCH_GAIN, Clock, fits, for_grid, quartile
from scansmith.train.recipes import RECIPES, Recipe, resized

# Dense bf16 with sums in fp32, TFLOP/s, from the makers' data sheets; part of the device's name -> peak, the first that fits.
# A V100 has no bf16.
PEAKS = {"H200": 989.0, "H100 PCIe": 756.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "RTX 4090": 165.0}
# StyleGAN2-ADA, side -> (seconds for 1,000 images, GB): https://github.com/NVlabs/stylegan2-ada-pytorch, "Expected training time".
STYLEGAN2 = {128: ((12.8, 13.7), 7.2), 256: ((21.6, 24.2), 5.0), 512: ((72.5, 74.9), 7.6)}
SOURCE = """StyleGAN2-ADA: as published for one V100 with default settings, fp16 at the four finest levels, R1 at every 16th step
(README of NVlabs/stylegan2-ada-pytorch, "Expected training time"). Networks and device differ: the row says what a well-known GAN
of that side costs, not which code is faster."""
MATRIX = {"cuda": 8192, "cpu": 1024}  # rows of the product that is timed
WARM_UP = 3  # steps: kernels are chosen and loaded
FEWEST = 5  # steps that are timed
LARGEST = 4096  # images a batch
ROWS = 256  # images to draw from


@dataclass(frozen=True)
class Speed:
    """How fast whole steps are.

    Attributes:
        batch: images a step.
        images_per_s: real images a second.
        drawing: share of a step until its batch was drawn.
        peak_bytes: of GPU memory; None on a CPU.
    """

    batch: int
    images_per_s: float
    drawing: float
    peak_bytes: int | None


# ------------------------------------------------------------------------------------------------ operations


def convolution_backward(
    grad: Sequence[int],
    x: Sequence[int],
    kernel: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    wanted: Sequence[bool],
    **_: Any,
) -> int:
    """Operations of a convolution's backward pass, from shapes: each wanted gradient costs as much as the forward pass."""
    places = (x if transposed else grad)[2:]
    return 2 * x[0] * math.prod(places) * math.prod(kernel) * sum(map(bool, wanted[:2]))


def operations(work: Callable[[], Any]) -> int:
    """Operations of convolutions and matrix products in `work`, which runs on tensors without storage."""
    ours = {torch.ops.aten.convolution_backward: convolution_backward}
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=ours) as counter:
        work()
    return int(counter.get_total_flops())


def of_a_step(recipe: Recipe, task: Task) -> int:
    """Operations of one whole step; moments and averages are element by element and count nothing."""
    grid = task.grid(recipe.target)

    def step() -> None:
        objective = OBJECTIVES[recipe.objective](recipe, task, grid)
        memory.one_step(objective, memory.some_batch(recipe, recipe.batch, task, grid), recipe.precision)

    return operations(step)


def check_counting() -> None:
    """Counts beside those made by hand: forward, backward, groups, transposed, autocast, closed-form penalty, whole step."""
    for counted, by_hand in counts_by_hand():
        assert counted == by_hand, f"{counted} operations counted, {by_hand} by hand"


def counts_by_hand() -> Iterator[tuple[int, int]]:
    """(counted, by hand) of layers and steps of tiny size."""
    # 16 x 10 x 10 outputs, each from 8 / 4 channels of 3 x 3; once forward, once for each of two gradients.
    yield operations(lambda: both_ways(F.conv2d, (16, 2, 3, 3), groups=4, padding=1)), 3 * 2 * 5 * 16 * 100 * 2 * 9
    # Transposed: each of 8 x 10 x 10 inputs goes to 6 channels of 4 x 4.
    yield operations(lambda: both_ways(F.conv_transpose2d, (8, 6, 4, 4), stride=2)), 3 * 2 * 5 * 8 * 100 * 6 * 16
    d = 2 * 16 * (8 * 8 * 8 + 4 * 4 * 16 * 8)  # of an image of 16 x 16 through 4 x 4 convolutions with stride 2
    # `networks.penalised` promises four passes for scores and penalty.
    yield operations(penalised), 4 * 5 * d
    # `UpConv` as 4 x 4 transposed convolutions (8, 16 pixels a side), then 3 x 3 to one channel; a linear layer from 64.
    g, start = 2 * (16 * 16 * 4 * 4 * 16 + 16 * 8 * 8 * 8 * 16 + 8 * 16 * 16 * 9), 2 * 64 * 16 * 16
    # G forward and two gradients, its first layer one; D four passes over real and fake, then real once, fake two ways.
    recipe = replace(RECIPES["relativistic"], width=8, batch=5, target=16, precision="bf16")
    yield of_a_step(recipe, Task(1, (16, 16), 0, 100)), 5 * (3 * g + 2 * start + (2 * 4 + 1 + 2) * d)


def both_ways(convolve: Callable[..., torch.Tensor], kernel: Sequence[int], **how: int) -> None:
    """Forward and backward of one layer on five images of 8 channels and 10 x 10 pixels, under autocast."""
    with torch.autocast("cpu", torch.bfloat16):
        images, weight = torch.zeros(5, 8, 10, 10, requires_grad=True), torch.zeros(*kernel, requires_grad=True)
        convolve(images, weight, **how).sum().backward()


def penalised() -> None:
    """Scores and penalty of five images of 16 x 16, with the gradients of both."""
    discriminator: nn.Module = StridedDiscriminator(1, (4, 4), 2, width=8)
    scores, penalty = discriminator.scores_and_penalty(torch.zeros(5, 1, 16, 16))
    (scores.sum() + penalty.sum()).backward()


# ------------------------------------------------------------------------------------------------ time


def timed(recipe: Recipe, stored: Any, device: torch.device, seconds: float) -> Speed:
    """Whole steps for so many seconds."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    training = Training(recipe, stored, device)
    torch._dynamo.config.suppress_errors = False  # a generator that cannot be compiled is no compiled one
    for number in range(WARM_UP):
        training.step(number)
    began = time.monotonic()
    while len(training.seconds) < WARM_UP + FEWEST or time.monotonic() - began < seconds:
        training.step(len(training.seconds))
    step_s, drawing_s = quartile(training.seconds[WARM_UP:]), quartile(training.drawing[WARM_UP:])
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    return Speed(recipe.batch, recipe.batch / step_s, drawing_s / step_s, peak)


def tried(recipe: Recipe, task: Task, stored: Any, device: torch.device, seconds: float) -> Speed | str:
    """`timed`, or why it failed."""
    if device.type == "cpu" and not fits(recipe, Clock(task, device)):  # the system would end the process
        return f"memory is full with {recipe.batch}"
    try:
        return timed(recipe, stored, device, seconds)
    except (torch.OutOfMemoryError, MemoryError):
        return f"memory is full with {recipe.batch}"
    except RuntimeError as error:
        return f"failed with {recipe.batch}: {str(error).strip().splitlines()[0][:100]}".replace("|", "/")
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()


def largest(recipe: Recipe, task: Task, stored: Any, device: torch.device, seconds: float) -> tuple[Speed | None, str]:
    """The largest batch that doubling still brought clearly more images/s, and why no larger one."""
    best: Speed | None = None
    while recipe.batch <= LARGEST:
        found = tried(recipe, task, stored, device, seconds)
        if isinstance(found, str):
            return best, found
        if best and found.images_per_s < BATCH_GAIN * best.images_per_s:
            return best, f"{found.batch} brings {found.images_per_s / best.images_per_s - 1.0:+.0%}"
        best, recipe = found, replace(recipe, batch=2 * recipe.batch)
    return best, "no larger one was tried"


def matrix_peak(device: torch.device, seconds: float) -> float:
    """Operations/s that a large product of two bf16 matrices reaches."""
    side = MATRIX.get(device.type, MATRIX["cpu"])
    a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    times, began = [], time.monotonic()
    while len(times) < FEWEST or time.monotonic() - began < seconds:
        start = time.perf_counter()
        for _ in range(4):
            a @ b
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append((time.perf_counter() - start) / 4)
    return 2.0 * side**3 / min(times)


# ------------------------------------------------------------------------------------------------ the table

HEADS = ("side", "networks", "batch", "why no larger one", "images/s", "drawing", "GFLOP an image", "TFLOP/s",
         "of published peak", "of a large product", "GPU memory (GB)")  # fmt: skip


@dataclass(frozen=True)
class Peaks:
    """What the device can reach, operations/s: as published, None where not known, and as measured."""

    published: float | None
    measured: float


def row(side: int, name: str, speed: Speed | None, why: str, count: float, peaks: Peaks) -> list[str]:
    """The cells of one timing; `count` operations an image."""
    if speed is None:
        return [str(side), name, "–", why, "–", "–", f"{count / 1e9:.3g}", *["–"] * 4]
    rate = count * speed.images_per_s
    share = "–" if peaks.published is None else f"{rate / peaks.published:.1%}"
    held = "–" if speed.peak_bytes is None else f"{speed.peak_bytes / 2**30:.1f}"
    return [
        str(side), name, str(speed.batch), why, f"{speed.images_per_s:,.0f}", f"{speed.drawing:.0%}",
        f"{count / 1e9:.3g}", f"{rate / 1e12:.3g}", share, f"{rate / peaks.measured:.1%}", held,
    ]  # fmt: skip


def rows(side: int, size: str, device: torch.device, seconds: float, peaks: Peaks, eager: bool) -> Iterator[list[str]]:
    """Eager, then compiled."""
    task, stored = Task(1, (side, side), 0, 1000), images_of(noise(ROWS, side))
    recipe = for_grid(resized(replace(RECIPES["relativistic"], images=10**6), size), task, side)
    recipe = replace(recipe, precision="bf16", channels_last=True)
    count, name = of_a_step(recipe, task) / recipe.batch, f"{size} ({recipe.generator}, {recipe.width})"
    speed, why = largest(recipe, task, stored, device, seconds)
    yield row(side, name, speed, why, count, peaks)
    if speed and not eager:
        compiled = tried(replace(recipe, batch=speed.batch, compiled=True), task, stored, device, seconds)
        torch._dynamo.reset()
        found, why = (None, compiled) if isinstance(compiled, str) else (compiled, "as eager")
        yield row(side, f"{name}, G compiled", found, why, count, peaks)


def published_row(side: int) -> list[str]:
    (least, most), held = STYLEGAN2[side]
    rate = f"{1000 / most:.0f} to {1000 / least:.0f}"
    return [str(side), "StyleGAN2-ADA, one V100, published", "–", "–", rate, *["–"] * 5, f"{held}"]


def line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", default="64,128,256,512", help="pixels")
    parser.add_argument("--sizes", default="tiny,small,base", help="of the networks")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seconds", type=float, default=3.0, help="of steps for each timing")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device in bf16; default: a table of published ones")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    return parser.parse_args()


def main() -> None:
    options = parsed()
    device = choose_device(options.device)
    check_counting()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    known = options.peak or next((peak for part, peak in PEAKS.items() if part in name), None)
    peaks = Peaks(known and 1e12 * known, matrix_peak(device, 1.0))
    print(f"{date.today()}, {name}, torch {torch.__version__}, bf16, channels-last; counts agree with those by hand.")
    print(f"Published peak {known or '–'} TFLOP/s; a large bf16 product reaches {peaks.measured / 1e12:.3g}.\n")
    print(line(HEADS), line(["---"] * len(HEADS)), sep="\n", flush=True)
    for side in map(int, options.sides.split(",")):
        for size in options.sizes.split(","):
            for cells in rows(side, size, device, options.seconds, peaks, options.eager):
                print(line(cells), flush=True)
        if side in STYLEGAN2:
            print(line(published_row(side)), flush=True)
    print(f"\n{SOURCE}")


if __name__ == "__main__":
    main()
