"""Bright Ending: the text-conditional noise where the end-of-text token has attention at the end of sampling.

Method: in the last call, EOS receives some attention at each image token under the prompt. This attention, averaged
over heads and over the sites of the first block with attention, is a mask m on the latents. Let Δ be the difference of
the conditional and the unconditional prediction. The score of an image is ‖Δ · m‖₂ / mean(m), averaged over all calls.
Source: Chen et al., "Exploring Local Memorization in Diffusion Models via Bright Ending Attention" (ICLR 2025); in
Stable Diffusion the sites are the two at 64x64, as in the published code. The published code samples twice with the
same seeds: the first sampling stores the masks, and the second measures. This module keeps the squared differences of
each call until the last call gives the mask, which yields the same number from one sampling. The published code works
in fp16, this module in fp32.
Direction: higher means memorized.
Cost: all denoiser calls, none beyond sampling with guidance. The memory during a batch is h·w numbers per image and
call (0.8 MB for 50 calls at 64x64), and one number per image afterwards.
Suggested values: four images a prompt, 50 steps.
Cannot: detect before the end of sampling, or locate the memorized part (the mask is not kept). A mask of another size
than the latents, as in SDXL, is interpolated.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ProbeError


class BrightEnding(Detector):
    """Norm of the text-conditional noise under the mask of EOS, averaged over calls and images."""

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "none beyond sampling with guidance to the end"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "unconditional", "eos_attention", "prompt_length"})

    @property
    def name(self) -> str:
        """`bright_ending`."""
        return "bright_ending"

    def reads_attention(self, index: int, total: int) -> bool:
        """Whether this is the last call."""
        return index == total - 1

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return the squared differences summed over channels, `(B, 1, h, w)`; in the last call also the mask."""
        assert step.unconditional is not None  # the sampler checks `needs`
        difference = (step.conditional.float() - step.unconditional.float()).square().sum(dim=1)
        if not self.reads_attention(step.index, step.total):
            return difference[:, None]
        assert step.eos_attention
        height, width = difference.shape[-2:]
        return torch.stack([difference, eos_mask(step.eos_attention, height=height, width=width)], dim=1)

    def condense(self, readings: Sequence[Tensor]) -> Tensor:
        """Return the scores, `(B, 1)`.

        Raises:
            ProbeError: if sampling ended before the last call.
        """
        if readings[-1].shape[1] != 2:
            raise ProbeError(
                f"Sampling ended after {len(readings)} denoiser calls, before the last one",
                expected="all calls, because the last one gives the mask",
                remedy="do not interrupt the sampling, or leave out BrightEnding",
            )
        maps = torch.cat(list(readings), dim=1)
        return masked_norm(maps[:, :-1], maps[:, -1]).mean(dim=1, keepdim=True)

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, 1)`."""
        return readings[:, :, 0]


def eos_mask(attention: Mapping[str, Tensor], *, height: int, width: int) -> Tensor:
    """Average the sites' maps, and resize them to the latents.

    Args:
        attention: the attention at each image token by site, `(B, N)`.
        height: the height h of the latents.
        width: the width w of the latents.

    Returns:
        The mask, `(B, h, w)`.
    """
    maps = torch.stack(list(attention.values())).mean(dim=0)
    shrink = (height * width / maps.shape[1]) ** 0.5
    mask = maps.view(len(maps), 1, round(height / shrink), round(width / shrink))
    if mask.shape[-2:] != (height, width):
        mask = F.interpolate(mask, size=(height, width), mode="bilinear")
    return mask[:, 0]


def masked_norm(squares: Tensor, mask: Tensor) -> Tensor:
    """Compute ‖Δ · m‖₂ / mean(m) of each call.

    Args:
        squares: Δ² summed over channels, `(B, R, h, w)`.
        mask: the mask m, `(B, h, w)`.

    Returns:
        `(B, R)`.
    """
    weighted = (squares * mask.square()[:, None]).flatten(2).sum(dim=2).sqrt()
    return weighted / mask.mean(dim=(1, 2))[:, None]
