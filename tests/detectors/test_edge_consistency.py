"""Edge consistency against SciPy's Sobel filter and the stock decoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from PIL import Image
from scipy import ndimage

from memtrain.detectors.edge_consistency import EdgeConsistency, common_edges, edges, resized
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.detectors.conftest import GUIDANCE, PROMPTS, sample_by_hand

SEEDS = (0, 5, 9)


def published_edges(image: np.ndarray) -> np.ndarray:
    """SciPy's filter over all three axes of an `(H, W, 3)` image in [0, 1]."""
    length = np.hypot(ndimage.sobel(image, axis=0), ndimage.sobel(image, axis=1))
    return length.sum(axis=2) > 1.5


def test_edges_are_scipys() -> None:
    images = torch.rand(2, 3, 20, 30, generator=torch.Generator().manual_seed(0)) * 0.15
    found = edges(images)
    assert 0.1 < found.float().mean() < 0.9
    for image, mask in zip(images, found, strict=True):
        assert np.array_equal(published_edges(image.movedim(0, -1).double().numpy()), mask.numpy())


@torch.no_grad()
def one_step_image(pipeline: StableDiffusionPipeline, prompt: str, seed: int) -> np.ndarray:
    """`(H, W, 3)` uint8 of the clean image that the scheduler estimates at the first call."""
    seen = sample_by_hand(pipeline, prompt, seed, 10)
    guided = seen.unconditional[0] + GUIDANCE * (seen.conditional[0] - seen.unconditional[0])
    clean = pipeline.scheduler.step(guided, seen.timesteps[0], seen.latents[0]).pred_original_sample
    pixels = pipeline.vae.decode(clean / pipeline.vae.config.scaling_factor).sample[0]
    return ((pixels / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8).movedim(0, -1).numpy()


@pytest.mark.parametrize("kind", ["exact", "exact_velocity"])
def test_the_score_is_the_published_one_in_any_batch(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(kind)
    detector = EdgeConsistency()
    options = {"seeds": SEEDS, "steps": 10, "guidance_scale": GUIDANCE, "batch_size": 4, "progress": False}
    readings = read_prompts_with(pipeline, PROMPTS, [detector], sampling=Sampling(**options))[detector.name]
    assert readings.dtype == torch.uint8
    for row, prompt in enumerate(PROMPTS):
        found = np.stack([published_edges(one_step_image(pipeline, prompt, seed) / 255) for seed in SEEDS])
        common = found.mean(axis=0) > 0.5
        assert 0 < found.mean() < 1
        assert float(detector.score(readings)[row]) == pytest.approx(common.mean(), abs=1e-6)
        each = detector.score_images(readings)[row].tolist()
        assert each == pytest.approx([(one & common).mean() for one in found], abs=1e-6)


def test_small_images_are_enlarged_only_when_published() -> None:
    large = torch.randint(0, 256, (2, 3, 300, 280), dtype=torch.uint8)
    expected = np.asarray(Image.fromarray(large[1].movedim(0, -1).numpy()).resize((256, 256), Image.LANCZOS))
    assert np.array_equal(resized(large, enlarge=False)[1].movedim(0, -1).numpy(), expected)
    small = large[:, :, :16, :16]
    assert resized(small, enlarge=False) is small
    assert resized(small, enlarge=True).shape == (2, 3, 256, 256)


def test_half_of_the_images_are_not_most() -> None:
    found = torch.tensor([[True, True], [True, False]]).view(1, 2, 1, 2)
    assert common_edges(found).tolist() == [[[True, False]]]


def test_a_single_seed_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="there is only one"):
        EdgeConsistency().score(torch.zeros(1, 1, 1, 4, 4))


def test_names_tell_the_configuration() -> None:
    assert EdgeConsistency().name == "edge_consistency"
    assert EdgeConsistency(published=True).name == "edge_consistency_published"
