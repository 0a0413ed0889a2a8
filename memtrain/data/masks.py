"""Masks for the loss: the part of an image that is trained on.

A mask is a gray picture that is white where the loss counts and black where it does not. It comes from a file
(`mask_file` in the metadata, or `a.mask.png` beside `a.png`) or from the image's own alpha channel. The mask is cut and
mirrored like the image, and shrunk to the size of the latents by the mean of each latent's pixels. The batch field is
`loss_mask`, `(B, 1, h, w)`. An image without a mask counts everywhere.
Source: kohya's scripts and OneTrainer support both forms as masked loss.
Cost: each visit opens a small picture. Cannot: hide the masked part from the model: the autoencoder and the denoiser
see the whole image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from memtrain.data.framing import Frame, Shape
from memtrain.data.images import framed
from memtrain.data.source import SampleSource
from memtrain.errors import DataError
from memtrain.files.pictures import upright

Kind = Literal["files", "alpha", "off"]


class Masks:
    """The masks of a source's images.

    Args:
        source: the source of the images.
        kind: the origin of masks: `files` or `alpha`.
        factor: the number of pixels of an image for one latent, in rows and columns.
    """

    def __init__(self, source: SampleSource, kind: Kind, factor: int) -> None:
        self.source, self.kind, self.factor = source, kind, factor

    def __call__(self, index: int, frame: Frame) -> Tensor:
        """Return the mask of `source.samples[index]` in a frame, `(1, h, w)` from 0 to 1."""
        shape = frame.shape[0] // self.factor, frame.shape[1] // self.factor
        mask = load_mask(self.source, index, self.kind)
        if mask is None:
            return torch.ones(1, *shape)
        cut = framed(mask, replace(frame, shape=shape), method=Image.Resampling.BOX)
        return torch.from_numpy(np.array(cut, dtype=np.float32) / 255)[None]

    def require_seen(self, indices: Sequence[int], shapes: Sequence[Shape]) -> None:
        """Refuse a mask if the fixed view of its image shows nothing of its white part.

        Args:
            indices: the indices of the samples.
            shapes: the shapes to which they are cut.

        Raises:
            DataError: with the names of the samples.
        """
        views = zip(indices, shapes, strict=True)
        unseen = [self.source.samples[index].key for index, shape in views if not self(index, Frame(shape)).any()]
        if unseen:
            raise DataError(
                f"The masks of {len(unseen)} image(s) in {self.source.path} are black in the center, first "
                f"{unseen[:3]}",
                expected="some white in the part that stays when an image is cut to its shape around the center",
                remedy="correct the masks, exclude these images, or set data.init_args.buckets, which cut off less",
            )


def load_mask(source: SampleSource, index: int, kind: Kind) -> Image.Image | None:
    """Load the mask of `source.samples[index]`, decoded and upright; None if it has none.

    Raises:
        DataError: if it cannot be read, has another aspect ratio than the image, or is black everywhere.
    """
    key = source.samples[index].key
    expected = "a picture of the image's aspect ratio, white where the loss counts"
    try:
        mask = source.open_image(index) if kind == "alpha" else source.open_mask(index)
        if mask is None:
            return None
        mask = upright(mask)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(
            f"The mask of sample {key!r} in {source.path} cannot be read: {error}",
            expected=expected,
            remedy="repair or remove it, then start again",
        ) from error
    if kind == "alpha":
        if mask.mode not in ("RGBA", "LA", "PA") and "transparency" not in mask.info:
            return None
        mask = mask.convert("RGBA").getchannel("A")
    mask = mask.convert("L")
    (width, height), (columns, rows) = source.look(index).size, mask.size
    if abs(width * rows - height * columns) > 0.01 * width * rows or not mask.getbbox():
        raise DataError(
            f"The mask of sample {key!r} in {source.path} "
            + ("is black everywhere" if not mask.getbbox() else f"is {columns} x {rows}, the image {width} x {height}"),
            expected=expected,
            remedy="correct the mask, or remove it to train on the whole image",
        )
    return mask


def masked(source: SampleSource, kind: Kind) -> int:
    """Count the images of a source that have a mask; each mask is read once.

    Raises:
        DataError: if a mask cannot be used.
    """
    return sum(load_mask(source, index, kind) is not None for index in range(len(source)))
