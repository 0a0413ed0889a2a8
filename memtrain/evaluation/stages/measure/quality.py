"""Quality of a run's samples: figures of generations for prompts that were not trained on.

The prompts are the held-out prompts. If no picture was held out, they are captions made from the data's words; if there
are none, all prompts. Distances to real images are always distances to the pictures of the held-out prompts.
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
    """Make the part `quality` of `results.json`.

    Args:
        given: the input of the stage, with the pipeline.
        samples: the samples of P prompts.
        trace: the generations of the prompts.
        held: the held-out prompts, `(P,)` bool.
        losses: the losses of the held-out images; None if there are none.
        kid: the result of :func:`kid_of_run`.
        weights: the weight files of networks. Figures without a weight file are in the result with the reason.
        bootstrap: the `seed`, `resamples` and `level` of intervals.

    Returns:
        `heldout_loss` (a number or None, as in earlier versions), `heldout_loss_mean` (the same with its interval),
        `kid`, and the figures of :func:`memtrain.evaluation.measures.quality.quality_figures` with the group of their
        prompts.
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
    """Measure KID on the held-out prompts, or return the reason why it is not measured."""
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
    """Measure figures by networks for each group, and distances of held-out generations to the held-out images."""
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
