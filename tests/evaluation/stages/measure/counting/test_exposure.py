"""Exposure: closed forms."""

import math

import pytest
import torch

from memtrain.errors import DataError
from memtrain.evaluation.stages.measure.counting.exposure import (
    canary_exposure,
    exposure,
    exposure_by_repetition,
    null_mean,
    ranks,
)


def test_the_best_of_n_has_log2_n_bits_and_the_last_none():
    losses = torch.arange(64.0).expand(2, 64).clone()
    losses[1, 0] = 100
    rank = ranks(losses, lower_is_known=True)
    assert rank.tolist() == [1, 64]
    assert exposure(rank, 64).tolist() == [6, 0]


def test_a_model_that_answers_the_same_to_all_exposes_nothing():
    assert exposure(ranks(torch.ones(1, 32), lower_is_known=True), 32).item() == 0


def test_similarity_ranks_the_other_way():
    values = torch.tensor([[0.9, 0.1, 0.2, 0.95]])
    assert ranks(values, lower_is_known=False).item() == 2
    assert ranks(values, lower_is_known=True).item() == 3


def test_never_planted_secrets_have_the_null_mean():
    assert null_mean(1 << 16) == pytest.approx(1 / math.log(2), abs=1e-3)
    torch.manual_seed(0)
    bits = exposure(ranks(torch.rand(20000, 50), lower_is_known=True), 50)
    assert float(bits.mean()) == pytest.approx(null_mean(50), abs=0.03)


def test_the_curve_goes_by_repetition():
    table = exposure_by_repetition(torch.tensor([6.0, 1, 3, 6]), [100, 1, 1, 100], highest=6.0)
    assert [(one["repeats"], one["n"], one["mean"], one["saturated"]) for one in table] == [
        (1, 2, 2.0, 0),
        (100, 2, 6.0, 2),
    ]
    assert table[0]["interval"] == [1.0, 3.0]


def test_canaries_by_loss_and_by_similarity():
    losses = torch.tensor([[0.1, 0.5, 0.6, 0.7], [0.9, 0.5, 0.6, 0.7]])
    found = canary_exposure(losses=losses, similarity=-losses, keys=["canary#0", "canary#1"], repetitions=[100, 0])
    assert (found["highest"], found["candidates"]) == (2, 4)
    assert found["by_loss"] == found["by_similarity"]
    assert [one["bits"] for one in found["by_loss"]["each"]] == [2, 0]
    alone = canary_exposure(losses=losses, similarity=None, keys=["a", "b"], repetitions=[1, 1])
    assert alone["by_similarity"] is None


def test_what_does_not_belong_together():
    with pytest.raises(DataError, match="2 canaries, with values"):
        canary_exposure(losses=torch.rand(1, 4), similarity=None, keys=["a", "b"], repetitions=[1, 1])
    with pytest.raises(DataError, match="no siblings to rank a secret among"):
        ranks(torch.rand(3, 1), lower_is_known=True)
