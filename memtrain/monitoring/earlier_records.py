"""The records from before a checkpoint, for a run that continues in another folder.

They are copied from the folder of the checkpoint. Records that are already in the new folder stay if they are the same
up to the checkpoint. Records of another run or branch are set aside.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc

from memtrain.errors import RecordError
from memtrain.files.earlier_run import run_of
from memtrain.files.step_parts import opened, parts_of, rows_of, tables_of, write_tables
from memtrain.records import set_aside

log = logging.getLogger(__name__)


def bring_records(folder: Path, *, checkpoint: str | Path | None, batches_done: int) -> None:
    """Copy the rows of the batches that a checkpoint contains, unless they are in the folder already.

    Args:
        folder: `records/` of the continued run.
        checkpoint: path of the checkpoint; None if unknown.
        batches_done: number of batches that the checkpoint contains.

    Raises:
        RecordError: if there are no rows to copy.
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
            expected="the records of the continued run, in its folder or in the folder of the checkpoint",
            remedy=f"copy that run's records/ to {folder}, or continue in that run's folder (trainer.default_root_dir)",
        )
    copied = 0
    for part in parts_of(run / "records"):
        if part.first >= batches_done:
            continue
        with opened(part.path) as file:
            schema = file.schema_arrow
        older = (table.filter(pc.less(table["batch"], batches_done)) for table in tables_of(part.path))
        name = part.spanning(part.first, min(part.last, batches_done - 1)).name
        copied += write_tables(older, schema, folder / "steps" / part.rank / name)
    if not copied:
        raise RecordError(
            f"{run / 'records'} has no records of the {batches_done:,} batches before the checkpoint",
            expected="the records of the checkpoint's run",
            remedy="set --ckpt_path to a checkpoint in the folder of its own run",
        )
    log.warning(
        "The run continues in another folder. Its records of %d earlier visits were copied from %s", copied, run
    )


def require_rows(folder: Path, rows: int | None) -> None:
    """Refuse incomplete records.

    Args:
        folder: `records/` with the rows from before the checkpoint.
        rows: number of rows of the first process in the checkpoint; None if the checkpoint does not say.

    Raises:
        RecordError: if there are more rows or fewer.
    """
    found = sum(rows_of(part.path) for part in parts_of(folder) if part.rank == "rank-00000")
    if rows is not None and found != rows:
        raise RecordError(
            f"{folder} has {found:,} rows of the first process from before the checkpoint, which was written after "
            f"{rows:,} rows",
            expected="all records of the continued run",
            remedy="restore the files of records/steps, or continue in another folder (trainer.default_root_dir) from "
            "a checkpoint in the folder of its run",
        )


def _same(one: Path, other: Path, batches_done: int) -> bool:
    """Return whether two tables of records have the same visits before a checkpoint."""
    return _digests(one, batches_done) == _digests(other, batches_done)


def _digests(folder: Path, batches_done: int) -> dict[str, list[str]]:
    """Return digests of each rank's visits before a checkpoint, independent of the division into parts."""
    found: dict[str, list[Any]] = {}
    for part in parts_of(folder):
        if part.first >= batches_done:
            continue
        digests = found.setdefault(part.rank, [hashlib.sha256() for _ in range(4)])
        for table in tables_of(part.path, ("batch", "timestep", "key")):
            table = table.filter(pc.less(table["batch"], batches_done))
            keys = table["key"].combine_chunks()
            numbers = (table["batch"], table["timestep"], pc.binary_length(keys))
            for digest, column in zip(digests, numbers, strict=False):
                digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).tobytes())
            digests[3].update("".join(keys.to_pylist()).encode())
    return {rank: [digest.hexdigest() for digest in digests] for rank, digests in found.items()}
