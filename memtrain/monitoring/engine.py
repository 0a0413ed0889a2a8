"""The engine, which watches every training batch, names the samples being memorized, and keeps the record.

On every training batch it reads the signals through the probe, compares them with the base model, and adds them to each
sample's evidence. It lets the mitigations weight the samples of the batch. At regular steps it measures held-out
samples under the current model, which calibrates the threshold. It imports no trainer, and asks a
:class:`memtrain.monitoring.host.Host` instead. Its caller calls, in this order,

1. :meth:`Engine.setup`, before a checkpoint is loaded, then :meth:`Engine.load_state_dict` with a checkpoint;
2. :meth:`Engine.start`, when the model is ready for training;
3. for each batch :meth:`Engine.begin`, :meth:`Engine.before_backward` and :meth:`Engine.end`;
4. :meth:`Engine.flush` when a checkpoint is written, :meth:`Engine.finish` at the end, and :meth:`Engine.close` at
   every end, also after an error.

Cost: two projections per attention site and step, the profile once, and a forward of `heldout_batch` samples every
`calibrate_every` batches. Between these updates nothing waits for the device. The values of a batch are copied to the
host in the background. They become evidence at the next update, together with the values of the other processes. So
flags lag behind by less than `calibrate_every` batches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memtrain.models.observation import Observation
from memtrain.monitoring.batch_fields import caption_dropped, described_length, described_mask
from memtrain.monitoring.combinations import require_changeable
from memtrain.monitoring.finite import HostNumbers
from memtrain.monitoring.intake import Intake
from memtrain.monitoring.loss_check import AT_ONCE
from memtrain.monitoring.loss_weight import loss_weights
from memtrain.monitoring.measurement import add_unconditional
from memtrain.monitoring.options import WatchOptions
from memtrain.monitoring.run import WatchedRun
from memtrain.monitoring.sample_losses import Criterion
from memtrain.monitoring.turn import Turn
from memtrain.signals.base import Signal


class Engine(WatchedRun):
    """Watches the batches of one run; its arguments are those of :class:`WatchedRun`."""

    def __init__(self, signals: Sequence[Signal] | None, options: WatchOptions) -> None:
        super().__init__(signals, options)
        self.turn: Turn | None = None
        self.intake: Intake | None = None
        self._numbers = HostNumbers()

    def start(self) -> None:
        """Attach the probe, measure the base model, calibrate, open the record."""
        super().start()
        probe, flagging, _ = self.running
        self._numbers = HostNumbers(self.host)
        self.intake = Intake(
            self.host,
            probe=probe,
            flagging=flagging,
            mitigations=self.mitigations,
            forward_done=self._forward_done,
            replay=self._replay,
            online=self.online,
        )

    def update_when_due(self) -> None:
        """Make the visits since the last update evidence, and calibrate, every `calibrate_every` batches."""
        settings = self.options.settings
        if self.batches_done % settings.calibrate_every == 0:
            self._update()
            copies = self.calibration.copies.at_once(processes=self.host.world_size)
            self.running[1].calibrate(max(settings.heldout_batch, copies))

    # Each batch

    def begin(self, batch: Any, *, scaled: bool = True) -> Turn:
        """Update when due, let the mitigations prepare the batch, and arm the probe; before the forward pass.

        Args:
            batch: the batch with the samples' keys.
            scaled: whether the loss for :meth:`before_backward` has the host's loss scale already.
        """
        probe, flagging, _ = self.running
        self.update_when_due()
        keys = self._named(batch)
        twins = None if self.online is None else self.online.begin(batch, keys)
        flags = flagging.flags(keys)
        tokenizer = getattr(self.host.module, "tokenizer", None)
        for mitigation in self.mitigations:
            require_changeable(batch, mitigation)
            mitigation.prepare(batch, flags, tokenizer=tokenizer, number=self.batches_done)
            if mitigation.effects().changes_samples:
                keys = self.host.names(batch)
                twins = None if self.online is None else self.online.begin(batch, keys)
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
            twins=twins,
            scaled=scaled,
        )
        probe.begin(self.turn.observation, self.turn.decide)
        return self.turn

    def _named(self, batch: Any) -> list[str]:
        """Return the names of a batch's samples, and check that names come again."""
        plan, over = self.host.plan, None
        if plan is not None and plan.batches_of_data is not None:
            over = self.batches_done >= plan.batches_of_data + self.options.settings.calibrate_every
        dataset = getattr(self.host.data, "train_dataset", None)
        return self.host.names.of_training(batch, dataset=dataset, known=self.calibration, round_over=over)

    def before_backward(self, loss: Tensor) -> None:
        """Add the mitigations' penalties to the loss, on its scale; predict without the caption when due."""
        probe, flagging, _ = self.running
        turn = self.turn
        assert turn is not None, "begin() comes first"
        turn.differentiated = True
        self._numbers.see(loss, batch=turn.number, keys=turn.observation.keys)
        if turn.loss_check is not None and not turn.handed:
            turn.loss_check.differentiates(loss if turn.scaled else loss.detach() * turn.observation.loss_scale)
        if turn.penalized or not probe.current.timesteps.numel():
            # There are several losses, from another network before the denoiser ran, or after it.
            return
        turn.penalized = True
        if not turn.handed:
            self._forward_done(probe.current)
        penalizing = turn.penalizing
        if not penalizing:
            return
        # The probe refuses a batch that was never begun.
        observation = probe.current
        if any(mitigation.needs().base_profile for mitigation in penalizing):
            flagging.add_reference(observation)
        turn.penalize(loss)

    def _forward_done(self, observation: Observation) -> None:
        assert self.probe is not None
        if self._unconditional_every and self.batches_done % self._unconditional_every == 0:
            add_unconditional(self.host, self.probe, observation)
        for mitigation in self.mitigations:
            mitigation.forward_done(self.host)

    def end(self, outputs: Any = None) -> None:
        """Read the signals, and start their way to the host; after the backward pass.

        Args:
            outputs: the value that the training step returned; it may hold `sample_loss`.
        """
        probe, _, _ = self.running
        turn, self.turn = self.turn, None
        assert turn is not None, "begin() comes first"
        if self._skipped.skipped(turn):
            self._pass_over(turn)
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
        if self._base is not None:
            values = torch.cat([values, self._base.values(turn, values, handover)], dim=1)
        if self.online is not None:
            self.online.end(turn.observation, batch=turn.number)
        self._visits.append(turn.visits(values, rank=self.host.rank, epoch=self.host.epoch))
        self.batches_done += 1
        for mitigation in self.mitigations:
            mitigation.batch_done()
        self.host.log(self._figures(turn), batch_size=len(observation.keys))

    def _figures(self, turn: Turn) -> dict[str, Tensor]:
        """Return the logged figures of a batch as tensors on the host, because numbers would wait for the device."""
        assert turn.weights is not None
        figures = {
            "flagged": torch.tensor(float(len(self.calibration.first_flagged))),
            "pictures_flagged": torch.tensor(float(len(self.calibration.levels.flagged_pictures))),
            "share": torch.tensor(self.calibration.share_flagged()),
            "threshold": torch.tensor(self.calibration.threshold),
            "weight": turn.weights.mean(),
        }
        if len(turn.flags.keys):
            figures["visits_flagged"] = turn.flags.ever.float().mean()
        if turn.flags.ready is not None and bool(turn.flags.ready.any()):
            figures["highest_score"] = turn.flags.score[turn.flags.ready].max().float()
        return {f"memorization/{name}": value for name, value in figures.items()}

    def _pass_over(self, turn: Turn) -> None:
        """Note that the step did not train on this batch."""
        self.running[0].drop()
        if turn.loss_check is not None:
            turn.loss_check.forget()
        self.batches_done += 1
        for mitigation in self.mitigations:
            mitigation.batch_done()

    # NaN and infinity

    def _update(self, *, over: bool = False) -> None:
        self._numbers.require_finite(thorough=over)
        super()._update(over=over)

    def flush(self) -> None:
        """Write the records up to the current batch; call it when a checkpoint is written."""
        self._numbers.require_finite(thorough=True)
        super().flush()

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
        """Return the batch mean of gated and weighted losses, instead of the host's own; see :mod:`.loss_route`.

        Args:
            prediction: `(b, ...)` the next rows of the denoiser's last forward with gradients.
            target: `(b, ...)` target.
            keys: the keys of the samples; None if the batch named them.
            weights: weights of samples or of elements.
            criterion: a name, or a function of prediction and target.
            caption_dropped: b values, true if the empty caption replaced the sample's own.

        Returns:
            The loss `()` with a graph and the mitigations' penalties, unless :meth:`before_backward` adds them.
        """
        assert self.intake is not None, "start() comes first"
        begun = self.turn
        # A loss that is handed over need not be checked.
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
        if self.turn is not None:
            self._numbers.see(loss, batch=self.turn.number, keys=self.turn.observation.keys)
        return loss

    def show(self, *, images: Tensor | None, captions: Sequence[str] | None) -> None:
        """Show images and captions of the next rows to an index of families; call it before :meth:`loss`."""
        if self.online is not None and (images is not None or captions is not None):
            self.online.show(images=images, captions=captions)

    def drop_batch(self) -> None:
        """Forget an unfinished batch; without such a batch it does nothing."""
        self.turn = None
        if self.online is not None:
            self.online.drop()
        if self.intake is not None:
            self.intake.handover = None

    @property
    def handed_over(self) -> bool:
        """Whether every row of the last forward was handed over."""
        return self.intake is not None and self.intake.handover is not None and self.intake.handover.complete

    @property
    def loss_unseen(self) -> bool:
        """Whether losses are read from gradients, and the loss of this batch was never shown."""
        return self._loss_check is not None and not self._loss_check.saw

    def _replay(self, observation: Observation) -> Observation | None:
        """Run the forward of this batch under the base model; None if the batch is not compared."""
        return None if self._base is None else self._base.replay(observation, self.turn, number=self.batches_done)
