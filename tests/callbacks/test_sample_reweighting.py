"""Weights fall from `start` of the threshold to `floor` at it."""

import pytest
import torch

from memtrain.callbacks.sample_reweighting import SampleReweighting
from memtrain.errors import ConfigurationError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.flags import Flags
from memtrain.models.observation import Observation


def weights(mitigation: SampleReweighting, scores: list[float], threshold: float) -> list[float]:
    none = torch.zeros(len(scores), dtype=torch.bool)
    flags = Flags(none, none, torch.tensor(scores), threshold)
    return mitigation.weights(Observation([str(score) for score in scores]), flags).tolist()


def test_the_weight_falls_between_start_and_threshold() -> None:
    scores = [-3.0, 0.0, 2.0, 3.0, 4.0, 9.0]
    assert weights(SampleReweighting(), scores, 4.0) == [1.0, 1.0, 1.0, 0.5, 0.0, 0.0]
    assert weights(SampleReweighting(floor=0.2), scores, 4.0) == pytest.approx([1.0, 1.0, 1.0, 0.6, 0.2, 0.2])
    assert weights(SampleReweighting(start=0.0), scores, 4.0) == pytest.approx([1.0, 1.0, 0.5, 0.25, 0.0, 0.0])


def test_nothing_is_weighted_without_a_threshold() -> None:
    assert weights(SampleReweighting(), [9.0], float("inf")) == [1.0]


def test_a_sample_with_too_few_visits_keeps_its_weight_whatever_its_score() -> None:
    calibration = Calibration(1, scored=slice(0, 1), memorized_when="high", buckets=1, minimum_visits=4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(6):
        held = torch.randn(30, 1, generator=generator)
        calibration.add_heldout([f"held {index}" for index in range(30)], [0] * 30, held)
    reweighting, found = SampleReweighting(), []
    for step in range(4):
        calibration.add(["a"], [0], torch.tensor([[30.0]]), step=step)
        keys = ["new", "a"]
        none = torch.zeros(2, dtype=torch.bool)
        flags = Flags(none, none, calibration.scores(keys), calibration.threshold, keys, ready=calibration.ready(keys))
        found.append(reweighting.weights(Observation(keys), flags).tolist())
    assert found == [[1, 1], [1, 1], [1, 1], [1, 0]]


@pytest.mark.parametrize("options", [{"start": 1.0}, {"floor": 1.0}, {"start": -0.1}])
def test_impossible_settings_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigurationError, match="from 0 to below 1"):
        SampleReweighting(**options)
