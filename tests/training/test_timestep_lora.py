"""T-LoRA: every sample's adapters have the rank of its own timestep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor

from memtrain.cli.trained_pipeline import TrainedPipeline
from memtrain.errors import ConfigurationError
from memtrain.models.adapters import adapted_layers
from memtrain.training.lora import LoRA
from memtrain.training.text_to_image import TextToImageModule
from memtrain.training.timestep_lora import TimestepRank
from tests.conformance.families import build, call

RULE = TimestepRank(minimum=1, exponent=1.0)
LATENTS, TIMESTEPS = torch.linspace(-2, 2, 3 * 4 * 64).view(3, 4, 8, 8), torch.tensor([0, 400, 999])
TEXT = torch.linspace(-1, 1, 3 * 12 * 16).view(3, 12, 16)
RANKS = {0: 6, 400: 4, 999: 1}
"""Of 6, by the rule: ⌊(1000 − t) / 1000 · 5⌋ + 1."""


def learnt(module: Any, *, rule: TimestepRank | None = RULE, **options: Any) -> Any:
    """A module with adapters that have learnt something."""
    torch.manual_seed(0)
    made = TextToImageModule(
        str(module), lora=LoRA(rank=6, alpha=3, targets=["to_q", "to_v", "conv1"], timestep_rank=rule), ema_decay=None
    )
    generator = torch.Generator().manual_seed(0)
    for value in made.trained():
        value.data.add_(0.3 * torch.randn(value.shape, generator=generator))
    return made


def answer(denoiser: Any) -> Tensor:
    return denoiser(LATENTS, TIMESTEPS, TEXT).sample


def test_the_rule_in_closed_form() -> None:
    assert {t: int(RULE.ranks(torch.tensor([t]), 6)) for t in RANKS} == RANKS
    authors = TimestepRank(minimum=32)
    assert authors.ranks(torch.tensor([0, 250, 500, 999, 1000]), 64).tolist() == [64, 56, 48, 32, 32]
    falling = TimestepRank(minimum=1, exponent=2.0).ranks(torch.tensor([0.0, 500.0, 900.0]), 9)
    assert falling.tolist() == [9, 3, 1], "⌊0.25 · 8⌋ + 1 and ⌊0.01 · 8⌋ + 1"
    tenths = TimestepRank(minimum=1).ranks(torch.arange(0, 1001, 100), 11)
    assert tenths.tolist() == list(range(11, 0, -1)), "rounding does not take a rank away"


def test_each_sample_has_the_rank_of_its_own_timestep(pipeline_folder: Path, pipeline: StableDiffusionPipeline) -> None:
    """Compared with adapters of which the other ranks were taken out, one sample at a time."""
    masked, whole = learnt(pipeline_folder), learnt(pipeline_folder, rule=None)
    with torch.no_grad():
        found, unmasked = answer(masked.denoiser), answer(whole.denoiser)
    for index, (timestep, rank) in enumerate(RANKS.items()):
        cut = learnt(pipeline_folder, rule=None).denoiser
        for layer in adapted_layers(cut).values():
            layer.lora_B["default"].weight.data[:, rank:] = 0
        with torch.no_grad():
            one = slice(index, index + 1)
            expected = cut(LATENTS[one], torch.tensor([timestep]), TEXT[one]).sample
        torch.testing.assert_close(found[one], expected, atol=1e-5, rtol=1e-4)
        assert (rank == 6) == torch.allclose(found[one], unmasked[one], atol=1e-5)


def test_ranks_that_do_not_act_get_no_gradient(pipeline_folder: Path) -> None:
    masked = learnt(pipeline_folder)
    masked.denoiser(LATENTS, torch.tensor([400, 999, 999]), TEXT).sample.square().mean().backward()
    for layer in adapted_layers(masked.denoiser).values():
        gradient = layer.lora_A["default"].weight.grad.flatten(1).abs().sum(dim=1)
        assert (gradient > 0).tolist() == [True] * 4 + [False] * 2


@pytest.mark.parametrize("kind", ["checkpointing", pytest.param("compiled", marks=pytest.mark.slow)])
def test_it_is_the_same_however_the_denoiser_is_run(kind: str, pipeline_folder: Path) -> None:
    plain, other = learnt(pipeline_folder), learnt(pipeline_folder)
    if kind == "checkpointing":
        other.denoiser.enable_gradient_checkpointing()
    else:
        other.denoiser.compile(backend="eager")
    for module in (plain, other):
        result = answer(module.denoiser)
        with torch.no_grad():
            # As the watch does between forward and backward.
            module.denoiser(LATENTS, torch.tensor([999, 999, 999]), TEXT)
        result.square().mean().backward()
    for ours, theirs in zip(plain.trained(), other.trained(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=1e-4)


def test_another_scale_of_timesteps() -> None:
    """FLUX is given t / 1000."""
    with torch.random.fork_rng():
        denoiser = build("flux")
    inject_adapter_in_model(LoraConfig(r=6, target_modules=["to_q", "proj_out"], init_lora_weights=False), denoiser)
    arguments = call("flux")[0]
    with torch.no_grad():
        timesteps = torch.full_like(arguments["timestep"], 0.4)
        before = denoiser(**{**arguments, "timestep": timesteps}).sample
        for layer in adapted_layers(denoiser).values():
            layer.lora_B["default"].weight.data[:, 4:] *= 100
        assert not torch.allclose(denoiser(**{**arguments, "timestep": timesteps}).sample, before)
        RULE.attach(denoiser)
        masked = denoiser(**{**arguments, "timestep": timesteps}).sample
        for layer in adapted_layers(denoiser).values():
            layer.lora_B["default"].weight.data[:, 4:] = 0
        torch.testing.assert_close(masked, denoiser(**{**arguments, "timestep": timesteps}).sample)


def test_sampling_masks_by_timestep_and_stock_diffusers_does_not(
    pipeline_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masked, whole = learnt(pipeline_folder).eval(), learnt(pipeline_folder, rule=None).eval()
    masked.save_adapters(tmp_path)
    assert "Stock diffusers applies all its ranks" in caplog.text
    ours: Any = TrainedPipeline(str(pipeline_folder), tmp_path / "pytorch_lora_weights.safetensors").load()
    theirs = StableDiffusionPipeline.from_pretrained(pipeline_folder)
    theirs.load_lora_weights(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(answer(ours.unet), answer(masked.denoiser), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(answer(theirs.unet), answer(whole.denoiser), atol=1e-5, rtol=1e-4)
        assert not torch.allclose(answer(ours.unet), answer(theirs.unet), atol=1e-3)
    assert ours("a b", num_inference_steps=2, output_type="np").images.shape == (1, 16, 16, 3)
    with pytest.raises(ConfigurationError, match="ran outside its denoiser"):
        ours.unet.get_submodule("down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v")(TEXT)


@pytest.mark.parametrize("options", [{"minimum": 0}, {"exponent": 0.0}])
def test_rules_without_sense_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match="timestep_rank"):
        TimestepRank(**options)
