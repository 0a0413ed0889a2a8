"""Loading of a pipeline of any known kind.

Weights are read only from safetensors. A folder with pickled weights is refused, because unpickling runs the content of
a file. The parts that a folder names are checked before they are imported (:mod:`memtrain.models.model_folder`), and
only hub names are looked up on the hub. Weights that are missing or not finite are refused by name. If a folder holds
only weights in half precision (`*.fp16.safetensors`), these are read.
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

REMEDY = "check the path; a hub name needs a network; save pickled weights (.bin) again as safetensors"
"""The remedy for a pipeline that cannot be loaded."""


def load_pipeline(
    pretrained: str,
    *,
    dtype: torch.dtype = torch.float32,
    config: str | None = None,
    dtypes: Mapping[str, torch.dtype] | None = None,
) -> DiffusionPipeline:
    """Load a pipeline for sampling.

    Stable Diffusion 1.x and 2.x sample with DDIM, as in published work on memorization. Other pipelines sample with
    their own scheduler.

    Args:
        pretrained: a diffusers pipeline folder, a single-file checkpoint (.safetensors), or a name on the Hugging Face
            hub.
        dtype: the type of the weights.
        config: a pipeline folder or hub name with configurations and tokenizers, for a single-file checkpoint.
        dtypes: the type of each part by its name, and of the others by `default`, instead of `dtype`, so that a large
            model is never held in a larger type. Layers that their class keeps in float32 keep their type, and so do
            single-file checkpoints.

    Raises:
        ConfigurationError: if it cannot be loaded, or is of an unknown kind, which the error names.
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
    # A folder is loaded without any request to the hub, and without a token.
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
            # A repository may hold only weights in half precision, which must be requested.
            if "safetensors" not in str(error):
                raise
            return DiffusionPipeline.from_pretrained(pretrained, variant="fp16", **options)
    except MemtrainError:
        raise
    except Exception as error:  # the parts' own loaders raise many kinds of errors for foreign files
        raise ConfigurationError(
            f"{pretrained!r} cannot be loaded: {one_line(error)}",
            expected="a diffusers pipeline with safetensors weights",
            remedy=REMEDY,
        ) from error


def _whole(folder: Path, pipeline: DiffusionPipeline) -> DiffusionPipeline:
    """Return a pipeline, if its files hold every weight of its parts."""
    variant = variant_of(folder)
    for name, part in pipeline.components.items():
        if isinstance(part, nn.Module) and (files := weight_files(folder / name, variant)):
            check_complete(files, part, f"{folder / name}")
    return pipeline


def ddim(config: Mapping[str, Any]) -> DDIMScheduler:
    """Return DDIM with the noise schedule of another scheduler, in the form for Stable Diffusion."""
    return DDIMScheduler.from_config(config, clip_sample=False, set_alpha_to_one=False)
