"""What the loops share: visits of samples, the hand-written loop's losses, and what is asserted of every trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.guard import Guard
from memtrain.records import read_steps
from tests.conformance.families import TEXT

STEPS, BATCH, SAMPLES = 30, 4, 24
"""Optimizer steps, visits in a global batch, samples that take turns."""

EAGER = {
    "reference": "paired",
    "paired_every": 1,
    "minimum_visits": 1,
    "false_positive_rate": 0.5,
    "calibrate_every": 2,
    "heldout_share": 0.4,
    "maximum_timestep": 1000,
}
"""Options under which a guard flags within thirty steps; half of what is innocent may be flagged."""


class Visits:
    """Visits in the order in which they are trained on, each with its noise and timestep.

    So one visit is the same on one process and on two, and before and after a resume.
    """

    steps = STEPS
    """Optimizer steps of all trainings."""

    def __init__(self, *, accumulate: int = 1) -> None:
        draw = torch.Generator().manual_seed(0)
        self.count = self.steps * accumulate * BATCH
        self.latents = torch.randn(SAMPLES, 4, 8, 8, generator=draw)
        self.text = torch.randn(SAMPLES, TEXT, 16, generator=draw)
        self.noise = torch.randn(self.count, 4, 8, 8, generator=draw)
        self.timesteps = torch.randint(1000, (self.count,), generator=draw)
        order = [torch.randperm(SAMPLES, generator=draw) for _ in range(1 + self.count // SAMPLES)]
        self.order = torch.cat(order).tolist()

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, visit: int) -> dict[str, Any]:
        sample = self.order[visit]
        return {
            "key": f"image {sample}",
            "latents": self.latents[sample],
            "text": self.text[sample],
            "noise": self.noise[visit],
            "timestep": self.timesteps[visit],
        }

    def loader(self, processes: int = 1) -> DataLoader[dict[str, Any]]:
        """Batches of one process; several take turns in them."""
        return DataLoader(self, batch_size=BATCH // processes)  # type: ignore[arg-type]


@contextmanager
def few_steps() -> Iterator[None]:
    """Within it, trainings are short: what an idle guard would change, it would change at once."""
    Visits.steps = 6
    try:
        yield
    finally:
        Visits.steps = STEPS


class ByHand:
    """The losses of a loop without memtrain: `(weights * sample_loss).mean()`, with weights from a list.

    Args:
        weights: of all visits, in their order; None for ones.
    """

    def __init__(self, weights: Sequence[float] | None = None) -> None:
        self.weights, self.done = weights, 0

    def loss(self, prediction: Tensor, target: Tensor, *, weights: Tensor | None = None, **_: Any) -> Tensor:
        """As `Guard.loss`."""
        losses = torch.nn.functional.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)
        rows = slice(self.done, self.done + len(losses))
        self.done = rows.stop
        if weights is not None:
            losses = weights * losses
        if self.weights is not None:
            losses = torch.tensor(self.weights[rows]) * losses
        return losses.mean()

    def finish(self) -> None:
        """As `Guard.finish`."""


Watch = Callable[..., Any]
"""Makes what has `loss` and `finish`: called with the denoiser, and `accelerator` where there is one."""

Train = Callable[[Watch], Tensor]
"""A training of thirty steps; returns its weights in the end."""


def scheduler() -> DDPMScheduler:
    """That of the training noise."""
    return DDPMScheduler()


def guard(denoiser: nn.Module, *, folder: Path, **options: Any) -> Guard:
    """A guard that skips and flags early."""
    given = {"noise_scheduler": scheduler(), "mitigations": [SampleSkipping()], **EAGER, **options}
    return Guard(denoiser, folder=folder, **given)


def adamw(parameters: Iterable[nn.Parameter], *, lr: float) -> torch.optim.AdamW:
    """AdamW that does not blow up the rounding of a small gradient, so that two processes can be compared with one."""
    return torch.optim.AdamW(parameters, lr=lr, eps=1e-2)


def accelerator(**options: Any) -> Accelerator:
    """A new accelerator on the CPU, whatever another one was like."""
    AcceleratorState._reset_state(reset_partial_state=not PartialState._shared_state.get("backend"))
    GradientState._reset_state()
    return Accelerator(cpu=True, **options)


def flat(module: nn.Module) -> Tensor:
    """Its trained parameters, in one row."""
    return torch.cat([part.detach().float().flatten() for part in module.parameters() if part.requires_grad])


def watched(train: Train, folder: Path, **options: Any) -> SimpleNamespace:
    """A training with a guard: its weights, flags and records."""
    guards: list[Guard] = []

    def watch(denoiser: nn.Module, **given: Any) -> Guard:
        guards.append(guard(denoiser, folder=folder, **given, **options))
        return guards[-1]

    weights = train(watch)
    return SimpleNamespace(
        weights=weights, flagged=guards[-1].calibration.first_flagged, steps=read_steps(folder / "records")
    )


def require_equal_to_a_hand_written_loop(train: Train, folder: Path, *, visits: int = STEPS * BATCH) -> None:
    """Watching, skipping and records work, and neither they nor an idle guard change a bit of anything else."""
    found = watched(train, folder / "watched")
    keys, weights = (found.steps[name].to_pylist() for name in ("key", "weight"))
    assert found.steps.num_rows == visits
    skipped = {key for key, weight in zip(keys, weights, strict=True) if not weight}
    assert skipped & found.flagged.keys(), "else nothing is shown"
    assert set(weights) == {0.0, 1.0}
    assert torch.equal(found.weights, train(lambda *_, **__: ByHand(weights)))
    with few_steps():
        idle = train(lambda denoiser, **given: Guard(denoiser, folder=folder / "idle", heldout_share=0, **given))
        assert torch.equal(idle, train(lambda *_, **__: ByHand()))
