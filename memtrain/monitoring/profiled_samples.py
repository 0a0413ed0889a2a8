"""Which samples a reference profile is of, where the data name what these hold without reading them.

Then a start reads those alone that the profile's cache lacks, and a start with a full cache none. Otherwise every batch
is read, to be named by what is in it (:func:`memtrain.evidence.content.content_fingerprints`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from memtrain.errors import DataError
from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.evidence.content import IMAGES, content_fingerprints, tells_content
from memtrain.files.earlier_run import taken_over
from memtrain.models.observation import Observation
from memtrain.models.probe import DenoiserProbe
from memtrain.monitoring.data_protocol import KnownSample, known_samples
from memtrain.monitoring.encoded_once import EncodedOnce
from memtrain.monitoring.host import Host
from memtrain.monitoring.measurement import as_in_training
from memtrain.monitoring.options import WatchOptions
from memtrain.signals.readings import Readings

log = logging.getLogger(__name__)


def profile_of(host: Host, options: WatchOptions, readings: Readings) -> ReferenceProfile:
    """The profile of a run, empty."""
    return ReferenceProfile(
        Path(options.reference_folder or host.folder / "profiles"),
        readings.signals,
        readings.columns,
        timesteps=options.settings.reference_timesteps,
        draws=options.settings.reference_draws,
        seed=options.settings.seed,
    )


@dataclass(frozen=True)
class NamedSamples:
    """A dataset whose samples are named by what they hold.

    Attributes:
        dataset: of the data module.
        samples: in its order.
        contents: what each holds, in this order.
    """

    dataset: Any
    samples: Sequence[KnownSample]
    contents: Sequence[str]


def named_samples(data: Any) -> list[NamedSamples]:
    """The training and the held-out samples by their contents; empty where the data do not name all of them."""
    found = []
    for split in ("train", "heldout"):
        dataset, samples = getattr(data, f"{split}_dataset", None), known_samples(data, split)
        contents = getattr(dataset, "contents", None)
        if contents is None or len(contents) != len(samples):
            return []
        found.append(NamedSamples(dataset, samples, contents))
    return found


def cover(profile: ReferenceProfile, named: Sequence[NamedSamples]) -> list[list[int]]:
    """Let the profile be that of all samples; the rows of each dataset that the cache lacks."""
    lacking = []
    for one in named:
        profile.cover([sample.key for sample in one.samples], one.contents)
        lacking.append(profile.lacking(one.contents))
    return lacking


class LackingSamples:
    """The batches of one process with samples that the cache lacks.

    Args:
        host: whose data names its samples.
        named: these samples.
        rows: of each dataset.
    """

    def __init__(self, host: Host, named: Sequence[NamedSamples], rows: Sequence[Sequence[int]]) -> None:
        part = (host.rank, host.world_size)
        self.loaders = [
            host.data.unique_dataloader(one.dataset, lacking, part=part)
            for one, lacking in zip(named, rows, strict=True)
            if len(lacking)
        ]
        asked = [one.samples for one, lacking in zip(named, rows, strict=True) if len(lacking)]
        self.unread = {
            samples[row].key for samples, loader in zip(asked, self.loaders, strict=True) for row in loader.dataset.rows
        }

    def __len__(self) -> int:
        return sum(map(len, self.loaders))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for loader in self.loaders:
            for batch in loader:
                self.unread.difference_update(batch["key"])
                yield batch


def named(host: Host, batch: Any) -> Any:
    """A batch with its samples' names under `key`; one that is no mapping has no place for them.

    Raises:
        DataError: if it is none.
    """
    if not isinstance(batch, Mapping):
        raise DataError(
            f"A profile of the base model cannot tell samples by their content: the batch is a {type(batch).__name__}",
            expected="a dict with `input_ids`, and `latents` or `pixel_values`",
            remedy="let the collate function make one, or set `reference: paired`",
        )
    keys, given = host.names(batch), batch.get("key")
    return batch if isinstance(given, list) and given == keys else {**batch, "key": keys}


def whole(host: Host, batch: Any) -> Any:
    """A batch with its images, which some data make only of what is on the device; then it is moved there."""
    return host.moved(batch) if isinstance(batch, Mapping) and not IMAGES & batch.keys() else batch


def measure_profile(
    host: Host,
    *,
    profile: ReferenceProfile,
    probe: DenoiserProbe,
    cached_only: bool,
    complete: Callable[[Observation], None] | None = None,
) -> None:
    """Measure what the profile's cache lacks, dealt out to the processes, and load it on all of them.

    Args:
        host: with a module that has `sample_loss`, and data that can be measured.
        profile: to fill.
        probe: on the denoiser, which is the base model unless `cached_only`.
        cached_only: the run is resumed, so the model is no longer the base model.
        complete: adds to each observation what the signals need beside the one forward.

    Raises:
        RecordError: if `cached_only` and the cache lacks a sample.
    """
    data = host.data
    if cached_only and host.rank == 0:
        taken_over(host.checkpoint, f"profiles/{profile.fingerprint}", into=profile.folder / profile.fingerprint)
    if not cached_only and host.rank == 0:
        profile.name_after(probe.denoiser, host.module)
    profile.fingerprint = host.broadcast(profile.fingerprint)
    if known := named_samples(data):
        _measure_lacking(host, known, profile=profile, probe=probe, cached_only=cached_only, complete=complete)
    else:
        loaders = [data.unique_dataloader(data.train_dataset), data.unique_dataloader(data.heldout_dataset)]
        with as_in_training(host):
            profile.measure(
                probe,
                host.module.sample_loss,
                (named(host, whole(host, batch)) for batch in chain.from_iterable(loaders)),
                total=sum(map(len, loaders)),
                rank=host.rank,
                world_size=host.world_size,
                cached_only=cached_only,
                move=_encoded(host),
                complete=complete,
            )
    host.barrier()
    profile.load()
    host.barrier()
    if host.rank == 0:
        profile.parts.merge()


def _encoded(host: Host) -> Callable[[Any], Any]:
    """What moves a batch to the device, and encodes there what all of its forwards need."""
    encoded = EncodedOnce(host.module)
    return lambda batch: encoded(host.moved(batch))


def _named_by_batches(
    host: Host,
    known: Sequence[NamedSamples],
    lacking: Sequence[Sequence[int]],
    *,
    profile: ReferenceProfile,
    every: bool,
) -> list[NamedSamples]:
    """The same samples, of which some were measured when the data did not name them, by what is in their batches.

    Unless `every` batch has to be looked at, one of which nothing was measured ends it: new samples are read once, to
    be measured.
    """
    there = set(profile.parts.contents().to_pylist())
    found: list[tuple[str, str]] = []
    for batch in LackingSamples(host, known, lacking):
        batch = whole(host, batch)
        contents = content_fingerprints(batch) if tells_content(batch) else [""] * len(batch["key"])
        pairs = [pair for pair in zip(batch["key"], contents, strict=True) if pair[1] in there]
        found += pairs
        if not pairs and not every:
            break
    other = dict(host.gather(found))
    return [
        replace(
            one, contents=[other.get(sample.key, name) for sample, name in zip(one.samples, one.contents, strict=True)]
        )
        for one in known
    ]


def _measure_lacking(
    host: Host,
    known: Sequence[NamedSamples],
    *,
    profile: ReferenceProfile,
    probe: DenoiserProbe,
    cached_only: bool,
    complete: Callable[[Observation], None] | None,
) -> None:
    """Measure what the cache lacks of samples that are named by the data."""
    # As the first process sees it: another one may have begun to write.
    lacking = host.broadcast(cover(profile, known))
    if any(lacking) and len(profile.parts.contents()):
        known = _named_by_batches(host, known, lacking, profile=profile, every=cached_only)
        profile.uncover([sample.key for one in known for sample in one.samples])
        lacking = host.broadcast(cover(profile, known))
    if not any(lacking):
        return
    if cached_only:
        raise profile.lacks()
    batches = LackingSamples(host, known, lacking)
    with as_in_training(host):
        profile.measure(
            probe,
            host.module.sample_loss,
            (whole(host, batch) for batch in batches),
            total=len(batches),
            rank=host.rank,
            move=_encoded(host),
            complete=complete,
            contents_of=profile.contents_of,
        )
    unread = host.gather(sorted(batches.unread))
    if unread and host.rank == 0:
        log.warning("%d samples could not be measured under the base model, first %r", len(unread), unread[0])
    profile.uncover(unread)
