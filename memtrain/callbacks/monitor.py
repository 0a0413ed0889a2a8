"""The monitor: watches every training batch, names the samples being memorized, and keeps the record.

On every training batch it reads the signals through the probe, compares them with the reference profile, adds them to
each sample's evidence, and lets the mitigations weight the samples of the batch. Now and then it measures held-out
samples (the validation data) under the model as it is, which calibrates the threshold.

It works in any LightningModule whose loss is a batch mean of squared errors at the output of a known denoiser and whose
batches carry sample keys. What needs the base model (the profile) and held-out samples needs one more thing: a method
`sample_loss(batch, timesteps, generator) -> (B,)` on the module, which runs the denoiser once. Without it,
set `reference: false`: values are then compared with the other training samples of the run, and the threshold rests on
their bulk (median and spread) instead of held-out samples.

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
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from memtrain.calibration import Calibration
from memtrain.callbacks.measurement import HeldoutSamples, measure_profile, require_measurable
from memtrain.callbacks.mitigation import Flags, Mitigation
from memtrain.callbacks.summary import evidence_table, print_summary, write_flagged
from memtrain.callbacks.visits import Visits
from memtrain.errors import ConfigurationError, DataError
from memtrain.models.backbones.base import find_denoiser
from memtrain.models.probe import DenoiserProbe, Observation
from memtrain.models.transfer import to_device
from memtrain.records import RecordWriter, drop_newer, read_steps, set_aside, write_parquet
from memtrain.reference import ReferenceProfile
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.base import Signal
from memtrain.signals.denoising_loss import DenoisingLoss

log = logging.getLogger(__name__)


class MemorizationMonitor(Callback):
    """Watch training for memorized samples.

    Args:
        signals: what is measured; default denoising loss and attention entropy.
        flag_by: name of the signal that flags go by.
        false_positive_rate: share of samples like the held-out ones that may be flagged over the whole run.
        sites: glob over attention sites (`*` for all); default the backbone's subset.
        denoiser: module path of the denoiser; found by itself if there is one.
        key_field: field of the batch that holds the sample keys.
        maximum_timestep: visits at or above this timestep are recorded but are no evidence.
        minimum_visits: visits before a sample can be flagged.
        evidence_window: visits that a sample's evidence remembers.
        reference: compare with the base model and calibrate on held-out samples.
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
        reference: bool = True,
        reference_folder: str | None = None,
        reference_timesteps: tuple[int, ...] = (100, 300, 500, 700),
        reference_draws: int = 2,
        calibrate_every: int = 8,
        heldout_batch: int = 16,
        seed: int = 0,
    ) -> None:
        self.signals = list(signals) if signals else [DenoisingLoss(), AttentionEntropy()]
        self.names = [signal.name for signal in self.signals]
        if flag_by not in self.names:
            raise ConfigurationError(
                f"flag_by={flag_by!r} is no measured signal", expected=f"one of {self.names}", remedy="change flag_by"
            )
        if calibrate_every < 1 or heldout_batch < 1:
            raise ConfigurationError(
                f"calibrate_every={calibrate_every}, heldout_batch={heldout_batch}",
                expected="at least 1 each",
                remedy="change them",
            )
        self.flag_by, self.false_positive_rate = flag_by, false_positive_rate
        self.sites, self.denoiser, self.key_field = sites, denoiser, key_field
        self.maximum_timestep, self.minimum_visits, self.window = maximum_timestep, minimum_visits, evidence_window
        self.reference, self.reference_folder = reference, reference_folder
        self.reference_timesteps, self.reference_draws = reference_timesteps, reference_draws
        self.calibrate_every, self.heldout_batch, self.seed = calibrate_every, heldout_batch, seed
        self.probe: DenoiserProbe | None = None
        self.profile: ReferenceProfile | None = None
        self.mitigations: list[Mitigation] = []
        self.columns: list[str] = []
        self._batches_done = 0
        self._visits: list[Visits] = []
        self._heldout: HeldoutSamples | None = None
        self._state: dict[str, Any] = {}

    # Start and end

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Attach the probe, measure the reference profile, calibrate, open the record."""
        _, denoiser, backbone = find_denoiser(pl_module, self.denoiser)
        self.mitigations = [c for c in trainer.callbacks if isinstance(c, Mitigation)]  # type: ignore[attr-defined]
        differentiable = any(mitigation.needs_graph for mitigation in self.mitigations)
        self.probe = DenoiserProbe(denoiser, sites=self.sites, backbone=backbone, differentiable=differentiable)
        self.columns = [name for signal in self.signals for name in signal.columns(list(self.probe.sites))]
        start = 0
        for signal in self.signals:
            width = len(signal.columns(list(self.probe.sites)))
            if signal.name == self.flag_by:
                scored, memorized_when = slice(start, start + width), signal.memorized_when
            start += width
        self.calibration = Calibration(
            len(self.columns),
            scored=scored,
            memorized_when=memorized_when,
            buckets=len(self.reference_timesteps),
            false_positive_rate=self.false_positive_rate,
            minimum_visits=self.minimum_visits,
            window=self.window,
            heldout=self.reference,
        )
        self.profile = ReferenceProfile(
            Path(self.reference_folder or Path(trainer.default_root_dir) / "profiles"),
            self.signals,
            self.columns,
            timesteps=self.reference_timesteps,
            draws=self.reference_draws,
            seed=self.seed,
        )
        for mitigation in self.mitigations:
            mitigation.attach(denoiser, backbone=backbone, module=pl_module)
        self.probe.attach()
        # Taken once: a second fit with the same callback starts anew.
        state, self._state = self._state, {}
        resumed = bool(state)
        if resumed:
            self.calibration.load_state_dict(state["calibration"])
            self.profile.fingerprint = state["fingerprint"]
        self._batches_done, self._visits = state.get("batches_done", 0), []
        self._open_records(trainer, resumed)
        if resumed:
            self._visits = self._unread_visits(trainer, state["evidence_until"])
        if self.reference:
            self._prepare_reference(trainer, pl_module, state)

    def _open_records(self, trainer: Trainer, resumed: bool) -> None:
        self.folder = Path(trainer.default_root_dir) / "records"
        if trainer.is_global_zero:
            if resumed:
                drop_newer(self.folder, self._batches_done)
            elif (kept := set_aside(self.folder)) is not None:
                log.warning("The records of an earlier run are kept in %s", kept)
        trainer.strategy.barrier()
        self.writer = RecordWriter(self.folder, rank=trainer.global_rank)
        data: Any = getattr(trainer, "datamodule", None)
        if trainer.is_global_zero and getattr(data, "train_dataset", None) is not None:
            rows = [(s.key, s.caption, "train", data.visits_per_epoch[s.key]) for s in data.train_dataset.samples]
            rows += [(s.key, s.caption, "heldout", 0) for s in data.heldout_dataset.samples]
            names = ("key", "caption", "split", "visits_per_epoch")
            table = pa.table(dict(zip(names, map(list, zip(*rows, strict=True)), strict=True)))
            write_parquet(table, self.folder / "samples.parquet")

    def _unread_visits(self, trainer: Trainer, first: int) -> list[Visits]:
        """This process's visits that were recorded before the checkpoint, but are no evidence yet."""
        if first == self._batches_done:
            return []
        rows = read_steps(self.folder, first=first).to_pylist()
        mine = [row for row in rows if row["rank"] % trainer.world_size == trainer.global_rank]
        return Visits.from_rows(mine, self.columns)

    def _prepare_reference(self, trainer: Trainer, pl_module: LightningModule, state: dict[str, Any]) -> None:
        assert self.profile is not None and self.probe is not None
        data = require_measurable(trainer, pl_module)
        self._heldout = HeldoutSamples(
            data.heldout_dataset.unique(),
            self.probe,
            read=self._read,
            maximum_timestep=self.maximum_timestep,
            seed=self.seed,
        )
        method = self.calibration.require_heldout(len(self._heldout))
        if method == "normal distribution" and trainer.is_global_zero:
            log.warning(
                "Only %d held-out samples: the threshold assumes that their scores are normally distributed",
                len(self._heldout),
            )
        resumed = bool(state)
        measure_profile(trainer, pl_module, profile=self.profile, probe=self.probe, cached_only=resumed)
        if resumed:
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
            if hasattr(self, "writer"):
                self._record()
                self.writer.flush()
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
            if self.reference:
                self._calibrate(trainer, pl_module, self.heldout_batch)
        keys = self._keys(batch)
        scale = _gradient_scale(trainer) / trainer.accumulate_grad_batches
        self._flags = Flags(
            self.calibration.flagged(keys),
            self.calibration.ever_flagged(keys),
            self.calibration.scores(keys),
            self.calibration.threshold,
        )
        assert self.probe is not None
        tokenizer = getattr(pl_module, "tokenizer", None)
        for mitigation in self.mitigations:
            mitigation.prepare(batch, self._flags, tokenizer=tokenizer, number=self._batches_done)
        lengths, mask = batch.get("prompt_length"), batch.get("prompt_mask")
        self._loss_weight = getattr(pl_module, "loss_weight", None)
        self.probe.begin(Observation(keys, lengths, mask, loss_scale=scale), self._gate)

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
        """Add the mitigations' penalties to the loss, on its scale."""
        assert self.probe is not None
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
        widths = [len(signal.columns(list(self.probe.sites))) for signal in self.signals]  # type: ignore[union-attr]
        return dict(zip(self.names, values.split(widths, dim=1), strict=True))

    def _flags_on(self, device: torch.device) -> Flags:
        now, ever, score = (to_device(part, device) for part in (self._flags.now, self._flags.ever, self._flags.score))
        return Flags(now, ever, score, self._flags.threshold)

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
        self._visits.append(
            Visits(
                self._batches_done,
                trainer.global_rank,
                trainer.current_epoch,
                trainer.global_step,
                list(observation.keys),
                self._flags.score,
                self._flags.now,
                Visits.pack(observation, self._weights, self._read(observation)),
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

    def _read(self, observation: Observation) -> Tensor:
        return torch.cat([signal(observation) for signal in self.signals], dim=1).float()

    def _record(self) -> None:
        """Append what is not in the record table yet."""
        for visits in self._visits:
            if not visits.recorded:
                self.writer.append(visits.batch, visits.rows(self.columns))
                visits.recorded = True

    def _update(self, trainer: Trainer) -> None:
        """Record the visits since the last update, and make those of every process evidence."""
        self._record()
        rows = [(visits.batch, visits.rank, visits.keys, visits.timesteps, visits.values) for visits in self._visits]
        self._visits = []
        for _, _, keys, timesteps, values in sorted(_gather(rows), key=lambda row: row[:2]):
            compared = self._compare(keys, timesteps, values)
            self.calibration.add(keys, self._buckets(timesteps), compared, trainer.global_step)
        for mitigation in self.mitigations:
            mitigation.synchronize(lambda value: _gather([value]))

    def _calibrate(self, trainer: Trainer, pl_module: LightningModule, count: int) -> None:
        """Measure the next held-out samples, and update the calibration of every process."""
        assert self._heldout is not None
        for keys, timesteps, values in _gather([self._heldout.measure(trainer, pl_module, count)]):
            buckets = [bucket for bucket in self._buckets(timesteps) if bucket is not None]
            self.calibration.add_heldout(keys, buckets, self._compare(keys, timesteps, values))

    def _buckets(self, timesteps: Sequence[float]) -> list[int | None]:
        assert self.profile is not None
        return [self.profile.bucket(t) if t < self.maximum_timestep else None for t in timesteps]

    def _compare(self, keys: Sequence[str], timesteps: Sequence[float], values: Tensor) -> Tensor:
        """Values relative to the base model where there is a profile, `(B, columns)`."""
        assert self.profile is not None
        reference = self.profile.lookup(keys, timesteps) if self.reference else None
        parts, start = [], 0
        for signal in self.signals:
            columns = slice(start, start + len(signal.columns(list(self.probe.sites))))  # type: ignore[union-attr]
            part = values[:, columns]
            parts.append(signal.absolute(part) if reference is None else signal.relative(part, reference[:, columns]))
            start = columns.stop
        return torch.cat(parts, dim=1)

    # Checkpoints and the end of training

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Make the records end where the checkpoint does."""
        if hasattr(self, "writer"):
            self._record()
            self.writer.flush()

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
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Kept until training starts."""
        self._state = state_dict

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write evidence.parquet and flagged.csv, print the most suspicious samples."""
        self._update(trainer)
        self.writer.flush()
        trainer.strategy.barrier()
        if not trainer.is_global_zero:
            return
        captions = {}
        data: Any = getattr(trainer, "datamodule", None)
        if getattr(data, "train_dataset", None) is not None:
            captions = {sample.key: sample.caption for sample in data.train_dataset.samples}
        table = evidence_table(
            read_steps(self.folder), self.calibration, self.columns, captions, getattr(data, "visits_per_epoch", {})
        )
        write_parquet(table, self.folder / "evidence.parquet")
        write_flagged(table, Path(trainer.default_root_dir) / "flagged.csv")
        print_summary(table, self.calibration, Path(trainer.default_root_dir))


def _gradient_scale(trainer: Trainer) -> float | Tensor:
    """The gradient scaler's factor; a tensor where it is on the device, so that nothing waits for its value."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    if scaler is None:
        return 1.0
    scale: float | Tensor | None = scaler._get_scale_async()
    return float(scaler.get_scale()) if scale is None else scale


def _gather(rows: list[Any]) -> list[Any]:
    """The rows of every process, in the order of ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return rows
    gathered: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(gathered, rows)
    return [row for part in gathered for row in part]
