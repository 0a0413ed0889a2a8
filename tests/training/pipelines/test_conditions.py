"""What denoisers are told beside noise, time and caption: sizes and guidance."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.evidence.content import content_fingerprints, module_fingerprint
from memtrain.training.pipelines.base import TrainablePipeline
from memtrain.training.pipelines.flux import Flux
from memtrain.training.pipelines.pixart import PixArt
from memtrain.training.pipelines.sana import Sana
from memtrain.training.pipelines.stable_diffusion_3 import StableDiffusion3
from memtrain.training.pipelines.stable_diffusion_xl import StableDiffusionXL
from tests.conformance.pipelines import pipeline_of


def other(model: Any, **options: Any) -> Any:
    """A model of the same configuration but for some options, which diffusers would take back to their defaults."""
    known = {name: value for name, value in model.config.items() if name != "_use_default_values"}
    return type(model).from_config({**known, **options})


def call(parts: TrainablePipeline, batch: dict[str, Any], *, channels: int = 4) -> tuple[dict[str, Any], Tensor]:
    """What the denoiser is called with, by name, and what comes of it."""
    seen: list[dict[str, Any]] = []
    handle = parts.denoiser.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        text = parts.encode_text(parts.tokens(["a", "b"]))
        noisy = torch.randn(2, channels, 8, 6)
        prediction = parts.predict(noisy, torch.tensor([5, 900]), text, batch=batch)
    handle.remove()
    assert prediction.shape == noisy.shape
    return seen[0], prediction


def test_sdxl_is_told_what_the_batch_says_of_sizes() -> None:
    parts = StableDiffusionXL(pipeline_of("sdxl"))
    alone, first = call(parts, {})
    assert alone["added_cond_kwargs"]["time_ids"].tolist() == [[16, 12, 0, 0, 16, 12]] * 2
    sizes = {"original_size": [[40, 30], [16, 12]], "crop_top_left": [[3, 4], [0, 0]], "target_size": [[16, 12]] * 2}
    told, second = call(parts, {name: torch.tensor(value) for name, value in sizes.items()})
    assert told["added_cond_kwargs"]["time_ids"].tolist() == [[40, 30, 3, 4, 16, 12], [16, 12, 0, 0, 16, 12]]
    assert not torch.equal(first[0], second[0])


def test_pixart_at_1024_pixels_is_told_size_and_aspect_ratio() -> None:
    pipeline = pipeline_of("pixart")
    options = {"use_additional_conditions": True, "num_attention_heads": 3, "cross_attention_dim": 24}
    pipeline.transformer = other(pipeline.transformer, **options)
    told, _ = call(PixArt(pipeline), {})
    assert told["added_cond_kwargs"]["resolution"].tolist() == [[16, 12]] * 2
    torch.testing.assert_close(told["added_cond_kwargs"]["aspect_ratio"], torch.full((2, 1), 16 / 12))


def test_flux_dev_is_told_its_guidance() -> None:
    pipeline = pipeline_of("flux")
    assert call(Flux(pipeline), {}, channels=1)[0]["guidance"] is None
    assert Flux(pipeline, guidance=2.0).conditioning == {}
    pipeline.transformer = other(pipeline.transformer, guidance_embeds=True)
    assert call(Flux(pipeline), {}, channels=1)[0]["guidance"].tolist() == [1.0, 1.0]
    parts = Flux(pipeline, guidance=3.5)
    assert call(parts, {}, channels=1)[0]["guidance"].tolist() == [3.5, 3.5]
    assert parts.conditioning == {"guidance": 3.5}
    assert module_fingerprint(parts)["conditioning"] == {"guidance": "3.5"}


def test_flux_refuses_latents_that_make_no_patches() -> None:
    with pytest.raises(ConfigurationError, match="multiples of 4 pixels"):
        Flux(pipeline_of("flux")).predict(torch.zeros(1, 1, 7, 8), torch.tensor([1]), {}, batch={})


def test_sana_sprint_is_refused() -> None:
    pipeline = pipeline_of("sana")
    pipeline.transformer = other(pipeline.transformer, guidance_embeds=True)
    with pytest.raises(ConfigurationError, match="distilled"):
        Sana(pipeline)


def test_sd3_without_t5_reads_zeros_in_its_place() -> None:
    pipeline = pipeline_of("sd3")
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None
    parts = StableDiffusion3(pipeline)
    tokens = parts.tokens(["a dog"])
    assert "input_ids_3" not in tokens
    found = parts.encode_text(tokens)["text_embeddings"]
    expected = pipeline.encode_prompt(["a dog"], None, None, do_classifier_free_guidance=False)[0]
    assert torch.equal(found, expected)
    assert tokens["prompt_mask"].shape == found.shape[:2]


def test_a_shorter_text_is_what_was_asked_for() -> None:
    parts = Flux(pipeline_of("flux"), max_sequence_length=20)
    tokens = parts.tokens(["a dog"])
    assert parts.encode_text(tokens)["text_embeddings"].shape[1] == tokens["prompt_mask"].shape[1] == 20


def test_every_text_encoder_counts_for_the_base_model() -> None:
    parts = StableDiffusion3(pipeline_of("sd3"))
    before = module_fingerprint(parts)
    assert before.keys() >= {"text_encoder", "text_encoder_2", "text_encoder_3", "vae"}
    with torch.no_grad():
        next(parts.text_encoders["text_encoder_3"].parameters()).add_(1)
    after = module_fingerprint(parts)
    assert {name for name in before if before[name] != after[name]} == {"text_encoder_3"}


def test_sizes_and_other_tokens_make_another_sample() -> None:
    batch = {"latents": torch.zeros(1, 4), "input_ids": torch.zeros(1, 3)}
    sizes, second = {"original_size": torch.tensor([[3, 4]])}, {"input_ids_2": torch.zeros(1, 3)}
    assert len({content_fingerprints(one)[0] for one in (batch, batch | sizes, batch | second)}) == 3
