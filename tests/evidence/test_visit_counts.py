"""The median and the most of all visits, counted along, are those of the visits themselves."""

from __future__ import annotations

import torch

from memtrain.evidence.visit_counts import VisitCounts


def test_they_are_those_of_the_visits_at_any_time_and_when_samples_go() -> None:
    generator = torch.Generator().manual_seed(0)
    visits, counts = torch.zeros(60, dtype=torch.int32), VisitCounts()
    assert (counts.median(), counts.most, counts.seen) == (0, 0, 0)
    for step in range(150):
        # New samples come as others have many visits, so that the median falls, too.
        rows = torch.randint(5 if step % 50 < 30 else 60, (8,), generator=generator).unique()
        before = visits[rows].tolist()
        visits[rows] += torch.randint(4, (len(rows),), generator=generator).int()
        if step % 40 == 39:
            visits[rows[:1]] = 0
        counts.move(before, visits[rows].tolist())
        seen = visits[visits > 0]
        for found in (counts, VisitCounts.of(visits)):
            assert found.median() == int(seen.median())
            assert found.seen == len(seen)
        assert counts.most >= VisitCounts.of(visits).most == int(visits.max())
