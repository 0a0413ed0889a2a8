"""Is a masked image gone, or has its prompt only lost its way to it? An adversarial search for a text embedding.

Method: the text embedding of a prompt is optimised until the denoiser, weights frozen and a neuron mask in place if one
is given, predicts well on the memorized image. If sampling with the optimised embedding brings the image back, the mask
suppressed a trigger and erased nothing.
Source: DoRI, "Finding DoRI" (arXiv 2507.16880), which brings back nearly every image that NeMo's masks hide.
Settings: the paper's: 50 steps of Adam, learning rate 0.1, 8 draws of noise and timestep in each step, started from the
prompt's own embedding; the unconditional half stays what it is. Embeddings of every prompt, noise and timesteps depend
on (seed, step, key) alone.
Control: a strong enough search finds an embedding for images that were never trained on, too. So the same search runs
on such an image, and counts against the measurement what it brings back there.
Cost: 50 forward and backward passes of 8 rows per prompt, about as much as 40 images with 20 guided steps. Prompts are
optimised side by side, and the rows of a step in as many parts as memory asks for; both change nothing but the order of
sums. In fp16 the loss is scaled, as gradients underflow there, and the scale falls where they overflow.
Cannot: prove that an image is gone, if the search fails: another start or a longer search may find it. Works on the
denoisers of Stable Diffusion 1.x and 2.x.

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
"""Of the loss in fp16, at first: it is a mean over as many numbers as Stable Diffusion's latents have."""


@dataclass(frozen=True)
class Retriggered:
    """What the search found.

    Attributes:
        embeddings: `(P, T, D)` fp32, on the pipeline's device.
        losses: `(P, steps)` denoising loss before each step, each on its own noise.
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
    """Search for the embeddings that bring images back.

    Args:
        pipeline: a Stable Diffusion 1.x or 2.x pipeline; nothing of it is changed.
        prompts: P prompts, whose embeddings the search starts from.
        images: `(P, 3, H, W)` uint8, the image to bring back for each prompt.
        keys: P names that the noise depends on; default the prompts themselves.
        masks: P masks, None where nothing is masked; default no masks.
        steps: of Adam.
        learning_rate: of Adam.
        draws: noise and timesteps per prompt and step.
        prompts_at_once: prompts optimised side by side; a forward pass has `draws` times as many rows.
        rows_at_once: rows of one forward and backward pass; default all of a step.
        seed: of the noise.
        progress: show a progress bar over steps.

    Raises:
        DataError: if prompts, images, keys and masks are not as many.
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
            remedy="the paper's are 50 steps, 8 draws and a learning rate of 0.1",
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
    """The optimised embeddings of some prompts `(p, T, D)` and their losses `(p, steps)`."""
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
                # A sum over prompts: no prompt's gradient depends on how many there are.
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
    """Per training timestep what :func:`noisy_and_target` calls its level, `(timesteps,)`."""
    if kind == "flow_prediction":
        count = int(pipeline.scheduler.config["num_train_timesteps"])
        return (torch.arange(count, device=pipeline.device) + 1.0) / count
    alphas = getattr(pipeline.scheduler, "alphas_cumprod", None)
    if alphas is None or kind not in ("epsilon", "v_prediction", "sample"):
        raise ConfigurationError(
            f"A {type(pipeline.scheduler).__name__} of prediction type {kind!r}",
            expected="epsilon, v_prediction, sample or flow_prediction, with a noise schedule",
            remedy="give the pipeline a scheduler of the kind that the model was trained with",
        )
    levels: Tensor = alphas.to(pipeline.device, torch.float32)
    return levels


@contextmanager
def _frozen(pipeline: StableDiffusionPipeline) -> Iterator[None]:
    """Denoiser, text encoder and autoencoder in evaluation mode, and no gradient to the denoiser's weights."""
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
            expected="as many of each, at least one, and images (P, 3, H, W) of uint8",
            remedy="give every prompt the image that it should bring back",
        )
