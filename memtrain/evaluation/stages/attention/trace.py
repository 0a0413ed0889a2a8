"""Attention of text tokens during sampling, step by step.

The token attention of each site is kept for every denoiser call, `(B, sites, T)`. It takes 5 KB per image and step for
the 16 sites and 77 tokens of Stable Diffusion; all maps of the image tokens would take 66 MB. Averages follow MemAttn's
order (Ren et al., ECCV 2024): over image tokens, heads and sites, then the entropy, then over the images of a prompt.
Cost: none beyond sampling.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.parts import Done, Parts
from memtrain.functional.attention import entropy, partial_entropy, summary_tokens
from memtrain.models.backbones.base import find_backbone
from memtrain.models.stock_pipeline import denoiser_of

KEPT = ("attention", "entropy", "summary_entropy")
"""Names of the tensors kept for a batch of prompts."""


@dataclass(frozen=True)
class AttentionTrace:
    """Attention of P prompts over S sampling steps.

    Attributes:
        attention: the attention that each token receives, averaged over sites and images, `(P, S, T)`.
        entropy: the entropy of the average over sites, over all tokens, in nats, as a mean over images, `(P, S)`.
        summary_entropy: the part of EOS and padding in the entropy, `(P, S)`.
        lengths: the numbers of tokens of the prompts with BOS and EOS, `(P,)`.
    """

    attention: Tensor
    entropy: Tensor
    summary_entropy: Tensor
    lengths: Tensor


class TokenAttention(Detector):
    """Detector that keeps the token attention of every site and call; its score is the entropy of the average."""

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "none beyond sampling"
    needs: ClassVar[frozenset[str]] = frozenset({"token_attention"})

    @property
    def name(self) -> str:
        """`token_attention`."""
        return "token_attention"

    def read(self, step: DenoiserStep) -> Tensor:
        """Return the token attention of all sites, `(B, sites, T)`."""
        assert step.token_attention is not None  # the sampler checks `needs`
        return torch.stack(list(step.token_attention.values()), dim=1)

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, S, sites, T)`."""
        return entropy(readings.mean(dim=(2, 3)))


def trace_attention(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    sampling: Sampling | None = None,
    seeds: Sequence[int | None] | None = None,
    keep: Callable[[int, Tensor], None] | None = None,
    parts: Parts | None = None,
) -> AttentionTrace:
    """Sample prompts, and keep the attention of their tokens.

    Args:
        pipeline: a pipeline of Stable Diffusion 1.x, 2.x or XL.
        prompts: the P prompts.
        sampling: the settings of the sampling.
        seeds: the first seed of each prompt; None for that of the sampling. The further seeds keep their distance to
            the first. Prompts with different first seeds are not sampled together.
        keep: a function of the place of each prompt and its readings `(K, S, sites, T)`, with sites in the order of the
            denoiser's calls.
        parts: the units that keep the readings of each batch and share the work; None to keep none.

    Raises:
        ConfigurationError: if there are no prompts, or tokens are not laid out as `BOS words EOS padding`.
    """
    backbone = find_backbone(denoiser_of(pipeline))
    if backbone is None or not backbone.clip_layout or not prompts:
        raise ConfigurationError(
            f"There is no attention to trace for {len(prompts)} prompts and {type(pipeline).__name__}",
            expected="at least one prompt, and a Stable Diffusion 1.x, 2.x or XL pipeline, whose tokens are "
            "BOS, words, EOS and padding",
            remedy="name such a pipeline",
        )
    lengths = prompt_lengths(pipeline, prompts)
    sampling = sampling or Sampling()

    def read(start: int, stop: int, used: Sampling) -> Done:
        reader = TokenAttention()
        readings = read_prompts_with(pipeline, prompts[start:stop], [reader], sampling=used.quiet)
        for place, own in enumerate(readings[reader.name]):
            if keep is not None:
                keep(start + place, own)
        average = readings[reader.name].mean(dim=3)
        summary = summary_tokens(lengths[start:stop], average.shape[-1])[:, None, None]
        entropies = entropy(average), partial_entropy(average, summary)
        kept = average.mean(dim=1), entropies[0].mean(dim=1), entropies[1].mean(dim=1)
        return Done(dict(zip(KEPT, kept, strict=True)))

    batches = _batches(len(prompts), seeds, sampling)
    units = {f"prompts-{start:06d}": partial(read, start, stop, used) for start, stop, used in batches}
    with tempfile.TemporaryDirectory(prefix="memtrain-attention-") as temporary:
        parts = parts or Parts(Path(temporary), {}, progress=sampling.progress)
        parts.share(units, what="batches of prompts")
        found = [parts.read(name).tensors for name in units]
    attention, whole, part = (torch.cat([one[name] for one in found]) for name in KEPT)
    return AttentionTrace(attention=attention, entropy=whole, summary_entropy=part, lengths=lengths)


def _batches(count: int, seeds: Sequence[int | None] | None, sampling: Sampling) -> list[tuple[int, int, Sampling]]:
    """Return start, stop and settings of each batch of prompts."""
    first = sampling.seeds[0]
    own = [first if seed is None else seed for seed in seeds or [None] * count]
    found, start = [], 0
    while start < count:
        stop = start + 1
        while stop < min(count, start + sampling.prompts_at_once) and own[stop] == own[start]:
            stop += 1
        shifted = [seed - first + own[start] for seed in sampling.seeds]
        found.append((start, stop, replace(sampling, seeds=shifted)))
        start = stop
    return found
