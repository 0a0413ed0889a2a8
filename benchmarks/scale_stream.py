"""The cost of streaming against random access to the same shards, and of finding families during training.

    python benchmarks/scale_stream.py --sizes '[1000, 10000]' --json stream.json

`stream` uses shards of 1,000 tiny images and a buffer of 1,000. It gives seconds until the first batch, seconds a
thousand samples after it, and seconds until the first batch of a run that is continued at nine tenths of the epoch.
`families` gives seconds of the index for one training step of 8 processes of 16 new samples, by number of pictures. It
also gives the bytes in memory and in a checkpoint for each picture that the index knows by its looks or by its
fingerprint. Beyond the looks that are remembered the index is filled with fingerprints directly.
"""

from __future__ import annotations

import io
import json as jsonlib
import tarfile
import tempfile
import time
import tracemalloc
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table
from torch.utils.data import DataLoader

from memtrain.data.dataset import CaptionedImages
from memtrain.data.shard_feed import ShardFeed
from memtrain.data.source import open_source
from memtrain.data.stream_loader import Begin, Stream, StreamLoader
from memtrain.families.figures import looks
from memtrain.families.online import PICTURES, OnlineFamilies, Seen

IN_SHARD, BATCH, PROCESSES, EVERY = 1000, 16, 8, 8
READ = 10_000
"""Samples that are read for the rate, at most."""
SIDE = 32


def write_shards(count: int, folder: Path) -> list[str]:
    """Shards of tiny pictures."""
    draw, urls = np.random.default_rng(0), []
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, count, IN_SHARD):
        urls.append(str(folder / f"{start // IN_SHARD:05d}.tar"))
        with tarfile.open(urls[-1], "w") as tar:
            for number in range(start, min(start + IN_SHARD, count)):
                picture = io.BytesIO()
                Image.fromarray(draw.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)).save(picture, "JPEG")
                for ending, content in ((".jpg", picture.getvalue()), (".txt", b"picture %d" % number)):
                    member = tarfile.TarInfo(f"{number:09d}{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    return urls


def stream(count: int, folder: str | Path) -> dict[str, float]:
    """Seconds of streaming and of random access.

    Args:
        count: samples.
        folder: the folder for the shards.
    """
    urls = write_shards(count, Path(folder) / f"stream-{count}")
    read = min(count, READ) // BATCH

    def timed(made: Any) -> tuple[float, float]:
        """Until the first batch, and for a thousand samples after it."""
        began = time.perf_counter()
        batches = iter(made())
        next(batches)
        first = time.perf_counter()
        given = sum(1 for _ in islice(batches, read - 1))
        return first - began, 1000 * (time.perf_counter() - first) / (BATCH * max(1, given))

    def streamed(begin: Begin = Begin()) -> StreamLoader:  # noqa: B008 (never changed)
        feed = ShardFeed(urls, seed=0, buffer=1000)
        loader = StreamLoader(Stream(feed, batch_size=BATCH, resolution=SIDE, tokens=None))
        loader.begin = lambda epoch: begin
        return loader

    def random_access() -> DataLoader[Any]:
        source = open_source(str(Path(urls[0]).parent))
        dataset = CaptionedImages(source, range(len(source)), resolution=SIDE)
        return DataLoader(dataset, batch_size=BATCH, shuffle=True)

    whole, at = streamed(), Begin()
    for _ in islice(whole, 9 * count // (10 * BATCH)):
        at = at.after(whole.given.popleft(), workers=1)
    figures = dict(zip(("first_batch_s", "thousand_s"), timed(streamed), strict=True))
    figures["resumed_s"] = timed(lambda: streamed(at))[0]
    return figures | dict(zip(("random_first_batch_s", "random_thousand_s"), timed(random_access), strict=True))


def drawn_looks(count: int, generator: torch.Generator) -> torch.Tensor:
    """Looks of pictures whose low frequencies are strong, as those of photographs."""
    coarse = torch.randn(count, 3, 5, 5, generator=generator)
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    found = looks(smooth + 0.1 * torch.randn(count, 3, SIDE, SIDE, generator=generator))
    assert found is not None
    return found


def families(count: int) -> dict[str, float]:
    """Seconds a step and bytes a picture of the index, when so many pictures have passed.

    Args:
        count: pictures.
    """
    generator, index = torch.Generator().manual_seed(0), OnlineFamilies()
    tracemalloc.start()
    unseen = max(0, count - PICTURES)
    for start in range(0, unseen, 100_000):
        rows = range(start, min(start + 100_000, unseen))
        # As when they are forgotten; odd numbers are no fingerprint of another.
        index.memory.hashes.add({row * 2654435761: f"shard-{row // 1000:05d}/{row:09d}" for row in rows})
    for start in range(unseen, count, 1024):
        new = min(1024, count - start)
        packed = drawn_looks(new, generator)
        index.add([_seen(start + row, packed[row]) for row in range(new)])
    held = tracemalloc.get_traced_memory()[0] + index.memory.figures.nbytes
    tracemalloc.stop()
    updates = []
    for update in range(5):
        rows = PROCESSES * BATCH * EVERY
        packed = drawn_looks(rows, generator)
        seen = [_seen(count + update * rows + row, packed[row]) for row in range(rows)]
        began = time.perf_counter()
        index.add(seen)
        updates.append(time.perf_counter() - began)
    saved = io.BytesIO()
    torch.save(index.state_dict(), saved)
    return {
        "step_s": sorted(updates)[2] / EVERY,
        "memory_bytes": held / count,
        "memory_mb": held / 2**20,
        "checkpoint_bytes": saved.tell() / count,
    }


def _seen(number: int, look: torch.Tensor) -> Seen:
    return Seen(f"shard-{number // 1000:05d}/{number:09d}", look.clone(), f"{number:016x}")


def main(sizes: list[int] = [1_000, 10_000, 100_000], json: str | None = None) -> None:  # noqa: B006 (never changed)
    """Measure and print.

    Args:
        sizes: Numbers of samples.
        json: File for the results.
    """
    results: dict[str, dict[str, dict[str, float]]] = {"stream": {}, "families": {}}
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            if size <= 100_000:
                results["stream"][str(size)] = stream(size, folder)
            results["families"][str(size)] = families(size)
    for part, rows in results.items():
        table = Table(title=part)
        names = list(next(iter(rows.values()), {}))
        for name in ("samples", *names):
            table.add_column(name.replace("_", " "), justify="right")
        for size, figures in rows.items():
            table.add_row(f"{int(size):,}", *(f"{figures[name]:.4g}" for name in names))
        Console().print(table)
    if json is not None:
        Path(json).write_text(jsonlib.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
