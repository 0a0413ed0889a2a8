"""The way from visits to flags: comparison with the base model, held-out samples and calibration.

The monitor reads the signals of each batch. This module compares them with the base model (`reference`), and measures
held-out samples at regular steps under the current model. Then :mod:`memtrain.evidence.calibration` turns both into
evidence per sample and into flags. Every process uses the visits of all processes and gets the same flags.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.flags import Flags
from memtrain.evidence.promise import promise
from memtrain.evidence.running_means import Sign
from memtrain.evidence.standardisation import length_edges
from memtrain.evidence.thresholds import heldout_method
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.models.transfer import to_device
from memtrain.monitoring.data_protocol import by_key, lacking_to_measure
from memtrain.monitoring.family_index import Apart, canaries, family_index, picture_count, report_common
from memtrain.monitoring.first_visits import first_visits
from memtrain.monitoring.heldout_keys import HeldoutKeys
from memtrain.monitoring.heldout_latents import HeldoutLatents
from memtrain.monitoring.host import Host
from memtrain.monitoring.loss_route import Handover
from memtrain.monitoring.measurement import HeldoutSamples, HeldoutVisits, completer, of_all_processes
from memtrain.monitoring.options import COMBINED, WatchOptions
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.monitoring.profiled_samples import measure_profile, profile_of
from memtrain.monitoring.visits import Visits
from memtrain.signals.readings import Readings

log = logging.getLogger(__name__)

WARM_UP = 16
"""Rounds of held-out measurement, beyond twice the counted visits, after which a new run begins in any case."""


class Flagging:
    """Evidence and flags of a run.

    Args:
        host: the host of the run.
        options: the options of the engine.
        readings: the signals, read together.
        probe: the probe on the denoiser.
        paired: the base model's weights, with `reference: paired`.

    Raises:
        CalibrationError: if the rate or `combined` needs more held-out samples, or `combined` needs canaries or others.
    """

    def __init__(
        self,
        host: Host,
        *,
        options: WatchOptions,
        readings: Readings,
        probe: DenoiserProbe,
        paired: PairedReference | None,
    ) -> None:
        self.host, self.options = host, options
        self.readings, self.probe = readings, probe
        self.paired = paired if options.reference == "paired" else None
        self.complete = completer(host, probe=probe, signals=readings.signals)
        self.families, self.canaries = family_index(host), canaries(host.data)
        self.heldout_keys = HeldoutKeys(options.settings.heldout_share, never=self.canaries, families=self.families)
        self.heldout = self._open_heldout()
        self.latents = HeldoutLatents(
            host,
            probe,
            chosen=self.heldout_keys,
            read=readings.read,
            maximum_timestep=options.settings.maximum_timestep,
            seed=options.settings.seed,
            complete=self.complete,
            paired=self.paired,
        )
        self.calibration = self._new_calibration()
        self._require_heldout()
        self.profile = profile_of(host, options, readings)
        self.first_visits = first_visits(host, self.profile, options=options, probe=probe, paired=paired)
        self.first_visits.complete = self.complete

    def _open_heldout(self) -> HeldoutSamples | None:
        if self.options.reference is False:
            return None
        lacking = lacking_to_measure(self.host, training_samples=self.options.profiled)
        if lacking and not self.heldout_keys.share:
            log.warning(
                "Held-out samples cannot be measured without %s, so flags rest on the bulk of the training samples",
                ", ".join(lacking),
            )
        if lacking:
            return None
        return HeldoutSamples(
            self.host,
            self.host.data.heldout_dataset.unique(),
            self.probe,
            read=self.readings.read,
            maximum_timestep=self.options.settings.maximum_timestep,
            seed=self.options.settings.seed,
            complete=self.complete,
            paired=self.paired,
        )

    def _new_calibration(self) -> Calibration:
        options = self.options
        signs: dict[str, Sign] = {signal.name: signal.memorized_when for signal in self.readings.signals}
        calibration = Calibration(
            self.readings.resolution,
            scored=self.readings.slices.get(options.flag_by, slice(0, len(self.readings.columns))),
            memorized_when=signs.get(options.flag_by, "unknown"),
            buckets=len(options.settings.reference_timesteps),
            false_positive_rate=options.false_positive_rate,
            minimum_visits=options.minimum_visits,
            window=options.settings.evidence_window,
            heldout=self.heldout is not None or self.heldout_keys.share > 0,
            # A sample held out by weight is visited once per epoch, so a threshold would take most of a short run.
            calibrating_visits=1 if self.heldout is None and self.host.noise_scheduler is None else None,
            edges=length_edges(self.heldout.lengths()) if self.heldout is not None else (),
            canaries=self.canaries,
        )
        apart = Apart(self.host, self.heldout_keys)
        calibration.group_by(self.families, pictures=picture_count(self.host, apart), apart=apart)
        report_common(self.host, calibration.levels)
        if options.flag_by == COMBINED:
            known = set(calibration.levels.pictures_of(by_key(self.host.data, "visits_per_epoch")))
            others = len(known - calibration.taught.canaries) if known else None
            calibration.taught.require_teachable(others, heldout=self.heldout is not None)
        return calibration

    def _require_heldout(self) -> None:
        """Refuse too few held-out samples, and warn if the rate needs more, unless samples are held out by weight."""
        count, rate = None if self.heldout is None else len(self.heldout), self.options.false_positive_rate
        if (promised := promise(count, rate)) is None:
            heldout_method(count or 0, rate)
        elif self.host.rank == 0 and not self.heldout_keys.share and (said := promised.warning()):
            log.warning(said)

    def prepare(self, *, resumed: bool) -> None:
        """Measure or load the base model's profile; in a new run, calibrate on the base model.

        Every held-out sample is measured until it has enough visits, so that there is a threshold from the start. A
        paired comparison skips this, because the base model does not differ from itself.
        """
        if self.heldout is None:
            return
        if self.options.reference is True:
            measure_profile(
                self.host,
                profile=self.profile,
                probe=self.probe,
                cached_only=resumed,
                complete=self.complete,
            )
        self.first_visits.open(resumed=resumed)
        if resumed or self._compares_with_itself(self.host.step):
            return
        each = min(4 * self.options.settings.heldout_batch, len(self.heldout))
        rounds = -(-len(self.heldout) * self.options.minimum_visits // (each * self.host.world_size))
        # The first visits only set the moments, and count for no sample.
        for _ in range(2 * rounds + WARM_UP):
            if self.calibration.heldout_ready() == len(self.heldout):
                break
            self.calibrate(each)

    def _compares_with_itself(self, step: int) -> bool:
        return self.paired is not None and step == 0

    def flags(self, keys: Sequence[str]) -> Flags:
        """Return the current verdict on these samples, on the host."""
        return Flags(
            self.calibration.flagged(keys),
            self.calibration.ever_flagged(keys),
            self.calibration.scores(keys),
            self.calibration.threshold,
            keys,
            self.calibration.first_flagged.keys(),
            self.calibration.counted_visits,
            self.calibration.ready(keys),
            () if self.families is None else self.calibration.levels.pictures_of(keys),
        )

    def add(self, visits: Sequence[Visits], *, step: int) -> None:
        """Turn the visits of every process into evidence; `step` is recorded for samples that they flag."""
        counted = [visit for visit in visits if not self._compares_with_itself(visit.step)]
        rows = [(v.batch, v.rank, v.keys, v.timesteps, v.lengths, v.values) for v in counted]
        everyone = sorted(self.host.gather(rows), key=lambda row: row[:2])
        self.first_visits.meet(key for row in everyone for key in row[2])
        # A batch counts once, even if several processes share it.
        for _, parts in groupby(everyone, key=lambda row: row[0]):
            _, _, *columns = zip(*parts, strict=True)
            keys, timesteps, lengths = ([value for part in column for value in part] for column in columns[:3])
            own, base = torch.cat(columns[3]).tensor_split([len(self.readings.columns)], dim=1)
            compared = self._compare(keys, timesteps, own, base if self.paired is not None else None)
            buckets = self._buckets(timesteps)
            held = self.heldout_keys.mask(keys)
            if held:
                self._add_heldout(held, keys, buckets, compared, lengths)
                keys, buckets, lengths = (_others(held, part) for part in (keys, buckets, lengths))
                compared = compared[~torch.tensor(held)]
            self.calibration.add(keys, buckets, compared, step, lengths)

    def _add_heldout(
        self,
        held: Sequence[bool],
        keys: Sequence[str],
        buckets: Sequence[int | None],
        compared: Tensor,
        lengths: Sequence[float],
    ) -> None:
        """Calibrate with the visits of samples that are held out by weight."""
        seen = (~compared.isnan().all(dim=1)).tolist()
        counted = [index for index, bucket in enumerate(buckets) if held[index] and seen[index] and bucket is not None]
        if counted:
            self.calibration.add_heldout(
                [keys[index] for index in counted],
                [int(buckets[index] or 0) for index in counted],
                compared[counted],
                [lengths[index] for index in counted],
            )

    def calibrate(self, count: int) -> None:
        """Measure the next `count` held-out samples, if any, and update the calibration of every process."""
        if self.heldout_keys.share:
            self.latents.exchange()
        if self._compares_with_itself(self.host.step):
            return
        measured: list[HeldoutVisits | None] = [] if self.heldout is None else [self.heldout.measure(count)]
        if self.heldout_keys.share:
            # Without a threshold, more samples are measured, because no sample can be flagged before.
            measured.append(self.latents.measure(count if math.isfinite(self.calibration.threshold) else 4 * count))
        left = of_all_processes(self.host, measured)
        self.first_visits.meet(key for seen in left for key in seen.keys)
        while left and (seen := left.pop(0)):
            self.first_visits.meet(seen.keys)
            buckets = [bucket for bucket in self._buckets(seen.timesteps) if bucket is not None]
            own = self._compare(seen.keys, seen.timesteps, seen.values, seen.base)
            self.calibration.add_heldout(seen.keys, buckets, own, seen.lengths, more=bool(left))

    def add_reference(self, observation: Observation) -> None:
        """Add a batch's values under the base model to the observation, and the statistics of held-out samples."""
        timesteps = observation.timesteps
        base = self.profile.lookup_on_device(observation.keys, timesteps)
        bucket, unused = self.profile.buckets_on_device(timesteps), timesteps >= self.options.settings.maximum_timestep
        moments = self.calibration.moments
        mean, deviation = (
            to_device(part.float(), timesteps.device)[bucket].masked_fill(unused[:, None], torch.nan)
            for part in (moments.mean, moments.deviation())
        )
        observation.reference = self.readings.split(base)
        observation.level = self.readings.split(mean)
        observation.spread = self.readings.split(deviation)

    def keep(self, handover: Handover) -> None:
        """Keep the parts of samples held out by weight that can be measured again."""
        if self.heldout_keys.share:
            self.latents.offer(handover.parts, handover.observation)

    def _buckets(self, timesteps: Sequence[float]) -> list[int | None]:
        return [self.profile.bucket(t) if t < self.options.settings.maximum_timestep else None for t in timesteps]

    def _compare(self, keys: Sequence[str], timesteps: Sequence[float], values: Tensor, base: Tensor | None) -> Tensor:
        """Return values relative to the base model, if it is known, `(B, columns)`."""
        if self.options.profiled:
            base = self.profile.lookup(keys, timesteps)
        return self.readings.compare(values, base)

    def state_dict(self) -> dict[str, Any]:
        """Return calibration, position in the held-out samples and name of the profile, the same on every process."""
        return {
            "calibration": self.calibration.state_dict(),
            "heldout_done": 0 if self.heldout is None else self.heldout.done,
            "fingerprint": self.profile.fingerprint,
            **({"latents": self.latents.state_dict()} if self.heldout_keys.share else {}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Load a saved state."""
        self.calibration.load_state_dict(state["calibration"])
        self.profile.fingerprint = state["fingerprint"]
        if self.heldout is not None:
            self.heldout.done = state["heldout_done"]
        if self.heldout_keys.share:
            self.latents.load_state_dict(state["latents"])


def _others(held: Sequence[bool], values: list[Any]) -> list[Any]:
    return [value for value, is_held in zip(values, held, strict=True) if not is_held]
