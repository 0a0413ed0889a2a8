"""The cost of the base model's profile and a run's records on the host and the disk, by the number of samples.

    python benchmarks/scale_records.py --sizes '[10000, 100000, 1000000]' --json FILE

`profile`: values are written in parts, as a measurement does that writes each 1,024 batches of 64, merged, and taken up
by a restart that names all samples and reads all values. `records`: one process of a run whose samples are visited
`visits_each` times, in parts of 50 batches of 16 at first, and then in parts like 16 merged ones. At the end of the run
the records are summed up, 16 of 17 values are compared with the profile, and the evidence table is written. Values are
random. The work of the model is not included.
"""

from __future__ import annotations

import hashlib
import json as jsonlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from memtrain.evidence.base_profile import ReferenceProfile
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.evidence_table import evidence_table, write_flagged
from memtrain.evidence.verdict import calibration_figures
from memtrain.evidence.visit_summary import NEEDED, summarise
from memtrain.monitoring.options import WatchOptions
from memtrain.monitoring.recorded_values import RecordedValues
from memtrain.records import RecordWriter, iterate_steps, write_parquet
from memtrain.signals.attention_entropy import AttentionEntropy
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.readings import Readings

SITES = [f"site{number}" for number in range(16)]
BATCH, PER_PART, FLUSH = 16, 50, 2**16
TIMED = 1000
"""Batches that are appended one by one, for the seconds of each."""


def profile(count: int) -> dict[str, float]:
    """Write a profile of `count` samples, and take it up again."""
    readings, keys = _readings(), _keys(count)
    contents = [hashlib.sha256(key.encode()).hexdigest() for key in keys]
    with tempfile.TemporaryDirectory(prefix="memtrain-profile-") as folder:
        made = _profile(readings, Path(folder))
        draw, width = np.random.default_rng(0), made.parts.width
        began = time.perf_counter()
        for start in range(0, count, 64):
            some = contents[start : start + 64]
            made.parts.add(some, draw.random((len(some), width), dtype=np.float32))
            if (start // 64 + 1) % 1024 == 0:
                made.parts.flush()
        made.parts.flush()
        written = time.perf_counter()
        made.parts.merge(several=1)
        merged = time.perf_counter()
        with peak_memory() as memory:
            again = _profile(readings, Path(folder))
            again.cover(keys, contents)
            assert not again.lacking(contents)
            assert again.load() == count
        loaded = time.perf_counter()
        size = sum(path.stat().st_size for path in made.parts.paths())
    return {
        "write_s": written - began,
        "merge_s": merged - written,
        "restart_s": loaded - merged,
        "restart_mb": memory[0],
        "disk_bytes": size / count,
    }


def records(count: int, visits_each: int = 4) -> dict[str, float]:
    """Record `visits_each` visits of `count` samples by one process, and sum them up."""
    readings, keys, draw = _readings(), _keys(count), np.random.default_rng(0)
    columns = readings.columns
    with tempfile.TemporaryDirectory(prefix="memtrain-records-") as place:
        folder = Path(place)
        base = _profile(readings, folder / "profiles")
        base.cover(keys, keys)
        base.put(keys, torch.rand(count, len(base.timesteps), len(columns)))
        options = WatchOptions()
        made = Calibration(readings.resolution, scored=slice(0, 1), memorized_when="low", buckets=4, heldout=False)
        order = np.concatenate([draw.permutation(count) for _ in range(visits_each)])
        writer, batch, seconds = RecordWriter(folder, rank=0, batches_per_part=PER_PART), 0, list[float]()
        for start in range(0, min(len(order), TIMED * BATCH), BATCH):
            began = time.perf_counter()
            writer.append(batch, _rows([keys[row] for row in order[start : start + BATCH]], columns, batch, draw))
            seconds.append(time.perf_counter() - began)
            batch += 1
        writer.flush()
        began, writer.batches_per_part = time.perf_counter(), 1
        rest = BATCH * PER_PART * writer.several
        for start in range(TIMED * BATCH, len(order), rest):
            some = [keys[row] for row in order[start : start + rest]]
            writer.append(batch, _rows(some, columns, batch, draw))
            batch += 1
        writer.flush()
        filled = time.perf_counter() - began
        paths = list(writer.folder.iterdir())
        for start in range(0, count, FLUSH):
            some = keys[start : start + FLUSH]
            # As evidence alone: what the watch makes of a visit is measured elsewhere.
            numbers = torch.rand(len(some), 1, dtype=torch.float64)
            made.samples.add(made.samples.rows(some), numbers, numbers)
        began = time.perf_counter()
        with peak_memory() as memory:
            values = RecordedValues(readings, base, options, made.scored)
            seen = summarise(
                iterate_steps(folder, [*dict.fromkeys([*NEEDED, *values.needed])]), values, columns=values.columns
            )
            summed = time.perf_counter() - began
            table = evidence_table(seen, made, columns, dict.fromkeys(keys, "a caption"), dict.fromkeys(keys, 1))
            write_parquet(table, folder / "evidence.parquet")
            write_flagged(table, folder / "flagged.csv")
            calibration_figures(made, keys)
        ended = time.perf_counter() - began
        size = sum(path.stat().st_size for path in paths)
    return {
        "append_s": statistics.median(seconds),
        "fill_s": filled,
        "files": float(len(paths)),
        "summary_s": summed,
        "end_s": ended,
        "end_mb": memory[0],
        "visit_bytes": size / len(order),
    }


def _readings() -> Readings:
    return Readings([DenoisingLoss(), AttentionEntropy()], SITES)


def _keys(count: int) -> list[str]:
    return [f"{number // 1000:05d}/{number:09d}.jpg" for number in range(count)]


def _profile(readings: Readings, folder: Path) -> ReferenceProfile:
    made = ReferenceProfile(folder, readings.signals, readings.columns)
    made.fingerprint = "profile"
    return made


def _rows(
    keys: Sequence[str], columns: Sequence[str], batch: int, draw: np.random.Generator
) -> dict[str, Sequence[object]]:
    """Return the monitor's records of a batch."""
    count = len(keys)
    values = draw.random((len(columns), count), dtype=np.float32)
    return {
        "key": keys,
        **{name: [number] * count for name, number in (("epoch", 0), ("step", batch), ("batch", batch), ("rank", 0))},
        "timestep": draw.integers(0, 1000, count).tolist(),
        "prompt_length": [12] * count,
        **dict(zip(columns, values.tolist(), strict=True)),
        "score": draw.random(count, dtype=np.float32).tolist(),
        "flagged": (draw.random(count) < 0.01).tolist(),
        "weight": [1.0] * count,
    }


@contextmanager
def peak_memory() -> Iterator[list[float]]:
    """Megabytes that this process grows to beyond what it has, in a list of one; of Linux."""
    pa.default_memory_pool().release_unused()
    Path("/proc/self/clear_refs").write_text("5")
    before, found = _resident("VmRSS"), [0.0]
    yield found
    found[0] = _resident("VmHWM") - before


def _resident(name: str) -> float:
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) * 1024 / 1e6


def main(
    sizes: list[int] = [10_000, 100_000],  # noqa: B006 (never changed)
    json: str | None = None,
) -> None:
    """Measure at the sizes.

    Args:
        sizes: numbers of samples.
        json: where to write the figures.
    """
    found = {
        name: {str(size): function(size) for size in sizes}
        for name, function in (("profile", profile), ("records", records))
    }
    table = Table("figure", *(f"{size:,}" for size in sizes), title="Profile and records by number of samples")
    for name, rows in found.items():
        for figure in rows[str(sizes[0])]:
            table.add_row(f"{name}.{figure}", *(f"{rows[str(size)][figure]:.3g}" for size in sizes))
    Console(width=120).print(table)
    if json:
        Path(json).write_text(jsonlib.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
