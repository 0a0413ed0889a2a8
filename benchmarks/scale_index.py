"""The index of training images as it grows: time to build, disk, and a search of a hundred generations.

The part `index` of `benchmarks/scale.py`. By itself it prints a table, with FAISS beside comparing all:

    python benchmarks/scale_index.py --sizes '[1000, 10000]' --json FILE

Building is measured on drawn pictures of 64 pixels, a thousand at most, and counts per thousand. The search is measured
on made descriptors: vectors of unit length with a falling spectrum, in clusters, as data with look-alikes have them. A
query is a descriptor of the index that was moved aside (to a cosine of 0.8 to 0.97); recall is the share of queries
that have it among their sixteen nearest. Peak memory counts pages of mapped files, which the system takes back.
"""

from __future__ import annotations

import contextlib
import json as jsonlib
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jsonargparse import auto_cli
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from memtrain.evaluation.measures.nearest_descriptors import BLOCK, blocks_of, nearest_exact
from memtrain.evaluation.measures.training_index import TrainingIndex
from memtrain.families.faiss_search import faiss_is_there
from memtrain.families.look_parts import ABOUT, ALL
from memtrain.families.stored_arrays import create_arrays
from memtrain.records import write_json

WIDTH, QUERIES, NEAREST = 832, 100, 16
"""Numbers of a descriptor, generations, and training images that are taken for each."""
DRAWN = 1000
"""Pictures at most that are described."""


@dataclass(frozen=True)
class OneSample:
    """The fields of a sample that an index reads."""

    key: str
    caption: str = ""


class Drawn:
    """Pictures of coarse noise."""

    def __init__(self, count: int) -> None:
        self.samples = [OneSample(str(number)) for number in range(count)]

    def load_image(self, index: int) -> Image.Image:
        """Drawn when it is asked for."""
        coarse = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return Image.fromarray(coarse).resize((64, 64), Image.Resampling.BICUBIC)


class Made:
    """As many samples, without pictures."""

    def __init__(self, count: int) -> None:
        self.samples = range(count)

    def load_image(self, index: int) -> Image.Image:
        """Nothing asks for one."""
        raise AssertionError("a made index is complete")


def index(count: int, folder: Path) -> dict[str, float]:
    """Build and search an index.

    Args:
        count: the number of training images.
        folder: the folder for it.

    Returns:
        `build_1000_s`, `disk_bytes` of each image, `search_s` of a hundred generations, `first_search_s` (which
        shortens descriptors for FAISS), `search_peak_mb` and `recall`.
    """
    found: dict[str, float] = {}
    drawn = min(count, DRAWN)
    began = time.perf_counter()
    TrainingIndex(folder / "drawn", Drawn(drawn), content="drawn").build(workers=1, progress=False)
    found["build_1000_s"] = (time.perf_counter() - began) * 1000 / drawn
    made = made_index(count, folder)
    queries, wanted = queries_of(made)
    before = _peak_mb(reset=True)
    for name in ("first_search_s", "search_s"):
        began = time.perf_counter()
        _, at = made.search_descriptors(queries, NEAREST)
        found[name] = time.perf_counter() - began
    found["search_peak_mb"] = max(0.0, _peak_mb() - before)
    found["recall"] = float((at == wanted[:, None]).any(axis=1).mean())
    found["disk_bytes"] = sum(file.stat().st_size for file in made.folder.iterdir()) / count
    shutil.rmtree(folder)
    return found


def made_index(count: int, folder: Path) -> TrainingIndex:
    """An index of made descriptors, written a block at a time."""
    made = TrainingIndex(folder / "made", Made(count), content="made")  # type: ignore[arg-type]
    draw = np.random.default_rng(0)
    spectrum = (1 + np.arange(WIDTH)) ** -0.6
    centres = draw.normal(size=(max(1, min(count // 20, 2000)), WIDTH)) * spectrum
    shapes = {
        "rows": ("int64", (count,)),
        "hashes": ("uint8", (count, 0)),
        "descriptors": ("float32", (count, WIDTH)),
        "thumbnails": ("uint8", (count, 0)),
        "sizes": ("int32", (count, 0)),
    }
    arrays = create_arrays(made.folder / ALL, shapes)
    arrays["rows"][:] = np.arange(count)
    for start in range(0, count, BLOCK):
        here = min(BLOCK, count - start)
        block = draw.normal(size=(here, WIDTH)) * spectrum + centres[draw.integers(0, len(centres), here)]
        arrays["descriptors"][start : start + here] = block / np.linalg.norm(block, axis=1, keepdims=True)
    write_json({"broken": {}, "seconds": 0.0}, made.folder / ABOUT)
    return made


def queries_of(made: TrainingIndex) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Descriptors `(100, D)` near some of the index, and which these are."""
    draw = np.random.default_rng(1)
    wanted = draw.integers(0, len(made), QUERIES)
    own = np.zeros((QUERIES, WIDTH))
    for start, block in blocks_of(made.folder / ALL, "descriptors"):
        here = (wanted >= start) & (wanted < start + len(block))
        own[here] = block[wanted[here] - start]
    aside = draw.normal(size=own.shape) * (1 + np.arange(WIDTH)) ** -0.6
    aside -= (aside * own).sum(axis=1, keepdims=True) * own
    aside /= np.linalg.norm(aside, axis=1, keepdims=True)
    cosine = draw.uniform(0.8, 0.97, (QUERIES, 1))
    return (cosine * own + np.sqrt(1 - cosine**2) * aside).astype(np.float32), wanted


def _peak_mb(*, reset: bool = False) -> float:
    """The largest resident set of this process since the last reset."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def main(sizes: list[int] = [1000, 10_000, 100_000], json: str | None = None) -> None:  # noqa: B006 (never changed)
    """Measure, and compare FAISS with comparing all.

    Args:
        sizes: training images.
        json: where to write the figures.
    """
    if not faiss_is_there():
        sys.exit("FAISS is not installed. Expected: the extra `scan`. To fix: pip install 'memtrain[scan]'")
    table = Table(title="Index of training images; searches of 100 generations", title_justify="left")
    rows: dict[str, dict[str, float]] = {}
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="memtrain-index-") as place:
            rows[str(size)] = index(size, Path(place) / "index")
            made = made_index(size, Path(place))
            queries, wanted = queries_of(made)
            began = time.perf_counter()
            _, at = nearest_exact(queries, blocks_of(made.folder / ALL, "descriptors"), NEAREST)
            exact = {"exact_s": time.perf_counter() - began}
            exact["exact_recall"] = float((at == wanted[:, None]).any(axis=1).mean())
            began = time.perf_counter()
            _, short = made.search_shortened(queries, NEAREST)
            exact["faiss_first_s"] = time.perf_counter() - began
            began = time.perf_counter()
            _, short = made.search_shortened(queries, NEAREST)
            exact["faiss_s"] = time.perf_counter() - began
            exact["faiss_recall"] = float((short == wanted[:, None]).any(axis=1).mean())
            exact["faiss_of_nearest"] = float(
                np.mean([len(set(one) & set(other)) / NEAREST for one, other in zip(at, short, strict=True)])
            )
            rows[str(size)] |= exact
    for head in ("images", *next(iter(rows.values()))):
        table.add_column(head, justify="right")
    for count, figures in rows.items():
        table.add_row(count, *(f"{value:.3g}" for value in figures.values()))
    Console(width=200).print(table)
    if json is not None:
        Path(json).write_text(jsonlib.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
