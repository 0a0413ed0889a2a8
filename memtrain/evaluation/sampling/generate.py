"""Sample images with a stock pipeline of any known kind, and let detectors read the denoiser while it works.

The pipeline is not forked and any scheduler works: `denoiser_calls.py` shows the detectors what the denoiser does.

Each image has its own generator, seeded with its seed alone. So an image depends on its prompt and seed, but not on its
batch (except for rounding: kernels may sum in another order for another batch size). All prompts start from the same
noise for the same seed, and `pipeline(prompt, generator=torch.Generator().manual_seed(seed))` reproduces any image.

A safety checker of the pipeline is not applied: a blackened image could not be compared with anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from memtrain.detectors.base import Detector
from memtrain.errors import ConfigurationError
from memtrain.evaluation.sampling.at_once import in_parts
from memtrain.evaluation.sampling.decoding import decode_images
from memtrain.evaluation.sampling.denoiser_calls import AllRead, check_needs, observed, read_images
from memtrain.evaluation.sampling.estimate import Estimate
from memtrain.evaluation.sampling.fitting import images_that_fit
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.evaluation.sampling.stored_samples import WHOLE, Part, StoredSamples, identity_of, key_of
from memtrain.files.progress import progress_bar, say_aside
from memtrain.files.prompt_texts import prompt_list
from memtrain.models.placement import execution_device
from memtrain.models.stock_pipeline import denoiser_of, own_size, sampling_arguments


@dataclass(frozen=True)
class Trace:
    """The images of a sampling and the readings of the detectors.

    Attributes:
        prompts: P prompts.
        seeds: K seeds, the same for every prompt.
        images: images `(P, K, 3, H, W)` uint8, on the CPU.
        readings: readings `(P, K, R, ...)` by detector name, fp32 or whole numbers, on the CPU.
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
    store: Path | None = None,
    part: Part = WHOLE,
) -> Trace:
    """Sample one image for every prompt and seed.

    Args:
        pipeline: pipeline of a kind in :mod:`memtrain.models.stock_pipeline`, left as it was.
        prompts: P prompts, as a list, an array or a column of a data frame.
        sampling: settings.
        detectors: detectors that read the denoiser's predictions; their names must differ.
        store: folder for samplings. Every batch is written, as soon as it is complete, to a folder in it that is named
            after everything that the images depend on. An interrupted sampling continues there. The trace is mapped
            from the files and costs no memory.
        part: part of the batches of this process, where several processes share the work and a store.

    Raises:
        ConfigurationError: if settings contradict each other, or the disk is too small.
        ProbeError: if the denoiser's calls differ from the expected ones.
        UnfinishedParts: if this part is sampled and parts of other processes are missing.
    """
    sampling, prompts = sampling or Sampling(), prompt_list(prompts)
    if store is not None:
        return _stored(pipeline, prompts, sampling, detectors, store, part)
    images: list[Tensor] = []
    readings: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
    for _, decoded, kept in _sample(pipeline, prompts, sampling, detectors=detectors, decode=True):
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


def _stored(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    sampling: Sampling,
    detectors: Sequence[Detector],
    store: Path,
    part: Part,
) -> Trace:
    """Do the same as :func:`generate`, with the images in files."""
    _check(prompts, detectors)
    check_needs(pipeline, detectors, guidance_scale=sampling.guidance_scale)
    seeds = len(sampling.seeds)
    identity = identity_of(pipeline, prompts, sampling, detectors, size=sampled_size(pipeline, sampling))
    folder = store / key_of(identity)
    kept = StoredSamples(folder, identity, count=len(prompts) * seeds, batch=sampling.batch_size, part=part)
    if missing := kept.missing():
        done = 0 if part != WHOLE else len(prompts) * seeds - sum(map(len, missing))
        if done and sampling.progress:
            say_aside(f"Sampling continues: {done} of {len(prompts) * seeds} images are in {folder}")
        for rows, images, readings in _sample(
            pipeline, prompts, sampling, detectors=detectors, decode=True, parts=missing
        ):
            assert images is not None
            kept.write(rows, images, readings)
    kept.put_together()
    found, readings = kept.read()
    return Trace(
        prompts=tuple(prompts),
        seeds=tuple(sampling.seeds),
        images=_by_prompt([found], seeds),
        readings={detector.name: _by_prompt([readings[detector.name]], seeds) for detector in detectors},
    )


def read_prompts_with(
    pipeline: DiffusionPipeline,
    prompts: Sequence[str],
    detectors: Sequence[Detector],
    *,
    sampling: Sampling | None = None,
) -> dict[str, Tensor]:
    """Return the detectors' readings alone, per name `(P, K, R, ...)`; arguments as :func:`generate`.

    Sampling stops as soon as no detector reads any more, so one-step detectors cost one denoiser call. Images are
    decoded if a detector needs them.
    """
    if not detectors:
        raise ConfigurationError("No detector to read prompts with", expected="at least one", remedy="name a detector")
    sampling, prompts = sampling or Sampling(), prompt_list(prompts)
    readings: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
    for _, _, kept in _sample(pipeline, prompts, sampling, detectors=detectors, until_read=True):
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
    parts: Sequence[range] | None = None,
) -> Iterator[tuple[range, Tensor | None, dict[str, Tensor]]]:
    """Yield batches: their rows, images `(B, 3, H, W)` on request, and readings `(B, R, ...)`.

    Rows count the prompts, and within each prompt its seeds. `parts` are the rows of the batches; default all.
    """
    _check(prompts, detectors)
    check_needs(pipeline, detectors, guidance_scale=sampling.guidance_scale)
    decode = decode or any("images" in detector.needs for detector in detectors)
    size = sampled_size(pipeline, sampling)
    pairs = [(prompt, seed) for prompt in prompts for seed in sampling.seeds]
    if parts is None:
        every = range(0, len(pairs), sampling.batch_size)
        parts = [range(start, min(start + sampling.batch_size, len(pairs))) for start in every]

    def batch(rows: range) -> tuple[Tensor | None, dict[str, Tensor]]:
        asked = pairs[rows.start : rows.stop]
        stop = until_read and not decode
        return _batch(pipeline, asked, sampling, detectors, until_read=stop, decode=decode)

    count = sum(map(len, parts))
    bar = progress_bar(total=count, desc="sampling", unit="image", disable=not sampling.progress)
    device = str(execution_device(pipeline))
    left = Estimate(count, steps=sampling.steps, size=size, device=device, silent=not sampling.progress)
    with prepared(pipeline), bar:
        most = images_that_fit(pipeline, sampling, size=size, detectors=detectors)
        for rows in parts:
            done = in_parts(pipeline, rows, batch, pixels=size[0] * size[1], most=most)
            images = torch.cat([one for _, (one, _) in done if one is not None]) if decode else None
            names = done[0][1][1]
            yield rows, images, {name: torch.cat([kept[name] for _, (_, kept) in done]) for name in names}
            bar.update(len(rows))
            left.batch(len(rows))


def _batch(
    pipeline: DiffusionPipeline,
    pairs: Sequence[tuple[str, int]],
    sampling: Sampling,
    detectors: Sequence[Detector],
    *,
    until_read: bool,
    decode: bool,
) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Sample some prompts with their seeds at once; return images and readings."""
    texts, images = [prompt for prompt, _ in pairs], None
    height, width = sampling.size or own_size(pipeline)
    watching = observed(
        pipeline,
        detectors,
        prompts=texts,
        steps=sampling.steps,
        guidance_scale=sampling.guidance_scale,
        until_read=until_read,
    )
    with watching as kept:
        try:
            latents = pipeline(
                prompt=texts,
                generator=[torch.Generator().manual_seed(seed) for _, seed in pairs],
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
    return images, {name: _on_host(condensed) for name, (condensed,) in kept.items()}


def sampled_size(pipeline: DiffusionPipeline, sampling: Sampling) -> tuple[int, int]:
    """Return height and width of the images, also for the default size of the pipeline."""
    if sampling.size is not None:
        return sampling.size
    config: Any = denoiser_of(pipeline).config
    side = getattr(pipeline, "default_sample_size", None) or config["sample_size"]
    height, width = (side, side) if isinstance(side, int) else side
    return height * pipeline.vae_scale_factor, width * pipeline.vae_scale_factor


def _unpacked(pipeline: DiffusionPipeline, latents: Tensor, size: tuple[int, int] | None) -> Tensor:
    """Return FLUX's patches `(B, N, 4 C)` as `(B, C, h, w)`; others unchanged."""
    if latents.dim() == 4:
        return latents
    height, width = size or (pipeline.default_sample_size * pipeline.vae_scale_factor,) * 2
    unpacked: Tensor = pipeline._unpack_latents(latents, height, width, pipeline.vae_scale_factor)
    return unpacked


def _on_host(readings: Tensor) -> Tensor:
    """Move readings to the CPU, in fp32 unless they are whole numbers."""
    return (readings.float() if readings.is_floating_point() else readings).cpu()


def _by_prompt(batches: list[Tensor], seeds: int) -> Tensor:
    """Join batches `(B, ...)` of images, in the order of prompts, then seeds, to `(P, K, ...)`."""
    images = torch.cat(batches)
    return images.view(-1, seeds, *images.shape[1:])


def _check(prompts: Sequence[str], detectors: Sequence[Detector]) -> None:
    """Refuse settings that would fail, or measure nothing without an error, after minutes of sampling."""
    if not prompts:
        raise ConfigurationError("No prompts to sample", expected="at least one prompt", remedy="give prompts")
    names = [detector.name for detector in detectors]
    if len(set(names)) < len(names):
        raise ConfigurationError(
            f"Detectors share a name: {names}", expected="distinct names", remedy="remove the repeated detector"
        )


@contextmanager
def prepared(pipeline: DiffusionPipeline) -> Iterator[None]:
    """Keep modules in evaluation mode and hide the pipeline's own progress bar, for the duration."""
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
