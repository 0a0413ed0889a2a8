"""Gain of several own images: how much nearer the nearest of them comes to a generation by chance.

A prompt with many versions of its picture, or a caption with many pictures, is compared with the nearest of them. So it
has more chances to fall below a threshold than a held-out prompt, which has one picture. A bound by their number (rate
times looks) is useless for two hundred light edits of one picture, which are hardly more than one look. So the gain is
measured for generations that cannot be copies, those for held-out prompts: the distance to the nearest of the own
images over the distance to the first.

A ratio with many looks is the ratio with one look times the gain. With one look it falls below the threshold with
probability `rate` at most. The gain falls below its own lower quantile with the same probability. By the union bound,
which needs no independence, the product falls below the product of both with probability 2 · `rate` at most.

Cost: one matrix product of the held-out generations with the own images.
Cannot: allow for own images that are nearer to generations for their own caption than to others without being copied.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from memtrain.evaluation.measures.replication import Replication
from memtrain.functional.pixel_distance import centred_pixels, squared_distances
from memtrain.functional.ranking import lower_threshold

AT_ONCE = 64
"""Number of own images compared at once."""


def gain_of_looks(generated: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """Compute the distance to the nearest of several own images over the distance to the first, lowest over seeds.

    Args:
        generated: the generations of prompts to which these images do not belong, `(n, K, 3, H, W)` uint8.
        own: the first own image, `(3, H, W)` uint8.
        others: the other own images, `(v, 3, H, W)` uint8.

    Returns:
        `(n,)` fp64, at most 1.
    """
    queries = centred_pixels(generated.flatten(0, 1))
    first = squared_distances(queries, centred_pixels(own[None]))[:, 0]
    nearest = first
    for part in others.split(AT_ONCE):
        nearest = torch.minimum(nearest, squared_distances(queries, centred_pixels(part)).amin(dim=1))
    gain = (nearest / first.clamp(min=1)).sqrt()
    return gain.view(generated.shape[:2]).amin(dim=1)


def thresholds_beyond_looks(
    distances: Replication,
    generated: Tensor,
    *,
    own: Tensor,
    training: Tensor,
    calibrating: Tensor,
    threshold: float,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Compute a threshold for each prompt that allows for its own images, and the false-positive rate of each.

    Args:
        distances: the distances of P prompts and K seeds.
        generated: the generations, `(P, K, 3, H, W)` uint8.
        own: the own images, `(P, 3, H, W)` uint8.
        training: the training images, `(M, 3, H, W)` uint8.
        calibrating: the held-out prompts, `(P,)` bool.
        threshold: the threshold of a prompt with one own image.
        rate: the false-positive rate of this threshold.

    Returns:
        Thresholds and rates, `(P,)` fp64 each; for one own image they are `threshold` and `rate`.
    """
    heldout = generated[calibrating.to(generated.device)].to(own.device)
    variants: Sequence[Sequence[int]] = distances.variants or [()] * len(own)
    thresholds = torch.full((len(own),), threshold, dtype=torch.float64)
    rates = torch.full((len(own),), rate, dtype=torch.float64)
    for prompt, indices in enumerate(variants):
        if indices:
            gain = gain_of_looks(heldout, own[prompt], training[list(indices)])
            thresholds[prompt] *= lower_threshold(gain, rate)
            rates[prompt] = min(1.0, 2 * rate)
    return thresholds, rates
