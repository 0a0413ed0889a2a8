"""Flags and thresholds of some hundred pictures are those of a watch that goes through all samples at every visit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from memtrain.evidence.calibration import Calibration
from memtrain.evidence.running_means import Sign
from tests.evidence.plain_watch import PlainWatch

CLOSE = 1e-12
"""Sums in another order, and square roots, differ by less."""


def run(
    columns: int,
    sign: Sign,
    *,
    heldout: int,
    scored: slice | None = None,
    often: int = 0,
    steps: int = 40,
    missing: float = 0.0,
    processes: int = 1,
) -> tuple[list[float], list[float], Calibration, PlainWatch]:
    """Thresholds after each step, of both."""
    generator = torch.Generator().manual_seed(0)
    scored = scored or slice(0, columns)
    width = len(range(columns)[scored])
    options: dict[str, Any] = {"scored": scored, "memorized_when": sign, "buckets": 1, "false_positive_rate": 0.03}
    ours = Calibration(columns, heldout=heldout > 0, **options)
    plain = PlainWatch(width, sign=sign, rate=0.03, heldout=heldout > 0)
    own = 0.4 * torch.randn(200 + heldout, columns, generator=generator)
    own[:8] += 4.0 * (1 if sign != "low" else -1)
    rows = torch.cat([torch.arange(200), torch.arange(often).repeat(40)])
    keys = [f"{row}" for row in range(200 + heldout)]

    def values(chosen: torch.Tensor) -> torch.Tensor:
        drawn = own[chosen] + torch.randn(len(chosen), columns, generator=generator)
        return drawn.masked_fill(torch.rand(len(chosen), columns, generator=generator) < missing, math.nan)

    found: tuple[list[float], list[float]] = ([], [])
    for step in range(steps):
        for _ in range(9 if heldout and step == 0 else bool(heldout)):
            parts = (200 + torch.randperm(heldout, generator=generator)).chunk(processes)
            for number, part in enumerate(parts):
                names, drawn = [keys[row] for row in part], values(part)
                ours.add_heldout(names, [0] * len(part), drawn, more=number < len(parts) - 1)
                plain.add_heldout(names, drawn[:, scored])
        chosen = rows[torch.randint(len(rows), (32,), generator=generator)]
        names, drawn = [keys[row] for row in chosen], values(chosen)
        ours.add(names, [0] * 32, drawn, step)
        plain.add(names, drawn[:, scored], step)
        for thresholds, one in zip(found, (ours.threshold, plain.threshold), strict=True):
            thresholds.append(one)
    return *found, ours, plain


@pytest.mark.parametrize(
    "options",
    [
        {"columns": 1, "sign": "high", "heldout": 40},
        {"columns": 3, "sign": "unknown", "heldout": 40, "missing": 0.1},
        {"columns": 5, "sign": "low", "heldout": 20, "scored": slice(0, 1)},
        {"columns": 1, "sign": "high", "heldout": 160, "processes": 4, "often": 8, "steps": 20},
        {"columns": 1, "sign": "high", "heldout": 0, "often": 4, "steps": 60},
        {"columns": 2, "sign": "unknown", "heldout": 0, "missing": 0.1, "steps": 70},
    ],
    ids=["held out", "unsigned, values missing", "tail, one of five columns", "four processes", "early bulk", "bulk"],
)
def test_they_are_equal(options: dict[str, Any]) -> None:
    ours, plainly, calibration, plain = run(**options)
    assert ours == pytest.approx(plainly, rel=CLOSE)
    assert any(threshold < math.inf for threshold in ours)
    assert calibration.first_flagged == plain.first_flagged != {}
    keys = list(plain.samples)
    assert calibration.scores(keys).tolist() == pytest.approx(
        [plain.score(plain.samples[key]) for key in keys], rel=1e-9
    )
    assert calibration.highest == pytest.approx(plain.highest, rel=CLOSE)
    assert calibration.spending.named == plain.named
    peaks = dict(zip(calibration.samples.names, calibration.bulk.peak.tolist(), strict=True))
    assert {key: peak for key, peak in peaks.items() if peak > -math.inf} == pytest.approx(plain.peak, rel=CLOSE)
    assert calibration.bulk.early == (plain.early is not None)
    if options["heldout"]:
        return
    often = calibration.samples.arrays["frequent"].nonzero()[:, 0].tolist()
    assert {calibration.samples.names[row] for row in often} == plain.frequent
