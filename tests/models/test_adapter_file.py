"""LoRA files of others: what is read, and what is refused."""

from __future__ import annotations

import copy
import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.models.adapter_file import adapter_path, load_adapter
from memtrain.models.adapters import adapted_layers
from tests.conformance.pipelines import pipeline_of

SITE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
DOWN, UP = torch.linspace(-1, 1, 32).view(2, 16), torch.linspace(2, -1, 32).view(16, 2)


def names(form: str, site: str = SITE) -> tuple[str, str]:
    """Of the two factors."""
    if form == "kohya":
        flat = f"lora_unet_{site.replace('.', '_')}"
        return f"{flat}.lora_down.weight", f"{flat}.lora_up.weight"
    ends = {"peft": ("lora_A", "lora_B"), "diffusers": ("lora.down", "lora.up")}[form]
    return f"unet.{site}.{ends[0]}.weight", f"unet.{site}.{ends[1]}.weight"


def write(path: Path, form: str = "peft", *, site: str = SITE, **more: Tensor) -> Path:
    first, second = names(form, site)
    save_file(
        {first: DOWN, second: UP, **{name: value.clone() for name, value in more.items()}}, path, {"format": "pt"}
    )
    return path


@pytest.fixture
def fresh(pipeline: StableDiffusionPipeline) -> Callable[[], Any]:
    return lambda: copy.deepcopy(pipeline)


@pytest.mark.parametrize(("form", "factor"), [("peft", 1.0), ("diffusers", 1.0), ("kohya", 0.25)])
def test_every_format_becomes_part_of_the_weights(
    form: str, factor: float, fresh: Callable[[], Any], tmp_path: Path
) -> None:
    """kohya's alpha of 0.5 at rank 2 is a scale of 0.25."""
    alpha = {f"lora_unet_{SITE.replace('.', '_')}.alpha": torch.tensor(0.5)} if form == "kohya" else {}
    loaded, before = fresh(), fresh().unet.state_dict()
    wanting = [value.requires_grad for value in loaded.unet.parameters()]
    assert load_adapter(loaded, adapter_path(write(tmp_path / "a.safetensors", form, **alpha)), scale=2.0) == 1
    after = loaded.unet.state_dict()
    assert after.keys() == before.keys()
    for name, value in before.items():
        change = 2.0 * factor * UP @ DOWN if name == f"{SITE}.weight" else torch.zeros(())
        torch.testing.assert_close(after[name], value + change)
    assert [value.requires_grad for value in loaded.unet.parameters()] == wanting
    assert not loaded.unet._hf_peft_config_loaded


def test_it_can_stay_a_layer_of_its_own(fresh: Callable[[], Any], tmp_path: Path) -> None:
    loaded, fused = fresh(), fresh()
    path = adapter_path(write(tmp_path / "a.safetensors"))
    load_adapter(loaded, path, scale=0.5, merge=False)
    load_adapter(fused, path, scale=0.5)
    assert list(adapted_layers(loaded.unet)) == [SITE]
    inputs = (torch.randn(1, 4, 8, 8), 7, torch.randn(1, 5, 16))
    with torch.no_grad():
        torch.testing.assert_close(loaded.unet(*inputs).sample, fused.unet(*inputs).sample)


def test_a_family_without_a_loader_of_its_own(tmp_path: Path) -> None:
    loaded = pipeline_of("pixart")
    site = next(name for name, _ in loaded.transformer.named_modules() if name.endswith("attn2.to_v"))
    width = loaded.transformer.get_submodule(site).weight.shape
    tensors = {f"transformer.{site}.lora_A.weight": torch.ones(1, width[1])}
    tensors[f"transformer.{site}.lora_B.weight"] = torch.ones(width[0], 1)
    save_file(tensors, tmp_path / "a.safetensors")
    before = loaded.transformer.get_submodule(site).weight.detach().clone()
    load_adapter(loaded, tmp_path / "a.safetensors")
    torch.testing.assert_close(loaded.transformer.get_submodule(site).weight, before + 1)


@pytest.mark.parametrize("kind", ["nothing", "no adapter", "another model", "another shape"])
def test_what_fits_no_layer_is_refused(kind: str, fresh: Callable[[], Any], tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    if kind == "nothing":
        save_file({"text_encoder_9.layer.lora_A.weight": DOWN, "text_encoder_9.layer.lora_B.weight": UP}, path)
    elif kind == "no adapter":
        save_file({"conv_in.weight": DOWN}, path)
    elif kind == "another model":
        write(path, site="transformer_blocks.0.attn.to_v")
    else:
        first, second = names("peft")
        save_file({first: torch.ones(2, 24), second: UP}, path)
    with pytest.raises(ConfigurationError, match="fit"):
        load_adapter(fresh(), adapter_path(path))


def test_what_fits_in_part_is_said(fresh: Callable[[], Any], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first, second = names("peft", "down_blocks.7.to_v")
    path = write(tmp_path / "a.safetensors", **{first: DOWN, second: UP})
    with caplog.at_level(logging.WARNING, "memtrain"):
        assert load_adapter(fresh(), adapter_path(path)) == 1
    assert "only 1 of 2 adapters fit" in caplog.text


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no LoRA file"):
        adapter_path(tmp_path / "missing.safetensors")
    with pytest.raises(ConfigurationError, match=r"no LoRA file .*pytorch_lora_weights.safetensors"):
        adapter_path(tmp_path)
    (tmp_path / "adapter.bin").write_bytes(pickle.dumps({"lora_A": 1}))
    torch.save({"unet.to_q.lora_A.weight": DOWN}, tmp_path / "adapter.pt")
    for name in ("adapter.bin", "adapter.pt"):
        with pytest.raises(ConfigurationError, match="could run code"):
            adapter_path(tmp_path / name)
    magnitudes = write(tmp_path / "dora.safetensors", "kohya", **{"lora_unet_x.dora_scale": UP})
    with pytest.raises(ConfigurationError, match="silently ignore"):
        adapter_path(magnitudes)
    assert adapter_path(write(tmp_path / "pytorch_lora_weights.safetensors").parent).name.startswith("pytorch")
