"""A pipeline of one .safetensors file, as model sites share them. The names of its tensors tell its kind.

Such a file holds weights, but neither configurations nor tokenizers. They come from a pipeline folder of the same kind:
the named one, or else a folder with the file's name beside it (`dream/` beside `dream.safetensors`; its weights are not
read). Without such a folder, diffusers' own configuration comes from the hub's cache on this machine. The hub itself is
only asked if you give a hub name for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    DiffusionPipeline,
    FluxPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.loaders.single_file_utils import infer_diffusers_model_type
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.models.model_folder import check_place, is_hub_name
from memtrain.models.pretrained import WHOLE, check_file, check_folder
from memtrain.models.weights_file import header, one_line

PIPELINES: dict[str, Any] = {
    "v1": StableDiffusionPipeline,
    "v2": StableDiffusionPipeline,
    "xl_base": StableDiffusionXLPipeline,
    "sd3": StableDiffusion3Pipeline,
    "sd35_medium": StableDiffusion3Pipeline,
    "sd35_large": StableDiffusion3Pipeline,
    "flux-dev": FluxPipeline,
    "flux-schnell": FluxPipeline,
}
"""Diffusers' names for kinds of checkpoints, and the pipelines that they make."""

OTHERS = (
    ("a LoRA, which must be added to a base model", (".lora_", "lora_down", "lora_A.", "hada_w1", "lokr_w1")),
    ("a ControlNet, which must be added to a base model", ("control_model.", "controlnet_cond_embedding.")),
    ("an embedding of textual inversion", ("emb_params",)),
)
"""Other contents of such files, by parts of the names of their tensors."""

WORDS = {
    "inpainting": "an inpainting model",
    "inpainting_v2": "an inpainting model",
    "xl_inpaint": "an inpainting model",
    "flux-fill": "an inpainting model",
    "instruct-pix2pix": "a model that edits images (instruct-pix2pix)",
    "xl_refiner": "the refiner of SDXL",
    "upscale": "a model that enlarges images",
    "flux-depth": "a model with a depth input",
}
"""Models that need images in addition to captions, by diffusers' names for kinds of checkpoints."""


def load_single_file(path: Path, *, config: str | None = None) -> DiffusionPipeline:
    """Load a pipeline from one file.

    Args:
        path: the path of the file.
        config: a pipeline folder or hub name with the configurations and tokenizers.

    Raises:
        ConfigurationError: if it holds something else, or if its configurations are not available.
    """
    check_file(path)
    kind = checkpoint_kind(path)
    beside = path.with_suffix("")
    config = config or (str(beside) if (beside / "model_index.json").is_file() else None)
    if config is not None:
        check_place(config, "a pipeline folder with configurations and tokenizers, or a hub name")
        if Path(config).is_dir():
            check_folder(Path(config))
    pipeline = PIPELINES[kind]
    extra: dict[str, Any] = {"safety_checker": None} if pipeline is StableDiffusionPipeline else {}
    online = config is not None and is_hub_name(config)
    if not online:
        extra["token"] = False
    try:
        loaded: DiffusionPipeline = pipeline.from_single_file(
            str(path), config=config, local_files_only=not online, **extra
        )
    except Exception as error:  # diffusers' conversions raise many kinds of errors for unexpected tensors
        name = pipeline.__name__
        raise ConfigurationError(
            f"The single-file checkpoint {path} (of a {name}) cannot be loaded: {one_line(error)}",
            expected="configurations and tokenizers of its kind: "
            + (f"those in {config!r}" if config else "the hub's cache does not hold them"),
            remedy=f"put the folder of a {name} beside it as {beside.name}/ (its weights are not needed), or "
            f"convert it on a machine with a network: {name}.from_single_file({path.name!r})"
            f".save_pretrained({beside.name!r})",
        ) from error
    return loaded


def checkpoint_kind(path: Path) -> str:
    """Return diffusers' name for the kind of a single-file checkpoint, from the names and shapes of its tensors.

    Raises:
        ConfigurationError: if the kind is not that of a text-to-image pipeline.
    """
    shapes = {
        name: torch.empty(shape, device="meta") for name, shape in header(path, "a single-file checkpoint")[0].items()
    }
    try:
        kind = infer_diffusers_model_type(shapes)
    except (KeyError, IndexError, AttributeError, TypeError) as error:
        raise ConfigurationError(
            f"The single-file checkpoint {path} holds tensors that no known model has: {one_line(error)}",
            expected=WHOLE,
            remedy="check the path",
        ) from error
    what = _other(shapes) or WORDS.get(kind) or (None if kind in PIPELINES else f"of an unknown kind ({kind})")
    if what is None:
        what = _incomplete(kind, shapes)
    if what is not None:
        raise ConfigurationError(
            f"The single-file checkpoint {path} is {what}", expected=WHOLE, remedy="check the path"
        )
    return str(kind)


def _other(shapes: Mapping[str, Tensor]) -> str | None:
    for what, marks in OTHERS:
        if any(mark in name for name in shapes for mark in marks):
            return what
    starts = {name.split(".")[0] for name in shapes}
    if starts & {"down_blocks", "transformer_blocks", "single_transformer_blocks"}:
        return "the denoiser alone, as diffusers saves this part of a pipeline"
    if starts <= {"encoder", "decoder", "quant_conv", "post_quant_conv"}:
        return "an autoencoder alone"
    return None


def _incomplete(kind: str, shapes: Mapping[str, Tensor]) -> str | None:
    """Describe a file of Stable Diffusion 1, 2 or XL that lacks a part; others may take parts from elsewhere."""
    if kind not in ("v1", "v2", "xl_base"):
        return None
    prefixes = {
        "denoiser": ("model.diffusion_model.input_blocks.0.0.weight",),
        "autoencoder": ("first_stage_model.",),
        "text encoder": ("cond_stage_model.", "conditioner."),
    }
    missing = [part for part, marks in prefixes.items() if not any(name.startswith(marks) for name in shapes)]
    return f"not a whole model: it has no {', no '.join(missing)}" if missing else None
