"""What a detector sees, and what it has to answer.

A detector is a few pure functions: `read` takes what is worth keeping from one denoiser call, `read_images` from the
finished images, `condense` puts the readings of a batch of images together once it is sampled, and `score_images`
turns them into one score per image. It keeps no state, so one instance serves any number of samplings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError

Denoise = Callable[[Tensor, float | None], tuple[Tensor, Tensor | None]]
"""Latents `(B, C, h, w)` and a timestep, or None for that of the call -> conditional and unconditional prediction."""

Decode = Callable[[Tensor], Tensor]
"""Clean latents `(B, C, h, w)` -> images `(B, 3, H, W)` uint8, on the CPU."""


@dataclass(frozen=True)
class DenoiserStep:
    """One call of the denoiser while B images are sampled.

    Attributes:
        index: number of the call, from 0.
        timestep: the diffusion timestep of the call.
        conditional: `(B, C, h, w)` prediction under the prompts.
        unconditional: `(B, C, h, w)` prediction under the empty or negative prompt; None when sampling without
            classifier-free guidance.
        total: number of calls.
        latents: `(B, C, h, w)` that the denoiser was given for the prompts.
        token_attention: per attention site `(B, T)` under the prompts; None unless a detector asks for it here.
        eos_attention: per site of the first block with attention `(B, N)`, what EOS receives at each image token;
            None unless a detector asks for it here.
        prompt_length: `(B,)` tokens of the prompts with BOS and EOS; None unless a detector needs it.
        alphas_cumprod: `(1000,)` ᾱ of the noise schedule; None where the scheduler has none.
        prediction_type: what the denoiser predicts: `epsilon`, `v_prediction` or `sample`.
        guidance_scale: of classifier-free guidance.
        timesteps: of all calls, in their order.
        denoise: runs the denoiser once more under the same texts; no hook or detector sees it.
        decode: makes images of clean latents.
    """

    index: int
    timestep: float
    conditional: Tensor
    unconditional: Tensor | None
    total: int = 1
    latents: Tensor | None = None
    token_attention: dict[str, Tensor] | None = None
    eos_attention: dict[str, Tensor] | None = None
    prompt_length: Tensor | None = None
    alphas_cumprod: Tensor | None = None
    prediction_type: str = "epsilon"
    guidance_scale: float = 1.0
    timesteps: tuple[float, ...] = ()
    denoise: Denoise | None = None
    decode: Decode | None = None

    def alpha_cumprod(self, timestep: float | None = None) -> float:
        """ᾱ of a timestep, by default that of the call; never 0, as it is at the end of a zero-SNR schedule.

        Raises:
            ConfigurationError: if the scheduler has no noise schedule, as that of a flow has none.
        """
        if self.alphas_cumprod is None:
            raise ConfigurationError(
                f"A detector needs the noise schedule, and this model's scheduler ({self.prediction_type}) has none",
                expected="a scheduler with alphas_cumprod, such as DDIM",
                remedy="leave the detector out, or let --detectors all choose those that can read this model",
            )
        index = round(self.timestep if timestep is None else timestep)
        return max(float(self.alphas_cumprod[index]), 2.0**-24)


class Detector(ABC):
    """Scores prompts for memorization while images are sampled.

    Attributes:
        higher_means_memorized: the published direction of the score.
        cost: what the score costs beyond sampling the images, in words.
        needs: names of the fields of :class:`DenoiserStep` without which the detector cannot work, and `images` for
            the finished ones.
    """

    higher_means_memorized: ClassVar[bool]
    cost: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"conditional"})

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in tables and columns; two differently configured instances have different names."""

    @abstractmethod
    def read(self, step: DenoiserStep) -> Tensor | None:
        """What to keep of one denoiser call.

        Args:
            step: the call.

        Returns:
            `(B, ...)`, or None to keep nothing; which of the two depends on `step.index` and `step.timestep` alone.
        """

    def calls(self, total: int) -> int:
        """Denoiser calls, of `total`, after which :meth:`read` keeps nothing more; default all."""
        return total

    def extra_forwards(self, total: int) -> int:
        """Runs of the denoiser that the detector adds to those of sampling, per image and both halves; default none.

        A Jacobian-vector product counts as two.
        """
        return 0

    def reads_attention(self, index: int, total: int) -> bool:
        """Whether :meth:`read` looks at the attention of this call, if at any; default the first :meth:`calls`."""
        return index < self.calls(total)

    def read_images(self, images: Tensor) -> Tensor | None:
        """What to keep of the finished images, if `needs` names them.

        Args:
            images: `(B, 3, H, W)` uint8, on the CPU.

        Returns:
            `(B, ...)`, or None to keep nothing.
        """
        return None

    def condense(self, readings: Sequence[Tensor]) -> Tensor:
        """What stays of a batch once it is sampled.

        Args:
            readings: what :meth:`read` kept of each call, in their order, and :meth:`read_images` after them.

        Returns:
            `(B, R, ...)`; by default the readings, stacked.
        """
        return torch.stack(list(readings), dim=1)

    @abstractmethod
    def score_images(self, readings: Tensor) -> Tensor:
        """One score per image.

        Args:
            readings: `(P, K, R, ...)`: the R readings kept for each of K images of P prompts, in the order of calls.

        Returns:
            `(P, K)`.
        """

    def score(self, readings: Tensor) -> Tensor:
        """One score per prompt: the mean over its images.

        Args:
            readings: as for :meth:`score_images`.

        Returns:
            `(P,)`.
        """
        return self.score_images(readings).mean(dim=1)
