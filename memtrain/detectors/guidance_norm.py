"""Guidance norm: the text of a memorized prompt changes the noise prediction more than other texts do.

Method: ‖ε(x_t, prompt) − ε(x_t, "")‖₂ at each sampling step, averaged over steps and then over the prompt's images.
Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024), §3. This
module follows the published code, except for its fp16. It takes raw predictions without the factor that makes them
scores, the norm over all channels and pixels, the mean over images, and then the mean over steps.
Direction: higher means memorized.
Cost: none beyond sampling with classifier-free guidance, which makes both predictions. The first step alone needs one
denoiser call.
Suggested values: four images a prompt. The paper already detects with `steps: 1`; all steps separate somewhat better.
Cannot: tell which image is memorized, compare models or guidance settings with each other (the scale of the norm
depends on both), or see a memorized image that another caption brings back. With a v-prediction model the norm is of v.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError
from memtrain.functional.guidance import guidance_norm


class GuidanceNorm(Detector):
    """Norm of the text-conditional noise, averaged over the first steps and over images.

    Args:
        steps: the number of denoiser calls, from the first; None for all.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "none beyond sampling with guidance"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "unconditional"})

    def __init__(self, steps: int | None = 1) -> None:
        if steps is not None and steps < 1:
            raise ConfigurationError(
                f"GuidanceNorm: steps={steps} reads no step",
                expected="at least 1, or null for all steps",
                remedy="change steps",
            )
        self.steps = steps

    @property
    def name(self) -> str:
        """`guidance_norm_1` for the first step, `guidance_norm_all` for all."""
        return f"guidance_norm_{'all' if self.steps is None else self.steps}"

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return the norms of a call among the first `steps`, `(B,)`."""
        if self.steps is not None and step.index >= self.steps:
            return None
        assert step.unconditional is not None  # the sampler checks `needs`
        return guidance_norm(step.conditional, step.unconditional)

    def calls(self, total: int) -> int:
        """Return `steps`, or all calls."""
        return total if self.steps is None else min(self.steps, total)

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)`: the mean over the readings `(P, K, R)`."""
        return readings.mean(dim=2)
