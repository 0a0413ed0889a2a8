"""Parts of `gpu.py` that compare `train.py` with diffusers' own scripts at the shapes of large models."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import training
from gpu_shapes import Part
from training_shapes import shape_of


def training_sd15(part: Part) -> None:
    """Stable Diffusion 1.5's shape, LoRA and all weights."""
    _compare(part, "sd15", forms=("lora", "full"), steps=34)


def training_sdxl(part: Part) -> None:
    """Stable Diffusion XL's shape, LoRA."""
    _compare(part, "sdxl", forms=("lora",), steps=26)


def _compare(part: Part, name: str, *, forms: tuple[str, ...], steps: int) -> None:
    shape, scripts = shape_of(name, part.folder), Path(os.environ["DIFFUSERS_SCRIPTS"])
    for form in forms:

        def keep(found: dict[str, Any], form: str = form) -> None:
            part.add(**{f"{form}, {way}": figures for way, figures in found.items()})

        training.compare(
            shape,
            form,
            scripts=scripts,
            steps=20 if part.smoke else steps,
            rounds=1,
            folder=part.folder / f"training_{name}",
            paths=(),
            ways=training.WAYS if form == "lora" and name == "sd15" else ("watched", "cached"),
            keep=keep,
        )
