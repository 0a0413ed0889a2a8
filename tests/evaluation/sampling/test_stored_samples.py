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
from memtrain.evaluation.sampling.stored_samples import StoredSamples

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


def test_another_sampling_lies_beside(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever images depend on gives a folder of its own, and what lies there is taken for nothing else."""
    one = Sampling(seeds=(3,), steps=1, progress=False)
    first = generate(pipeline, ["a"], sampling=one, store=tmp_path)
    for prompts, sampling, detectors in (
        (["b"], one, []),
        (["a"], replace(one, guidance_scale=2.0), []),
        (["a"], one, [GuidanceNorm()]),
    ):
        generate(pipeline, prompts, sampling=sampling, detectors=detectors, store=tmp_path)
    with torch.no_grad():
        weight = pipeline.unet.conv_out.bias
        was = weight.clone()
        weight.add_(1.0)
        try:
            changed = generate(pipeline, ["a"], sampling=one, store=tmp_path)
        finally:
            weight.copy_(was)
    assert len(list(tmp_path.iterdir())) == 5
    assert not torch.equal(changed.images, first.images)

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("sampled again")

    monkeypatch.setattr(module, "_batch", never)
    assert torch.equal(generate(pipeline, ["a"], sampling=one, store=tmp_path).images, first.images)


def test_a_folder_of_another_sampling_is_refused(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    StoredSamples(tmp_path, {"steps": 1}, count=2, batch=2).write(range(2), images, {})
    with pytest.raises(ConfigurationError, match="steps was 1 and is 2"):
        StoredSamples(tmp_path, {"steps": 2}, count=2, batch=2)


def test_readings_of_a_type_that_is_not_kept_are_refused(tmp_path: Path) -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    samples = StoredSamples(tmp_path, {}, count=1, batch=1)
    with pytest.raises(ConfigurationError, match=r"readings\.x have type float16"):
        samples.write(range(1), images, {"x": torch.zeros(1, 1, dtype=torch.float16)})
