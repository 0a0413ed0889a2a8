"""A watched run of full fine-tuning, on one process or two that share the weights (FSDP2)."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.pipeline_export import PipelineExport
from memtrain.callbacks.sample_skipping import SampleSkipping
from memtrain.monitoring.options import WatchSettings
from memtrain.training.text_to_image import TextToImageModule
from tests.conformance.mitigation_runs import GLOBAL_BATCH, FixedData, Host, force_flags


class ShardedHost(Host):
    """Randomness that knows nothing of processes."""

    def __init__(self, pretrained: str) -> None:
        TextToImageModule.__init__(self, pretrained, ema_decay=None, seed=0)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.trained(), lr=1e-3, eps=1e-3)


def run(folder: Path, *, pretrained: Path, processes: int) -> None:
    """Train four steps, the last two of them with flagged samples left out."""
    seed_everything(0)
    skipping = SampleSkipping()
    force_flags(skipping)
    sharded = ModelParallelStrategy(
        data_parallel_size=2,
        tensor_parallel_size=1,
        save_distributed_checkpoint=False,
        process_group_backend="gloo",
    )
    sharded.cluster_environment = LightningEnvironment()
    settings = WatchSettings(calibrate_every=2, heldout_batch=4)
    monitor = MemorizationMonitor(minimum_visits=2, reference=False, settings=settings)
    trainer = Trainer(
        default_root_dir=folder,
        max_steps=4,
        accelerator="cpu",
        devices=processes,
        strategy=sharded if processes > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        callbacks=[monitor, skipping, PipelineExport()],
    )
    data = FixedData(
        str(folder.parent / "images"),
        resolution=16,
        batch_size=GLOBAL_BATCH // processes,
        heldout_fraction=0.34,
        cache_latents=True,
    )
    trainer.fit(ShardedHost(str(pretrained)), data)


if __name__ == "__main__":
    run(Path(sys.argv[1]), pretrained=Path(sys.argv[2]), processes=2)
