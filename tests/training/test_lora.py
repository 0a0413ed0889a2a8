"""Adapters: which layers get them, what they compute, and that stock diffusers reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.training.lora import LoRA
from memtrain.training.pipelines.find import load_trainable
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timestep_lora import TimestepRank

LATENTS, TIMESTEPS = torch.linspace(-2, 2, 2 * 4 * 64).view(2, 4, 8, 8), torch.tensor([10, 700])


def module(folder: Path, *, seed: int | None = 0, **options: Any) -> TextToImageModule:
    """With adapters that have learnt something, unless there is no seed."""
    torch.manual_seed(0)
    made = TextToImageModule(str(folder), lora=LoRA(**{"rank": 2, **options}), ema_decay=None, seed=0)
    if seed is not None:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in made.trained():
                value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return made


def prediction(pipeline: Any, captions: list[str] | None = None) -> Tensor:
    """What a pipeline's denoiser says about fixed latents."""
    ids = pipeline.tokenizer(captions or ["a b", "c d e"], padding="max_length", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return pipeline.unet(LATENTS, TIMESTEPS, pipeline.text_encoder(ids)[0]).sample


def stock(folder: Path) -> StableDiffusionPipeline:
    return StableDiffusionPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.5},
        {"rank": 3, "alpha": 6, "dropout": 0.5},
        {"dora": True, "alpha": 1},
        {"text_encoder": True, "alpha": 3},
        {"targets": ["to_q", "conv1", "ff.net.2"]},
    ],
    ids=lambda options: "-".join(options),
)
def test_stock_diffusers_gives_the_trained_model(
    options: dict[str, Any], pipeline_folder: Path, tmp_path: Path
) -> None:
    trained = module(pipeline_folder, **options).eval()
    trained.save_adapters(tmp_path)
    theirs = stock(pipeline_folder)
    base = prediction(theirs)
    theirs.load_lora_weights(tmp_path)
    ours = trained.export_pipeline()
    assert (prediction(ours) - base).abs().max() > 0.01
    torch.testing.assert_close(prediction(theirs), prediction(ours), atol=1e-5, rtol=1e-5)
    if "dropout" not in options:
        theirs.scheduler = ours.scheduler
        arguments: dict[str, Any] = {"num_inference_steps": 2, "output_type": "np"}
        images = [one("a b", generator=torch.manual_seed(0), **arguments).images for one in (theirs, ours)]
        assert abs(images[0] - images[1]).max() < 1e-5


def test_the_definition(pipeline_folder: Path) -> None:
    """W x + alpha / rank · B A x, in each of the layers."""
    trained = module(pipeline_folder, alpha=3.0)
    layer: Any = trained.denoiser.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v")
    assert isinstance(layer, LoraLayer)
    x = torch.randn(2, 5, layer.in_features)
    first, second = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    torch.testing.assert_close(layer(x), layer.base_layer(x) + 1.5 * x @ first.T @ second.T)


@pytest.mark.parametrize("dora", [False, True])
def test_it_begins_as_no_change_and_trains_adapters_alone(dora: bool, pipeline_folder: Path) -> None:
    trained = module(pipeline_folder, seed=None, dora=dora, text_encoder=True)
    torch.testing.assert_close(prediction(trained.export_pipeline()), prediction(stock(pipeline_folder)))
    names = [name for name, value in trained.named_parameters() if value.requires_grad]
    assert names and all("lora_" in name for name in names)
    assert any(name.startswith("trained_text_encoders.text_encoder.") for name in names)
    batch = {**trained.tokens(["a", "b c"]), "latents": LATENTS}
    trained.sample_loss(batch, TIMESTEPS, trained.step_generator(0)).mean().backward()
    assert all((value.grad is not None) == value.requires_grad for value in trained.parameters())
    assert all(value.grad is not None for name, value in trained.named_parameters() if "lora_B" in name)


@pytest.mark.parametrize("init", ["gaussian", "kaiming"])
def test_the_first_factor_is_drawn_as_asked(init: Any, pipeline_folder: Path) -> None:
    trained = module(pipeline_folder, seed=None, init=init, rank=8)
    weights = torch.cat([value.detach().flatten() for name, value in trained.named_parameters() if "lora_A" in name])
    # Kaiming with a = √5: uniform within 1 / √width, which is 16 here in all layers.
    assert (float(weights.abs().max()) <= 0.25) == (init == "kaiming")
    assert float(weights.std()) == pytest.approx({"gaussian": 1 / 8, "kaiming": 0.25 / 3**0.5}[init], rel=0.1)


def test_adapters_are_in_float32_on_weights_in_half_precision(pipeline_folder: Path) -> None:
    parts = load_trainable(str(pipeline_folder))
    parts.denoiser.to(torch.bfloat16)
    LoRA(rank=2, dora=True).inject(parts)
    kinds = {name: value.dtype for name, value in parts.denoiser.named_parameters()}
    assert {kind for name, kind in kinds.items() if "lora_" in name} == {torch.float32}
    assert {kind for name, kind in kinds.items() if "lora_" not in name} == {torch.bfloat16}


def test_dropout_acts_in_training_alone_and_is_a_function_of_the_seed(pipeline_folder: Path) -> None:
    trained = module(pipeline_folder, dropout=0.5, text_encoder=True)
    batch = {**trained.tokens(["a", "b c"]), "latents": LATENTS}

    def loss(*counters: int) -> Tensor:
        return trained.sample_loss(batch, TIMESTEPS, trained.step_generator(*counters)).detach()

    first = loss(0)
    torch.rand(1)
    state = torch.get_rng_state()
    assert torch.equal(loss(0), first)
    assert torch.equal(torch.get_rng_state(), state), "draws of others are left alone"
    trained.eval()
    without = loss(0)
    assert not torch.equal(without, first)
    whole = module(pipeline_folder, text_encoder=True)
    torch.testing.assert_close(whole.sample_loss(batch, TIMESTEPS, whole.step_generator(0)).detach(), without)


def test_a_file_names_no_dropout(pipeline_folder: Path, tmp_path: Path) -> None:
    """Diffusers leaves adapters that it loads in training mode."""
    module(pipeline_folder, dropout=0.5).save_adapters(tmp_path)
    theirs = stock(pipeline_folder)
    theirs.load_lora_weights(tmp_path)
    assert torch.equal(prediction(theirs), prediction(theirs))


def test_the_average_is_of_adapters_alone(pipeline_folder: Path, tmp_path: Path) -> None:
    trained = TextToImageModule(str(pipeline_folder), lora=LoRA(rank=2), ema_decay=0.9)
    assert trained.ema is not None
    assert [one.shape for one in trained.ema.shadow_params] == [one.shape for one in trained.trained()]
    for shadow in trained.ema.shadow_params:
        shadow.fill_(0.5)
    with trained.averaged_weights():
        trained.save_adapters(tmp_path)
    assert all(
        bool((value == 0.5).all()) for value in load_file(tmp_path / "pytorch_lora_weights.safetensors").values()
    )
    assert any(bool((value != 0.5).any()) for value in trained.trained())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank of at least 1"),
        ({"alpha": 0.0}, "scale above 0"),
        ({"dropout": 1.0}, "of at least 0 and below 1"),
        ({"targets": []}, "names of layers"),
        ({"dora": True, "timestep_rank": TimestepRank()}, "one of both"),
        ({"rank": 2, "timestep_rank": TimestepRank(minimum=3)}, "at most the rank"),
    ],
)
def test_values_without_sense_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        LoRA(**options)


@pytest.mark.parametrize(
    ("target", "message"),
    [("to_query", "matches no layer.*\n.*such as"), ("norm1", "matches LayerNorm|matches GroupNorm")],
)
def test_a_target_without_a_layer_is_refused_beside_one_that_has_some(
    target: str, message: str, pipeline_folder: Path
) -> None:
    with pytest.raises(ConfigurationError, match=message):
        TextToImageModule(str(pipeline_folder), lora=LoRA(targets=["to_q", target]))


def test_text_encoders_are_not_trained_beside_adapters(pipeline_folder: Path) -> None:
    """Their weights would be in no file of adapters."""
    with pytest.raises(ConfigurationError, match="does not hold"):
        TextToImageModule(str(pipeline_folder), lora=LoRA(), train_text_encoder=True)
