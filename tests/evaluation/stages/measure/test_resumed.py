"""An evaluation that was killed while it sampled goes on, and says what one at a stretch says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.evaluation.sampling import generate as module
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.measure.evaluate_run import UNFINISHED, evaluate_run
from memtrain.evaluation.stages.measure.results import Statistics
from memtrain.evaluation.stages.prompts import Prompt
from memtrain.evaluation.stages.run_samples import RunSamples

SAMPLING = Sampling(seeds=(0, 1), steps=1, batch_size=4, progress=False)


def evaluate(pipeline: StableDiffusionPipeline, output: Path) -> dict[str, Any]:
    images = torch.randint(0, 256, (6, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    prompts = [Prompt(f"k{row}", "abcdef"[row], "unique" if row < 3 else "heldout") for row in range(6)]
    samples = RunSamples(
        prompts=prompts, own_images=images, training_images=images[:3], training_keys=["k0", "k1", "k2"]
    )
    given = StageInput(pipeline=pipeline, output=output, sampling=SAMPLING)
    return evaluate_run(given, samples, statistics=Statistics(false_positive_rate=0.3, resamples=5), kid=False)


def test_a_killed_evaluation_goes_on_with_identical_results(
    pipeline: StableDiffusionPipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = evaluate(pipeline, tmp_path / "whole")
    batches = 0
    sample = module._batch

    def killed(*args: Any, **kwargs: Any) -> Any:
        nonlocal batches
        batches += 1
        if batches == 3:
            raise KeyboardInterrupt
        return sample(*args, **kwargs)

    monkeypatch.setattr(module, "_batch", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipeline, tmp_path / "killed")
    assert any((tmp_path / "killed" / UNFINISHED).iterdir())
    found = evaluate(pipeline, tmp_path / "killed")
    assert batches == 4  # three batches in all: two before the kill, the third tried and then sampled
    del found["created"], expected["created"]
    assert found == expected
    tables = [pq.read_table(tmp_path / name / "samples.parquet") for name in ("killed", "whole")]
    assert tables[0].equals(tables[1])
    assert not (tmp_path / "killed" / UNFINISHED).exists()
