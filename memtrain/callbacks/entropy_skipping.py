"""Entropy skipping: a visit whose cross-attention is spread unusually widely gets no gradient.

Source: MemAttn (Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross
Attention", ECCV 2024) removes samples of high attention entropy during training. Its code for that was never released
and neither was its threshold, so this follows the description only: attention is averaged over sites, heads and image
tokens, the entropy of the average is taken, and a visit is skipped when it lies in the upper tail of the visits so far
at its noise level. Absolute values of single visits, which mostly say how long a caption is and what words it has.

Cost: none beyond the probe. Suggested: the default share, as a stand-in for the unpublished threshold. Cannot: tell
memorized samples from others where sites move in different directions; the monitor's entropy per site can.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.functional.attention import entropy
from memtrain.models.observation import Observation
from memtrain.monitoring import processes
from memtrain.monitoring.host import Host
from memtrain.monitoring.mitigation import Effects

BUCKETS = 10
"""Noise levels with moments of their own; timesteps go from 0 to 1,000."""
MINIMUM_VISITS = 16
"""Visits of a noise level before anything is skipped there."""


class EntropySkipping(MitigationCallback):
    """Skip visits by the entropy of their average attention.

    Args:
        published: the paper that it follows; it has no published constant.
        share: of visits that would be skipped if the entropy were normally distributed.
        decay: of the running moments, per visit.
    """

    def __init__(self, published: Literal["ren2024"] = "ren2024", *, share: float = 0.05, decay: float = 0.99) -> None:
        if not 0 < share < 0.5 or not 0 < decay < 1:
            raise ConfigurationError(
                f"share={share}, decay={decay}", expected="a share below 0.5, a decay below 1", remedy="change them"
            )
        self.published, self.decay = published, decay
        self.z = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share)))
        self.moments = _no_moments()
        """Visits, mean and variance, by noise level."""

    def effects(self) -> Effects:
        """It skips."""
        return Effects(skips=True)

    def open(self, host: Host) -> None:
        """Start without moments; a checkpoint's are loaded later."""
        self.moments = _no_moments()

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """0 for skipped visits, 1 for the others, `(B,)`; the monitor makes the batch mean the mean over these."""
        value = mean_attention_entropy(observation)
        bucket = (observation.timesteps.float() * BUCKETS / 1000).long().clamp(0, BUCKETS - 1)
        self.moments = self.moments.to(value.device)
        visits, mean, variance = self.moments
        centred = value.double() - mean[bucket]
        unusual = centred > self.z * variance[bucket].sqrt()
        kept = (~(unusual & (visits[bucket] >= MINIMUM_VISITS))).float()
        seen = torch.stack([torch.ones_like(centred), centred, centred.square()])
        # One value that is not finite would spoil the moments for good.
        seen = torch.where(centred.isfinite(), seen, 0)
        count, first, second = processes.total(torch.zeros_like(self.moments).index_add(1, bucket, seen))
        # Several visits of a noise level in one batch count as if they had come one after the other at their mean.
        rate = 1 - torch.minimum(self.decay**count, visits / (visits + count).clamp(min=1))
        moved = rate * first / count.clamp(min=1)
        spread = (1 - rate) * variance + rate * second / count.clamp(min=1) - moved.square()
        seen_any = count > 0
        self.moments = torch.stack(
            [
                visits + count,
                torch.where(seen_any, mean + moved, mean),
                torch.where(seen_any, spread.clamp(min=0), variance),
            ]
        )
        return kept

    def state_dict(self) -> dict[str, Any]:
        """The running moments."""
        return {"moments": self.moments.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self.moments = state_dict["moments"]


def _no_moments() -> Tensor:
    return torch.zeros(3, BUCKETS, dtype=torch.float64)


def mean_attention_entropy(observation: Observation) -> Tensor:
    """Entropy of the token attention averaged over sites, `(B,)` in nats; high means memorized as published."""
    return entropy(torch.stack(list(observation.token_attention.values())).mean(dim=0)).detach()
