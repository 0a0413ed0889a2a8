"""Running moments against torch, thresholds against coverage and scipy's quantiles."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from memtrain.functional.statistics import (
    conformal_threshold,
    discriminant,
    holm,
    left_out_separation,
    order_rate_bound,
    robust_p_values,
    robust_threshold,
    samples_needed,
    student_quantile,
    student_tail,
    tail_p_values,
    tail_threshold,
)


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.5, 1), (0.03, 33)])
def test_samples_needed(rate: float, needed: int) -> None:
    assert samples_needed(rate) == needed
    conformal_threshold(torch.arange(float(needed)), rate)
    if needed > 1:
        with pytest.raises(ValueError, match=f"at least {needed}"):
            conformal_threshold(torch.arange(float(needed - 1)), rate)


def test_conformal_threshold_keeps_the_stated_rate() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(4000, 40, generator=generator).exp()
    exceeded = sum(float(row[39]) > conformal_threshold(row[:39], 0.05) for row in draws)
    assert exceeded / 4000 == pytest.approx(0.05, abs=0.012)


def test_the_tail_bound_is_its_closed_form() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 12.0])
    # Median 4; the highest is 8 above it, the second 3.
    reach = 8 * 11 / 7
    assert tail_threshold(scores, 0.1) == pytest.approx(4 + reach)
    assert tail_threshold(scores, 0.1 / 8) == pytest.approx(4 + 2 * reach), "an eighth of the rate, twice the distance"
    even = torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 12.0, 12.0])
    assert tail_threshold(even, 0.1) == pytest.approx(4 + 8 * (1 + 2 ** (1 / 3)) / 2 * 11 / 7)


@pytest.mark.parametrize("freedom", [3, 300])
@pytest.mark.parametrize(("count", "rate"), [(15, 0.01), (60, 0.01), (120, 0.001)])
def test_the_tail_bound_keeps_the_stated_rate_with_heavy_tails(count: int, rate: float, freedom: int) -> None:
    draws = torch.as_tensor(stats.t(freedom).rvs((600, count), random_state=count))
    thresholds = [tail_threshold(row, rate) for row in draws]
    rates = stats.t(freedom).sf(thresholds)
    assert rates.mean() < 1.2 * rate
    # And 95 % of the draws stay below the bound that is stated beside it.
    assert (rates <= rate * (count + 1) * order_rate_bound(count, above=1)).mean() > 0.92


def test_the_bound_of_an_order_statistic_is_wilks_tolerance_bound() -> None:
    for count in (8, 59, 121):
        assert order_rate_bound(count, above=1) == pytest.approx(1 - 0.05 ** (1 / count))
    # 59 samples: 95 % sure that 95 % lie below the highest.
    assert order_rate_bound(59, above=1) < 0.05 < order_rate_bound(58, above=1)
    found = stats.binom.cdf(2, 80, order_rate_bound(80, above=3))
    assert found == pytest.approx(0.05), "fewer than three of 80 lie above at that rate in 5 % of the draws"


def test_tail_p_values_are_the_thresholds_backwards() -> None:
    null = torch.as_tensor(stats.gumbel_r().rvs(120, random_state=0))
    scores = torch.linspace(-3, 60, 400, dtype=torch.float64)
    found = tail_p_values(scores, null)
    assert (found.diff() <= 0).all()
    assert float(found[0]) == 1
    for rate in (0.0001, 0.001, 0.005):
        threshold = torch.tensor([tail_threshold(null, rate)], dtype=torch.float64)
        assert float(tail_p_values(threshold, null)) == pytest.approx(rate)
    highest = null.max()
    assert float(tail_p_values(highest[None], null)) == pytest.approx(2 / 121)
    assert float(tail_p_values(highest[None] + 1e-6, null)) == pytest.approx(1 / 121)
    assert tail_p_values(torch.tensor([math.nan]), null).isnan().all()


def test_robust_p_values_are_the_robust_threshold_backwards() -> None:
    bulk = torch.as_tensor(stats.gumbel_r().rvs(200, random_state=0))
    for freedom in (math.inf, 5.0):
        for rate in (0.001, 0.05):
            threshold = torch.tensor([robust_threshold(bulk, rate, upper=True, freedom=freedom)], dtype=torch.float64)
            found = robust_p_values(threshold, bulk, upper=True, freedom=freedom)
            assert float(found) == pytest.approx(rate, rel=1e-6)
    wider, normal = (robust_threshold(bulk, 0.001, freedom=freedom) for freedom in (5.0, math.inf))
    assert wider > normal


def test_robust_threshold_ignores_a_minority() -> None:
    scores = torch.randn(2000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    polluted = torch.cat([scores, torch.full((300,), 50.0, dtype=torch.float64)])
    assert robust_threshold(polluted, 0.01) == pytest.approx(stats.norm.ppf(0.99), abs=0.65)


def test_holms_correction() -> None:
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    assert holm(p).tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm(torch.tensor([0.6, 0.9])).tolist() == pytest.approx([1.0, 1.0])


def test_the_discriminant_is_fishers_and_has_unit_variance_under_the_negatives() -> None:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    negative = torch.randn(4000, 2, generator=generator, dtype=torch.float64) @ mixing.T
    positive = negative[:50] + torch.tensor([0.0, 2.0], dtype=torch.float64)
    direction, distance = discriminant(positive, negative, shrinkage=0.0)
    assert (negative @ direction).std().item() == pytest.approx(1, abs=0.01)
    difference = positive.mean(0) - negative.mean(0)
    best = torch.linalg.solve(torch.cov(negative.T), difference)
    assert torch.nn.functional.cosine_similarity(direction, best, dim=0) == pytest.approx(1, abs=1e-4)
    assert distance == pytest.approx(float((difference @ best).sqrt()), rel=1e-3)


def test_positives_left_out_show_how_much_of_a_separation_is_chance() -> None:
    generator = torch.Generator().manual_seed(0)
    negative = torch.randn(40, 16, generator=generator, dtype=torch.float64)
    chance, fitted, apart = [], [], []
    for _ in range(30):
        positive = torch.randn(4, 16, generator=generator, dtype=torch.float64)
        chance.append(left_out_separation(positive, negative))
        fitted.append(discriminant(positive, negative)[1])
        apart.append(left_out_separation(positive + 2, negative))
    assert sum(chance) / 30 == pytest.approx(0, abs=0.35)
    assert sum(fitted) / 30 > 2, "what it replaces"
    assert sum(apart) / 30 > 6


def test_the_upper_spread_covers_a_tail_to_the_right() -> None:
    generator = torch.Generator().manual_seed(0)
    highest = torch.randn(2000, 30, generator=generator).amax(dim=1).exp()
    both, upper = (robust_threshold(highest, 0.01, upper=side) for side in (False, True))
    assert upper > both
    assert (highest > upper).float().mean() < 0.8 * (highest > both).float().mean()
    even = torch.randn(20_000, generator=generator)
    assert robust_threshold(even, 0.01, upper=True) == pytest.approx(robust_threshold(even, 0.01), rel=0.05)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_spread_takes_three_scores(count: int) -> None:
    scores = torch.tensor([1.0, 5.0][:count], dtype=torch.float64)
    for threshold in (tail_threshold, robust_threshold):
        with pytest.raises(ValueError, match=f"at least 3 scores .*, found {count}"):
            threshold(scores, 0.05)
    with pytest.raises(ValueError, match=f"found {count}"):
        conformal_threshold(scores, 0.05)
    three = torch.tensor([1.0, 2.0, 3.0])
    assert all(2 < threshold(three, 0.05) < math.inf for threshold in (tail_threshold, robust_threshold))


@pytest.mark.parametrize("count", [1, 2])
def test_an_order_statistic_of_few_scores_is_the_highest_where_the_rate_allows(count: int) -> None:
    assert conformal_threshold(torch.tensor([1.0, 5.0][:count]), 1 / (count + 1)) == [1.0, 5.0][count - 1]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_p_values_of_few_scores_are_corrected_for_their_number(count: int) -> None:
    single = tail_p_values(torch.tensor([1.0, 2.5][:count]), torch.arange(4.0))
    expected = [[], [0.8], [0.8, 0.8]][count]
    assert holm(single).tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_direction_takes_one_positive_and_two_negatives_and_leaving_out_two_positives(count: int) -> None:
    few, many = torch.eye(2, dtype=torch.float64)[:count], torch.randn(20, 2, dtype=torch.float64)
    enough = {discriminant: (1, 2), left_out_separation: (2, 2)}
    for separate, (positives, negatives) in enough.items():
        for groups, fewest in (((few, many), positives), ((many, few), negatives)):
            if count < fewest:
                with pytest.raises(ValueError, match=f"found {count}"):
                    separate(*groups)
            else:
                found = separate(*groups)
                assert math.isfinite(found if isinstance(found, float) else found[1])


SCORES = st.lists(st.integers(-10_000, 10_000), min_size=8, max_size=40).map(
    lambda found: torch.tensor(found, dtype=torch.float64) / 100
)
RATE = st.floats(0.0005, 0.5)


def set_by(scores: torch.Tensor, rate: float) -> float:
    """As the monitor chooses."""
    enough = len(scores) >= samples_needed(rate)
    return conformal_threshold(scores, rate) if enough else tail_threshold(scores, rate)


@settings(max_examples=60, deadline=None)
@given(SCORES, RATE, RATE, st.floats(0.01, 100), st.floats(-100, 100))
def test_thresholds_are_monotone_in_the_rate_and_move_with_the_scores(
    scores: torch.Tensor, one: float, other: float, scale: float, shift: float
) -> None:
    low, high = sorted((one, other))
    assert set_by(scores, low) >= set_by(scores, high)
    assert robust_threshold(scores, low, upper=True, freedom=5) >= robust_threshold(scores, high, upper=True, freedom=5)
    assert set_by(scores[torch.randperm(len(scores))], one) == pytest.approx(set_by(scores, one))
    for threshold in (set_by, robust_threshold):
        moved = threshold(scale * scores + shift, one)
        assert moved == pytest.approx(scale * threshold(scores, one) + shift, rel=1e-6, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(SCORES, RATE)
def test_a_score_above_the_threshold_has_a_p_value_of_at_most_the_rate_and_no_other_has(
    scores: torch.Tensor, rate: float
) -> None:
    threshold = set_by(scores, rate)
    hair = 1e-9 * max(1.0, abs(threshold))
    below, above = tail_p_values(torch.tensor([threshold - hair, threshold + hair], dtype=torch.float64), scores)
    assert float(above) <= rate * (1 + 1e-5) + 1e-12
    assert float(below) >= rate * (1 - 1e-5)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12), st.randoms(use_true_random=False))
def test_holms_p_values_are_those_of_the_closed_testing_procedure(found: list[float], chance: random.Random) -> None:
    p = torch.tensor(found, dtype=torch.float64)
    ordered = sorted(found)
    # Each is the most that a smaller or equal one becomes, times the number of those that are not smaller than that.
    expected = [
        min(1.0, max((len(found) - rank) * ordered[rank] for rank in range(len(found)) if ordered[rank] <= one))
        for one in found
    ]
    assert holm(p).tolist() == pytest.approx(expected)
    order = list(range(len(found)))
    chance.shuffle(order)
    assert holm(p[order]).tolist() == pytest.approx([expected[row] for row in order])


@settings(max_examples=40, deadline=None)
@given(st.integers(8, 400), st.integers(1, 8))
def test_a_tolerance_bound_lies_above_the_average_and_falls_with_more_samples(count: int, above: int) -> None:
    bound = order_rate_bound(count, above=above)
    assert above / (count + 1) < bound <= 1
    assert order_rate_bound(2 * count, above=above) < bound
    assert order_rate_bound(count, above=above, confidence=0.5) < bound
    assert stats.binom.cdf(above - 1, count, bound) == pytest.approx(0.05, abs=1e-6)


@pytest.mark.parametrize("freedom", [1, 3, 5, 9, math.inf])
def test_students_tail_and_quantile_are_scipys(freedom: float) -> None:
    known = stats.norm if math.isinf(freedom) else stats.t(freedom)
    scores = torch.linspace(-8, 30, 60, dtype=torch.float64)
    assert student_tail(scores, freedom).tolist() == pytest.approx(known.sf(scores.numpy()), rel=1e-6, abs=1e-12)
    for rate in (0.5, 0.25, 0.01, 1e-4):
        assert student_quantile(rate, freedom) == pytest.approx(known.isf(rate), rel=1e-5, abs=1e-9)
