"""Units of a stage's work, each kept in a file when it is done, so that a killed stage goes on and processes can share.

The folder holds `<key>/`, named after a hash of everything that the units depend on. It contains `identity.json` with
these values, and `<unit>.safetensors`, renamed into place when complete. A unit is a function that returns tensors, and
optionally facts that JSON can hold. The units do not depend on the number of processes. So neither this number nor a
killed process changes a bit of the results.

A stage calls :meth:`Parts.share` with the units of all steps that do not wait for each other, and then
:meth:`Parts.read` for each unit. :mod:`memtrain.evaluation.sampling.stored_samples` keeps images of prompts instead, in
one mapped file.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memtrain.errors import DataError, RecordError
from memtrain.evaluation.sampling.stored_samples import UnfinishedParts
from memtrain.evaluation.stages.shards import WHOLE, Shard
from memtrain.files.progress import progress_bar
from memtrain.files.text import json_of
from memtrain.records import write_json, written_whole

UNFINISHED = "unfinished"
"""Folder in the output folder for the unfinished work of `measure`; removed when the results are written."""
PARTS = "parts"
"""The same folder for all other stages that work in units."""


@dataclass(frozen=True)
class Done:
    """Result of a unit.

    Attributes:
        tensors: the tensors by name.
        facts: further values that JSON can hold.
    """

    tensors: Mapping[str, Tensor]
    facts: Any = None


Unit = Callable[[], Done]
"""Function that does one unit of the work."""


class Parts:
    """The units of one stage with one set of options.

    Args:
        folder: the folder for units.
        identity: everything that the units depend on, in a form that JSON can hold.
        shard: the share of the units that this process does; None to do none and read the results of other processes.
        progress: whether to show a progress bar.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, shard: Shard | None = WHOLE, progress: bool = True
    ) -> None:
        text = json.dumps(identity, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._shard, self._progress = shard, progress
        write_json(identity, self.folder / "identity.json")

    def share(self, units: Mapping[str, Unit], *, what: str = "units") -> None:
        """Do the missing units of this process's share, and require the other units.

        Args:
            units: the units by file name; all processes need the same units in the same order.
            what: the name of the units on the progress bar.

        Raises:
            UnfinishedParts: if this share is done, and that of another process is not.
        """
        self.do(units, what=what)
        self.require(units, what=what)

    def do(self, units: Mapping[str, Unit], *, what: str = "units") -> None:
        """Do the missing units of this process's share; arguments as for :meth:`share`."""
        own = [] if self._shard is None else list(units)[self._shard.index :: self._shard.count]
        left = [name for name in own if not self._file(name).is_file()]
        bar = progress_bar(
            total=len(own), initial=len(own) - len(left), desc=what, unit="part", disable=not self._progress or not left
        )
        with bar:
            for name in left:
                if not self._file(name).is_file():  # unless another process with the same share was faster
                    self._write(name, units[name]())
                bar.update()

    def require(self, names: Iterable[str], *, what: str = "units") -> None:
        """Check that all of these units are done.

        Raises:
            UnfinishedParts: if a unit is missing.
        """
        units = list(names)
        if missing := sum(not self._file(name).is_file() for name in units):
            raise UnfinishedParts(f"{missing} of {len(units)} {what} are", self.folder)

    def alone(self, name: str, unit: Unit) -> None:
        """Do a unit that follows all shared units, unless it is done."""
        if not self._file(name).is_file():
            self._write(name, unit())

    def read(self, name: str) -> Done:
        """Read the result of a unit.

        Raises:
            RecordError: if its file is damaged.
        """
        path = self._file(name)
        try:
            with safe_open(path, framework="pt") as file:
                facts = json_of((file.metadata() or {})["facts"], "its facts")
                return Done({key: file.get_tensor(key) for key in file.keys()}, facts)  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, DataError) as error:
            raise RecordError(
                f"{path} cannot be read: {error}",
                expected="the result of a unit of work",
                remedy=f"delete {path}, and run the command again, which repeats this unit",
            ) from error

    def closed(self, results: dict[str, Any]) -> dict[str, Any]:
        """Remove all units after their results are written, and return the results."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another stage uses the folder
            self.folder.parent.rmdir()
        return results

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, name: str, done: Done) -> None:
        tensors = {key: value.detach().cpu().contiguous() for key, value in done.tensors.items()}
        with written_whole(self._file(name)) as unfinished:
            save_file(tensors, unfinished, metadata={"facts": json.dumps(done.facts)})


def part_of(shard: Shard | None) -> tuple[int, int] | None:
    """Convert a shard for :func:`memtrain.evaluation.sampling.generate.generate`."""
    return None if shard is None else (shard.index, shard.count)
