"""What text tokens receive of the attention while prompts are sampled, step by step.

Of every denoiser call the token attention of each site is kept, `(B, sites, T)`: 5 KB per image and step for the 16
sites and 77 tokens of Stable Diffusion, where all maps of the image tokens are 66 MB. Averages are in MemAttn's order
(Ren et al., ECCV 2024): over image tokens, heads and sites, then the entropy; then over the images of a prompt.
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
"""What is kept of a batch of prompts."""


@dataclass(frozen=True)
class AttentionTrace:
    """The course of P prompts over S sampling steps.

    Attributes:
        attention: `(P, S, T)` what each token receives, averaged over sites and images.
        entropy: `(P, S)` of the average over sites, over all tokens, in nats; mean over images.
        summary_entropy: `(P, S)` the part of EOS and padding.
        lengths: `(P,)` tokens of the prompts with BOS and EOS.
    """

    attention: Tensor
    entropy: Tensor
    summary_entropy: Tensor
    lengths: Tensor


class TokenAttention(Detector):
    """Keeps the token attention of every site and call; its score is the entropy of their average."""

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "none beyond sampling"
    needs: ClassVar[frozenset[str]] = frozenset({"token_attention"})

    @property
    def name(self) -> str:
        """`token_attention`."""
        return "token_attention"

    def read(self, step: DenoiserStep) -> Tensor:
        """`(B, sites, T)`."""
        assert step.token_attention is not None  # the sampler checks `needs`
        return torch.stack(list(step.token_attention.values()), dim=1)

    def score_images(self, readings: Tensor) -> Tensor:
        """`(P, K)` from readings `(P, K, S, sites, T)`."""
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
    """Sample prompts, and keep what their tokens receive.

    Args:
        pipeline: of Stable Diffusion 1.x, 2.x or XL.
        prompts: P prompts.
        sampling: the settings.
        seeds: P first seeds of their own, None for that of the sampling; the further seeds are as far from the first.
            Prompts of different first seeds are not sampled at once.
        keep: is given the place of each prompt and its readings `(K, S, sites, T)`, sites in the order in which the
            denoiser calls them.
        parts: keep the readings of each batch, and share the work; None to keep none.

    Raises:
        ConfigurationError: if there is no prompt, or tokens are not laid out as `BOS words EOS padding`.
    """
    backbone = find_backbone(denoiser_of(pipeline))
    if backbone is None or not backbone.clip_layout or not prompts:
        raise ConfigurationError(
            f"No attention to trace: {len(prompts)} prompts, {type(pipeline).__name__}",
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
    """Where each batch of prompts starts and stops, and how it is sampled."""
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
