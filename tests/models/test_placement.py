"""Parts that take turns on a device: the images and readings of a pipeline that is there as a whole."""

from __future__ import annotations

import pytest
import torch

from memtrain.detectors.base import Detector
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.detectors.sharpness import Sharpness
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import generate
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.models.fingerprint import fingerprint
from memtrain.models.placement import offloaded, placed
from tests.conformance.pipelines import pipeline_of

SAMPLING = Sampling(seeds=(0, 1), steps=2, progress=False)


@pytest.mark.parametrize("kind", ["sdxl", "flux"])
def test_offloaded_parts_give_the_same(kind: str) -> None:
    """The hooks of diffusers, from the CPU to the CPU: hooks of detectors stand beside them."""
    pipeline = pipeline_of(kind)
    detectors: list[Detector] = [MemAttn("D")] if kind == "flux" else [MemAttn("D"), GuidanceNorm(None)]
    expected, known = generate(pipeline, ["a", "b"], sampling=SAMPLING, detectors=detectors), fingerprint(pipeline)
    pipeline.enable_model_cpu_offload(device="cpu")
    assert offloaded(pipeline)
    found = generate(pipeline, ["a", "b"], sampling=SAMPLING, detectors=detectors)
    assert torch.equal(found.images, expected.images)
    for name, readings in expected.readings.items():
        assert torch.equal(found.readings[name], readings)
    assert fingerprint(pipeline) == known
    if kind == "sdxl":
        with pytest.raises(ConfigurationError, match="would call the denoiser, which is on the CPU"):
            generate(pipeline, ["a"], sampling=SAMPLING, detectors=[Sharpness()])


def test_nothing_is_offloaded_from_a_cpu() -> None:
    pipeline = pipeline_of("sdxl")
    assert not offloaded(placed(pipeline, "cpu"))
    with pytest.raises(ConfigurationError, match="without a GPU"):
        placed(pipeline, "cpu", offload=True)
