"""Warning about prompts whose end the model does not read, before the sampling begins."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import DiffusionPipeline

from memtrain.evaluation.sampling.denoiser_calls import prompt_lengths
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.files.shown import shown
from memtrain.models.stock_pipeline import text_tokenizer


def cut_prompts(pipeline: DiffusionPipeline, prompts: Sequence[PromptToScore]) -> str:
    """Make a line on the number of prompts that are cut off; empty if there are none, or without a tokenizer.

    Args:
        pipeline: the pipeline whose tokenizer counts.
        prompts: the prompts to sample.
    """
    if not prompts or getattr(pipeline, "tokenizer", None) is None:
        return ""
    texts = [prompt.text for prompt in prompts]
    lengths, uncut = (prompt_lengths(pipeline, texts, truncation=cut) for cut in (True, False))
    cut_off = (uncut > lengths).nonzero().flatten().tolist()
    if not cut_off:
        return ""
    return (
        f"{len(cut_off)} of {len(texts)} prompts are longer than the {text_tokenizer(pipeline)[1]} tokens that the "
        f"model reads. Their ends are cut off, first that of {shown(repr(texts[cut_off[0]]), most=60)}"
    )
