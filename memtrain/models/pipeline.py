"""Load the parts of a Stable Diffusion pipeline for training, and save a diffusers pipeline folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from transformers import CLIPTextModel, CLIPTokenizer

from memtrain.errors import ConfigurationError


@dataclass
class Components:
    """The parts of a Stable Diffusion pipeline, in fp32.

    `scheduler` is the training noise schedule; `inference_scheduler` the configuration of the one that samples.
    """

    denoiser: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler: DDPMScheduler

    def pipeline(self) -> StableDiffusionPipeline:
        """A diffusers pipeline that shares these modules, sampling with DDIM."""
        from diffusers import DDIMScheduler

        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=DDIMScheduler.from_config(self.scheduler.config, clip_sample=False, set_alpha_to_one=False),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def load_components(pretrained: str) -> Components:
    """Load a Stable Diffusion 1.x or 2.x pipeline for training.

    Args:
        pretrained: a diffusers pipeline folder, or a name on the Hugging Face hub.

    Raises:
        ConfigurationError: if a part is missing or is of another family.
    """
    options: dict[str, Any] = {"torch_dtype": torch.float32}
    if Path(pretrained).is_dir() and not (Path(pretrained) / "model_index.json").is_file():
        raise ConfigurationError(
            f"{pretrained!r} is no diffusers pipeline: it has no model_index.json",
            expected="a folder written by StableDiffusionPipeline.save_pretrained, or a hub name",
            remedy="check the path",
        )
    try:
        return Components(
            denoiser=UNet2DConditionModel.from_pretrained(pretrained, subfolder="unet", **options),
            vae=AutoencoderKL.from_pretrained(pretrained, subfolder="vae", **options),
            text_encoder=CLIPTextModel.from_pretrained(pretrained, subfolder="text_encoder", dtype=torch.float32),
            tokenizer=CLIPTokenizer.from_pretrained(pretrained, subfolder="tokenizer"),
            scheduler=DDPMScheduler.from_pretrained(pretrained, subfolder="scheduler"),
        )
    except OSError as error:
        raise ConfigurationError(
            f"The parts of {pretrained!r} cannot be loaded: {error}",
            expected="a Stable Diffusion 1.x or 2.x pipeline (unet, vae, text_encoder, tokenizer, scheduler)",
            remedy="check the path; a hub name needs a network",
        ) from error
