"""`reference: first_visit`: the base model's profile measured as training goes, each sample when it is first met.

Training begins at once. At each update the samples that were met since the last one, and have no profile yet, are dealt
out to the processes and measured under the weights that training began with, as :mod:`.paired_reference` has them: with
the same timesteps and draws as before training, by their fixed view. The values are shared, used for this visit and all
later ones, and kept in the profile's cache: a resumed run, or a later one with `reference: true`, finds them. They are
written with each checkpoint, and no later: a run that goes on from it measures the same samples together again, and
comes to the same values to the last bit. The noise of a sample depends on its place in the batch that it is measured
in, here as there.

Cost: what `reference: true` costs before training, spread over the first epoch, and a sample is read once more for it;
with full fine-tuning a copy of the trained weights. Cannot: mitigations that compare with the profile in the same batch
(they need `reference: true`), sharded weights (FSDP), and data whose samples cannot be had by their keys.
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
"""Parts of the cache beyond which they are merged during training."""


class NoFirstVisits:
    """Where nothing is measured at first visits."""

    complete: Callable[[Observation], None] | None = None
    """Adds to each observation what the signals need beside the one forward."""

    def open(self, *, resumed: bool) -> None:
        """Nothing."""

    def meet(self, keys: Iterable[str]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class FirstVisits(NoFirstVisits):
    """Measures samples under the base model when they are met first.

    Args:
        host: whose data have their samples by key.
        profile: to fill.
        probe: on the denoiser.
        paired: the weights that training began with.
        most: samples measured at once.

    Raises:
        ConfigurationError: if samples cannot be had by key, or if something is trained that is not part of `paired`.
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
                expected="`train_dataset.samples` with keys and captions, and `train_dataset.unique()`, as of "
                "TextImageDataModule",
                remedy="add them to the data module; or set `reference: paired`, which needs neither, or `reference: "
                "true`",
            )
        module = self.host.module
        known = set(map(id, self.paired.exchanged(self.probe.denoiser).values()))
        parameters = module.named_parameters() if isinstance(module, nn.Module) else ()
        others = [name for name, value in parameters if value.requires_grad and id(value) not in known]
        if others:
            raise ConfigurationError(
                f"{len(others)} trained parameters, first {others[0]!r}, are outside of the denoiser, so `reference: "
                "first_visit` would not measure the base model",
                expected="a denoiser that is trained, and at most a `text_encoder` on a module that has "
                "encode_text(input_ids)",
                remedy="freeze them, or set `reference: true`, which measures before training",
            )

    def open(self, *, resumed: bool) -> None:
        """Name the profile, where the run is new, and take up what its cache holds already."""
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
        # Another run may write meanwhile: only what every process found is known.
        profile.agree(host.gather([profile.known()]))
        if host.rank == 0:
            profile.parts.merge()

    def meet(self, keys: Iterable[str]) -> None:
        """Measure those of `keys` that have no profile yet; the same keys on every process."""
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
        """Keep what was measured for later runs."""
        self._flushed = True
        self.profile.parts.flush()
        if self.host.rank == 0:
            self.profile.parts.merge(several=PARTS)

    def finish(self) -> None:
        """Keep it in a run without a checkpoint, too."""
        if not self._flushed:
            self.flush()

    def _batches(self, keys: list[str]) -> list[tuple[int, list[int]]]:
        """Datasets with rows of one shape, about as many for each process."""
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
        """Keys and values `(n, timesteps, columns)` of rows of a dataset."""
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
    """What measures samples at their first visits, where the options say so; arguments as of :class:`FirstVisits`."""
    if options.reference != "first_visit" or paired is None:
        return NoFirstVisits()
    return FirstVisits(host, profile, probe=probe, paired=paired, most=4 * options.settings.heldout_batch)
