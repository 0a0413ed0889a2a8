"""A plain PyTorch loop."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from tests.conformance.families import build
from tests.integration.loops import Visits, Watch, adamw, flat, require_equal_to_a_hand_written_loop, scheduler


def train(watch: Watch) -> Tensor:
    unet, noise_scheduler = build("unet"), scheduler()
    optimizer = adamw(unet.parameters(), lr=1e-2)
    guard = watch(unet)
    for batch in Visits().loader():
        noisy = noise_scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
        prediction = unet(noisy, batch["timestep"], batch["text"]).sample
        guard.loss(prediction, batch["noise"], keys=batch["key"]).backward()
        optimizer.step()
        optimizer.zero_grad()
    guard.finish()
    return flat(unet)


def test_it_is_a_hand_written_loop_with_weights(tmp_path: Path) -> None:
    require_equal_to_a_hand_written_loop(train, tmp_path)
