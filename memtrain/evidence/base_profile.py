"""The reference profile: what each sample looks like under the base model.

Plain losses and entropies mostly say how easy an image is and what its prompt is like. Measured once before training,
at a few timesteps with the same noise for the whole run, and subtracted at the nearest of those timesteps, they leave
what training changed (the idea of reference-model membership inference, e.g. Carlini et al., "Membership Inference
Attacks From First Principles", 2022).

The profile is cached by content (:mod:`memtrain.evidence.content`): the base model's weights, the settings, and for
each sample its latents and tokens. It is written in parts, so an interrupted measurement continues, and shared by every
run that names the same folder.

Cost: `len(timesteps) * draws` forward passes per sample, once. Nothing is added to a training step.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from memtrain.errors import ConfigurationError, DataError, RecordError
from memtrain.evidence.content import content_fingerprints, profile_fingerprint
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.models.transfer import to_device
from memtrain.records import write_parquet
from memtrain.signals.base import FittedSignal, Signal

SampleLoss = Callable[[dict[str, Any], Tensor, torch.Generator], Tensor]
"""`(batch, timesteps (B,), generator) -> (B,)` denoising losses: one forward of the denoiser."""


def described(batch: dict[str, Any]) -> Observation:
    """An observation with what a batch says of its samples."""
    return Observation(batch["key"], batch.get("prompt_length"), batch.get("prompt_mask"))


def _rows(part: Path) -> list[tuple[str, list[float]]]:
    table = pq.read_table(part)
    return list(zip(table["content"].to_pylist(), table["values"].to_pylist(), strict=True))


def _has_rows(batch: dict[str, Any]) -> bool:
    """Whether every field has a row for each sample."""
    return all(isinstance(value, Tensor | list) and len(value) == len(batch["key"]) for value in batch.values())


def _rows_of(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    return {
        name: value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]
        for name, value in batch.items()
    }


class ReferenceProfile:
    """Signal values of each sample under the base model.

    Args:
        folder: where profiles are kept.
        signals: what is measured.
        columns: names of the values of all signals together.
        timesteps: where to measure; visits are compared at the nearest.
        draws: noises per timestep, averaged (the loss on the scale of the signal, i.e. as a logarithm's argument).
        seed: of the noise.
    """

    def __init__(
        self,
        folder: Path,
        signals: Sequence[Signal],
        columns: Sequence[str],
        *,
        timesteps: Sequence[int] = (100, 300, 500, 700),
        draws: int = 2,
        seed: int = 0,
    ) -> None:
        if not timesteps or draws < 1:
            raise ConfigurationError(
                f"A reference profile at timesteps {list(timesteps)} with {draws} draws measures nothing",
                expected="at least one timestep and one draw",
                remedy="change reference_timesteps or reference_draws",
            )
        self.folder, self.signals, self.columns = folder, list(signals), list(columns)
        self.timesteps, self.draws, self.seed = sorted(timesteps), draws, seed
        self.fingerprint = ""
        self._content: dict[str, str] = {}
        self._row: dict[str, int] = {}
        self._values = torch.empty(0, len(self.timesteps), len(self.columns))

    def name_after(self, denoiser: nn.Module, module: Any = None) -> str:
        """The profile's name, from the base model's weights and the settings.

        Args:
            denoiser: of the base model.
            module: that holds it and, perhaps, the rest of the base model.
        """
        fitted = [signal.state_dict() for signal in self.signals if isinstance(signal, FittedSignal)]
        settings = [self.columns, self.timesteps, self.draws, self.seed]
        self.fingerprint = profile_fingerprint(denoiser, module, settings=settings, fitted=fitted)
        return self.fingerprint

    def measure(
        self,
        probe: DenoiserProbe,
        sample_loss: SampleLoss,
        batches: Iterable[dict[str, Any]],
        *,
        total: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        cached_only: bool = False,
        move: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        complete: Callable[[Observation], None] | None = None,
    ) -> int:
        """Measure the samples that the cache lacks; call :meth:`load` when all processes are done.

        Args:
            probe: on the base model.
            sample_loss: one forward of the denoiser.
            batches: every sample once; the same on every process. Samples are known by what they hold as they are here.
            total: number of batches, for the progress bar.
            rank: this process; batches are dealt out to processes in turn.
            world_size: number of processes.
            cached_only: the model is no longer the base model; refuse to measure.
            move: makes of a batch what `sample_loss` gets, on the model's device; default nothing is made of it.
            complete: adds to each observation what the signals need beside the one forward.

        Returns:
            Number of samples measured now by this process.

        Raises:
            RecordError: if `cached_only` and the cache lacks a sample.
        """
        known = set(self._cached())
        measured = 0
        progress = tqdm(batches, total=total, desc="reference profile", unit="batch", disable=cached_only or rank > 0)
        for index, batch in enumerate(progress):
            contents = content_fingerprints(batch)
            for key, content in zip(batch["key"], contents, strict=True):
                if self._content.setdefault(key, content) != content:
                    raise DataError(
                        f"Two samples of the data are both named {key!r}, and are not the same",
                        expected="a name of its own for every training and held-out sample",
                        remedy="name training and validation samples differently, for instance by their files",
                    )
            # Copies under names of their own hold the same: they are measured once.
            fresh = sorted({content: row for row, content in enumerate(contents) if content not in known}.values())
            if index % world_size != rank or not fresh:
                continue
            if cached_only:
                raise RecordError(
                    f"The reference profile {self.fingerprint!r} in {self.folder} lacks samples of this data",
                    expected="the profile that was measured when this run began, and the same data",
                    remedy="restore the folder and the data, or start a new run",
                )
            if _has_rows(batch) and len(fresh) < len(contents):
                batch, contents = _rows_of(batch, fresh), [contents[row] for row in fresh]
            known.update(contents)
            batch = batch if move is None else move(batch)
            measured_at = [self._measure_at(probe, sample_loss, batch, t, complete) for t in self.timesteps]
            values = torch.stack(measured_at, dim=1)
            table = pa.table({"content": contents, "values": values.flatten(1).double().tolist()})
            # After all of its samples: data that share some of them must not write over each other's parts.
            part = hashlib.sha256("".join(contents).encode()).hexdigest()[:24]
            write_parquet(table, self.folder / self.fingerprint / f"{part}.parquet")
            measured += len(contents)
        return measured

    def _measure_at(
        self,
        probe: DenoiserProbe,
        sample_loss: SampleLoss,
        batch: dict[str, Any],
        timestep: int,
        complete: Callable[[Observation], None] | None,
    ) -> Tensor:
        """`(B, columns)`, averaged over draws."""
        device = next(probe.denoiser.parameters()).device
        steps = torch.full((len(batch["key"]),), timestep, device=device)
        total = torch.zeros(len(batch["key"]), len(self.columns))
        for draw in range(self.draws):
            generator = torch.Generator(device).manual_seed((self.seed * 1009 + timestep) * 1009 + draw)
            with probe.measure(described(batch)) as observation:
                observation.sample_loss = sample_loss(batch, steps, generator)
            if complete is not None:
                complete(observation)
            total += torch.cat([signal(observation) for signal in self.signals], dim=1).cpu()
        return total / self.draws

    def _parts(self) -> list[Path]:
        return sorted((self.folder / self.fingerprint).glob("*.parquet"))

    def _cached(self) -> list[str]:
        return [content for part in self._parts() for content in pq.read_table(part)["content"].to_pylist()]

    def load(self) -> int:
        """Read the measured values of the samples that :meth:`measure` went through.

        Returns:
            Number of samples.

        Raises:
            RecordError: if one was not measured, or there is none.
        """
        if not self._content:
            raise RecordError(
                "The reference profile covers no sample",
                expected="at least one training or held-out sample",
                remedy="check what the data module's unique_dataloader yields",
            )
        values = {content: row for part in self._parts() for content, row in _rows(part)}
        missing = [key for key, content in self._content.items() if content not in values]
        if missing:
            raise RecordError(
                f"The reference profile {self.fingerprint!r} in {self.folder} lacks {len(missing)} samples",
                expected="a value for every sample",
                remedy="start the run again: measuring continues where it stopped",
            )
        self._row = {key: row for row, key in enumerate(self._content)}
        table = torch.tensor([list(values[content]) for content in self._content.values()], dtype=torch.float32)
        self._values = table.view(len(table), len(self.timesteps), len(self.columns))
        return len(self._row)

    def __contains__(self, key: str) -> bool:
        return key in self._row

    def bucket(self, timestep: float) -> int:
        """Index of the nearest measured timestep."""
        return min(range(len(self.timesteps)), key=lambda index: abs(self.timesteps[index] - timestep))

    def lookup_on_device(self, keys: Sequence[str], timesteps: Tensor) -> Tensor:
        """As :meth:`lookup`, on the device of `timesteps` `(B,)`, whose values are not read on the host."""
        missing = [key for key in keys if key not in self._row]
        if missing:
            self.lookup(missing, [0.0] * len(missing))
        values = to_device(self._values[[self._row[key] for key in keys]], timesteps.device)
        bucket = self.buckets_on_device(timesteps)
        return values.gather(1, bucket[:, None, None].expand(-1, 1, values.shape[2]))[:, 0]

    def buckets_on_device(self, timesteps: Tensor) -> Tensor:
        """As :meth:`bucket`, `(B,)`, for timesteps that are not read on the host."""
        # In fp64, as on the host: in half precision the distances to two measured timesteps may round to one.
        measured = to_device(torch.tensor(self.timesteps, dtype=torch.float64), timesteps.device)
        return (timesteps[:, None].double() - measured).abs().argmin(dim=1)

    def lookup(self, keys: Sequence[str], timesteps: Sequence[float]) -> Tensor:
        """Values of samples at the measured timestep nearest to each visit, `(B, columns)`.

        Raises:
            RecordError: if a sample was never measured.
        """
        missing = [key for key in keys if key not in self._row]
        if missing:
            raise RecordError(
                f"{len(missing)} sample(s) are not in the reference profile, first {missing[0]!r}",
                expected="every training and held-out sample",
                remedy="start the run anew, so that the profile covers the data",
            )
        # Without a type, those of no visits would be floats, which index nothing.
        rows = torch.tensor([self._row[key] for key in keys], dtype=torch.long)
        return self._values[rows, torch.tensor([self.bucket(timestep) for timestep in timesteps], dtype=torch.long)]
