"""The records from before a checkpoint, where a run continues in another folder than the one it began in.

They are copied from the folder that the checkpoint lies in. Records that are in the new folder already stay if they are
the same up to the checkpoint (it was begun before); others, of another run or branch, are kept aside.
"""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from memtrain.errors import RecordError
from memtrain.files.earlier_run import run_of
from memtrain.records import PART, read_steps, set_aside, write_parquet

log = logging.getLogger(__name__)


def bring_records(folder: Path, *, checkpoint: str | Path | None, batches_done: int) -> None:
    """Copy the rows of the batches that a checkpoint holds, unless they are there.

    Args:
        folder: `records/` of the run that continues.
        checkpoint: path of the file; None if unknown.
        batches_done: batches that it holds.

    Raises:
        RecordError: if there are none to copy.
    """
    if not batches_done:
        return
    run = run_of(checkpoint, "records/steps")
    has_own = any((folder / "steps").glob("rank-*/part-*.parquet"))
    elsewhere = run is not None and (run / "records").resolve() != folder.resolve()
    if has_own and (run is None or not elsewhere or _same(folder, run / "records", batches_done)):
        return
    if has_own:
        log.warning("The records of another run are kept in %s", set_aside(folder))
    if run is None or not elsewhere:
        raise RecordError(
            f"{folder} has no records of the {batches_done:,} batches before the checkpoint",
            expected="those of the run that is continued: in its folder, or in the folder that the checkpoint lies in",
            remedy=f"copy that run's records/ to {folder}, or continue in that run's folder (trainer.default_root_dir)",
        )
    copied = 0
    for part in sorted((run / "records" / "steps").glob("rank-*/part-*.parquet")):
        match = PART.fullmatch(part.name)
        if match is None or int(match[1]) >= batches_done:
            continue
        table = pq.ParquetFile(part).read()
        older = table.filter(pc.less(table["batch"], batches_done))
        last = min(int(match[2]), batches_done - 1)
        write_parquet(older, folder / "steps" / part.parent.name / f"part-{match[1]}-{last:08d}.parquet")
        copied += older.num_rows
    if not copied:
        raise RecordError(
            f"{run / 'records'} has no records of the {batches_done:,} batches before the checkpoint",
            expected="those of the run that the checkpoint is of",
            remedy="name a checkpoint in the folder of its own run",
        )
    log.warning(
        "The run continues in another folder: its records of %d visits until here were copied from %s", copied, run
    )


def require_rows(folder: Path, rows: int | None) -> None:
    """Refuse records of which something is gone.

    Args:
        folder: `records/`, with what comes before the checkpoint.
        rows: of the first process, as the checkpoint says; None if it does not.

    Raises:
        RecordError: if there are more or fewer.
    """
    parts = (folder / "steps" / "rank-00000").glob("part-*.parquet")
    found = sum(pq.read_metadata(part).num_rows for part in parts)
    if rows is not None and found != rows:
        raise RecordError(
            f"{folder} has {found:,} rows of the first process from before the checkpoint, which was written after "
            f"{rows:,}",
            expected="the records of the run that is continued, all of them",
            remedy="restore the files of records/steps; or continue in another folder (trainer.default_root_dir) from "
            "a checkpoint that lies in the folder of its run",
        )


def _same(one: Path, other: Path, batches_done: int) -> bool:
    """Whether two tables of records have the same visits before a checkpoint."""
    names = ["batch", "rank", "key", "timestep"]
    first, second = (
        table.filter(pc.less(table["batch"], batches_done)).select(names)
        for table in (read_steps(one), read_steps(other))
    )
    return bool(first.equals(second))
