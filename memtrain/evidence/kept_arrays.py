"""The form of evidence in a checkpoint: few bytes a sample, in tensors and numbers, without pickle.

Names and small whole numbers are compressed (zstd). A name costs only its difference from the names before it. This is
3 to 5 bytes for numbered names, and 17 for UUIDs, whose 16 random bytes cannot be compressed.
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
    """Compress bytes to a tensor and their length."""
    squeezed = pa.Codec(CODEC, compression_level=9).compress(values, asbytes=True)
    return {"length": len(values), "zstd": torch.from_numpy(np.frombuffer(squeezed, np.uint8).copy())}


def unpacked(kept: Mapping[str, Any]) -> bytes:
    """Return the bytes that :func:`packed` compressed."""
    squeezed = kept["zstd"].numpy().tobytes()
    return bytes(pa.Codec(CODEC).decompress(squeezed, decompressed_size=int(kept["length"]), asbytes=True))


def packed_names(names: Sequence[str]) -> dict[str, Any]:
    """Compress texts in their order."""
    # The texts become bytes, which also keep unpaired surrogates, as names of files may hold them.
    encoded = [name.encode("utf-8", "surrogatepass") for name in names]
    lengths = torch.tensor([len(name) for name in encoded], dtype=torch.int32)
    return {"lengths": packed_counts(lengths), "text": packed(b"".join(encoded))}


def unpacked_names(kept: Mapping[str, Any]) -> list[str]:
    """Return the texts from :func:`packed_names`."""
    text, found, start = unpacked(kept["text"]), [], 0
    for length in unpacked_counts(kept["lengths"]).tolist():
        found.append(text[start : start + length].decode("utf-8", "surrogatepass"))
        start += length
    return found


def packed_counts(counts: Tensor) -> dict[str, Any]:
    """Compress whole numbers from 0 to below 2³¹, `(...)`, byte by byte, as many high bytes are 0."""
    by_byte = np.ascontiguousarray(counts.to(torch.int32).contiguous().numpy().reshape(-1)).view(np.uint8)
    return {"shape": list(counts.shape), **packed(by_byte.reshape(-1, 4).T.tobytes())}


def unpacked_counts(kept: Mapping[str, Any]) -> Tensor:
    """Return the numbers from :func:`packed_counts`, int32."""
    by_byte = np.frombuffer(unpacked(kept), np.uint8).reshape(4, -1)
    return torch.from_numpy(np.ascontiguousarray(by_byte.T).view(np.int32).reshape(kept["shape"]).copy())
