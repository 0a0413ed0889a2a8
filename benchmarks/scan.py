"""The cost of a scan for families, and its growth with the data.

    python benchmarks/scan.py --json benchmarks/scan.json
    python benchmarks/scan.py --sizes "[500]" --folder runs/scan_benchmark

Images of 64 pixels are made of the embedded ones (`scan_data.py`), one in a hundred a copy. For each size, there are
three processes with the same number of threads. One decodes the images (with hash and thumbnail), one decodes and
describes them, and one scans them. Ratios and growth are of processor time, so that what else runs on the machine
matters little. Memory is the process's largest resident set, the interpreter and its libraries included. The last lines
say with which power of the number of images the time grows: 1 is linear.
"""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from json import dumps, loads
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table
from scan_data import COPY_EVERY, key, original, write_shards

from memtrain.data.source import SampleSource, open_source
from memtrain.families.looking import decode, groups_of, look_at
from memtrain.families.scan import ScanSettings, scan
from memtrain.records import write_json

MOST = 10_000
"""Images that are decoded, and described, to see how fast that is."""


def measure(what: str, path: str, folder: str) -> dict[str, Any]:
    """One measurement in this process.

    Args:
        what: `decode`, `describe` or `scan`.
        path: the path of the data.
        folder: the folder of the scan.
    """
    source = open_source(path)
    settings = ScanSettings()
    rows = range(min(len(source), MOST))
    found: dict[str, Any] = {}
    began, worked = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(settings.threads) as pool:
        if what == "decode":
            for _ in pool.map(lambda row: decode(source, row), rows, chunksize=32):
                pass
        elif what == "describe":
            for _ in look_at(source, settings.describes, groups_of(0, rows[-1]), pool=pool):
                pass
    if what == "scan":
        rows = range(len(source))
        found = _scanned(source, settings, Path(folder))
    seconds, worked = time.perf_counter() - began, time.process_time() - worked
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {
        "images": len(rows),
        "seconds": seconds,
        "processor_seconds": worked,
        "images_per_second": len(rows) / seconds,
        "memory_mb": memory,
        **found,
    }


def _scanned(source: SampleSource, settings: ScanSettings, folder: Path) -> dict[str, Any]:
    result = scan(source, settings=settings, folder=folder, progress=False)
    assert result is not None
    copies = [row for row in range(len(source)) if original(row) is not None]
    together = sum(
        result.families.picture(key(row)) == result.families.picture(key(int(original(row) or 0))) for row in copies
    )
    wrong = sum(len(members) > 2 for members in result.pictures.values())
    return {
        "looking": result.seconds[0],
        "finding": result.seconds[1],
        "copies": len(copies),
        "copies_found": together,
        "pictures_of_more_than_two_files": wrong,
        "pictures_with_several_files": len(result.pictures),
        "threshold": result.threshold,
        "false_merge_rate": result.false_merge_rate,
        "descriptor": result.descriptor,
    }


def run(what: str, path: str) -> dict[str, Any]:
    """One measurement in a process of its own, whose memory is its own."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, __file__, "--part", what, path, folder]
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)  # noqa: S603 (this file)
    found: dict[str, Any] = loads(done.stdout.splitlines()[-1])
    return found


def benchmark(
    sizes: list[int] = [1_000, 10_000, 100_000],  # noqa: B006 (read only)
    *,
    folder: str = "runs/scan_benchmark",
    json: str | None = None,
) -> None:
    """Measure, print a table, and write the figures.

    Args:
        sizes: numbers of images.
        folder: the images are made there, once.
        json: file for the figures; sizes that are in it are not measured again.
    """
    rows: dict[int, dict[str, Any]] = {}
    if json is not None and Path(json).is_file():
        rows = {int(size): row for size, row in loads(Path(json).read_text())["sizes"].items()}
    for size in sizes:
        if size in rows:
            continue
        path = write_shards(Path(folder) / str(size), size)
        rows[size] = {what: run(what, path) for what in ("decode", "describe", "scan")}
        if json is not None:
            write_json({"copy_every": COPY_EVERY, "sizes": rows, "power": powers(rows)}, Path(json))
    show(rows)


def powers(rows: dict[int, dict[str, Any]]) -> dict[str, float]:
    """From each size to the next, with which power of the number of images the scan's time grows."""
    found = {}
    for few, many in pairwise(sorted(rows)):
        times = rows[many]["scan"]["processor_seconds"] / rows[few]["scan"]["processor_seconds"]
        found[f"{few} to {many}"] = math.log(times) / math.log(many / few)
    return found


def _cost(part: dict[str, Any]) -> float:
    """Processor seconds for an image."""
    return float(part["processor_seconds"]) / int(part["images"])


def show(rows: dict[int, dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(
        *(
            "images",
            "decoded a second",
            "and described",
            "scanned a second",
            "describing / decoding",
            "scan / describing",
        ),
        *("memory, MB", "copies found"),
    )
    for size, row in rows.items():
        decoding, describing, whole = (row[what] for what in ("decode", "describe", "scan"))
        table.add_row(
            f"{size:,}",
            *(f"{one['images_per_second']:,.0f}" for one in (decoding, describing, whole)),
            f"{_cost(describing) / _cost(decoding):.2f}",
            f"{_cost(whole) / _cost(describing):.2f}",
            f"{whole['memory_mb']:,.0f}",
            f"{whole['copies_found']} of {whole['copies']}",
        )
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for sizes, power in powers(rows).items():
        print(f"From {sizes} images, the time of a scan grows with their number to the power of {power:.2f}.")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--part"]:
        print(dumps(measure(*sys.argv[2:5])))
    else:
        auto_cli(benchmark)
