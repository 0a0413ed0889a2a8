"""How evidence is kept in a checkpoint: few bytes a sample, as tensors and numbers, which nothing has to unpickle.

Names and small whole numbers are compressed (zstd). A name costs what sets it apart from those before it: 3 to 5 bytes
where names are numbered, 17 where they are UUIDs, whose 16 random bytes no compression takes out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

CODEC = "zstd"


def packed(values: bytes) -> dict[str, Any]:
    """Compressed bytes, as a tensor and their length."""
    squeezed = pa.Codec(CODEC, compression_level=9).compress(values, asbytes=True)
    return {"length": len(values), "zstd": torch.from_numpy(np.frombuffer(squeezed, np.uint8).copy())}


def unpacked(kept: Mapping[str, Any]) -> bytes:
    """What :func:`packed` made smaller."""
    squeezed = kept["zstd"].numpy().tobytes()
    return bytes(pa.Codec(CODEC).decompress(squeezed, decompressed_size=int(kept["length"]), asbytes=True))


def packed_names(names: Sequence[str]) -> dict[str, Any]:
    """Any texts, in their order."""
    # As bytes: characters that are half of a pair, as names of files may hold, are kept, too.
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    lengths = torch.tensor([len(name) for name in encoded], dtype=torch.int32)
    return {"lengths": packed_counts(lengths), "text": packed(b"".join(encoded))}


def unpacked_names(kept: Mapping[str, Any]) -> list[str]:
    """What :func:`packed_names` kept."""
    text, found, start = unpacked(kept["text"]), [], 0
    for length in unpacked_counts(kept["lengths"]).tolist():
        found.append(text[start : start + length].decode("utf-8", "surrogatepass"))
        start += length
    return found


def packed_counts(counts: Tensor) -> dict[str, Any]:
    """Whole numbers from 0 to below 2³¹, `(...)`, byte by byte: the higher ones of small numbers are all 0."""
    by_byte = np.ascontiguousarray(counts.to(torch.int32).contiguous().numpy().reshape(-1)).view(np.uint8)
    return {"shape": list(counts.shape), **packed(by_byte.reshape(-1, 4).T.tobytes())}


def unpacked_counts(kept: Mapping[str, Any]) -> Tensor:
    """What :func:`packed_counts` kept, int32."""
    by_byte = np.frombuffer(unpacked(kept), np.uint8).reshape(4, -1)
    return torch.from_numpy(np.ascontiguousarray(by_byte.T).view(np.int32).reshape(kept["shape"]).copy())
