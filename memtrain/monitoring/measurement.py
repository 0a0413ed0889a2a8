"""Measurements outside of the training batches: held-out samples, and functions for all measurements.

The base model's profile is in :mod:`memtrain.monitoring.profiled_samples`. Both run the host module's `sample_loss`
without gradients, in the precision of training, and read the same signals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import default_collate

from memtrain.errors import ConfigurationError
from memtrain.families.table import FamilyIndex
from memtrain.models.attention_reading import without_cast_cache
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.batch_fields import described_length, described_mask
from memtrain.monitoring.host import Host
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.signals.base import FittedSignal, Signal


def described(batch: Any, keys: Sequence[str]) -> Observation:
    """Return an observation with the batch's information about its samples."""
    return Observation(keys, described_length(batch, len(keys)), described_mask(batch, len(keys)))


@contextmanager
def as_in_training(host: Host) -> Iterator[None]:
    """Provide a context without gradients, in the precision of the training forward."""
    with torch.no_grad(), host.forward_context(), without_cast_cache():
        yield


def require_unconditional(module: Any, needed_by: str) -> None:
    """Refuse a module that cannot encode the empty caption.

    Raises:
        ConfigurationError: if the module has no `unconditional_text`.
    """
    if not hasattr(module, "unconditional_text"):
        raise ConfigurationError(
            f"{needed_by} needs the prediction under the empty caption, which {type(module).__name__} cannot encode",
            expected="a method unconditional_text() -> (1, T, width) text embeddings of the empty caption, or a "
            "dict with `text_embeddings` and its further inputs",
            remedy=f"add it to the module, or remove {needed_by}",
        )


def add_unconditional(host: Host, probe: DenoiserProbe, observation: Observation) -> None:
    """Run the denoiser once more under the empty caption, in the precision of training."""
    with as_in_training(host):
        observation.unconditional = probe.predict(observation, host.module.unconditional_text())


def completer(host: Host, *, probe: DenoiserProbe, signals: Sequence[Signal]) -> Callable[[Observation], None] | None:
    """Return a function that adds the unconditional prediction to an observation, if a signal reads it."""
    if not any(signal.unconditional_every for signal in signals):
        return None
    return lambda observation: add_unconditional(host, probe, observation)


def fit_signals(
    host: Host,
    *,
    signals: Sequence[FittedSignal],
    probe: DenoiserProbe,
    timestep: int,
    seed: int,
) -> None:
    """Show every training and held-out sample under the base model to the signals once, the same on every process."""
    data, module = host.data, host.module

    def observations() -> Iterator[Observation]:
        for dataset in (data.train_dataset, data.heldout_dataset):
            for batch in data.unique_dataloader(dataset):
                batch = host.moved(batch)
                keys = host.names(batch)
                generator = torch.Generator(host.device).manual_seed(seed)
                steps = torch.full((len(keys),), timestep, device=host.device)
                with as_in_training(host), probe.measure(described(batch, keys)) as observation:
                    module.sample_loss(batch, steps, generator)
                yield observation

    for signal in signals:
        signal.fit(observations())


@dataclass(frozen=True)
class HeldoutVisits:
    """Measurements of held-out samples on one process.

    Attributes:
        keys: B keys.
        timesteps: B timesteps.
        lengths: B prompt lengths, NaN if unknown.
        values: `(B, columns)` signal values.
        base: the base model's values, in a paired comparison.
    """

    keys: list[str]
    timesteps: list[int]
    lengths: list[float]
    values: Tensor
    base: Tensor | None


class HeldoutSamples:
    """Measures the held-out samples in turn, divided among the processes, with the first file of each picture.

    Args:
        host: the host, whose module is trained.
        dataset: the samples, each once.
        probe: the probe on the denoiser.
        read: function that reads the signal values `(B, columns)` of an observation.
        maximum_timestep: upper limit of the drawn timesteps.
        seed: seed of timesteps and noise.
        complete: function that adds the further readings of the signals to each observation.
        paired: weights of the base model, to measure under it too.
    """

    def __init__(
        self,
        host: Host,
        dataset: Any,
        probe: DenoiserProbe,
        *,
        read: Callable[[Observation], Tensor],
        maximum_timestep: int,
        seed: int,
        complete: Callable[[Observation], None] | None = None,
        paired: PairedReference | None = None,
    ) -> None:
        self.host, self.dataset, self.probe, self.read = host, dataset, probe, read
        self.maximum_timestep, self.seed = maximum_timestep, seed
        self.complete, self.paired = complete, paired
        self.done = 0
        self.rows = _first_of_each_picture(dataset, host.families)

    def __len__(self) -> int:
        return len(self.rows)

    def lengths(self) -> list[int]:
        """Return the prompt lengths of all held-out samples; empty if the dataset does not know them."""
        known = getattr(self.dataset, "prompt_lengths", None)
        return [] if known is None else [known[row] for row in self.rows]

    def measure(self, count: int) -> HeldoutVisits:
        """Measure the next `count` samples of this process."""
        first = self.done + self.host.rank * count
        groups = self._of_one_shape(self._next(first, count))
        # If all processes run a forward together, each process runs the same number of forwards.
        forwards = max(
            len(self._of_one_shape(self._next(self.done + rank * count, count))) for rank in range(self.host.world_size)
        )
        seed = self.seed * 1_000_003 + first
        found = [self._visits(groups[min(turn, len(groups) - 1)], seed + turn) for turn in range(forwards)]
        self.done += count * self.host.world_size
        return _joined(found[: len(groups)])

    def _next(self, first: int, count: int) -> list[int]:
        """Return rows of the dataset that are measured together."""
        return [self.rows[(first + offset) % len(self.rows)] for offset in range(min(count, len(self.rows)))]

    def _of_one_shape(self, rows: list[int]) -> list[list[int]]:
        """Group rows that fit into one batch, in the order of the first row of each group."""
        shapes = getattr(self.dataset, "shapes", None)
        groups: dict[Any, list[int]] = {}
        for row in rows:
            groups.setdefault(None if shapes is None else shapes[row], []).append(row)
        return list(groups.values())

    def _visits(self, rows: list[int], seed: int) -> HeldoutVisits:
        collate = getattr(self.dataset, "collate", default_collate)
        batch = self.host.moved(collate([self.dataset[row] for row in rows]))
        keys = self.host.names(batch)
        with as_in_training(self.host):
            timesteps, values = self._measure(batch, keys, seed)
            base = None
            if self.paired is not None:
                with self.paired.base_weights(self.probe.denoiser):
                    _, base = self._measure(batch, keys, seed)
        lengths = described_length(batch, len(keys))
        known = [float("nan")] * len(values) if lengths is None else [float(length) for length in lengths.tolist()]
        return HeldoutVisits(keys, timesteps, known, values, base)

    def _measure(self, batch: Any, keys: list[str], seed: int) -> tuple[list[int], Tensor]:
        device = self.host.device
        generator = torch.Generator(device).manual_seed(seed)
        timesteps = torch.randint(self.maximum_timestep, (len(keys),), generator=generator, device=device)
        with self.probe.measure(described(batch, keys)) as observation:
            observation.sample_loss = self.host.module.sample_loss(batch, timesteps, generator)
        if self.complete is not None:
            self.complete(observation)
        return timesteps.tolist(), self.read(observation).cpu()


def of_all_processes(host: Host, measured: Sequence[HeldoutVisits | None]) -> list[HeldoutVisits]:
    """Return the measurements of each process in the order of ranks."""
    own = [(host.rank, place, visits) for place, visits in enumerate(measured) if visits is not None]
    return [visits for *_, visits in sorted(host.gather(own), key=lambda part: part[:2])]


def _joined(visits: list[HeldoutVisits]) -> HeldoutVisits:
    """Join the visits of several batches."""
    bases = [one.base for one in visits if one.base is not None]
    return HeldoutVisits(
        [key for one in visits for key in one.keys],
        [timestep for one in visits for timestep in one.timesteps],
        [length for one in visits for length in one.lengths],
        torch.cat([one.values for one in visits]),
        torch.cat(bases) if bases else None,
    )


def _first_of_each_picture(dataset: Any, families: FamilyIndex | None) -> Sequence[int]:
    """Return one row of a data set for each picture; all rows if the names of its samples are unknown."""
    keys = [getattr(sample, "key", None) for sample in getattr(dataset, "samples", ())]
    if families is None or len(keys) != len(dataset) or not all(isinstance(key, str) for key in keys):
        return range(len(dataset))
    rows: dict[str, int] = {}
    for row, key in enumerate(keys):
        rows.setdefault(families.picture(str(key)), row)
    return list(rows.values())
