"""The Fréchet distance in closed form, and against torchmetrics."""

from __future__ import annotations

import pytest
import torch
from torchmetrics.image.fid import _compute_fid

from memtrain.errors import DataError
from memtrain.evaluation.measures.frechet import frechet_distance

RANDOM = torch.Generator().manual_seed(0)


def test_along_one_axis_it_is_the_difference_of_means_and_of_deviations() -> None:
    x, y = torch.tensor([[0.0], [2.0]]), torch.tensor([[3.0], [9.0]])
    deviation = 2**0.5 - 18**0.5
    found = frechet_distance(x, y)
    assert found["value"] == pytest.approx(25 + deviation**2)
    assert (found["n_real"], found["n_generated"], found["full_rank"]) == (2, 2, True)


def test_a_shift_counts_with_its_square_and_the_same_set_not_at_all() -> None:
    x = torch.randn(50, 4, generator=RANDOM)
    assert frechet_distance(x, x)["value"] == pytest.approx(0, abs=1e-9)
    assert frechet_distance(x, x + torch.tensor([1.0, 0, 2.0, 0]))["value"] == pytest.approx(5, abs=1e-5)


def test_it_is_what_torchmetrics_computes() -> None:
    x, y = (torch.randn(40, 6, generator=RANDOM) @ torch.randn(6, 6, generator=RANDOM) for _ in range(2))
    statistics = [f(v.double()) for v in (x, y) for f in (lambda v: v.mean(0), lambda v: torch.cov(v.T))]
    assert frechet_distance(x, y)["value"] == pytest.approx(float(_compute_fid(*statistics)))
    assert not frechet_distance(x[:5], y)["full_rank"]


def test_one_image_has_no_spread() -> None:
    with pytest.raises(DataError, match="at least 2"):
        frechet_distance(torch.zeros(1, 3), torch.zeros(4, 3))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_no_image_and_one_are_refused_and_two_are_said_to_be_few(count: int) -> None:
    features = torch.randn(count, 3)
    if count < 2:
        with pytest.raises(DataError, match="at least 2 images"):
            frechet_distance(features, torch.randn(2, 3))
    else:
        found = frechet_distance(features, features)
        assert (found["value"], found["full_rank"]) == (pytest.approx(0, abs=1e-4), False)
