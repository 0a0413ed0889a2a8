"""Images during training: validation prompts, and the most suspicious training samples next to their images.

Each prompt is sampled with the same seeds every `every` optimizer steps, before the first step and after the last, so
that grids of different steps can be compared. With a :class:`~memtrain.callbacks.monitor.MemorizationMonitor`, the
samples of the highest scores follow. Each row shows the training image, current generations for its caption, the key,
the score, the threshold, and whether it is flagged. A score says that the model knows a sample. These images show
whether it gives the sample back, before `memtrain measure` measures it. The exported pipeline would make the same
images, with averaged weights and every mitigation's `exporting`.

The images are PNG files `images/step-000200-prompts.png` and `images/step-000200-suspicious.png` in the run folder. If
the trainer logs to TensorBoard or W&B, they also go to `samples/prompts` and `samples/suspicious` there.

Source: none. Other trainers call them validation images. Cost: `(prompts + suspicious) × seeds × steps` calls of the
denoiser each time, and twice that with guidance. Several processes share the images. Under strategies that shard the
weights, each process makes all images. Suggested: about five prompts, `suspicious: 4`, two seeds, an `every` of a few
hundred steps.

The training does not change. Random state, modes, weights, schedulers and records are bit for bit the same as without
this callback, and a compiled denoiser is not compiled for other sizes (:mod:`memtrain.callbacks.paused_training`).

Cannot: show training images of streamed data or of a data module without `train_dataset`. Only prompts are sampled
then.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule, Trainer
from PIL import Image
from torch import Tensor

from memtrain.callbacks.base import Callback
from memtrain.callbacks.image_grid import GridRow, image_grid
from memtrain.callbacks.monitor import MemorizationMonitor
from memtrain.callbacks.paused_training import paused_training, require_exportable
from memtrain.callbacks.suspicious_samples import can_show, most_suspicious
from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.files.prompt_file import prompt_of, read_rows
from memtrain.files.whole import written_whole
from memtrain.monitoring import processes

log = logging.getLogger(__name__)

ROWS = 12
"""Largest number of prompts in one picture."""
SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")
"""Parts of the names of strategies under which every process must call the denoiser equally often."""


class SampleImages(Callback):
    """Sample prompts and the most suspicious training samples at regular steps.

    Args:
        prompts: validation prompts, or a file of prompts, which is text with one prompt in each line or a table.
        every: number of optimizer steps between images.
        suspicious: number of training samples with the highest scores to show; 0 for none.
        seeds: seeds of the images of each prompt.
        steps: number of sampling steps.
        guidance_scale: scale of classifier-free guidance; up to 1 means no guidance.
        size: height and width in pixels; by default the pipeline's own.
        batch_size: number of images sampled at once.
        folder: folder of the PNG files; default `images/` in the run folder.

    Raises:
        ConfigurationError: if there is nothing to sample, or a setting is out of range.
    """

    def __init__(
        self,
        prompts: list[str] | str | None = None,
        *,
        every: int = 200,
        suspicious: int = 4,
        seeds: list[int] | None = None,
        steps: int = 20,
        guidance_scale: float = 4.0,
        size: tuple[int, int] | None = None,
        batch_size: int = 4,
        folder: str | None = None,
    ) -> None:
        if every < 1 or suspicious < 0:
            raise ConfigurationError(
                f"every={every}, suspicious={suspicious}",
                expected="at least 1 step between images, and 0 or more samples",
                remedy="set such values",
            )
        self.prompts = read_prompt_file(prompts) if isinstance(prompts, str) else list(prompts or [])
        if not self.prompts and not suspicious:
            raise ConfigurationError(
                "SampleImages has nothing to sample: no prompts, and suspicious=0",
                expected="prompts, a number of suspicious samples, or both",
                remedy="name prompts, or remove SampleImages from the callbacks",
            )
        self.every, self.suspicious, self.folder = every, suspicious, folder
        self.sampling = Sampling(
            seeds=(0, 1) if seeds is None else seeds,
            steps=steps,
            guidance_scale=guidance_scale,
            size=None if size is None else (size[0], size[1]),
            batch_size=batch_size,
            progress=False,
        )
        self._monitor: MemorizationMonitor | None = None
        self._done = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a module or callbacks that do not fit, before any work is done."""
        if stage != "fit":
            return
        require_exportable(pl_module, "SampleImages")
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, MemorizationMonitor)]
        self._monitor = monitors[0] if monitors else None
        if self._monitor is None and not self.prompts:
            raise ConfigurationError(
                "SampleImages has no prompts, and cannot find the suspicious training samples",
                expected="a MemorizationMonitor among the callbacks",
                remedy="add a MemorizationMonitor, or name prompts",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show images of the prompts before training."""
        self._done = trainer.global_step
        if self._monitor is not None and self.suspicious and not can_show(self._monitor.engine.host.data):
            log.warning(
                "SampleImages shows no suspicious samples. The data module has no train_dataset with samples and "
                "pixel_values(row) to look up training images"
            )
        if self.prompts and trainer.global_step == 0:
            self._show(trainer, pl_module, suspicious=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show images when due, once a step, even if several batches or optimizers make up one step."""
        if trainer.global_step // self.every > self._done // self.every:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show images of the last step."""
        if trainer.global_step != self._done:
            self._show(trainer, pl_module)

    def _show(self, trainer: Any, module: Any, *, suspicious: bool = True) -> None:
        """Sample on every process; write and log on the first."""
        self._done = trainer.global_step
        found = []
        if suspicious and self._monitor is not None and can_show(self._monitor.engine.host.data):
            # These are the same on every process. They are from the monitor's last update, because a new update would
            # change the run.
            found = most_suspicious(self._monitor.calibration, self._monitor.engine.host.data, self.suspicious)
        prompts = [*self.prompts, *(sample.caption for sample in found)]
        if not prompts:
            return
        sharded = any(word in type(trainer.strategy).__name__ for word in SHARDED)
        with paused_training(trainer, module) as pipeline:
            images = _shared(pipeline, prompts, self.sampling, alone=sharded)
        if not trainer.is_global_zero:
            return
        count, titles = len(self.prompts), [f"seed {seed}" for seed in self.sampling.seeds]
        rows = [GridRow([prompt], list(images[row])) for row, prompt in enumerate(self.prompts)]
        beside = [
            GridRow(sample.lines(), [sample.image, *images[count + row]], marked=sample.flagged is not None)
            for row, sample in enumerate(found)
        ]
        for name, part, heads in (("prompts", rows, titles), ("suspicious", beside, ["training image", *titles])):
            starts = range(0, len(part), ROWS)
            pages = [image_grid(part[start : start + ROWS], titles=heads) for start in starts]
            self._write(trainer, name, pages)

    def _write(self, trainer: Any, name: str, pages: Sequence[Image.Image]) -> None:
        folder = Path(self.folder or Path(trainer.default_root_dir) / "images")
        for number, page in enumerate(pages, 1):
            behind = f"-{number}" if number > 1 else ""
            with written_whole(folder / f"step-{trainer.global_step:06d}-{name}{behind}.png") as unfinished:
                page.save(unfinished, "PNG")
            for logger in trainer.loggers:
                log_image(logger, f"samples/{name}{behind}", page, step=trainer.global_step)


def read_prompt_file(path: str) -> list[str]:
    """Read the prompts of a file without its empty rows; see :mod:`memtrain.files.prompt_file`.

    Args:
        path: the path of the file. Without a known ending, it is text with a prompt in each line.

    Raises:
        ConfigurationError: if the file is missing, unreadable or empty.
    """
    try:
        prompts = [text for row in read_rows(Path(path)) if (text := prompt_of(path, row)) is not None]
    except DataError as error:
        raise ConfigurationError(
            f"The prompts in {path!r} cannot be read: {error.problem}",
            expected="a text file with a prompt in each line, or a list of prompts",
            remedy=error.remedy,
        ) from error
    if not prompts:
        raise ConfigurationError(f"{path} holds no prompt", expected="one in each line", remedy="add prompts to it")
    return prompts


def log_image(logger: Any, name: str, page: Image.Image, *, step: int) -> None:
    """Show an image in TensorBoard or W&B, in the form of these Lightning loggers; other loggers get none."""
    if hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[page], step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_image"):
        logger.experiment.add_image(name, np.asarray(page), step, dataformats="HWC")


def _shared(pipeline: Any, prompts: Sequence[str], sampling: Sampling, *, alone: bool) -> list[Tensor]:
    """Sample images `(K, 3, H, W)` of each prompt; processes share the prompts unless each works `alone`."""
    rank, size = 0, 1
    if processes.several() and not alone:
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = list(prompts[rank::size])
    made = list(generate(pipeline, own, sampling=sampling).images) if own else []
    parts: list[list[Tensor]] = processes.gather([made]) if size > 1 else [made]
    return list(_in_turn(parts))


def _in_turn(parts: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
    """Sort the images of all processes into the order of the prompts."""
    for number in range(len(parts[0])):
        yield from (part[number] for part in parts if number < len(part))
