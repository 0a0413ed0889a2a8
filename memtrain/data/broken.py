"""Samples that cannot be used: a broken image, a missing caption, or a shard that is cut or missing.

With `stop`, the run ends before any work is lost and names all of them at once. With `skip`, they are left out, and the
run goes on as long as their share stays below a limit. In both cases `broken.csv` in the run folder lists them with
`key` (empty for a whole shard), `shard` (the file) and `reason`.
A process that meets a broken sample during the run appends it. A new run starts a new list. A continued run keeps the
earlier lines.

A shard counts as many samples as are lost with it. The number of samples of a missing or cut shard is not known, so the
average of the other shards stands in.
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
"""The number of samples that an error names."""


class Broken(NamedTuple):
    """A broken sample, or a whole broken shard.

    Attributes:
        key: the key of the sample; empty for a shard.
        shard: the file that holds it.
        reason: the reason why it cannot be used.
        samples: the number of lost samples, which the list does not have.
    """

    key: str
    shard: str
    reason: str
    samples: int = 1

    @property
    def name(self) -> str:
        """The name of the sample or the shard in an error."""
        return self.key or self.shard


class BrokenSamples:
    """The samples of a run's data that cannot be used.

    Args:
        action: `stop` or `skip`.
        share: the largest share of samples that may be left out.
        folder: the folder of `broken.csv`; None writes no list.

    Attributes:
        goes_on: whether the run continues from a checkpoint, so that earlier lines stay in the list.

    Raises:
        ConfigurationError: if the action does not exist or the share is out of range.
    """

    def __init__(self, action: Action = "stop", share: float = 0.01, folder: Path | None = None) -> None:
        if action not in ("stop", "skip"):
            raise ConfigurationError(
                f"broken={action!r}", expected="stop or skip", remedy="correct --data.init_args.broken"
            )
        if not 0 <= share < 1:
            raise ConfigurationError(
                f"broken_share={share}",
                expected="a share of at least 0 and below 1",
                remedy="correct --data.init_args.broken_share",
            )
        self.action, self.share, self.folder = action, share, folder
        self.goes_on = False
        self._found: dict[tuple[str, str], Broken] = {}

    @property
    def skips(self) -> bool:
        """Whether the run goes on without broken samples."""
        return self.action == "skip"

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Broken]:
        return iter(self._found.values())

    @property
    def lost(self) -> int:
        """The number of lost samples."""
        return sum(one.samples for one in self)

    def add(self, found: Iterable[Broken]) -> None:
        """Add broken samples."""
        for one in found:
            self._found.setdefault((one.key, one.shard), one)

    def decide(self, total: int, *, path: str | Path, write: bool = True) -> None:
        """Write the list, and stop if it is too long, or if anything broken stops the run.

        Args:
            total: the number of samples, including the broken ones.
            path: the path of the data.
            write: whether this process writes the list.

        Raises:
            DataError: with the first broken samples and the path of the list.
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
                remedy="repair or remove them, or raise --data.init_args.broken_share",
            )
        if write:
            log.warning(
                "%d of %d samples of %s cannot be used and are left out (the limit is %g %%)%s",
                self.lost,
                total,
                path,
                100 * self.share,
                self.place,
            )

    def write(self) -> None:
        """Write the list, or remove an old list if there is nothing to list."""
        if self.folder is None:
            return
        # A plan of a run that has trained removes nothing either.
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
        """Add samples that turned out to be broken during the run, and append them to the list.

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
                remedy="repair them or raise --data.init_args.broken_share, and go on from the last checkpoint",
            )

    @property
    def place(self) -> str:
        """The path of the list, for an error."""
        return "" if self.folder is None else f"; all are in {self.folder / FILE}"


def stopped(found: Sequence[Broken], total: int, path: str | Path, *, kept: str = "") -> DataError:
    """Return the error that ends a run because of samples that cannot be used."""
    return DataError(
        f"{sum(one.samples for one in found):,} of {total:,} samples of {path} cannot be used, first {_first(found)}"
        f"{kept}",
        expected="image files that Pillow decodes (PNG, JPEG, WebP, ...), each with a caption",
        remedy="repair or remove them and start again, or leave them out (--data.init_args.broken skip)",
    )


def _first(found: Iterable[Broken]) -> str:
    return "; ".join(f"{one.name!r:.100}: {one.reason:.200}" for one in list(found)[:TOLD])


def _append(path: Path, found: Sequence[Broken]) -> None:
    """Add lines in one write each. Processes that share the file do so at the same time."""
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
    """Read the reasons in a list, by key and shard."""
    if not path.is_file():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        rows = [[cell_of(cell) for cell in row] for row in csv.reader(file)]
    return {(row[0], row[1]): row[2] for row in rows[1:] if len(row) == len(COLUMNS)}
