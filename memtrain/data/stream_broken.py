"""The samples that a stream leaves out, in the list of :mod:`memtrain.data.broken`, and the limit at which a run stops.

The number of samples of a stream is not known, so the share refers to the samples that have passed, and to at least
:data:`FIRST` samples. A continued run goes on with its list and its count.
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
"""The number of samples that count as passed at the beginning."""


class StreamBroken:
    """Counts and lists the samples that are left out.

    Args:
        folder: the folder of the run; None writes no list.
        share: the largest share of samples that may be left out.
        path: the path of the data.
        processes: the number of processes that read the data.

    Attributes:
        seen: the number of samples that passed in this process.
    """

    def __init__(self, folder: Path | None, *, share: float, path: str = "", processes: int = 1) -> None:
        self.samples, self.path, self.processes = BrokenSamples("skip", share, folder), path, processes
        self.seen = self.told = 0
        self._listed: set[tuple[str, str]] | None = None

    def __call__(self, broken: Sequence[Broken], given: int) -> None:
        """Take in the broken samples of a batch.

        Args:
            broken: the samples that were left out.
            given: the number of samples in the batch.

        Raises:
            DataError: if too many samples are broken.
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
    """Read the keys and shards that are already in a list."""
    if not path.exists():
        return set()
    with path.open(encoding="utf-8", newline="") as file:
        return {(cell_of(row[0]), cell_of(row[1])) for row in csv.reader(file) if len(row) > 1}
