"""Captions and images that are encoded once for several forwards of a batch.

A module with the methods `encode_tokens` and `encode_images` accepts batches with embeddings and latents, as from a
cache on disk. So every forward of a batch gets the same embeddings and latents, with the same bits as its own. A
trained text encoder is left out, because its dropout may use the same random numbers as the noise.
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
        module: the trained module.
    """

    def __init__(self, module: Any) -> None:
        self.images: Callable[[Tensor], Tensor] | None = getattr(module, "encode_images", None)
        self.text: Encode | None = getattr(module, "encode_tokens", None)
        self._trained: bool | None = None

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Add the shared embeddings and latents to a batch, in the precision of the context.

        Args:
            batch: the batch on the device, in the form for `sample_loss`.
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
    """Return whether embeddings of the first caption have a gradient."""
    first = {name: value[:1] if isinstance(value, Tensor) and value.ndim else value for name, value in batch.items()}
    with torch.enable_grad():
        return any(value.requires_grad for value in encode(first).values() if isinstance(value, Tensor))
