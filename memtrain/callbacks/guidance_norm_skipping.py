"""Guidance-norm skipping: a visit whose caption changes the prediction too much gets no gradient.

Source: the training-time mitigation of Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion
Models" (ICLR 2024): samples whose text-conditional noise (see :func:`memtrain.functional.guidance.guidance_norm`) is at
or above a threshold leave the mini-batch, whose loss becomes the mean over the others. As published, it decides on
single visits, and one threshold serves all timesteps. The published threshold, 2, is for 512-pixel Stable Diffusion;
how large the norm is depends on the model, on its latents and on the timestep, so another model needs another one.

Where no sample of a batch is kept, the published code skips the optimizer step, which on several processes would leave
them waiting for each other; here the gradient is zero and the step is taken.

Cost: a forward pass without gradients in every batch. Suggested: `published: wen2024` for 512-pixel Stable Diffusion;
otherwise a `threshold` above the norms that `memtrain measure` finds for held-out prompts. Cannot: name
samples; that is the monitor's evidence.
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
        published: the paper whose threshold is taken; with None, `threshold` has to be given.
        threshold: skip from this norm on, instead of the published one.
    """

    def __init__(self, published: Literal["wen2024"] | None = "wen2024", *, threshold: float | None = None) -> None:
        if published is not None and published not in THRESHOLDS:
            raise ConfigurationError(
                f"published={published!r}", expected=f"one of {sorted(THRESHOLDS)}, or None", remedy="change it"
            )
        if threshold is None and published is not None:
            threshold = THRESHOLDS[published]
        if threshold is None or threshold <= 0:
            raise ConfigurationError(f"threshold={threshold}", expected="above 0", remedy="change it")
        self.threshold = threshold

    def needs(self) -> Needs:
        """The prediction under the empty caption, in every batch."""
        return Needs(unconditional=True)

    def effects(self) -> Effects:
        """It skips."""
        return Effects(skips=True)

    def weights(self, observation: Observation, flags: Flags) -> Tensor:
        """0 for skipped visits, 1 for the others, `(B,)`; the monitor makes the batch mean the mean over these."""
        if observation.prediction is None or observation.unconditional is None:
            raise ProbeError("There is no prediction under the empty caption", remedy="train with MemorizationMonitor")
        return (guidance_norm(observation.prediction, observation.unconditional) < self.threshold).float()
