"""What trades time, memory and precision of a training step without changing what is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True, kw_only=True)
class Execution:
    """How the denoiser is run.

    Args:
        gradient_checkpointing: trade time for memory (non-reentrant).
        channels_last: memory format of the denoiser's convolutions.
    """

    gradient_checkpointing: bool = False
    channels_last: bool = True

    def apply(self, denoiser: Any) -> None:
        """Prepare a denoiser, before anything is attached to it."""
        if self.channels_last:
            denoiser.to(memory_format=torch.channels_last)
        if self.gradient_checkpointing:
            denoiser.enable_gradient_checkpointing()
