"""What the monitor measures beside the training batches: the base model's profile, and held-out samples.

Both run the module's `sample_loss` without gradients, in the precision of training, and read the same signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import RunningStage
from torch import Tensor
from torch.utils.data import default_collate

from memtrain.callbacks.paired_reference import PairedReference
from memtrain.errors import ConfigurationError
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.reference import ReferenceProfile, described
from memtrain.signals.base import FittedSignal, Signal


@contextmanager
def as_in_training(trainer: Trainer) -> Iterator[None]:
    """No gradients, and the precision of the training forward."""
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        yield


def moved(trainer: Trainer, pl_module: LightningModule, batch: Any) -> Any:
    """A batch on the device as a training step would get it, through the hooks of the data module or the module.

    Meanwhile the trainer says that it validates: what a hook does in training alone, such as dropping captions, it does
    not do to samples that are measured.
    """
    stage = trainer.state.stage
    trainer.state.stage = RunningStage.VALIDATING
    try:
        batch = trainer.precision_plugin.convert_input(batch)
        batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
        return trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    finally:
        trainer.state.stage = stage


def require_unconditional(pl_module: LightningModule, needed_by: str) -> None:
    """Refuse a module that cannot say what the empty caption's embeddings are.

    Raises:
        ConfigurationError: if it has no `unconditional_text`.
    """
    if not hasattr(pl_module, "unconditional_text"):
        raise ConfigurationError(
            f"{needed_by} needs the prediction under the empty caption, which {type(pl_module).__name__} cannot encode",
            expected="a method unconditional_text() -> (1, T, width) text embeddings of the empty caption",
            remedy=f"add it to the module, or leave {needed_by} out",
        )


def add_unconditional(
    trainer: Trainer, pl_module: LightningModule, probe: DenoiserProbe, observation: Observation
) -> None:
    """Run the denoiser once more under the empty caption, in the precision of training."""
    with as_in_training(trainer):
        observation.unconditional = probe.predict(observation, pl_module.unconditional_text())  # type: ignore[operator]


def completer(
    trainer: Trainer, pl_module: LightningModule, *, probe: DenoiserProbe, signals: Sequence[Signal]
) -> Callable[[Observation], None] | None:
    """What adds the unconditional prediction to an observation, if any signal reads it."""
    if not any(signal.unconditional_every for signal in signals):
        return None
    return lambda observation: add_unconditional(trainer, pl_module, probe, observation)


def measure_profile(
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    profile: ReferenceProfile,
    probe: DenoiserProbe,
    cached_only: bool,
    complete: Callable[[Observation], None] | None = None,
) -> None:
    """Measure what the profile's cache lacks, dealt out to the processes, and load it on all of them.

    Args:
        trainer: with the data module.
        pl_module: with `sample_loss`.
        profile: to fill.
        probe: on the denoiser, which is the base model unless `cached_only`.
        cached_only: the run is resumed, so the model is no longer the base model.
        complete: adds to each observation what the signals need beside the one forward.

    Raises:
        RecordError: if `cached_only` and the cache lacks a sample.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not cached_only and trainer.is_global_zero:
        profile.name_after(probe.denoiser, pl_module)
    profile.fingerprint = trainer.strategy.broadcast(profile.fingerprint)
    loaders = [data.unique_dataloader(data.train_dataset), data.unique_dataloader(data.heldout_dataset)]
    with as_in_training(trainer):
        profile.measure(
            probe,
            pl_module.sample_loss,  # type: ignore[arg-type]
            chain.from_iterable(loaders),
            total=sum(map(len, loaders)),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            cached_only=cached_only,
            move=partial(moved, trainer, pl_module),
            complete=complete,
        )
    trainer.strategy.barrier()
    profile.load()


def fit_signals(
    trainer: Trainer,
    pl_module: LightningModule,
    *,
    signals: Sequence[FittedSignal],
    probe: DenoiserProbe,
    timestep: int,
    seed: int,
) -> None:
    """Show the signals every training and held-out sample under the base model, once, on every process alike."""
    data: Any = trainer.datamodule  # type: ignore[attr-defined]

    def observations() -> Iterator[Observation]:
        for dataset in (data.train_dataset, data.heldout_dataset):
            for batch in data.unique_dataloader(dataset):
                batch = moved(trainer, pl_module, batch)
                generator = torch.Generator(pl_module.device).manual_seed(seed)
                steps = torch.full((len(batch["key"]),), timestep, device=pl_module.device)
                with (
                    as_in_training(trainer),
                    probe.measure(described(batch)) as observation,
                ):
                    pl_module.sample_loss(batch, steps, generator)  # type: ignore[operator]
                yield observation

    for signal in signals:
        signal.fit(observations())


@dataclass(frozen=True)
class HeldoutVisits:
    """What one process measured of held-out samples.

    Attributes:
        keys: B keys.
        timesteps: B timesteps.
        lengths: B prompt lengths, NaN if unknown.
        values: `(B, columns)` signal values.
        base: the base model's, in a paired comparison.
    """

    keys: list[str]
    timesteps: list[int]
    lengths: list[float]
    values: Tensor
    base: Tensor | None


class HeldoutSamples:
    """Measures the held-out samples in turn, dealt out to the processes.

    Args:
        dataset: the samples, each once.
        probe: on the denoiser.
        read: the signal values `(B, columns)` of an observation.
        maximum_timestep: timesteps are drawn below it.
        seed: of timesteps and noise.
        complete: adds to each observation what the signals need beside the one forward.
        paired: measure under the base model too.
    """

    def __init__(
        self,
        dataset: Any,
        probe: DenoiserProbe,
        *,
        read: Callable[[Observation], Tensor],
        maximum_timestep: int,
        seed: int,
        complete: Callable[[Observation], None] | None = None,
        paired: PairedReference | None = None,
    ) -> None:
        self.dataset, self.probe, self.read = dataset, probe, read
        self.maximum_timestep, self.seed = maximum_timestep, seed
        self.complete, self.paired = complete, paired
        self.done = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def lengths(self) -> list[int]:
        """Prompt lengths of all held-out samples; empty if the dataset does not know them."""
        known = getattr(self.dataset, "prompt_lengths", None)
        return [] if known is None else list(known)

    def measure(self, trainer: Trainer, pl_module: LightningModule, count: int) -> HeldoutVisits:
        """Measure the next `count` samples of this process."""
        total, first = len(self.dataset), self.done + trainer.global_rank * count
        batch = default_collate([self.dataset[(first + offset) % total] for offset in range(min(count, total))])
        batch = moved(trainer, pl_module, batch)
        seed = self.seed * 1_000_003 + first
        with as_in_training(trainer):
            timesteps, values = self._measure(pl_module, batch, seed)
            base = None
            if self.paired is not None:
                with self.paired.base_weights(self.probe.denoiser):
                    _, base = self._measure(pl_module, batch, seed)
        self.done += count * trainer.world_size
        lengths = batch.get("prompt_length")
        known = [float("nan")] * len(values) if lengths is None else [float(length) for length in lengths.tolist()]
        return HeldoutVisits(list(batch["key"]), timesteps, known, values, base)

    def _measure(self, pl_module: LightningModule, batch: Any, seed: int) -> tuple[list[int], Tensor]:
        keys = list(batch["key"])
        generator = torch.Generator(pl_module.device).manual_seed(seed)
        timesteps = torch.randint(self.maximum_timestep, (len(keys),), generator=generator, device=pl_module.device)
        with self.probe.measure(described(batch)) as observation:
            observation.sample_loss = pl_module.sample_loss(batch, timesteps, generator)  # type: ignore[operator]
        if self.complete is not None:
            self.complete(observation)
        return timesteps.tolist(), self.read(observation).cpu()
