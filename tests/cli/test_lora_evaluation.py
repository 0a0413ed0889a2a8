"""`evaluate.py STAGE --model base --lora file`: what is refused, and that every stage sees the adapted model."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file

from memtrain import cli
from memtrain.cli.evaluation import read_command
from memtrain.errors import ConfigurationError
from memtrain.evaluation.stages.base import PromptStage, stage_class, stage_names
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timestep_lora import TimestepRank

STAGES = [name for name in stage_names() if issubclass(stage_class(name), PromptStage)]
MASKING = ["--mitigation.class_path", "memtrain.inference.attention_masking.AttentionMasking"]


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["evaluate.py"])
    monkeypatch.setenv("TQDM_DISABLE", "1")


def adapters(folder: Path, pretrained: Path, **options: Any) -> Path:
    module = TextToImageModule(str(pretrained), lora=LoRA(rank=2, **options), ema_decay=None)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.trained():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    module.save_adapters(folder)
    return folder


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.csv"
    path.write_text("prompt,memorized\na b,1\n" + "".join(f"{letter} x y,0\n" for letter in "cdefgh"))
    return path


def arguments(stage: str, model: Path, prompts: Path, output: Path) -> list[str]:
    sampled = [] if stage == "calibrate" else ["--steps", "2", "--images_per_prompt", "2"]
    chosen = ["--model", str(model), "--prompts", str(prompts), "--output", str(output)]
    return [stage, *chosen, *sampled, *(MASKING if stage == "mitigate" else [])]


def scores(folder: Path) -> torch.Tensor:
    table = pq.read_table(folder / "prompts.parquet")
    (name,) = (name for name in table.column_names if "guidance" in name and "second" not in name)
    return torch.tensor(table[name].to_pylist())


@pytest.mark.slow
def test_a_detector_scores_the_adapted_model_as_a_merged_one(
    pipeline_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    lora = adapters(tmp_path / "lora", pipeline_folder)
    fused = StableDiffusionPipeline.from_pretrained(pipeline_folder)
    fused.load_lora_weights(lora)
    fused.fuse_lora(lora_scale=0.5)
    fused.unload_lora_weights()
    fused.save_pretrained(tmp_path / "fused")
    one = ["--detectors", "[{class_path: memtrain.detectors.guidance_norm.GuidanceNorm}]"]
    added = ["--lora", str(lora), "--lora_scale", "0.5"]
    for name, model, more in (
        ("added", pipeline_folder, added),
        ("fused", tmp_path / "fused", []),
        ("base", pipeline_folder, []),
    ):
        cli.evaluate([*arguments("detect", model, prompts, tmp_path / f"of-{name}"), *one, *more])
    found, expected, base = (scores(tmp_path / f"of-{name}") for name in ("added", "fused", "base"))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
    assert not torch.allclose(found, base, atol=1e-3, rtol=1e-2)
    named = json.loads((tmp_path / "of-added" / "detection.json").read_text())["model"]
    assert named.endswith("pytorch_lora_weights.safetensors at scale 0.5")


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_takes_adapters(stage: str, pipeline_folder: Path, prompts: Path, tmp_path: Path) -> None:
    run = arguments(stage, pipeline_folder, prompts, tmp_path / "output")
    cli.evaluate([*run, "--lora", str(adapters(tmp_path / "lora", pipeline_folder))])
    assert (tmp_path / "output" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_stages_take_adapters_masked_by_timestep_or_refuse_them(
    stage: str, pipeline_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    lora = adapters(tmp_path / "lora", pipeline_folder, timestep_rank=TimestepRank())
    run = [*arguments(stage, pipeline_folder, prompts, tmp_path / "output"), "--lora", str(lora)]
    if stage in ("calibrate", "localize"):
        with pytest.raises(SystemExit, match="ran outside its denoiser"):
            cli.evaluate(run)
        return
    cli.evaluate(run)
    assert (tmp_path / "output" / "report.html").is_file()


@pytest.mark.parametrize("kind", ["missing", "pickled", "unfit"])
def test_files_that_cannot_be_added_are_refused(
    kind: str, pipeline_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    path = tmp_path / f"lora.{'bin' if kind == 'pickled' else 'safetensors'}"
    if kind == "pickled":
        torch.save({"unet.a.lora_A.weight": torch.ones(1)}, path)
    elif kind == "unfit":
        names = ("transformer.blocks.0.to_q.lora_A.weight", "transformer.blocks.0.to_q.lora_B.weight")
        save_file({name: torch.ones(2, 2) for name in names}, path)
    with pytest.raises(SystemExit, match=r"no LoRA file|could run code|fits no layer|does not fit"):
        cli.evaluate([*arguments("detect", pipeline_folder, prompts, tmp_path / "output"), "--lora", str(path)])


def test_adapters_without_a_model_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="without a model"):
        read_command(["detect", "--run", "runs/x", "--lora", "a.safetensors"]).check()
