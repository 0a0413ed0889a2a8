"""Extraction: training pictures that come back for their captions, and for prompts of no training picture.

Figure by prompt: the share of prompts with a copy of their own picture among their K generations. Figure without a
prompt: the number of different training pictures among generations for the empty prompt, or for captions of no training
picture, also per thousand generations.
Source: Carlini et al., "Extracting Training Data from Diffusion Models" (USENIX Security 2023), §4 (by prompt; Stable
Diffusion) and §5 (unconditional; CIFAR-10: 2^20 generations brought out 1,280 images). Chao,
"Nonparametric estimation of the number of classes in a population", 1984, for a lower bound of the number of pictures
that can come back. Good, "The population frequencies of species", 1953, for the probability that a further copy is of
another picture.
Cost: none beside the sampling. The share by prompt grows with K, and the number of pictures without a prompt grows with
the number of generations. The results hold both numbers.
Cannot: bound the pictures that another sampler, guidance or a thousand times as many generations would bring back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import Compared
from memtrain.evaluation.stages.measure.counting.shares import copies, counted, share_of_generations


def extraction_by_prompt(
    compared: Compared, threshold: float, *, trained: Tensor | None = None, level: float = 0.95
) -> dict[str, Any]:
    """Count the prompts that bring back their own picture.

    Args:
        compared: the similarities of P prompts with K generations.
        threshold: the similarity above which a prompt counts as reproduced.
        trained: the prompts whose picture was trained on, `(P,)` bool; by default all.
        level: the coverage of the intervals.

    Returns:
        `n` (prompts), `extracted`, `share`, `interval`, `generations` (of each prompt), `of_generations` (share of the
        generations that are copies of the own picture), and `by_attempts`: the expected share of prompts with a copy
        among 1, 2, 4, ... K random generations (a list of `generations` and `share`).
    """
    rows = torch.ones(len(compared.own), dtype=torch.bool) if trained is None else trained
    yes = copies(compared.own[rows], threshold)
    summary = counted(int(yes.any(dim=1).sum()), len(yes), name="extracted", level=level)
    summary["generations"] = yes.shape[1]
    summary["of_generations"] = share_of_generations(yes, level=level)
    summary["by_attempts"] = []
    attempts = 1
    while len(yes) and attempts <= yes.shape[1]:
        share = 1 - _none_among(yes.sum(dim=1), yes.shape[1], attempts).mean()
        summary["by_attempts"].append({"generations": attempts, "share": float(share)})
        attempts = attempts * 2 if attempts * 2 <= yes.shape[1] or attempts == yes.shape[1] else yes.shape[1]
    return summary


def unconditional_extraction(
    nearest: Tensor, nearest_index: Tensor, threshold: float, *, names: Sequence[str], level: float = 0.95
) -> dict[str, Any]:
    """Count the training pictures that come back for prompts of no training picture.

    Args:
        nearest: the similarity to the most similar training picture, `(P, K)`, of K generations for each of P prompts
            of no training picture; `(1, K)` for the empty prompt.
        nearest_index: the index of this training image, `(P, K)`.
        threshold: the similarity above which a generation counts as a copy.
        names: the M names of the pictures that the training images belong to.
        level: the coverage of the interval.

    Returns:
        `n` (generations), `copies`, `share`, `interval`, `prompts`, `effective_n`, `distinct` (training pictures) and
        `per_thousand` (training pictures per thousand generations). Also `most` (the most frequent picture and its
        count), `next_is_new` (probability that the next copy is of another picture) and `at_least` (lower bound of the
        number of pictures that can come back). These three are None without a copy. For one prompt the generations are
        independent trials.
    """
    yes = copies(nearest, threshold)
    trials = yes.view(-1, 1) if len(yes) == 1 else yes
    summary = {**share_of_generations(trials, level=level), "prompts": len(yes)}
    often = Counter(names[index] for index in nearest_index[yes].tolist())
    found, n = sum(often.values()), yes.numel()
    once, twice = (sum(count == times for count in often.values()) for times in (1, 2))
    summary |= {
        "distinct": len(often),
        "per_thousand": 1000 * len(often) / n if n else None,
        "most": None,
        "next_is_new": None,
        "at_least": None,
    }
    if found:
        name, count = often.most_common(1)[0]
        # Chao's estimate with the correction for bias, which is also defined if no picture came back twice.
        at_least = len(often) + (found - 1) / found * once * (once - 1) / (2 * (twice + 1))
        summary |= {"most": {"name": name, "copies": count}, "next_is_new": once / found, "at_least": at_least}
    return summary


def _none_among(copied: Tensor, seeds: int, attempts: int) -> Tensor:
    """Return the probability `(P,)` that `attempts` random ones of `seeds` generations hold no copy."""
    probability = torch.ones(len(copied), dtype=torch.float64)
    for taken in range(attempts):
        probability *= ((seeds - copied - taken).clamp(min=0) / (seeds - taken)).double()
    return probability
