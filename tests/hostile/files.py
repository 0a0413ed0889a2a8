"""Files that strangers might hand over, made for a test."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.conftest import ROOT

MODEL = ROOT / "assets" / "tiny-sd"
HEADER = struct.pack("<Q", 2**60)
"""Of a safetensors file whose header is longer than any disk."""


class Mark:
    """Unpickled, it leaves a mark."""

    def __reduce__(self) -> tuple[Any, ...]:
        return open, ("modules/imported", "w")


def tensors_in(folder: Path, values: dict[str, torch.Tensor], **metadata: str) -> Path:
    save_file(values, folder / "f.safetensors", metadata)
    return folder / "f.safetensors"


def saved(folder: Path, value: Any, name: str = "f.ckpt") -> Path:
    torch.save(value, folder / name)
    return folder / name
