"""What a run's samples say of its quality: figures of generations for prompts that were not trained on.

Those are the held-out prompts; where no picture was held out, captions that were made of the data's words; else all.
Distances to real images are to the pictures of the held-out prompts, so that all of them are of the same images.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.kid import kernel_distance
from memtrain.evaluation.measures.nemo_metrics import distribution_metrics, image_metrics
from memtrain.evaluation.measures.quality import quality_figures
from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.generate import Trace
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.counts import members
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.families.descriptors.efficientnet_lite0 import EfficientNetLite0
from memtrain.records import HELDOUT, MADE_CAPTION


def quality_of_run(
    given: StageInput,
    samples: RunSamples,
    trace: Trace,
    *,
    held: Tensor,
    losses: Tensor | None,
    kid: Mapping[str, Any],
    weights: Weights | None,
    bootstrap: Mapping[str, Any],
) -> dict[str, Any]:
    """`results.json`'s part `quality`.

    Args:
        given: with the pipeline.
        samples: P prompts.
        trace: their generations.
        held: `(P,)` bool, the held-out prompts.
        losses: of the held-out images; None where there are none.
        kid: from :func:`kid_of_run`.
        weights: of networks; what is not named is in the result with the reason.
        bootstrap: `seed`, `resamples` and `level` of intervals.

    Returns:
        `heldout_loss` (a number or None, as in earlier versions; with its interval under `heldout_loss_mean`), `kid`,
        and the figures of :func:`memtrain.evaluation.measures.quality.quality_figures` with the group of their prompts.
    """
    made = members([prompt.group for prompt in samples.prompts], MADE_CAPTION)
    rows, group = (held, HELDOUT) if held.any() else (made, MADE_CAPTION) if made.any() else (~held, "all")
    figures = quality_figures(
        trace.images[rows],
        prompts=[prompt.caption for prompt, inside in zip(samples.prompts, rows.tolist(), strict=True) if inside],
        real=samples.own_images[held] if held.any() else None,
        weights=weights or Weights(),
        losses=losses,
        bootstrap=bootstrap,
        device=given.pipeline.device,
    )
    mean = figures.pop("heldout_loss")
    said = {name: one | {"prompts": group} for name, one in figures.items()}
    return {"heldout_loss": mean["value"], "kid": kid, "heldout_loss_mean": mean, **said}


def kid_of_run(
    given: StageInput,
    samples: RunSamples,
    trace: Trace,
    distances: Replication,
    *,
    held: Tensor,
    reason: str | None,
    bootstrap: Mapping[str, Any],
) -> Mapping[str, Any]:
    """KID of the held-out prompts, or the reason why there is none."""
    if reason is not None:
        return {"value": None, "reason": reason}
    pictures = [samples.families.picture(key) if samples.families else key for key in samples.training_keys]
    files, visits = Counter(pictures), samples.visits or {}
    repeated = torch.tensor(
        [visits.get(key, 0) > 1 or files[name] > 1 for key, name in zip(samples.training_keys, pictures, strict=True)]
    )
    return kernel_distance(
        EfficientNetLite0(),
        samples.own_images[held],
        generated=trace.images[held],
        copies=repeated[distances.nearest[held]] if repeated.any() else None,
        batch_size=given.sampling.batch_size,
        device=given.pipeline.device,
        **bootstrap,
    )


def networks_of_run(given: StageInput, samples: RunSamples, trace: Trace, weights: Weights) -> dict[str, Any]:
    """Figures of networks per group of prompts, and distances of generations for held-out prompts to their images."""
    device = given.pipeline.device
    groups = [prompt.group for prompt in samples.prompts]
    found: dict[str, Any] = {"groups": {}}
    for name in dict.fromkeys(groups):
        inside = members(groups, name)
        # The dcr convention compares a generation with every training image, the others with the prompt's own.
        every = weights.sscd_convention == "dcr"
        found["groups"][name] = image_metrics(
            trace.images[inside],
            references=samples.training_images if every else samples.own_images[inside][:, None],
            prompts=[prompt.caption for prompt in samples.prompts if prompt.group == name],
            weights=weights,
            device=device,
        )
    held = members(groups, HELDOUT)
    generated = trace.images[held].flatten(0, 1)
    if int(held.sum()) > 1:
        found |= distribution_metrics(samples.own_images[held], generated, weights=weights, device=device)
    return found
