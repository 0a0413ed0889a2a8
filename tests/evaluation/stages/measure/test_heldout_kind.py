"""Held-out pictures of another kind than the training pictures prove nothing and clear nothing."""

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from memtrain.data.source import open_source
from memtrain.evaluation.measures.kind import of_one_kind
from memtrain.evaluation.stages.measure.heldout_kind import heldout_differs
from memtrain.evaluation.stages.run_samples import RunSamples
from tests.conftest import ROOT


@dataclass(frozen=True)
class Samples:
    """What is asked of a run's samples."""

    training_images: Tensor
    own_images: Tensor
    config: dict[str, Any]

    @property
    def usual_images(self) -> Tensor:
        return self.training_images


def pictures(name: str, *, first: int, count: int) -> Tensor:
    source = open_source(str(ROOT / "assets" / name))
    rows = [
        torch.frombuffer(bytearray(source.load_image(row).resize((64, 64)).tobytes()), dtype=torch.uint8)
        for row in range(first, first + count)
    ]
    return torch.stack(rows).view(count, 64, 64, 3).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def clipart() -> Tensor:
    return pictures("clipart-pd.tar", first=0, count=160)


def reasons(training: Tensor, held: Tensor, config: dict[str, Any]) -> list[str]:
    samples = cast(RunSamples, Samples(training, held, config))
    return [one.reason for one in heldout_differs(samples, torch.ones(len(held), dtype=torch.bool))]


def test_pictures_of_another_kind_are_told(clipart: Tensor) -> None:
    other = 255 - clipart[100:].float().mean(dim=1, keepdim=True).expand(-1, 3, -1, -1).to(torch.uint8)
    assert reasons(clipart[:100], other, {"heldout": "others"}) == ["heldout_differs"]
    assert reasons(clipart[:100], clipart[100:], {"heldout": "others"}) == []
    assert reasons(clipart[:100], other, {}) == [], "a part of the data is of the data's kind"
    assert reasons(clipart[:100], other[:7], {"heldout": "others"}) == [], "too few to tell"


@pytest.mark.slow
def test_p_values_of_one_kind_are_as_often_small_as_they_say(clipart: Tensor) -> None:
    found = []
    for seed in range(40):
        order = torch.randperm(len(clipart), generator=torch.Generator().manual_seed(seed))
        found.append(of_one_kind(clipart[order[:80]], clipart[order[80:]], seed=seed)[1])
    assert sum(p <= 0.25 for p in found) <= 18  # 10 expected; 18 or more come with a probability of 0.4 %
    assert 0.3 < sum(found) / len(found) < 0.7
