"""A hash that changes with what a pipeline computes, and with nothing else."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from memtrain.models.fingerprint import fingerprint, weights_fingerprint


def test_it_follows_weights_and_scheduler_not_the_place(
    pipeline: StableDiffusionPipeline, pipeline_folder: Path
) -> None:
    known = fingerprint(pipeline)
    again = StableDiffusionPipeline.from_pretrained(pipeline_folder, safety_checker=None)
    assert fingerprint(again) == known

    parameter = next(again.unet.parameters())
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.view(-1)[0] += 1e-3
    assert fingerprint(again) != known
    with torch.no_grad():
        parameter.copy_(before)
    assert fingerprint(again) == known
    again.scheduler = DDPMScheduler.from_config(again.scheduler.config)
    assert fingerprint(again) != known


def test_the_weights_of_a_module_are_hashed_as_profiles_on_disk_are_named() -> None:
    """By names and bytes in row-major order, whatever the place of the values in memory."""
    module = torch.nn.Module()
    module.register_buffer("count", torch.tensor(3))
    module.register_buffer("none", torch.empty(0))
    module.register_buffer("table", torch.tensor([[1.0, 3.0], [2.0, 4.0]]).T)
    module.weight = torch.nn.Parameter(torch.tensor([0.5], dtype=torch.bfloat16))
    expected = b"weight" + b"\x00\x3f" + b"count" + struct.pack("<q", 3) + b"none" + b"table"
    expected += struct.pack("<4f", 1, 2, 3, 4)
    assert weights_fingerprint(module) == hashlib.sha256(expected).hexdigest()
