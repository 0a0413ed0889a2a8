"""Loading and saving pipeline folders."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.models.fingerprint import fingerprint
from memtrain.models.pipeline import load_pipeline
from memtrain.training.pipelines.find import load_trainable


def test_what_was_loaded_is_saved_again(pipeline_folder: Path, tmp_path: Path) -> None:
    loaded = load_pipeline(str(pipeline_folder))
    loaded.save_pretrained(tmp_path)
    again = StableDiffusionPipeline.from_pretrained(tmp_path, safety_checker=None)
    for a, b in zip(loaded.unet.parameters(), again.unet.parameters(), strict=True):
        assert torch.equal(a, b)
    assert again.scheduler.config["clip_sample"] is False
    torch.testing.assert_close(again.scheduler.alphas_cumprod, loaded.scheduler.alphas_cumprod)


def test_half_precision_on_disk_is_trained_in_fp32_and_exported_for_stock_diffusers(
    pipeline_folder: Path, tmp_path: Path
) -> None:
    load_pipeline(str(pipeline_folder)).to(torch.float16).save_pretrained(tmp_path / "half")
    trained = load_trainable(str(tmp_path / "half"))
    parts = (trained.denoiser, trained.vae, *trained.text_encoders.values())
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}
    trained.export().save_pretrained(tmp_path / "exported")
    exported = StableDiffusionPipeline.from_pretrained(tmp_path / "exported")
    assert exported("a b", num_inference_steps=2).images[0].size == (16, 16)


def test_a_whole_pipeline_samples_with_ddim(pipeline: StableDiffusionPipeline, pipeline_folder: Path) -> None:
    loaded = load_pipeline(str(pipeline_folder))
    assert type(loaded.scheduler).__name__ == "DDIMScheduler"
    assert fingerprint(loaded) == fingerprint(pipeline)


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
@pytest.mark.parametrize("load", [load_trainable, load_pipeline])
def test_pickled_weights_of_one_part_are_refused_by_training_and_sampling_alike(
    load: Callable[[str], object], part: str, pipeline: StableDiffusionPipeline, pipeline_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(pipeline_folder, folder)
    for weights in (folder / part).glob("*.safetensors"):
        name = "pytorch_model.bin" if part == "text_encoder" else weights.with_suffix(".bin").name
        torch.save(getattr(pipeline, part).state_dict(), folder / part / name)
        weights.unlink()
    with pytest.raises(ConfigurationError, match="cannot be loaded") as refused:
        load(str(folder))
    assert "again as safetensors" in str(refused.value)


def test_a_pipeline_of_another_kind_is_refused(pipeline_folder: Path, tmp_path: Path) -> None:
    index = json.loads((pipeline_folder / "model_index.json").read_text())
    (tmp_path / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionImg2ImgPipeline"}))
    with pytest.raises(ConfigurationError, match="guidance of StableDiffusionImg2ImgPipeline"):
        load_pipeline(str(tmp_path))
