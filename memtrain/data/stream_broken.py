"""What a stream leaves out, in the list of :mod:`memtrain.data.broken`, and the share at which a run stops.

Nobody knows how many samples a stream has, so the share is judged by what has passed, counted as :data:`FIRST` samples
at least. A run that is continued goes on with its list and its count.
"""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

from memtrain.data.broken import FILE, TOLD, Broken, BrokenSamples
from memtrain.files.sheet_cells import cell_of

log = logging.getLogger(__name__)
FIRST = 1000
"""Samples that are taken to have passed from the beginning."""


class StreamBroken:
    """Counts and writes down what is left out.

    Args:
        folder: of the run; None to write nothing.
        share: of the samples that may be left out.
        path: of the data.
        processes: that read it.

    Attributes:
        seen: samples that passed here.
    """

    def __init__(self, folder: Path | None, *, share: float, path: str = "", processes: int = 1) -> None:
        self.samples, self.path, self.processes = BrokenSamples("skip", share, folder), path, processes
        self.seen = self.told = 0
        self._listed: set[tuple[str, str]] | None = None

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
        if self._listed is None:
            self._listed = set() if self.samples.folder is None else _read(self.samples.folder / FILE)
        new = [one for one in dict.fromkeys(broken) if (one.key, one.shard) not in self._listed]
        self._listed.update((one.key, one.shard) for one in new)
        for one in new[: max(0, TOLD - self.told)]:
            log.warning("Left out: %r of %s: %s (%s lists all)", one.key, one.shard, one.reason, FILE)
        self.told += len(new)
        self.samples.met(new, self.processes * max(self.seen, FIRST), path=self.path)


def _read(path: Path) -> set[tuple[str, str]]:
    """Keys and shards that are listed already."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {(cell_of(row[0]), cell_of(row[1])) for row in csv.reader(file) if len(row) > 1}
