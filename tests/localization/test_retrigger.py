"""The search descends, leaves the model alone, depends on nothing but seed and key, and respects the masks."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler, StableDiffusionPipeline

from memtrain.errors import ConfigurationError, DataError
from memtrain.functional.diffusion import noisy_and_target
from memtrain.localization.retrigger import retrigger
from memtrain.models.neuron_mask import NeuronMask

SITES = [
    "down_blocks.0.attentions.0.transformer_blocks.0.attn2",
    "up_blocks.1.attentions.0.transformer_blocks.0.attn2",
]
IMAGES = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
PROMPTS = ["a b", "c", "d e"]
KEYS = ["x", "y", "z"]


@pytest.fixture
def precise(pipeline: StableDiffusionPipeline) -> StableDiffusionPipeline:
    """In double precision: Adam turns a rounding error of a small gradient into a step of full size."""
    parts = {name: copy.deepcopy(getattr(pipeline, name)).double() for name in ("unet", "vae", "text_encoder")}
    return StableDiffusionPipeline(
        **parts,
        tokenizer=pipeline.tokenizer,
        scheduler=pipeline.scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def test_the_loss_descends(pipeline: StableDiffusionPipeline) -> None:
    found = retrigger(pipeline, PROMPTS[:1], IMAGES[:1], steps=80, draws=4)
    assert found.losses.shape == (1, 80)
    assert found.losses[0, -20:].mean() < found.losses[0, :20].mean() - 0.02
    assert found.embeddings.shape == (1, 12, 16)


def test_the_first_step_is_adams_by_hand(precise: StableDiffusionPipeline) -> None:
    """Adam's first step is the sign of the gradient times the learning rate; no gradient, no step."""
    found = retrigger(precise, PROMPTS[:1], IMAGES[:1], steps=1, draws=2, learning_rate=0.25)
    start = precise.encode_prompt(PROMPTS[:1], "cpu", 1, False)[0].detach()
    moved = (found.embeddings - start).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.25), atol=1e-3, rtol=0)


def test_the_model_is_left_as_it_was(pipeline: StableDiffusionPipeline) -> None:
    own = copy.deepcopy(pipeline.unet).train()
    first = next(iter(own.parameters())).requires_grad_(False)
    running = StableDiffusionPipeline(**{**pipeline.components, "unet": own}, requires_safety_checker=False)
    before = {name: value.clone() for name, value in own.state_dict().items()}
    with torch.no_grad():
        retrigger(running, PROMPTS, IMAGES, steps=2, draws=1, masks=[NeuronMask({SITES[0]: [1]}), None, None])
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    assert own.training
    assert not first.requires_grad
    assert all(parameter.requires_grad for parameter in own.parameters() if parameter is not first)
    assert all(parameter.grad is None for parameter in own.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in own.modules())


def test_what_is_found_for_a_prompt_does_not_depend_on_the_others(precise: StableDiffusionPipeline) -> None:
    masks = [NeuronMask({SITES[0]: [0, 5]}), None, NeuronMask({SITES[1]: [2], SITES[0]: [7]})]
    together = retrigger(precise, PROMPTS, IMAGES, keys=KEYS, masks=masks, steps=4, draws=2, prompts_at_once=3)
    alone = retrigger(
        precise, PROMPTS[::-1], IMAGES.flip(0), keys=KEYS[::-1], masks=masks[::-1], steps=4, draws=2, prompts_at_once=1
    )
    torch.testing.assert_close(together.embeddings, alone.embeddings.flip(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.losses, alone.losses.flip(0), rtol=1e-4, atol=1e-5)
    other = retrigger(precise, PROMPTS, IMAGES, keys=KEYS[::-1], masks=masks, steps=4, draws=2)
    assert not torch.allclose(together.embeddings, other.embeddings, atol=1e-3)


def test_the_mask_is_in_place_while_it_searches(precise: StableDiffusionPipeline) -> None:
    """With every value of every site off the text reaches nothing: there is no gradient and nothing moves."""
    sites = [name for name, _ in precise.unet.named_modules() if name.endswith("attn2")]
    mask = NeuronMask({site: range(16) for site in sites})
    found = retrigger(precise, PROMPTS[:2], IMAGES[:2], masks=[mask, None], steps=2, draws=2)
    start = precise.encode_prompt(PROMPTS[:2], "cpu", 1, False)[0].detach().float()
    assert torch.equal(found.embeddings[0], start[0])
    assert not torch.allclose(found.embeddings[1], start[1], atol=0.01)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample", "flow_prediction"])
def test_the_schedulers_prediction_type_is_what_is_aimed_at(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    running = StableDiffusionPipeline(
        **{**pipeline.components, "scheduler": DDIMScheduler(clip_sample=False, steps_offset=1)},
        requires_safety_checker=False,
    )
    running.scheduler.register_to_config(prediction_type=kind)
    seen: list[tuple[str, torch.Tensor]] = []

    def spy(*args: torch.Tensor, prediction_type: str) -> tuple[torch.Tensor, torch.Tensor]:
        seen.append((prediction_type, args[2]))
        return noisy_and_target(*args, prediction_type=prediction_type)

    monkeypatch.setattr("memtrain.localization.retrigger.noisy_and_target", spy)
    retrigger(running, PROMPTS[:1], IMAGES[:1], steps=1, draws=256)
    (name, levels), schedule = seen[0], running.scheduler.alphas_cumprod
    assert name == kind
    expected = torch.linspace(0.001, 1, 1000) if kind == "flow_prediction" else schedule
    assert torch.isin((levels * 1e6).round(), (expected * 1e6).round()).float().mean() > 0.99
    assert float(levels.mean()) == pytest.approx(float(expected.mean()), abs=0.08)


def test_what_does_not_belong_together_is_refused(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(DataError, match="3 prompts, images"):
        retrigger(pipeline, PROMPTS, IMAGES[:2])
    with pytest.raises(DataError, match=r"torch\.float32"):
        retrigger(pipeline, PROMPTS, IMAGES.float())
    with pytest.raises(ConfigurationError, match="steps=0"):
        retrigger(pipeline, PROMPTS, IMAGES, steps=0)
    flowing = StableDiffusionPipeline(
        **{**pipeline.components, "scheduler": FlowMatchEulerDiscreteScheduler()}, requires_safety_checker=False
    )
    with pytest.raises(ConfigurationError, match="FlowMatchEulerDiscreteScheduler"):
        retrigger(flowing, PROMPTS, IMAGES)


def test_rows_in_parts_change_nothing(precise: StableDiffusionPipeline) -> None:
    """Also parts that end within a prompt, and of which some have no mask."""
    masks = [NeuronMask({SITES[0]: [1, 2]}), None, NeuronMask({SITES[1]: [0]})]
    whole, parts = (
        retrigger(precise, PROMPTS, IMAGES, keys=KEYS, masks=masks, steps=4, draws=3, rows_at_once=rows)
        for rows in (None, 4)
    )
    torch.testing.assert_close(parts.losses, whole.losses, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(parts.embeddings, whole.embeddings, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scale", [pytest.param(2.0**14, marks=pytest.mark.slow), 2.0**40])
def test_half_precision_searches_too(
    pipeline: StableDiffusionPipeline, scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under a loss that is scaled, and less where that overflows."""
    monkeypatch.setattr("memtrain.localization.retrigger.SCALE", scale)
    half = copy.copy(pipeline)
    for name in ("unet", "vae", "text_encoder"):
        setattr(half, name, copy.deepcopy(getattr(pipeline, name)).half())
    whole, found = (retrigger(one, PROMPTS, IMAGES, keys=KEYS, steps=10, draws=4) for one in (pipeline, half))
    assert found.embeddings.isfinite().all()
    torch.testing.assert_close(found.losses, whole.losses, rtol=0.05, atol=0)
    assert (found.embeddings - whole.embeddings).abs().mean() < 0.1 * (whole.embeddings).abs().mean()
