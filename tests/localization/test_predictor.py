"""What is read of a pipeline, and of a denoiser that is none of Stable Diffusion's."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.localization.locate import locate
from memtrain.localization.predictor import Predictor
from memtrain.localization.settings import Settings
from memtrain.localization.statistics import ActivationStatistics
from tests.conformance.families import pixart
from tests.conformance.pipelines import pipeline_of

from .planted import planted_unet


def test_the_layers_of_stable_diffusion_are_the_papers_seven() -> None:
    unet = planted_unet()
    predictor = Predictor(unet, _none, _none, shape=(4, 16, 16), timesteps=(981.0,))
    expected = [f"down_blocks.{block}.attentions.{place}" for block in range(3) for place in range(2)]
    assert list(predictor.sites()) == [
        f"{name}.transformer_blocks.0.attn2" for name in [*expected, "mid_block.attentions.0"]
    ]
    assert list(predictor.widths(predictor.sites()).values()) == [8, 8, 8, 8, 16, 16, 16]
    assert len(predictor.sites("*")) == 16


def test_the_first_noise_is_the_published_draw(pipeline: StableDiffusionPipeline) -> None:
    predictor = Predictor.of(pipeline)
    with torch.random.fork_rng():
        expected = torch.randn(10, 4, 8, 8, generator=torch.manual_seed(1))
    assert torch.equal(predictor.noise(10), expected)
    assert predictor.timesteps[:2] == (981.0, 961.0)


def test_velocity_is_turned_into_noise(pipeline: StableDiffusionPipeline) -> None:
    velocity = StableDiffusionPipeline(
        **{
            **pipeline.components,
            "scheduler": DDIMScheduler(prediction_type="v_prediction", clip_sample=False, steps_offset=1),
        },
        requires_safety_checker=False,
    )
    epsilon, converted = Predictor.of(pipeline), Predictor.of(velocity)
    text, noise = epsilon.encode(["a"]), epsilon.noise(1)
    step = torch.tensor([500.0])
    with torch.no_grad():
        output = epsilon.predict(noise, step, text)
        alpha = pipeline.scheduler.alphas_cumprod[500]
        expected = alpha.sqrt() * output + (1 - alpha).sqrt() * noise
        torch.testing.assert_close(converted.predict(noise, step, text), expected)


def test_a_velocity_without_signal_is_not_asked_for(pipeline: StableDiffusionPipeline) -> None:
    def of(kind: str) -> Predictor:
        scheduler = DDIMScheduler(
            prediction_type=kind,
            timestep_spacing="trailing",
            rescale_betas_zero_snr=True,
            clip_sample=False,
            steps_offset=1,
        )
        parts = {**pipeline.components, "scheduler": scheduler}
        return Predictor.of(StableDiffusionPipeline(**parts, requires_safety_checker=False))

    assert of("epsilon").timesteps[:2] == (999.0, 979.0)
    assert of("v_prediction").timesteps[:2] == (979.0, 959.0), "at 999 it would imply the noise that was given"


def test_the_denoiser_is_evaluated_as_it_will_be_used(pipeline: StableDiffusionPipeline) -> None:
    predictor = Predictor.of(pipeline)
    pipeline.unet.mid_block.train()
    try:
        with predictor.evaluating():
            assert not any(module.training for module in pipeline.unet.modules())
        assert pipeline.unet.mid_block.training and not pipeline.unet.conv_in.training
    finally:
        pipeline.unet.eval()


def test_a_denoiser_of_another_family_is_searched_through_two_functions() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        denoiser = pixart().eval()

    def encode(prompts: Sequence[str]) -> Tensor:
        rows = [torch.randn(5, 12, generator=torch.Generator().manual_seed(len(prompt))) for prompt in prompts]
        return torch.stack(rows)

    def predict(latents: Tensor, timesteps: Tensor, text: Tensor) -> Tensor:
        output: Tensor = denoiser(latents, encoder_hidden_states=text, timestep=timesteps).sample
        return output[:, :4]

    predictor = Predictor(denoiser, encode, predict, shape=(4, 8, 8), timesteps=(981.0,))
    assert list(predictor.sites()) == ["transformer_blocks.0.attn2", "transformer_blocks.1.attn2"]
    statistics = ActivationStatistics.measure(predictor, ["a" * length for length in range(20, 40)])
    few = {"seeds": 3, "initial_theta": 1.5, "theta_step": 0.25, "most_k": 3}
    prompts = ["a", "ab", "abc"]
    options = {"statistics": statistics, "threshold": 0.01}
    slow = locate(predictor, prompts, settings=Settings(sequential=True, **few), **options)
    fast = locate(predictor, prompts, settings=Settings(**few), **options)
    assert [one.refined for one in fast.found] == [one.refined for one in slow.found]
    assert all(one.initial for one in fast.found)


def test_what_cannot_be_read_is_refused(pipeline: StableDiffusionPipeline) -> None:
    other = StableDiffusionPipeline(
        **{
            **pipeline.components,
            "scheduler": DDIMScheduler(prediction_type="sample", clip_sample=False, steps_offset=1),
        },
        requires_safety_checker=False,
    )
    with pytest.raises(ConfigurationError, match="'sample' predictions"):
        Predictor.of(other)
    for kind in ("sdxl", "pixart", "sd3", "flux"):
        with pytest.raises(ConfigurationError, match="is not supported"):
            Predictor.of(pipeline_of(kind))
    with pytest.raises(ProbeError, match="Linear belongs to no known family"):
        _ = Predictor(nn.Linear(1, 1), _none, _none, shape=(4, 8, 8), timesteps=(1.0,)).backbone


def _none(*args: object) -> Tensor:
    raise NotImplementedError
