"""Random numbers that are a function of names alone: of a seed, a batch number and a sample's key.

Neither the process that a sample lands on nor its place in the batch changes what is drawn for it, so several processes
draw what one would, and a resumed run what an uninterrupted one would. Copies of one sample within a batch share their
draw.

Where a name is one text, :func:`hash_order` puts samples into a random order and :func:`hash_numbers` draws for one of
them, both without a generator, the same on every machine and with every release of torch.

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


def seed_of_text(name: str) -> int:
    """A seed below 2⁶⁰ that depends on one text."""
    return int(hashed(name)[:15], 16)


def mixed_seed(seed: int, *counters: int) -> int:
    """A seed below 2⁶² that depends on `seed` and every counter in turn, through torch's own mixing.

    Args:
        seed: of a run.
        counters: such as the number of the batch and the rank.
    """
    mixed = torch.Generator().manual_seed(seed)
    for counter in counters:
        state = int(torch.randint(2**62, (1,), generator=mixed))
        mixed.manual_seed((state + counter) % 2**62)
    return mixed.initial_seed()


def hashed(name: str) -> str:
    """SHA-256 of a text in hexadecimal: a name to sort by, whose order is random."""
    return hashlib.sha256(name.encode()).hexdigest()


def hash_order(key: str, salt: str) -> str:
    """A position in a random order of keys, another one for every salt."""
    return hashed(f"{salt}\0{key}")


def hash_numbers(name: str, count: int) -> list[float]:
    """`count` uniform numbers in [0, 1), the same for the same name on every machine."""
    digest = hashlib.shake_256(name.encode()).digest(4 * count)
    return [int.from_bytes(digest[start : start + 4], "big") / 2**32 for start in range(0, 4 * count, 4)]


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
