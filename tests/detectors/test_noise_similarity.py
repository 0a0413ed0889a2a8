"""NeMo's similarity between seeds: what is compared, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.base import DenoiserStep
from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import generate, read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.noise import highest_similarity, noise_difference, pairwise_similarity


def test_the_highest_pair_is_the_score(pipeline: StableDiffusionPipeline) -> None:
    detector = NoiseSimilarity()
    trace = generate(
        pipeline, ["a cat", "b"], sampling=Sampling(seeds=[0, 1, 2], steps=2, progress=False), detectors=[detector]
    )
    readings = trace.readings["noise_similarity"]
    assert readings.shape == (2, 3, 1, 4, 8, 8)
    pairs = [pairwise_similarity(readings[:, a, 0], readings[:, b, 0]) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(detector.score(readings), torch.stack(pairs).amax(dim=0))
    twice = torch.cat([readings, readings[:, :1]], dim=1)
    torch.testing.assert_close(detector.score(twice), torch.ones(2))
    assert detector.score_images(twice).shape == (2, 4)


def test_as_published_it_is_the_second_timestep_on_the_first_noise(pipeline: StableDiffusionPipeline) -> None:
    detector = NoiseSimilarity(published=True)
    sampling = Sampling(seeds=[0, 1, 2], steps=50, guidance_scale=1.0, progress=False)
    readings = read_prompts_with(pipeline, ["a cat"], [detector], sampling=sampling)["noise_similarity_published"]
    noise = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)])
    text = pipeline.encode_prompt("a cat", "cpu", 3, False)[0]
    with torch.no_grad():
        prediction = pipeline.unet(noise, torch.tensor(961), encoder_hidden_states=text).sample
    differences = noise_difference(prediction, noise)
    torch.testing.assert_close(readings[0, :, 0], differences)
    expected = highest_similarity(differences, data_range=None, cropped=True)
    torch.testing.assert_close(detector.score_images(readings)[0], expected)
    # Alike, because the similarity of unlike images is cut off at 0, whatever the data range.
    large = 0.7 * torch.rand(1, 1, 1, 4, 44, 44) + 0.3 * torch.rand(1, 3, 1, 4, 44, 44)
    assert float((NoiseSimilarity().score_images(large) - detector.score_images(large)).abs().max()) > 1e-4
    assert (detector.extra_forwards(50), NoiseSimilarity().extra_forwards(50)) == (1, 0)
    assert "denoise" not in NoiseSimilarity().needs


def test_a_velocity_is_read_as_the_noise_it_implies() -> None:
    generator = torch.Generator().manual_seed(0)
    noise, latents = (torch.randn(2, 4, 8, 8, generator=generator) for _ in range(2))
    alphas = torch.linspace(0.999, 0.005, 1000)
    alpha = float(alphas[980])
    # x = √ᾱ x₀ + √(1 − ᾱ) ε and v = √ᾱ ε − √(1 − ᾱ) x₀.
    clean = (latents - (1 - alpha) ** 0.5 * noise) / alpha**0.5
    velocity = alpha**0.5 * noise - (1 - alpha) ** 0.5 * clean
    common: dict[str, Any] = {"index": 0, "timestep": 980.0, "unconditional": None, "latents": latents}
    expected = NoiseSimilarity().read(DenoiserStep(conditional=noise, **common))
    found = NoiseSimilarity().read(
        DenoiserStep(conditional=velocity, alphas_cumprod=alphas, prediction_type="v_prediction", **common)
    )
    assert found is not None and expected is not None
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert not torch.allclose(found, noise_difference(velocity, latents), atol=1e-2)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least two seeds"):
        NoiseSimilarity().score(torch.rand(2, 1, 1, 4, 8, 8))
