"""Modules of both Lightning packages that know nothing of memtrain, and what is asserted of their training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.monitoring.options import WatchSettings
from memtrain.records import read_steps
from tests.conformance.families import build
from tests.integration.loops import BATCH, EAGER, STEPS, Visits, adamw, few_steps, flat, scheduler

Step = Callable[[Any, Tensor, Tensor], Any]
"""Module, prediction and target to what `training_step` returns."""


def mean_loss(module: Any, prediction: Tensor, target: Tensor) -> Tensor:
    """What a module that knows nothing of memtrain computes."""
    return F.mse_loss(prediction, target)


def by_hand(weights: Sequence[float]) -> Step:
    """`(weights * sample_loss).mean()`, with weights from a list."""
    left = list(weights)

    def loss(module: Any, prediction: Tensor, target: Tensor) -> Tensor:
        own, left[:BATCH] = torch.tensor(left[:BATCH]), []
        return (own * F.mse_loss(prediction, target, reduction="none").flatten(1).mean(1)).mean()

    return loss


def module_of(package: ModuleType, loss: Step, *, manual: bool = False, unpack: Callable[[Any], Any]) -> Any:
    """A module.

    Args:
        package: `lightning.pytorch` or `pytorch_lightning`.
        loss: what it computes.
        manual: whether it steps by itself.
        unpack: a batch to latents, text, noise and timesteps.
    """

    class Module(package.LightningModule):  # type: ignore[name-defined, misc]
        def __init__(self) -> None:
            super().__init__()
            self.unet, self.noise_scheduler = build("unet"), scheduler()
            self.automatic_optimization = not manual

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            latents, text, noise, timesteps = unpack(batch)
            noisy = self.noise_scheduler.add_noise(latents, noise, timesteps)
            value = loss(self, self.unet(noisy, timesteps, text).sample, noise)
            if not manual:
                return value
            self.manual_backward(value)
            self.optimizers().step()
            self.optimizers().zero_grad()
            return None

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return adamw(self.unet.parameters(), lr=1e-2)

    return Module()


def from_dict(batch: dict[str, Any]) -> list[Any]:
    return [batch[name] for name in ("latents", "text", "noise", "timestep")]


def require_equal_to_weights_by_hand(
    package: ModuleType,
    folder: Path,
    *,
    loader: Callable[[], DataLoader[Any]] = lambda: Visits().loader(),
    unpack: Callable[[Any], Any] = from_dict,
    manual: bool = False,
) -> None:
    """Watching, skipping and records work, and change nothing else."""

    def train(loss: Step, callbacks: Sequence[Any], name: str) -> Tensor:
        module = module_of(package, loss, manual=manual, unpack=unpack)
        trainer = package.Trainer(
            default_root_dir=folder / name,
            callbacks=list(callbacks),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=1,
        )
        trainer.fit(module, loader())
        return flat(module.unet)

    options = {name: value for name, value in EAGER.items() if name in {"reference", "paired_every", "minimum_visits"}}
    rare = {name: EAGER[name] for name in ("calibrate_every", "heldout_share", "maximum_timestep")}
    monitor = MemorizationMonitor(
        **options, false_positive_rate=EAGER["false_positive_rate"], settings=WatchSettings(**rare)
    )
    watched = train(mean_loss, [monitor, SampleSkipping()], "watched")
    steps = read_steps(folder / "watched" / "records")
    keys, weights = (steps[name].to_pylist() for name in ("key", "weight"))
    assert len(keys) == STEPS * BATCH
    assert len(set(keys)) == 24
    skipped = {key for key, weight in zip(keys, weights, strict=True) if not weight}
    assert skipped & monitor.calibration.first_flagged.keys(), "else nothing is shown"
    assert torch.equal(watched, train(by_hand(weights), [], "hand"))
    with few_steps():
        idle = train(mean_loss, [MemorizationMonitor(reference="paired")], "idle")
        assert torch.equal(idle, train(mean_loss, [], "plain"))
