"""Time and memory of every stage of a run, from a thousand samples to a million.

    python benchmarks/scale.py --json benchmarks/scale.json --figure docs/scale.png
    python benchmarks/scale.py --sizes '[10000, 100000]' --parts '[watch]'

The data are synthetic: tiny images, latents and descriptors that say nothing of quality. Each part is measured in a
separate process for each size, so that peak memories do not mix. Memory is the largest resident set minus the resident
set of the same process before it began. The exponent is the slope of the logarithms between the two largest sizes: 1 is
linear, 0 is independent of the number of samples. A figure below 10 ms or 1 MB at both sizes, or near zero at the
smaller size, has no exponent. With 10,000 samples or fewer fixed costs weigh most.

`monitor_update_s` is the work of the monitor on the host for one training step: 8 processes of 16 samples each, whose
visits become evidence every 8 batches, with held-out samples measured as often.
Marks that are missed are told at the end; with `--strict true` the command then ends with status 1.
"""

from __future__ import annotations

import importlib
import json as jsonlib
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jsonargparse import auto_cli
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

SIZES = (1_000, 10_000, 100_000, 1_000_000)
LITTLE = {"s": 0.01, "mb": 1.0}
"""Limits below which a value has no exponent, in seconds and in megabytes."""
LINEAR, INDEPENDENT = 1.15, 0.15
"""Exponents that pass for linear, and for independent of the number of samples."""


@dataclass(frozen=True)
class Part:
    """Something that is measured.

    Attributes:
        module: the module of this folder.
        function: a function of a number of samples, and possibly a folder, that gives figures by name. Names ending in
            `_s` are seconds, in `_mb` megabytes, in `_bytes` bytes a sample.
        most: samples beyond which it is not measured.
        folder: whether it is given a folder.
    """

    module: str
    function: str
    most: int = 1_000_000
    folder: bool = False


PARTS = {
    "watch": Part("scale_watch", "monitor_update"),
    "start": Part("scale_start", "start", folder=True),
    "profile": Part("scale_records", "profile"),
    "index": Part("scale_index", "index", folder=True),
    "families": Part("scale_stream", "families", most=100_000),
    "stream": Part("scale_stream", "stream", most=10_000, folder=True),
    "records": Part("scale_records", "records"),
    "scan": Part("scale_scan", "scan", most=100_000),
}
"""The parts by name, the slow ones last."""


@dataclass(frozen=True)
class Mark:
    """The requirement for a figure.

    Attributes:
        part: the part of the figure.
        figure: its name.
        most: the largest value at the largest measured size; None if only the exponent counts.
        exponent: the largest exponent.
        at: the size that `most` is about; it is not judged at others.
    """

    part: str
    figure: str
    most: float | None = None
    exponent: float | None = None
    at: int = 1_000_000


MARKS = (
    Mark("watch", "step_s", most=0.005, exponent=INDEPENDENT),
    Mark("watch", "checkpoint_bytes", most=32),
    Mark("start", "restart_s", most=60),
    Mark("start", "peak_mb", most=4000),
)


def main(
    sizes: list[int] = list(SIZES),  # noqa: B006 (never changed)
    parts: list[str] = list(PARTS),  # noqa: B006 (never changed)
    json: str | None = None,
    figure: str | None = None,
    folder: str | None = None,
    strict: bool = False,
) -> None:
    """Measure the parts at the sizes.

    Args:
        sizes: numbers of samples.
        parts: the parts of a run.
        json: where to write the figures.
        figure: where to draw them, as PNG.
        folder: the folder for the synthetic data; default a temporary one.
        strict: end with status 1 where a mark is missed.
    """
    unknown = sorted(set(parts) - set(PARTS))
    if unknown or not sizes or min(sizes) < 1:
        sys.exit(f"parts {unknown} and sizes {sizes}. Expected: of {list(PARTS)}, and numbers of at least 1")
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in parts}
    with tempfile.TemporaryDirectory(prefix="memtrain-scale-", dir=folder) as place:
        for name in parts:
            for size in sorted(set(sizes)):
                if size <= PARTS[name].most:
                    found[name][str(size)] = measured(name, size, Path(place))
                    print(f"{name}, {size:,} samples: {said(found[name][str(size)])}", flush=True)
                    if json:
                        # As it comes, so that a long measurement that is stopped has told what it found.
                        Path(json).write_text(jsonlib.dumps(summed(found), indent=1) + "\n", encoding="utf-8")
    content = summed(found)
    show(found, content["exponents"])
    if "watch" in found:
        print("watch.step_s is what one training step takes of watch.update_s, the update after every 8 steps.")
    if figure:
        draw(found, Path(figure))
    for line in content["missed"]:
        print(f"Missed: {line}")
    if strict and content["missed"]:
        sys.exit(1)


def summed(found: Mapping[str, Mapping[str, Mapping[str, float]]]) -> dict[str, Any]:
    """All figures, with which power they grow, and the marks that are missed."""
    exponents = {name: fitted(rows) for name, rows in found.items() if rows}
    sizes = sorted({int(size) for rows in found.values() for size in rows})
    content: dict[str, Any] = {"sizes": sizes, "parts": found, "exponents": exponents}
    content["missed"] = missed(found, exponents)
    if "watch" in found:
        content["monitor_update_s"] = {size: row["step_s"] for size, row in found["watch"].items()}
    return content


def measured(name: str, size: int, folder: Path) -> dict[str, float]:
    """The figures of a part at a size, from a process of its own."""
    code = f"import scale; scale.measure({name!r}, {size}, {str(folder / f'{name}-{size}')!r})"
    here = Path(__file__).parent
    paths = [str(here), str(here.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TQDM_DISABLE": "1"},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.exit(f"{name} at {size:,} samples ended with {done.returncode}")
    figures: dict[str, float] = jsonlib.loads(done.stdout.splitlines()[-1])
    return figures


def measure(name: str, size: int, folder: str) -> None:
    """Measure a part in this process, and print its figures as a line of JSON."""
    part = PARTS[name]
    function = getattr(importlib.import_module(part.module), part.function)
    Path(folder).mkdir(parents=True, exist_ok=True)
    before, began = peak(), time.perf_counter()
    figures = dict(function(size, Path(folder)) if part.folder else function(size))
    figures.setdefault("peak_mb", peak() - before)
    figures["all_s"] = time.perf_counter() - began
    print(jsonlib.dumps(figures))


def peak() -> float:
    """The largest resident set of this process so far, megabytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def fitted(rows: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """With which power of the number of samples each figure grows."""
    sizes = sorted(map(int, rows))
    used = sizes[-2:]
    found: dict[str, float] = {}
    if len(used) < 2:
        return found
    for figure in rows[str(used[-1])]:
        unit = figure.rpartition("_")[2]
        values = [float(rows[str(size)].get(figure, math.nan)) for size in used]
        if unit not in LITTLE or not all(value == value for value in values):
            continue
        floor = LITTLE[unit] / 100
        if figure != "step_s" and (max(values) < LITTLE[unit] or min(values) < LITTLE[unit] / 10):
            continue
        across = [math.log(size) for size in used]
        up = [math.log(max(value, floor)) for value in values]
        middle, height = sum(across) / len(across), sum(up) / len(up)
        slope = sum((x - middle) * (y - height) for x, y in zip(across, up, strict=True))
        found[figure] = slope / sum((x - middle) ** 2 for x in across)
    return found


def missed(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], exponents: Mapping[str, Mapping[str, float]]
) -> list[str]:
    """The marks that are not met: those of single figures, and everything that grows more than linearly."""
    lines = []
    for mark in MARKS:
        value = found.get(mark.part, {}).get(str(mark.at), {}).get(mark.figure)
        if mark.most is not None and value is not None and value > mark.most:
            lines.append(f"{mark.part}.{mark.figure} is {value:.4g} at {mark.at:,} samples, {mark.most:g} at most")
    limits = {(mark.part, mark.figure): mark.exponent for mark in MARKS if mark.exponent is not None}
    for part, figures in exponents.items():
        for figure, exponent in figures.items():
            limit = limits.get((part, figure), LINEAR)
            if exponent > limit:
                lines.append(f"{part}.{figure} grows with the power {exponent:.2f}, {limit:g} at most")
    return lines


def said(figures: Mapping[str, float]) -> str:
    """Figures in words."""
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())


def show(found: Mapping[str, Mapping[str, Mapping[str, float]]], exponents: Mapping[str, Mapping[str, float]]) -> None:
    """Print a table."""
    sizes = sorted({int(size) for rows in found.values() for size in rows})
    table = Table(title="Time and memory by number of samples", title_justify="left")
    table.add_column("figure")
    for size in sizes:
        table.add_column(f"{size:,}", justify="right")
    table.add_column("exponent", justify="right")
    for part, rows in found.items():
        for figure in dict.fromkeys(name for row in rows.values() for name in row):
            cells = [rows.get(str(size), {}).get(figure) for size in sizes]
            exponent = exponents.get(part, {}).get(figure)
            table.add_row(
                f"{part}.{figure}",
                *("" if cell is None else f"{cell:.3g}" for cell in cells),
                "" if exponent is None else f"{exponent:.2f}",
            )
        table.add_section()
    Console(width=120).print(table)


DRAWN = {
    "s": (
        *("watch.step_s", "records.append_s", "profile.restart_s", "start.restart_s", "start.first_total_s"),
        *("records.end_s", "index.search_s", "scan.pictures_s"),
    ),
    "mb": (
        "watch.peak_mb",
        "start.peak_mb",
        "profile.peak_mb",
        "records.end_mb",
        "index.search_peak_mb",
        "scan.peak_mb",
    ),
}
"""The seconds and megabytes in the figure."""


def draw(found: Mapping[str, Mapping[str, Mapping[str, float]]], path: Path) -> None:
    """Seconds and megabytes against the number of samples, as a PNG file."""
    figure = Figure(figsize=(10.0, 5.5), layout="constrained")
    FigureCanvasAgg(figure)
    for place, (unit, title) in enumerate((("s", "seconds"), ("mb", "megabytes")), 1):
        axes = figure.add_subplot(1, 2, place)
        for shown in DRAWN[unit]:
            part, _, name = shown.partition(".")
            points = [(int(size), row[name]) for size, row in found.get(part, {}).items() if row.get(name, 0) > 0]
            if len(points) > 1:
                label = f"{part}: {name.removesuffix(f'_{unit}').replace('_', ' ')}"
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, label=label)
        axes.set(xscale="log", yscale="log", xlabel="samples", ylabel=title)
        axes.grid(visible=True, alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, format="png", dpi=150)


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
