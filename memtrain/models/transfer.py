"""Copies of small tensors between host and device without waiting for the device."""

from __future__ import annotations

import torch
from torch import Tensor


class HostCopy:
    """A copy of a tensor to the host, which starts at once and is waited for when it is read."""

    def __init__(self, tensor: Tensor) -> None:
        self._arrived: torch.cuda.Event | None = None
        if tensor.is_cuda:
            self._host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            self._host.copy_(tensor.detach(), non_blocking=True)
            self._arrived = torch.cuda.Event()
            self._arrived.record()
        else:
            self._host = tensor.detach().cpu()

    def read(self) -> Tensor:
        """Return the values on the host."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._host


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a small host tensor to `device`, without waiting for the device."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
