"""Scores of prompts without images: the same as while sampling, in fewer calls, and explained."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.errors import ConfigurationError
from memtrain.evaluation.detection import detect, print_detection
from memtrain.evaluation.generate import generate, read_prompts_with
from memtrain.evaluation.prompts import PromptToScore

PROMPTS = ["a cat", "the dogs", "b"]


def test_readings_are_those_of_whole_samplings(pipeline: StableDiffusionPipeline) -> None:
    detectors = [GuidanceNorm(), GuidanceNorm(steps=None), MemAttn("E"), MemAttn("D")]
    options = {"seeds": [0, 3], "steps": 5, "guidance_scale": 4.0, "batch_size": 4, "progress": False}
    alone = read_prompts_with(pipeline, PROMPTS, detectors, **options)  # type: ignore[arg-type]
    trace = generate(pipeline, PROMPTS, detectors=detectors, **options)  # type: ignore[arg-type]
    assert set(alone) == set(trace.readings)
    for name, readings in alone.items():
        torch.testing.assert_close(readings, trace.readings[name])


@pytest.mark.parametrize(
    ("detectors", "calls"), [([GuidanceNorm(), MemAttn("E")], 1), ([GuidanceNorm(3)], 3), ([MemAttn("D")], 5)]
)
def test_sampling_stops_when_nothing_is_read_any_more(
    pipeline: StableDiffusionPipeline, detectors: list[GuidanceNorm | MemAttn], calls: int
) -> None:
    seen = []
    handle = pipeline.unet.register_forward_hook(lambda *ignored: seen.append(1))
    try:
        read_prompts_with(pipeline, ["a"], detectors, seeds=[0], steps=5, progress=False)
    finally:
        handle.remove()
    assert len(seen) == calls


def test_without_a_detector_there_is_nothing_to_do(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ConfigurationError, match="No detector"):
        read_prompts_with(pipeline, ["a"], [], seeds=[0])


def test_files_and_what_is_printed(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    prompts = [PromptToScore(text, index in (0, 3)) for index, text in enumerate(["a", "bb [red]", "ccc", "dddd" * 9])]
    results = detect(
        pipeline, prompts, detectors=[GuidanceNorm(), MemAttn("E")], output=tmp_path, seeds=[0], steps=3, progress=False
    )
    assert json.loads((tmp_path / "detection.json").read_text()) == results
    assert results["truncated_prompts"] == 1
    assert results["detectors"]["memattn_e"]["denoiser_calls"] == 1
    assert results["prompt_length"]["auroc"] == pytest.approx(0.5)
    table = pq.read_table(tmp_path / "prompts.parquet")
    assert table.column_names == ["prompt", "memorized", "prompt_length", "guidance_norm_1", "memattn_e"]
    assert table["prompt_length"].to_pylist() == [3, 9, 5, 12]
    console = Console(file=io.StringIO(), width=120)
    print_detection(results, table, tmp_path, console=console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "bb [red]" in shown
    assert "AUROC of prompt length alone: 0.500" in shown
    assert "1 prompt(s) are longer" in shown

    unlabelled = [PromptToScore(prompt.text) for prompt in prompts]
    results = detect(
        pipeline, unlabelled, detectors=[GuidanceNorm()], output=tmp_path, seeds=[0], steps=3, progress=False
    )
    print_detection(results, pq.read_table(tmp_path / "prompts.parquet"), tmp_path, console=console)
    assert "add such prompts" in console.file.getvalue()  # type: ignore[attr-defined]
