"""Fingerprints of the pictures that were forgotten: of these, copies whose values are equal are still known again.

A figure is remembered of a stated number of pictures, because among more of them different ones would be taken for each
other at any threshold that copies reach; a fingerprint of 64 bits tells a million pictures apart, and costs little.
What is added beyond the limit drives out what was added first, an eighth at a time.

Cost: 28 bytes and the name for each, 16 of them in a checkpoint; a search is a binary one. Cannot: know again what
differs by rounding.
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
        limit: fingerprints that are remembered.

    Attributes:
        dropped: how many were driven out.
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
        """Bytes that are held."""
        return len(self._names) + sum(one.nbytes for one in (self._hashes, self._ends, self._sorted, self._place))

    def _order(self) -> None:
        # Of equal ones the first that was added comes first.
        order = np.argsort(self._hashes, kind="stable")
        self._place, self._sorted = order.astype(np.int32), self._hashes[order]

    def owner(self, fingerprint: int) -> str | None:
        """The picture that had a fingerprint; None if there is none."""
        at = int(np.searchsorted(self._sorted, fingerprint))
        if at == len(self._sorted) or self._sorted[at] != fingerprint:
            return None
        place = int(self._place[at])
        begin = int(self._ends[place - 1]) if place else 0
        return self._names[begin : int(self._ends[place])].decode("utf-8", "surrogatepass")

    def since(self, place: int) -> list[tuple[int, str]]:
        """Fingerprints and names that were added from a place on, those that were driven out not counted."""
        begin = int(self._ends[place - 1]) if place else 0
        found = []
        for fingerprint, end in zip(self._hashes[place:].tolist(), self._ends[place:].tolist(), strict=True):
            found.append((fingerprint, self._names[begin:end].decode("utf-8", "surrogatepass")))
            begin = end
        return found

    def add(self, found: Mapping[int, str]) -> None:
        """Remember fingerprints with the names of their pictures; those that are there keep theirs."""
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
        """Tensors and a number."""
        return {
            "hashes": torch.from_numpy(self._hashes.copy()),
            "ends": torch.from_numpy(self._ends.copy()),
            "dropped": self.dropped,
            "names": torch.from_numpy(np.frombuffer(bytes(self._names), np.uint8).copy()),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up a saved state."""
        self._hashes, self._ends = state["hashes"].numpy().copy(), state["ends"].numpy().copy()
        self.dropped = state["dropped"]
        self._names = bytearray(state["names"].numpy().tobytes())
        self._order()
