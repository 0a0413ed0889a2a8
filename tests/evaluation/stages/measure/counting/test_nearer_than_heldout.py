"""The data-copying test against scipy's Mann-Whitney statistic and the authors' formula."""

import numpy as np
import pytest
import torch
from scipy import stats

from memtrain.errors import DataError
from memtrain.evaluation.stages.measure.counting.nearer_than_heldout import (
    nearer_than_heldout,
    over_cells,
    standardised,
    training_cells,
)


@pytest.fixture(scope="module")
def similarities():
    torch.manual_seed(0)
    return torch.randn(30, 4), torch.randn(80) + 0.3


def published(generated, heldout):
    """Z_U as the authors compute it, of distances."""
    m, n = len(generated), len(heldout)
    u, _ = stats.mannwhitneyu(-generated.numpy(), -heldout.numpy(), alternative="less")
    return (u - (n * m / 2 - 0.5)) / np.sqrt(n * m * (n + m + 1) / 12)


def test_the_statistic_is_the_authors(similarities):
    generated, heldout = similarities
    assert standardised(generated.flatten(), heldout) == pytest.approx(published(generated.flatten(), heldout))
    tied = (generated.flatten() * 2).round()
    assert standardised(tied, heldout.round()) == pytest.approx(published(tied, heldout.round()))


def test_cells_are_weighted_by_held_out_pictures_and_small_ones_left_out(similarities):
    generated, heldout = similarities
    mine, theirs = torch.arange(120).view(30, 4) % 2, (torch.arange(80) < 20).long()
    mine[0, 0], theirs[0] = 2, 2  # a cell of one generation
    expected = sum(
        int((theirs == cell).sum()) * published(generated[mine == cell], heldout[theirs == cell]) for cell in (0, 1)
    ) / int((theirs < 2).sum())
    assert over_cells(generated, heldout, cells=(mine, theirs)) == pytest.approx(expected)
    assert over_cells(generated, heldout, cells=(mine, theirs), fewest=1000) is None


def test_copies_are_nearer_and_others_are_not(similarities):
    _, heldout = similarities
    copied = nearer_than_heldout(torch.full((30, 4), 9.0), heldout)
    assert (copied["probability"], copied["share"], copied["copies"]) == (1, 1, True)
    assert copied["z_u"] < -8
    far = nearer_than_heldout(torch.full((30, 4), -9.0), heldout)
    assert (far["probability"], far["share"], far["copies"], far["nearer"]) == (0, 0, False, 0)


def test_the_plain_share_of_one_distribution_is_the_expected_one():
    torch.manual_seed(2)
    found = nearer_than_heldout(torch.randn(400, 4), torch.randn(2000), resamples=200)
    assert found["expected"] == 0.05
    low, high = found["interval"]
    assert low < 0.05 < high
    assert found["probability_interval"][0] < 0.5 < found["probability_interval"][1]
    assert not found["copies"]


def test_generations_of_one_prompt_widen_the_interval(similarities):
    _, heldout = similarities
    torch.manual_seed(3)
    once = torch.randn(20, 1)
    alone = nearer_than_heldout(once, heldout)["probability_interval"]
    again = nearer_than_heldout(once.expand(20, 50), heldout)["probability_interval"]
    assert again == pytest.approx(alone), "fifty times the same is no more evidence"


def test_clusters_far_apart_are_cells():
    torch.manual_seed(0)
    truth = torch.arange(60) % 3
    # Of 12 seeds the best: Lloyd's algorithm may stop with two centres in one cluster.
    features = torch.randn(60, 2, 2) + 50 * truth[:, None, None]
    found = [training_cells(features, 3, seed=seed) for seed in range(12)]
    pure = [all(len(labels[truth == one].unique()) == 1 for one in range(3)) for labels in found]
    assert any(pure)
    assert max(len(labels.unique()) for labels in found) == 3


def test_without_held_out_pictures():
    with pytest.raises(DataError, match="1 held-out pictures"):
        nearer_than_heldout(torch.zeros(1, 1), torch.zeros(1))
