"""Samples that cannot be used: a broken image, a caption that is missing, a shard that is cut or gone.

With `stop` the run ends before any work is lost, naming all of them at once; with `skip` they are left out, and the run
goes on as long as they are at most a stated share of the samples. Either way `broken.csv` in the run folder lists them:
`key` (empty where a whole shard is meant), `shard` (the file) and `reason`.
What only shows while the run is under way is appended, by whichever process meets it. A run that begins makes the list
anew, one that goes on keeps what was listed.

A shard counts as the samples that are lost with it. How many a shard held that is gone or cut is not known; it is taken
to have held as many as the others do on average.
"""

from __future__ import annotations

import csv
import io
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from memtrain.errors import ConfigurationError, DataError
from memtrain.files.sheet_cells import cell_of, write_cells
from memtrain.files.whole import written_whole

log = logging.getLogger(__name__)

Action = Literal["stop", "skip"]
FILE = "broken.csv"
COLUMNS = ("key", "shard", "reason")
TOLD = 3
"""Samples that an error names."""


class Broken(NamedTuple):
    """One sample, or a whole shard.

    Attributes:
        key: of the sample; empty for a shard.
        shard: the file that holds it.
        reason: why it cannot be used.
        samples: that are lost by it; not listed.
    """

    key: str
    shard: str
    reason: str
    samples: int = 1

    @property
    def name(self) -> str:
        """What an error calls it."""
        return self.key or self.shard


class BrokenSamples:
    """What cannot be used of a run's data.

    Args:
        action: `stop` or `skip`.
        share: of the samples that may be left out.
        folder: where `broken.csv` is written; None for nowhere.

    Attributes:
        goes_on: whether the run goes on from a checkpoint, so that what was listed stays listed.

    Raises:
        ConfigurationError: if there is no such action or share.
    """

    def __init__(self, action: Action = "stop", share: float = 0.01, folder: Path | None = None) -> None:
        if action not in ("stop", "skip"):
            raise ConfigurationError(f"broken={action!r}", expected="stop or skip", remedy="change it")
        if not 0 <= share < 1:
            raise ConfigurationError(f"broken_share={share}", expected="a share from 0 to below 1", remedy="change it")
        self.action, self.share, self.folder = action, share, folder
        self.goes_on = False
        self._found: dict[tuple[str, str], Broken] = {}

    @property
    def skips(self) -> bool:
        """Whether the run goes on without them."""
        return self.action == "skip"

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Broken]:
        return iter(self._found.values())

    @property
    def lost(self) -> int:
        """Samples that are lost."""
        return sum(one.samples for one in self)

    def add(self, found: Iterable[Broken]) -> None:
        """Take in more."""
        for one in found:
            self._found.setdefault((one.key, one.shard), one)

    def decide(self, total: int, *, path: str | Path, write: bool = True) -> None:
        """Write the list, and stop where it is too long, or where anything at all stops the run.

        Args:
            total: samples, the broken ones among them.
            path: of the data.
            write: whether this process writes the list.

        Raises:
            DataError: naming the first of them and the list.
        """
        if write:
            self.write()
        if not self._found:
            return
        if not self.skips:
            raise stopped(list(self), total, path, kept=self.place)
        if self.lost > self.share * total:
            raise DataError(
                f"{self.lost:,} of {total:,} samples of {path} cannot be used, first {_first(self)}{self.place}",
                expected=f"at most {100 * self.share:g} % (data.init_args.broken_share)",
                remedy="repair or remove them, or raise broken_share",
            )
        if write:
            log.warning(
                "%d of %d samples of %s cannot be used and are left out (at most %g %% may be)%s",
                self.lost,
                total,
                path,
                100 * self.share,
                self.place,
            )

    def write(self) -> None:
        """Write the list, or take an old one away where there is nothing to list."""
        if self.folder is None:
            return
        # A plan of a run that has trained takes nothing away either.
        trained = any((self.folder / "checkpoints").glob("*.ckpt"))
        kept = _listed(self.folder / FILE) if self.goes_on or trained else {}
        rows = {
            **{name: (*name, reason) for name, reason in kept.items()},
            **{at: one[:3] for at, one in self._found.items()},
        }
        if not rows:
            (self.folder / FILE).unlink(missing_ok=True)
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        with (
            written_whole(self.folder / FILE) as unfinished,
            unfinished.open("w", newline="", encoding="utf-8") as file,
        ):
            write_cells(file, COLUMNS, list(rows.values()))

    def met(self, found: Sequence[Broken], total: int, *, path: str | Path) -> None:
        """Take in what showed while the run is under way, and append it to the list.

        Raises:
            DataError: if all processes together have met too many.
        """
        new = list({(one.key, one.shard): one for one in found if (one.key, one.shard) not in self._found}.values())
        self.add(new)
        if not new:
            return
        count = self.lost
        if self.folder is not None:
            place = self.folder / FILE
            if unlisted := [one for one in new if (one.key, one.shard) not in _listed(place)]:
                _append(place, unlisted)
            count += sum(name not in self._found for name in _listed(place))
        if count > self.share * total:
            raise DataError(
                f"{count:,} of {total:,} samples of {path} turned out to be broken, last {_first(new)}{self.place}",
                expected=f"at most {100 * self.share:g} % (data.init_args.broken_share)",
                remedy="repair them or raise broken_share, and go on from the last checkpoint",
            )

    @property
    def place(self) -> str:
        """Where the list is, for an error."""
        return "" if self.folder is None else f"; all are in {self.folder / FILE}"


def stopped(found: Sequence[Broken], total: int, path: str | Path, *, kept: str = "") -> DataError:
    """The error that ends a run because of samples that cannot be used."""
    return DataError(
        f"{sum(one.samples for one in found):,} of {total:,} samples of {path} cannot be used, first {_first(found)}"
        f"{kept}",
        expected="image files that Pillow decodes (PNG, JPEG, WebP, ...), each with a caption",
        remedy="repair or remove them, then start again; or leave them out (--data.init_args.broken skip)",
    )


def _first(found: Iterable[Broken]) -> str:
    return "; ".join(f"{one.name!r:.100}: {one.reason:.200}" for one in list(found)[:TOLD])


def _append(path: Path, found: Sequence[Broken]) -> None:
    """Add lines in one write each, which processes that share the file do at the same time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO(newline="")
    write_cells(text, COLUMNS, [one[:3] for one in found])
    header, lines = text.getvalue().split("\n", 1)
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(f"{header}\n")
    except FileExistsError:
        pass
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        os.write(handle, lines.encode("utf-8"))
    finally:
        os.close(handle)


def _listed(path: Path) -> dict[tuple[str, str], str]:
    """What a list holds: the reason, by key and shard."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[cell_of(cell) for cell in row] for row in csv.reader(file)]
    return {(row[0], row[1]): row[2] for row in rows[1:] if len(row) == len(COLUMNS)}
