"""Images from latents are those of the stock pipeline."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from diffusers import StableDiffusionPipeline

from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling import decoding as module
from memtrain.evaluation.sampling.decoding import decode_images


def test_decoding_is_the_pipelines(pipeline: StableDiffusionPipeline) -> None:
    """Up to one grey level of rounding."""
    pipeline.set_progress_bar_config(disable=True)
    options = {"prompt": "a", "num_inference_steps": 2}
    latents, images = (
        pipeline(**options, generator=torch.Generator().manual_seed(0), output_type=kind).images
        for kind in ("latent", "pt")
    )
    pipeline.set_progress_bar_config()
    decoded = decode_images(pipeline, latents)
    assert (decoded.float() - (images * 255).round()).abs().max() <= 1
    assert decoded.float().std() > 10


def test_decoding_in_slices_is_decoding_at_once(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    whole, sizes = decode_images(pipeline, latents), []
    decode = module._decode

    def counted(given: StableDiffusionPipeline, part: torch.Tensor) -> torch.Tensor:
        sizes.append(len(part))
        return decode(given, part)

    monkeypatch.setattr(module, "_decode", counted)
    monkeypatch.setattr("memtrain.functional.memory.PIXELS", 2 * 16 * 16)
    sliced = decode_images(pipeline, latents)
    assert sizes == [2, 2, 1]
    # Rounding of another batch size may move a pixel by a grey level.
    assert (sliced.float() - whole.float()).abs().max() <= 1


def test_numbers_that_are_none_are_refused_in_half_precision_and_said_in_full(
    pipeline: StableDiffusionPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    latents = torch.zeros(2, 4, 8, 8)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(ConfigurationError, match="1 of 2 samples hold NaN or infinite numbers"):
        decode_images(pipeline, latents.bfloat16())
    with caplog.at_level(logging.WARNING):
        decode_images(pipeline, latents)
    assert "has diverged" in caplog.text


def test_an_autoencoder_that_overflows_in_half_precision_decodes_in_full(
    pipeline: StableDiffusionPipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def decode(vae: object, latents: torch.Tensor, *, upcast: bool = False) -> torch.Tensor:
        asked.append(upcast)
        return torch.full((1, 3, 16, 16), 0.0 if upcast else torch.inf)

    monkeypatch.setattr(module, "decode_latents", decode)
    half = copy.deepcopy(pipeline.vae).half()
    monkeypatch.setattr(pipeline, "vae", half)
    assert decode_images(pipeline, torch.zeros(1, 4, 8, 8)).unique().tolist() == [128]
    assert asked == [False, True]
