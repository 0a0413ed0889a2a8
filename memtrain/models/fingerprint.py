"""Hashes of weights, which identify the model behind a result.

Results are kept under the fingerprint of their model, so that results of one model never continue those of another.
:func:`fingerprint` is for a pipeline (detection), :func:`weights_fingerprint` for a module (reference profiles), and
:func:`encoder_fingerprint` for an autoencoder or text encoders (caches of latents and embeddings).
:meth:`memtrain.localization.predictor.Predictor.fingerprint` is for value layers (statistics, located neurons). Two
pipelines with the same fingerprint give the same images for the same noise, wherever their files lie.

Cost: about a second per gigabyte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, starmap
from typing import Any

import torch
from torch import Tensor, nn

from memtrain.models.backbones.base import unwrap

UNRELATED = ("transformers_version", "name_or_path", "dtype", "torch_dtype", "architectures")
"""Entries of a configuration that do not change a model's results; the type of its weights counts by itself."""
FIRST = 64
"""The number of values of each weight in a sketch."""


def hash_tensors(named: Iterable[tuple[str, Tensor]], *, start: bytes = b"") -> hashlib._Hash:
    """Hash names and values with SHA-256, in the given order; more can be added to the result.

    Args:
        named: the names and the tensors. The type and shape of a tensor count only if its name holds them.
        start: the bytes that are hashed first.
    """
    digest = hashlib.sha256(start)
    for name, tensor in chain.from_iterable(starmap(_stored, named)):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest


def _stored(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Yield the stored parts of a tensor: itself, or integers and scales if a package stores it in fewer bits."""
    if type(tensor).__module__.partition(".")[0] == "torch" or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield f"{name}.{part}", getattr(tensor, part)


def weights_fingerprint(module: nn.Module) -> str:
    """Return the SHA-256 of the names and values of a module's parameters and buffers, in hexadecimal."""
    return hash_tensors(module.state_dict().items()).hexdigest()


def weights_sketch(named: Iterable[tuple[str, Tensor]]) -> str:
    """Return the SHA-256 of names, shapes and first values of weights. It tells models apart at almost no cost.

    Values are rounded to bfloat16, so that storing a model in that type does not change its sketch. For weights in few
    bits, only the names count.
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(name.encode())
        if tensor.is_floating_point() and type(tensor).__module__.partition(".")[0] == "torch":
            first = tensor.detach().flatten()[:FIRST].to("cpu", torch.bfloat16).contiguous()
            digest.update(str(tuple(tensor.shape)).encode() + first.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encoder_fingerprint(name: str, parts: Mapping[str, nn.Module]) -> str:
    """Return the SHA-256 of encoders in hexadecimal: their user, classes, configurations and weights.

    Args:
        name: the name of the code that calls them, such as the class of a pipeline.
        parts: the encoders by name.
    """
    digest = hashlib.sha256(name.encode())
    for part, module in sorted(parts.items()):
        module = unwrap(module)
        config = getattr(module, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # The source of a model, and the release that loaded it, do not change its results.
        known = {key: value for key, value in config.items() if not key.startswith("_") and key not in UNRELATED}
        digest.update(json.dumps([part, type(module).__name__, known], sort_keys=True, default=str).encode())
        named = ((f"{key} {tuple(value.shape)} {value.dtype}", value) for key, value in module.state_dict().items())
        digest.update(hash_tensors(named).digest())
    return digest.hexdigest()


def fingerprint(pipeline: Any) -> str:
    """Return the SHA-256 of a pipeline's class, parameters, buffers and scheduler configuration, in hexadecimal.

    Args:
        pipeline: a diffusers pipeline; a safety checker does not count.
    """
    named = (
        (f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}", tensor)
        for name, part in sorted(pipeline.components.items())
        if isinstance(part, nn.Module) and name != "safety_checker"
        for key, tensor in sorted(unwrap(part).state_dict().items())
    )
    digest = hash_tensors(named, start=type(pipeline).__name__.encode())
    scheduler = {key: value for key, value in pipeline.scheduler.config.items() if not key.startswith("_")}
    digest.update(json.dumps([type(pipeline.scheduler).__name__, scheduler], sort_keys=True, default=str).encode())
    return digest.hexdigest()
