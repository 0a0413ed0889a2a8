"""Entropy skipping: a visit gets no gradient if its cross-attention is spread unusually widely.

Source: MemAttn (Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross
Attention", ECCV 2024) removes samples of high attention entropy during training. Its code for that and its threshold
were never released, so this code follows the description only. Attention is averaged over sites, heads and image
tokens, and the entropy of the average is computed. A visit is skipped if its entropy lies in the upper tail of the
visits so far at its noise level. These are absolute values of single visits, which mostly show the length and the words
of a caption.

Cost: none beyond the probe. Suggested: the default share, as a stand-in for the unpublished threshold. Cannot: separate
memorized samples from others if sites move in different directions. The monitor's entropy per site can.
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
"""Number of visits of a noise level before a visit is skipped there."""


class EntropySkipping(MitigationCallback):
    """Skip visits by the entropy of their average attention.

    Args:
        published: the paper that the rule follows. It has no published constant.
        share: share of visits that would be skipped if the entropy were normally distributed.
        decay: decay of the running moments per visit.
    """

    def __init__(self, published: Literal["ren2024"] = "ren2024", *, share: float = 0.05, decay: float = 0.99) -> None:
        if not 0 < share < 0.5 or not 0 < decay < 1:
            raise ConfigurationError(
                f"share={share}, decay={decay}", expected="a share below 0.5, a decay below 1", remedy="lower them"
            )
        self.published, self.decay = published, decay
        self.z = math.sqrt(2) * float(torch.erfinv(torch.tensor(1 - 2 * share)))
        self.moments = _no_moments()
        """Visits, mean and variance, by noise level."""

    def effects(self) -> Effects:
        """State that the rule skips visits."""
        return Effects(skips=True)

    def open(self, host: Host) -> None:
        """Start without moments; the moments of a checkpoint are loaded later."""
        self.moments = _no_moments()

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return 0 for skipped visits and 1 for the others, `(B,)`; the monitor averages the batch over the others."""
        value = mean_attention_entropy(observation)
        bucket = (observation.timesteps.float() * BUCKETS / 1000).long().clamp(0, BUCKETS - 1)
        self.moments = self.moments.to(value.device)
        visits, mean, variance = self.moments
        centred = value.double() - mean[bucket]
        unusual = centred > self.z * variance[bucket].sqrt()
        kept = (~(unusual & (visits[bucket] >= MINIMUM_VISITS))).float()
        seen = torch.stack([torch.ones_like(centred), centred, centred.square()])
        # A single value that is not finite would make the moments useless.
        seen = torch.where(centred.isfinite(), seen, 0)
        count, first, second = processes.total(torch.zeros_like(self.moments).index_add(1, bucket, seen))
        # Several visits of a noise level in one batch count like visits in a row with their mean value.
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
        """Return the running moments."""
        return {"moments": self.moments.cpu()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load saved moments."""
        self.moments = state_dict["moments"]


def _no_moments() -> Tensor:
    return torch.zeros(3, BUCKETS, dtype=torch.float64)


def mean_attention_entropy(observation: Observation) -> Tensor:
    """Entropy of the token attention averaged over sites, `(B,)` in nats; high means memorized as published."""
    return entropy(torch.stack(list(observation.token_attention.values())).mean(dim=0)).detach()
