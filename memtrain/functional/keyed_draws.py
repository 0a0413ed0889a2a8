"""Random numbers that are a function of names alone: of a seed, a batch number and a sample's key.

Neither the process that a sample lands on nor its place in the batch changes what is drawn for it, so several processes
draw what one would, and a resumed run what an uninterrupted one would. Copies of one sample within a batch share their
draw.

Cost: about 5 µs per sample for :func:`uniform`, which draws on the host; one small kernel per sample for
:func:`normal`, which draws where the numbers are needed (a CPU and a GPU draw different ones).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*names: object) -> int:
    """A seed below 2⁶² that depends on `names`, their order and where one ends and the next begins."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big") >> 2


def uniform(seeds: Sequence[int], count: int) -> Tensor:
    """`(B, count)` on the host, each row from its own seed, from 0 to below 1."""
    generator = torch.Generator()
    rows = [torch.rand(count, generator=generator.manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, count)


def normal(seeds: Sequence[int], shape: Sequence[int], *, device: torch.device) -> Tensor:
    """`(B, *shape)` standard normal in fp32 on `device`, each row from its own seed."""
    generator = torch.Generator(device)
    rows = [torch.randn(*shape, generator=generator.manual_seed(seed), device=device) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape, device=device)
