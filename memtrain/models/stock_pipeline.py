"""What the stock text-to-image pipelines of diffusers do differently while they sample.

| pipeline | denoiser called on | the text its attention reads |
|---|---|---|
| Stable Diffusion 1.x, 2.x, XL | `[n unconditional; n conditional]` | `tokenizer` |
| PixArt-α, -Σ | the same; behind the noise it may predict a variance | `tokenizer` (T5) |
| Stable Diffusion 3, 3.5 | the same; predicts a velocity | CLIP's tokens, then T5's |
| Sana | the same; predicts a velocity | `tokenizer` (Gemma) |
| FLUX.1 | n conditional, guided by an input; latents in patches of 2 by 2; predicts a velocity | `tokenizer_2` (T5) |

Others are refused: where their two halves lie, or whether there are two, is not known.
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
"""Names of the classes that are known."""

OTHERS = {
    "ControlNet": "steered by a second network",
    "Inpaint": "an inpainting model",
    "Fill": "an inpainting model",
    "Img2Img": "made to change images (of SDXL: the refiner)",
    "Pix2Pix": "a model that edits images",
    "Kontext": "a model that edits images",
    "Upscale": "a model that enlarges images",
    "Depth": "a model that is given depth",
    "Sprint": "distilled to few steps",
}
"""What is said of others, by a part of their names."""


def check_pipeline(name: str) -> None:
    """Refuse a pipeline class that is not known.

    Args:
        name: of the class.

    Raises:
        ConfigurationError: naming those that are.
    """
    if name not in PIPELINES:
        what = next((f": it is {said}" for mark, said in OTHERS.items() if mark in name), "")
        raise ConfigurationError(
            f"It is not known how {name} guides its sampling{what}",
            expected=f"one of {', '.join(PIPELINES)}",
            remedy="load the model with one of them",
        )


def refuse_offloaded(pipeline: Any) -> None:
    """Refuse a pipeline whose parts move to the GPU for their own calls only: what calls them has to be there, too.

    Raises:
        ConfigurationError: if it is one.
    """
    if getattr(denoiser_of(pipeline), "_hf_hook", None) is not None:
        raise ConfigurationError(
            f"Parts of this {type(pipeline).__name__} are offloaded to the CPU between their calls",
            expected="a pipeline that is on one device as a whole",
            remedy="call pipeline.remove_all_hooks() and pipeline.to(device)",
        )


def denoiser_of(pipeline: Any) -> nn.Module:
    """The denoiser: `unet` or `transformer`."""
    module: nn.Module = pipeline.transformer if hasattr(pipeline, "transformer") else pipeline.unet
    return module


def has_two_halves(pipeline: Any, guidance_scale: float) -> bool:
    """Whether the denoiser is called on `[unconditional; conditional]`: not if it was distilled to be guided alone."""
    config: Any = denoiser_of(pipeline).config
    distilled = type(pipeline).__name__ == "FluxPipeline" or config.get("time_cond_proj_dim") is not None
    return guidance_scale > 1 and not distilled


def sampling_arguments(pipeline: Any) -> dict[str, Any]:
    """Arguments without which prompts and sizes would be changed on the way.

    PixArt and Sana would take the nearest of their sizes and, depending on packages, clean the prompt; Sana would put
    an instruction of its own before it, without which captions are trained on.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    names = ("use_resolution_binning", "clean_caption", "complex_human_instruction")
    return {name: False for name in names if name in known}


def own_size(pipeline: Any) -> tuple[int | None, int | None]:
    """Height and width that make a pipeline sample at its own size: none, but of Sana, which would take 1024 pixels."""
    if type(pipeline).__name__ != "SanaPipeline":
        return None, None
    config: Any = denoiser_of(pipeline).config
    side = int(config["sample_size"] * pipeline.vae_scale_factor)
    return side, side


def text_tokenizer(pipeline: Any) -> tuple[Any, int]:
    """The tokenizer of the text that attention reads, and how many tokens the text encoder reads at most.

    Of Stable Diffusion 3, whose attention reads two texts, it is CLIP's.
    """
    if type(pipeline).__name__ in ("StableDiffusionPipeline", "StableDiffusionXLPipeline", "StableDiffusion3Pipeline"):
        return pipeline.tokenizer, int(pipeline.tokenizer.model_max_length)
    return getattr(pipeline, "tokenizer_2", pipeline.tokenizer), most_tokens(pipeline)


def most_tokens(pipeline: Any) -> int:
    """How many tokens the pipeline lets its T5 or Gemma encoder read; where there is none, what the tokenizer says."""
    limit = inspect.signature(type(pipeline).__call__).parameters.get("max_sequence_length")
    return int(pipeline.tokenizer.model_max_length if limit is None else limit.default)


def as_maps(values: Tensor, channels: int, *, positions: Tensor | None = None) -> Tensor:
    """Latents or predictions as `(B, C, h, w)`.

    Args:
        values: `(B, C, h, w)`, perhaps with a variance behind; or FLUX's patches `(B, N, 4 C)`.
        channels: C.
        positions: `(N, 3)` with row and column of each patch, for patches.
    """
    if positions is None:
        return values[:, :channels]
    rows, columns = (int(positions[:, axis].max()) + 1 for axis in (1, 2))
    return from_patches(values, rows, columns)


def to_patches(maps: Tensor) -> Tensor:
    """FLUX's patches `(B, N, 4 C)` of 2 by 2 of latents `(B, C, h, w)`, row by row."""
    count, channels, height, width = maps.shape
    patches = maps.reshape(count, channels, height // 2, 2, width // 2, 2)
    return patches.permute(0, 2, 4, 1, 3, 5).reshape(count, (height // 2) * (width // 2), channels * 4)


def from_patches(patches: Tensor, rows: int, columns: int) -> Tensor:
    """Maps `(B, C, 2 rows, 2 columns)` of patches `(B, N, 4 C)`."""
    count, _, width = patches.shape
    apart = patches.view(count, rows, columns, width // 4, 2, 2)
    return apart.permute(0, 3, 1, 4, 2, 5).reshape(count, width // 4, 2 * rows, 2 * columns)
