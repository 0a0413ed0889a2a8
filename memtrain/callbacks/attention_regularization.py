"""Attention regularization: a penalty keeps the token attention near the base model's, as near as on held-out samples.

Ours, after the observation of MemAttn (Ren et al., ECCV 2024) that memorized samples are told apart by the entropy of
their cross-attention; the training-time method of that paper was never released. The penalty is a hinge on the change
of each site's entropy since the base model. It begins where the change differs from the change of held-out samples by
more than `margin` times their standard deviation. It acts in both directions, because in fine-tuning sites move both
ways. So noise, timestep and the effect of training on all images cost little. The entropy of `assets/tiny-sd` itself
varies by 0.1 nats and more from one noise to the next at some sites, and hardly at others. The gradient reaches the
queries, the keys and the layers before them, but not the values.

Cost: the graph of the token attention (more memory per site). Suggested: the defaults, on flagged samples. On the
embedded default they stop nothing (10 of 10 planted images, one seed, benchmarks/RESULTS.md). Cannot: keep a model from
memorizing through its values or convolutions, so combine it with sample skipping or reweighting. Visits with a dropped
caption are not penalized, because the base model's entropy is that of the full caption. Visits from the monitor's
`maximum_timestep` on are not penalized either, because they are no evidence.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.models.transfer import to_device
from memtrain.monitoring.mitigation import Effects, Needs


class AttentionRegularization(MitigationCallback):
    """Add a penalty on the change of the attention entropy since the base model.

    Args:
        strength: factor of the penalty, loss per nat.
        margin: change of a site's entropy that is free, in standard deviations of held-out samples.
        samples: penalize `flagged` samples or `all`.
    """

    def __init__(
        self, strength: float = 0.1, margin: float = 2.0, samples: Literal["flagged", "all"] = "flagged"
    ) -> None:
        if strength <= 0 or margin < 0:
            raise ConfigurationError(
                f"strength={strength}, margin={margin}",
                expected="a strength above 0 and a margin of at least 0",
                remedy="set strength above 0, and margin to 0 or more",
            )
        self.strength, self.margin, self.samples = strength, margin, samples

    def needs(self) -> Needs:
        """Ask for the attention's graph and the base model's entropy."""
        return Needs(attention_graph=True, base_profile=("attention_entropy",))

    def effects(self) -> Effects:
        """State that the rule depends on captions, and with `samples: flagged` acts on flagged samples only."""
        return Effects(reads_captions=True, flagged_only=self.samples == "flagged")

    def penalty(self, observation: Observation, flags: Flags) -> Tensor:
        """Return `strength` times the mean hinge over sites, `(B,)`; 0 for samples that are not penalized."""
        base, level, spread = (
            part["attention_entropy"] for part in (observation.reference, observation.level, observation.spread)
        )
        unknown = ~(spread + level).isfinite()
        # These rows go before the subtraction, because a NaN would come back in the gradient.
        change = observation.entropy() - base - level.masked_fill(unknown, 0.0)
        beyond = change.abs() - self.margin * spread.masked_fill(unknown, 0.0)
        hinge = torch.relu(beyond.masked_fill(unknown, 0.0)).mean(dim=1)
        chosen = torch.ones_like(flags.ever) if self.samples == "all" else flags.ever
        if observation.caption_dropped:
            chosen = chosen & ~to_device(torch.tensor(observation.caption_dropped), chosen.device)
        return self.strength * torch.where(chosen, hinge, 0.0 * hinge)
