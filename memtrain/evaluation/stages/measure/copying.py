"""Every measure of copying on the generations of a run or folder: compared, calibrated, tried on controls."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import AT_ONCE, CopyMeasure
from memtrain.evaluation.stages.run_samples import RunSamples
from memtrain.records import HELDOUT, NEVER_TRAINED


class Compare(NamedTuple):
    """What generations are compared with.

    Attributes:
        samples: P prompts, and the training images.
        generated: `(P, K, 3, H, W)` uint8.
        perfect: `(P, 3, H, W)` uint8, own images through the model's autoencoder and back.
        family: `(M,)`, the same number for training images that are one picture.
        mine: per prompt the training images that are its own.
        calibrating: `(P,)` bool, the prompts that say what comes by chance.
        rate: false-positive rate that they can promise; None where there are none.
    """

    samples: RunSamples
    generated: Tensor
    perfect: Tensor
    family: Tensor
    mine: list[list[int]]
    calibrating: Tensor
    rate: float | None

    @property
    def trained(self) -> Tensor:
        """`(P,)` bool, the prompts whose picture was trained on."""
        return torch.tensor([prompt.group not in NEVER_TRAINED for prompt in self.samples.prompts], dtype=torch.bool)

    @property
    def unseen(self) -> Tensor:
        """`(P,)` bool, the held-out prompts whose picture the model has not seen."""
        held = torch.tensor([prompt.group == HELDOUT for prompt in self.samples.prompts], dtype=torch.bool)
        return held & self.calibrating


def described(measure: CopyMeasure, images: Tensor) -> Tensor:
    """Features of images `(M, 3, H, W)`, which may lie in a file, block by block."""
    return torch.cat([measure.describe(images[start : start + AT_ONCE]) for start in range(0, len(images), AT_ONCE)])
