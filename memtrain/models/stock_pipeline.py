"""The differences between diffusers' stock text-to-image pipelines in sampling.

| pipeline | denoiser called on | the text its attention reads |
|---|---|---|
| Stable Diffusion 1.x, 2.x, XL | `[n unconditional; n conditional]` | `tokenizer` |
| PixArt-α, -Σ | the same; behind the noise it may predict a variance | `tokenizer` (T5) |
| Stable Diffusion 3, 3.5 | the same; predicts a velocity | CLIP's tokens, then T5's |
| Sana | the same; predicts a velocity | `tokenizer` (Gemma) |
| FLUX.1 | n conditional, guided by an input; latents in patches of 2 by 2; predicts a velocity | `tokenizer_2` (T5) |

Other pipelines are refused, because the places and the number of their two halves are not known.
"""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor, nn

from memtrain.errors import ConfigurationError

PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionXLPipeline",
    "PixArtAlphaPipeline",
    "PixArtSigmaPipeline",
    "StableDiffusion3Pipeline",
    "FluxPipeline",
    "SanaPipeline",
)
"""The names of the known classes."""

OTHERS = {
    "ControlNet": "steered by a second network",
    "Inpaint": "an inpainting model",
    "Fill": "an inpainting model",
    "Img2Img": "a model that changes images (for SDXL: the refiner)",
    "Pix2Pix": "a model that edits images",
    "Kontext": "a model that edits images",
    "Upscale": "a model that enlarges images",
    "Depth": "a model with a depth input",
    "Sprint": "distilled to few steps",
}
"""Descriptions of other pipelines, by a part of their names."""


def check_pipeline(name: str) -> None:
    """Refuse a pipeline class that is not known.

    Args:
        name: the name of the class.

    Raises:
        ConfigurationError: with the known classes.
    """
    if name not in PIPELINES:
        what = next((f": it is {said}" for mark, said in OTHERS.items() if mark in name), "")
        raise ConfigurationError(
            f"The guidance of {name} in sampling is not known{what}",
            expected=f"one of {', '.join(PIPELINES)}",
            remedy="load the model with one of these classes",
        )


def refuse_offloaded(pipeline: Any) -> None:
    """Refuse a pipeline whose parts move to the GPU only for their own calls. Other callers need them there, too.

    Raises:
        ConfigurationError: if it is such a pipeline.
    """
    if getattr(denoiser_of(pipeline), "_hf_hook", None) is not None:
        raise ConfigurationError(
            f"Parts of this {type(pipeline).__name__} are offloaded to the CPU between their calls",
            expected="a pipeline that is wholly on one device",
            remedy="call pipeline.remove_all_hooks() and pipeline.to(device)",
        )


def denoiser_of(pipeline: Any) -> nn.Module:
    """Return the denoiser: `unet` or `transformer`."""
    module: nn.Module = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
    return module


def has_two_halves(pipeline: Any, guidance_scale: float) -> bool:
    """Return whether the denoiser is called on `[unconditional; conditional]`; not if distilled to be guided alone."""
    config: Any = denoiser_of(pipeline).config
    distilled = type(pipeline).__name__ == "FluxPipeline" or config.get("time_cond_proj_dim") is not None
    return guidance_scale > 1 and not distilled


def sampling_arguments(pipeline: Any) -> dict[str, Any]:
    """Return arguments that keep prompts and sizes unchanged.

    Without them, PixArt and Sana would use the nearest of their sizes and, depending on packages, clean the prompt.
    Sana would put an instruction of its own before it, and captions are trained without one.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    names = ("use_resolution_binning", "clean_caption", "complex_human_instruction")
    return {name: False for name in names if name in known}


def own_size(pipeline: Any) -> tuple[int | None, int | None]:
    """Return height and width for sampling at the pipeline's own size. Only Sana needs them, whose default is 1024."""
    if type(pipeline).__name__ != "SanaPipeline":
        return None, None
    config: Any = denoiser_of(pipeline).config
    side = int(config["sample_size"] * pipeline.vae_scale_factor)
    return side, side


def text_tokenizer(pipeline: Any) -> tuple[Any, int]:
    """Return the tokenizer of the text that attention reads, and the largest number of tokens of its text encoder.

    For Stable Diffusion 3, whose attention reads two texts, it is CLIP's tokenizer.
    """
    if type(pipeline).__name__ in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
        return pipeline.tokenizer, int(pipeline.tokenizer.model_max_length)
    return getattr(pipeline, "tokenizer_2", pipeline.tokenizer), most_tokens(pipeline)


def most_tokens(pipeline: Any) -> int:
    """Return the number of tokens of the pipeline's T5 or Gemma encoder; without one, the tokenizer's number."""
    limit = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    return int(pipeline.tokenizer.model_max_length if limit is None else limit.default)


def as_maps(values: Tensor, channels: int, *, positions: Tensor | None = None) -> Tensor:
    """Return latents or predictions as `(B, C, h, w)`.

    Args:
        values: `(B, C, h, w)`, perhaps with a variance behind, or FLUX's patches `(B, N, 4 C)`.
        channels: the number C of channels.
        positions: the row and column of each patch, `(N, 3)`, for patches.
    """
    if positions is None:
        return values[:, :channels]
    rows, columns = (int(positions[:, axis].max()) + 1 for axis in (1, 2))
    return from_patches(values, rows, columns)


def to_patches(maps: Tensor) -> Tensor:
    """Cut latents `(B, C, h, w)` into FLUX's patches `(B, N, 4 C)` of 2 by 2, row by row."""
    count, channels, height, width = maps.shape
    patches = maps.reshape(count, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, (height // 2) * (width // 2), channels * 4)


def from_patches(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Turn patches `(B, N, 4 C)` into maps `(B, C, 2 rows, 2 columns)`."""
    count, _, width = patches.shape
    apart = patches.view(count, rows, columns, width // 4, 2, 2)
    return apart.permute(0, 3, 1, 4, 2, 5).reshape(count, width // 4, 2 * rows, 2 * columns)
