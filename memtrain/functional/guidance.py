"""Size of the change that the text makes to the denoiser's prediction."""

from __future__ import annotations

from torch import Tensor


def guidance_norm(conditional: Tensor, unconditional: Tensor) -> Tensor:
    """Compute ‖ε(x, t, prompt) − ε(x, t, "")‖₂ over all latent elements; higher means memorized.

    Source: Wen et al., "Detecting, Explaining, and Mitigating Memorization in Diffusion Models" (ICLR 2024), §3. The
    norm is of the raw predictions, without the factor 1/√(1 − ᾱ) that would make them scores.

    Args:
        conditional: the prediction under the prompt, `(B, C, h, w)`.
        unconditional: the prediction under the empty prompt for the same latents, of the same shape.

    Returns:
        `(B,)` in fp32.
    """
    difference = conditional.float() - unconditional.float()
    return difference.flatten(1).square().sum(dim=1).sqrt()
