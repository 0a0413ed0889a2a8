"""Check that held-out pictures chosen by the user are of the same kind as the training pictures.

Generations for held-out captions are compared with held-out pictures. If these are of another kind than the training
pictures, the generations are far from them for this reason alone. The threshold is then too easy to reach, and pictures
that only look like training pictures count as copies. So such a threshold proves nothing, and cannot clear the model. A
random part of the data is of the same kind by construction, and is not checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from memtrain.evaluation.measures.kind import of_one_kind
from memtrain.evaluation.stages.measure.verdict import HELDOUT_DIFFERS, Reason
from memtrain.evaluation.stages.run_samples import RunSamples

SURE = 0.01
"""Largest p-value at which kinds count as different."""
FAR = 0.03
"""Smallest distance that matters; with very many pictures, even the smallest difference has a small p-value."""
FEWEST = 8
"""Smallest number of pictures of each set for the check."""


def heldout_differs(samples: RunSamples, held: Tensor) -> list[Reason]:
    """Give a reason if the held-out pictures look unlike the training pictures, unless they are a part of the data.

    Args:
        samples: the samples of P prompts, and the training pictures.
        held: the held-out prompts, `(P,)` bool.
    """
    if not _chosen(samples.config or {}) or min(int(held.sum()), len(samples.usual_images)) < FEWEST:
        return []
    apart, probability = of_one_kind(samples.usual_images, samples.own_images[held])
    if probability > SURE or apart < FAR:
        return []
    return [
        Reason(
            HELDOUT_DIFFERS,
            f"the {int(held.sum())} held-out pictures look unlike the training pictures (sets of one kind differ as "
            f"much with a probability of {probability:.3f}), so the false-positive rate is not known, and pictures "
            "that look like copies may only be of the same kind",
            "hold out pictures of the same source, size and style, or leave out --heldout",
        )
    ]


def _chosen(config: Mapping[str, Any]) -> bool:
    """Whether the held-out pictures come from another place than the training pictures."""
    data = config.get("data")
    options = data.get("init_args") or {} if isinstance(data, Mapping) else {}
    return bool(config.get("heldout") or options.get("heldout_path"))
