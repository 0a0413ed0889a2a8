"""Models and images of `training.py`."""

from __future__ import annotations

import json
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from experiment import ROOT

IMAGES = 320
"""Images of the tiny shape."""


@dataclass(frozen=True)
class Shape:
    """A model and its training data.

    Attributes:
        pipeline: folder.
        images: folder with metadata.jsonl.
        resolution: pixels.
        batch: samples a step.
        half: bf16 mixed precision.
        checkpointing: gradient checkpointing.
        xl: Stable Diffusion XL, whose scripts have names of their own.
        workers: processes that load images.
        reference: the reference of the monitor; a profile of a large model would take longer than the runs.
    """

    pipeline: Path
    images: Path
    resolution: int
    batch: int
    half: bool = False
    checkpointing: bool = False
    xl: bool = False
    workers: int = 0
    reference: bool = True


def shape_of(name: str, folder: Path) -> Shape:
    """The shape called `name`; what it lacks is made in `folder`."""
    if name == "tiny":
        return Shape(ROOT / "assets" / "tiny-sd", clip_art(folder / "images"), 64, 16)
    from gpu_shapes import Part, random_images, random_pipeline, random_xl_pipeline

    part = Part(folder / "part.json", folder, smoke=not torch.cuda.is_available())
    if name == "sd15":
        return Shape(random_pipeline(part), random_images(part), 512, 8, half=True, workers=4, reference=False)
    if name == "sdxl":
        options: dict[str, Any] = {"half": True, "checkpointing": True, "xl": True, "workers": 4, "reference": False}
        return Shape(random_xl_pipeline(part), random_images(part), 512, 4, **options)
    raise ValueError(f"shape {name!r} is unknown, use tiny, sd15 or sdxl")


def clip_art(place: Path) -> Path:
    """A folder with some of the embedded clip art, made once."""
    if (place / "metadata.jsonl").is_file():
        return place
    place.mkdir(parents=True, exist_ok=True)
    lines = []
    with tarfile.open(ROOT / "assets" / "clipart-pd.tar") as tar:
        names = sorted(name for name in tar.getnames() if name.endswith(".txt"))[:IMAGES]
        for name in names:
            stem = name.removesuffix(".txt")
            (image,) = (one for one in (f"{stem}.png", f"{stem}.webp") if one in tar.getnames())
            content, text = tar.extractfile(image), tar.extractfile(name)
            assert content is not None
            assert text is not None
            (place / Path(image).name).write_bytes(content.read())
            caption = text.read().decode().strip()
            lines.append(json.dumps({"file_name": Path(image).name, "text": caption}))
    (place / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return place
