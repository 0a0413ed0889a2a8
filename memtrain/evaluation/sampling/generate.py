"""Sample images with a stock pipeline of any known kind, and let detectors read the denoiser while it works.

The pipeline is not forked and any scheduler works: `denoiser_calls.py` shows the detectors what the denoiser does.

Each image has its own generator, seeded with its seed alone. So an image depends on its prompt and seed but not on the
batch it was sampled in (beyond rounding: kernels may sum in another order for another batch size), all prompts start
from the same noise for the same seed, and any image can be had again with
`pipeline(prompt, generator=torch.Generator().manual_seed(seed))`.

A safety checker of the pipeline is not applied: an image that it blackens could not be compared with anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn
from tqdm.auto import tqdm

from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.decoding import decode_images
from memtrain.evaluation.sampling.denoiser_calls import AllRead, check_needs, observed, read_images
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.models.stock_pipeline import own_size, sampling_arguments


@dataclass(frozen=True)
class Trace:
    """What was sampled and what the detectors kept.

    Attributes:
        prompts: P prompts.
        seeds: K seeds, the same for every prompt.
        images: `(P, K, 3, H, W)` uint8, on the CPU.
        readings: per detector name `(P, K, R, ...)` fp32 or whole numbers, on the CPU.
    """

    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    images: Tensor
    readings: dict[str, Tensor]


def generate(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    *,
    sampling: Sampling | None = None,
    detectors: Sequence[Detector] = (),
) -> Trace:
    """Sample one image for every prompt and seed.

    Args:
        pipeline: one of memtrain.models.stock_pipeline; it is left as it was.
        prompts: P prompts.
        sampling: the settings.
        detectors: read the denoiser's predictions; their names must differ.

    Raises:
        ConfigurationError: if settings contradict each other.
        ProbeError: if the denoiser was not seen working as expected.
    """
    sampling = sampling or Sampling()
    images: list[Tensor] = []
    readings: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
    for decoded, kept in _sample(pipeline, prompts, sampling, detectors=detectors, decode=True):
        for name, values in kept.items():
            readings[name].append(values)
        assert decoded is not None
        images.append(decoded)
    return Trace(
        prompts=tuple(prompts),
        seeds=tuple(sampling.seeds),
        images=_by_prompt(images, len(sampling.seeds)),
        readings={name: _by_prompt(values, len(sampling.seeds)) for name, values in readings.items()},
    )


def read_prompts_with(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    detectors: Sequence[Detector],
    *,
    sampling: Sampling | None = None,
) -> dict[str, Tensor]:
    """The detectors' readings alone, per name `(P, K, R, ...)`; arguments as :func:`generate`.

    Sampling stops as soon as no detector reads any more, so one-step detectors cost one denoiser call. Images are
    decoded if a detector needs them.
    """
    if not detectors:
        raise ConfigurationError("No detector to read prompts with", expected="at least one", remedy="name one")
    sampling = sampling or Sampling()
    readings: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
    for _, kept in _sample(pipeline, prompts, sampling, detectors=detectors, until_read=True):
        for name, values in kept.items():
            readings[name].append(values)
    return {name: _by_prompt(values, len(sampling.seeds)) for name, values in readings.items()}


def _sample(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    *,
    detectors: Sequence[Detector],
    until_read: bool = False,
    decode: bool = False,
) -> Iterator[tuple[Tensor | None, dict[str, Tensor]]]:
    """Batches of images `(B, 3, H, W)`, if asked for, and readings `(B, R, ...)`: prompt by prompt, its seeds."""
    _check(prompts, detectors)
    check_needs(pipeline, detectors, guidance_scale=sampling.guidance_scale)
    decode = decode or any("images" in detector.needs for detector in detectors)
    height, width = sampling.size or own_size(pipeline)
    pairs = [(prompt, seed) for prompt in prompts for seed in sampling.seeds]
    bar = tqdm(total=len(pairs), desc="sampling", unit="image", disable=not sampling.progress)
    with prepared(pipeline), bar:
        for start in range(0, len(pairs), sampling.batch_size):
            batch = pairs[start : start + sampling.batch_size]
            texts = [prompt for prompt, _ in batch]
            watching = observed(
                pipeline,
                detectors,
                prompts=texts,
                steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                until_read=until_read and not decode,
            )
            images = None
            with watching as kept:
                try:
                    latents = pipeline(
                        prompt=texts,
                        generator=[torch.Generator().manual_seed(seed) for _, seed in batch],
                        num_inference_steps=sampling.steps,
                        guidance_scale=sampling.guidance_scale,
                        height=height,
                        width=width,
                        output_type="latent",
                        **sampling_arguments(pipeline),
                    ).images
                except AllRead:
                    pipeline.maybe_free_model_hooks()
                if decode:
                    images = decode_images(pipeline, _unpacked(pipeline, latents, sampling.size))
                    read_images(detectors, images, kept)
            yield images, {name: _on_host(condensed) for name, (condensed,) in kept.items()}
            bar.update(len(batch))


def _unpacked(pipeline: DiffusionPipeline, latents: Tensor, size: tuple[int, int] | None) -> Tensor:
    """FLUX's patches `(B, N, 4 C)` as `(B, C, h, w)`; others as they are."""
    if latents.dim() == 4:
        return latents
    height, width = size or (pipeline.default_sample_size * pipeline.vae_scale_factor,) * 2
    unpacked: Tensor = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    return unpacked


def _on_host(readings: Tensor) -> Tensor:
    """On the CPU, and in fp32 unless they are whole numbers."""
    return (readings.float() if readings.is_floating_point() else readings).cpu()


def _by_prompt(batches: list[Tensor], seeds: int) -> Tensor:
    """Batches `(B, ...)` of images in the order of prompts, then seeds, to `(P, K, ...)`."""
    images = torch.cat(batches)
    return images.view(-1, seeds, *images.shape[1:])


def _check(prompts: Sequence[str], detectors: Sequence[Detector]) -> None:
    """Refuse settings that would fail, or silently measure nothing, after minutes of sampling."""
    if not prompts:
        raise ConfigurationError(
            "Nothing sensible to sample: 0 prompts", expected="at least one prompt", remedy="name prompts"
        )
    names = [detector.name for detector in detectors]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"Detectors share a name: {names}", expected="distinct names", remedy="remove the repeated detector"
        )


@contextmanager
def prepared(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Modules in evaluation mode and the pipeline's own progress bar silent, for the duration."""
    modules = [part for part in pipeline.components.values() if isinstance(part, nn.Module) and part.training]
    bar = dict(getattr(pipeline, "_progress_bar_config", {}))
    for module in modules:
        module.eval()
    pipeline.set_progress_bar_config(**{**bar, "disable": True})
    try:
        yield
    finally:
        pipeline.set_progress_bar_config(**bar)
        for module in modules:
            module.train()
