"""The cost of a start up to its first batch, by the number of samples: a first start, and one that continues.

    python benchmarks/scale_start.py --sizes '[1000, 10000, 100000]' --json FILE

The data are tar shards of 8-pixel images, all of one payload, with captions and keys of their own. Each start runs in a
process of its own, of which the largest resident set is said. Decoding, encoding and the profile are not included,
because their cost depends on the images and the model. All images here are the same small image. The tokenizer is the
example's.
"""

from __future__ import annotations

import io
import json as jsonlib
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from PIL import Image
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parent.parent
SHARD = 10_000
"""Samples of a shard."""
WORDS = ("red", "small", "old", "bright", "wooden", "quiet", "round", "heavy", "painted", "paper", "glass", "open")
_CHILD = """
import json, resource, sys, time
begin = time.perf_counter()
sys.path.insert(0, sys.argv[1])
from benchmarks.scale_start import child
print(json.dumps(child(sys.argv[2])))
"""


def start(count: int, folder: str | Path) -> dict[str, float]:
    """Seconds and megabytes of the stages of a first start, and of one that continues.

    Args:
        count: samples.
        folder: the folder for the data, and for what is kept.
    """
    place = Path(folder) / f"start-{count}"
    _write(count, place / "shards")
    first, again = _run(place), _run(place)
    found = {f"first_{name}": value for name, value in first.items()}
    found |= {name.replace("total", "restart"): value for name, value in again.items() if name != "peak_mb"}
    return {**found, "peak_mb": max(first["peak_mb"], again["peak_mb"])}


def child(place: str) -> dict[str, float]:
    """A start, stage by stage, in this process."""
    import resource

    from transformers import AutoTokenizer

    from memtrain.data.module import TextImageDataModule
    from memtrain.data.sample_table import without_collection
    from memtrain.data.token_table import tokens_by

    tokens = tokens_by(AutoTokenizer.from_pretrained(ROOT / "assets" / "tiny-sd" / "tokenizer", local_files_only=True))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds: dict[str, float] = {}

    def timed(name: str, since: float) -> float:
        now = time.perf_counter()
        seconds[f"{name}_s"] = now - since
        return now

    began = last = time.perf_counter()
    data = TextImageDataModule(f"{place}/shards", families="off", resolution=8, batch_size=16, seed=0)
    data.run_folder = place
    with without_collection():
        data._open(data.path)
        last = timed("index", last)
        data.build(tokens)
    last = timed("build", last)
    next(iter(data.train_dataloader()))
    timed("first_batch", last)
    timed("total", began)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {**seconds, "peak_mb": (peak - before) / 1024}


def _run(place: Path) -> dict[str, float]:
    done = subprocess.run(  # noqa: S603 (this file)
        [sys.executable, "-c", _CHILD, str(ROOT), str(place)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, float] = jsonlib.loads(done.stdout.splitlines()[-1])
    return found


def _write(count: int, folder: Path) -> None:
    """Shards of images that are all the same."""
    folder.mkdir(parents=True, exist_ok=True)
    image = io.BytesIO()
    Image.new("RGB", (8, 8), (90, 120, 30)).save(image, "PNG")
    payload = image.getvalue()
    for first in range(0, count, SHARD):
        with (folder / f"{first // SHARD:05d}.tar").open("wb") as file:
            for row in range(first, min(first + SHARD, count)):
                caption = f"a {WORDS[row % 12]} {WORDS[row // 12 % 12]} thing number {row}".encode()
                for name, content in ((f"{row:08d}.png", payload), (f"{row:08d}.txt", caption)):
                    member = tarfile.TarInfo(name)
                    member.size = len(content)
                    file.write(member.tobuf(tarfile.USTAR_FORMAT))
                    file.write(content + b"\0" * (-len(content) % 512))
            file.write(b"\0" * 1024)


def main(
    sizes: list[int] = [1_000, 10_000, 100_000],  # noqa: B006 (never changed)
    folder: str | None = None,
    json: str | None = None,
) -> None:
    """Measure starts.

    Args:
        sizes: numbers of samples.
        folder: the folder for the data; default a temporary one.
        json: where to write the figures.
    """
    import tempfile

    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for size in sizes:
            found[str(size)] = start(size, folder or temporary)
    table = Table("", *(f"{size:,}" for size in sizes))
    for name in next(iter(found.values())):
        table.add_row(name, *(f"{one[name]:.2f}" for one in found.values()))
    Console().print(table)
    if json:
        Path(json).write_text(jsonlib.dumps(found, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
