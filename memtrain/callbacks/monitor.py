"""The monitor: watches every training batch, names the samples being memorized, and keeps the record.

On every training batch it reads the signals through the probe, compares them with the base model, adds them to each
sample's evidence, and lets the mitigations weight the samples of the batch. Now and then it measures held-out samples
(the validation data) under the model as it is, which calibrates the threshold.

It works in any LightningModule whose loss is a batch mean of squared errors at the output of a known denoiser (checked
in the first batches: :mod:`memtrain.callbacks.loss_check`) and whose batches carry sample keys. examples/own_module.py
lists what a module may offer, :mod:`memtrain.callbacks.data_protocol` what a data module may. What is compared with is
`reference`:

- `true`: a profile of every sample under the base model, measured once before training. It needs a method
  `sample_loss(batch, timesteps, generator) -> (B,)` on the module, which runs the denoiser once, and data that can
  be measured.
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

A run in which few samples, or none, can reach `minimum_visits` says so before its first batch, and how many could not
be judged at its end.

A visit whose caption was dropped (`caption` in the batch is empty, and the sample's own is not) cannot be compared with
the sample's other visits: its signal values are NaN, also in the records, and it is no evidence.

Logged metrics: `memorization/flagged` (samples flagged so far), `memorization/threshold` (score above which a sample is
flagged), `memorization/weight` (mean weight in the batch).
"""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from memtrain.calibration import Calibration
from memtrain.callbacks import processes
from memtrain.callbacks.batch_fields import caption_dropped, sample_keys
from memtrain.callbacks.combinations import refuse_combinations
from memtrain.callbacks.data_protocol import data_of, known_samples, require_measurable
from memtrain.callbacks.flagging import COMBINED, Flagging, FlaggingOptions
from memtrain.callbacks.loss_check import LossCheck, loss_weights, require_loss_weight
from memtrain.callbacks.measurement import (
    add_unconditional,
    as_in_training,
    completer,
    fit_signals,
    require_unconditional,
)
from memtrain.callbacks.mitigation import Flags, Mitigation
from memtrain.callbacks.paired_reference import PairedReference
from memtrain.callbacks.planned_visits import too_short_for_flags
from memtrain.callbacks.run_records import RunRecords
from memtrain.callbacks.starting_weights import StartingWeights
from memtrain.callbacks.visits import Visits
from memtrain.errors import ConfigurationError
from memtrain.models.backbones.base import find_denoiser
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.models.transfer import to_device
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.base import FittedSignal, Signal
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.readings import Readings

log = logging.getLogger(__name__)


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
        if min(calibrate_every, paired_every) < 1:
            raise ConfigurationError(
                f"calibrate_every={calibrate_every}, paired_every={paired_every}",
                expected="at least 1 each",
                remedy="change them",
            )
        self.options = FlaggingOptions(
            flag_by=flag_by,
            false_positive_rate=false_positive_rate,
            maximum_timestep=maximum_timestep,
            minimum_visits=minimum_visits,
            evidence_window=evidence_window,
            reference=reference,
            reference_folder=reference_folder,
            reference_timesteps=reference_timesteps,
            reference_draws=reference_draws,
            heldout_batch=heldout_batch,
            seed=seed,
        )
        self.sites, self.denoiser, self.key_field = sites, denoiser, key_field
        self.paired_every, self.calibrate_every = paired_every, calibrate_every
        self.probe: DenoiserProbe | None = None
        self.flagging: Flagging | None = None
        self.mitigations: list[Mitigation] = []
        self._batches_done = 0
        self._visits: list[Visits] = []
        self._starting: StartingWeights | None = None
        self._paired: PairedReference | None = None
        self._loss_check: LossCheck | None = None
        self._state: dict[str, Any] = {}

    # Start and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot share a run, and remember the base model, before a checkpoint is loaded."""
        if sum(isinstance(c, MemorizationMonitor) for c in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise ConfigurationError(
                "There are two MemorizationMonitors among the callbacks",
                expected="one, which may measure several signals",
                remedy="put all signals into one monitor",
            )
        if stage == "fit":
            refuse_combinations(trainer.callbacks, self, signals=self.signals)  # type: ignore[attr-defined]
        if stage == "fit" and self.options.reference == "paired":
            self._starting = StartingWeights(pl_module, self.denoiser)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the probe, measure the base model, calibrate, open the record."""
        _, denoiser, backbone = find_denoiser(pl_module, self.denoiser)
        self._paired = self._starting.finish(trainer, denoiser) if self._starting is not None else None
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
        self.flagging = Flagging(
            trainer,
            pl_module,
            options=self.options,
            readings=self.readings,
            probe=self.probe,
            paired=self._paired,
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
            self.flagging.load_state_dict(state)
            for signal, kept in zip(self.readings.fitted, state["signals"], strict=True):
                signal.load_state_dict(kept)
            self._visits = self.records.unread(trainer, first=state["evidence_until"], last=self._batches_done)
        elif self.readings.fitted:
            fit_signals(
                trainer,
                pl_module,
                signals=self.readings.fitted,
                probe=self.probe,
                timestep=self.options.reference_timesteps[len(self.options.reference_timesteps) // 2],
                seed=self.options.seed,
            )
        self.flagging.prepare(trainer, pl_module, resumed=bool(state))
        samples = known_samples(data_of(trainer), "train")
        self._without_caption = {sample.key for sample in samples if sample.caption == ""}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the run is too short for flags."""
        too_short = too_short_for_flags(
            trainer,
            minimum_visits=self.options.minimum_visits,
            maximum_timestep=self.options.maximum_timestep,
            paired_every=None if self._paired is None else self.paired_every,
        )
        if too_short is not None and trainer.is_global_zero:
            log.warning(too_short)

    def _check(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what this module or data cannot do, before any work is done."""
        require_loss_weight(pl_module)
        reads_loss = any(isinstance(signal, DenoisingLoss) for signal in self.signals)
        reads_loss |= any(mitigation.needs_loss for mitigation in self.mitigations)
        self._loss_check = LossCheck() if reads_loss else None
        if self.options.reference is True:
            require_measurable(trainer, pl_module, needed_by="`reference: true`")
        for signal in self.signals:
            if isinstance(signal, FittedSignal):
                require_measurable(trainer, pl_module, needed_by=signal.name)
        every = {signal.name: signal.unconditional_every for signal in self.signals if signal.unconditional_every}
        every |= {type(mitigation).__name__: 1 for mitigation in self.mitigations if mitigation.needs_unconditional}
        for name in every:
            require_unconditional(pl_module, name)
        self._unconditional_every = min(every.values(), default=0)

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
        if self._starting is not None:
            self._starting.close()
        if self.probe is not None:
            self.probe.detach()
        for mitigation in self.mitigations:
            mitigation.detach()

    @property
    def calibration(self) -> Calibration:
        """The calibration of the run, once training has begun."""
        return self._flagging.calibration

    @property
    def _flagging(self) -> Flagging:
        assert self.flagging is not None
        return self.flagging

    # Each batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Update when due, and arm the probe."""
        if self._batches_done % self.calibrate_every == 0:
            self._update(trainer)
            self._flagging.calibrate(trainer, pl_module, self.options.heldout_batch)
        self._step = trainer.global_step
        self._flags = self._flagging.flags(self._keys(batch))
        assert self.probe is not None
        tokenizer = getattr(pl_module, "tokenizer", None)
        for mitigation in self.mitigations:
            mitigation.prepare(batch, self._flags, tokenizer=tokenizer, number=self._batches_done)
            if mitigation.changes_samples:
                self._flags = self._flagging.flags(self._keys(batch))
        keys = self._keys(batch)
        scale = _gradient_scale(trainer) / trainer.accumulate_grad_batches
        lengths, mask = batch.get("prompt_length"), batch.get("prompt_mask")
        dropped = caption_dropped(keys, batch, without=self._without_caption)
        self._loss_weights = partial(loss_weights, pl_module)
        observation = Observation(keys, lengths, mask, dropped, loss_scale=scale)
        self.probe.begin(observation, self._gate)

    def _keys(self, batch: Any) -> list[str]:
        return sample_keys(batch, self.key_field)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the mitigations' penalties to the loss, on its scale; predict without the caption when due."""
        assert self.probe is not None
        if self._loss_check is not None:
            self._loss_check.differentiates(loss)
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
            self._flagging.add_reference(observation)
        flags = self._flags_on(loss.device)
        for mitigation in penalizing:
            penalty = mitigation.penalty(observation, flags)
            if penalty is not None:
                loss.add_(penalty.mean() * observation.loss_scale)

    def _flags_on(self, device: torch.device) -> Flags:
        flags = self._flags
        now, ever, score = (to_device(part, device) for part in (flags.now, flags.ever, flags.score))
        ready = None if flags.ready is None else to_device(flags.ready, device)
        return replace(flags, now=now, ever=ever, score=score, ready=ready)

    def _gate(self, observation: Observation) -> Tensor | None:
        if self._loss_check is not None:
            self._loss_check.gradient_arrives()
        observation.loss_weight = self._loss_weights(observation.timesteps)
        device = observation.timesteps.device
        self._weights = torch.ones(len(observation.keys), device=device)
        if not self.mitigations:
            return None
        flags = self._flags_on(device)
        for mitigation in self.mitigations:
            self._weights = self._weights * mitigation.weights(observation, flags)
        if any(mitigation.skips for mitigation in self.mitigations):
            self._weights = self._weights * processes.share_of_mean((self._weights > 0).float())
        return self._weights

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the signals, and start their way to the host."""
        assert self.probe is not None
        observation = self.probe.end()
        if self._loss_check is not None:
            self._loss_check.batch_ends(observation, outputs)
        values = self.readings.read(observation)
        if self._paired is not None:
            values = torch.cat([values, self._base_values(trainer, pl_module, observation, values)], dim=1)
        if observation.caption_dropped:
            dropped = to_device(torch.tensor(observation.caption_dropped), values.device)
            values = values.masked_fill(dropped[:, None], torch.nan)
        self._visits.append(
            Visits(
                self._batches_done,
                trainer.global_rank,
                trainer.current_epoch,
                self._step,
                list(observation.keys),
                self._flags.score,
                self._flags.now,
                Visits.pack(observation, self._weights, values),
            )
        )
        self._batches_done += 1
        pl_module.log_dict(
            {
                # Tensors on the host: numbers would be copied to the device, and waited for.
                "memorization/flagged": torch.tensor(float(len(self.calibration.first_flagged))),
                "memorization/threshold": torch.tensor(self.calibration.threshold),
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
        complete = None
        if observation.unconditional is not None:
            complete = completer(trainer, pl_module, probe=self.probe, signals=self.signals)
        with as_in_training(trainer):
            return self._paired.values(observation, self.probe, read=self.readings.read, complete=complete)

    def _update(self, trainer: Trainer, *, over: bool = False) -> None:
        """Record the visits since the last update, and make those of every process evidence; `over`: the last time."""
        self.records.append(self._visits)
        self._flagging.add(self._visits, step=trainer.global_step)
        self._visits = []
        for mitigation in self.mitigations:
            mitigation.synchronize(lambda value: processes.gather([value]))
        if self._loss_check is not None:
            self._loss_check.decide(trainer, over=over)

    # Checkpoints and the end of training

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the records end where the checkpoint does."""
        if hasattr(self, "records"):
            self.records.append(self._visits)
            self.records.flush()

    def state_dict(self) -> dict[str, Any]:
        """Evidence, calibration and positions; the same on every process."""
        if self.flagging is None:
            return self._state
        return {
            **self.flagging.state_dict(),
            "batches_done": self._batches_done,
            "evidence_until": min((visits.batch for visits in self._visits), default=self._batches_done),
            "signals": [signal.state_dict() for signal in self.readings.fitted],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._state = state_dict

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write evidence.parquet and flagged.csv, print the most suspicious samples."""
        self._update(trainer, over=True)
        self.records.finish(trainer, self.calibration, self.readings.columns)


def _gradient_scale(trainer: Trainer) -> float | Tensor:
    """The gradient scaler's factor; a tensor where it is on the device, so that nothing waits for its value."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale: float | Tensor | None = scaler._get_scale_async()
    return float(scaler.get_scale()) if scale is None else scale
