"""What a detector sees, and what it has to answer.

A detector is two pure functions: `read` takes what is worth keeping from one denoiser call, `score_images` turns the
readings of all calls into one score per image. It keeps no state, so one instance serves any number of samplings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor


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
        token_attention: per attention site `(B, T)` under the prompts; None unless a detector needs it.
        prompt_length: `(B,)` tokens of the prompts with BOS and EOS; None unless a detector needs it.
    """

    index: int
    timestep: float
    conditional: Tensor
    unconditional: Tensor | None
    total: int = 1
    latents: Tensor | None = None
    token_attention: dict[str, Tensor] | None = None
    prompt_length: Tensor | None = None


class Detector(ABC):
    """Scores prompts for memorization while images are sampled.

    Attributes:
        higher_means_memorized: the published direction of the score.
        cost: what the score costs beyond sampling the images, in words.
        needs: names of the fields of :class:`DenoiserStep` without which the detector cannot work.
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
