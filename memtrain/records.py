"""The record table: one row per sample and training step, in Parquet, readable without memtrain.

Layout below a run's `records/`:

- `steps/rank-00000/part-00000000-00000049.parquet`: rows of one rank for a range of batches. A part is written under
  another name and renamed into place when complete.
- `samples.parquet`: one row per sample of the data, with `key`, `caption`, `split` (`train` or `heldout`),
  `visits_per_epoch`, `group`, `picture_family` and `caption_family`. Groups are `planted`, `unique`, `varied_captions`,
  `varied_images`, `canary`, `regularisation`, `heldout` or null. A family is the key of its first member, or the
  sample's own key (:mod:`memtrain.families.table`).
- `evidence.parquet`: one row per training sample that was visited or flagged, at the end of the run (see
  :mod:`memtrain.evidence.evidence_table`).
- `calibration.json`: the basis of the run's flags (see :func:`memtrain.evidence.verdict.calibration_figures`). It holds
  the threshold, the false-positive rate, and the numbers of calibrating, judged and flagged samples. It also holds the
  numbers of flagged pictures and captions, and the power, which is the share of canaries flagged.

Columns of the step rows are `key`, `epoch`, `step` (optimizer steps taken before), `batch` (batches since the start,
the unit of resuming), `rank`, `timestep` and `prompt_length`. Each signal value has one column, with NaN for a dropped
caption or no measurement. `score` is the accumulated evidence before this visit. `flagged` and `weight` are those of
the sample in the mini-batch.

On resume, rows newer than the checkpoint are dropped, so a crash neither loses nor doubles a row. Parts are written to
the disk (`fsync`) before the checkpoint that needs them. A torn part is refused by name. Many small parts are merged
(:mod:`memtrain.files.step_parts`), so a run of days leaves a few dozen parts of each rank. If a killed run left a part
and a larger part that contains it, the larger one counts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memtrain.errors import RecordError
from memtrain.files.step_parts import Part, merged, opened, parts_of, rows_of, superseded, tables_of, torn, write_tables
from memtrain.files.whole import written_whole as written_whole

PLANTED, UNIQUE, HELDOUT = "planted", "unique", "heldout"
"""Groups of samples: training images repeated on purpose, training images seen once per epoch, images never seen."""
VARIED_CAPTIONS, VARIED_IMAGES, CANARY = "varied_captions", "varied_images", "canary"
"""Groups of made samples: an image under varied captions, a caption with varied images, a synthetic image."""
REPEATED = "repeated"
"""Group of training pictures with several files in the data that nobody planted."""
SHARED_CAPTION = "shared_caption"
"""Group of captions that several training pictures share, and that nobody planted."""
FLAGGED, EXCLUDED = "flagged", "excluded"
"""Groups of samples that a run chose: unique images that it flagged, and images that a setting excludes."""
REGULARISATION = "regularisation"
"""Group of regularisation images. The run trains on them to keep the model as it is, not to learn them."""
MADE_CAPTION = "made_caption"
"""Group of captions made of the data's words, if no picture was held out. They have no picture."""
NEVER_TRAINED = (HELDOUT, EXCLUDED, MADE_CAPTION)
"""Groups of prompts that the run did not train on."""
MOST_ROWS = 2**22
"""Rows of a part that is not merged any more. A row takes a hundred bytes."""
Columns = Mapping[str, Sequence[Any]]
"""Column name to values, all of the same length."""

_TYPES = {
    "key": pa.string(),
    "epoch": pa.int32(),
    "step": pa.int64(),
    "batch": pa.int64(),
    "rank": pa.int32(),
    "timestep": pa.int32(),
    "prompt_length": pa.int32(),
    "flagged": pa.bool_(),
}


def write_parquet(table: pa.Table, path: Path) -> None:
    """Write `path` so that the file is either complete or missing."""
    with written_whole(path) as unfinished:
        pq.write_table(table, unfinished)


def write_json(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write a results file so that it is either complete or missing.

    Args:
        content: the content of the file. Numbers that are not finite become null. Objects that JSON does not know
            become their text.
        path: the path of the file.

    Returns:
        The content that a reader of the file gets.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    with written_whole(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    read: dict[str, Any] = json.loads(text)
    return read


def _plain(value: object) -> object:
    """Return a value that JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


class RecordWriter:
    """Appends the rows of one rank, and merges its parts as they become many.

    Args:
        folder: the run's `records` folder.
        rank: this process.
        batches_per_part: batches collected before a part is written.
        several: number of neighbouring parts of about one size that are merged.
    """

    def __init__(self, folder: Path, *, rank: int, batches_per_part: int = 50, several: int = 16) -> None:
        self.folder = folder / "steps" / f"rank-{rank:05d}"
        self.batches_per_part, self.several = batches_per_part, several
        self._tables: list[pa.Table] = []
        self._first = self._last = 0
        self._checkpoint: int | None = None
        own = [part for part in parts_of(folder) if part.rank == self.folder.name]
        self._parts = [(part, rows_of(part.path)) for part in own]

    def append(self, batch: int, columns: Columns) -> None:
        """Add the rows of one batch.

        Args:
            batch: number of the batch since the start of training; ascending.
            columns: `key` and the other columns.
        """
        if not self._tables:
            self._first = batch
        schema = pa.schema([(name, _TYPES.get(name, pa.float32())) for name in columns])
        self._tables.append(pa.table(dict(columns), schema=schema))
        self._last = batch
        if len(self._tables) >= self.batches_per_part:
            self.flush()

    def flush(self) -> None:
        """Write the collected rows as a part, and merge parts when enough of them exist."""
        if not self._tables:
            return
        path = self.folder / f"part-{self._first:08d}-{self._last:08d}.parquet"
        table, self._tables = pa.concat_tables(self._tables), []
        write_parquet(table, path)
        self._parts.append((Part(path, self._first, self._last), len(table)))
        end = self._checkpoint
        older = self._parts if end is None else [one for one in self._parts if one[0].last < end]
        # A part never mixes rows of the last checkpoint with newer rows, which a resumed run drops.
        self._parts = self._compact(older) + self._compact(self._parts[len(older) :])

    def checkpoint(self) -> None:
        """End the current part, because a checkpoint is about to be written."""
        self.flush()
        self._checkpoint = self._parts[-1][0].last + 1 if self._parts else None

    def _compact(self, parts: list[tuple[Part, int]]) -> list[tuple[Part, int]]:
        """Merge the newest parts if `several` of them in a row have about one size or are smaller."""
        for size in range(math.ceil(math.log(MOST_ROWS, self.several))):
            newest: list[tuple[Part, int]] = []
            for part, rows in reversed(parts):
                if rows >= self.several ** (size + 1) or rows >= MOST_ROWS:
                    break
                newest.insert(0, (part, rows))
            if len(newest) >= self.several:
                whole = merged([part for part, _ in newest])
                parts = [*parts[: -len(newest)], (whole, sum(rows for _, rows in newest))]
        return parts


def drop_newer(folder: Path, batches_done: int) -> int:
    """Delete the rows of all ranks from batch `batches_done` on, and files that an interrupted merge left.

    A part with earlier and later batches is cut. The earlier batches are written as a new part before the old part is
    deleted.

    Args:
        folder: the run's `records` folder.
        batches_done: batches that the checkpoint contains.

    Returns:
        Number of parts deleted or cut.

    Raises:
        RecordError: if a part that stays is torn.
    """
    dropped = 0
    for path in superseded(folder):
        path.unlink()
    for part in parts_of(folder):
        if part.last < batches_done:
            opened(part.path).close()
            continue
        if part.first < batches_done:
            with opened(part.path) as file:
                schema = file.schema_arrow
            older = (table.filter(pc.less(table["batch"], batches_done)) for table in tables_of(part.path))
            write_tables(older, schema, part.spanning(part.first, batches_done - 1))
        part.path.unlink()
        dropped += 1
    for unfinished in (folder / "steps").glob("rank-*/.part-*"):
        unfinished.unlink()
    return dropped


def iterate_steps(folder: Path, columns: Sequence[str] | None = None, *, first: int = 0) -> Iterator[pa.Table]:
    """Read the step rows of a run in pieces, one rank after the other, each rank in the order of its batches.

    Args:
        folder: the run's `records` folder.
        columns: names of the columns to read, without unknown ones; default all.
        first: leave out earlier batches.

    Raises:
        RecordError: if there are none, or one is torn.
    """
    parts = parts_of(folder)
    if not parts:
        raise RecordError(
            f"No records in {folder}", expected="the records folder of a run", remedy="train with MemorizationMonitor"
        )
    for part in parts:
        if part.last < first:
            continue
        cut = part.first < first
        needed = [*columns, "batch"] if cut and columns is not None else columns
        for table in tables_of(part.path, needed):
            if cut:
                table = table.filter(pc.field("batch") >= first)
            yield table if columns is None else table.select([name for name in columns if name in table.column_names])


def read_steps(folder: Path, *, first: int = 0) -> pa.Table:
    """Read the step rows of a run into memory, ordered by batch and rank; :func:`iterate_steps` needs less memory.

    Args:
        folder: the run's `records` folder.
        first: leave out earlier batches.

    Raises:
        RecordError: if there are none, or one is torn.
    """
    # Files are read one by one, because pyarrow's datasets would import pandas, which takes 70 MB.
    tables = list(iterate_steps(folder, first=first)) or [_none_of(folder)]
    table = pa.concat_tables(tables, promote_options="default")
    return table.sort_by([("batch", "ascending"), ("rank", "ascending")])


def _none_of(folder: Path) -> pa.Table:
    with opened(parts_of(folder)[0].path) as file:
        return file.schema_arrow.empty_table()


def read_table(folder: Path, name: str) -> pa.Table:
    """Read the table `samples` or `evidence` of a run.

    Raises:
        RecordError: if the run has no such table, or the table is torn.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise RecordError(
            f"{path} does not exist",
            expected="the records of a finished run",
            remedy="finish the run: memtrain train ... --ckpt_path last, or check the path",
        )
    return _read(path)


def _read(path: Path) -> pa.Table:
    try:
        return opened(path).read()
    except (pa.ArrowException, OSError) as error:
        raise torn(path, error) from error


def set_aside(folder: Path) -> Path | None:
    """Rename an earlier result, and keep all of its files.

    Args:
        folder: a run folder or a part of one.

    Returns:
        The new path next to the old one, or None if there was no earlier result.
    """
    if not folder.exists():
        return None
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(kept)
    return kept
