"""Null prompts of an evaluation: held-out prompts, or made captions if no picture was held out.

A held-out prompt sets the threshold by the distance of its generations to its own picture, which the model has not
seen. A made caption (the group `made_caption`) has no picture. It sets the threshold by the distance of its generations
to the nearest training picture. This bounds chance for any one picture, and the threshold becomes stricter with more
pictures. If the model brings back training pictures for made captions as well, no finding can exceed chance.
"""

from __future__ import annotations

from torch import Tensor

from memtrain.evaluation.measures.replication import Replication
from memtrain.evaluation.stages.measure.counts import members
from memtrain.evaluation.stages.measure.grounds import heldout_copies, typical_distance
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.records import HELDOUT, MADE_CAPTION


def null_prompts(samples: RunSamples) -> Tensor:
    """Return the prompts that set the threshold, `(P,)` bool.

    These are the held-out prompts whose image the model has not seen under another name. Without held-out prompts, they
    are the made captions.
    """
    groups = [prompt.group for prompt in samples.prompts]
    held = members(groups, HELDOUT)
    if not held.any():
        return members(groups, MADE_CAPTION)
    found = held.clone()
    typical = typical_distance(samples.own_images)
    found[held] &= ~heldout_copies(samples.own_images[held], samples.training_images, typical=typical)
    return found


def by_made_captions(samples: RunSamples, calibrating: Tensor) -> bool:
    """Whether the prompts of :func:`null_prompts` are made captions."""
    return any(
        prompt.group == MADE_CAPTION
        for prompt, chosen in zip(samples.prompts, calibrating.tolist(), strict=True)
        if chosen
    )


def nearest_ratios(distances: Replication) -> Tensor:
    """Return `(P,)`: the distance to the nearest training image over the mean of the others, the lowest over seeds.

    The prompts must have no own image among the training images, so that their neighbours hold the nearest image.
    """
    count = max(2, distances.neighbours)
    others = (count * distances.neighbour_distance - distances.nearest_distance) / (count - 1)
    return (distances.nearest_distance / others.clamp(min=1e-12)).amin(dim=1)
