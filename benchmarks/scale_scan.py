"""The cost of finding families by number of images: the last step of `memtrain scan`, which merges the parts.

    python benchmarks/scale_scan.py --sizes '[10000, 100000]' --json FILE

Looks are drawn at random in the size of the built-in ones (descriptors of 832 numbers, thumbnails of 32 pixels), one
image in fifty is an exact copy and one in fifty a brighter one. Captions have 8 to 16 words, whose frequencies fall as
those of a language do (Zipf's law with new words as the text grows). Pictures that are alike at a first glance are rare
here, so the comparison of pairs costs less than with photographs: 0.2 ms a pair there (`memtrain/families/near.py`).
"""

from __future__ import annotations

import json as jsonlib
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from memtrain.families.captions import caption_families
from memtrain.families.faiss_search import FaissSearch
from memtrain.families.find import find_families
from memtrain.families.look_parts import ALL, StoredLooks
from memtrain.families.stored_arrays import create_arrays

WIDTH, SIDE, BLOCK, COPIES = 832, 32, 4096, 50


def looks(count: int, folder: Path) -> StoredLooks:
    """Looks of so many images, in a file."""
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {
        "rows": ("int64", (count,)),
        "hashes": ("uint8", (count, 32)),
        "descriptors": ("float32", (count, WIDTH)),
        "thumbnails": ("uint8", (count, SIDE, SIDE, 3)),
        "sizes": ("int32", (count, 2)),
    }
    random = np.random.default_rng(0)
    for start in range(0, count, BLOCK):
        arrays = create_arrays(folder / ALL, shapes) if start == 0 else _opened(folder / ALL)
        size = min(BLOCK, count - start)
        descriptors = random.standard_normal((size, WIDTH), dtype=np.float32)
        thumbnails = np.kron(random.integers(0, 200, (size, 4, 4, 3), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8))
        hashes = random.integers(0, 256, (size, 32), dtype=np.uint8)
        for copies, exact in ((slice(1, None, COPIES), True), (slice(2, None, COPIES), False)):
            at = np.arange(size)[copies]
            descriptors[at], thumbnails[at] = descriptors[at - at % COPIES], thumbnails[at - at % COPIES]
            if exact:
                hashes[at] = hashes[at - at % COPIES]
            else:
                thumbnails[at] += 40
        descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
        stretch = slice(start, start + size)
        arrays["rows"][stretch] = np.arange(start, start + size)
        arrays["descriptors"][stretch], arrays["thumbnails"][stretch] = descriptors, thumbnails
        arrays["hashes"][stretch], arrays["sizes"][stretch] = hashes, 512
    return StoredLooks(folder / ALL, {}, 0.0)


def _opened(path: Path) -> Any:
    from memtrain.families.stored_arrays import open_arrays

    return open_arrays(path, mode="r+")


def captions(count: int) -> list[str]:
    """Texts whose words are as frequent as those of a language."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(count):
        words = np.minimum(random.zipf(1.3, random.integers(8, 17)), 10 * count)
        found.append(" ".join(f"w{word}" for word in words.tolist()))
    return found


def scan(count: int) -> dict[str, float]:
    """Time and memory of the merge of so many images; the part of `benchmarks/scale.py`."""
    with tempfile.TemporaryDirectory(prefix="memtrain-scale-scan-") as folder:
        stored, texts = looks(count, Path(folder)), captions(count)
        keys = [f"{number:08d}.png" for number in range(count)]
        before, began = _peak(), time.perf_counter()
        caption_families(texts)
        captioned = time.perf_counter() - began
        caption_mb = _peak() - before
        began = time.perf_counter()
        found = find_families(keys, [""] * count, stored, search=FaissSearch())
        pictured = time.perf_counter() - began
        assert len(found.families.pictures) >= count // COPIES
        return {"captions_s": captioned, "pictures_s": pictured, "captions_mb": caption_mb, "peak_mb": _peak() - before}


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main(sizes: list[int] = [10_000, 100_000], json: str | None = None) -> None:  # noqa: B006 (never changed)
    """Measure each size in a process of its own.

    Args:
        sizes: numbers of images.
        json: where to write the figures.
    """
    rows: dict[str, dict[str, float]] = {}
    for size in sizes:
        code = f"import json, scale_scan; print(json.dumps(scale_scan.scan({size})))"
        done = subprocess.run(  # noqa: S603
            [sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True, check=True
        )
        rows[str(size)] = jsonlib.loads(done.stdout.splitlines()[-1])
    table = Table(title="Finding families by number of images", title_justify="left")
    for name in ("figure", *rows):
        table.add_column(name, justify="right")
    for name in next(iter(rows.values())):
        table.add_row(name, *(f"{row[name]:.3g}" for row in rows.values()))
    Console().print(table)
    if json:
        Path(json).write_text(jsonlib.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
