"""Edge consistency: one-step images of a memorized prompt have edges at the same places for every noise.

Method: the image after one step from each of K noises is decoded and reduced to its edge pixels. A pixel is an edge if
the length of the Sobel gradient, summed over colours, exceeds 1.5 for pixel values in [0, 1]. The score of a prompt is
the share of pixels that are edges in more than half of the images. The score of an image counts the common edges that
are also edges in this image.
Source: the black-box attack of Webster, "A Reproducible Extraction of Training Images from Diffusion Models" (2023).
Its traps are kept, because the constant 1.5 depends on them. The Sobel filter of a colour image also smooths over
colours (with weights 1, 2, 1, which multiplies gradients by 4). Guidance is on, although the code says otherwise.
`published=True` adds timestep 999 of the schedule, and resizes every image to 256 pixels. The default is the first
timestep of the sampling, and smaller images keep their size, because enlarging would weaken their edges.
Direction: higher means memorized.
Cost: one denoiser call and one decoding per seed, and one more call with `published`. 64 KB an image at 256 pixels.
Suggested values: four seeds, as published.
Cannot: use a single seed. Prompts whose images share an outline without being memorized, such as a logo in the middle
of a plain background, also score high.
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
"""Side of the compared images, in pixels."""
EDGE = 1.5
"""Gradient above which a pixel is an edge."""


class EdgeConsistency(Detector):
    """Share of pixels that are edges in most one-step images.

    Args:
        published: whether to use the last timestep of the schedule and 256 pixels, as in the published code.
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
        """`edge_consistency`, or `edge_consistency_published`."""
        return f"edge_consistency{'_published' if self.published else ''}"

    def calls(self, total: int) -> int:
        """One: the first call."""
        return 1

    def extra_forwards(self, total: int) -> int:
        """One with `published`, else none."""
        return int(self.published)

    def read(self, step: DenoiserStep) -> Tensor | None:
        """Return the edges of the first call's one-step images, `(B, H, W)` uint8."""
        if step.index > 0:
            return None
        assert step.decode is not None  # the sampler checks `needs`
        images = step.decode(one_step(step, published=self.published).clean)
        return edges(resized(images, enlarge=self.published).float() / 255).to(torch.uint8)

    def score_images(self, readings: Tensor) -> Tensor:
        """Return scores `(P, K)` from readings `(P, K, 1, H, W)`.

        Raises:
            ConfigurationError: if there is a single seed.
        """
        if readings.shape[1] < 2:
            raise ConfigurationError(
                "EdgeConsistency compares the images of a prompt, but there is only one",
                expected="at least two seeds, four as published",
                remedy="sample more images per prompt (--images_per_prompt), or leave out the detector",
            )
        found = readings[:, :, 0].bool()
        return (found & common_edges(found)[:, None]).float().mean(dim=(2, 3))

    def score(self, readings: Tensor) -> Tensor:
        """Return the share of pixels that are edges in most images, `(P,)`."""
        self.score_images(readings)
        return common_edges(readings[:, :, 0].bool()).float().mean(dim=(1, 2))


def common_edges(found: Tensor) -> Tensor:
    """Return edges in more than half of the K images, `(P, h, w)` bool, from `found` `(P, K, h, w)` bool."""
    return found.float().mean(dim=1) > 0.5


def resized(images: Tensor, *, enlarge: bool) -> Tensor:
    """Resize images to 256 pixels by Lanczos' filter.

    Args:
        images: the images, `(B, 3, H, W)` uint8.
        enlarge: whether to resize images with a side below 256 pixels as well.

    Returns:
        `(B, 3, 256, 256)` uint8, or the unchanged `images`.
    """
    if not enlarge and min(images.shape[-2:]) < SIZE:
        return images
    small = [
        np.asarray(Image.fromarray(image.numpy()).resize((SIZE, SIZE), resample=Image.Resampling.LANCZOS))
        for image in images.movedim(1, -1)
    ]
    return torch.from_numpy(np.stack(small)).movedim(-1, 1)


def edges(images: Tensor) -> Tensor:
    """Find the pixels with an edge.

    Args:
        images: the images, `(B, 3, H, W)`, in [0, 1].

    Returns:
        `(B, H, W)` bool.
    """
    slope, smooth = torch.tensor([-1.0, 0.0, 1.0]), torch.tensor([1.0, 2.0, 1.0])

    def along(values: Tensor, axis: int, kernel: Tensor) -> Tensor:
        """Correlate along one axis, with a repeated border."""
        moved = values.movedim(axis, -1)
        padded = F.pad(moved.flatten(0, -2)[:, None], (1, 1), mode="replicate")
        return F.conv1d(padded, kernel.to(values).view(1, 1, 3)).view(moved.shape).movedim(-1, axis)

    smoothed = along(images, 1, smooth)
    down = along(along(smoothed, 3, smooth), 2, slope)
    across = along(along(smoothed, 2, smooth), 3, slope)
    return torch.hypot(down, across).sum(dim=1) > EDGE
