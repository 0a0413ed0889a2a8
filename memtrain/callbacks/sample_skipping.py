"""Sample skipping: flagged samples get no gradient.

Source: skipping by loss is IET-AGC's anti-gradient control (Liu et al., ECCV 2024), and skipping by text-conditional
noise is Wen et al.'s training mitigation (ICLR 2024). Both decide on single visits and absolute values. Here the
monitor decides by evidence over visits, relative to the base model, at a stated false-positive rate.

Cost: none beyond the monitor. Skipped samples still pass through the denoiser, so that the monitor still observes them.
Suggested: `permanent: true`. Cannot: make a model forget the visits before the flag.
"""

from __future__ import annotations

from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation
from memtrain.monitoring.mitigation import Effects


class SampleSkipping(MitigationCallback):
    """Give flagged samples weight 0.

    Args:
        permanent: whether a flagged sample is skipped for the rest of the run, or else only while it is above the
            threshold.
    """

    def __init__(self, permanent: bool = True) -> None:
        self.permanent = permanent

    def effects(self) -> Effects:
        """State that the rule acts on flagged samples only."""
        return Effects(flagged_only=True)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return 0 for flagged samples and 1 for the others, `(B,)`."""
        return 1.0 - (flags.ever if self.permanent else flags.now).float()
