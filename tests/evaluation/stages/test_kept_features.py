"""Features on disk: those that are computed, once, and gone on with after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from memtrain.evaluation.measures.copying.base import AT_ONCE, CopyMeasure
from memtrain.evaluation.measures.copying.find import copy_measures
from memtrain.evaluation.stages.kept_features import FeaturesFolder, features_of
from memtrain.files.lock import locked

IMAGES = torch.randint(0, 256, (AT_ONCE + 20, 3, 8, 8), generator=torch.Generator().manual_seed(0)).to(torch.uint8)


class Means(CopyMeasure):
    """Mean colour; counts what it describes, and dies after so many images."""

    name = "means"
    version = "1"

    def __init__(self, dies_after: int = 10**6) -> None:
        self.described, self.dies_after = 0, dies_after

    def describe(self, images: Tensor) -> Tensor:
        if self.described >= self.dies_after:
            raise KeyboardInterrupt
        self.described += len(images)
        return images.float().mean(dim=(2, 3))

    def similarity(self, first: Tensor, second: Tensor) -> Tensor:
        return -torch.cdist(first, second)


def test_features_are_computed_once_and_are_those_of_memory(tmp_path: Path) -> None:
    kept = FeaturesFolder(tmp_path, "these")
    expected = features_of(Means(), IMAGES)
    with pytest.raises(KeyboardInterrupt):
        features_of(Means(AT_ONCE), IMAGES, kept)
    rest = Means()
    assert torch.equal(features_of(rest, IMAGES, kept), expected)
    assert rest.described == 1 + 20, "one says how wide features are; the first block was kept"
    again = Means()
    assert torch.equal(features_of(again, IMAGES, kept), expected) and again.described == 1
    other = Means()
    other.version = "2"
    features_of(other, IMAGES, kept)
    features_of(other, IMAGES, FeaturesFolder(tmp_path, "others"))
    assert other.described == 2 * (1 + len(IMAGES))


def test_what_another_process_fills_is_computed_beside_it(tmp_path: Path) -> None:
    kept = FeaturesFolder(tmp_path, "these")
    features_of(Means(), IMAGES, kept)
    (folder,) = tmp_path.iterdir()
    with locked(folder, doing="the same"):
        beside = Means()
        assert torch.equal(features_of(beside, IMAGES, kept), features_of(Means(), IMAGES))
        assert beside.described == len(IMAGES)


def test_features_of_unknown_origin_are_not_kept(tmp_path: Path) -> None:
    measure = Means()
    measure.version = None
    features_of(measure, IMAGES, FeaturesFolder(tmp_path, "these"))
    assert not list(tmp_path.iterdir())


def test_measures_of_several_shapes_are_kept(tmp_path: Path) -> None:
    for measure in copy_measures(["builtin", "tiles", "correlation"])[0]:
        found = features_of(measure, IMAGES[:3], FeaturesFolder(tmp_path, "these"))
        assert torch.equal(found, measure.describe(IMAGES[:3]))
    assert len(list(tmp_path.iterdir())) == 3
