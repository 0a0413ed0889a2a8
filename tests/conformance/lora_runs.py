"""Short watched runs of adapters of every kind, on one process or two, for the tests to compare."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.monitoring.options import WatchSettings
from memtrain.training.execution import Execution
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timestep_lora import TimestepRank
from tests.conformance.mitigation_runs import GLOBAL_BATCH, SAVE_EVERY, STEPS, FixedData, Host, force_flags

CASES: dict[str, dict[str, Any]] = {
    "lora": {"alpha": 3, "text_encoder": True},
    "dora": {"dora": True},
    "t_lora": {"rank": 4, "timestep_rank": TimestepRank()},
}


class AdaptedHost(Host):
    """Randomness that knows nothing of processes, adapters, and their average."""

    def __init__(self, pretrained: str, options: dict[str, Any]) -> None:
        TextToImageModule.__init__(
            self,
            pretrained,
            lora=LoRA(**{"rank": 2, **options}),
            ema_decay=0.8,
            seed=0,
            execution=Execution(gradient_checkpointing=True),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained(), lr=0.02, eps=1e-3)


def run(
    case: str, folder: Path, *, pretrained: Path, stop: int = STEPS, resume: bool = False, processes: int = 1
) -> dict[str, Tensor]:
    """Train, and return the adapters and their average; arguments as of `mitigation_runs.run`."""
    seed_everything(0)
    skipping = SampleSkipping()
    force_flags(skipping)
    monitor = MemorizationMonitor(
        minimum_visits=2,
        reference="paired",
        paired_every=2,
        settings=WatchSettings(calibrate_every=2, heldout_batch=4),
    )
    checkpoints = ModelCheckpoint(folder / "checkpoints", save_last=True, save_top_k=0, every_n_train_steps=SAVE_EVERY)
    module = AdaptedHost(str(pretrained), CASES[case])
    data = FixedData(
        str(folder.parent / "images"),
        resolution=16,
        batch_size=GLOBAL_BATCH // processes,
        heldout_fraction=0.34,
        cache_latents=True,
    )
    distributed = DDPStrategy(cluster_environment=LightningEnvironment(), process_group_backend="gloo")
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=stop,
        accelerator="cpu",
        devices=processes,
        strategy=distributed if processes > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        callbacks=[monitor, skipping, PipelineExport(adapters="lora"), checkpoints],
    )
    trainer.fit(module, data, ckpt_path="last" if resume else None)
    names = [name for name, value in module.named_parameters() if value.requires_grad]
    assert module.ema is not None
    average = {f"average.{name}": value for name, value in zip(names, module.ema.shadow_params, strict=True)}
    return {
        name: value.detach().clone()
        for name, value in (dict(zip(names, module.trained(), strict=True)) | average).items()
    }


def main() -> None:
    """Run every case as one of two processes, and leave the weights in the folder."""
    folder, pretrained = Path(sys.argv[1]), Path(sys.argv[2])
    for case in CASES:
        weights = run(case, folder / f"two-{case}", pretrained=pretrained, processes=2)
        torch.save(weights, folder / f"two-{case}" / f"weights-{os.environ['LOCAL_RANK']}.pt")


if __name__ == "__main__":
    main()
