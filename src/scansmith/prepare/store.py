"""One scan to its stored images; the work that several processes share."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from .. import formats, intensity
from ..formats import Skipped, Source
from ..image import Image
from ..intensity import IntensityMap
from ..runtime import cpu_count, derive_seed
from .fingerprint import Plan, common_dtype, stores_grey_levels
from .slices import Placement, cut, is_mask, why_empty

# Below so many files one process is done before others have started.
FEWEST_FILES_FOR_WORKERS = 500
PICTURES_PER_TASK = 16
# For a scan's own window: so many voxels fix its percentiles well.
MOST_VOXELS = 2**20
# Around a CT slice that is smaller than the grid, HU.
AIR = -1024


@dataclass(frozen=True, slots=True)
class Stored:
    """What becomes of one scan.

    Attributes:
        images: (n, C, H, W) on the dataset's grid, physical units, the scan's own dtype.
        slices: number of each image along the scan's cut axis.
        affines: (4, 4) of each image as lists, or None when the file gives no geometry.
        spacing: [row, column] in mm of the stored images, or None.
        crop: [top, left, height, width] of the grid in the displayed slice's pixels.
        window: its intensity map; None for CT, which has one for the data set.
        values: voxels drawn from the kept slices, float32.
        hashes: SHA-256 of each stored image.
        empty: reason -> how many slices were dropped for it.
        broken: files of the series that cannot be read; their slices are missing.
    """

    images: np.ndarray
    slices: list[int]
    affines: list[list[list[float]] | None]
    spacing: list[float] | None
    crop: list[float]
    window: IntensityMap | None
    values: np.ndarray
    hashes: list[str]
    empty: dict[str, int]
    broken: list[Skipped] = field(default_factory=list)


def store(source: Source, plan: Plan, draws: int, seed: int) -> Stored | list[Skipped]:
    """Read one scan and bring it to the dataset's grid, or say which of its files are skipped and why."""
    runs, broken = formats.read_runs(source)
    if not runs:
        return broken
    stored = _store(runs, source, plan, draws, seed)
    if isinstance(stored, str):
        return [Skipped(source.files[0], stored), *broken]
    return replace(stored, broken=broken)


def _store(runs: list[tuple[int, Image]], source: Source, plan: Plan, draws: int, seed: int) -> Stored | str:
    """The stored images, or one sentence that says why the scan is skipped; `runs` as `formats.read_runs` gives them."""
    channels = runs[0][1].array.shape[0]
    if channels != plan.channels:
        return f"expected {plan.channels} channels, found {channels}"
    parts = [cut(image, source.format) for _, image in runs]
    # Of each slice: the run that holds it, its place there, and its number in the series.
    places = [(part, k, first + k) for (first, _), part in zip(runs, parts) for k in range(len(part.array))]
    slices = parts[0] if len(parts) == 1 else parts[0].with_array(np.concatenate([part.array for part in parts]))
    if slices.array.dtype.itemsize > 4 or not slices.array.dtype.isnative:
        slices = slices.with_array(slices.array.astype(common_dtype([slices.array.dtype])))
    if plan.skip_masks and is_mask(slices.array):
        return "expected a scan, found a mask (whole numbers, constant over areas): masks are left out"
    reasons = why_empty(slices, plan.modality, source.dimensions)
    kept = [k for k, reason in enumerate(reasons) if reason is None]
    if not kept:
        return f"expected a scan with contrast, found none worth learning from ({reasons[0]})"
    # An odd stride, so that the drawn voxels do not stand in one column.
    values = slices.array.ravel()[:: (slices.array.size // MOST_VOXELS) | 1]
    grey_levels = stores_grey_levels(slices.array.dtype, plan.modality, source.dimensions)
    by_scan = plan.modality != "CT" or grey_levels
    dtype = np.dtype(np.uint8 if grey_levels else np.float32)
    try:
        window = intensity.choose(plan.modality, values, dtype)[0] if by_scan else None
    except ValueError as error:  # all the drawn voxels are equal
        return str(error)
    place = Placement.choose(slices.array.shape[-2:], slices.spacing, (plan.height, plan.width), plan.spacing)
    images = place.apply(slices.array[kept], background(AIR if window is None else window.low, slices.array.dtype))
    known = slices.spacing is not None
    return Stored(
        images=images,
        slices=[places[k][2] for k in kept],
        affines=[np.round(place.affine(*places[k][:2]), 9).tolist() if known else None for k in kept],
        spacing=place.spacing(slices.spacing) if slices.spacing is not None else None,
        crop=[round(value, 6) for value in place.box],
        window=window,
        values=np.random.default_rng(seed).choice(images.ravel(), draws).astype(np.float32),
        hashes=[hashlib.sha256(one.astype(plan.dtype).tobytes()).hexdigest() for one in images],
        empty={reason: reasons.count(reason) for reason in reasons if reason is not None},
    )


def background(value: float, dtype: np.dtype) -> float:
    """What lies around a slice that is smaller than the grid: the window's lower end, as near as the dtype comes."""
    if np.issubdtype(dtype, np.integer):
        return float(np.clip(round(value), np.iinfo(dtype).min, np.iinfo(dtype).max))
    return value


Task = tuple[list[Source], Plan, int, list[int]]


def _work(task: Task) -> list[Stored | list[Skipped]]:
    sources, plan, draws, seeds = task
    return [store(source, plan, draws, seed) for source, seed in zip(sources, seeds)]


def store_all(
    sources: Sequence[Source], plan: Plan, workers: int | None, seed: int
) -> Iterator[Stored | list[Skipped]]:
    """`store` of every scan, in order, one scan (or one task a worker) in memory at a time.

    Args:
        sources: the scans.
        plan: the grid and the rest.
        workers: processes; None takes all cores when there are many files, else this process alone.
        seed: for the drawn voxels.
    """
    files = sum(len(source.files) for source in sources)
    count = workers or (cpu_count() if files >= FEWEST_FILES_FOR_WORKERS else 1)
    draws = int(np.clip(2_000_000 // len(sources), 64, 4096))
    size = PICTURES_PER_TASK if plan.dimensions == 2 else 1
    tasks: list[Task] = [
        (
            list(sources[start : start + size]),
            plan,
            draws,
            [derive_seed(seed, "values", start + i) for i in range(size)],
        )
        for start in range(0, len(sources), size)
    ]
    for results in _ordered(tasks, min(count, len(tasks))):
        yield from results


def _ordered(tasks: list[Task], count: int) -> Iterator[list[Stored | list[Skipped]]]:
    """Results in the tasks' order, at most two tasks a worker ahead of the reader."""
    done = 0
    if count > 1:
        # "spawn": no threads or locks of this process are copied, the same on every system.
        pool = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), initializer=_begin_worker)
        try:
            waiting: deque[Future[list[Stored | list[Skipped]]]] = deque()
            remaining = iter(tasks)
            waiting.extend(pool.submit(_work, task) for task in islice(remaining, 2 * count))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(_work, task) for task in islice(remaining, 1))
                done += 1
                yield result
        except BrokenProcessPool:  # a script without the __main__ guard, or a worker killed for memory: go on alone
            pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for task in tasks[done:]:
        yield _work(task)


def _begin_worker() -> None:
    """Ctrl-C reaches the parent alone; a parent that is killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
