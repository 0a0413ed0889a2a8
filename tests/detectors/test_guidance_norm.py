"""The guidance norm detector: which calls it reads, and how it averages them."""

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.detectors.base import DenoiserStep
from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from tests.detectors.conftest import GUIDANCE, PROMPTS, SEEDS, sample_by_hand


def step(index: int, size: float = 1.0) -> DenoiserStep:
    """A call whose two predictions differ by `size` in each of 16 elements, so by 4 `size` in norm."""
    unconditional = torch.zeros(2, 4, 2, 2)
    return DenoiserStep(index, 981.0 - 20 * index, unconditional + size, unconditional)


def test_published_direction() -> None:
    """Memorized prompts have the larger norm, and both predictions are needed."""
    assert GuidanceNorm.higher_means_memorized is True
    assert {"conditional", "unconditional"} <= GuidanceNorm.needs


@pytest.mark.parametrize(("steps", "read"), [(1, [True, False, False]), (2, [True, True, False]), (None, [True] * 3)])
def test_reads_the_first_steps(steps: int | None, read: list[bool]) -> None:
    """None means all."""
    detector = GuidanceNorm(steps)
    assert [detector.read(step(index)) is not None for index in range(3)] == read


def test_reading_is_the_norm_per_image() -> None:
    """√16 · 3 for each of the two images."""
    reading = GuidanceNorm().read(step(0, 3.0))
    assert reading is not None
    torch.testing.assert_close(reading, torch.tensor([12.0, 12.0]))


def test_the_score_is_the_published_one_in_any_batch(exact: StableDiffusionPipeline) -> None:
    """Raw predictions, the norm over all channels and pixels, the mean over images and then over steps."""
    detectors = [GuidanceNorm(), GuidanceNorm(3), GuidanceNorm(None)]
    options = {"seeds": SEEDS, "steps": 4, "guidance_scale": GUIDANCE, "batch_size": 4, "progress": False}
    readings = read_prompts_with(exact, PROMPTS, detectors, sampling=Sampling(**options))
    for row, prompt in enumerate(PROMPTS):
        norms = []
        for seed in SEEDS:
            seen = sample_by_hand(exact, prompt, seed, 4)
            pairs = zip(seen.conditional, seen.unconditional, strict=True)
            norms.append([float((text - empty).flatten().norm()) for text, empty in pairs])
        per_step = [sum(each) / len(SEEDS) for each in zip(*norms, strict=True)]
        for detector, steps in zip(detectors, (1, 3, 4), strict=True):
            expected = sum(per_step[:steps]) / steps
            assert float(detector.score(readings[detector.name])[row]) == pytest.approx(expected, rel=2e-6)


def test_score_is_the_mean_over_steps_and_images() -> None:
    """One value per image, then one per prompt; prompts do not mix."""
    readings = torch.arange(12.0).view(2, 3, 2)
    detector = GuidanceNorm(2)
    torch.testing.assert_close(detector.score_images(readings), torch.tensor([[0.5, 2.5, 4.5], [6.5, 8.5, 10.5]]))
    torch.testing.assert_close(detector.score(readings), torch.tensor([2.5, 8.5]))


def test_names_tell_configurations_apart() -> None:
    """So that both can run on one sampling."""
    assert GuidanceNorm().name == "guidance_norm_1"
    assert GuidanceNorm(None).name == "guidance_norm_all"


def test_no_steps_are_refused() -> None:
    """It would read nothing."""
    with pytest.raises(ConfigurationError, match="steps=0"):
        GuidanceNorm(0)
