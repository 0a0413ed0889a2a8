"""The LoRA form of diffusers' text-to-image example: adapters in a frozen UNet, with dropout, and min-SNR weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.training_utils import compute_snr
from peft import LoraConfig
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
    torch.manual_seed(0)
    accelerate = accelerator(**options)
    unet, noise_scheduler = build("unet"), scheduler()
    unet.requires_grad_(False)
    unet.add_adapter(LoraConfig(r=4, lora_dropout=0.1, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    optimizer = adamw([part for part in unet.parameters() if part.requires_grad], lr=1e-1)
    unet, optimizer, loader = accelerate.prepare(unet, optimizer, Visits().loader(accelerate.num_processes))
    guard = watch(unet, accelerator=accelerate)
    for batch in loader:
        with accelerate.accumulate(unet):
            noisy = noise_scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
            prediction = unet(noisy, batch["timestep"], batch["text"], return_dict=False)[0]
            snr = compute_snr(noise_scheduler, batch["timestep"])
            weights = torch.clamp(snr, max=5.0) / snr
            loss = guard.loss(prediction, batch["noise"], keys=batch["key"], weights=weights)
            accelerate.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    guard.finish()
    return flat(unet)


def test_it_is_a_hand_written_loop_with_weights(tmp_path: Path) -> None:
    require_equal_to_a_hand_written_loop(train, tmp_path)
