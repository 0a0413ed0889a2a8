"""Share of generations that are copies of any training picture.

What: a generation counts as a copy if the most alike of all training pictures, whichever prompt asked for it, is more
alike than the threshold. So a picture that comes back under another caption is counted here.
Source: Dar et al., "Unconditional latent diffusion models memorize patient imaging data" (arXiv 2402.01054; Nature
Biomedical Engineering 2025): N_copies, the share of synthetic samples whose correlation with a
training sample lies above a threshold, and N_mem, the share of training samples that have such a copy. Their threshold
is the 95th percentile, over training samples, of the correlation with the closest validation sample
(:func:`published_threshold`).
Trap: that threshold promises no rate. It is a quantile over training samples of a maximum over validation samples,
while a generation has its maximum over training samples: with more training than validation samples, more than 5 % of
innocent generations lie above. The default is a threshold calibrated on the nearest of all training pictures to
generations for held-out prompts, and both are shown.
Cannot: tell a copy from a training picture that has a near twin nobody knows of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import Compared
from memtrain.evaluation.stages.measure.counting.shares import copies, share_of_generations


def published_threshold(train_to_heldout: Tensor, *, quantile: float = 0.95) -> float:
    """Dar et al.'s threshold.

    Args:
        train_to_heldout: `(M,)` similarity of each training picture to the most alike held-out one.
        quantile: theirs is 0.95.
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
    """The share of generations that are copies of a training picture.

    Args:
        compared: P prompts with K generations.
        threshold: similarity to the nearest training picture above which a generation counts as a copy.
        names: M names of the pictures that the training images belong to, as `compared.nearest_index` counts them.
        among: `(P,)` bool, the prompts that count; by default all.
        total: training pictures, for their share; by default the different `names`.
        level: coverage of the interval.

    Returns:
        `n` generations, `copies`, `share`, `interval`, `prompts`, `effective_n`; `of_other_pictures`, the copies whose
        picture is not the prompt's own; `pictures`: how many different training pictures came out, as `distinct`, `n`
        and `share` (a share without an interval: more generations bring out more).
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
