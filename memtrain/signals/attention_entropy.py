"""Entropy of the token attention at each cross-attention site.

Source: MemAttn (Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross
Attention", ECCV 2024). Attention is averaged over image tokens and heads, and then the entropy over all text tokens is
computed. It is published for inference, averaged over layers or at one layer. A high entropy means memorized.

In fine-tuning, single sites move in both directions, and the average over sites hides this. So each site has its own
column. It is compared with the entropy of the same sample at that site under the base model, which cancels the effect
of the words and the length of the prompt. No sign is assumed.

Cost: one more query and key projection per site. Cannot: tell the direction of a site without calibration.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from memtrain.functional.attention import Tokens
from memtrain.models.observation import Observation
from memtrain.signals.base import Signal


class AttentionEntropy(Signal):
    """Entropy in nats per site, `(B, S)`; compared as a difference.

    Args:
        tokens: the text tokens of the entropy: all of them, only the prompt's words, or only EOS and padding. The
            signal's name is `attention_entropy`, `attention_entropy_prompt` or `attention_entropy_summary`.
    """

    name = "attention_entropy"
    memorized_when = "unknown"

    def __init__(self, tokens: Tokens = "all") -> None:
        self.tokens = tokens
        if tokens != "all":
            self.name = f"attention_entropy_{tokens}"

    def columns(self, sites: Sequence[str]) -> list[str]:
        """`attention_entropy.<site>` for each site."""
        return [f"{self.name}.{site}" for site in sites]

    def __call__(self, observation: Observation) -> Tensor:
        """Entropy of each site's token attention."""
        return observation.entropy(self.tokens).detach()

    def relative(self, values: Tensor, reference: Tensor) -> Tensor:
        """Change since the base model."""
        return values - reference

    def absolute(self, values: Tensor) -> Tensor:
        """The entropy itself."""
        return values
