"""What a pipeline is, in a few characters: a hash of its weights and its scheduler.

Two pipelines with the same fingerprint give the same images for the same noise, wherever their files lie. It is what
results are kept under, so that those of one model never continue those of another. Cost: about a second per gigabyte.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from torch import nn

from memtrain.models.backbones.base import unwrap


def fingerprint(pipeline: Any) -> str:
    """SHA-256 of a pipeline's class, parameters, buffers and scheduler configuration, in hexadecimal.

    Args:
        pipeline: a diffusers pipeline. A safety checker does not count.
    """
    digest = hashlib.sha256(type(pipeline).__name__.encode())
    for name, part in sorted(pipeline.components.items()):
        if not isinstance(part, nn.Module) or name == "safety_checker":
            continue
        for key, tensor in sorted(unwrap(part).state_dict().items()):
            digest.update(f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    scheduler = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    digest.update(json.dumps([type(pipeline.scheduler).__name__, scheduler], sort_keys=True, default=str).encode())
    return digest.hexdigest()
