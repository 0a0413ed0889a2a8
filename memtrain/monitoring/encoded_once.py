"""Captions and images that are encoded once, where a batch is measured in several forwards.

A module that says how it encodes them (`encode_tokens`, `encode_images`) takes batches that hold what these make, as a
cache on disk does. So every forward of a batch gets the same embeddings and latents, which it would compute itself to
the same bits. Not where the text encoder is trained: then its dropout may draw from what noise is drawn from, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

Encode = Callable[[dict[str, Any]], dict[str, Tensor]]


class EncodedOnce:
    """Adds embeddings and latents to batches.

    Args:
        module: what is trained.
    """

    def __init__(self, module: Any) -> None:
        self.images: Callable[[Tensor], Tensor] | None = getattr(module, "encode_images", None)
        self.text: Encode | None = getattr(module, "encode_tokens", None)
        self._trained: bool | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch with what its forwards share, in the precision of the context.

        Args:
            batch: on the device, as `sample_loss` takes it.
        """
        shared: dict[str, Any] = {}
        if self.images is not None and "pixel_values" in batch and "latents" not in batch:
            shared["latents"] = self.images(batch["pixel_values"])
        if self.text is not None and "input_ids" in batch and "text_embeddings" not in batch:
            if self._trained is None:
                self._trained = _trained(self.text, batch)
            if not self._trained:
                shared |= self.text(batch)
        return {**batch, **shared}


def _trained(encode: Encode, batch: dict[str, Any]) -> bool:
    """Whether embeddings of the first caption have a gradient."""
    first = {name: value[:1] if isinstance(value, Tensor) and value.ndim else value for name, value in batch.items()}
    with torch.enable_grad():
        return any(value.requires_grad for value in encode(first).values() if isinstance(value, Tensor))
