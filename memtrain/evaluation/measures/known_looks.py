"""Descriptors that a scan of the data has computed, for the index of an evaluation's training images."""

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
    """Descriptors that a scan has computed.

    Attributes:
        name: the name of these descriptors, a hash of their identity.
        descriptors: the mapped descriptors, `(n, D)`.
        place: the row in `descriptors` of each training image, `(N,)` int64; -1 for an image without a valid one.
    """

    name: str
    descriptors: NDArray[np.float32]
    place: NDArray[np.int64]


def known_looks(folder: Path, content: str, rows: Sequence[int], *, descriptor: Descriptor) -> KnownLooks | None:
    """Find the descriptors of training images in a complete scan; None if there is no such scan.

    Args:
        folder: the folder of a scan, which contains `looks/`.
        content: the content of the scanned source, from :func:`memtrain.families.content.files_of`.
        rows: the number of each training image in this source; -1 for another picture. Only descriptors of square
            pictures are valid, because training cuts other pictures.
        descriptor: the descriptor that the scan must have used.
    """
    wanted = {"content": content, "descriptor": f"{descriptor.name} {descriptor.version}"}
    for path in sorted(folder.glob(f"looks/*/{ALL}")):
        said = read_json_object(
            path.parent / "identity.json", what="the identity of a scan", remedy="run `memtrain scan` again"
        )
        if any(said.get(name) != value for name, value in wanted.items()):
            continue
        arrays = open_arrays(path)
        sizes, of = np.asarray(arrays["sizes"]), np.asarray(arrays["rows"])
        numbers = np.asarray(rows, np.int64)
        # The last place is for -1.
        place = np.full(max(int(numbers.max(initial=-1)), int(of.max(initial=-1))) + 2, -1)
        place[of] = np.where(sizes[:, 0] == sizes[:, 1], np.arange(len(of)), -1)
        return KnownLooks(path.parent.name, arrays["descriptors"], place[numbers])
    return None
