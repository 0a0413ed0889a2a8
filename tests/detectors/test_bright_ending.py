"""Bright Ending against the published formula, from maps that are kept whole."""

from __future__ import annotations

import pytest
import torch
from diffusers import PNDMScheduler, StableDiffusionPipeline
from torch import Tensor

from memtrain.detectors.base import DenoiserStep
from memtrain.detectors.bright_ending import BrightEnding, eos_mask
from memtrain.errors import ProbeError
from memtrain.evaluation.sampling.generate import generate, read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.detectors.conftest import GUIDANCE, PROMPTS, SEEDS, sample_by_hand

STEPS = 4


def published(pipeline: StableDiffusionPipeline, prompt: str, seed: int) -> float:
    """Mask of the last call, then the norm at every call, as in two passes."""
    seen = sample_by_hand(pipeline, prompt, seed, STEPS)
    first_block = seen.maps[-1][:1]
    mask = torch.stack([site[:, :, seen.length - 1].mean(dim=0) for site in first_block]).mean(dim=0).view(8, 8)
    norms = [
        float(((text - empty) * mask).norm() / mask.mean())
        for text, empty in zip(seen.conditional, seen.unconditional, strict=True)
    ]
    return sum(norms) / len(norms)


def test_the_score_is_the_published_one_in_any_batch(exact: StableDiffusionPipeline) -> None:
    detector = BrightEnding()
    options = {"seeds": SEEDS, "steps": STEPS, "guidance_scale": GUIDANCE, "batch_size": 4, "progress": False}
    readings = read_prompts_with(exact, PROMPTS, [detector], sampling=Sampling(**options))[detector.name]
    assert readings.shape == (3, 2, 1)
    scores = detector.score_images(readings)
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate(SEEDS):
            assert float(scores[row, column]) == pytest.approx(published(exact, prompt, seed), rel=2e-6)


def test_the_mask_is_of_the_last_call_of_any_scheduler(pipeline: StableDiffusionPipeline) -> None:
    """PNDM calls the denoiser once more than there are steps."""
    totals = set()

    class Counting(BrightEnding):
        def read(self, step: DenoiserStep) -> Tensor | None:
            totals.add(step.total)
            return super().read(step)

    kept = pipeline.scheduler
    try:
        pipeline.scheduler = PNDMScheduler.from_config(kept.config, skip_prk_steps=True)
        for sample in (generate, read_prompts_with):
            sample(pipeline, ["a"], detectors=[Counting()], sampling=Sampling(seeds=[0], steps=STEPS, progress=False))
    finally:
        pipeline.scheduler = kept
    assert totals == {STEPS + 1}


def test_a_mask_of_another_size_is_interpolated() -> None:
    ramp = torch.arange(8.0).repeat(4, 1)
    mask = eos_mask({"a": ramp.flatten()[None], "b": 3 * ramp.flatten()[None]}, height=8, width=16)
    assert mask.shape == (1, 8, 16)
    torch.testing.assert_close(mask[0, 0, 1:15:2], 2 * (torch.arange(7.0) + 0.25))
    assert torch.equal(eos_mask({"a": ramp.flatten()[None]}, height=4, width=8)[0], ramp)


def test_sampling_that_ends_early_is_an_error() -> None:
    with pytest.raises(ProbeError, match="before the last one"):
        BrightEnding().condense([torch.rand(2, 1, 8, 8)] * 3)
