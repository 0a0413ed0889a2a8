"""Units of a stage's work, each kept in a file as soon as it is done: a killed stage goes on, several processes share.

Layout below a folder: `<key>/`, named after a hash of everything that the units depend on, with `identity.json`, which
says what that is, and `<unit>.safetensors`, renamed into place when complete. A unit is a function that gives tensors,
and perhaps facts that JSON can hold. Units are cut without regard to the number of processes, so neither that number
nor where a process was killed changes a bit of what is found.

A stage calls :meth:`Parts.share` with the units of all its steps that do not wait for each other, and then
:meth:`Parts.read` for each. Images of prompts are kept by :mod:`memtrain.evaluation.sampling.stored_samples` instead,
in one file that is mapped.
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
"""Folder in the output folder for what `measure` has on its way; it goes when the results are written."""
PARTS = "parts"
"""The same of all other stages that work in units."""


@dataclass(frozen=True)
class Done:
    """What a unit found.

    Attributes:
        tensors: by name.
        facts: whatever else, as JSON can hold it.
    """

    tensors: Mapping[str, Tensor]
    facts: Any = None


Unit = Callable[[], Done]
"""Does some of the work."""


class Parts:
    """The units of one stage with one set of options.

    Args:
        folder: for units on their way.
        identity: everything that they depend on, as JSON can hold it.
        shard: of the units that this process does; None to do none and read those of others.
        progress: show a bar.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, shard: Shard | None = WHOLE, progress: bool = True
    ) -> None:
        text = json.dumps(identity, sort_keys=True)
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self._shard, self._progress = shard, progress
        write_json(identity, self.folder / "identity.json")

    def share(self, units: Mapping[str, Unit], *, what: str = "units") -> None:
        """Do those of this process's share that are not done yet, and require the others.

        Args:
            units: by name, which is that of a file; the same, in the same order, for all processes.
            what: for the progress bar.

        Raises:
            UnfinishedParts: if the share is done, and that of another process is not.
        """
        self.do(units, what=what)
        self.require(units, what=what)

    def do(self, units: Mapping[str, Unit], *, what: str = "units") -> None:
        """Do those of this process's share that are not done yet; arguments as of :meth:`share`."""
        own = [] if self._shard is None else list(units)[self._shard.index :: self._shard.count]
        left = [name for name in own if not self._file(name).is_file()]
        bar = progress_bar(
            total=len(own), initial=len(own) - len(left), desc=what, unit="part", disable=not self._progress or not left
        )
        with bar:
            for name in left:
                if not self._file(name).is_file():  # another process with the same share was not faster
                    self._write(name, units[name]())
                bar.update()

    def require(self, names: Iterable[str], *, what: str = "units") -> None:
        """Refuse to go on without some units.

        Raises:
            UnfinishedParts: if one is missing.
        """
        units = list(names)
        if missing := sum(not self._file(name).is_file() for name in units):
            raise UnfinishedParts(f"{missing} of {len(units)} {what} are", self.folder)

    def alone(self, name: str, unit: Unit) -> None:
        """Do a unit that comes after all that is shared, unless it is done."""
        if not self._file(name).is_file():
            self._write(name, unit())

    def read(self, name: str) -> Done:
        """What a unit found.

        Raises:
            RecordError: if its file is spoilt.
        """
        path = self._file(name)
        try:
            with safe_open(path, framework="pt") as file:
                facts = json_of((file.metadata() or {})["facts"], "its facts")
                return Done({key: file.get_tensor(key) for key in file.keys()}, facts)  # noqa: SIM118
        except (SafetensorError, OSError, KeyError, DataError) as error:
            raise RecordError(
                f"{path} cannot be read: {error}",
                expected="what a unit of work found",
                remedy="delete it; this unit is done again",
            ) from error

    def closed(self, results: dict[str, Any]) -> dict[str, Any]:
        """Remove all units, because these results of them are written; gives the results back."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):  # another stage is at work
            self.folder.parent.rmdir()
        return results

    def _file(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _write(self, name: str, done: Done) -> None:
        tensors = {key: value.detach().cpu().contiguous() for key, value in done.tensors.items()}
        with written_whole(self._file(name)) as unfinished:
            save_file(tensors, unfinished, metadata={"facts": json.dumps(done.facts)})


def part_of(shard: Shard | None) -> tuple[int, int] | None:
    """A part as :func:`memtrain.evaluation.sampling.generate.generate` takes it."""
    return None if shard is None else (shard.index, shard.count)
