"""Show detectors every call of a pipeline's denoiser while it samples.

The denoiser is observed through a forward hook, or by the probe if a detector needs attention; either is removed
whatever happens. With classifier-free guidance the pipeline calls the denoiser on `[n unconditional; n conditional]`
latents: the second half is the conditional one, for any n.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from diffusers import StableDiffusionPipeline
from torch import Tensor, nn

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.errors import ProbeError
from memtrain.models.probe import DenoiserProbe, Observation


@contextmanager
def observed(
    pipeline: StableDiffusionPipeline,
    detectors: Sequence[Detector],
    *,
    prompts: Sequence[str],
    steps: int,
    guided: bool,
) -> Iterator[dict[str, list[Tensor]]]:
    """Collect what `detectors` keep of each denoiser call, per detector name.

    Raises:
        ProbeError: if a call has another batch than there are prompts, doubled when `guided`.
    """
    kept: dict[str, list[Tensor]] = {detector.name: [] for detector in detectors}
    images, halves, calls = len(prompts), 2 if guided else 1, 0
    attention = any("token_attention" in detector.needs for detector in detectors)
    lengths = None
    if any("prompt_length" in detector.needs for detector in detectors):
        lengths = prompt_lengths(pipeline, prompts).to(pipeline.unet.device)

    def seen(prediction: Tensor, latents: Tensor, timestep: float, token_attention: dict[str, Tensor] | None) -> None:
        nonlocal calls
        if len(prediction) != halves * images:
            raise ProbeError(
                f"The denoiser was called with {len(prediction)} latents for {images} images",
                expected=f"{halves * images}: [unconditional; conditional]" if guided else f"{images}, unguided",
                remedy="use a pipeline with plain classifier-free guidance",
            )
        parts = prediction.chunk(halves)
        step = DenoiserStep(
            index=calls,
            timestep=timestep,
            conditional=parts[-1],
            unconditional=parts[0] if guided else None,
            total=steps,
            latents=latents[-images:],
            token_attention=token_attention,
            prompt_length=lengths,
        )
        calls += 1
        for detector in detectors:
            reading = detector.read(step)
            if reading is not None:
                kept[detector.name].append(reading)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: tuple[Tensor]) -> None:
        sample = args[0] if args else kwargs["sample"]
        seen(output[0], sample, float(args[1] if len(args) > 1 else kwargs["timestep"]), None)

    def watcher(observation: Observation, prediction: Tensor) -> None:
        conditional = {site: rows[-images:] for site, rows in observation.token_attention.items()}
        seen(prediction, observation.noisy_latents, float(observation.timesteps[0]), conditional)

    with ExitStack() as stack:
        if attention:
            stack.enter_context(DenoiserProbe(pipeline.unet, sites="*").watch(watcher))
        elif detectors:
            stack.callback(pipeline.unet.register_forward_hook(hook, with_kwargs=True).remove)
        yield kept


def prompt_lengths(pipeline: StableDiffusionPipeline, prompts: Sequence[str], *, truncation: bool = True) -> Tensor:
    """Tokens of each prompt with BOS and EOS, `(B,)`, with `truncation` at most what the text encoder reads."""
    most = pipeline.tokenizer.model_max_length if truncation else None
    encoded = pipeline.tokenizer(list(prompts), truncation=truncation, max_length=most)["input_ids"]
    return torch.tensor([len(ids) for ids in encoded])
