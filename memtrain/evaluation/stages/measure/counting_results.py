"""The part `counts` of `results.json`, by the measure that the verdict counts by.

The counts need one threshold for all prompts. If the threshold of a prompt is raised because its picture has several
files, its similarities are lowered by the same amount. The ratio of pixel distances counts as its negative, which is
higher for copies.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import Compared
from memtrain.evaluation.stages.measure.copied import Copied
from memtrain.evaluation.stages.measure.copying import Compare, Found
from memtrain.evaluation.stages.measure.counting.extraction import extraction_by_prompt, unconditional_extraction
from memtrain.evaluation.stages.measure.counting.generations import count_generations
from memtrain.evaluation.stages.measure.counting.nearer_than_heldout import nearer_than_heldout
from memtrain.evaluation.stages.measure.counting.pictures import count_by_group, count_groups, count_pictures
from memtrain.evaluation.stages.measure.counting.verbatim_template import picture_distances, verbatim_and_template
from memtrain.evaluation.stages.measure.decision import RATIO
from memtrain.evaluation.stages.measure.grounds import PLAIN
from memtrain.evaluation.stages.measure.ratio_measure import nearest_ratios_of_each
from memtrain.evaluation.stages.measure.results import Measured
from memtrain.evaluation.stages.measure.samples import counted_as
from memtrain.evaluation.stages.run_samples import RunSamples

FEWEST_HELDOUT = 8
"""Smallest number of held-out pictures for a comparison of generations with them."""
FEWEST_PIXELS = 8
"""Smallest side, in pixels, of images whose tiles and edges can be compared."""


def counts_by(
    best: Found | None, samples: RunSamples, found: Measured, given: Compare, *, bootstrap: Mapping[str, Any]
) -> dict[str, Any]:
    """Make the part `counts` of `results.json`.

    Args:
        best: the findings of the measure that counts; None for the ratio.
        samples: the samples of P prompts.
        found: the sampling, with the findings of the ratio.
        given: the generations, and the images that they were compared with.
        bootstrap: the `seed`, `resamples` and `level` of intervals.

    Returns:
        `measure`, `pictures`, `generations`, `extraction` (`by_prompt`, and `without_asking`: by prompts of no training
        picture), `verbatim_template`, `nearer_than_heldout`, `exposure` (None;
        :mod:`memtrain.evaluation.stages.measure.exposed` measures it). If the data are grouped by a column, also
        `by_group` and `groups`. Counts that cannot be made are None.
    """
    level = bootstrap["level"]
    compared, threshold, of_any = _shifted(best.copied) if best is not None else _by_ratio(found)
    trained, pictures = given.trained, counted_as(samples)
    names = [name if asked else None for name, asked in zip(pictures, trained.tolist(), strict=True)]
    training = [samples.picture(key) for key in samples.training_keys]
    files = Counter(training)
    counts: dict[str, Any] = {
        "measure": RATIO if best is None else best.copied.name,
        "pictures": count_pictures(compared, threshold, pictures=names, files=files, level=level),
        "generations": count_generations(compared, of_any, names=training, among=trained, level=level),
        "extraction": {
            "by_prompt": extraction_by_prompt(compared, threshold, trained=trained, level=level),
            "without_asking": _without_asking(compared, of_any, given.calibrating, training, level=level),
        },
        "verbatim_template": _verbatim(found, samples, given, level=level),
        "nearer_than_heldout": None,
        "exposure": None,
    }
    if best is not None and len(best.heldout_nearest) >= FEWEST_HELDOUT and trained.any():
        counts["nearer_than_heldout"] = nearer_than_heldout(
            compared.nearest[trained], best.heldout_nearest, **bootstrap
        )
    if samples.grouped_by is not None:
        values = {
            name: samples.grouped_by[prompt.key]
            for name, prompt in zip(pictures, samples.prompts, strict=True)
            if prompt.key in samples.grouped_by
        }
        counts["by_group"] = count_by_group(compared, threshold, pictures=names, values=values, level=level)
        counts["groups"] = count_groups(counts["by_group"], level=level)
    return counts


def _shifted(copied: Copied) -> tuple[Compared, float, float]:
    """Return similarities for one threshold, that threshold, and the threshold for the nearest picture."""
    base = copied.calibration.threshold
    own = copied.compared.own.double() - (copied.thresholds - base)[:, None]
    # A similarity at the threshold is a copy here, and the counts take values above a threshold.
    return replace(copied.compared, own=own), _below(base), _below(copied.copy_of_any)


def _by_ratio(found: Measured) -> tuple[Compared, float, float]:
    """Return the same three values for the ratio."""
    distances, base = found.distances, found.threshold
    own = -distances.ratio.double() * (base / found.beyond.thresholds.double().clamp(min=1e-12))[:, None]
    nearest = -nearest_ratios_of_each(distances).double()
    nothing = torch.full((len(own),), torch.nan)
    return Compared(own, nearest, distances.nearest, nearest, nothing), -base, -PLAIN * base


def _below(threshold: float) -> float:
    return threshold - 1e-12 * max(1.0, abs(threshold))


def _without_asking(
    compared: Compared, threshold: float, rows: Tensor, training: list[str], *, level: float
) -> dict[str, Any] | None:
    """Count training pictures that come back for prompts of no training picture; None without such prompts."""
    if not rows.any():
        return None
    return unconditional_extraction(
        compared.nearest[rows], compared.nearest_index[rows], threshold, names=training, level=level
    )


def _verbatim(found: Measured, samples: RunSamples, given: Compare, *, level: float) -> dict[str, Any] | None:
    if min(samples.own_images.shape[-2:]) < FEWEST_PIXELS or not given.trained.any():
        return None
    distances = picture_distances(found.trace.images, samples.own_images)
    said = verbatim_and_template(distances, trained=given.trained, heldout=given.unseen, level=level)
    keys = [prompt.key for prompt, asked in zip(samples.prompts, given.trained.tolist(), strict=True) if asked]
    return {**said, "kinds": dict(zip(keys, said["kinds"], strict=True))}
