"""The monitor: watches every training batch, names the samples being memorized, and keeps the record.

On every training batch it reads the signals through the probe, compares them with the base model, adds them to each
sample's evidence, and lets the mitigations weight the samples of the batch. Now and then it measures held-out samples
(the validation data) under the model as it is, which calibrates the threshold.

It works in any LightningModule whose loss is a batch mean of squared errors at the output of a known denoiser and whose
batches carry sample keys. What is compared with is `reference`:

- `true`: a profile of every sample under the base model, measured once before training. It needs a method
  `sample_loss(batch, timesteps, generator) -> (B,)` on the module, which runs the denoiser once, and a data module with
  `train_dataset`, `heldout_dataset` and `unique_dataloader(dataset)`.
- `paired`: the base model on the very same noise, every `paired_every`-th batch
  (:mod:`memtrain.callbacks.paired_reference`), for data that is streamed or too large for a profile, and for modules
  without `sample_loss`.
- `false`: nothing; values are compared with the other training samples of the run.

Held-out samples need `sample_loss` too; without it (or with `reference: false`) the threshold rests on the bulk of the
training samples, by median and spread.

Cost: two projections per attention site and step; the profile, once; a forward of `heldout_batch` samples every
`calibrate_every` batches. Between these updates nothing waits for the device: what a batch showed is copied to the host
in the background and becomes evidence, together with that of the other processes, at the next update. So flags lag
behind by less than `calibrate_every` batches.

Logged metrics: `memorization/flagged` (samples flagged so far), `memorization/threshold` (score above which a sample is
flagged), `memorization/weight` (mean weight in the batch).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from memtrain.calibration import Calibration, Sign, length_edges
from memtrain.callbacks import processes
from memtrain.callbacks.measurement import (
    HeldoutSamples,
    add_unconditional,
    as_in_training,
    fit_signals,
    is_measurable,
    measure_profile,
    require_measurable,
    require_unconditional,
)
from memtrain.callbacks.mitigation import Flags, Mitigation
from memtrain.callbacks.paired_reference import PairedReference
from memtrain.callbacks.run_records import RunRecords
from memtrain.callbacks.visits import Visits
from memtrain.errors import ConfigurationError, DataError
from memtrain.models.backbones.base import find_denoiser
from memtrain.models.probe import DenoiserProbe, Observation
from memtrain.models.transfer import to_device
from memtrain.reference import ReferenceProfile
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.base import FittedSignal, Signal
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.readings import Readings

log = logging.getLogger(__name__)

COMBINED = "combined"
"""Flag by all signals together, along the direction in which the run's canaries stand out."""


class MemorizationMonitor(Callback):
    """Watch training for memorized samples.

    Args:
        signals: what is measured; default denoising loss and attention entropy.
        flag_by: name of the signal that flags go by, or `combined` for all of them, weighted by the run's canaries.
        false_positive_rate: share of samples like the held-out ones that may be flagged over the whole run.
        sites: glob over attention sites (`*` for all); default the backbone's subset.
        denoiser: module path of the denoiser; found by itself if there is one.
        key_field: field of the batch that holds the sample keys.
        maximum_timestep: visits at or above this timestep are recorded but are no evidence.
        minimum_visits: visits before a sample can be flagged.
        evidence_window: visits that a sample's evidence remembers.
        reference: how values are compared with the base model, see above.
        paired_every: batches between comparisons with `reference: paired`.
        reference_folder: where reference profiles are kept; default `profiles/` in the run folder.
        reference_timesteps: where the profile is measured.
        reference_draws: noises per timestep and sample.
        calibrate_every: batches between updates: new evidence of all processes, measurement of held-out samples.
        heldout_batch: held-out samples measured then, per process.
        seed: of the noise for profile and held-out samples.
    """

    def __init__(
        self,
        signals: list[Signal] | None = None,
        *,
        flag_by: str = "denoising_loss",
        false_positive_rate: float = 0.01,
        sites: str | None = None,
        denoiser: str | None = None,
        key_field: str = "key",
        maximum_timestep: int = 800,
        minimum_visits: int = 6,
        evidence_window: int = 12,
        reference: bool | Literal["paired"] = True,
        paired_every: int = 4,
        reference_folder: str | None = None,
        reference_timesteps: tuple[int, ...] = (100, 300, 500, 700),
        reference_draws: int = 2,
        calibrate_every: int = 8,
        heldout_batch: int = 8,
        seed: int = 0,
    ) -> None:
        self.signals = list(signals) if signals else [DenoisingLoss(), AttentionEntropy()]
        self.names = [signal.name for signal in self.signals]
        if flag_by not in [*self.names, COMBINED]:
            raise ConfigurationError(
                f"flag_by={flag_by!r} is no measured signal",
                expected=f"one of {[*self.names, COMBINED]}",
                remedy="change flag_by, or add the signal to `signals`",
            )
        if min(calibrate_every, heldout_batch, paired_every) < 1:
            raise ConfigurationError(
                f"calibrate_every={calibrate_every}, heldout_batch={heldout_batch}, paired_every={paired_every}",
                expected="at least 1 each",
                remedy="change them",
            )
        self.flag_by, self.false_positive_rate = flag_by, false_positive_rate
        self.sites, self.denoiser, self.key_field = sites, denoiser, key_field
        self.maximum_timestep, self.minimum_visits, self.window = maximum_timestep, minimum_visits, evidence_window
        self.reference, self.reference_folder, self.paired_every = reference, reference_folder, paired_every
        self.reference_timesteps, self.reference_draws = reference_timesteps, reference_draws
        self.calibrate_every, self.heldout_batch, self.seed = calibrate_every, heldout_batch, seed
        self.probe: DenoiserProbe | None = None
        self.profile: ReferenceProfile | None = None
        self.mitigations: list[Mitigation] = []
        self._batches_done = 0
        self._visits: list[Visits] = []
        self._heldout: HeldoutSamples | None = None
        self._paired: PairedReference | None = None
        self._state: dict[str, Any] = {}

    # Start and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse to share a run with another monitor, and remember the base model, before a checkpoint is loaded."""
        if sum(isinstance(c, MemorizationMonitor) for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ConfigurationError(
                "There are two MemorizationMonitors among the callbacks",
                expected="one, which may measure several signals",
                remedy="put all signals into one monitor",
            )
        if stage == "fit" and self.reference == "paired":
            self._paired = PairedReference(find_denoiser(pl_module, self.denoiser)[1])

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the probe, measure the base model, calibrate, open the record."""
        _, denoiser, backbone = find_denoiser(pl_module, self.denoiser)
        found = [c for c in trainer.callbacks if isinstance(c, Mitigation)]  # type: ignore[attr-defined]
        self.mitigations = sorted(found, key=lambda mitigation: not mitigation.changes_samples)
        self._check(trainer, pl_module)
        self.probe = DenoiserProbe(
            denoiser,
            sites=self.sites,
            backbone=backbone,
            differentiable=any(mitigation.needs_graph for mitigation in self.mitigations),
            neurons=any(signal.needs_neurons for signal in self.signals),
            keep_call=bool(self._unconditional_every) or self._paired is not None,
        )
        self.readings = Readings(self.signals, list(self.probe.sites))
        self._open_heldout(trainer, pl_module)
        self.calibration = self._new_calibration(getattr(trainer, "datamodule", None))
        self._require_heldout(trainer)
        self.profile = ReferenceProfile(
            Path(self.reference_folder or Path(trainer.default_root_dir) / "profiles"),
            self.signals,
            self.readings.columns,
            timesteps=self.reference_timesteps,
            draws=self.reference_draws,
            seed=self.seed,
        )
        for mitigation in self.mitigations:
            mitigation.attach(denoiser, backbone=backbone, module=pl_module)
        self.probe.attach()
        # Taken once: a second fit with the same callback starts anew.
        state, self._state = self._state, {}
        self._batches_done, self._visits = state.get("batches_done", 0), []
        columns = self.readings.columns
        names = columns + ([f"base.{name}" for name in columns] if self._paired is not None else [])
        self.records = RunRecords(trainer, names, batches_done=self._batches_done if state else None)
        if state:
            self.calibration.load_state_dict(state["calibration"])
            self.profile.fingerprint = state["fingerprint"]
            for signal, kept in zip(self.readings.fitted, state["signals"], strict=True):
                signal.load_state_dict(kept)
            self._visits = self.records.unread(trainer, first=state["evidence_until"], last=self._batches_done)
        elif self.readings.fitted:
            fit_signals(
                trainer,
                pl_module,
                signals=self.readings.fitted,
                probe=self.probe,
                timestep=self.reference_timesteps[len(self.reference_timesteps) // 2],
                seed=self.seed,
            )
        self._prepare_reference(trainer, pl_module, state)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what this module or data cannot do, before any work is done."""
        if self.reference is True:
            require_measurable(trainer, pl_module, needed_by="`reference: true`")
        for signal in self.signals:
            if isinstance(signal, FittedSignal):
                require_measurable(trainer, pl_module, needed_by=signal.name)
        every = {signal.name: signal.unconditional_every for signal in self.signals if signal.unconditional_every}
        every |= {type(mitigation).__name__: 1 for mitigation in self.mitigations if mitigation.needs_unconditional}
        for name in every:
            require_unconditional(pl_module, name)
        self._unconditional_every = min(every.values(), default=0)

    def _open_heldout(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._heldout = None
        if self.reference is False:
            return
        if not is_measurable(trainer, pl_module):
            log.warning("No held-out samples can be measured: flags rest on the bulk of the training samples")
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        assert self.probe is not None
        self._heldout = HeldoutSamples(
            data.heldout_dataset.unique(),
            self.probe,
            read=self.readings.read,
            maximum_timestep=self.maximum_timestep,
            seed=self.seed,
            complete=self._completer(trainer, pl_module),
            paired=self._paired,
        )

    def _completer(self, trainer: Trainer, pl_module: LightningModule) -> Any:
        """Adds the unconditional prediction to an observation, if any signal reads it."""
        if not any(signal.unconditional_every for signal in self.signals):
            return None
        assert self.probe is not None
        probe = self.probe
        return lambda observation: add_unconditional(trainer, pl_module, probe, observation)

    def _new_calibration(self, data: Any) -> Calibration:
        canaries = {key for key, group in getattr(data, "groups", {}).items() if group == "canary"}
        if self.flag_by == COMBINED and (not canaries or self._heldout is None):
            raise ConfigurationError(
                f"flag_by: combined with {len(canaries)} canaries"
                f"{' and no held-out samples' if self._heldout is None else ''}",
                expected="canaries among the training samples, to weight the signals by, and held-out samples",
                remedy="set data.init_args.canaries, or flag by one signal",
            )
        signs: dict[str, Sign] = {signal.name: signal.memorized_when for signal in self.signals}
        return Calibration(
            len(self.readings.columns),
            scored=self.readings.slices.get(self.flag_by, slice(0, len(self.readings.columns))),
            memorized_when=signs.get(self.flag_by, "unknown"),
            buckets=len(self.reference_timesteps),
            false_positive_rate=self.false_positive_rate,
            minimum_visits=self.minimum_visits,
            window=self.window,
            heldout=self._heldout is not None,
            edges=length_edges(self._heldout.lengths()) if self._heldout is not None else (),
            canaries=canaries,
            resolution=self.readings.resolution,
        )

    def _require_heldout(self, trainer: Trainer) -> None:
        """Refuse too few held-out samples, and say so where they are few."""
        if self._heldout is None:
            return
        method = self.calibration.require_heldout(len(self._heldout))
        if method == "normal distribution" and trainer.is_global_zero:
            log.warning(
                "Only %d held-out samples: the threshold assumes that their scores are normally distributed",
                len(self._heldout),
            )

    def _prepare_reference(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
        assert self.profile is not None
        assert self.probe is not None
        if self._heldout is None:
            return
        if self.reference is True:
            measure_profile(
                trainer,
                pl_module,
                profile=self.profile,
                probe=self.probe,
                cached_only=bool(state),
                complete=self._completer(trainer, pl_module),
            )
        if state:
            self._heldout.done = state["heldout_done"]
            return
        per_round = 4 * self.heldout_batch * trainer.world_size
        rounds = -(-len(self._heldout) * self.minimum_visits // per_round)
        for _ in range(rounds + 1):
            self._calibrate(trainer, pl_module, 4 * self.heldout_batch)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove every hook."""
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was recorded, remove every hook."""
        try:
            if hasattr(self, "records"):
                self.records.append(self._visits)
                self.records.flush()
        finally:
            self._close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove every hook."""
        self._close()

    def _close(self) -> None:
        if self.probe is not None:
            self.probe.detach()
        for mitigation in self.mitigations:
            mitigation.detach()

    # Each batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Update when due, and arm the probe."""
        if self._batches_done % self.calibrate_every == 0:
            self._update(trainer)
            if self._heldout is not None:
                self._calibrate(trainer, pl_module, self.heldout_batch)
        self._flags = self._flags_of(self._keys(batch))
        assert self.probe is not None
        tokenizer = getattr(pl_module, "tokenizer", None)
        for mitigation in self.mitigations:
            mitigation.prepare(batch, self._flags, tokenizer=tokenizer, number=self._batches_done)
            if mitigation.changes_samples:
                self._flags = self._flags_of(self._keys(batch))
        keys = self._keys(batch)
        scale = _gradient_scale(trainer) / trainer.accumulate_grad_batches
        lengths, mask = batch.get("prompt_length"), batch.get("prompt_mask")
        self._loss_weight = getattr(pl_module, "loss_weight", None)
        self.probe.begin(Observation(keys, lengths, mask, loss_scale=scale), self._gate)

    def _flags_of(self, keys: Sequence[str]) -> Flags:
        return Flags(
            self.calibration.flagged(keys),
            self.calibration.ever_flagged(keys),
            self.calibration.scores(keys),
            self.calibration.threshold,
            keys,
            self.calibration.first_flagged.keys(),
        )

    def _keys(self, batch: Any) -> list[str]:
        keys = batch.get(self.key_field) if isinstance(batch, dict) else None
        if keys is None or not all(isinstance(key, str) for key in keys):
            found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
            raise DataError(
                f"The batch holds no sample keys: found {found}",
                expected=f"a dict with a list of strings under {self.key_field!r}",
                remedy="give every sample a stable name in the dataset, or set key_field",
            )
        return list(keys)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the mitigations' penalties to the loss, on its scale; predict without the caption when due."""
        assert self.probe is not None
        if self._unconditional_every and self._batches_done % self._unconditional_every == 0:
            add_unconditional(trainer, pl_module, self.probe, self.probe.current)
        # Most mitigations have no penalty, and copying flags to the device for nothing would cost every step.
        penalizing = [
            mitigation for mitigation in self.mitigations if type(mitigation).penalty is not Mitigation.penalty
        ]
        if not penalizing:
            return
        observation = self.probe.current
        if any(mitigation.needs_reference for mitigation in penalizing):
            observation.reference = self._reference_values(observation)
        flags = self._flags_on(loss.device)
        for mitigation in penalizing:
            penalty = mitigation.penalty(observation, flags)
            if penalty is not None:
                loss.add_(penalty.mean() * observation.loss_scale)

    def _reference_values(self, observation: Observation) -> dict[str, Tensor]:
        assert self.profile is not None
        values = self.profile.lookup_on_device(observation.keys, observation.timesteps)
        return self.readings.split(values)

    def _flags_on(self, device: torch.device) -> Flags:
        now, ever, score = (to_device(part, device) for part in (self._flags.now, self._flags.ever, self._flags.score))
        return Flags(now, ever, score, self._flags.threshold, self._flags.keys)

    def _gate(self, observation: Observation) -> Tensor | None:
        if self._loss_weight is not None:
            observation.loss_weight = self._loss_weight(observation.timesteps)
        device = observation.timesteps.device
        self._weights = torch.ones(len(observation.keys), device=device)
        if not self.mitigations:
            return None
        flags = self._flags_on(device)
        for mitigation in self.mitigations:
            self._weights = self._weights * mitigation.weights(observation, flags)
        return self._weights

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the signals, and start their way to the host."""
        assert self.probe is not None
        observation = self.probe.end()
        values = self.readings.read(observation)
        if self._paired is not None:
            values = torch.cat([values, self._base_values(trainer, pl_module, observation, values)], dim=1)
        self._visits.append(
            Visits(
                self._batches_done,
                trainer.global_rank,
                trainer.current_epoch,
                trainer.global_step,
                list(observation.keys),
                self._flags.score,
                self._flags.now,
                Visits.pack(observation, self._weights, values),
            )
        )
        self._batches_done += 1
        pl_module.log_dict(
            {
                "memorization/flagged": float(len(self.calibration.first_flagged)),
                "memorization/threshold": self.calibration.threshold,
                "memorization/weight": self._weights.mean(),
            },
            batch_size=len(observation.keys),
        )

    def _base_values(
        self, trainer: Trainer, pl_module: LightningModule, observation: Observation, values: Tensor
    ) -> Tensor:
        """The base model's values for this batch, NaN if it is not its turn."""
        assert self.probe is not None
        assert self._paired is not None
        if self._batches_done % self.paired_every:
            return torch.full_like(values, torch.nan)
        complete = self._completer(trainer, pl_module) if observation.unconditional is not None else None
        with as_in_training(trainer):
            return self._paired.values(observation, self.probe, read=self.readings.read, complete=complete)

    def _update(self, trainer: Trainer) -> None:
        """Record the visits since the last update, and make those of every process evidence."""
        self.records.append(self._visits)
        rows = [(v.batch, v.rank, v.keys, v.timesteps, v.lengths, v.values) for v in self._visits]
        self._visits = []
        everyone = sorted(processes.gather(rows), key=lambda row: row[:2])
        # A batch counts as one however many processes share it.
        for _, parts in groupby(everyone, key=lambda row: row[0]):
            _, _, *columns = zip(*parts, strict=True)
            keys, timesteps, lengths = ([value for part in column for value in part] for column in columns[:3])
            values = torch.cat(columns[3])
            own, base = values.tensor_split([len(self.readings.columns)], dim=1)
            compared = self._compare(keys, timesteps, own, base if self._paired is not None else None)
            self.calibration.add(keys, self._buckets(timesteps), compared, trainer.global_step, lengths)
        for mitigation in self.mitigations:
            mitigation.synchronize(lambda value: processes.gather([value]))

    def _calibrate(self, trainer: Trainer, pl_module: LightningModule, count: int) -> None:
        """Measure the next held-out samples, and update the calibration of every process."""
        assert self._heldout is not None
        for seen in processes.gather([self._heldout.measure(trainer, pl_module, count)]):
            buckets = [bucket for bucket in self._buckets(seen.timesteps) if bucket is not None]
            compared = self._compare(seen.keys, seen.timesteps, seen.values, seen.base)
            self.calibration.add_heldout(seen.keys, buckets, compared, seen.lengths)

    def _buckets(self, timesteps: Sequence[float]) -> list[int | None]:
        assert self.profile is not None
        return [self.profile.bucket(t) if t < self.maximum_timestep else None for t in timesteps]

    def _compare(self, keys: Sequence[str], timesteps: Sequence[float], values: Tensor, base: Tensor | None) -> Tensor:
        """Values relative to the base model where it is known, `(B, columns)`."""
        assert self.profile is not None
        if self.reference is True:
            base = self.profile.lookup(keys, timesteps)
        return self.readings.compare(values, base)

    # Checkpoints and the end of training

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the records end where the checkpoint does."""
        if hasattr(self, "records"):
            self.records.append(self._visits)
            self.records.flush()

    def state_dict(self) -> dict[str, Any]:
        """Evidence, calibration and positions; the same on every process."""
        if self.profile is None:
            return self._state
        return {
            "calibration": self.calibration.state_dict(),
            "batches_done": self._batches_done,
            "evidence_until": min((visits.batch for visits in self._visits), default=self._batches_done),
            "heldout_done": 0 if self._heldout is None else self._heldout.done,
            "fingerprint": self.profile.fingerprint,
            "signals": [signal.state_dict() for signal in self.readings.fitted],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._state = state_dict

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write evidence.parquet and flagged.csv, print the most suspicious samples."""
        self._update(trainer)
        self.records.finish(trainer, self.calibration, self.readings.columns)


def _gradient_scale(trainer: Trainer) -> float | Tensor:
    """The gradient scaler's factor; a tensor where it is on the device, so that nothing waits for its value."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale: float | Tensor | None = scaler._get_scale_async()
    return float(scaler.get_scale()) if scale is None else scale
