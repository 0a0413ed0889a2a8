"""Every kind of pipeline in half precision: all that samples works, and reads nearly what it reads in float32."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from memtrain.evaluation.measures.heldout_loss import heldout_loss
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.outpainting import paint_borders
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.attention.attention import attention_plots
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.calibrate.calibrate import calibrate
from memtrain.evaluation.stages.chosen_detectors import chosen_detectors
from memtrain.evaluation.stages.detect.detect import detect
from memtrain.evaluation.stages.localize.localize import localize
from memtrain.evaluation.stages.localize.search import Search
from memtrain.evaluation.stages.measure.counting.planted_secrets import candidate_losses
from memtrain.evaluation.stages.measure.grounds import perfect_copies
from memtrain.evaluation.stages.mitigate.mitigate import mitigate
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.inference.attention_masking import AttentionMasking
from memtrain.localization.settings import Settings

from .pipelines import KINDS, pipeline_of

PROMPTS = ["a dog", "some cat"]
FARTHEST = {torch.bfloat16: 0.15, torch.float16: 0.015}
"""Mean difference of a score, relative to its mean; that of images is less than a tenth of it."""

LONGER = ("unet", "sdxl", "sd3", "flux")
"""Kinds that only the slow tests sample."""
EVERY = [pytest.param(kind, marks=pytest.mark.slow) if kind in LONGER else kind for kind in KINDS]


def in_type(pipeline: Any, dtype: torch.dtype | None) -> Any:
    """A copy with its weights in another type."""
    made = copy.deepcopy(pipeline)
    for part in made.components.values():
        if isinstance(part, torch.nn.Module):
            part.to(dtype)
    return made


@pytest.mark.parametrize("kind", EVERY)
def test_every_detector_reads_nearly_the_same(kind: str, tmp_path: Path) -> None:
    whole = pipeline_of(kind)
    sampling = Sampling(seeds=(3, 7), steps=3, progress=False)
    detectors, _ = chosen_detectors("all", whole, sampling)
    assert len(detectors) > 1

    def read(pipeline: Any) -> dict[str, torch.Tensor]:
        trace = generate(pipeline, PROMPTS, sampling=sampling, detectors=detectors)
        assert not {one.dtype for one in trace.readings.values()} & set(FARTHEST), "readings are in float32"
        scores = {one.name: one.score_images(trace.readings[one.name]).float() for one in detectors}
        return {**scores, "images": trace.images.float() / 255}

    expected = read(whole)
    for dtype, farthest in FARTHEST.items():
        for name, values in read(in_type(whole, dtype)).items():
            most = farthest * values.abs().mean() * (0.1 if name == "images" else 1)
            assert values.isfinite().all()
            assert (values - expected[name]).abs().mean() <= most + 1e-6, (name, dtype)
    prompts = [PromptToScore(text) for text in PROMPTS]
    given = StageInput(pipeline=whole, prompts=prompts, output=tmp_path, sampling=sampling)
    found = [detect(replace(given, pipeline=in_type(whole, kind)), detectors[:1]) for kind in (None, torch.bfloat16)]
    assert [results["dtype"] for results in found] == ["float32", "bfloat16"]
    assert found[0]["key"] != found[1]["key"], "scores of one type are not those of another"


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(FARTHEST))
def test_every_stage_of_prompts_says_in_which_numbers_it_was_made(dtype: torch.dtype, tmp_path: Path) -> None:
    """With the prompts' own images, so that every part of a stage works."""
    prompts = [PromptToScore("a b", True), *(PromptToScore(text, False) for text in ("e", "f g", "h i", "j", "k l"))]
    images = torch.randint(0, 256, (6, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pipeline, sampling = in_type(pipeline_of("unet"), dtype), Sampling(seeds=(0, 1), steps=2, progress=False)
    given = StageInput(pipeline=pipeline, prompts=prompts, output=tmp_path, sampling=sampling)
    with_images = replace(given, own_images=images)
    settings, name = Settings(seeds=2, steps=2), str(dtype).removeprefix("torch.")
    assert calibrate(given, settings=settings)["dtype"] == name
    found = localize(with_images, search=Search(threshold=-1.0, settings=settings), probe_steps=2)
    assert found["dtype"] == name
    assert "unmasked + re-trigger" in found["conditions"]
    assert mitigate(with_images, AttentionMasking(c1=2.0), others=1)["dtype"] == name
    assert attention_plots(given, most=1)["dtype"] == name


@pytest.mark.parametrize("dtype", list(FARTHEST))
def test_images_that_are_encoded_reach_the_denoiser_in_its_type(dtype: torch.dtype) -> None:
    """Also from an autoencoder that is careful in float16, and answers in float32 there."""
    whole = pipeline_of("unet")
    assert whole.vae.config.force_upcast
    half = in_type(whole, dtype)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sampling = Sampling(seeds=(3,), steps=2, progress=False)
    for measure in (
        lambda pipeline: heldout_loss(pipeline, images, captions=PROMPTS, timesteps=2),
        lambda pipeline: candidate_losses(pipeline, images, "a dog", timesteps=2),
        lambda pipeline: paint_borders(pipeline, images, PROMPTS, thickness=4, sampling=sampling).float(),
        lambda pipeline: perfect_copies(pipeline, images).float(),
    ):
        expected = measure(whole)
        assert (measure(half) - expected).abs().mean() <= FARTHEST[dtype] * expected.abs().mean()
