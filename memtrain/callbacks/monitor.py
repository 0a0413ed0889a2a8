"""The monitor: the engine (:mod:`memtrain.monitoring.engine`) in a Lightning trainer.

It watches every training batch, names the samples that are being memorized, and keeps the record. It works in any
LightningModule with a known denoiser, of `lightning.pytorch` or `pytorch_lightning`, under automatic or manual
optimization. The loss of each sample comes from `training_step` as `sample_loss`, or is read from the gradient and
checked (:mod:`memtrain.monitoring.loss_check`). A step that returns None, or trains only another network, is no visit.
Batches may be of any kind; :mod:`memtrain.monitoring.batch_fields` describes the names of their samples.
examples/own_module.py lists the optional methods of a module, and :mod:`memtrain.monitoring.data_protocol` the optional
methods of a data module. The setting `reference` chooses the values for comparison:

- `true`: a profile of every sample under the base model, measured once before training. It needs a method
  `sample_loss(batch, timesteps, generator) -> (B,)` on the module, which runs the denoiser once, and data that can
  be measured.
- `first_visit`: the same profile, but training begins at once. Each sample is measured at its first visit, under the
  weights from the beginning of training (:mod:`memtrain.monitoring.first_visits`). It also needs a data module whose
  `train_dataset` knows its `samples`.
- `paired`: the base model on the very same noise, every `paired_every`-th batch
  (:mod:`memtrain.monitoring.paired_reference`). It suits streamed data, data too large for a profile, and modules
  without `sample_loss`.
- `false`: no reference. Values are compared with the other training samples of the run.

Held-out samples also need `sample_loss`, and a data module that knows them or a validation loader for `trainer.fit`.
Without held-out samples, or with `reference: false`, the threshold rests on the median and spread of the bulk of the
training samples.

If few samples or none can reach `minimum_visits`, the monitor warns before the first batch, and at the end it prints
the number of samples that could not be judged. A visit with a dropped caption (`caption` in the batch is empty, and the
sample's own is not) cannot be compared with the sample's other visits. Its signal values are NaN, also in the records,
and it is no evidence.

These metrics are logged:

- `memorization/flagged`: number of samples flagged so far, with all files of a flagged picture;
- `memorization/pictures_flagged`: number of their pictures;
- `memorization/share`: their share of the training pictures, or of the pictures seen so far if the total is unknown
  (:mod:`memtrain.callbacks.stop_before_memorization` stops by it);
- `memorization/visits_flagged`: share of the batch's visits that belong to flagged samples;
- `memorization/threshold`: score above which a sample is flagged;
- `memorization/highest_score`: highest score in the batch among samples with enough visits for a flag, if any;
- `memorization/weight`: mean weight in the batch.
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
        signals: the signals to measure; default denoising loss and attention entropy.
        flag_by: name of the signal that decides on flags, or `combined` for all signals, weighted by the run's
            canaries.
        false_positive_rate: share of samples like the held-out ones that may be flagged over the whole run. A message
            before training says which part of this rate the held-out samples promise
            (:mod:`memtrain.evidence.promise`).
        minimum_visits: number of visits before a sample can be flagged.
        reference: source of the values for comparison. `true`: the base model, measured for every sample before
            training. `first_visit`: the same, measured at the first visit of a sample. `paired`: the base model on the
            very same noise, every `paired_every` batches. `false`: no reference.
        reference_folder: folder of the reference profiles; default `profiles/` in the run folder.
        paired_every: number of batches between comparisons with `reference: paired`.
        sites: glob over attention sites (`*` for all); default the backbone's subset.
        denoiser: module path of the denoiser; found automatically if the module has one.
        key_field: field of the batch with the sample keys; default `key`, or a hash of each image if the batch has no
            such field (:mod:`memtrain.monitoring.batch_fields`).
        settings: further settings that rarely need a change.
    """

    updates_at_the_end = True
    """A callback that reads the result at the end of training must come after the monitor."""

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
        """Refuse callbacks that cannot share a run, and remember the base model, before a checkpoint is loaded."""
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if sum(isinstance(callback, MemorizationMonitor) for callback in callbacks) > 1:
            raise ConfigurationError(
                "There are two MemorizationMonitors among the callbacks",
                expected="one monitor, which may measure several signals",
                remedy="put all signals into one monitor",
            )
        if stage == "fit":
            mitigations = [callback for callback in callbacks if isinstance(callback, Mitigation)]
            self.engine.setup(LightningHost(trainer, pl_module), mitigations)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the probe, measure the base model, calibrate, open the record."""
        self.engine.start()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Warn if the run is too short for flags."""
        self.engine.warn_if_too_short()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Update when due, and arm the probe."""
        self.engine.begin(batch)

    def loss(
        self, prediction: Tensor, target: Tensor, *, weights: Tensor | None = None, criterion: Criterion = "mse"
    ) -> Tensor:
        """Return the batch mean of the samples' gated losses, for a `training_step` that returns it as its loss.

        So each sample's loss is known exactly for every criterion and all weights, and nothing is read from the
        gradient. Several calls take the rows of one forward in turn.

        Args:
            prediction: `(B, ...)` prediction, computed from the denoiser's output.
            target: `(B, ...)` target.
            weights: weights of the samples, `(B,)`, or of the elements (a mask).
            criterion: `mse`, `l1`, `huber`, `smooth_l1`, or a function that gives elementwise or per-sample losses.

        Returns:
            The loss, `()`.
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
        """Write the records up to the state of the checkpoint."""
        self.engine.flush()

    def state_dict(self) -> dict[str, Any]:
        """Return evidence, calibration and positions, the same on every process."""
        return self.engine.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a saved state until training starts."""
        self.engine.load_state_dict(state_dict)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take in the last visits, so that the export after this includes them."""
        self.engine.settle()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write evidence.parquet and flagged.csv, print the most suspicious samples, remove every hook.

        The weights are exported by now, so an error in the summary cannot lose them. A run that is continued after its
        last step, to finish an interrupted end, comes here without a step.
        """
        self.engine.finish()
        self.engine.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write the collected records and remove every hook."""
        try:
            self.engine.flush()
        finally:
            self.engine.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove every hook."""
        self.engine.close()
