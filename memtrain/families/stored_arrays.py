"""Arrays too large for memory in one safetensors file: filled in parts, and read through a memory map.

The layout is that of safetensors (https://huggingface.co/docs/safetensors): eight bytes with the length of a JSON
header, the header, the numbers. So any reader of such files opens it. Arrays are mapped into memory, and the system
drops unused parts. An array of 100,000 rows takes only the memory of the rows in use.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from memtrain.errors import DataError, RecordError
from memtrain.files.text import json_of

Arrays = Mapping[str, NDArray[Any]]
"""Arrays by name."""

_NAMES = {"uint8": "U8", "int32": "I32", "int64": "I64", "float32": "F32"}
"""The names of types in a header."""
_TYPES = {short: np.dtype(name) for name, short in _NAMES.items()}


def create_arrays(path: Path, shapes: Mapping[str, tuple[str, tuple[int, ...]]]) -> Arrays:
    """Make a file of zeros and map it.

    Args:
        path: the path of the file.
        shapes: the type and shape by name; the types are uint8, int32, int64 and float32.

    Returns:
        Arrays that write to the file.
    """
    header: dict[str, Any] = {}
    end = 0
    # Larger numbers come first, so that each array begins at a multiple of its numbers' size.
    for name, (kind, shape) in sorted(shapes.items(), key=lambda item: -np.dtype(item[1][0]).itemsize):
        start, end = end, end + int(np.prod(shape, dtype=np.int64)) * np.dtype(kind).itemsize
        header[name] = {"dtype": _NAMES[kind], "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return _mapped(path, header, 8 + len(text), mode="r+")


def open_arrays(path: Path, *, mode: Literal["r+", "c"] = "c") -> Arrays:
    """Map the arrays of a file.

    Args:
        path: the path of the file.
        mode: the mode of the map; with `c` changes stay in memory, with `r+` they are written.

    Raises:
        RecordError: if the file is cut short, or holds something else.
    """
    with path.open("rb") as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            if not 0 < length <= path.stat().st_size - 8:
                raise ValueError("its header is longer than the file")
            header = json_of(file.read(length), "its header")
            header.pop("__metadata__", None)
            return _mapped(path, header, 8 + length, mode=mode)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, DataError) as error:
            raise RecordError(
                f"{path} cannot be read: {error}",
                expected="a safetensors file of arrays",
                remedy="delete it; the next start makes it again",
            ) from error


def _mapped(path: Path, header: Mapping[str, Any], start: int, *, mode: Literal["r+", "c"]) -> Arrays:
    arrays = {}
    for name, entry in header.items():
        kind, shape = _TYPES[entry["dtype"]], tuple(entry["shape"])
        if 0 in shape:  # an empty array cannot be mapped
            arrays[name] = np.zeros(shape, kind)
        else:
            offset = start + entry["data_offsets"][0]
            size = int(np.prod(shape, dtype=object)) * kind.itemsize
            # A file that is too short would be filled up with zeros when it is mapped for writing.
            if min(shape) < 0 or offset < start or offset + size > path.stat().st_size:
                raise ValueError(f"its array {name!r} is cut short")
            arrays[name] = np.memmap(path, dtype=kind, mode=mode, offset=offset, shape=shape)
    return arrays
