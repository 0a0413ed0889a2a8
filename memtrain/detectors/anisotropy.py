"""Anisotropy: on pure noise, how much the text changes the prediction, and how well the change lines up with it.

What: A = ‖ε(x_T, prompt) − ε(x_T, "")‖₂ at the first timestep. C = the cosine over channels between ε(x, "") and
ε(x, prompt) − ε(x, ""), averaged over pixels, at a late timestep, but on the same noise x = x_T. The score is
`norm_weight` · A + `cosine_weight` · C, averaged over the prompt's images. Nothing is denoised.
Source: Asthana and Belagiannis, "Detecting and Mitigating Memorization in Diffusion Models through Anisotropy of the
Log-Probability" (ICLR 2026). The published code takes the third timestep from the end, which is 41 for 50 DDIM steps
and another one for another number; here it is `timestep`. For v-predictions the published code takes C between the raw
predictions and A between scores of its own (see :mod:`memtrain.detectors.sharpness`), this takes both between noises;
`published=True` is the published form. For noise predictions the two are the same.
Direction: higher means memorized.
Cost: two denoiser calls.
Suggested values: weights 1 and 2 for Stable Diffusion 1.4, 1 and 0.1 for 2, 2 and 1 for Realistic Vision, all from the
published code, where they were chosen on the prompts that they are measured on. A depends on the model's scale, and C
lies in [−1, 1]: on another model the weights have to be found anew.
Cannot: tell which image is memorized.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError
from memtrain.functional.diffusion import predicted_noise
from memtrain.functional.guidance import guidance_norm


class Anisotropy(Detector):
    """Weighted sum of the guidance norm at the first timestep and a cosine at a late one.

    Args:
        norm_weight: of the norm A.
        cosine_weight: of the cosine C.
        timestep: of C.
        published: the published form for v-predictions.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "one more denoiser call on the first noise"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"conditional", "unconditional", "latents", "denoise", "alphas_cumprod"}
    )

    def __init__(
        self,
        norm_weight: float = 1.0,
        cosine_weight: float = 2.0,
        *,
        timestep: int = 41,
        published: bool = False,
    ) -> None:
        if timestep < 0 or (norm_weight == 0 and cosine_weight == 0):
            raise ConfigurationError(
                f"Anisotropy(norm_weight={norm_weight}, cosine_weight={cosine_weight}, timestep={timestep})",
                expected="a timestep from 0 and a weight that is not 0",
                remedy="change them",
            )
        self.norm_weight, self.cosine_weight = norm_weight, cosine_weight
        self.timestep, self.published = timestep, published

    @property
    def name(self) -> str:
        """`anisotropy`, with weights, a timestep other than the default and `published` told."""
        weights = (self.norm_weight, self.cosine_weight)
        told = "" if weights == (1.0, 2.0) else f"_{weights[0]:g}_{weights[1]:g}"
        told += "" if self.timestep == 41 else f"_t{self.timestep}"
        return f"anisotropy{told}{'_published' if self.published else ''}"

    def calls(self, total: int) -> int:
        """The first."""
        return 1

    def extra_forwards(self, total: int) -> int:
        """One, at the late timestep."""
        return 1

    def read(self, step: DenoiserStep) -> Tensor | None:
        """`(B, 2)` norm and cosine of the first call."""
        if step.index > 0:
            return None
        assert step.unconditional is not None and step.latents is not None and step.denoise is not None
        late = step.denoise(step.latents, float(self.timestep))
        assert late[1] is not None
        if self.published and step.prediction_type == "v_prediction":
            alpha = step.alpha_cumprod()
            norm = guidance_norm(step.conditional, step.unconditional) * alpha**0.5 / (1 - alpha)
            return torch.stack([norm, channel_cosine(late[0], late[1])], dim=1)
        first = self._noises(step, step.conditional, step.unconditional, step.timestep)
        return torch.stack(
            [guidance_norm(*first), channel_cosine(*self._noises(step, late[0], late[1], self.timestep))], dim=1
        )

    def score_images(self, readings: Tensor) -> Tensor:
        """`(P, K)` from readings `(P, K, 1, 2)`."""
        norm, cosine = readings[:, :, 0].unbind(dim=-1)
        return self.norm_weight * norm + self.cosine_weight * cosine

    def _noises(
        self, step: DenoiserStep, conditional: Tensor, unconditional: Tensor, timestep: float
    ) -> tuple[Tensor, Tensor]:
        assert step.latents is not None
        alpha = step.alpha_cumprod(timestep)
        kind = step.prediction_type
        return (
            predicted_noise(conditional, step.latents, alpha_cumprod=alpha, prediction_type=kind),
            predicted_noise(unconditional, step.latents, alpha_cumprod=alpha, prediction_type=kind),
        )


def channel_cosine(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Cosine over channels between the unconditional prediction and the change by the text, averaged over pixels.

    Args:
        conditional: `(B, C, h, w)`.
        unconditional: same shape.

    Returns:
        `(B,)`, in [−1, 1].
    """
    change = conditional.float() - unconditional.float()
    return F.cosine_similarity(unconditional.float(), change, dim=1).mean(dim=(1, 2))
