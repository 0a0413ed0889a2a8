"""Sharpness: around a memorized image the log-density is curved along the direction of the text.

What: at the first call, with s the score of each half, v = s(x, prompt) − s(x, "") and J the Jacobians with respect to
x, ‖J_prompt v − J_empty v‖₂, averaged over the prompt's images. Differences of scores are differences of predictions
times c, where c = −1 / √(1 − ᾱ) for a noise prediction, so this is c² ‖J_Δ Δ‖₂ with Δ the difference of predictions.
Source: Jeon et al., "Understanding and Mitigating Memorization in Generative Models via Sharpness of Probability
Landscapes" (ICML 2025). The published code takes v-predictions for predictions of the image: c² is then ᾱ / (1 − ᾱ)²
instead of ᾱ / (1 − ᾱ), a factor that all prompts share; `published=True` has it. The published code runs the model in
bf16 and the product in fp32; this in the model's own precision, so use fp32.
Direction: higher means memorized.
Cost: one denoiser call and a Jacobian-vector product (about two) with it, forward mode, in which the math attention
kernel holds a whole attention matrix at a time. `finite_difference` needs two plain calls instead and any kernel, and
is less exact: a few tenths of a percent in fp32, useless in half precision.
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
        method: `jvp`, exact, or `finite_difference`, central.
        published: c of the published code for v-predictions.
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
        """`sharpness`, with a method other than `jvp` and `published` told."""
        method = "" if self.method == "jvp" else f"_{self.method}"
        return f"sharpness{method}{'_published' if self.published else ''}"

    def calls(self, total: int) -> int:
        """The first."""
        return 1

    def extra_forwards(self, total: int) -> int:
        """Two: a product, or the two ends of a difference."""
        return 2

    def read(self, step: DenoiserStep) -> Tensor | None:
        """`(B,)` of the first call.

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
        """`(P, K)` from readings `(P, K, 1)`."""
        return readings[:, :, 0]

    def _squared_slope(self, step: DenoiserStep) -> float:
        """c², from predictions to scores."""
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
    """Convolutions without TF32, whose ten bits are coarser than the difference that is taken."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def central_difference(function: Callable[[Tensor], Tensor], point: Tensor, direction: Tensor) -> Tensor:
    """Derivative of a function of images along a direction, from two of its values.

    Args:
        function: maps `(B, ...)` to `(B, ...)`, each row on its own.
        point: `(B, ...)`.
        direction: same shape.

    Returns:
        `(B, ...)`; zeros where the direction is zero.
    """
    shape = (-1, *[1] * (point.dim() - 1))
    length = direction.flatten(1).norm(dim=1).clamp(min=torch.finfo(torch.float32).tiny)
    step = (STEP * point.flatten(1).norm(dim=1) / length).view(shape)
    return (function(point + step * direction) - function(point - step * direction)) / (2 * step)
