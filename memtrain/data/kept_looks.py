"""Size and content of known images, kept with the state of their files, so that a later start need not decode them.

`<folder>/<name>.safetensors` holds the SHA-256 of the pixels and the size of each readable image. The name is a
hash of the files' names, sizes and times of change, and of the keys in each file. A scan for families
(:mod:`memtrain.families.scan`) keeps the same facts of every image under the same hash, and its result is read too.
Cost: 40 bytes an image, and 5 us an image to find out whether files are the same. Cannot: know images that lie in no
file.
"""

from __future__ import annotations

import hashlib
import mmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memtrain.data.source import Look, SampleSource
from memtrain.errors import RecordError
from memtrain.families.content import files_of
from memtrain.families.scan import ScanSettings, looks_of
from memtrain.families.stored_arrays import create_arrays, open_arrays
from memtrain.files.whole import written_whole


class KeptLooks:
    """The known sizes and contents of a source's images, read when the first one is needed.

    Args:
        source: the source of the images.
        folder: the folder of the kept looks; None for no folder.
        scanned: the folder of a scan for families of this source; None for no scan.
        settings: the settings of that scan.

    Attributes:
        rank: the number of this process, which writes a file of its own.
    """

    def __init__(
        self, source: SampleSource, folder: Path | None, *, scanned: Path | None, settings: ScanSettings
    ) -> None:
        self.folder, self.scanned, self.settings = folder, scanned, settings
        self._digests: NDArray[np.uint8] | None = None
        self._sizes = _shared((len(source), 2), np.int32)
        self._content: str | None = None
        self.rank = 0
        self._given = 0

    def find(self, source: SampleSource) -> None:
        """Read the kept looks, unless that was done before."""
        if self._digests is not None:
            return
        self._digests = _shared((len(source), 32), np.uint8)
        self._content = None if self.folder is None and self.scanned is None else files_of(source)
        if self._content is None:
            return
        parts = [] if self.scanned is None else [looks_of(self._content, self.scanned, self.settings, len(source))]
        for path in parts:
            self._take(path)
        self._take_kept()
        self._given = int(self._known.sum())

    def _take_kept(self) -> None:
        """Take in the looks that this process and others wrote."""
        if self._file is not None:
            for path in sorted(self._file.parent.glob(f"{self._name}*.safetensors")):
                self._take(path)

    def _take(self, path: Path | None) -> None:
        """Take in the looks of a file, if the file exists."""
        if path is None or not path.is_file() or self._digests is None:
            return
        try:
            arrays = open_arrays(path)
            rows, hashes, sizes = np.array(arrays["rows"]), arrays["hashes"], arrays["sizes"]
            self._digests[rows], self._sizes[rows] = hashes, sizes
        except (RecordError, OSError, KeyError, IndexError, ValueError):  # a damaged file counts as no file
            return

    @property
    def _known(self) -> NDArray[np.bool_]:
        return self._sizes[:, 0] > 0

    @property
    def _file(self) -> Path | None:
        if self.folder is None or self._content is None:
            return None
        return self.folder / f"{self._name}{f'-{self.rank}' if self.rank else ''}.safetensors"

    @property
    def _name(self) -> str:
        return hashlib.sha256((self._content or "").encode()).hexdigest()[:32]

    def get(self, index: int) -> Look | None:
        """Return the look of an image; None if it is not known."""
        if self._digests is None or not self._sizes[index, 0]:
            return None
        return Look((int(self._sizes[index, 0]), int(self._sizes[index, 1])), self._digests[index].tobytes().hex())

    def put(self, index: int, look: Look) -> None:
        """Take in the look of an image."""
        assert self._digests is not None, "find() comes first"
        self._digests[index] = np.frombuffer(bytes.fromhex(look.digest), np.uint8)
        self._sizes[index] = look.size

    def keep(self) -> None:
        """Write the known looks if there are more than were read."""
        known = self._known
        if self._file is None or self._digests is None or int(known.sum()) <= self._given:
            return
        rows = np.flatnonzero(known)
        arrays: dict[str, NDArray[Any]] = {"rows": rows, "hashes": self._digests[rows], "sizes": self._sizes[rows]}
        with written_whole(self._file) as unfinished:
            stored = create_arrays(unfinished, {name: (one.dtype.name, one.shape) for name, one in arrays.items()})
            for name, one in arrays.items():
                stored[name][...] = one
        self._take_kept()
        self._given = int(self._known.sum())


def _shared(shape: tuple[int, int], dtype: Any) -> NDArray[Any]:
    """Return zeros in memory that forked loader processes share: a look of one process is known to all others."""
    count = shape[0] * shape[1]
    memory = mmap.mmap(-1, max(1, count * np.dtype(dtype).itemsize))
    return np.frombuffer(memory, dtype, count).reshape(shape)
