"""Images while training goes on: validation prompts, and the most suspicious training samples beside their images.

What: every `every` optimizer steps, before the first and after the last, each prompt is sampled with the same seeds, so
that grids of different steps can be compared. Beside a :class:`~memtrain.callbacks.monitor.MemorizationMonitor`, the
samples of the highest scores follow: the training image, today's generations for its caption, the key, the score, the
threshold, and whether it is flagged. A score says that the model came to know a sample; whether it gives the sample
back is what these images show, before `memtrain measure` measures it. Images are those that the exported pipeline would
make: with averaged weights and every mitigation's `exporting`.
Where: PNG files `images/step-000200-prompts.png` and `images/step-000200-suspicious.png` in the run folder, always; and
`samples/prompts`, `samples/suspicious` in TensorBoard and W&B, where the trainer has such a logger.
Source: none; what trainers call validation images. Cost: `(prompts + suspicious) × seeds × steps` calls of the denoiser
(twice that with guidance) each time. Several processes share the images; under strategies that shard the weights each
makes all. Suggested: some five prompts, `suspicious: 4`, two seeds, an `every` of a few hundred steps.
Training does not notice: random state, modes, weights, schedulers and records are bit for bit as without this callback,
and a compiled denoiser is not compiled for other sizes (:mod:`memtrain.callbacks.paused_training`).
Cannot: show training images of streamed data or of a data module without `train_dataset`; prompts are sampled there.
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
"""Prompts in one picture at most."""
SHARDED = ("FSDP", "DeepSpeed", "ModelParallel")
"""Strategies under which every process has to call the denoiser equally often, as parts of their names."""


class SampleImages(Callback):
    """Sample prompts and the most suspicious training samples now and then.

    Args:
        prompts: validation prompts, or a file of them: text with one in each line, or a table.
        every: optimizer steps between images.
        suspicious: training samples with the highest scores that are shown; 0 for none.
        seeds: of the images of each prompt.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance; up to 1 means without.
        size: height and width in pixels; by default the pipeline's own.
        batch_size: images sampled at once.
        folder: of the PNG files; default `images/` in the run folder.

    Raises:
        ConfigurationError: if there is nothing to sample, or no such setting.
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
                remedy="change them",
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
        """Refuse what it cannot work with, before any work is done."""
        if stage != "fit":
            return
        require_exportable(pl_module, "SampleImages")
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        monitors = [callback for callback in callbacks if isinstance(callback, MemorizationMonitor)]
        self._monitor = monitors[0] if monitors else None
        if self._monitor is None and not self.prompts:
            raise ConfigurationError(
                "SampleImages has no prompts, and does not know which training samples are suspicious",
                expected="a MemorizationMonitor among the callbacks",
                remedy="add one, or name prompts",
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what the model makes of the prompts before training."""
        self._done = trainer.global_step
        if self._monitor is not None and self.suspicious and not can_show(self._monitor.engine.host.data):
            log.warning(
                "SampleImages shows no suspicious samples: the data module has no train_dataset with samples and "
                "pixel_values(row), in which training images could be looked up"
            )
        if self.prompts and trainer.global_step == 0:
            self._show(trainer, pl_module, suspicious=False)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show images when due: once a step, also where several batches or optimizers make up one."""
        if trainer.global_step // self.every > self._done // self.every:
            self._show(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show what training ended with."""
        if trainer.global_step != self._done:
            self._show(trainer, pl_module)

    def _show(self, trainer: Any, module: Any, *, suspicious: bool = True) -> None:
        """Sample on every process; write and log on the first."""
        self._done = trainer.global_step
        found = []
        if suspicious and self._monitor is not None and can_show(self._monitor.engine.host.data):
            # The same on every process, and as of the monitor's last update: asking for one would change the run.
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
    """The prompts of a file, rows without one left out; see :mod:`memtrain.files.prompt_file`.

    Args:
        path: of the file; without one of the known endings it is text with a prompt in each line.

    Raises:
        ConfigurationError: if there is no such file, it cannot be read, or there is nothing in it.
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
        raise ConfigurationError(f"{path} holds no prompt", expected="one in each line", remedy="write some into it")
    return prompts


def log_image(logger: Any, name: str, page: Image.Image, *, step: int) -> None:
    """Show an image in TensorBoard or W&B, as these loggers of Lightning take it; others are left alone."""
    if hasattr(logger, "log_image"):
        logger.log_image(key=name, images=[page], step=step)
    elif hasattr(getattr(logger, "experiment", None), "add_image"):
        logger.experiment.add_image(name, np.asarray(page), step, dataformats="HWC")


def _shared(pipeline: Any, prompts: Sequence[str], sampling: Sampling, *, alone: bool) -> list[Tensor]:
    """Images `(K, 3, H, W)` of each prompt, made by all processes together, each its part; `alone`: each makes all."""
    rank, size = 0, 1
    if processes.several() and not alone:
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
    own = list(prompts[rank::size])
    made = list(generate(pipeline, own, sampling=sampling).images) if own else []
    parts: list[list[Tensor]] = processes.gather([made]) if size > 1 else [made]
    return list(_in_turn(parts))


def _in_turn(parts: Sequence[Sequence[Tensor]]) -> Iterator[Tensor]:
    """The prompts' images in their order, of what each process made."""
    for number in range(len(parts[0])):
        yield from (part[number] for part in parts if number < len(part))
