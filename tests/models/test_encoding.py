"""What goes into a model and comes out is what the stock pipeline makes of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline

from memtrain.functional.tokens import tokenize
from memtrain.models.encoding import decode_latents, encode_images, encode_prompts, encode_tokens

PROMPTS = ["a dog", "", "a b c d e f g h i j k l m n o p"]


def autoencoder(**config: Any) -> AutoencoderKL:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoencoderKL(block_out_channels=(8,), norm_num_groups=4, latent_channels=2, **config).eval()


@pytest.mark.parametrize("masked", [False, True])
def test_prompts_are_embedded_as_the_pipeline_embeds_them(pipeline: StableDiffusionPipeline, masked: bool) -> None:
    """Bit for bit, also with a text encoder that hides the padding, and where a word stands for two tokens."""
    own = StableDiffusionPipeline(
        **{**pipeline.components, "text_encoder": copy.deepcopy(pipeline.text_encoder)}, requires_safety_checker=False
    )
    own.text_encoder.config.use_attention_mask = masked
    own.maybe_convert_prompt = lambda texts, tokenizer: [text.replace("dog", "d o") for text in texts]
    found = encode_prompts(own, PROMPTS)
    assert torch.equal(found, own.encode_prompt(PROMPTS, own.device, 1, False)[0])
    assert not found.requires_grad
    ids, mask = tokenize(own.tokenizer, ["a d o", *PROMPTS[1:]])
    assert torch.equal(found, encode_tokens(own.text_encoder, ids, attention_mask=mask if masked else None))
    assert torch.equal(found[0], encode_tokens(own.text_encoder, ids)[0]) is not masked


def test_token_ids_can_be_trained_through(pipeline: StableDiffusionPipeline) -> None:
    ids, _ = tokenize(pipeline.tokenizer, PROMPTS)
    assert encode_tokens(pipeline.text_encoder, ids).requires_grad


@pytest.mark.parametrize(
    "config",
    [
        {"scaling_factor": 0.5},
        {"scaling_factor": 2.0, "shift_factor": 0.25},
        {"scaling_factor": 0.5, "latents_mean": (0.5, -1.0), "latents_std": (2.0, 0.25)},
    ],
)
def test_latents_are_scaled_on_the_way_in_and_back_on_the_way_out(
    config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    vae = autoencoder(**config)
    images = torch.randint(256, (3, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        mode = vae.encode(images / 127.5 - 1).latent_dist.mode()
        straight = vae.decode(mode).sample
    latents = encode_images(vae, images)
    mean = torch.tensor(config.get("latents_mean", (config.get("shift_factor", 0.0),) * 2)).view(1, 2, 1, 1)
    std = torch.tensor(config.get("latents_std", (1.0, 1.0))).view(1, 2, 1, 1)
    torch.testing.assert_close(latents, (mode - mean) / std * config["scaling_factor"])
    assert torch.equal(encode_images(vae, images / 127.5 - 1), latents), "pixel values are the same images"
    with torch.no_grad():
        torch.testing.assert_close(decode_latents(vae, latents), straight)


def test_without_a_shift_latents_are_the_mode_times_the_factor_bit_for_bit() -> None:
    vae = autoencoder(scaling_factor=0.18215)
    values = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        expected = vae.encode(values).latent_dist.mode() * 0.18215
    assert torch.equal(encode_images(vae, values), expected)


def test_an_autoencoder_that_overflows_in_fp16_decodes_in_fp32_and_is_left_in_fp16() -> None:
    vae = autoencoder(force_upcast=True).half()
    latents = torch.randn(1, 2, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    with torch.no_grad():
        assert decode_latents(vae, latents).dtype == torch.float32
    assert vae.dtype == torch.float16


@pytest.mark.parametrize("half", ["weights", "autocast"])
@pytest.mark.parametrize("upcast", [True, False])
def test_an_autoencoder_that_overflows_in_fp16_encodes_in_fp32(half: str, upcast: bool) -> None:
    """Activations of a hundred thousand are past what fp16 holds, in the weights' type as under autocast."""
    vae = autoencoder(force_upcast=upcast)
    with torch.no_grad():
        vae.encoder.conv_in.weight.mul_(1e5)
    values = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = encode_images(vae, values)
    if half == "weights":
        found = encode_images(vae.half(), values)
        assert vae.dtype == torch.float16
    else:
        with torch.autocast("cpu", torch.float16):
            found = encode_images(vae, values)
    assert bool(found.isfinite().all()) is upcast
    if upcast:
        torch.testing.assert_close(found.float(), expected, atol=5e-3, rtol=5e-2)
