"""Rows of an array that lies in a file, read as they are asked for.

What was read of a mapped array counts as memory of the process as long as the mapping is held; here it is held while
some rows are copied. Of a million images, descriptors and thumbnails are 6.4 GB: they stay on the disk, and in what
memory the system has to spare.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ChosenRows:
    """Reads like an array of the chosen rows, as far as rows are picked from it.

    Args:
        opened: gives the array; called for each reading.
        rows: `(n,)` which of its rows these are.

    Attributes:
        shape: of the array of chosen rows.
        dtype: of its numbers.
    """

    def __init__(self, opened: Callable[[], NDArray[Any]], rows: NDArray[np.int64]) -> None:
        self._opened, self._rows = opened, rows
        whole = opened()
        self.shape, self.dtype = (len(rows), *whole.shape[1:]), whole.dtype

    @property
    def ndim(self) -> int:
        """Of the array of chosen rows."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: slice | NDArray[np.int64]) -> NDArray[Any]:
        """A copy of some of the rows."""
        return np.asarray(self._opened()[self._rows[at]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """All of them, in memory."""
        return np.asarray(self[:], dtype=dtype)


Rows = np.ndarray | ChosenRows
"""An array, in memory or in a file, from which rows are picked."""
