"""Attention masking: hide summary tokens and strengthen BOS in cross-attention while sampling.

Source: MemAttn (Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross
Attention", ECCV 2024, inference-time mitigation). In every cross-attention and step the logit of BOS is multiplied by
`c1` (so a negative one becomes smaller), and padding tokens are hidden.

`reference=True` does as the published script: the mask also applies to the unconditional half, with the prompt's
length, and EOS stays visible (`hide_eos=True` is its `--mask_length_minis1`). By default only conditional rows are
touched, so that classifier-free guidance compares with what the model does without a prompt. Either way the conditional
rows are found for any number of prompts and images; the published code finds them for one image of one prompt.

Works on pipelines of Stable Diffusion 1.x, 2.x and XL. Cost: nothing to speak of. Suggested: `c1` 1.25. Cannot: work on
prompt embeddings, because the prompts' lengths are not known then.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.functional.attention import summary_tokens
from memtrain.models.backbones.base import find_backbone
from memtrain.models.backbones.cross_attention import CrossAttentionBackbone


class AttentionMasking:
    """A context in which a pipeline samples with masked cross-attention.

    Use as `with AttentionMasking(c1=1.25)(pipeline): pipeline(prompts)`. Afterwards the pipeline is as it was.

    Args:
        c1: factor on the logit of BOS; 1 leaves it alone.
        mask: hide padding tokens.
        hide_eos: hide EOS too, that is, all summary tokens.
        reference: mask the unconditional half too, as published.
    """

    def __init__(self, c1: float = 1.25, *, mask: bool = True, hide_eos: bool = False, reference: bool = False) -> None:
        self.c1, self.mask, self.hide_eos, self.reference = c1, mask, hide_eos, reference
        self._pipeline: Any = None
        self._processors: dict[str, Any] = {}
        self._lengths: Tensor | None = None
        self._guided = False
        self._used = False

    def __call__(self, pipeline: Any) -> AttentionMasking:
        """Choose the pipeline.

        Raises:
            ConfigurationError: if its denoiser has no cross-attention that is known, or it is masked already.
        """
        backbone = find_backbone(pipeline.unet) if hasattr(pipeline, "unet") else None
        if not isinstance(backbone, CrossAttentionBackbone) or not backbone.clip_layout:
            raise ConfigurationError(
                f"{type(pipeline).__name__} has no cross-attention to CLIP tokens",
                expected="a Stable Diffusion 1.x, 2.x or XL pipeline",
                remedy="use another mitigation",
            )
        if "encode_prompt" in vars(pipeline):
            raise ConfigurationError("This pipeline is masked already", remedy="leave the other context first")
        self._backbone, self._pipeline = backbone, pipeline
        return self

    def __enter__(self) -> AttentionMasking:
        if self._pipeline is None:
            raise ConfigurationError(
                "AttentionMasking without a pipeline", remedy="with AttentionMasking()(pipeline): ..."
            )
        unet = self._pipeline.unet
        self._processors, self._used = unet.attn_processors, False
        sites = {f"{name}.processor" for name in self._backbone.sites(unet)}
        ours = {name: _Processor(self) if name in sites else old for name, old in self._processors.items()}
        self._pipeline.encode_prompt = self._encode(self._pipeline.encode_prompt)
        unet.set_attn_processor(ours)
        return self

    def __exit__(self, kind: type[BaseException] | None, *exception: object) -> None:
        pipeline, self._pipeline = self._pipeline, None
        pipeline.unet.set_attn_processor(self._processors)
        del pipeline.encode_prompt
        if kind is None and not self._used:
            raise ConfigurationError(
                "Nothing was sampled inside AttentionMasking",
                expected="a call of the pipeline it was given",
                remedy="call that pipeline inside the with statement",
            )

    def _encode(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """The pipeline's encode_prompt, which also tells the prompts' lengths."""
        signature = inspect.signature(encode)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            prompts = given.arguments["prompt"]
            if prompts is None:
                raise ConfigurationError(
                    "AttentionMasking cannot tell the lengths of prompts from their embeddings",
                    expected="prompts as text",
                    remedy="pass `prompt` instead of `prompt_embeds`",
                )
            tokens = self._pipeline.tokenizer(
                [prompts] if isinstance(prompts, str) else list(prompts),
                padding="max_length",
                truncation=True,
                max_length=self._pipeline.tokenizer.model_max_length,
                return_tensors="pt",
            )
            lengths = tokens["attention_mask"].sum(dim=1)
            self._lengths = lengths.repeat_interleave(int(given.arguments["num_images_per_prompt"]))
            self._guided = bool(given.arguments["do_classifier_free_guidance"])
            return encode(*args, **kwargs)

        return wrapped

    def modify(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """Keys `(B, H, T, D)` with BOS strengthened, and the bias `(B, 1, 1, T)` that hides tokens.

        Raises:
            ConfigurationError: if B fits neither the images nor, with guidance, twice their number.
        """
        self._used = True
        images = 0 if self._lengths is None else len(self._lengths)
        expected = images * (2 if self._guided else 1)
        if self._lengths is None or len(key) != expected:
            raise ConfigurationError(
                f"The denoiser ran on {len(key)} rows for {images} images",
                expected=f"{expected} rows",
                remedy="call the whole pipeline inside the with statement, one at a time",
            )
        conditional = torch.arange(len(key), device=key.device) >= len(key) - images
        factor = torch.where(conditional, self.c1, 1.0).to(key)
        # The logit is linear in the key: scaling the key of BOS scales its logit.
        first = torch.arange(key.shape[2], device=key.device) == 0
        key = torch.where(first[:, None], key * factor[:, None, None, None], key)
        if not self.mask:
            return key, None
        lengths = self._lengths.to(key.device).repeat(len(key) // images)
        hidden = summary_tokens(lengths if self.hide_eos else lengths + 1, key.shape[2])
        if not self.reference:
            hidden = hidden & conditional[:, None]
        return key, torch.zeros_like(hidden, dtype=key.dtype).masked_fill(hidden, -torch.inf)[:, None, None]


class _Processor:
    """A cross-attention with the masking's keys and bias."""

    def __init__(self, masking: AttentionMasking) -> None:
        self.masking = masking

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        assert encoder_hidden_states is not None
        arguments = {"encoder_hidden_states": encoder_hidden_states, "attention_mask": attention_mask}
        tokens = encoder_hidden_states.shape[1]
        projection = self.masking._backbone.project(attn, (hidden_states,), arguments, tokens=tokens)
        key, bias = self.masking.modify(projection.key)
        value = attn.to_v(encoder_hidden_states)
        value = value.view(*value.shape[:2], attn.heads, -1).transpose(1, 2)
        result = F.scaled_dot_product_attention(projection.query, key, value, attn_mask=bias)
        output: Tensor = attn.to_out[0](result.transpose(1, 2).flatten(2))
        return output / attn.rescale_output_factor
