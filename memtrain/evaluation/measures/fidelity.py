"""Do images show what their prompts say? Two measures, each under its own name.

`clip_similarity`: cosine of the image's and the prompt's embedding in a CLIP model (Radford et al., "Learning
Transferable Visual Models From Natural Language Supervision", ICML 2021; as a score of generations: Hessel et al.,
"CLIPScore", EMNLP 2021, here without its factor and clipping). Needs a folder with the model.

`retrieved`: whether a diffusion model denoises the image better under its own prompt than under each of some other
prompts, on the same noise (Li et al., "Your Diffusion Model is Secretly a Zero-Shot Classifier", ICCV 2023, with the
prompts as classes). Its mean is a retrieval accuracy, and chance is 1 / (1 + others). It needs no further model: the
judge can be the pipeline itself, without mitigation.
Cost: (1 + others) · timesteps denoiser calls per image. Suggested: 4 others, 8 timesteps.
Cannot: judge a memorized prompt fairly with the model that memorized it. This model denoises its training image best
under the prompt, so it retrieves a copy more often than another picture of the prompt. Look at the other prompts.
"""

from __future__ import annotations

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor

from memtrain.errors import DataError
from memtrain.evaluation.measures.clip_scores import ClipFeatures
from memtrain.evaluation.measures.heldout_loss import heldout_loss


def retrieved(
    judge: StableDiffusionPipeline,
    images: Tensor,
    prompts: list[str],
    *,
    others: int = 4,
    timesteps: int = 8,
    seed: int = 0,
    batch_size: int | None = None,
) -> Tensor:
    """Test whether each image's own prompt explains it better than other prompts.

    Args:
        judge: the pipeline whose denoising losses are compared.
        images: the images of each prompt, `(P, K, 3, H, W)` uint8.
        prompts: the P prompts.
        others: the number of other prompts for each image; the choice depends on `seed` only.
        timesteps: the number of timesteps of the loss.
        seed: the seed of the choice and of the noise, which is the same for all prompts of an image.
        batch_size: the number of images per denoiser call; by default from their size.

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
            remedy="evaluate more prompts, or compare with fewer others",
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


def clip_similarity(clip: ClipFeatures, images: Tensor, prompts: list[str]) -> Tensor:
    """Compute the cosine between the CLIP embeddings of images and their prompts.

    Args:
        clip: the CLIP model.
        images: the images of each prompt, `(P, K, 3, H, W)` uint8.
        prompts: the P prompts.

    Returns:
        `(P, K)` from −1 to 1.
    """
    return (clip.images(images) * clip.texts(prompts)[:, None]).sum(dim=-1)
