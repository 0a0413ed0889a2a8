"""The records from before a checkpoint, where a run continues in another folder than the one it began in."""

from __future__ import annotations

import logging
from pathlib import Path

import pyarrow.compute as pc
import pyarrow.parquet as pq

from memtrain.errors import RecordError
from memtrain.files.earlier_run import run_of
from memtrain.records import PART, write_parquet

log = logging.getLogger(__name__)


def bring_records(folder: Path, *, checkpoint: str | Path | None, batches_done: int) -> None:
    """Copy the rows of the batches that a checkpoint holds, unless the folder has records of its own.

    Args:
        folder: `records/` of the run that continues.
        checkpoint: path of the file; None if unknown.
        batches_done: batches that it holds.

    Raises:
        RecordError: if there are none to copy.
    """
    if not batches_done or any((folder / "steps").glob("rank-*/part-*.parquet")):
        return
    run = run_of(checkpoint, "records/steps")
    if run is None or (run / "records").resolve() == folder.resolve():
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
