"""The facts about one batch that the denoiser has seen: readings, embeddings, and the gradient at its output.

:class:`memtrain.models.probe.DenoiserProbe` fills them in. Signals and mitigations read them.
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
    """The facts about one batch.

    Attributes:
        keys: the B sample keys.
        prompt_length: the number of tokens of each caption with BOS and EOS, `(B,)`, or None if the host does not say.
        prompt_mask: true for the words of the caption, `(B, T)` bool. It is needed for groups of tokens if a prompt
            length does not place them (T5, SD3).
        caption_dropped: true for a visit with the empty caption instead of the sample's own, B values; empty if there
            is none.
        timesteps: the timesteps, `(B,)` from 0 to 1,000.
        noisy_latents: the denoiser's input, `(B, ...)`, detached.
        text_embeddings: the text embeddings, `(B, T, width)`, detached.
        text_trained: whether these have a graph, because their encoder is trained too.
        token_attention: the token attention `(B, T)` by site; in joint attention conditional on text.
        text_mass: the share of joint attention on text, `(B,)` by site, if the probe reads it.
        prediction: the output of the denoiser, `(B, ...)`, detached, if the probe keeps calls.
        unconditional: the output for the same latents under the empty text, `(B, ...)`, if a signal asked for it.
        neuron_activation: the mean absolute activation of value neurons, `(B, C)` by site, if the probe reads it.
        call: the arguments of the denoiser's forward, if the probe keeps calls.
        gradient: the gradient of the host's loss at the denoiser's output, `(B, ...)`, before any re-weighting.
        loss_scale: the factor between the batch-mean loss and the loss that was differentiated.
        loss_weight: the weight that the host gave each sample's loss, `(B,)`, or None for equal weights.
        sample_loss: the denoising loss, `(B,)`, if it is known without a gradient.
        target: the target of the prediction, `(B, ...)`, if the host gives it.
        loss_mask: the weight of each element of the error, in the shape of `target`, if the host gives it.
        reference: the values `(B, columns)` of each signal under the base model at the nearest measured timestep, if a
            mitigation asked for them.
        level: the mean `(B, columns)` of each signal of held-out samples' values, relative to their reference, under
            the present model at the batch's timesteps; it comes with the reference.
        spread: the standard deviation of the same; NaN without evidence (too few visits, or too much noise).
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
        """Compute the entropy of the token attention at each site, `(B, S)` in nats.

        Args:
            tokens: the group of tokens; the partial entropies of `prompt` and `summary` are not renormalized.

        Raises:
            ProbeError: if the places of the group's tokens are not known.
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
                f"The places of {tokens} tokens in the text are not known",
                expected="`prompt_length` for a CLIP text encoder, `prompt_mask` (B, T) for others",
                remedy="put it into the batch, or use the entropy over all tokens",
            )
        return (prompt_tokens if tokens == "prompt" else summary_tokens)(self.prompt_length, count)
