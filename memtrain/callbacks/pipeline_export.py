"""Writes the trained model as a diffusers pipeline folder when training ends."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from memtrain.callbacks.base import Callback
from memtrain.callbacks.model_card import write_cards
from memtrain.errors import ConfigurationError
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Mitigation

log = logging.getLogger(__name__)


class PipelineExport(Callback):
    """Save a diffusers pipeline folder at the end of `fit`, with the averaged weights.

    Args:
        folder: where to save; by default `pipeline/` in the trainer's `default_root_dir`.
    """

    def __init__(self, folder: str | None = None) -> None:
        self.folder = folder

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot be exported, before any work is done."""
        if not hasattr(pl_module, "export_pipeline"):
            raise ConfigurationError(
                f"PipelineExport cannot export {type(pl_module).__name__}",
                expected="a module with export_pipeline() and averaged_weights(), such as TextToImageModule",
                remedy="remove PipelineExport from the callbacks",
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for later in callbacks[callbacks.index(self) + 1 :]:
            if stage == "fit" and getattr(later, "updates_at_the_end", False):
                name = type(later).__name__
                raise ConfigurationError(
                    f"PipelineExport stands before {name} among the callbacks, so at the end of training it would act "
                    "without the monitor's last update",
                    expected=f"{name} before PipelineExport",
                    remedy="put the monitor first",
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save on rank 0."""
        if trainer.is_global_zero:
            folder = Path(self.folder or Path(trainer.default_root_dir) / "pipeline")
            with pl_module.averaged_weights(), ExitStack() as contexts:  # type: ignore[operator]
                for callback in trainer.callbacks:  # type: ignore[attr-defined]
                    if isinstance(callback, Mitigation):
                        contexts.enter_context(callback.exporting(pl_module.denoiser))  # type: ignore[arg-type]
                pl_module.export_pipeline().save_pretrained(folder)  # type: ignore[operator]
            write_cards(trainer, pl_module, folder)


def warn_unless_exported(host: Host, path: Path) -> None:
    """Say what is left to do with a mask, where no :class:`PipelineExport` puts it into the exported weights."""
    if not host.exports:
        log.warning(
            "The trained weights are without %s: before you save a pipeline, apply it with "
            "NeuronMask.load(Path(%r)).bake(denoiser), from memtrain.models.neuron_mask",
            path.name,
            str(path),
        )
