"""Descriptors that a scan of the data has computed already, for the index of an evaluation's training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from memtrain.families.descriptors.base import Descriptor
from memtrain.families.look_parts import ALL
from memtrain.families.stored_arrays import open_arrays
from memtrain.files.text import read_json_object


@dataclass(frozen=True)
class KnownLooks:
    """Descriptors that a scan has computed already.

    Attributes:
        name: of these looks, a hash of their identity.
        descriptors: `(n, D)`, mapped.
        place: `(N,)` int64, for each training image its row in `descriptors`; -1 where it has none that holds.
    """

    name: str
    descriptors: NDArray[np.float32]
    place: NDArray[np.int64]


def known_looks(folder: Path, content: str, rows: Sequence[int], *, descriptor: Descriptor) -> KnownLooks | None:
    """What a scan has looked at of training images, where it is complete.

    Args:
        folder: of a scan, with `looks/` in it.
        content: of the source that was scanned, from :func:`memtrain.families.content.files_of`.
        rows: for each training image its number in that source, -1 where it is another picture. Only descriptors of
            square pictures hold: training cuts others.
        descriptor: that the scan has to have used.
    """
    wanted = {"content": content, "descriptor": f"{descriptor.name} {descriptor.version}"}
    for path in sorted(folder.glob(f"looks/*/{ALL}")):
        said = read_json_object(path.parent / "identity.json", what="what was looked at", remedy="scan again")
        if any(said.get(name) != value for name, value in wanted.items()):
            continue
        arrays = open_arrays(path)
        sizes, of = np.asarray(arrays["sizes"]), np.asarray(arrays["rows"])
        numbers = np.asarray(rows, np.int64)
        # The last place is that of -1.
        place = np.full(max(int(numbers.max(initial=-1)), int(of.max(initial=-1))) + 2, -1)
        place[of] = np.where(sizes[:, 0] == sizes[:, 1], np.arange(len(of)), -1)
        return KnownLooks(path.parent.name, arrays["descriptors"], place[numbers])
    return None
