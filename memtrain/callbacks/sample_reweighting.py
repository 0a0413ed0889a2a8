"""Sample reweighting: a sample counts less, the closer it is to a flag.

This method is ours, a soft form of sample skipping. The weight is 1 up to `start` of the threshold, falls linearly from
there, and stays at `floor` from the threshold on. It acts before the evidence suffices for a flag, and takes less from
a sample that comes close to a flag by chance. A single noisy visit has no effect, because a sample with fewer than the
monitor's `minimum_visits` has weight 1 at any score.

Cost: none beyond the monitor. Suggested: the defaults. Cannot: act before the monitor has a threshold and the sample
has enough visits.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.errors import ConfigurationError
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation


class SampleReweighting(MitigationCallback):
    """Weights that fall with the accumulated evidence.

    Args:
        start: share of the threshold at which the weight begins to fall.
        floor: weight from the threshold on.
    """

    def __init__(self, start: float = 0.5, floor: float = 0.0) -> None:
        if not 0 <= start < 1 or not 0 <= floor < 1:
            raise ConfigurationError(
                f"start={start}, floor={floor}", expected="both from 0 to below 1", remedy="set such values"
            )
        self.start, self.floor = start, floor

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return weights from 1 down to `floor`, `(B,)`; 1 without a threshold or with too few visits."""
        if not math.isfinite(flags.threshold) or flags.threshold <= 0:
            return torch.ones_like(flags.score)
        done = (flags.score / flags.threshold - self.start) / (1 - self.start)
        lost = (1 - self.floor) * done.clamp(0, 1)
        return 1 - (lost if flags.ready is None else lost * flags.ready)
