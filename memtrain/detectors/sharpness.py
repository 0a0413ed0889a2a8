"""Sharpness: around a memorized image, the log-density is curved along the direction of the text.

Method: the score is ‖J_prompt v − J_empty v‖₂ at the first call, averaged over the prompt's images. Here s is the score
of each half, v = s(x, prompt) − s(x, ""), and J are the Jacobians with respect to x. Let Δ be the difference of
predictions. The difference of scores is c Δ, where c = −1 / √(1 − ᾱ) for a noise prediction. So the score is
c² ‖J_Δ Δ‖₂.
Source: Jeon et al., "Understanding and Mitigating Memorization in Generative Models via Sharpness of Probability
Landscapes" (ICML 2025). The published code treats v-predictions as predictions of the image. Its c² is then ᾱ / (1 −
ᾱ)² instead of ᾱ / (1 − ᾱ), a factor that all prompts share. `published=True` uses it. The published code runs the model
in bf16 and the product in fp32. This module runs both in the model's own precision, so use fp32.
Direction: higher means memorized.
Cost: one denoiser call and a Jacobian-vector product in forward mode (about two calls). The product needs the math
attention kernel, which holds a whole attention matrix at a time. `finite_difference` needs two plain calls instead,
with any kernel. It is less exact: its error is a few tenths of a percent in fp32, and it is useless in half precision.
Suggested values: four images a prompt.
Cannot: compare models, or tell which image is memorized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.functional.diffusion import noise_slope

STEP = 1e-3
"""Length of the finite difference, as a share of the latents' norm."""


class Sharpness(Detector):
    """Norm of the difference of the scores' Jacobians along the difference of the scores.

    Args:
        method: `jvp` (exact) or `finite_difference` (central difference).
        published: whether to use c of the published code for v-predictions.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "a Jacobian-vector product of the denoiser, as much as two calls"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"conditional", "unconditional", "latents", "denoise", "alphas_cumprod"}
    )

    def __init__(self, method: Literal["jvp", "finite_difference"] = "jvp", *, published: bool = False) -> None:
        if method not in ("jvp", "finite_difference"):
            raise ConfigurationError(
                f"Sharpness: method={method!r}", expected="jvp or finite_difference", remedy="change the method"
            )
        self.method, self.published = method, published

    @property
    def name(self) -> str:
        """`sharpness`, with the method if it is not `jvp`, and `_published`."""
        method = "" if self.method == "jvp" else f"_{self.method}"
        return f"sharpness{method}{'_published' if self.published else ''}"

    def calls(self, total: int) -> int:
        """One: the first call."""
        return 1

    def extra_forwards(self, total: int) -> int:
        """Two: for a product, or for the two ends of a difference."""
        return 2

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return the score of the first call, `(B,)`.

        Raises:
            ProbeError: if an operation of the denoiser has no forward-mode derivative.
        """
        if step.index > 0:
            return None
        assert step.unconditional is not None and step.latents is not None  # the sampler checks `needs`
        direction = step.conditional - step.unconditional
        product = self._product(step, step.latents, direction)
        return self._squared_slope(step) * product.float().flatten(1).square().sum(dim=1).sqrt()

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, 1)`."""
        return readings[:, :, 0]

    def _squared_slope(self, step: DenoiserStep) -> float:
        """Return c², the factor from predictions to scores."""
        alpha = step.alpha_cumprod()
        if self.published and step.prediction_type == "v_prediction":
            return alpha / (1 - alpha) ** 2
        return noise_slope(alpha_cumprod=alpha, prediction_type=step.prediction_type) ** 2 / (1 - alpha)

    def _product(self, step: DenoiserStep, latents: Tensor, direction: Tensor) -> Tensor:
        def difference(at: Tensor) -> Tensor:
            assert step.denoise is not None
            conditional, unconditional = step.denoise(at, None)
            assert unconditional is not None
            return conditional - unconditional

        if self.method == "finite_difference":
            with full_precision():
                return central_difference(difference, latents, direction)
        try:
            # The fused kernels have no forward-mode derivative.
            with sdpa_kernel(SDPBackend.MATH):
                product: Tensor = torch.func.jvp(difference, (latents,), (direction.to(latents.dtype),))[1]
        except (NotImplementedError, RuntimeError) as error:
            raise ProbeError(
                f"The Jacobian-vector product of the denoiser failed: {error}",
                expected="operations with a forward-mode derivative",
                remedy="use method='finite_difference'",
            ) from error
        return product


@contextmanager
def full_precision() -> Iterator[None]:
    """Turn off TF32 in convolutions, whose ten bits are too coarse for a finite difference."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def central_difference(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    """Compute the derivative of a function of images along a direction, from two of its values.

    Args:
        function: a function from `(B, ...)` to `(B, ...)` that maps each row separately.
        point: the images, `(B, ...)`.
        direction: the direction, of the same shape.

    Returns:
        `(B, ...)`; zeros for rows with a zero direction.
    """
    shape = (-1, *[1] * (point.dim() - 1))
    length = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    step = (STEP * point.flatten(1).norm(dim=1) / length).view(shape)
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)
