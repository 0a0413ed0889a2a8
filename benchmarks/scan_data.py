"""Any number of pictures made of the embedded images, with a known share of copies, as tar shards.

Each picture is two embedded images of its own, recoloured: one is the background, the other lies on it somewhere. So no
two pictures are alike, while all look like clip art. One in a hundred files is a copy of an earlier picture: moved by a
few pixels, a little brighter, and saved as JPEG.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from memtrain.data.source import SampleSource, open_source

SIDE = 64
COPY_EVERY = 100
"""One file in so many is a copy."""
PER_SHARD = 10_000
EMBEDDED = ("assets/clipart-pd.tar", "assets/emoji-train.tar")


def write_shards(folder: Path, count: int) -> str:
    """Write `count` images, unless they are there.

    Args:
        folder: the folder of the shards.
        count: the number of images.

    Returns:
        The path of the data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    embedded = [(source, row) for source in map(open_source, EMBEDDED) for row in range(len(source))]
    for number, first in enumerate(range(0, count, PER_SHARD)):
        path = folder / f"{number:05}.tar"
        if path.exists():
            continue
        unfinished = path.with_suffix(".unfinished")
        with tarfile.open(unfinished, "w") as tar:
            for row in range(first, min(first + PER_SHARD, count)):
                extension, content = _file(embedded, row)
                _add(tar, f"{key(row)}.{extension}", content)
                _add(tar, f"{key(row)}.txt", f"picture number {row}".encode())
        unfinished.replace(path)
    return str(folder)


def key(row: int) -> str:
    """Name of an image."""
    return f"{row:08}"


def original(row: int) -> int | None:
    """Return the image that this one copies; None if it is no copy."""
    # An even number of images back, and never a copy itself.
    return row - 1 - (row // COPY_EVERY) % (COPY_EVERY - 1) if row % COPY_EVERY == COPY_EVERY - 1 else None


def _file(embedded: list[tuple[SampleSource, int]], row: int) -> tuple[str, bytes]:
    buffer = io.BytesIO()
    of = original(row)
    if of is None:
        _picture(embedded, row).save(buffer, "PNG")
        return "png", buffer.getvalue()
    copy = Image.new("RGB", (SIDE, SIDE), "white")
    copy.paste(_picture(embedded, of), (2, -1))
    ImageEnhance.Brightness(copy).enhance(1.05).save(buffer, "JPEG", quality=85)
    return "jpg", buffer.getvalue()


def _picture(embedded: list[tuple[SampleSource, int]], row: int) -> Image.Image:
    draws = np.random.default_rng(row)
    behind, front = (_recoloured(*embedded[int(place)], draws) for place in draws.integers(0, len(embedded), 2))
    side = int(draws.integers(SIDE // 3, 2 * SIDE // 3))
    behind.paste(front.resize((side, side)), tuple(int(at) for at in draws.integers(0, SIDE - side, 2)))
    return behind


def _recoloured(source: SampleSource, row: int, draws: np.random.Generator) -> Image.Image:
    image = source.load_image(row).resize((SIDE, SIDE))
    if draws.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    image = image.rotate(float(draws.uniform(-30, 30)), fillcolor=tuple(int(v) for v in draws.integers(0, 256, 3)))
    channels = image.split()
    return Image.merge("RGB", [channels[int(place)] for place in draws.permutation(3)])


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))
