"""What families share: the schedule of drawn timesteps, sizes, and parts that have to be there."""

from __future__ import annotations

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler

from memtrain.errors import ConfigurationError
from memtrain.training.pipelines.base import words
from memtrain.training.pipelines.find import families
from memtrain.training.pipelines.flux import Flux
from memtrain.training.pipelines.pixart import PixArt
from memtrain.training.pipelines.sana import Sana
from memtrain.training.pipelines.stable_diffusion_3 import StableDiffusion3
from memtrain.training.pipelines.stable_diffusion_xl import StableDiffusionXL
from tests.conformance.pipelines import pipeline_of, tokenizer


def test_drawn_timesteps_are_shifted_as_diffusers_scripts_do() -> None:
    """SD3's schedule: σ = 3 u / (1 + 2 u), read at the evenly spaced place that was drawn."""
    pipeline = pipeline_of("sd3")
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    parts = StableDiffusion3(pipeline)
    drawn = torch.tensor([0, 249, 499, 749, 998, 999])
    expected = [3, 500, 750, 900, 999, 999]
    assert parts.shifted(drawn).tolist() == expected
    assert parts.shifted(drawn).dtype == torch.int64
    u = torch.rand(50)
    script = pipeline.scheduler.timesteps[(u * 1000).long()]
    ours = parts.shifted(999 - (u * 1000).long())
    assert (ours - script.clamp(1, 999)).abs().max() <= 0.5


def test_sampling_does_not_change_the_schedule_of_training() -> None:
    pipeline = pipeline_of("sd3")
    parts = StableDiffusion3(pipeline)
    pipeline.scheduler.set_timesteps(3)
    assert parts.shifted(torch.tensor([499])).tolist() == [500]


def test_flux_dev_is_shifted_when_it_samples_alone() -> None:
    pipeline = pipeline_of("flux")
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    assert Flux(pipeline).shifted(torch.tensor([0, 499, 999])).tolist() == [1, 500, 999]


def test_sana_flows_whatever_solves_its_sampling() -> None:
    pipeline = pipeline_of("sana")
    pipeline.scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    parts = Sana(pipeline)
    assert parts.prediction_type == "flow_prediction"
    assert parts.shifted(torch.tensor([499])).tolist() == [500]


def test_other_schedules_know_no_shift() -> None:
    drawn = torch.tensor([0, 5, 999])
    assert torch.equal(PixArt(pipeline_of("pixart")).shifted(drawn), drawn)


def test_words_are_a_caption_without_its_marks() -> None:
    encoded = tokenizer()(["ab c"], padding="max_length", return_tensors="pt")
    found = words(tokenizer(), encoded["input_ids"], encoded["attention_mask"])
    assert found[0].nonzero().flatten().tolist() == [1, 2, 3]


def test_a_pipeline_without_a_part_is_refused() -> None:
    pipeline = pipeline_of("sdxl")
    pipeline.text_encoder = None
    with pytest.raises(ConfigurationError, match="has no text_encoder"):
        StableDiffusionXL(pipeline)


def test_families_are_found_without_a_list() -> None:
    assert {kind.__name__ for kind in families()} >= {"StableDiffusion", "StableDiffusionXL", "Sana", "Flux"}
