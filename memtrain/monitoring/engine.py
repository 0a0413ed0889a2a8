"""The engine: watches every training batch, names the samples being memorized, and keeps the record; in any trainer.

On every training batch it reads the signals through the probe, compares them with the base model, adds them to each
sample's evidence, and lets the mitigations weight the samples of the batch. Now and then it measures held-out samples
under the model as it is, which calibrates the threshold. It imports no trainer: what it has to know of its
surroundings it asks of a :class:`memtrain.monitoring.host.Host`, and whoever drives it calls, in this order,

1. :meth:`Engine.setup`, before a checkpoint is loaded, then :meth:`Engine.load_state_dict` where one is;
2. :meth:`Engine.start`, when the model is as it will be trained;
3. for each batch :meth:`Engine.begin`, :meth:`Engine.before_backward` and :meth:`Engine.end`;
4. :meth:`Engine.flush` when a checkpoint is written, :meth:`Engine.finish` at the end, :meth:`Engine.close` however it
   ends.

Cost: two projections per attention site and step; the profile, once; a forward of `heldout_batch` samples every
`calibrate_every` batches. Between these updates nothing waits for the device: what a batch showed is copied to the host
in the background and becomes evidence, together with that of the other processes, at the next update. So flags lag
behind by less than `calibrate_every` batches.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.calibration import Calibration
from memtrain.models.backbones.base import find_denoiser, unwrap
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.batch_fields import (
    Names,
    caption_dropped,
    described_length,
    described_mask,
    field_of,
)
from memtrain.monitoring.combinations import refuse_combinations, require_changeable
from memtrain.monitoring.data_protocol import known_samples, require_measurable
from memtrain.monitoring.flagging import Flagging
from memtrain.monitoring.host import Host
from memtrain.monitoring.intake import Intake
from memtrain.monitoring.loss_check import AT_ONCE, LossCheck
from memtrain.monitoring.loss_route import Handover
from memtrain.monitoring.loss_weight import loss_weights, require_loss_weight
from memtrain.monitoring.measurement import (
    add_unconditional,
    as_in_training,
    completer,
    fit_signals,
    require_unconditional,
)
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.options import COMBINED, WatchOptions
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.monitoring.planned_visits import too_short_for_flags
from memtrain.monitoring.run_records import RunRecords
from memtrain.monitoring.sample_losses import Criterion
from memtrain.monitoring.starting_weights import StartingWeights
from memtrain.monitoring.turn import Turn
from memtrain.monitoring.visits import Visits
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.base import FittedSignal, Signal
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.readings import Readings

log = logging.getLogger(__name__)

UNSEEN_AT_MOST = 8
"""Batches at the start of a run that may train nothing; more of them, and the denoiser is looked for in vain."""


class Engine:
    """Watches one run.

    Args:
        signals: what is measured; default denoising loss and attention entropy.
        options: how.

    Raises:
        ConfigurationError: if flags are to go by something that is not measured.
    """

    def __init__(self, signals: Sequence[Signal] | None, options: WatchOptions) -> None:
        self.signals = list(signals) if signals else [DenoisingLoss(), AttentionEntropy()]
        self.options = options
        names = [signal.name for signal in self.signals]
        if options.flag_by not in [*names, COMBINED]:
            raise ConfigurationError(
                f"flag_by={options.flag_by!r} is no measured signal",
                expected=f"one of {[*names, COMBINED]}",
                remedy="change flag_by, or add the signal to `signals`",
            )
        self.mitigations: list[Mitigation] = []
        self.probe: DenoiserProbe | None = None
        self.flagging: Flagging | None = None
        self.records: RunRecords | None = None
        self.batches_done = 0
        self.turn: Turn | None = None
        self.intake: Intake | None = None
        self._host: Host | None = None
        self._visits: list[Visits] = []
        self._starting: StartingWeights | None = None
        self._paired: PairedReference | None = None
        self._loss_check: LossCheck | None = None
        self._unconditional_every = 0
        self._without_caption: set[str] = set()
        self._seen, self._unseen = False, 0
        self._state: dict[str, Any] = {}

    # What there is once a run has started

    @property
    def host(self) -> Host:
        """The surroundings of the run."""
        assert self._host is not None, "setup() comes first"
        return self._host

    @property
    def running(self) -> tuple[DenoiserProbe, Flagging, RunRecords]:
        """Probe, flagging and records of the run.

        Raises:
            ProbeError: if it has not started.
        """
        if self.probe is None or self.flagging is None or self.records is None:
            raise ProbeError("Nothing is watched yet", remedy="call start() first")
        return self.probe, self.flagging, self.records

    @property
    def calibration(self) -> Calibration:
        """The calibration of the run."""
        return self.running[1].calibration

    # Start

    def setup(self, host: Host, mitigations: Sequence[Mitigation]) -> None:
        """Refuse what cannot share a run, and remember the base model, before a checkpoint is loaded.

        Args:
            host: the surroundings.
            mitigations: in the order in which they act; those that change samples act first.
        """
        self._host = host
        self.mitigations = sorted(mitigations, key=lambda mitigation: not mitigation.effects().changes_samples)
        refuse_combinations(self.mitigations, signals=self.signals, profiled=self.options.reference is True)
        host.names = Names(self.options.key_field)
        for mitigation in self.mitigations:
            mitigation.open(host)
        if self.options.reference == "paired":
            self._starting = StartingWeights(host.module, self.options.denoiser)

    def start(self) -> None:
        """Attach the probe, measure the base model, calibrate, open the record."""
        host = self.host
        _, denoiser, backbone = find_denoiser(host.module, self.options.denoiser)
        self._paired = self._starting.finish(denoiser, restored=host.restored) if self._starting is not None else None
        self._check(partial(backbone.prediction_gradient, unwrap(denoiser)))
        self.probe = DenoiserProbe(
            denoiser,
            sites=self.options.sites,
            backbone=backbone,
            differentiable=any(mitigation.needs().attention_graph for mitigation in self.mitigations),
            neurons=any(signal.needs_neurons for signal in self.signals),
            keep_call=bool(self._unconditional_every)
            or self._paired is not None
            or (self.options.settings.heldout_share > 0 and host.noise_scheduler is not None),
        )
        self.readings = Readings(self.signals, list(self.probe.sites))
        self.flagging = Flagging(
            host, options=self.options, readings=self.readings, probe=self.probe, paired=self._paired
        )
        self.intake = Intake(
            host,
            probe=self.probe,
            flagging=self.flagging,
            mitigations=self.mitigations,
            forward_done=self._forward_done,
            replay=self._replay,
        )
        for mitigation in self.mitigations:
            mitigation.attach(denoiser, backbone=backbone, module=host.module)
        self.probe.attach()
        self._go_on()
        samples = known_samples(host.data, "train")
        self._without_caption = {sample.key for sample in samples if sample.caption == ""}

    def _go_on(self) -> None:
        """Begin the record, or take up a saved state, and bring the calibration to where the run stands."""
        host, (probe, flagging, _) = self.host, (self.probe, self.flagging, None)
        assert probe is not None
        assert flagging is not None
        # Taken once: a second run of the same engine starts anew.
        state, self._state = self._state, {}
        self._seen, self._unseen = False, 0
        self.batches_done, self._visits = state.get("batches_done", 0), []
        columns = self.readings.columns
        names = columns + ([f"base.{name}" for name in columns] if self._paired is not None else [])
        self.records = RunRecords(host, names, batches_done=self.batches_done if state else None)
        if state:
            flagging.load_state_dict(state)
            for signal, kept in zip(self.readings.fitted, state["signals"], strict=True):
                signal.load_state_dict(kept)
            self._visits = self.records.unread(first=state["evidence_until"], last=self.batches_done)
        elif self.readings.fitted:
            timesteps = self.options.settings.reference_timesteps
            fit_signals(
                host,
                signals=self.readings.fitted,
                probe=probe,
                timestep=timesteps[len(timesteps) // 2],
                seed=self.options.settings.seed,
            )
        flagging.prepare(resumed=bool(state))

    def _check(self, predicted: Callable[[Tensor], Tensor]) -> None:
        """Refuse what this module or data cannot do, before any work is done."""
        host = self.host
        require_loss_weight(host.module)
        early = [type(mitigation).__name__ for mitigation in self.mitigations if mitigation.needs().sample_loss]
        paired, self._loss_check = self._paired is not None, None
        if early or any(isinstance(signal, DenoisingLoss) for signal in self.signals):
            self._loss_check = LossCheck(early=early, paired=paired, predicted=predicted)
        if self.options.reference is True:
            require_measurable(host, needed_by="`reference: true`")
        for signal in self.signals:
            if isinstance(signal, FittedSignal):
                require_measurable(host, needed_by=signal.name)
        every = {signal.name: signal.unconditional_every for signal in self.signals if signal.unconditional_every}
        every |= {type(mitigation).__name__: 1 for mitigation in self.mitigations if mitigation.needs().unconditional}
        for name in every:
            require_unconditional(host.module, name)
        self._unconditional_every = min(every.values(), default=0)

    def warn_if_too_short(self) -> None:
        """Say so if the run is too short for flags; call when the host knows its plan."""
        too_short = too_short_for_flags(
            self.host,
            minimum_visits=self.options.minimum_visits,
            maximum_timestep=self.options.settings.maximum_timestep,
            paired_every=None if self._paired is None else self.options.paired_every,
        )
        if too_short is not None and self.host.rank == 0:
            log.warning(too_short)

    # Each batch

    def begin(self, batch: Any, *, scaled: bool = True) -> Turn:
        """Update when due, let the mitigations prepare the batch, and arm the probe; before the forward pass.

        Args:
            batch: with the samples' keys.
            scaled: whether the loss that :meth:`before_backward` gets has the host's loss scale already.
        """
        probe, flagging, _ = self.running
        self.update_when_due()
        keys = self._names(batch)
        flags = flagging.flags(keys)
        tokenizer = getattr(self.host.module, "tokenizer", None)
        for mitigation in self.mitigations:
            require_changeable(batch, mitigation)
            mitigation.prepare(batch, flags, tokenizer=tokenizer, number=self.batches_done)
            if mitigation.effects().changes_samples:
                keys = self.host.names(batch)
                flags = flagging.flags(keys)
        dropped = caption_dropped(keys, batch, without=self._without_caption)
        lengths, mask = described_length(batch, len(keys)), described_mask(batch, len(keys))
        self.turn = Turn(
            number=self.batches_done,
            step=self.host.step,
            flags=flags,
            observation=Observation(keys, lengths, mask, dropped, loss_scale=self.host.loss_scale),
            mitigations=self.mitigations,
            batch=batch,
            loss_weight=partial(loss_weights, self.host.module, batch=batch),
            loss_check=self._loss_check,
            heldout=flagging.heldout_keys.mask(keys),
            scaled=scaled,
        )
        probe.begin(self.turn.observation, self.turn.decide)
        return self.turn

    def _names(self, batch: Any) -> list[str]:
        """The names of a batch's samples, as long as these come again."""
        names, first = self.host.names, not self.host.names.by_content
        keys = names(batch)
        if first and names.by_content:
            names.require_same(getattr(self.host.data, "train_dataset", None))
        names.watch(keys, self.calibration.samples.row, round_over=self._round_over())
        return keys

    def _round_over(self) -> bool | None:
        """Whether every sample has been seen, and its visit is known of; None if nobody knows."""
        plan = self.host.plan
        if plan is None or plan.batches_of_data is None:
            return None
        return self.batches_done >= plan.batches_of_data + self.options.settings.calibrate_every

    def before_backward(self, loss: Tensor) -> None:
        """Add the mitigations' penalties to the loss, on its scale; predict without the caption when due."""
        probe, flagging, _ = self.running
        turn = self.turn
        assert turn is not None, "begin() comes first"
        turn.differentiated = True
        if turn.loss_check is not None and not turn.handed:
            turn.loss_check.differentiates(loss if turn.scaled else loss.detach() * turn.observation.loss_scale)
        if turn.penalized or not probe.current.timesteps.numel():
            # Several losses: one of another network, before the denoiser ran, or one more after it.
            return
        turn.penalized = True
        if not turn.handed:
            self._forward_done(probe.current)
        penalizing = turn.penalizing
        if not penalizing:
            return
        # The probe refuses what was never begun.
        observation = probe.current
        if any(mitigation.needs().base_profile for mitigation in penalizing):
            flagging.add_reference(observation)
        turn.penalize(loss)

    def end(self, outputs: Any = None) -> None:
        """Read the signals, and start their way to the host; after the backward pass.

        Args:
            outputs: what the training step returned; it may hold `sample_loss`.
        """
        probe, _, _ = self.running
        turn, self.turn = self.turn, None
        assert turn is not None, "begin() comes first"
        if self._left_out(turn, probe):
            return
        handover = None
        if self.intake is not None:
            self.intake.require_complete()
            handover, self.intake.handover = self.intake.handover, None
        observation = probe.end(gradient=not turn.handed)
        if turn.loss_check is not None and not turn.handed:
            turn.loss_check.batch_ends(observation, outputs)
            if turn.loss_check.batches <= AT_ONCE:
                turn.loss_check.decide(self.host)
        values = self.readings.read(observation)
        if self._paired is not None:
            values = torch.cat([values, self._base_values(turn, values, handover)], dim=1)
        self._visits.append(turn.visits(values, rank=self.host.rank, epoch=self.host.epoch))
        self.batches_done += 1
        for mitigation in self.mitigations:
            mitigation.batch_done()
        assert turn.weights is not None
        self.host.log(
            {
                # Tensors on the host: numbers would be copied to the device, and waited for.
                "memorization/flagged": torch.tensor(float(len(self.calibration.first_flagged))),
                "memorization/threshold": torch.tensor(self.calibration.threshold),
                "memorization/weight": turn.weights.mean(),
            },
            batch_size=len(observation.keys),
        )

    def _left_out(self, turn: Turn, probe: DenoiserProbe) -> bool:
        """Whether the step trained nothing on its batch, which is then no visit, but counts as a batch."""
        if not turn.trained_nothing(seen_before=self._seen):
            self._seen = True
            return False
        self._unseen += 1
        if not self._seen and self._unseen >= UNSEEN_AT_MOST:
            # As if it had been a visit: the probe says what is missing.
            return False
        probe.drop()
        if turn.loss_check is not None:
            turn.loss_check.forget()
        self.batches_done += 1
        for mitigation in self.mitigations:
            mitigation.batch_done()
        return True

    def _base_values(self, turn: Turn, values: Tensor, handover: Handover | None) -> Tensor:
        """The base model's values for this batch, NaN if it is not its turn."""
        observation = turn.observation
        assert self.probe is not None
        assert self._paired is not None
        if self.batches_done % self.options.paired_every:
            return torch.full_like(values, torch.nan)
        if handover is not None:
            assert handover.base is not None
            return self.readings.read(handover.base)
        complete = None
        if observation.unconditional is not None:
            complete = completer(self.host, probe=self.probe, signals=self.signals)
        with as_in_training(self.host):
            return self._paired.values(
                observation,
                self.probe,
                read=self.readings.read,
                complete=complete,
                encode=self._encoding(turn),
                untrained=turn.step == 0,
            )

    def _encoding(self, turn: Turn | None) -> Callable[[], Tensor] | None:
        """What encodes the captions of a batch once more; None if nothing can."""
        module = self.host.module
        ids = None if turn is None else field_of(turn.batch, "input_ids")
        if ids is None or not callable(getattr(module, "encode_text", None)):
            return None
        return partial(module.encode_text, ids)

    @property
    def loss_unseen(self) -> bool:
        """Whether losses are read from gradients, and that of this batch was never shown."""
        return self._loss_check is not None and not self._loss_check.saw

    # Losses that are handed over

    def loss(
        self,
        prediction: Tensor,
        target: Tensor,
        *,
        keys: Sequence[str] | None = None,
        weights: Tensor | None = None,
        criterion: Criterion = "mse",
        caption_dropped: Sequence[bool] = (),
    ) -> Tensor:
        """The batch mean of gated and weighted losses, in place of the host's own; see :mod:`.loss_route`.

        Args:
            prediction: `(b, ...)` the next rows of the denoiser's last forward with gradients.
            target: `(b, ...)`.
            keys: of the samples; None where the batch named them.
            weights: of samples or of elements.
            criterion: a name, or a function of prediction and target.
            caption_dropped: b, true where the empty caption stood in place of the sample's own.

        Returns:
            `()` with a graph; with the mitigations' penalties, unless :meth:`before_backward` adds them.
        """
        assert self.intake is not None, "start() comes first"
        begun = self.turn
        # What is handed over need not be checked.
        self._loss_check = None
        if begun is not None:
            begun.handed = True
        loss = self.intake.take(
            prediction,
            target,
            begun=begun,
            number=self.batches_done,
            keys=keys,
            weights=weights,
            criterion=criterion,
            caption_dropped=caption_dropped,
        )
        self.turn = self.intake.finished(begun) or begun
        return loss

    @property
    def handed_over(self) -> bool:
        """Whether every row of the last forward was handed over."""
        return self.intake is not None and self.intake.handover is not None and self.intake.handover.complete

    def _replay(self, observation: Observation) -> Observation | None:
        """The forward of this batch under the base model, None if it is not its turn."""
        if self._paired is None or self.batches_done % self.options.paired_every:
            return None
        assert self.probe is not None
        complete = None
        if observation.unconditional is not None:
            complete = completer(self.host, probe=self.probe, signals=self.signals)
        with as_in_training(self.host):
            return self._paired.replay(
                observation,
                self.probe,
                complete=complete,
                encode=self._encoding(self.turn),
                untrained=self.host.step == 0,
            )

    def _forward_done(self, observation: Observation) -> None:
        assert self.probe is not None
        if self._unconditional_every and self.batches_done % self._unconditional_every == 0:
            add_unconditional(self.host, self.probe, observation)
        for mitigation in self.mitigations:
            mitigation.forward_done(self.host)

    # Updates

    def update_when_due(self) -> None:
        """Make the visits since the last update evidence, and calibrate, every `calibrate_every` batches."""
        settings = self.options.settings
        if self.batches_done % settings.calibrate_every == 0:
            self._update()
            self.running[1].calibrate(settings.heldout_batch)

    def _update(self, *, over: bool = False) -> None:
        """Record the visits since the last update, and make those of every process evidence; `over`: the last time."""
        _, flagging, records = self.running
        if self._loss_check is not None:
            # Before anything becomes evidence.
            self._loss_check.decide(self.host, over=over)
        records.append(self._visits)
        if self.host.saves_alone:
            records.flush()
        flagging.add(self._visits, step=self.host.step)
        self._visits = []
        for mitigation in self.mitigations:
            mitigation.synchronize(lambda value: self.host.gather([value]))

    # Checkpoints and the end

    def flush(self) -> None:
        """Make the records on disk end where the run stands; call when a checkpoint is written."""
        if self.records is not None:
            self.records.append(self._visits)
            self.records.flush()

    def state_dict(self) -> dict[str, Any]:
        """Evidence, calibration and positions; the same on every process."""
        if self.flagging is None:
            return self._state
        return {
            **self.flagging.state_dict(),
            "batches_done": self.batches_done,
            "evidence_until": min((visits.batch for visits in self._visits), default=self.batches_done),
            "signals": [signal.state_dict() for signal in self.readings.fitted],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Kept until the run starts."""
        self._state = state

    def finish(self) -> None:
        """Take in the last visits; write evidence.parquet, calibration.json and flagged.csv; print a summary."""
        self._update(over=True)
        if self.batches_done and self._unseen == self.batches_done:
            raise ProbeError(
                f"No batch was trained on: training_step skipped all {self._unseen}, so nothing was watched",
                expected="a loss for some batches",
                remedy="look why training_step returns None",
            )
        self.running[2].finish(self.calibration, self.readings.columns, held_out=self.running[1].heldout_keys)
        for mitigation in self.mitigations:
            mitigation.finish(self.host)

    def close(self) -> None:
        """Remove every hook; harmless when done before."""
        if self._starting is not None:
            self._starting.close()
        if self.probe is not None:
            self.probe.detach()
        for mitigation in self.mitigations:
            mitigation.detach()
