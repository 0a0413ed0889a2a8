"""Hashes of weights, by which what was computed with a model is known again.

Results are kept under the fingerprint of their model, so that those of one never continue those of another:
:func:`fingerprint` of a pipeline (detection), :func:`weights_fingerprint` of a module (reference profiles),
:func:`encoder_fingerprint` of an autoencoder or text encoders (caches of latents and embeddings), and
:meth:`memtrain.localization.predictor.Predictor.fingerprint` of value layers (statistics, located neurons). Two
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
"""Entries of a configuration that do not change what a model computes; the type of its weights counts by itself."""
FIRST = 64
"""Values of each weight that a sketch looks at."""


def hash_tensors(named: Iterable[tuple[str, Tensor]], *, start: bytes = b"") -> hashlib._Hash:
    """SHA-256 over names and values, in the given order; more can be added to it.

    Args:
        named: what a tensor is called, and the tensor. Its type and shape do not count unless the name has them.
        start: what is hashed first.
    """
    digest = hashlib.sha256(start)
    for name, tensor in chain.from_iterable(starmap(_stored, named)):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest


def _stored(name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a tensor consists of: itself, or integers and scales where a package stores it in fewer bits."""
    if type(tensor).__module__.partition(".")[0] == "torch" or not hasattr(tensor, "__tensor_flatten__"):
        yield name, tensor
        return
    for part in tensor.__tensor_flatten__()[0]:
        yield f"{name}.{part}", getattr(tensor, part)


def weights_fingerprint(module: nn.Module) -> str:
    """SHA-256 over the names and values of a module's parameters and buffers, in hexadecimal."""
    return hash_tensors(module.state_dict().items()).hexdigest()


def weights_sketch(named: Iterable[tuple[str, Tensor]]) -> str:
    """SHA-256 over names, shapes and the first values of weights: tells models apart, and costs next to nothing.

    Values are rounded to bfloat16, so that a model is the same one when it is stored in that type. Of weights in few
    bits only the names count.
    """
    digest = hashlib.sha256()
    for name, tensor in named:
        digest.update(name.encode())
        if tensor.is_floating_point() and type(tensor).__module__.partition(".")[0] == "torch":
            first = tensor.detach().flatten()[:FIRST].to("cpu", torch.bfloat16).contiguous()
            digest.update(str(tuple(tensor.shape)).encode() + first.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def encoder_fingerprint(name: str, parts: Mapping[str, nn.Module]) -> str:
    """SHA-256 of encoders: what they are used by, their classes, configurations and weights, in hexadecimal.

    Args:
        name: of what calls them, such as the class of a pipeline.
        parts: the encoders by name.
    """
    digest = hashlib.sha256(name.encode())
    for part, module in sorted(parts.items()):
        module = unwrap(module)
        config = getattr(module, "config", {})
        config = config.to_dict() if hasattr(config, "to_dict") else dict(config)
        # Where a model was loaded from, and by which release, makes no difference to what it says.
        known = {key: value for key, value in config.items() if not key.startswith("_") and key not in UNRELATED}
        digest.update(json.dumps([part, type(module).__name__, known], sort_keys=True, default=str).encode())
        named = ((f"{key} {tuple(value.shape)} {value.dtype}", value) for key, value in module.state_dict().items())
        digest.update(hash_tensors(named).digest())
    return digest.hexdigest()


def fingerprint(pipeline: Any) -> str:
    """SHA-256 of a pipeline's class, parameters, buffers and scheduler configuration, in hexadecimal.

    Args:
        pipeline: a diffusers pipeline. A safety checker does not count.
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
