"""Do images show what their prompts say? Two measures, each under its own name.

`clip_similarity`: cosine of the image's and the prompt's embedding in a CLIP model (Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision", ICML 2021; as a score of generations: Hessel et al.,
"CLIPScore", EMNLP 2021, here without its factor and clipping). Needs a folder with the model.

`retrieved`: whether a diffusion model denoises the image better under its own prompt than under each of some others, on
the same noise (Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023, with the prompts as
classes). Its mean is a retrieval accuracy; 1 / (1 + others) is chance. Needs no further model: the judge may be the
pipeline itself, without mitigation.
Cost: (1 + others) · timesteps denoiser calls per image. Suggested: 4 others, 8 timesteps.
Cannot: judge a memorized prompt fairly with the model that memorized it. That model denoises its training image best
under the prompt, so a copy is retrieved more surely than an honest picture. Look at the other prompts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import ConfigurationError, DataError
from memtrain.evaluation.heldout_loss import heldout_loss

CLIP_MEAN, CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Per channel, of the pixels in [0, 1] that CLIP was trained with."""


def retrieved(
    judge: StableDiffusionPipeline,
    images: Tensor,
    prompts: list[str],
    *,
    others: int = 4,
    timesteps: int = 8,
    seed: int = 0,
    batch_size: int = 64,
) -> Tensor:
    """Whether each image's own prompt explains it better than other prompts do.

    Args:
        judge: whose denoising losses are compared.
        images: `(P, K, 3, H, W)` uint8, the images of each prompt.
        prompts: P prompts.
        others: how many of the other prompts each image is compared with; which, depends on `seed` alone.
        timesteps: at which the loss is measured.
        seed: of the choice and of the noise, which is the same for all prompts of an image.
        batch_size: images per denoiser call.

    Returns:
        `(P, K)` bool.

    Raises:
        DataError: if there are too few different prompts to compare with.
    """
    different = list(dict.fromkeys(prompts))
    if others < 1 or len(different) <= others:
        raise DataError(
            f"{len(different)} different prompt(s), {others} others to compare with",
            expected="at least one other, and more different prompts than others",
            remedy="evaluate more prompts, or compare with fewer",
        )
    count, seeds = images.shape[:2]
    generator = torch.Generator().manual_seed(seed)
    candidates = []
    for prompt in prompts:
        order = torch.randperm(len(different), generator=generator).tolist()
        rest = [different[index] for index in order if different[index] != prompt]
        candidates.append([prompt, *rest[:others]])
    losses = [
        heldout_loss(
            judge,
            images.flatten(0, 1),
            captions=[listed[column] for listed in candidates for _ in range(seeds)],
            timesteps=timesteps,
            seed=seed,
            batch_size=batch_size,
        )
        for column in range(1 + others)
    ]
    return (losses[0] < torch.stack(losses[1:]).amin(dim=0)).view(count, seeds)


@torch.no_grad()
def clip_similarity(folder: str | Path, images: Tensor, prompts: list[str], *, batch_size: int = 64) -> Tensor:
    """Cosine between the CLIP embeddings of images and their prompts.

    Args:
        folder: a CLIP model with its tokenizer, as written by `save_pretrained`.
        images: `(P, K, 3, H, W)` uint8, the images of each prompt.
        prompts: P prompts.
        batch_size: images at once.

    Returns:
        `(P, K)` from −1 to 1.

    Raises:
        ConfigurationError: if the folder holds no CLIP model.
    """
    from transformers import CLIPModel, CLIPTokenizer

    try:
        model = CLIPModel.from_pretrained(folder, use_safetensors=True, dtype=torch.float32).eval()
        tokenizer = CLIPTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigurationError(
            f"{folder} cannot be loaded as a CLIP model: {error}",
            expected="a folder with config.json, model.safetensors and the tokenizer's files",
            remedy="check the path, or leave it out",
        ) from error
    tokens: Any = tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")
    text = F.normalize(_embedding(model.get_text_features(**tokens)), dim=-1)
    size = int(model.config.vision_config.image_size)
    parts = [
        F.normalize(_embedding(model.get_image_features(pixel_values=_prepare(part, size))), dim=-1)
        for part in images.flatten(0, 1).split(batch_size)
    ]
    return (torch.cat(parts).view(*images.shape[:2], -1) * text[:, None]).sum(dim=-1)


def _embedding(features: Any) -> Tensor:
    """Transformers returns the projected embedding, since version 5 as `pooler_output`."""
    embedding: Tensor = features if isinstance(features, Tensor) else features.pooler_output
    return embedding


def _prepare(images: Tensor, size: int) -> Tensor:
    """`(n, 3, H, W)` uint8 to CLIP's input: the shorter side to `size`, the middle cut out."""
    scale = size / min(images.shape[-2:])
    height, width = (max(size, round(side * scale)) for side in images.shape[-2:])
    pixels = F.interpolate(images.float(), size=(height, width), mode="bicubic", antialias=True).clamp(0, 255) / 255
    top, left = (height - size) // 2, (width - size) // 2
    mean, deviation = (torch.tensor(values).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_DEVIATION))
    return (pixels[..., top : top + size, left : left + size] - mean) / deviation
