"""Curves of the sampled pictures' accumulated evidence over the steps of training, for the report.

`evidence_curves.parquet` has `key`, `step` and `score` (of all visits before this one). The metadata of its schema
holds the run's threshold. Long curves are thinned, because the report draws small curves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from memtrain.files.parquet_table import parquet_names, read_parquet
from memtrain.files.step_parts import parts_of
from memtrain.files.text import read_json_object
from memtrain.records import write_parquet

NAME = "evidence_curves.parquet"
COLUMNS = ("key", "step", "score")
POINTS = 60
"""Largest number of visits kept of a picture; the last visit is always kept."""
THRESHOLD = b"threshold"


def write_evidence_curves(records: Path, folder: Path, *, keys: Iterable[str]) -> Path | None:
    """Write the curves for the report.

    Args:
        records: the run's `records` folder.
        folder: the folder of the results.
        keys: the keys of the sampled pictures.

    Returns:
        The path of the table; None if the run recorded no evidence for any of them.

    Raises:
        DataError: if the records are damaged.
    """
    (folder / NAME).unlink(missing_ok=True)
    wanted = pa.array(sorted(set(keys)), pa.string())
    tables = []
    for part in (part.path for part in parts_of(records)):
        if set(COLUMNS) <= set(parquet_names(part)):
            # Only three columns and the wanted keys, part by part, because records can be larger than memory.
            table = read_parquet(part, columns=COLUMNS, what="records of a run")
            tables.append(table.filter(pc.is_in(table["key"], wanted)).drop_null())
    table = pa.concat_tables(tables) if tables else None
    if table is None or not len(table):
        return None
    table = table.filter(pc.is_finite(table["score"])).sort_by([("key", "ascending"), ("step", "ascending")])
    threshold = _threshold(records / "calibration.json")
    metadata = {} if threshold is None else {THRESHOLD: repr(threshold).encode()}
    write_parquet(_thinned(table).replace_schema_metadata(metadata), folder / NAME)
    return folder / NAME


def read_evidence_curves(folder: Path) -> tuple[dict[str, tuple[list[int], list[float]]], float | None]:
    """Read steps and scores by key, and the threshold; an empty mapping and None if there is no file."""
    if not (folder / NAME).is_file():
        return {}, None
    table = read_parquet(folder / NAME, needed=COLUMNS, remedy="run `memtrain measure` again")
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for row in table.to_pylist():
        steps, scores = curves.setdefault(row["key"], ([], []))
        steps.append(row["step"])
        scores.append(row["score"])
    threshold = (table.schema.metadata or {}).get(THRESHOLD)
    return curves, None if threshold is None else float(threshold)


def _thinned(table: pa.Table) -> pa.Table:
    """Keep at most :data:`POINTS` rows of each key, evenly spread."""
    keys: Sequence[str] = table["key"].to_pylist()
    keep: list[int] = []
    first = 0
    for row in range(1, len(keys) + 1):
        if row == len(keys) or keys[row] != keys[first]:
            count = row - first
            places = min(count, POINTS)
            keep += sorted({row - 1 - (number * (count - 1)) // max(1, places - 1) for number in range(places)})
            first = row
    return table.take(pa.array(keep, pa.int64()))


def _threshold(path: Path) -> float | None:
    if not path.is_file():
        return None
    found = read_json_object(path, what="the calibration of a run", remedy=f"remove {path}").get("threshold")
    return float(found) if isinstance(found, (int, float)) else None
