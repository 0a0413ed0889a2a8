"""A short watched run, on one process or on two, new or continued; `python -m tests.integration.resumed_processes`."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.module import TextImageDataModule
from memtrain.data.selection import Duplicates
from memtrain.monitoring.options import WatchSettings
from memtrain.training.text_to_image import TextToImageModule


def run(
    images: Path,
    pretrained: Path,
    folder: Path,
    *,
    stop: int,
    resume: Path | None = None,
    data: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    monitor: dict[str, Any] | None = None,
    watched: bool = True,
    **options: Any,
) -> TextToImageModule:
    """Train for some steps, with a checkpoint after each; 24 visits are an epoch."""
    seed_everything(0)
    module = TextToImageModule(
        str(pretrained), **{"learning_rate": 1e-3, "schedule": "constant", "ema_decay": 0.9, **(model or {})}
    )
    settings = WatchSettings(reference_timesteps=(300,), reference_draws=1, calibrate_every=2, heldout_batch=3)
    watch = MemorizationMonitor(
        **{"false_positive_rate": 0.1, "minimum_visits": 2, "settings": settings, **(monitor or {})}
    )
    given = {"resolution": 16, "batch_size": 4, "heldout": "split", "heldout_fraction": 0.34, "families": "off"}
    source = TextImageDataModule(str(images), **{**given, "duplicates": Duplicates(count=1, repeats=9), **(data or {})})
    keep = ModelCheckpoint(folder / "checkpoints", filename="{step}", save_top_k=-1, every_n_train_steps=1)
    trainer = Trainer(
        **{
            "default_root_dir": folder,
            "max_steps": stop,
            "accelerator": "cpu",
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
            "callbacks": [*([watch] if watched else []), keep],
            **options,
        }
    )
    trainer.fit(module, source, ckpt_path=resume)
    return module


def main() -> None:
    """One of two processes."""
    warnings.simplefilter("ignore")
    images, pretrained, folder, stop, resume = sys.argv[1:]
    run(
        Path(images),
        Path(pretrained),
        Path(folder),
        stop=int(stop),
        resume=Path(resume) if resume else None,
        devices=2,
        strategy="ddp",
    )


if __name__ == "__main__":
    main()
