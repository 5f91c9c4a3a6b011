"""How much memory there is: of the machine, of the batch system's limit, of the GPU."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def available(device: torch.device | None = None) -> int:
    """Bytes that this process may still take, with those it has: the GPU's, or the machine's and the batch system's limit."""
    if device is not None and device.type == "cuda":
        import torch

        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    free = [left for left in (machine_memory(), *map(cgroup_left, cgroup_folders())) if left is not None]
    return min(free, default=2**62) + resident()


def resident() -> int:
    """Bytes of memory this process has now."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:  # not Linux
        return 0


def machine_memory() -> int | None:
    """Bytes that the machine can give without swapping; elsewhere than on Linux, half of what it has."""
    try:
        rows = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        return int(rows["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        names = os.sysconf_names if hasattr(os, "sysconf_names") else {}
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if "SC_PHYS_PAGES" in names else None


# (limit, used) of control groups, version 2 and 1.
CGROUP_FILES = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))


def cgroup_folders(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> list[Path]:
    """The control groups whose limits hold for this process: its own and all above."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return []
    found: list[Path] = []
    for _, controllers, path in lines:
        if controllers in ("", "memory"):
            top = root / controllers
            inside = top / path.lstrip("/")
            found += [
                folder for folder in dict.fromkeys((inside, *inside.parents)) if folder == top or top in folder.parents
            ]
    return found


def cgroup_left(folder: Path) -> int | None:
    """Bytes left below the limit of one control group, or None without one; cached files count as free."""
    for limit_name, used_name in CGROUP_FILES:
        try:
            limit, used = (folder / limit_name).read_text().strip(), int((folder / used_name).read_text())
            rows = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            continue
        if limit.isdigit() and int(limit) < 2**60:  # "max", or the largest number, is no limit
            return max(0, int(limit) - used + int(rows.get("total_inactive_file", rows.get("inactive_file", 0))))
    return None


def gigabytes(count: int) -> str:
    """A number of bytes in words."""
    return f"{count / 2**30:.1f} GB"
