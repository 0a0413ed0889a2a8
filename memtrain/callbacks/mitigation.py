"""Mitigations as Lightning callbacks, so that a YAML file can name them.

The monitor collects the mitigations among the callbacks and hands them to the engine. The engine asks for their needs
and calls their rules. Lightning itself only keeps their state in checkpoints.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from memtrain.callbacks.base import Callback
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.errors import ConfigurationError
from memtrain.monitoring.mitigation import Mitigation


class MitigationCallback(Callback, Mitigation):
    """Base of the mitigations that a YAML file can name."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to run without a monitor, before any work is done."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if stage == "fit" and not any(isinstance(callback, MemorizationMonitor) for callback in callbacks):
            raise ConfigurationError(
                f"{type(self).__name__} is among the callbacks, but no MemorizationMonitor",
                expected="a monitor, which decides what is flagged",
                remedy="add memtrain.callbacks.monitor.MemorizationMonitor to trainer.callbacks",
            )
