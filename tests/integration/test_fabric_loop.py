"""A loop of Lightning Fabric."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric import Fabric
from torch import Tensor

from tests.conformance.families import build
from tests.integration.loops import Visits, Watch, adamw, flat, require_equal_to_a_hand_written_loop, scheduler


def train(watch: Watch, **options: Any) -> Tensor:
    fabric = Fabric(accelerator="cpu", **{"devices": 1, **options})
    fabric.launch()
    unet, noise_scheduler = build("unet"), scheduler()
    optimizer = adamw(unet.parameters(), lr=1e-2)
    unet, optimizer = fabric.setup(unet, optimizer)
    loader = fabric.setup_dataloaders(Visits().loader(fabric.world_size))
    guard = watch(unet, accelerator=fabric)
    for batch in loader:
        noisy = noise_scheduler.add_noise(batch["latents"], batch["noise"], batch["timestep"])
        prediction = unet(noisy, batch["timestep"], batch["text"]).sample
        fabric.backward(guard.loss(prediction, batch["noise"], keys=batch["key"]))
        optimizer.step()
        optimizer.zero_grad()
    guard.finish()
    return flat(unet)


def test_it_is_a_hand_written_loop_with_weights(tmp_path: Path) -> None:
    require_equal_to_a_hand_written_loop(train, tmp_path)
