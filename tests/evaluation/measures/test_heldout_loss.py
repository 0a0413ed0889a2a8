"""Held-out loss against a computation by hand."""

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.measures.heldout_loss import heldout_loss

IMAGES = torch.randint(0, 256, (3, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
CAPTIONS = ["a b", "c", "d e"]


def test_it_is_the_mean_over_evenly_spread_timesteps(pipeline: StableDiffusionPipeline) -> None:
    measured = heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=2, seed=0)
    with torch.no_grad():
        latents = pipeline.vae.encode(IMAGES / 127.5 - 1).latent_dist.mode() * pipeline.vae.config.scaling_factor
        ids = pipeline.tokenizer(CAPTIONS, padding="max_length", return_tensors="pt")["input_ids"]
        text = pipeline.text_encoder(ids)[0]
        expected = torch.zeros(3)
        for index, timestep in enumerate((250, 750)):
            noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(index))
            alpha = pipeline.scheduler.alphas_cumprod[timestep]
            noisy = alpha.sqrt() * latents + (1 - alpha).sqrt() * noise
            prediction = pipeline.unet(noisy, timestep, text).sample
            expected += (prediction - noise).square().mean(dim=(1, 2, 3)) / 2
    torch.testing.assert_close(measured, expected)


def test_two_measurements_are_paired(pipeline: StableDiffusionPipeline) -> None:
    first = heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=2)
    assert torch.equal(first, heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=2))
    assert not torch.equal(first, heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=2, seed=1))


def test_how_many_are_computed_at_once_changes_nothing_but_rounding(pipeline: StableDiffusionPipeline) -> None:
    whole = heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=2)
    torch.testing.assert_close(heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=2, batch_size=2), whole)


def test_large_images_are_encoded_a_few_at_a_time(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memtrain.functional.memory.PIXELS", 2 * 16 * 16)
    seen = []
    handle = pipeline.vae.encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    try:
        heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=1)
    finally:
        handle.remove()
    assert seen == [2, 1]


def test_an_offloaded_pipeline_is_refused(pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline.unet, "_hf_hook", object(), raising=False)
    with pytest.raises(ConfigurationError, match="offloaded to the CPU"):
        heldout_loss(pipeline, IMAGES, captions=CAPTIONS, timesteps=1)


def test_images_without_captions_are_refused(pipeline: StableDiffusionPipeline) -> None:
    with pytest.raises(DataError, match="3 images and 1 captions"):
        heldout_loss(pipeline, IMAGES, captions=["a"])
