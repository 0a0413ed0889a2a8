"""What a run's samples say of its quality: KID of held-out prompts, and figures of networks whose weights are given."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.kid import kernel_distance
from memtrain.evaluation.measures.nemo_metrics import distribution_metrics, image_metrics
from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.measures.weights import Weights
from memtrain.evaluation.sampling.generate import Trace
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.counts import members
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.families.descriptors.efficientnet_lite0 import EfficientNetLite0
from memtrain.records import HELDOUT


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
