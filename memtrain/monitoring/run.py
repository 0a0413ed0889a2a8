"""One watched run from before its first batch to after its last: its parts, its state and its files.

:mod:`memtrain.monitoring.engine` handles each batch.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.copies import Copies
from memtrain.families.online import OnlineFamilies
from memtrain.models.backbones.base import find_denoiser, unwrap
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.base_forward import BaseForward
from memtrain.monitoring.batch_fields import BatchNames
from memtrain.monitoring.combinations import refuse_combinations, require_kind
from memtrain.monitoring.continued_watch import check_continued, require_state, watch_of
from memtrain.monitoring.data_protocol import by_key, known_samples, require_measurable
from memtrain.monitoring.flagging import Flagging
from memtrain.monitoring.host import Host
from memtrain.monitoring.loss_check import LossCheck
from memtrain.monitoring.loss_weight import require_loss_weight
from memtrain.monitoring.measurement import fit_signals, require_unconditional
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.online_watch import OnlineWatch, wanted
from memtrain.monitoring.options import COMBINED, WatchOptions
from memtrain.monitoring.planned_visits import too_short_for_flags
from memtrain.monitoring.recorded_values import RecordedValues
from memtrain.monitoring.run_records import RunRecords
from memtrain.monitoring.skipped_steps import SkippedSteps
from memtrain.monitoring.starting_weights import StartingWeights
from memtrain.monitoring.visits import Visits
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.base import FittedSignal, Signal
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.readings import Readings

log = logging.getLogger(__name__)


class WatchedRun:
    """Probe, signals, evidence and records of one run.

    Args:
        signals: the signals to measure; default denoising loss and attention entropy.
        options: the options of the run.

    Raises:
        ConfigurationError: if the signal for flags is not measured.
    """

    def __init__(self, signals: Sequence[Signal] | None, options: WatchOptions) -> None:
        require_kind(signals or [], Signal, called="signals")
        self.signals = list(signals) if signals else [DenoisingLoss(), AttentionEntropy()]
        self.options = options
        names = [signal.name for signal in self.signals]
        if options.flag_by not in [*names, COMBINED]:
            raise ConfigurationError(
                f"flag_by={options.flag_by!r} is no measured signal",
                expected=f"one of {[*names, COMBINED]}",
                remedy="set flag_by to one of these, or add the signal to `signals`",
            )
        self.mitigations: list[Mitigation] = []
        self.probe: DenoiserProbe | None = None
        self.flagging: Flagging | None = None
        self.records: RunRecords | None = None
        self.online: OnlineWatch | None = None
        self.batches_done = self._unconditional_every = 0
        self._host: Host | None = None
        self._visits: list[Visits] = []
        self._starting: StartingWeights | None = None
        self._base: BaseForward | None = None
        self._loss_check: LossCheck | None = None
        self._without_caption: set[str] = set()
        self._skipped, self._settled = SkippedSteps(), False
        self._state: dict[str, Any] = {}

    # Parts of a started run

    @property
    def host(self) -> Host:
        """The host of the run."""
        assert self._host is not None, "setup() comes first"
        return self._host

    @property
    def running(self) -> tuple[DenoiserProbe, Flagging, RunRecords]:
        """The probe, the flagging and the records of the run.

        Raises:
            ProbeError: if the run has not started.
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
        """Refuse methods that cannot share a run, and remember the base model, before a checkpoint is loaded.

        Args:
            host: the host of the run.
            mitigations: the mitigations in the order in which they act; the ones that change samples act first.
        """
        self._host = host
        require_kind(mitigations, Mitigation, called="mitigations")
        self.mitigations = sorted(mitigations, key=lambda mitigation: not mitigation.effects().changes_samples)
        refuse_combinations(self.mitigations, signals=self.signals, profiled=self.options.reference is True)
        host.names = BatchNames(self.options.key_field)
        if wanted(self.options.settings.online_families, host):
            host.families = OnlineFamilies()
        for mitigation in self.mitigations:
            mitigation.open(host)
        if self.options.reference in ("paired", "first_visit"):
            self._starting = StartingWeights(host.module, self.options.denoiser)

    def start(self) -> None:
        """Attach the probe, measure the base model, calibrate, open the record."""
        host = self.host
        _, denoiser, backbone = find_denoiser(host.module, self.options.denoiser)
        paired = self._starting.finish(denoiser, restored=host.restored) if self._starting is not None else None
        self._check(partial(backbone.prediction_gradient, unwrap(denoiser)))
        by_weight = self.options.settings.heldout_share > 0 and host.noise_scheduler is not None
        self.probe = DenoiserProbe(
            denoiser,
            sites=self.options.sites,
            backbone=backbone,
            differentiable=any(mitigation.needs().attention_graph for mitigation in self.mitigations),
            neurons=any(signal.needs_neurons for signal in self.signals),
            keep_call=bool(self._unconditional_every) or self.options.reference == "paired" or by_weight,
        )
        self.readings = Readings(self.signals, list(self.probe.sites))
        self.flagging = Flagging(host, options=self.options, readings=self.readings, probe=self.probe, paired=paired)
        self.flagging.calibration.copies = Copies(by_key(host.data, "copied_from"))
        self.online = OnlineWatch.of(host, chosen=self.flagging.heldout_keys, options=self.options)
        self._base, every = None, self.options.paired_every
        if paired is not None and self.options.reference == "paired":
            self._base = BaseForward(host, probe=self.probe, readings=self.readings, paired=paired, every=every)
        for mitigation in self.mitigations:
            mitigation.attach(denoiser, backbone=backbone, module=host.module)
        self.probe.attach()
        self._go_on()
        self._without_caption = {one.key for one in known_samples(host.data, "train") if one.caption == ""}

    def _go_on(self) -> None:
        """Begin the record or load a saved state, and update the calibration to the current step."""
        host, (probe, flagging, _) = self.host, (self.probe, self.flagging, None)
        assert probe is not None and flagging is not None
        # The saved state is used once, so a second run of the same engine starts without it.
        state, self._state = self._state, {}
        self._skipped, self._settled = SkippedSteps(), False
        self.batches_done, self._visits = state.get("batches_done", 0), []
        columns = self.readings.columns
        names = columns + ([f"base.{name}" for name in columns] if self._base is not None else [])
        if state:
            check_continued(state.get("watch"), self._watch(), host=host)
        else:
            require_state(host, self.options)
        self.records = RunRecords(
            host, names, batches_done=self.batches_done if state else None, rows=state.get("rows")
        )
        if state:
            if self.online is not None:
                self.online.load_state_dict(state["online"])
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

    def _watch(self) -> dict[str, Any]:
        """Return the settings that the evidence of the run depends on, in plain types."""
        return watch_of(self.host, self.options, columns=self.readings.columns, mitigations=self.mitigations)

    def _check(self, predicted: Callable[[Tensor], Tensor]) -> None:
        """Refuse options that module or data do not support, before any work is done."""
        host = self.host
        require_loss_weight(host.module)
        early = [type(mitigation).__name__ for mitigation in self.mitigations if mitigation.needs().sample_loss]
        paired, self._loss_check = self.options.reference == "paired", None
        if early or any(isinstance(signal, DenoisingLoss) for signal in self.signals):
            self._loss_check = LossCheck(early=early, paired=paired, predicted=predicted)
        if self.options.profiled:
            require_measurable(host, needed_by=f"`reference: {str(self.options.reference).lower()}`")
        for signal in self.signals:
            if isinstance(signal, FittedSignal):
                require_measurable(host, needed_by=signal.name)
        every = {signal.name: signal.unconditional_every for signal in self.signals if signal.unconditional_every}
        every |= {type(mitigation).__name__: 1 for mitigation in self.mitigations if mitigation.needs().unconditional}
        for name in every:
            require_unconditional(host.module, name)
        self._unconditional_every = min(every.values(), default=0)

    def warn_if_too_short(self) -> None:
        """Warn if the run is too short for flags; call it when the host knows its plan."""
        too_short = too_short_for_flags(
            self.host,
            minimum_visits=self.options.minimum_visits,
            maximum_timestep=self.options.settings.maximum_timestep,
            paired_every=None if self._base is None else self.options.paired_every,
        )
        if too_short is not None and self.host.rank == 0:
            log.warning(too_short)

    # Checkpoints and the end

    def _update(self, *, over: bool = False) -> None:
        """Record the visits since the last update, and turn them into evidence; `over` for the last time."""
        _, flagging, records = self.running
        if self._loss_check is not None:  # before the visits become evidence
            self._loss_check.decide(self.host, over=over)
        records.append(self._visits)
        if self.host.saves_alone:
            records.flush()
        if self.online is not None:
            self.online.exchange(flagging.calibration)
        flagging.add(self._visits, step=self.host.step)
        self._visits = []
        for mitigation in self.mitigations:
            mitigation.synchronize(lambda value: self.host.gather([value]))

    def update(self) -> None:
        """Turn the visits since the last update into evidence before an update is due."""
        self._update()

    def flush(self) -> None:
        """Write the records up to the current batch; call it when a checkpoint is written."""
        if self.records is not None:
            self.records.append(self._visits)
            self.records.flush()
            self.running[1].first_visits.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return evidence, calibration and positions, the same on every process."""
        if self.flagging is None:
            return self._state
        return {
            **self.flagging.state_dict(),
            "batches_done": self.batches_done,
            "rows": self.running[2].rows_with(self._visits),
            "watch": self._watch(),
            "evidence_until": min((visits.batch for visits in self._visits), default=self.batches_done),
            "signals": [signal.state_dict() for signal in self.readings.fitted],
            **({} if self.online is None else {"online": self.online.state_dict()}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a saved state until the run starts."""
        self._state = state

    def settle(self) -> None:
        """Take in the last visits before the export of the trained weights; a second call does nothing."""
        if self._settled:
            return
        self._update(over=True)
        self._skipped.require_some_trained(self.batches_done)
        for mitigation in self.mitigations:
            mitigation.finish(self.host)
        self._settled = True
        self.running[1].first_visits.finish()

    def finish(self) -> None:
        """After :meth:`settle`, write evidence.parquet, calibration.json and flagged.csv; print a summary."""
        self.settle()
        _, flagging, records = self.running
        values = RecordedValues(self.readings, flagging.profile, self.options, self.calibration.scored)
        records.finish(self.calibration, values, held_out=flagging.heldout_keys)
        if self.online is not None:
            self.online.finish(records.folder)

    def close(self) -> None:
        """Remove every hook; a second call does nothing."""
        if self._starting is not None:
            self._starting.close()
        if self.probe is not None:
            self.probe.detach()
        for mitigation in self.mitigations:
            mitigation.detach()
