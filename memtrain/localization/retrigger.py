"""Adversarial search for a text embedding: is a masked image gone, or can only its prompt no longer trigger it?

Method: the text embedding of a prompt is optimised until the denoiser, weights frozen and a neuron mask in place if one
is given, predicts well on the memorized image. If sampling with the optimised embedding brings the image back, the mask
suppressed a trigger and erased nothing.
Source: DoRI, "Finding DoRI" (arXiv 2507.16880), which brings back nearly every image that NeMo's masks hide.
Settings: the paper's: 50 steps of Adam, learning rate 0.1, 8 draws of noise and timestep in each step, started from the
prompt's own embedding. The unconditional half is not changed. Embeddings of every prompt, noise and timesteps depend
only on (seed, step, key).
Control: a strong search also finds embeddings for images that were never trained on. So the same search runs on such
images, and its successes there are compared with the measurement.
Cost: 50 forward and backward passes of 8 rows per prompt, about as much as 40 images with 20 guided steps. Prompts are
optimised together, and the rows of a step run in parts that fit in memory. Both change only the order of sums. In fp16
the loss is scaled, because gradients underflow, and the scale falls if they overflow.
Cannot: prove that an image is gone if the search fails, because another start or a longer search can find it. Works on
the denoisers of Stable Diffusion 1.x and 2.x.

Example:
    >>> found = retrigger(pipeline, prompts, images, keys=keys, masks=[masks.get(key) for key in keys])
    >>> image = pipeline(prompt_embeds=found.embeddings[:1]).images[0]  # within the mask
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.progress import progress_bar
from memtrain.files.prompt_texts import prompt_list
from memtrain.functional.diffusion import noisy_and_target, per_sample_mse
from memtrain.functional.keyed_draws import normal, seed_of, uniform
from memtrain.models.encoding import encode_images, encode_prompts
from memtrain.models.neuron_mask import NeuronMask
from memtrain.models.row_masks import row_masks
from memtrain.models.stock_pipeline import refuse_offloaded

SCALE = 2.0**14
"""Initial scale of the loss in fp16, which is a mean over the size of Stable Diffusion's latents."""


@dataclass(frozen=True)
class Retriggered:
    """Result of the search.

    Attributes:
        embeddings: the embeddings, `(P, T, D)` fp32, on the pipeline's device.
        losses: the denoising loss before each step, each on its own noise, `(P, steps)`.
    """

    embeddings: Tensor
    losses: Tensor


def retrigger(
    pipeline: StableDiffusionPipeline,
    prompts: Sequence[str],
    images: Tensor,
    *,
    keys: Sequence[str] | None = None,
    masks: Sequence[NeuronMask | None] | None = None,
    steps: int = 50,
    learning_rate: float = 0.1,
    draws: int = 8,
    prompts_at_once: int = 4,
    rows_at_once: int | None = None,
    seed: int = 0,
    progress: bool = False,
) -> Retriggered:
    """Search embeddings that bring images back.

    Args:
        pipeline: the Stable Diffusion 1.x or 2.x pipeline, which is not changed.
        prompts: the P prompts, whose embeddings are the start of the search.
        images: the image to bring back for each prompt, `(P, 3, H, W)` uint8.
        keys: the P names that the noise depends on; by default the prompts.
        masks: the P masks, None for prompts without a mask; by default no masks.
        steps: the number of steps of Adam.
        learning_rate: the learning rate of Adam.
        draws: the number of draws of noise and timestep for each prompt and step.
        prompts_at_once: the number of prompts optimised together; a forward pass has `draws` times as many rows.
        rows_at_once: the number of rows in one forward and backward pass; by default all rows of a step.
        seed: the seed of the noise.
        progress: whether to show a progress bar over steps.

    Raises:
        DataError: if the numbers of prompts, images, keys and masks differ.
        ConfigurationError: if a setting is out of range, or the scheduler's prediction type is not known.
    """
    prompts = prompt_list(prompts)
    keys = list(prompts) if keys is None else list(keys)
    masks = [None] * len(prompts) if masks is None else list(masks)
    _check(prompts, images, keys=keys, masks=masks)
    if min(steps, draws, prompts_at_once, rows_at_once or 1) < 1 or learning_rate <= 0:
        raise ConfigurationError(
            f"steps={steps}, draws={draws}, prompts_at_once={prompts_at_once}, learning_rate={learning_rate}",
            expected="positive numbers",
            remedy="use the paper's 50 steps, 8 draws and learning rate of 0.1",
        )
    refuse_offloaded(pipeline)
    kind = str(pipeline.scheduler.config.get("prediction_type", "epsilon"))
    levels = _levels(pipeline, kind)
    embeddings, losses = [], []
    rounds = range(0, len(prompts), prompts_at_once)
    with (
        _frozen(pipeline),
        torch.enable_grad(),
        progress_bar(total=steps * len(rounds), desc="re-triggering", unit="step", disable=not progress) as bar,
    ):
        for start in rounds:
            part = slice(start, start + prompts_at_once)
            found, course = _search(
                pipeline,
                encode_prompts(pipeline, prompts[part]),
                encode_images(pipeline.vae, images[part]).to(pipeline.unet.dtype),
                levels=levels,
                kind=kind,
                seeds=partial(_seeds, seed, keys[part]),
                masks=masks[part],
                steps=steps,
                learning_rate=learning_rate,
                draws=draws,
                rows=rows_at_once,
                bar=bar,
            )
            embeddings.append(found)
            losses.append(course)
    return Retriggered(torch.cat(embeddings), torch.cat(losses))


def _search(
    pipeline: StableDiffusionPipeline,
    embeddings: Tensor,
    latents: Tensor,
    *,
    levels: Tensor,
    kind: str,
    seeds: Callable[[int], list[int]],
    masks: Sequence[NeuronMask | None],
    steps: int,
    learning_rate: float,
    draws: int,
    rows: int | None,
    bar: Any,
) -> tuple[Tensor, Tensor]:
    """Optimise the embeddings of some prompts; return them `(p, T, D)` with their losses `(p, steps)`."""
    device, denoiser = pipeline.device, pipeline.unet
    embeddings = embeddings.float().requires_grad_()
    optimizer = torch.optim.Adam([embeddings], lr=learning_rate)
    repeated = latents.repeat_interleave(draws, dim=0)
    repeated_masks = [mask for mask in masks for _ in range(draws)]
    size = rows or len(repeated)
    course = []
    scale = SCALE if denoiser.dtype == torch.float16 else 1.0
    for step in range(steps):
        noise = normal(seeds(step), (draws, *latents.shape[1:]), device=device).flatten(0, 1).to(latents)
        timesteps = (uniform(seeds(step), draws).flatten() * len(levels)).long().to(device)
        noisy, target = noisy_and_target(repeated, noise, levels[timesteps], prediction_type=kind)

        def errors_of(part: slice, weight: float, noisy: Tensor, target: Tensor, timesteps: Tensor) -> Tensor:
            with row_masks(denoiser, repeated_masks[part]):
                text = embeddings.repeat_interleave(draws, dim=0)[part].to(denoiser.dtype)
                prediction = denoiser(noisy[part], timesteps[part], encoder_hidden_states=text).sample
                errors = per_sample_mse(prediction, target[part])
                # A sum over prompts, so that a prompt's gradient does not depend on their number.
                (errors.sum() * weight).backward()
            return errors.detach()

        while True:
            optimizer.zero_grad(set_to_none=True)
            parts = [slice(start, start + size) for start in range(0, len(repeated), size)]
            errors = torch.cat([errors_of(part, scale / draws, noisy, target, timesteps) for part in parts])
            assert embeddings.grad is not None
            if scale <= 1 or embeddings.grad.isfinite().all():
                break
            scale /= 4
        embeddings.grad /= scale
        optimizer.step()
        course.append(errors.view(-1, draws).mean(dim=1))
        bar.update()
    return embeddings.detach(), torch.stack(course, dim=1).cpu()


def _seeds(seed: int, names: Sequence[str], step: int) -> list[int]:
    return [seed_of("retrigger", seed, name, step) for name in names]


def _levels(pipeline: StableDiffusionPipeline, kind: str) -> Tensor:
    """Return the level of each training timestep for :func:`noisy_and_target`, `(timesteps,)`."""
    if kind == "flow_prediction":
        count = int(pipeline.scheduler.config["num_train_timesteps"])
        return (torch.arange(count, device=pipeline.device) + 1.0) / count
    alphas = getattr(pipeline.scheduler, "alphas_cumprod", None)
    if alphas is None or kind not in ("epsilon", "v_prediction", "sample"):
        raise ConfigurationError(
            f"{type(pipeline.scheduler).__name__} with prediction type {kind!r} is not supported",
            expected="epsilon, v_prediction, sample or flow_prediction, with a noise schedule",
            remedy="set a scheduler of the kind that the model was trained with",
        )
    levels: Tensor = alphas.to(pipeline.device, torch.float32)
    return levels


@contextmanager
def _frozen(pipeline: StableDiffusionPipeline) -> Iterator[None]:
    """Keep denoiser, text encoder and autoencoder in evaluation mode, and the denoiser's weights frozen."""
    parts: list[nn.Module] = [pipeline.unet, pipeline.text_encoder, pipeline.vae]
    training = [module for part in parts for module in part.modules() if module.training]
    wanting = [parameter for parameter in pipeline.unet.parameters() if parameter.requires_grad]
    for part in parts:
        part.eval()
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
        for module in training:
            module.training = True


def _check(prompts: Sequence[str], images: Tensor, *, keys: Sequence[str], masks: Sequence[NeuronMask | None]) -> None:
    counts = {len(prompts), len(images), len(keys), len(masks)}
    if not prompts or len(counts) > 1 or images.dtype != torch.uint8 or images.dim() != 4:
        raise DataError(
            f"{len(prompts)} prompts, images {tuple(images.shape)} of {images.dtype}, {len(keys)} keys, {len(masks)} "
            "masks",
            expected="equal numbers, at least one, and images (P, 3, H, W) of uint8",
            remedy="pass for every prompt the image that it should bring back",
        )
