"""Raw arrays, merged and scored as MemAttn's scripts do it, against the entropies of the stage; seeds of lines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.attention.attention import attention_plots
from memtrain.evaluation.stages.attention.trace import trace_attention
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.prompts import PromptToScore

SAMPLING = Sampling(seeds=[3, 5], steps=3, guidance_scale=4.0, progress=False)


def merged(folder: Path, prompts: int, *, steps: int) -> tuple[np.ndarray, list[int]]:
    """`(steps, prompts, sites, heads, T)` and lengths, from the files."""
    together, lengths = [], []
    for place in range(prompts):
        with np.load(folder / f"{place}_pos.npz", allow_pickle=False) as data:
            arrays = [data[name] for name in data.files]
        lengths.append(int(arrays.pop()))
        sites = len(arrays) // steps
        together.append([np.stack(arrays[step * sites : (step + 1) * sites]) for step in range(steps)])
    return np.array(together).swapaxes(0, 1), lengths


def test_the_arrays_give_the_scores_of_the_stage(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    prompts = [PromptToScore("a", True, type="VM"), PromptToScore("cat b", False), PromptToScore("a", True, seed=9)]
    given = StageInput(pipeline=pipeline, prompts=prompts, output=tmp_path, sampling=SAMPLING)
    results = attention_plots(given, most=0, save_arrays=True)
    assert results["arrays"] == ["arrays_seed3", "arrays_seed5"] and results["own_seeds"] == 1
    trace = trace_attention(pipeline, ["a", "cat b", "a"], sampling=SAMPLING, seeds=[None, None, 9])
    entropies, summaries = [], []
    for name in results["arrays"]:
        arrays, lengths = merged(tmp_path / "attention" / name, 3, steps=3)
        assert arrays.shape[3] == 1 and lengths == trace.lengths.tolist() == [3, 6, 3]
        average = arrays.mean((2, 3))
        each = -average * np.log(average)
        entropies.append(each.sum(2))
        summaries.append([[each[step, row, lengths[row] - 1 :].sum() for row in range(3)] for step in range(3)])
    for values, ours in ((entropies, trace.entropy), (summaries, trace.summary_entropy)):
        torch.testing.assert_close(torch.tensor(np.mean(values, axis=0)).float().T, ours, atol=1e-5, rtol=1e-5)


def test_a_prompt_with_a_seed_of_its_own_is_sampled_with_it(pipeline: StableDiffusionPipeline) -> None:
    both = trace_attention(pipeline, ["a", "a"], sampling=SAMPLING, seeds=[None, 9])
    plain = trace_attention(pipeline, ["a"], sampling=SAMPLING)
    shifted = trace_attention(
        pipeline, ["a"], sampling=Sampling(seeds=[9, 11], steps=3, guidance_scale=4.0, progress=False)
    )
    torch.testing.assert_close(both.attention[0], plain.attention[0])
    torch.testing.assert_close(both.attention[1], shifted.attention[0])
    assert not torch.equal(plain.attention, shifted.attention)


@pytest.mark.parametrize("save", [False, True])
def test_nothing_is_saved_unless_asked_for(pipeline: StableDiffusionPipeline, tmp_path: Path, save: bool) -> None:
    given = StageInput(pipeline=pipeline, prompts=[PromptToScore("a")], output=tmp_path, sampling=SAMPLING)
    attention_plots(given, most=0, save_arrays=save)
    assert len(list(tmp_path.rglob("*.npz"))) == 2 * save
