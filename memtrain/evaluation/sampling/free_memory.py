"""Free memory of a device: a GPU's own count, or on a CPU the lower of the system's free memory and the job's limit."""

from __future__ import annotations

from pathlib import Path

import torch

MEMINFO = Path("/proc/meminfo")
GROUP, PROCESS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
"""Files of Linux with the available memory, and with the limit of a container or a job."""


def free_memory(device: torch.device) -> int | None:
    """Return the bytes that tensors can still take; None where they are unknown.

    Args:
        device: GPU (memory that torch has reserved but does not use counts as free) or CPU.
    """
    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + held
    if device.type != "cpu":
        return None
    known = [found for found in (_available(), _left_to_the_job()) if found is not None]
    return min(known, default=None)


def _available() -> int | None:
    try:
        lines = MEMINFO.read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, ValueError, StopIteration):
        return None


def _left_to_the_job() -> int | None:
    """Return the bytes left under the limits of the process's control group and its parent groups."""
    try:
        lines = PROCESS.read_text(encoding="ascii").splitlines()
        own = next(line[3:] for line in lines if line.startswith("0::"))
    except (OSError, ValueError, StopIteration):
        own = "/"
    place = GROUP / own.strip("/")
    groups = [group for group in (place, *place.parents) if group.is_relative_to(GROUP)]
    return min((left for left in map(_left, groups) if left is not None), default=None)


def _left(group: Path) -> int | None:
    """Return the bytes left under a group's limit; its cached files count as free."""
    try:
        limit = int((group / "memory.max").read_text(encoding="ascii"))  # "max" without a limit
        used = int((group / "memory.current").read_text(encoding="ascii"))
        lines = (group / "memory.stat").read_text(encoding="ascii").splitlines()
        cached = sum(int(line.split()[1]) for line in lines if line.startswith("inactive_file "))
        return limit - used + cached
    except (OSError, ValueError, IndexError):
        return None
