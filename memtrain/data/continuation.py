"""The continuation of a checkpoint's data: what the checkpoint keeps, what is compared, and where the order goes on.

The contract is that of :mod:`memtrain.files.resume_contract`. A checkpoint holds the settings of visits, marks of the
samples (:mod:`memtrain.data.trained_samples`), and the place. The place is Lightning's count of batches, with the batch
size and the number of processes of these batches.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memtrain.data.bucket_sampler import BatchPlan, BucketSampler
from memtrain.data.resumed_epoch import Place, Rest, Streams, limited, order_of, recount
from memtrain.data.sample_table import keys_of
from memtrain.data.sampler import InOrder, ResumableDistributedSampler
from memtrain.data.trained_samples import number_of, plain_options, positions_since, trained_samples
from memtrain.files.resume_contract import check_settings, plain

log = logging.getLogger(__name__)

VisitSampler = ResumableDistributedSampler | BucketSampler | InOrder

_SETTINGS = {
    "resolution": "resolution",
    "buckets": "buckets",
    "heldout": "heldout_setting",
    "heldout_fraction": "heldout_fraction",
    "heldout_most": "heldout_most",
    "repeats": "repeats",
    "duplicates": "duplicates",
    "canaries": "canaries",
    "regularisation": "regularisation",
    "batch_size": "batch_size",
    "caption_dropout": "caption_dropout",
    "augment": "augment",
    "captions": "captions",
}
"""Attributes of a data module by their names in the contract; a data module may lack some."""


@dataclass(frozen=True)
class Continued:
    """The data of a checkpoint, compared with the data of this run.

    Attributes:
        saved: the content of the checkpoint.
        moved: the present places of its visits; None if nothing changed.
    """

    saved: Mapping[str, Any]
    moved: Tensor | None


def settings_of(data: Any, *, processes: int) -> dict[str, Any]:
    """Return the settings of a data module's visits in plain values."""
    found = {name: plain_options(getattr(data, attribute, None)) for name, attribute in _SETTINGS.items()}
    excluded = sorted(getattr(data, "exclude", ()))
    found["exclude"] = f"{len(excluded)} keys" + (f" ({number_of(chr(10).join(excluded)):x})" if excluded else "")
    held = sorted(keys_of(data.heldout_dataset.samples))
    found["heldout_samples"] = f"{len(held)} samples ({number_of(chr(10).join(held)):x})"
    found["processes"] = processes
    found["bucketed_seed" if data.bucketed else "seed"] = data.seed
    if data.bucketed:
        found["bucket_shapes"] = sorted(set(data.train_dataset.shapes_of_visits()))
    settings: dict[str, Any] = plain(found)
    return settings


def state_of(data: Any, sampler: VisitSampler, trainer: Any, *, kept: dict[str, Tensor] | None) -> dict[str, Any]:
    """Return the data's part of a checkpoint.

    Args:
        data: the data module.
        sampler: the sampler of the run.
        trainer: the trainer of the run.
        kept: the earlier result of :func:`trained_samples`, if there is one.
    """
    rest, streams = getattr(sampler, "rest", None), getattr(sampler, "streams", None)
    return {
        "settings": settings_of(data, processes=trainer.world_size),
        "samples": trained_samples(data.train_dataset) if kept is None else kept,
        "batches": int(trainer.num_training_batches),
        "seed": data.seed,
        "ordered": isinstance(sampler, InOrder),
        "rest": None if rest is None or rest.epoch != trainer.current_epoch else rest.state_dict(),
        "streams": None if streams is None else streams.state_dict(),
    }


def _say(trainer: Any, text: str, *values: object) -> None:
    """Log on the first process."""
    if trainer.global_rank == 0:
        log.warning(text, *values)


def compared(data: Any, saved: Mapping[str, Any], trainer: Any) -> Continued:
    """Compare a checkpoint's data with a data module that is set up, and log the differences.

    Raises:
        ConfigurationError: with the differences that are not allowed.
    """
    for note in check_settings(saved["settings"], settings_of(data, processes=trainer.world_size)):
        _say(trainer, "Continued with other settings: %s", note)
    moved = positions_since(
        saved["samples"], data.train_dataset, excluded=[*getattr(data, "exclude", ()), *_left_out(data)]
    )
    if moved is not None:
        gone = int((moved < 0).sum())
        _say(
            trainer,
            "Continued on data that changed: %d of %d visits per epoch are left out from now on. The epochs after "
            "this one have another order.",
            gone,
            len(moved),
        )
    return Continued(saved, moved)


def _left_out(data: Any) -> list[str]:
    """Return the keys of samples that turned out to be broken, if the run goes on without them."""
    broken: Any = getattr(data, "broken", None)
    return [one.key for one in broken if one.key] if broken is not None and broken.skips else []


def go_on(found: Continued, sampler: VisitSampler, trainer: Any, *, batch_size: int, loops: Mapping[str, Any]) -> None:
    """Let a sampler go on where a checkpoint's batches stopped, and count the finished part in batches of this run.

    Args:
        found: the data of the checkpoint.
        sampler: the sampler of this run, before its first batch.
        trainer: the trainer of this run, before it reads the checkpoint's counters.
        batch_size: the batch size of a process in this run.
        loops: these counters, `fit_loop` of the checkpoint's `loops`; changed in place.
    """
    processes, settings = trainer.world_size, found.saved["settings"]
    size, was = batch_size * processes, settings["batch_size"] * settings["processes"]
    per_epoch = limited(len(sampler) // batch_size, trainer.limit_train_batches)
    place = Place.of(loops, batches_per_epoch=found.saved["batches"])
    same = (batch_size, processes) == (settings["batch_size"], settings["processes"]) and found.moved is None
    same = same and found.saved["ordered"] == isinstance(sampler, InOrder)
    if isinstance(sampler, BucketSampler):
        same, left = _continue_streams(found, sampler, place, was=was, same=same)
    else:
        same = same and found.saved["seed"] == getattr(sampler, "seed", found.saved["seed"])
        left = _continue_order(found, sampler, place, was=was, same=same)
    if same or not place.batches:
        return
    if per_epoch < len(sampler) // batch_size:  # limit_train_batches shortens the epoch
        left = min(left, max(0, per_epoch * size - place.batches * was))
    batches = 0 if place.finished else min(left // size, per_epoch)
    done = per_epoch - batches
    recount(loops, by=done - place.batches, last=not batches)
    if isinstance(sampler, BucketSampler) and sampler.streams is not None and not place.finished:
        sampler.continue_from(Streams(place.epoch, done, batches * size, sampler.streams.slots))
    elif not isinstance(sampler, BucketSampler) and sampler.rest is not None:
        sampler.rest = Rest(place.epoch, done, sampler.rest.positions)
    if not place.finished:
        _say(
            trainer,
            "Epoch %d goes on with its remaining %d visits, in %d batch(es)",
            place.epoch,
            batches * size,
            batches,
        )


def _continue_order(
    found: Continued, sampler: ResumableDistributedSampler | InOrder, place: Place, *, was: int, same: bool
) -> int:
    """Give a sampler the rest of the epoch if it could not find it, and return the number of visits in it."""
    kept = found.saved["rest"]
    if place.finished or not place.batches or (same and kept is None):
        return 0
    count = int(found.saved["samples"]["visits"].sum())
    if kept is not None and kept["epoch"] == place.epoch:
        rest = Rest(kept["epoch"], kept["batches"], kept["positions"])
        positions = rest.after(place.batches, size=was)
    elif found.saved["ordered"]:
        positions = torch.arange(count)[place.batches * was :]
    else:
        positions = order_of(count, seed=found.saved["seed"], epoch=place.epoch)[place.batches * was :]
    if found.moved is not None:
        positions = found.moved[positions]
        positions = positions[positions >= 0]
    sampler.rest = Rest(place.epoch, place.batches, positions)
    return len(positions)


def _continue_streams(
    found: Continued, sampler: BucketSampler, place: Place, *, was: int, same: bool
) -> tuple[bool, int]:
    """Let streams go on where they stopped. Return whether nothing changed, and the visits left in the epoch."""
    kept, plan = found.saved["streams"], sampler.plan
    before = None if kept is None else Streams(**kept)
    if same:
        if before is not None:
            sampler.continue_from(before)
        return True, 0
    epoch, batches = (place.epoch + 1, 0) if place.finished else (place.epoch, place.batches)
    visits = int(found.saved["samples"]["visits"].sum())
    per_epoch = visits // was
    if found.moved is None:
        earlier = BatchPlan(
            sampler.shapes, size=was, seed=found.saved["seed"], done=() if before is None else before.slots
        )
        number = epoch * per_epoch + batches
        if before is not None:
            number = before.number(epoch, batches, size=was, per_epoch=per_epoch)
        slots = earlier.done_before(number)
    else:
        # The streams are new: each begins with a new pass through all of its visits.
        slots = [(epoch + 1) * len(stream) for stream in plan.streams]
    left = visits - batches * was if before is None else before.left_after(epoch, batches, size=was, visits=visits)
    if found.moved is not None:
        left = min(left, plan.visits)
    sampler.continue_from(Streams(epoch, batches, left, slots))
    return False, left
