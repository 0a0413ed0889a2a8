"""Arrays with a row per sample that grow by doubling, so that a new sample costs no copy of all the others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LEAST = 64
"""Number of rows with memory at first."""


class GrowingRows:
    """Several arrays with the same rows, by name.

    Attributes:
        count: rows in use.
    """

    def __init__(self) -> None:
        self.count = 0
        self._room = LEAST
        self._arrays: dict[str, Tensor] = {}
        self._fill: dict[str, float] = {}

    def add(self, name: str, fill: float, *, width: int | None = None, dtype: torch.dtype = torch.float64) -> None:
        """Add an array, `(n,)` or `(n, width)`, in which new rows hold `fill`."""
        shape = (self._room,) if width is None else (self._room, width)
        self._arrays[name], self._fill[name] = torch.full(shape, fill, dtype=dtype), fill

    def grow(self, count: int) -> None:
        """Use at least `count` rows."""
        room = self._room
        while room < count:
            room *= 2
        if room > self._room:
            for name, array in self._arrays.items():
                more = torch.full((room - self._room, *array.shape[1:]), self._fill[name], dtype=array.dtype)
                self._arrays[name] = torch.cat([array, more])
            self._room = room
        self.count = max(self.count, count)

    def clear(self) -> None:
        """Use no rows."""
        for name, array in self._arrays.items():
            array[: self.count] = self._fill[name]
        self.count = 0

    def remove(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = self.count - 1
        for name, array in self._arrays.items():
            array[row] = array[last]
            array[last] = self._fill[name]
        self.count = last

    def __getitem__(self, name: str) -> Tensor:
        """Return the rows in use as a view, which is valid until more memory is allocated."""
        return self._arrays[name][: self.count]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def bytes_per_row(self) -> int:
        """Return the memory of a row in use, without spare memory."""
        return sum(array[:1].numel() * array.element_size() for array in self._arrays.values())
