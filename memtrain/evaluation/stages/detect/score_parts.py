"""Scores of prompts, written in parts while a detection runs, so that a killed detection goes on.

The output folder gets `detection/<key>/`, where the key is a hash of everything that the scores depend on:

- `identity.json`: these values;
- `part-*.parquet`: rows of one process, renamed into place when complete;
- `scores.parquet`: all rows, when every prompt is scored; the parts are then removed.

Rows hold `row` (the prompt's place in the list), one column per detector, and `seconds`. The missing rows are the work
left to do, so a detection can go on with another number of processes. Rows that two processes made are equal, and count
once.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow as pa

from memtrain.errors import DataError, MissingPartsError
from memtrain.files.inside import safe_name
from memtrain.files.parquet_table import read_parquet
from memtrain.files.text import read_json
from memtrain.records import write_parquet, written_whole

UNNAMED = "earlier"
"""Name, followed by a number, of a folder for results without a key."""
log = logging.getLogger(__name__)


class ScoreParts:
    """The rows of one detection.

    Args:
        folder: the folder `detection/` of the output folder.
        identity: everything that the scores depend on, in a form that JSON can hold.
        detectors: the names of the columns.

    Attributes:
        key: the name of the folder of this detection.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any], *, detectors: Sequence[str]) -> None:
        text = json.dumps(identity, indent=2, sort_keys=True)
        self.key = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = folder / self.key
        self._whole = self.folder / "scores.parquet"
        self._schema = pa.schema(
            [("row", pa.int64()), *((name, pa.float64()) for name in detectors), ("seconds", pa.float64())]
        )
        with written_whole(self.folder / "identity.json") as unfinished:
            unfinished.write_text(text + "\n", encoding="utf-8")

    def append(self, rows: Sequence[Mapping[str, Any]], *, shard: str) -> None:
        """Write rows as one part.

        Args:
            rows: the rows, with `row`, the detectors' scores and `seconds`.
            shard: the name of this process; no two processes share it.
        """
        if rows:
            name = f"part-{shard.replace('/', '-of-')}-row-{rows[0]['row']:08d}.parquet"
            write_parquet(pa.Table.from_pylist([dict(row) for row in rows], schema=self._schema), self.folder / name)

    def done(self) -> set[int]:
        """Return the prompts that have scores."""
        return set(self._read()["row"].to_pylist())

    def merged(self, prompts: int) -> pa.Table:
        """Merge all rows in the order of prompts, and keep them as one file.

        Args:
            prompts: the number of prompts.

        Raises:
            MissingPartsError: if prompts have no scores; it names the first.
        """
        table = self._read()
        place = {row: at for at, row in enumerate(table["row"].to_pylist())}
        missing = sorted(set(range(prompts)) - set(place))
        if missing:
            raise MissingPartsError(
                f"{len(missing)} of {prompts} prompts have no scores in {self.folder}, first number {missing[0]}",
                expected="the parts of every process",
                remedy="run the unfinished processes again with the same arguments; finished work is kept",
            )
        table = table.take([place[row] for row in range(prompts)])
        write_parquet(table, self._whole)
        for part in self.folder.glob("part-*.parquet"):
            part.unlink(missing_ok=True)
        return table

    def _read(self) -> pa.Table:
        files = [self._whole] if self._whole.is_file() else sorted(self.folder.glob("part-*.parquet"))
        tables = [self._part(file) for file in files]
        if files != [self._whole] and self._whole.is_file():  # another process has just merged the parts
            tables = [self._part(self._whole)]
        return pa.concat_tables([self._schema.empty_table(), *(table for table in tables if table is not None)])

    def _part(self, file: Path) -> pa.Table | None:
        """Read the rows of a file; None for a damaged file, so that its prompts are scored again."""
        remedy = f"delete {file}; its prompts are scored again"
        try:
            return read_parquet(file, schema=self._schema, what="scores of this detection", remedy=remedy)
        except DataError as error:
            if file.is_file():
                log.warning("%s; its prompts are scored again", error.problem)
                file.unlink(missing_ok=True)
            return None


def keep_earlier(output: Path, *, key: str, names: Sequence[str]) -> Path | None:
    """Move the results of another detection beside its scores, into `detection/<its key>/`.

    Args:
        output: the output folder, whose `detection.json` holds the key of its results.
        key: the key of the detection that is about to write.
        names: the files to move.

    Returns:
        The new folder; None if there are no other results. Files with a damaged or invalid key are moved as well.
    """
    if not (output / "detection.json").exists():
        return None
    earlier = _key_of(output / "detection.json")
    if earlier == key:
        return None
    place = output / "detection" / earlier if earlier is not None else _free(output / "detection" / UNNAMED)
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        if (output / name).exists():
            shutil.move(output / name, place / name)
    return place


def _free(place: Path) -> Path:
    """Return a folder with this name and a number that does not exist."""
    return next(one for number in count(1) if not (one := place.with_name(f"{place.name}-{number}")).exists())


def _key_of(path: Path) -> str | None:
    """Return the key in a results file; None if there is no key that can name a folder."""
    try:
        found = read_json(path)
        return safe_name(found.get("key"), f"{path}: key") if isinstance(found, dict) else None
    except DataError:
        return None
