"""Fingerprints of forgotten pictures, by which copies with equal values are still recognized.

The number of remembered figures is limited, because among more figures different pictures would count as copies at any
threshold that copies reach. A fingerprint of 64 bits tells a million pictures apart, and costs little. Entries beyond
the limit replace the oldest ones, an eighth at a time.

Cost: 28 bytes and the name for each, 16 of them in a checkpoint. A search is a binary one. Cannot: recognize a copy
that differs by rounding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray


class RememberedHashes:
    """A bounded memory of fingerprints and names.

    Args:
        limit: the number of remembered fingerprints.

    Attributes:
        dropped: the number of replaced fingerprints.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._hashes: NDArray[np.int64] = np.empty(0, np.int64)
        self._names = bytearray()
        self._ends: NDArray[np.int64] = np.empty(0, np.int64)
        self.dropped = 0
        self._order()

    def __len__(self) -> int:
        return len(self._hashes)

    @property
    def size(self) -> int:
        """The number of bytes in use."""
        return len(self._names) + sum(one.nbytes for one in (self._hashes, self._ends, self._sorted, self._place))

    def _order(self) -> None:
        # The first of equal fingerprints is the one that was added first.
        order = np.argsort(self._hashes, kind="stable")
        self._place, self._sorted = order.astype(np.int32), self._hashes[order]

    def owner(self, fingerprint: int) -> str | None:
        """Return the picture with a fingerprint; None if there is none."""
        at = int(np.searchsorted(self._sorted, fingerprint))
        if at == len(self._sorted) or self._sorted[at] != fingerprint:
            return None
        place = int(self._place[at])
        begin = int(self._ends[place - 1]) if place else 0
        return self._names[begin : int(self._ends[place])].decode("utf-8", "surrogatepass")

    def since(self, place: int) -> list[tuple[int, str]]:
        """Return the fingerprints and names that were added from a place on; replaced ones do not count."""
        begin = int(self._ends[place - 1]) if place else 0
        found = []
        for fingerprint, end in zip(self._hashes[place:].tolist(), self._ends[place:].tolist(), strict=True):
            found.append((fingerprint, self._names[begin:end].decode("utf-8", "surrogatepass")))
            begin = end
        return found

    def add(self, found: Mapping[int, str]) -> None:
        """Remember fingerprints with the names of their pictures. Known fingerprints keep their names."""
        new = {one: name for one, name in found.items() if self.owner(one) is None}
        encoded = [name.encode("utf-8", "surrogatepass") for name in new.values()]
        ends = len(self._names) + np.cumsum([len(name) for name in encoded], dtype=np.int64)
        self._names += b"".join(encoded)
        self._ends = np.concatenate([self._ends, ends])
        self._hashes = np.concatenate([self._hashes, np.fromiter(new, np.int64, len(new))])
        if len(self) > self.limit:
            gone = min(len(self), len(self) - self.limit + self.limit // 8)
            begin = int(self._ends[gone - 1])
            del self._names[:begin]
            self.dropped += gone
            self._ends, self._hashes = self._ends[gone:] - begin, self._hashes[gone:]
        self._order()

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and a number."""
        return {
            "hashes": torch.from_numpy(self._hashes.copy()),
            "ends": torch.from_numpy(self._ends.copy()),
            "dropped": self.dropped,
            "names": torch.from_numpy(np.frombuffer(bytes(self._names), np.uint8).copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Load a saved state."""
        self._hashes, self._ends = state["hashes"].numpy().copy(), state["ends"].numpy().copy()
        self.dropped = state["dropped"]
        self._names = bytearray(state["names"].numpy().tobytes())
        self._order()
