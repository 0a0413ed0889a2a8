"""NeMo's similarity between seeds: what is compared, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.noise_similarity import NoiseSimilarity
from memtrain.errors import ConfigurationError
from memtrain.evaluation.generate import generate
from memtrain.functional.noise import pairwise_similarity


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
