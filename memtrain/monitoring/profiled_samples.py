"""The samples of a reference profile, if the data name the content of samples without reading them.

Then a start reads only the samples that the profile's cache lacks, and none if the cache is full. Without such names,
every batch is read, and its content names the samples (:func:`memtrain.evidence.content.content_fingerprints`).
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
    """Return the empty profile of a run."""
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
    """A dataset whose samples are named by their content.

    Attributes:
        dataset: the dataset of the data module.
        samples: the samples in its order.
        contents: the names of their contents in this order.
    """

    dataset: Any
    samples: Sequence[KnownSample]
    contents: Sequence[str]


def named_samples(data: Any) -> list[NamedSamples]:
    """Return training and held-out samples by their contents; empty if the data do not name all of them."""
    found = []
    for split in ("train", "heldout"):
        dataset, samples = getattr(data, f"{split}_dataset", None), known_samples(data, split)
        contents = getattr(dataset, "contents", None)
        if contents is None or len(contents) != len(samples):
            return []
        found.append(NamedSamples(dataset, samples, contents))
    return found


def cover(profile: ReferenceProfile, named: Sequence[NamedSamples]) -> list[list[int]]:
    """Set the samples of the profile, and return the rows of each dataset that the cache lacks."""
    lacking = []
    for one in named:
        profile.cover([sample.key for sample in one.samples], one.contents)
        lacking.append(profile.lacking(one.contents))
    return lacking


class LackingSamples:
    """The batches of one process with the samples that the cache lacks.

    Args:
        host: the host, whose data name their samples.
        named: the named samples.
        rows: the rows of each dataset.
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
    """Return a batch with its samples' names under `key`; only a mapping can hold them.

    Raises:
        DataError: if the batch is no mapping.
    """
    if not isinstance(batch, Mapping):
        raise DataError(
            f"A profile of the base model cannot name samples by their content in a {type(batch).__name__}",
            expected="a dict with `input_ids`, and `latents` or `pixel_values`",
            remedy="return a dict from the collate function, or set `reference: paired`",
        )
    keys, given = host.names(batch), batch.get("key")
    return batch if isinstance(given, list) and given == keys else {**batch, "key": keys}


def whole(host: Host, batch: Any) -> Any:
    """Return a batch with its images. Some data make the images on the device, and then the batch is moved there."""
    return host.moved(batch) if isinstance(batch, Mapping) and not IMAGES & batch.keys() else batch


def measure_profile(
    host: Host,
    *,
    profile: ReferenceProfile,
    probe: DenoiserProbe,
    cached_only: bool,
    complete: Callable[[Observation], None] | None = None,
) -> None:
    """Measure the samples that the profile's cache lacks, divided among the processes, and load them on all processes.

    Args:
        host: the host, with measurable data and a module that has `sample_loss`.
        profile: the profile to fill.
        probe: the probe on the denoiser, which is the base model unless `cached_only`.
        cached_only: whether the run is resumed, so that the model is not the base model any more.
        complete: function that adds the further readings of the signals to each observation.

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
    """Return a function that moves a batch to the device and encodes the shared inputs of its forwards."""
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
    """Return the same samples with names from their batches, if some were measured without names from the data.

    Unless `every` batch must be read, a batch without a measured sample ends the search, because new samples are read
    only once, to be measured.
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
    """Measure the samples, named by the data, that the cache lacks."""
    # The view of the first process decides, because another process may have begun to write.
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
