"""How images are sampled: one frozen value, said once, with one set of defaults."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.files.shown import shown

Precision = Literal["auto", "float32", "float16", "bfloat16"]
"""In which numbers a model computes; `auto` is half precision on a GPU and float32 on a CPU."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """Settings of a sampling; the defaults suit the embedded model and are those of every command.

    Args:
        seeds: K distinct seeds; each prompt is sampled with every one.
        steps: sampling steps.
        guidance_scale: of classifier-free guidance; up to 1 means without.
        batch_size: images of a batch, which are written together, and which rounding may depend on.
        by_memory: give the denoiser fewer of them at once where memory would not hold all, by an estimate.
        size: height and width in pixels; by default the pipeline's own.
        progress: show a progress bar.

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
            # Whole numbers of numpy become those of Python, which generators take.
            object.__setattr__(self, "seeds", tuple(map(operator.index, self.seeds)))
        except TypeError as error:
            raise ConfigurationError(
                f"seeds are {shown(repr(self.seeds), most=80)}", expected="whole numbers", remedy="list them"
            ) from error
        distinct = self.seeds and len(set(self.seeds)) == len(self.seeds) and min(self.seeds) >= 0
        if not distinct or min(self.steps, self.batch_size) < 1:
            raise ConfigurationError(
                f"Nothing sensible to sample: seeds {list(self.seeds)}, steps={self.steps}, "
                f"batch_size={self.batch_size}",
                expected="distinct seeds from 0, at least one, and numbers of steps and of images at once from 1",
                remedy="change the settings",
            )

    def sized_as(self, images: Tensor | None) -> Sampling:
        """The same at the size of images `(..., H, W)`; unchanged for None."""
        return self if images is None else replace(self, size=(int(images.shape[-2]), int(images.shape[-1])))

    @property
    def quiet(self) -> Sampling:
        """The same without a progress bar."""
        return replace(self, progress=False)

    @property
    def prompts_at_once(self) -> int:
        """Prompts that fill a batch with an image for each seed."""
        return max(1, self.batch_size // len(self.seeds))

    def said(self) -> dict[str, Any]:
        """`seeds`, `steps` and `guidance_scale`, as they stand in every results file."""
        return {"seeds": list(self.seeds), "steps": self.steps, "guidance_scale": self.guidance_scale}
