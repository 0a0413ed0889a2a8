"""Share of generations that are copies of any training picture.

Method: a generation counts as a copy if its similarity to the most similar training picture exceeds the threshold, for
any prompt. So a picture that comes back for another caption is counted here.
Source: Dar et al., "Unconditional latent diffusion models memorize patient imaging data" (arXiv 2402.01054; Nature
Biomedical Engineering 2025): N_copies, the share of synthetic samples whose correlation with a training sample lies
above a threshold, and N_mem, the share of training samples that have such a copy. Their threshold is the 95th
percentile, over training samples, of the correlation with the closest validation sample (:func:`published_threshold`).
Trap: this threshold has no known false-positive rate. It is a quantile over training samples of a maximum over
validation samples, but a generation has its maximum over training samples. With more training than validation samples,
more than 5 % of innocent generations exceed the threshold. The default threshold is calibrated on the training pictures
nearest to generations for held-out prompts. Both are shown.
Cannot: tell a copy from a training picture with an unknown near-duplicate.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import Compared
from memtrain.evaluation.stages.measure.counting.shares import copies, share_of_generations


def published_threshold(train_to_heldout: Tensor, *, quantile: float = 0.95) -> float:
    """Return Dar et al.'s threshold.

    Args:
        train_to_heldout: the similarity of each training picture to the most similar held-out picture, `(M,)`.
        quantile: the quantile of the threshold; 0.95 in the paper.
    """
    return float(torch.quantile(train_to_heldout.double(), quantile))


def count_generations(
    compared: Compared,
    threshold: float,
    *,
    names: Sequence[str],
    among: Tensor | None = None,
    total: int | None = None,
    level: float = 0.95,
) -> dict[str, Any]:
    """Count the generations that are copies of a training picture.

    Args:
        compared: the similarities of P prompts with K generations.
        threshold: the similarity to the nearest training picture above which a generation counts as a copy.
        names: the M names of the pictures that the training images belong to, in the order of
            `compared.nearest_index`.
        among: the prompts that count, `(P,)` bool; by default all.
        total: the number of training pictures, for their share; by default the number of different `names`.
        level: the coverage of the interval.

    Returns:
        `n` (generations), `copies`, `share`, `interval`, `prompts`, `effective_n`, `of_other_pictures` (copies of a
        picture that is not the prompt's own), and `pictures`: the number of different training pictures that came back
        (`distinct`, `n` and `share`). This share has no interval, because more generations bring back more pictures.
    """
    rows = torch.ones(len(compared.own), dtype=torch.bool) if among is None else among
    yes = copies(compared.nearest[rows], threshold)
    summary = share_of_generations(yes, level=level)
    summary["threshold"] = threshold
    summary["of_other_pictures"] = int((yes & ~copies(compared.own[rows], threshold)).sum())
    came = {names[index] for index in compared.nearest_index[rows][yes].tolist()}
    n = total if total is not None else len(set(names))
    summary["pictures"] = {"distinct": len(came), "n": n, "share": len(came) / n if n else None}
    return summary
