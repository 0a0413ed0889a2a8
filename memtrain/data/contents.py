"""Names for what the items of a dataset hold, known without reading a sample: for the cache of a profile."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any


def contents_of(dataset: Any, places: Sequence[int], *, cached: bool) -> list[str] | None:
    """A name for the pixels of each sample, how they are cut, and its tokens.

    Args:
        dataset: a :class:`memtrain.data.dataset.CaptionedImages`.
        places: of the first caption of each sample in its tokens.
        cached: whether its items have cached latents.

    Returns:
        None where the content of some image is not known. Of two samples with one name the items are equal but for
        their keys.
    """
    names = []
    for row, sample in enumerate(dataset.samples):
        look = dataset.source.known_look(dataset.indices[row])
        if look is None:
            return None
        shape, framing = dataset.shapes[row], dataset.framing
        frame = framing.frame(shape, sample.key, None)
        if cached:
            frame = framing.variant(shape, sample.key, framing.variant_of(sample.key, None))
        weight = None if dataset.weights is None else dataset.weights[row]
        digest = hashlib.sha256(f"{look.digest} {frame} {weight}".encode())
        for name, values in dataset.tokens.fields.items():
            # As they were made, whatever the type in which a table keeps them.
            value = values[places[row]].to(dataset.tokens.types[name])
            digest.update(name.encode() + value.numpy().tobytes())
        if not dataset.tokens:
            digest.update(sample.caption.encode())
        names.append(digest.hexdigest())
    return names
