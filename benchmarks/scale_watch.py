"""The cost of the monitor on the host: an update of the evidence and its memory, by the number of pictures.

    python benchmarks/scale_watch.py --sizes '[10000, 100000, 1000000]' --json FILE

Each process takes in the visits of all processes (by default 8 with 16 samples each) every 8 batches, and as often 8
held-out samples of each. Before each batch it asks for the flags of its own samples. The evidence is filled through the
same calls, in large batches, until every picture has visits enough to be judged. Values are random: 17 of each visit,
of which flags go by the first, as they do by default. Not in it: what the model computes, the exchange between
processes, the records.
"""

from __future__ import annotations

import io
import json as jsonlib
import math
import statistics
import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse import auto_cli
from rich.console import Console
from rich.table import Table

from memtrain.evidence.calibration import Calibration

COLUMNS, BUCKETS = 17, 4
EVERY = 8
"""Batches between updates."""
MEASURED = 8
"""Held-out samples that each process measures at an update."""
HELDOUT = 2000
FILL = 1 << 16
"""Visits of a batch that fills the evidence."""
UPDATES = 12
"""Number of updates for the median."""
EPOCHS = 3
"""Visits of each picture before it is measured, and that a flag takes."""


class Watch:
    """A calibration with the visits of all processes, and random numbers for more.

    Args:
        count: training pictures.
        heldout: whether held-out samples calibrate.
        names: the names of the pictures.
        seed: the seed of all that is random.
    """

    def __init__(self, count: int, *, heldout: bool, names: Sequence[str], seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.names, self.held = names, [f"held-out/{row:06d}" for row in range(HELDOUT if heldout else 0)]
        self.calibration = Calibration(
            COLUMNS, scored=slice(0, 1), memorized_when="low", buckets=BUCKETS, minimum_visits=EPOCHS, heldout=heldout
        )
        self.step = 0
        for _ in range(EPOCHS + 1 if heldout else 0):
            self.measure_heldout(range(HELDOUT))
        for _ in range(EPOCHS):
            for rows in torch.randperm(count, generator=self.generator).split(FILL):
                self.visit(rows)

    def visits(self, count: int) -> tuple[list[int], torch.Tensor, list[float]]:
        """Timestep buckets, values and prompt lengths of as many visits."""
        buckets = torch.randint(BUCKETS, (count,), generator=self.generator).tolist()
        return buckets, torch.randn(count, COLUMNS, generator=self.generator), [8.0] * count

    def visit(self, rows: torch.Tensor) -> None:
        """A batch of training pictures."""
        buckets, values, lengths = self.visits(len(rows))
        self.calibration.add([self.names[row] for row in rows.tolist()], buckets, values, self.step, lengths)
        self.step += 1

    def measure_heldout(self, rows: Sequence[int], *, more: bool = False) -> None:
        """Visits of held-out samples; `more` follow of other processes."""
        buckets, values, lengths = self.visits(len(rows))
        self.calibration.add_heldout([self.held[row % HELDOUT] for row in rows], buckets, values, lengths, more=more)

    def ask(self, keys: Sequence[str]) -> None:
        """Ask the questions of a process before each batch, and log the figures after it."""
        found = self.calibration
        found.flagged(keys), found.ever_flagged(keys), found.scores(keys), found.ready(keys), found.share_flagged()

    def update(self, ranks: int, batch: int) -> float:
        """Processor seconds of one update, and of the flags of the batches until the next."""
        chosen = torch.randint(len(self.names), (EVERY, ranks * batch), generator=self.generator)
        began = time.process_time()
        for rows in chosen:
            self.visit(rows)
        if self.held:
            for rank in range(ranks):
                first = (self.step * ranks + rank) * MEASURED
                self.measure_heldout(range(first, first + MEASURED), more=rank < ranks - 1)
        for rows in chosen:
            self.ask([self.names[row] for row in rows[:batch].tolist()])
        return time.process_time() - began


def numbered(count: int) -> list[str]:
    """Names as folders of images and shards have them."""
    return [f"{row // 10_000:05d}/{row:09d}" for row in range(count)]


def uuids(count: int, *, seed: int = 0) -> list[str]:
    """Names of 16 random bytes."""
    numbers = torch.randint(2**62, (count, 2), generator=torch.Generator().manual_seed(seed)).tolist()
    return [str(uuid.UUID(int=(4 * high << 64) | 4 * low)) for high, low in numbers]


def monitor_update(
    count: int, *, ranks: int = 8, batch: int = 16, seed: int = 0, heldout: bool = True
) -> dict[str, float]:
    """Seconds, and bytes a sample, of a run with `count` pictures.

    Args:
        count: training pictures.
        ranks: processes whose visits are taken in.
        batch: samples of each of them.
        seed: the seed of all that is random.
        heldout: whether held-out samples calibrate; else the bulk of the training samples does.

    Returns:
        `step_s` (an update, shared among its batches) and `update_s`, both in processor time. `highest_s` is for the
        most suspicious samples, and `p_values_s` for all at the end. `memory_bytes`, `checkpoint_bytes` and
        `uuid_bytes` are bytes a sample: arrays in use without names, a checkpoint, and a checkpoint with UUIDs as
        names. `save_s`, `load_s` and `fill_s` are seconds.
    """
    began = time.perf_counter()
    watch = Watch(count, heldout=heldout, names=numbered(count), seed=seed)
    filled = time.perf_counter() - began
    updates = sorted(watch.update(ranks, batch) for _ in range(UPDATES))
    calibration = watch.calibration
    highest = _seconds(lambda: calibration.highest_pictures(12))
    p_values = _seconds(lambda: calibration.p_values(watch.names[:1]))
    size, save, load = _kept(calibration, heldout=heldout)
    names = calibration.samples.names
    calibration.samples.names = uuids(count, seed=seed)
    uuid_size, _, _ = _kept(calibration, heldout=heldout, load=False)
    calibration.samples.names = names
    update = statistics.median(updates)
    return {
        "step_s": update / EVERY,
        "update_s": update,
        "highest_s": highest,
        "p_values_s": p_values,
        "memory_bytes": calibration.samples.arrays.bytes_per_row(),
        "checkpoint_bytes": size / count,
        "uuid_bytes": uuid_size / count,
        "save_s": save,
        "load_s": load,
        "fill_s": filled,
    }


def _kept(calibration: Calibration, *, heldout: bool, load: bool = True) -> tuple[int, float, float]:
    """Bytes of the training pictures' evidence in a checkpoint, and seconds to write it and to take it up again."""
    buffer, began = io.BytesIO(), time.perf_counter()
    state = calibration.state_dict()
    torch.save({name: state[name] for name in ("samples", "peak", "frequent", "early")}, buffer)
    saved = time.perf_counter() - began
    if not load:
        return buffer.tell(), saved, math.nan
    size, began = buffer.tell(), time.perf_counter()
    buffer.seek(0)
    again = Calibration(
        COLUMNS, scored=slice(0, 1), memorized_when="low", buckets=BUCKETS, minimum_visits=EPOCHS, heldout=heldout
    )
    again.load_state_dict({**state, **torch.load(buffer, weights_only=True)})
    return size, saved, time.perf_counter() - began


def _seconds(work: Any) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main(
    sizes: list[int] = [10_000, 100_000, 1_000_000],  # noqa: B006 (never changed)
    heldout: bool = True,
    json: str | None = None,
) -> None:
    """Measure at several sizes.

    Args:
        sizes: numbers of pictures.
        heldout: whether held-out samples calibrate.
        json: where to write the figures.
    """
    found = {size: monitor_update(size, heldout=heldout) for size in sizes}
    table = Table(title="The watch on the host", title_justify="left")
    table.add_column("figure")
    for size in sizes:
        table.add_column(f"{size:,} pictures", justify="right")
    for name in next(iter(found.values())):
        table.add_row(name, *(f"{found[size][name]:.4g}" for size in sizes))
    Console().print(table)
    if json:
        Path(json).write_text(jsonlib.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
