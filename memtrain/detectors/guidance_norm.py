"""The norm of the text-conditional noise: a memorized prompt pulls the prediction harder than others do.

What: ‖ε(x_t, prompt) − ε(x_t, "")‖₂ at each sampling step, averaged over steps and then over the prompt's images.
Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024), §3. This
is the published code but for its fp16: raw predictions without the factor that makes them scores, the norm over all
channels and pixels, the mean over images, then over steps.
Direction: higher means memorized.
Cost: none beyond sampling with classifier-free guidance, which makes both predictions anyway; the first step alone
needs one denoiser call.
Suggested values: four images a prompt; `steps: 1`, from which the paper detects, or all steps, which separate somewhat
better.
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
        steps: number of denoiser calls from the first, or None for all.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "none beyond sampling with guidance"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "unconditional"})

    def __init__(self, steps: int | None = 1) -> None:
        if steps is not None and steps < 1:
            raise ConfigurationError(
                f"GuidanceNorm: steps={steps} reads nothing",
                expected="a number of steps from 1, or null for all",
                remedy="change steps",
            )
        self.steps = steps

    @property
    def name(self) -> str:
        """`guidance_norm_1` for the first step, `guidance_norm_all` for all."""
        return f"guidance_norm_{'all' if self.steps is None else self.steps}"

    def read(self, step: DenoiserStep) -> Tensor | None:
        """`(B,)` norms of a call among the first `steps`."""
        if self.steps is not None and step.index >= self.steps:
            return None
        assert step.unconditional is not None  # the sampler checks `needs`
        return guidance_norm(step.conditional, step.unconditional)

    def calls(self, total: int) -> int:
        """The first `steps`."""
        return total if self.steps is None else min(self.steps, total)

    def score_images(self, readings: Tensor) -> Tensor:
        """`(P, K)`: mean over the readings `(P, K, R)`."""
        return readings.mean(dim=2)
