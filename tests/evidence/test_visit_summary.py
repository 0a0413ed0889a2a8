"""The summary of the records, added up as they are read, is that of all rows at once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pytest

from memtrain.evidence.visit_summary import summarise

COLUMNS = ["loss", "entropy"]


def rows(visits: int = 400) -> pa.Table:
    draw = np.random.default_rng(0)
    entropy = draw.normal(size=visits).astype(np.float32)
    entropy[draw.random(visits) < 0.3] = np.nan
    return pa.table(
        {
            "key": [f"k{number}" for number in draw.integers(0, 37, visits)],
            "batch": pa.array(np.arange(visits) // 4, pa.int64()),
            "rank": pa.array(np.arange(visits) % 4 // 2, pa.int32()),
            "flagged": draw.random(visits) < 0.5,
            "weight": pa.array(np.where(draw.random(visits) < 0.2, 0.0, 1.0), pa.float32()),
            "loss": pa.array(draw.normal(size=visits).astype(np.float32)),
            "entropy": pa.array(entropy),
        }
    )


def values(table: pa.Table) -> Mapping[str, np.ndarray]:
    return {name: table[name].to_numpy() for name in COLUMNS}


def by_rank(table: pa.Table, size: int) -> Iterator[pa.Table]:
    """As the parts of several processes are read."""
    for rank in (0, 1):
        own = table.filter(pa.array(table["rank"].to_numpy() == rank))
        for start in range(0, len(own), size):
            yield own.slice(start, size)


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
def test_it_is_that_of_all_rows_at_once(size: int) -> None:
    table = rows()
    found = summarise(by_rank(table, size), values, columns=COLUMNS).to_pylist()
    expected: dict[str, list[dict[str, float]]] = {}
    for row in table.to_pylist():
        expected.setdefault(row["key"], []).append(row)
    assert [row["key"] for row in found] == list(expected), "in the order of the first visits"
    for row in found:
        visits = expected[row["key"]]
        assert row["visits"] == len(visits)
        assert row["flagged_share"] == sum(visit["flagged"] for visit in visits) / len(visits)
        assert row["skipped"] == sum(visit["weight"] == 0 for visit in visits) / len(visits)
        for name in COLUMNS:
            told = [visit[name] for visit in visits if not math.isnan(visit[name])]
            assert row[name] == pytest.approx(math.fsum(told) / len(told), rel=1e-12)


def test_a_sample_without_a_value_has_no_mean_and_no_rows_have_no_samples() -> None:
    table = rows(4)
    table = table.set_column(6, "entropy", pa.array([math.nan] * 4, pa.float32()))
    found = summarise([table], values, columns=COLUMNS)
    assert all(math.isnan(value) for value in found["entropy"].to_pylist())
    assert summarise([table.slice(0, 0)], values, columns=COLUMNS).num_rows == 0
    assert summarise([]).column_names == ["key", "visits", "flagged_share", "skipped"]
