"""A module that hands its losses over to the monitor: exact gradients under any criterion, nothing gated twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import DDPMScheduler
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.records import read_steps
from tests.guard_loops import batch, denoiser, gates, gradients


class HandsOver(LightningModule):
    """Huber loss with weights, which no gradient shows."""

    def __init__(self, monitor: MemorizationMonitor | None) -> None:
        super().__init__()
        self.unet, self.monitor = denoiser(), (monitor,)
        self.seen: list[Tensor] = []

    def training_step(self, data: dict[str, Any], batch_idx: int) -> Tensor:
        prediction = self.unet(data["noisy"], data["timesteps"], data["text"]).sample
        weights = 1 + data["timesteps"] / 1000
        (monitor,) = self.monitor
        if monitor is not None:
            return monitor.loss(prediction, data["noise"], weights=weights, criterion="huber")
        losses = F.huber_loss(prediction, data["noise"], reduction="none").mean(dim=(1, 2, 3))
        return (gates(data["key"]) * weights * losses).mean()

    def on_after_backward(self) -> None:
        self.seen.append(gradients(self))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-2)


class FixedWeights(MitigationCallback):
    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        return gates(observation.keys)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_module_that_hands_its_losses_over(accumulate: int, tmp_path: Path) -> None:
    found = []
    for guarded in (True, False):
        monitor = MemorizationMonitor(reference="paired", paired_every=1) if guarded else None
        module = HandsOver(monitor)
        trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            default_root_dir=tmp_path,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[monitor, FixedWeights()] if monitor is not None else [],
        )
        steps = [batch([0, 1, 2, 3, 6], step, DDPMScheduler()) for step in range(6)]
        trainer.fit(module, DataLoader(steps, batch_size=None))  # type: ignore[arg-type]
        found.append(module.seen)
    for ours, theirs in zip(*found, strict=True):
        assert torch.equal(ours, theirs)
    rows = read_steps(tmp_path / "records").to_pylist()
    first = rows[:5]
    with torch.no_grad():
        prediction = denoiser()(steps[0]["noisy"], steps[0]["timesteps"], steps[0]["text"]).sample
    losses = F.huber_loss(prediction, steps[0]["noise"], reduction="none").mean(dim=(1, 2, 3))
    torch.testing.assert_close(torch.tensor([row["denoising_loss"] for row in first]), losses)
    torch.testing.assert_close(torch.tensor([row["base.denoising_loss"] for row in first]), losses)
    assert rows[-1]["base.denoising_loss"] != rows[-1]["denoising_loss"]
