"""Sampling and detection on every known kind of pipeline: the images it makes itself, and the right half read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import generate, read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.detect.detect import detect
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.models.stock_pipeline import denoiser_of, own_size, sampling_arguments

from .pipelines import KINDS, pipeline_of

PROMPTS = ["a dog", "some cat", "xyz"]
GUIDED = [kind for kind in KINDS if kind != "flux"]


class Calls(Detector):
    """Keeps what the denoiser was given and what it predicted."""

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "memory"
    needs: ClassVar[frozenset[str]] = frozenset({"conditional", "latents"})
    name = "calls"

    def read(self, step: DenoiserStep) -> Tensor | None:
        assert step.latents is not None
        other = torch.zeros_like(step.conditional) if step.unconditional is None else step.unconditional
        return torch.stack([step.latents, step.conditional, other], dim=1)

    def score_images(self, readings: Tensor) -> Tensor:
        return readings.flatten(2).mean(2)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def stock(kind: str) -> Any:
    return pipeline_of(kind)


def sample(pipeline: Any, prompts: list[str], **options: Any) -> Any:
    settings = {"seeds": (3, 7), "steps": 3, "guidance_scale": 4.0, "batch_size": 4, "progress": False}
    detectors = options.pop("detectors", ())
    return generate(pipeline, prompts, sampling=Sampling(**{**settings, **options}), detectors=detectors)


def test_images_are_those_of_the_stock_pipeline(kind: str, stock: Any) -> None:
    trace = sample(stock, PROMPTS)
    side = 32 if kind == "sana" else 16
    assert trace.images.shape == (3, 2, 3, side, side)
    stock.set_progress_bar_config(disable=True)
    image = stock(
        PROMPTS[1],
        generator=torch.Generator().manual_seed(7),
        num_inference_steps=3,
        guidance_scale=4.0,
        output_type="pt",
        height=own_size(stock)[0],
        width=own_size(stock)[1],
        **sampling_arguments(stock),
    ).images[0]
    assert (trace.images[1, 1].float() - (image.float() * 255).round()).abs().max() <= 1
    assert (trace.images[:, 0].int() - trace.images[:, 1].int()).abs().max() > 5


def test_the_conditional_half_is_read_and_no_variance(kind: str, stock: Any) -> None:
    readings = sample(stock, PROMPTS, detectors=[Calls()]).readings["calls"]
    channels = 1 if kind == "flux" else 4
    assert readings.shape == (3, 2, 3, 3, channels, 8, 8)
    alone = sample(stock, PROMPTS[1:2], detectors=[Calls()], batch_size=1).readings["calls"]
    torch.testing.assert_close(readings[1:2], alone, atol=1e-4, rtol=1e-3)
    latents, conditional, unconditional = readings[:, :, 0].unbind(2)
    torch.testing.assert_close(latents[0], latents[1], msg="the same noise for every prompt")
    assert (conditional[0] - conditional[1]).abs().max() > 1e-3, "prompts matter"
    torch.testing.assert_close(unconditional[0], unconditional[1], atol=1e-4, rtol=1e-3)


def test_latents_are_maps_with_their_pixels_in_place(kind: str, stock: Any) -> None:
    """The first call's latents are the noise that the stock pipeline makes for the seed."""
    first = sample(stock, PROMPTS[:1], detectors=[Calls()]).readings["calls"][0, 1, 0, 0]
    noise = torch.randn(1, *first.shape, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(first, noise[0] * stock.scheduler.init_noise_sigma if kind in GUIDED[:3] else noise[0])


def test_one_step_detectors_cost_one_call(kind: str, stock: Any) -> None:
    calls: list[int] = []
    handle = denoiser_of(stock).register_forward_hook(lambda *call: calls.append(1))
    detectors: list[Detector] = [GuidanceNorm()] if kind in GUIDED else [MemAttn("E")]
    try:
        read_prompts_with(
            stock, PROMPTS, detectors, sampling=Sampling(seeds=[0], steps=5, batch_size=3, progress=False)
        )
    finally:
        handle.remove()
    assert len(calls) == 1


def test_detection_scores_or_says_why_not(kind: str, stock: Any, tmp_path: Path) -> None:
    def scored(detector: Detector) -> Any:
        prompts = [PromptToScore(text) for text in PROMPTS]
        sampling = Sampling(seeds=[0], steps=2, progress=False)
        given = StageInput(pipeline=stock, prompts=prompts, output=tmp_path / detector.name, sampling=sampling)
        return detect(given, [detector])

    if kind == "flux":
        with pytest.raises(ConfigurationError, match=r"guidance_norm_all needs unconditional.*FluxPipeline"):
            scored(GuidanceNorm(None))
    else:
        assert scored(GuidanceNorm(None))["prompts"] == 3
    if kind == "sd3":
        with pytest.raises(ConfigurationError, match="memattn_d needs one end of the prompt"):
            scored(MemAttn("D"))
    else:
        assert scored(MemAttn("D"))["prompts"] == 3


def test_an_unknown_kind_is_refused(stock: Any) -> None:
    unknown = type("NewPipeline", (type(stock),), {})
    before = stock.__class__
    stock.__class__ = unknown
    try:
        with pytest.raises(ConfigurationError, match="guidance of NewPipeline"):
            sample(stock, PROMPTS)
    finally:
        stock.__class__ = before
