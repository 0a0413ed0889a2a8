"""Denoising confidence against the step written out: noise, denoised latents and their distance."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.denoising_confidence import DenoisingConfidence
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.detectors.conftest import GUIDANCE, PROMPTS, SEEDS, sample_by_hand


@torch.no_grad()
def published(pipeline: StableDiffusionPipeline, prompt: str, seed: int, timestep: int, *, scaled: bool) -> float:
    """A Heun step from σ to 0 at the noise's own scale: x = σ n, and what it denoises to."""
    seen = sample_by_hand(pipeline, prompt, seed, 10)
    alpha = float(pipeline.scheduler.alphas_cumprod[timestep])
    sigma = ((1 - alpha) / alpha) ** 0.5
    network_input = seen.latents[0] * (sigma / (sigma**2 + 1) ** 0.5 if scaled else 1)
    noisy = network_input * (sigma**2 + 1) ** 0.5
    with_prompt, without = (pipeline.unet(network_input, timestep, seen.text[row : row + 1]).sample for row in (0, 1))
    guided = without + GUIDANCE * (with_prompt - without)
    if pipeline.scheduler.config.prediction_type == "v_prediction":
        denoised = noisy / (sigma**2 + 1) - guided * sigma / (sigma**2 + 1) ** 0.5
    else:
        denoised = noisy - sigma * guided
    return float((noisy - denoised).square().mean())


@pytest.mark.parametrize("kind", ["exact", "exact_velocity"])
def test_the_score_is_the_published_one_in_any_batch(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(kind)
    detectors = [DenoisingConfidence(), DenoisingConfidence(published=True)]
    options = {"seeds": SEEDS, "steps": 10, "guidance_scale": GUIDANCE, "batch_size": 4, "progress": False}
    readings = read_prompts_with(pipeline, PROMPTS, detectors, sampling=Sampling(**options))
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate(SEEDS):
            expected = (
                published(pipeline, prompt, seed, 901, scaled=False),
                published(pipeline, prompt, seed, 999, scaled=True),
            )
            found = [float(detector.score_images(readings[detector.name])[row, column]) for detector in detectors]
            assert found == pytest.approx(expected, rel=2e-6)


def test_names_tell_the_configuration() -> None:
    assert DenoisingConfidence().name == "denoising_confidence"
    assert DenoisingConfidence(published=True).name == "denoising_confidence_published"
