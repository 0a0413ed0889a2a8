"""Where a pipeline's parts are: all on one device, or each there for its own calls alone.

Offloading is that of diffusers (`enable_model_cpu_offload`): text encoders, denoiser and autoencoder take turns on the
device, which then has to hold the largest of them. Every other way to call a part is refused
(:func:`memtrain.models.stock_pipeline.refuse_offloaded`). Weights of a part that is larger than the device are not cut.
"""

from __future__ import annotations

from typing import Any

import torch

from memtrain.errors import ConfigurationError
from memtrain.models.stock_pipeline import denoiser_of


def placed(pipeline: Any, device: str, *, offload: bool = False) -> Any:
    """The pipeline on a device.

    Args:
        pipeline: on the CPU.
        device: such as `cuda:0`.
        offload: let its parts wait on the CPU between their calls.

    Raises:
        ConfigurationError: if there is nothing to offload from, or the package that does it is missing.
    """
    if not offload:
        return pipeline.to(device)
    if torch.device(device).type == "cpu":
        raise ConfigurationError(
            "offload=True on a machine without a GPU",
            expected="a GPU, whose memory holds the largest part of the pipeline",
            remedy="leave --offload out",
        )
    try:
        pipeline.enable_model_cpu_offload(device=device)
    except ImportError as error:
        raise ConfigurationError(
            f"offload=True needs accelerate: {error}", expected="the package", remedy="pip install accelerate"
        ) from error
    return pipeline


def offloaded(pipeline: Any) -> bool:
    """Whether parts of a pipeline wait elsewhere between their calls."""
    return getattr(denoiser_of(pipeline), "_hf_hook", None) is not None


def execution_device(pipeline: Any) -> torch.device:
    """Where a pipeline computes, also while its parts wait elsewhere."""
    device: torch.device = getattr(pipeline, "_execution_device", pipeline.device)
    return device
