"""Arrays with a row per sample that grow by doubling, so that a new sample costs no copy of all the others."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

LEAST = 64
"""Rows that are made room for at first."""


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
        """Another array, `(n,)` or `(n, width)`, in which new rows hold `fill`."""
        shape = (self._room,) if width is None else (self._room, width)
        self._arrays[name], self._fill[name] = torch.full(shape, fill, dtype=dtype), fill

    def grow(self, count: int) -> None:
        """Have at least `count` rows in use."""
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
        """Have no rows in use."""
        for name, array in self._arrays.items():
            array[: self.count] = self._fill[name]
        self.count = 0

    def remove(self, row: int) -> None:
        """The last row takes the place of one that is no longer in use."""
        last = self.count - 1
        for name, array in self._arrays.items():
            array[row] = array[last]
            array[last] = self._fill[name]
        self.count = last

    def __getitem__(self, name: str) -> Tensor:
        """The rows in use: a view that writes through, until more rows are made room for."""
        return self._arrays[name][: self.count]

    def __contains__(self, name: str) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def bytes_per_row(self) -> int:
        """Memory of a row in use, without what there is room for."""
        return sum(array[:1].numel() * array.element_size() for array in self._arrays.values())
