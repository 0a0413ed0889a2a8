"""Load a pipeline of any known kind.

Weights are read from safetensors alone: a folder whose weights are pickled is refused, because unpickling runs what is
in a file. What a folder names is checked before it is imported (:mod:`memtrain.models.model_folder`), and the hub is
asked for hub names alone. Weights that are missing or not finite are refused by name. Of a folder with weights in half
precision alone (`*.fp16.safetensors`) these are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler, DiffusionPipeline
from torch import nn

from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.shipped import at_hand
from memtrain.models.model_folder import check_index, check_place
from memtrain.models.pretrained import (
    WHOLE,
    check_folder,
    check_parts,
    is_single_file,
    variant_of,
    weight_files,
)
from memtrain.models.quiet_loading import quiet_loading
from memtrain.models.single_file import load_single_file
from memtrain.models.stock_pipeline import check_pipeline
from memtrain.models.weights_file import check_complete, check_loaded, one_line

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
    pretrained, config = at_hand(pretrained), None if config is None else at_hand(config)
    with quiet_loading():
        if is_single_file(pretrained):
            pipeline = load_single_file(Path(pretrained), config=config)
        else:
            pipeline = _load_folder(pretrained, dtypes)
    kind = type(pipeline).__name__
    parts = {name: getattr(getattr(pipeline, name, None), "config", {}) for name in ("unet", "transformer", "vae")}
    check_parts(kind, parts, where=repr(pretrained))
    check_loaded(pipeline, pretrained)
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
    check_place(pretrained, WHOLE)
    local = folder.is_dir()
    if local:
        check_folder(folder)
    # A folder is read without a look at the hub, and without telling it who asks.
    place: dict[str, Any] = {"local_files_only": True, "token": False} if local else {}
    try:
        index = DiffusionPipeline.load_config(pretrained, **place)
        kind = str(index["_class_name"])
        check_pipeline(kind)
        check_index(index, f"model_index.json of {pretrained}")
        options: dict[str, Any] = {"safety_checker": None} if kind == "StableDiffusionPipeline" else {}
        options |= {"use_safetensors": True, "trust_remote_code": False}
        options |= place | ({} if dtypes is None else {"dtype": dict(dtypes)})
        if local:
            return _whole(folder, DiffusionPipeline.from_pretrained(pretrained, variant=variant_of(folder), **options))
        try:
            return DiffusionPipeline.from_pretrained(pretrained, **options)
        except OSError as error:
            # A repository may hold weights in half precision alone, which have to be asked for.
            if "safetensors" not in str(error):
                raise
            return DiffusionPipeline.from_pretrained(pretrained, variant="fp16", **options)
    except MemtrainError:
        raise
    except Exception as error:  # whatever the parts' own loaders raise about files that they did not write
        raise ConfigurationError(
            f"{pretrained!r} cannot be loaded: {one_line(error)}",
            expected="a diffusers pipeline with safetensors weights",
            remedy=REMEDY,
        ) from error


def _whole(folder: Path, pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline, if its files hold every weight of its parts."""
    variant = variant_of(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and (files := weight_files(folder / name, variant)):
            check_complete(files, part, f"{folder / name}")
    return pipeline


def ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """DDIM with the noise schedule of another scheduler, as Stable Diffusion samples with it."""
    return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
