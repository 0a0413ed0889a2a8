"""Batches by memory: the estimate is the allocator's count, and images do not depend on what fits."""

from __future__ import annotations

import copy
import logging
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.evaluation.sampling import fitting
from memtrain.evaluation.sampling import generate as module
from memtrain.evaluation.sampling.fitting import READING, denoising_bytes, first_call, images_in, images_that_fit
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.models.stock_pipeline import denoiser_of, has_two_halves
from tests.conformance.pipelines import KINDS, pipeline_of
from tests.training.test_memory_estimate import allocated

SIZE = (32, 32)
LONGER = ("unet", "sdxl", "sd3", "flux")
"""Kinds that only the slow tests sample."""
EVERY = [pytest.param(kind, marks=pytest.mark.slow) if kind in LONGER else kind for kind in KINDS]


@pytest.mark.parametrize("kind", EVERY)
def test_the_estimate_is_what_the_allocator_gives_out(kind: str) -> None:
    pipeline, sampling = pipeline_of(kind), Sampling(guidance_scale=4.0, steps=2)
    pipeline.set_progress_bar_config(disable=True)
    denoiser, halves = denoiser_of(pipeline), 2 if has_two_halves(pipeline, 4.0) else 1
    call = dict(first_call(pipeline, sampling, SIZE))
    fixed, each = denoising_bytes(denoiser, call, halves=halves)
    images = 32

    def many(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: many(one) for name, one in value.items()}
        grows = isinstance(value, torch.Tensor) and value.dim() and value.shape[0] == halves
        return value.repeat(images, *[1] * (value.dim() - 1)) if grows else value

    arguments = {name: many(value) for name, value in call.items() if name != "args"}
    positional = [many(value) for value in call["args"]]
    with torch.no_grad():
        denoiser(*positional, **arguments)
        measured = allocated(lambda: denoiser(*positional, **arguments))
    assert 0.7 < (fixed + images * each) / measured < 1.3


def test_images_are_the_same_in_as_many_parts_as_fit(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sampling = Sampling(seeds=(3, 7), steps=2, batch_size=6, progress=False)
    prompts, detectors = ["a", "b", "c", "d"], [GuidanceNorm()]
    expected = generate(pipeline, prompts, sampling=sampling, detectors=detectors)
    whole, sizes = module._batch, []

    def counted(*args: Any, **kwargs: Any) -> Any:
        sizes.append(len(args[1]))
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, "_batch", counted)
    monkeypatch.setattr(fitting, "PIXELS", 0)
    fixed, each = denoising_bytes(pipeline.unet, first_call(pipeline, sampling, (16, 16)), halves=2)
    monkeypatch.setattr(fitting, "free_memory", lambda device: int((fixed + 5.5 * each) / fitting.USABLE))
    with caplog.at_level(logging.INFO):
        found = generate(pipeline, prompts, sampling=sampling, detectors=detectors)
    assert sizes == [3, 3, 2], "even parts of up to 5"
    assert "5 images at once of a batch of 6" in caplog.text
    # Rounding of another batch size may move a pixel by a grey level.
    assert (found.images.float() - expected.images.float()).abs().max() <= 1
    torch.testing.assert_close(found.readings, expected.readings, rtol=1e-3, atol=1e-4)
    sizes.clear()
    generate(pipeline, prompts[:3], sampling=Sampling(seeds=(3, 7), steps=2, batch_size=6, by_memory=False))
    assert sizes == [6], "what is asked for by number is tried"


def test_what_cannot_be_simulated_is_tried_as_it_is(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    odd = copy.copy(pipeline)
    odd.register_modules(unet=copy.deepcopy(pipeline.unet))
    whole = type(odd.unet).forward
    values = lambda self, sample, *args, **kwargs: whole(self, sample * float(sample.max()), *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(type(odd.unet), "forward", values)
    monkeypatch.setattr(fitting, "PIXELS", 0)
    assert images_that_fit(odd, Sampling(steps=2), size=(16, 16)) == 32
    assert "No estimate of the memory that UNet2DConditionModel takes" in caplog.text


def test_one_image_is_always_tried() -> None:
    assert images_in(0, (0, 100)) == images_in(10**9, (10**12, 1)) == 1
    assert images_in(10**9, (10**8, 10**8)) == 7
    assert images_in(10**10, (0, 10**8), reading=READING) == (int(0.85 * 10**10) - READING) // 10**8


@pytest.mark.slow
def test_rows_with_gradients_are_as_many_as_the_estimate_says(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backward pass keeps what a forward pass alone lets go, and the estimate is the allocator's count."""
    monkeypatch.setattr(fitting, "PIXELS", 0)
    call = first_call(pipeline, Sampling(guidance_scale=1.0), (16, 16))
    fixed, each = denoising_bytes(pipeline.unet, call, halves=1, backward=True)
    assert each > 2 * denoising_bytes(pipeline.unet, call, halves=1)[1]
    monkeypatch.setattr(fitting, "free_memory", lambda device: int((fixed + 7.5 * each) / fitting.USABLE))
    assert fitting.rows_with_gradients(pipeline, size=(16, 16)) == 7
    unet = copy.deepcopy(pipeline.unet).requires_grad_(False)
    latents, text = torch.zeros(64, 4, 8, 8), torch.zeros(64, *call["encoder_hidden_states"].shape[1:])

    def step() -> None:
        given = text.clone().requires_grad_()
        unet(latents, torch.tensor(500), encoder_hidden_states=given).sample.square().mean().backward()

    step()
    assert 0.7 < (fixed + 64 * each) / allocated(step) < 1.3
