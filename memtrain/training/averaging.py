"""An exponential average of the trained weights in the memory of the host instead of the device.

The update equals that of diffusers' EMAModel to the last bit. A few parameters at a time come to the device, are
updated there by the same two operations, and go back. Cost: the average is copied both ways at each step, 0.3 s for a
gigabyte over PCIe 3; the device holds only those few parameters. Suggested: if the average does not fit on the device.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from diffusers.training_utils import EMAModel
from torch import nn

AT_ONCE = 2**24
"""The number of values that are copied together."""


class OffloadedAverage(EMAModel):
    """An EMAModel that keeps its average on the CPU.

    Args:
        parameters: the averaged parameters, on any device.
        decay: the decay of the average.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], *, decay: float) -> None:
        super().__init__(parameters, decay=decay, foreach=True)
        super().to("cpu")

    def to(self, device: Any = None, dtype: torch.dtype | None = None, non_blocking: bool = False) -> None:
        """Change the type of the average, which stays on the CPU."""
        super().to("cpu", dtype, non_blocking)

    @torch.no_grad()
    def step(self, parameters: Iterable[nn.Parameter]) -> None:
        """Update the average with the parameters after an optimizer step."""
        self.optimization_step += 1
        self.cur_decay_value = self.get_decay(self.optimization_step)
        waiting: list[tuple[torch.Tensor, nn.Parameter]] = []
        for kept, parameter in zip(self.shadow_params, list(parameters), strict=True):
            if not parameter.requires_grad:
                kept.copy_(parameter)
                continue
            waiting.append((kept, parameter))
            if sum(one.numel() for one, _ in waiting) >= AT_ONCE:
                self._update(waiting)
                waiting = []
        self._update(waiting)

    def _update(self, pairs: list[tuple[torch.Tensor, nn.Parameter]]) -> None:
        if not pairs:
            return
        here = [kept.to(parameter.device) for kept, parameter in pairs]
        changes = torch._foreach_sub(here, [parameter for _, parameter in pairs])
        torch._foreach_sub_(here, changes, alpha=1 - self.cur_decay_value)
        for (kept, _), value in zip(pairs, here, strict=True):
            if value is not kept:
                kept.copy_(value)
