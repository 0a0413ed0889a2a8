"""Whether a run is long enough for flags: the visits that its most often visited samples will have by the planned end.

A sample is flagged on `minimum_visits` counted visits at the earliest. Where each image is visited once per epoch, that
takes more epochs than many trainings have: visits at high noise do not count, nor do those without a caption, and with
`reference: paired` only every `paired_every`-th batch is compared. A run that is too short for any flag would end
without one and look clean, so the monitor says so before the first batch. A visit is one of its picture: the files of
one are counted together, where the run knows its families.
"""

from __future__ import annotations

from collections import Counter

from memtrain.monitoring.data_protocol import by_key
from memtrain.monitoring.host import Host, Plan

TIMESTEPS = 1000
"""Of the noise schedules of all backbones; visits are taken to be spread evenly over them."""


def expected_visits(plan: Plan, *, visits_per_epoch: int = 1, counted_share: float = 1.0) -> float | None:
    """Counted visits of a sample over a whole run.

    Args:
        plan: how long the run is planned to be.
        visits_per_epoch: of the sample in all the data.
        counted_share: share of visits that count.

    Returns:
        None if the run has no planned end.
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
    """What to tell the user of a run in which few samples, or none, can be flagged; None where some can.

    Nothing is said where the number of visits is unknown, as with streamed data. Without `visits_per_epoch` in the data
    module, each sample counts as visited once.

    Args:
        host: about to train.
        minimum_visits: counted visits that a flag needs.
        maximum_timestep: visits at or above it do not count.
        paired_every: batches between comparisons, None where every batch is compared.
    """
    plan, data = host.plan, host.data
    if plan is None:
        return None
    groups, visits = by_key(data, "groups"), Counter[str]()
    for key, count in by_key(data, "visits_per_epoch").items():
        # Canaries are repeated on purpose: what they reach says nothing of the user's own samples.
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
        f"and a flag needs {minimum_visits} (minimum_visits): few samples can be flagged, or none. "
        f"Train for more epochs, or lower {lower}."
    )
