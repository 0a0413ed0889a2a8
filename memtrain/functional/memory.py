"""How many images fit: batches that are no part of a result are as large as a budget of pixels allows."""

from __future__ import annotations

PIXELS = 64 * 128 * 128
"""Encoded at once: Stable Diffusion's autoencoder takes about 3 GB for them in fp32."""
MOST = 64
"""Images, however small."""


def images_at_once(height: int, width: int) -> int:
    """Images of this size, in pixels, that an autoencoder is given at once: 64 of up to 128 × 128, 4 of 512 × 512."""
    return max(1, min(MOST, PIXELS // (height * width)))
