"""The probe: times real steps on this machine and settles networks, grid, batch, precision, layout and length of a run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..dataset import Level
from ..preprocess import Grid
from ..runtime import cpu_count
from . import loop, memory, watch
from .feed import Images
from .objective import Batch, Task
from .objectives import OBJECTIVES
from .parallel import Group
from .recipes import ADVERSARY, SIZES, Recipe, Values, augmentation_strength, penalty_weight, resized, schedule
from .watchman import Watchman

SIDES = {2: (32, 64, 128, 256, 512), 3: (16, 24, 32, 48, 64, 96, 128, 192)}
FIRST = {2: 64, 3: 32}  # the grid that is timed first
PATCH = {2: 128, 3: 32}  # longest side of what a translation learns from at a time, at full resolution
# Of volumes a patch of 32 voxels inside a dark ventricle looks like the air around a head: where the minutes show so many steps, patches
# are larger, and one makes a batch (docs/log.md).
LARGE_PATCH, LARGE_STEPS = 64, 600
# The same without pairs: a judge of patches wants many steps. Phantoms, two minutes of one core: 266 HU, with 128 pixels 287.
UNPAIRED_PATCH = {2: 64, 3: 32}
# A grid is taken only if the minutes show this many images per pixel of its longer side: below, sharper is not better.
# Measured at 64 px: 20,000 hands are recognisable, with different poses (docs/log.md).
IMAGES_PER_PIXEL = 20_000 / 64
LIKE = "as the model that is started from"
# A tick takes as long as training on so many images, and so many more for each that it judges: measured at 32 and 64 px,
# where 256 of them cost 70 (docs/log.md).
TICK_COST, JUDGED_COST = 25.0, 0.2
WATCHED = 0.02  # share of a run that its ticks may take, above the fewest
FEWEST_TICKS, FEWEST_JUDGED = 4, 64
OVERHEAD = 0.05  # share of the training time that is no step: ticks and checkpoints


# A size is taken only if the minutes show this many images with it, in proportion to the longer side over 64 pixels, and if
# there are this many training images. The steps are a plan: sizes were not compared over hours.
IMAGES_FOR_SIZE = {"tiny": 0, "small": 500_000, "base": 3_000_000, "large": 15_000_000}
SCANS_FOR_SIZE = {"tiny": 0, "small": 0, "base": 1_000, "large": 50_000}
CLEARLY = 1.15  # times the fastest machine setting's seconds, within which the usual one is kept
LARGEST_BATCH = 256
COMPILED_FROM_S = 1800.0  # in shorter runs the half minute of compiling is not even tried
COMPILING_S = 30.0  # of a first time; another is quicker, and must not decide otherwise
REPAID = 2.0  # times its own cost that compiling must save over the run
TURNS = 6  # in which eager and compiled steps are timed
BATCH_GAIN = 1.25  # images/s that a doubled batch must bring


PAIRS_AUGMENTED = (
    "pairs are mirrored, turned and scaled alike, and a source of arbitrary scale is made brighter or darker"
)
APART_AUGMENTED = "patches of either kind are mirrored, turned and scaled"
# Objective -> what is augmented, and what is to be expected, where that is not said in figures.
AUGMENTED = {
    "autoencoding": "no discriminator: nothing is augmented",
    "translation": f"regression; {PAIRS_AUGMENTED}",
    "segmentation": PAIRS_AUGMENTED,
    "contrastive": f"a discriminator of patches, and places that must stay recognisable; {APART_AUGMENTED}",
    "cycle": f"two discriminators of patches, and a way back; {APART_AUGMENTED}",
}
# Field of a recipe -> who helps a translation to learn.
HELPERS = {
    "adversary": f"a discriminator judges texture from {ADVERSARY[0]:.0%} of the run on: sharper, at a price in error that is printed at the end",
    "registered": "many pairs lie more than a voxel apart: a small network learns by how much, so that the translation need not blur",
}
APART = "without pairs no error can be measured: the log says how far outputs are from real targets; judge the model on a few pairs before it is used"
FORESEEN = {
    "translation": "the log says the error on validation patients beside that of a straight line from source to target",
    "segmentation": "the log says the Dice coefficient on validation patients",
    "contrastive": APART,
    "cycle": APART,
}


@dataclass(frozen=True)
class Probe:
    """What the probe found.

    Attributes:
        recipe: whole but for its length.
        step_s: seconds of one step.
        reasons: why, in words.
        classes, dimensions: of the task.
    """

    recipe: Recipe
    step_s: float
    reasons: tuple[str, ...]
    classes: int = 0
    dimensions: int = 2

    def images_in(self, seconds: float) -> int:
        """Images that so many seconds of training show, ticks taken off."""
        return int(seconds * (1.0 - OVERHEAD) / self.step_s) * self.recipe.batch

    def learning(self, train_images: int) -> Probe:
        """The same for so many training images: `run` probes before they are counted."""
        recipe = replace(self.recipe, train_images=train_images)
        if self.recipe.augment == augmentation_strength(self.recipe.train_images):
            recipe = replace(recipe, augment=augmentation_strength(train_images))
        return replace(self, recipe=recipe)

    def lasting(self, images: int) -> tuple[Recipe, list[str]]:
        """The whole recipe for a run of `images`, at least one step per tick, and all reasons."""
        ticks, judged = watching(images, self.recipe.ticks)
        recipe = replace(self.recipe, images=max(images, ticks * self.recipe.batch), ticks=ticks, judged=judged)
        times = recipe.images / max(recipe.train_images, 1)
        augmented = AUGMENTED.get(recipe.objective) or (
            f"{penalty_words(recipe)}; augmentation up to {recipe.augment:.2f} for {recipe.train_images:,} training images"
        )
        length = f"{recipe.images:,} images shown ({times:.0f} times each of {recipe.train_images:,}), about {recipe.images / self.recipe.batch * self.step_s / 60:.1f} min at {self.recipe.batch / self.step_s:.0f} images/s"
        words = [said for wish, said in HELPERS.items() if getattr(recipe, wish)]
        expected = expectation(recipe, self.classes, self.dimensions)
        return recipe, [*self.reasons, augmented, *words, length, expected]


def watching(images: int, most: int) -> tuple[int, int]:
    """How often a run of so many images is looked at, `most` times at most, and how many images are judged each time.

    `WATCHED` of the time, unless the fewest of both take more.
    """
    granted = WATCHED * images
    ticks = min(most, max(FEWEST_TICKS, int(granted / (TICK_COST + JUDGED_COST * watch.MOST))))
    judged = int((granted / ticks - TICK_COST) / JUDGED_COST)
    return ticks, min(watch.MOST, max(FEWEST_JUDGED, judged))


@dataclass(frozen=True)
class Expected:
    """What runs of the default recipe reached that had shown `share` of the images that their grid needs, or more.

    Attributes:
        share: of `IMAGES_PER_PIXEL` times the longer side.
        looks: in words.
        ratio: lowest and highest Fréchet distance to held-out images over that of training images.
        recall: lowest and highest share of the variety of held-out images that samples reach; real ones have about .95.
    """

    share: float
    looks: str
    ratio: tuple[float, float]
    recall: tuple[float, float]


# Held-out figures of docs/benchmarks.md and docs/log.md: 7,760 to 131,000 images shown of 100 to 1,800 hands, CT, and four kinds.
EXPECTED = (
    Expected(0.0, "shapes without detail", (1.2, 2.9), (0.2, 0.5)),
    Expected(0.38, "recognisable anatomy with soft or wrong texture", (1.1, 2.1), (0.4, 0.7)),
    Expected(1.5, "crisp images at first sight, which a trained classifier still tells from real ones", (0.9, 1.7), (0.55, 0.85)),
    Expected(5.0, "images close to real ones at this size; the evaluation says how close", (0.9, 1.6), (0.6, 0.85)),
)  # fmt: skip
FEWEST_MEASURED, MOST_CLASSES_MEASURED = 100, 4  # training images and classes of those runs
FEWEST_IN_CLASS = 500  # training images; the smallest class that was measured


def expectation(recipe: Recipe, classes: int = 0, dimensions: int = 2) -> str:
    """What to expect of so many images shown on this grid, from so many training images of so many classes."""
    if recipe.objective in FORESEEN:
        return FORESEEN[recipe.objective]
    if recipe.name != "relativistic":
        return "a relative of the default recipe, kept to compare with: expect less of it"
    share = recipe.images / (IMAGES_PER_PIXEL * recipe.target)
    found = next(one for one in reversed(EXPECTED) if share >= one.share)
    said = f"expect {found.looks}: a Fréchet distance of {found.ratio[0]:.1f} to {found.ratio[1]:.1f} times that of real images, and {found.recall[0]:.0%} to {found.recall[1]:.0%} of their variety (real ones reach 95%)"
    return "; ".join([said, *doubts(recipe, share, classes, dimensions)])


def doubts(recipe: Recipe, share: float, classes: int, dimensions: int) -> list[str]:
    """Why less is to be expected than of the runs that were measured, and what would help."""
    count, unit = recipe.train_images, "images" if dimensions == 2 else "volumes"
    found = []
    if share < EXPECTED[1].share:
        found.append("more minutes or a smaller --side would help")
    if count < FEWEST_MEASURED:
        found.append(
            f"less variety, since {count:,} training {unit} are fewer than the {FEWEST_MEASURED} behind these figures: more scans, or --from another model"
        )
    if classes and count / classes < FEWEST_IN_CLASS:
        found.append(
            f"less within a class, since {count / classes:,.0f} {unit} a class are fewer than the {FEWEST_IN_CLASS} of the smallest class measured"
        )
    if classes > MOST_CLASSES_MEASURED:
        found.append(f"less with {classes} classes, since {MOST_CLASSES_MEASURED} are the most that were measured")
    if dimensions == 3:
        found.append(
            "of volumes only hippocampi of 24 x 32 x 24 voxels were measured (1.2 and 65%), with right shapes and noisy texture"
        )
    return found


def probe(
    base: Recipe,
    task: Task,
    seconds: float,
    side: int | None,
    device: torch.device,
    size: str = "auto",
    processes: int = 1,
    size_words: str = "",
) -> Probe:
    """Settle all but the length of a run by timing real steps, within about 2 % of the time: 12 s at most, in runs of half an hour
    or more a minute, since compiling is tried there.

    Args:
        base: a row of `RECIPES` with the seed.
        seconds: for training; decides the grid.
        side: longest side of the training grid; None lets the minutes decide.
        size: of the networks; "auto" lets the minutes decide.
        processes: that share each batch.
        size_words: why the networks have that size; default: as asked.

    Raises:
        ValueError: what is asked for does not fit into memory.
    """
    base = replace(base, ticks=max(FEWEST_TICKS, min(base.ticks, int(seconds / 25.0))))
    base = resized(base, "tiny" if size == "auto" else size)
    native = task.like.side if task.like else max(task.size)
    asked = LIKE if task.like else "patches at full resolution" if task.made and not side else "as asked"
    patch = UNPAIRED_PATCH if base.task == "unpaired" else PATCH
    growing = bool(task.made and len(task.size) == 3 and not side and not task.like and base.task != "unpaired")
    side = side or (patch[len(task.size)] if task.made else None)
    clock = Clock(task, device, processes)
    first = for_grid(base, task, min(side or FIRST[len(task.size)], native))
    if side or size != "auto":
        # In the leanest precision: what does not fit so does not fit at all, and is not even timed.
        lean = replace(first, precision="bf16")
        memory.refuse_if_too_large(lean, task, task.grid(first.target), device, processes)
    recipe, step_s = fastest_machine(first, clock, budget_s=min(9.0, 0.012 * seconds))
    layout = "channels-last" if recipe.channels_last else "NCHW"
    reasons = [f"{recipe.precision}, {layout}, {recipe.threads or 'default'} threads: the fastest this machine offers"]
    if not side:
        target = affordable(task, first.target, recipe.batch / step_s, seconds)
        while target > first.target and not fits(for_grid(recipe, task, target), clock):
            target //= 2
        if target != first.target:
            recipe = for_grid(
                replace(recipe, gamma=base.gamma, gamma_end=base.gamma_end, batch=base.batch), task, target
            )
            step_s = clock.time(recipe, budget_s=min(5.0, 0.006 * seconds))
    if growing:
        recipe, step_s = largest_patch(recipe, step_s, clock, seconds, native)
    if size == "auto":
        recipe, step_s = affordable_size(recipe, step_s, clock, seconds)
    if device.type == "cuda":
        recipe, step_s = largest_batch(recipe, step_s, clock, seconds)
    if seconds >= COMPILED_FROM_S and processes == 1 and recipe.objective == "synthesis":
        recipe, step_s, words = compiled_if_it_pays(recipe, step_s, clock, seconds)
        reasons.append(words)
    grid, shown = task.grid(recipe.target), recipe.batch / step_s * seconds * (1.0 - OVERHEAD)
    memory.refuse_if_too_large(recipe, task, grid, device, processes)
    needs = memory.needed(recipe, task, grid, processes, device.type)
    held = f", images as {' x '.join(map(str, grid.box))} in it" if grid.box != grid.shape else ""
    reasons += [
        f"{' x '.join(map(str, grid.shape))} {'pixels' if grid.dimensions == 2 else 'voxels'} (stored: {' x '.join(map(str, task.size))}{held}): {asked if side else reason_for(recipe.target, shown)}",
        f"size {recipe.size} ({recipe.generator}, width {recipe.width}): {(size_words or 'as asked') if size != 'auto' else 'the largest that the minutes show enough images'}; batch {recipe.batch}; needs about {needs / 2**30:.1f} GB of memory",
    ]
    return Probe(recipe, step_s, tuple(reasons), task.classes, len(task.size))


def penalty_words(recipe: Recipe) -> str:
    """The penalty on D's gradient, for the plan."""
    if recipe.penalty == "none":
        return "no gradient penalty, as published"
    kind = "R1 + R2" if recipe.penalty == "r1r2" else "interpolated penalty"
    return f"{kind}, gamma {recipe.gamma:.3g} -> {recipe.gamma_end:.3g}"


def for_grid(base: Recipe, task: Task, target: int) -> Recipe:
    """The recipe with what follows from data and grid: penalty weight, augmentation, batch."""
    side = task.grid(target).side
    gamma = base.gamma if base.gamma >= 0 else penalty_weight(side, task.channels)
    large = side > (128 if len(task.size) == 2 else 32)
    return replace(
        base,
        target=target,
        train_images=task.train_images,
        gamma=gamma,
        gamma_end=base.gamma_end if base.gamma_end >= 0 else gamma / 10.0,
        augment=base.augment if base.augment >= 0 else augmentation_strength(task.train_images),
        batch=min(base.batch, 16) if large else base.batch,
    )


def fits(recipe: Recipe, clock: Clock) -> bool:
    """Whether training so fits into the memory of the device, with the processes that share it."""
    task, device = clock.task, clock.device
    grid = task.grid(recipe.target)
    needs = memory.shared(recipe, task, grid, device, clock.processes)
    return needs <= memory.available(device)


def affordable(task: Task, timed: int, rate: float, seconds: float) -> int:
    """The largest target on which the time shows enough images; a step's time goes with the pixels."""
    native = max(task.size)
    targets = sorted({min(side, native) for side in SIDES[len(task.size)]})

    def images(target: int) -> float:
        return rate * task.grid(timed).pixels / task.grid(target).pixels * seconds * (1.0 - OVERHEAD)

    return max((target for target in targets if images(target) >= IMAGES_PER_PIXEL * target), default=targets[0])


def largest_patch(recipe: Recipe, step_s: float, clock: Clock, seconds: float, native: int) -> tuple[Recipe, float]:
    """Patches of volumes as large as the minutes show enough steps with, one to a process, and the seconds of a step."""
    larger = replace(recipe, batch=clock.processes, target=min(LARGE_PATCH, native))
    now, then = (clock.task.grid(one.target).pixels * one.batch for one in (recipe, larger))
    if larger.target <= recipe.target or seconds < LARGE_STEPS * step_s * then / now or not fits(larger, clock):
        return recipe, step_s
    larger_s = clock.time(larger, budget_s=min(5.0, 0.006 * seconds))
    return (larger, larger_s) if seconds >= LARGE_STEPS * larger_s else (recipe, step_s)


def affordable_size(recipe: Recipe, step_s: float, clock: Clock, seconds: float) -> tuple[Recipe, float]:
    """The largest networks with which the time shows enough images and which fit into memory, and the seconds of a step."""
    for size in list(SIZES)[1:]:
        needed = IMAGES_FOR_SIZE[size] * recipe.target / 64
        shown = recipe.batch / step_s * seconds * (1.0 - OVERHEAD)
        larger = resized(recipe, size)
        # A larger size is never faster: what the smaller one does not reach needs no timing.
        if shown < needed or recipe.train_images < SCANS_FOR_SIZE[size] or not fits(larger, clock):
            break
        larger_s = clock.time(larger, budget_s=min(5.0, 0.006 * seconds))
        if recipe.batch / larger_s * seconds * (1.0 - OVERHEAD) < needed:
            break
        recipe, step_s = larger, larger_s
    return recipe, step_s


def largest_batch(recipe: Recipe, step_s: float, clock: Clock, seconds: float) -> tuple[Recipe, float]:
    """On a GPU: double the batch while that shows clearly more images a second, leaves 10,000 steps and fits into memory."""
    while recipe.batch < LARGEST_BATCH:
        larger = replace(recipe, batch=2 * recipe.batch)
        if seconds / step_s / 2.0 < 10_000 or not fits(larger, clock):
            break
        larger_s = clock.time(larger, budget_s=min(3.0, 0.004 * seconds))
        if larger.batch / larger_s < BATCH_GAIN * recipe.batch / step_s:
            break
        recipe, step_s = larger, larger_s
    return recipe, step_s


def reason_for(target: int, images: float) -> str:
    """Why this grid, in words."""
    needed = f"{IMAGES_PER_PIXEL * target:,.0f} images"
    if images < IMAGES_PER_PIXEL * target:
        return f"the smallest grid, though the minutes do not show the {needed} that it needs: more minutes are better"
    return f"the largest grid on which the minutes show enough images ({needed})"


def fastest_machine(recipe: Recipe, clock: Clock, budget_s: float) -> tuple[Recipe, float]:
    """The fastest of bf16 and fp32, channels-last and NCHW, all or half the cores, and its seconds a step.

    The candidates take turns, so that a busy moment of the machine meets all alike. Each is judged by the lower quartile of
    its steps, since other work only ever adds time. What fails here, or is three times slower, is left out.
    """
    cores = cpu_count() if clock.device.type == "cpu" else 0
    usual = replace(recipe, precision="bf16", channels_last=True, threads=cores)
    plain = replace(usual, precision="fp32")
    candidates = [usual, plain, replace(plain, channels_last=False)]
    if cores >= 2:  # where other work keeps cores busy, threads wait for each other: two were ten times slower than one
        candidates.append(replace(usual, threads=cores // 2))
    steps = {candidate: clock.stepper(candidate) for candidate in candidates}
    times: dict[Recipe, list[float]] = {candidate: [] for candidate in candidates}
    began, rounds = time.monotonic(), 0

    def spent() -> float:
        return time.monotonic() - began

    # Two rounds at least; more where steps are not so slow that they would eat the minutes.
    while rounds < 2 or spent() < budget_s or (rounds < 4 and spent() < 2.0 * budget_s):
        for candidate in list(steps):
            try:
                seconds = steps[candidate]()
            except RuntimeError:  # an operator without this precision or layout on this machine
                del steps[candidate], times[candidate]
                continue
            if rounds > 0:  # the first step warms up
                times[candidate].append(seconds)
        rounds += 1
        if rounds == 3:
            least = min(min(values) for values in times.values())
            steps = {candidate: step for candidate, step in steps.items() if min(times[candidate]) < 3.0 * least}
    seconds_of = {candidate: quartile(times[candidate]) for candidate in steps}
    fastest = min(seconds_of, key=seconds_of.__getitem__)
    # The first that nothing beats clearly: a second start on a noisy machine should choose the same.
    chosen = next(one for one in candidates if one in steps and seconds_of[one] < CLEARLY * seconds_of[fastest])
    return chosen, seconds_of[chosen]


def compiled_if_it_pays(recipe: Recipe, step_s: float, clock: Clock, seconds: float) -> tuple[Recipe, float, str]:
    """Compile the generator where what that saves over the run repays what it costs; the recipe, seconds a step, why."""
    compiled, began = replace(recipe, compiled=True), time.monotonic()
    try:
        steps = [clock.stepper(recipe), clock.stepper(compiled)]
        for step in steps:
            step()
        cost_s = max(COMPILING_S, time.monotonic() - began)
        times = [[step() for step in steps] for _ in range(TURNS)]  # in turns
    except Exception as error:  # too little memory for both, an operator that it does not know: no reason not to train
        return recipe, step_s, f"not compiled: {type(error).__name__} when it was tried"
    plain_s, compiled_s = (quartile(list(one)) for one in zip(*times))
    saved = seconds * (1.0 - compiled_s / plain_s)
    words = f"saves {saved:.0f} s of the run and costs {cost_s:.0f} s"
    if saved < REPAID * cost_s:
        return recipe, plain_s, f"not compiled: that {words}"
    return compiled, compiled_s, f"the generator is compiled: that {words}"


def quartile(values: list[float]) -> float:
    """The lower quartile."""
    return float(np.quantile(values, 0.25))


@dataclass(frozen=True)
class Clock:
    """Times whole training steps on noise.

    Attributes:
        task: the shape of the data.
        device: where the steps run.
        processes: that share each batch; one does its share here.
    """

    task: Task
    device: torch.device
    processes: int = 1

    def time(self, recipe: Recipe, budget_s: float) -> float:
        """Seconds of a step: the lower quartile, after the first, which warms up."""
        step, began = self.stepper(recipe), time.monotonic()
        times: list[float] = []
        while len(times) < 2 or time.monotonic() - began < budget_s:
            times.append(step())
        return quartile(times[1:])

    def stepper(self, recipe: Recipe) -> Callable[[], float]:
        """A function that does `critic_steps` whole training steps, of one player and of all, and returns the seconds of one."""
        task, grid, device = self.task, self.task.grid(recipe.target), self.device
        recipe = replace(recipe, batch=max(1, recipe.batch // self.processes), images=10 * recipe.batch)
        objective = OBJECTIVES[recipe.objective](recipe, task, grid)
        loop.prepare_machine(objective, recipe, device)
        optimizers = {name: loop.adam(network, recipe) for name, network in loop.players(objective).items()}
        group, watchman = Group(device=device), Watchman(replace(recipe, watch=False))
        draw = batches_of_noise(recipe, task, grid, group)

        def steps() -> float:
            if recipe.threads:
                torch.set_num_threads(recipe.threads)
            start = time.perf_counter()
            for step in range(recipe.critic_steps):
                now = schedule(recipe, recipe.images)
                batch = draw(step, now)
                for name in loop.moving(objective, recipe, step):
                    loop.update(name, batch, objective, optimizers[name], recipe, now, group, watchman)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            return (time.perf_counter() - start) / recipe.critic_steps

        return steps


def batches_of_noise(recipe: Recipe, task: Task, grid: Grid, group: Group) -> Callable[[int, Values], Batch]:
    """What gives the batch of a step, drawn from noise as training draws it."""
    noise = np.random.default_rng(0).uniform(-1.0, 1.0, (recipe.batch, task.channels, *grid.shape)).astype(np.float32)
    if task.made:
        batch = memory.some_batch(recipe, recipe.batch, task, grid)
        assert batch.target is not None and batch.weight is not None
        whole = replace(
            batch,
            images=torch.from_numpy(noise).to(group.device),
            target=torch.zeros_like(batch.target, device=group.device),
            weight=torch.ones_like(batch.weight, device=group.device),
        )
        return lambda step, now: whole
    level = Level(noise, np.full(recipe.batch, -1.0, np.float32), np.ones(recipe.batch, np.float32))
    classes = np.arange(recipe.batch) % task.classes if task.classes else None
    data = Images(level, np.arange(recipe.batch), classes, None)
    return lambda step, now: data.draw(recipe, step, group, now)
