"""The record table: one row per sample and training step, in Parquet, readable without memtrain.

Layout below a run's `records/`:

- `steps/rank-00000/part-00000000-00000049.parquet`: rows of one rank for a range of batches. A part is written under
  another name and renamed into place when complete.
- `samples.parquet`: one row per sample of the data: `key`, `caption`, `split` (`train` or `heldout`),
  `visits_per_epoch`, `group` (what is known of it: `planted`, `unique`, `varied_captions`, `varied_images`, `canary`,
  `regularisation` or `heldout`; null where the data module names no groups), `picture_family`, `caption_family` (the
  key of the family's first member, the sample's own where it stands alone; see :mod:`memtrain.families.table`).
- `evidence.parquet`: one row per training sample that was visited or flagged, at the end of the run (see
  :mod:`memtrain.evidence.evidence_table`).
- `calibration.json`: how the run came to its flags: threshold, false-positive rate, how many samples calibrated it,
  were judged and were flagged, how many pictures and captions these are, and its power, the share of canaries flagged
  (see :func:`memtrain.evidence.verdict.calibration_figures`).

Columns of the step rows: `key`, `epoch`, `step` (optimizer steps taken before), `batch` (batches since the start, the
unit of resuming), `rank`, `timestep`, `prompt_length`, one column per signal value (NaN where it was not measured, or
the caption was dropped), `score` (accumulated evidence before this visit), `flagged`, `weight` (of the sample in the
mini-batch).

On resume, parts newer than the checkpoint are dropped, so a crash neither loses nor doubles a row. Parts are brought to
the disk (`fsync`) before the checkpoint that counts on them is written, and a torn one is refused by name.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from memtrain.errors import RecordError
from memtrain.files.whole import written_whole as written_whole

PLANTED, UNIQUE, HELDOUT = "planted", "unique", "heldout"
"""Groups of samples: training images repeated on purpose, training images seen once per epoch, images never seen."""
VARIED_CAPTIONS, VARIED_IMAGES, CANARY = "varied_captions", "varied_images", "canary"
"""Groups of made samples: an image under varied captions, a caption with varied images, a synthetic image."""
REPEATED = "repeated"
"""Group of training pictures of which the data hold several files that nobody planted."""
SHARED_CAPTION = "shared_caption"
"""Group of captions that several training pictures share, and that nobody planted."""
FLAGGED, EXCLUDED = "flagged", "excluded"
"""Groups of samples that a run chose: unique images that it flagged, images that it was told to leave out."""
REGULARISATION = "regularisation"
"""Group of images that are mixed in to keep the model as it is: trained on, but not what a run is meant to learn."""
MADE_CAPTION = "made_caption"
"""Group of captions that were made of the data's words, where no picture was held out; they have no picture."""
NEVER_TRAINED = (HELDOUT, EXCLUDED, MADE_CAPTION)
"""Groups of prompts that the run did not train on."""
PART = re.compile(r"part-(\d+)-(\d+)\.parquet")
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
    """Write `path` so that it is either complete or not there."""
    with written_whole(path) as unfinished:
        pq.write_table(table, unfinished)


def write_json(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
    """Write a results file so that it is either complete or not there.

    Args:
        content: what the file holds. Numbers that are not finite become null, objects that JSON does not know their
            text.
        path: of the file.

    Returns:
        What reading the file again gives.
    """
    text = json.dumps(_plain(content), indent=2, ensure_ascii=False, allow_nan=False)
    with written_whole(path) as unfinished:
        unfinished.write_text(text + "\n", encoding="utf-8")
    read: dict[str, Any] = json.loads(text)
    return read


def _plain(value: object) -> object:
    """What JSON can hold."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, (str, int, bool)) or value is None else str(value)


class RecordWriter:
    """Appends the rows of one rank.

    Args:
        folder: the run's `records` folder.
        rank: this process.
        batches_per_part: batches collected before a part is written.
    """

    def __init__(self, folder: Path, *, rank: int, batches_per_part: int = 50) -> None:
        self.folder = folder / "steps" / f"rank-{rank:05d}"
        self.batches_per_part = batches_per_part
        self._tables: list[pa.Table] = []
        self._first = 0

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
        """Write what was collected as a part."""
        if self._tables:
            name = f"part-{self._first:08d}-{self._last:08d}.parquet"
            write_parquet(pa.concat_tables(self._tables), self.folder / name)
            self._tables = []


def drop_newer(folder: Path, batches_done: int, *, trim: bool = False) -> int:
    """Delete the parts of all ranks that hold batches from `batches_done` on.

    Args:
        folder: the run's `records` folder.
        batches_done: batches that the checkpoint contains.
        trim: cut parts of other processes than the first in two where they hold batches before and after it.

    Returns:
        Number of parts deleted.

    Raises:
        RecordError: if a part straddles the checkpoint, so that rows would be lost or doubled, or a part that stays is
            torn.
    """
    dropped = 0
    for part in sorted((folder / "steps").glob("rank-*/part-*.parquet")):
        match = PART.fullmatch(part.name)
        if match is None or int(match[2]) < batches_done:
            _open(part)
            continue
        if int(match[1]) < batches_done and trim and part.parent.name != "rank-00000":
            table = _read(part)
            older = table.filter(pc.less(table["batch"], batches_done))
            if len(older):
                write_parquet(older, part.with_name(f"part-{match[1]}-{batches_done - 1:08d}.parquet"))
        elif int(match[1]) < batches_done:
            raise RecordError(
                f"{part} holds batches before and after the checkpoint's {batches_done}",
                expected="parts that end at each checkpoint",
                remedy="resume from the checkpoint that belongs to these records, or start a new run folder",
            )
        part.unlink()
        dropped += 1
    for unfinished in (folder / "steps").glob("rank-*/.part-*"):
        unfinished.unlink()
    return dropped


def read_steps(folder: Path, *, first: int = 0) -> pa.Table:
    """The step rows of a run, ordered by batch and rank.

    Args:
        folder: the run's `records` folder.
        first: leave out earlier batches.

    Raises:
        RecordError: if there are none, or one is torn.
    """
    parts = sorted((folder / "steps").glob("rank-*/part-*.parquet"))
    if not parts:
        raise RecordError(
            f"No records in {folder}", expected="the records folder of a run", remedy="train with MemorizationMonitor"
        )
    # File by file: pyarrow's datasets would import pandas, which takes 70 MB.
    tables = [_read(part) for part in parts]
    if first:
        tables = [table.filter(pc.field("batch") >= first) for table in tables]
    table = pa.concat_tables(tables, promote_options="default")
    return table.sort_by([("batch", "ascending"), ("rank", "ascending")])


def read_table(folder: Path, name: str) -> pa.Table:
    """`samples` or `evidence` of a run.

    Raises:
        RecordError: if the run has none, or it is torn.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise RecordError(
            f"{path} does not exist",
            expected="the records of a finished run",
            remedy="let the run end (continue it with --ckpt_path last), or check the path",
        )
    return _read(path)


def _read(path: Path) -> pa.Table:
    try:
        return _open(path).read()
    except (pa.ArrowException, OSError) as error:
        raise _torn(path, error) from error


def _open(path: Path) -> pq.ParquetFile:
    """A table of which the end is there, without which it was not written whole."""
    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise _torn(path, error) from error


def _torn(path: Path, error: Exception) -> RecordError:
    match = PART.fullmatch(path.name)
    before = f"continue from a checkpoint of before batch {int(match[1])}, or " if match else ""
    return RecordError(
        f"{path} is torn: {str(error).splitlines()[0] if str(error) else type(error).__name__}",
        expected="a table that was written whole; memtrain renames tables into place when they are",
        remedy=f"restore the file from a copy, {before}start the run anew in another folder",
    )


def set_aside(folder: Path) -> Path | None:
    """Move an earlier result out of the way, keeping everything it holds.

    Args:
        folder: a run folder or a part of one.

    Returns:
        Its new place beside the old one, or None if there was nothing.
    """
    if not folder.exists():
        return None
    number = 1
    while (kept := folder.with_name(f"{folder.name}-{number}")).exists():
        number += 1
    folder.rename(kept)
    return kept
