"""Small training loops for the tests of the guard; started as a script, one of two processes."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from diffusers import DDPMScheduler
from torch import Tensor, nn

from memtrain.evidence.flags import Flags
from memtrain.guard import Guard
from memtrain.models.observation import Observation
from memtrain.monitoring.mitigation import Mitigation
from tests.conformance.families import unet

WEIGHT = (1.0, 0.0, 0.5, 2.0)
"""By number of the sample, so that a hand-written loss can do the same."""


class FixedWeights(Mitigation):
    """Weights by key."""

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        return gates(observation.keys)


def gates(keys: Sequence[str]) -> Tensor:
    return torch.tensor([WEIGHT[int(key) % 4] for key in keys])


class SkipFlagged(Mitigation):
    """As SampleSkipping, without Lightning."""

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        return 1.0 - flags.ever.float()


def denoiser() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return unet().train()


def sample(number: int) -> tuple[Tensor, Tensor]:
    """Latents and text of a sample."""
    generator = torch.Generator().manual_seed(number)
    return torch.randn(4, 8, 8, generator=generator), torch.randn(7, 16, generator=generator)


def batch(numbers: Sequence[int], step: int, scheduler: DDPMScheduler) -> dict[str, Any]:
    """What a training step gets; noise and timesteps are a function of step and sample."""
    latents, text = map(torch.stack, zip(*map(sample, numbers), strict=True))
    drawn = [torch.Generator().manual_seed(1000 * step + number) for number in numbers]
    noise = torch.stack([torch.randn(4, 8, 8, generator=generator) for generator in drawn])
    timesteps = torch.cat([torch.randint(1000, (1,), generator=generator) for generator in drawn])
    return {
        "key": [str(number) for number in numbers],
        "noisy": scheduler.add_noise(latents, noise, timesteps),
        "noise": noise,
        "latents": latents,
        "timesteps": timesteps,
        "text": text,
    }


def gradients(model: nn.Module) -> Tensor:
    return torch.cat([value.grad.flatten() for value in model.parameters() if value.grad is not None])


LossOf = Callable[[Any, Tensor, dict[str, Any]], Tensor]
"""Guard or None, prediction and batch to the loss."""


def accelerated(
    folder: Path,
    *,
    steps: int,
    guarded: bool = True,
    save_at: int | None = None,
    resume: bool = False,
    loss_of: LossOf | None = None,
    options: dict[str, Any] | None = None,
    main_saves: bool = False,
    killed: bool = False,
    **accelerator_options: Any,
) -> tuple[nn.Module, Guard | None, list[Tensor]]:
    """A loop in the shape of diffusers' text-to-image example; four samples are repeated."""
    if torch.distributed.is_available() and not torch.distributed.is_initialized():
        # One process may have had another precision in an earlier test.
        AcceleratorState._reset_state(True)
    accelerator = Accelerator(cpu=True, project_dir=str(folder), **accelerator_options)
    torch.manual_seed(0)
    model, scheduler = denoiser(), DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    guard = None
    if guarded:
        given = {
            "minimum_visits": 3,
            "paired_every": 2,
            "heldout_share": 0.3,
            "mitigations": [SkipFlagged()],
            **(options or {}),
        }
        guard = Guard(model, scheduler, accelerator=accelerator, folder=folder, **given)
    first = 0
    if resume:
        accelerator.load_state(str(folder / "checkpoint"))
        first = int(json.loads((folder / "done.json").read_text()))
    seen, world, rank = [], accelerator.num_processes, accelerator.process_index
    for step in range(first, steps):
        numbers = [(5 * step + place) % 40 + 4 if place % 2 else place // 2 for place in range(8)]
        data = batch(numbers[rank * 8 // world : (rank + 1) * 8 // world], step, scheduler)
        with accelerator.accumulate(model):
            prediction = model(data["noisy"], data["timesteps"], data["text"], return_dict=False)[0]
            if loss_of is not None:
                loss = loss_of(guard, prediction, data)
            elif guard is not None:
                loss = guard.loss(prediction, data["noise"], keys=data["key"])
            else:
                loss = torch.nn.functional.mse_loss(prediction.float(), data["noise"].float())
            accelerator.backward(loss)
            seen.append(gradients(model).clone())
            optimizer.step()
            optimizer.zero_grad()
        if step + 1 == save_at and (accelerator.is_main_process or not main_saves):
            accelerator.save_state(str(folder / "checkpoint"))
            (folder / "done.json").write_text(json.dumps(step + 1))
        accelerator.wait_for_everyone()
    if guard is not None and killed:
        guard.close()
    elif guard is not None:
        guard.finish()
    return model, guard, seen


def main() -> None:
    """One of two processes: train, once without interruption and once with, and leave weights and state."""
    folder = Path(sys.argv[1])
    for name in ("whole", "cut"):
        if name == "cut":
            accelerated(folder / name, steps=18, save_at=13, main_saves=True, killed=True)
        model, guard, _ = accelerated(folder / name, steps=24, resume=name == "cut")
        assert guard is not None
        state = {"state": guard.engine.state_dict(), "weights": model.state_dict(), "step": guard.host.step}
        torch.save(state, folder / f"{name}-{guard.host.rank}.pt")


if __name__ == "__main__":
    main()
