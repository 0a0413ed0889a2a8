"""MemAttn's mitigation against its definition, for any number of prompts and images, and nothing left behind."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from diffusers.models.attention_processor import Attention, AttnProcessor, IPAdapterAttnProcessor2_0
from peft import LoraConfig
from torch import Tensor

from memtrain.errors import ConfigurationError, ProbeError
from memtrain.inference.attention_masking import AttentionMasking

PROMPTS = ["a cat", "the dog and the fish", "b"]
LONG = "a very long prompt that goes on and on"
FAMILIES = ("pipeline", "sd2", "sdxl")

Pipeline = StableDiffusionPipeline | StableDiffusionXLPipeline


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> Pipeline:
    found: Pipeline = request.getfixturevalue(request.param)
    found.set_progress_bar_config(disable=True)
    return found


@pytest.fixture(autouse=True)
def clean(pipeline: StableDiffusionPipeline, sd2: Pipeline, sdxl: Pipeline) -> Iterator[None]:
    pipelines = (pipeline, sd2, sdxl)
    before = [everything(found) for found in pipelines]
    yield
    for found, old in zip(pipelines, before, strict=True):
        new = everything(found)
        assert {name for name in new | old if new.get(name) != old.get(name)} == set()


def everything(pipeline: Pipeline) -> dict[str, Any]:
    """Identities of all attributes of a pipeline and of each module in it, hooks and processors among them."""
    found: dict[str, Any] = {name: id(value) for name, value in vars(pipeline).items() if not own(name)}
    for part, module in pipeline.components.items():
        if isinstance(module, torch.nn.Module):
            for path, layer in module.named_modules():
                # Dictionaries of hooks are looked into: the same dictionary may hold another hook.
                values = {
                    k: list(map(id, v.values())) if isinstance(v, dict) else id(v) for k, v in vars(layer).items()
                }
                found |= {f"{part}.{path}.{name}": value for name, value in values.items()}
    return found


def own(name: str) -> bool:
    """Whether diffusers writes an attribute in every call."""
    return name in {
        "_guidance_scale",
        "_guidance_rescale",
        "_clip_skip",
        "_cross_attention_kwargs",
        "_interrupt",
        "_num_timesteps",
        "_denoising_end",
        "_progress_bar_config",
    }


def sample(pipeline: Pipeline, prompts: Sequence[str], images: int = 1, **options: Any) -> Tensor:
    """`(P · images, ...)` latents; the noise of an image depends on its number alone."""
    generators = [torch.Generator().manual_seed(seed) for _ in prompts for seed in range(images)]
    arguments = {"num_inference_steps": 2, "guidance_scale": 4.0, "output_type": "latent", **options}
    arguments = {"generator": generators, "num_images_per_prompt": images, **arguments}
    return pipeline(list(prompts), **arguments).images


class Written:
    """The published formula written out in double precision: a probability matrix, its BOS logit multiplied."""

    def __init__(self, shown: Sequence[int], c1: float, *, both_halves: bool) -> None:
        self.shown, self.c1, self.both_halves = shown, c1, both_halves

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, **kwargs: Any) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (attn.heads, -1)).transpose(1, 2).double()
            for layer, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        images = len(self.shown)
        for row in range(len(logits)):
            conditional = row >= len(logits) - images
            if conditional:
                logits[row, :, :, 0] *= self.c1
            if conditional or self.both_halves:
                logits[row, :, :, self.shown[row % images] :] = -torch.inf
        output = (logits.softmax(-1) @ value).transpose(1, 2).flatten(2).to(hidden_states)
        return attn.to_out[0](output)


@contextmanager
def written(pipeline: Pipeline, shown: Sequence[int], c1: float, *, both_halves: bool) -> Iterator[None]:
    processor = Written(shown, c1, both_halves=both_halves)
    sites = [module for name, module in pipeline.unet.named_modules() if name.endswith("attn2")]
    before = [site.processor for site in sites]
    for site in sites:
        site.processor = processor
    try:
        yield
    finally:
        for site, old in zip(sites, before, strict=True):
            site.processor = old


def tokens(prompt: str) -> int:
    """With BOS and EOS: every letter is a token in these pipelines, and 12 are read."""
    return min(12, len(prompt.replace(" ", "")) + 2)


@pytest.mark.parametrize("published", [False, True])
@pytest.mark.parametrize("hide_eos", [False, True])
def test_it_is_the_published_formula(family: Pipeline, published: bool, hide_eos: bool) -> None:
    prompts = [*PROMPTS, LONG]
    with AttentionMasking(c1=1.5, published=published, hide_eos=hide_eos)(family):
        found = sample(family, prompts, images=2)
    shown = [tokens(prompt) - hide_eos for prompt in prompts for _ in range(2)]
    with written(family, shown, 1.5, both_halves=published):
        expected = sample(family, prompts, images=2)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected - sample(family, prompts, images=2)).abs().amax(dim=(1, 2, 3)).min() > 1e-3


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("published", [False, True])
def test_negative_prompts_and_sampling_without_guidance(family: Pipeline, published: bool, guidance: float) -> None:
    options: dict[str, Any] = {"negative_prompt": ["dark and wet"] * 3, "guidance_scale": guidance}
    with AttentionMasking(published=published)(family):
        found = sample(family, PROMPTS, **options)
    with written(family, [tokens(prompt) for prompt in PROMPTS], 1.25, both_halves=published):
        expected = sample(family, PROMPTS, **options)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("images", [1, 2, 8])
def test_each_image_is_what_it_is_alone(family: Pipeline, images: int) -> None:
    with AttentionMasking()(family):
        together = sample(family, PROMPTS, images=images)
        for index, prompt in enumerate(PROMPTS):
            for seed in range(images):
                alone = sample(family, [prompt], generator=torch.Generator().manual_seed(seed))
                torch.testing.assert_close(together[index * images + seed], alone[0], atol=1e-4, rtol=0)


def test_each_call_has_its_own_lengths(family: Pipeline) -> None:
    with AttentionMasking()(family):
        first, second, again = (sample(family, prompts) for prompts in (["a"], [LONG[:8]], ["a"]))
        one_string = family(
            "a",
            generator=torch.Generator().manual_seed(0),
            num_inference_steps=2,
            guidance_scale=4.0,
            output_type="latent",
        ).images
    with AttentionMasking()(family):
        torch.testing.assert_close(second, sample(family, [LONG[:8]]), rtol=0, atol=0)
    assert torch.equal(first, again) and torch.equal(first, one_string)


def test_one_instance_serves_several_pipelines_at_once(pipeline: Pipeline, sdxl: Pipeline) -> None:
    masking = AttentionMasking()
    with masking(pipeline), masking(sdxl):
        first = sample(pipeline, PROMPTS)
        other = sample(sdxl, ["another prompt"])
        again = sample(pipeline, PROMPTS)
    with masking(pipeline):
        torch.testing.assert_close(sample(pipeline, PROMPTS), first, rtol=0, atol=0)
    with masking(sdxl):
        torch.testing.assert_close(sample(sdxl, ["another prompt"]), other, rtol=0, atol=0)
    assert torch.equal(first, again)


def test_of_two_texts_the_longer_counts(sdxl: Pipeline) -> None:
    with AttentionMasking()(sdxl):
        found = sample(sdxl, ["a", "fishes"], prompt_2=["cats", "b"])
    with written(sdxl, [6, 8], 1.25, both_halves=False):
        expected = sample(sdxl, ["a", "fishes"], prompt_2=["cats", "b"])
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_without_the_first_text_encoder(sdxl: StableDiffusionXLPipeline) -> None:
    parts = {**sdxl.components, "tokenizer": None, "text_encoder": None}
    parts["text_encoder_2"] = copy.deepcopy(parts["text_encoder_2"])
    # The denoiser wants both widths, so the one encoder that is left is made twice as wide.
    forward = parts["text_encoder_2"].forward

    def doubled(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.hidden_states = tuple(torch.cat([states, states], dim=-1) for states in output.hidden_states)
        return output

    parts["text_encoder_2"].forward = doubled
    refiner = StableDiffusionXLPipeline(**parts, add_watermarker=False)
    refiner.set_progress_bar_config(disable=True)
    with AttentionMasking()(refiner):
        found = sample(refiner, PROMPTS)
    with written(refiner, [tokens(prompt) for prompt in PROMPTS], 1.25, both_halves=False):
        torch.testing.assert_close(found, sample(refiner, PROMPTS), atol=1e-4, rtol=0)


def test_lora_layers_stay_in_force(pipeline: Pipeline) -> None:
    parts = {**pipeline.components, "unet": copy.deepcopy(pipeline.unet)}
    adapted = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    adapted.set_progress_bar_config(disable=True)
    adapted.unet.add_adapter(
        LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False)
    )
    shown = [tokens(prompt) for prompt in PROMPTS]
    with AttentionMasking()(adapted):
        found = sample(adapted, PROMPTS)
    with written(adapted, shown, 1.25, both_halves=False):
        torch.testing.assert_close(found, sample(adapted, PROMPTS), atol=1e-4, rtol=0)
    with AttentionMasking()(pipeline):
        assert (sample(pipeline, PROMPTS) - found).abs().max() > 1e-2


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision(sd2: Pipeline, kind: torch.dtype) -> None:
    parts = {
        **sd2.components,
        **{name: copy.deepcopy(sd2.components[name]).to(kind) for name in ("unet", "text_encoder")},
    }
    half = StableDiffusionPipeline(**parts, requires_safety_checker=False)
    half.set_progress_bar_config(disable=True)
    with AttentionMasking()(half):
        found = sample(half, PROMPTS, images=2)
    with written(half, [tokens(prompt) for prompt in PROMPTS for _ in range(2)], 1.25, both_halves=False):
        expected = sample(half, PROMPTS, images=2)
    assert found.dtype == kind
    difference = (found - expected).float().norm() / expected.float().norm()
    assert difference < (0.03 if kind == torch.bfloat16 else 0.004)
    assert (expected - sample(half, PROMPTS, images=2)).float().norm() / expected.float().norm() > 2 * difference


def test_a_mask_that_the_denoiser_is_given_is_kept(pipeline: Pipeline) -> None:
    latents, text = torch.randn(1, 4, 8, 8), torch.randn(1, 12, 16)
    mask = torch.arange(12)[None] < 3
    shorter = pipeline.unet(latents, 500, text[:, :3])[0].detach()
    with AttentionMasking(c1=1.0)(pipeline):
        sample(pipeline, [LONG], guidance_scale=1.0)
        masked = pipeline.unet(latents, 500, text, encoder_attention_mask=mask)[0].detach()
    torch.testing.assert_close(masked, shorter, atol=1e-5, rtol=0)


def test_neutral_settings_change_nothing(family: Pipeline) -> None:
    with AttentionMasking(c1=1.0, mask=False)(family):
        neutral = sample(family, PROMPTS)
    torch.testing.assert_close(neutral, sample(family, PROMPTS), atol=1e-5, rtol=0)


def test_an_exception_leaves_nothing_behind(family: Pipeline) -> None:
    with pytest.raises(ZeroDivisionError), AttentionMasking()(family):
        raise ZeroDivisionError

    def fail(*ignored: Any) -> dict[str, Any]:
        raise KeyError("in the middle")

    with pytest.raises(KeyError), AttentionMasking()(family):
        sample(family, PROMPTS, callback_on_step_end=fail)


def test_an_encode_prompt_of_the_users_own_is_used_and_put_back(pipeline: Pipeline) -> None:
    seen = []
    original = pipeline.encode_prompt

    def mine(*args: Any, **kwargs: Any) -> Any:
        seen.append(1)
        return original(*args, **kwargs)

    mine.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    pipeline.encode_prompt = mine
    try:
        with AttentionMasking()(pipeline):
            sample(pipeline, PROMPTS)
        assert pipeline.encode_prompt is mine and seen
    finally:
        del pipeline.encode_prompt


def test_what_it_cannot_do_is_refused(pipeline: Pipeline, sd2: Pipeline) -> None:
    embeddings = torch.randn(1, 12, 16)
    with pytest.raises(ConfigurationError, match="instead of `prompt_embeds`"), AttentionMasking()(pipeline):
        pipeline(prompt_embeds=embeddings, negative_prompt_embeds=embeddings, num_inference_steps=1)
    with pytest.raises(ConfigurationError, match="sampled nothing"), AttentionMasking()(pipeline):
        pass
    with pytest.raises(ConfigurationError, match="ran on 5 rows for 0 images"), AttentionMasking()(pipeline):
        pipeline.unet(torch.randn(5, 4, 8, 8), 1, torch.randn(5, 12, 16))
    masking = AttentionMasking()
    with pytest.raises(ConfigurationError, match="already masked"), masking(pipeline), masking(pipeline):
        pass
    shared = StableDiffusionPipeline(**pipeline.components, requires_safety_checker=False)
    with pytest.raises(ConfigurationError, match="already masked"), masking(pipeline), masking(shared):
        pass
    with pytest.raises(ConfigurationError, match="no cross-attention"), AttentionMasking()(object()):
        pass
    with pytest.raises(ConfigurationError, match="hide_eos"):
        AttentionMasking(mask=False, hide_eos=True)


def test_a_cross_attention_that_never_ran_is_an_error(pipeline: Pipeline) -> None:
    site = next(module for name, module in pipeline.unet.named_modules() if name.endswith("attn2"))
    with pytest.raises(ProbeError, match="1 of 4 cross-attentions never ran"), AttentionMasking()(pipeline):
        site.processor = AttnProcessor()
        sample(pipeline, PROMPTS)


def test_processors_that_do_more_are_not_replaced(pipeline: Pipeline) -> None:
    site = next(module for name, module in pipeline.unet.named_modules() if name.endswith("attn2"))
    before = site.processor
    site.set_processor(IPAdapterAttnProcessor2_0(16, 16))
    try:
        with pytest.raises(ConfigurationError, match="IPAdapterAttnProcessor2_0"), AttentionMasking()(pipeline):
            pass
    finally:
        site.set_processor(before)
