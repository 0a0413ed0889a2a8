"""Random numbers that depend only on names: a seed, a batch number and a sample's key.

The draw of a sample does not depend on its process, nor on its place in the batch. So several processes draw the same
numbers as one, and a resumed run draws the same numbers as an uninterrupted one. Copies of one sample within a batch
share their draw.

If a name is one text, :func:`hash_order` puts samples into a random order, and :func:`hash_numbers` draws numbers for a
sample. Both work without a generator, and give the same on every machine and with every release of torch.

Cost: about 5 µs per sample for :func:`uniform`, which draws on the host. One small kernel per sample for
:func:`normal`, which draws on the device of the numbers (a CPU and a GPU draw different numbers).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor


def seed_of(*names: object) -> int:
    """Return a seed below 2⁶² that depends on `names`, their order and their boundaries."""
    return int.from_bytes(hashlib.sha256(repr(names).encode()).digest()[:8], "big") >> 2


def seed_of_text(name: str) -> int:
    """Return a seed below 2⁶⁰ that depends on one text."""
    return int(hashed(name)[:15], 16)


def mixed_seed(seed: int, *counters: int) -> int:
    """Return a seed below 2⁶² that depends on `seed` and every counter in turn, through torch's own mixing.

    Args:
        seed: the seed of a run.
        counters: the counters, such as the number of the batch and the rank.
    """
    mixed = torch.Generator().manual_seed(seed)
    for counter in counters:
        state = int(torch.randint(2**62, (1,), generator=mixed))
        mixed.manual_seed((state + counter) % 2**62)
    return mixed.initial_seed()


def hashed(name: str) -> str:
    """Return the SHA-256 of a text in hexadecimal, for a random order of texts."""
    return hashlib.sha256(name.encode()).hexdigest()


def hash_order(key: str, salt: str) -> str:
    """Return the position of a key in a random order, which depends on the salt."""
    return hashed(f"{salt}\0{key}")


def hash_numbers(name: str, count: int) -> list[float]:
    """Return `count` uniform numbers in [0, 1), the same for a name on every machine."""
    digest = hashlib.shake_256(name.encode()).digest(4 * count)
    return [int.from_bytes(digest[start : start + 4], "big") / 2**32 for start in range(0, 4 * count, 4)]


def uniform(seeds: Sequence[int], count: int) -> Tensor:
    """Draw numbers from 0 to below 1, `(B, count)`, on the host, each row from its own seed."""
    generator = torch.Generator()
    rows = [torch.rand(count, generator=generator.manual_seed(seed)) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, count)


def normal(seeds: Sequence[int], shape: Sequence[int], *, device: torch.device) -> Tensor:
    """`(B, *shape)` standard normal in fp32 on `device`, each row from its own seed."""
    generator = torch.Generator(device)
    rows = [torch.randn(*shape, generator=generator.manual_seed(seed), device=device) for seed in seeds]
    return torch.stack(rows) if rows else torch.empty(0, *shape, device=device)
