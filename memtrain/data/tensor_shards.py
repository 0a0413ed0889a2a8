"""Tensors by name in a folder of safetensors files. The folder grows, and no file is ever rewritten.

A file (*shard*) is written under another name and renamed when it is complete. A killed process thus leaves whole
shards behind and loses only the unfinished one. Several processes may write at once: the name of a shard is a hash of
its content. The check for missing entries removes a shard that cannot be opened, such as one that was cut short during
copying. Its entries then count as missing. Entries are read through the memory map of safetensors: only the wanted
parts are read, and the processes of a machine share its page cache. Each tensor has a checksum (CRC-32) in its shard,
which is compared at every read. A shard that changed on the disk is removed, and made again when the run is continued.
Shards without checksums, from earlier versions, are read without this check. Cost: an open file for each of at most
:data:`OPEN` shards, and 0.1 ms to check the latents of an image.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import zlib
from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from memtrain.errors import DataError
from memtrain.records import written_whole

log = logging.getLogger(__name__)

OPEN = 128
"""The number of shards that are kept open."""
SHARD = 64 * 2**20
"""The size in bytes at which a shard is full."""
CHECKSUMS = "crc32"
"""The entry of a shard's metadata with the checksum of each tensor, as JSON."""
LOOK_AGAIN = 60.0
"""The seconds after which a folder is checked for a missing entry even if it does not seem to have changed."""
ABANDONED = 24 * 3600
"""The seconds after which no process still writes an unfinished shard."""
Entry = Mapping[str, Tensor]
"""The fields of one entry."""


class TensorShards:
    """The entries of one folder, each with some fields.

    Args:
        folder: the folder of the shards.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, tuple[str, ...]]] = {}
        self._open: OrderedDict[Path, Any] = OrderedDict()
        self._seen: set[Path] = set()
        self._changed, self._looked = 0, 0.0

    def __getstate__(self) -> dict[str, Any]:
        # Open files cannot be sent to a loader process.
        return {**self.__dict__, "_open": OrderedDict()}

    def look(self, *, clean: bool = False) -> None:
        """Find out which entries exist.

        Args:
            clean: whether to remove shards that cannot be opened, and unfinished shards that a process left long ago.
        """
        self._where, self._open, self._seen = {}, OrderedDict(), set()
        if clean:
            for path in self.folder.glob(".*.safetensors.*"):
                if time.time() - path.stat().st_mtime > ABANDONED:
                    path.unlink(missing_ok=True)
        self._look_at_new(clean=clean)

    def _look_at_new(self, *, clean: bool = False) -> None:
        """Take in the shards that are new."""
        self._changed, self._looked = _changed(self.folder), time.monotonic()
        for path in sorted(set(self.folder.glob("*.safetensors")) - self._seen):
            try:
                with safe_open(path, framework="pt") as file:
                    names = list(file.keys())
            except (SafetensorError, OSError) as error:
                if clean:
                    log.warning("%s cannot be read (%s) and is made again", path, error)
                    path.unlink(missing_ok=True)
                continue
            self._seen.add(path)
            fields: dict[str, list[str]] = {}
            for name in names:
                key, _, field = name.partition("/")
                fields.setdefault(key, []).append(field)
            self._where |= {key: (path, tuple(sorted(found))) for key, found in fields.items()}

    def find(self, key: str) -> dict[str, Tensor] | None:
        """Return the fields of an entry that this or another process may have written meanwhile; None if missing."""
        if key not in self._where and (
            self._changed != _changed(self.folder) or time.monotonic() - self._looked > LOOK_AGAIN
        ):
            self._look_at_new()
        if key not in self._where:
            return None
        try:
            return self.read(key)
        except DataError as error:
            log.warning("%s. It is made again.", error.problem)
            path = self._where[key][0]
            self._where = {key: place for key, place in self._where.items() if place[0] != path}
            self._seen.discard(path)
            return None

    def missing(self, keys: Collection[str]) -> list[str]:
        """Return the missing ones of `keys`, each once, in the same order."""
        return [key for key in dict.fromkeys(keys) if key not in self._where]

    def forget_others(self, keys: Collection[str]) -> None:
        """Keep only the places of `keys` in memory."""
        self._where = {key: self._where[key] for key in dict.fromkeys(keys)}

    def read(self, key: str) -> dict[str, Tensor]:
        """Read the fields of an entry.

        Raises:
            DataError: if its shard is missing, or was damaged since the folder was checked.
        """
        path, fields = self._where[key]
        try:
            file, checksums = self._opened(path)
            found = {field: file.get_tensor(f"{key}/{field}") for field in fields}
            for field, tensor in found.items():
                name = f"{key}/{field}"
                if checksums is not None and checksums.get(name) != checksum(tensor):
                    path.unlink(missing_ok=True)  # if it stayed, it would be found again and never be made anew
                    raise OSError(f"{name} is not what was written, and the file is removed")
            return found
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{path} cannot be read any more: {error}",
                expected="a cache that does not change while a run reads it",
                remedy="continue the run with --ckpt_path last, which makes missing entries again",
            ) from error

    def _opened(self, path: Path) -> Any:
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        if len(self._open) >= OPEN:
            self._open.popitem(last=False)
        file: Any = safe_open(path, framework="pt").__enter__()
        try:
            said = json.loads((file.metadata() or {}).get(CHECKSUMS, "null"))
        except (ValueError, RecursionError):
            said = {}
        self._open[path] = file, said if isinstance(said, dict | None) else {}
        return self._open[path]


def _changed(folder: Path) -> int:
    """Return the time at which a file was last put into a folder; 0 if the folder does not exist."""
    try:
        return folder.stat().st_mtime_ns
    except FileNotFoundError:
        return 0


class ShardWriter:
    """Collects entries and writes them shard by shard.

    Args:
        folder: the folder of the shards.
        size: the size in bytes at which a shard is full.
    """

    def __init__(self, folder: Path, size: int = SHARD) -> None:
        self.folder, self.size = folder, size
        self._tensors: dict[str, Tensor] = {}
        self._fields: dict[str, tuple[str, ...]] = {}
        self._bytes = 0

    def add(self, key: str, entry: Entry) -> None:
        """Add an entry. It is written by :meth:`flush` at the latest."""
        for field, value in entry.items():
            # A view of a batch's row would keep the whole batch in memory.
            kept = value.detach().to("cpu", copy=True).contiguous()
            self._tensors[f"{key}/{field}"] = kept
            self._bytes += kept.numel() * kept.element_size()
        self._fields[key] = tuple(entry)
        if self._bytes >= self.size:
            self.flush()

    def collected(self, key: str) -> dict[str, Tensor] | None:
        """Return the fields of an entry that is not written yet; None if there is none."""
        start = f"{key}/"
        found = {field: self._tensors[start + field] for field in self._fields.get(key, ())}
        return found or None

    def flush(self) -> None:
        """Write the collected entries."""
        if self._tensors:
            name = hashlib.sha256("\n".join(self._tensors).encode()).hexdigest()[:32]
            with written_whole(self.folder / f"{name}.safetensors") as unfinished:
                checksums = {name: checksum(tensor) for name, tensor in self._tensors.items()}
                save_file(self._tensors, unfinished, metadata={CHECKSUMS: json.dumps(checksums)})
            self._tensors, self._fields, self._bytes = {}, {}, 0


def checksum(tensor: Tensor) -> int:
    """Return the CRC-32 of the values of a tensor on the CPU, its type and its shape."""
    about = zlib.crc32(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    return zlib.crc32(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data, about)


def content_key(*parts: object) -> str:
    """Return a name for the result of a computation on tensors and plain values: their SHA-256, in hexadecimal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            raw = part.detach().cpu().contiguous()
            digest.update(f"{raw.dtype} {tuple(raw.shape)} ".encode())
            digest.update(raw.reshape(-1).view(torch.uint8).numpy().tobytes())
        else:
            digest.update(repr(part).encode())
        digest.update(b"\0")
    return digest.hexdigest()
