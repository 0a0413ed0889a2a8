"""Guidance-norm skipping: a visit gets no gradient if its caption changes the prediction too much.

Source: the training-time mitigation of Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion
Models" (ICLR 2024). Samples with a text-conditional noise (see :func:`memtrain.functional.guidance.guidance_norm`) at
or above a threshold leave the mini-batch, and its loss becomes the mean over the others. As published, the rule decides
on single visits, and one threshold serves all timesteps. The published threshold, 2, is for 512-pixel Stable Diffusion.
The size of the norm depends on the model, its latents and the timestep, so another model needs another threshold. If no
sample of a batch is kept, the published code skips the optimizer step, and several processes would wait for each other.
This code takes the step with a gradient of zero.

Cost: a forward pass without gradients in every batch. Suggested: `published: wen2024` for 512-pixel Stable Diffusion;
otherwise a `threshold` above the norms that `memtrain measure` finds for held-out prompts. Cannot: name samples. The
monitor's evidence does.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from memtrain.callbacks.mitigation import MitigationCallback
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evidence.flags import Flags
from memtrain.functional.guidance import guidance_norm
from memtrain.models.observation import Observation
from memtrain.monitoring.mitigation import Effects, Needs

THRESHOLDS = {"wen2024": 2.0}
"""Published thresholds."""


class GuidanceNormSkipping(MitigationCallback):
    """Skip visits by their text-conditional noise.

    Args:
        published: the paper whose threshold is used; with None, `threshold` is required.
        threshold: lowest norm that is skipped, instead of the published one.
    """

    def __init__(self, published: Literal["wen2024"] | None = "wen2024", *, threshold: float | None = None) -> None:
        if published is not None and published not in THRESHOLDS:
            raise ConfigurationError(
                f"published={published!r}", expected=f"one of {sorted(THRESHOLDS)}, or None", remedy="set one of these"
            )
        if threshold is None and published is not None:
            threshold = THRESHOLDS[published]
        if threshold is None or threshold <= 0:
            raise ConfigurationError(f"threshold={threshold}", expected="a number above 0", remedy="raise it")
        self.threshold = threshold

    def needs(self) -> Needs:
        """Ask for the prediction under the empty caption in every batch."""
        return Needs(unconditional=True)

    def effects(self) -> Effects:
        """State that the rule skips visits."""
        return Effects(skips=True)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """Return 0 for skipped visits and 1 for the others, `(B,)`; the monitor averages the batch over the others."""
        if observation.prediction is None or observation.unconditional is None:
            raise ProbeError("There is no prediction under the empty caption", remedy="train with MemorizationMonitor")
        return (guidance_norm(observation.prediction, observation.unconditional) < self.threshold).float()
