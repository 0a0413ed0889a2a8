"""A check before training that a run is long enough for flags, by the visits of its most often visited samples.

A sample needs at least `minimum_visits` counted visits for a flag. With one visit of each image per epoch, this takes
more epochs than many trainings have. Visits at high noise or without a caption do not count, and with `reference:
paired` only every `paired_every`-th batch is compared. A run that is too short for any flag would end without one and
look clean, so the monitor warns before the first batch. If the run knows its families, visits of all files of a picture
are counted together.
"""

from __future__ import annotations

from collections import Counter

from memtrain.monitoring.data_protocol import by_key
from memtrain.monitoring.host import Host, Plan

TIMESTEPS = 1000
"""Number of timesteps in the noise schedules of all backbones. Visits are taken to be spread evenly over them."""


def expected_visits(plan: Plan, *, visits_per_epoch: int = 1, counted_share: float = 1.0) -> float | None:
    """Return the expected counted visits of a sample over a whole run.

    Args:
        plan: the planned length of the run.
        visits_per_epoch: number of visits of the sample in an epoch of all the data.
        counted_share: share of visits that count.

    Returns:
        The number of visits; None if the run has no planned end.
    """
    limits = [plan.max_steps * plan.accumulate] if plan.max_steps >= 0 else []
    limits += [plan.max_epochs * plan.batches_per_epoch] if plan.max_epochs is not None and plan.max_epochs >= 0 else []
    if not limits:
        return None
    if not plan.batches_per_epoch:
        return 0.0
    return min(limits) / (plan.batches_of_data or plan.batches_per_epoch) * visits_per_epoch * counted_share


def too_short_for_flags(
    host: Host, *, minimum_visits: int, maximum_timestep: int, paired_every: int | None
) -> str | None:
    """Return a warning about a run in which few samples or none can be flagged; None if some can.

    There is no warning if the number of visits is unknown, as with streamed data. Without `visits_per_epoch` in the
    data module, each sample counts as visited once.

    Args:
        host: the host before training.
        minimum_visits: number of counted visits that a flag needs.
        maximum_timestep: timestep from which on visits do not count.
        paired_every: number of batches between comparisons; None if every batch is compared.
    """
    plan, data = host.plan, host.data
    if plan is None:
        return None
    groups, visits = by_key(data, "groups"), Counter[str]()
    for key, count in by_key(data, "visits_per_epoch").items():
        # Canaries are repeated on purpose, so their visits say nothing about the user's own samples.
        if groups.get(key) != "canary":
            visits[key if host.families is None else host.families.picture(key)] += count
    with_caption = 1 - float(getattr(data, "caption_dropout", 0.0))
    expected = expected_visits(
        plan,
        visits_per_epoch=max(visits.values(), default=1),
        counted_share=min(1.0, maximum_timestep / TIMESTEPS) * with_caption / (paired_every or 1),
    )
    if expected is None or expected >= minimum_visits:
        return None
    lower = "minimum_visits" if paired_every is None else "minimum_visits or paired_every"
    return (
        f"By the planned end even the most often visited training samples have about {expected:.1f} visits that count, "
        f"but a flag needs {minimum_visits} (minimum_visits). So few samples can be flagged, or none. "
        f"Train for more epochs, or lower {lower}."
    )
