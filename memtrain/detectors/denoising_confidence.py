"""Denoising confidence: for a memorized prompt, one step from the noise leads to an image instead of a blur.

Method: the mean squared difference between the initial noise and the image after one step, both at the scale of the
noise, under guidance. The difference is the predicted noise. So the score is σ² times the mean square of ε under
guidance, with σ² = (1 − ᾱ) / ᾱ.
Source: the white-box attack of Webster, "A Reproducible Extraction of Training Images from Diffusion Models" (2023).
`published=True` is the published code: timestep 999 of the schedule, and the noise scaled for it. The default is the
first timestep of the sampling, which needs no further call. With several seeds, the published script keeps the score of
the last seed, and this module takes the mean. The published script runs in fp16.
Direction: higher means memorized; the paper ranks captions by it and extracts from the top.
Cost: one denoiser call, and one more with `published`.
Suggested values: guidance 7.5, one seed.
Cannot: compare guidance scales, or models. ε under guidance is `ε(x, "") + g (ε(x, prompt) − ε(x, ""))`, so the score
is close to the guidance norm plus a part that depends on the noise only.
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.detectors.one_step import one_step


class DenoisingConfidence(Detector):
    """Mean squared distance between the noise and the image after one step.

    Args:
        published: whether to use the last timestep of the schedule, as in the published code.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "none beyond the first denoiser call, one more call with `published`"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"conditional", "unconditional", "latents", "denoise", "alphas_cumprod", "guidance_scale"}
    )

    def __init__(self, *, published: bool = False) -> None:
        self.published = published

    @property
    def name(self) -> str:
        """`denoising_confidence`, or `denoising_confidence_published`."""
        return f"denoising_confidence{'_published' if self.published else ''}"

    def calls(self, total: int) -> int:
        """One: the first call."""
        return 1

    def extra_forwards(self, total: int) -> int:
        """One with `published`, else none."""
        return int(self.published)

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return the score of the first call, `(B,)`."""
        if step.index > 0:
            return None
        made = one_step(step, published=self.published)
        return made.sigma**2 * made.noise.square().flatten(1).mean(dim=1)

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, 1)`."""
        return readings[:, :, 0]
