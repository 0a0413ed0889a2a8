"""Interface of detectors: the data that a detector gets, and the values that it returns.

A detector is a few pure functions. `read` takes readings from one denoiser call, and `read_images` from the finished
images. `condense` combines the readings of a sampled batch of images. `score_images` turns them into one score per
image. A detector keeps no state, so one instance serves any number of samplings.
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
"""Latents `(B, C, h, w)` and a timestep (None for the call's) -> conditional and unconditional prediction."""

Decode = Callable[[Tensor], Tensor]
"""Clean latents `(B, C, h, w)` -> images `(B, 3, H, W)` uint8, on the CPU."""


@dataclass(frozen=True)
class DenoiserStep:
    """One call of the denoiser while B images are sampled.

    Attributes:
        index: the number of the call, from 0.
        timestep: the diffusion timestep of the call.
        conditional: the prediction under the prompts, `(B, C, h, w)`.
        unconditional: the prediction under the empty or negative prompt, `(B, C, h, w)`; None without classifier-free
            guidance.
        total: the number of calls.
        latents: the input of the denoiser for the prompts, `(B, C, h, w)`.
        token_attention: the attention of each token under the prompts by attention site, `(B, T)`; None unless a
            detector needs it for this call.
        eos_attention: the attention that EOS receives at each image token, by site of the first block with attention,
            `(B, N)`; None unless a detector needs it for this call.
        prompt_length: the number of tokens of each prompt with BOS and EOS, `(B,)`; None unless a detector needs it.
        alphas_cumprod: ᾱ of the noise schedule, `(1000,)`; None if the scheduler has none.
        prediction_type: the kind of the prediction: `epsilon`, `v_prediction` or `sample`.
        guidance_scale: the scale of classifier-free guidance.
        timesteps: the timesteps of all calls, in their order.
        denoise: a function that runs the denoiser once more under the same texts; no hook or detector sees this run.
        decode: a function that makes images of clean latents.
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
        """Return ᾱ of a timestep, by default of the call. It is never 0, unlike the end of a zero-SNR schedule.

        Raises:
            ConfigurationError: if the scheduler has no noise schedule, like that of a flow.
        """
        if self.alphas_cumprod is None:
            raise ConfigurationError(
                f"A detector needs a noise schedule, but this model's scheduler ({self.prediction_type}) has none",
                expected="a scheduler with alphas_cumprod, such as DDIM",
                remedy="leave out the detector, or use --detectors all, which takes the detectors that can read this "
                "model",
            )
        index = round(self.timestep if timestep is None else timestep)
        return max(float(self.alphas_cumprod[index]), 2.0**-24)


class Detector(ABC):
    """Scores prompts for memorization while images are sampled.

    Attributes:
        higher_means_memorized: the published direction of the score.
        cost: the cost of the score beyond sampling the images, in words.
        needs: the names of the required fields of :class:`DenoiserStep`, and `images` for the finished images.
    """

    higher_means_memorized: ClassVar[bool]
    cost: ClassVar[str]
    needs: ClassVar[frozenset[str]] = frozenset({"conditional"})

    @property
    @abstractmethod
    def name(self) -> str:
        """Name in tables and columns; instances with different settings have different names."""

    @abstractmethod
    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return the reading of one denoiser call.

        Args:
            step: the call.

        Returns:
            A tensor `(B, ...)`, or None to keep nothing; the choice depends on `step.index` and `step.timestep` only.
        """

    def calls(self, total: int) -> int:
        """Return the number of calls, of `total`, after which :meth:`read` keeps nothing more; by default all."""
        return total

    def extra_forwards(self, total: int) -> int:
        """Return the number of further denoiser runs, per image and for both halves; by default none.

        A Jacobian-vector product counts as two.
        """
        return 0

    def reads_attention(self, index: int, total: int) -> bool:
        """Whether :meth:`read` needs the attention of this call; by default that of the first :meth:`calls`."""
        return index < self.calls(total)

    def read_images(self, images: Tensor) -> Tensor | None:
        """Return the reading of the finished images, if `needs` names them.

        Args:
            images: the images, `(B, 3, H, W)` uint8, on the CPU.

        Returns:
            A tensor `(B, ...)`, or None to keep nothing.
        """
        return None

    def condense(self, readings: Sequence[Tensor]) -> Tensor:
        """Combine the readings of a sampled batch.

        Args:
            readings: the readings of :meth:`read` in the order of calls, followed by that of :meth:`read_images`.

        Returns:
            `(B, R, ...)`; by default the stacked readings.
        """
        return torch.stack(list(readings), dim=1)

    @abstractmethod
    def score_images(self, readings: Tensor) -> Tensor:
        """Compute one score per image.

        Args:
            readings: the R readings of each of K images of P prompts, in the order of calls, `(P, K, R, ...)`.

        Returns:
            The scores, `(P, K)`.
        """

    def score(self, readings: Tensor) -> Tensor:
        """Compute one score per prompt: the mean over its images.

        Args:
            readings: the readings, as for :meth:`score_images`.

        Returns:
            The scores, `(P,)`.
        """
        return self.score_images(readings).mean(dim=1)
