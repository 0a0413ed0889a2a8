"""Flags: what a run knows of the samples of a batch before it visits them again."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from memtrain.models.transfer import to_device


def _never(keys: Sequence[str]) -> Sequence[int]:
    return [0] * len(keys)


@dataclass(frozen=True)
class Flags:
    """The verdict on the samples of a batch, before this visit.

    Attributes:
        now: `(B,)` bool, above the threshold.
        ever: `(B,)` bool, above it at some earlier visit.
        score: `(B,)` accumulated evidence, high when memorized.
        threshold: score above which a sample is flagged; infinite until there is one.
        keys: B sample keys.
        everyone: keys of all samples of the run that were above it at some visit, or whose picture or caption was,
            visited or not.
        visits: counted visits of the pictures of any samples of the run, by their keys, the same on every process.
        ready: `(B,)` bool, visited often enough to be flagged; None if that is unknown.
        families: B names of the samples' picture families; empty where nobody knows of any.
    """

    now: Tensor
    ever: Tensor
    score: Tensor
    threshold: float = float("inf")
    keys: Sequence[str] = ()
    everyone: Collection[str] = ()
    visits: Callable[[Sequence[str]], Sequence[int]] = _never
    ready: Tensor | None = None
    families: Sequence[str] = ()

    @property
    def pictures(self) -> Sequence[str]:
        """B names of the samples' pictures: of their families, else their keys."""
        return self.families or self.keys

    def on(self, device: torch.device) -> Flags:
        """The same on a device; nothing waits for the copies."""
        now, ever, score = (to_device(part, device) for part in (self.now, self.ever, self.score))
        ready = None if self.ready is None else to_device(self.ready, device)
        return replace(self, now=now, ever=ever, score=score, ready=ready)
