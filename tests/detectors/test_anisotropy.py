"""Anisotropy against the published formula, pixel by pixel."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.detectors.anisotropy import Anisotropy
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.detectors.conftest import GUIDANCE, PROMPTS, SEEDS, ByHand, sample_by_hand


@torch.no_grad()
def parts(pipeline: StableDiffusionPipeline, seen: ByHand, *, noises: bool) -> tuple[float, float]:
    """A and C of predictions as they are, or of the noises that they imply."""

    def prediction(timestep: int, row: int) -> Tensor:
        latents = seen.latents[0]
        raw = pipeline.unet(latents, timestep, seen.text[row : row + 1]).sample[0]
        alpha = float(pipeline.scheduler.alphas_cumprod[timestep])
        velocity = pipeline.scheduler.config.prediction_type == "v_prediction"
        return alpha**0.5 * raw + (1 - alpha) ** 0.5 * latents[0] if velocity and noises else raw

    first = seen.timesteps[0]
    change = float((prediction(first, 0) - prediction(first, 1)).norm())
    empty = prediction(41, 1)
    difference = prediction(41, 0) - empty
    cosines = [
        float(empty[:, y, x] @ difference[:, y, x] / (empty[:, y, x].norm() * difference[:, y, x].norm()))
        for y in range(8)
        for x in range(8)
    ]
    return change, sum(cosines) / len(cosines)


@pytest.mark.parametrize("kind", ["exact", "exact_velocity"])
def test_the_score_is_the_published_one_in_any_batch(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(kind)
    detectors = [Anisotropy(), Anisotropy(0.5, -3.0), Anisotropy(published=True)]
    options = {"seeds": SEEDS, "steps": 50, "guidance_scale": GUIDANCE, "batch_size": 4, "progress": False}
    readings = read_prompts_with(pipeline, PROMPTS, detectors, sampling=Sampling(**options))
    alpha = float(pipeline.scheduler.alphas_cumprod[981])
    assert pipeline.scheduler.timesteps[[0, -3]].tolist() == [981, 41]
    for row, prompt in enumerate(PROMPTS):
        for column, seed in enumerate(SEEDS):
            seen = sample_by_hand(pipeline, prompt, seed, 1)
            seen.timesteps = [981]
            change, cosine = parts(pipeline, seen, noises=True)
            raw_change, raw_cosine = parts(pipeline, seen, noises=False)
            scale = alpha**0.5 / (1 - alpha) if kind == "exact_velocity" else 1
            expected = change + 2 * cosine, 0.5 * change - 3 * cosine, raw_change * scale + 2 * raw_cosine
            found = [float(detector.score_images(readings[detector.name])[row, column]) for detector in detectors]
            assert found == pytest.approx(expected, rel=2e-6, abs=2e-6)


def test_names_tell_the_configuration() -> None:
    assert Anisotropy().name == "anisotropy"
    assert Anisotropy(2, 1, timestep=61, published=True).name == "anisotropy_2_1_t61_published"


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="timestep=-1"):
        Anisotropy(timestep=-1)
    with pytest.raises(ConfigurationError, match="weight that is not 0"):
        Anisotropy(0, 0)
