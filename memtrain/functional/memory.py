"""How many images fit: batches that are no part of a result are as large as a budget of pixels allows."""

from __future__ import annotations

PIXELS = 64 * 128 * 128
"""Encoded at once: Stable Diffusion's autoencoder takes about 3 GB for them in fp32."""
MOST = 64
"""Images, however small."""


BYTES_PER_PIXEL = 3200
"""What decoding takes in fp32 with Stable Diffusion's autoencoder: 25.8 GB for 32 images of 512 × 512."""


def images_at_once(height: int, width: int, *, free: int | None = None, bytes_per_number: int = 4) -> int:
    """Images of this size, in pixels, that an autoencoder is given at once: 64 of up to 128 × 128, 4 of 512 × 512.

    Args:
        height: of an image.
        width: of an image.
        free: bytes of a device, half of which may be used, in place of the fixed budget.
        bytes_per_number: of the autoencoder's weights.
    """
    budget = PIXELS if free is None else free * 4 // (2 * BYTES_PER_PIXEL * bytes_per_number)
    return max(1, min(MOST, budget // (height * width)))
