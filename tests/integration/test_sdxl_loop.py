"""The SDXL form of diffusers' text-to-image example: embeddings of two text encoders, and sizes as conditions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.conformance.families import build
from tests.integration.loops import (
    Visits,
    Watch,
    accelerator,
    adamw,
    flat,
    require_equal_to_a_hand_written_loop,
    scheduler,
)


def train(watch: Watch, **options: Any) -> Tensor:
    accelerate = accelerator(**options)
    unet, noise_scheduler = build("sdxl"), scheduler()
    optimizer = adamw(unet.parameters(), lr=1e-2)
    unet, optimizer, loader = accelerate.prepare(unet, optimizer, Visits().loader(accelerate.num_processes))
    guard = watch(unet, accelerator=accelerate)
    for batch in loader:
        with accelerate.accumulate(unet):
            noisy = noise_scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
            first, second = batch["text"].chunk(2, dim=-1)
            added = {
                "time_ids": torch.tensor([[16, 16, 0, 0, 16, 16]]).repeat(len(noisy), 1),
                "text_embeds": second.mean(dim=1).repeat(1, 2)[:, :12],
            }
            text = torch.cat([first, second], dim=-1)
            prediction = unet(noisy, batch["timestep"], text, added_cond_kwargs=added, return_dict=False)[0]
            loss = guard.loss(prediction.float(), batch["noise"].float(), keys=batch["latents"])
            accelerate.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    guard.finish()
    return flat(unet)


def test_it_is_a_hand_written_loop_with_weights(tmp_path: Path) -> None:
    """The samples are named by their latents, which are computed once."""
    require_equal_to_a_hand_written_loop(train, tmp_path)
