"""The bulk: the highest scores of the training samples that are visited as often as most.

What a model is trained on it comes to know better than what is held out, all of it. A memorized sample stands out among
the others that are trained on. Early in a run, samples with visits enough are duplicates and nothing else, so whoever
was visited far more often than most never counts as one of the bulk.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.evidence.running_means import Evidence

ORDINARY = 3
"""Times the median number of visits that a sample of the bulk may have."""


def frequent(keys: Sequence[str], samples: Evidence, scored: slice) -> set[str]:
    """Those of `keys` that have been visited far more often than most samples.

    Args:
        keys: of samples that `samples` knows.
        samples: evidence of the training samples.
        scored: the columns that flags go by.
    """
    visits = samples.fewest_visits(scored)
    seen = visits[visits > 0]
    most = ORDINARY * float(seen.median()) if len(seen) else 0.0
    often = (visits[samples.rows(keys)] > most).tolist()
    return {key for key, is_frequent in zip(keys, often, strict=True) if is_frequent}


class Bulk:
    """Highest scores of training samples so far.

    Attributes:
        peak: by key, of the samples with visits enough to be flagged.
        frequent: keys of samples that were once visited far more often than most.
    """

    def __init__(self) -> None:
        self.peak: dict[str, float] = {}
        self.frequent: set[str] = set()

    def add(self, scores: Iterable[tuple[str, float]]) -> None:
        """Take in scores of samples by key."""
        for key, score in scores:
            self.peak[key] = max(score, self.peak.get(key, -math.inf))

    def peaks(self, samples: Evidence, scored: slice) -> Tensor:
        """Highest scores of the samples that are visited as often as most, `(n,)`."""
        self.frequent |= frequent([key for key in self.peak if key not in self.frequent], samples, scored)
        return torch.tensor([p for key, p in self.peak.items() if key not in self.frequent], dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        """Plain types."""
        return {"peak": dict(self.peak), "frequent": sorted(self.frequent)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a saved state."""
        self.peak, self.frequent = dict(state["peak"]), set(state["frequent"])
