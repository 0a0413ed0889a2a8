"""The values of a reference profile by key: which samples it covers, and what they look like under the base model.

A sample is known by its content: samples that hold the same share their values. They are kept as one float32 array, and
asked for by key and timestep.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor

from memtrain.errors import DataError, RecordError
from memtrain.evidence.profile_parts import ProfileParts, positions
from memtrain.models.transfer import to_device


class ProfileValues:
    """Values of samples at some timesteps.

    Args:
        folder: where profiles are kept.
        columns: names of the values.
        timesteps: where they were measured; visits are compared at the nearest.
    """

    def __init__(self, folder: Path, columns: Sequence[str], timesteps: Sequence[int]) -> None:
        self.folder, self.columns, self.timesteps = folder, list(columns), sorted(timesteps)
        self.fingerprint = ""
        self._row: dict[str, int] = {}
        self._row_of: dict[str, int] = {}
        self._contents: list[str] = []
        self._known: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._values = torch.empty(0, len(self.timesteps), len(self.columns), dtype=torch.float32)
        self._kept: ProfileParts | None = None

    @property
    def parts(self) -> ProfileParts:
        """The files of this profile."""
        folder = self.folder / self.fingerprint
        if self._kept is None or self._kept.folder != folder:
            self._kept = ProfileParts(folder, width=len(self.timesteps) * len(self.columns))
        return self._kept

    def cover(self, keys: Sequence[str], contents: Sequence[str]) -> None:
        """Let the profile be that of these samples too, of which each is known by its content.

        Raises:
            DataError: if two of one name are not the same.
        """
        self._name(contents)
        for key, content in zip(keys, contents, strict=True):
            row = self._row_of[content]
            if self._row.setdefault(key, row) != row:
                raise DataError(
                    f"Two samples of the data are both named {key!r}, and are not the same",
                    expected="a name of its own for every training and held-out sample",
                    remedy="name training and validation samples differently, for instance by their files",
                )

    def uncover(self, keys: Iterable[str]) -> None:
        """Let samples go that could not be read after all; before :meth:`load`."""
        gone = frozenset(keys)
        if gone:
            left = {key: self._contents[row] for key, row in self._row.items() if key not in gone}
            self._row, self._row_of, self._contents = {}, {}, []
            self.cover(list(left), list(left.values()))

    def recall(self, contents: Sequence[str]) -> None:
        """Take up what the cache holds for samples that are named later."""
        self._name(contents)
        self.load(partly=True)

    def _name(self, contents: Iterable[str]) -> None:
        for content in contents:
            if self._row_of.setdefault(content, len(self._contents)) == len(self._contents):
                self._contents.append(content)

    def contents_of(self, batch: dict[str, Any]) -> list[str]:
        """The contents of samples that were covered before."""
        return [self._contents[self._row[key]] for key in batch["key"]]

    def lacking(self, contents: Sequence[str]) -> list[int]:
        """Rows of `contents` that the cache lacks."""
        place = positions(pa.array(contents, pa.string()), self.parts.contents())
        return np.flatnonzero(place < 0).tolist()

    def load(self, *, partly: bool = False) -> int:
        """Read the measured values of the samples that are covered.

        Args:
            partly: leave those without one for later (:meth:`put`).

        Returns:
            Number of samples that have values.

        Raises:
            RecordError: if one was not measured, or there is none.
        """
        if not self._contents and not partly:
            raise RecordError(
                "The reference profile covers no sample",
                expected="at least one training or held-out sample",
                remedy="check what the data module's unique_dataloader yields",
            )
        values, self._known = self.parts.read(pa.array(self._contents, pa.string()))
        if not partly and (missing := int((~self._known).sum())):
            raise RecordError(
                f"The reference profile {self.fingerprint!r} in {self.folder} lacks {missing} samples",
                expected="a value for every sample",
                remedy="start the run again: measuring continues where it stopped",
            )
        self._values = torch.from_numpy(values).view(len(values), len(self.timesteps), len(self.columns))
        return sum(self._known[list(self._row.values())].tolist()) if partly else len(self._row)

    def known(self) -> npt.NDArray[np.uint8]:
        """Which samples have values, as bits in the order in which they were covered."""
        return np.packbits(self._known)

    def agree(self, found: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Leave for later what one of several processes did not find when it loaded the values."""
        for one in found:
            self._known &= np.unpackbits(one, count=len(self._known)).astype(np.bool_)

    def put(self, keys: Sequence[str], values: Tensor) -> None:
        """Take in values `(n, timesteps, columns)` of samples that are covered."""
        rows = [self._row[key] for key in keys]
        more = len(self._contents) - len(self._values)
        if more > 0:
            # By doubling: samples may come one after the other.
            grown = max(more, len(self._values))
            shape = (grown, *self._values.shape[1:])
            self._values = torch.cat([self._values, torch.full(shape, torch.nan, dtype=torch.float32)])
            self._known = np.concatenate([self._known, np.zeros(grown, dtype=np.bool_)])
        self._values[rows] = values
        self._known[rows] = True

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that have no values yet, each once."""
        known = self._known
        rows = ((key, self._row.get(key, len(known))) for key in dict.fromkeys(keys))
        return [key for key, row in rows if row >= len(known) or not known[row]]

    def uncovered(self, keys: Iterable[str]) -> list[str]:
        """Those of `keys` that are not covered yet, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._row]

    def different(self, keys: Iterable[str]) -> list[str]:
        """Of keys that are covered and hold the same, the first."""
        first: dict[int, str] = {}
        for key in keys:
            if key in self._row:
                first.setdefault(self._row[key], key)
        return list(first.values())

    def __contains__(self, key: str) -> bool:
        return not self.missing([key])

    def bucket(self, timestep: float) -> int:
        """Index of the nearest measured timestep."""
        return min(range(len(self.timesteps)), key=lambda index: abs(self.timesteps[index] - timestep))

    def lookup_on_device(self, keys: Sequence[str], timesteps: Tensor) -> Tensor:
        """As :meth:`lookup`, on the device of `timesteps` `(B,)`, whose values are not read on the host."""
        values = to_device(self._values[self._rows(keys)], timesteps.device)
        bucket = self.buckets_on_device(timesteps)
        return values.gather(1, bucket[:, None, None].expand(-1, 1, values.shape[2]))[:, 0]

    def buckets_on_device(self, timesteps: Tensor) -> Tensor:
        """As :meth:`bucket`, `(B,)`, for timesteps that are not read on the host."""
        # In fp64, as on the host: in half precision the distances to two measured timesteps may round to one.
        measured = to_device(torch.tensor(self.timesteps, dtype=torch.float64), timesteps.device)
        return (timesteps[:, None].double() - measured).abs().argmin(dim=1)

    def lookup(self, keys: Sequence[str], timesteps: Sequence[float]) -> Tensor:
        """Values of samples at the measured timestep nearest to each visit, `(B, columns)`.

        Raises:
            RecordError: if a sample was never measured.
        """
        buckets = self.buckets_on_device(torch.tensor(timesteps, dtype=torch.float64))
        return self._values[self._rows(keys), buckets]

    def known_values(self, keys: pa.ChunkedArray, timesteps: Tensor) -> Tensor:
        """As :meth:`lookup`, for many visits of a table; NaN for samples without values."""
        coded = keys.combine_chunks().dictionary_encode()
        known = np.append(self._known, False)
        rows = np.array([self._row.get(key, -1) for key in coded.dictionary.to_pylist()], dtype=np.int64)
        rows = np.where(known[rows], rows, -1)[coded.indices.to_numpy()]
        found = torch.full((len(rows), len(self.columns)), torch.nan, dtype=torch.float32)
        there = torch.from_numpy(rows >= 0)
        found[there] = self._values[torch.from_numpy(rows)[there], self.buckets_on_device(timesteps)[there]]
        return found

    def _rows(self, keys: Sequence[str]) -> Tensor:
        if missing := self.missing(keys):
            raise RecordError(
                f"{len(missing)} sample(s) are not in the reference profile, first {missing[0]!r}",
                expected="every training and held-out sample",
                remedy="start the run anew, so that the profile covers the data",
            )
        # Without a type, those of no visits would be floats, which index nothing.
        return torch.tensor([self._row[key] for key in keys], dtype=torch.long)
