"""Key errors and bits: closed forms."""

import math

import pytest
import torch

from memtrain.errors import DataError
from memtrain.evaluation.stages.measure.counting.border_keys import (
    agreement,
    border_exposure,
    correlation,
    guess_bits,
    key_errors,
    p_values,
)


def test_the_error_is_that_of_the_mean_answer():
    errors = key_errors(torch.tensor([[0.2, 0.4], [1.0, 1.0]]), torch.tensor([0.5, 0.0]))
    assert errors.tolist() == pytest.approx([0.2, 1.0], abs=1e-6)


def test_bits_are_those_of_a_blind_guess():
    painted = torch.tensor([[0.5], [0.5], [0.0], [0.9]])
    levels = torch.tensor([0.75, 0.5, 0.25, 0.1])
    # Within a quarter of the middle: half of all levels. Right on it: two half grey levels. At the end one side alone.
    assert guess_bits(painted, levels).tolist() == pytest.approx([1, 8, 2, -math.log2(0.9)], abs=1e-5)


def test_a_guess_beats_itself_by_about_one_and_a_half_bits_on_average():
    torch.manual_seed(0)
    bits = guess_bits(torch.rand(20000, 1), torch.rand(20000))
    # Minus the logarithm of a uniform number, but for errors that reach beyond one end.
    assert 1.3 < float(bits.mean()) < 1.6


def test_p_values_count_held_out_scores_that_are_no_lower():
    assert p_values(torch.tensor([0.9, 0.2, 0.05]), torch.tensor([0.1, 0.2, 0.3])).tolist() == [0.25, 0.75, 1]


def test_half_a_memory_is_found_although_its_errors_are_large():
    torch.manual_seed(0)
    levels, repetitions = torch.rand(240), [0] * 160 + [1] * 40 + [9] * 40
    painted = 0.7 + 0.02 * torch.randn(240, 1)
    painted[200:, 0] += 0.3 * (levels[200:] - 0.5)
    found = border_exposure(painted, levels, keys=["k"] * 240, repetitions=repetitions, rate=0.05)
    unique, repeated = found["by_repetition"][1:]
    assert repeated["correlation"]["interval"][0] > 0.9 > 0.5 > unique["correlation"]["interval"][1]
    assert repeated["remembered"] > 12 > 6 > unique["remembered"]
    assert found["below_unique"]["interval"][0] < 0.5, "key errors do not tell them"
    assert found["agrees_above_unique"]["interval"][0] > 0.7


def test_agreement_is_positive_the_way_of_the_secret():
    painted, held = torch.tensor([[0.5], [0.7], [0.7], [0.3]]), torch.tensor([True, False, False, False])
    found = agreement(painted, torch.tensor([0.5, 0.9, 0.1, 0.1]), held)
    assert found.tolist() == pytest.approx([0, 0.08, -0.08, 0.08], abs=1e-6)


def test_correlation_has_fishers_interval():
    assert correlation(torch.rand(3, 1), torch.rand(3)) is None
    found = correlation(torch.tensor([[0.0], [1], [0], [1], [0.5]]), torch.tensor([0.0, 1, 1, 0, 0.5]))
    assert found["value"] == pytest.approx(0)
    assert found["interval"] == pytest.approx([-math.tanh(1.96 / 2**0.5), math.tanh(1.96 / 2**0.5)])


@pytest.fixture(scope="module")
def found():
    torch.manual_seed(0)
    levels = torch.rand(160)
    repetitions = [0] * 120 + [1] * 20 + [50] * 20
    painted = torch.rand(160, 2)
    painted[140:] = levels[140:, None] + 0.001
    return border_exposure(painted, levels, keys=[f"k{row}" for row in range(160)], repetitions=repetitions, rate=0.01)


def test_repeated_samples_that_are_painted_right_are_told_from_others(found):
    rows = found["by_repetition"]
    assert [(row["repeats"], row["n"]) for row in rows] == [(0, 120), (1, 20), (50, 20)]
    assert rows[2]["remembered"] == 20
    assert rows[0]["remembered"] is None
    assert rows[2]["bits"]["mean"] > 7 > 3 > rows[1]["bits"]["mean"]
    assert rows[2]["errors"]["median"] == pytest.approx(0.001, abs=1e-4)
    assert found["below_unique"]["probability"] > 0.95
    assert (found["below_unique"]["n"], found["below_unique"]["against"]) == (20, 20)
    assert {one["repeats"] for one in found["each"][:15]} == {50}, "the most exposed first"


def test_samples_that_are_painted_at_random_are_not(found):
    low, high = found["unique_below_heldout"]["interval"]
    assert low < 0.5 < high
    assert found["by_repetition"][1]["remembered"] <= 2


def test_few_held_out_samples_raise_the_rate_instead_of_clearing_everybody():
    levels = torch.tensor([0.1, 0.2, 0.3, 0.4])
    found = border_exposure(
        torch.tensor([[0.1], [0.9], [0.9], [0.9]]), levels, keys=list("abcd"), repetitions=[5, 0, 0, 0]
    )
    assert (found["rate"], found["by_repetition"][1]["remembered"]) == (0.5, 1)


def test_without_held_out_samples():
    with pytest.raises(DataError, match="0 held-out samples"):
        border_exposure(torch.rand(2, 1), torch.rand(2), keys=["a", "b"], repetitions=[1, 2])
