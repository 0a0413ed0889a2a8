"""The exchange of values between processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def several() -> bool:
    """Return whether there are several processes."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def gather(rows: list[Any]) -> list[Any]:
    """Return the rows of every process in the order of ranks."""
    if not several():
        return rows
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]


def total(values: Tensor) -> Tensor:
    """Return the sum of a tensor over processes, on its device."""
    if several():
        values = values.clone()
        torch.distributed.all_reduce(values)
    return values


def together(values: Tensor) -> Tensor:
    """Join the columns of every process, `(rows, B)` to `(rows, B * processes)`, in the order of ranks.

    The result is on their device. Every process must have the same number of columns.
    """
    if not several():
        return values
    parts = [torch.empty_like(values) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, values.contiguous())
    return torch.cat(parts, dim=1)


def share_of_mean(kept: Tensor) -> Tensor:
    """Return the weight `()` of kept samples that turns the batch mean into the mean over kept samples.

    Args:
        kept: values `(B,)`, 1 for kept samples and 0 for the others. The batches of all processes count together.
    """
    counts = total(torch.stack([kept.new_full((), len(kept)), kept.sum()]))
    return counts[0] / counts[1].clamp(min=1)


def broadcast(value: Any) -> Any:
    """Return the value of the first process."""
    if not several():
        return value
    values = [value]
    torch.distributed.broadcast_object_list(values)
    return values[0]


def barrier() -> None:
    """Wait for every process."""
    if several():
        torch.distributed.barrier()
