"""What training does to images in general, and to long captions, is no evidence."""

import pytest
import torch

from memtrain.errors import CalibrationError
from memtrain.evidence.calibration import Calibration
from memtrain.evidence.standardisation import length_edges
from memtrain.evidence.thresholds import heldout_method


def test_length_classes_have_their_share_of_heldout_samples() -> None:
    assert length_edges([]) == []
    assert length_edges([7] * 200) == [], "one length is one class"
    assert length_edges(list(range(40))) == [], "too few for two classes"
    assert length_edges(list(range(96))) == [32, 64]


def by_length(edges: list[int]) -> float:
    """Mean score of long-captioned samples, when training shifts long captions as a whole."""
    generator = torch.Generator().manual_seed(0)
    calibration = Calibration(
        1, scored=slice(0, 1), memorized_when="high", buckets=1, false_positive_rate=0.05, edges=edges
    )
    held = [f"held {index}" for index in range(90)]
    lengths = [30.0 if index % 9 == 0 else 8.0 for index in range(90)]
    plain = [f"long {index}" for index in range(60)]
    shift = torch.tensor([2.0 if length > 20 else 0.0 for length in lengths])[:, None]
    for step in range(30):
        calibration.add_heldout(held, [0] * 90, torch.randn(90, 1, generator=generator) + shift, lengths)
        values = 2.0 + torch.randn(60, 1, generator=generator)
        calibration.add(plain, [0] * 60, values, step=step, lengths=[30.0] * 60)
    return float(calibration.scores(plain).mean())


def test_a_shift_of_long_captions_as_a_whole_is_no_evidence() -> None:
    assert abs(by_length([20])) < 1
    assert by_length([]) > 2, "taken together, long captions would look memorized"


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_heldout_samples_make_no_classes_and_are_refused(count: int) -> None:
    assert length_edges([4, 9][:count]) == []
    with pytest.raises(CalibrationError, match=f"{count} held-out samples"):
        heldout_method(count, 0.01)
