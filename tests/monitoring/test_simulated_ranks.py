"""Every process takes in the visits of all in one order, whichever arrive first."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from memtrain.evidence.calibration import Calibration
from memtrain.families.table import Families
from memtrain.monitoring.first_visits import NoFirstVisits
from memtrain.monitoring.flagging import Flagging
from memtrain.monitoring.heldout_keys import HeldoutKeys
from memtrain.monitoring.host import Host
from memtrain.monitoring.measurement import HeldoutVisits
from memtrain.monitoring.options import WatchOptions
from memtrain.signals.denoising_loss import DenoisingLoss
from memtrain.signals.readings import Readings

RANKS, BATCH, HELD = 4, 6, 40


class Everyone:
    """What the processes exchange: the first to gather puts its rows down, the last finds those of all."""

    def __init__(self) -> None:
        self.rows: list[Any] = []


class OneOfSeveral(Host):
    """A process that finds the rows of all in an order of its own."""

    def __init__(self, rank: int, everyone: Everyone) -> None:
        super().__init__(None)
        self._rank, self.everyone, self.order = rank, everyone, random.Random(rank)

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return RANKS

    def gather(self, rows: list[Any]) -> list[Any]:
        return self.order.sample(self.everyone.rows, len(self.everyone.rows))


def process(rank: int, everyone: Everyone) -> Flagging:
    """A process that was started, without a model."""
    found = Flagging.__new__(Flagging)
    found.host, found.options = OneOfSeveral(rank, everyone), WatchOptions(reference=False)
    found.paired, found.readings = None, Readings([DenoisingLoss()], [])
    index = Families({f"k{row}": f"k{row // 3 * 3}" for row in range(12)})
    found.heldout_keys, found.families, found.first_visits = HeldoutKeys(), index, NoFirstVisits()
    found.profile = SimpleNamespace(bucket=lambda timestep: int(timestep // 200))  # type: ignore[assignment]
    found.calibration = Calibration(
        1, scored=slice(0, 1), memorized_when="low", buckets=4, false_positive_rate=0.05, minimum_visits=3
    ).group_by(index, pictures=60)
    return found


def measured(rank: int, generator: torch.Generator) -> HeldoutVisits:
    rows = [(rank * 10 + offset) % HELD for offset in range(10)]
    timesteps = torch.randint(800, (10,), generator=generator).tolist()
    values = torch.randn(10, 1, generator=generator).exp()
    return HeldoutVisits([f"h{row}" for row in rows], timesteps, [9.0] * 10, values, None)


def visited(batch: int, rank: int, generator: torch.Generator) -> Any:
    rows = torch.randint(60, (BATCH,), generator=generator)
    values: Tensor = (torch.randn(BATCH, 1, generator=generator) - 3.0 * (rows < 4)[:, None]).exp()
    return SimpleNamespace(
        batch=batch,
        rank=rank,
        step=batch,
        keys=[f"k{row}" for row in rows.tolist()],
        timesteps=torch.randint(1000, (BATCH,), generator=generator).tolist(),
        lengths=[7.0] * BATCH,
        values=values,
    )


def test_every_process_comes_to_the_same_evidence_and_flags() -> None:
    generator, everyone = torch.Generator().manual_seed(0), Everyone()
    processes = [process(rank, everyone) for rank in range(RANKS)]
    for update in range(14):
        parts = {rank: measured(rank, generator) for rank in range(RANKS)}
        everyone.rows = [(rank, 0, part) for rank, part in parts.items()]
        for rank, one in enumerate(processes):
            one.heldout = SimpleNamespace(measure=lambda count, part=parts[rank]: part)  # type: ignore[assignment]
            one.calibrate(10)
        visits = [visited(4 * update + number, rank, generator) for number in range(4) for rank in range(RANKS)]
        everyone.rows = [(v.batch, v.rank, v.keys, v.timesteps, v.lengths, v.values) for v in visits]
        for rank, one in enumerate(processes):
            # Each asks before its batches for its own samples, which makes none known earlier than to the others.
            one.calibration.scores([key for visit in visits if visit.rank == rank for key in visit.keys])
            one.add([visit for visit in visits if visit.rank == rank], step=4 * update)
    first, *others = (one.calibration for one in processes)
    assert first.first_flagged
    assert first.threshold < torch.inf
    for other in others:
        assert other.samples.names == first.samples.names, "rows in the same order, so that sums are the same"
        assert repr(other.state_dict()) == repr(first.state_dict())
