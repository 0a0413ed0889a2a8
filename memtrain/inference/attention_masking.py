"""Attention masking: hide padding tokens and strengthen BOS in cross-attention during sampling.

Source: MemAttn (Ren et al., "Unveiling and Mitigating Memorization in Text-to-Image Diffusion Models through Cross
Attention", ECCV 2024, inference-time mitigation). In every cross-attention and step, the mitigation multiplies the
logit of BOS by `c1` (so a negative logit becomes smaller), and hides padding tokens.

`published=True` follows the published script: the mask also applies to the unconditional half, with the prompt's
length, and EOS stays visible (`hide_eos=True` is its `--mask_length_minis1`). The default changes only conditional
rows, so that classifier-free guidance compares with the model's prediction without a prompt. In both cases the
conditional rows are found for any number of prompts and images. The published code takes every second row. This is
right for one image of one prompt; for more images, it scales unconditional rows in the place of conditional ones.

The mitigation works on pipelines of Stable Diffusion 1.x, 2.x and XL. The length of a prompt is the number of its
tokens with BOS and EOS, after truncation. With two text encoders, whose tokens share positions, it is the length of the
longer text (the tokenizers of SDXL split a text equally, so this matters for `prompt_2` only). The pipeline needs plain
attention processors. LoRA layers are part of the projections and stay active.

Cost: negligible. Suggested: `c1` 1.25. Cannot: work on prompt embeddings, because the lengths of their prompts are not
known. It also cannot hide padding of prompts that fill the text encoder, which have none, nor change the text input of
a ControlNet or the pooled text embedding of SDXL. A probe on the denoiser reads the unmasked attention.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.functional.attention import summary_tokens
from memtrain.inference.base import InferenceMitigation
from memtrain.models.backbones.base import find_backbone, unwrap
from memtrain.models.backbones.cross_attention import CrossAttentionBackbone

PLAIN = (AttnProcessor, AttnProcessor2_0, SlicedAttnProcessor, XFormersAttnProcessor)
"""Processors that only compute plain attention, each in its own way."""


@dataclass(frozen=True)
class AttentionMasking(InferenceMitigation):
    """Masked cross-attention within a context: `with AttentionMasking(c1=1.25)(pipeline): pipeline(prompts)`.

    An instance holds only settings, so it serves several pipelines, also at the same time.

    Attributes:
        c1: the factor on the logit of BOS; 1 leaves the logit unchanged.
        mask: whether to hide padding tokens.
        hide_eos: whether to hide EOS as well, so that all summary tokens are hidden.
        published: whether to mask the unconditional half as well, as in the published code.
    """

    c1: float = 1.25
    _: KW_ONLY
    mask: bool = True
    hide_eos: bool = False
    published: bool = False

    def __post_init__(self) -> None:
        if self.hide_eos and not self.mask:
            raise ConfigurationError(
                "hide_eos=True has no effect with mask=False", expected="mask=True", remedy="leave out one of the two"
            )

    @contextmanager
    def __call__(self, pipeline: Any) -> Iterator[None]:
        """Return a context in which `pipeline` samples with masked attention. Its end always restores the pipeline.

        Raises:
            ConfigurationError: if the pipeline is of another kind, is already masked, or has other attention
                processors. Also at the end of the context, if the pipeline sampled nothing.
            ProbeError: if a cross-attention never ran, at the end of the context.
        """
        backbone, sites = _sites(pipeline)
        processors = {name: site.processor for name, site in sites.items()}
        own = vars(pipeline).get("encode_prompt")
        sampling = _Sampling(self, pipeline, backbone=backbone, silent=set(sites))
        try:
            pipeline.encode_prompt = sampling.listen(pipeline.encode_prompt)
            for name, site in sites.items():
                site.set_processor(_Processor(sampling, name))
            yield
        finally:
            for name, site in sites.items():
                site.set_processor(processors[name])
            if own is None:
                vars(pipeline).pop("encode_prompt", None)
            else:
                pipeline.encode_prompt = own
        if sampling.silent == set(sites):
            raise ConfigurationError(
                "The pipeline sampled nothing inside AttentionMasking",
                expected="a call of the pipeline inside the with statement",
                remedy="call the pipeline there; if its denoiser is compiled, compile it there as well",
            )
        if sampling.silent:
            raise ProbeError(
                f"{len(sampling.silent)} of {len(sites)} cross-attentions never ran masked, "
                f"first {min(sampling.silent)!r}",
                expected="all cross-attentions in every step",
                remedy="use a denoiser with its original blocks",
            )


def _sites(pipeline: Any) -> tuple[CrossAttentionBackbone, dict[str, Any]]:
    """Return the backbone and the cross-attentions of a pipeline that can be masked, by name."""
    unet = getattr(pipeline, "unet", None)
    backbone = find_backbone(unet) if isinstance(unet, nn.Module) else None
    tokenizers = _tokenizers(pipeline)
    clip = bool(tokenizers) and all(tokenizer.bos_token_id is not None for tokenizer in tokenizers)
    known = isinstance(backbone, CrossAttentionBackbone) and backbone.clip_layout
    if not known or not clip or not hasattr(pipeline, "encode_prompt"):
        raise ConfigurationError(
            f"{type(pipeline).__name__} has no cross-attention to CLIP tokens",
            expected="a Stable Diffusion 1.x, 2.x or XL pipeline",
            remedy="use another mitigation",
        )
    assert isinstance(backbone, CrossAttentionBackbone) and isinstance(unet, nn.Module)
    sites: dict[str, Any] = backbone.sites(unwrap(unet))
    if any(isinstance(site.processor, _Processor) for site in sites.values()):
        raise ConfigurationError("This denoiser is already masked", remedy="leave the other context first")
    foreign = {type(site.processor).__name__ for site in sites.values()} - {plain.__name__ for plain in PLAIN}
    if foreign:
        raise ConfigurationError(
            f"The pipeline uses the attention processors {', '.join(sorted(foreign))}, which masking would replace",
            expected="plain attention processors, with or without LoRA",
            remedy="unload the IP adapter, or call set_default_attn_processor() on the denoiser",
        )
    return backbone, sites


def _tokenizers(pipeline: Any) -> list[Any]:
    """Return the tokenizer of each text encoder, in the order in which the pipeline uses them."""
    found = (getattr(pipeline, name, None) for name in ("tokenizer", "tokenizer_2"))
    return [tokenizer for tokenizer in found if tokenizer is not None]


class _Sampling:
    """State of one sampling: the lengths of its prompts, and the changes to its attention."""

    def __init__(
        self, masking: AttentionMasking, pipeline: Any, *, backbone: CrossAttentionBackbone, silent: set[str]
    ) -> None:
        self.masking, self.pipeline, self.backbone, self.silent = masking, pipeline, backbone, silent
        self.lengths: Tensor | None = None
        self.guided = False
        self.prepared: dict[tuple[Any, ...], tuple[Tensor, Tensor | None]] = {}

    def listen(self, encode: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the pipeline's encode_prompt, to record the prompts' lengths."""
        signature = inspect.signature(encode)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            given = signature.bind(*args, **kwargs)
            given.apply_defaults()
            if given.arguments["prompt"] is None:
                raise ConfigurationError(
                    "AttentionMasking cannot find the lengths of prompts from their embeddings",
                    expected="prompts as text",
                    remedy="pass `prompt` instead of `prompt_embeds`",
                )
            lengths = self._prompt_lengths(given.arguments["prompt"], given.arguments.get("prompt_2"))
            self.lengths = lengths.repeat_interleave(int(given.arguments["num_images_per_prompt"]))
            self.guided = bool(given.arguments["do_classifier_free_guidance"])
            self.prepared.clear()
            return encode(*args, **kwargs)

        return wrapped

    def _prompt_lengths(self, *texts: str | list[str] | None) -> Tensor:
        """Return the number of tokens with BOS and EOS, `(P,)`; the longest of several texts of a prompt counts."""
        lengths = []
        for text, tokenizer in zip(texts, _tokenizers(self.pipeline), strict=False):
            prompts = text or texts[0]
            # A concept learned by textual inversion may stand for several tokens.
            if hasattr(self.pipeline, "maybe_convert_prompt"):
                prompts = self.pipeline.maybe_convert_prompt(prompts, tokenizer)
            listed = [prompts] if isinstance(prompts, str) else list(prompts or ())
            encoded = tokenizer(listed, truncation=True, max_length=tokenizer.model_max_length)["input_ids"]
            lengths.append(torch.tensor([len(ids) for ids in encoded]))
        return torch.stack(lengths).amax(dim=0)

    def modify(self, name: str, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return keys `(B, H, T, D)` with a stronger BOS, and the bias `(B, 1, 1, T)` that hides tokens.

        Raises:
            ConfigurationError: if B fits neither the images nor, with guidance, twice their number.
        """
        self.silent.discard(name)
        kind = (len(key), key.shape[2], key.device, key.dtype)
        if kind not in self.prepared:
            self.prepared[kind] = self._prepare(key)
        factor, bias = self.prepared[kind]
        # The logit is linear in the key, so scaling the key of BOS scales its logit.
        return key * factor, bias

    def _prepare(self, key: Tensor) -> tuple[Tensor, Tensor | None]:
        """Make the factors `(B, 1, T, 1)` on the keys, and the bias; all steps and sites of one kind share them."""
        images = 0 if self.lengths is None else len(self.lengths)
        expected = images * (2 if self.guided else 1)
        if self.lengths is None or len(key) != expected:
            raise ConfigurationError(
                f"The denoiser ran on {len(key)} rows for {images} images",
                expected=f"{expected} rows",
                remedy="call the whole pipeline inside the with statement, one call at a time",
            )
        conditional = torch.arange(len(key)) >= len(key) - images
        factor = torch.ones(len(key), key.shape[2])
        factor[conditional, 0] = self.masking.c1
        factor = factor.to(key)[:, None, :, None]
        if not self.masking.mask:
            return factor, None
        lengths = self.lengths.repeat(len(key) // images)
        hidden = summary_tokens(lengths if self.masking.hide_eos else lengths + 1, key.shape[2])
        if not self.masking.published:
            hidden &= conditional[:, None]
        return factor, torch.zeros(hidden.shape).masked_fill(hidden, -torch.inf).to(key)[:, None, None]


class _Processor:
    """Processor of a cross-attention that uses the sampling's keys and bias."""

    def __init__(self, sampling: _Sampling, name: str) -> None:
        self.sampling, self.name = sampling, name

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **kwargs: Any,
    ) -> Tensor:
        tokens = 0 if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        arguments = {"encoder_hidden_states": encoder_hidden_states}
        projection = self.sampling.backbone.project(attn, (hidden_states,), arguments, tokens=tokens)
        key, bias = self.sampling.modify(self.name, projection.key)
        if attention_mask is not None:
            bias = attention_mask[:, None] if bias is None else bias + attention_mask[:, None]
        value = attn.to_v(projection.text_states)
        value = value.view(*value.shape[:2], attn.heads, -1).transpose(1, 2)
        result = F.scaled_dot_product_attention(projection.query, key, value, attn_mask=bias)
        output: Tensor = attn.to_out[1](attn.to_out[0](result.transpose(1, 2).flatten(2)))
        if attn.residual_connection:
            output = output + hidden_states
        return output / attn.rescale_output_factor
