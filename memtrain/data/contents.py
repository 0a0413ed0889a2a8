"""Names for the content of a dataset's items, for the cache of a profile. They are known without reading a sample."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any


def contents_of(dataset: Any, places: Sequence[int], *, cached: bool) -> list[str] | None:
    """Name the pixels of each sample, their cut, and its tokens.

    Args:
        dataset: a :class:`memtrain.data.dataset.CaptionedImages`.
        places: the place of each sample's first caption in the tokens.
        cached: whether the items have cached latents.

    Returns:
        One name per sample; None if the content of some image is not known. Two samples with one name have equal items
        except for their keys.
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
            # The values as the tokenizer made them, whatever type the table keeps them in.
            value = values[places[row]].to(dataset.tokens.types[name])
            digest.update(name.encode() + value.numpy().tobytes())
        if not dataset.tokens:
            digest.update(sample.caption.encode())
        names.append(digest.hexdigest())
    return names
