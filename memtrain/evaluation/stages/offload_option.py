"""Option of stages that call a pipeline as a whole, so that its parts can take turns on the device."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class OffloadOption:
    """Option to offload the parts of a pipeline.

    Args:
        offload: keep the pipeline's parts in the machine's memory between their calls, so that the GPU holds only one
            part at a time. Each batch then costs a transfer of every part.
    """

    offload: bool = False
