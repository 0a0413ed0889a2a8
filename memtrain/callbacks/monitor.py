"""The monitor: the engine (:mod:`memtrain.monitoring.engine`) in a Lightning trainer.

It watches every training batch, names the samples being memorized, and keeps the record. It works in any
LightningModule, of `lightning.pytorch` or `pytorch_lightning`, under automatic or manual optimization, around a known
denoiser. Each sample's loss is what `training_step` returns as `sample_loss`, or is read from the gradient and checked
(:mod:`memtrain.monitoring.loss_check`). A step that returns None, or trains another network alone, is no visit. Batches
may be of any kind; :mod:`memtrain.monitoring.batch_fields` says how their samples are named. examples/own_module.py
lists what a module may offer, :mod:`memtrain.monitoring.data_protocol` what a data module may. What is compared with is
`reference`:

- `true`: a profile of every sample under the base model, measured once before training. It needs a method
  `sample_loss(batch, timesteps, generator) -> (B,)` on the module, which runs the denoiser once, and data that can
  be measured.
- `first_visit`: the same profile, but training begins at once and each sample is measured at its first visit, under the
  weights that training began with (:mod:`memtrain.monitoring.first_visits`). It needs a data module whose
  `train_dataset` knows its `samples` too.
- `paired`: the base model on the very same noise, every `paired_every`-th batch
  (:mod:`memtrain.monitoring.paired_reference`), for data that is streamed or too large for a profile, and for modules
  without `sample_loss`.
- `false`: nothing; values are compared with the other training samples of the run.

Held-out samples need `sample_loss` too, and a data module that knows them or a validation loader given to
`trainer.fit`; without them (or with `reference: false`) the threshold rests on the bulk of the training samples, by
median and spread.

A run in which few samples, or none, can reach `minimum_visits` says so before its first batch, and how many could not
be judged at its end. A visit whose caption was dropped (`caption` in the batch is empty, and the sample's own is not)
cannot be compared with the sample's other visits: its signal values are NaN, also in the records, and it is no
evidence.

Logged metrics: `memorization/flagged` (samples flagged so far, all files of a flagged picture),
`memorization/pictures_flagged` (their pictures), `memorization/share` (share of the training pictures, or of those seen
so far where their number is not known; :mod:`memtrain.callbacks.stop_before_memorization` stops by it),
`memorization/visits_flagged` (share of the batch's visits that are of flagged samples), `memorization/threshold` (score
above which a sample is flagged), `memorization/highest_score` (the highest in the batch, of samples with visits enough
for a flag; without any it is not logged), `memorization/weight` (mean weight in the batch).
"""

from __future__ import annotations

from typing import Any, Literal

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from memtrain.callbacks.base import Callback
from memtrain.callbacks.lightning_host import LightningHost
from memtrain.errors import ConfigurationError
from memtrain.evidence.calibration import Calibration
from memtrain.monitoring.engine import Engine
from memtrain.monitoring.mitigation import Mitigation
from memtrain.monitoring.options import WatchOptions, WatchSettings
from memtrain.monitoring.sample_losses import Criterion
from memtrain.signals.base import Signal


class MemorizationMonitor(Callback):
    """Watch training for memorized samples.

    Args:
        signals: what is measured; default denoising loss and attention entropy.
        flag_by: name of the signal that flags go by, or `combined` for all of them, weighted by the run's canaries.
        false_positive_rate: share of samples like the held-out ones that may be flagged over the whole run. What so
            many held-out samples promise of it is said before training (:mod:`memtrain.evidence.promise`).
        minimum_visits: visits before a sample can be flagged.
        reference: what values are compared with. `true`: the base model, measured before training for every sample;
            `first_visit`: the same, measured when a sample is visited first; `paired`: the base model on the very same
            noise, every `paired_every` batches; `false`: nothing.
        reference_folder: where reference profiles are kept; default `profiles/` in the run folder.
        paired_every: batches between comparisons with `reference: paired`.
        sites: glob over attention sites (`*` for all); default the backbone's subset.
        denoiser: module path of the denoiser; found by itself if there is one.
        key_field: field of the batch that holds the sample keys; default `key`, or a hash of each image where there is
            none (:mod:`memtrain.monitoring.batch_fields`).
        settings: what rarely needs changing.
    """

    updates_at_the_end = True
    """Whoever takes stock when training ends has to stand after it among the callbacks."""

    def __init__(
        self,
        signals: list[Signal] | None = None,
        *,
        flag_by: str = "denoising_loss",
        false_positive_rate: float = 0.01,
        minimum_visits: int = 6,
        reference: bool | Literal["paired", "first_visit"] = True,
        reference_folder: str | None = None,
        paired_every: int = 4,
        sites: str | None = None,
        denoiser: str | None = None,
        key_field: str | None = None,
        settings: WatchSettings | None = None,
    ) -> None:
        self.options = WatchOptions(
            flag_by=flag_by,
            false_positive_rate=false_positive_rate,
            minimum_visits=minimum_visits,
            reference=reference,
            reference_folder=reference_folder,
            paired_every=paired_every,
            sites=sites,
            denoiser=denoiser,
            key_field=key_field,
            settings=settings or WatchSettings(),
        )
        self.engine = Engine(signals, self.options)

    @property
    def calibration(self) -> Calibration:
        """The calibration of the run, once training has begun."""
        return self.engine.calibration

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot share a run, and remember the base model, before a checkpoint is loaded."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(callback, MemorizationMonitor) for callback in callbacks) > 1:
            raise ConfigurationError(
                "There are two MemorizationMonitors among the callbacks",
                expected="one, which may measure several signals",
                remedy="put all signals into one monitor",
            )
        if stage == "fit":
            mitigations = [callback for callback in callbacks if isinstance(callback, Mitigation)]
            self.engine.setup(LightningHost(trainer, pl_module), mitigations)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the probe, measure the base model, calibrate, open the record."""
        self.engine.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the run is too short for flags."""
        self.engine.warn_if_too_short()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Update when due, and arm the probe."""
        self.engine.begin(batch)

    def loss(
        self, prediction: Tensor, target: Tensor, *, weights: Tensor | None = None, criterion: Criterion = "mse"
    ) -> Tensor:
        """The batch mean of the samples' gated losses, for a `training_step` that returns it as its loss.

        So each sample's loss is known exactly, whatever the criterion and the weights, and nothing is read from the
        gradient. Several calls take the rows of one forward in turn.

        Args:
            prediction: `(B, ...)` what the module computed from the denoiser's output.
            target: `(B, ...)`.
            weights: `(B,)` of samples, or of elements (a mask).
            criterion: `mse`, `l1`, `huber`, `smooth_l1`, or a function that gives elementwise or per-sample losses.

        Returns:
            `()`.
        """
        return self.engine.loss(prediction, target, weights=weights, criterion=criterion)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Add the mitigations' penalties to the loss."""
        self.engine.before_backward(loss)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Read the signals."""
        self.engine.end(outputs)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the records end where the checkpoint does."""
        self.engine.flush()

    def state_dict(self) -> dict[str, Any]:
        """Evidence, calibration and positions; the same on every process."""
        return self.engine.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self.engine.load_state_dict(state_dict)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the last visits: what is exported after this is as they leave it."""
        self.engine.settle()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write evidence.parquet and flagged.csv, print the most suspicious samples, remove every hook.

        By now the weights are exported, whatever befalls the summary. A run that is continued after its last step, to
        finish what was interrupted, comes here without a step.
        """
        self.engine.finish()
        self.engine.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what was recorded, remove every hook."""
        try:
            self.engine.flush()
        finally:
            self.engine.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove every hook."""
        self.engine.close()
