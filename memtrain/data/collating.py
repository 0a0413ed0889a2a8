"""How items become a batch: as torch does it, but for those whose latents or embeddings are still to be made.

Such items come from a cache that is filled in training (:mod:`memtrain.data.filling`). An item names what it lacks in
`LATENTS` or `TEXT`, and holds what that is made of; one that lacks nothing has an empty name there. A batch of which
some lack theirs has no `latents` (`text_embeddings`, ...) yet but an entry `LATENTS` (`TEXT`), from which the data
module makes them on the device. So nothing reads half a batch by mistake.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import default_collate

LATENTS, TEXT = "latents_to_make", "text_to_make"
"""Fields of an item: the name of what is to be made of its `pixel_values`, or of its tokens; empty for nothing.

Fields of a batch: `names`, of all its rows; `known`, fields of the rows without a name; and `pixel_values` of the rows
with one."""


def collated(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch of items."""
    marks = [name for name in (LATENTS, TEXT) if name in items[0]]
    if not marks:
        batch: dict[str, Any] = default_collate(list(items))
        return batch
    # What an item of the one kind has, and of the other has not.
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
    """What a batch holds of its rows' latents, or embeddings, where some are to be made."""
    names = [item[mark] for item in items]
    own = {"latents"} if mark == LATENTS else set().union(*items) - common - {"latents", "pixel_values", LATENTS, TEXT}
    known = [{name: item[name] for name in own} for item in items if not item[mark]]
    found: dict[str, Any] = {"names": names, "known": default_collate(known) if known else {}}
    pixels = [item["pixel_values"] for item in items if mark == LATENTS and item[mark]]
    return found | ({"pixel_values": torch.stack(pixels)} if pixels else {})
