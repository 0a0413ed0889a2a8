"""What the step records say of each sample, summed up as they are read: memory goes with samples, not with visits.

Rows come some at a time, in any number. Those of one sample are added up as soon as as many rows wait as there are
samples, so that each row is looked at a few times at most, by pyarrow alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

WAITING = 2**18
"""Rows that wait at least before they are added up."""
ORDER, COUNT, FLAGGED, SKIPPED = "order", "visits", "flagged", "skipped"
NEEDED = ("key", "batch", "rank", "flagged", "weight")
"""Columns of the records without which there is no summary."""
Compared = Callable[[pa.Table], Mapping[str, npt.NDArray[np.float32]]]
"""Values by name of some rows of the records, NaN where there is none."""


def summarise(rows: Iterable[pa.Table], compared: Compared | None = None, *, columns: Sequence[str] = ()) -> pa.Table:
    """One row per sample, in the order of the first visits.

    Args:
        rows: of the records, with :data:`NEEDED`; those of each rank by batch.
        compared: gives values of these rows.
        columns: their names.

    Returns:
        `key`, `visits`, `flagged_share` and `skipped` (shares of the visits), and the mean of each column over the
        visits that have a value, NaN without any.
    """
    state, waiting, count = _empty(columns), list[pa.Table](), 0
    read = 0
    for table in rows:
        waiting.append(_single(table, {} if compared is None else compared(table), read))
        read, count = read + len(table), count + len(table)
        if count >= max(WAITING, len(state)):
            state, waiting, count = _added(state, waiting), [], 0
    state = _added(state, waiting).sort_by(ORDER)
    visits = state[COUNT].cast(pa.float64())
    found = {
        "key": state["key"],
        "visits": state[COUNT],
        "flagged_share": pc.divide(state[FLAGGED].cast(pa.float64()), visits),
        "skipped": pc.divide(state[SKIPPED].cast(pa.float64()), visits),
    }
    for column in columns:
        found[column] = pc.divide(state[f"sum {column}"], state[f"count {column}"].cast(pa.float64()))
    return pa.table(found)


def _schema(columns: Sequence[str]) -> pa.Schema:
    fields = [("key", pa.string()), *((name, pa.int64()) for name in (ORDER, COUNT, FLAGGED, SKIPPED))]
    for column in columns:
        fields += [(f"sum {column}", pa.float64()), (f"count {column}", pa.int64())]
    return pa.schema(fields)


def _empty(columns: Sequence[str]) -> pa.Table:
    return _schema(columns).empty_table()


def _single(table: pa.Table, values: Mapping[str, npt.NDArray[np.float32]], read: int) -> pa.Table:
    """Each row as the summary of itself."""
    batch, rank = (table[name].to_numpy().astype(np.int64) for name in ("batch", "rank"))
    # By batch, by rank, by place in the batch.
    order = (batch << 34) + (rank << 20) + np.arange(read, read + len(table)) % 2**20
    columns = {
        "key": table["key"],
        ORDER: order,
        COUNT: np.ones(len(table), dtype=np.int64),
        FLAGGED: table["flagged"].cast(pa.int64()),
        SKIPPED: pc.equal(table["weight"], 0.0).cast(pa.int64()),
    }
    for name, found in values.items():
        there = ~np.isnan(found)
        columns[f"sum {name}"] = np.where(there, found, 0.0).astype(np.float64)
        columns[f"count {name}"] = there.astype(np.int64)
    return pa.table(columns, schema=_schema(list(values)))


def _added(state: pa.Table, waiting: Sequence[pa.Table]) -> pa.Table:
    """Summaries of the same samples as one; in one thread, so that sums come out the same each time."""
    if not waiting:
        return state
    sums = [(name, "min" if name == ORDER else "sum") for name in state.column_names if name != "key"]
    grouped = pa.concat_tables([state, *waiting]).group_by("key", use_threads=False).aggregate(sums)
    names = {f"{name}_{how}": name for name, how in sums}
    return grouped.rename_columns([names.get(name, name) for name in grouped.column_names]).select(state.column_names)
