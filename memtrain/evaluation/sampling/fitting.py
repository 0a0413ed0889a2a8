"""How many images a denoiser is given at once: as many as its device has memory for, by an estimate.

Method: the stock pipeline is called with one prompt up to its first denoiser call, whose arguments are kept; the call
is then run on tensors without content (:mod:`memtrain.models.simulated_memory`), for one image and for two. Memory
grows by the same amount with each image, so both give the memory of any number: activations at the peak, with both
halves of guidance, in the model's own type. Detectors that read the attention take a constant in addition.
Source: ours. Cost: one text encoding and some seconds, once for a model, an image size and guidance; none for so
few pixels that they always fit (:data:`memtrain.functional.memory.PIXELS`).
Checked: against the allocator's own count on a CPU (tests, `benchmarks/evaluation_memory.py`).
Cannot: see workspaces and fragments that an allocator cannot use, for which a seventh of the free memory is kept in
reserve, nor the later use by other programs. Code that reads the values of tensors cannot be simulated. Where an
estimate was too low or is missing, a batch that does not fit is halved (:mod:`memtrain.evaluation.sampling.at_once`).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from memtrain.detectors.base import Detector
from memtrain.evaluation.sampling.free_memory import free_memory
from memtrain.evaluation.sampling.settings import Sampling
from memtrain.functional.attention import MAXIMUM_ELEMENTS
from memtrain.functional.memory import PIXELS
from memtrain.models.placement import execution_device
from memtrain.models.simulated_memory import empty_like, peak_of, simulation, without_content
from memtrain.models.stock_pipeline import denoiser_of, has_two_halves, sampling_arguments

log = logging.getLogger(__name__)

USABLE = 0.85
"""Share of the free memory that a batch may take."""
READING = 3 * 4 * MAXIMUM_ELEMENTS
"""Bytes of a detector's reading of the attention: logits, probabilities and their sum, in float32."""

_KNOWN: WeakKeyDictionary[nn.Module, dict[Any, tuple[int, int] | None]] = WeakKeyDictionary()
"""Results of :func:`denoising_bytes` by denoiser, and by size, guidance and type."""


class _Seen(Exception):
    """Ends a sampling whose first denoiser call is known."""


def images_that_fit(
    pipeline: Any, sampling: Sampling, *, size: tuple[int, int], detectors: Sequence[Detector] = ()
) -> int:
    """Return how many images a sampling should give the denoiser at once, at most the settings' `batch_size`.

    Args:
        pipeline: pipeline on its device.
        sampling: settings.
        size: height and width of the images.
        detectors: detectors that read the denoiser.
    """
    if not sampling.by_memory or sampling.batch_size * size[0] * size[1] <= PIXELS:
        return sampling.batch_size
    device = execution_device(pipeline)
    free = free_memory(device)
    found = None if free is None else _known_bytes(pipeline, sampling, size)
    if free is None or found is None:
        return sampling.batch_size
    reads = any({"token_attention", "eos_attention"} & detector.needs for detector in detectors)
    count = images_in(free - _absent(pipeline, device), found, reading=READING if reads else 0)
    if count < sampling.batch_size:
        log.info("%d images at once of a batch of %d: %.1f GB are free", count, sampling.batch_size, free / 1e9)
    return min(sampling.batch_size, count)


def images_in(free: int, found: tuple[int, int], *, reading: int = 0) -> int:
    """Return the number of images for which some bytes are enough, at least one.

    Args:
        free: free bytes of the device.
        found: result of :func:`denoising_bytes`.
        reading: bytes taken in addition.
    """
    fixed, each = found
    return max(1, (int(free * USABLE) - reading - fixed) // max(1, each))


def rows_with_gradients(pipeline: Any, *, size: tuple[int, int], most: int = 32) -> int:
    """Return the rows of a forward and backward pass to the text for which the device has memory, at most `most`.

    Args:
        pipeline: Stable Diffusion 1.x or 2.x pipeline, on its device.
        size: height and width of the images.
        most: highest result.
    """
    device = execution_device(pipeline)
    free = free_memory(device)
    if free is None or most * size[0] * size[1] <= PIXELS:
        return most
    found = _known_bytes(pipeline, Sampling(guidance_scale=1.0, batch_size=most), size, backward=True)
    return most if found is None else min(most, images_in(free, found))


def _absent(pipeline: Any, device: torch.device) -> int:
    """Return the bytes of a denoiser that is moved to the device only for its calls."""
    weights = list(denoiser_of(pipeline).parameters())
    return sum(one.numel() * one.element_size() for one in weights if one.device.type != device.type)


def _known_bytes(
    pipeline: Any, sampling: Sampling, size: tuple[int, int], *, backward: bool = False
) -> tuple[int, int] | None:
    denoiser = denoiser_of(pipeline)
    halves = 2 if has_two_halves(pipeline, sampling.guidance_scale) else 1
    key = (size, halves, backward, next(denoiser.parameters()).dtype)
    known = _KNOWN.setdefault(denoiser, {})
    if key not in known:
        try:
            call = first_call(pipeline, sampling, size)
            known[key] = denoising_bytes(denoiser, call, halves=halves, backward=backward)
        except Exception as error:  # of the denoiser's own code, which may read values
            log.warning(
                "No estimate of the memory that %s takes (%s): batches of %d are tried, and halved if they do not fit",
                *(type(denoiser).__name__, f"{type(error).__name__}: {error}".splitlines()[0], sampling.batch_size),
            )
            known[key] = None
    return known[key]


def first_call(pipeline: Any, sampling: Sampling, size: tuple[int, int]) -> Mapping[str, Any]:
    """Return the arguments of the denoiser's first call for one prompt; `args` holds the positional ones."""
    seen: dict[str, Any] = {}

    def keep(denoiser: nn.Module, args: Any, kwargs: Any) -> None:
        seen.update(kwargs, args=args)
        raise _Seen

    handle = denoiser_of(pipeline).register_forward_pre_hook(keep, with_kwargs=True, prepend=True)
    try:
        with torch.compiler.set_stance("force_eager"):
            pipeline(
                prompt=["a"],
                generator=torch.Generator().manual_seed(0),
                num_inference_steps=sampling.steps,
                guidance_scale=sampling.guidance_scale,
                height=size[0],
                width=size[1],
                output_type="latent",
                **sampling_arguments(pipeline),
            )
    except _Seen:
        pipeline.maybe_free_model_hooks()
    finally:
        handle.remove()
    return seen


def denoising_bytes(
    denoiser: nn.Module, call: Mapping[str, Any], *, halves: int, backward: bool = False
) -> tuple[int, int]:
    """Return the bytes that a denoiser call takes in addition to its weights: a constant, and the bytes per image.

    Args:
        denoiser: denoiser on any device, also `meta`, left as it is.
        call: arguments for one image, from :func:`first_call`.
        halves: rows of an image in a call, 2 with guidance.
        backward: whether the gradients of the text are counted, too, with frozen weights.
    """
    with torch.set_grad_enabled(backward), simulation() as counter:
        copied = without_content(denoiser, hooks=False).eval().requires_grad_(False)

        def forward(images: int) -> None:
            given = empty_like(dict(call), batch=images * halves, rows=halves)
            if backward:
                given["encoder_hidden_states"].requires_grad_()
            output = copied(*given.pop("args", ()), **given)
            if backward:
                (output[0] if isinstance(output, tuple) else output.sample).float().square().mean().backward()

        one, two = (peak_of(counter, partial(forward, images)) for images in (1, 2))
    each = max(1, two - one)
    return max(0, one - each), each
