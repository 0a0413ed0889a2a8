"""The caches of a data module, filled by the encoders of the module that is trained.

`cache_latents` caches in memory. `cache` caches on disk. For it, the module has `encode_images(pixel_values)`,
`encode_tokens(fields)` and `encoder_fingerprint("images" or "text")`, which names the encoder's weights and
configuration.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from memtrain.data.dataset import CaptionedImages
from memtrain.data.disk_cache import (
    CAPTIONS_AT_ONCE,
    Cache,
    Processes,
    cache_latents,
    cache_text,
    encoded_together,
    refuse_frozen,
)
from memtrain.data.filling import Entries, Filling
from memtrain.errors import ConfigurationError


def processes_of(trainer: Any) -> tuple[Processes, torch.device]:
    """Return the processes of a trainer and this process's device; without a trainer, this process and the CPU."""
    if trainer is None:
        return Processes(), torch.device("cpu")
    strategy: Any = trainer.strategy
    broadcast = partial(strategy.broadcast, src=0)
    return Processes(trainer.global_rank, trainer.world_size, strategy.barrier, broadcast), strategy.root_device


def keep_in_memory(datasets: Sequence[CaptionedImages], module: Any, device: torch.device) -> None:
    """Encode the images of datasets and keep their latents in memory.

    Args:
        datasets: the datasets of the data module.
        module: the module with `encode_images`.
        device: the device of training.

    Raises:
        ConfigurationError: if the module has no such method, or if random crops would be frozen.
    """
    encode = _method(module, "encode_images", "encode_images(pixel_values)", setting="cache_latents")
    for dataset in datasets:
        refuse_frozen(dataset, latents=True)
        dataset.cache_latents(lambda pixels: encode(pixels.to(device)))


def keep_on_disk(
    cache: Cache,
    datasets: Sequence[CaptionedImages],
    module: Any,
    *,
    empty: dict[str, Tensor],
    processes: Processes,
    device: torch.device,
) -> dict[str, Tensor]:
    """Let datasets read latents and text embeddings from disk.

    Args:
        cache: the settings of the cache.
        datasets: the datasets of the data module.
        module: the module with the encoders.
        empty: the tokens of the empty caption, `(1, ...)`.
        processes: the processes that share the work.
        device: the device of training.

    Returns:
        The embeddings of the empty caption, `(1, ...)`; empty if text is not cached.

    Raises:
        ConfigurationError: if the module lacks a method, or if the cache would freeze random or trained values.
    """
    found = _encoders(cache, datasets, module, empty=empty, processes=processes)
    if found.latents is not None:
        encode, folder = found.latents
        cache_latents(
            datasets,
            folder,
            lambda pixels: encode(pixels.to(device)),
            at_once=encoded_together(device.type, 0) or None,
            processes=processes,
        )
    if found.text is None:
        return {}
    method, folder = found.text

    def encode_text(fields: dict[str, Tensor]) -> dict[str, Tensor]:
        made: dict[str, Tensor] = method({name: values.to(device) for name, values in fields.items()})
        return made

    at_once = encoded_together(device.type, CAPTIONS_AT_ONCE)
    return cache_text(datasets, folder, encode_text, empty=empty, at_once=at_once, processes=processes)


def keep_while_training(
    cache: Cache,
    datasets: Sequence[CaptionedImages],
    module: Any,
    *,
    empty: dict[str, Tensor],
    processes: Processes,
    device: torch.device,
) -> tuple[Filling, dict[str, Tensor]]:
    """Make the cache that training fills with a module's latents and text embeddings.

    Arguments and errors are those of :func:`keep_on_disk`.

    Returns:
        The cache, and the embeddings of the empty caption, `(1, ...)`; the latter are empty if text is not cached.
    """
    found = _encoders(cache, datasets, module, empty=empty, processes=processes)
    latents, text = None, None
    if found.latents is not None:
        encode, folder = found.latents
        latents = Entries(
            folder, lambda fields: {"latents": encode(fields["pixel_values"].float()).float()}, processes=processes
        )
    if found.text is not None:
        text = Entries(found.text[1], found.text[0], processes=processes)
    filling = Filling(latents, text)
    return filling, filling.empty_caption({name: values.to(device) for name, values in empty.items()})


class _Encoders(NamedTuple):
    """Encoding methods of a module, each with the folder of its results; None for results that are not cached."""

    latents: tuple[Any, Path] | None
    text: tuple[Any, Path] | None


def _encoders(
    cache: Cache, datasets: Sequence[CaptionedImages], module: Any, *, empty: dict[str, Tensor], processes: Processes
) -> _Encoders:
    """Return the encoders of a cache, and refuse caches that cannot work."""
    folder = Path(cache.folder)
    fingerprint = _method(module, "encoder_fingerprint", 'encoder_fingerprint("images" or "text")', setting="cache")
    for dataset in datasets:
        refuse_frozen(dataset, latents=cache.latents, text=cache.text)
    latents = None
    if cache.latents:
        encode = _method(module, "encode_images", "encode_images(pixel_values)", setting="cache.latents")
        name = processes.broadcast(fingerprint("images") if processes.rank == 0 else None)
        latents = encode, folder / f"latents-{name[:16]}"
    if not cache.text:
        return _Encoders(latents, None)
    if not empty:
        raise ConfigurationError(
            f"cache.text is on, but {type(module).__name__} makes no tokens of captions",
            expected="a module with tokens(captions) and encode_tokens(fields)",
            remedy="set data.init_args.cache.text to false",
        )
    method = _method(module, "encode_tokens", "encode_tokens(fields)", setting="cache.text")
    with torch.enable_grad():
        # This comes before anything moves: the trained weights are with the module, not yet on the device.
        trained = any(values.requires_grad for values in method(empty).values())
    if trained:
        raise ConfigurationError(
            "Cached text embeddings would be those of the text encoder before training",
            expected="text encoders that training does not change",
            remedy="set data.init_args.cache.text to false, or do not train the text encoder",
        )
    name = processes.broadcast(fingerprint("text") if processes.rank == 0 else None)
    return _Encoders(latents, (method, folder / f"text-{name[:16]}"))


def _method(module: Any, name: str, signature: str, *, setting: str) -> Any:
    method = getattr(module, name, None)
    if method is None:
        raise ConfigurationError(
            f"{setting} is on, but {type(module).__name__} has no {signature}",
            expected="a module that encodes images and captions, such as TextToImageModule",
            remedy=f"set data.init_args.{setting} to {'null' if setting == 'cache' else 'false'}",
        )
    return method
