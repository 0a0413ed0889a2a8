"""A short watched run over streamed shards, new or continued, on one process or two.

LOCAL_RANK=0 WORLD_SIZE=2 ... python -m tests.integration.streamed_shards SHARDS PIPELINE FOLDER
"""

from __future__ import annotations

import io
import random
import sys
import tarfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image

from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.data.streamed import StreamedImages
from memtrain.monitoring.options import WatchSettings
from memtrain.training.text_to_image import TextToImageModule

SHARDS, OTHERS, AGAIN, COPIES = 6, 30, 3, 6
"""Shards; pictures that come once an epoch; pictures that come under several names, and under how many."""


def write_shards(folder: Path) -> str:
    """Shards of pictures of noise; `p30-0` to `p30-5` are one picture, and so on.

    Returns:
        Their pattern.
    """
    visits = [(number, 0) for number in range(OTHERS)]
    visits += [(OTHERS + number, copy) for number in range(AGAIN) for copy in range(COPIES)]
    random.Random(0).shuffle(visits)
    folder.mkdir(parents=True)
    for number in range(SHARDS):
        with tarfile.open(folder / f"{number}.tar", "w") as tar:
            for picture, copy in visits[number::SHARDS]:
                pixels = np.random.default_rng(picture).integers(0, 256, (16, 16, 3), dtype=np.uint8)
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "PNG")
                name = f"p{picture}-{copy}"
                for ending, part in ((".png", content.getvalue()), (".txt", f"abc {name}".encode())):
                    member = tarfile.TarInfo(name + ending)
                    member.size = len(part)
                    tar.addfile(member, io.BytesIO(part))
    return str(folder / f"{{0..{SHARDS - 1}}}.tar")


def run(
    shards: str,
    pretrained: Path,
    folder: Path,
    *,
    stop: int,
    resume: Path | None = None,
    data: dict[str, Any] | None = None,
    **options: Any,
) -> tuple[TextToImageModule, MemorizationMonitor]:
    """Train for some steps, with a checkpoint after each; 48 visits are an epoch."""
    seed_everything(0)
    module = TextToImageModule(str(pretrained), learning_rate=1e-3, schedule="constant", ema_decay=0.9)
    settings = WatchSettings(calibrate_every=2, heldout_batch=3, heldout_share=0.3)
    watch = MemorizationMonitor(
        reference="paired", paired_every=1, false_positive_rate=0.1, minimum_visits=2, settings=settings
    )
    source = StreamedImages(shards, **{"resolution": 16, "batch_size": 4, "shuffle_buffer": 7, **(data or {})})
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
            "callbacks": [watch, keep],
            **options,
        }
    )
    trainer.fit(module, source, ckpt_path=resume)
    return module, watch


def main() -> None:
    """One of two processes: a run, and one that goes on from its third step."""
    warnings.simplefilter("ignore")
    shards, pretrained, folder = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    two: dict[str, Any] = {"data": {"batches_per_epoch": 5}, "devices": 2, "strategy": "ddp", "stop": 8}
    run(shards, pretrained, folder / "whole", **two)
    run(shards, pretrained, folder / "cut", resume=folder / "whole" / "checkpoints" / "step=3.ckpt", **two)


if __name__ == "__main__":
    main()
