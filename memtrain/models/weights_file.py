"""Weights from other people: only safetensors files, and nothing that is unpickled.

Accepted: safetensors whose header fits the file (its library checks that), with finite numbers. Refused, with file and
tensor: other files, NaN and infinity, files that lack weights, and files beyond a size if a small one is expected.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from memtrain.errors import ConfigurationError, MemtrainError
from memtrain.files.shown import shown
from memtrain.files.text import json_of

MOST_BYTES = 2**34
"""The largest size in bytes of a file that is read as a whole: adapters, masks, statistics."""


def header(path: Path, what: str) -> tuple[dict[str, tuple[int, ...]], dict[str, str]]:
    """Return the shapes of the tensors in a file by name, and its metadata. No tensor is read.

    Args:
        path: the path of the file.
        what: the expected content, for the error.

    Raises:
        ConfigurationError: if it is not a safetensors file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
            return shapes, dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError, OverflowError) as error:
        raise _unreadable(path, what, error) from error


def tensors(path: Path, what: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of a file, which must be finite, and its metadata.

    Args:
        path: the path of the file.
        what: the expected content, for the error.

    Raises:
        ConfigurationError: if it is not a safetensors file, is too large, or holds NaN or infinity.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise SafetensorError(f"it has {path.stat().st_size} bytes")
        with safe_open(path, framework="pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = dict(file.metadata() or {})
    except (OSError, SafetensorError, ValueError, OverflowError, RuntimeError) as error:
        raise _unreadable(path, what, error) from error
    for name, value in found.items():
        refuse_infinite(value, f"{path}: {shown(name)}")
    return found, metadata


def refuse_infinite(value: Tensor, where: str) -> None:
    """Refuse a tensor with NaN or infinity.

    Args:
        value: a tensor of any type.
        where: the file and the tensor, for the error.

    Raises:
        ConfigurationError: if it holds such a value.
    """
    if not value.is_floating_point() or not value.numel() or value.is_meta:
        return
    if value.element_size() == 1:  # float8 has no order
        value = value.float()
    low, high = value.detach().aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ConfigurationError(
            f"{where} holds {'NaN' if torch.isnan(low) else 'infinity'}",
            expected="finite numbers",
            remedy="download the file again; if it comes from a training of yours, use an earlier checkpoint",
        )


def check_loaded(pipeline: Any, where: str) -> None:
    """Refuse a pipeline with weights that are not finite.

    Raises:
        ConfigurationError: with the part and the weight.
    """
    for part, module in pipeline.components.items():
        for name, value in module.named_parameters() if isinstance(module, nn.Module) else ():
            refuse_infinite(value, f"{where}: {part}'s {name}")


def check_complete(files: list[Path], module: nn.Module, where: str) -> None:
    """Refuse files that lack weights of a module; these weights would keep their random values.

    Loaders rename and reshape, so weights are counted by their sizes.

    Args:
        files: the files from which the module was loaded.
        module: the loaded module.
        where: the name of the files in the error.

    Raises:
        ConfigurationError: with the number of missing weights.
    """
    stored = Counter(_size(shape) for file in files for shape in header(file, "weights")[0].values())
    needed = Counter(value.numel() for value in module.parameters())
    missing = needed - stored
    if missing:
        size = next(iter(missing))
        name = next(name for name, value in module.named_parameters() if value.numel() == size)
        raise ConfigurationError(
            f"{where} lacks {missing.total()} of {needed.total()} weights, one like {name!r}",
            expected="a file with every weight of the part, because missing weights would be random",
            remedy="download the file again",
        )


def metadata_json(metadata: Mapping[str, str], name: str, path: Path) -> Any:
    """Return a value that a file's metadata hold as JSON.

    Raises:
        DataError: if it is missing, or is not JSON.
    """
    return json_of(metadata.get(name, ""), f"{path}: {name!r} of its metadata")


def one_line(error: Exception) -> str:
    """Return another library's message in one line."""
    return shown(" ".join(str(error).split()) or type(error).__name__)


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        size *= length
    return size


def _unreadable(path: Path, what: str, error: Exception) -> MemtrainError:
    return ConfigurationError(
        f"{path} is not a safetensors file: {one_line(error)}",
        expected=f"{what} as safetensors; pickled files (.bin, .pt, .ckpt) could run code",
        remedy="check the path, or download the file again",
    )
