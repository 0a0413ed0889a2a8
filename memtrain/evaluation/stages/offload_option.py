"""The option of stages that call a pipeline as a whole, so that its parts may take turns on the device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OffloadOption:
    """An option.

    Args:
        offload: let the pipeline's parts wait in the machine's memory between their calls, so that the GPU has to hold
            the largest of them alone. Each batch then costs a transfer of every part.
    """

    offload: bool = False
