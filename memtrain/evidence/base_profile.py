"""The reference profile: the signal values of each sample under the base model.

Plain losses and entropies mostly show how easy an image is and what its prompt is like. The profile measures them once
before training, at a few timesteps with the same noise for the whole run. It is subtracted at the nearest of these
timesteps, which leaves the effect of training. This is the idea of reference-model membership inference (e.g. Carlini
et al., "Membership Inference Attacks From First Principles", 2022).

The profile is cached by content (:mod:`memtrain.evidence.content`): the base model's weights, the settings, and each
sample's latents and tokens or a name from the data for them. It is written in parts
(:mod:`memtrain.evidence.profile_parts`), so an interrupted measurement continues. Every run that names the same folder
shares it.

Cost: `len(timesteps) * draws` forward passes per sample, once. Caption and image are encoded once for all of them
(:mod:`memtrain.monitoring.encoded_once`). A training step costs the same as before. The noise of a sample depends on
its place in the measured batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, RecordError
from memtrain.evidence.content import content_fingerprints, profile_fingerprint, tells_content
from memtrain.evidence.profile_values import ProfileValues
from memtrain.files.progress import progress_bar
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.signals.base import FittedSignal, Signal

SampleLoss = Callable[[dict[str, Any], Tensor, torch.Generator], Tensor]
"""`(batch, timesteps (B,), generator) -> (B,)` denoising losses: one forward of the denoiser."""


def described(batch: dict[str, Any]) -> Observation:
    """Return an observation with the batch's information about its samples."""
    return Observation(batch["key"], batch.get("prompt_length"), batch.get("prompt_mask"))


def _has_rows(batch: dict[str, Any]) -> bool:
    """Return whether every field has a row for each sample."""
    return all(isinstance(value, Tensor | list) and len(value) == len(batch["key"]) for value in batch.values())


def _rows_of(batch: dict[str, Any], rows: Sequence[int]) -> dict[str, Any]:
    return {
        name: value[list(rows)] if isinstance(value, Tensor) else [value[row] for row in rows]
        for name, value in batch.items()
    }


class ReferenceProfile(ProfileValues):
    """Signal values of each sample under the base model.

    Args:
        folder: the folder of the profiles.
        signals: the signals to measure.
        columns: names of the values of all signals together.
        timesteps: the measured timesteps; visits are compared at the nearest.
        draws: number of noises per timestep, whose values are averaged. The loss is averaged before its logarithm.
        seed: seed of the noise.
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
                remedy="set reference_timesteps and reference_draws",
            )
        super().__init__(folder, columns, timesteps)
        self.signals, self.draws, self.seed = list(signals), draws, seed

    def name_after(self, denoiser: nn.Module, module: Any = None) -> str:
        """Set the profile's name from the base model's weights and the settings.

        Args:
            denoiser: the denoiser of the base model.
            module: the module that contains it, and possibly the rest of the base model.
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
        contents_of: Callable[[dict[str, Any]], list[str]] = content_fingerprints,
    ) -> int:
        """Measure the samples that the cache lacks; call :meth:`load` when all processes are done.

        Args:
            probe: the probe on the base model.
            sample_loss: function that runs one forward of the denoiser.
            batches: batches with every sample once, the same on every process. The content of samples in these batches
                names them.
            total: number of batches, for the progress bar.
            rank: the rank of this process; batches are divided among processes in turn.
            world_size: number of processes that share `batches`; 1 if they belong to this process only.
            cached_only: whether to refuse to measure, because the model is not the base model any more.
            move: function that prepares a batch for `sample_loss` on the model's device; by default it stays as it is.
            complete: function that adds the further readings of the signals to each observation.
            contents_of: function that names the contents of a batch's samples.

        Returns:
            The number of samples that this process measured now.

        Raises:
            RecordError: if `cached_only` and the cache lacks a sample.
        """
        known = set(self.parts.contents().to_pylist())
        measured = 0
        progress = progress_bar(
            batches, total=total, desc="reference profile", unit="batch", disable=cached_only or rank > 0
        )
        try:
            for index, batch in enumerate(progress):
                contents = contents_of(batch)
                self.cover(batch["key"], contents)
                # Copies under other names have the same content, so they are measured once.
                fresh = sorted({content: row for row, content in enumerate(contents) if content not in known}.values())
                if index % world_size != rank % world_size or not fresh:
                    continue
                if cached_only:
                    raise self.lacks()
                if _has_rows(batch) and len(fresh) < len(contents):
                    batch, contents = _rows_of(batch, fresh), [contents[row] for row in fresh]
                known.update(contents)
                # The values get both names, because at the next start the data may not know one of them without
                # reading.
                names = [contents]
                if contents_of is not content_fingerprints and tells_content(batch) and _has_rows(batch):
                    names.append(content_fingerprints(batch))
                batch = batch if move is None else move(batch)
                values = self.values(probe, sample_loss, batch, complete=complete)
                for one in names:
                    self.parts.add(one, values.flatten(1).float().numpy())
                if self.parts.due:
                    self.parts.flush()
                measured += len(contents)
        finally:
            self.parts.flush()
        return measured

    def lacks(self) -> RecordError:
        """Return the error for a measurement with a model that is not the base model any more."""
        return RecordError(
            f"The reference profile {self.fingerprint!r} in {self.folder} lacks samples of this data",
            expected="the profile from the beginning of this run, and the same data",
            remedy="restore the folder and the data, or start a new run",
        )

    def values(
        self,
        probe: DenoiserProbe,
        sample_loss: SampleLoss,
        batch: dict[str, Any],
        *,
        complete: Callable[[Observation], None] | None = None,
    ) -> Tensor:
        """Measure a batch, `(B, timesteps, columns)`."""
        return torch.stack([self._measure_at(probe, sample_loss, batch, t, complete) for t in self.timesteps], dim=1)

    def _measure_at(
        self,
        probe: DenoiserProbe,
        sample_loss: SampleLoss,
        batch: dict[str, Any],
        timestep: int,
        complete: Callable[[Observation], None] | None,
    ) -> Tensor:
        """Measure at one timestep, `(B, columns)`, averaged over draws."""
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
