"""What a stream leaves out: a list of it in the run's folder, and the share at which a run stops.

`broken.csv` has a row for each sample, and for each shard that could not be read to its end (without a key): `key`,
`shard`, `reason`. Every process adds its own, each once, also where a run is continued. The share is judged by what
this process has seen since it began, counted as :data:`FIRST` samples at least.
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import io
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from memtrain.errors import DataError
from memtrain.files.sheet_cells import cell_of, safe_cell

log = logging.getLogger(__name__)
NAME, COLUMNS = "broken.csv", ("key", "shard", "reason")
FIRST = 1000
"""Samples that are taken to have been seen from the beginning."""
TOLD = 3
"""Samples that are told of as they come; later ones are in the list alone."""
Broken = tuple[str, str, str]
"""Key, shard and reason."""


class BrokenList:
    """Counts and writes down what is left out.

    Args:
        folder: of the run; None to write nothing.
        share: of the samples that may be left out.
    """

    def __init__(self, folder: Path | None, *, share: float) -> None:
        self.folder, self.share = folder, share
        self.seen = self.count = 0
        self._written: set[tuple[str, str]] | None = None

    def __call__(self, broken: Sequence[Broken], given: int) -> None:
        """Take in what a batch came with.

        Args:
            broken: what was left out.
            given: samples of the batch.

        Raises:
            DataError: if it is too much.
        """
        self.seen += given + len(broken)
        if not broken:
            return
        for key, shard, reason in broken[: max(0, TOLD - self.count)]:
            log.warning("Left out: %r of %s: %s (%s lists all)", key, shard, reason, NAME)
        self.count += len(broken)
        self._write(broken)
        if self.count > self.share * max(self.seen, FIRST):
            key, shard, reason = broken[-1]
            raise DataError(
                f"{self.count} of {self.seen} samples of the stream cannot be used, the last {key!r:.100} of {shard}: "
                f"{reason}",
                expected=f"a share of {self.share:g} at most (broken_share)",
                remedy=f"mend the data ({NAME} in the run's folder lists what was found), or raise broken_share",
            )

    def _write(self, broken: Sequence[Broken]) -> None:
        if self.folder is None:
            return
        path, text = self.folder / NAME, io.StringIO()
        if self._written is None:
            self._written = _read(path)
            self.folder.mkdir(parents=True, exist_ok=True)
        writer = csv.writer(text, lineterminator="\n")
        for key, shard, reason in broken:
            if (key, shard) not in self._written:
                self._written.add((key, shard))
                writer.writerow([safe_cell(key), safe_cell(shard), safe_cell(" ".join(reason.split()))])
        with path.open("a", encoding="utf-8", newline="") as file:
            with contextlib.suppress(OSError):  # file systems without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            header = "" if os.fstat(file.fileno()).st_size else ",".join(COLUMNS) + "\n"
            file.write(header + text.getvalue())


def _read(path: Path) -> set[tuple[str, str]]:
    """Keys and shards that are listed already."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {(cell_of(row[0]), cell_of(row[1])) for row in csv.reader(file) if len(row) == len(COLUMNS)}
