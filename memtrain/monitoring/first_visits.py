"""`reference: first_visit`: the base model's profile, measured during training, each sample at its first visit.

Training begins at once. At each update, the new samples without a profile are divided among the processes and measured
under the weights from before training (:mod:`.paired_reference`). Timesteps and draws are the same as before training,
and each sample has its fixed view. The values are shared, and used for this visit and all later visits. They are kept
in the profile's cache, where a resumed run, or a later one with `reference: true`, finds them. They are written with
each checkpoint, and not later. A run that goes on from a checkpoint measures the same samples together again, and gets
the same values to the last bit. The noise of a sample depends on its place in the measured batch, as before training.

Cost: the cost of `reference: true`, spread over the first epoch, and another reading of each sample. Full fine-tuning
also needs a copy of the trained weights. Cannot: serve mitigations that compare with the profile in the same batch
(they need `reference: true`), sharded weights (FSDP), or data without access to samples by their keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor, nn
from torch.utils.data import default_collate

from memtrain.errors import ConfigurationError
from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.evidence.content import content_fingerprints
from memtrain.files.earlier_run import taken_over
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.data_protocol import known_samples
from memtrain.monitoring.encoded_once import EncodedOnce
from memtrain.monitoring.host import Host
from memtrain.monitoring.measurement import as_in_training
from memtrain.monitoring.options import WatchOptions
from memtrain.monitoring.paired_reference import PairedReference
from memtrain.monitoring.profiled_samples import cover, named, named_samples, whole

PARTS = 64
"""Number of parts of the cache above which they are merged during training."""


class NoFirstVisits:
    """The object for runs that measure nothing at first visits."""

    complete: Callable[[Observation], None] | None = None
    """Adds the further readings that the signals need to each observation."""

    def open(self, *, resumed: bool) -> None:
        """Nothing."""

    def meet(self, keys: Iterable[str]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class FirstVisits(NoFirstVisits):
    """Measures samples under the base model at their first visit.

    Args:
        host: the host, whose data give access to samples by key.
        profile: the profile to fill.
        probe: the probe on the denoiser.
        paired: the weights from before training.
        most: largest number of samples measured at once.

    Raises:
        ConfigurationError: if samples cannot be read by key, or if trained parameters are not part of `paired`.
    """

    def __init__(
        self,
        host: Host,
        profile: ReferenceProfile,
        *,
        probe: DenoiserProbe,
        paired: PairedReference,
        most: int,
    ) -> None:
        self.host, self.profile, self.probe, self.paired = host, profile, probe, paired
        self.most = most
        self.encoded = EncodedOnce(host.module)
        self._datasets: list[Any] = []
        self._place: dict[str, tuple[int, int]] = {}
        for split in ("train", "heldout"):
            samples = known_samples(host.data, split)
            dataset = getattr(host.data, f"{split}_dataset", None)
            unique = getattr(dataset, "unique", None)
            if len(samples) and unique is not None:
                self._place |= {one.key: (len(self._datasets), row) for row, one in enumerate(samples)}
                self._datasets.append(unique())
        self._flushed = False
        self._refuse()

    def _refuse(self) -> None:
        if not self._place:
            raise ConfigurationError(
                f"`reference: first_visit` finds no sample of {type(self.host.data).__name__} by its key",
                expected="`train_dataset.samples` with keys and captions, and `train_dataset.unique()`, as in "
                "TextImageDataModule",
                remedy="add them to the data module, or set `reference: paired` or `reference: true`",
            )
        module = self.host.module
        known = set(map(id, self.paired.exchanged(self.probe.denoiser).values()))
        parameters = module.named_parameters() if isinstance(module, nn.Module) else ()
        others = [name for name, value in parameters if value.requires_grad and id(value) not in known]
        if others:
            raise ConfigurationError(
                f"{len(others)} trained parameters, first {others[0]!r}, are outside of the denoiser, so `reference: "
                "first_visit` would not measure the base model",
                expected="trained parameters in the denoiser only, or also in the `text_encoder` of a module with "
                "encode_text(input_ids)",
                remedy="freeze them, or set `reference: true`, which measures before training",
            )

    def open(self, *, resumed: bool) -> None:
        """Name the profile of a new run, and load the values in its cache."""
        host, profile = self.host, self.profile
        if host.rank == 0:
            if resumed:
                taken_over(
                    host.checkpoint, f"profiles/{profile.fingerprint}", into=profile.folder / profile.fingerprint
                )
            else:
                profile.name_after(self.probe.denoiser, host.module)
        profile.fingerprint = host.broadcast(profile.fingerprint)
        known = named_samples(host.data)
        host.barrier()
        if known:
            cover(profile, known)
            profile.load(partly=True)
        else:
            profile.recall(host.broadcast(profile.parts.contents().to_pylist()))
        # Another run may write meanwhile, so only values that every process found are known.
        profile.agree(host.gather([profile.known()]))
        if host.rank == 0:
            profile.parts.merge()

    def meet(self, keys: Iterable[str]) -> None:
        """Measure the samples of `keys` without a profile; the keys are the same on every process."""
        host, profile = self.host, self.profile
        wanted = [key for key in profile.missing(keys) if key in self._place]
        if unknown := profile.uncovered(wanted):
            own = self._batches(unknown)[host.rank :: host.world_size]
            read = [whole(host, self._read(*batch)) for batch in own]
            for names, contents in host.gather([(batch["key"], content_fingerprints(batch)) for batch in read]):
                profile.cover(names, contents)
            wanted = profile.missing(wanted)
        if not wanted:
            return
        own, found = self._batches(profile.different(wanted))[host.rank :: host.world_size], []
        if own:
            with as_in_training(host), self.paired.base_weights(self.probe.denoiser):
                found = [self._measured(*batch) for batch in own]
        for names, values in host.gather(found):
            profile.put(names, values)
            if host.rank == 0:
                contents = profile.contents_of({"key": names})
                profile.parts.add(contents, values.flatten(1).float().numpy())

    def flush(self) -> None:
        """Save the measured values for later runs."""
        self._flushed = True
        self.profile.parts.flush()
        if self.host.rank == 0:
            self.profile.parts.merge(several=PARTS)

    def finish(self) -> None:
        """Save the measured values of a run without a checkpoint."""
        if not self._flushed:
            self.flush()

    def _batches(self, keys: list[str]) -> list[tuple[int, list[int]]]:
        """Return the numbers of datasets with rows of one shape, divided evenly among the processes."""
        groups: dict[Any, list[int]] = {}
        for key in keys:
            number, row = self._place[key]
            shapes = getattr(self._datasets[number], "shapes", None)
            groups.setdefault((number, None if shapes is None else shapes[row]), []).append(row)
        each = max(1, min(self.most, -(-len(keys) // self.host.world_size)))
        return [
            (number, rows[start : start + each])
            for (number, _), rows in groups.items()
            for start in range(0, len(rows), each)
        ]

    def _read(self, number: int, rows: list[int]) -> dict[str, Any]:
        dataset = self._datasets[number]
        collate = getattr(dataset, "collate", default_collate)
        batch: dict[str, Any] = named(self.host, collate([dataset[row] for row in rows]))
        return batch

    def _measured(self, number: int, rows: list[int]) -> tuple[list[str], Tensor]:
        """Measure rows of a dataset; return keys and values `(n, timesteps, columns)`."""
        batch = self._read(number, rows)
        keys, batch = batch["key"], self.encoded(self.host.moved(batch))
        return keys, self.profile.values(self.probe, self.host.module.sample_loss, batch, complete=self.complete)


def first_visits(
    host: Host,
    profile: ReferenceProfile,
    *,
    options: WatchOptions,
    probe: DenoiserProbe,
    paired: PairedReference | None,
) -> NoFirstVisits:
    """Make the object that measures samples at first visits, if the options ask for it; see :class:`FirstVisits`."""
    if options.reference != "first_visit" or paired is None:
        return NoFirstVisits()
    return FirstVisits(host, profile, probe=probe, paired=paired, most=4 * options.settings.heldout_batch)
