"""A hash that changes with what a pipeline computes, and with nothing else."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

from memtrain.models.fingerprint import fingerprint


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
