"""Sharpness against reverse-mode derivatives of each half, for predictions of noise and of v."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from memtrain.detectors.base import DenoiserStep
from memtrain.detectors.sharpness import Sharpness, central_difference
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.detectors.conftest import GUIDANCE, PROMPTS, SEEDS, sample_by_hand


def published(pipeline: StableDiffusionPipeline, prompt: str, seed: int, *, as_in_code: bool = False) -> float:
    """Scores of both halves, and the product of each Jacobian with their difference, by two backward passes."""
    seen = sample_by_hand(pipeline, prompt, seed, 10)
    timestep, latents = seen.timesteps[0], seen.latents[0]
    alpha = float(pipeline.scheduler.alphas_cumprod[timestep])

    def score(at: Tensor, row: int) -> Tensor:
        prediction = pipeline.unet(at, timestep, seen.text[row : row + 1]).sample
        if pipeline.scheduler.config.prediction_type == "epsilon":
            return -prediction / (1 - alpha) ** 0.5
        if as_in_code:
            return (alpha**0.5 * prediction - latents) / (1 - alpha)
        clean = alpha**0.5 * at - (1 - alpha) ** 0.5 * prediction
        return (alpha**0.5 * clean - at) / (1 - alpha)

    direction = (score(latents, 0) - score(latents, 1)).detach()
    with sdpa_kernel(SDPBackend.MATH):
        curved = [
            torch.autograd.functional.jvp(lambda at, row=row: score(at, row), latents, direction)[1] for row in (0, 1)
        ]
    return float((curved[0] - curved[1]).norm())


@pytest.mark.parametrize("kind", ["exact", "exact_velocity"])
def test_the_score_is_the_published_one_in_any_batch(kind: str, request: pytest.FixtureRequest) -> None:
    pipeline = request.getfixturevalue(kind)
    detectors = [Sharpness(), Sharpness("finite_difference"), Sharpness(published=True)]
    options = {"seeds": SEEDS, "steps": 10, "guidance_scale": GUIDANCE, "batch_size": 3, "progress": False}
    readings = read_prompts_with(pipeline, PROMPTS[:2], detectors, sampling=Sampling(**options))
    for row, prompt in enumerate(PROMPTS[:2]):
        for column, seed in enumerate(SEEDS):
            expected = published(pipeline, prompt, seed)
            found = [float(detector.score_images(readings[detector.name])[row, column]) for detector in detectors]
            assert found[0] == pytest.approx(expected, rel=1e-6)
            assert found[1] == pytest.approx(expected, rel=1e-3)
            if kind == "exact_velocity" or row + column == 0:
                assert found[2] == pytest.approx(published(pipeline, prompt, seed, as_in_code=True), rel=1e-6)


def test_central_differences_are_exact_for_quadratics_and_0_without_direction() -> None:
    point, direction = torch.randn(2, 2, 3, 3).double()
    direction[1] = 0
    derivative = central_difference(lambda at: at**2, point, direction)
    torch.testing.assert_close(derivative, 2 * point * direction)


def test_what_has_no_derivative_says_what_to_do() -> None:
    class Rounding(torch.autograd.Function):
        @staticmethod
        def forward(values: Tensor) -> Tensor:
            return values.clone()

        @staticmethod
        def setup_context(ctx, inputs, output) -> None:
            pass

    step = DenoiserStep(
        0,
        981.0,
        torch.ones(1, 1, 2, 2),
        torch.zeros(1, 1, 2, 2),
        latents=torch.ones(1, 1, 2, 2),
        alphas_cumprod=torch.linspace(0.99, 0.01, 1000),
        denoise=lambda latents, timestep: (Rounding.apply(latents), latents),
    )
    with pytest.raises(ProbeError, match="finite_difference"):
        Sharpness().read(step)
    with pytest.raises(ConfigurationError, match="method='other'"):
        Sharpness("other")  # type: ignore[arg-type]


def test_names_tell_the_configuration() -> None:
    assert Sharpness().name == "sharpness"
    assert Sharpness("finite_difference", published=True).name == "sharpness_finite_difference_published"
