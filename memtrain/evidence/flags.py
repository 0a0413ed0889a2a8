"""Flags: the verdict on the samples of a batch before their next visit."""

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
        now: whether samples are above the threshold, `(B,)` bool.
        ever: whether samples were above it at an earlier visit, `(B,)` bool.
        score: accumulated evidence `(B,)`, high when memorized.
        threshold: score above which a sample is flagged; infinite without a threshold.
        keys: B sample keys.
        everyone: keys of all samples of the run that were flagged at a visit, themselves or by their picture or
            caption, even without visits of their own.
        visits: function from keys of any samples to the counted visits of their pictures, the same on every process.
        ready: whether samples have enough visits for a flag, `(B,)` bool; None if unknown.
        families: B names of the samples' picture families; empty without families.
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
        """B names of the samples' pictures, from their families or else their keys."""
        return self.families or self.keys

    def on(self, device: torch.device) -> Flags:
        """Copy the flags to a device without waiting for the copies."""
        now, ever, score = (to_device(part, device) for part in (self.now, self.ever, self.score))
        ready = None if self.ready is None else to_device(self.ready, device)
        return replace(self, now=now, ever=ever, score=score, ready=ready)
