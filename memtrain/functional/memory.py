"""The number of images that fit in memory: batches without effect on results are as large as a pixel budget allows."""

from __future__ import annotations

PIXELS = 64 * 128 * 128
"""Pixels that are encoded at once: Stable Diffusion's autoencoder takes about 3 GB for them in fp32."""
MOST = 64
"""Highest number of images, also of small ones."""


BYTES_PER_PIXEL = 3200
"""Bytes that decoding takes in fp32 with Stable Diffusion's autoencoder: 25.8 GB for 32 images of 512 × 512."""


def images_at_once(height: int, width: int, *, free: int | None = None, bytes_per_number: int = 4) -> int:
    """Return how many images of a size an autoencoder gets at once: 64 of up to 128 × 128 pixels, 4 of 512 × 512.

    Args:
        height: height of an image, pixels.
        width: width of an image, pixels.
        free: free bytes of a device, half of which may be used, instead of the fixed budget.
        bytes_per_number: bytes of a number of the autoencoder's weights.
    """
    budget = PIXELS if free is None else free * 4 // (2 * BYTES_PER_PIXEL * bytes_per_number)
    return max(1, min(MOST, budget // (height * width)))
