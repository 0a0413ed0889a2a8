"""Load a pipeline of any known kind.

Weights are read from safetensors alone: a folder whose weights are pickled is refused, because unpickling runs what is
in a file. Of a folder with weights in half precision alone (`*.fp16.safetensors`) these are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn

from memtrain.errors import ConfigurationError
from memtrain.models.pretrained import check_folder, check_parts, is_single_file, variant_of
from memtrain.models.quiet_loading import quiet_loading
from memtrain.models.single_file import load_single_file
from memtrain.models.stock_pipeline import check_pipeline

REMEDY = "check the path; a hub name needs a network; pickled weights (.bin) are to be saved again as safetensors"
"""What to do about a pipeline that cannot be loaded."""


def load_pipeline(
    pretrained: str,
    *,
    dtype: torch.dtype = torch.float32,
    config: str | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> DiffusionPipeline:
    """Load a pipeline to sample with.

    Stable Diffusion 1.x and 2.x sample with DDIM, as published work on memorization does; others with their own
    scheduler.

    Args:
        pretrained: a diffusers pipeline folder, a single-file checkpoint (.safetensors), or a name on the Hugging Face
            hub.
        dtype: of the weights.
        config: a pipeline folder or hub name with configurations and tokenizers, for a single-file checkpoint.
        dtypes: in place of `dtype`, that of each part by its name, and of the others by `default`, so that a large
            model is never held in a larger type; but for layers that their class keeps in float32, and but for
            single-file checkpoints, which stay as they are read.

    Raises:
        ConfigurationError: if it cannot be loaded, or is of a kind that is not known; by what it is.
    """
    with quiet_loading():
        if is_single_file(pretrained):
            pipeline = load_single_file(Path(pretrained), config=config)
        else:
            pipeline = _load_folder(pretrained, dtypes)
    kind = type(pipeline).__name__
    parts = {name: getattr(getattr(pipeline, name, None), "config", {}) for name in ("unet", "transformer", "vae")}
    check_parts(kind, parts, where=repr(pretrained))
    for part in pipeline.components.values():
        if (
            dtypes is None
            and isinstance(part, nn.Module)
            and {parameter.dtype for parameter in part.parameters()} != {dtype}
        ):
            part.to(dtype)
    if kind == "StableDiffusionPipeline":
        pipeline.scheduler = ddim(pipeline.scheduler.config)
    return pipeline


def _load_folder(pretrained: str, dtypes: Mapping[str, torch.dtype] | None) -> DiffusionPipeline:
    folder = Path(pretrained)
    if folder.is_dir():
        check_folder(folder)
    try:
        kind = str(DiffusionPipeline.load_config(pretrained)["_class_name"])
        check_pipeline(kind)
        options: dict[str, Any] = {"safety_checker": None} if kind == "StableDiffusionPipeline" else {}
        options |= {"use_safetensors": True} | ({} if dtypes is None else {"dtype": dict(dtypes)})
        if folder.is_dir():
            return DiffusionPipeline.from_pretrained(pretrained, variant=variant_of(folder), **options)
        try:
            return DiffusionPipeline.from_pretrained(pretrained, **options)
        except OSError as error:
            # A repository may hold weights in half precision alone, which have to be asked for.
            if "safetensors" not in str(error):
                raise
            return DiffusionPipeline.from_pretrained(pretrained, variant="fp16", **options)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ConfigurationError(
            f"{pretrained!r} cannot be loaded: {error}",
            expected="a diffusers pipeline with safetensors weights",
            remedy=REMEDY,
        ) from error


def ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """DDIM with the noise schedule of another scheduler, as Stable Diffusion samples with it."""
    return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
