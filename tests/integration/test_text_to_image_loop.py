"""A loop in the shape of diffusers' text-to-image example: accelerate, accumulation, bf16, resuming."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from memtrain.records import read_steps, read_table
from tests.conformance.families import build
from tests.integration.loops import (
    BATCH,
    STEPS,
    Visits,
    Watch,
    accelerator,
    adamw,
    flat,
    guard,
    require_equal_to_a_hand_written_loop,
    scheduler,
)

ACCUMULATE = 2


def train(
    watch: Watch,
    *,
    precision: str = "no",
    steps: int = STEPS,
    save: Path | None = None,
    resume: Path | None = None,
    resumed_at: int = 0,
    **options: Any,
) -> Tensor:
    accelerate = accelerator(gradient_accumulation_steps=ACCUMULATE, mixed_precision=precision, **options)
    unet, noise_scheduler = build("unet"), scheduler()
    optimizer = adamw(unet.parameters(), lr=1e-2)
    visits = Visits(accumulate=ACCUMULATE)
    unet, optimizer, loader = accelerate.prepare(unet, optimizer, visits.loader(accelerate.num_processes))
    guard = watch(unet, accelerator=accelerate)
    if resume is not None:
        accelerate.load_state(str(resume))
        loader = accelerate.skip_first_batches(loader, resumed_at * ACCUMULATE)
    done = resumed_at
    for batch in loader:
        with accelerate.accumulate(unet):
            noisy = noise_scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
            prediction = unet(noisy, batch["timestep"], batch["text"], return_dict=False)[0]
            loss = guard.loss(prediction.float(), batch["noise"].float(), keys=batch["key"])
            accelerate.backward(loss)
            if accelerate.sync_gradients:
                accelerate.clip_grad_norm_(unet.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
        done += accelerate.sync_gradients
        if accelerate.sync_gradients and done == steps:
            break
    if save is not None:
        accelerate.save_state(str(save))
    else:
        guard.finish()
    return flat(unet)


def test_it_is_a_hand_written_loop_with_weights(tmp_path: Path) -> None:
    """In bf16; accelerate has no fp16 on a CPU."""
    train_so = partial(train, precision="bf16")
    require_equal_to_a_hand_written_loop(train_so, tmp_path, visits=STEPS * BATCH * ACCUMULATE)


@pytest.mark.slow
def test_it_goes_on_where_its_checkpoint_ends(tmp_path: Path) -> None:
    guards = []

    def watch(folder: Path) -> Watch:
        def make(denoiser: nn.Module, **given: Any) -> Any:
            guards.append(guard(denoiser, folder=folder, **given))
            return guards[-1]

        return make

    whole = train(watch(tmp_path / "whole"))
    # Not a multiple of calibrate_every: visits are in flight when the state is saved.
    train(watch(tmp_path / "parts"), steps=13, save=tmp_path / "state")
    guards[-1].close()
    resumed = train(watch(tmp_path / "parts"), resume=tmp_path / "state", resumed_at=13)
    assert torch.equal(resumed, whole)
    assert guards[0].calibration.first_flagged == guards[-1].calibration.first_flagged != {}
    first, second = (tmp_path / part / "records" for part in ("whole", "parts"))
    assert read_steps(first).drop(["epoch"]).equals(read_steps(second).drop(["epoch"]))
    assert str(read_table(first, "evidence").to_pylist()) == str(read_table(second, "evidence").to_pylist())
