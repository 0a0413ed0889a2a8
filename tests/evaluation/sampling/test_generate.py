"""Sampling: determinism across batches, the halves of the guidance batch, and a pipeline left as it was."""

from __future__ import annotations

from contextlib import nullcontext
from typing import ClassVar

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.errors import ConfigurationError, ProbeError
from memtrain.evaluation.sampling.generate import Trace, generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.guidance import guidance_norm
from memtrain.functional.pixels import to_uint8

PROMPTS = ["a dog", "some cat", "xyz"]
STEPS = 3


class Predictions(Detector):
    """Keeps both predictions of every call, to compare them with a computation by hand."""

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "memory"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "unconditional"})
    name = "predictions"

    def read(self, step: DenoiserStep) -> Tensor | None:
        assert step.unconditional is not None
        return torch.stack([step.conditional, step.unconditional], dim=1)

    def score_images(self, readings: Tensor) -> Tensor:
        return readings.flatten(2).mean(2)


class Failing(GuidanceNorm):
    """Breaks at the second call."""

    def read(self, step: DenoiserStep) -> Tensor | None:
        if step.index == 1:
            raise RuntimeError("broken detector")
        return super().read(step)


class Silent(GuidanceNorm):
    """Reads nothing."""

    def read(self, step: DenoiserStep) -> Tensor | None:
        return None


def sample(pipeline: StableDiffusionPipeline, *detectors: Detector, **options: object) -> Trace:
    """Three prompts and two seeds, 3 steps."""
    settings = {"seeds": (3, 7), "steps": STEPS, "guidance_scale": 4.0, "batch_size": 4, "progress": False, **options}
    return generate(pipeline, PROMPTS, detectors=detectors, sampling=Sampling(**settings))  # type: ignore[arg-type]


def by_hand(pipeline: StableDiffusionPipeline, prompt: str, seed: int) -> tuple[Tensor, list[Tensor]]:
    """One image without classifier-free batching: two denoiser passes of one latent per step.

    Returns:
        The image `(3, H, W)` uint8, and per step the conditional and unconditional prediction `(2, C, h, w)`.
    """
    tokens = pipeline.tokenizer([prompt, ""], padding="max_length", truncation=True, return_tensors="pt").input_ids
    text = pipeline.text_encoder(tokens)[0]
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))
    pipeline.scheduler.set_timesteps(STEPS)
    predictions = []
    for timestep in pipeline.scheduler.timesteps:
        with_prompt, without = (pipeline.unet(latents, timestep, text[row : row + 1]).sample for row in (0, 1))
        predictions.append(torch.cat([with_prompt, without]))
        guided = without + 4.0 * (with_prompt - without)
        latents = pipeline.scheduler.step(guided, timestep, latents).prev_sample
    return to_uint8(pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor).sample[0]), predictions


@torch.no_grad()
def test_images_and_predictions_equal_a_two_pass_computation_by_hand(pipeline: StableDiffusionPipeline) -> None:
    """The second half of the guidance batch is the conditional one, also for several prompts and a ragged last one."""
    trace = sample(pipeline, Predictions(), GuidanceNorm(None))
    assert trace.images.shape == (3, 2, 3, 16, 16)
    assert trace.images.dtype == torch.uint8
    assert trace.readings["predictions"].shape == (3, 2, STEPS, 2, 4, 8, 8)
    for p, prompt in enumerate(PROMPTS):
        for k, seed in enumerate((3, 7)):
            image, predictions = by_hand(pipeline, prompt, seed)
            expected = torch.stack(predictions)
            torch.testing.assert_close(trace.readings["predictions"][p, k], expected, atol=1e-4, rtol=1e-4)
            norms = guidance_norm(expected[:, 0], expected[:, 1])
            assert norms.min() > 1e-3  # otherwise swapped halves would not be noticed
            torch.testing.assert_close(trace.readings["guidance_norm_all"][p, k], norms, atol=1e-4, rtol=1e-3)
            assert (trace.images[p, k].int() - image.int()).abs().max() <= 1


@pytest.mark.parametrize("batch_size", [1, 3, 6])
def test_an_image_does_not_depend_on_its_batch(pipeline: StableDiffusionPipeline, batch_size: int) -> None:
    """Up to one grey level, since kernels may sum in another order; another seed is another image."""
    reference = sample(pipeline, GuidanceNorm())
    trace = sample(pipeline, GuidanceNorm(), batch_size=batch_size)
    assert (trace.images.int() - reference.images.int()).abs().max() <= 1
    torch.testing.assert_close(trace.readings, reference.readings, atol=1e-4, rtol=1e-3)
    assert (reference.images[:, 0].int() - reference.images[:, 1].int()).abs().max() > 10


def test_permuted_prompts_permute_scores(pipeline: StableDiffusionPipeline) -> None:
    """Nothing of one prompt reaches another."""
    detector = GuidanceNorm()
    sampling = Sampling(seeds=(0,), steps=2, batch_size=2, progress=False)
    forward = generate(pipeline, PROMPTS, sampling=sampling, detectors=[detector]).readings[detector.name]
    backward = generate(pipeline, PROMPTS[::-1], sampling=sampling, detectors=[detector]).readings[detector.name]
    torch.testing.assert_close(detector.score(forward).flip(0), detector.score(backward), atol=1e-4, rtol=1e-3)


def test_an_image_can_be_had_again_from_the_stock_pipeline(pipeline: StableDiffusionPipeline) -> None:
    """With the seed alone, as the module says."""
    trace = sample(pipeline)
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(7)
    stock = pipeline(PROMPTS[1], generator=generator, num_inference_steps=STEPS, guidance_scale=4.0, output_type="pt")
    pipeline.set_progress_bar_config()
    expected = (stock.images[0] * 255).round()
    assert (trace.images[1, 1].float() - expected).abs().max() <= 1


def test_only_what_detectors_keep_is_stored(pipeline: StableDiffusionPipeline) -> None:
    """One number per image and step, and only for the steps that are read."""
    readings = sample(pipeline, GuidanceNorm(2), GuidanceNorm(None)).readings
    assert {name: tuple(values.shape) for name, values in readings.items()} == {
        "guidance_norm_2": (3, 2, 2),
        "guidance_norm_all": (3, 2, STEPS),
    }


def test_size_is_passed_on(pipeline: StableDiffusionPipeline) -> None:
    """Height before width."""
    assert sample(pipeline, size=(24, 16)).images.shape == (3, 2, 3, 24, 16)


@pytest.mark.parametrize("failing", [False, True])
def test_pipeline_is_left_as_it_was(pipeline: StableDiffusionPipeline, failing: bool) -> None:
    """No hook remains, modes and progress bar are back, also after an exception."""
    pipeline.set_progress_bar_config(leave=False)
    pipeline.unet.train()
    with pytest.raises(RuntimeError, match="broken detector") if failing else nullcontext():
        sample(pipeline, Failing(None) if failing else GuidanceNorm())
    hooks = [
        hook
        for module in pipeline.unet.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ]
    assert not hooks
    assert pipeline.unet.training
    assert not pipeline.vae.training
    assert pipeline._progress_bar_config == {"leave": False}
    pipeline.unet.eval()
    pipeline.set_progress_bar_config()


def test_silence_is_an_error(pipeline: StableDiffusionPipeline) -> None:
    """A detector that saw nothing must not score 0."""
    with pytest.raises(ProbeError, match="read nothing"):
        sample(pipeline, Silent())


def test_unguided_sampling_refuses_a_detector_that_compares(pipeline: StableDiffusionPipeline) -> None:
    """And samples without one."""
    with pytest.raises(ConfigurationError, match="guidance_scale"):
        sample(pipeline, GuidanceNorm(), guidance_scale=1.0)
    assert sample(pipeline, guidance_scale=1.0).images.shape == (3, 2, 3, 16, 16)


@pytest.mark.parametrize("wrong", [{"seeds": ()}, {"seeds": (1, 1)}, {"batch_size": 0}])
def test_senseless_settings_are_refused(pipeline: StableDiffusionPipeline, wrong: dict[str, object]) -> None:
    """Before anything is sampled."""
    with pytest.raises(ConfigurationError, match="settings are invalid"):
        sample(pipeline, **wrong)
    with pytest.raises(ConfigurationError, match="share a name"):
        sample(pipeline, GuidanceNorm(), GuidanceNorm())


def test_prompts_and_seeds_of_arrays_are_those_of_lists(pipeline: StableDiffusionPipeline) -> None:
    listed = generate(pipeline, ["a", "b"], sampling=Sampling(seeds=[0, 1], steps=1, progress=False))
    arrays = Sampling(seeds=np.array([0, 1]), steps=1, progress=False)  # type: ignore[arg-type]
    found = generate(pipeline, np.array(["a", "b"]), sampling=arrays)  # type: ignore[arg-type]
    assert found.prompts == listed.prompts and found.seeds == listed.seeds
    assert torch.equal(found.images, listed.images)
    with pytest.raises(ConfigurationError, match="prompts is 'a cat'"):
        generate(pipeline, "a cat", sampling=arrays)
    with pytest.raises(ConfigurationError, match="seeds are"):
        Sampling(seeds=np.array([0.5]))  # type: ignore[arg-type]
