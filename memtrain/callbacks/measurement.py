"""What the monitor measures beside the training batches: the base model's profile, and held-out samples.

Both run the module's `sample_loss` without gradients, in the precision of training, and read the same signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import move_data_to_device
from torch import Tensor
from torch.utils.data import default_collate

from memtrain.errors import ConfigurationError
from memtrain.models.probe import DenoiserProbe, Observation
from memtrain.reference import ReferenceProfile


@contextmanager
def as_in_training(trainer: Trainer) -> Iterator[None]:
    """No gradients, and the precision of the training forward."""
    with torch.no_grad(), trainer.precision_plugin.forward_context():
        yield


def require_measurable(trainer: Trainer, pl_module: LightningModule) -> Any:
    """The data module, if it and the module can be measured outside of training steps.

    Raises:
        ConfigurationError: if they cannot.
    """
    data: Any = getattr(trainer, "datamodule", None)
    if not hasattr(pl_module, "sample_loss") or not hasattr(data, "unique_dataloader"):
        raise ConfigurationError(
            f"{type(pl_module).__name__} with {type(data).__name__} cannot be measured under the base model",
            expected="a module with sample_loss(batch, timesteps, generator) and a data module with "
            "train_dataset, heldout_dataset and unique_dataloader(dataset), such as TextImageDataModule",
            remedy="add them, or set `reference: false` on MemorizationMonitor",
        )
    return data


def measure_profile(
    trainer: Trainer, pl_module: LightningModule, *, profile: ReferenceProfile, probe: DenoiserProbe, cached_only: bool
) -> None:
    """Measure what the profile's cache lacks, dealt out to the processes, and load it on all of them.

    Args:
        trainer: with the data module.
        pl_module: with `sample_loss`.
        profile: to fill.
        probe: on the denoiser, which is the base model unless `cached_only`.
        cached_only: the run is resumed, so the model is no longer the base model.

    Raises:
        RecordError: if `cached_only` and the cache lacks a sample.
    """
    data: Any = trainer.datamodule  # type: ignore[attr-defined]
    if not cached_only and trainer.is_global_zero:
        profile.name_after(probe.denoiser)
    profile.fingerprint = trainer.strategy.broadcast(profile.fingerprint)
    loaders = [data.unique_dataloader(data.train_dataset), data.unique_dataloader(data.heldout_dataset)]
    batches = (move_data_to_device(batch, pl_module.device) for loader in loaders for batch in loader)
    with as_in_training(trainer):
        profile.measure(
            probe,
            pl_module.sample_loss,  # type: ignore[arg-type]
            batches,
            total=sum(map(len, loaders)),
            rank=trainer.global_rank,
            world_size=trainer.world_size,
            cached_only=cached_only,
        )
    trainer.strategy.barrier()
    profile.load()


class HeldoutSamples:
    """Measures the held-out samples in turn, dealt out to the processes.

    Args:
        dataset: the samples, each once.
        probe: on the denoiser.
        read: the signal values `(B, columns)` of an observation.
        maximum_timestep: timesteps are drawn below it.
        seed: of timesteps and noise.
    """

    def __init__(
        self,
        dataset: Any,
        probe: DenoiserProbe,
        *,
        read: Callable[[Observation], Tensor],
        maximum_timestep: int,
        seed: int,
    ) -> None:
        self.dataset, self.probe, self.read = dataset, probe, read
        self.maximum_timestep, self.seed = maximum_timestep, seed
        self.done = 0

    def __len__(self) -> int:
        return len(self.dataset)

    def measure(self, trainer: Trainer, pl_module: LightningModule, count: int) -> tuple[list[str], list[int], Tensor]:
        """Measure the next `count` samples of this process.

        Returns:
            Their keys, their timesteps, and `(count, columns)` signal values on the host.
        """
        total, first = len(self.dataset), self.done + trainer.global_rank * count
        batch = default_collate([self.dataset[(first + offset) % total] for offset in range(min(count, total))])
        batch = move_data_to_device(batch, pl_module.device)
        generator = torch.Generator(pl_module.device).manual_seed(self.seed * 1_000_003 + first)
        keys = list(batch["key"])
        timesteps = torch.randint(self.maximum_timestep, (len(keys),), generator=generator, device=pl_module.device)
        with as_in_training(trainer), self.probe.measure(Observation(keys, batch.get("prompt_length"))) as observation:
            observation.sample_loss = pl_module.sample_loss(batch, timesteps, generator)  # type: ignore[operator]
        self.done += count * trainer.world_size
        return keys, timesteps.tolist(), self.read(observation).cpu()
