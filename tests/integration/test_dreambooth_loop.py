"""DreamBooth's LoRA form with prior preservation: instance and class images in one forward, losses in two parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
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
    unet.add_adapter(LoraConfig(r=4, target_modules=["to_k", "to_q", "to_v", "to_out.0"]))
    optimizer = adamw([part for part in unet.parameters() if part.requires_grad], lr=1e-1)
    unet, optimizer, loader = accelerate.prepare(unet, optimizer, Visits().loader(accelerate.num_processes))
    guard = watch(unet, accelerator=accelerate)
    for batch in loader:
        with accelerate.accumulate(unet):
            noisy = noise_scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
            prediction = unet(noisy, batch["timestep"], batch["text"], return_dict=False)[0]
            own, prior = torch.chunk(prediction, 2, dim=0)
            target, prior_target = torch.chunk(batch["noise"], 2, dim=0)
            loss = guard.loss(own, target, keys=batch["key"][: len(own)])
            # The class images are a set of their own.
            classes = [f"class {key}" for key in batch["key"][len(own) :]]
            loss = loss + 0.5 * guard.loss(prior, prior_target, keys=classes)
            accelerate.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
    guard.finish()
    return flat(unet)


def test_it_is_a_hand_written_loop_with_weights(tmp_path: Path) -> None:
    require_equal_to_a_hand_written_loop(train, tmp_path)
