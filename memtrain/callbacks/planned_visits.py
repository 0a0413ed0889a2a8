"""Whether a run is long enough for flags: the visits that its most often visited samples will have by the planned end.

A sample is flagged on `minimum_visits` counted visits at the earliest. Where each image is visited once per epoch, that
takes more epochs than many trainings have: visits at high noise do not count, nor do those without a caption, and with
`reference: paired` only every `paired_every`-th batch is compared. A run that is too short for any flag would end
without one and look clean, so the monitor says so before the first batch.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer

from memtrain.callbacks.data_protocol import by_key, data_of

TIMESTEPS = 1000
"""Of the noise schedules of all backbones; visits are taken to be spread evenly over them."""


def expected_visits(
    *,
    max_steps: int,
    max_epochs: int | None,
    batches_per_epoch: int,
    accumulate: int = 1,
    batches_of_data: int | None = None,
    visits_per_epoch: int = 1,
    counted_share: float = 1.0,
) -> float | None:
    """Counted visits of a sample over a whole run.

    Args:
        max_steps: planned optimizer steps; -1 for no limit.
        max_epochs: planned epochs; -1 or None for no limit.
        batches_per_epoch: batches that an epoch trains on.
        accumulate: batches per optimizer step.
        batches_of_data: batches that all the data fill, where an epoch is limited to fewer.
        visits_per_epoch: of the sample in all the data.
        counted_share: share of visits that count.

    Returns:
        None if the run has no planned end.
    """
    limits = [max_steps * accumulate] if max_steps >= 0 else []
    limits += [max_epochs * batches_per_epoch] if max_epochs is not None and max_epochs >= 0 else []
    if not limits:
        return None
    if not batches_per_epoch:
        return 0.0
    return min(limits) / (batches_of_data or batches_per_epoch) * visits_per_epoch * counted_share


def too_short_for_flags(
    trainer: Trainer, *, minimum_visits: int, maximum_timestep: int, paired_every: int | None
) -> str | None:
    """What to tell the user of a run in which few samples, or none, can be flagged; None where some can.

    Nothing is said where the number of visits is unknown, as with streamed data. Without `visits_per_epoch` in the data
    module, each sample counts as visited once.

    Args:
        trainer: about to train, its data loaders set up.
        minimum_visits: counted visits that a flag needs.
        maximum_timestep: visits at or above it do not count.
        paired_every: batches between comparisons, None where every batch is compared.
    """
    batches = trainer.num_training_batches
    if batches == float("inf") or batches < 1:
        return None
    data = data_of(trainer)
    groups = by_key(data, "groups")
    # Canaries are repeated on purpose: what they reach says nothing of the user's own samples.
    visits = [count for key, count in by_key(data, "visits_per_epoch").items() if groups.get(key) != "canary"]
    with_caption = 1 - float(getattr(data, "caption_dropout", 0.0))
    loader: Any = trainer.train_dataloader
    expected = expected_visits(
        max_steps=trainer.max_steps,
        max_epochs=trainer.max_epochs,
        batches_per_epoch=int(batches),
        accumulate=trainer.accumulate_grad_batches,
        batches_of_data=len(loader) if hasattr(loader, "__len__") else None,
        visits_per_epoch=max(visits, default=1),
        counted_share=min(1.0, maximum_timestep / TIMESTEPS) * with_caption / (paired_every or 1),
    )
    if expected is None or expected >= minimum_visits:
        return None
    lower = "minimum_visits" if paired_every is None else "minimum_visits or paired_every"
    return (
        f"By the planned end even the most often visited training samples have about {expected:.1f} visits that count, "
        f"and a flag needs {minimum_visits} (minimum_visits): few samples can be flagged, or none. "
        f"Train for more epochs, or lower {lower}."
    )
