"""Rows of an array in a file, read when they are needed.

The read part of a mapped array counts as memory of the process as long as the mapping is held. Here it is held only
while rows are copied. Descriptors and thumbnails of a million images are 6.4 GB. They stay on the disk, and in free
memory of the system.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray


class ChosenRows:
    """Some rows of an array, which can be indexed like an array of these rows.

    Args:
        opened: the function that opens the array, called for each reading.
        rows: the numbers of the rows in the array, `(n,)`.

    Attributes:
        shape: the shape of the array of chosen rows.
        dtype: the type of its numbers.
    """

    def __init__(self, opened: Callable[[], NDArray[Any]], rows: NDArray[np.int64]) -> None:
        self._opened, self._rows = opened, rows
        whole = opened()
        self.shape, self.dtype = (len(rows), *whole.shape[1:]), whole.dtype

    @property
    def ndim(self) -> int:
        """The number of dimensions of the array of chosen rows."""
        return len(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, at: slice | NDArray[np.int64]) -> NDArray[Any]:
        """Return a copy of some of the rows."""
        return np.asarray(self._opened()[self._rows[at]])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        """Return all rows in memory."""
        return np.asarray(self[:], dtype=dtype)


Rows = np.ndarray | ChosenRows
"""An array, in memory or in a file, from which rows are taken."""
