"""An image folder with copies, as people have it: names of all kinds, sizes of all kinds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

ODD = '<b>"odd", & a\nnew line\'</b>.png'
"""A key with everything that HTML, CSV and terminals trip over."""


def picture(number: int, *, side: int = 48) -> Image.Image:
    """A picture unlike all others: smooth colours with a few shapes."""
    draws = np.random.default_rng(number)
    coarse = Image.fromarray(draws.integers(0, 256, (6, 6, 3), dtype=np.uint8))
    return coarse.resize((side, side), Image.Resampling.BICUBIC)


def write_pictures(folder: Path, files: Mapping[str, tuple[Image.Image | bytes, str]]) -> Path:
    """An image folder from `{file name: (image or bytes, caption)}`."""
    rows = []
    for name, (image, caption) in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(image, bytes):
            path.write_bytes(image)
        else:
            image.save(path, "PNG")
        rows.append(json.dumps({"file_name": name, "text": caption}))
    (folder / "metadata.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder


def with_copies(folder: Path, *, pictures: int = 40, broken: bool = True) -> Path:
    """`pictures` different ones; number 0 has four files, number 1 two under one caption; one file is broken."""
    files: dict[str, tuple[Image.Image | bytes, str]] = {
        f"{number:03}.png": (picture(number), f"picture number {number}") for number in range(pictures)
    }
    files |= {
        ODD: (picture(0), "<script>alert(1)</script>"),
        "sub/copy, of 0.png": (picture(0), "another text"),
        "zoë 画.png": (picture(0), "a third text"),
        "copy of 1.png": (picture(1), "picture number 1"),
        "other.png": (picture(1000), "Picture number 2"),
    }
    if broken:
        files["broken.png"] = (b"no image", "broken")
    return write_pictures(folder, files)
