"""The way from compared values to z-scores, by timestep bucket first and then within classes of prompt length.

The moments follow the model, because each observation moves them and old observations are forgotten. Training changes
all images, and long captions in another way than short ones. Both effects are removed here.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import torch
from torch import Tensor

from memtrain.functional.moments import DriftingMoments

MOMENTS_WINDOW = 64
"""Number of held-out visits that a timestep bucket's moments remember, by default those of 256 batches."""
LENGTH_CLASSES = 3
"""Number of classes of prompt length, if there are enough held-out samples."""
HELDOUT_PER_CLASS = 32
"""Number of held-out samples that a class of prompt length needs."""


def length_edges(lengths: Sequence[int]) -> list[int]:
    """Return the prompt lengths at which a new class begins, so that each class has its share of held-out samples."""
    classes = max(1, min(LENGTH_CLASSES, len(lengths) // HELDOUT_PER_CLASS))
    ordered = sorted(lengths)
    return sorted({ordered[index * len(ordered) // classes] for index in range(1, classes)} - {*ordered[:1]})


class Standardisation:
    """Moments of values by timestep bucket, and of their z-scores by class of prompt length.

    Args:
        columns: number of values per visit.
        buckets: number of timestep buckets.
        edges: prompt lengths at which a new class begins, see :func:`length_edges`.
        resolution: smallest meaningful spread between samples, `(columns,)`.
    """

    def __init__(
        self, columns: int, *, buckets: int, edges: Sequence[int] = (), resolution: Tensor | None = None
    ) -> None:
        self.edges = list(edges)
        self.moments = DriftingMoments(
            buckets, columns, window=MOMENTS_WINDOW, minimum=MOMENTS_WINDOW // 8, resolution=resolution
        )
        classes = len(self.edges) + 1
        self.length_moments = DriftingMoments(classes, columns, window=4 * MOMENTS_WINDOW, minimum=MOMENTS_WINDOW // 2)

    def standardise(self, buckets: Sequence[int], lengths: Sequence[float], values: Tensor) -> Tensor:
        """Return z-scores of visits, `(B, columns)`; NaN if the moments rest on too few observations.

        Args:
            buckets: B timestep buckets.
            lengths: B prompt lengths, tokens; NaN if unknown.
            values: compared values `(B, columns)`, NaN without a value.
        """
        z = self.moments.standardise(torch.tensor(buckets, dtype=torch.long), values)
        if not self.edges:
            return z
        # Without a type, an empty list would become floats, which cannot index.
        classes = torch.tensor([self._class(length) for length in lengths], dtype=torch.long)
        within = self.length_moments.standardise(classes, z)
        known = torch.tensor([length == length for length in lengths], dtype=torch.bool)
        return torch.where(known[:, None], within, z)

    def follow(self, buckets: Sequence[int], lengths: Sequence[float], values: Tensor) -> Tensor:
        """Do the same as :meth:`standardise`, visit by visit, and update the moments."""
        z = self.moments.follow(buckets, values)
        known = [index for index, length in enumerate(lengths) if length == length] if self.edges else []
        if known:
            z[known] = self.length_moments.follow([self._class(lengths[index]) for index in known], z[known])
        return z

    def _class(self, length: float) -> int:
        return bisect.bisect_right(self.edges, length)
