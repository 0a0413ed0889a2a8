"""Distances of pixels on values whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memtrain.evaluation.measures.pixels import distance_between_prompts, diversity, pixel_distance


def flat(*values: int) -> Tensor:
    """An image of one grey for each value."""
    return torch.stack([torch.full((3, 4, 4), value, dtype=torch.uint8) for value in values])


def test_distances() -> None:
    torch.testing.assert_close(pixel_distance(flat(0, 51), flat(255, 0)), torch.tensor([1.0, 0.2]))
    spread = diversity(torch.stack([flat(0, 51, 255), flat(7, 7, 7)]))
    assert spread is not None
    torch.testing.assert_close(spread, torch.tensor([(0.2 + 1 + 0.8) / 3, 0.0]))
    assert diversity(flat(0, 1)[:, None]) is None
    assert distance_between_prompts(torch.stack([flat(0, 0), flat(51, 255)])) == pytest.approx(0.6)
    assert distance_between_prompts(flat(0)[None]) is None
