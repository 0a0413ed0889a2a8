"""Edge consistency: the one-step images of a memorized prompt have edges, at the same places for every noise.

What: the image of one step from each of K noises is decoded and reduced to the pixels with an edge: the length of the
Sobel gradient of pixel values in [0, 1], summed over colours, above 1.5. The score is the share of pixels that are
edges in more than half of the images; that of an image, the share that are edges in it, too.
Source: the black-box attack of Webster, "A Reproducible Extraction of Training Images from Diffusion Models" (2023).
Its traps are kept, because the constant 1.5 goes with them: the Sobel filter of a colour image smooths over colours,
too (with weights 1, 2, 1, which multiplies gradients by 4), and guidance is on although the code says otherwise.
`published=True` adds timestep 999 of the schedule and the resizing of every image to 256 pixels; by default the first
timestep of the sampling serves, and smaller images stay as they are, because enlarging would weaken their edges.
Direction: higher means memorized.
Cost: one denoiser call and one decoding per seed, and one more call with `published`. 64 KB an image at 256 pixels.
Suggested values: four seeds, as published.
Cannot: use a single seed. Prompts whose images share an outline without being memorized, such as a logo in the middle
of a plain background, score high, too.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from memtrain.detectors.base import DenoiserStep, Detector
from memtrain.detectors.one_step import one_step
from memtrain.errors import ConfigurationError

SIZE = 256
"""Pixels that images are compared at."""
EDGE = 1.5
"""Gradient from which a pixel is an edge."""


class EdgeConsistency(Detector):
    """Share of pixels that are edges in most one-step images.

    Args:
        published: at the last timestep of the schedule and at 256 pixels, as published.
    """

    higher_means_memorized: ClassVar[bool] = True
    cost: ClassVar[str] = "one decoding per image beyond the first denoiser call, one more call with `published`"
    needs: ClassVar[frozenset[str]] = frozenset(
        {"conditional", "unconditional", "latents", "denoise", "decode", "alphas_cumprod", "guidance_scale"}
    )

    def __init__(self, *, published: bool = False) -> None:
        self.published = published

    @property
    def name(self) -> str:
        """`edge_consistency`, with `published` told."""
        return f"edge_consistency{'_published' if self.published else ''}"

    def calls(self, total: int) -> int:
        """The first."""
        return 1

    def extra_forwards(self, total: int) -> int:
        """One with `published`."""
        return int(self.published)

    def read(self, step: DenoiserStep) -> Tensor | None:
        """`(B, H, W)` uint8 edges of the first call's one-step images."""
        if step.index > 0:
            return None
        assert step.decode is not None  # the sampler checks `needs`
        images = step.decode(one_step(step, published=self.published).clean)
        return edges(resized(images, enlarge=self.published).float() / 255).to(torch.uint8)

    def score_images(self, readings: Tensor) -> Tensor:
        """`(P, K)` from readings `(P, K, 1, H, W)`.

        Raises:
            ConfigurationError: with a single seed.
        """
        if readings.shape[1] < 2:
            raise ConfigurationError(
                "EdgeConsistency compares the images of a prompt, and there is one",
                expected="at least two seeds, four as published",
                remedy="sample more images per prompt, or leave the detector out",
            )
        found = readings[:, :, 0].bool()
        return (found & common_edges(found)[:, None]).float().mean(dim=(2, 3))

    def score(self, readings: Tensor) -> Tensor:
        """`(P,)`: share of pixels that are edges in most images."""
        self.score_images(readings)
        return common_edges(readings[:, :, 0].bool()).float().mean(dim=(1, 2))


def common_edges(found: Tensor) -> Tensor:
    """`(P, h, w)` bool: edges in more than half of the K images, from `(P, K, h, w)` bool."""
    return found.float().mean(dim=1) > 0.5


def resized(images: Tensor, *, enlarge: bool) -> Tensor:
    """Images of 256 pixels, by Lanczos' filter.

    Args:
        images: `(B, 3, H, W)` uint8.
        enlarge: also where that makes a side longer.

    Returns:
        `(B, 3, 256, 256)` uint8, or `images` where they stay as they are.
    """
    if not enlarge and min(images.shape[-2:]) < SIZE:
        return images
    small = [
        np.asarray(Image.fromarray(image.numpy()).resize((SIZE, SIZE), resample=Image.Resampling.LANCZOS))
        for image in images.movedim(1, -1)
    ]
    return torch.from_numpy(np.stack(small)).movedim(-1, 1)


def edges(images: Tensor) -> Tensor:
    """Pixels with an edge.

    Args:
        images: `(B, 3, H, W)` in [0, 1].

    Returns:
        `(B, H, W)` bool.
    """
    slope, smooth = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])

    def along(values: Tensor, axis: int, kernel: Tensor) -> Tensor:
        """Correlation along one axis; the border is repeated."""
        moved = values.movedim(axis, -1)
        padded = F.pad(moved.flatten(0, -2)[:, None], (1, 1), mode="replicate")
        return F.conv1d(padded, kernel.to(values).view(1, 1, 3)).view(moved.shape).movedim(-1, axis)

    smoothed = along(images, 1, smooth)
    down = along(along(smoothed, 3, smooth), 2, slope)
    across = along(along(smoothed, 2, smooth), 3, slope)
    return torch.hypot(down, across).sum(dim=1) > EDGE
