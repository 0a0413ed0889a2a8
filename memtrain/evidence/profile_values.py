"""The values of a reference profile by key: its samples, and their values under the base model.

The content of a sample identifies it, so samples of equal content share their values. The values are one float32 array,
read by key and timestep.
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
        folder: the folder of the profiles.
        columns: the names of the values.
        timesteps: the measured timesteps; visits are compared at the nearest.
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
        """Add these samples with their contents to the profile.

        Raises:
            DataError: if two samples with one name differ.
        """
        self._name(contents)
        for key, content in zip(keys, contents, strict=True):
            row = self._row_of[content]
            if self._row.setdefault(key, row) != row:
                raise DataError(
                    f"Two different samples of the data have the same name {key!r}",
                    expected="a separate name for every training and held-out sample",
                    remedy="give training and validation samples different names, for instance their file names",
                )

    def uncover(self, keys: Iterable[str]) -> None:
        """Remove samples that could not be read; call it before :meth:`load`."""
        gone = frozenset(keys)
        if gone:
            left = {key: self._contents[row] for key, row in self._row.items() if key not in gone}
            self._row, self._row_of, self._contents = {}, {}, []
            self.cover(list(left), list(left.values()))

    def recall(self, contents: Sequence[str]) -> None:
        """Load the cached values of samples that get their names later."""
        self._name(contents)
        self.load(partly=True)

    def _name(self, contents: Iterable[str]) -> None:
        for content in contents:
            if self._row_of.setdefault(content, len(self._contents)) == len(self._contents):
                self._contents.append(content)

    def contents_of(self, batch: dict[str, Any]) -> list[str]:
        """Return the contents of a batch's samples, which are in the profile."""
        return [self._contents[self._row[key]] for key in batch["key"]]

    def lacking(self, contents: Sequence[str]) -> list[int]:
        """Return the rows of `contents` that the cache lacks."""
        place = positions(pa.array(contents, pa.string()), self.parts.contents())
        return np.flatnonzero(place < 0).tolist()

    def load(self, *, partly: bool = False) -> int:
        """Read the measured values of the profile's samples.

        Args:
            partly: whether to leave samples without values for later (:meth:`put`).

        Returns:
            The number of samples with values.

        Raises:
            RecordError: if a sample was not measured, or if there are no samples.
        """
        if not self._contents and not partly:
            raise RecordError(
                "The reference profile covers no sample",
                expected="at least one training or held-out sample",
                remedy="check the batches of the data module's unique_dataloader",
            )
        values, self._known = self.parts.read(pa.array(self._contents, pa.string()))
        if not partly and (missing := int((~self._known).sum())):
            raise RecordError(
                f"The reference profile {self.fingerprint!r} in {self.folder} lacks {missing} samples",
                expected="a value for every sample",
                remedy="start the run again, which continues the measurement",
            )
        self._values = torch.from_numpy(values).view(len(values), len(self.timesteps), len(self.columns))
        return sum(self._known[list(self._row.values())].tolist()) if partly else len(self._row)

    def known(self) -> npt.NDArray[np.uint8]:
        """Return which samples have values, as bits in the order of the profile."""
        return np.packbits(self._known)

    def agree(self, found: Iterable[npt.NDArray[np.uint8]]) -> None:
        """Leave samples for later that one of several processes did not find when it loaded the values."""
        for one in found:
            self._known &= np.unpackbits(one, count=len(self._known)).astype(np.bool_)

    def put(self, keys: Sequence[str], values: Tensor) -> None:
        """Take in values `(n, timesteps, columns)` of the profile's samples."""
        rows = [self._row[key] for key in keys]
        more = len(self._contents) - len(self._values)
        if more > 0:
            # The array grows by doubling, because samples may come one by one.
            grown = max(more, len(self._values))
            shape = (grown, *self._values.shape[1:])
            self._values = torch.cat([self._values, torch.full(shape, torch.nan, dtype=torch.float32)])
            self._known = np.concatenate([self._known, np.zeros(grown, dtype=np.bool_)])
        self._values[rows] = values
        self._known[rows] = True

    def missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys without values, each once."""
        known = self._known
        rows = ((key, self._row.get(key, len(known))) for key in dict.fromkeys(keys))
        return [key for key, row in rows if row >= len(known) or not known[row]]

    def uncovered(self, keys: Iterable[str]) -> list[str]:
        """Return the keys that are not in the profile yet, each once."""
        return [key for key in dict.fromkeys(keys) if key not in self._row]

    def different(self, keys: Iterable[str]) -> list[str]:
        """Return the first of the keys of each content."""
        first: dict[int, str] = {}
        for key in keys:
            if key in self._row:
                first.setdefault(self._row[key], key)
        return list(first.values())

    def __contains__(self, key: str) -> bool:
        return not self.missing([key])

    def bucket(self, timestep: float) -> int:
        """Return the index of the nearest measured timestep."""
        return min(range(len(self.timesteps)), key=lambda index: abs(self.timesteps[index] - timestep))

    def lookup_on_device(self, keys: Sequence[str], timesteps: Tensor) -> Tensor:
        """Do the same as :meth:`lookup` on the device of `timesteps` `(B,)`, without reading them on the host."""
        values = to_device(self._values[self._rows(keys)], timesteps.device)
        bucket = self.buckets_on_device(timesteps)
        return values.gather(1, bucket[:, None, None].expand(-1, 1, values.shape[2]))[:, 0]

    def buckets_on_device(self, timesteps: Tensor) -> Tensor:
        """Do the same as :meth:`bucket`, `(B,)`, for timesteps that are not read on the host."""
        # This uses fp64 as on the host. In half precision the distances to two timesteps may round to the same number.
        measured = to_device(torch.tensor(self.timesteps, dtype=torch.float64), timesteps.device)
        return (timesteps[:, None].double() - measured).abs().argmin(dim=1)

    def lookup(self, keys: Sequence[str], timesteps: Sequence[float]) -> Tensor:
        """Return values of samples at the measured timestep nearest to each visit, `(B, columns)`.

        Raises:
            RecordError: if a sample was never measured.
        """
        buckets = self.buckets_on_device(torch.tensor(timesteps, dtype=torch.float64))
        return self._values[self._rows(keys), buckets]

    def known_values(self, keys: pa.ChunkedArray, timesteps: Tensor) -> Tensor:
        """Do the same as :meth:`lookup` for many visits of a table; NaN for samples without values."""
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
                remedy="start a new run, so that the profile covers the data",
            )
        # Without a type, an empty list would become floats, which cannot index.
        return torch.tensor([self._row[key] for key in keys], dtype=torch.long)
