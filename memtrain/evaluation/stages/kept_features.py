"""Features of training images on disk: computed once, block by block, and read by evaluations of all checkpoints.

A file is named after the images, the measure and its version. It is mapped into memory, so only the used features take
memory. A measure without a version keeps no features. If another process fills the same file, a process computes its
own features.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from memtrain.errors import ConfigurationError
from memtrain.evaluation.measures.copying.base import AT_ONCE, CopyMeasure
from memtrain.evaluation.sampling.stored_images import StoredBlocks, mapped_features
from memtrain.files.lock import locked


@dataclass(frozen=True)
class FeaturesFolder:
    """Folder in which features of some images are kept.

    Attributes:
        folder: the folder of the files.
        images: a name that identifies the images.
    """

    folder: Path
    images: str


def features_of(measure: CopyMeasure, images: Tensor, kept: FeaturesFolder | None = None) -> Tensor:
    """Compute the features of images block by block, or read them from a file.

    Args:
        measure: the measure that describes the images.
        images: the images `(M, 3, H, W)` uint8, in memory or mapped from a file.
        kept: the folder for the features; None to keep none.
    """
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(images), AT_ONCE)]
    if kept is None or measure.version is None or not parts:
        return torch.cat([measure.describe(images[part]) for part in parts])
    identity = {"images": kept.images, "measure": measure.name, "version": measure.version}
    key = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    folder = kept.folder / f"{measure.name}-{key}"
    try:
        with locked(folder, doing="describe training images"):
            first = measure.describe(images[:1])
            shapes = {"features": (str(first.dtype).removeprefix("torch."), (len(images), *first.shape[1:]))}
            blocks = StoredBlocks(folder, shapes, identity, block=AT_ONCE, name="features")
            for rows in blocks.missing():
                blocks.arrays["features"][rows.start : rows.stop] = measure.describe(
                    images[rows.start : rows.stop]
                ).numpy()
                blocks.complete(rows)
    except ConfigurationError:  # another process fills the file, or the disk is full
        return features_of(measure, images)
    return mapped_features(folder)
