"""Ranking statistics against closed forms, torchmetrics and simulation."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torchmetrics.functional.classification import binary_auroc

from memtrain.functional.ranking import (
    auroc,
    bootstrap_interval,
    highest,
    lower_threshold,
    mean_with_interval,
    proportion_interval,
    share,
    true_positive_rate,
)


def test_the_highest_of_equals_are_the_first() -> None:
    """Against Python's stable sort, along the last dimension, and with more asked for than there are."""
    values = torch.randint(0, 4, (3, 300), generator=torch.Generator().manual_seed(0)).float()
    expected = [sorted(range(300), key=lambda index, row=row: -float(row[index])) for row in values]
    assert highest(values, 90).tolist() == [row[:90] for row in expected]
    assert highest(values, 1000).tolist() == expected
    assert highest(values, 0).shape == (3, 0)


def test_auroc_counts_ties_as_one_half() -> None:
    """Pairs (3,1) (3,2) (2,1) are right and (2,2) is a tie: 3.5 of 4."""
    assert auroc(torch.tensor([3.0, 2.0, 1.0, 2.0]), torch.tensor([1, 1, 0, 0])) == 3.5 / 4


def test_the_interval_of_a_mean() -> None:
    values = torch.randn(200, generator=torch.Generator().manual_seed(0))
    found: dict[str, Any] = mean_with_interval(values, seed=0)
    assert found["mean"] == pytest.approx(float(values.double().mean()))
    half = 1.96 * float(values.std()) / 200**0.5
    low, high = found["interval"]
    assert found["mean"] - low == pytest.approx(half, rel=0.15) and high - found["mean"] == pytest.approx(
        half, rel=0.15
    )
    assert mean_with_interval(torch.ones(1)) == {"mean": 1.0, "interval": None}
    assert mean_with_interval(torch.ones(0)) == {"mean": None, "interval": None}


def test_a_share_has_an_interval() -> None:
    assert share([True, False, True]) == {"k": 2, "n": 3, "share": 2 / 3, "interval": list(proportion_interval(2, 3))}
    assert share([])["share"] is None


def test_auroc_agrees_with_torchmetrics_within_the_unit_interval() -> None:
    """With many ties; in [0, 1], where torchmetrics leaves scores as they are."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 8, (200,), generator=generator) / 8
    labels = torch.rand(200, generator=generator) < 0.3
    assert float(auroc(scores, labels)) == pytest.approx(float(binary_auroc(scores, labels.long())), abs=1e-6)


def test_auroc_of_large_scores_is_not_flattened() -> None:
    """Scores far above 1, as norms are, keep their order, where a sigmoid in fp32 would tie them all."""
    assert auroc(torch.tensor([90.0, 91.0, 50.0, 40.0]), torch.tensor([1, 1, 0, 0])) == 1


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0]])
def test_one_class_is_refused(labels: list[int]) -> None:
    """There is nothing to rank."""
    with pytest.raises(ValueError, match="both classes"):
        auroc(torch.rand(3), torch.tensor(labels))


def test_non_finite_scores_are_refused() -> None:
    """A NaN would sort to an end and look like evidence."""
    with pytest.raises(ValueError, match="finite"):
        auroc(torch.tensor([1.0, math.nan]), torch.tensor([1, 0]))


def test_true_positive_rate_never_exceeds_the_false_positive_rate() -> None:
    """Negatives 0..9: at 10 % one may pass, so the threshold is 8 and of 7.5, 8, 8.5, 20 two are found."""
    scores = torch.cat([torch.arange(10.0), torch.tensor([7.5, 8.0, 8.5, 20.0])])
    labels = torch.cat([torch.zeros(10), torch.ones(4)])
    assert true_positive_rate(scores, labels, false_positive_rate=0.1) == 0.5
    assert true_positive_rate(scores, labels, false_positive_rate=0.09) == 0.25


def test_bootstrap_interval_is_seeded_and_covers_the_value() -> None:
    """Same seed, same interval; the point estimate lies inside; more data make it narrower."""
    generator = torch.Generator().manual_seed(0)

    def interval(n: int, seed: int) -> tuple[float, float]:
        scores = torch.randn(2 * n, generator=generator.manual_seed(n)) + torch.arange(2 * n).ge(n)
        labels = torch.arange(2 * n) >= n
        low, high = bootstrap_interval(auroc, scores, labels, seed=seed, resamples=200)
        assert low < auroc(scores, labels) < high
        return low, high

    assert interval(30, 1) == interval(30, 1) != interval(30, 2)
    (low, high), (low_many, high_many) = interval(30, 1), interval(500, 1)
    assert high_many - low_many < high - low


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    # Newcombe, "Two-sided confidence intervals for the single proportion" (1998), table I, method 3 (score).
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_interval_as_published(k: int, n: int, low: float, high: float) -> None:
    """To the four digits of the table."""
    assert proportion_interval(k, n) == pytest.approx((low, high), abs=5e-5)


def test_proportion_interval_at_the_ends() -> None:
    """No trial tells nothing; none and all of n give an end that is exact."""
    assert proportion_interval(0, 0) == (0, 1)
    assert proportion_interval(0, 24)[0] == 0
    assert proportion_interval(24, 24)[1] == 1
    with pytest.raises(ValueError, match="between 0 and n"):
        proportion_interval(3, 2)


def test_lower_threshold_is_the_order_statistic() -> None:
    """n = 39 at 5 %: k = 2, so one of the 39 lies strictly below."""
    scores = torch.randperm(39).float()
    assert lower_threshold(scores, 0.05) == 1.0
    assert lower_threshold(torch.arange(19.0), 0.05) == 0.0


def test_lower_threshold_says_how_many_scores_are_needed() -> None:
    """18 scores cannot bound a rate of 5 %, 19 can."""
    with pytest.raises(ValueError, match=r"at least 19 .*found 18"):
        lower_threshold(torch.arange(18.0), 0.05)


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1])
def test_lower_threshold_refuses_impossible_rates(rate: float) -> None:
    """A rate of 0 needs infinitely many scores."""
    with pytest.raises(ValueError, match="rate"):
        lower_threshold(torch.arange(100.0), rate)


def test_lower_threshold_holds_its_rate() -> None:
    """Over 4,000 draws of 24 null scores, a further one falls below at a rate of 1/25, not above the 5 % promised."""
    draws = torch.rand(4000, 25, generator=torch.Generator().manual_seed(0))
    below = sum(float(row[24]) < lower_threshold(row[:24], 0.05) for row in draws)
    assert below / 4000 == pytest.approx(1 / 25, abs=0.01)


@pytest.mark.parametrize("truth", [[], [True], [False], [True, True], [False, False]])
def test_figures_of_a_class_alone_are_refused_whatever_its_size(truth: list[bool]) -> None:
    scores, labels = torch.arange(len(truth)).float(), torch.tensor(truth, dtype=torch.bool)
    for figure in (
        auroc,
        lambda s, t: true_positive_rate(s, t, false_positive_rate=0.1),
        lambda s, t: bootstrap_interval(auroc, s, t, seed=0, resamples=5),
    ):
        with pytest.raises(ValueError, match="both classes are needed"):
            figure(scores, labels)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_null_scores_promise_what_their_number_can(count: int) -> None:
    scores = torch.tensor([3.0, 1.0][:count])
    with pytest.raises(ValueError, match=f"found {count}"):
        lower_threshold(scores, 0.3)
    if count:
        assert lower_threshold(scores, 1 / (count + 1)) == scores.min()


def test_the_share_of_none_is_unknown_and_that_of_one_nearly_so() -> None:
    assert proportion_interval(0, 0) == (0.0, 1.0)
    for k, n in ((0, 1), (1, 1), (0, 2), (1, 2), (2, 2)):
        low, high = proportion_interval(k, n)
        assert 0 <= low <= k / n <= high <= 1
        assert high - low > 0.6


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 500), st.data())
def test_wilsons_interval_is_scipys_and_mirrors(n: int, data: st.DataObject) -> None:
    k, level = data.draw(st.integers(0, n)), data.draw(st.sampled_from([0.5, 0.9, 0.95, 0.99]))
    low, high = proportion_interval(k, n, level=level)
    expected = stats.binomtest(k, n).proportion_ci(level, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= k / n <= high <= 1
    assert proportion_interval(n - k, n, level=level) == pytest.approx((1 - high, 1 - low))
