"""P-values: exact where prompts and null prompts come from one place, and equal to the long way of computing them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.linear_model import LinearRegression
from torch import Tensor

from memtrain.evaluation.stages.detect.p_values import (
    benjamini_hochberg,
    combined_p_values,
    fewest_to_name,
    fit_of_null,
    holm,
    p_values,
    suggested_count,
)


def drawn(seed: int, prompts: int, null: int) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Scores that grow with the length, of prompts and null prompts alike."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(5, 30, (prompts + null,), generator=generator)
    score = 0.2 * lengths + torch.randn(prompts + null, generator=generator)
    about = {"lengths": lengths[:prompts], "null_lengths": lengths[prompts:]}
    return score[:prompts], score[prompts:], about


def test_without_lengths_it_is_the_share_that_scores_as_high() -> None:
    alike = {"lengths": torch.full((3,), 7), "null_lengths": torch.full((4,), 7)}
    found = p_values(torch.tensor([3.0, 0.0, 9.0]), torch.tensor([1.0, 3.0, -2.0, 4.0]), **alike)
    torch.testing.assert_close(found, torch.tensor([3 / 5, 4 / 5, 1 / 5], dtype=torch.float64))


def test_lengths_are_matched_by_a_regression_that_holds_the_prompt_too() -> None:
    """Independently: scikit-learn, fitted once for each prompt; of positive scores, the logarithms."""
    score, null, about = drawn(0, 12, 40)
    both = torch.cat([p_values(score - 50, null - 50, **about), p_values(score.exp(), null.exp(), **about)])
    for number, found in enumerate(both.tolist()):
        row = number % 12
        x = np.append(about["null_lengths"].numpy(), about["lengths"][row])[:, None]
        y = np.append(null.numpy(), score[row]).astype(float)
        left = y - LinearRegression().fit(x, y).predict(x)
        assert found == pytest.approx((left >= left[-1] - 1e-12).sum() / 41)


def test_they_are_uniform_where_nothing_differs_and_small_where_it_does() -> None:
    found, together = [], []
    for seed in range(120):
        score, null, about = drawn(seed, 2, 19)
        found.append(p_values(score, null, **about)[0])
        other = {"a": score, "b": 0.5 * score + torch.randn(2, generator=torch.Generator().manual_seed(seed))}
        nulls = {"a": null, "b": 0.5 * null + torch.randn(19, generator=torch.Generator().manual_seed(1000 + seed))}
        together.append(combined_p_values(other, nulls, **about)[0])
    for each in (found, together):
        values = torch.stack(each)
        # Multiples of 1/20, each as likely.
        counts = torch.bincount((values * 20).round().long() - 1, minlength=20).view(5, 4).sum(dim=1)
        assert stats.chisquare(counts.numpy()).pvalue > 0.01
    score, null, about = drawn(5, 2, 99)
    assert p_values(score + 50, null, **about).tolist() == [0.01, 0.01]


def test_detectors_that_see_nothing_do_not_hide_one_that_does() -> None:
    generator = torch.Generator().manual_seed(0)
    score, null, about = drawn(3, 4, 199)
    scores = {"sees": score + torch.tensor([20.0, 0, 0, 0])}
    nulls = {"sees": null}
    for name in "abcd":
        scores[name], nulls[name] = torch.randn(4, generator=generator), torch.randn(199, generator=generator)
    found = combined_p_values(scores, nulls, **about)
    assert found[0] <= 0.02
    assert (found[1:] > 0.02).all()


def test_one_detector_together_is_that_detector() -> None:
    score, null, about = drawn(4, 5, 60)
    torch.testing.assert_close(combined_p_values({"a": score}, {"a": null}, **about), p_values(score, null, **about))


def test_corrections_for_many_prompts() -> None:
    p = torch.tensor([0.01, 0.04, 0.03, 0.005], dtype=torch.float64)
    torch.testing.assert_close(holm(p), torch.tensor([0.03, 0.06, 0.06, 0.02], dtype=torch.float64))
    torch.testing.assert_close(benjamini_hochberg(p), torch.tensor([0.02, 0.04, 0.04, 0.02], dtype=torch.float64))


@pytest.mark.parametrize("prompts", [1, 10, 11, 49, 50, 500])
def test_as_many_null_prompts_as_name_one_or_so_many_prompts(prompts: int) -> None:
    null = suggested_count(prompts)
    fewest = fewest_to_name(prompts, null)
    assert fewest == 1 or null == 999
    p = torch.full((prompts,), 0.5, dtype=torch.float64)
    p[:fewest] = 1 / (null + 1)
    assert int((benjamini_hochberg(p) < 0.05).sum()) == fewest
    p[fewest - 1] = 0.5
    assert int((benjamini_hochberg(p) < 0.05).sum()) == 0


def test_half_of_what_fits_lies_above_the_middle() -> None:
    found = fit_of_null(torch.tensor([0.1, 0.2, 0.6, 0.9]))["above_median"]
    assert (found["k"], found["n"], found["share"]) == (2, 4, 0.5)
    assert found["interval"][0] < 0.5 < found["interval"][1]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 200).map(lambda rank: rank / 200), min_size=1, max_size=30))
def test_corrected_p_values_are_monotone_and_those_of_step_down_and_step_up(found: list[float]) -> None:
    p = torch.tensor(found, dtype=torch.float64)
    step_down, step_up, order = holm(p), benjamini_hochberg(p), p.argsort()
    assert (step_down >= step_up - 1e-12).all() and (step_up >= p - 1e-12).all()
    for corrected in (step_down, step_up):
        assert (corrected[order].diff() >= -1e-12).all() and corrected.max() <= 1
    ordered, count = sorted(found), len(found)
    for row, one in enumerate(found):
        up = min(count * ordered[rank] / (rank + 1) for rank in range(count) if ordered[rank] >= one)
        down = max((count - rank) * ordered[rank] for rank in range(count) if ordered[rank] <= one)
        assert float(step_up[row]) == pytest.approx(min(1.0, up))
        assert float(step_down[row]) == pytest.approx(min(1.0, down))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 10), st.floats(-5, 5))
def test_p_values_know_no_scale_and_fall_with_the_score(seed: int, scale: float, shift: float) -> None:
    score, null, about = drawn(seed, 6, 50)
    # Below 0, as the logarithms of positive scores would be another score.
    score, null = score.double() - 100, null.double() - 100
    found = p_values(score, null, **about)
    assert (p_values(score + 3, null, **about) <= found).all()
    moved = p_values(scale * score + shift, scale * null + shift, **about)
    torch.testing.assert_close(moved, found, rtol=0, atol=1 / 51 + 1e-9)
