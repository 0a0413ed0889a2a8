"""Collation of items into a batch, as torch does it, except for items whose latents or embeddings are still to be made.

Such items come from a cache that training fills (:mod:`memtrain.data.filling`). The field `LATENTS` or `TEXT` of an
item names the missing entry, and the item holds what the entry is made of. The name is empty if nothing is missing. If
some items lack an entry, the batch has no `latents` (`text_embeddings`, ...) yet. Its field `LATENTS` (`TEXT`) holds
the parts from which the data module makes them on the device. So no code reads an incomplete batch by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

LATENTS, TEXT = "latents_to_make", "text_to_make"
"""Fields of an item: the name of the entry to make of its `pixel_values` or of its tokens. It is empty for no entry.

The same fields of a batch hold `names` (of all rows), `known` (the fields of the rows without a name) and
`pixel_values` (of the rows with a name)."""


def collated(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Collate items into a batch."""
    marks = [name for name in (LATENTS, TEXT) if name in items[0]]
    if not marks:
        batch: dict[str, Any] = default_collate(list(items))
        return batch
    # The fields that items of one kind have and items of the other kind lack.
    complete = set.intersection(*(set(item) for item in items)) - {"latents", "pixel_values", *marks}
    kept = {mark: _of_kind(items, mark, common=complete) for mark in marks}
    batch = default_collate([{name: item[name] for name in item if name in complete} for item in items])
    for mark, part in kept.items():
        batch |= part["known"] if not any(part["names"]) else {mark: part}
    if LATENTS not in marks:
        image = "latents" if "latents" in items[0] else "pixel_values"
        batch[image] = torch.stack([item[image] for item in items])
    return batch


def _of_kind(items: Sequence[dict[str, Any]], mark: str, *, common: set[str]) -> dict[str, Any]:
    """Return the part of a batch for latents or embeddings, some of which are still to be made."""
    names = [item[mark] for item in items]
    own = {"latents"} if mark == LATENTS else set().union(*items) - common - {"latents", "pixel_values", LATENTS, TEXT}
    known = [{name: item[name] for name in own} for item in items if not item[mark]]
    found: dict[str, Any] = {"names": names, "known": default_collate(known) if known else {}}
    pixels = [item["pixel_values"] for item in items if mark == LATENTS and item[mark]]
    return found | ({"pixel_values": torch.stack(pixels)} if pixels else {})
