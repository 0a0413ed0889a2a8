"""Published true-positive rates against scikit-learn's curve, and AUROC within strata by counting pairs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_curve

from memtrain.functional.ranking import auroc
from memtrain.functional.roc import published_rate, roc_points, stratified_auroc


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("count", [5, 40, 300])
def test_points_and_rates_are_those_of_the_published_scripts(count: int, ties: bool) -> None:
    generator = torch.Generator().manual_seed(count)
    for _ in range(20):
        labels = torch.rand(count, generator=generator) < 0.4
        labels[:2] = torch.tensor([True, False])
        scores = torch.randn(count, generator=generator) + labels
        scores = (2 * scores).round() if ties else scores
        false, true, _ = roc_curve(labels.numpy(), scores.numpy())
        ours = roc_points(scores, labels)
        np.testing.assert_allclose(ours[0], false)
        np.testing.assert_allclose(ours[1], true)
        for rate in (0.01, 0.03, 0.1):
            nearest, strict = true[np.argmin(abs(false - rate))], true[np.where(false < rate)[0][-1]]
            assert published_rate(scores, labels, false_positive_rate=rate, convention="nearest") == nearest
            assert published_rate(scores, labels, false_positive_rate=rate, convention="strict") == strict


def test_with_few_negatives_the_nearest_point_finds_nothing() -> None:
    """A perfect order of ten and ten: strict finds all, nearest takes (0, 0), which comes first."""
    labels = torch.arange(20) < 10
    scores = labels.float() + torch.linspace(0, 0.5, 20)
    assert published_rate(scores, labels, false_positive_rate=0.01, convention="strict") == 1
    assert published_rate(scores, labels, false_positive_rate=0.01, convention="nearest") == 0


def test_a_rate_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match="false_positive_rate"):
        published_rate(torch.rand(3), torch.tensor([True, False, True]), false_positive_rate=0.0, convention="strict")


def test_pairs_of_one_stratum_are_compared() -> None:
    scores = torch.tensor([1.0, 2.0, 2.0, 9.0, 8.0, 7.0, 5.0])
    labels = torch.tensor([True, False, True, False, True, False, True])
    strata = torch.tensor([0, 0, 0, 1, 1, 1, 2])
    value, (low, high), pairs = stratified_auroc(scores, labels, strata=strata, seed=0)
    assert pairs == 4
    assert value == pytest.approx((0 + 0.5 + 0 + 1) / 4)
    assert 0 <= low <= value <= high <= 1


def test_what_the_stratum_says_is_worth_nothing_within_it() -> None:
    generator = torch.Generator().manual_seed(0)
    strata = torch.randint(3, 9, (200,), generator=generator)
    labels = torch.rand(200, generator=generator) < strata / 10
    assert auroc(strata.double(), labels) > 0.6
    value, interval, _ = stratified_auroc(strata.double(), labels, strata=strata, seed=0)
    assert value == 0.5
    assert interval == (0.5, 0.5)


def test_one_stratum_is_everything() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(80, generator=generator) < 0.5
    scores = torch.randn(80, generator=generator) + labels
    value, (low, high), _ = stratified_auroc(scores, labels, strata=torch.zeros(80), seed=0)
    assert value == pytest.approx(float(auroc(scores, labels)))
    assert 0.1 < high - low < 0.35


def test_without_a_shared_stratum_nothing_is_said() -> None:
    value, interval, pairs = stratified_auroc(
        torch.rand(4), torch.tensor([True, True, False, False]), strata=torch.tensor([0, 0, 1, 1]), seed=0
    )
    assert value.isnan()
    assert (interval, pairs) == ((0.0, 1.0), 0)


@pytest.mark.parametrize("truth", [[], [True], [False], [True, True], [False, False]])
def test_a_class_alone_has_no_curve_and_no_pairs(truth: list[bool]) -> None:
    scores, labels = torch.arange(len(truth)).float(), torch.tensor(truth, dtype=torch.bool)
    with pytest.raises(ValueError, match="both classes are needed"):
        roc_points(scores, labels)
    value, interval, pairs = stratified_auroc(scores, labels, strata=torch.zeros(len(truth)), seed=0, resamples=5)
    assert (bool(value.isnan()), interval, pairs) == (True, (0.0, 1.0), 0)
