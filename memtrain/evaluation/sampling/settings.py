"""The settings of a sampling: one frozen value with one set of defaults."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.files.shown import shown

Precision = Literal["auto", "float32", "float16", "bfloat16"]
"""Type of numbers of a model; `auto` is half precision on a GPU and float32 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a sampling; the defaults suit the embedded model and are those of every command.

    Args:
        seeds: K distinct seeds; each prompt is sampled with every seed.
        steps: number of sampling steps.
        guidance_scale: scale of classifier-free guidance; up to 1 means without guidance.
        batch_size: images of a batch, which are written together; rounding may depend on it.
        by_memory: whether the denoiser gets fewer images at once where, by an estimate, memory cannot hold all.
        size: height and width in pixels; by default the pipeline's own.
        progress: whether a progress bar is shown.

    Raises:
        ConfigurationError: if seeds are repeated or missing, or a number is below 1.
    """

    seeds: Sequence[int] = (0, 1, 2, 3)
    steps: int = 20
    guidance_scale: float = 4.0
    batch_size: int = 32
    by_memory: bool = True
    size: tuple[int, int] | None = None
    progress: bool = True

    def __post_init__(self) -> None:
        try:
            # Generators need Python's whole numbers instead of numpy's.
            object.__setattr__(self, "seeds", tuple(map(operator.index, self.seeds)))
        except TypeError as error:
            raise ConfigurationError(
                f"seeds are {shown(repr(self.seeds), most=80)}",
                expected="whole numbers",
                remedy="give a list of whole numbers",
            ) from error
        distinct = self.seeds and len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0
        if not distinct or min(self.steps, self.batch_size) < 1:
            raise ConfigurationError(
                f"The sampling settings are invalid: seeds {list(self.seeds)}, steps={self.steps}, "
                f"batch_size={self.batch_size}",
                expected="at least one seed, distinct seeds from 0, and steps and batch_size from 1",
                remedy="change the settings",
            )

    def sized_as(self, images: Tensor | None) -> Sampling:
        """Return the same settings at the size of images `(..., H, W)`; unchanged for None."""
        return self if images is None else replace(self, size=(int(images.shape[-2]), int(images.shape[-1])))

    @property
    def quiet(self) -> Sampling:
        """The same settings without a progress bar."""
        return replace(self, progress=False)

    @property
    def prompts_at_once(self) -> int:
        """Number of prompts that fill a batch with an image for each seed."""
        return max(1, self.batch_size // len(self.seeds))

    def said(self) -> dict[str, Any]:
        """Return `seeds`, `steps` and `guidance_scale`, as in every results file."""
        return {"seeds": list(self.seeds), "steps": self.steps, "guidance_scale": self.guidance_scale}
