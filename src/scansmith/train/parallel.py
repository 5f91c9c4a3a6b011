"""Several processes, one training: gradients are averaged after each backward pass by one flat all-reduce.

Plain modules instead of DistributedDataParallel, whose hooks do not go with gradient penalties and with two networks that
move in turns. Every draw is made for the global batch and then cut, so the number of processes changes rounding only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

# How long the others wait for the first, which alone probes, measures and writes. A process that is killed is noticed at
# once, by its closed connections; only a host that falls silent is noticed by this time.
TIMEOUT = timedelta(minutes=30)


@dataclass(frozen=True)
class Group:
    """The processes of one training, as one of them sees them.

    Attributes:
        rank: number of this process, 0 the first.
        size: number of processes.
        device: where this process computes.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def main(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of a global batch of `count`: equal shares, so that a mean of means is the mean.

        Raises:
            ValueError: `count` does not divide.
        """
        if count % self.size:
            fitting = [size for size in range(1, count + 1) if count % size == 0]
            raise ValueError(
                f"expected a number of processes that divides the batch of {count}, found {self.size}: start one of {fitting}"
            )
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def average(self, gradients: Sequence[Tensor], values: Mapping[str, float]) -> dict[str, float]:
        """Mean over the processes: of `gradients` in place, and of `values`, whose keys are the same everywhere.

        One all-reduce for all. Each process gets the same bits, so weights never drift apart and every process decides
        alike on what it finds in the values.

        Raises:
            RuntimeError: another process is gone.
        """
        if self.size == 1:
            return dict(values)
        device = gradients[0].device if gradients else torch.device("cpu")
        scalars = torch.tensor(list(values.values()), dtype=torch.float32, device=device)
        flat = torch.cat([*(gradient.detach().flatten().float() for gradient in gradients), scalars])
        with peers_needed():
            dist.all_reduce(flat)
            flat /= self.size
            *parts, means = flat.split([*(gradient.numel() for gradient in gradients), len(values)])
            if gradients:
                torch._foreach_copy_(list(gradients), [part.view(g.shape) for part, g in zip(parts, gradients)])
            return dict(zip(values, means.tolist()))

    def agree(self, value: Any) -> Any:
        """What the first process holds, everywhere; a value that JSON can say.

        Raises:
            RuntimeError: another process is gone.
        """
        if self.size == 1:
            return value
        content = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        length = torch.tensor([len(content)])
        with peers_needed():
            dist.broadcast(length, src=0)
            if not self.main:
                content = torch.empty(int(length), dtype=torch.uint8)
            dist.broadcast(content, src=0)
        return json.loads(content.numpy().tobytes())

    def leave(self) -> None:
        """End the connections; nothing when there are none."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()


def join(device: torch.device) -> Group:
    """The group that torchrun's environment names (RANK, WORLD_SIZE, LOCAL_RANK); without it, this process alone.

    gloo carries what lies in memory, NCCL what lies on CUDA devices, of which each process of a host takes its own.

    Raises:
        ValueError: the device cannot be shared among the processes.
        RuntimeError: the others cannot be reached.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "RANK" not in os.environ:
        return Group(device=device)
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        device = own_gpu(device, local, torch.cuda.device_count())
        torch.cuda.set_device(device)
    with peers_needed():
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    return Group(rank, size, device)


def own_gpu(device: torch.device, local: int, count: int) -> torch.device:
    """The CUDA device of process `local` on a host with `count` of them.

    Raises:
        ValueError: one device is named for all, or there are more processes than devices.
    """
    if device.index is not None:
        raise ValueError(
            f"expected --device cuda with several processes, each of which takes its own GPU, got {device}: choose GPUs by CUDA_VISIBLE_DEVICES"
        )
    if local >= count:
        raise ValueError(
            f"expected at most one process per GPU, found process {local + 1} on a host with {count}: start torchrun with --nproc-per-node {count}"
        )
    return torch.device("cuda", local)


@contextmanager
def peers_needed(within: bool = False) -> Iterator[None]:
    """Inside, what torch says of broken connections becomes one sentence; `within` other work, whose own errors pass."""
    try:
        yield
    except RuntimeError as error:  # of torch.distributed all are RuntimeErrors
        if within and not says_so(error):
            raise
        raise RuntimeError(
            "another process of this training ended or cannot be reached (its own message, if it left one, says why); start the same command again, it goes on from the last checkpoint"
        ) from error


def says_so(error: RuntimeError) -> bool:
    """Whether an error is one of a connection between processes: those of gloo have no class of their own."""
    return isinstance(error, dist.DistError) or any(word in str(error) for word in ("gloo", "NCCL"))
