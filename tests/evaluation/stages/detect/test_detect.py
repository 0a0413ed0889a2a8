"""Scores of prompts without images: the same as while sampling, in fewer calls, and explained."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from rich.console import Console
from torch import Tensor

from memtrain.detectors.guidance_norm import GuidanceNorm
from memtrain.detectors.memattn import MemAttn
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.generate import generate, read_prompts_with
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.stages.base import StageInput
from memtrain.evaluation.stages.detect.detect import detect
from memtrain.evaluation.stages.detect.screen import print_detection
from memtrain.evaluation.stages.prompts import PromptToScore
from memtrain.functional.ranking import auroc

PROMPTS = ["a cat", "the dogs", "b"]


def test_readings_are_those_of_whole_samplings(pipeline: StableDiffusionPipeline) -> None:
    detectors = [GuidanceNorm(), GuidanceNorm(steps=None), MemAttn("E"), MemAttn("D")]
    sampling = Sampling(seeds=[0, 3], steps=5, guidance_scale=4.0, batch_size=4, progress=False)
    alone = read_prompts_with(pipeline, PROMPTS, detectors, sampling=sampling)
    trace = generate(pipeline, PROMPTS, detectors=detectors, sampling=sampling)
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
        read_prompts_with(pipeline, ["a"], detectors, sampling=Sampling(seeds=[0], steps=5, progress=False))
    finally:
        handle.remove()
    assert len(seen) == calls


def test_without_a_detector_there_is_nothing_to_do(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(ConfigurationError, match="No detector"):
        read_prompts_with(pipeline, ["a"], [])


def prompts(count: int) -> list[PromptToScore]:
    """The first half memorized."""
    return [PromptToScore("ab cd"[: 1 + index % 5] + chr(97 + index), index < count / 2) for index in range(count)]


def run(pipeline: StableDiffusionPipeline, folder: Path, chosen: list[PromptToScore], **options: Any) -> dict[str, Any]:
    detectors = options.pop("detectors", [GuidanceNorm(), MemAttn("E")])
    own = {name: options.pop(name) for name in ("shard", "part_seconds") if name in options}
    settings = {"seeds": [0], "steps": 3, "progress": False, "batch_size": 8, **options}
    given = StageInput(pipeline=pipeline, prompts=chosen, output=folder, sampling=Sampling(**settings))
    results = detect(given, detectors, **own)
    assert results is not None
    return results


def shown(results: dict[str, Any], folder: Path) -> str:
    console = Console(file=io.StringIO(), width=140)
    print_detection(results, pq.read_table(folder / "prompts.parquet"), folder, console=console)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return text


def test_files_and_what_is_printed(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    chosen = [*prompts(12), PromptToScore("bb [red]", memorized=False), PromptToScore("dddd" * 9, memorized=True)]
    results = run(pipeline, tmp_path, chosen)
    assert json.loads((tmp_path / "detection.json").read_text()) == results
    assert results["truncated_prompts"] == 1
    assert results["detectors"]["memattn_e"]["denoiser_calls"] == 1
    table = pq.read_table(tmp_path / "prompts.parquet")
    names = ["prompt", "count", "memorized", "prompt_length", "guidance_norm_1", "memattn_e", "combined"]
    assert table.column_names == names
    assert table["prompt_length"].to_pylist()[-2:] == [9, 12]
    labels = torch.tensor(table["memorized"].to_pylist())
    for name in ("guidance_norm_1", "combined"):
        figures = results["combined"] if name == "combined" else results["detectors"][name]
        assert figures["auroc"] == pytest.approx(float(auroc(torch.tensor(table[name].to_pylist()), labels)))
    text = shown(results, tmp_path)
    for part in ("bb [red]", "combined", "prompt length", "memorized", "1 % wrong", "1 prompt(s) are longer"):
        assert part in text, part


def test_without_truth_it_says_how_to_read_scores(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    results = run(pipeline, tmp_path, [PromptToScore("a cat")])
    assert results["prompt_length"] is None
    assert results["combined"] is None
    text = shown(results, tmp_path)
    assert "One score alone shows nothing" in text
    assert "column `memorized`" in text


def test_few_prompts_are_not_combined(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    results = run(pipeline, tmp_path, prompts(6))
    assert "3 different prompts of one kind are fewer than 5 folds" in results["combined"]["reason"]
    assert "combined" not in pq.read_table(tmp_path / "prompts.parquet").column_names
    assert "fewer than 5 folds" in shown(results, tmp_path)


@pytest.mark.slow
def test_what_was_scored_is_not_scored_again(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    """The truth may change, the prompts may not; results of other settings stay beside their scores."""
    first = run(pipeline, tmp_path, prompts(6))
    calls: list[int] = []
    handle = pipeline.unet.register_forward_hook(lambda *call: calls.append(1))
    try:
        turned = [PromptToScore(prompt.text, not prompt.memorized) for prompt in prompts(6)]
        again = run(pipeline, tmp_path, turned)
        assert not calls
        assert again["detectors"]["memattn_e"]["auroc"] == pytest.approx(1 - first["detectors"]["memattn_e"]["auroc"])
        other = run(pipeline, tmp_path, prompts(6), seeds=[1])
        assert calls
    finally:
        handle.remove()
    assert other["key"] != first["key"]
    assert json.loads((tmp_path / "detection" / first["key"] / "detection.json").read_text()) == again


def test_a_score_that_is_no_number_is_said_so(pipeline: StableDiffusionPipeline, tmp_path: Path) -> None:
    class Broken(GuidanceNorm):
        name = "broken"

        def score_images(self, readings: Tensor) -> Tensor:
            return super().score_images(readings) / 0 * 0

    results = run(pipeline, tmp_path, prompts(12), detectors=[Broken(), GuidanceNorm()])
    assert results["detectors"]["broken"]["reason"] == "12 of 12 scores are not finite"
    assert "fewer than two detectors" in results["combined"]["reason"]
    assert "12 of 12 scores are not finite" in shown(results, tmp_path)
