"""Are held-out pictures that somebody chose of the same kind as the training pictures? Else they say nothing of chance.

Generations for held-out captions are held against held-out pictures. Where these are of another kind than what the
model learned, its generations are far from them for that reason alone, the threshold is too easy to reach, and pictures
that merely look like training pictures count as copies. So such pictures prove nothing, and clear nothing. A random
part of the data is of the same kind by the way that it was chosen, and is not asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from memtrain.evaluation.measures.kind import of_one_kind
from memtrain.evaluation.stages.measure.verdict import HELDOUT_DIFFERS, Reason
from memtrain.evaluation.stages.run_samples import RunSamples

SURE = 0.01
"""p-value up to which kinds differ."""
FAR = 0.03
"""Distance from which on a difference matters; of very many pictures the smallest one is sure."""
FEWEST = 8
"""Pictures of each set that can be told apart."""


def heldout_differs(samples: RunSamples, held: Tensor) -> list[Reason]:
    """Why the held-out pictures cannot say what comes by chance; empty if they can, or are a part of the data.

    Args:
        samples: P prompts, and the training pictures.
        held: `(P,)` bool, the held-out prompts.
    """
    if not _chosen(samples.config or {}) or min(int(held.sum()), len(samples.usual_images)) < FEWEST:
        return []
    apart, probability = of_one_kind(samples.usual_images, samples.own_images[held])
    if probability > SURE or apart < FAR:
        return []
    return [
        Reason(
            HELDOUT_DIFFERS,
            f"the {int(held.sum())} held-out pictures look unlike the training pictures (chance makes sets of one kind "
            f"differ as much with a probability of {probability:.3f}), so what comes by chance is not known, and what "
            "looks like a copy may only be of the same kind",
            "hold out pictures of the same kind: of the same source, size and style; or leave --heldout out",
        )
    ]


def _chosen(config: Mapping[str, Any]) -> bool:
    """Whether the held-out pictures come from elsewhere than the training pictures."""
    data = config.get("data")
    options = data.get("init_args") or {} if isinstance(data, Mapping) else {}
    return bool(config.get("heldout") or options.get("heldout_path"))
