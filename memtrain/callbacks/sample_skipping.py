"""Sample skipping: flagged samples get no gradient.

Source: skipping by loss is IET-AGC's anti-gradient control (Liu et al., ECCV 2024), skipping by text-conditional noise
Wen et al.'s training mitigation (ICLR 2024); both decide on single visits and absolute values. Here the decision is the
monitor's: evidence over visits, relative to the base model, at a stated false-positive rate.

Cost: none beyond the monitor; skipped samples still pass through the denoiser, so that they stay observed.
Suggested: `permanent: true`. Cannot: make a model forget what it had learnt before the flag.
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
        permanent: once flagged, a sample is skipped from then on; otherwise only while it is above the threshold.
    """

    def __init__(self, permanent: bool = True) -> None:
        self.permanent = permanent

    def effects(self) -> Effects:
        """It acts on flagged samples alone."""
        return Effects(flagged_only=True)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """0 for flagged samples, 1 for the others, `(B,)`."""
        return 1.0 - (flags.ever if self.permanent else flags.now).float()
