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


class Found(NamedTuple):
    """What a measure found.

    Attributes:
        copied: similarities of the generations, and what they mean.
        planted: `(n,)` bool, of edited copies of training pictures, which are taken for copies.
        unplanted: `(m,)` bool, of pictures that the model has not seen, which are.
    """

    copied: Copied
    planted: Tensor
    unplanted: Tensor


def measured(measure: CopyMeasure, given: Compare) -> Found:
    """Describe, compare, calibrate and try one measure."""
    samples, calibrating = given.samples, given.calibrating
    features = described(measure, samples.training_images)
    compared = compare(
        measure,
        given.generated,
        samples.own_images,
        training=samples.training_images,
        mine=given.mine,
        features=features,
    )
    made = by_made_captions(samples, calibrating)
    calibration = _calibrated(measure, given, null_values(compared, calibrating, made=made), features)
    thresholds, factors = thresholds_of_prompts(
        measure,
        given.generated[calibrating],
        features,
        mine=given.mine,
        threshold=calibration.threshold,
        rate=None if made else calibration.false_positive_rate,
    )
    copied = Copied(measure.name, compared, calibration, thresholds, factors)
    return Found(copied, *_controls(measure, given, features, copied))


def _controls(measure: CopyMeasure, given: Compare, features: Tensor, copied: Copied) -> tuple[Tensor, Tensor]:
    """Planted copies against their pictures, pictures that the model has not seen against all; taken for copies."""
    planted = torch.zeros(0, dtype=torch.bool)
    rows = chosen_rows(given.trained)
    if rows:
        copies = measure.describe(planted_copies(given.perfect[rows]))
        own = [measure.similarity(copies[at : at + 1], features[given.mine[row]]).amax() for at, row in enumerate(rows)]
        planted = torch.stack(own).double() >= copied.thresholds[rows]
    unplanted = torch.zeros(0, dtype=torch.bool)
    rows = chosen_rows(given.unseen)
    if rows:
        alike = measure.similarity(measure.describe(given.perfect[rows]), features).amax(dim=1)
        unplanted = alike.double() >= copied.copy_of_any
    return planted, unplanted
