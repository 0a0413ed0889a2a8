"""Generations in files: a killed sampling goes on and gives what one at a stretch gives; another one is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling import generate as module
from memtrain.evaluation.sampling.generate import Trace, generate
from memtrain.evaluation.sampling.settings import Sampling

PROMPTS = ["a dog", "some cat", "xyz"]
SAMPLING = Sampling(seeds=(3, 7), steps=2, batch_size=4, progress=False)


@pytest.fixture(scope="module")
def expected(pipeline: StableDiffusionPipeline) -> Trace:
    return generate(pipeline, PROMPTS, sampling=SAMPLING, detectors=[GuidanceNorm()])


def equal(one: Trace, other: Trace) -> bool:
    name = GuidanceNorm().name
    same = (one.prompts, one.seeds) == (other.prompts, other.seeds)
    return same and torch.equal(one.images, other.images) and torch.equal(one.readings[name], other.readings[name])


def test_a_killed_sampling_goes_on_with_identical_results(
    pipeline: StableDiffusionPipeline, expected: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[int] = []
    whole = module._batch

    def counted(*args: Any, **kwargs: Any) -> Any:
        if len(batches) == 1:
            batches.append(0)
            raise KeyboardInterrupt
        batches.append(len(args[1]))
        return whole(*args, **kwargs)

    monkeypatch.setattr(module, "_batch", counted)
    with pytest.raises(KeyboardInterrupt):
        generate(pipeline, PROMPTS, sampling=SAMPLING, detectors=[GuidanceNorm()], store=tmp_path / "s")
    again = generate(pipeline, PROMPTS, sampling=SAMPLING, detectors=[GuidanceNorm()], store=tmp_path / "s")
    assert batches == [4, 0, 2]  # the batch that was complete is not sampled again
    assert equal(again, expected)
    assert equal(
        generate(pipeline, PROMPTS, sampling=SAMPLING, detectors=[GuidanceNorm()], store=tmp_path / "s"), expected
    )
    assert batches == [4, 0, 2]


def test_another_sampling_is_refused(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    one = Sampling(seeds=(3,), steps=1, progress=False)
    generate(pipeline, ["a"], sampling=one, store=tmp_path)
    for prompts, sampling, detectors, found in (
        (["b"], one, [], "prompts"),
        (["a"], replace(one, guidance_scale=2.0), [], "guidance_scale was 4.0 and is 2.0"),
        (["a"], one, [GuidanceNorm()], "detectors"),
    ):
        with pytest.raises(ConfigurationError, match=found):
            generate(pipeline, prompts, sampling=sampling, detectors=detectors, store=tmp_path)
    with torch.no_grad():
        weight = pipeline.unet.conv_out.bias
        weight.add_(1.0)
        try:
            with pytest.raises(ConfigurationError, match="pipeline was"):
                generate(pipeline, ["a"], sampling=one, store=tmp_path)
        finally:
            weight.sub_(1.0)
