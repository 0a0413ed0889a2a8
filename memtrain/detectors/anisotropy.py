"""Anisotropy: how much the text changes the prediction on pure noise, and how well this change aligns with it.

Method: A = ‖ε(x_T, prompt) − ε(x_T, "")‖₂ at the first timestep. C = the cosine over channels between ε(x, "") and ε(x,
prompt) − ε(x, ""), averaged over pixels, at a late timestep, but on the same noise x = x_T. The score is `norm_weight`
· A + `cosine_weight` · C, averaged over the prompt's images. No image is denoised.
Source: Asthana and Belagiannis, "Detecting and Mitigating Memorization in Diffusion Models through Anisotropy of the
Log-Probability" (ICLR 2026). The published code takes the third timestep from the end, which is 41 for 50 DDIM steps.
Here it is the argument `timestep`. For v-predictions the published code takes C between the raw predictions, and A
between scores in its own scaling (see :mod:`memtrain.detectors.sharpness`). This module takes both between noises, and
`published=True` is the published form. For noise predictions the two forms are equal.
Direction: higher means memorized.
Cost: two denoiser calls.
Suggested values: weights 1 and 2 for Stable Diffusion 1.4, 1 and 0.1 for 2, 2 and 1 for Realistic Vision, all from the
published code, where they were chosen on the evaluated prompts. A depends on the model's scale, and C lies in [−1, 1],
so another model needs other weights.
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
    """Weighted sum of the guidance norm at the first timestep and a cosine at a late timestep.

    Args:
        norm_weight: the weight of the norm A.
        cosine_weight: the weight of the cosine C.
        timestep: the timestep of the cosine C.
        published: whether to use the published form for v-predictions.
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
                expected="a timestep of at least 0, and a weight that is not 0",
                remedy="change timestep, norm_weight or cosine_weight",
            )
        self.norm_weight, self.cosine_weight = norm_weight, cosine_weight
        self.timestep, self.published = timestep, published

    @property
    def name(self) -> str:
        """`anisotropy`, with the weights and the timestep if they are not the defaults, and `_published`."""
        weights = (self.norm_weight, self.cosine_weight)
        told = "" if weights == (1.0, 2.0) else f"_{weights[0]:g}_{weights[1]:g}"
        told += "" if self.timestep == 41 else f"_t{self.timestep}"
        return f"anisotropy{told}{'_published' if self.published else ''}"

    def calls(self, total: int) -> int:
        """One: the first call."""
        return 1

    def extra_forwards(self, total: int) -> int:
        """One, at the late timestep."""
        return 1

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return norm and cosine of the first call, `(B, 2)`."""
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
        """Return scores `(P, K)` from readings `(P, K, 1, 2)`."""
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
        conditional: the conditional prediction, `(B, C, h, w)`.
        unconditional: the unconditional prediction, of the same shape.

    Returns:
        `(B,)`, in [−1, 1].
    """
    change = conditional.float() - unconditional.float()
    return F.cosine_similarity(unconditional.float(), change, dim=1).mean(dim=(1, 2))
