"""What is known about one batch once the denoiser has seen it: readings, embeddings, and the gradient at its output.

:class:`memtrain.models.probe.DenoiserProbe` fills it in; signals and mitigations read it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from memtrain.errors import ProbeError
from memtrain.functional.attention import Tokens, entropy, partial_entropy, prompt_tokens, summary_tokens


@dataclass
class Observation:
    """What is known about one batch.

    Attributes:
        keys: B sample keys.
        prompt_length: `(B,)` tokens of the caption with BOS and EOS, or None if the host does not say.
        prompt_mask: `(B, T)` bool, true for the words of the caption; needed for groups of tokens where a prompt length
            does not place them (T5, SD3).
        caption_dropped: B, true where the visit has the empty caption in place of the sample's own; empty if none has.
        timesteps: `(B,)` from 0 to 1,000.
        noisy_latents: `(B, ...)` that the denoiser was given, detached.
        text_embeddings: `(B, T, width)`, detached.
        text_trained: whether these have a graph: their encoder is trained along.
        token_attention: per site `(B, T)`; in joint attention conditional on text.
        text_mass: per site `(B,)` share of joint attention given to text, if the probe was asked for it.
        prediction: `(B, ...)` output of the denoiser, detached, where the probe keeps calls.
        unconditional: `(B, ...)` output for the same latents under the empty text, where a signal asked for it.
        neuron_activation: per site `(B, C)` mean absolute activation of its value neurons, if the probe was asked for
            it.
        call: arguments of the denoiser's forward, where the probe keeps calls.
        gradient: `(B, ...)` gradient of the host's loss at the denoiser's output, before any re-weighting.
        loss_scale: factor between the batch-mean loss and the loss that was differentiated.
        loss_weight: `(B,)` weight that the host gave each sample's loss, or None for equal weights.
        sample_loss: `(B,)` denoising loss, where it is known without a gradient.
        target: `(B, ...)` what the prediction is compared with, where the host says so.
        loss_mask: as `target`: how much each element of the error counts, where the host says so.
        reference: per signal its values `(B, columns)` under the base model at the nearest measured timestep, where a
            mitigation asked for them.
        level: per signal `(B, columns)` mean of held-out samples' values compared with their reference under the model
            as it is, at the batch's timesteps; comes with the reference.
        spread: standard deviation of the same; NaN where there is no evidence: too few visits, or too much noise.
        clip_layout: whether tokens are `BOS words EOS padding`; set by the probe.
    """

    keys: Sequence[str]
    prompt_length: Tensor | None = None
    prompt_mask: Tensor | None = None
    caption_dropped: Sequence[bool] = ()
    timesteps: Tensor = field(default_factory=lambda: torch.empty(0))
    noisy_latents: Tensor = field(default_factory=lambda: torch.empty(0))
    text_embeddings: Tensor = field(default_factory=lambda: torch.empty(0))
    text_trained: bool = False
    token_attention: dict[str, Tensor] = field(default_factory=dict)
    text_mass: dict[str, Tensor] = field(default_factory=dict)
    prediction: Tensor | None = None
    unconditional: Tensor | None = None
    neuron_activation: dict[str, Tensor] = field(default_factory=dict)
    call: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    gradient: Tensor | None = None
    loss_scale: float | Tensor = 1.0
    loss_weight: Tensor | None = None
    sample_loss: Tensor | None = None
    target: Tensor | None = None
    loss_mask: Tensor | None = None
    reference: dict[str, Tensor] = field(default_factory=dict)
    level: dict[str, Tensor] = field(default_factory=dict)
    spread: dict[str, Tensor] = field(default_factory=dict)
    clip_layout: bool = True

    def entropy(self, tokens: Tokens = "all") -> Tensor:
        """Entropy of the token attention at each site, `(B, S)` in nats.

        Args:
            tokens: over which tokens; the partial entropies of `prompt` and `summary` are not renormalised.

        Raises:
            ProbeError: if it is not known where the tokens of the group are.
        """
        attention = torch.stack(list(self.token_attention.values()), dim=1)
        if tokens == "all":
            return entropy(attention)
        return partial_entropy(attention, self._group(tokens, attention.shape[-1]).to(attention.device)[:, None])

    def _group(self, tokens: Tokens, count: int) -> Tensor:
        if self.prompt_mask is not None:
            outside = ~self.prompt_mask
            if self.clip_layout:
                outside = outside & (torch.arange(count, device=outside.device) > 0)
            return self.prompt_mask if tokens == "prompt" else outside
        if self.prompt_length is None or not self.clip_layout:
            raise ProbeError(
                f"It is not known which text tokens are {tokens} tokens",
                expected="`prompt_length` for a CLIP text encoder, `prompt_mask` (B, T) for others",
                remedy="put it into the batch, or use the entropy over all tokens",
            )
        return (prompt_tokens if tokens == "prompt" else summary_tokens)(self.prompt_length, count)
