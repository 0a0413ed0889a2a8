"""What the monitor reads from a batch: the samples' keys, and whose caption was dropped."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from memtrain.errors import DataError


def sample_keys(batch: Any, field: str) -> list[str]:
    """The keys of the samples in a batch.

    Raises:
        DataError: if it holds no strings under `field`.
    """
    keys = batch.get(field) if isinstance(batch, dict) else None
    if keys is None or not all(isinstance(key, str) for key in keys):
        found = sorted(batch) if isinstance(batch, dict) else type(batch).__name__
        raise DataError(
            f"The batch holds no sample keys: found {found}",
            expected=f"a dict with a list of strings under {field!r}",
            remedy="give every sample a stable name in the dataset, or set key_field",
        )
    return list(keys)


def caption_dropped(keys: Sequence[str], batch: dict[str, Any], *, without: Collection[str]) -> list[bool]:
    """True where the batch has the empty caption in place of the sample's own, B; empty if it has none such.

    Args:
        keys: of its samples.
        batch: perhaps with `caption`.
        without: keys of samples whose own caption is empty.
    """
    captions = batch.get("caption")
    # A host may keep something else under this name.
    if not isinstance(captions, list | tuple) or len(captions) != len(keys):
        return []
    dropped = [
        isinstance(caption, str) and caption == "" and key not in without
        for key, caption in zip(keys, captions, strict=True)
    ]
    return dropped if any(dropped) else []
