"""The work of a run before its first step: images, captions and forwards, and how many steps take as long."""

from __future__ import annotations

from typing import Any

from memtrain.cli.plan_run import PlannedRun
from memtrain.monitoring.data_protocol import known_samples, lacking_to_measure

FORWARDS_OF_A_STEP = 3
"""The cost of a training step of a sample, in forwards: one, and a backward that costs about two."""
SHARE, MANY = 0.1, 1000
"""The share of the training, and the batches, from which the work before it causes a warning."""


def before_the_first_step(run: PlannedRun) -> dict[str, Any]:
    """Counts of a first start; a later one finds most of it in caches. A warning is added to the run where it is much.

    Args:
        run: set up.
    """
    train, held = known_samples(run.data, "train"), known_samples(run.data, "heldout")
    samples = len(train) + len(held)
    figures: dict[str, Any] = {}
    if run.scanned is False:
        figures["images_scanned"] = samples
    cache = run.caches.get("on disk")
    before = None if getattr(cache, "fill", "before") == "training" else cache
    if "latents in memory" in run.caches or getattr(before, "latents", False):
        dataset = getattr(run.data, "train_dataset", None)
        views = getattr(getattr(dataset, "framing", None), "variants", 1)
        figures["images_encoded"] = views * len(train) + len(held)
    if getattr(before, "text", False):
        figures["captions_encoded"] = sum(1 + len(getattr(one, "alternatives", ())) for one in (*train, *held))
    forwards = _forwards(run, samples=samples, held=len(held))
    figures |= forwards
    batch = int(getattr(run.data, "batch_size", 1) or 1) * run.trainer.world_size
    if forwards:
        steps = sum(forwards.values()) / FORWARDS_OF_A_STEP / batch
        figures["forwards_last_as_long_as"] = f"about {max(1, round(steps)):,} batches of training"
        _warn(run, steps)
    return figures


def _forwards(run: PlannedRun, *, samples: int, held: int) -> dict[str, int]:
    """Forwards of the denoiser, of one sample each, over all processes."""
    monitor = run.monitor
    if monitor is None or monitor.options.reference is False:
        return {}
    options = monitor.options
    if lacking_to_measure(run.host, training_samples=options.profiled):
        return {}
    settings, found = options.settings, {}
    if options.reference is True:
        found["profile_forwards"] = samples * len(settings.reference_timesteps) * settings.reference_draws
    if options.reference == "first_visit":
        found["profile_forwards"] = held * len(settings.reference_timesteps) * settings.reference_draws
    if held and options.profiled:
        found["held-out_forwards"] = held * options.minimum_visits
    return found


def _warn(run: PlannedRun, steps: float) -> None:
    planned = None if run.steps is None else run.steps * run.plan.accumulate
    if planned is not None and steps > max(MANY, SHARE * planned):
        run.warnings.append(
            f"The base model's profile and the held-out samples take about as long as {round(steps):,} batches of "
            f"training, before the first of {planned:,}. They are measured once, and kept for later runs of the same "
            "model and data (reference_folder). With `reference: first_visit` training begins at once, and each sample "
            "is measured when it is visited first"
        )
