"""Several processes: the same losses as one, going on with another number of them, and a clear end when one dies."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import distributed as dist

from scansmith import dataset
from scansmith.preprocess import Grid
from scansmith.runtime import Progress
from scansmith.train import feed, loop, parallel
from scansmith.train.checkpoint import read_log
from scansmith.train.objective import Task
from scansmith.train.objectives import OBJECTIVES
from scansmith.train.parallel import Group, join, own_gpu
from scansmith.train.recipes import RECIPES, Recipe

STEPS, HALF = 20, 10
# One tick a step: the log has the losses of every step. Not bf16, whose rounding depends on how the batch is cut.
RECIPE = Recipe(
    width=8, latent=8, batch=8, images=8 * STEPS, ticks=STEPS, gamma=0.1, gamma_end=0.01, augment=0.5, precision="fp32",
    threads=1, train_images=24, target=16, patience=0.0,
)  # fmt: skip
LOSSES = ("loss_d", "loss_g", "gap", "r1", "r2")
# Other families: what they log, what is theirs, and how alike their losses stay: WGAN-GP's, near zero, to the bit for six
# steps; then Adam makes whole steps of the rounding of tiny gradients.
FAMILIES = {
    "wasserstein": (("loss_d", "gap", "r1"), {"critic_steps": 1}, 1e-3),
    "vae": (("loss_g", "reconstruction", "kl"), {}, 1e-5),
    "dcgan": (("loss_d", "loss_g", "gap"), {}, 1e-5),
}

# What each of two processes does: whole and broken-off trainings, then one in which the second process is killed.
WORKER = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_parallel import FAMILIES, HALF, STEPS, begin, fit, of_family

root, group = Path(sys.argv[2]), begin()
fit(root / "two", group)
fit(root / "one_then_two", group)
fit(root / "two_then_one", group, HALF)
for name in FAMILIES:
    fit(root / f"{name}-two", group, recipe=of_family(name))
(root / f"said-{group.rank}.json").write_text(json.dumps(group.agree({"rank": [group.rank]})))
try:
    try:
        fit(root / "killed", group, HALF if group.rank == 1 else STEPS, dies=True)
    finally:
        group.leave()
except RuntimeError as error:
    print("scansmith:", error, file=sys.stderr, flush=True)
    sys.exit(1)
"""


class Killer(Progress):
    """Ends a training in the midst of a step, after the weights moved: by an exception, or with the whole process."""

    def __init__(self, until: int, dies: bool) -> None:
        super().__init__("test", RECIPE.images, quiet=True)
        self.until, self.dies = until, dies

    def update(self, done: int, words: str | None = None) -> None:
        if done > self.until * RECIPE.batch:
            if self.dies:  # like a process that the system kills for memory
                os.kill(os.getpid(), signal.SIGKILL)
            raise KeyboardInterrupt


def begin() -> Group:
    torch.set_num_threads(1)
    return join(torch.device("cpu"))


def of_family(name: str) -> Recipe:
    """The recipe of another family, as small and as short."""
    small = {key: getattr(RECIPE, key) for key in ("width", "latent", "batch", "images", "ticks", "precision", "threads", "train_images", "target", "patience")}  # fmt: skip
    return replace(RECIPES[name], **small, watch=False, augment=0.0 if name == "vae" else 0.5, **FAMILIES[name][1])


def fit(run: Path, group: Group, until: int = STEPS, dies: bool = False, recipe: Recipe = RECIPE) -> None:
    """Train in `run` on the dataset beside it, to the end or into the step after `until`."""
    opened = dataset.Dataset.open(run.parent / "dataset")
    grid, rows = Grid.choose((16, 16), 16), opened.rows("train")
    data = feed.Images(opened.level(grid), rows, opened.classes()[rows], None)
    torch.manual_seed(0)
    objective = OBJECTIVES[recipe.objective](recipe, Task(1, grid.shape, 2, 20), grid)
    try:
        loop.fit(objective, recipe, data, run, group, float("inf"), Killer(until, dies))
    except KeyboardInterrupt:
        assert until < STEPS


def make_dataset(root: Path) -> None:
    """32 discs in two classes; too few for a measure of quality, so that ticks are quick."""
    random, count = np.random.default_rng(0), 32
    rows, columns = np.mgrid[:16, :16]
    shapes = [(rows - y) ** 2 + (columns - x) ** 2 < r**2 for y, x, r in random.uniform(4, 9, (count, 3))]
    split = ["train"] * 24 + ["validation"] * 4 + ["holdout"] * 4
    values = {"case": [f"c{i}" for i in range(count)], "slice": [0] * count, "patient": [f"p{i}" for i in range(count)],
              "split": split, "label": ["ab"[i % 2] for i in range(count)], "spacing": [[1.0, 1.0, 1.0]] * count,
              "low": [0.0] * count, "high": [255.0] * count, "units": ["a.u."] * count, "affine": [np.eye(4)] * count}  # fmt: skip
    info = {"modality": "OT", "units": "a.u.", "labels": ["a", "b"], "spacing": [1.0, 1.0], "source_format": "png",
            "hash": "d" * 16}  # fmt: skip
    dataset.write(root, info, values, (np.uint8(200 * s)[None] for s in shapes), np.dtype(np.uint8), (1, 16, 16))


def losses(run: Path, names: tuple[str, ...] = LOSSES) -> np.ndarray:
    """(steps, losses) of the log."""
    rows = [row for row in read_log(run / "log.jsonl") if row["kind"] == "tick"]
    assert [row["images"] for row in rows] == [RECIPE.batch * (step + 1) for step in range(STEPS)]
    return np.array([[row[name] for name in names] for row in rows])


def assert_equal_to_rounding(found: np.ndarray, expected: np.ndarray, within: float = 1e-5) -> None:
    """Within 1e-5 of the size that each loss has in the run; the gap passes through zero."""
    np.testing.assert_array_less(np.abs(found - expected) / np.abs(expected).max(axis=0), within)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the dataset, a run of one process, and one that was broken off."""
    root = tmp_path_factory.mktemp("runs")
    make_dataset(root / "dataset")
    fit(root / "one", Group())
    fit(root / "one_then_two", Group(), HALF)
    return root


@pytest.fixture(scope="module")
def pair(root: Path) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun, run to the end of `WORKER`."""
    (root / "worker.py").write_text(WORKER)
    command = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", root / "worker.py"]
    return subprocess.run(
        [sys.executable, "-m", *map(str, command), str(Path(__file__).parent), str(root)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "default"},
        capture_output=True, text=True, timeout=100,
    )  # fmt: skip


def test_two_processes_train_as_one_and_go_on_where_one_or_two_stopped(
    root: Path, pair: subprocess.CompletedProcess[str]
):
    fit(root / "two_then_one", Group())
    expected = losses(root / "one")
    assert len(np.unique(expected[:, 0])) == STEPS
    for run in ("two", "one_then_two", "two_then_one"):
        assert_equal_to_rounding(losses(root / run), expected)


def test_what_the_first_process_holds_is_held_by_all(root: Path, pair: subprocess.CompletedProcess[str]):
    assert [json.loads((root / f"said-{rank}.json").read_text()) for rank in (0, 1)] == [{"rank": [0]}] * 2


@pytest.mark.parametrize("name", FAMILIES)
def test_other_families_are_learned_alike_by_two_processes(
    name: str, root: Path, pair: subprocess.CompletedProcess[str]
):
    names, _, within = FAMILIES[name]
    fit(root / f"{name}-one", Group(), recipe=of_family(name))
    assert_equal_to_rounding(losses(root / f"{name}-two", names), losses(root / f"{name}-one", names), within)


def test_connections_end_when_the_group_is_left():
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    Group(0, 2).leave()
    assert not dist.is_initialized()
    Group(0, 2).leave()


def test_a_killed_process_ends_the_job_with_a_sentence_and_a_checkpoint_that_goes_on(
    root: Path, pair: subprocess.CompletedProcess[str]
):
    assert pair.returncode != 0
    sentences = [line for line in pair.stderr.splitlines() if line.startswith("scansmith:")]
    assert len(sentences) == 1
    assert "another process of this training ended" in sentences[0]
    assert "start the same command again" in sentences[0]
    fit(root / "killed", Group())
    assert_equal_to_rounding(losses(root / "killed"), losses(root / "one"))


def test_shares_of_a_batch_cover_it_once_and_uneven_ones_are_refused():
    shares = [list(range(12))[Group(rank, 4).part(12)] for rank in range(4)]
    assert [len(share) for share in shares] == [3] * 4
    assert [number for share in shares for number in share] == list(range(12))
    with pytest.raises(ValueError, match=r"divides the batch of 32, found 3: start one of \[1, 2, 4, 8, 16, 32\]"):
        Group(0, 3).part(32)


def test_one_process_alone_averages_and_agrees_with_itself(monkeypatch: pytest.MonkeyPatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    group, gradient = join(torch.device("cpu")), torch.tensor([1.0, 2.0])
    assert (group, group.main) == (Group(), True)
    assert group.average([gradient], {"loss": 3.0}) == {"loss": 3.0}
    assert gradient.tolist() == [1.0, 2.0]
    assert group.agree({"a": None}) == {"a": None}
    group.leave()


def test_each_process_of_a_host_takes_its_own_gpu():
    assert own_gpu(torch.device("cuda"), 1, 2) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="CUDA_VISIBLE_DEVICES"):
        own_gpu(torch.device("cuda:1"), 0, 2)
    with pytest.raises(ValueError, match="--nproc-per-node 2"):
        own_gpu(torch.device("cuda"), 2, 2)


def test_processes_that_do_not_find_one_another_say_so(monkeypatch: pytest.MonkeyPatch):
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "none"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises((RuntimeError, ValueError)):
        join(torch.device("cpu"))


def test_a_broken_connection_within_a_step_is_said_and_other_errors_pass():
    with (
        pytest.raises(RuntimeError, match="another process of this training ended"),
        parallel.peers_needed(within=True),
    ):
        raise RuntimeError("[gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer")
    with pytest.raises(RuntimeError, match="out of memory"), parallel.peers_needed(within=True):
        raise RuntimeError("CUDA out of memory")
