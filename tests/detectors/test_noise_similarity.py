"""NeMo's similarity between seeds: what is compared, the window that fits, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.noise_similarity import NoiseSimilarity, noise_difference, pairwise_similarity
from memtrain.errors import ConfigurationError
from memtrain.evaluation.generate import generate


def test_differences_are_scaled_per_image_and_channel() -> None:
    prediction, noise = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    scaled = noise_difference(prediction, noise)
    assert torch.equal(scaled.amin(dim=(2, 3)), torch.zeros(2, 3))
    assert torch.equal(scaled.amax(dim=(2, 3)), torch.ones(2, 3))
    difference = (prediction - noise)[1, 2]
    torch.testing.assert_close(scaled[1, 2], (difference - difference.min()) / (difference.max() - difference.min()))
    assert not noise_difference(noise, noise).any()


@pytest.mark.parametrize("size", [7, 8, 16, 24, 64])
def test_equal_images_have_similarity_one_and_others_less(size: int) -> None:
    images = torch.rand(3, 4, size, size)
    torch.testing.assert_close(pairwise_similarity(images, images), torch.ones(3))
    other = pairwise_similarity(images, torch.rand(3, 4, size, size))
    assert bool((other < 0.7).all())
    halves = torch.cat([pairwise_similarity(images[:1], images[1:2]), pairwise_similarity(images[1:2], images[2:])])
    torch.testing.assert_close(pairwise_similarity(images[:2], images[1:]), halves)


def ssim(first: torch.Tensor, second: torch.Tensor) -> float:
    """Wang et al. (2004) written out: an 11-pixel Gaussian window of 1.5 pixels, K1 = 0.01, K2 = 0.03, range 1.

    Images are continued by reflection.
    """
    offset = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(offset**2) / (2 * 1.5**2))
    window = (line[:, None] * line / line.sum() ** 2)[None, None]
    x, y = (torch.nn.functional.pad(image[:, None].double(), (5,) * 4, mode="reflect") for image in (first, second))

    def mean(image: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.conv2d(image, window)

    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    value = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    return float(value.mean())


def test_one_scale_is_the_published_ssim() -> None:
    first = torch.rand(2, 16, 16)
    second = 0.7 * first + 0.3 * torch.rand(2, 16, 16)
    # One scale is SSIM to the power 0.33.
    expected = ssim(first, second) ** 0.33
    assert float(pairwise_similarity(first[None], second[None])) == pytest.approx(expected, abs=1e-4)


def test_the_highest_pair_is_the_score(pipeline: StableDiffusionPipeline) -> None:
    detector = NoiseSimilarity()
    trace = generate(pipeline, ["a cat", "b"], seeds=[0, 1, 2], steps=2, detectors=[detector], progress=False)
    readings = trace.readings["noise_similarity"]
    assert readings.shape == (2, 3, 1, 4, 8, 8)
    pairs = [pairwise_similarity(readings[:, a, 0], readings[:, b, 0]) for a, b in ((0, 1), (0, 2), (1, 2))]
    torch.testing.assert_close(detector.score(readings), torch.stack(pairs).amax(dim=0))
    twice = torch.cat([readings, readings[:, :1]], dim=1)
    torch.testing.assert_close(detector.score(twice), torch.ones(2))
    assert detector.score_images(twice).shape == (2, 4)


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least two seeds"):
        NoiseSimilarity().score(torch.rand(2, 1, 1, 4, 8, 8))
    with pytest.raises(ConfigurationError, match="latents of 6 pixels"):
        pairwise_similarity(torch.rand(1, 4, 6, 6), torch.rand(1, 4, 6, 6))
