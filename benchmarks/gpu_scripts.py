"""Parts of `gpu.py` that compare `train.py` with diffusers' own scripts at the shapes of large models."""

from __future__ import annotations

import os
from pathlib import Path

import training
from gpu_shapes import Part
from rich.console import Console
from training_shapes import shape_of


def training_sd15(part: Part) -> None:
    """Stable Diffusion 1.5's shape, all weights and LoRA."""
    _compare(part, "sd15", forms=("full", "lora"))


def training_sdxl(part: Part) -> None:
    """Stable Diffusion XL's shape, LoRA."""
    _compare(part, "sdxl", forms=("lora",))


def _compare(part: Part, name: str, *, forms: tuple[str, ...]) -> None:
    shape, scripts = shape_of(name, part.folder), Path(os.environ["DIFFUSERS_SCRIPTS"])
    for form in forms:
        found = training.compare(
            shape,
            form,
            scripts=scripts,
            steps=9 if part.smoke else 50,
            rounds=1,
            folder=part.folder / f"training_{name}",
            paths=(),
            console=Console(width=150),
            ways=("watched", "cached"),
        )
        for way, figures in found.items():
            part.add(**{f"{form}, {way}": figures})
