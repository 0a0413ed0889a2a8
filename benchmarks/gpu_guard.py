"""The part of `gpu.py` that trains in a hand-written loop with a guard."""

from __future__ import annotations

import statistics
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from experiment import median_interval
from gpu_clock import peak_gib
from gpu_shapes import Part, random_pipeline
from gpu_training import PlainLoop
from torch import Tensor

from memtrain.guard import Guard

SAMPLES = 160


class GuardedLoop(PlainLoop):
    """The same loop, whose loss is handed to a guard instead of being a mean of its own."""

    def __init__(self, part: Part, folder: Any, batches: Iterator[dict[str, Any]], *, paired_every: int) -> None:
        super().__init__(part, folder, batches)
        self.guard = Guard(
            self.unet, self.scheduler, folder=part.folder / f"guard_{paired_every}", paired_every=paired_every
        )

    def loss(self, prediction: Tensor, noise: Tensor, batch: dict[str, Any]) -> Tensor:
        """Known to the guard."""
        return self.guard.loss(prediction, noise, keys=batch["key"])


def batches(part: Part, *, size: int) -> Iterator[dict[str, Any]]:
    """Endless batches of random latents and captions with names."""
    side = 8 if part.smoke else 64
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(SAMPLES, 4, side, side, generator=generator)
    ids = torch.randint(100, (SAMPLES, 8 if part.smoke else 77), generator=generator)
    while True:
        rows = torch.randint(SAMPLES, (size,), generator=generator)
        yield {"latents": latents[rows], "input_ids": ids[rows], "key": [f"sample {row}" for row in rows.tolist()]}


def guard(part: Part) -> None:
    """A step of a hand-written loop with a guard against the same loop without, in turn."""
    folder = random_pipeline(part)
    for every in (4, 1):
        part.attempt(f"paired_every_{every}", partial(_against_loop, part, folder, every))


def _against_loop(part: Part, folder: Any, every: int) -> dict[str, Any]:
    block, turns = (1, 3) if part.smoke else (8, 9)
    plain = PlainLoop(part, folder, batches(part, size=4))
    guarded = GuardedLoop(part, folder, batches(part, size=4), paired_every=every)
    if part.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    losses: list[Tensor] = []
    seconds: dict[str, list[float]] = {"plain": [], "guarded": []}
    for turn in range(turns):
        for name, loop in (("plain", plain), ("guarded", guarded)):
            spent = part.timed(lambda loop=loop: losses.extend(loop.step() for _ in range(block)))  # type: ignore[misc]
            # The first block warms up.
            if turn:
                seconds[name].append(spent / block)
    guarded.guard.finish()
    ratios = [a / b for a, b in zip(seconds["guarded"], seconds["plain"], strict=True)]
    return {
        "seconds_per_step_plain": statistics.median(seconds["plain"]),
        "seconds_per_step_guarded": statistics.median(seconds["guarded"]),
        "ratio_median": statistics.median(ratios),
        "ratio_interval_95": median_interval(ratios),
        "blocks": len(ratios),
        "steps_per_block": block,
        "losses_finite": bool(torch.stack(losses).isfinite().all()),
        "records": sorted(path.name for path in (part.folder / f"guard_{every}").rglob("*.parquet"))[:4],
        "peak_gib_of_both": peak_gib(part.device),
    }
