"""The machine: seeds, device, threads, progress, interruption and atomic writes. Needs the standard library alone."""

from __future__ import annotations

import errno
import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from itertools import islice
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import torch

Task = TypeVar("Task")
Result = TypeVar("Result")


# ------------------------------------------------------------------------------------------------ seeds


def derive_seed(*parts: int | str) -> int:
    """One 63-bit seed from several parts, the same on every machine: `derive_seed(seed, "step", 7)`.

    Stages draw nothing from a global generator, so what is drawn depends on the parts alone and a resumed run
    needs no stored generator state.
    """
    text = json.dumps(parts, ensure_ascii=True).encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1


# ------------------------------------------------------------------------------------------------ machine


def choose_device(name: str = "auto") -> torch.device:
    """The torch device for "auto", "cpu", "cuda", "cuda:1" or "mps".

    Raises:
        ValueError: the named device is not on this machine.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(
            f"expected a device of this machine, got {name!r}: {error}. Use --device auto or cpu."
        ) from error
    return torch.device(name)


def cpu_count() -> int:
    """Cores this process may use: the affinity mask, as batch systems set it, and no more than OMP_NUM_THREADS."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wished = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores, int(wished)) if wished.isdigit() and int(wished) > 0 else cores


# ------------------------------------------------------------------------------------------------ processes

THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
# Below so many files one process is done before others have started.
FEWEST_FILES_FOR_WORKERS = 500


def worker_count(asked: int | None, files: int) -> int:
    """How many processes share the work: as asked, else all cores when there are many files, else this one alone."""
    return asked or (cpu_count() if files >= FEWEST_FILES_FOR_WORKERS else 1)


def ordered_map(function: Callable[[Task], Result], tasks: Sequence[Task], workers: int) -> Iterator[Result]:
    """function(task) of every task, in the tasks' order, at most two tasks a worker ahead of the reader.

    Args:
        function: of a module, so that other processes find it.
        tasks: its arguments.
        workers: processes; 1 works in this process.
    """
    done = 0
    workers = min(workers, len(tasks))
    main = getattr(sys.modules["__main__"], "__file__", None)
    if workers > 1 and (main is None or Path(main).exists()):  # other processes cannot import a script from a pipe
        # "spawn": no threads or locks of this process are copied, the same on every system.
        pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), initializer=_begin_worker)
        # One thread a process: libraries that start one a core each would fight for the cores. Read when they are loaded.
        before = {name: os.environ.get(name) for name in THREADS}
        os.environ.update(dict.fromkeys(THREADS, "1"))
        try:
            waiting: deque[Future[Result]] = deque()
            remaining = iter(tasks)
            waiting.extend(pool.submit(function, task) for task in islice(remaining, 2 * workers))
            while waiting:
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, task) for task in islice(remaining, 1))
                done += 1
                yield result
        except BrokenProcessPool:  # a script without the __main__ guard, or a worker killed for memory: go on alone
            pass
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
    for task in tasks[done:]:
        yield function(task)


def _begin_worker() -> None:
    """Ctrl-C reaches the parent alone; a parent that is killed takes its workers along."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


# ------------------------------------------------------------------------------------------------ files


def write_atomic(path: Path, content: bytes | str | Callable[[Path], None]) -> None:
    """Write a file so that a reader sees the old one or the whole new one, never a part.

    Args:
        path: the file; its folder is made if needed.
        content: the bytes, the text, or a function that writes them to the path it is given.

    Raises:
        OSError: with the way out, when the disk is full or the folder cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(partial)
        else:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    except BaseException as error:
        with suppress(OSError):  # a file in place of the folder makes even this fail
            partial.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise explain_os_error(error, path) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` of strict JSON (no NaN), indented for people."""
    write_atomic(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def explain_os_error(error: OSError, path: Path) -> OSError:
    """The same error in one sentence with the way out."""
    if error.errno == errno.ENOSPC:
        return OSError(
            errno.ENOSPC,
            f"no space left on the disk while writing {path}: free some space or choose another folder, then run the same command; it goes on from here",
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return OSError(
            error.errno, f"cannot write {path}: the folder is read-only for this user; choose another output folder"
        )
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return OSError(
            error.errno,
            f"cannot write {path}: a part of this path is a file, not a folder; choose another output folder",
        )
    return error


# ------------------------------------------------------------------------------------------------ interruption


class Interrupted(Exception):
    """Ctrl-C or SIGTERM came and the work was brought to a clean stop; the same command goes on."""


@contextmanager
def stop_flag() -> Iterator[Callable[[], bool]]:
    """Inside, Ctrl-C and SIGTERM only raise a flag, which the returned function reads; a second Ctrl-C is immediate.

    Launchers send several signals at once, so only a Ctrl-C a second after the first signal counts as the second one.
    Outside the main thread, where signals cannot be caught, the flag stays down.
    """
    seen: list[float] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if seen:
            if number == signal.SIGINT and time.monotonic() - seen[0] > 1.0:
                raise KeyboardInterrupt
            return
        seen.append(time.monotonic())
        print("\nstopping after this step (press Ctrl-C again to stop at once) ...", file=sys.stderr)

    try:
        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not the main thread
        previous = {}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------ progress


class Progress:
    """One progress bar on stderr: what runs, time left, rate, and words about quality.

    On a terminal with rich installed it is drawn in place; elsewhere (logs, bare hosts) it is one line now and then.
    """

    def __init__(self, title: str, total: int, unit: str = "images", quiet: bool = False) -> None:
        self.title, self.total, self.unit, self.quiet = title, max(total, 1), unit, quiet
        self.done = self._start_count = 0
        self.words = ""
        self._began = self._spoke = time.monotonic()
        self._bar: Any = None
        self._task: Any = None
        if not quiet and sys.stderr.isatty():
            try:
                from rich.console import Console
                from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
                from rich.progress import Progress as RichProgress
            except ImportError:
                return
            self._bar = RichProgress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.percentage:>3.0f}%"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[words]}"),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task(title, total=self.total, words="")
            self._bar.start()

    @property
    def rate(self) -> float:
        """Units a second since this bar began."""
        return (self.done - self._start_count) / max(time.monotonic() - self._began, 1e-9)

    def update(self, done: int, words: str | None = None) -> None:
        """Move to `done` of `total`; `words` replaces what stands at the end of the line."""
        self.done = done
        if words is not None:
            self.words = words
        if self.quiet:
            return
        text = f"{self.rate:.0f} {self.unit}/s  {self.words}".rstrip()
        if self._bar is not None:
            self._bar.update(self._task, completed=done, words=text)
        elif time.monotonic() - self._spoke > 15.0:
            self._spoke = time.monotonic()
            left = (self.total - done) / max(self.rate, 1e-9)
            print(
                f"{self.title}: {done}/{self.total} {self.unit}, {left / 60:.1f} min left, {text}",
                file=sys.stderr,
                flush=True,
            )

    def say(self, words: str) -> None:
        """One line of its own, at once, that stays above the bar."""
        if self.quiet:
            return
        if self._bar is not None:
            self._bar.console.print(f"{self.title}: {words}", markup=False, highlight=False)
        else:
            print(f"{self.title}: {words}", file=sys.stderr, flush=True)

    def resume(self, done: int) -> None:
        """Count the rate from `done` on: what an earlier start did took no time of this one."""
        self.done = self._start_count = done
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.stop()
