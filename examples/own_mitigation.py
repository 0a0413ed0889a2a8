r"""A mitigation of your own, in a file of your own: flagged samples teach less, the more often they came.

    PYTHONPATH=examples memtrain train --config tiny_baseline --config examples/own_mitigation.yaml \
        --trust own_mitigation

A configuration may name classes of memtrain, Lightning and torch. `--trust` allows a module of yours, and `PYTHONPATH`
is where Python finds it. The class says what it does to a batch and returns a weight for each sample. The engine
multiplies the weights of all mitigations at the denoiser's output, so the rule is exact on several processes too, and
knows nothing of the trainer. CONTRIBUTING.md has the rest of what a mitigation may do.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.monitoring.mitigation import Effects


class FadingSamples(MitigationCallback):
    """Give a flagged sample less weight, the more often its picture was visited.

    Args:
        half: the number of visits after which the weight of a flagged sample is halved, and halved again.
    """

    def __init__(self, half: float = 4.0) -> None:
        self.half = half

    def effects(self) -> Effects:
        """Samples that are not flagged keep their weight."""
        return Effects(flagged_only=True)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """1 for samples that are not flagged, and less with each visit for the others, `(B,)`."""
        # `flags` is the same on every process and after a resume, so this rule needs no state of its own.
        visits = torch.tensor(flags.visits(flags.keys), dtype=torch.float32, device=flags.score.device)
        return torch.where(flags.ever, 0.5 ** (visits / self.half), 1.0)
