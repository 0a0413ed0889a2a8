"""Writes the trained model when training ends, as a diffusers pipeline folder and, for LoRA, as a file of adapters.

For adapters, the run folder gets `pytorch_lora_weights.safetensors`, which `pipeline.load_lora_weights(run folder)` of
stock diffusers loads. The pipeline folder gets the weights with the adapters merged into them. This folder is as large
as the model. `adapters: lora` leaves it out, and `memtrain measure --run` then loads the base model and the file. If a
mitigation changes the exported weights, only the pipeline folder can hold the change, because adapters cannot. The
folder is written then in any case, and the log says so.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import nn

from memtrain.callbacks.base import Callback
from memtrain.callbacks.model_card import write_cards
from memtrain.errors import ConfigurationError
from memtrain.files.whole import folder_whole
from memtrain.models.adapters import adapted_layers, merged
from memtrain.models.whole_weights import is_sharded, whole
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Mitigation

log = logging.getLogger(__name__)


class PipelineExport(Callback):
    """Save a diffusers pipeline folder at the end of `fit`, with the averaged weights.

    Args:
        folder: folder of the pipeline; by default `pipeline/` in the trainer's `default_root_dir`.
        adapters: files to save if the module trains adapters: the file of adapters (`lora`), the `pipeline`, or `both`.
    """

    def __init__(self, folder: str | None = None, *, adapters: Literal["lora", "pipeline", "both"] = "both") -> None:
        self.folder, self.adapters = folder, adapters
        self._exported = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module that cannot be exported, before any work is done."""
        self._exported = False
        if self.adapters == "lora" and getattr(pl_module, "lora", None) is None:
            raise ConfigurationError(
                f"PipelineExport is to save adapters, and {type(pl_module).__name__} trains none",
                expected="a TextToImageModule with `lora`, or adapters: both",
                remedy="set lora in the model, or set adapters: both",
            )
        if not hasattr(pl_module, "export_pipeline"):
            raise ConfigurationError(
                f"PipelineExport cannot export {type(pl_module).__name__}",
                expected="a module with export_pipeline() and averaged_weights(), such as TextToImageModule",
                remedy="remove PipelineExport from the callbacks",
            )
        if self.adapters == "pipeline" and _quantized(pl_module):
            raise ConfigurationError(
                "PipelineExport cannot merge adapters into quantised weights",
                expected="adapters: lora, or both, which then writes the file of adapters only",
                remedy="set adapters: lora, or remove execution.quantize",
            )
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        for later in callbacks[callbacks.index(self) + 1 :]:
            if stage == "fit" and getattr(later, "updates_at_the_end", False):
                name = type(later).__name__
                raise ConfigurationError(
                    f"PipelineExport stands before {name} among the callbacks, so it would export "
                    "without the monitor's last update",
                    expected=f"{name} before PipelineExport",
                    remedy="put the monitor first in trainer.callbacks",
                )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save right after the last step."""
        self._export(trainer, pl_module)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save if the run was interrupted during its export and has no step left, then write the model cards."""
        if not self._exported:
            self._export(trainer, pl_module)
        if trainer.is_global_zero:
            folder = Path(self.folder or Path(trainer.default_root_dir) / "pipeline")
            write_cards(trainer, pl_module, folder)

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save on rank 0; if the weights are sharded, all ranks take part."""
        self._exported = True
        denoiser: Any = pl_module.denoiser
        if is_sharded(denoiser):
            denoiser = whole(denoiser, keep=trainer.is_global_zero)
        if not trainer.is_global_zero:
            return
        root, module = Path(trainer.default_root_dir), pl_module
        adapted = getattr(module, "lora", None) is not None and self.adapters != "pipeline"
        with module.averaged_weights(), ExitStack() as contexts:  # type: ignore[operator]
            if adapted:
                module.save_adapters(root)  # type: ignore[operator]
                if _quantized(module):
                    log.warning("The adapters are not merged into a pipeline, because their base is quantised")
                    return
            pipeline = module.export_pipeline()  # type: ignore[operator]
            setattr(pipeline, "transformer" if hasattr(pipeline, "transformer") else "unet", denoiser)
            for part in pipeline.components.values():
                if isinstance(part, nn.Module) and adapted_layers(part):
                    contexts.enter_context(merged(part))
            versions = [value._version for value in denoiser.parameters()]
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Mitigation):
                    contexts.enter_context(callback.exporting(denoiser))
            edited = versions != [value._version for value in denoiser.parameters()]
            folder = Path(self.folder or root / "pipeline")
            if self.adapters != "lora" or edited:
                with folder_whole(folder) as unfinished:
                    pipeline.save_pretrained(unfinished)
            if adapted and edited:
                log.warning("The mitigations change the exported weights in %s, not in the LoRA file", folder)


def _quantized(module: Any) -> bool:
    return getattr(getattr(module, "execution", None), "quantize", "none") != "none"


def warn_unless_exported(host: Host, path: Path) -> None:
    """Log how to apply a mask, if no :class:`PipelineExport` applies it to the exported weights."""
    if not host.exports:
        log.warning(
            "The trained weights do not include %s. Before you save a pipeline, apply it with "
            "NeuronMask.load(Path(%r)).bake(denoiser), from memtrain.models.neuron_mask",
            path.name,
            str(path),
        )
