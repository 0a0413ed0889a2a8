"""The checkpoints that a pattern names, in the order of training, each looked at before any work begins."""

from __future__ import annotations

import glob
from collections.abc import Callable
from pathlib import Path

from diffusers import DiffusionPipeline

from memtrain.cli.checkpoint_model import read_checkpoint
from memtrain.cli.trained_pipeline import CHECKPOINT, trained
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.settings import Precision
from memtrain.evaluation.stages.checkpoints import Checkpoint


def checkpoints_of(pattern: str, *, precision: Precision, device: str) -> list[Checkpoint]:
    """Checkpoints of memtrain, by step; of one step the first by name, so that `last.ckpt` is no second point.

    Args:
        pattern: a path with wildcards.
        precision: the number format of the models.
        device: the device of the models.

    Raises:
        ConfigurationError: if nothing has such a path, or one is no checkpoint of ours.
    """
    paths = sorted(map(Path, glob.glob(pattern, recursive=True)))
    if not paths or any(path.suffix != CHECKPOINT for path in paths):
        found = "nothing" if not paths else f"{next(path for path in paths if path.suffix != CHECKPOINT)}"
        raise ConfigurationError(
            f"checkpoints={pattern!r} names {found}",
            expected=f"{CHECKPOINT} files of a training run, such as 'runs/x/checkpoints/*.ckpt'",
            remedy="check the pattern, and quote it, so that the shell leaves it alone; a run keeps several "
            "checkpoints with ModelCheckpoint's `save_top_k=-1`",
        )
    found_steps: dict[int | None, Path] = {}
    for path in paths:
        step = read_checkpoint(path).get("global_step")
        kept = found_steps.setdefault(None if step is None else int(step), path)
        if kept != path:
            print(f"Left out: {path}, which has the same step as {kept}")
    steps = sorted(found_steps.items(), key=lambda item: (item[0] is None, item[0] or 0))
    return [Checkpoint(path, step, _loader(path, precision, device)) for step, path in steps]


def _loader(path: Path, precision: Precision, device: str) -> Callable[[], DiffusionPipeline]:
    def load() -> DiffusionPipeline:
        return trained(str(path), precision=precision).load().to(device)

    return load
