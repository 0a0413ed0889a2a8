"""Load the parts of a Stable Diffusion pipeline for training, or a whole pipeline of any known kind to sample with.

Weights are read from safetensors alone: a folder whose weights are pickled is refused, because unpickling runs what is
in a file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DDPMScheduler,
    DiffusionPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from memtrain.errors import ConfigurationError
from memtrain.models.stock_pipeline import check_pipeline

REMEDY = "check the path; a hub name needs a network; pickled weights (.bin) are to be saved again as safetensors"
"""What to do about a pipeline that cannot be loaded."""


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
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.denoiser,
            scheduler=ddim(self.scheduler.config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )


def load_components(pretrained: str) -> Components:
    """Load a Stable Diffusion 1.x or 2.x pipeline for training.

    Args:
        pretrained: a diffusers pipeline folder, or a name on the Hugging Face hub.

    Raises:
        ConfigurationError: if a part is missing, is of another family, or has no safetensors weights.
    """
    options: dict[str, Any] = {"torch_dtype": torch.float32, "use_safetensors": True}
    _check_folder(pretrained)
    try:
        return Components(
            denoiser=UNet2DConditionModel.from_pretrained(pretrained, subfolder="unet", **options),
            vae=AutoencoderKL.from_pretrained(pretrained, subfolder="vae", **options),
            text_encoder=CLIPTextModel.from_pretrained(
                pretrained, subfolder="text_encoder", dtype=torch.float32, use_safetensors=True
            ),
            tokenizer=CLIPTokenizer.from_pretrained(pretrained, subfolder="tokenizer"),
            scheduler=DDPMScheduler.from_pretrained(pretrained, subfolder="scheduler"),
        )
    except OSError as error:
        raise ConfigurationError(
            f"The parts of {pretrained!r} cannot be loaded: {error}",
            expected="a Stable Diffusion 1.x or 2.x pipeline (unet, vae, text_encoder, tokenizer, scheduler) with "
            "safetensors weights",
            remedy=REMEDY,
        ) from error


def load_pipeline(pretrained: str, *, dtype: torch.dtype = torch.float32) -> DiffusionPipeline:
    """Load a pipeline to sample with.

    Stable Diffusion 1.x and 2.x sample with DDIM, as published work on memorization does; others with their own
    scheduler.

    Args:
        pretrained: a diffusers pipeline folder, or a name on the Hugging Face hub.
        dtype: of the weights.

    Raises:
        ConfigurationError: if it cannot be loaded, or is of a kind that is not known.
    """
    _check_folder(pretrained)
    try:
        kind = str(DiffusionPipeline.load_config(pretrained)["_class_name"])
        check_pipeline(kind)
        extra = {"safety_checker": None} if kind == "StableDiffusionPipeline" else {}
        pipeline = DiffusionPipeline.from_pretrained(pretrained, use_safetensors=True, **extra)
    except OSError as error:
        raise ConfigurationError(
            f"{pretrained!r} cannot be loaded: {error}",
            expected="a diffusers pipeline with safetensors weights",
            remedy=REMEDY,
        ) from error
    for part in pipeline.components.values():
        if isinstance(part, nn.Module) and {parameter.dtype for parameter in part.parameters()} != {dtype}:
            part.to(dtype)
    if kind == "StableDiffusionPipeline":
        pipeline.scheduler = ddim(pipeline.scheduler.config)
    return pipeline


def ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """DDIM with the noise schedule of another scheduler, as Stable Diffusion samples with it."""
    return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)


def _check_folder(pretrained: str) -> None:
    if Path(pretrained).is_dir() and not (Path(pretrained) / "model_index.json").is_file():
        raise ConfigurationError(
            f"{pretrained!r} is no diffusers pipeline: it has no model_index.json",
            expected="a folder written by a pipeline's save_pretrained, or a hub name",
            remedy="check the path",
        )
