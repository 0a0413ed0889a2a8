"""The places of a pipeline's parts: all on one device, or each there only for its own calls.

Offloading is that of diffusers (`enable_model_cpu_offload`): text encoders, denoiser and autoencoder take turns on the
device, which then must hold the largest of them. Every other way to call a part is refused
(:func:`memtrain.models.stock_pipeline.refuse_offloaded`). The weights of a part larger than the device are not split.
"""

from __future__ import annotations

from typing import Any

import torch

from memtrain.errors import ConfigurationError
from memtrain.models.stock_pipeline import denoiser_of


def placed(pipeline: Any, device: str, *, offload: bool = False) -> Any:
    """Place the pipeline on a device.

    Args:
        pipeline: a pipeline on the CPU.
        device: the device, such as `cuda:0`.
        offload: whether its parts wait on the CPU between their calls.

    Raises:
        ConfigurationError: if the device is the CPU, or if the package for offloading is missing.
    """
    if not offload:
        return pipeline.to(device)
    if torch.device(device).type == "cpu":
        raise ConfigurationError(
            "offload=True on a machine without a GPU",
            expected="a GPU, whose memory holds the largest part of the pipeline",
            remedy="remove --offload",
        )
    try:
        pipeline.enable_model_cpu_offload(device=device)
    except ImportError as error:
        raise ConfigurationError(
            f"offload=True needs accelerate: {error}", expected="the package", remedy="pip install accelerate"
        ) from error
    return pipeline


def offloaded(pipeline: Any) -> bool:
    """Return whether parts of a pipeline wait elsewhere between their calls."""
    return getattr(denoiser_of(pipeline), "_hf_hook", None) is not None


def execution_device(pipeline: Any) -> torch.device:
    """Return the device on which a pipeline computes, even while its parts wait elsewhere."""
    device: torch.device = getattr(pipeline, "_execution_device", pipeline.device)
    return device
