"""Prompts that the model does not read to their end are counted before anything is sampled."""

from diffusers import StableDiffusionPipeline

from memtrain.evaluation.stages.cut_prompts import cut_prompts
from memtrain.evaluation.stages.prompts import PromptToScore


def test_prompts_that_are_cut_off_are_counted(pipeline: StableDiffusionPipeline) -> None:
    short, long = PromptToScore("a cat"), PromptToScore("a long \x1b[2J tale " * 200)
    assert cut_prompts(pipeline, [short]) == cut_prompts(pipeline, []) == ""
    said = cut_prompts(pipeline, [short, long])
    assert said.startswith("1 of 2 prompts are longer than the ") and "\x1b" not in said
